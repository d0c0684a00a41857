"""Options that several commands share, and a bar for long work."""

import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from tidegate.schemas.duration import parse_duration
from tidegate.schemas.errors import SettingsError
from tidegate.schemas.times import read_moment


class Time(click.ParamType):
    """A moment, as ms since the epoch; see ``schemas.times.read_moment`` for what may be written."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read what was written. Raises SettingsError, naming the option."""
        try:
            return value if isinstance(value, int) else read_moment(value, int(time.time() * 1000))
        except ValueError as error:
            raise SettingsError(f"{_named(param)}: {error}") from None


class DurationType(click.ParamType):
    """A length of time, as ms: 500ms, 90s, 15m, 1h or 1d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read what was written. Raises SettingsError, naming the option."""
        try:
            return value if isinstance(value, int) else parse_duration(value)
        except ValueError as error:
            raise SettingsError(f"{_named(param)}: {error}") from None


class LogFile(click.Path):
    """A file of records to read: NDJSON, plain or packed, a dump in either form, or ``-`` for standard input."""

    name = "log"

    def __init__(self) -> None:
        super().__init__(path_type=Path, allow_dash=True)


def _named(param: click.Parameter | None) -> str:
    return param.opts[0] if param is not None else "time"


def _not_zero(_: click.Context, __: click.Parameter, value: int | None) -> int | None:
    if value == 0:
        raise SettingsError("--pane: must be longer than 0")
    return value


pane_option = click.option(
    "--pane", type=DurationType(), callback=_not_zero, help="length of a pane; otherwise TIDEGATE_PANE, 10s"
)
"""Milliseconds, or None."""
lateness_option = click.option(
    "--lateness", type=DurationType(), help="wait for stragglers; otherwise TIDEGATE_LATENESS, 10s"
)
"""Milliseconds, or None."""
wait_option = click.option(
    "--wait",
    type=DurationType(),
    default="10s",
    show_default=True,
    help="how long to wait for the decisions; 0s: not at all",
)
"""Milliseconds."""


def bars() -> Progress:
    """Bars on stderr, for people: nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, disable=not console.is_terminal)
