"""Telemetry out of a service: what is valid arrives, and nothing ever holds up the caller."""

import asyncio
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from tests.streams.leaders import without_leaders
from tidegate.schemas.errors import EventError
from tidegate.schemas.event import TelemetryEvent
from tidegate.streams.client import publisher
from tidegate.streams.client.publisher import TelemetryPublisher
from tidegate.streams.dumps.log import partition_of
from tidegate.streams.kafka import patience
from tidegate.streams.kafka.tail import tail
from tidegate.streams.settings import Settings, load_settings
from tidegate.streams.simulation.embedded_broker import embedded, embedded_broker

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
        assert (telemetry.sent, telemetry.pending) == (1, 0)
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


def offered(telemetry: TelemetryPublisher) -> int:
    """What the counters say of how often ``publish`` was called."""
    return telemetry.sent + telemetry.failed + telemetry.dropped + telemetry.rejected + telemetry.pending


@pytest.mark.parametrize("broker", ["there", "gone for good", "gone before closing", "never there"])
def test_every_event_is_in_exactly_one_counter_also_after_closing(broker: str) -> None:
    """Sent, failed, dropped, rejected and pending add up to what was offered; closing hangs nowhere and leaves none."""

    async def run() -> None:
        with embedded({TOPIC: PARTITIONS}) as kafka:
            if broker == "never there":
                kafka.leave()
            telemetry = TelemetryPublisher(load_settings(broker=kafka.servers), capacity=50, close_seconds=1)
            async with telemetry:
                calls = 0
                for wave in range(3):
                    if (broker, wave) in (("gone for good", 1), ("gone before closing", 2)):
                        kafka.leave()
                    for n in range(40):
                        telemetry.publish(event(100 * wave + n) if n % 10 else event(latency_ms=-1.0))
                        telemetry.publish({"kind": "tick", "ts": int(time.time() * 1000)})
                        calls += 2
                    assert offered(telemetry) == calls
                    await telemetry.flush(0.5)
                    assert offered(telemetry) == calls
                began = time.monotonic()
            assert time.monotonic() - began < 6
            telemetry.publish(event(999))
            counted = telemetry.sent, telemetry.failed, telemetry.dropped, telemetry.rejected, telemetry.pending
            assert sum(counted) == calls + 1
            assert telemetry.pending == 0
            assert telemetry.rejected == 12
            assert (telemetry.sent > 0) == (broker != "never there")
            assert (telemetry.failed > 0) == (broker != "there")
            kafka.come_back()
            # What a client that is given up still hears changes nothing.
            await asyncio.sleep(1.5)
            assert counted == (
                telemetry.sent,
                telemetry.failed,
                telemetry.dropped,
                telemetry.rejected,
                telemetry.pending,
            )

    asyncio.run(run())


def test_events_wait_out_an_outage_that_is_longer_than_any_batch_or_request_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than the client has room for; each arrives, in order within a key, and nothing is given up."""
    monkeypatch.setattr(patience, "REQUEST_MS", 500)
    monkeypatch.setattr(patience, "BATCH_BYTES", 2_000)

    async def run() -> None:
        with embedded({TOPIC: PARTITIONS}) as kafka:
            settings = load_settings(broker=kafka.servers, fetch_wait=50)
            async with TelemetryPublisher(settings) as telemetry:
                telemetry.publish(event())
                assert await telemetry.flush(10)
                kafka.leave()
                for n in range(1, 301):
                    assert telemetry.publish(event(n))
                    await asyncio.sleep(0.01)
                assert (telemetry.sent, telemetry.failed, telemetry.dropped, telemetry.pending) == (1, 0, 0, 300)
                kafka.come_back()
                assert await telemetry.flush(20)
            assert (telemetry.sent, telemetry.failed, telemetry.dropped) == (301, 0, 0)
            found = [json.loads(record.value)["event_id"] for record in await stored(settings)]
            # Whatever a broker had before it went may be there twice.
            first = list(dict.fromkeys(found))
            assert sorted(first) == sorted(f"e{n}" for n in range(301))
            assert [one for one in first if int(one[1:]) % 7 == 3] == [f"e{n}" for n in range(301) if n % 7 == 3]

    asyncio.run(run())


def test_an_outage_is_a_few_lines_one_of_them_ours(caplog: pytest.LogCaptureFixture) -> None:
    """What waits, what is lost, since when and why; and one line when it is over."""

    async def run() -> None:
        with embedded({TOPIC: PARTITIONS}) as kafka:
            async with TelemetryPublisher(load_settings(broker=kafka.servers), capacity=60) as telemetry:
                telemetry.publish(event())
                assert await telemetry.flush(10)
                kafka.leave()
                for n in range(1, 101):
                    telemetry.publish(event(n))
                    await asyncio.sleep(0.01)
                await asyncio.sleep(patience.STALL_SECONDS + 2)
                own = [one.getMessage() for one in caplog.records if one.name == "tidegate.publisher"]
                assert len(own) == 1, own
                assert len(caplog.records) <= 8, caplog.text
                kafka.come_back()
                assert await telemetry.flush(10)
                await asyncio.sleep(publisher.WATCH_SECONDS * 2)
        assert (telemetry.sent, telemetry.dropped) == (61, 40)

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    own = [one.getMessage() for one in caplog.records if one.name == "tidegate.publisher"]
    assert re.search(
        rf"{TOPIC} at 127.*: waiting 60, lost [1-9][0-9]*, since 20..-..-.. ..:..:.. UTC: .*onnect",
        caplog.text,
    ), own
    assert "gets through again: lost 40 since" in own[-1]


def test_an_outage_has_one_line_a_minute_whatever_it_looks_like_from_within(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing confirmed, a batch given up by the client, a new client that cannot connect: it is all one outage."""
    for module, name, seconds in (
        (publisher, "STALL_SECONDS", 0.5),
        (publisher, "WATCH_SECONDS", 0.1),
        (publisher, "RETRY_SECONDS", 0.2),
        (patience, "QUIET_SECONDS", 0.1),
        (patience, "REQUEST_MS", 500),
    ):
        monkeypatch.setattr(module, name, seconds)

    async def run() -> None:
        with embedded({TOPIC: PARTITIONS}) as kafka:
            async with TelemetryPublisher(load_settings(broker=kafka.servers)) as telemetry:
                telemetry.publish(event())
                assert await telemetry.flush(10)
                kafka.leave()
                for n in range(1, 9):
                    telemetry.publish(event(n))
                await asyncio.sleep(6)
                own = [one.getMessage() for one in caplog.records if one.name == "tidegate.publisher"]
                assert len(own) == 1, own
                kafka.come_back()
                assert await telemetry.flush(10)

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())


def test_a_topic_that_is_not_there_is_named_once_with_the_way_out(caplog: pytest.LogCaptureFixture) -> None:
    """Events wait for it as for a broker."""

    async def run() -> None:
        with embedded({TOPIC: PARTITIONS}) as kafka:
            kafka.hide(TOPIC)
            settings = load_settings(broker=kafka.servers, fetch_wait=50)
            async with TelemetryPublisher(settings) as telemetry:
                telemetry.publish(event())
                assert not await telemetry.flush(4)
                assert telemetry.pending == 1
                assert len(caplog.records) <= 3, caplog.text
                kafka.show(TOPIC)
                assert await telemetry.flush(10)
            assert len(await stored(settings)) == 1

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    own = [one.getMessage() for one in caplog.records if one.name == "tidegate.publisher"]
    assert len([line for line in own if f"topic {TOPIC} " in line and "tidegate topics --create" in line]) == 1, own


def test_partitions_without_a_leader_are_asked_for_once_a_second() -> None:
    """The library asks again at once, as fast as the broker answers."""

    async def run() -> None:
        with embedded({TOPIC: PARTITIONS}) as kafka:
            async with TelemetryPublisher(load_settings(broker=kafka.servers)) as telemetry:
                telemetry.publish(event())
                assert await telemetry.flush(10)
                with without_leaders() as asked:
                    telemetry.publish(event(1))
                    assert not await telemetry.flush(3)
                    assert 1 <= len(asked) <= 5
                assert await telemetry.flush(10)

    asyncio.run(run())


def test_a_client_that_breaks_is_replaced(settings: Settings) -> None:
    """An error within the library ends its task; what it had is sent by the next."""

    async def run() -> None:
        async with TelemetryPublisher(settings) as telemetry:
            telemetry.publish(event())
            assert await telemetry.flush(10)
            producer = telemetry._producer
            assert producer is not None
            producer._message_accumulator.drain_by_nodes = None
            telemetry.publish(event(1))
            assert await telemetry.flush(10)
            telemetry.publish(event(2))
            assert await telemetry.flush(10)
        assert (telemetry.sent, telemetry.failed) == (3, 0)

    asyncio.run(run())


def test_drops_and_rejected_events_are_logged_once_a_minute_with_their_numbers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also while the broker is there."""
    monkeypatch.setattr(publisher, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(publisher, "SAY_SECONDS", 0.4)

    async def run() -> None:
        async with TelemetryPublisher(settings, capacity=10) as telemetry:
            for n in range(25):
                telemetry.publish(event(n))
            for n in range(7):
                telemetry.publish(event(n, cost=-1.0))
            await asyncio.sleep(1.5)

    with caplog.at_level(logging.WARNING, "tidegate.publisher"):
        asyncio.run(run())
    assert [line for line in caplog.messages if "lost 15" in line and "see `capacity`" in line]
    said = [line for line in caplog.messages if "7 events more, 7 in all" in line]
    assert len(said) == 1, caplog.messages
