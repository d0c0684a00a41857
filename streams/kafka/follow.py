"""A small topic of one partition, read from its beginning and kept up with."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from tidegate.schemas.errors import AccessError, TopicError
from tidegate.streams.kafka.connect import why
from tidegate.streams.kafka.patience import RETRY_MS, RETRY_SECONDS, Outage
from tidegate.streams.kafka.reader import reader
from tidegate.streams.settings import Settings

log = structlog.get_logger("tidegate")

PATIENCE_SECONDS = 30.0
"""Time that the topic may go unread before ``refresh`` reads it again."""
ATTEMPT_SECONDS = 10.0
MORE_MS = 500


class Follower:
    """A reader that hands each record of a topic to ``take`` once, in order."""

    def __init__(self, settings: Settings, topic: str, take: Callable[[ConsumerRecord], object]) -> None:
        self._settings, self._take = settings, take
        self._partition = TopicPartition(topic, 0)
        self._lock = asyncio.Lock()
        self._consumer: AIOKafkaConsumer | None = None
        self._next = 0
        self._read_at: float | None = None
        self._outage = Outage()

    @property
    def silent(self) -> float | None:
        """Seconds since the topic was last read to its end; None: not yet."""
        return None if self._read_at is None else time.monotonic() - self._read_at

    async def catch_up(self) -> None:
        """Read to the end as it is now. Raises TopicError if that takes longer than ``ATTEMPT_SECONDS`` or fails."""
        await self._reading(self._to_end)

    async def follow(self, after: Callable[[], Awaitable[None]] | None = None) -> None:
        """Keep up with the topic for ever; ``after`` is awaited whenever there may be something new.

        Raises AccessError if this user may not read it; whatever else is wrong is tried again.
        """
        try:
            while True:
                for read in (self._to_end, self._more):
                    try:
                        await self._reading(read)
                    except AccessError:
                        raise
                    except TopicError as error:
                        if self._outage.due("unread"):
                            log.warning("not read", topic=self._partition.topic, error=str(error))
                        await asyncio.sleep(RETRY_SECONDS)
                        break
                    if self._outage.over():
                        log.info("read again", topic=self._partition.topic)
                    if after is not None:
                        await after()
        finally:
            await self.close()

    async def refresh(self) -> None:
        """Catch up if the last reading to the end lies over ``PATIENCE_SECONDS`` back: after a stop, or an outage.

        Raises TopicError if that fails twice, the second time on a connection of its own.
        """
        silent = self.silent
        if silent is None or silent <= PATIENCE_SECONDS:
            return
        try:
            await self.catch_up()
        except TopicError as error:
            log.warning("not read", topic=self._partition.topic, error=str(error))
            await self.catch_up()

    async def _reading(self, read: Callable[[AIOKafkaConsumer], Awaitable[None]]) -> None:
        async with self._lock:
            try:
                async with asyncio.timeout(ATTEMPT_SECONDS):
                    if self._consumer is None:
                        self._consumer = await self._opened()
                    await read(self._consumer)
            except (KafkaError, OSError) as error:
                # What was fetched may be lost with it: the next attempt goes on after what was taken.
                await self.close()
                late = isinstance(error, TimeoutError)
                reason = f"nothing in {ATTEMPT_SECONDS:g} s" if late else await why(self._settings, error)
                where = f"topic {self._partition.topic} at {self._settings.broker} (TIDEGATE_BROKER)"
                # Waiting does not help against a right that is not given.
                kind = AccessError if isinstance(error, TopicAuthorizationFailedError) else TopicError
                raise kind(f"{where} cannot be read: {reason}") from None

    async def _opened(self) -> AIOKafkaConsumer:
        settings = self._settings
        consumer = reader(settings, fetch_max_wait_ms=settings.fetch_wait, retry_backoff_ms=RETRY_MS)
        try:
            await consumer.start()
            # Assigned by name: a subscription is empty for as long as the topic cannot be seen, and its end is no end.
            consumer.assign([self._partition])
            first = (await consumer.beginning_offsets([self._partition]))[self._partition]
            consumer.seek(self._partition, max(first, self._next))
        except BaseException:
            await stop(consumer)
            raise
        return consumer

    async def _to_end(self, consumer: AIOKafkaConsumer) -> None:
        end = (await consumer.end_offsets([self._partition]))[self._partition]
        while await consumer.position(self._partition) < end:
            await self._more(consumer)
        self._read_at = time.monotonic()

    async def _more(self, consumer: AIOKafkaConsumer) -> None:
        for records in (await consumer.getmany(self._partition, timeout_ms=MORE_MS)).values():
            for record in records:
                self._next = record.offset + 1
                self._take(record)

    async def close(self) -> None:
        """Let the broker go; reading may begin again."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop(consumer)


async def stop(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer in a task of its own: while its broker is away, its stop raises CancelledError."""
    stopping = asyncio.ensure_future(consumer.stop())
    await asyncio.wait([stopping], timeout=ATTEMPT_SECONDS)
    if stopping.done() and not stopping.cancelled() and stopping.exception() is not None:
        log.debug("not stopped", error=str(stopping.exception()))
