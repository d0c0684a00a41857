"""A small topic of one partition, read from its beginning and kept up with."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import structlog
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError

from schemas.errors import TopicError
from streams.settings import Settings
from streams.tail import Tail, tail

log = structlog.get_logger("tidegate")

PATIENCE_SECONDS = 30.0
"""How long the topic may go unread before whoever follows it has to stop."""
RETRY_SECONDS = 1.0
MORE_SECONDS = 0.5


class Follower:
    """Hands each record of a topic to ``take`` once, in order."""

    def __init__(self, settings: Settings, topic: str, take: Callable[[ConsumerRecord], object]) -> None:
        self._settings, self._topic, self._take = settings, topic, take
        self._lock = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._tail: Tail | None = None
        self._next = 0
        self._read_at = time.monotonic()

    async def catch_up(self) -> None:
        """Read to the end as it is now. Raises TopicError if that takes longer than ``PATIENCE_SECONDS`` or fails."""
        async with self._lock:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    if self._tail is None:
                        self._tail = await self._stack.enter_async_context(tail(self._settings, self._topic))
                    self._give(await self._tail.history())
            except (KafkaError, OSError) as error:
                # What was fetched is lost with it: the next try begins anew, and passes over what was taken.
                await self.close()
                reason = f"no end in {PATIENCE_SECONDS:g} s" if isinstance(error, TimeoutError) else error
                raise TopicError(f"topic {self._topic} cannot be read: {reason}") from None
            self._read_at = time.monotonic()

    async def follow(self, after: Callable[[], Awaitable[None]] | None = None) -> None:
        """Keep up with the topic for ever; ``after`` is awaited whenever there may be something new.

        Raises TopicError if the topic could not be read for ``PATIENCE_SECONDS``.
        """
        try:
            while True:
                try:
                    await self.catch_up()
                except TopicError as error:
                    if time.monotonic() - self._read_at > PATIENCE_SECONDS:
                        raise
                    log.warning("not read", topic=self._topic, error=str(error))
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                if after is not None:
                    await after()
                async with self._lock:
                    if self._tail is not None:
                        self._give(await self._tail.more(MORE_SECONDS))
                if after is not None:
                    await after()
        finally:
            await self.close()

    def _give(self, records: list[ConsumerRecord]) -> None:
        for record in records:
            if record.offset >= self._next:
                self._next = record.offset + 1
                self._take(record)

    async def close(self) -> None:
        """Let the broker go; reading may begin again."""
        self._tail = None
        with suppress(KafkaError, OSError):
            await self._stack.aclose()
