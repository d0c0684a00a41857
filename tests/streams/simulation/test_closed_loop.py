"""The simulation against a live broker: what it does where the worker does not play along."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaProducer

from tidegate.schemas.decision import Command, Decision
from tidegate.schemas.errors import InputError, TopicError
from tidegate.schemas.event import TelemetryEvent, parse
from tidegate.schemas.load import load_manifest
from tidegate.schemas.manifest import Flag
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine.pipeline import Pipeline
from tidegate.streams.engine.runs import Run
from tidegate.streams.kafka.tail import tail
from tidegate.streams.kafka.topics import topics
from tidegate.streams.settings import Settings, load_settings
from tidegate.streams.simulation.closed_loop import ClosedLoop, latest_start
from tidegate.streams.simulation.embedded_broker import embedded_broker
from tidegate.streams.simulation.scenarios import SCENARIOS
from tidegate.streams.simulation.service import Arrival, Simulation

MANIFEST = """
flags:
  f:
    scope: {regions: [eu]}
    window: {length: 60s, min_requests: 1, min_lambda_groups: 1}
    policy: {evidence: point}
"""
FLAG: Flag = load_manifest(MANIFEST).flags["f"]
TRACE = [Arrival(100 * n, 100, 10) for n in range(2_000)]
"""200 s of it."""


@pytest.fixture
def settings() -> Iterator[Settings]:
    settings = load_settings(fetch_wait=50, partitions=2)
    with embedded_broker({topic.name: topic.partitions for topic in topics(settings)}) as servers:
        yield settings.model_copy(update={"broker": servers})


def simulation(settings: Settings, *, start: int | None = None) -> Simulation:
    start = int(time.time() * 1000) - 3_600_000 if start is None else start
    return Simulation(TRACE, SCENARIOS["healthy"], FLAG, settings.clockwork, start=start // 10_000 * 10_000, seed=1)


async def telemetry(settings: Settings) -> list[TelemetryEvent]:
    async with tail(settings, settings.telemetry_topic) as records:
        return [parse(record.value) for record in await records.history()]


def test_without_a_worker_it_says_so_and_goes_on(settings: Settings) -> None:
    """Each window that nobody decides on is named, and the whole trace is sent."""
    told: list[Decision | Command | str] = []
    one = simulation(settings)
    loop = ClosedLoop(one, settings, 1_000, patience=0.05, told=told.append)

    async def run() -> list[TelemetryEvent]:
        await loop.run()
        return await telemetry(settings)

    sent = [event for event in asyncio.run(run()) if event.kind == "request" and event.source is None]
    assert len(sent) == len(TRACE)
    assert len(told) == 3
    assert all(isinstance(line, str) and "no decision on the window" in line for line in told)


def test_it_waits_for_the_decision_and_its_command_before_it_sends_what_they_concern(settings: Settings) -> None:
    """A worker that takes its time still has its promote obeyed from the first event of the new stage on."""
    told: list[Decision | Command | str] = []
    one = simulation(settings)

    async def decide() -> None:
        """A slow worker: the core, fed from the topic, whose commands travel behind its decisions."""
        pipeline = Pipeline(Timeline.of({"f": FLAG}), 2, settings.clockwork)
        async with tail(settings, settings.telemetry_topic) as records, AIOKafkaProducer(**settings.kafka) as producer:
            while True:
                for record in await records.more():
                    for decision, command in pipeline.step(record.partition, Run(record.offset, [record.value])):
                        await asyncio.sleep(0.2)
                        await producer.send_and_wait(settings.decisions_topic, decision.to_bytes(), key=b"f|eu")
                        if command is not None:
                            await asyncio.sleep(0.2)
                            await producer.send_and_wait(settings.control_topic, command.to_bytes(), key=b"f|eu")

    async def run() -> list[TelemetryEvent]:
        deciding = asyncio.create_task(decide())
        loop = ClosedLoop(one, settings, 1_000, told=told.append, until=lambda: len(told) >= 3)
        try:
            async with asyncio.timeout(30):
                await loop.run()
        finally:
            deciding.cancel()
        return await telemetry(settings)

    events = asyncio.run(run())
    first, command, second, *_ = told
    assert isinstance(first, Decision)
    assert isinstance(command, Command)
    assert isinstance(second, Decision)
    assert (first.verdict, command.decision_id) == ("promote", first.decision_id)
    served = [event for event in events if event.source is None and event.kind == "request"]
    before = [event.arm for event in served if event.ts < command.effective_from]
    after = [event.arm for event in served if event.ts >= command.effective_from]
    assert before.count("canary") / len(before) == pytest.approx(0.05, abs=0.03)
    assert after.count("canary") / len(after) == pytest.approx(0.25, abs=0.06)
    assert second.window.start == command.effective_from
    assert second.late == 0


def test_a_start_behind_what_the_topic_has_seen_is_refused(settings: Settings) -> None:
    """Every event would be late."""
    seen = int(time.time() * 1000)

    async def run() -> None:
        async with AIOKafkaProducer(**settings.kafka) as producer:
            await producer.send_and_wait(settings.telemetry_topic, b'{"kind":"tick","ts":%d}' % seen, partition=1)
        await ClosedLoop(simulation(settings), settings, 1_000).run()

    with pytest.raises(InputError, match="already has events up to"):
        asyncio.run(run())


def test_a_missing_broker_is_one_clear_error() -> None:
    """It names the address and the setting."""
    settings = load_settings(broker="127.0.0.1:9")
    with pytest.raises(TopicError, match=r"127\.0\.0\.1:9 \(TIDEGATE_BROKER\)"):
        asyncio.run(ClosedLoop(simulation(settings), settings, 1_000).run())


def test_the_latest_start_keeps_every_event_behind_the_clock() -> None:
    """Whatever the speed, no event is more than a minute ahead when it is sent."""
    now, length = 1_700_000_000_000, 3_600_000
    for speed in (0.5, 1, 2, 45, 1_000):
        start = latest_start(length, speed, now)
        ahead = [start + at - (now + at / speed) for at in (0, length)]
        assert max(ahead) < 60_000
        assert max(ahead) > 0
