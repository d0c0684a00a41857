"""The sending end of the wire for a service: telemetry that never holds up or fails a request."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas.errors import EventError
from schemas.event import TelemetryEvent, encode, parse
from streams.reach import why
from streams.settings import Settings, load_settings

log = logging.getLogger("tidegate.publisher")

RETRY_SECONDS = 1.0
LINGER_MS = 5
BATCH_BYTES = 128 << 10


class TelemetryPublisher:
    """Publishes telemetry from an asyncio service::

        async with TelemetryPublisher() as telemetry:
            telemetry.publish({"event_id": ..., "ts": ..., "flag": ..., "arm": "canary", "sticky_id": ..., ...})

    ``publish`` checks the event and puts it into a queue, from which a background task sends in batches. Kafka may
    be down at the start or go away: events wait in the queue, and once that is full new ones are dropped. Every
    event ends in one counter. Not thread-safe: from another thread call
    ``loop.call_soon_threadsafe(telemetry.publish, event)``.

    ``settings`` None: from the environment. ``capacity``: events that may wait. ``delivery_seconds``: how long a
    sent batch is retried. ``close_seconds``: how long closing waits for the rest. ``strict``: raise EventError for
    an event that is none, for tests.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        capacity: int = 100_000,
        delivery_seconds: float = 30.0,
        close_seconds: float = 5.0,
        strict: bool = False,
    ) -> None:
        self._settings = settings or load_settings()
        self._strict, self._close_seconds, self._delivery_seconds = strict, close_seconds, delivery_seconds
        self._queue: asyncio.Queue[tuple[bytes | None, bytes]] = asyncio.Queue(capacity)
        self._settled = asyncio.Event()
        self._settled.set()
        self._sending: asyncio.Task[None] | None = None
        self._producer: AIOKafkaProducer | None = None
        self._open = True
        self._complaints: set[str] = set()
        self.rejected = 0
        """Events that broke the schema; the log names each field once."""
        self.dropped = 0
        """Events that found the queue full or the publisher closed."""
        self.sent = 0
        """Records that the broker confirmed; a tick is one for each partition."""
        self.failed = 0
        """Records that were given up after ``delivery_seconds``."""
        self.pending = 0
        """Records that are waiting or under way."""

    def publish(self, event: TelemetryEvent | Mapping[str, Any]) -> bool:
        """Queue one event; whether it was taken. Never blocks, never raises unless ``strict``."""
        try:
            value = encode(event)
            # As the broker will stamp it: a `ts` in other units than ms lies far in the future.
            checked = parse(value, timestamp=int(time.time() * 1000))
        except Exception as error:
            self.rejected += 1
            if self._strict:
                raise
            self._complain(error)
            return False
        if not self._open or self._queue.full():
            self.dropped += 1
            return False
        key = None if checked.kind == "tick" or checked.sticky_id is None else checked.sticky_id.encode()
        self._queue.put_nowait((key, value))
        self._pend(1)
        return True

    async def flush(self, seconds: float | None = None) -> bool:
        """Wait until nothing is pending; False if that takes longer than ``seconds``."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), seconds)
        return self.pending == 0

    async def __aenter__(self) -> Self:
        self._sending = asyncio.create_task(self._send())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if not await self.flush(self._close_seconds):
            log.warning("%d telemetry records were not confirmed before closing", self.pending)
        if self._sending is not None:
            self._sending.cancel()
            with suppress(asyncio.CancelledError):
                await self._sending
        if self._producer is not None:
            # With the broker away this lasts until the batches under way are given up; nobody has to wait for it.
            stopping = asyncio.create_task(self._producer.stop())
            await asyncio.wait({stopping}, timeout=self._close_seconds)

    async def _send(self) -> None:
        topic = self._settings.telemetry_topic
        producer = self._producer = await self._connect()
        while True:
            key, value = await self._queue.get()
            if key is not None:
                await self._hand_over(producer.send(topic, value, key=key))
                continue
            try:
                partitions = sorted(await producer.partitions_for(topic))
            except KafkaError as error:
                self._give_up(error)
                continue
            self._pend(len(partitions) - 1)
            for partition in partitions:
                await self._hand_over(producer.send(topic, value, partition=partition))

    async def _hand_over(self, sending: "Awaitable[asyncio.Future[Any]]") -> None:
        try:
            (await sending).add_done_callback(self._confirmed)
        except Exception as error:
            self._give_up(error)

    async def _connect(self) -> AIOKafkaProducer:
        while True:
            producer = AIOKafkaProducer(
                **self._settings.kafka,
                acks="all",
                linger_ms=LINGER_MS,
                max_batch_size=BATCH_BYTES,
                request_timeout_ms=int(self._delivery_seconds * 1000),
            )
            try:
                await producer.start()
                return producer
            except BaseException as error:
                await producer.stop()
                if not isinstance(error, KafkaError | OSError):
                    raise
                self._complain(error, await why(self._settings, error))
                await asyncio.sleep(RETRY_SECONDS)

    def _confirmed(self, confirmation: "asyncio.Future[Any]") -> None:
        if confirmation.cancelled():
            self._give_up(None)
        elif (error := confirmation.exception()) is not None:
            self._give_up(error)
        else:
            self.sent += 1
            self._pend(-1)

    def _give_up(self, error: BaseException | None) -> None:
        self.failed += 1
        self._pend(-1)
        if error is not None:
            self._complain(error)

    def _pend(self, records: int) -> None:
        self.pending += records
        if self.pending:
            self._settled.clear()
        else:
            self._settled.set()

    def _complain(self, error: BaseException, said: str | None = None) -> None:
        """Log the first error of each field, or of each kind; ``said``: in better words than its own."""
        text = said or str(error)
        field = re.search(r"`\$\.(\w+)", text) or re.search(r"`(\w+)`", text)
        about = field[1] if field and isinstance(error, EventError) else type(error).__name__
        if about not in self._complaints:
            self._complaints.add(about)
            log.warning("telemetry is not published (said once for `%s`): %s", about, text)
