"""A topic's records from the first, then each new one, read without a consumer group."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from tidegate.schemas.errors import TopicError
from tidegate.streams.kafka.connect import why
from tidegate.streams.kafka.follow import stop
from tidegate.streams.kafka.patience import RETRY_MS, hold_back
from tidegate.streams.kafka.reader import REQUEST_TIMEOUT_MS, reader
from tidegate.streams.settings import Settings


class Tail:
    """A reader of all partitions of one topic from now on; ``first``: their earliest offsets."""

    def __init__(self, consumer: AIOKafkaConsumer, first: Mapping[TopicPartition, int]) -> None:
        self._consumer, self._first = consumer, first
        self._opened_at = time.time()

    async def history(self) -> list[ConsumerRecord]:
        """Return the records from where reading stands to the end as it is now, in order within each partition."""
        consumer = self._consumer
        ends = await consumer.end_offsets(consumer.assignment())
        records = []
        behind = [tp for tp, end in ends.items() if await consumer.position(tp) < end]
        while behind:
            fetched = await consumer.getmany(*behind, timeout_ms=1000)
            records += [record for run in fetched.values() for record in run]
            behind = [tp for tp in behind if await consumer.position(tp) < ends[tp]]
        return records

    async def last(self) -> list[ConsumerRecord]:
        """Return the last record of each partition that has any; reading goes on from the end."""
        for tp, end in (await self._consumer.end_offsets(self._consumer.assignment())).items():
            self._consumer.seek(tp, max(end - 1, self._first.get(tp, 0)))
        return await self.history()

    async def since(self, ms: int) -> None:
        """Go on from the first record of each partition that was written at a time or later, ms."""
        ends = await self._consumer.end_offsets(self._consumer.assignment())
        found = await self._consumer.offsets_for_times(dict.fromkeys(ends, ms))
        for tp, end in ends.items():
            place = found.get(tp)
            self._consumer.seek(tp, end if place is None else place.offset)

    async def more(self, seconds: float = 1.0) -> list[ConsumerRecord]:
        """New records; none after ``seconds``."""
        fetched = await self._consumer.getmany(timeout_ms=int(seconds * 1000))
        return [record for run in fetched.values() for record in run]

    def silent(self) -> float:
        """Seconds since the broker last answered for the partition that it has not answered for the longest."""
        consumer = self._consumer
        answered = (consumer.last_poll_timestamp(tp) for tp in consumer.assignment())
        return time.time() - min((ms / 1000 if ms else self._opened_at for ms in answered), default=self._opened_at)


@asynccontextmanager
async def tail(settings: Settings, topic: str) -> AsyncIterator[Tail]:
    """Read a topic from its first records on, also in partitions that are added later.

    Raises TopicError if no broker answers or the topic is not there, also from within.
    """
    hold_back()
    where = f"topic {topic} at {settings.broker} (TIDEGATE_BROKER) cannot be read"
    consumer = reader(
        settings,
        topic,
        fetch_max_wait_ms=settings.fetch_wait,
        request_timeout_ms=max(REQUEST_TIMEOUT_MS, settings.fetch_wait * 2),
        retry_backoff_ms=RETRY_MS,
    )
    try:
        await consumer.start()
        if not consumer.assignment():
            raise TopicError(f"{where}: it is not there, or has no partitions")
        first = await consumer.beginning_offsets(consumer.assignment())
        for tp, offset in first.items():
            consumer.seek(tp, offset)
        yield Tail(consumer, first)
    except (KafkaError, OSError) as error:
        raise TopicError(f"{where}: {await why(settings, error)}") from None
    finally:
        await stop(consumer)
