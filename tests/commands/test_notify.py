"""``tidegate notify`` as a process, and its file as docs/notifications.md shows it."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from tests.commands.invoke import tidegate
from tests.streams.play import play
from tidegate.streams.notify.receivers import load_receivers
from tidegate.streams.settings import load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SECONDS = 60


def test_the_example_of_the_docs_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "notifications.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    path = tmp_path / "notify.yml"
    path.write_text(example)
    assert [one.name for one in load_receivers(path)] == ["oncall", "team"]


def test_check_names_the_receivers_and_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify.yml"
    path.write_text("receivers: [{name: oncall, url: 'https://x/', secret_env: ONCALL}]")
    done = tidegate("notify", path, "--check")
    assert done.code == 2
    assert "receiver oncall: secret_env: ONCALL is empty or not set" in done.err
    monkeypatch.setenv("ONCALL", KEY)
    done = tidegate("notify", path, "--check")
    assert (done.code, done.out) == (0, f"{path}: oncall\n")


@pytest.fixture
def slack() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """The address of a receiver, and what it got."""
    got: list[dict[str, object]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/T0/secret-path", got
    server.shutdown()
    server.server_close()


def test_it_tells_slack_and_ends_when_it_is_told_to_without_a_word_of_the_secret(
    tmp_path: Path, slack: tuple[str, list[dict[str, object]]]
) -> None:
    address, got = slack
    path, log = tmp_path / "notify.yml", tmp_path / "log"
    path.write_text("receivers: [{name: team, format: slack, url_env: SLACK}]")

    async def write(servers: str) -> None:
        async with AIOKafkaProducer(**load_settings(broker=servers).kafka) as producer:
            for one in play("errors").decisions:
                await producer.send_and_wait("tidegate.decisions", one.to_bytes(), key=one.key.encode())

    def wait(condition: object) -> None:
        give_up = time.monotonic() + SECONDS
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.05)

    clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    with embedded_broker({"tidegate.decisions": 1}) as servers, log.open("wb") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "tidegate.streams.commands", "notify", str(path), "--broker", servers],
            env=clean | {"SLACK": address, "TIDEGATE_HTTP_PORT": "0", "TIDEGATE_LOG_LEVEL": "DEBUG"},
            stdout=lines,
            stderr=lines,
        )
        try:
            wait(lambda: b'"receiving"' in log.read_bytes())
            asyncio.run(write(servers))
            wait(lambda: len(got) == 2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
    assert ["promote" in str(got[0]["text"]), "abort" in str(got[1]["text"])] == [True, True]
    assert "secret-path" not in log.read_text()
    assert '"stopped"' in log.read_text()
