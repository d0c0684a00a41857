"""The plots of a backtest, as SVG."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from tidegate.schemas.document import quoted
from tidegate.schemas.manifest import LESS_IS_LOOSER
from tidegate.streams.backtest.comparison import ComparedWindow, OrderMark, Side, counted
from tidegate.streams.commands.rehearsal import Rehearsal
from tidegate.streams.report.rollout import sign_of
from tidegate.streams.report.svg import (
    COLOURS,
    CURVES,
    DARK_TEXT,
    FAINT,
    GRID,
    INK,
    LEFT,
    RIGHT,
    Canvas,
    draw_times,
    round_numbers,
    spread,
)
from tidegate.streams.report.terminal import weight_percent
from tidegate.streams.report.text import many, number

_SHARES = ("latency", "error", "tool", "cost", "lambda_flip", "reason_failure")
_CHANGES = ("delta_s", "latency", "cost")


def value_text(name: str, value: float | bool | None) -> str:
    """Return a gate's or rule's number in its unit."""
    if value is None:
        return "?"
    if isinstance(value, bool):
        return "all"
    if name.startswith(_SHARES) or name == "lambda_convergent":
        sign = "+" if name.startswith(_CHANGES) and value > 0 else ""
        return f"{sign}{number(round(100 * value, 10))} %"
    sign = "+" if name.startswith(_CHANGES) and value > 0 else ""
    return f"{sign}{number(value)}"


def limit_text(name: str, value: float | bool | None) -> str:
    if value is None or isinstance(value, bool):
        return "off" if value is None else "all"
    gate = not name.endswith(("_over", "_under", "_budget", "_full"))
    low = name in LESS_IS_LOOSER
    sign = ("≥" if low else "≤") if gate else ("<" if low else ">")
    shown = f"{number(round(100 * value, 10))} %" if name.startswith(_SHARES) else number(value)
    return f"{sign} {shown}"


def word_of(side: Side | None) -> str:
    return side.verdict if side else "goes on"


A_COLOUR, B_COLOUR, BOTH_COLOUR = "#1f6fb2", "#8b3fb0", "#c8372d"
UNITS_SHOWN = 12


_GOOD = ("promote", "pass", "open", "restore", "start", "rearm", "resume")
_STOPPED = ("close", "rollback", "abort", "kill", "retire")


def _draw_block(canvas: Canvas, word: str, left: float, y: float, width: float, height: float) -> None:
    """Draw a verdict so that it needs no colour: whole if the canary goes on, struck if it is stopped, else half."""
    full = word in (*_GOOD, *_STOPPED)
    tall = height if full else 0.6 * height
    rounded = min(3.0, width / 4)
    canvas.add("rect", x=left, y=y + height - tall, width=width, height=tall, rx=rounded, fill=COLOURS[word])
    if word in _STOPPED:
        for part in (0.12, 0.88):
            canvas.line(left, y + height * part, left + width, y + height * part, "#ffffff", stroke_width=height / 12)


class Axes(NamedTuple):
    """Axes that all units share: the time from ``start`` to ``end``, ms, and the range of each metric."""

    start: int
    end: int
    ranges: Mapping[str, tuple[float, float]]


def _axes(units: Iterable[Sequence[ComparedWindow]]) -> Axes:
    """Return axes on which units can be held against each other."""
    known = [(windows, deciding(windows)) for windows in units]
    ranges: dict[str, tuple[float, float]] = {}
    for windows, name in known:
        if name is not None:
            low, high = _range(name, windows)
            before = ranges.get(name, (low, high))
            ranges[name] = min(low, before[0]), max(high, before[1])
    every = [window for windows, _ in known for window in windows]
    return Axes(min(one.start for one in every), max(one.end for one in every), ranges)


def _range(name: str, windows: Sequence[ComparedWindow]) -> tuple[float, float]:
    """Return the range that shows a metric of a unit, its limits included."""
    limits = (_limit_of(windows, name, letter) for letter in "AB")
    values = [value for *_, value in _series(windows, name)] + [limit for limit in limits if limit is not None]
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) * 0.15
    return (0.0 if 0 <= low < room else low - room), high + room


def comparison_svg(windows: Sequence[ComparedWindow], names: Sequence[str], marks: Sequence[OrderMark] = ()) -> str:
    """Draw both manifests' verdicts over time, and below them the metric that decides between the two, by unit."""
    canvas = Canvas()
    canvas.text(LEFT, 34, "What B would have decided where A decided", 18, font_weight="600")
    for at, letter, colour, name in ((LEFT, "A", A_COLOUR, names[0]), (LEFT + 400, "B", B_COLOUR, names[1])):
        canvas.text(at, 56, letter, 13, colour, font_weight="700")
        canvas.text(at + 16, 56, quoted(name)[1:-1], 13, FAINT)
    words = dict.fromkeys(word_of(side) for window in windows for side in (window.a, window.b))
    x = float(LEFT)
    for word in sorted(words, key=list(COLOURS).index):
        _draw_block(canvas, word, x, 70, 16, 16)
        canvas.text(x + 21, 82, _signed(word), 12, FAINT)
        x += 21 + 7 * len(_signed(word)) + 22
    canvas.height = 104
    units = {unit: list(group) for unit, group in groupby(sorted(windows, key=_place), key=lambda w: w.unit)}
    most = sorted(units, key=lambda unit: (-sum(not w.same for w in units[unit]), unit))[:UNITS_SHOWN]
    axes = _axes(units[unit] for unit in most)
    for unit in sorted(most):
        _draw_unit(canvas, unit, units[unit], axes, [mark for mark in marks if mark.unit == unit])
    if len(units) > len(most):
        canvas.text(LEFT, canvas.height + 10, f"{many(len(units) - len(most), 'unit')} more, with fewer differences")
        canvas.height += 30
    return canvas.svg()


def _place(window: ComparedWindow) -> tuple[str, int]:
    return window.unit, window.start


def _signed(word: str) -> str:
    """Return a verdict with its sign."""
    return f"{sign_of(word)} {word}" if word != "goes on" else word


def _draw_unit(
    canvas: Canvas, unit: str, windows: Sequence[ComparedWindow], axes: Axes, marks: Sequence[OrderMark]
) -> None:
    top, start, end = canvas.height, axes.start, axes.end

    def x(ts: float) -> float:
        return LEFT + (RIGHT - LEFT) * (ts - start) / max(end - start, 1)

    differ = counted(window for window in windows if not window.same)
    canvas.text(LEFT, top + 16, quoted(unit)[1:-1], 14, font_weight="600")
    told = f"{many(counted(windows), 'window')}, {f'{differ:,} differ' if differ else 'no difference'}"
    canvas.text(RIGHT, top + 16, told, 12, FAINT, text_anchor="end")
    weight: float | None = None
    for window in windows:
        if window.weight != weight and window.weight > 0:
            canvas.text(x(window.start) + 2, top + 36, weight_percent(window.weight), 10, FAINT)
        weight = window.weight
    for y, letter, colour in ((top + 42, "A", A_COLOUR), (top + 72, "B", B_COLOUR)):
        canvas.text(LEFT - 14, y + 17, letter, 14, colour, font_weight="700", text_anchor="end")
        for window in windows:
            _draw_verdict(canvas, x, y, window, window.a if letter == "A" else window.b)
    name = deciding(windows)
    bottom = top + 104
    if name is not None:
        _draw_metric(canvas, x, top + 132, 150, name, windows, axes.ranges[name])
        bottom = top + 282
    for mark in marks:
        at = min(max(x(mark.ts), LEFT), RIGHT)
        canvas.line(at, top + 38, at, bottom, INK, stroke_width=1.5)
        right = at > (LEFT + RIGHT) / 2
        words = f"{_signed(mark.kind)} by {quoted(mark.actor)[1:-1]}"
        anchor = "end" if right else "start"
        canvas.text(at + (-4 if right else 4), top + 36, words, 11, INK, text_anchor=anchor, font_weight="600")
    draw_times(canvas, x, start, end, bottom)
    canvas.height = bottom + 56


def _draw_verdict(
    canvas: Canvas, x: Callable[[float], float], y: float, window: ComparedWindow, side: Side | None
) -> None:
    """Draw a window in its verdict's colour; what lies before an early end was still open."""
    word, left, right = word_of(side), x(window.start), x(window.end)
    right = max(right - (1.5 if right - left > 6 else 0.0), left + 0.5)
    if side is not None and side.at < window.end:
        _draw_block(canvas, "goes on", left, y, x(side.at) - left, 24)
        left = min(x(side.at), right - 0.5)
    _draw_block(canvas, word, left, y, right - left, 24)
    words = _signed(word)
    if right - left < 7 * len(words) + 6:
        words = words[0] if word != "goes on" and right - left >= 10 else ""
    if words:
        colour = INK if word in DARK_TEXT else "#ffffff"
        base = y + (16 if word in (*_GOOD, *_STOPPED) else 21)
        canvas.text((left + right) / 2, base, words, 11, colour, text_anchor="middle")


def deciding(windows: Sequence[ComparedWindow]) -> str | None:
    """Return the gate or rule on which A and B part most often; else the gate that came closest to A's limit."""
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


def _series(windows: Sequence[ComparedWindow], name: str) -> list[tuple[ComparedWindow, int, float]]:
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
    """Return the value that a side saw of a gate or rule, and its limit."""
    for gate in side.gates if side else ():
        if gate.gate == name:
            return gate.observed, gate.threshold
    for rule in side.rules if side else ():
        if rule.kind == name:
            return rule.observed, rule.value
    return None, None


def _limit_of(windows: Sequence[ComparedWindow], name: str, letter: str) -> float | None:
    sides = [window.a if letter == "A" else window.b for window in windows]
    limits = [limit for side in sides if (limit := _of(side, name)[1]) is not None]
    return float(limits[-1]) if limits else None


def _draw_metric(
    canvas: Canvas,
    x: Callable[[float], float],
    top: float,
    height: float,
    name: str,
    windows: Sequence[ComparedWindow],
    shown: tuple[float, float],
) -> None:
    series = _series(windows, name)
    limits = {letter: _limit_of(windows, name, letter) for letter in "AB"}
    low, high = shown
    ticks = round_numbers(low, high)

    def y(value: float) -> float:
        return top + height * (high - value) / (high - low)

    canvas.add("rect", x=LEFT, y=top, width=RIGHT - LEFT, height=height, fill="#fafbfc", stroke=GRID)
    for tick in ticks:
        canvas.line(LEFT, y(tick), RIGHT, y(tick), GRID)
        canvas.text(LEFT - 8, y(tick) + 4, value_text(name, tick), 11, FAINT, text_anchor="end")
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
    letters = {BOTH_COLOUR: "A B", A_COLOUR: "A", B_COLOUR: "B"}
    for (px, py, *_), colour in zip(points, colours, strict=True):
        if colour in letters and size > 2:
            canvas.text(px, py - 7, letters[colour], 9, colour, text_anchor="middle", font_weight="700")
    told = {BOTH_COLOUR: "fails under both", B_COLOUR: "fails only under B", A_COLOUR: "fails only under A"}
    for colour, words in told.items():
        if colour in colours:
            canvas.text(at, top - 9, f"● {words}", 11, colour, text_anchor="end")
            at -= 7 * len(words) + 16


def _point(window: ComparedWindow, name: str) -> str:
    """Return the colour of a value that fails under one of the manifests, under both or under none."""
    a, b = (_breaks(side, name) for side in (window.a, window.b))
    return BOTH_COLOUR if a and b else A_COLOUR if a else B_COLOUR if b else "#52606d"


def _breaks(side: Side | None, name: str) -> bool:
    """Tell whether a side failed a gate or fired a rule."""
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
    """Draw a line for each limit, one for both where they agree; labels stand clear of each other."""
    drawn = [
        (letter, colour, limit)
        for letter, colour in (("A", A_COLOUR), ("B", B_COLOUR))
        if (limit := limits[letter]) is not None
    ]
    if len(drawn) == 2 and limits["A"] == limits["B"]:
        drawn = [("A and B", INK, drawn[0][2])]
    drawn.sort(key=lambda one: y(one[2]))
    places = spread([max(y(limit) + 4, top + 10) for *_, limit in drawn], 15, top + height)
    for (letter, colour, limit), place in zip(drawn, places, strict=True):
        canvas.line(LEFT, y(limit), RIGHT, y(limit), colour, stroke_width=1.5, stroke_dasharray="6 4")
        canvas.text(RIGHT + 8, place, f"{letter} {limit_text(name, limit)}", 12, colour, font_weight="600")


def lifetimes_svg(found: Sequence[Rehearsal]) -> str:
    """Return the share of sham rollouts that are stopped or frozen by each minute, with and without each regression."""
    canvas = Canvas()
    canvas.text(LEFT, 34, "How long a regression lives", 18, font_weight="600")
    said = "share of sham rollouts aborted, frozen or rolled back, by minutes since the canary's first request"
    canvas.text(LEFT, 56, said, 13, FAINT)
    canvas.height = 84
    lives = [life for rehearsal in found for life in rehearsal.lifetimes.values()]
    # One axis, so that two manifests can be held against each other.
    last = max((life.lived[-1] for life in lives if life.lived), default=60_000) * 1.08
    for rehearsal in found:
        _draw_lifetimes(canvas, rehearsal, last)
    return canvas.svg()


DASHES = ("none", "8 4", "2 3", "10 3 2 3", "5 5")
"""Tell the curves of regressions apart without colour."""


def _draw_lifetimes(canvas: Canvas, rehearsal: Rehearsal, last: float) -> None:
    """Draw one unit's curves; ``last``: where the time axis ends, ms."""
    top, height = canvas.height + 28, 240

    def x(ms: float) -> float:
        return LEFT + (RIGHT - LEFT) * ms / last

    def y(share: float) -> float:
        return top + height * (1 - share)

    canvas.text(LEFT, top - 12, quoted(rehearsal.unit)[1:-1], 14, font_weight="600")
    told = f"{quoted(rehearsal.manifest.name)[1:-1]}, {many(rehearsal.healthy.passed.of, 'rollout')}"
    canvas.text(RIGHT, top - 12, told, 12, FAINT, text_anchor="end")
    canvas.add("rect", x=LEFT, y=top, width=RIGHT - LEFT, height=height, fill="#fafbfc", stroke=GRID)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        canvas.line(LEFT, y(share), RIGHT, y(share), GRID)
        canvas.text(LEFT - 8, y(share) + 4, weight_percent(share), 11, FAINT, text_anchor="end")
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
        dash = DASHES[(at - 1) % len(DASHES)] if effect is not None else "1 4"
        canvas.add("path", d=path, fill="none", stroke=colour, stroke_width=2, stroke_dasharray=dash)
        share = 1 - life.missed.value
        ends.append((y(share) + 4, effect.text if effect else "no regression", colour))
    ends.sort()
    for place, (_, text, colour) in zip(spread([at for at, *_ in ends], 15, y(0) + 2), ends, strict=True):
        canvas.text(RIGHT + 8, place, text, 12, colour, font_weight="600")
    canvas.height = top + height + 44
