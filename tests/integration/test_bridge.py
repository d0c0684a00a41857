"""The bridge on a real Kafka: it goes on where it was, and what it brings is decided like any telemetry."""

import asyncio
import json

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.streams.bridge.spans import Recorder, evaluation
from tidegate.streams.bridge.follow_spans import follow_spans
from tidegate.streams.bridge.mapping import load_mapping
from tidegate.streams.bridge.otel import SpanBridge
from tidegate.streams.client.publisher import TelemetryPublisher
from tidegate.streams.kafka.tail import tail
from tidegate.streams.settings import Settings

pytestmark = pytest.mark.kafka


async def make(settings: Settings, topic: str) -> None:
    """Make a collector's topic of three partitions."""
    admin = AIOKafkaAdminClient(**settings.kafka)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 3, 1)])
    await admin.close()


async def send(settings: Settings, topic: str, first: int, form: str) -> None:
    """Write 40 requests, in records of ten spans over all partitions."""
    async with AIOKafkaProducer(**settings.kafka) as producer:
        for batch in range(4):
            made = Recorder()
            for n in range(10):
                user = f"u{first + 10 * batch + n}"
                with made.tracer.start_as_current_span("ask", attributes=evaluation(user=user)):
                    pass
            value = made.json() if form == "json" else made.protobuf()
            await producer.send_and_wait(topic, value, partition=batch % 3)


async def bridged(settings: Settings, topic: str) -> int:
    """Bridge to the topic's end; how many requests that were."""
    bridge = SpanBridge(load_mapping())
    async with TelemetryPublisher(settings) as telemetry:
        await asyncio.wait_for(follow_spans(settings, topic, bridge, telemetry, from_start=True, to_end=True), 60)
    assert telemetry.sent == bridge.mapped.total()
    return bridge.mapped["request"]


def test_each_span_is_bridged_once_over_restarts(settings: Settings) -> None:
    """A second bridge of the group begins where the first had published everything."""
    topic = f"{settings.topic_prefix}.otlp_spans"

    async def run() -> tuple[list[int], list[str]]:
        await make(settings, topic)
        counts = []
        for round_, form in enumerate(("protobuf", "json")):
            await send(settings, topic, 40 * round_, form)
            counts.append(await bridged(settings, topic))
        counts.append(await bridged(settings, topic))
        async with tail(settings, settings.telemetry_topic) as telemetry:
            found = [json.loads(record.value) for record in await telemetry.history()]
        return counts, sorted(event["sticky_id"] for event in found if event.get("kind") != "tick")

    counts, users = asyncio.run(run())
    assert counts == [40, 40, 0]
    assert users == sorted(f"u{n}" for n in range(80))
