"""``tidegate watch`` shows what the topics hold."""

import asyncio
import io
from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaProducer
from click.testing import CliRunner
from rich.console import Console

from schemas.decision import Command, Decision
from streams.broker import embedded_broker
from streams.commands.watch import _Board, command
from streams.settings import Settings, load_settings
from tests.streams.events import NOON, PANE, RAMP
from tests.streams.play import play
from tests.streams.test_operations import BOUNDARY, OTHER, Gate, kill, timeline


@pytest.fixture
def settings() -> Iterator[Settings]:
    with embedded_broker({"tidegate.decisions": 2, "tidegate.control": 2}) as servers:
        yield load_settings(broker=servers, fetch_wait=50)


async def _write(settings: Settings, records: list[Decision | Command]) -> None:
    async with AIOKafkaProducer(**settings.kafka) as producer:
        for record in records:
            topic = settings.decisions_topic if isinstance(record, Decision) else settings.control_topic
            await producer.send_and_wait(topic, record.to_bytes(), key=record.key.encode())


def watch(settings: Settings, *arguments: str) -> str:
    done = CliRunner().invoke(command, ["--once", "--broker", settings.broker, *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_once_shows_the_last_decision_of_each_unit_with_every_gate(settings: Settings) -> None:
    """Values stand beside their limits, and what is wrong with the evidence is said."""
    pins = play("pins")
    asyncio.run(_write(settings, [*pins.decisions, *pins.commands]))
    shown = watch(settings)
    first, gates, problem = shown.splitlines()
    assert first.startswith("prompt_pack_vNplus1|us-east-1 ")
    assert "hold (pins_drifted)" in first
    for gate in pins.decisions[-1].gates:
        assert gate.gate in gates
    # The one window of the stage is left out, so nothing is known of it yet.
    assert "error_rate_max ? (≤ 0.5 %) unknown" in gates
    assert "INDEX_HASH" in problem
    assert "b7f3..." in problem


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


def test_once_without_decisions_says_so(settings: Settings) -> None:
    """Also where a filter leaves none."""
    assert "no decisions in tidegate.decisions yet" in watch(settings)
    asyncio.run(_write(settings, [*play("errors").decisions]))
    assert "no decisions" in watch(settings, "--flag", "another")
    assert "hold (latched)" in watch(settings, "--flag", "prompt_pack_vNplus1")
