"""Write a unit's chain of records: decisions, each with the hash of the one before, and the commands they give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tidegate.gates.digest import SKETCH
from tidegate.gates.forecast import forecast
from tidegate.gates.records import Judgement, exemplars, summaries, weights
from tidegate.gates.samples import shared
from tidegate.gates.unit import Unit
from tidegate.gates.window import UnitWindow
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import (
    Action,
    ArmSummary,
    Command,
    Decision,
    Engine,
    Forecast,
    GateResult,
    OperationBy,
    Problem,
    RuleResult,
    Severity,
    SourceRange,
    Span,
    Stage,
    Verdict,
    Warning,
    command_for,
    seal_decision,
)
from tidegate.schemas.manifest import Flag

Outcome = tuple[Decision, Command | None]


@dataclass(frozen=True)
class Recorder:
    """The writer of a unit's next records. ``stage``: the one that they name."""

    flag: Flag
    unit: Unit
    clockwork: Clockwork
    stage: Stage

    def judged(self, judgement: Judgement, at: int | None, effective_from: int) -> Outcome:
        """Write a judgement of the window, at ``at`` ms if it is open; a command holds from ``effective_from`` on."""
        window = self.unit.window
        decided_at = window.end if at is None else at
        decision = self._seal(
            judgement.verdict,
            judgement.reasons,
            Span(start=window.start, end=window.end, closed=at is None),
            decided_at,
            gates=judgement.gates,
            rules=judgement.rules,
            found=judgement.problems,
            arms=summaries(judgement.reading),
            forecast=self._forecast(judgement, decided_at) if judgement.waits else None,
            exemplars=exemplars(judgement),
            change_freeze=judgement.freeze,
            drifted=judgement.drifted,
            evidence=judgement.evidence,
        )
        if judgement.action is None:
            return decision, None
        rule = next((rule.kind for rule in judgement.rules if rule.fired), None)
        return decision, self._command(
            decision, judgement.action, judgement.severity, judgement.weight, effective_from, rule
        )

    def standing(
        self,
        action: Literal["kill", "rearm", "close", "retire", "pause", "resume", "promote"],
        reasons: Sequence[str],
        ts: int,
        weight: float,
        by: OperationBy | None,
    ) -> Outcome:
        """Write a decision that rests on no window, and its command, from ``ts`` ms on."""
        start, end = self.unit.last_window or (ts, ts)
        span = Span(start=start, end=end, closed=self.unit.last_window is not None)
        decision = self._seal(action, reasons, span, ts, operation=by, plain=True)
        severity: Severity | None = "hard" if action == "kill" else None
        return decision, self._command(decision, action, severity, weight, ts, None)

    def _forecast(self, judgement: Judgement, decided_at: int) -> Forecast | None:
        reading = judgement.reading
        return forecast(
            self.flag,
            reading.canary,
            reading.baseline,
            judgement.gates,
            judgement.problems,
            decided_at - self.unit.window.start if judgement.ms is None else judgement.ms,
            pinned=reading.pinned is not None,
        )

    def _seal(
        self,
        verdict: Verdict,
        reasons: Sequence[str],
        span: Span,
        decided_at: int,
        *,
        gates: Sequence[GateResult] = (),
        rules: Sequence[RuleResult] = (),
        found: Sequence[Problem] = (),
        arms: Mapping[str, ArmSummary] | None = None,
        plain: bool = False,
        drifted: int = 0,
        **more: object,
    ) -> Decision:
        unit, flag, window = self.unit, self.flag, UnitWindow(0, 0) if plain else self.unit.window
        assert span.start <= span.end, "a window does not end before it starts"
        assert unit.previous_hash is not None or not unit.seq, "no command comes before the chain's first decision"
        decision = seal_decision(
            Decision(
                flag=flag.name,
                region=unit.region,
                kind=flag.kind,
                verdict=verdict,
                reasons=list(reasons),
                window=span,
                decided_at=decided_at,
                stage=self.stage,
                gates=list(gates),
                abort_rules=list(rules),
                evidence_problems=list(found),
                arms=dict(arms or {}),
                late=window.late,
                duplicates=window.duplicates,
                dead_letters=window.dead,
                warnings=[] if plain else self._warnings(drifted),
                relaxed=list(flag.relaxed),
                source=[] if plain else sources(unit, self.clockwork),
                manifest_hash=flag.manifest_hash,
                versions={name: dict(sorted(pins.items())) for name, pins in sorted(unit.locked.items())},
                engine=engine(self.clockwork),
                **more,  # type: ignore[arg-type]
            ),
            unit.previous_hash,
        )
        unit.previous_hash = decision.hash
        return decision

    def _command(
        self,
        decision: Decision,
        action: Action,
        severity: Severity | None,
        weight: float | None,
        effective_from: int,
        rule: str | None,
    ) -> Command:
        unit = self.unit
        unit.seq += 1
        before, unit.weight = unit.weight, unit.weight if weight is None else weight
        assert 0 <= unit.weight <= 1, "the canary's weight is a share of the traffic, and the baseline has the rest"
        assert unit.previous_hash == decision.hash, "a command carries out the last decision of the chain"
        return command_for(
            decision,
            seq=unit.seq,
            action=action,
            severity=severity,
            weights=weights(unit.weight),
            previous_weights=weights(before),
            effective_from=effective_from,
            rule=rule,
        )

    def _warnings(self, drifted: int) -> list[Warning]:
        unit, window = self.unit, self.unit.window
        back, _ = shared(unit.earlier_canary, unit.assignments.baseline)
        misspelt = sum(s["lambda_misspelt"] for a in (window.canary, window.baseline) for s in a.sources.values())
        level = unit.assignments.level
        counts = {
            "unpinned": len(self.flag.unpinned),
            "lambda_spelling": misspelt,
            "canary_back_in_baseline": len(back),
            "sticky_ids_sampled": (1 << level) if level else 0,
            "cache_namespaces_not_followed": window.detail.namespaces_dropped,
            "drifted_from_pinned_baseline": drifted,
            "labels_foreign": _labels(window, "labels_foreign"),
            "labels_not_followed": _labels(window, "labels_not_followed"),
        }
        return [Warning(code=code, count=count) for code, count in counts.items() if count]


def _labels(window: UnitWindow, what: str) -> int:
    """Return a count of labels in the window, of both arms."""
    return sum(sums[what] for arm in (window.canary, window.baseline) for sums in arm.sources.values())


def sources(unit: Unit, clockwork: Clockwork) -> list[SourceRange]:
    """Return the offsets between which the window's events lie, by partition."""
    return [
        SourceRange(topic=clockwork.topic, partition=partition, first=seen.first, last=seen.last)
        for partition, seen in sorted(unit.window.offsets.items())
    ]


def engine(clockwork: Clockwork) -> Engine:
    """Return the settings that a record's numbers rest on."""
    return Engine(pane_ms=clockwork.pane_ms, lateness_ms=clockwork.lateness_ms, sketch=SKETCH)
