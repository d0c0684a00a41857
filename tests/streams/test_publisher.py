"""Telemetry out of a service: what is valid arrives, and nothing ever holds up the caller."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from schemas.errors import EventError
from schemas.event import TelemetryEvent
from streams.broker import embedded_broker
from streams.publisher import TelemetryPublisher
from streams.replay import partition_of
from streams.settings import Settings, load_settings
from streams.tail import tail

TOPIC, PARTITIONS = "tidegate.telemetry", 3


@pytest.fixture
def settings() -> Iterator[Settings]:
    with embedded_broker({TOPIC: PARTITIONS}) as servers:
        yield load_settings(broker=servers, fetch_wait=50)


def event(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "event_id": f"e{number}",
        "ts": int(time.time() * 1000),
        "flag": "f",
        "arm": "canary",
        "sticky_id": f"ü{number % 7}",
        "latency_ms": 1.5,
        "error": False,
    } | changes


async def stored(settings: Settings) -> list[ConsumerRecord]:
    async with tail(settings, TOPIC) as records:
        return await records.history()


def test_events_arrive_keyed_by_sticky_id_where_kafkas_partitioner_puts_them(settings: Settings) -> None:
    """Mappings and structs alike; the records are what the schema says, in order within a key."""

    async def run() -> list[ConsumerRecord]:
        async with TelemetryPublisher(settings) as telemetry:
            assert all(telemetry.publish(event(n)) for n in range(50))
            assert telemetry.publish(TelemetryEvent(**event(50)))
            assert await telemetry.flush(10)
            assert (telemetry.sent, telemetry.pending) == (51, 0)
        return await stored(settings)

    records = asyncio.run(run())
    found = [json.loads(record.value) for record in records]
    assert sorted(e["event_id"] for e in found) == sorted(f"e{n}" for n in range(51))
    for record, value in zip(records, found, strict=True):
        assert record.key == value["sticky_id"].encode()
        assert record.partition == partition_of(record.key, PARTITIONS)
    of_one_user = [e["event_id"] for e in found if e["sticky_id"] == "ü3"]
    assert of_one_user == [f"e{n}" for n in range(51) if n % 7 == 3]


def test_a_tick_goes_to_every_partition(settings: Settings) -> None:
    """One tick moves the time of all of them."""

    async def run() -> list[ConsumerRecord]:
        async with TelemetryPublisher(settings) as telemetry:
            assert telemetry.publish({"kind": "tick", "ts": 1_700_000_000_005})
        assert telemetry.sent == PARTITIONS
        return await stored(settings)

    records = asyncio.run(run())
    assert sorted(record.partition for record in records) == list(range(PARTITIONS))
    assert {record.value for record in records} == {b'{"ts":1700000000005,"kind":"tick"}'}


def test_an_invalid_event_is_counted_and_named_once_and_fails_nobody(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is handed over, publish says False; the log names each field once."""
    late_unit = event(ts=int(time.time() * 1_000_000))
    wrong: list[Any] = [event(latency_ms=-1.0), event(latency_ms=-2.0), event(delta_s=3.0), event(flag=None)]
    wrong += [late_unit, None, 7, event(cost=float("nan")), event(sticky_id="\ud800")]

    async def run() -> TelemetryPublisher:
        async with TelemetryPublisher(settings) as telemetry:
            assert not any(telemetry.publish(one) for one in wrong)
            assert telemetry.publish(event())
        return telemetry

    with caplog.at_level(logging.WARNING, "tidegate.publisher"):
        telemetry = asyncio.run(run())
    assert (telemetry.rejected, telemetry.sent, telemetry.dropped) == (len(wrong), 1, 0)
    said = [record.getMessage() for record in caplog.records]
    for field in ("latency_ms", "delta_s", "flag", "ts", "cost"):
        assert sum(f"said once for `{field}`" in line for line in said) == 1, said


def test_strict_raises_what_would_be_rejected(settings: Settings) -> None:
    """For tests of the service's own telemetry."""

    async def run() -> None:
        async with TelemetryPublisher(settings, strict=True) as telemetry:
            with pytest.raises(EventError, match="delta_s"):
                telemetry.publish(event(delta_s=3.0))

    asyncio.run(run())


def test_a_full_queue_drops_and_counts_and_never_blocks(settings: Settings) -> None:
    """Publishing is synchronous: while it runs nothing is sent, so the queue fills."""

    async def run() -> None:
        async with TelemetryPublisher(settings, capacity=10) as telemetry:
            taken = [telemetry.publish(event(n)) for n in range(25)]
            assert taken == [True] * 10 + [False] * 15
            assert await telemetry.flush(10)
            assert telemetry.publish(event(25))
        assert (telemetry.sent, telemetry.dropped) == (11, 15)
        assert not telemetry.publish(event(26))
        assert telemetry.dropped == 16

    asyncio.run(run())


def test_events_wait_for_a_broker_that_is_down_at_the_start(settings: Settings) -> None:
    """Published while nothing listens, they arrive once the broker is there."""
    host, port = settings.broker.split(":")

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async def run() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            door = free.getsockname()[1]
        away = settings.model_copy(update={"broker": f"127.0.0.1:{door}"})
        async with TelemetryPublisher(away) as telemetry:
            assert telemetry.publish(event())
            assert not await telemetry.flush(0.3)
            assert (telemetry.pending, telemetry.sent) == (1, 0)
            server = await asyncio.start_server(forward, "127.0.0.1", door)
            async with server:
                assert await telemetry.flush(20)
        assert telemetry.sent == 1

    asyncio.run(run())


def test_a_broker_that_goes_away_costs_events_but_no_request() -> None:
    """Every event ends in one counter, and closing does not hang."""

    async def run() -> None:
        with embedded_broker({TOPIC: PARTITIONS}) as servers:
            settings = load_settings(broker=servers)
            telemetry = TelemetryPublisher(settings, delivery_seconds=1, close_seconds=3, capacity=50)
            await telemetry.__aenter__()
            telemetry.publish(event())
            assert await telemetry.flush(10)
        for n in range(1, 101):
            telemetry.publish(event(n))
        began = time.monotonic()
        await telemetry.__aexit__(None, None, None)
        assert time.monotonic() - began < 10
        assert telemetry.sent == 1
        assert telemetry.dropped == 50
        assert telemetry.failed + telemetry.pending == 50
        # What is left of the connection ends by itself.
        await asyncio.sleep(2)

    asyncio.run(run())
