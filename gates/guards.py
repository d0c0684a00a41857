"""The other kinds of flag: a gate that opens and closes, guards that step in and out, a switch."""

from tidegate.gates.machine import Machine
from tidegate.gates.records import Judgement, Reading, unfired
from tidegate.gates.rules import rounded
from tidegate.schemas.decision import Action, Decision, GateResult, Problem, RuleResult, Verdict
from tidegate.schemas.manifest import SLACK

RESTORE_AT = 0.9
"""Share of the cost limit at which a cost guard steps out again."""
REASON_FAILURES_MAX = 0.01
"""Share of requests whose reason step may fail before a safety guard steps in."""


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
        """Return the verdict and its reasons."""
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
        """Return the share of failed reason steps, and those that were served in full."""
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
