"""Progressive rollout: from the first stage to the last, window by window, or back to nothing.

A unit is in one of four states, and these are its legal moves: by its own verdicts, by an operator (kill, rearm,
pause, resume, promote), by time alone (—), or by the manifest (retire). There are no others:
``tests/properties/test_moves.py`` reads this table.

========== ======== ==========
from       by       to
========== ======== ==========
settling   —        running
settling   abort    latched
running    hold     running
running    freeze   running
running    promote  settling
running    promote  running
running    pass     graduated
running    rollback latched
running    abort    latched
graduated  hold     graduated
graduated  pass     graduated
graduated  rollback latched
graduated  abort    latched
latched    hold     latched
settling   kill     latched
running    kill     latched
graduated  kill     latched
latched    kill     latched
settling   pause    settling
settling   resume   settling
running    pause    running
running    resume   running
graduated  pause    graduated
graduated  resume   graduated
latched    pause    latched
latched    resume   latched
settling   rearm    settling
running    rearm    settling
graduated  rearm    settling
latched    rearm    settling
running    rearm    running
graduated  rearm    running
latched    rearm    running
settling   retire   latched
running    retire   latched
graduated  retire   latched
latched    retire   latched
========== ======== ==========

settling: the span before a stage, or before a new rollout, in which abort rules alone are judged. running: a window of
a stage. graduated: at 100 %, after its last stage has passed: it is judged on. latched: over, until a rearm or a
revision of the manifest begins another rollout. A promote or a rearm leads to running at once where nothing has to
settle: without lateness and ``window.settle``.
"""

from collections.abc import Iterator
from typing import Literal

from tidegate.gates.bounds import alpha_for_window
from tidegate.gates.evidence import rate_limited
from tidegate.gates.machine import Machine
from tidegate.gates.recorder import Outcome
from tidegate.gates.records import Judgement, unfired
from tidegate.gates.rules import SOFT_GATES
from tidegate.gates.unit import Pinned
from tidegate.gates.window import Arm
from tidegate.schemas.catalogue import VERDICTS
from tidegate.schemas.decision import Action, ChangeFreeze, Decision, OperationBy, Verdict

COMPARED = ("delta_s.median_max", "delta_s.p95_max", "latency_p95_uplift_max", "cost_uplift_max")
"""Gates that hold the canary against the baseline."""


class Ramp(Machine):
    """A unit of a progressive rollout."""

    staged = True

    @property
    def shadowed(self) -> bool:
        """In the first stage."""
        return self.unit.stage == 0

    def judge_pane(self) -> Judgement | None:
        """Return an abort if a hard rule is sure to be broken while the window is still open."""
        return self._surely_broken("abort", "hard")

    def _surely_broken(self, action: Literal["abort", "close"], severity: Literal["hard"] | None) -> Judgement | None:
        reading = self._read()
        hard = len(self.flag.abort_rules.hard)
        alpha = alpha_for_window(self.flag.policy.false_stop, self.unit.number) / max(hard, 1)
        comparison = reading.comparison(self.flag)
        drift = self._drift_rule(self._evidence(reading))
        if not any(rule.fired for rule in comparison.hard_rules(alpha) + drift):
            return None
        gates, rules, problems = self._judged(reading, alpha)
        fired = [rule.kind for rule in rules if rule.fired]
        return Judgement(action, fired, reading, gates, rules, problems, severity, action, 0.0)

    def judge_window(self) -> Judgement:
        """Judge the window at its end: abort, then evidence, then failed gates, then unknown ones, then promote."""
        unit, flag = self.unit, self.flag
        seen = self._assess()
        gates, rules, found = seen.gates, seen.rules, seen.problems

        def judgement(
            verdict: Verdict,
            reasons: list[str],
            severity: Literal["hard", "soft"] | None = None,
            *,
            weight: float | None = 0.0,
            waits: bool = False,
            freeze: ChangeFreeze | None = None,
        ) -> Judgement:
            action: Action | None = None if verdict in ("hold", "pass") else verdict  # type: ignore[assignment]
            if verdict == "hold" and reasons != ["latched"]:
                reasons = [*reasons, *self._impatient()]
            return seen.judgement(
                verdict, reasons, severity, action, weight, rules=rules, freeze=freeze, waits=waits, drifted=drifted
            )

        drifted = 0
        if unit.graduated:
            # What it is compared with is of another time: the day's peak is no fault of the canary.
            drifted = sum(gate.status == "fail" for gate in gates if gate.gate in COMPARED)
            rules = [unfired(rule) if rule.severity == "soft" else rule for rule in rules]
        judged = [gate for gate in gates if not (unit.graduated and gate.gate in COMPARED)]
        hard = [rule.kind for rule in rules if rule.fired and rule.severity == "hard"]
        soft = [rule.kind for rule in rules if rule.fired and rule.severity == "soft"]
        failed = [gate.gate for gate in judged if gate.status == "fail"]
        open_ = [gate.gate for gate in judged if gate.status in ("unknown", "undecided")]
        if unit.latched or unit.cut:
            return judgement("hold", ["latched"])
        if hard:
            return judgement("abort", hard, "hard")
        green, unit.green = unit.green, 0
        if found:
            return judgement("hold", [problem.problem for problem in found], waits=True)
        if failed:
            if not set(failed) <= set(SOFT_GATES.values()):
                return judgement("rollback" if flag.policy.on_gate_fail == "rollback" else "hold", failed)
            if not unit.strike:
                unit.strike = True
                return judgement("freeze", failed + soft, "soft", weight=None)
            if flag.policy.on_gate_fail == "rollback":
                return judgement("rollback", failed + soft, "soft")
            return judgement("hold", failed + soft)
        if open_:
            return judgement("hold", open_, waits=True)
        unit.green, unit.strike = green + 1, False
        if unit.green < flag.window.hold_windows:
            return judgement("hold", ["hold_windows"])
        if unit.stage + 1 == len(self.stages):
            return judgement("pass", ["all_gates_pass"])
        frozen = self.frozen(unit.window.end)
        if frozen is not None:
            return judgement("hold", ["change_freeze"], weight=None, freeze=frozen)
        if unit.paused:
            return judgement("hold", ["paused"], weight=None)
        return judgement("promote", ["all_gates_pass"], weight=self.stages[unit.stage + 1])

    def _impatient(self) -> list[str]:
        """Return a further reason of a hold, where a stage has lasted too long."""
        return []

    def _to_pin(self) -> tuple[Arm, int]:
        """Return the arm that stands in for the baseline at 100 %, and its start, ms."""
        return self.unit.window.baseline, self.unit.window.start

    def moved(self, judgement: Judgement, decision: Decision, at: int | None) -> None:
        """Latch after an end, settle after a promote."""
        unit = self.unit
        if VERDICTS[judgement.verdict].ended:
            self._latch()
            unit.cut = at is not None
        if judgement.verdict == "pass" and unit.pinned is not None:
            unit.graduated = True
        if at is not None:
            return
        if judgement.verdict != "promote":
            self._next_window(judgement)
            return
        self._leave_stage(unit.window.end, self._stage_start(), rate_limited(judgement.reading.canary), decision.hash)

    def _leave_stage(self, end: int, start: int, limited: float | None, promoted_by: str) -> None:
        """Go on to the next stage: the present one ends at ``end``, its windows begin at ``start``, both in ms.

        ``limited``: the canary's share of 429s. ``promoted_by``: hash of the decision.
        """
        unit = self.unit
        unit.number += 1
        unit.green, unit.idle = 0, 0
        if self.stages[unit.stage + 1] >= 1:
            baseline, since = self._to_pin()
            unit.pinned = Pinned(baseline, since, end, promoted_by)
        unit.rate_limited = limited
        unit.earlier_canary.merge(unit.assignments.canary)
        unit.assignments = unit.assignments.next_stage(self.stages[unit.stage])
        unit.turn(end, start)
        unit.settling, unit.coming = True, unit.stage + 1
        if start == end:
            self._start_stage(start)

    def hold_or_move(self, operation: OperationBy, at: int) -> Iterator[Outcome]:
        """Carry out a pause, a resume or a promote by hand.

        A pause and a resume leave the window and its evidence as they are. A promote ends the window, and the next
        stage's first one begins after lateness and settling. A unit that is stopped, sleeps, settles or is at its
        last stage is not promoted, and nothing is said of it.
        """
        unit = self.unit
        if operation.kind in ("pause", "resume"):
            unit.paused = operation.kind == "pause"
            yield self._recorder.standing(operation.kind, [operation.kind], operation.ts, unit.weight, operation)
            return
        following = unit.stage + 1
        if operation.kind != "promote" or following == len(self.stages):
            return
        if unit.latched or unit.cut or unit.settling or self.asleep:
            return
        yield from self._end_window(at, ["promote"])
        limited, weight = rate_limited(self._read().canary), self.stages[following]
        decision, command = self._recorder.standing("promote", ["promote"], operation.ts, weight, operation)
        start = self.clockwork.stage_start(max(operation.ts, at), self.flag.window.settle_ms)
        self._leave_stage(at, start, limited, decision.hash)
        unit.strike, unit.closed, unit.fresh_from, unit.moving_until = False, None, start, start
        self._begin_stage()
        yield decision, command

    def _begin_stage(self) -> None:
        """Begin the evidence of another stage."""
