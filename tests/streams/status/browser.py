"""The status page as a browser sees it: a real server in a thread of its own, a real Chromium."""

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from aiohttp import web
from playwright.sync_api import Browser, sync_playwright

from tidegate.streams.status.routes import add_status
from tidegate.streams.status.state import StatusState

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


class Served:
    """A status page on a port of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, state: StatusState, port: int) -> None:
        self._loop, self.state, self.url = loop, state, f"http://127.0.0.1:{port}/"

    def do(self, change: Callable[[StatusState], None]) -> None:
        """Change the state where the server runs."""
        done = threading.Event()

        def run() -> None:
            change(self.state)
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(10)


@contextmanager
def served(fill: Callable[[StatusState], None]) -> Iterator[Served]:
    """Serve a state that was filled first."""
    state, loop = StatusState(), asyncio.new_event_loop()
    fill(state)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> web.AppRunner:
        app = web.Application()
        add_status(app, state)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield Served(loop, state, runner.addresses[0][1])
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def chromium_path() -> str:
    """Return where Chromium is; without one the test is skipped, but never where CI is set."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        why = "no Chromium; on Debian: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
