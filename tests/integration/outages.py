"""Real faults on a real Kafka: deployments that are disturbed while telemetry flows, and what became of them.

``python -m tests.integration.outages [FAULT…]`` runs the long form and prints the table of docs/reliability.md.
"""

import argparse
import asyncio
import hashlib
import json
import logging
import math
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.errors import KafkaError, KafkaTimeoutError
from aiokafka.structs import TopicPartition

from tests.integration.broker import REPLICAS, BrokerUnavailable, LocalBroker, LocalCluster
from tests.integration.test_worker import MANIFEST, PARTITIONS, telemetry
from tests.integration.workers import WorkerProcess, dump, written
from tidegate.schemas.correction import Correction
from tidegate.schemas.errors import NoBrokerError
from tidegate.schemas.event import encode
from tidegate.schemas.load import load_manifest
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.compare import by_unit, first_difference
from tidegate.streams.audit.replay import replay
from tidegate.streams.client.publisher import TelemetryPublisher
from tidegate.streams.kafka.tail import tail
from tidegate.streams.kafka.topics import connect, create_topics
from tidegate.streams.settings import Settings, load_settings

T = TypeVar("T")

FULL_SECONDS = 60.0
"""How long a broker may take to end when its disk is full."""
SESSION_MS = 6_000
"""The shortest that a broker allows."""
PATIENCE_SECONDS = 90.0
HOUR_MS = 3_600_000


def hostile(events: int, seed: int, partitions: int = PARTITIONS) -> Iterator[tuple[int, bytes]]:
    """``telemetry``; in its second half with 1 % garbage, deep JSON, records of nearly 1 MB, and clocks that jump.

    So much garbage lets nothing be promoted, which is why the first half has none.
    """
    rnd = random.Random(seed)
    for number, (partition, value) in enumerate(telemetry(events, seed, partitions)):
        yield partition, value
        chance = rnd.random() if number > events // 2 else 1.0
        if chance < 0.01:
            yield partition, rnd.choice([b"", b"\xff\xfe", b"null", b'{"ts":', value[:-2], b"[" * 10_000])
        elif chance < 0.0102:
            yield partition, value[:-1] + b',"extra":' + b"[" * 600 + b"]" * 600 + b"}"
        elif chance < 0.0103:
            yield partition, value[:-1] + b',"note":"%s"}' % (b"x" * 900_000)
        elif chance < 0.011:
            event = json.loads(value) if value.startswith(b'{"event_id"') else None
            if event is not None:
                jump = rnd.choice([-HOUR_MS, -10 * 60_000, 400 * 24 * HOUR_MS * 10])
                event |= {"event_id": f"jumped-{number}", "ts": event["ts"] + jump}
                yield partition, json.dumps(event, ensure_ascii=False).encode()


def quickly(events: int, seed: int, partitions: int = PARTITIONS) -> Iterator[tuple[int, bytes]]:
    """``telemetry`` in which ten times as much time passes, so that decisions are frequent."""
    return telemetry(events, seed, partitions, step_ms=20)


@dataclass
class Report:
    """What a run gave. ``recoveries``: seconds from a fault's end until everything written by then was saved.

    ``calm``, ``silence``: the longest time between two decisions before the first fault, and from then on, s.
    """

    name: str
    events: int
    recoveries: list[tuple[str, float]] = field(default_factory=list)
    restarts: int = 0
    peak_mb: int = 0
    live: str = ""
    replayed: str = ""
    decisions: int = 0
    commands: int = 0
    corrections: int = 0
    errors: list[str] = field(default_factory=list)
    calm: float = 0.0
    silence: float = 0.0
    service: "Service | None" = None

    @property
    def same(self) -> bool:
        """Whether the disturbed run gave the bytes of the undisturbed one."""
        return self.live == self.replayed

    def row(self) -> str:
        """A line of the table."""
        seconds = [second for _, second in self.recoveries]
        took = f"{min(seconds):.1f} to {max(seconds):.1f}" if len(seconds) > 1 else "".join(f"{s:.1f}" for s in seconds)
        same = "the same" if self.same else "**different**"
        return (
            f"| {self.name} | {self.events:,} | {self.restarts} | {took or '–'} | {self.peak_mb} | "
            f"{self.decisions} / {self.commands} / {self.corrections} | {same}: `{self.live[:12]}` |"
        )


class Service(logging.Handler):
    """A service that publishes its telemetry, and what became of it.

    ``capacity``: events that may wait. ``taken``: what ``publish`` took, ``stored``: what the topic has, both as
    hashes. ``repeats``: records that it has more than once. ``lines``: what the service's log got of all that.
    """

    def __init__(self, settings: Settings, capacity: int) -> None:
        super().__init__(logging.WARNING)
        self.settings, self.capacity = settings, capacity
        self.offered = self.sent = self.failed = self.dropped = self.rejected = self.pending = self.repeats = 0
        self.taken: set[int] = set()
        self.stored: set[int] = set()
        self.lines: Counter[str] = Counter()
        self.cpu = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line that reaches the service's log."""
        self.lines[record.name.partition(".")[0]] += 1

    async def run(self, records: Iterable[tuple[int, bytes]], per_second: float) -> None:
        """Publish everything; return when it is closed."""
        logging.getLogger().addHandler(self)
        began, started = time.thread_time(), time.monotonic()
        try:
            async with TelemetryPublisher(self.settings, capacity=self.capacity, close_seconds=30) as telemetry:
                for number, (_, value) in enumerate(records):
                    event = _event(value)
                    self.offered += 1
                    if telemetry.publish(event):
                        self.taken.add(hash(encode(event)))
                    if number % 50 == 0:
                        await asyncio.sleep(max(0.0, started + number / per_second - time.monotonic()))
        finally:
            logging.getLogger().removeHandler(self)
        self.cpu = time.thread_time() - began
        for name in ("sent", "failed", "dropped", "rejected", "pending"):
            setattr(self, name, getattr(telemetry, name))

    async def look(self) -> None:
        """Read what the topic has."""
        values = []
        async with tail(self.settings, self.settings.telemetry_topic) as topic:
            while records := await topic.more(2.0):
                # A tick is in each partition.
                values += [hash(r.value) for r in records if r.key is not None or r.partition == 0]
        self.stored, self.repeats = set(values), len(values) - self.sent

    @property
    def wrong(self) -> list[str]:
        """What does not add up."""
        counted = self.sent + self.failed + self.dropped + self.rejected + self.pending
        checks = {
            f"{counted} are counted of {self.offered} that were offered": counted == self.offered,
            f"{self.pending} are pending": self.pending == 0,
            f"{self.failed} failed": self.failed == 0,
            f"{len(self.taken ^ self.stored)} were taken or are in the topic, and not both": self.taken == self.stored,
            "nothing was sent": self.sent > 0,
        }
        return [text for text, holds in checks.items() if not holds]

    def __str__(self) -> str:
        return (
            f"offered {self.offered:,}: sent {self.sent:,}, failed {self.failed:,}, dropped {self.dropped:,}, rejected "
            f"{self.rejected:,}, pending {self.pending:,}; in the topic more than once {self.repeats:,}; lines of "
            f"Tidegate {self.lines['tidegate']}, of aiokafka {self.lines['aiokafka']}; {self.cpu:.1f} s of processor"
        )


def _event(value: bytes) -> Any:
    """What a service would hand over; garbage is handed over as it is."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


class Deployment:
    """A broker of its own, workers that are started again when they end, and a producer that waits outages out."""

    def __init__(
        self, folder: Path, workers: int, *, partitions: int = PARTITIONS, brokers: int = 1, disk_mb: int | None = None
    ) -> None:
        self.folder, self.partitions = folder, partitions
        self.disk = None if disk_mb is None else _mount(folder / "kafka" / "data", disk_mb)
        self.broker: LocalBroker | LocalCluster = (
            LocalBroker(folder / "kafka") if brokers == 1 else LocalCluster(folder / "kafka")
        )
        self.settings = load_settings(
            broker=self.broker.bootstrap,
            gate_partitions=2,
            partitions=partitions,
            replication_factor=1 if brokers == 1 else REPLICAS,
        )
        self.manifest = folder / "flags.yml"
        self.manifest.write_text(MANIFEST)
        self.workers = [self.worker(f"worker-{n}") for n in range(1, workers + 1)]
        self.restarts = self.peak_mb = 0
        self._ending = threading.Event()
        self._held: set[WorkerProcess] = set()

    def worker(self, name: str, instance: str | None = None) -> WorkerProcess:
        """A worker that is not started; ``instance``: its TIDEGATE_INSTANCE_ID, if not its name."""
        timing = {"TIDEGATE_SESSION_TIMEOUT": f"{SESSION_MS}ms", "TIDEGATE_HEARTBEAT": "1s"}
        environment = timing | {"TIDEGATE_INSTANCE_ID": instance or name}
        return WorkerProcess(self.settings, self.manifest, name, self.folder, environment=environment)

    @contextmanager
    def running(self, backlog: Iterable[tuple[int, bytes]] = ()) -> Iterator[None]:
        """Everything started and ready, the workers once the backlog is written; nothing outlives the block."""
        with self.broker:
            asyncio.run(create_topics(self.settings))
            asyncio.run(_publish(self.settings, backlog, None))
            supervisor = threading.Thread(target=self._supervise)
            try:
                for worker in self.workers:
                    worker.start()
                for worker in self.workers:
                    worker.wait_ready()
                supervisor.start()
                yield
            finally:
                self._ending.set()
                if supervisor.is_alive():
                    supervisor.join()
                for worker in self.workers:
                    if worker.running:
                        worker.signal(signal.SIGKILL)

    def dismiss(self, worker: WorkerProcess) -> None:
        """End a worker for good."""
        self._held.add(worker)
        if worker.running:
            worker.signal(signal.SIGKILL)

    def _supervise(self) -> None:
        """What compose's ``restart: unless-stopped`` does; and a look at each worker's memory."""
        while not self._ending.wait(0.25):
            for worker in list(self.workers):
                if worker.running:
                    self.peak_mb = max(self.peak_mb, _peak_mb(worker.pid))
                elif worker not in self._held:
                    worker.start()
                    self.restarts += 1

    def kill(self, worker: WorkerProcess) -> None:
        """SIGKILL; the supervisor starts it again."""
        worker.signal(signal.SIGKILL)

    def produce(self, records: Iterable[tuple[int, bytes]], per_second: float | None) -> threading.Thread:
        """Publish in the background, each partition in order, however long the broker is away."""
        publish = _publish(self.settings, records, per_second)
        thread = threading.Thread(target=lambda: asyncio.run(publish), daemon=True)
        thread.start()
        return thread

    def serve(self, service: Service, records: Iterable[tuple[int, bytes]], per_second: float) -> threading.Thread:
        """Publish in the background, as a service does."""
        thread = threading.Thread(target=lambda: asyncio.run(service.run(records, per_second)), daemon=True)
        thread.start()
        return thread

    def ends(self) -> dict[int, int]:
        """The end of each telemetry partition now."""

        async def ask() -> dict[int, int]:
            async with AIOKafkaConsumer(**self.settings.kafka) as consumer:
                return {tp.partition: end for tp, end in (await consumer.end_offsets(self._telemetry())).items()}

        return asyncio.run(ask())

    def saved(self) -> dict[int, int]:
        """Where the workers' checkpoints of the telemetry stand."""

        async def ask(admin: AIOKafkaAdminClient) -> dict[int, int]:
            group = self.settings.application_id
            found = await admin.list_consumer_group_offsets(group, partitions=self._telemetry())
            return {tp.partition: position.offset for tp, position in found.items()}

        return self.administered(ask)

    def administered(self, what: Callable[[AIOKafkaAdminClient], Awaitable[T]]) -> T:
        """What an administrator's request gives. Raises KafkaError."""

        async def ask() -> T:
            admin = await connect(self.settings)
            try:
                return await what(admin)
            finally:
                await admin.close()

        return asyncio.run(ask())

    def _telemetry(self) -> list[TopicPartition]:
        return [TopicPartition(self.settings.telemetry_topic, p) for p in range(self.partitions)]

    def recover(self) -> float:
        """Seconds until everything that is written now is in a checkpoint."""
        started = moved = time.monotonic()
        wanted, before = _answered(self.ends), dict[int, int]()
        while True:
            saved = _answered(self.saved)
            if all(saved.get(p, -1) >= end for p, end in wanted.items()):
                return time.monotonic() - started
            if saved != before:
                before, moved = saved, time.monotonic()
            if time.monotonic() - moved > PATIENCE_SECONDS:
                raise AssertionError(f"not recovered: saved {saved}, written {wanted}\n{self.tails()}")
            time.sleep(0.1)

    def tails(self) -> str:
        """The end of each worker's log."""
        return "\n".join(f"{worker.log.name}:\n{worker.log.read_text()[-1500:]}" for worker in self.workers)

    def logged(self, event: str) -> list[dict[str, object]]:
        """Lines of one kind of all workers."""
        return [entry for worker in self.workers for entry in worker.logged(event)]


def _answered(ask: Callable[[], dict[int, int]]) -> dict[int, int]:
    """The answer of brokers of which one may have been started, or killed, a moment ago."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except (KafkaError, NoBrokerError, TimeoutError):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


def _peak_mb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


async def _publish(settings: Settings, records: Iterable[tuple[int, bytes]], per_second: float | None) -> None:
    async with AIOKafkaProducer(
        **settings.kafka, linger_ms=20, acks="all", enable_idempotence=True, max_request_size=2 << 20
    ) as producer:
        started, sent = time.monotonic(), []
        for number, (partition, value) in enumerate(records):
            sent.append(await _taken(producer, settings.telemetry_topic, value, partition))
            if per_second is not None and number % 200 == 0:
                await asyncio.sleep(max(0.0, started + number / per_second - time.monotonic()))
            if len(sent) > 50_000:
                await asyncio.gather(*sent)
                sent = []
        await asyncio.gather(*sent)


async def _taken(producer: AIOKafkaProducer, topic: str, value: bytes, partition: int) -> Awaitable[Any]:
    while True:
        try:
            sent: Awaitable[Any] = await producer.send(topic, value, partition=partition)
            return sent
        except KafkaTimeoutError:
            # Its buffer was full for as long as it waits; the broker is still away.
            continue


# The faults


Fault = Callable[[Deployment, random.Random], None]


def sigkill(deployment: Deployment, rnd: random.Random) -> None:
    """A worker is gone in the middle of whatever it did."""
    deployment.kill(rnd.choice(deployment.workers))


def sigkill_of(number: int) -> Fault:
    """The same for one worker."""
    return lambda deployment, _: deployment.kill(deployment.workers[number])


def sigterm(deployment: Deployment, rnd: random.Random) -> None:
    """A worker is told to stop."""
    rnd.choice(deployment.workers).signal(signal.SIGTERM)


def sigstop(deployment: Deployment, rnd: random.Random) -> None:
    """A worker stands still until the group has given its partitions away, then goes on as if nothing had been."""
    worker = rnd.choice(deployment.workers)
    worker.send(signal.SIGSTOP)
    time.sleep(SESSION_MS / 1000 + 3)
    worker.send(signal.SIGCONT)


def broker_restart(deployment: Deployment, rnd: random.Random) -> None:
    """The broker is stopped and started."""
    deployment.broker.stop()
    deployment.broker.start()


def broker_gone(seconds: float) -> Fault:
    """The broker is killed and away for a while."""

    def gone(deployment: Deployment, rnd: random.Random) -> None:
        assert isinstance(deployment.broker, LocalBroker)
        deployment.broker.kill()
        time.sleep(seconds)
        deployment.broker.start()

    return gone


def checkpoints_deleted(deployment: Deployment, rnd: random.Random) -> None:
    """Someone deletes both checkpoint topics."""
    names = [deployment.settings.window_checkpoints_topic, deployment.settings.gate_checkpoints_topic]
    deployment.administered(lambda admin: admin.delete_topics(names, timeout_ms=30_000))


def leader_killed(deployment: Deployment, rnd: random.Random) -> None:
    """The node that leads a partition of the telemetry is gone in the middle of whatever it did."""
    assert isinstance(deployment.broker, LocalCluster)
    partition = rnd.randrange(deployment.partitions)
    deployment.broker.leader(deployment.settings.telemetry_topic, partition).kill()


def node_back(deployment: Deployment, rnd: random.Random) -> None:
    """Whoever was killed is started again and catches up."""
    assert isinstance(deployment.broker, LocalCluster)
    deployment.broker.start()
    deployment.broker.wait_in_sync()


def disk_full(deployment: Deployment, rnd: random.Random) -> None:
    """The broker's disk takes nothing more; after a while there is room, and the broker is started."""
    assert isinstance(deployment.broker, LocalBroker)
    assert deployment.disk is not None
    ballast = deployment.disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    ended = deployment.broker.wait(FULL_SECONDS)
    print(f"  the broker {'ended of itself' if ended else 'went on'}", file=sys.stderr, flush=True)
    deployment.broker.kill()
    time.sleep(5)
    ballast.unlink()
    deployment.broker.start()


def restarted(number: int) -> Fault:
    """A worker is told to stop, and the next fault waits until it is ready again."""

    def restart(deployment: Deployment, rnd: random.Random) -> None:
        worker = deployment.workers[number]
        before = len(worker.logged("ready"))
        worker.signal(signal.SIGTERM)
        while not worker.running:
            time.sleep(0.05)
        worker.wait_ready(before + 1)

    return restart


def twin(seconds: float) -> Fault:
    """A worker too many that has another's TIDEGATE_INSTANCE_ID, for a while."""

    def start(deployment: Deployment, rnd: random.Random) -> None:
        twin = deployment.worker("twin", "worker-1")
        twin.start()
        deployment.workers.append(twin)
        time.sleep(seconds)
        deployment.dismiss(twin)

    return start


def run(
    name: str,
    folder: Path,
    faults: Sequence[tuple[str, Fault]],
    *,
    events: int,
    per_second: float | None,
    workers: int = 2,
    pause: tuple[float, float] = (1.0, 3.0),
    source: Callable[[int, int, int], Iterator[tuple[int, bytes]]] = hostile,
    seed: int | None = None,
    after: Callable[[Deployment], None] = lambda _: None,
    backlog: bool = False,
    capacity: int | None = None,
    **shape: int,
) -> Report:
    """Disturb a deployment while telemetry flows; then hold what it wrote against an undisturbed replay of the log.

    ``capacity``: of the queue of a service that publishes the telemetry; None: a producer does that does not give up.
    ``shape``: of the deployment: ``partitions``, ``brokers``, ``disk_mb``.
    """
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    rnd, report = random.Random(seed), Report(name, events)
    deployment = Deployment(folder, workers, **shape)
    try:
        records = source(events, seed, deployment.partitions)
        with deployment.running(records if backlog else ()):
            if capacity is None:
                producing = deployment.produce(records, per_second)
            else:
                report.service = Service(deployment.settings, capacity)
                producing = deployment.serve(report.service, records, per_second or math.inf)
            if backlog:
                report.recoveries.append(("backlog", deployment.recover()))
            disturbed = time.time()
            for number, (what, fault) in enumerate(faults):
                time.sleep(rnd.uniform(*pause))
                disturbed = disturbed if number else time.time()
                fault(deployment, rnd)
                report.recoveries.append((what, deployment.recover()))
            producing.join()
            if report.service is None:
                assert sum(deployment.ends().values()) >= events, "the producer gave up"
            else:
                asyncio.run(report.service.look())
                report.errors += report.service.wrong
            deployment.recover()
            _hold_against_replay(deployment, report)
            report.calm, report.silence = asyncio.run(_silence(deployment.settings, disturbed))
            report.restarts, report.peak_mb = deployment.restarts, deployment.peak_mb
            report.errors += [str(entry.get("error", "")) for entry in deployment.logged("failed")]
            after(deployment)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}\n{deployment.tails()}") from None
    finally:
        if deployment.disk is not None:
            subprocess.run(["umount", str(deployment.disk)], check=True)
    return report


def _mount(folder: Path, megabytes: int) -> Path:
    """A small file system of its own, in memory. Raises BrokerUnavailable where that is not allowed."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        raise BrokerUnavailable(f"no small file system for the broker, which takes root: {done.stderr.strip()}")
    return folder


async def _silence(settings: Settings, since: float) -> tuple[float, float]:
    """The longest time between two decisions, each taken where it came first, before ``since`` and from then on, s."""
    async with tail(settings, settings.decisions_topic) as topic:
        firsts: dict[bytes, int] = {}
        for record in await topic.history():
            firsts[record.value] = min(record.timestamp, firsts.get(record.value, record.timestamp))
    times = sorted(firsts.values())
    gaps = [(after, (after - before) / 1000) for before, after in pairwise(times)]
    calm = max((gap for after, gap in gaps if after < since * 1000), default=0.0)
    return calm, max((gap for after, gap in gaps if after >= since * 1000), default=0.0)


def _hold_against_replay(deployment: Deployment, report: Report) -> None:
    settings, file = deployment.settings, deployment.folder / "telemetry.ndjson"
    asyncio.run(dump(settings, file))
    corrections: list[Correction] = []
    timeline = Timeline.of(load_manifest(MANIFEST).flags)
    outcomes = list(replay([file], timeline, deployment.partitions, settings.clockwork, corrected=corrections.append))
    file.unlink()
    due = [
        by_unit(decision.to_bytes() for decision, _ in outcomes),
        by_unit(command.to_bytes() for _, command in outcomes if command is not None),
        by_unit(correction.to_bytes() for correction in corrections),
    ]
    report.decisions, report.commands, report.corrections = (sum(map(len, each.values())) for each in due)
    report.replayed = digest(due)
    topics = settings.decisions_topic, settings.control_topic, settings.corrections_topic
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = [asyncio.run(written(settings, topic)) for topic in topics]
        report.live = digest(found)
        if report.same:
            return
        if time.monotonic() > give_up:
            pairs = zip(topics, found, due, strict=True)
            report.errors = [f"{topic}: {_first_difference(one, other)}" for topic, one, other in pairs]
            return
        time.sleep(0.5)


def _first_difference(live: dict[str, list[bytes]], due: dict[str, list[bytes]]) -> str | None:
    return first_difference(*(list(chain.from_iterable(each.values())) for each in (live, due)))


def digest(records: list[dict[str, list[bytes]]]) -> str:
    """SHA-256 of records by topic and unit, each unit's in order."""
    total = hashlib.sha256()
    for each in records:
        for unit, values in sorted(each.items()):
            total.update(b"\n".join([unit.encode(), *values, b""]))
    return total.hexdigest()


def add_partition(deployment: Deployment) -> None:
    """A fifth partition for the telemetry: every worker ends, says why, and does so again when it is started."""
    more = {deployment.settings.telemetry_topic: NewPartitions(deployment.partitions + 1)}
    deployment.administered(lambda admin: admin.create_partitions(more))


LONG: dict[str, tuple[Sequence[tuple[str, Fault]], dict[str, object]]] = {
    "SIGKILL, two workers": ([("SIGKILL", sigkill)] * 5, {"events": 300_000}),
    "SIGTERM": ([("SIGTERM", sigterm)] * 5, {"events": 300_000}),
    "SIGSTOP past the session, SIGCONT": ([("SIGSTOP", sigstop)] * 3, {"events": 500_000}),
    "broker restarted": ([("restart", broker_restart)] * 3, {"events": 400_000}),
    "broker gone for a minute": ([("gone", broker_gone(60))], {"events": 300_000}),
    "broker gone from a publishing service for 57 s": (
        [("gone", broker_gone(57))],
        {"events": 150_000, "per_second": 1_500, "capacity": 100_000},
    ),
    "the same, with room for 20,000 events": (
        [("gone", broker_gone(57))],
        {"events": 150_000, "per_second": 1_500, "capacity": 20_000},
    ),
    "checkpoint topics deleted": ([("deleted", checkpoints_deleted)] * 2, {"events": 300_000}),
    "a backlog of a gigabyte, one worker": (
        [],
        {"events": 1_900_000, "workers": 1, "backlog": True, "source": telemetry},
    ),
    "three brokers, the leader killed twice": (
        [("leader killed", leader_killed), ("back", node_back)] * 2,
        {"events": 150_000, "brokers": 3, "per_second": 2_000},
    ),
    "the broker's disk full": (
        [("disk full", disk_full)] * 2,
        {"events": 100_000, "per_second": 2_000, "disk_mb": 512},
    ),
    "64 partitions, SIGKILL, SIGTERM, broker restarted": (
        [("SIGKILL", sigkill), ("SIGTERM", sigterm), ("restart", broker_restart), ("SIGKILL", sigkill)],
        {"events": 150_000, "partitions": 64, "per_second": 2_000},
    ),
    "three workers restarted in turn": (
        [("restarted", restarted(number)) for number in (0, 1, 2)],
        {"events": 100_000, "workers": 3, "per_second": 2_000, "source": quickly, "pause": (10, 12)},
    ),
    "two workers with one TIDEGATE_INSTANCE_ID": (
        [("twin", twin(40))],
        {"events": 150_000, "per_second": 2_000},
    ),
    "three workers, each with 10 SIGKILLs": (
        [("SIGKILL", sigkill_of(number)) for number in random.Random(7).sample([0, 1, 2] * 10, 30)],
        {"events": 2_000_000, "workers": 3, "pause": (0.5, 2.0), "source": telemetry},
    ),
}


def main() -> int:
    """Run the faults one after the other, each on a deployment of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.outages", description=__doc__)
    parser.add_argument("fault", nargs="*", choices=[[], *LONG], help="all if none is named")
    parser.add_argument("--per-second", type=float, default=9_000)
    options = parser.parse_args()
    # What clients have to say of a broker that is away on purpose would fill the screen.
    logging.getLogger().addHandler(logging.NullHandler())
    failed = 0
    print("| fault | events | restarts | recovery, s | peak MB | decisions / commands / corrections | SHA-256 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |", flush=True)
    for name in options.fault or LONG:
        faults, more = LONG[name]
        try:
            with tempfile.TemporaryDirectory() as folder:
                report = run(name, Path(folder), faults, **{"per_second": options.per_second} | more)
        except BrokerUnavailable as reason:
            # A full disk takes root; without it the others are tried all the same.
            print(f"  {name}: NOT TRIED: {reason}", file=sys.stderr, flush=True)
            failed += 1
            continue
        failed += not report.same or bool(report.service and report.service.wrong)
        print(report.row(), flush=True)
        if report.service is not None:
            print(f"  {name}: {report.service}", file=sys.stderr, flush=True)
        said = f"longest without a decision: {report.silence:.1f} s, {report.calm:.1f} s before the first fault"
        print(f"  {name}: {said}; {report.recoveries}", file=sys.stderr, flush=True)
        for error in dict.fromkeys(report.errors):
            print(f"  {name}: {error}", file=sys.stderr, flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
