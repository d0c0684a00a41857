"""Read a collector's topic in a consumer group, and publish what its spans say."""

import asyncio
import logging
import time
from collections.abc import Callable

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    KafkaError,
    RebalanceInProgressError,
    UnknownTopicOrPartitionError,
)

from tidegate.schemas.errors import TopicError
from tidegate.streams.bridge.otel import SpanBridge
from tidegate.streams.client.publisher import TelemetryPublisher
from tidegate.streams.kafka.connect import why
from tidegate.streams.kafka.follow import stop
from tidegate.streams.kafka.patience import RETRY_MS, SAY_SECONDS, hold_back
from tidegate.streams.kafka.reader import COMMITTED, REQUEST_TIMEOUT_MS, ReadableRecords, unpack_with
from tidegate.streams.settings import Settings

log = logging.getLogger("tidegate.bridge")

RECORDS_MAX = 100
"""Records that are mapped between two looks at what waits; one holds a batch of the collector's."""


async def follow_spans(
    settings: Settings,
    topic: str,
    bridge: SpanBridge,
    telemetry: TelemetryPublisher,
    *,
    from_start: bool = False,
    to_end: bool = False,
    said: Callable[[], None] = lambda: None,
) -> None:
    """Publish a topic's spans until cancelled; several bridges share its partitions.

    A position is committed only once Kafka has confirmed the telemetry of all before it: after a crash some events come
    again, with the ids that they had. ``from_start``: where nothing is committed yet. ``to_end``: stop at the topic's
    present end. ``said`` is called once a minute. Raises TopicError.
    """
    hold_back()
    unpack_with(ReadableRecords)
    consumer = AIOKafkaConsumer(
        topic,
        **settings.kafka,
        group_id=f"{settings.application_id}.bridge-otel",
        enable_auto_commit=False,
        auto_offset_reset="earliest" if from_start else "latest",
        isolation_level=COMMITTED,
        fetch_max_wait_ms=settings.fetch_wait,
        request_timeout_ms=max(REQUEST_TIMEOUT_MS, settings.fetch_wait * 2),
        retry_backoff_ms=RETRY_MS,
    )
    where = f"topic {topic} at {settings.broker} (TIDEGATE_BROKER) cannot be read"
    try:
        await consumer.start()
        await _follow(consumer, bridge, telemetry, said, to_end=to_end)
    except UnknownTopicOrPartitionError:
        raise TopicError(f"{where}: it is not there; --topic names what the collector writes") from None
    except (KafkaError, OSError) as error:
        raise TopicError(f"{where}: {await why(settings, error)}") from None
    finally:
        await stop(consumer)


async def _follow(
    consumer: AIOKafkaConsumer,
    bridge: SpanBridge,
    telemetry: TelemetryPublisher,
    said: Callable[[], None],
    *,
    to_end: bool,
) -> None:
    told = time.monotonic()
    while not (to_end and await _at_end(consumer)):
        fetched = await consumer.getmany(timeout_ms=1000, max_records=RECORDS_MAX)
        for records in fetched.values():
            for record in records:
                for event in bridge.read(record.value, f"{record.topic}-{record.partition} offset {record.offset}"):
                    telemetry.publish(event)
        if fetched:
            await telemetry.flush()
            try:
                await consumer.commit()
            except (CommitFailedError, IllegalGenerationError, RebalanceInProgressError) as error:
                # Whoever has the partition now reads it again from the last position.
                log.warning("position not committed: %s", error)
        if time.monotonic() - told >= SAY_SECONDS:
            told = time.monotonic()
            said()


async def _at_end(consumer: AIOKafkaConsumer) -> bool:
    assigned = consumer.assignment()
    if not assigned:
        await asyncio.sleep(0.1)
        return False
    ends = await consumer.end_offsets(assigned)
    return all([await consumer.position(partition) >= end for partition, end in ends.items()])
