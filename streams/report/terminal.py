"""Decisions on a terminal, or as plain lines where there is none."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from tidegate.gates.power import kind_gates
from tidegate.schemas.catalogue import FLOORS, VERDICTS, engaged_after, engaged_under, retired_after
from tidegate.schemas.decision import Command, Decision, GateResult, RuleResult
from tidegate.schemas.manifest import Flag
from tidegate.schemas.times import clock
from tidegate.streams.report.text import plain, problem_words

RED, AMBER, GREEN, TEAL, GREY = "#e42424", "#b45f06", "#008910", "#0080a0", "#767676"
"""Colours that can be read on black and on white; none says what no word or sign says too."""
GATE_STYLE = {
    "pass": GREEN,
    "fail": f"bold {RED}",
    "undecided": AMBER,
    "unknown": AMBER,
    "waived": TEAL,
    "not_applicable": GREY,
    "off": GREY,
}
VERDICT_STYLE = {
    "promote": f"bold {GREEN}",
    "pass": f"bold {GREEN}",
    "open": f"bold {GREEN}",
    "restore": f"bold {GREEN}",
    "rearm": f"bold {TEAL}",
    "resume": f"bold {TEAL}",
    "pause": f"bold {AMBER}",
    "hold": AMBER,
    "freeze": f"bold {AMBER}",
    "degrade": f"bold {AMBER}",
    "fallback": f"bold {AMBER}",
    "close": f"bold {RED}",
    "rollback": f"bold {RED}",
    "abort": f"bold {RED}",
    "kill": f"bold {RED}",
    "retire": f"bold {RED}",
}
STATES = {
    "quality_gated": ("closed", "open"),
    "cost_guard": ("full chain", "light chain"),
    "safety_guard": ("full answers", "cite-only answers"),
    "kill_switch": ("on", "killed"),
}
"""Names of the states of a flag that is not a ramp: at rest, and engaged."""
_SHARES = ("latency_p95_uplift_max", "error_rate_max", "tool_success_min", "cost_uplift_max")
_CHANGES = ("delta_s.median_max", "delta_s.p95_max", "latency_p95_uplift_max", "cost_uplift_max")
BAR_WIDTH = 40


def weight_percent(share: float) -> str:
    """Return a weight as people say it."""
    return f"{100 * share:.4g} %"


def observed(gate: GateResult) -> str:
    """Format the value that a gate saw, in its unit."""
    if gate.observed is None:
        return "?"
    if gate.gate == "lambda_convergent":
        return f"{round(gate.observed * gate.n_canary)}/{gate.n_canary}"
    sign = "+" if gate.gate in _CHANGES else ""
    return f"{100 * gate.observed:{sign}.2f} %" if gate.gate in _SHARES else f"{gate.observed:{sign}.4f}"


def limit(gate: GateResult) -> str:
    """Format the limit of a gate."""
    if gate.threshold is None or gate.status == "off":
        return "off"
    if gate.gate == "lambda_convergent":
        return "all"
    sign = "≥" if gate.gate in FLOORS else "≤"
    return f"{sign} {weight_percent(gate.threshold) if gate.gate in _SHARES else gate.threshold}"


@dataclass(frozen=True)
class UnitRow:
    """A gate, or a rule that stands for one, as it is shown. ``judged``: the flag's verdict depends on it.

    ``bound``, ``rule_out``: how far the value may still be off, and what that has to exclude; empty where no evidence
    of a stage is asked. ``along``: how much of what an undecided gate takes is there.
    """

    name: str
    observed: str
    bound: str
    limit: str
    rule_out: str
    along: str
    canary_rows: int
    baseline_rows: int | None
    status: str
    style: str
    judged: bool


def gate_rows(decision: Decision, *, only_judged: bool = False) -> list[UnitRow]:
    """Return a safety guard's rules, then the gates; ``only_judged``: those alone that the flag decides on."""
    judged = kind_gates(decision.kind)
    rows = [_rule_row(rule) for rule in decision.abort_rules if rule.kind.startswith("reason_")]
    for gate in decision.gates:
        counts = gate.n_canary, gate.n_baseline
        decides = gate.gate in judged
        status = gate.status.replace("_", " ") if decides else "not judged"
        style = GATE_STYLE[gate.status] if decides else GREY
        shown = observed(gate), _bound(gate), limit(gate), _ruled_out(gate), _along(decision, gate)
        rows.append(UnitRow(plain(gate.gate), *shown, *counts, status, style, decides))
    return [row for row in rows if row.judged or not only_judged]


def _rule_row(rule: RuleResult) -> UnitRow:
    seen, most, share = rule.observed, rule.value or 0.0, rule.kind.endswith("_rate_over")
    shown = "?" if seen is None else f"{100 * seen:.2f} %" if share else f"{seen:g}"
    allowed = f"≤ {weight_percent(most) if share else f'{most:g}'}"
    status, style = ("fired", f"bold {RED}") if rule.fired else ("pass", GREEN)
    return UnitRow(plain(rule.kind), shown, "", allowed, "", "", rule.n, None, status, style, judged=True)


def _bound(gate: GateResult) -> str:
    """Return the end of the interval that has to exclude the value to rule out."""
    if gate.rule_out is None or gate.status == "off":
        return ""
    end = gate.lower if gate.gate in FLOORS else gate.upper
    # Of λ the share of flips, as its value to rule out is one.
    return "none" if end is None else _value(gate, 1 - end if gate.gate == "lambda_convergent" else end)


def _ruled_out(gate: GateResult) -> str:
    return "" if gate.rule_out is None or gate.status == "off" else _value(gate, gate.rule_out)


def _value(gate: GateResult, value: float) -> str:
    return weight_percent(value) if gate.gate in (*_SHARES, "lambda_convergent") else f"{value:.3g}"


def _along(decision: Decision, gate: GateResult) -> str:
    """Format how many of the canary requests that it takes have come, as a share."""
    if gate.status != "undecided" or gate.forecast is None:
        return ""
    more = gate.forecast.canary
    rows = decision.arms["canary"].requests if "canary" in decision.arms else 0
    return "?" if more is None else f"{rows / max(rows + more, 1):.0%}"


def gates_table(decision: Decision) -> Table:
    """Return every gate with its value, its limit and the rows it rests on."""
    table = Table("gate", box=None, pad_edge=False, header_style=GREY)
    staged = decision.evidence is not None
    for title in ("observed", *(["bound"] * staged), "limit", *(["rule out"] * staged), "canary rows", "baseline rows"):
        table.add_column(title, justify="right")
    table.add_column("")
    for row in gate_rows(decision):
        table.add_row(
            row.name,
            Text(row.observed, style=row.style),
            *([row.bound] * staged),
            row.limit,
            *([row.rule_out] * staged),
            f"{row.canary_rows:,}",
            "" if row.baseline_rows is None else f"{row.baseline_rows:,}",
            Text(f"{row.status} {row.along}".strip(), style=row.style),
            style="" if row.judged else GREY,
        )
    return table


def verdict(decision: Decision) -> Text:
    """Return the verdict in its colour, with the reasons: of gates that are not known or settled yet that they are."""
    said = Text(decision.verdict, style=VERDICT_STYLE.get(decision.verdict, ""))
    return said.append(f" ({'; '.join(_reasons(decision))})", style=GREY)


def _reasons(decision: Decision) -> Iterator[str]:
    status = {gate.gate: gate.status for gate in decision.gates}
    by_status: dict[str, list[str]] = {}
    for reason in decision.reasons:
        open_ = status.get(reason, "")
        by_status.setdefault(open_ if open_ in ("undecided", "unknown") else "", []).append(plain(reason))
    for open_, reasons in by_status.items():
        yield (f"{open_}: " if open_ else "") + ", ".join(reasons)


def outcome(decision: Decision) -> Text:
    """Return one line: window, stage, verdict, reasons; for an operator's order who gave it and why."""
    by = decision.operation
    if by is not None:
        said = Text(decision.verdict, style=VERDICT_STYLE.get(decision.verdict, ""))
        return Text(f"{clock(decision.decided_at)}  ").append(said).append(f" by {plain(by.actor)}: {plain(by.reason)}")
    if decision.window.start == decision.window.end:
        return Text(f"{clock(decision.decided_at)}  ").append(verdict(decision))
    window = f"{clock(decision.window.start)}-{clock(decision.window.end)}"
    early = "" if decision.window.closed else f" cut at {clock(decision.decided_at)}"
    weight = decision.stage.canary_weight
    closed = decision.kind == "quality_gated" and not weight
    where = f"{'closed':8}" if closed else f"at {weight_percent(weight):>5}"
    return Text(f"{window}{early}  {where}  ").append(verdict(decision))


def problem_lines(decision: Decision) -> list[str]:
    """Return one line for each evidence problem, with what was seen."""
    return [problem_words(found) for found in decision.evidence_problems]


def order(command: Command) -> Text:
    """Return one line: what a router has to do."""
    weight = weight_percent(command.weights.canary)
    what = f"canary stays at {weight}" if command.weights == command.previous_weights else f"canary {weight}"
    return Text(f"command {command.seq}: {command.action}, {what} from {clock(command.effective_from)}")


def plain_gates(decision: Decision) -> str:
    """Everything that the flag decides on, in one line."""
    rows = gate_rows(decision, only_judged=True)
    return "; ".join(f"{row.name} {row.observed} ({row.limit}) {row.status} {row.along}".strip() for row in rows)


def state(kind: str, weight: float, *, engaged: bool) -> str:
    """Describe the state of a flag: open or closed, stepped in or not, and the canary's weight."""
    canary = f"canary {weight_percent(weight)}"
    return f"{STATES[kind][engaged]}, {canary}" if kind in STATES else canary


class Standings:
    """Standings of the units: the last decision of each, and whether it is engaged; see ``schemas/catalogue.py``."""

    def __init__(self) -> None:
        self.last: dict[str, Decision] = {}
        self._engaged: dict[str, bool] = {}
        self._retired: set[str] = set()
        self._stopped: dict[str, Decision] = {}
        self._paused: dict[str, Decision] = {}

    def follow(self, decision: Decision) -> None:
        """Take in the next decision of a unit."""
        unit, closed = decision.key, decision.window.closed
        engaged, last = self._engaged.get(unit, False), self.last.get(unit)
        if last is not None:
            same = decision.manifest_hash == last.manifest_hash
            engaged = bool(engaged_under(engaged, last.kind, decision.kind, same_manifest=same))
        after = engaged_after(engaged, decision.verdict, decision.kind, reasons=decision.reasons, closed=closed)
        self.last[unit], self._engaged[unit] = decision, bool(after)
        if decision.verdict == "pause":
            self._paused[unit] = decision
        elif decision.verdict in ("resume", "retire"):
            self._paused.pop(unit, None)
        if VERDICTS[decision.verdict].ended:
            self._stopped[unit] = decision
        elif "latched" not in decision.reasons and decision.verdict not in ("pause", "resume"):
            self._stopped.pop(unit, None)
        if retired_after(unit in self._retired, decision.verdict):
            self._retired.add(unit)
        else:
            self._retired.discard(unit)

    def retired(self, unit: str) -> bool:
        """Tell whether a unit's flag has left the manifest."""
        return unit in self._retired

    def stopped(self, unit: str) -> Decision | None:
        """Return the decision that ended a unit's rollout, for as long as it stays ended."""
        return self._stopped.get(unit)

    def paused(self, unit: str) -> Decision | None:
        """Return the pause that holds a unit's promotes."""
        return self._paused.get(unit)

    def engaged(self, unit: str) -> bool:
        """Tell whether a unit is engaged; one without a decision is not."""
        return self._engaged.get(unit, False)


def state_bar(flag: Flag, weight: float, *, engaged: bool, ended: bool = False) -> Text:
    """Return the stages or states, the one in effect marked, and the canary's share of the traffic as a bar.

    ``ended``: the canary was taken away, so its weight of 0 is no stage.
    """
    if flag.kind in STATES:
        names, at = list(STATES[flag.kind]), int(engaged)
    else:
        names = [weight_percent(stage) if stage else "shadow" for stage in flag.ramp_stages]
        at = flag.ramp_stages.index(weight) if weight in flag.ramp_stages and not ended else -1
    bar = Text()
    for number, name in enumerate(names):
        bar.append((" ⇄ " if flag.kind in STATES else " → ") if number else "", style=GREY)
        bar.append(f"[{name}]" if number == at else name, "bold" if number == at else GREY)
    filled = round(weight * BAR_WIDTH)
    bar.append("   ").append("█" * filled, GREEN).append("░" * (BAR_WIDTH - filled), TEAL)
    return bar.append(f"  canary {weight_percent(weight)}")
