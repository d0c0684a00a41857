"""``tidegate replay``: decide from files."""

from collections import Counter
from pathlib import Path
from typing import IO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from gates.ramp import Clockwork
from schemas.errors import InputError, SettingsError
from schemas.manifest import parse_duration, read_manifest
from streams.replay import count_partitions, first_difference, read_lines, replay
from streams.settings import load_settings


def _duration(_: click.Context, parameter: click.Parameter, value: str) -> int:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise SettingsError(f"--{parameter.name}: {error}") from None


@click.command()
@click.option("--manifest", type=click.Path(path_type=Path), required=True, help="the flags and their gates (YAML)")
@click.option(
    "--events", type=click.Path(path_type=Path), required=True, multiple=True, help="NDJSON in log order, .gz allowed"
)
@click.argument("more_events", nargs=-1, type=click.Path(path_type=Path))
@click.option("--partitions", type=click.IntRange(1, 10_000), default=1, show_default=True, help="of the topic")
@click.option("--pane", default="10s", show_default=True, callback=_duration, help="length of a pane")
@click.option("--lateness", default="10s", show_default=True, callback=_duration, help="wait for stragglers")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="decisions, NDJSON")
@click.option("--commands", type=click.Path(path_type=Path), help="commands, NDJSON")
@click.option("--compare", type=click.Path(path_type=Path), help="decisions to compare with; exit 1 if they differ")
def command(
    manifest: Path,
    events: tuple[Path, ...],
    more_events: tuple[Path, ...],
    partitions: int,
    pane: int,
    lateness: int,
    out: Path,
    commands: Path | None,
    compare: Path | None,
) -> None:
    """Decide from files what a worker would have decided from the topic, to the byte.

    A line is a bare event, or a record of a dump: {"partition": 0, "offset": 0, "timestamp": 0, "value": {…}}.
    Windows that the log does not close stay open: end the log with a tick to close them.
    """
    if pane < 1:
        raise SettingsError("--pane: must be longer than 0")
    flags = read_manifest(manifest, pane_ms=pane).flags
    clockwork = Clockwork(pane, lateness, load_settings().telemetry_topic)
    paths = [*events, *more_events]
    verdicts: Counter[str] = Counter()
    written = 0
    with _progress() as progress, _Output(out) as decisions, _Output(commands) as ordered:
        size = sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".gz") or None
        counting = progress.add_task("finding partitions", total=size)
        partitions = count_partitions(paths, partitions, lambda n: progress.advance(counting, n))
        deciding = progress.add_task("deciding", total=progress.tasks[0].completed)
        for decision, order in replay(paths, flags, partitions, clockwork, lambda n: progress.advance(deciding, n)):
            verdicts[decision.verdict] += 1
            decisions.write(decision.to_bytes())
            if order is not None:
                written += 1
                ordered.write(order.to_bytes())
    told = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()) or "no window was closed"
    click.echo(f"{verdicts.total()} decisions ({told}), {written} commands")
    if compare is not None:
        _compare(out, compare)


def _compare(out: Path, other: Path) -> None:
    try:
        difference = first_difference(
            (line for *_, line in read_lines([out])), (line for *_, line in read_lines([other]))
        )
    except InputError as error:
        raise InputError(f"{other}: {error}") from None
    if difference is None:
        click.echo(f"the same bytes as {other}")
        return
    click.echo(f"differs from {other}: {difference}")
    raise SystemExit(1)


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class _Output:
    """Lines to a file that appears whole or not at all; None: to nowhere."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "_Output":
        if self._path is not None:
            self._unfinished = self._path.with_name(self._path.name + ".unfinished")
            try:
                self._file = self._unfinished.open("wb")
            except OSError as error:
                raise InputError(f"{self._path}: {error.strerror}") from None
        return self

    def write(self, record: bytes) -> None:
        """Append a record as a line."""
        if self._file is not None:
            self._file.write(record + b"\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None and self._path is not None:
            self._file.close()
            if kind is None:
                self._unfinished.replace(self._path)
            else:
                self._unfinished.unlink()
