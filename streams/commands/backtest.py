"""``tidegate backtest``: what another manifest would have decided, and what chance alone decides."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.schemas.document import quoted
from tidegate.schemas.errors import InputError, SettingsError
from tidegate.schemas.manifest import Flag
from tidegate.schemas.times import DAY, iso
from tidegate.streams.backtest.arms import read_effect
from tidegate.streams.backtest.comparison import ComparedWindow, Difference, OrderMark, Side, compare, counted, placed
from tidegate.streams.commands.options import LogFile, bars, lateness_option, pane_option
from tidegate.streams.commands.plots import comparison_svg, lifetimes_svg, limit_text, value_text, word_of
from tidegate.streams.commands.rehearsal import Log, Rehearsal, rehearsals, tell_limits
from tidegate.streams.commands.replay import operations_from, timeline_from
from tidegate.streams.dumps.log import count_partitions
from tidegate.streams.kafka.manifests import load_trusted
from tidegate.streams.report.svg import moment
from tidegate.streams.report.terminal import VERDICT_STYLE, weight_percent
from tidegate.streams.report.text import many, plain
from tidegate.streams.settings import command_settings

TABLE_WIDTH = 150
"""Columns of the tables where there is no terminal to ask."""


@click.command()
@click.option(
    "--manifest",
    "manifests",
    type=click.Path(path_type=Path),
    required=True,
    multiple=True,
    help="A, whose ramp made the history; then B",
)
@click.option("--events", type=LogFile(), required=True, multiple=True, help="as `tidegate replay` takes them")
@click.argument("more_events", nargs=-1, type=LogFile())
@click.option("--aa", type=click.IntRange(1, 100_000), help="sham rollouts of the baseline against itself")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="of the sham arms")
@click.option(
    "--regression",
    "regressions",
    multiple=True,
    help="put on the sham canaries: error=0.02, latency=1.3, cost=1.2, delta_s=0.05 or coverage=-0.1",
)
@click.option("--operations", type=LogFile(), help="operators' orders in this history, NDJSON or a dump")
@click.option("--trusted-keys", type=click.Path(path_type=Path), help="public keys to verify signed manifests with")
@click.option("--partitions", type=click.IntRange(1, 10_000), default=1, show_default=True, help="of the topic")
@pane_option
@lateness_option
@click.option("--out", type=click.Path(path_type=Path), help="folder for the numbers and the plot (SVG)")
def command(
    manifests: tuple[Path, ...],
    events: tuple[Path, ...],
    more_events: tuple[Path, ...],
    aa: int | None,
    seed: int,
    regressions: tuple[str, ...],
    operations: Path | None,
    trusted_keys: Path | None,
    partitions: int,
    pane: int | None,
    lateness: int | None,
    out: Path | None,
) -> None:
    """Say what manifest B would have decided where manifest A decided, or how often chance alone stops a rollout.

    With two manifests: window by window, A's verdict, B's, and the gates and rules that make the difference. B is
    judged on the evidence that A's ramp produced. --operations: what operators ordered meanwhile, carried out on A's
    ramp as a replay does. Of a dump of revisions the last one is taken.

    With --aa N: splits the baseline's own history N times into sham arms that do not differ, and measures how often
    the manifest aborts or rolls back all the same. With --regression: how long such a fault would have lived. Two
    manifests are measured on the same splits.
    """
    if aa is None and regressions:
        raise SettingsError("--regression: is put on sham canaries; give --aa N, such as --aa 200")
    if len(manifests) > 2 or (aa is None and len(manifests) < 2):
        raise SettingsError(f"--manifest: given {many(len(manifests), 'time')}; give A and B, or with --aa only A")
    effects = [read_effect(text) for text in dict.fromkeys(regressions)]
    settings = command_settings(trusted_keys=trusted_keys, pane=pane, lateness=lateness)
    trusted = load_trusted(settings.trusted_keys) if settings.trusted_keys else None
    flags = [timeline_from([path], settings, trusted).revisions[-1].flags for path in manifests]
    if operations is not None and aa is not None:
        raise SettingsError("--operations: sham rollouts are made of the baseline alone, which no order changes")
    ordered = operations_from(operations, settings, trusted) if operations is not None else []
    clockwork = settings.clockwork
    paths = [*events, *more_events]
    if out is not None:
        _make_folder(out)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    with bars() as progress:
        size = sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".gz") or None
        counting = progress.add_task("finding partitions", total=size)
        partitions = count_partitions(paths, partitions, lambda n: progress.advance(counting, n))
        reading = progress.add_task("reading", total=progress.tasks[0].completed)
        log = Log(paths, partitions, clockwork, lambda n: progress.advance(reading, n))
        if aa is None:
            theirs, notes = _placed(*flags)
            marks: list[OrderMark] = []
            seen = compare(
                log.paths,
                flags[0],
                theirs,
                log.partitions,
                clockwork,
                log.progress,
                operations=ordered,
                marks=marks.append,
            )
            show = partial(_show_comparison, console, manifests, list(seen), marks, notes, out)
        else:
            found = rehearsals(log, manifests, flags, seed, aa, effects, progress)
            show = partial(_show_rehearsals, console, found, settings.lateness, out)
    show()


def _show_comparison(
    console: Console,
    manifests: Sequence[Path],
    windows: Sequence[ComparedWindow],
    marks: Sequence[OrderMark],
    notes: Sequence[str],
    out: Path | None,
) -> None:
    told = [f"{plain(m.unit)}: {m.kind} by {plain(m.actor)} at {iso(m.ts)}, on A's ramp" for m in marks]
    _tell_comparison(console, manifests, windows, [*notes, *told])
    if out is not None:
        lines = [msgspec.json.encode(_builtins(window)) for window in windows]
        plot = comparison_svg(windows, [path.name for path in manifests], marks)
        _write(out, {"windows.ndjson": b"".join(line + b"\n" for line in lines), "windows.svg": plot.encode()})


def _show_rehearsals(console: Console, found: Sequence["Rehearsal"], lateness: int, out: Path | None) -> None:
    for rehearsal in found:
        rehearsal.tell(console)
    tell_limits(console, found, lateness)
    if out is not None:
        rates = msgspec.json.format(msgspec.json.encode([rehearsal.builtins() for rehearsal in found]))
        _write(out, {"rates.json": rates + b"\n", "lifetimes.svg": lifetimes_svg(found).encode()})


def _placed(a: Mapping[str, Flag], b: Mapping[str, Flag]) -> tuple[dict[str, Flag], list[str]]:
    """B's flags in A's place, and what has to be said about them."""
    theirs, notes = {}, []
    for name in a:
        if name not in b:
            notes.append(f"{plain(name)} is not in B and is left out")
            continue
        theirs[name], left = placed(b[name], a[name])
        if left:
            notes.append(f"{plain(name)}: B's {', '.join(left)} would have made another history; A's are taken instead")
    if not theirs:
        raise InputError("A and B have no flag in common; compare two manifests of one flag")
    return theirs, notes


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        try:
            (folder / name).write_bytes(content)
        except OSError as error:
            raise InputError(f"{folder / name}: {error.strerror}") from None
    click.echo(f"wrote {' and '.join(str(folder / name) for name in files)}")


def difference_words(difference: Difference) -> str:
    """Return one difference in a line: the value, and each side's limit and word."""
    name, (seen_a, seen_b), (limit_a, limit_b) = difference.name, difference.observed, difference.limits
    said = [word.replace("_", " ") for word in difference.said]
    if set(difference.said) <= {"found", "fine"}:
        return f"{name}: only {'A' if difference.said[0] == 'found' else 'B'}"
    parts = [
        word if word == "no rule" else f"{limit_text(name, limit)} {word}"
        for word, limit in zip(said, (limit_a, limit_b), strict=True)
    ]
    if seen_a is None or seen_b is None or seen_a == seen_b:
        seen = seen_b if seen_a is None else seen_a
        return f"{name} {value_text(name, seen)}: A {parts[0]}, B {parts[1]}"
    return f"{name}: A {value_text(name, seen_a)} ({parts[0]}), B {value_text(name, seen_b)} ({parts[1]})"


def _tell_comparison(
    console: Console, manifests: Sequence[Path], windows: Sequence[ComparedWindow], notes: Sequence[str]
) -> None:
    if not windows:
        raise InputError("the events close no window of a flag that both manifests have; end the log with a tick")
    console.print(f"A is {manifests[0]}, B is {manifests[1]}", markup=False)
    console.print(
        "B is judged on the evidence that A's ramp produced: the weights of this history are what they were, also\n"
        "after a window in which B would have stopped."
    )
    for note in notes:
        console.print(note, markup=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("unit", "window (UTC)", "canary", "A", "B", "where they differ"):
        table.add_column(title, overflow="fold", no_wrap=title in ("window (UTC)", "canary"))
    for group in _runs(windows):
        first, last = group[0], group[-1]
        day = "" if first.start // DAY == last.end // DAY else "%m-%d "
        span = f"{moment(first.start)} – {moment(last.end, day + '%H:%M:%S')}"
        count = f"  {len(group)} windows" if len(group) > 1 else ""
        table.add_row(
            Text(quoted(first.unit)[1:-1]),
            span + count,
            weight_percent(first.weight),
            _said(first.a, first.end),
            _said(first.b, first.end),
            Text("\n".join(_why(first))),
        )
    console.print(table)
    console.print(summary(windows), markup=False)


def _runs(windows: Sequence[ComparedWindow]) -> list[list[ComparedWindow]]:
    """Windows in the order of units and time; neighbours in which both say the same thing together."""

    def key(indexed: tuple[int, ComparedWindow]) -> object:
        at, window = indexed
        if window.differences or not window.same or window.a is None:
            return at
        return window.unit, window.weight, window.a.verdict, tuple(window.a.reasons), window.a.at == window.end

    ordered = sorted(windows, key=lambda window: (window.unit, window.start))
    return [[window for _, window in group] for _, group in groupby(enumerate(ordered), key)]


def _why(window: ComparedWindow) -> list[str]:
    lines = [difference_words(difference) for difference in window.differences]
    if not lines and not window.same:
        sides = (("A", window.a), ("B", window.b))
        lines = [f"{name}: {', '.join(side.reasons)}" for name, side in sides if side is not None]
    return lines


def summary(windows: Sequence[ComparedWindow]) -> str:
    """Summarize how many windows are judged the same, and what the others turn from and into."""
    differ = [window for window in windows if not window.same]
    of, apart = counted(windows), counted(differ)
    if not differ:
        more = counted(window for window in windows if window.differences)
        close = f"; in {more:,} of them single gates or rules do not agree" if more else ""
        return f"{many(of, 'window')}: A and B say the same in all of them{close}"
    told = ", ".join(f"{count:,} × {turn}" for turn, count in Counter(map(_turn, differ)).most_common())
    return f"{many(of, 'window')}: the same in {of - apart:,}, not in {apart:,} ({told})"


def _turn(window: ComparedWindow) -> str:
    a, b = window.a, window.b
    if a is not None and b is not None and a.verdict == b.verdict:
        return f"{a.verdict}, {'sooner' if b.at < a.at else 'later'} under B"
    return f"{word_of(a)} → {word_of(b)}"


def _said(side: Side | None, end: int) -> Text:
    if side is None:
        return Text("goes on", style="dim")
    early = f" at {moment(side.at, '%H:%M:%S')}" if side.at != end else ""
    return Text(side.verdict + early, style=VERDICT_STYLE.get(side.verdict, ""))


def _builtins(window: ComparedWindow) -> dict[str, Any]:
    def side(of: Side | None) -> dict[str, Any] | None:
        return None if of is None else {"verdict": of.verdict, "reasons": of.reasons, "decided_at": of.at}

    return {
        "unit": window.unit,
        "start": window.start,
        "end": window.end,
        "canary_weight": window.weight,
        "a": side(window.a),
        "b": side(window.b),
        "same": window.same,
        "differences": [msgspec.to_builtins(difference) for difference in window.differences],
    }
