"""``tidegate backtest``: what another manifest would have decided, and what chance alone decides."""

import html
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gates.unit import Clockwork
from schemas.document import cut
from schemas.errors import InputError, SettingsError
from schemas.manifest import LESS_IS_LOOSER, Flag, parse_duration
from streams.backtest import (
    BUCKETS,
    Difference,
    Effect,
    Lifetime,
    Outcomes,
    Rate,
    Side,
    Window,
    aggregate,
    buckets_for,
    compare,
    lifetime,
    outcomes,
    placed,
    read_effect,
    rehearse,
    sham_flag,
    starts,
)
from streams.commands.screen import VERDICT_STYLE, percent
from streams.commands.words import many, number, plain
from streams.manifests import load_trusted, read_files
from streams.replay import count_partitions
from streams.settings import load_settings

WIDTH = 150
"""Columns of the tables where there is no terminal to ask."""
_SHARES = ("latency", "error", "tool", "cost", "lambda_flip", "reason_failure")
_CHANGES = ("delta_s", "latency", "cost")
DAY = 86_400_000


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
    help="A, whose ramp made the history; then B",
)
@click.option(
    "--events", type=click.Path(path_type=Path), required=True, multiple=True, help="NDJSON in log order, .gz allowed"
)
@click.argument("more_events", nargs=-1, type=click.Path(path_type=Path))
@click.option("--aa", type=click.IntRange(1, 100_000), help="sham rollouts of the baseline against itself")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="of the sham arms")
@click.option(
    "--regression",
    "regressions",
    multiple=True,
    help="put on the sham canaries: error=0.02, latency=1.3, cost=1.2, delta_s=0.05 or coverage=-0.1",
)
@click.option("--trusted-keys", type=click.Path(path_type=Path), help="public keys to verify signed manifests with")
@click.option("--partitions", type=click.IntRange(1, 10_000), default=1, show_default=True, help="of the topic")
@click.option("--pane", default="10s", show_default=True, callback=_duration, help="length of a pane")
@click.option("--lateness", default="10s", show_default=True, callback=_duration, help="wait for stragglers")
@click.option("--out", type=click.Path(path_type=Path), help="folder for the numbers and the plot (SVG)")
def command(
    manifests: tuple[Path, ...],
    events: tuple[Path, ...],
    more_events: tuple[Path, ...],
    aa: int | None,
    seed: int,
    regressions: tuple[str, ...],
    trusted_keys: Path | None,
    partitions: int,
    pane: int,
    lateness: int,
    out: Path | None,
) -> None:
    """Say what manifest B would have decided where manifest A decided, or how often chance alone stops a rollout.

    With two manifests: window by window, A's verdict, B's, and the gates and rules that make the difference. B is
    judged on the evidence that A's ramp produced.

    With --aa N: splits the baseline's own history N times into sham arms that do not differ, and measures how often
    the manifest aborts or rolls back all the same. With --regression: how long such a fault would have lived. Two
    manifests are measured on the same splits.
    """
    if pane < 1:
        raise SettingsError("--pane: must be longer than 0")
    if aa is None and regressions:
        raise SettingsError("--regression: is put on sham canaries; give --aa N, such as --aa 200")
    if len(manifests) > 2 or (aa is None and len(manifests) < 2):
        raise SettingsError(f"--manifest: given {many(len(manifests), 'time')}; give A and B, or with --aa only A")
    effects = [read_effect(text) for text in dict.fromkeys(regressions)]
    settings = load_settings(trusted_keys=trusted_keys)
    trusted = load_trusted(settings.trusted_keys) if settings.trusted_keys else None
    flags = [read_files([path], trusted, pane).revisions[-1].flags for path in manifests]
    clockwork = Clockwork(pane, lateness, settings.telemetry_topic)
    paths = [*events, *more_events]
    if out is not None:
        _make_folder(out)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    with _progress() as progress:
        size = sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".gz") or None
        counting = progress.add_task("finding partitions", total=size)
        partitions = count_partitions(paths, partitions, lambda n: progress.advance(counting, n))
        reading = progress.add_task("reading", total=progress.tasks[0].completed)
        log = _Log(paths, partitions, clockwork, lambda n: progress.advance(reading, n))
        if aa is None:
            theirs, notes = _placed(*flags)
            windows = list(compare(log.paths, flags[0], theirs, log.partitions, clockwork, log.progress))
            show = partial(_show_comparison, console, manifests, windows, notes, out)
        else:
            found = _rehearsals(log, manifests, flags, seed, aa, effects, progress)
            show = partial(_show_rehearsals, console, found, lateness, out)
    show()


@dataclass(frozen=True)
class _Log:
    """Where the events are and how they are read."""

    paths: Sequence[Path]
    partitions: int
    clockwork: Clockwork
    progress: Callable[[int], None]


def _show_comparison(
    console: Console, manifests: Sequence[Path], windows: Sequence[Window], notes: Sequence[str], out: Path | None
) -> None:
    _tell_comparison(console, manifests, windows, notes)
    if out is not None:
        lines = [msgspec.json.encode(_builtins(window)) for window in windows]
        plot = comparison_svg(windows, [path.name for path in manifests])
        _write(out, {"windows.ndjson": b"".join(line + b"\n" for line in lines), "windows.svg": plot.encode()})


def _show_rehearsals(console: Console, found: Sequence["Rehearsal"], lateness: int, out: Path | None) -> None:
    for rehearsal in found:
        rehearsal.tell(console)
    _tell_limits(console, found, lateness)
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


def _check_scopes(flags: Sequence[Mapping[str, Flag]]) -> None:
    for name, flag in flags[0].items():
        for other in flags[1:]:
            if name in other and other[name].scope != flag.scope:
                raise InputError(f"flag {name} has another scope in B; measure the two manifests one by one")


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


def _value(name: str, value: float | bool | None) -> str:
    """A gate's or rule's number in its unit."""
    if value is None:
        return "?"
    if isinstance(value, bool):
        return "all"
    if name.startswith(_SHARES) or name == "lambda_convergent":
        sign = "+" if name.startswith(_CHANGES) and value > 0 else ""
        return f"{sign}{number(round(100 * value, 10))} %"
    sign = "+" if name.startswith(_CHANGES) and value > 0 else ""
    return f"{sign}{number(value)}"


def _limit(name: str, value: float | bool | None) -> str:
    if value is None or isinstance(value, bool):
        return "off" if value is None else "all"
    gate = not name.endswith(("_over", "_under", "_budget", "_full"))
    low = name in LESS_IS_LOOSER
    sign = ("≥" if low else "≤") if gate else ("<" if low else ">")
    shown = f"{number(round(100 * value, 10))} %" if name.startswith(_SHARES) else number(value)
    return f"{sign} {shown}"


def difference_words(difference: Difference) -> str:
    """One difference in a line: the value, and each side's limit and word."""
    name, (seen_a, seen_b), (limit_a, limit_b) = difference.name, difference.observed, difference.limits
    said = [word.replace("_", " ") for word in difference.said]
    if set(difference.said) <= {"found", "fine"}:
        return f"{name}: only {'A' if difference.said[0] == 'found' else 'B'}"
    parts = [
        word if word == "no rule" else f"{_limit(name, limit)} {word}"
        for word, limit in zip(said, (limit_a, limit_b), strict=True)
    ]
    if seen_a is None or seen_b is None or seen_a == seen_b:
        seen = seen_b if seen_a is None else seen_a
        return f"{name} {_value(name, seen)}: A {parts[0]}, B {parts[1]}"
    return f"{name}: A {_value(name, seen_a)} ({parts[0]}), B {_value(name, seen_b)} ({parts[1]})"


def _tell_comparison(
    console: Console, manifests: Sequence[Path], windows: Sequence[Window], notes: Sequence[str]
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
        span = f"{_moment(first.start)} – {_moment(last.end, day + '%H:%M:%S')}"
        count = f"  {len(group)} windows" if len(group) > 1 else ""
        table.add_row(
            Text(cut(first.unit)[1:-1]),
            span + count,
            percent(first.weight),
            _said(first.a, first.end),
            _said(first.b, first.end),
            Text("\n".join(_why(first))),
        )
    console.print(table)
    console.print(summary(windows), markup=False)


def _runs(windows: Sequence[Window]) -> list[list[Window]]:
    """Windows in the order of units and time; neighbours in which both say the same thing together."""

    def key(indexed: tuple[int, Window]) -> object:
        at, window = indexed
        if window.differences or not window.same or window.a is None:
            return at
        return window.unit, window.weight, window.a.verdict, tuple(window.a.reasons), window.a.at == window.end

    ordered = sorted(windows, key=lambda window: (window.unit, window.start))
    return [[window for _, window in group] for _, group in groupby(enumerate(ordered), key)]


def _why(window: Window) -> list[str]:
    lines = [difference_words(difference) for difference in window.differences]
    if not lines and not window.same:
        sides = (("A", window.a), ("B", window.b))
        lines = [f"{name}: {', '.join(side.reasons)}" for name, side in sides if side is not None]
    return lines


def summary(windows: Sequence[Window]) -> str:
    """How many windows are judged the same, and what the others turn from and into."""
    differ = [window for window in windows if not window.same]
    same = len(windows) - len(differ)
    if not differ:
        more = sum(bool(window.differences) for window in windows)
        close = f"; in {more:,} of them single gates or rules do not agree" if more else ""
        return f"{many(len(windows), 'window')}: A and B say the same in all of them{close}"
    told = ", ".join(f"{count:,} × {turn}" for turn, count in Counter(map(_turn, differ)).most_common())
    return f"{many(len(windows), 'window')}: the same in {same:,}, not in {len(differ):,} ({told})"


def _turn(window: Window) -> str:
    a, b = window.a, window.b
    if a is not None and b is not None and a.verdict == b.verdict:
        return f"{a.verdict}, {'sooner' if b.at < a.at else 'later'} under B"
    return f"{_word(a)} → {_word(b)}"


def _word(side: Side | None) -> str:
    return side.verdict if side else "goes on"


def _said(side: Side | None, end: int) -> Text:
    if side is None:
        return Text("goes on", style="dim")
    early = f" at {_moment(side.at, '%H:%M:%S')}" if side.at != end else ""
    return Text(side.verdict + early, style=VERDICT_STYLE.get(side.verdict, ""))


def _moment(ts: int, shape: str = "%m-%d %H:%M:%S") -> str:
    """A moment of event time, UTC; as it is where no calendar has it."""
    try:
        return f"{datetime.fromtimestamp(ts / 1000, UTC):{shape}}"
    except (ValueError, OverflowError, OSError):
        return f"{ts} ms"


def _builtins(window: Window) -> dict[str, Any]:
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


@dataclass(frozen=True)
class Rehearsal:
    """The sham rollouts of one unit under one manifest, counted.

    ``moments``: where a rollout could begin. ``days``, ``requests``: the size of the baseline's history; ``gold``:
    whether the gold set is in it. ``lifetimes``: by regression; None: without one.
    """

    unit: str
    manifest: Path
    flag: Flag
    moments: int
    days: float
    requests: int
    gold: bool
    healthy: Outcomes
    lifetimes: Mapping[Effect | None, Lifetime]

    def tell(self, console: Console) -> None:
        """Print the rates and lifetimes."""
        stages, healthy = self.flag.ramp_stages, self.healthy
        shares = ", ".join(f"{buckets_for(stage)} ({percent(stage)})" for stage in stages)
        console.print(Text(f"{cut(self.unit)[1:-1]} under {self.manifest}", style="bold"))
        console.print(
            f"{many(healthy.passed.of, 'sham rollout')} on {number(self.days)} days of the baseline, "
            f"{many(self.requests, 'request')}, from {many(self.moments, 'moment')}; "
            f"buckets of {BUCKETS} in the canary by stage: {shares}"
        )
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("without a regression")
        for title in ("rollouts", "rate", "exact 95 % interval"):
            table.add_column(title, justify="right")
        table.add_column("")
        alpha = f"early_abort_alpha is {percent(self.flag.policy.early_abort_alpha)}"
        for what, rate, note in (
            ("aborted early", healthy.aborted_early, alpha),
            ("aborted at a window's end", healthy.aborted_at_end, ""),
            ("rolled back", healthy.rolled_back, ""),
            ("frozen on the way", healthy.frozen, ""),
            ("passed the last stage", healthy.passed, ""),
            ("open when the history ended", healthy.open, ""),
        ):
            table.add_row(what, f"{rate.count:,}", _percent(rate.value), _interval(rate), Text(note, style="dim"))
        console.print(table)
        aborts = Rate(healthy.aborted_early.count + healthy.aborted_at_end.count, healthy.passed.of)
        console.print(
            f"False aborts {_percent(aborts.value)} ({_interval(aborts)}), "
            f"false rollbacks {_percent(healthy.rolled_back.value)} ({_interval(healthy.rolled_back)})"
        )
        if healthy.causes:
            console.print("Behind them: " + ", ".join(f"{name} {count:,}" for name, count in healthy.causes.items()))
        regressions = {effect: life for effect, life in self.lifetimes.items() if effect is not None}
        if regressions:
            console.print(_lifetimes_table(regressions))
        console.print()

    def builtins(self) -> dict[str, Any]:
        """The numbers, for a file."""
        lives = {effect.text if effect else "none": life for effect, life in self.lifetimes.items()}
        return {
            "unit": self.unit,
            "manifest": str(self.manifest),
            "manifest_hash": self.flag.manifest_hash,
            "rollouts": self.healthy.passed.of,
            "healthy": {
                name: {"count": rate.count, "rate": rate.value, "interval": rate.interval}
                for name, rate in vars(self.healthy).items()
                if isinstance(rate, Rate)
            },
            "causes": self.healthy.causes,
            "regressions": [
                {
                    "regression": name,
                    "caught_by": life.by,
                    "median_ms": life.median,
                    "p90_ms": life.p90,
                    "never_caught": {
                        "count": life.missed.count,
                        "rate": life.missed.value,
                        "interval": life.missed.interval,
                    },
                }
                for name, life in lives.items()
                if name != "none"
            ],
        }


def _rehearsals(
    log: _Log,
    manifests: Sequence[Path],
    flags: Sequence[Mapping[str, Flag]],
    seed: int,
    n: int,
    effects: Sequence[Effect],
    progress: Progress,
) -> list[Rehearsal]:
    """The events read once; then every unit under every manifest."""
    _check_scopes(flags)
    ramps = [{name: flag for name, flag in known.items() if flag.kind == "progressive_rollout"} for known in flags]
    if not ramps[0]:
        raise InputError(f"{manifests[0]} has no progressive rollout; sham rollouts are made of those only")
    history = aggregate(log.paths, ramps[0], log.partitions, log.clockwork, seed, log.progress)
    try:
        pairs = [
            (unit, manifest, known[unit.split("|", 1)[0]])
            for unit in history.units
            for manifest, known in zip(manifests, ramps, strict=True)
            if unit.split("|", 1)[0] in known
        ]
        pairs = [(unit, manifest, flag) for unit, manifest, flag in pairs if history.covers(unit, flag)]
        if not pairs:
            raise InputError("the events close no window of a baseline; end the log with a tick, or check --manifest")
        judging = progress.add_task("judging", total=n * len(pairs))
        found = []
        for unit, manifest, flag in pairs:
            rollouts = rehearse(history, unit, flag, log.clockwork, n, effects, lambda: progress.advance(judging, 1))
            moments = len(starts(history, unit, sham_flag(flag), log.clockwork))
            lives = {effect: lifetime(rows, log.clockwork.lateness_ms) for effect, rows in rollouts.items()}
            found.append(
                Rehearsal(
                    unit=unit,
                    manifest=manifest,
                    flag=flag,
                    moments=moments,
                    days=(history.end - history.first(unit)) / DAY,
                    requests=history.requests[unit],
                    gold=unit in history.gold,
                    healthy=outcomes(rollouts[None]),
                    lifetimes=lives,
                )
            )
        return found
    finally:
        history.close()


def _lifetimes_table(lifetimes: Mapping[Effect, Lifetime]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("regression")
    table.add_column("caught by")
    for title in ("median", "p90", "never caught", "exact 95 % interval"):
        table.add_column(title, justify="right")
    for effect, life in lifetimes.items():
        by = ", ".join(f"{verdict} {count:,}" for verdict, count in life.by.items()) or "nothing"
        times = (_minutes(ms) for ms in (life.median, life.p90))
        table.add_row(effect.text, by, *times, _percent(life.missed.value), _interval(life.missed))
    return table


def _tell_limits(console: Console, found: Sequence[Rehearsal], lateness: int) -> None:
    lines = [
        "Only metrics are judged: sticky ids, sample ratio, pins, late events and dead letters of a sham canary would "
        "be the split's own.",
        "Rollouts of one history overlap in time and in users; the intervals take them as independent.",
    ]
    if any(rehearsal.gold for rehearsal in found):
        lines.append(
            "Both sham arms are given the whole gold set, probes included: what is read from gold cannot differ by "
            "chance here."
        )
    if any(rehearsal.flag.traffic.shadow for rehearsal in found):
        lines.append("The shadow stage is left out: nobody mirrors requests to a sham canary.")
    if any(len(rehearsal.lifetimes) > 1 for rehearsal in found):
        lines.append(
            "A regression lives from the sham canary's first request to the first abort, freeze or rollback, "
            f"{lateness / 1000:g} s of lateness included; median and p90 are over all rollouts, "
            "caught or not."
        )
    for line in lines:
        console.print(line, style="dim", markup=False)


def _percent(share: float) -> str:
    return f"{number(round(100 * share, 2))} %"


def _interval(rate: Rate) -> str:
    low, high = rate.interval
    return f"{100 * low:.2f} – {100 * high:.2f} %"


def _minutes(ms: int | None) -> str:
    return "not caught" if ms is None else f"{ms / 60_000:.1f} min"


COLOURS = {
    "promote": "#2f9e62",
    "pass": "#2f9e62",
    "open": "#2f9e62",
    "restore": "#2f9e62",
    "rearm": "#2f9e62",
    "hold": "#e3b341",
    "freeze": "#e8833a",
    "degrade": "#e8833a",
    "fallback": "#e8833a",
    "close": "#c8372d",
    "rollback": "#c8372d",
    "abort": "#8f1d1d",
    "kill": "#8f1d1d",
    "goes on": "#dbe1e8",
}
DARK_TEXT = ("hold", "goes on")
A_COLOUR, B_COLOUR, BOTH_COLOUR, INK, FAINT, GRID = "#1f6fb2", "#8b3fb0", "#c8372d", "#1f2933", "#6b7785", "#e4e8ed"
CURVES = ("#c8372d", "#1f6fb2", "#2f9e62", "#e8833a", "#8b3fb0", "#0f8b8d", "#b5651d", "#5b6470")
WIDE, LEFT, RIGHT = 1180, 120, 1010
"""Width of the plot, and where its axes run from and to."""
UNITS_SHOWN = 12
_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200)
_DAYS = (1, 2, 7, 14, 30, 90, 365)


class Canvas:
    """An SVG document that grows downwards."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.height = 0.0

    def add(self, tag: str, text: str | None = None, **attributes: object) -> None:
        """An element; an underscore in an attribute's name is a hyphen."""
        shown = " ".join(f'{name.replace("_", "-")}="{_attribute(value)}"' for name, value in attributes.items())
        inner = "" if text is None else html.escape(plain(text))
        self._parts.append(f"<{tag} {shown}>{inner}</{tag}>" if text is not None else f"<{tag} {shown}/>")

    def text(self, x: float, y: float, text: str, size: int = 12, fill: str = INK, **more: Any) -> None:
        """Words with their base line at ``y``."""
        self.add("text", text, x=x, y=y, font_size=size, fill=fill, **more)

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str, **more: Any) -> None:
        """A straight line."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, **more)

    def svg(self) -> str:
        """The document."""
        height = round(self.height)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {height}" width="{WIDE}" height="{height}" '
            'font-family="Inter, Helvetica Neue, Helvetica, Arial, DejaVu Sans, sans-serif">\n'
            f'<rect width="{WIDE}" height="{height}" fill="#ffffff"/>\n' + "\n".join(self._parts) + "\n</svg>\n"
        )


def _attribute(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else html.escape(str(value))


def comparison_svg(windows: Sequence[Window], names: Sequence[str]) -> str:
    """Both manifests' verdicts over time, and below them the metric that decides between the two, unit by unit."""
    canvas = Canvas()
    canvas.text(LEFT, 34, "What B would have decided where A decided", 18, font_weight="600")
    for at, letter, colour, name in ((LEFT, "A", A_COLOUR, names[0]), (LEFT + 400, "B", B_COLOUR, names[1])):
        canvas.text(at, 56, letter, 13, colour, font_weight="700")
        canvas.text(at + 16, 56, cut(name)[1:-1], 13, FAINT)
    words = dict.fromkeys(_word(side) for window in windows for side in (window.a, window.b))
    x = float(LEFT)
    for word in sorted(words, key=list(COLOURS).index):
        canvas.add("rect", x=x, y=72, width=12, height=12, rx=2, fill=COLOURS[word])
        canvas.text(x + 17, 82, word, 12, FAINT)
        x += 17 + 7 * len(word) + 22
    canvas.height = 104
    units = {unit: list(group) for unit, group in groupby(sorted(windows, key=_place), key=lambda w: w.unit)}
    most = sorted(units, key=lambda unit: (-sum(not w.same for w in units[unit]), unit))[:UNITS_SHOWN]
    for unit in sorted(most):
        _draw_unit(canvas, unit, units[unit])
    if len(units) > len(most):
        canvas.text(LEFT, canvas.height + 10, f"{many(len(units) - len(most), 'unit')} more, with fewer differences")
        canvas.height += 30
    return canvas.svg()


def _place(window: Window) -> tuple[str, int]:
    return window.unit, window.start


def _draw_unit(canvas: Canvas, unit: str, windows: Sequence[Window]) -> None:
    top, start, end = canvas.height, windows[0].start, max(window.end for window in windows)

    def x(ts: float) -> float:
        return LEFT + (RIGHT - LEFT) * (ts - start) / max(end - start, 1)

    differ = sum(not window.same for window in windows)
    canvas.text(LEFT, top + 16, cut(unit)[1:-1], 14, font_weight="600")
    told = f"{many(len(windows), 'window')}, {f'{differ:,} differ' if differ else 'no difference'}"
    canvas.text(RIGHT, top + 16, told, 12, FAINT, text_anchor="end")
    weight: float | None = None
    for window in windows:
        if window.weight != weight and window.weight > 0:
            canvas.text(x(window.start) + 2, top + 36, percent(window.weight), 10, FAINT)
        weight = window.weight
    for y, letter, colour in ((top + 42, "A", A_COLOUR), (top + 72, "B", B_COLOUR)):
        canvas.text(LEFT - 14, y + 17, letter, 14, colour, font_weight="700", text_anchor="end")
        for window in windows:
            _draw_verdict(canvas, x, y, window, window.a if letter == "A" else window.b)
    name = deciding(windows)
    bottom = top + 104
    if name is not None:
        _draw_metric(canvas, x, top + 132, 150, name, windows)
        bottom = top + 282
    _draw_times(canvas, x, start, end, top + 40, bottom)
    canvas.height = bottom + 56


def _draw_verdict(canvas: Canvas, x: Callable[[float], float], y: float, window: Window, side: Side | None) -> None:
    """A window in its verdict's colour; what lies before an early end was still open."""
    word, left, right = _word(side), x(window.start), x(window.end)
    right = max(right - (1.5 if right - left > 6 else 0.0), left + 0.5)
    if side is not None and side.at < window.end:
        canvas.add("rect", x=left, y=y, width=x(side.at) - left, height=24, fill=COLOURS["goes on"])
        left = min(x(side.at), right - 0.5)
    canvas.add("rect", x=left, y=y, width=right - left, height=24, rx=min(3.0, (right - left) / 4), fill=COLOURS[word])
    if right - left >= 7 * len(word) + 6:
        colour = INK if word in DARK_TEXT else "#ffffff"
        canvas.text((left + right) / 2, y + 16, word, 12, colour, text_anchor="middle")


def deciding(windows: Sequence[Window]) -> str | None:
    """The gate or rule on which A and B part most often; else the gate that came closest to A's limit."""
    parted = Counter(d.name for w in windows for d in w.differences if d.limits != (None, None))
    measured = [(count, name) for name, count in parted.items() if _series(windows, name)]
    if measured:
        return max(measured, key=lambda found: found[0])[1]
    nearest: dict[str, float] = {}
    for window in windows:
        for gate in window.a.gates if window.a else ():
            limit = gate.threshold
            if gate.observed is not None and limit and not isinstance(limit, bool):
                used = limit / gate.observed if gate.gate in LESS_IS_LOOSER and gate.observed else gate.observed / limit
                nearest[gate.gate] = max(used, nearest.get(gate.gate, used))
    return max(nearest, key=lambda name: nearest[name]) if nearest else None


def _series(windows: Sequence[Window], name: str) -> list[tuple[Window, int, float]]:
    """Window, moment and value of a gate or rule, wherever it is known."""
    found = []
    for window in windows:
        for side in (window.a, window.b):
            seen = _of(side, name)[0]
            if side is not None and seen is not None:
                found.append((window, side.at, float(seen)))
                break
    return found


def _of(side: Side | None, name: str) -> tuple[float | None, float | bool | None]:
    """What a side saw of a gate or rule, and its limit."""
    for gate in side.gates if side else ():
        if gate.gate == name:
            return gate.observed, gate.threshold
    for rule in side.rules if side else ():
        if rule.kind == name:
            return rule.observed, rule.value
    return None, None


def _limit_of(windows: Sequence[Window], name: str, letter: str) -> float | None:
    sides = [window.a if letter == "A" else window.b for window in windows]
    limits = [limit for side in sides if (limit := _of(side, name)[1]) is not None]
    return float(limits[-1]) if limits else None


def _draw_metric(
    canvas: Canvas, x: Callable[[float], float], top: float, height: float, name: str, windows: Sequence[Window]
) -> None:
    series = _series(windows, name)
    limits = {letter: _limit_of(windows, name, letter) for letter in "AB"}
    known = [limit for limit in limits.values() if limit is not None]
    values = [value for *_, value in series] + known
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) * 0.15
    low, high = (0.0 if 0 <= low < room else low - room), high + room
    ticks = round_numbers(low, high)

    def y(value: float) -> float:
        return top + height * (high - value) / (high - low)

    canvas.add("rect", x=LEFT, y=top, width=RIGHT - LEFT, height=height, fill="#fafbfc", stroke=GRID)
    for tick in ticks:
        canvas.line(LEFT, y(tick), RIGHT, y(tick), GRID)
        canvas.text(LEFT - 8, y(tick) + 4, _value(name, tick), 11, FAINT, text_anchor="end")
    canvas.text(LEFT, top - 9, name, 12, INK, font_weight="600")
    _draw_limits(canvas, y, name, limits, top, height)
    points = [(x((window.start + at) / 2), y(value), window, value) for window, at, value in series]
    for one, other in pairwise(points):
        length = one[2].end - one[2].start
        if other[2].start - one[2].end <= length:
            canvas.line(one[0], one[1], other[0], other[1], "#8593a3", stroke_width=1.5)
    size, at = 4 if len(points) <= 120 else 2, RIGHT
    colours = [_point(window, name) for _, _, window, _ in points]
    for (px, py, *_), colour in zip(points, colours, strict=True):
        canvas.add("circle", cx=px, cy=py, r=size, fill=colour, stroke="#ffffff")
    told = {BOTH_COLOUR: "fails under both", B_COLOUR: "fails only under B", A_COLOUR: "fails only under A"}
    for colour, words in told.items():
        if colour in colours:
            canvas.text(at, top - 9, f"● {words}", 11, colour, text_anchor="end")
            at -= 7 * len(words) + 16


def _point(window: Window, name: str) -> str:
    """The colour of a value that fails under one of the manifests, under both or under none."""
    a, b = (_breaks(side, name) for side in (window.a, window.b))
    return BOTH_COLOUR if a and b else A_COLOUR if a else B_COLOUR if b else "#52606d"


def round_numbers(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between two, ``about`` as many as asked for."""
    rough = (high - low) / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _breaks(side: Side | None, name: str) -> bool:
    """Whether a side failed a gate or fired a rule."""
    gates = [gate.status == "fail" for gate in side.gates if gate.gate == name] if side else []
    rules = [rule.fired for rule in side.rules if rule.kind == name] if side else []
    return any((*gates, *rules))


def _draw_limits(
    canvas: Canvas,
    y: Callable[[float], float],
    name: str,
    limits: Mapping[str, float | None],
    top: float,
    height: float,
) -> None:
    """A line for each limit, one for both where they agree; labels stand clear of each other."""
    drawn = [
        (letter, colour, limit)
        for letter, colour in (("A", A_COLOUR), ("B", B_COLOUR))
        if (limit := limits[letter]) is not None
    ]
    if len(drawn) == 2 and limits["A"] == limits["B"]:
        drawn = [("A and B", INK, drawn[0][2])]
    drawn.sort(key=lambda one: y(one[2]))
    places = _spread([max(y(limit) + 4, top + 10) for *_, limit in drawn], 15, top + height)
    for (letter, colour, limit), place in zip(drawn, places, strict=True):
        canvas.line(LEFT, y(limit), RIGHT, y(limit), colour, stroke_width=1.5, stroke_dasharray="6 4")
        canvas.text(RIGHT + 8, place, f"{letter} {_limit(name, limit)}", 12, colour, font_weight="600")


def _draw_times(canvas: Canvas, x: Callable[[float], float], start: int, end: int, top: float, bottom: float) -> None:
    steps = [1000 * step for step in _STEPS] + [DAY * days for days in _DAYS]
    step = next((step for step in steps if (end - start) / step <= 9), (end - start) // 8 + 1)
    shape = "%m-%d" if step >= DAY else "%H:%M" if step >= 60_000 else "%H:%M:%S"
    for ts in range(-(-start // step) * step, end + 1, step):
        canvas.line(x(ts), bottom, x(ts), bottom + 5, FAINT)
        canvas.text(x(ts), bottom + 19, _moment(ts, shape), 11, FAINT, text_anchor="middle")
    canvas.line(LEFT, bottom, RIGHT, bottom, FAINT)
    canvas.text(LEFT - 8, bottom + 19, _moment(start, "%Y-%m-%d"), 11, FAINT, text_anchor="end")
    canvas.text(RIGHT + 8, bottom + 19, "UTC", 11, FAINT)


def lifetimes_svg(found: Sequence[Rehearsal]) -> str:
    """The share of sham rollouts that are stopped or frozen by each minute, with and without each regression."""
    canvas = Canvas()
    canvas.text(LEFT, 34, "How long a regression lives", 18, font_weight="600")
    said = "share of sham rollouts aborted, frozen or rolled back, by minutes since the canary's first request"
    canvas.text(LEFT, 56, said, 13, FAINT)
    canvas.height = 84
    for rehearsal in found:
        _draw_lifetimes(canvas, rehearsal)
    return canvas.svg()


def _draw_lifetimes(canvas: Canvas, rehearsal: Rehearsal) -> None:
    top, height = canvas.height + 28, 240
    last = max((life.lived[-1] for life in rehearsal.lifetimes.values() if life.lived), default=60_000) * 1.08

    def x(ms: float) -> float:
        return LEFT + (RIGHT - LEFT) * ms / last

    def y(share: float) -> float:
        return top + height * (1 - share)

    canvas.text(LEFT, top - 12, cut(rehearsal.unit)[1:-1], 14, font_weight="600")
    told = f"{cut(rehearsal.manifest.name)[1:-1]}, {many(rehearsal.healthy.passed.of, 'rollout')}"
    canvas.text(RIGHT, top - 12, told, 12, FAINT, text_anchor="end")
    canvas.add("rect", x=LEFT, y=top, width=RIGHT - LEFT, height=height, fill="#fafbfc", stroke=GRID)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        canvas.line(LEFT, y(share), RIGHT, y(share), GRID)
        canvas.text(LEFT - 8, y(share) + 4, percent(share), 11, FAINT, text_anchor="end")
    step = next(s for s in (1, 2, 5, 10, 15, 30, 60, 120, 240, 720, 1440, 10_080, 10**9) if last / 60_000 / s <= 9)
    for minute in range(0, int(last / 60_000) + 1, step):
        canvas.line(x(minute * 60_000), y(0), x(minute * 60_000), y(0) + 5, FAINT)
        canvas.text(x(minute * 60_000), y(0) + 19, f"{minute}", 11, FAINT, text_anchor="middle")
    canvas.text(RIGHT + 8, y(0) + 19, "minutes", 11, FAINT)
    ends: list[tuple[float, str, str]] = []
    for at, (effect, life) in enumerate(rehearsal.lifetimes.items()):
        colour = FAINT if effect is None else CURVES[(at - 1) % len(CURVES)]
        steps = [f"H {x(ms):.1f} V {y(life.caught_by(ms)):.1f}" for ms in dict.fromkeys(life.lived)]
        path = " ".join([f"M {x(0):.1f} {y(0):.1f}", *steps, f"H {RIGHT}"])
        canvas.add("path", d=path, fill="none", stroke=colour, stroke_width=2)
        share = 1 - life.missed.value
        ends.append((y(share) + 4, effect.text if effect else "no regression", colour))
    ends.sort()
    for place, (_, text, colour) in zip(_spread([at for at, *_ in ends], 15, y(0) + 2), ends, strict=True):
        canvas.text(RIGHT + 8, place, text, 12, colour, font_weight="600")
    canvas.height = top + height + 44


def _spread(places: Sequence[float], room: float, last: float) -> list[float]:
    """Rising places moved as little as it takes to stand ``room`` apart, none below ``last``."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + room) if found else place)
    for at in range(len(found) - 1, -1, -1):
        last = found[at] = min(found[at], last)
        last -= room
    return found
