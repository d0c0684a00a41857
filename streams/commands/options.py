"""What several commands share: options, and a bar for long work."""

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from schemas.errors import SettingsError
from schemas.manifest import parse_duration


def _duration(_: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_duration(value)
    except ValueError as error:
        raise SettingsError(f"--{parameter.name}: {error}") from None


def _pane(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    pane = _duration(context, parameter, value)
    if pane == 0:
        raise SettingsError("--pane: must be longer than 0")
    return pane


pane_option = click.option("--pane", callback=_pane, help="length of a pane; otherwise TIDEGATE_PANE, 10s")
"""Milliseconds, or None."""
lateness_option = click.option(
    "--lateness", callback=_duration, help="wait for stragglers; otherwise TIDEGATE_LATENESS, 10s"
)
"""Milliseconds, or None."""


def bars() -> Progress:
    """Bars on stderr, for people: nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, disable=not console.is_terminal)
