"""``tidegate watch``: decisions and commands as they come."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import click
from aiokafka import ConsumerRecord
from rich.console import Console
from rich.live import Live
from rich.text import Text

from tidegate.schemas.decision import Decision, decision_from_bytes
from tidegate.schemas.errors import EventError
from tidegate.streams.client.control import ControlConsumer
from tidegate.streams.kafka.patience import STALL_SECONDS
from tidegate.streams.kafka.recent import Recent, recent
from tidegate.streams.kafka.tail import Tail, tail
from tidegate.streams.report.board import KEYS, Board, short_id, table
from tidegate.streams.report.terminal import order, outcome, plain_gates, problem_lines
from tidegate.streams.report.text import endings, plain
from tidegate.streams.settings import Settings, command_settings


@click.command()
@click.option("--broker", help="Kafka bootstrap servers")
@click.option("--flag", help="only this flag")
@click.option("--once", is_flag=True, help="show what is there and end")
def command(broker: str | None, flag: str | None, once: bool) -> None:
    """Show every flag and region, the worst first, and of the chosen one each gate with its value against the limit.

    \b
    ✗ stopped, waits for somebody     ! held, somebody should look     … waits for evidence
    ✓ goes on                         – its flag has left the manifest

    Of what holds a unit it says when that ends, and of the telemetry of the last minutes how much counts, and why the
    rest does not. Reads the decisions and control topics from the start, of the closed panes the last ones, and
    disturbs nobody. On a terminal a screen that keeps itself up to date: arrow keys choose a unit, q ends; else a line
    for each decision and command.
    """
    settings = command_settings(broker=broker)
    with suppress(KeyboardInterrupt):
        asyncio.run(_watch(settings, flag, once=once))


async def _watch(settings: Settings, flag: str | None, *, once: bool) -> None:
    board, console = Board(flag), Console(soft_wrap=True)
    async with (
        tail(settings, settings.decisions_topic) as decisions,
        ControlConsumer(settings) as commands,
        recent(settings) as telemetry,
    ):
        await commands.caught_up()
        for record in await decisions.history():
            _take(board, record)
        board.weights = commands.weights
        if console.is_terminal and not once:
            await _keep_showing(settings, console, board, decisions, telemetry)
            return
        if console.is_terminal and board.decisions:
            console.print(table(board.frame(console.width, None, _now())))
        elif not board.decisions:
            console.print(f"no decisions in {settings.decisions_topic} yet", highlight=False)
        else:
            for row in board.rows(_now()):
                _say(console, board.decisions[row.unit])
        console.print(plain(telemetry.told()), highlight=False, markup=False)
        if not once:
            await asyncio.gather(
                _say_decisions(console, board, decisions, telemetry), _say_commands(console, board, commands)
            )


def _now() -> int:
    return int(time.time() * 1000)


def _take(board: Board, record: ConsumerRecord) -> Decision | None:
    """Note a record of the decisions topic; None if it was seen before or is not to be shown."""
    try:
        decision = decision_from_bytes(record.value)
    except EventError:
        return None
    return decision if board.take(decision, record.timestamp) else None


async def _keep_showing(settings: Settings, console: Console, board: Board, decisions: Tail, telemetry: Recent) -> None:
    """Keep a screen up to date until q is pressed."""
    # An idle broker answers this late.
    patience = STALL_SECONDS + settings.fetch_wait / 1000
    pressed: asyncio.Queue[str] = asyncio.Queue()
    with Live(console=console, auto_refresh=False, screen=True) as live, _keys(pressed) as keys, _quiet():

        def show() -> None:
            silent = decisions.silent()
            away = f"since {datetime.fromtimestamp(time.time() - silent, UTC):%H:%M:%S}" if silent > patience else ""
            size, told = console.size, telemetry.told()
            lines = board.frame(size.width, size.height, _now(), away=away, telemetry=told, keys=keys)
            live.update(table(lines), refresh=True)

        async def follow() -> None:
            while True:
                show()
                for record in await decisions.more():
                    _take(board, record)

        async def listen() -> None:
            while (key := await pressed.get()) != "q":
                board.move({"up": -1, "down": 1}[key], _now())
                show()

        following, listening = asyncio.create_task(follow()), asyncio.create_task(listen())
        done, left = await asyncio.wait({following, listening}, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        for task in done:
            task.result()


PRESSED = {b"\x1b[A": "up", b"\x1bOA": "up", b"k": "up", b"\x1b[B": "down", b"\x1bOB": "down", b"j": "down", b"q": "q"}
"""Keys by what a terminal sends for them."""


@contextmanager
def _keys(pressed: asyncio.Queue[str]) -> Iterator[str]:
    """Put keys into a queue as they are pressed, where there is a keyboard; which ones, for people."""
    if not sys.stdin.isatty():
        yield "Ctrl-C ends"
        return
    import termios
    import tty

    keyboard, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(keyboard)

    def read() -> None:
        key = PRESSED.get(os.read(keyboard, 16))
        if key is not None:
            pressed.put_nowait(key)

    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, read)
    try:
        yield KEYS
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let the consumer of commands write no log into the screen, which itself says that the broker is away."""
    logger, silent = logging.getLogger("tidegate.control"), logging.NullHandler()
    logger.addHandler(silent)
    try:
        yield
    finally:
        logger.removeHandler(silent)


async def _say_decisions(console: Console, board: Board, decisions: Tail, telemetry: Recent) -> None:
    known = telemetry.tally.reasons
    while True:
        for record in await decisions.more():
            decision = _take(board, record)
            if decision is not None:
                _say(console, decision)
        # Counts change all the time; that more is left out for a new reason is told once.
        if not telemetry.tally.reasons <= known:
            console.print(plain(telemetry.told()), highlight=False, markup=False)
            known |= telemetry.tally.reasons


async def _say_commands(console: Console, board: Board, commands: ControlConsumer) -> None:
    async for command in commands:
        if board.shows(command.flag):
            console.print(Text(f"{plain(command.key)}  ").append(order(command)))


def _say(console: Console, decision: Decision) -> None:
    console.print(Text(f"{plain(decision.key)}  ").append(outcome(decision)).append(f"  [{short_id(decision)}]"))
    for line in filter(None, (plain_gates(decision), *problem_lines(decision), *endings(decision))):
        console.print(f"    {line}", highlight=False, markup=False)
