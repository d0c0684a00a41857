"""The board of `watch`: where every unit stands, a line each, worst first, in a given size.

Signs and words carry everything; colours only repeat it.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from tidegate.gates.power import kind_gates
from tidegate.schemas.decision import Decision, GateResult, RuleResult, Weights
from tidegate.schemas.times import clock, iso, shaped
from tidegate.streams.report.terminal import (
    AMBER,
    GREEN,
    GREY,
    RED,
    STATES,
    Standings,
    gate_rows,
    limit,
    observed,
    problem_lines,
    weight_percent,
)
from tidegate.streams.report.text import endings, many, plain

STOPPED, ATTENTION, WAITING, GOOD, GONE = range(5)
"""Levels of a unit, worst first."""
LEVEL_SIGNS = ("✗", "!", "…", "✓", "–")
STYLES = (f"bold {RED}", f"bold {AMBER}", AMBER, GREEN, GREY)
KEYS = "↑ ↓ choose a unit, q ends"
ID_DIGITS = 8
_PAST = {
    "abort": "aborted",
    "rollback": "rolled back",
    "kill": "killed",
    "retire": "retired",
    "freeze": "frozen",
    "promote": "promoted",
    "rearm": "rearmed",
    "pause": "paused",
    "resume": "resumed",
    "close": "closed",
    "pass": "passed",
    "hold": "held",
    "start": "started",
}
_SHARE_RULES = (
    "lambda_flip_rate_over",
    "error_rate_over",
    "reason_failure_rate_over",
    "latency_p95_over_budget",
    "cost_per_solved_over_budget",
)
_FLOORS = ("coverage_min", "tool_success_min")
_WORST_FIRST = ("fired", "fail", "unknown", "undecided", "waived", "pass")
NAME_SHARE = 1 / 3
"""Of a line, at most, for a unit's name."""
DAY_MS = 86_400_000


class Standing(NamedTuple):
    """The standing of a unit: ``level`` from ``STOPPED`` to ``GONE``, and the ``decision`` that the words rest on."""

    unit: str
    level: int
    words: str
    decision: Decision

    @property
    def sign(self) -> str:
        """The level as a sign."""
        return LEVEL_SIGNS[self.level]


def short_id(decision: Decision) -> str:
    """Return as much of a decision's id as `tidegate explain` takes."""
    return plain(decision.decision_id).removeprefix("sha256:")[:ID_DIGITS]


def rule_value(rule: RuleResult) -> str:
    """Return what a rule saw against its limit, such as ``error_rate_over 10.3 % > 1 %``."""
    if rule.observed is None or rule.value is None:
        return plain(rule.kind)
    show = weight_percent if rule.kind in _SHARE_RULES else "{:.4g}".format
    sign = "<" if rule.kind.endswith("_under") else ">"
    return f"{plain(rule.kind)} {show(rule.observed)} {sign} {show(rule.value)}"


def gate_value(gate: GateResult) -> str:
    """Return what a failed gate saw against its limit, such as ``error_rate_max 0.78 % > 0.5 %``."""
    if gate.observed is None or gate.threshold is None:
        return f"{plain(gate.gate)} {gate.status}"
    if gate.gate == "lambda_convergent":
        return f"{gate.gate} {observed(gate)}"
    return f"{plain(gate.gate)} {observed(gate)} {'<' if gate.gate in _FLOORS else '>'} {limit(gate)[2:]}"


def cause_in_short(decision: Decision) -> str:
    """Return why it was decided so, in a few words: who ordered it, or the first cause with its value and limit."""
    by = decision.operation
    if by is not None:
        return f"by {plain(by.actor)}: {plain(by.reason)}"
    fired = {rule.kind: rule_value(rule) for rule in decision.abort_rules if rule.fired}
    failed = {gate.gate: gate_value(gate) for gate in decision.gates if gate.status == "fail"}
    known = fired | failed
    found = [known.get(reason, plain(reason)) for reason in decision.reasons]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{found[0]}{more}" if found else ""


def minutes_left(decision: Decision) -> float | None:
    """Return how long a hold still lasts by its forecasts, in minutes; None where they cannot tell."""
    needs = [decision.forecast.minutes] if decision.forecast is not None else []
    open_ = [gate for gate in decision.gates if gate.status == "undecided" and gate.gate in decision.reasons]
    needs += [gate.forecast.minutes if gate.forecast is not None else None for gate in open_]
    known = [minutes for minutes in needs if minutes is not None]
    return max(known) if known and len(known) == len(needs) else None


def in_short(minutes: float) -> str:
    """Return a length of time, rounded to one unit."""
    seconds = minutes * 60
    for name, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < length * most:
            return f"{max(seconds / length, 0):.0f} {name}"
    return f"{seconds / DAY_MS * 1000:.0f} d"


def _at(ts: int, now: int) -> str:
    """Return a moment's time of day, with its date where that is not today's."""
    return shaped(ts, "%H:%M" if ts // DAY_MS == now // DAY_MS else "%Y-%m-%d %H:%M")


def standing(unit: str, standings: Standings, weight: float, now: int) -> Standing:
    """Say how a unit stands; ``weight``: the canary's, ``now``: ms, as times of other days have their date."""
    last, stopped = standings.last[unit], standings.stopped(unit)
    engaged = standings.engaged(unit)

    def said(level: int, words: str, by: Decision = last) -> Standing:
        return Standing(unit, level, words, by)

    def happened(decision: Decision) -> str:
        what = _PAST.get(decision.verdict, plain(decision.verdict))
        return f"{what} {_at(decision.decided_at, now)} {cause_in_short(decision)}".rstrip()

    if standings.retired(unit):
        return said(GONE, happened(stopped or last), stopped or last)
    if stopped is not None:
        return said(STOPPED, f"{happened(stopped)}, waits for rearm", stopped)
    at = weight_percent(weight)
    paused = standings.paused(unit)
    if paused is not None:
        return said(ATTENTION, f"{at}, {happened(paused)}, waits for resume", last)
    if last.verdict == "hold":
        return said(*_held(last, at, now))
    if last.verdict == "close":
        return said(_closed(last), f"{happened(last)}, canary {at}")
    if engaged and last.kind in STATES:
        words = f"{STATES[last.kind][1]} as of {_at(last.decided_at, now)}"
        return said(GOOD if last.kind == "quality_gated" else ATTENTION, f"{words}, {cause_in_short(last)}")
    if last.verdict == "freeze":
        return said(ATTENTION, f"{happened(last)}, canary stays at {at}")
    if last.kind in STATES:
        return said(GOOD, f"{STATES[last.kind][0]}, {happened(last)}")
    if last.verdict == "promote":
        by = f" {cause_in_short(last)}" if last.operation is not None else ""
        return said(GOOD, f"promoted {_at(last.decided_at, now)} to {at}{by}")
    if last.verdict == "pass":
        return said(GOOD, f"{at}, passed {_at(last.decided_at, now)}")
    return said(WAITING, f"{at}, {happened(last)}")


def _held(last: Decision, at: str, now: int) -> tuple[int, str]:
    """Return the level of a unit that is held, and the words for it."""
    status = {gate.gate: gate.status for gate in last.gates}
    problems = [one.problem for one in last.evidence_problems if one.problem != "insufficient_data"]
    failed = [gate for gate in last.gates if gate.status == "fail" and gate.gate in last.reasons]
    late = ", longer than policy.patience" if "patience" in last.reasons else ""
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        return ATTENTION, f"{at}, held by {plain(problems[0])}{more}{late}"
    if failed:
        return ATTENTION, f"{at}, held by {gate_value(failed[0])}{late}"
    if last.change_freeze is not None:
        return WAITING, f"{at}, green, change freeze until {_at(last.change_freeze.end, now)}"
    if "hold_windows" in last.reasons:
        return WAITING, f"{at}, green, held for window.hold_windows"
    open_ = [name for name in last.reasons if status.get(name) in ("undecided", "unknown")]
    level = ATTENTION if late else WAITING
    if open_ or "insufficient_data" in last.reasons:
        minutes = minutes_left(last)
        left = "no end in sight" if minutes is None else f"about {in_short(minutes)} left"
        judged = kind_gates(last.kind)
        of = sum(gate.gate in judged and gate.status not in ("off", "not_applicable") for gate in last.gates)
        what = f"{len(open_)} of {of} gates open" if open_ else "too few requests"
        return level, f"{at}, {left}, {what}{late}"
    return level, f"{at}, held: {', '.join(map(plain, last.reasons))}"


def _closed(last: Decision) -> int:
    """Return the level of a closed quality gate: by what it saw, or as it saw too little."""
    if any(rule.fired and rule.severity == "hard" for rule in last.abort_rules):
        return STOPPED
    if any(gate.status == "fail" and gate.gate in last.reasons for gate in last.gates):
        return STOPPED
    return WAITING if "insufficient_data" in last.reasons or not last.evidence_problems else ATTENTION


class Board:
    """The last decision and the last weights of each unit, and which one is chosen; ``flag``: only this one's units."""

    def __init__(self, flag: str | None = None) -> None:
        self._flag = flag
        self.standings = Standings()
        self._seen: set[str] = set()
        self._written: dict[str, int] = {}
        self.weights: Mapping[str, Weights] = {}
        self._chosen: str | None = None

    def shows(self, flag: str) -> bool:
        """Tell whether a flag's units are shown."""
        return self._flag in (None, flag)

    def take(self, decision: Decision, written: int | None = None) -> bool:
        """Note a decision that was ``written`` at a time, ms; False if it was seen before or is not to be shown."""
        if not self.shows(decision.flag) or decision.decision_id in self._seen:
            return False
        self._seen.add(decision.decision_id)
        self._written[decision.key] = decision.decided_at if written is None else written
        self.standings.follow(decision)
        return True

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """The last decision of each unit."""
        return self.standings.last

    def weight(self, unit: str) -> float:
        """Return the canary's weight, as the last command says, or else the last decision."""
        commanded = self.weights.get(unit)
        return commanded.canary if commanded else self.decisions[unit].stage.canary_weight

    def rows(self, now: int) -> list[Standing]:
        """Return the standing of each unit, worst first; ``now``: ms."""
        found = (standing(unit, self.standings, self.weight(unit), now) for unit in self.decisions)
        return sorted(found, key=lambda row: (row.level, row.unit))

    def move(self, by: int, now: int) -> None:
        """Choose the unit that stands so many lines below the chosen one."""
        units = [row.unit for row in self.rows(now)]
        if units:
            at = units.index(self._chosen) if self._chosen in units else 0
            self._chosen = units[min(max(at + by, 0), len(units) - 1)]

    def frame(
        self, width: int, height: int | None, now: int, *, away: str = "", telemetry: str = "", keys: str = ""
    ) -> list[Text]:
        """Return the lines of a screen, none longer than ``width``, at most ``height`` of them; None: all there is.

        ``away``: since when the broker does not answer; ``telemetry``: how much of it counts.
        """
        rows = self.rows(now)
        header = self._header(rows, now, away)
        footer = [Text(line, GREY) for line in (plain(telemetry), keys) if line]
        if not rows:
            body = [Text("waiting for the first decision")]
        else:
            at = next((i for i, row in enumerate(rows) if row.unit == self._chosen), 0)
            details = list(self._details(rows[at], width, now))
            room = None if height is None else height - len(header) - len(footer) - 1
            shown = len(rows) if room is None else min(len(rows), max(room - len(details), min(5, room // 2)))
            first = min(max(at - shown // 2, 0), len(rows) - shown)
            ages = [in_short((now - self._written[row.unit]) / 60_000) for row in rows]
            body = _lines(rows, at, slice(first, first + shown), width, ages)
            part = f" {first + 1} to {first + shown} of {len(rows)} units " if shown < len(rows) else ""
            body.append(Text(f"──{part}".ljust(width, "─"), GREY))
            body += details if room is None else _cut(details, room - shown)
        lines = [*header, *body, *footer]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return lines if height is None else lines[:height]

    def _header(self, rows: list[Standing], now: int, away: str) -> list[Text]:
        counts = [(sign, sum(row.level == level for row in rows)) for level, sign in enumerate(LEVEL_SIGNS)]
        header = Text(f"{many(len(rows), 'unit')}", "bold")
        header.append("".join(f"  {sign} {count}" for sign, count in counts if count))
        if rows:
            age = in_short((now - max(self._written[row.unit] for row in rows)) / 60_000)
            header.append(f"  newest decision {age} old", "not bold")
        header.append(f"  {clock(now)} UTC", "not bold")
        lines = [header]
        if away:
            lines.append(Text(f"! broker away {away}: what is shown is from before", f"bold {RED}"))
        return lines

    def _details(self, row: Standing, width: int, now: int) -> Iterator[Text]:
        """Yield the chosen unit: what was decided and when, on what evidence, until when it lasts, and every gate."""
        decision, stage = row.decision, row.decision.stage
        yield from _wrapped(f"{row.sign} {_unit(decision)}: {row.words}", width, f"bold {_hue(row.level)}")
        age = in_short((now - self._written[row.unit]) / 60_000)
        last = self.decisions[row.unit]
        later = "" if last is decision else f", last {last.verdict} {short_id(last)}"
        yield Text(f"decision {short_id(decision)} of {iso(decision.decided_at)}, {age} old{later}")
        arms = [decision.arms.get(name) for name in ("canary", "baseline")]
        seen = " and ".join(
            f"{arm.requests:,} {name}" for name, arm in zip(("canary", "baseline"), arms, strict=True) if arm
        )
        span = decision.evidence
        windows = ""
        if span is not None:
            windows = f" in {many(span.windows, 'window')} since {_at(span.since, now)}"
            windows += f", {span.left_out} left out" if span.left_out else ""
        ramp = f"stage {stage.index} at {weight_percent(stage.canary_weight)}"
        where = ramp if decision.kind == "progressive_rollout" else plain(decision.kind).replace("_", " ")
        yield from _wrapped(f"{where}: {seen + ' requests' if seen else 'no window yet'}{windows}", width)
        for rule in decision.abort_rules:
            if rule.fired:
                yield Text(f"✗ {rule.severity} rule {rule_value(rule)} in {rule.n:,} rows", RED)
        for problem in problem_lines(decision):
            yield from _wrapped(f"! {problem}", width, AMBER)
        for ending in endings(last, {"gate", "rule", *last.reasons}):
            yield from _wrapped(ending, width)
        yield from _gates(decision)


def _hue(level: int) -> str:
    return STYLES[level].removeprefix("bold ")


def _unit(decision: Decision) -> str:
    return plain(decision.flag) + (f"/{plain(decision.region)}" if decision.region else "")


def _wrapped(words: str, width: int, style: str = "", most: int = 2) -> Iterator[Text]:
    """At most ``most`` lines of a text, the last one cut where there is more."""
    left = words
    for number in range(most):
        line = Text(left, style)
        if line.cell_len <= width or number == most - 1:
            yield line
            return
        cut = left.rfind(" ", 0, width + 1)
        cut = cut if cut > width // 2 else width
        yield Text(left[:cut], style)
        left = "  " + left[cut:].lstrip()


def _cut(lines: list[Text], most: int) -> list[Text]:
    """At most so many lines; the last one says how many more there are."""
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], Text(f"… {len(lines) - most + 1} more lines in a taller window", GREY)]


def _lines(rows: list[Standing], at: int, shown: slice, width: int, ages: list[str]) -> list[Text]:
    """Some rows: a mark at the chosen one, the sign, the unit, how it stands, how old that is."""
    names = [_name(row.decision, int(width * NAME_SHARE)) for row in rows[shown]]
    longest = max((Text(name).cell_len for name in names), default=0)
    room = width - longest - 11
    lines = []
    for number, (row, name) in enumerate(zip(rows[shown], names, strict=True), shown.start):
        words, line = Text(row.words), Text("> " if number == at else "  ")
        words.truncate(room, overflow="ellipsis", pad=True)
        style = STYLES[row.level]
        line.append(f"{row.sign} ", style).append(name + " " * (longest - Text(name).cell_len), "bold" * (number == at))
        lines.append(line.append("  ").append(words.plain, style).append(f" {_packed(ages[number]):>4}", GREY))
    return lines


def _packed(length: str) -> str:
    """Return a length of time without its space, and minutes as m."""
    return length.replace(" ", "").replace("min", "m")


def _name(decision: Decision, most: int) -> str:
    """Return the unit in at most so many cells: of a long flag the end is cut, as a region tells two units apart."""
    region = f"/{plain(decision.region)}" if decision.region else ""
    whole, flag = Text(plain(decision.flag) + region), Text(plain(decision.flag))
    if whole.cell_len > most:
        flag.truncate(max(most - Text(region).cell_len, 8), overflow="ellipsis")
    name = Text(flag.plain + region)
    name.truncate(most, overflow="ellipsis")
    return name.plain


def _gates(decision: Decision) -> Iterator[Text]:
    """Yield the gates that the flag decides on, worst first: value, bound, limit, value to exclude, status."""
    rows = gate_rows(decision, only_judged=True)
    ranks = {status: number for number, status in enumerate(_WORST_FIRST)}
    rows.sort(key=lambda row: ranks.get(row.status, len(ranks)))
    if not rows:
        return
    cells = [["gate", "observed", "bound", "limit", "rule out", ""]]
    cells += [[r.name, r.observed, r.bound, r.limit, r.rule_out, f"{r.status} {r.along}".strip()] for r in rows]
    kept = [i for i in range(len(cells[0])) if i in (0, 5) or any(row[i] for row in cells[1:])]
    widths = [max(Text(row[i]).cell_len for row in cells) for i in kept]
    for number, row in enumerate(cells):
        line = Text(style=GREY if not number else "")
        for i, wide in zip(kept, widths, strict=True):
            pad = " " * (wide - Text(row[i]).cell_len)
            style = rows[number - 1].style if number and i in (1, 5) else ""
            line.append(row[i] + pad if i in (0, 5) else pad + row[i], style).append("  ")
        line.rstrip()
        yield line


def table(lines: list[Text]) -> Table:
    """Return lines as one thing to print, each on a line of its own."""
    grid = Table.grid()
    grid.add_column(no_wrap=True, overflow="ellipsis")
    for line in lines:
        grid.add_row(line)
    return grid
