"""``tidegate watch``: decisions and commands as they come."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tidegate.schemas.decision import Decision, Weights, decision_from_bytes
from tidegate.schemas.errors import EventError
from tidegate.schemas.times import iso
from tidegate.streams.client.control import ControlConsumer
from tidegate.streams.kafka.recent import Recent, recent
from tidegate.streams.kafka.tail import Tail, tail
from tidegate.streams.report.terminal import (
    Standings,
    gate_rows,
    order,
    outcome,
    percent,
    plain_gates,
    problem_lines,
    state,
    verdict,
)
from tidegate.streams.report.text import endings, plain
from tidegate.streams.settings import Settings, command_settings


@click.command()
@click.option("--broker", help="Kafka bootstrap servers")
@click.option("--flag", help="only this flag")
@click.option("--once", is_flag=True, help="show what is there and end")
def command(broker: str | None, flag: str | None, once: bool) -> None:
    """Show every flag and region: stage or state, weight, last verdict, and each gate with its value against the limit.

    Of what holds a unit it says when that ends, and of the telemetry of the last minutes how much counts, and why the
    rest does not. Reads the decisions and control topics from the start, of the closed panes the last ones, and
    disturbs nobody. On a terminal a table that keeps itself up to date, else a line for each decision and command.
    """
    settings = command_settings(broker=broker)
    with suppress(KeyboardInterrupt):
        asyncio.run(_watch(settings, flag, once=once))


class _Board:
    """The last decision and the last weights of each unit, and which quality gates are open and guards stepped in."""

    def __init__(self, flag: str | None) -> None:
        self._flag = flag
        self.standings = Standings()
        self._seen: set[str] = set()
        self.weights: Mapping[str, Weights] = {}

    def shows(self, flag: str) -> bool:
        return self._flag in (None, flag)

    def take(self, value: bytes) -> Decision | None:
        """Note a decision; None if it was seen before or is not to be shown."""
        try:
            decision = decision_from_bytes(value)
        except EventError:
            return None
        if not self.shows(decision.flag) or decision.decision_id in self._seen:
            return None
        self._seen.add(decision.decision_id)
        self.standings.follow(decision)
        return decision

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """The last decision of each unit."""
        return self.standings.last

    def table(self) -> Table:
        """A row a unit."""
        table = Table("unit", "last verdict", "gates", show_lines=True)
        for unit, decision in sorted(self.decisions.items()):
            weights = self.weights.get(unit)
            weight = weights.canary if weights else decision.stage.canary_weight
            where = Text(plain(decision.flag), style="bold").append(f"\n{plain(decision.region)}", style="not bold")
            stands = state(decision.kind, weight, engaged=self.standings.engaged(unit))
            ramps = f"stage {decision.stage.index}, " if decision.kind == "progressive_rollout" else ""
            stands = f"retired, canary {percent(weight)}" if self.standings.retired(unit) else ramps + stands
            where.append(f"\n{stands}", style="not bold")
            said = Text(f"{iso(decision.decided_at)}\n").append(verdict(decision))
            if decision.operation is not None:
                said.append(f"\nby {plain(decision.operation.actor)}: {plain(decision.operation.reason)}")
            for problem in problem_lines(decision):
                said.append(f"\n{problem}", style="yellow")
            for ending in endings(decision):
                said.append(f"\n{ending}", style="dim")
            table.add_row(where, said, _gates(decision))
        return table


def _gates(decision: Decision) -> Table:
    grid = Table.grid(padding=(0, 1))
    for row in gate_rows(decision, only_judged=True):
        grid.add_row(Text(row.name, no_wrap=True), Text(row.observed, style=row.style), row.limit)
    return grid


async def _watch(settings: Settings, flag: str | None, *, once: bool) -> None:
    board, console = _Board(flag), Console(soft_wrap=True)
    async with (
        tail(settings, settings.decisions_topic) as decisions,
        ControlConsumer(settings) as commands,
        recent(settings) as telemetry,
    ):
        await commands.caught_up()
        for record in await decisions.history():
            board.take(record.value)
        board.weights = commands.weights
        if console.is_terminal and not once:
            await _keep_showing(console, board, decisions, telemetry)
        elif console.is_terminal and board.decisions:
            console.print(board.table())
        elif not board.decisions:
            console.print(f"no decisions in {settings.decisions_topic} yet", highlight=False)
        else:
            for decision in board.decisions.values():
                _say(console, decision)
        console.print(plain(telemetry.told()), highlight=False, markup=False)
        if not once:
            await asyncio.gather(
                _say_decisions(console, board, decisions, telemetry), _say_commands(console, board, commands)
            )


async def _keep_showing(console: Console, board: _Board, decisions: Tail, telemetry: Recent) -> None:
    waiting = Text("waiting for the first decision; Ctrl-C ends", style="dim")
    with Live(console=console, auto_refresh=False) as live:
        while True:
            shown = board.table() if board.decisions else waiting
            live.update(Group(shown, Text(plain(telemetry.told()))), refresh=True)
            for record in await decisions.more():
                board.take(record.value)


async def _say_decisions(console: Console, board: _Board, decisions: Tail, telemetry: Recent) -> None:
    known = telemetry.tally.reasons
    while True:
        for record in await decisions.more():
            decision = board.take(record.value)
            if decision is not None:
                _say(console, decision)
        # Counts change all the time; that more is left out for a new reason is told once.
        if not telemetry.tally.reasons <= known:
            console.print(plain(telemetry.told()), highlight=False, markup=False)
            known |= telemetry.tally.reasons


async def _say_commands(console: Console, board: _Board, commands: ControlConsumer) -> None:
    async for command in commands:
        if board.shows(command.flag):
            console.print(Text(f"{plain(command.key)}  ").append(order(command)))


def _say(console: Console, decision: Decision) -> None:
    console.print(Text(f"{plain(decision.key)}  ").append(outcome(decision)))
    for line in filter(None, (plain_gates(decision), *problem_lines(decision), *endings(decision))):
        console.print(f"    {line}", highlight=False, markup=False)
