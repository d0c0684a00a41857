"""The sending end of the wire for a service: telemetry that never holds up or fails a request."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiokafka.errors import (
    BrokerResponseError,
    ClusterAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.partitioner import DefaultPartitioner

from tidegate.schemas.event import TelemetryEvent
from tidegate.streams.client.bound import Bindable
from tidegate.streams.client.checking import CheckedEvent, Checker
from tidegate.streams.kafka.connect import why
from tidegate.streams.kafka.patience import (
    RETRY_SECONDS,
    SAY_SECONDS,
    STALL_SECONDS,
    Outage,
    PatientProducer,
    hold_back,
)
from tidegate.streams.settings import Settings, load_settings

log = logging.getLogger("tidegate.publisher")

LINGER_SECONDS = 0.005
WATCH_SECONDS = 1.0


@dataclass(slots=True)
class _Event:
    """One that waits. ``key`` None: for every partition. ``left``: partitions that have not answered yet."""

    key: bytes | None
    value: bytes
    left: int = 1
    refused: bool = False


@dataclass
class _Lane:
    """Events that wait for one partition, oldest first, those under way included."""

    partition: int
    waiting: deque[_Event] = field(default_factory=deque)
    filled: asyncio.Event = field(default_factory=asyncio.Event)
    batch_max: float = math.inf
    """Events that the broker takes at once, beside what the client's batches hold."""

    def add(self, event: _Event) -> None:
        """Queue one more."""
        self.waiting.append(event)
        self.filled.set()


class TelemetryPublisher(Bindable):
    """Publishes telemetry from an asyncio service::

        async with TelemetryPublisher() as telemetry:
            telemetry.publish({"event_id": ..., "ts": ..., "flag": ..., "arm": "canary", "sticky_id": ..., ...})

    ``publish`` checks the event and puts it into a queue, from which a background task sends in batches. Kafka may
    be down at the start or go away for as long as it likes: events wait, and only once ``capacity`` of them do are
    new ones dropped. What does not get through is said at once and then once a minute. Every event is in exactly one
    counter: ``sent + failed + dropped + rejected + pending`` is the number of calls of ``publish``. Not thread-safe:
    a service with threads takes ``SyncTelemetryPublisher``. ``bind`` fills in what is the same in every event.

    ``settings`` None: from the environment. ``capacity``: events that may wait or be under way. ``close_seconds``: how
    long closing waits for the rest, which fails after that. ``strict``: raise EventError for an event that is none,
    for tests.
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
        # What is wrong with certificates is better said here than in the background.
        _ = self._settings.ssl_context
        self._topic = self._settings.telemetry_topic
        self._strict, self._close_seconds, self._capacity = strict, close_seconds, capacity
        self._queue: asyncio.Queue[_Event] = asyncio.Queue()
        self._lanes: dict[int, _Lane] = {}
        self._settled = asyncio.Event()
        self._settled.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._producer: PatientProducer | None = None
        self._connecting = asyncio.Lock()
        self._connected, self._open = False, True
        self._checker = Checker()
        self._rejected_told, self._rejected_told_at = 0, time.monotonic()
        self._outage = Outage()
        self._heard_at = math.inf
        self._lost_before = 0
        self._lost_why = ""
        self.rejected = 0
        """Events that broke the schema; the log names each field once."""
        self.dropped = 0
        """Events that found ``capacity`` others waiting, or the publisher closed."""
        self.sent = 0
        """Events that the broker confirmed; a tick once every partition has it."""
        self.failed = 0
        """Events that the broker refused, or that were not confirmed when the publisher was closed."""
        self.pending = 0
        """Events that are waiting or under way."""

    def publish(self, event: TelemetryEvent | Mapping[str, Any]) -> bool:
        """Queue one event; whether it was taken. Never blocks, never raises unless ``strict``."""
        try:
            checked = self._checker.check(event)
        except Exception as error:
            if self._strict:
                self.rejected += 1
                raise
            self._reject(error)
            return False
        if not self._open or self.pending >= self._capacity:
            self._drop()
            return False
        self._take(checked)
        return True

    def _reject(self, error: Exception) -> None:
        self.rejected += 1
        self._checker.complain(error)

    def _drop(self) -> None:
        self.dropped += 1
        self._lost_why = f"{self._capacity} events wait already, see `capacity`"

    def _take(self, checked: CheckedEvent) -> None:
        self._queue.put_nowait(_Event(checked.key, checked.value))
        if not self.pending:
            self._heard_at = time.monotonic()
        self._pend(1)

    async def flush(self, seconds: float | None = None) -> bool:
        """Wait until nothing is pending; False if that takes longer than ``seconds``."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), seconds)
        return self.pending == 0

    async def __aenter__(self) -> Self:
        hold_back()
        self._tasks = [asyncio.create_task(self._route()), asyncio.create_task(self._watch())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        try:
            await self.flush(self._close_seconds)
        finally:
            for task in self._tasks:
                task.cancel()
            if self.pending:
                log.warning("%d telemetry events were not confirmed before closing, and count as failed", self.pending)
                self.failed += self.pending
                self._pend(-self.pending)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._producer is not None:
            # With the broker away this lasts until the batches under way are given up; nobody has to wait for it.
            self._tasks = [asyncio.create_task(self._producer.stop())]
            await asyncio.wait(self._tasks, timeout=self._close_seconds)

    async def _route(self) -> None:
        """Give each event to its partition, as Kafka's own clients choose it, once there is a topic."""
        partition_of = DefaultPartitioner()
        while True:
            events = [await self._queue.get()]
            partitions = sorted((await self._connection()).known(self._topic))
            for partition in partitions:
                if partition not in self._lanes:
                    lane = self._lanes[partition] = _Lane(partition)
                    self._tasks.append(asyncio.create_task(self._send(lane)))
            while not self._queue.empty():
                events.append(self._queue.get_nowait())
            for event in events:
                to = partitions if event.key is None else [partition_of(event.key, partitions, partitions)]
                event.left = len(to)
                for partition in to:
                    self._lanes[partition].add(event)

    async def _send(self, lane: _Lane) -> None:
        """Send a partition's events, each batch until it is confirmed or refused: none overtakes those before it.

        Order matters: events that come after newer ones count as late.
        """
        while True:
            if not lane.waiting:
                lane.filled.clear()
                await lane.filled.wait()
                await asyncio.sleep(LINGER_SECONDS)
            producer = await self._connection()
            events: list[_Event] = []
            try:
                batch = producer.create_batch()
                for event in lane.waiting:
                    if len(events) >= lane.batch_max:
                        break
                    if batch.append(timestamp=None, key=event.key, value=event.value) is None:
                        break
                    events.append(event)
                await (await producer.send_batch(batch, self._topic, partition=lane.partition))
            except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
                # The topic may take less than a batch holds.
                if len(events) > 1:
                    lane.batch_max = len(events) // 2
                else:
                    self._answered(lane, events, error)
            except Exception as error:
                if isinstance(error, BrokerResponseError) and not error.retriable and not _right(error):
                    self._answered(lane, events, error)
                    continue
                await self._tell(error)
                if not _right(error):
                    self._replace(producer)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._answered(lane, events, None)

    def _answered(self, lane: _Lane, events: Sequence[_Event], error: Exception | None) -> None:
        """Count what a partition has confirmed, or refused."""
        for event in events:
            lane.waiting.popleft()
            event.left -= 1
            event.refused |= error is not None
            if not event.left:
                self.failed += event.refused
                self.sent += not event.refused
                self._pend(-1)
        if error is None:
            self._heard_at = time.monotonic()
        else:
            self._lost_why = f"refused: {str(error) or type(error).__name__}"

    async def _connection(self) -> PatientProducer:
        """Return a client that knows the topic, as soon as there is one."""
        async with self._connecting:
            while True:
                try:
                    if self._producer is None:
                        self._producer = await self._started()
                    if await self._producer.find(self._topic):
                        self._connected = True
                        return self._producer
                    self._connected = False
                    await self._tell(UnknownTopicOrPartitionError())
                except (KafkaError, OSError) as error:
                    self._connected = False
                    await self._tell(error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _started(self) -> PatientProducer:
        producer = PatientProducer(self._settings)
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    def _replace(self, broken: PatientProducer) -> None:
        """Begin anew with the addresses of the settings; what the client had is still here."""
        if self._producer is broken:
            self._producer, self._connected = None, False
            self._tasks.append(asyncio.create_task(broken.stop()))

    async def _watch(self) -> None:
        """Say what does not get through: the client tries again without a word of how much waits, or is lost."""
        lost_before = 0
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            lost, silent = self.dropped + self.failed, self._silent()
            if silent > STALL_SECONDS or lost > lost_before:
                if self._producer is not None and not self._producer.known(self._topic):
                    await self._tell(UnknownTopicOrPartitionError())
                else:
                    stalled = "the broker answers, but acknowledges nothing"
                    await self._tell(KafkaConnectionError(stalled if silent > STALL_SECONDS else self._lost_why))
            elif self._connected and silent <= WATCH_SECONDS:
                since = self._outage.shown
                if self._outage.over():
                    log.warning("telemetry gets through again: lost %d %s", self._lost(), since)
                    self._lost_before = lost
            lost_before = lost
            self._tell_rejected()

    def _tell_rejected(self) -> None:
        """Say once a minute how many events were not valid; what was wrong with them was said at their first."""
        new, now = self.rejected - self._rejected_told, time.monotonic()
        if new and now - self._rejected_told_at >= SAY_SECONDS:
            log.warning("telemetry that is not valid is not published: %d events more, %d in all", new, self.rejected)
            self._rejected_told, self._rejected_told_at = self.rejected, now

    def _silent(self) -> float:
        """Seconds for which nothing was confirmed although events wait."""
        return time.monotonic() - self._heard_at if self.pending else 0.0

    def _lost(self) -> int:
        return self.dropped + self.failed - self._lost_before

    async def _tell(self, error: Exception) -> None:
        if self._outage.due(_kind(error), self._silent()):
            log.warning(
                "telemetry does not get through to topic %s at %s (TIDEGATE_BROKER): waiting %d, lost %d, %s: %s",
                self._topic,
                self._settings.broker,
                self.pending,
                self._lost(),
                self._outage.shown,
                await why(self._settings, error),
            )

    def _pend(self, events: int) -> None:
        self.pending += events
        if self.pending:
            self._settled.clear()
        else:
            self._settled.set()


def _kind(error: Exception) -> str:
    """Name the class of an error: an outage shows itself in many."""
    if isinstance(error, UnknownTopicOrPartitionError):
        return "missing"
    return "away" if isinstance(error, OSError) or getattr(error, "retriable", False) else type(error).__name__


def _right(error: Exception) -> bool:
    """Tell whether the error is a missing right, which can still be given."""
    return isinstance(error, TopicAuthorizationFailedError | ClusterAuthorizationFailedError)
