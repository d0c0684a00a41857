"""The picture of a rollout: the canary's weight over time, and under it what each window was decided."""

from collections.abc import Callable

from tidegate.schemas.decision import Decision
from tidegate.streams.report.rollout import UnitHistory, WeightStep, ramp, sign_of
from tidegate.streams.report.svg import COLOURS, DARK_TEXT, FAINT, GRID, INK, Canvas, draw_times
from tidegate.streams.report.terminal import weight_percent

WIDTH, X, TOP, HEIGHT, BAND = 760, (84, 716), 30, 150, 22
"""Of the drawing, its axes from left to right, and the two parts of it."""
CURVE, AREA, OPERATOR = "#1f6fb2", "#d7e7f5", "#6a3d9a"


def ramp_svg(history: UnitHistory) -> str:
    """Draw a unit's rollout."""
    steps = ramp(history)
    start, end = _span(history, steps)
    left, right = X

    def x(ts: float) -> float:
        return left + (right - left) * (ts - start) / (end - start)

    canvas = Canvas(WIDTH, _title(history, steps))
    _draw_weights(canvas, x, steps, end)
    top = TOP + HEIGHT + 8
    canvas.text(left - 8, top + 15, "decided", 11, FAINT, text_anchor="end")
    done = start
    for decision in history.decisions:
        _draw_decision(canvas, x, top, decision, done)
        done = max(done, decision.decided_at)
    _draw_operations(canvas, x, history)
    bottom = top + BAND + 6
    draw_times(canvas, x, start, end, bottom, X, 7)
    canvas.height = bottom + 48
    _draw_legend(canvas, history)
    return canvas.svg()


def _span(history: UnitHistory, steps: list[WeightStep]) -> tuple[int, int]:
    its = history.decisions
    start = min(min(one.window.start, one.decided_at) for one in its)
    end = max(max(one.window.end if one.window.closed else one.decided_at for one in its), *(s.at for s in steps), 0)
    return start, max(end, start + 60_000)


def _title(history: UnitHistory, steps: list[WeightStep]) -> str:
    weights = ", ".join(weight_percent(step.weight) for step in steps)
    return f"The canary's weight in {history.flag} {history.region} over time: {weights}"


def _draw_weights(canvas: Canvas, x: Callable[[float], float], steps: list[WeightStep], end: int) -> None:
    left, right = X

    def y(weight: float) -> float:
        return TOP + HEIGHT * (1 - weight)

    canvas.text(left, TOP - 12, "canary's share of the traffic", 12, INK, font_weight="600")
    for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
        canvas.line(left, y(weight), right, y(weight), GRID)
        canvas.text(left - 8, y(weight) + 4, weight_percent(weight), 11, FAINT, text_anchor="end")
    if not steps:
        return
    ends = [step.at for step in steps[1:]] + [end]
    path = f"M {x(steps[0].at):.1f} {y(0):.1f}"
    line = []
    for step, until in zip(steps, ends, strict=True):
        line.append(f"V {y(step.weight):.1f} H {x(until):.1f}")
    canvas.add("path", d=f"{path} {' '.join(line)} V {y(0):.1f} Z", fill=AREA)
    canvas.add("path", d=f"{path} {' '.join(line)}", fill="none", stroke=CURVE, stroke_width=2)
    free = 0.0
    for step, until in zip(steps, ends, strict=True):
        at = x(step.at) + 5
        if at >= free and (x(until) - x(step.at) > 30 or step is steps[-1]):
            inside = step.weight > 0.85
            near_end = at > right - 30
            shown = weight_percent(step.weight)
            anchor = {"text_anchor": "end"} if near_end else {}
            canvas.text(right if near_end else at, y(step.weight) + (15 if inside else -6), shown, 12, INK, **anchor)
            free = at + 40


def _draw_decision(canvas: Canvas, x: Callable[[float], float], top: float, decision: Decision, done: int) -> None:
    """Draw what of a decision's window came after ``done``: an early stop's window is decided once more at its end."""
    if decision.window.start == decision.window.end:
        return
    left, right = x(max(decision.window.start, done)), x(min(decision.window.end, decision.decided_at))
    width = max(right - left - (1.5 if right - left > 5 else 0.0), 0.7)
    colour = COLOURS.get(decision.verdict, FAINT)
    canvas.add("rect", x=left, y=top, width=width, height=BAND, fill=colour, rx=min(2.0, width / 4))
    if width >= 11:
        ink = INK if decision.verdict in DARK_TEXT else "#ffffff"
        word = f"{sign_of(decision.verdict)} {decision.verdict}"
        shown = word if width >= 7 * len(word) + 6 else sign_of(decision.verdict)
        canvas.text(left + width / 2, top + 15, shown, 12, ink, text_anchor="middle")


def _draw_operations(canvas: Canvas, x: Callable[[float], float], history: UnitHistory) -> None:
    free = 0.0
    for decision in history.decisions:
        by = decision.operation
        if by is None:
            continue
        at = x(decision.decided_at)
        canvas.line(at, TOP - 6, at, TOP + HEIGHT + 8 + BAND, OPERATOR, stroke_width=1.5, stroke_dasharray="4 3")
        if at >= free:
            left = at > X[1] - 60
            word = f"{by.kind} {sign_of(decision.verdict)}" if left else f"{sign_of(decision.verdict)} {by.kind}"
            anchor = {"text_anchor": "end"} if left else {}
            canvas.text(at - 4 if left else at + 4, TOP + 4, word, 11, OPERATOR, font_weight="600", **anchor)
            free = at + 60


def _draw_legend(canvas: Canvas, history: UnitHistory) -> None:
    shown = {one.verdict for one in history.decisions if one.window.start < one.window.end}
    at = float(X[0])
    for verdict in (one for one in COLOURS if one in shown):
        canvas.add("rect", x=at, y=canvas.height, width=12, height=12, rx=2, fill=COLOURS[verdict])
        word = f"{sign_of(verdict)} {verdict}"
        canvas.text(at + 17, canvas.height + 10, word, 12, INK)
        at += 17 + 7 * len(word) + 18
    canvas.height += 20
