"""The broker that the integration tests stand on."""

import asyncio
import os
import socket
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.integration import broker
from tests.integration.broker import BrokerUnavailable, LocalBroker, give_up, kafka_jars


async def create_topic(servers: str, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, num_partitions=2, replication_factor=1)])
    finally:
        await admin.close()


async def produce(servers: str, topic: str, values: list[bytes]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=servers, acks="all") as producer:
        for place, value in enumerate(values):
            await producer.send_and_wait(topic, value, partition=place % 2)


async def consume(servers: str, topic: str, count: int) -> set[bytes]:
    async with AIOKafkaConsumer(
        topic,
        bootstrap_servers=servers,
        group_id=f"{topic}-readers",
        auto_offset_reset="earliest",
    ) as consumer:
        return {(await consumer.getone()).value for _ in range(count)}


async def round_trip(servers: str, topic: str) -> None:
    values = [b"one", b"two", b"three"]
    await create_topic(servers, topic)
    async with asyncio.timeout(30):
        await produce(servers, topic, values)
        assert await consume(servers, topic, len(values)) == set(values)


@pytest.mark.kafka
def test_what_is_produced_is_consumed_by_a_group(kafka_broker: str) -> None:
    """The fixture's broker has what the worker needs: topics, partitions, consumer groups."""
    asyncio.run(round_trip(kafka_broker, f"fixture-{uuid.uuid4().hex}"))


@pytest.fixture
def local_broker(tmp_path: Path) -> Iterator[LocalBroker]:
    """A broker of the test's own, not started, on one core where the system can pin."""
    cpu = min(os.sched_getaffinity(0)) if sys.platform == "linux" else None
    try:
        local = LocalBroker(tmp_path / "kafka", cpu=cpu, heap="256m")
    except BrokerUnavailable as error:
        give_up(error)
    yield local
    local.stop()


@pytest.mark.kafka
def test_a_killed_broker_comes_back_with_its_records_on_the_same_address(
    local_broker: LocalBroker,
) -> None:
    """Tests that kill the broker need its address and data to outlive it."""
    servers = local_broker.bootstrap
    local_broker.start()
    asyncio.run(create_topic(servers, "kept"))
    asyncio.run(produce(servers, "kept", [b"before"]))
    if sys.platform == "linux" and local_broker.pid:
        assert len(os.sched_getaffinity(local_broker.pid)) == 1
    local_broker.kill()
    assert local_broker.pid is None
    local_broker.start()
    asyncio.run(produce(servers, "kept", [b"after"]))
    assert asyncio.run(consume(servers, "kept", 2)) == {b"before", b"after"}


@pytest.mark.kafka
def test_a_broker_that_cannot_start_says_why(local_broker: LocalBroker) -> None:
    """The end of the broker's own log is in the message: nobody has to look for the file."""
    host, port = local_broker.bootstrap.split(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(BrokerUnavailable, match="Address already in use"),
    ):
        local_broker.start()
    assert local_broker.pid is None


def no_broker(_: Path) -> NoReturn:
    raise BrokerUnavailable("no Java on PATH")


@pytest.mark.parametrize(
    ("ci", "outcome"),
    [("true", pytest.fail.Exception), ("1", pytest.fail.Exception), ("", pytest.skip.Exception)],
)
def test_a_missing_broker_skips_at_home_and_fails_in_ci(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CI never turns green over tests that had no Kafka."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(broker, "any_broker", no_broker)
    with pytest.raises(outcome, match=r"(?s)NO KAFKA.*no Java"):
        next(broker.provide(tmp_path))


def test_an_address_in_the_environment_goes_before_every_other_broker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever points the tests at a broker gets that one, or is told that it is silent."""
    (port,) = broker.free_ports(1)
    monkeypatch.setenv("TIDEGATE_TEST_BROKER", f"127.0.0.1:{port}")
    monkeypatch.setattr(broker, "PATIENCE", 0.5)
    with pytest.raises(BrokerUnavailable, match=f"no answer from 127.0.0.1:{port}"):
        broker.any_broker(tmp_path).__enter__()


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_download_that_breaks_off_leaves_no_cache_and_one_that_ends_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a set of jars would fail every later run with an error that names something else."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = 'for last; do :; done; to=${last#*=}; mkdir -p "$to"; touch "$to/a.jar"'
    executable(tmp_path / "bin" / "java", "exit 1")
    executable(tmp_path / "bin" / "mvn", f"{write}; echo connection lost; exit 1")
    with pytest.raises(BrokerUnavailable, match="connection lost"):
        kafka_jars()
    assert list((tmp_path / "cache" / "tidegate").iterdir()) == []

    executable(tmp_path / "bin" / "mvn", write)
    jars = kafka_jars()
    assert [jar.name for jar in jars.iterdir()] == ["a.jar"]
    executable(tmp_path / "bin" / "mvn", "exit 1")
    assert kafka_jars() == jars
