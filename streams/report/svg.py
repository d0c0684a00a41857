"""Drawings as SVG: a canvas, the colours of verdicts, axes."""

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

from tidegate.schemas.times import DAY, shaped
from tidegate.streams.report.text import plain

COLOURS = {
    "promote": "#2f9e62",
    "pass": "#2f9e62",
    "open": "#2f9e62",
    "restore": "#2f9e62",
    "rearm": "#2f9e62",
    "resume": "#2f9e62",
    "pause": "#e3b341",
    "hold": "#e3b341",
    "freeze": "#e8833a",
    "degrade": "#e8833a",
    "fallback": "#e8833a",
    "close": "#c8372d",
    "rollback": "#c8372d",
    "abort": "#8f1d1d",
    "kill": "#8f1d1d",
    "retire": "#8f1d1d",
    "goes on": "#dbe1e8",
}
DARK_TEXT = ("hold", "pause", "goes on")
INK, FAINT, GRID = "#1f2933", "#6b7785", "#e4e8ed"
CURVES = ("#c8372d", "#1f6fb2", "#2f9e62", "#e8833a", "#8b3fb0", "#0f8b8d", "#b5651d", "#5b6470")
WIDE, LEFT, RIGHT = 1180, 120, 1010
"""Width of the plot, and where its axes run from and to."""
_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200)
_DAYS = (1, 2, 7, 14, 30, 90, 365)


class Canvas:
    """An SVG document that grows downwards; ``title``: what it shows, for who cannot see it."""

    def __init__(self, width: int = WIDE, title: str = "") -> None:
        self._parts: list[str] = []
        self._width, self._title = width, title
        self.height = 0.0

    def add(self, tag: str, text: str | None = None, **attributes: object) -> None:
        """Add an element; an underscore in an attribute's name is a hyphen."""
        shown = " ".join(f'{name.replace("_", "-")}="{_attribute(value)}"' for name, value in attributes.items())
        inner = "" if text is None else html.escape(plain(text))
        self._parts.append(f"<{tag} {shown}>{inner}</{tag}>" if text is not None else f"<{tag} {shown}/>")

    def text(self, x: float, y: float, text: str, size: int = 12, fill: str = INK, **more: Any) -> None:
        """Add words with their base line at ``y``."""
        self.add("text", text, x=x, y=y, font_size=size, fill=fill, **more)

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str, **more: Any) -> None:
        """Add a straight line."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, **more)

    def svg(self) -> str:
        """Return the document."""
        width, height = self._width, round(self.height)
        label = f' role="img" aria-label="{html.escape(plain(self._title))}"' if self._title else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="Inter, Helvetica Neue, Helvetica, Arial, DejaVu Sans, sans-serif"{label}>\n'
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n' + "\n".join(self._parts) + "\n</svg>\n"
        )


def _attribute(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else html.escape(str(value))


def moment(ts: int, shape: str = "%m-%d %H:%M:%S") -> str:
    """Return a moment of event time, UTC."""
    return shaped(ts, shape)


def round_numbers(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers between two, ``about`` as many as asked for."""
    rough = (high - low) / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def draw_times(
    canvas: Canvas,
    x: Callable[[float], float],
    start: int,
    end: int,
    bottom: float,
    across: tuple[float, float] = (LEFT, RIGHT),
    marks: int = 9,
) -> None:
    """Draw a time axis at ``bottom``, UTC, with at most ``marks`` of them."""
    left, right = across
    steps = [1000 * step for step in _STEPS] + [DAY * days for days in _DAYS]
    step = next((step for step in steps if (end - start) / step <= marks), (end - start) // (marks - 1) + 1)
    shape = "%m-%d" if step >= DAY else "%H:%M" if step >= 60_000 else "%H:%M:%S"
    for ts in range(-(-start // step) * step, end + 1, step):
        canvas.line(x(ts), bottom, x(ts), bottom + 5, FAINT)
        canvas.text(x(ts), bottom + 19, moment(ts, shape), 11, FAINT, text_anchor="middle")
    canvas.line(left, bottom, right, bottom, FAINT)
    canvas.text(left, bottom + 34, f"{moment(start, '%Y-%m-%d')}, UTC", 11, FAINT, text_anchor="middle")


def spread(places: Sequence[float], room: float, last: float) -> list[float]:
    """Return rising places moved as little as it takes to stand ``room`` apart, none below ``last``."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + room) if found else place)
    for at in range(len(found) - 1, -1, -1):
        last = found[at] = min(found[at], last)
        last -= room
    return found
