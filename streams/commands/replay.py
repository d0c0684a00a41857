"""``tidegate replay``: decide from files, or from the topics."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO

import click

from gates.unit import Clockwork
from schemas.correction import Correction
from schemas.errors import InputError, SettingsError
from schemas.operation import Operation
from schemas.signed import TrustedKeys
from schemas.timeline import Timeline
from streams import dumps, parquet
from streams import history as past
from streams.commands.options import bars, duration
from streams.commands.words import many, plain
from streams.manifests import load_trusted, read_files
from streams.replay import count_partitions, first_difference, read_lines, read_operations, replay
from streams.settings import Settings, load_settings
from streams.windows import Outcome

_TOPICS = Path("/ the topics")
"""Stands for --compare without a file."""


@click.command()
@click.option(
    "--manifest",
    "manifests",
    type=click.Path(path_type=Path),
    multiple=True,
    help="the flags and their gates: one YAML file, every signed revision, or a dump of the manifests topic",
)
@click.option("--trusted-keys", type=click.Path(path_type=Path), help="public keys to verify signed revisions with")
@click.option(
    "--events", type=click.Path(path_type=Path), multiple=True, help="NDJSON in log order, .gz allowed, or .parquet"
)
@click.option("--broker", help="read the topics of this Kafka instead of --events; nothing is written there")
@click.option("--from", "start", callback=past.moment, help="with --broker: ISO 8601 or ms; otherwise all that is kept")
@click.option("--to", "end", callback=past.moment, help="with --broker: records before this time")
@click.argument("more_events", nargs=-1, type=click.Path(path_type=Path))
@click.option("--operations", type=click.Path(path_type=Path), help="kills and rearms, NDJSON or a dump")
@click.option("--partitions", type=click.IntRange(1, 10_000), default=1, show_default=True, help="of the topic")
@click.option("--pane", default="10s", show_default=True, callback=duration, help="length of a pane")
@click.option("--lateness", default="10s", show_default=True, callback=duration, help="wait for stragglers")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="decisions, NDJSON")
@click.option("--commands", type=click.Path(path_type=Path), help="commands, NDJSON")
@click.option("--corrections", type=click.Path(path_type=Path), help="what late events would have changed, NDJSON")
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    is_flag=False,
    flag_value=str(_TOPICS),
    help="decisions to compare with, NDJSON or a dump; without a file: the topics of --broker; exit 1 if they differ",
)
def command(
    manifests: tuple[Path, ...],
    trusted_keys: Path | None,
    events: tuple[Path, ...],
    broker: str | None,
    start: int | None,
    end: int | None,
    more_events: tuple[Path, ...],
    operations: Path | None,
    partitions: int,
    pane: int,
    lateness: int,
    out: Path,
    commands: Path | None,
    corrections: Path | None,
    compare: Path | None,
) -> None:
    """Decide from files, or from the topics, what a worker would have decided, to the byte.

    A line is a bare event, or a record of a dump: {"partition": 0, "offset": 0, "timestamp": 0, "value": {…}}.
    Windows that the log does not close stay open: end the log with a tick to close them. An operation is
    {"kind": "kill" or "rearm", "flag", "ts", "actor", "reason"}; it takes effect before the first decision whose end +
    lateness is past its ts.

    With --broker, telemetry, operations and, without --manifest, the signed revisions come from the topics. Operations
    stand where the gates' log has them or the recorded decisions put them, else by their ts.
    """
    if pane < 1:
        raise SettingsError("--pane: must be longer than 0")
    paths = [*events, *more_events]
    for used in (*manifests, *paths, commands, corrections, compare, operations):
        if used is not None and _same(used, out):
            raise InputError(f"--out: {out} is used otherwise; decisions would be written over it")
    made = _Made(out, commands, corrections, keep=compare is not None)
    if broker is not None:
        if paths or operations is not None:
            raise InputError("--broker reads the topics: leave out --events and --operations")
        settings = load_settings(broker=broker, trusted_keys=trusted_keys, pane=pane, lateness=lateness)
        _from_topics(settings, manifests, start, end, made, compare)
        return
    if not paths or not manifests:
        raise InputError(f"{'--manifest' if paths else '--events'} is missing; or give --broker")
    if start is not None or end is not None or compare == _TOPICS:
        raise InputError("--from, --to and --compare without a file need --broker")
    settings = load_settings(trusted_keys=trusted_keys)
    trusted = load_trusted(settings.trusted_keys) if settings.trusted_keys else None
    timeline = _timeline(manifests, settings.model_copy(update={"pane": pane}), trusted)
    ordered = _operations(operations, trusted) if operations else []
    clockwork = Clockwork(pane, lateness, settings.telemetry_topic)
    with bars() as progress, made:
        size = sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".gz") or None
        counting = progress.add_task("finding partitions", total=size)
        partitions = count_partitions(paths, partitions, lambda n: progress.advance(counting, n))
        deciding = progress.add_task("deciding", total=progress.tasks[0].completed)
        advance = partial(progress.advance, deciding)
        made.take(replay(paths, timeline, partitions, clockwork, advance, ordered, made.correct))
    made.tell()
    if compare is not None:
        _compare(made.decisions, compare)


def _from_topics(
    settings: Settings,
    manifests: tuple[Path, ...],
    start: int | None,
    end: int | None,
    made: "_Made",
    compare: Path | None,
) -> None:
    trusted = load_trusted(settings.trusted_keys) if settings.trusted_keys else None
    if trusted is None and not manifests:
        raise InputError("the revisions in the topic are signed: give --trusted-keys, or a --manifest")
    with past.History(settings) as history:
        if manifests:
            timeline = _timeline(manifests, settings, trusted)
        else:
            assert trusted is not None  # noqa: S101 - checked above
            timeline = past.read_timeline(history.records(settings.manifests_topic), settings, trusted)
        ordered = settings.operations_topic
        operations = _counted(history.records(ordered, None, end) if history.has(ordered) else (), trusted, ordered)
        recorded = past.read_past(history, settings, click.echo, placed=bool(operations))
        seeds = recorded.seeds(start) if start is not None else {}
        asked = past.Asked(timeline, operations, settings.clockwork, start, recorded, seeds)
        # After the decisions: what they rest on is then there.
        extent = past.telemetry_extent(history, settings.telemetry_topic, start, end)
        _tell_range(extent, start, seeds)
        with bars() as progress, made:
            deciding = progress.add_task("deciding", total=extent.size)
            advance = partial(progress.advance, deciding)
            made.take(past.decide(history.read(extent), len(extent.bounds), asked, advance, made.correct))
    made.tell()
    if compare == _TOPICS:
        if start is not None:
            units = ", ".join(map(plain, sorted(seeds)))
            click.echo(f"compared: {units or 'nothing, as no recorded window starts late enough'}")
        _conclude(past.difference(made.decisions, made.orders, asked, part=end is not None), "the topics")
    elif compare is not None:
        _compare(made.decisions, compare)


def _timeline(paths: Sequence[Path], settings: Settings, trusted: TrustedKeys | None) -> Timeline:
    """From a YAML file, signed revisions, or a dump of the manifests topic."""
    if len(paths) == 1 and dumps.is_dump(paths[0]):
        if trusted is None:
            raise InputError(f"{paths[0]}: signed, and no keys to verify it with; give --trusted-keys")
        return past.read_timeline(dumps.records(paths[0]), settings, trusted)
    return read_files(paths, trusted, settings.pane)


def _operations(path: Path, trusted: TrustedKeys | None) -> list[Operation]:
    """From NDJSON, or from a dump of the operations topic, of which only those count that workers would take."""
    return _counted(dumps.records(path), trusted, str(path)) if dumps.is_dump(path) else read_operations(path)


def _counted(records: Iterable[dumps.Recorded], trusted: TrustedKeys | None, where: str) -> list[Operation]:
    operations, refused = past.read_orders(records, trusted)
    if refused:
        click.echo(f"{refused} records of {where} are no operations that count")
    return operations


def _tell_range(extent: past.Extent, start: int | None, seeds: dict[str, past.Seed]) -> None:
    if start is not None:
        click.echo(
            "starts in mid-history, without what came before, so the first windows may differ: sticky ids, repeats and "
            "baselines from before are not known"
        )
        for unit, seed in sorted(seeds.items()):
            click.echo(
                f"{plain(unit)}: from the recorded window that starts at {past.iso(seed.start)}, the first at or after "
                "--from + one window"
            )
    elif extent.cut:
        where = ", ".join(map(str, extent.cut))
        click.echo(f"history is cut: the first records of {extent.topic} are gone in partitions {where}")


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _compare(made: list[bytes], other: Path) -> None:
    try:
        difference = first_difference(made, _values(other))
    except InputError as error:
        raise InputError(f"{other}: {error}") from None
    _conclude(difference, str(other))


def _values(path: Path) -> Iterator[bytes]:
    if path.suffix == parquet.SUFFIX:
        return (value or b"" for *_, value in parquet.read(path))
    return (dumps.undumped(line) for *_, line in read_lines([path]))


def _conclude(difference: str | None, other: str) -> None:
    if difference is None:
        click.echo(f"the same bytes as {other}")
        return
    click.echo(plain(f"differs from {other}: {difference}"))
    raise SystemExit(1)


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


class _Made:
    """Outcomes on their way to files, counted; kept in memory too if they are to be compared."""

    def __init__(self, out: Path, commands: Path | None, corrections: Path | None, *, keep: bool) -> None:
        self._files = _Output(out), _Output(commands), _Output(corrections)
        self._keep = keep
        self._verdicts: Counter[str] = Counter()
        self._written = self._corrected = 0
        self.decisions: list[bytes] = []
        self.orders: list[bytes] = []

    def __enter__(self) -> "_Made":
        self._stack = ExitStack()
        with ExitStack() as stack:
            for file in self._files:
                stack.enter_context(file)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def take(self, outcomes: Iterator[Outcome]) -> None:
        """Write all of them."""
        decisions, commands, _ = self._files
        for decision, order in outcomes:
            self._verdicts[decision.verdict] += 1
            record = decision.to_bytes()
            decisions.write(record)
            if self._keep:
                self.decisions.append(record)
            if order is not None:
                self._written += 1
                commands.write(order.to_bytes())
                if self._keep:
                    self.orders.append(order.to_bytes())

    def correct(self, correction: Correction) -> None:
        """Write a correction."""
        self._files[2].write(correction.to_bytes())
        self._corrected += 1

    def tell(self) -> None:
        """Say how many there were."""
        told = ", ".join(f"{count} {verdict}" for verdict, count in self._verdicts.most_common())
        click.echo(f"{self._verdicts.total()} decisions ({told or 'no window was closed'}), {self._written} commands")
        if self._corrected:
            click.echo(f"{many(self._corrected, 'correction')}: late events would have changed a verdict")
