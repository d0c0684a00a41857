"""The plots of docs/evidence.md, as SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.evidence.report import past_first
from bench.evidence.traffic import BAD, HEALTHY
from bench.evidence.trials import Results
from tidegate.streams.backtest.rollouts import Rate
from tidegate.streams.report.svg import FAINT, GRID, INK, LEFT, WIDE, Canvas


@dataclass(frozen=True)
class Style:
    """How one way of judging is drawn: Okabe and Ito's colours, told apart by shape too."""

    label: str
    colour: str
    shape: str
    dash: str = "none"
    width: float = 2.0


STYLES = {
    "sequential": Style("Tidegate, sequential", "#0072B2", "circle", width=3.5),
    "point": Style("Tidegate, point", "#D55E00", "square"),
    "argo": Style("Argo Rollouts", "#009E73", "up"),
    "flagger": Style("Flagger", "#AA4499", "down"),
    "means": Style("test of means", "#B8860B", "diamond"),
    "wald": Style("Wald's SPRT", "#333333", "cross", dash="5 4", width=1.5),
}
"""What is plotted, in this order; Argo's inconclusive runs are in the tables alone."""


@dataclass(frozen=True)
class Axes:
    """A panel: request rate from left to right, logarithmic, and a value from bottom to top."""

    left: float
    top: float
    width: float
    height: float
    rates: Sequence[float]
    place: Callable[[float], float]
    """Where a value stands, 0 at the bottom to 1 at the top."""

    def x(self, rate: float) -> float:
        """Of a request rate."""
        low, high = math.log(self.rates[0]), math.log(self.rates[-1])
        return self.left + self.width * (0.03 + 0.94 * ((math.log(rate) - low) / (high - low) if high > low else 0.5))

    def y(self, value: float) -> float:
        """Of a value."""
        return self.top + self.height * (1 - self.place(value))

    def draw(self, canvas: Canvas, ticks: dict[float, str], *, every: int = 1) -> None:
        """Frame, grid and numbers."""
        right, bottom = self.left + self.width, self.top + self.height
        canvas.add("rect", x=self.left, y=self.top, width=self.width, height=self.height, fill="#fafbfc", stroke=GRID)
        for value, text in ticks.items():
            canvas.line(self.left, self.y(value), right, self.y(value), GRID)
            canvas.text(self.left - 8, self.y(value) + 4, text, 12, FAINT, text_anchor="end")
        for at, rate in enumerate(self.rates):
            canvas.line(self.x(rate), bottom, self.x(rate), bottom + 5, FAINT)
            if at % every == 0:
                canvas.text(self.x(rate), bottom + 20, f"{rate:g}", 12, FAINT, text_anchor="middle")


@dataclass(frozen=True)
class Point:
    """One value at a rate, and its interval."""

    rate: float
    value: float
    low: float
    high: float


def _mark(canvas: Canvas, style: Style, x: float, y: float, size: float = 5) -> None:
    paths = {
        "square": f"M {x - size} {y - size} h {2 * size} v {2 * size} h {-2 * size} z",
        "up": f"M {x} {y - size * 1.2} L {x + size * 1.2} {y + size} H {x - size * 1.2} z",
        "down": f"M {x} {y + size * 1.2} L {x + size * 1.2} {y - size} H {x - size * 1.2} z",
        "diamond": f"M {x} {y - size * 1.3} L {x + size * 1.3} {y} L {x} {y + size * 1.3} L {x - size * 1.3} {y} z",
    }
    if style.shape == "circle":
        canvas.add("circle", cx=x, cy=y, r=size, fill=style.colour, stroke="#ffffff")
    elif style.shape == "cross":
        canvas.line(x - size, y - size, x + size, y + size, style.colour, stroke_width=2)
        canvas.line(x - size, y + size, x + size, y - size, style.colour, stroke_width=2)
    else:
        canvas.add("path", d=paths[style.shape], fill=style.colour, stroke="#ffffff")


def _draw(canvas: Canvas, axes: Axes, style: Style, points: Sequence[Point], shift: float) -> None:
    """A line through its points, each with its interval; ``shift``: aside, so that intervals do not hide others."""
    line = " L ".join(f"{axes.x(p.rate) + shift:.1f} {axes.y(p.value):.1f}" for p in points)
    if points:
        canvas.add(
            "path",
            d=f"M {line}",
            fill="none",
            stroke=style.colour,
            stroke_width=style.width,
            stroke_dasharray=style.dash,
        )
    for point in points:
        x = axes.x(point.rate) + shift
        if point.low < point.high:
            canvas.line(x, axes.y(point.low), x, axes.y(point.high), style.colour, stroke_width=1.2)
        _mark(canvas, style, x, axes.y(point.value))


def _labels(canvas: Canvas, x: float, wanted: Sequence[tuple[float, Style]], low: float, high: float) -> None:
    """Each line's name beside its end, moved apart where lines end together."""
    ordered = sorted(wanted, key=lambda one: round(one[0]))
    places: list[float] = []
    for y, _ in ordered:
        places.append(max(y, places[-1] + 18 if places else low))
    for at in range(len(places) - 1, -1, -1):
        most = high - 18 * (len(places) - 1 - at)
        places[at] = min(places[at], most)
    for (y, style), place in zip(ordered, places, strict=True):
        canvas.line(x - 14, y, x - 2, place, style.colour, stroke_width=1)
        canvas.text(x + 2, place + 4, style.label, 13, style.colour, font_weight="600")


def _legend(canvas: Canvas, y: float) -> None:
    x = float(LEFT)
    for style in STYLES.values():
        canvas.line(x, y, x + 26, y, style.colour, stroke_width=style.width, stroke_dasharray=style.dash)
        _mark(canvas, style, x + 13, y)
        canvas.text(x + 33, y + 4, style.label, 13, style.colour, font_weight="600")
        x += 33 + 7.6 * len(style.label) + 26


def _title(canvas: Canvas, title: str, below: str) -> None:
    canvas.text(LEFT, 34, title, 19, font_weight="600")
    canvas.text(LEFT, 57, below, 13, FAINT)


PER_CENT = {value / 100: f"{value} %" for value in range(0, 101, 20)}


def _shares_svg(
    results: Results, title: str, below: str, count: Callable[[float, str], tuple[int, int]], what: str
) -> str:
    canvas = Canvas()
    _title(canvas, title, below)
    axes = Axes(LEFT, 84, 850, 400, results.rates, lambda share: 0.03 + 0.94 * share)
    axes.draw(canvas, PER_CENT)
    ends = []
    middle = (len(STYLES) - 1) / 2
    for at, (name, style) in reversed(list(enumerate(STYLES.items()))):
        points = []
        for rate in results.rates:
            found = Rate(*count(rate, name))
            points.append(Point(rate, found.value, *found.interval))
        _draw(canvas, axes, style, points, 3.0 * (at - middle))
        ends.append((axes.y(points[-1].value), style))
    _labels(canvas, LEFT + 850 + 18, ends[::-1], 90, 484)
    canvas.text(LEFT + 425, 528, "requests a second, both arms together (log scale)", 13, INK, text_anchor="middle")
    canvas.text(LEFT, 76, what, 12, INK)
    canvas.height = 546
    return canvas.svg()


def finished_svg(results: Results) -> str:
    """The share of healthy rollouts that reach 100 %."""

    def count(rate: float, name: str) -> tuple[int, int]:
        found = results.count(rate, HEALTHY.name, name)
        return len(found.finishes), found.runs

    below = f"up to {results.runs} rollouts a point; bars are exact 95 % intervals"
    return _shares_svg(results, "A healthy canary reaches 100 %", below, count, "share of healthy rollouts")


def promoted_svg(results: Results) -> str:
    """The share of bad canaries that are promoted at all."""

    def count(rate: float, name: str) -> tuple[int, int]:
        return past_first(results, rate, name)

    below = (
        f"{len(BAD)} kinds of bad canaries together, up to {len(BAD) * results.runs} rollouts a point; "
        "bars are exact 95 % intervals"
    )
    return _shares_svg(results, "A bad canary is promoted past 5 % all the same", below, count, "share of bad rollouts")


MINUTES = {1.0: "1 min", 10.0: "10 min", 60.0: "1 h", 360.0: "6 h", 1440.0: "1 d", 10_080.0: "7 d"}


def times_svg(results: Results) -> str:
    """The median time until each bad canary is stopped, and until a healthy one is through."""
    canvas = Canvas()
    below = (
        "median over all runs, bars from the 10th to the 90th percentile; no point where fewer than half ever end so"
    )
    _title(canvas, "How soon a bad canary is stopped", below)
    _legend(canvas, 84)
    top, bottom = math.log(10_080 * 1.3), math.log(0.8)
    width, height = 300.0, 240.0
    for at, canary in enumerate((*BAD, HEALTHY)):
        left, y = LEFT - 40 + (at % 3) * (width + 66), 132 + at // 3 * (height + 92)
        axes = Axes(left, y, width, height, results.rates, lambda m: (math.log(m) - bottom) / (top - bottom))
        axes.draw(canvas, MINUTES, every=2)
        title = "a healthy one, until 100 %" if canary is HEALTHY else canary.title
        canvas.text(left, y - 10, title, 14, font_weight="600")
        canvas.text(left + width / 2, y + height + 40, "requests a second", 12, FAINT, text_anchor="middle")
        # The first one last, so that nothing hides it.
        for number, (name, style) in reversed(list(enumerate(STYLES.items()))):
            points = []
            for rate in results.rates:
                found = results.count(rate, canary.name, name)
                within = found.finished_within if canary is HEALTHY else found.stopped_within
                half = within(0.5)
                if half is not None:
                    low, high = within(0.1) or half, within(0.9) or 10_080
                    points.append(Point(rate, half, low, high))
            _draw(canvas, axes, style, points, 1.5 * (number - 2.5))
    canvas.height = 132 + 2 * (height + 92) - 20
    assert LEFT - 40 + 3 * width + 2 * 66 < WIDE
    return canvas.svg()
