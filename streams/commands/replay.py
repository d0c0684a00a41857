"""``tidegate replay``: decide from files."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import IO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from gates.unit import Clockwork
from schemas.errors import InputError, SettingsError
from schemas.manifest import parse_duration
from streams.manifests import load_trusted, read_files
from streams.replay import count_partitions, first_difference, read_lines, read_operations, replay
from streams.settings import load_settings


def _duration(_: click.Context, parameter: click.Parameter, value: str) -> int:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise SettingsError(f"--{parameter.name}: {error}") from None


@click.command()
@click.option(
    "--manifest",
    "manifests",
    type=click.Path(path_type=Path),
    required=True,
    multiple=True,
    help="the flags and their gates: one YAML file, or every signed revision",
)
@click.option("--trusted-keys", type=click.Path(path_type=Path), help="public keys to verify signed revisions with")
@click.option(
    "--events", type=click.Path(path_type=Path), required=True, multiple=True, help="NDJSON in log order, .gz allowed"
)
@click.argument("more_events", nargs=-1, type=click.Path(path_type=Path))
@click.option("--operations", type=click.Path(path_type=Path), help="kills and rearms, NDJSON")
@click.option("--partitions", type=click.IntRange(1, 10_000), default=1, show_default=True, help="of the topic")
@click.option("--pane", default="10s", show_default=True, callback=_duration, help="length of a pane")
@click.option("--lateness", default="10s", show_default=True, callback=_duration, help="wait for stragglers")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="decisions, NDJSON")
@click.option("--commands", type=click.Path(path_type=Path), help="commands, NDJSON")
@click.option("--compare", type=click.Path(path_type=Path), help="decisions to compare with; exit 1 if they differ")
def command(
    manifests: tuple[Path, ...],
    trusted_keys: Path | None,
    events: tuple[Path, ...],
    more_events: tuple[Path, ...],
    operations: Path | None,
    partitions: int,
    pane: int,
    lateness: int,
    out: Path,
    commands: Path | None,
    compare: Path | None,
) -> None:
    """Decide from files what a worker would have decided from the topic, to the byte.

    A line is a bare event, or a record of a dump: {"partition": 0, "offset": 0, "timestamp": 0, "value": {…}}.
    Windows that the log does not close stay open: end the log with a tick to close them. An operation is
    {"kind": "kill" or "rearm", "flag", "ts", "actor", "reason"}; it takes effect before the first decision whose end +
    lateness is past its ts.
    """
    if pane < 1:
        raise SettingsError("--pane: must be longer than 0")
    settings = load_settings(trusted_keys=trusted_keys)
    trusted = load_trusted(settings.trusted_keys) if settings.trusted_keys else None
    timeline = read_files(manifests, trusted, pane)
    ordered = read_operations(operations) if operations else []
    clockwork = Clockwork(pane, lateness, settings.telemetry_topic)
    paths = [*events, *more_events]
    for used in (*manifests, *paths, commands, compare, operations):
        if used is not None and _same(used, out):
            raise InputError(f"--out: {out} is used otherwise; decisions would be written over it")
    verdicts: Counter[str] = Counter()
    written, made = 0, list[bytes]()
    with _progress() as progress, _Output(out) as decisions, _Output(commands) as obeyed:
        size = sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".gz") or None
        counting = progress.add_task("finding partitions", total=size)
        partitions = count_partitions(paths, partitions, lambda n: progress.advance(counting, n))
        deciding = progress.add_task("deciding", total=progress.tasks[0].completed)
        advance = partial(progress.advance, deciding)
        for decision, order in replay(paths, timeline, partitions, clockwork, advance, ordered):
            verdicts[decision.verdict] += 1
            record = decision.to_bytes()
            decisions.write(record)
            if compare is not None:
                made.append(record)
            if order is not None:
                written += 1
                obeyed.write(order.to_bytes())
    told = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()) or "no window was closed"
    click.echo(f"{verdicts.total()} decisions ({told}), {written} commands")
    if compare is not None:
        _compare(made, compare)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _compare(made: list[bytes], other: Path) -> None:
    try:
        difference = first_difference(made, (line for *_, line in read_lines([other])))
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
            self._unfinished = self._path
            # A device or pipe is written to; only a plain file can be replaced.
            if self._path.is_file() or not self._path.exists():
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
            if self._unfinished is self._path:
                return
            if kind is None:
                self._unfinished.replace(self._path)
            else:
                self._unfinished.unlink()
