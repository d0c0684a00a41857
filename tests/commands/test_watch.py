"""``tidegate watch`` shows what the topics hold."""

import asyncio
import io
from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import TopicAuthorizationFailedError
from click.testing import CliRunner
from rich.console import Console

from tests.streams.events import NOON, PANE, RAMP, fresh, record, tick
from tests.streams.kafka.test_operations import BOUNDARY, OTHER, Gate, kill, timeline
from tests.streams.play import play
from tidegate.schemas.decision import Command, Decision
from tidegate.streams.commands.watch import _Board, command
from tidegate.streams.engine.gate_log import pieces, split
from tidegate.streams.engine.runs import Run
from tidegate.streams.kafka.tail import Tail
from tidegate.streams.settings import Settings, load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker


@pytest.fixture
def settings() -> Iterator[Settings]:
    topics = {"tidegate.decisions": 2, "tidegate.control": 2, "tidegate.partials": 2}
    with embedded_broker(topics) as servers:
        yield load_settings(broker=servers, fetch_wait=50)


async def _write(settings: Settings, records: list[Decision | Command]) -> None:
    async with AIOKafkaProducer(**settings.kafka) as producer:
        for record in records:
            topic = settings.decisions_topic if isinstance(record, Decision) else settings.control_topic
            await producer.send_and_wait(topic, record.to_bytes(), key=record.key.encode())


async def _close(settings: Settings) -> None:
    """What a worker sends when a pane closes."""
    log = [
        record(event_id="1"),
        *(record(event_id=n, flag="mistyped") for n in "23"),
        record(event_id="4", source="warmup"),
    ]
    async with AIOKafkaProducer(**settings.kafka) as producer:
        for partial in fresh(0).step(Run(0, [*log, tick(NOON + 9 * PANE)])).partials:
            key = b"%d|%d" % (partial.partition, partial.pane)
            for gate, part in enumerate(split(partial, 2)):
                for piece in pieces(part):
                    await producer.send_and_wait(settings.partials_topic, piece, key=key, partition=gate)


def watch(settings: Settings, *arguments: str) -> str:
    invoked = ["--once", "--broker", settings.broker, *arguments]
    done = CliRunner().invoke(command, invoked, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_once_shows_the_last_decision_of_each_unit_with_every_gate(settings: Settings) -> None:
    """Values stand beside their limits, and what is wrong with the evidence is said."""
    pins = play("pins")
    asyncio.run(_write(settings, [*pins.decisions, *pins.commands]))
    shown = watch(settings)
    first, gates, problem, ending, telemetry = shown.splitlines()
    assert first.startswith("prompt_pack_vNplus1|us-east-1 ")
    assert "hold (pins_drifted)" in first
    for gate in pins.decisions[-1].gates:
        assert gate.gate in gates
    # The one window of the stage is left out, so nothing is known of it yet.
    assert "error_rate_max ? (≤ 0.5 %) unknown" in gates
    assert "INDEX_HASH" in problem
    assert "b7f3..." in problem
    assert "until services run what the manifest names" in ending
    assert telemetry == "telemetry: none in a pane that was closed in the last 5 minutes"


def test_how_much_of_the_telemetry_counts_is_said_and_why_the_rest_does_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing was decided, as every event is out of scope or of a flag that is mistyped."""

    async def from_the_first(_: Tail, __: int) -> None:
        """The embedded broker finds no offsets by time."""

    monkeypatch.setattr(Tail, "since", from_the_first)
    asyncio.run(_close(settings))
    shown = watch(settings)
    assert "no decisions in tidegate.decisions yet" in shown
    assert "telemetry: 1 event counted; left out: 2 of a flag that the manifest does not name" in shown
    assert '("mistyped"), 1 warm-up, of ' in shown


def test_without_a_right_to_read_the_closed_panes_the_rest_is_shown(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(_: Tail, __: int) -> None:
        raise TopicAuthorizationFailedError("tidegate.partials")

    monkeypatch.setattr(Tail, "since", refused)
    shown = watch(settings)
    assert "no decisions in tidegate.decisions yet" in shown
    assert "telemetry: how much of it counts is not known here: topic tidegate.partials at " in shown


def test_a_unit_whose_flag_has_left_the_manifest_is_shown_as_retired() -> None:
    """Also after a kill of it; back in the manifest it has a stage again."""
    gate = Gate(timeline(RAMP, (BOUNDARY, OTHER), (NOON + 6 * PANE, RAMP)))
    board = _Board(None)

    def shown() -> str:
        for decision in gate.decisions:
            board.take(decision.to_bytes())
        board.weights = {command.key: command.weights for command in gate.commands}
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(board.table())
        return console.export_text()

    gate.until(5)
    assert "retire (retire)" in shown()
    assert "retired, canary 0 %" in shown()
    gate.order(kill(ts=NOON + 5 * PANE))
    assert "retired, canary" in shown()
    gate.until(9, first=6)
    assert "retired" not in shown()
    assert "stage 0, canary" in shown()


def test_an_order_that_rests_on_no_window_is_one_line(settings: Settings) -> None:
    gate = Gate(timeline(RAMP))
    gate.until(2)
    gate.order(kill(ts=NOON + 2 * PANE))
    asyncio.run(_write(settings, [decision for decision in gate.decisions if decision.verdict == "kill"]))
    *orders, telemetry = watch(settings).splitlines()
    assert orders
    assert all("kill by " in line for line in orders)
    assert telemetry.startswith("telemetry: ")


def test_once_without_decisions_says_so(settings: Settings) -> None:
    """Also where a filter leaves none."""
    assert "no decisions in tidegate.decisions yet" in watch(settings)
    asyncio.run(_write(settings, [*play("errors").decisions]))
    assert "no decisions" in watch(settings, "--flag", "another")
    assert "hold (latched)" in watch(settings, "--flag", "prompt_pack_vNplus1")
