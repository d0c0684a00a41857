"""Progressive rollout on sequential evidence: a stage goes on until its evidence settles every gate."""

from collections.abc import Iterable

from tidegate.gates.metrics import read_arms
from tidegate.gates.ramp import COMPARED, Ramp
from tidegate.gates.records import Assessment, Judgement, Reading
from tidegate.gates.rules import SOFT_GATES
from tidegate.gates.sequential import Levels, Sequential
from tidegate.gates.stage import StageEvidence
from tidegate.gates.window import Arm
from tidegate.schemas.decision import Decision, Problem


class StagedRamp(Ramp):
    """A unit whose stages are judged by all their windows since they began.

    A window with an evidence problem is left out, but for hard rules. What the settling time before a stage shows is
    no part of it: hard rules look at that alone.
    """

    def judge_pane(self) -> Judgement | None:
        """Return a stop as soon as it is proven: by a hard rule, or by a gate on sound evidence."""
        unit = self.unit
        own = self._read()
        whole = self._together(own, rest=True)
        drift = self._drift_rule(self._evidence(own))
        if any(rule.fired for rule in [*self._comparison(whole, own).hard_rules(), *drift]):
            seen = self._assess()
            fired = [rule.kind for rule in seen.rules if rule.fired and rule.severity == "hard"]
            return seen.judgement("abort", fired, "hard", "abort", 0.0)
        if unit.settling:
            return None
        failed = self._failed(self._together(own) if unit.evidence.left_out else whole, whole)
        soft = set(failed) <= set(SOFT_GATES.values())
        if not failed or (unit.strike if soft else self.flag.policy.on_gate_fail == "hold"):
            return None
        seen = self._assess()
        if unsound(seen.problems):
            return None
        if not soft:
            return seen.judgement("rollback", failed, None, "rollback", 0.0)
        unit.strike = True
        return seen.judgement("freeze", failed + [rule.kind for rule in seen.rules if rule.fired], "soft", "freeze")

    def _failed(self, reading: Reading, whole: Reading) -> list[str]:
        """Gates that are proven over their limit; once graduated, those of them that still count."""
        found = self._comparison(reading, whole=whole).stops()
        return [gate for gate in found if not (self.unit.graduated and gate in COMPARED)]

    def _assess(self) -> Assessment:
        """Gates on the stage's sound evidence, hard rules on all of it, problems of the present window."""
        unit, own = self.unit, self._read()
        reading = self._together(own)
        evidence = self._evidence(own, reading)
        found = self._problems(evidence)
        sound, ms = not unsound(found), unit.evidence.ms + self._elapsed()
        whole = reading
        if not sound or unit.evidence.left_out:
            whole = self._together(own, rest=True)
        if not sound:
            reading, ms = self._together(None), unit.evidence.ms
        gates = self._comparison(reading, whole=whole, ms=ms).gates()
        rules = self._comparison(whole, own).rules(gates, None, self._drift_rule(evidence))
        return Assessment(reading, gates, rules, found, unit.evidence.span(unit.window, sound=sound), ms)

    def _elapsed(self) -> int:
        """Return how much of the present window is over, ms."""
        window = self.unit.window
        return (window.end if self.at is None else min(max(self.at, window.start), window.end)) - window.start

    def _together(self, own: Reading | None, *, rest: bool = False) -> Reading:
        """Return the stage's evidence and the present window, if it is given; with ``rest`` what was left out too."""
        evidence, window = self.unit.evidence, self.unit.window
        if own is not None and evidence.since is None:
            return own
        canary, baseline = [evidence.canary], [evidence.baseline]
        if rest:
            canary, baseline = [*canary, evidence.rest_canary], [*baseline, evidence.rest_baseline]
        if own is not None:
            canary, baseline = [*canary, window.canary], [*baseline, window.baseline]
        pinned = None if self.unit.settling else self.unit.pinned
        arm = pinned.arm if pinned else Arm.gathered(*baseline)
        policy, least = self.flag.policy, self.flag.window.min_requests
        shadow = self.flag.traffic.shadow and self.shadowed
        whole = Arm.gathered(*canary)
        return Reading(read_arms(whole, arm, policy.quality_source, least, shadow=shadow), whole, arm, pinned, shadow)

    def _comparison(
        self, reading: Reading, own: Reading | None = None, *, whole: Reading | None = None, ms: int = 0
    ) -> Sequential:
        """Return both arms under the flag's rules; ``own``: of the window that hard rules look at alone too.

        ``whole``: with the rows of windows that were left out.
        """
        arms, unit = reading.arms, self.unit
        return Sequential(
            self.flag,
            arms.canary,
            arms.baseline,
            arms.quality,
            arms.served,
            Levels.of(self.flag, unit.number, unit.evidence.cycle, settling=unit.settling),
            None if own is None or own is reading else own.comparison(self.flag),
            None if whole is None or whole is reading else self._comparison(whole),
            ms,
            reading.pinned is not None,
        )

    def _impatient(self) -> list[str]:
        """``patience``, where the stage has lasted longer than it."""
        unit = self.unit
        since = unit.window.start if unit.evidence.since is None else unit.evidence.since
        over = not unit.graduated and unit.window.end - since > self.flag.policy.patience_ms
        return ["patience"] if over else []

    def _to_pin(self) -> tuple[Arm, int]:
        """Return the baseline of the whole stage."""
        evidence, window = self.unit.evidence, self.unit.window
        if evidence.since is None:
            # An operator promoted before the stage's first window ended.
            return window.baseline, window.start
        return evidence.baseline, evidence.since

    def _begin_stage(self) -> None:
        """Forget the stage's evidence: none of it counts for the next."""
        self.unit.evidence = StageEvidence()

    def moved(self, judgement: Judgement, decision: Decision, at: int | None) -> None:
        """Add the window to the stage's evidence; what follows a promote or the last stage's pass begins anew."""
        unit = self.unit
        if at is None and not (unit.latched or unit.cut):
            unit.evidence = unit.evidence.with_window(unit.window, sound=not unsound(judgement.problems))
        super().moved(judgement, decision, at)
        if judgement.verdict == "promote":
            self._begin_stage()
        elif judgement.verdict == "pass":
            # What comes to pass much later must not be drowned by all that was good before.
            unit.evidence = StageEvidence(cycle=unit.evidence.cycle + 1)


def unsound(problems: Iterable[Problem]) -> bool:
    """Tell whether a window has to be left out; too little data alone does not spoil it."""
    return any(problem.problem != "insufficient_data" for problem in problems)
