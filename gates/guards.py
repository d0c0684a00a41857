"""The other kinds of flag: a gate that opens and closes, guards that step in and out, a switch."""

from gates.machine import Machine
from gates.ramp import Ramp
from gates.records import Judgement, Reading, unfired
from gates.regions import Regions
from gates.rules import QUALITY_GATES, SLACK, rounded
from gates.staged import StagedRamp
from gates.unit import Clockwork, Unit
from gates.window import PaneUnit
from schemas.decision import Action, Decision, GateResult, Problem, RuleResult, Verdict
from schemas.manifest import Flag

RESTORE_AT = 0.9
"""Share of the cost limit at which a cost guard steps out again."""
REASON_FAILURES_MAX = 0.01
"""Share of requests whose reason step may fail before a safety guard steps in."""


class QualityGate(Ramp):
    """Open only while ΔS, coverage and λ are inside their bounds in the current window; closed at first."""

    staged = False

    @property
    def stages(self) -> tuple[float, ...]:
        """The one weight of an open gate."""
        return (self.flag.traffic.stages[0],)

    @property
    def shadowed(self) -> bool:
        """While the gate is closed, from a window's start."""
        return not (self.unit.engaged or self.unit.cut)

    def judge_pane(self) -> Judgement | None:
        """A close if a hard rule is sure to be broken while the gate is open."""
        return self._surely_broken("close", None) if self.unit.engaged else None

    def judge_window(self) -> Judgement:
        """Open if all three are known and pass on sound evidence, else closed."""
        unit = self.unit
        reading = self._read()
        gates, rules, found = self._judged(reading, None)
        if unit.latched:
            return Judgement("hold", ["latched"], reading, gates, rules, found)
        hard = [rule.kind for rule in rules if rule.fired and rule.severity == "hard"]
        quality = [gate for gate in gates if gate.gate in QUALITY_GATES]
        failed = [gate.gate for gate in quality if gate.status == "fail"]
        unknown = [gate.gate for gate in quality if gate.status == "unknown"]
        reasons = hard or [problem.problem for problem in found] or failed or unknown
        if reasons or unit.cut:
            reasons = reasons or ["latched"]
            waits = not hard and not failed
            return self._state("close", list(dict.fromkeys(reasons)), reading, gates, rules, found, waits=waits)
        return self._state("open", ["all_gates_pass"], reading, gates, rules, found)

    def _state(
        self,
        verdict: Verdict,
        reasons: list[str],
        reading: Reading,
        gates: list[GateResult],
        rules: list[RuleResult],
        found: list[Problem],
        *,
        waits: bool = False,
    ) -> Judgement:
        opening = verdict == "open"
        action: Action | None = None if opening == self.unit.engaged else "open" if opening else "close"
        weight = self.stages[0] if opening else 0.0
        return Judgement(verdict, reasons, reading, gates, rules, found, None, action, weight, waits=waits)

    def moved(self, judgement: Judgement, decision: Decision, at: int | None) -> None:
        """Remember whether the gate is open; a window in which it was closed early opens it no more."""
        self._engage(judgement.verdict)
        if not self.unit.latched:
            self.unit.cut = self.unit.cut or at is not None
        if judgement.action is not None:
            self._let_move(decision.decided_at)
        if at is None:
            self._next_window(judgement)


class Guard(Machine):
    """Steps in and out without ever changing weights."""

    stepping_in: Action

    def judge_window(self) -> Judgement:
        """Step in, stay, step out, or nothing to say."""
        reading = self._read()
        gates, rules, found = self._judged(reading, None)
        rules = [*map(unfired, rules), *self.own_rules(reading)]
        if self.unit.latched:
            return Judgement("hold", ["latched"], reading, gates, rules, found)
        verdict, reasons = self.verdict(reading, gates, rules, found)
        engaged = self.unit.engaged
        acts = verdict == "restore" if engaged else verdict == self.stepping_in
        action: Action | None = verdict if acts else None  # type: ignore[assignment]
        waits = verdict == "hold"
        return Judgement(verdict, reasons, reading, gates, rules, found, None, action, None, waits=waits)

    def own_rules(self, reading: Reading) -> list[RuleResult]:
        """Rules that only this guard has."""
        return []

    def verdict(
        self, reading: Reading, gates: list[GateResult], rules: list[RuleResult], found: list[Problem]
    ) -> tuple[Verdict, list[str]]:
        """The verdict and its reasons."""
        raise NotImplementedError

    def moved(self, judgement: Judgement, decision: Decision, at: int | None) -> None:
        """Remember whether the guard has stepped in."""
        self._engage(judgement.verdict)
        if at is None:
            self._next_window(judgement)


class CostGuard(Guard):
    """Falls back while the cost per solved request is over its budget."""

    stepping_in = "fallback"

    def verdict(
        self, reading: Reading, gates: list[GateResult], rules: list[RuleResult], found: list[Problem]
    ) -> tuple[Verdict, list[str]]:
        """``fallback`` when the cost gate fails, ``restore`` at 0.9 of the limit."""
        cost = next(gate for gate in gates if gate.gate == "cost_uplift_max")
        if found:
            return "hold", list(dict.fromkeys(problem.problem for problem in found))
        if cost.status == "unknown":
            return "hold", [cost.gate]
        if cost.status == "fail":
            return "fallback", [cost.gate]
        if not self.unit.engaged:
            return "pass", ["all_gates_pass"]
        limit = float(cost.threshold) if cost.threshold is not None else None
        if limit is None or (cost.observed is not None and cost.observed <= RESTORE_AT * limit + SLACK):
            return "restore", ["all_gates_pass"]
        return "hold", ["hysteresis"]


class SafetyGuard(Guard):
    """Degrades to cite-only answers when the canary's reason step fails."""

    stepping_in = "degrade"

    def own_rules(self, reading: Reading) -> list[RuleResult]:
        """The share of failed reason steps, and those that were served in full."""
        served, least = reading.canary.served, self.flag.window.min_requests
        rows, failed, full = served["reason_rows"], served["reason_failed"], served["reason_in_full"]
        share = failed / reading.canary.rows if rows else None
        over = share is not None and reading.canary.rows >= least and share > REASON_FAILURES_MAX + SLACK
        return [
            RuleResult(
                kind="reason_failed_served_in_full",
                severity="soft",
                value=0.0,
                observed=float(full) if rows else None,
                n=rows,
                fired=full > 0,
            ),
            RuleResult(
                kind="reason_failure_rate_over",
                severity="soft",
                value=REASON_FAILURES_MAX,
                observed=rounded(share),
                n=reading.canary.rows,
                fired=over,
            ),
        ]

    def verdict(
        self, reading: Reading, gates: list[GateResult], rules: list[RuleResult], found: list[Problem]
    ) -> tuple[Verdict, list[str]]:
        """``degrade`` whatever the evidence; ``restore`` after a clean window."""
        fired = [rule.kind for rule in rules if rule.fired]
        if fired:
            return "degrade", fired
        if found:
            return "hold", list(dict.fromkeys(problem.problem for problem in found))
        rows = reading.canary.served["reason_rows"]
        if rows < self.flag.window.min_requests:
            return "hold", ["reason_status"]
        return ("restore" if self.unit.engaged else "pass"), ["reason_steps_pass"]


class KillSwitch(Machine):
    """On until an operator or a manifest turns it off; telemetry is only looked at for the regions it names."""

    windowed = False

    def add(self, partition: int, seen: PaneUnit) -> None:
        """Keep nothing: there is no window that would ever let go of it."""

    def judge_window(self) -> Judgement:
        """There are no windows."""
        raise AssertionError("a kill switch has no windows")


KINDS: dict[str, type[Machine]] = {
    "progressive_rollout": Ramp,
    "quality_gated": QualityGate,
    "cost_guard": CostGuard,
    "safety_guard": SafetyGuard,
    "kill_switch": KillSwitch,
}


def machine(flag: Flag, unit: Unit, clockwork: Clockwork, regions: Regions | None = None) -> Machine:
    """The state machine of a flag's kind over a unit's state."""
    staged = flag.kind == "progressive_rollout" and flag.policy.evidence == "sequential"
    return (StagedRamp if staged else KINDS[flag.kind])(flag, unit, clockwork, regions)
