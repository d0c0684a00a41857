"""Faust's services as it has no settings for: a consumer that reads on from checkpoints, a patient producer."""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any

import aiokafka
import faust
import structlog
from aiokafka.errors import IllegalStateError, KafkaTimeoutError, TopicAuthorizationFailedError
from aiokafka.structs import RecordMetadata
from faust.exceptions import ProducerSendError
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Producer
from faust.types import TP

from tidegate.schemas.errors import SettingsError
from tidegate.streams.kafka.patience import pace
from tidegate.streams.kafka.reader import COMMITTED
from tidegate.streams.settings import Settings
from tidegate.streams.worker.seat import Seat, watched

if TYPE_CHECKING:
    from tidegate.streams.worker.app import Worker

log = structlog.get_logger("tidegate")

FAUST = logging.getLogger("faust")
"""The logger of these services: Faust would name it after this module, and it would pass for our own."""


class _SendersClient:
    """A producer's client as its sender has it, which asks for leaders over and over while there is none."""

    def __init__(self, client: aiokafka.client.AIOKafkaClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class IdempotentProducer(Producer):
    """Faust's producer, whose batches are retried for as long as a broker is away and never leave a hole behind them.

    Without idempotence a batch that is given up does not stop the ones after it.
    """

    logger = FAUST

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"enable_idempotence": True}

    def _new_producer(self, transactional_id: str | None = None) -> aiokafka.AIOKafkaProducer:
        producer = super()._new_producer(transactional_id)
        # Its sender alone: a topic's partitions are asked for as it is first written to, and a kill may wait for it.
        producer._sender.client = _SendersClient(producer.client)
        pace(producer._sender.client)
        return producer

    async def send(self, topic: str, *message: Any, **options: Any) -> Awaitable[RecordMetadata]:
        """Schedule a record; where there is no room for it, wait until there is."""
        while True:
            try:
                return await super().send(topic, *message, **options)
            except ProducerSendError as error:
                # It was not taken: what is sent next comes after it.
                if not isinstance(error.__cause__, KafkaTimeoutError):
                    raise
                log.warning("waiting for the broker", topic=topic, reason="it has not acknowledged what was sent to it")


def consumer_of(worker: "Worker") -> type[Consumer]:
    """Faust's consumer, reading on from the checkpoints instead of from committed offsets."""

    class Thread(AIOKafkaConsumerThread):
        logger = FAUST

        def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
            consumer = super()._create_worker_consumer(transport)
            # Faust has no setting for it; a broker that sleeps the whole wait makes it the latency.
            consumer._fetch_max_wait_ms = worker.settings.fetch_wait
            consumer._isolation_level = COMMITTED
            pace(consumer._client)
            if worker.settings.instance_id is not None:
                seat = Seat(worker.settings.session_timeout / 1000)
                consumer._client.send = watched(consumer._client.send, seat, self._unseated)
            return consumer

        def _unseated(self) -> None:
            error = SettingsError(
                f"another worker has joined with TIDEGATE_INSTANCE_ID={worker.settings.instance_id}; "
                "give each worker a name of its own"
            )
            # The client lives in a thread of its own.
            asyncio.run_coroutine_threadsafe(worker.fail(error), self.parent_loop)

        async def _fetch_records(
            self, consumer: aiokafka.AIOKafkaConsumer, active_partitions: set[TP], *more: Any, **options: Any
        ) -> Any:
            # Faust hands on all that it takes here before it takes more. One run of telemetry at a time, so that a
            # kill does not wait behind a backlog in every partition.
            backlog = [tp for tp in consumer._fetcher._records if tp.topic == worker.settings.telemetry_topic]
            now = active_partitions - set(backlog[1:])
            return await super()._fetch_records(consumer, now or active_partitions, *more, **options)

    class CheckpointConsumer(Consumer):
        logger = FAUST

        def _new_consumer_thread(self) -> Thread:
            return Thread(self, loop=self.loop, beacon=self.beacon)

        async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:  # noqa: ASYNC109 - Faust's
            try:
                return await super()._getmany(active_partitions, timeout)
            except TopicAuthorizationFailedError as error:
                await worker.fail(error)
                raise

        def known_end(self, tp: TP) -> int | None:
            """Return the offset after a partition's last record, as the broker last said; None: it has not yet."""
            consumer = self._thread._consumer
            reading = consumer and consumer._subscription.subscription
            places = reading and reading.assignment
            if not places or tp not in places.tps:
                return None
            end: int | None = places.state_value(tp).highwater
            return end

        async def seek_to_committed(self) -> Mapping[TP, int]:
            """After every assignment, with the flow stopped: load the states and seek to their positions."""
            positions = dict(await super().seek_to_committed())
            try:
                mine = [tp for tp in positions if tp.topic in worker.sources]
                begins = await self.earliest_offsets(*mine) if mine else {}
                restored = await worker.restore(mine, begins)
                await self.seek_wait(restored)
                return positions | restored
            except IllegalStateError:
                # The group has given its partitions out anew meanwhile: Faust waits for that, and asks again.
                raise
            except Exception as error:
                await worker.fail(error)
                raise

    return CheckpointConsumer


def credentials(settings: Settings) -> Any:
    if settings.security_protocol == "PLAINTEXT":
        return None
    if settings.security_protocol == "SSL":
        return faust.SSLCredentials(context=settings.ssl_context)
    return faust.SASLCredentials(
        username=settings.sasl_username,
        password=settings.kafka["sasl_plain_password"],
        mechanism=settings.sasl_mechanism,
        ssl_context=settings.ssl_context,
    )
