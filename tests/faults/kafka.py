"""A model of Kafka: logs, compaction, and producers whose requests are delayed, repeated or outlive their process."""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError
from aiokafka.structs import ConsumerRecord, RecordMetadata
from faust.types import TP

AT_ONCE = 8
"""Most records that a consumer is handed in one call."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a log holds at an offset; ``timestamp``: the broker's, ms."""

    key: bytes | None
    value: bytes | None
    headers: Any
    timestamp: int


@dataclass
class Log:
    """One partition; compaction leaves gaps."""

    records: dict[int, Record] = field(default_factory=dict)
    end: int = 0

    def append(self, record: Record) -> int:
        """The offset it is given."""
        self.records[self.end] = record
        self.end += 1
        return self.end - 1

    def compact(self, until: int) -> None:
        """Of the records below ``until`` keep the last one of each key; tombstones go too."""
        last = {record.key: offset for offset, record in self.records.items() if offset < until}
        kept = set(last.values())
        self.records = {
            offset: record
            for offset, record in self.records.items()
            if offset >= until or (offset in kept and record.value is not None)
        }


@dataclass
class Pending:
    """A record that a producer was given, and the promise to confirm it."""

    record: Record
    confirmation: asyncio.Future[RecordMetadata]


@dataclass(eq=False)
class Request:
    """A batch on its way; ``offsets``: where it was appended and is not confirmed yet."""

    producer: "Producer"
    tp: TP
    batch: list[Pending]
    offsets: list[int] | None = None


@dataclass
class Wait:
    """A process that waits for the world."""

    process: Any
    until: asyncio.Future[None]


@dataclass(frozen=True)
class Weather:
    """Chances of what may go wrong between a process and the broker."""

    blocked: float = 0.0
    """A send waits for room in the buffer."""
    lost: float = 0.0
    """A confirmation is lost, so the producer sends the batch again."""
    refused: float = 0.0
    """A send raises."""
    unread: float = 0.0
    """Reading checkpoints, or following a topic, fails."""
    uncommitted: float = 0.0
    """The group's offset cannot be committed."""
    ghosts: float = 0.0
    """The last requests of a killed process are appended, some time after its death."""


class Cluster:
    """Every log, and the requests under way. ``appended`` hears of each record, ``arrived`` of each request."""

    def __init__(
        self, rng: random.Random, now: Callable[[], int], who: Callable[[], Any], counts: Counter[str]
    ) -> None:
        self.rng, self.now, self.who, self.counts = rng, now, who, counts
        self.weather = Weather()
        self.logs: dict[TP, Log] = {}
        self.wire: list[Request] = []
        self.stalled: set[TP] = set()
        self.blocked: list[Wait] = []
        self.polls: list[Wait] = []
        self.reading = 0
        self.appended: Callable[[TP, int, Record], None] = lambda tp, offset, record: None
        self.arrived: Callable[[Request], None] = lambda request: None

    def log(self, tp: TP) -> Log:
        """The log of a partition, empty before its first record."""
        return self.logs.setdefault(tp, Log())

    def append(self, tp: TP, record: Record) -> int:
        """Write at the end."""
        offset = self.log(tp).append(record)
        self.appended(tp, offset, record)
        return offset

    def chance(self, probability: float) -> bool:
        """Whether it happens this time."""
        return probability > 0 and self.rng.random() < probability

    async def moment(self) -> None:
        """Let others go first, now and then."""
        for _ in range(self.rng.choice((0, 0, 0, 1, 3))):
            await asyncio.sleep(0)

    async def wait(self, waiting: list[Wait]) -> None:
        """Join those who wait, until the world lets go."""
        wait = Wait(self.who(), asyncio.get_running_loop().create_future())
        waiting.append(wait)
        await wait.until

    def transmit(self, producer: "Producer") -> None:
        """Put the next batch of one of a producer's partitions on the wire."""
        tp = self.rng.choice([tp for tp in producer.queues if tp not in producer.busy])
        queue = producer.queues[tp]
        count = self.rng.choice((1, 2, len(queue)))
        batch = [queue.popleft() for _ in range(min(count, len(queue)))]
        if not queue:
            del producer.queues[tp]
        producer.busy.add(tp)
        self.wire.append(Request(producer, tp, batch))

    def progress(self, request: Request) -> None:
        """Append a request, or answer one that is appended."""
        if request.offsets is None:
            now = self.now()
            request.offsets = [
                self.append(request.tp, Record(p.record.key, p.record.value, p.record.headers, now))
                for p in request.batch
            ]
            if request.producer.dead:
                self.wire.remove(request)
            else:
                self.arrived(request)
        elif self.chance(self.weather.lost):
            self.counts["lost confirmations"] += 1
            request.offsets = None
        else:
            self.wire.remove(request)
            request.producer.busy.discard(request.tp)
            for pending, offset in zip(request.batch, request.offsets, strict=True):
                if not pending.confirmation.done():
                    pending.confirmation.set_result(_metadata(request.tp, offset))

    def bury(self, producer: "Producer") -> None:
        """Of a killed process only requests that are on the wire may still arrive."""
        producer.dead = True
        producer.queues.clear()
        for request in [request for request in self.wire if request.producer is producer]:
            if request.offsets is not None or not self.chance(self.weather.ghosts):
                self.wire.remove(request)
            else:
                self.counts["ghosts"] += 1


def _metadata(tp: TP, offset: int) -> RecordMetadata:
    return RecordMetadata(tp.topic, tp.partition, TopicPartition(*tp), offset, -1, 0, 0)


class Producer:
    """One process's: in order within a partition, one request at a time, repeated until it is confirmed."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.queues: dict[TP, deque[Pending]] = {}
        self.busy: set[TP] = set()
        self.dead = False

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, partition: int, timestamp: None, headers: Any
    ) -> asyncio.Future[RecordMetadata]:
        """As Faust's producer: awaiting the result's result confirms the record."""
        cluster, loop = self._cluster, asyncio.get_running_loop()
        if self.dead:
            await loop.create_future()
        if cluster.chance(cluster.weather.refused):
            cluster.counts["refused sends"] += 1
            raise KafkaTimeoutError
        if cluster.chance(cluster.weather.blocked):
            await cluster.wait(cluster.blocked)
        pending = Pending(Record(key, value, headers, -1), loop.create_future())
        self.queues.setdefault(TP(topic, partition), deque()).append(pending)
        return pending.confirmation

    @property
    def idle(self) -> bool:
        """Whether all is confirmed."""
        return not self.queues and not self.busy

    @property
    def ready(self) -> bool:
        """Whether a batch may go out."""
        return any(tp not in self.busy for tp in self.queues)


class Reader:
    """What the streams use of aiokafka's consumer, to read checkpoints."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._at: dict[TopicPartition, int] = {}

    def __call__(self, *_: Any, **__: Any) -> "Reader":
        return type(self)(self._cluster)

    def _log(self, tp: TopicPartition) -> Log:
        return self._cluster.log(TP(*tp))

    async def start(self) -> None:
        self._cluster.reading += 1
        await self._connect()

    async def _connect(self) -> None:
        await self._cluster.moment()
        if self._cluster.chance(self._cluster.weather.unread):
            self._cluster.counts["failed reads"] += 1
            raise KafkaConnectionError("away")

    async def stop(self) -> None:
        self._cluster.reading -= 1

    def assign(self, tps: Iterable[TopicPartition]) -> None: ...

    async def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: self._log(tp).end for tp in tps}

    async def beginning_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        await self._cluster.moment()
        return dict.fromkeys(tps, 0)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._at[tp] = offset

    async def position(self, tp: TopicPartition) -> int:
        return self._at[tp]

    async def getmany(self, tp: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        await self._cluster.moment()
        log, start = self._log(tp), self._at[tp]
        found = [offset for offset in log.records if offset >= start][:AT_ONCE]
        self._at[tp] = found[-1] + 1 if found else log.end
        return {tp: [_consumed(tp, offset, log.records[offset]) for offset in found]}


def _consumed(tp: TopicPartition, offset: int, record: Record) -> ConsumerRecord:
    return ConsumerRecord(*tp, offset, record.timestamp, 1, record.key, record.value, None, -1, -1, ())


class Poller(Reader):
    """The same, to follow a topic: an empty poll waits until the world ends it."""

    async def start(self) -> None:
        await self._connect()

    async def stop(self) -> None: ...

    async def getmany(self, tp: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        if self._at[tp] == self._log(tp).end:
            await self._cluster.wait(self._cluster.polls)
        return await super().getmany(tp, timeout_ms)
