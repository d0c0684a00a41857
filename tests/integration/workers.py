"""Real workers as processes of their own, and the topics they write, for tests on a real Kafka."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from aiokafka import AIOKafkaProducer

from tidegate.streams.audit.compare import by_unit
from tidegate.streams.dumps.records import dump_line
from tidegate.streams.kafka.tail import tail
from tidegate.streams.settings import Settings


class WorkerProcess:
    """One ``tidegate worker``, pinned to a core if ``cpu`` names one; its log lines go to a file.

    ``manifest``: taken unsigned; None: from the manifests topic.
    """

    def __init__(
        self,
        settings: Settings,
        manifest: Path | None,
        name: str,
        folder: Path,
        *,
        cpu: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = folder / f"{name}.log"
        self._pin = [] if cpu is None else ["taskset", "-c", str(cpu)]
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("TIDEGATE_")} | {
            "TIDEGATE_BROKER": settings.broker,
            "TIDEGATE_MANIFEST": "" if manifest is None else str(manifest),
            "TIDEGATE_UNSIGNED_MANIFEST": "false" if manifest is None else "true",
            "TIDEGATE_TOPIC_PREFIX": settings.topic_prefix,
            "TIDEGATE_APPLICATION_ID": settings.application_id,
            "TIDEGATE_INSTANCE_ID": name,
            "TIDEGATE_TICK_IDLE_AFTER": "off",
            "TIDEGATE_HTTP_PORT": "0",
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, or start again."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._pin, sys.executable, "-m", "tidegate.streams.commands", "worker"],
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def signal(self, number: int) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(30)

    def send(self, number: int) -> None:
        """Send a signal to a process that goes on."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def logged(self, event: str) -> list[dict[str, object]]:
        """The log lines of one kind."""
        lines = (line for line in self.log.read_text().splitlines() if line.startswith("{"))
        return [entry for entry in map(json.loads, lines) if entry.get("event") == event]

    def wait_ready(self, times: int = 1, seconds: float = 60) -> None:
        """Wait for the ``times``-th line that says ready."""
        give_up = time.monotonic() + seconds
        while len(self.logged("ready")) < times:
            assert self.running, f"{self.log.name} ended:\n{self.log.read_text()[-2000:]}"
            assert time.monotonic() < give_up, f"{self.log.name} is not ready:\n{self.log.read_text()[-2000:]}"
            time.sleep(0.05)


@contextmanager
def running(*workers: WorkerProcess) -> Iterator[None]:
    """The workers, started and ready; none outlives the block."""
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.wait_ready()
        yield
    finally:
        for worker in workers:
            if worker.running:
                worker.signal(signal.SIGKILL)


async def publish(settings: Settings, records: Iterable[tuple[int, bytes]], per_second: float | None = None) -> None:
    """Write (partition, value) records to the telemetry topic, in order within each partition."""
    async with AIOKafkaProducer(**settings.kafka, linger_ms=20, acks="all") as producer:
        started, sent = time.monotonic(), []
        for number, (partition, value) in enumerate(records):
            sent.append(await producer.send(settings.telemetry_topic, value, partition=partition))
            if per_second is not None and number % 200 == 0:
                await asyncio.sleep(max(0.0, started + number / per_second - time.monotonic()))
        await asyncio.gather(*sent)


async def dump(settings: Settings, path: Path) -> None:
    """Write the telemetry topic, which has come to rest, to a file that replay reads."""
    async with tail(settings, settings.telemetry_topic) as topic:
        with path.open("wb") as file:
            while records := await topic.more(2.0):
                file.writelines(dump_line(record) + b"\n" for record in records)


async def written(settings: Settings, topic: str) -> dict[str, list[bytes]]:
    """The records of a decisions or control topic by unit, repeats dropped."""
    async with tail(settings, topic) as records:
        return by_unit(record.value for record in await records.history())
