"""One unit's ramp: a (flag, region) is staged on its own, window by window, from first stage to last.

``add`` takes what each partition saw of a pane, in order; ``close`` ends a pane and gives the decision and the
command that follow, if any. Nothing here knows a clock, a topic or another unit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from gates.bounds import alpha_for_window
from gates.digest import SKETCH
from gates.evidence import Evidence, judged, pin_sets, pins_drifted, problems
from gates.metrics import ArmMetrics, read_arms
from gates.rules import SOFT_GATES, Comparison, rounded
from gates.sums import IdSample, shared
from gates.window import Arm, PaneUnit, Window
from schemas.decision import (
    ArmSummary,
    Command,
    Decision,
    Engine,
    GateResult,
    PinnedFrom,
    Problem,
    RuleResult,
    SourceRange,
    Span,
    Stage,
    Warning,
    Weights,
    command_for,
    seal_decision,
)
from schemas.manifest import Flag

Verdict = Literal["promote", "pass", "hold", "freeze", "rollback", "abort"]
ENDING = ("abort", "rollback")
"""Verdicts that take the canary to 0 and latch the unit."""
ASLEEP_AFTER = 1000
"""Windows in a row without an event after which a unit is decided no more until one comes."""


@dataclass(frozen=True)
class Clockwork:
    """What all units share: the length of a pane and the lateness, ms, and the name of the source topic."""

    pane_ms: int
    lateness_ms: int
    topic: str

    def stage_start(self, window_end: int, settle_ms: int) -> int:
        """When a stage promoted at ``window_end`` takes effect: after lateness and settling, on a pane."""
        return -(-(window_end + self.lateness_ms + settle_ms) // self.pane_ms) * self.pane_ms


class Pinned(msgspec.Struct, array_like=True):
    """The baseline of the last window before 100 %, with the decision that promoted on it."""

    arm: Arm
    start: int
    end: int
    hash: str


class Unit(msgspec.Struct, array_like=True):
    """The state of one (flag, region).

    ``number`` counts windows from 1 and picks their share of alpha; ``green`` counts consecutive green windows;
    ``strike`` is set from a freeze to the next green window; ``settling``: ``window`` is the span between a
    promote and the new stage, judged by the abort rules alone; ``idle``: windows in a row without an event.
    """

    region: str
    manifest_hash: str
    window: Window
    weight: float
    locked: dict[str, dict[str, str]]
    stage: int = 0
    number: int = 1
    settling: bool = False
    green: int = 0
    strike: bool = False
    latched: bool = False
    idle: int = 0
    seq: int = 0
    previous_hash: str | None = None
    stage_ids: dict[str, IdSample] = msgspec.field(
        default_factory=lambda: {"baseline": IdSample(), "canary": IdSample()}
    )
    earlier_canary: IdSample = msgspec.field(default_factory=IdSample)
    pinned: Pinned | None = None


def begin(flag: Flag, region: str, start: int, before: Unit | None = None) -> Unit:
    """A unit at its first stage, its first window starting at ``start``.

    ``before`` is the unit under an earlier revision of the manifest: its chain of records goes on.
    """
    weight = flag.traffic.stages[0]
    return Unit(
        region=region,
        manifest_hash=flag.manifest_hash,
        window=Window(start, start + flag.window.length_ms),
        weight=before.weight if before else weight,
        locked={"baseline": dict(flag.baseline_versions), "canary": dict(flag.versions)},
        seq=before.seq if before else 0,
        previous_hash=before.previous_hash if before else None,
    )


@dataclass(frozen=True)
class Reading:
    """Both arms as they are judged; ``pinned`` where an earlier window's baseline stands in."""

    canary: ArmMetrics
    baseline: ArmMetrics
    canary_arm: Arm
    baseline_arm: Arm
    quality_source: str
    pinned: Pinned | None


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on."""

    reading: Reading
    verdict: Verdict
    reasons: list[str]
    gates: list[GateResult]
    rules: list[RuleResult]
    problems: list[Problem]
    severity: Literal["hard", "soft"] | None = None


class Ramp:
    """One unit's state machine; ``unit`` is its whole state."""

    def __init__(self, flag: Flag, unit: Unit, clockwork: Clockwork) -> None:
        self.flag, self.unit, self.clockwork = flag, unit, clockwork

    @property
    def asleep(self) -> bool:
        """Whether the unit waits for an event: its windows stand still."""
        return self.unit.idle >= ASLEEP_AFTER

    @property
    def deadline(self) -> int | None:
        """The next end of a window or of a settling span, ms; None while asleep."""
        return None if self.asleep else self.unit.window.end

    def wake(self, start: int) -> None:
        """Go on after sleep, with a window from ``start``, ms."""
        self.unit.idle = 0
        self.unit.window = Window(start, start + self.flag.window.length_ms)

    def add(self, partition: int, seen: PaneUnit) -> None:
        """Take in what one partition saw of the pane that is about to close; in partition order."""
        unit = self.unit
        unit.window.merge(partition, seen)
        for name in ("baseline", "canary"):
            if name not in seen.arms:
                continue
            arm = seen.arms[name]
            for pins, _ in pin_sets(arm):
                for pin in judged(self.flag, pins):
                    unit.locked[name].setdefault(pin, pins[pin])
            if "traffic" in arm.sources and not (unit.settling or unit.latched):
                unit.stage_ids[name].merge(arm.sources["traffic"].sticky)

    def close(self, end: int) -> Iterator[tuple[Decision, Command | None]]:
        """End the pane that ends at ``end`` ms; give the decision and command that follow, if any."""
        unit = self.unit
        if self.asleep:
            return
        if end == unit.window.end and not unit.settling:
            yield self._decide(self._judge_window())
            return
        if not unit.latched:
            early = self._judge_pane()
            if early is not None:
                yield self._decide(early, at=end)
        if end == unit.window.end:
            self._start_stage(end)

    def _start_stage(self, start: int) -> None:
        unit = self.unit
        if not unit.latched:
            unit.stage += 1
        unit.settling = False
        unit.window = Window(start, start + self.flag.window.length_ms)

    def _read(self) -> Reading:
        window = self.unit.window
        pinned = None if self.unit.settling else self.unit.pinned
        arm = pinned.arm if pinned else window.baseline
        canary, baseline, use = read_arms(window.canary, arm, self.flag.policy.quality_source)
        return Reading(canary, baseline, window.canary, arm, use, pinned)

    def _evidence(self, reading: Reading) -> Evidence:
        unit = self.unit
        return Evidence(
            flag=self.flag,
            window=unit.window,
            canary=reading.canary,
            baseline=reading.baseline,
            baseline_is_pinned=reading.pinned is not None,
            locked=unit.locked,
            stage_ids=unit.stage_ids,
        )

    def _drift_rule(self, evidence: Evidence) -> list[RuleResult]:
        """Pin drift as a hard rule, where the policy says so."""
        if self.flag.policy.on_pin_drift != "abort":
            return []
        drifts = sum(1 for _ in pins_drifted(evidence))
        return [
            RuleResult(
                kind="pins_drifted",
                severity="hard",
                value=None,
                observed=float(drifts),
                n=evidence.canary.rows,
                fired=drifts > 0,
            )
        ]

    def _judge_pane(self) -> Judgement | None:
        """An abort if a hard rule is sure to be broken while the window is still open."""
        reading = self._read()
        comparison = Comparison(self.flag, reading.canary, reading.baseline)
        evidence = self._evidence(reading)
        hard = len(self.flag.abort_rules.hard)
        alpha = alpha_for_window(self.flag.policy.early_abort_alpha, self.unit.number) / max(hard, 1)
        drift = self._drift_rule(evidence)
        if not any(rule.fired for rule in comparison.hard_rules(alpha) + drift):
            return None
        gates = comparison.gates()
        rules = comparison.rules(gates, alpha, drift)
        fired = [rule.kind for rule in rules if rule.fired]
        return Judgement(reading, "abort", fired, gates, rules, problems(evidence), "hard")

    def _judge_window(self) -> Judgement:
        """The verdict at the window's end: abort, then evidence, then failed, then unknown gates, then promote."""
        unit, flag = self.unit, self.flag
        reading = self._read()
        comparison = Comparison(flag, reading.canary, reading.baseline)
        evidence = self._evidence(reading)
        gates = comparison.gates()
        rules = comparison.rules(gates, None, self._drift_rule(evidence))
        found = problems(evidence)

        def judgement(
            verdict: Verdict, reasons: list[str], severity: Literal["hard", "soft"] | None = None
        ) -> Judgement:
            return Judgement(reading, verdict, list(dict.fromkeys(reasons)), gates, rules, found, severity)

        hard = [rule.kind for rule in rules if rule.fired and rule.severity == "hard"]
        soft = [rule.kind for rule in rules if rule.fired and rule.severity == "soft"]
        failed = [gate.gate for gate in gates if gate.status == "fail"]
        unknown = [gate.gate for gate in gates if gate.status == "unknown"]
        if unit.latched:
            return judgement("hold", ["latched"])
        if hard:
            return judgement("abort", hard, "hard")
        green, unit.green = unit.green, 0
        if found:
            return judgement("hold", [problem.problem for problem in found])
        if failed:
            if not set(failed) <= set(SOFT_GATES.values()):
                return judgement("rollback" if flag.policy.on_gate_fail == "rollback" else "hold", failed)
            if not unit.strike:
                unit.strike = True
                return judgement("freeze", failed + soft, "soft")
            if flag.policy.on_gate_fail == "rollback":
                return judgement("rollback", failed + soft, "soft")
            return judgement("hold", failed + soft)
        if unknown:
            return judgement("hold", unknown)
        unit.green, unit.strike = green + 1, False
        if unit.green < flag.window.hold_windows:
            return judgement("hold", ["hold_windows"])
        last = unit.stage + 1 == len(flag.traffic.stages)
        return judgement("pass" if last else "promote", ["all_gates_pass"])

    def _decide(self, judged: Judgement, at: int | None = None) -> tuple[Decision, Command | None]:
        """Write the records of a judgement and move the unit on; ``at``: the window is still open."""
        unit, flag, window = self.unit, self.flag, self.unit.window
        stages = flag.traffic.stages
        decided_at = window.end if at is None else at
        following = stages[unit.stage + 1] if unit.stage + 1 < len(stages) and not unit.latched else None
        decision = seal_decision(
            Decision(
                flag=flag.name,
                region=unit.region,
                kind=flag.kind,
                verdict=judged.verdict,
                reasons=judged.reasons,
                window=Span(start=window.start, end=window.end, closed=at is None),
                decided_at=decided_at,
                stage=Stage(
                    index=unit.stage,
                    canary_weight=0.0 if unit.latched else stages[unit.stage],
                    next_canary_weight=following,
                ),
                gates=judged.gates,
                abort_rules=judged.rules,
                evidence_problems=judged.problems,
                arms=_summaries(judged.reading),
                late=window.late,
                duplicates=window.duplicates,
                dead_letters=window.dead_letters,
                warnings=self._warnings(),
                relaxed=list(flag.relaxed),
                source=[
                    SourceRange(
                        topic=self.clockwork.topic,
                        partition=partition,
                        first=span.first,
                        last=span.last,
                    )
                    for partition, span in sorted(window.offsets.items())
                ],
                manifest_hash=flag.manifest_hash,
                versions={name: dict(sorted(pins.items())) for name, pins in sorted(unit.locked.items())},
                engine=Engine(
                    pane_ms=self.clockwork.pane_ms,
                    lateness_ms=self.clockwork.lateness_ms,
                    sketch=SKETCH,
                ),
            ),
            unit.previous_hash,
        )
        unit.previous_hash = decision.hash
        command = None
        stage_start = self.clockwork.stage_start(window.end, flag.window.settle_ms)
        if judged.verdict != "pass" and judged.verdict != "hold":
            weight = {"promote": following or 0.0, "freeze": unit.weight}.get(judged.verdict, 0.0)
            fired = [rule.kind for rule in judged.rules if rule.fired]
            unit.seq += 1
            command = command_for(
                decision,
                seq=unit.seq,
                action=judged.verdict,
                severity=judged.severity,
                weights=_weights(weight),
                previous_weights=_weights(unit.weight),
                effective_from=stage_start if judged.verdict == "promote" else decided_at,
                rule=fired[0] if fired else None,
            )
            unit.weight = weight
        if judged.verdict in ENDING:
            self._latch()
        if at is None:
            self._next_window(judged.verdict == "promote", stage_start, decision.hash)
        return decision, command

    def _latch(self) -> None:
        unit = self.unit
        unit.latched = True
        unit.stage_ids = {"baseline": IdSample(), "canary": IdSample()}
        unit.earlier_canary = IdSample()

    def _next_window(self, promoted: bool, stage_start: int, decision_hash: str) -> None:
        unit, ended = self.unit, self.unit.window
        unit.number += 1
        unit.idle = 0 if ended.accepted else unit.idle + 1
        if not promoted:
            unit.window = Window(ended.end, ended.end + self.flag.window.length_ms)
            return
        unit.green = 0
        if self.flag.traffic.stages[unit.stage + 1] >= 1:
            unit.pinned = Pinned(ended.baseline, ended.start, ended.end, decision_hash)
        unit.earlier_canary.merge(unit.stage_ids["canary"])
        unit.stage_ids = {"baseline": IdSample(), "canary": IdSample()}
        unit.window, unit.settling = Window(ended.end, stage_start), True
        if stage_start == ended.end:
            self._start_stage(stage_start)

    def _warnings(self) -> list[Warning]:
        unit, window = self.unit, self.unit.window
        back, _ = shared(unit.earlier_canary, unit.stage_ids["baseline"])
        misspelt = sum(s["lambda_misspelt"] for a in (window.canary, window.baseline) for s in a.sources.values())
        level = max(sample.level for sample in unit.stage_ids.values())
        counts = {
            "unpinned": len(self.flag.unpinned),
            "lambda_spelling": misspelt,
            "canary_back_in_baseline": len(back),
            "sticky_ids_sampled": (1 << level) if level else 0,
        }
        return [Warning(code=code, count=count) for code, count in counts.items() if count]


def _summaries(reading: Reading) -> dict[str, ArmSummary]:
    use, pinned = reading.quality_source, reading.pinned
    return {
        "canary": _summary(reading.canary_arm, reading.canary, use, None),
        "baseline": _summary(reading.baseline_arm, reading.baseline, use, pinned),
    }


def _summary(arm: Arm, metrics: ArmMetrics, quality_source: str, pinned: Pinned | None) -> ArmSummary:
    served, quality, lambda_ = metrics.served, metrics.quality, metrics.lambda_
    requests = {name: sums["requests"] for name, sums in arm.sources.items()}
    return ArmSummary(
        requests=served["requests"],
        traffic=requests.get("traffic", 0),
        gold=requests.get("gold", 0),
        shadow=requests.get("shadow", 0),
        exposures=served["exposures"],
        errors=served["errors"],
        rate_limited=served["rate_limited"],
        tool_calls=served["tool_calls"],
        tool_ok=served["tool_ok"],
        cost=rounded(served.cost) or 0.0,
        cost_rows=served["cost_rows"],
        solved=served["solved"],
        quality_source=quality_source,
        coverage_rows=quality["coverage_rows"],
        coverage_mean=rounded(quality.coverage),
        delta_s_rows=quality.delta_s.count,
        delta_s_p50=rounded(quality.delta_s.quantile(0.5)),
        delta_s_p95=rounded(quality.delta_s.quantile(0.95)),
        latency_p50=rounded(served.latency.quantile(0.5)),
        latency_p95=rounded(served.latency.quantile(0.95)),
        lambda_groups=lambda_.groups,
        lambda_complete=lambda_.complete,
        lambda_convergent=lambda_.convergent,
        lambda_events=lambda_.events,
        lambda_flips=lambda_.flipped_groups + lambda_.flipped_events,
        pinned_from=PinnedFrom(start=pinned.start, end=pinned.end, hash=pinned.hash) if pinned else None,
    )


def _weights(canary: float) -> Weights:
    return Weights(baseline=rounded(1 - canary) or 0.0, canary=canary)
