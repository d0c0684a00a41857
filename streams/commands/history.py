"""``tidegate history``: what was decided, when, why and by whom, a line each."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.schemas.decision import Decision
from tidegate.schemas.times import shaped
from tidegate.streams.commands.decisions import (
    broker_option,
    decisions_of,
    decisions_option,
    recorded_lines,
    unit_name,
)
from tidegate.streams.report.board import cause_in_short, short_id
from tidegate.streams.report.terminal import GREY, VERDICT_STYLE
from tidegate.streams.report.text import many, plain

SHAPE = "%Y-%m-%d %H:%M:%S"


@click.command()
@click.argument("flag", required=False)
@decisions_option
@broker_option
@click.option("--all", "every", is_flag=True, help="a line for every window, also where nothing changed")
def command(flag: str | None, decisions: Path | None, broker: str | None, every: bool) -> None:
    """Show what was decided of FLAG, of FLAG/REGION or of everything: time, unit, verdict, why, who and id.

    The time is event time, UTC. Windows in a row that said the same are one line, with their number. WHO is the
    operator or the key behind an order; what the gates decide names nobody. The id is what `tidegate explain` takes.
    """
    lines, where = recorded_lines(decisions, broker)
    found = sorted(decisions_of(lines, flag, where), key=lambda decision: decision.decided_at)
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = 1_000
    table = Table("time", "unit", "verdict", "why", "who", "id", box=None, pad_edge=False, header_style=GREY)
    for column in table.columns:
        column.no_wrap = True
    table.columns[3].overflow = "ellipsis"
    for run in runs_of(found, every=every):
        table.add_row(*_row(run))
    console.print(table)


def runs_of(found: list[Decision], *, every: bool = False) -> list[list[Decision]]:
    """Put decisions of a unit in a row together that say the same; ``every``: each alone."""
    done: list[list[Decision]] = []
    last: dict[str, list[Decision]] = {}
    for decision in found:
        before = last.get(decision.key)
        if before is not None and not every and _said(before[-1]) == _said(decision):
            before.append(decision)
        else:
            last[decision.key] = [decision]
            done.append(last[decision.key])
    return done


def _said(decision: Decision) -> tuple[object, ...]:
    return decision.verdict, decision.reasons, decision.stage, decision.operation, decision.manifest_hash


def _row(run: list[Decision]) -> tuple[str | Text, ...]:
    first, last = run[0], run[-1]
    by = last.operation
    why = plain(by.reason) if by is not None else cause_in_short(last)
    if len(run) > 1:
        why += f" ({many(len(run), 'window')} to {shaped(last.decided_at, SHAPE if _days(run) else '%H:%M:%S')})"
    said = Text(last.verdict, VERDICT_STYLE.get(last.verdict, ""))
    who = plain(by.actor) if by is not None else ""
    return shaped(first.decided_at, SHAPE), unit_name(first), said, why, who, short_id(last)


def _days(run: list[Decision]) -> bool:
    """Tell whether a run goes over midnight."""
    return len({decision.decided_at // 86_400_000 for decision in run}) > 1
