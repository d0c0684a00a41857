"""Both ends of the wire on a real Kafka, and the demo against one."""

import asyncio
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from tests.streams.play import play
from tidegate.schemas.decision import Command
from tidegate.schemas.event import parse
from tidegate.streams.client.control import ControlConsumer
from tidegate.streams.client.publisher import TelemetryPublisher
from tidegate.streams.kafka.tail import tail
from tidegate.streams.kafka.topics import connect, create_topics, topics
from tidegate.streams.settings import load_settings

pytestmark = pytest.mark.kafka


def test_telemetry_goes_out_and_commands_come_in(kafka_broker: str) -> None:
    """On topics as Tidegate makes them: every event once, and after a restart the last command of the unit."""
    name = f"wire-{uuid.uuid4().hex[:8]}"
    settings = load_settings(broker=kafka_broker, topic_prefix=name, application_id=name, fetch_wait=50)
    simulated = play("healthy")
    events = [event for event in simulated.events if event.kind == "request"][:2_000]

    async def obey(commands: ControlConsumer, count: int) -> list[Command]:
        async with asyncio.timeout(20):
            return [await anext(commands) for _ in range(count)]

    async def run() -> None:
        await create_topics(settings)
        async with TelemetryPublisher(settings, strict=True) as telemetry:
            assert all(telemetry.publish(event) for event in events)
            assert telemetry.publish({"kind": "tick", "ts": int(time.time() * 1000)})
            assert await telemetry.flush(30)
        assert (telemetry.sent, telemetry.failed) == (len(events) + 1, 0)
        async with tail(settings, settings.telemetry_topic) as records:
            stored = [parse(record.value, record.timestamp) for record in await records.history()]
        assert sorted(e.event_id for e in stored if e.event_id) == sorted(e.event_id for e in events if e.event_id)
        assert [e.kind for e in stored].count("tick") == settings.partitions

        async with AIOKafkaProducer(**settings.kafka) as producer:
            for command in [*simulated.commands, *simulated.commands]:
                key = command.key.encode()
                await producer.send_and_wait(settings.control_topic, command.to_bytes(), key=key)
            async with ControlConsumer(settings) as commands:
                assert await obey(commands, 1) == simulated.commands[-1:]
                assert commands.weights[simulated.simulation.unit].canary == 1.0
        admin = await connect(settings)
        await admin.delete_topics([topic.name for topic in topics(settings)])
        await admin.close()

    asyncio.run(run())


def test_the_demo_runs_against_a_broker_of_the_users_and_leaves_no_topics(kafka_broker: str, tmp_path: Path) -> None:
    """Its topics are its own, and gone afterwards."""
    command = [sys.executable, "-m", "tidegate.streams.commands", "demo", "--scenario", "errors", "--speed", "150"]
    command += ["--broker", kafka_broker, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "replayed 5 decisions and 2 commands" in done.stdout
    assert "the same bytes" in done.stdout

    async def left() -> list[str]:
        admin = await connect(load_settings(broker=kafka_broker))
        try:
            return [topic for topic in await admin.list_topics() if topic.startswith("tidegate-demo-")]
        finally:
            await admin.close()

    assert asyncio.run(left()) == []
