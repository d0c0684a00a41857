"""``tidegate bridge otel``: from a collector's topic to telemetry, each span once."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from tests.commands.invoke import tidegate
from tests.streams.bridge.spans import Recorder, evaluation
from tidegate.streams.kafka.tail import tail
from tidegate.streams.settings import load_settings
from tidegate.streams.simulation.embedded_broker import embedded, embedded_broker


@pytest.fixture
def servers() -> Iterator[str]:
    with embedded_broker({"tidegate.telemetry": 2, "otlp_spans": 2}) as broker:
        yield broker


async def send(servers: str, *values: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
        for value in values:
            await producer.send_and_wait("otlp_spans", value)


async def published(servers: str) -> list[dict[str, Any]]:
    async with tail(load_settings(broker=servers, fetch_wait=50), "tidegate.telemetry") as topic:
        return [json.loads(record.value) for record in await topic.history()]


def records() -> list[bytes]:
    """Ten requests in each form."""
    values = []
    for form in ("protobuf", "json"):
        made = Recorder()
        for n in range(10):
            with made.tracer.start_as_current_span("ask", attributes=evaluation(user=f"u{n}")):
                pass
        values.append(made.protobuf() if form == "protobuf" else made.json())
    return values


def test_spans_of_both_forms_become_telemetry_and_the_rest_is_told(servers: str) -> None:
    asyncio.run(send(servers, *records(), b"no spans"))
    done = tidegate("bridge", "otel", "--from-start", "--to-end", "--broker", servers)
    assert done.code == 0
    counts, reason = done.out.splitlines()
    assert counts == "20 requests, 0 labels, 20 sent, 1 not mapped"
    assert reason.startswith("  1: not OTLP traces in protobuf")
    events = asyncio.run(published(servers))
    assert len({event["event_id"] for event in events}) == len(events) == 20
    assert {(event["flag"], event["arm"], event["region"]) for event in events} == {("f", "canary", "eu")}


def test_a_topic_that_is_not_there_is_one_line() -> None:
    with embedded({"tidegate.telemetry": 1, "nothing": 1}) as kafka:
        kafka.hide("nothing")
        done = tidegate("bridge", "otel", "--topic", "nothing", "--to-end", "--broker", kafka.servers)
    assert done.code == 2
    assert "topic nothing" in done.line
    assert "--topic" in done.line


def test_a_mapping_that_is_not_there_is_one_line() -> None:
    done = tidegate("bridge", "otel", "--mapping", "nowhere.yml")
    assert (done.code, done.line) == (2, "tidegate: nowhere.yml: No such file or directory")
