"""``tidegate replay``: decide from files, or from the topics."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from tidegate.schemas.errors import InputError
from tidegate.schemas.operation import Operation
from tidegate.schemas.signed import TrustedKeys
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit import recorded as past
from tidegate.streams.audit.compare import first_difference
from tidegate.streams.audit.conductor import conduct, counted_operations
from tidegate.streams.audit.replay import replay
from tidegate.streams.audit.topic_replay import TopicReplay
from tidegate.streams.commands.options import LogFile, Time, bars, lateness_option, pane_option
from tidegate.streams.commands.outcomes import OutcomeWriter
from tidegate.streams.dumps import records as dumps
from tidegate.streams.dumps.log import count_partitions, read_operations
from tidegate.streams.engine.tally import Tally
from tidegate.streams.kafka.manifests import load_trusted, read_files
from tidegate.streams.report.text import plain
from tidegate.streams.settings import Settings, command_settings

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
    "--events", type=LogFile(), multiple=True, help="NDJSON in log order, .gz allowed, or .parquet; - is standard input"
)
@click.option("--broker", help="read the topics of this Kafka instead of --events; nothing is written there")
@click.option(
    "--from",
    "start",
    type=Time(),
    help="with --broker: what was decided after this event time, such as 2026-01-31T12:00:00Z or now-2h",
)
@click.option("--to", "end", type=Time(), help="with --broker: telemetry that was written before this time")
@click.argument("more_events", nargs=-1, type=LogFile())
@click.option("--operations", type=LogFile(), help="kills and rearms, NDJSON or a dump")
@click.option("--partitions", type=click.IntRange(1, 10_000), default=1, show_default=True, help="of the topic")
@pane_option
@lateness_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="decisions, NDJSON")
@click.option("--commands", type=click.Path(path_type=Path), help="commands, NDJSON")
@click.option("--corrections", type=click.Path(path_type=Path), help="what late events would have changed, NDJSON")
@click.option(
    "--compare",
    type=LogFile(),
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
    pane: int | None,
    lateness: int | None,
    out: Path,
    commands: Path | None,
    corrections: Path | None,
    compare: Path | None,
) -> None:
    """Decide from files, or from the topics, what a worker would have decided, to the byte.

    A line is a bare event, or a record of a dump: {"partition": 0, "offset": 0, "timestamp": 0, "value": {…}}.
    Windows that the log does not close stay open: end the log with a tick to close them. An operation is
    {"kind", "flag", "ts", "actor", "reason"}, its kind kill, rearm, pause, resume or promote; it takes effect before
    the first decision whose end + lateness is past its ts.

    With --broker, telemetry, operations and, without --manifest, the signed revisions come from the topics. Operations
    stand where the gates' log has them or the recorded decisions put them, else by their ts. With --from, or where the
    first telemetry is gone, the work is taken up at checkpoints that the workers have retained.
    """
    paths = [*events, *more_events]
    for used in (*manifests, *paths, commands, corrections, compare, operations):
        if used is not None and _same(used, out):
            raise InputError(f"--out: {out} is also an input; writing decisions would overwrite it")
    made = OutcomeWriter(out, commands, corrections, keep=compare is not None, after=start)
    if broker is not None:
        if paths or operations is not None:
            raise InputError("--broker reads the topics: leave out --events and --operations")
        if start is not None and end is not None and end <= start:
            raise InputError("--to: not after --from, so nothing would be decided")
        settings = command_settings(broker=broker, trusted_keys=trusted_keys, pane=pane, lateness=lateness)
        _from_topics(settings, manifests, start, end, made, compare)
        return
    if not paths or not manifests:
        raise InputError(f"{'--manifest' if paths else '--events'} is missing; or give --broker")
    if start is not None or end is not None or compare == _TOPICS:
        raise InputError("--from, --to and --compare without a file need --broker")
    settings = command_settings(trusted_keys=trusted_keys, pane=pane, lateness=lateness)
    trusted = load_trusted(settings.trusted_keys) if settings.trusted_keys else None
    timeline = timeline_from(manifests, settings, trusted)
    ordered = operations_from(operations, settings, trusted) if operations else []
    with bars() as progress, made:
        size = sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".gz") or None
        counting = progress.add_task("finding partitions", total=size)
        partitions = count_partitions(paths, partitions, lambda n: progress.advance(counting, n))
        deciding = progress.add_task("deciding", total=progress.tasks[0].completed)
        advance = partial(progress.advance, deciding)
        tally = Tally()
        made.take(replay(paths, timeline, partitions, settings.clockwork, advance, ordered, made.correct, tally))
    made.tell(tally, timeline)
    if compare is not None:
        _compare(made, compare)


def _from_topics(
    settings: Settings,
    manifests: tuple[Path, ...],
    start: int | None,
    end: int | None,
    made: OutcomeWriter,
    compare: Path | None,
) -> None:
    again, timeline = decide_topics(settings, manifests, start, end, made)
    made.tell(again.tally, timeline)
    if compare == _TOPICS:
        _conclude(again.difference(made.decisions, made.orders), "the topics")
    elif compare is not None:
        _compare(made, compare)


def decide_topics(
    settings: Settings, manifests: tuple[Path, ...], start: int | None, end: int | None, made: OutcomeWriter
) -> tuple[TopicReplay, Timeline]:
    """Decide from the topics once more; says on standard output what of them is not there any more.

    Raises InputError where there are no revisions to decide by.
    """
    trusted = load_trusted(settings.trusted_keys) if settings.trusted_keys else None
    if trusted is None and not manifests:
        raise InputError("the revisions in the topic are signed: give --trusted-keys, or a --manifest")
    timeline = timeline_from(manifests, settings, trusted) if manifests else None
    with (
        conduct(settings, timeline, trusted, start, end, corrected=made.correct, tell=click.echo) as again,
        bars() as progress,
        made,
    ):
        deciding = progress.add_task("deciding", total=again.size)
        made.take(again.outcomes(partial(progress.advance, deciding)))
    return again.replay, again.timeline


def timeline_from(paths: Sequence[Path], settings: Settings, trusted: TrustedKeys | None) -> Timeline:
    """From a YAML file, signed revisions, or a dump of the manifests topic."""
    if len(paths) == 1 and dumps.is_dump(paths[0]):
        if trusted is None:
            raise InputError(f"{paths[0]}: signed, and no keys to verify it with; give --trusted-keys")
        return past.read_timeline(dumps.records(paths[0]), settings, trusted)
    return read_files(paths, settings, trusted)


def operations_from(path: Path, settings: Settings, trusted: TrustedKeys | None) -> list[Operation]:
    """From NDJSON, or from a dump of the operations topic, of which only those count that workers would take."""
    if dumps.is_dump(path):
        return list(counted_operations(dumps.records(path), settings, trusted, str(path), click.echo))
    return read_operations(path)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _compare(made: OutcomeWriter, other: Path) -> None:
    try:
        difference = first_difference(made.written, made.after.of(dumps.values(other)))
    except InputError as error:
        raise InputError(f"{other}: {error}") from None
    _conclude(difference, str(other))


def _conclude(difference: str | None, other: str) -> None:
    if difference is None:
        click.echo(f"the same bytes as {other}")
        return
    click.echo(plain(f"differs from {other}: {difference}"))
    raise SystemExit(1)
