"""The publisher for services with threads: the same one, on an event loop in a thread of its own."""

import asyncio
import atexit
import os
import socket
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tidegate.schemas.event import TelemetryEvent
from tidegate.streams.client.bound import Bindable
from tidegate.streams.client.checking import CheckedEvent
from tidegate.streams.client.publisher import TelemetryPublisher
from tidegate.streams.settings import Settings, load_settings


class _Loop(asyncio.SelectorEventLoop):
    """Looks names up in its own thread: at the interpreter's exit no other can be started."""

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        """Block, which holds up nobody but telemetry."""
        return socket.getaddrinfo(host, port, **options)


class SyncTelemetryPublisher(Bindable):
    """Publishes telemetry from any thread::

        telemetry = SyncTelemetryPublisher()
        telemetry.publish({"event_id": ..., "ts": ..., "flag": ..., "arm": "canary", "sticky_id": ..., ...})

    The same promises, arguments and counters as ``TelemetryPublisher``. Its thread starts with the first event, so
    that it may be made before a server forks: a child has its own thread and counters, which begin at 0, and what the
    parent had waiting stays the parent's. ``close``, the end of a ``with``, or else the end of the interpreter sends
    what waits, for up to ``close_seconds``; a child that ends by ``os._exit``, as those of multiprocessing do, has to
    close it itself.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        capacity: int = 100_000,
        close_seconds: float = 5.0,
        strict: bool = False,
    ) -> None:
        self._settings = settings or load_settings()
        self._capacity, self._close_seconds, self._strict = capacity, close_seconds, strict
        self._open = True
        self._before_fork: list[object] = []
        self._begin()
        _publishers.add(self)

    def _begin(self) -> None:
        self._publisher = TelemetryPublisher(self._settings, capacity=self._capacity, close_seconds=self._close_seconds)
        # Reentrant: a signal's handler may publish too.
        self._lock = threading.RLock()
        self._inbox: list[CheckedEvent] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()

    def publish(self, event: TelemetryEvent | Mapping[str, Any]) -> bool:
        """Queue one event; whether it was taken. Waits for no network, never raises unless ``strict``."""
        try:
            checked = self._publisher._checker.check(event)
        except Exception as error:
            with self._lock:
                self._publisher._reject(error)
            if self._strict:
                raise
            return False
        with self._lock:
            if not self._open or self._publisher.pending + len(self._inbox) >= self._capacity:
                self._publisher._drop()
                return False
            loop = self._loop or self._start()
            self._inbox.append(checked)
            if len(self._inbox) == 1:
                loop.call_soon_threadsafe(self._hand_over)
        return True

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until nothing is pending; False if that takes longer than ``seconds``."""

        async def handed_over() -> bool:
            self._hand_over()
            return await self._publisher.flush(seconds)

        with self._lock:
            if self._loop is None or not self._open:
                return self.pending == 0
            flushed = asyncio.run_coroutine_threadsafe(handed_over(), self._loop)
        return flushed.result()

    def close(self) -> None:
        """Take no more events, and wait up to ``close_seconds`` for the rest, which fails after that."""
        with self._lock:
            self._open = False
            loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            # It is closed already where two threads close.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._stop.set)
            # Twice: the rest, then the connection.
            thread.join(2 * self._close_seconds + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def sent(self) -> int:
        """Events that the broker confirmed; a tick once every partition has it."""
        return self._publisher.sent

    @property
    def failed(self) -> int:
        """Events that the broker refused, or that were not confirmed when the publisher was closed."""
        return self._publisher.failed

    @property
    def dropped(self) -> int:
        """Events that found ``capacity`` others waiting, or the publisher closed."""
        return self._publisher.dropped

    @property
    def rejected(self) -> int:
        """Events that broke the schema; the log names each field once."""
        return self._publisher.rejected

    @property
    def pending(self) -> int:
        """Events that are waiting or under way."""
        with self._lock:
            return self._publisher.pending + len(self._inbox)

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop = loop = _Loop()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="tidegate-telemetry", daemon=True)
        self._thread.start()
        return loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with self._publisher:
            await self._stop.wait()
            self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            for checked in self._inbox:
                self._publisher._take(checked)
            self._inbox.clear()

    def _begin_in_child(self) -> None:
        # To drop the parent's loop and sockets would close what is under them for the parent too.
        self._before_fork.append((self._publisher, self._loop, self._thread, self._stop))
        self._begin()


_publishers: "weakref.WeakSet[SyncTelemetryPublisher]" = weakref.WeakSet()


def _close_all() -> None:
    for publisher in list(_publishers):
        publisher.close()


def _begin_all_in_child() -> None:
    for publisher in list(_publishers):
        publisher._begin_in_child()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_all_in_child)
