"""The quality gate: open only while quality is inside its bounds."""

from tidegate.gates.ramp import Ramp
from tidegate.gates.records import Judgement, Reading
from tidegate.gates.rules import QUALITY_GATES
from tidegate.schemas.decision import Action, Decision, GateResult, Problem, RuleResult, Verdict


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
        """Return a close if a hard rule is sure to be broken while the gate is open."""
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
