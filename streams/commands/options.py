"""What several commands share: options that are durations, and a bar for long work."""

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from schemas.errors import SettingsError
from schemas.manifest import parse_duration


def duration(_: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Milliseconds; as the callback of an option, None if it is not given. Raises SettingsError, naming it."""
    if value is None:
        return None
    try:
        return parse_duration(value)
    except ValueError as error:
        raise SettingsError(f"--{parameter.name}: {error}") from None


def bars() -> Progress:
    """Bars on stderr, for people: nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, disable=not console.is_terminal)
