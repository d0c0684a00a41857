"""``tidegate serve`` as a process beside a broker: it shows what is written, checks by whom, and stops when told."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from tests.commands.invoke import tidegate
from tests.commands.test_explain import ABORT, PROMOTE
from tests.streams.status.test_state import LATER, at
from tidegate.schemas.decision import Decision
from tidegate.schemas.seal import sign_record
from tidegate.schemas.signed import PrivateKey, read_private
from tidegate.streams.settings import load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

TOPICS = {"tidegate.decisions": 2, "tidegate.control": 2}


@contextmanager
def serving(broker: str, *arguments: str) -> Iterator[str]:
    """Run the command; where its page is. It has to end within seconds of being told to."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TIDEGATE_")} | {
        "TIDEGATE_FETCH_WAIT": "50ms"
    }
    words = [sys.executable, "-m", "tidegate.streams.commands", "serve", "--broker", broker, "--port", "0", *arguments]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found is not None
            yield found[0]
        finally:
            process.send_signal(signal.SIGTERM)
            out, errors = process.communicate(timeout=30)
        assert process.returncode == 0, out + errors
        assert "Traceback" not in errors


def write(broker: str, *decisions: Decision, key: PrivateKey | None = None) -> None:
    settings = load_settings(broker=broker)

    async def send() -> None:
        async with AIOKafkaProducer(**settings.kafka) as producer:
            for one in decisions:
                value = one.to_bytes()
                headers = sign_record(value, "decision", key) if key else []
                topic = settings.decisions_topic
                await producer.send_and_wait(topic, value, key=one.key.encode(), headers=headers)

    asyncio.run(send())


def awaited(url: str, verdicts: list[str]) -> dict[str, Any]:
    """What all units are once their verdicts are these."""
    until = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"{url}api/units", timeout=10) as answer:  # noqa: S310 - our own server
            body: dict[str, Any] = json.load(answer)
        if [one["verdict"] for one in body["units"]] == verdicts:
            return body
        assert time.monotonic() < until, body
        time.sleep(0.1)


def test_what_is_written_before_and_while_it_runs_is_served() -> None:
    with embedded_broker(TOPICS) as broker:
        write(broker, at(PROMOTE))
        with serving(broker) as url:
            assert awaited(url, ["promote"])["broker_away_since"] is None
            write(broker, at(ABORT, later=LATER), at(PROMOTE, "other"))
            awaited(url, ["abort", "promote"])
            stream = urllib.request.urlopen(f"{url}api/events", timeout=10)  # noqa: S310 - our own server
            assert stream.readline() == b"event: units\n"
        # Who still listened was sent home.
        stream.close()


def test_with_trusted_keys_what_nobody_signed_is_passed_over(tmp_path: Path) -> None:
    assert tidegate("keygen", tmp_path / "worker").code == 0
    key = read_private((tmp_path / "worker").read_bytes())
    with embedded_broker(TOPICS) as broker:
        write(broker, at(PROMOTE))
        with serving(broker, "--trusted-keys", str(tmp_path / "worker.pub")) as url:
            write(broker, at(PROMOTE, "signed"), key=key)
            (unit,) = awaited(url, ["promote"])["units"]
            assert unit["flag"] == "signed"


def test_an_address_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tidegate.streams.commands",
                "serve",
                "--broker",
                "127.0.0.1:9",
                "--port",
                str(port),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
