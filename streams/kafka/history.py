"""The topics as an auditor reads them: a range of time, without a group, and nothing is ever written."""

import asyncio
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from tidegate.schemas.errors import NoBrokerError, TopicError
from tidegate.streams.kafka.checkpoints import FETCH_WAIT_MS
from tidegate.streams.kafka.connect import why
from tidegate.streams.kafka.reader import REQUEST_TIMEOUT_MS, reader
from tidegate.streams.settings import Settings

STALLED_SECONDS = 30.0
"""Time that a topic may give nothing while its end is not reached."""


@dataclass(frozen=True)
class Extent:
    """A range of a topic. ``bounds``: first offset and the one after the last by partition; ``kept``: all there is."""

    topic: str
    bounds: Mapping[int, tuple[int, int]]
    kept: Mapping[int, tuple[int, int]]

    @property
    def size(self) -> int:
        """Offsets in the range; of a compacted topic fewer records."""
        return sum(max(end - first, 0) for first, end in self.bounds.values())

    def after(self, positions: Mapping[int, int]) -> "Extent":
        """Return the part of it from these offsets on, by partition."""
        bounds = {p: (min(max(first, positions.get(p, first)), end), end) for p, (first, end) in self.bounds.items()}
        return Extent(self.topic, bounds, self.kept)

    def only(self, partition: int) -> "Extent":
        """Return one partition of it."""
        return Extent(self.topic, {partition: self.bounds[partition]}, {partition: self.kept[partition]})

    @property
    def cut(self) -> list[int]:
        """Partitions whose first records are gone."""
        return sorted(partition for partition, (first, _) in self.kept.items() if first > 0)


class History:
    """A consumer that has no group, commits nothing and makes no topic. Raises NoBrokerError if no broker answers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runner = asyncio.Runner()
        self._consumer: AIOKafkaConsumer | None = None
        self._topics: Collection[str] = ()

    def __enter__(self) -> Self:
        try:
            self._consumer = self._runner.run(self._start())
            self._topics = self._run(self._consumer.topics(), "the list of topics")
        except (KafkaError, OSError) as error:
            reason = self._runner.run(why(self._settings, error))
            self.close()
            raise NoBrokerError(f"no Kafka answers at {self._settings.broker}: {reason}") from None
        except BaseException:
            self.close()
            raise
        return self

    async def _start(self) -> AIOKafkaConsumer:
        settings = self._settings
        consumer = reader(settings, fetch_max_wait_ms=FETCH_WAIT_MS, request_timeout_ms=REQUEST_TIMEOUT_MS)
        try:
            await consumer.start()
        except BaseException:
            await consumer.stop()
            raise
        return consumer

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the broker go."""
        if self._consumer is not None:
            self._runner.run(self._consumer.stop())
            self._consumer = None
        self._runner.close()

    def _run(self, coroutine: Any, topic: str) -> Any:
        try:
            return self._runner.run(coroutine)
        except (KafkaError, OSError) as error:
            raise TopicError(f"{topic} at {self._settings.broker} cannot be read: {error!r}") from None

    def has(self, topic: str) -> bool:
        """Tell whether the broker has the topic and shows it to this user."""
        return topic in self._topics

    def extent(self, topic: str, start: int | None = None, end: int | None = None) -> Extent:
        """Return the range that the topic holds now from ``start`` to before ``end``, ms, by the records' own times.

        Raises TopicError if the topic is not there.
        """
        if not self.has(topic):
            raise TopicError(f"topic {topic} at {self._settings.broker} is not there, or not readable for this user")
        found: Extent = self._run(self._extent(topic, start, end), topic)
        return found

    async def _extent(self, topic: str, start: int | None, end: int | None) -> Extent:
        consumer = self._consumer
        assert consumer is not None  # noqa: S101 - within the context
        # The first makes the client learn of the others; the topic is known to be there, so none is made by asking.
        probe = TopicPartition(topic, 0)
        consumer.assign([probe])
        await consumer.beginning_offsets([probe])
        partitions = sorted(consumer.partitions_for_topic(topic) or ())
        if not partitions:
            raise TopicError(f"topic {topic} at {self._settings.broker}: the broker names no partition of it")
        places = [TopicPartition(topic, partition) for partition in partitions]
        firsts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)

        async def at(ms: int | None, otherwise: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
            if ms is None:
                return dict(otherwise)
            found = await consumer.offsets_for_times({place: max(ms, 0) for place in places})
            return {place: found[place].offset if found[place] is not None else ends[place] for place in places}

        low, high = await at(start, firsts), await at(end, ends)
        bounds = {place.partition: (low[place], max(low[place], min(high[place], ends[place]))) for place in places}
        return Extent(topic, bounds, {place.partition: (firsts[place], ends[place]) for place in places})

    def read(self, extent: Extent) -> Iterator[list[ConsumerRecord]]:
        """Yield the records of a range in runs of one partition each, in order within it.

        Offsets that have no record here have none in the topic. Raises TopicError, also if records are deleted
        while the range is read.
        """
        consumer = self._consumer
        assert consumer is not None  # noqa: S101 - within the context
        places = {TopicPartition(extent.topic, p): b for p, b in extent.bounds.items() if b[0] < b[1]}
        if not places:
            return
        self._run(self._seek(places), extent.topic)
        due = {place: first for place, (first, _) in places.items()}
        behind, moved = set(places), time.monotonic()
        while behind:
            fetched = self._run(consumer.getmany(*behind, timeout_ms=1000), extent.topic)
            for place, records in sorted(fetched.items()):
                within = [record for record in records if record.offset < places[place][1]]
                if within:
                    if within[0].offset > due[place]:
                        self._run(self._still_there(place, due[place]), extent.topic)
                    due[place] = within[-1].offset + 1
                    yield within
            reached = {p for p in behind if self._run(consumer.position(p), extent.topic) >= places[p][1]}
            for place in reached:
                if due[place] < places[place][1]:
                    self._run(self._still_there(place, due[place]), extent.topic)
            behind -= reached
            if fetched or reached:
                moved = time.monotonic()
            elif time.monotonic() - moved > STALLED_SECONDS:
                raise TopicError(f"topic {extent.topic} gave nothing for {STALLED_SECONDS:g} s before its end")

    async def _still_there(self, place: TopicPartition, due: int) -> None:
        assert self._consumer is not None  # noqa: S101 - within the context
        first = (await self._consumer.beginning_offsets([place]))[place]
        if first > due:
            raise TopicError(
                f"topic {place.topic}: records {due} to {first - 1} of partition {place.partition} were deleted while "
                "they were read; read a later range, or have the topic keep its records for longer"
            )

    async def _seek(self, places: Mapping[TopicPartition, tuple[int, int]]) -> None:
        assert self._consumer is not None  # noqa: S101 - within the context
        self._consumer.assign(list(places))
        for place, (first, _) in places.items():
            self._consumer.seek(place, first)

    def records(self, topic: str, start: int | None = None, end: int | None = None) -> list[ConsumerRecord]:
        """Return all records of a range that fits into memory. Raises TopicError."""
        return [record for run in self.read(self.extent(topic, start, end)) for record in run]
