"""``tidegate watch`` shows what the topics hold."""

import asyncio
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import TopicAuthorizationFailedError
from click.testing import CliRunner

from tests.commands.test_explain import ABORT, PROMOTE
from tests.streams.events import NOON, PANE, RAMP, fresh, record, tick
from tests.streams.kafka.test_operations import BOUNDARY, OTHER, Gate, kill, timeline
from tests.streams.play import play
from tests.streams.report.test_board import at
from tidegate.schemas.decision import Command, Decision
from tidegate.streams.commands.watch import command
from tidegate.streams.engine.gate_log import pieces, split
from tidegate.streams.engine.runs import Run
from tidegate.streams.kafka.tail import Tail
from tidegate.streams.report.board import Board
from tidegate.streams.settings import Settings, load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

ESCAPES = re.compile(r"\x1b\[[?\d;]*[A-Za-z]")
LEFT = "\x1b[?1049l"
"""Ends the screen that a terminal shows instead of its lines."""


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
    assert first.endswith(f"[{pins.decisions[-1].decision_id.removeprefix('sha256:')[:8]}]")
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
    board = Board()

    def shown() -> str:
        for decision in gate.decisions:
            board.take(decision)
        board.weights = {command.key: command.weights for command in gate.commands}
        return "\n".join(line.plain for line in board.frame(200, None, NOON + 9 * PANE))

    gate.until(5)
    assert "– f: retired" in shown()
    gate.order(kill(ts=NOON + 5 * PANE))
    assert "– f: killed" in shown()
    gate.until(9, first=6)
    assert "–" not in shown().splitlines()[0]
    assert "stage 0 at " in shown()


def test_an_order_that_rests_on_no_window_is_one_line(settings: Settings) -> None:
    gate = Gate(timeline(RAMP))
    gate.until(2)
    gate.order(kill(ts=NOON + 2 * PANE))
    asyncio.run(_write(settings, [decision for decision in gate.decisions if decision.verdict == "kill"]))
    *orders, telemetry = watch(settings).splitlines()
    assert orders
    assert all("kill by " in line for line in orders)
    assert telemetry.startswith("telemetry: ")


def test_on_a_terminal_a_key_chooses_the_unit_and_q_ends(settings: Settings) -> None:
    """A screen of 80 × 24 with a line a unit; the terminal is left as it was."""
    decisions = [at(ABORT, "worse"), at(PROMOTE, "better")]
    asyncio.run(_write(settings, list(decisions)))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(theirs)
    watching = subprocess.Popen(
        [sys.executable, "-m", "tidegate.streams.commands", "watch", "--broker", settings.broker],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "NO_COLOR": "1"},
    )

    def until(text: str) -> str:
        """What is written until a text is, bare of escape sequences unless it is one."""
        seen = b""
        while text not in (shown := seen.decode(errors="replace")) and text not in ESCAPES.sub("", shown):
            ready, _, _ = select.select([ours], [], [], 60)
            assert ready, f"{text} is not written after {shown}"
            seen += os.read(ours, 65_536)
        return ESCAPES.sub("", shown)

    try:
        until("> ✗ worse/us-east-1")
        os.write(ours, b"j")
        until("> ✓ better/us-east-1")
        os.write(ours, b"q")
        until(LEFT)
        assert watching.wait() == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        watching.kill()
        watching.wait()
        os.close(ours)
        os.close(theirs)


def test_once_without_decisions_says_so(settings: Settings) -> None:
    """Also where a filter leaves none."""
    assert "no decisions in tidegate.decisions yet" in watch(settings)
    asyncio.run(_write(settings, [*play("errors").decisions]))
    assert "no decisions" in watch(settings, "--flag", "another")
    assert "hold (latched)" in watch(settings, "--flag", "prompt_pack_vNplus1")
