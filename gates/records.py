"""A judgement, and what of it stands in the records: summaries of both arms, and the worst events."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tidegate.gates.metrics import ArmMetrics, Arms
from tidegate.gates.rules import Comparison, rounded
from tidegate.gates.unit import Pinned
from tidegate.gates.window import LABELS, REQUEST_SOURCES, SERVED, Arm
from tidegate.schemas.decision import (
    Action,
    ArmSummary,
    ChangeFreeze,
    EvidenceSpan,
    Exemplar,
    GateResult,
    PinnedFrom,
    Problem,
    RuleResult,
    Severity,
    Verdict,
    Weights,
)
from tidegate.schemas.manifest import Flag

METRIC_OF = {
    "delta_s.median_max": "delta_s",
    "delta_s.p95_max": "delta_s",
    "delta_s_p95_over": "delta_s",
    "coverage_min": "coverage",
    "coverage_under": "coverage",
    "lambda_convergent": "lambda",
    "lambda_flip_rate_over": "lambda",
    "latency_p95_uplift_max": "latency",
    "latency_p95_over_budget": "latency",
    "error_rate_max": "error",
    "error_rate_over": "error",
    "tool_success_min": "tool",
    "cost_uplift_max": "cost",
    "cost_per_solved_over_budget": "cost",
    "reason_failure_rate_over": "reason",
    "reason_failed_served_in_full": "reason_in_full",
}
"""The metric whose worst events a gate or rule names."""
QUALITY_METRICS = ("delta_s", "coverage", "lambda")


@dataclass(frozen=True)
class Reading:
    """Both arms as they are judged; ``pinned`` where an earlier window's baseline stands in."""

    arms: Arms
    canary_arm: Arm
    baseline_arm: Arm
    pinned: Pinned | None
    shadow: bool = False

    @property
    def canary(self) -> ArmMetrics:
        """The canary."""
        return self.arms.canary

    @property
    def baseline(self) -> ArmMetrics:
        """The metrics of the arm that the canary is compared with."""
        return self.arms.baseline

    @property
    def quality_source(self) -> str:
        """``gold`` or ``traffic``."""
        return self.arms.use

    def comparison(self, flag: Flag) -> Comparison:
        """Return both arms under a flag's rules."""
        return Comparison.of(flag, self.arms)


@dataclass(frozen=True)
class Assessment:
    """Gates, rules and evidence problems, and what they were read from; ``evidence``, ``ms``: as of ``Judgement``."""

    reading: Reading
    gates: list[GateResult]
    rules: list[RuleResult]
    problems: list[Problem]
    evidence: EvidenceSpan | None = None
    ms: int | None = None

    def judgement(
        self,
        verdict: Verdict,
        reasons: Iterable[str],
        severity: Severity | None = None,
        action: Action | None = None,
        weight: float | None = None,
        *,
        rules: list[RuleResult] | None = None,
        found: Sequence[Problem] = (),
        **more: Any,
    ) -> "Judgement":
        """Return a verdict on what was assessed, with further problems; ``rules`` instead of those here."""
        return Judgement(
            verdict,
            list(dict.fromkeys(reasons)),
            self.reading,
            self.gates,
            self.rules if rules is None else rules,
            [*self.problems, *found],
            severity,
            action,
            weight,
            evidence=self.evidence,
            ms=self.ms,
            **more,
        )


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on.

    ``action``: the command that follows, ``weight``: the canary's in it. ``drifted``: gates of a graduated unit that
    fail against its pinned baseline, which is a warning. ``evidence``: what of a stage it rests on, ``ms``: how long
    that took to come; None: the window.
    """

    verdict: Verdict
    reasons: list[str]
    reading: Reading
    gates: list[GateResult]
    rules: list[RuleResult]
    problems: list[Problem]
    severity: Severity | None = None
    action: Action | None = None
    weight: float | None = None
    freeze: ChangeFreeze | None = None
    waits: bool = False
    drifted: int = 0
    evidence: EvidenceSpan | None = None
    ms: int | None = None


def exemplars(judgement: Judgement) -> dict[str, list[Exemplar]]:
    """Return the worst events behind each failed gate and fired rule."""
    reading = judgement.reading
    bad = [gate.gate for gate in judgement.gates if gate.status in ("fail", "waived")]
    bad += [rule.kind for rule in judgement.rules if rule.fired]
    shown: dict[str, list[Exemplar]] = {}
    for name in bad:
        metric = METRIC_OF.get(name)
        if metric is None:
            continue
        if metric in QUALITY_METRICS:
            rows, labels = _quality_sources(reading)
            over = metric in reading.canary.taken_over
            worst = reading.canary_arm.worst(metric, (labels,) if over else (rows, labels))
        else:
            worst = reading.canary_arm.worst(metric, ("shadow", "gold") if reading.shadow else SERVED)
        if worst:
            shown[name] = [
                Exemplar(event_id=w.event_id, value=rounded(w.value) or 0.0, partition=w.partition, offset=w.offset)
                for w in worst
            ]
    return shown


def _quality_sources(reading: Reading) -> tuple[str, str]:
    use = "shadow" if reading.shadow and reading.quality_source == "traffic" else reading.quality_source
    return use, LABELS[use]


def unfired(rule: RuleResult) -> RuleResult:
    """Return the same rule where it is shown and cannot act."""
    return RuleResult(
        kind=rule.kind, severity=rule.severity, value=rule.value, observed=rule.observed, n=rule.n, fired=False
    )


def summaries(reading: Reading) -> dict[str, ArmSummary]:
    use = reading.quality_source
    return {
        "canary": _summary(reading.canary_arm, reading.canary, use, None),
        "baseline": _summary(reading.baseline_arm, reading.baseline, use, reading.pinned),
    }


def _summary(arm: Arm, metrics: ArmMetrics, quality_source: str, pinned: Pinned | None) -> ArmSummary:
    served, lambda_ = metrics.served, metrics.lambda_
    requests = {name: arm.sources[name]["requests"] for name in REQUEST_SOURCES if name in arm.sources}
    return ArmSummary(
        requests=served["requests"],
        traffic=requests.get("traffic", 0),
        gold=requests.get("gold", 0),
        shadow=requests.get("shadow", 0),
        exposures=served["exposures"],
        labels=sum(sums["labels"] for sums in arm.sources.values()),
        labels_foreign=sum(sums["labels_foreign"] for sums in arm.sources.values()),
        labels_not_followed=sum(sums["labels_not_followed"] for sums in arm.sources.values()),
        errors=served["errors"],
        rate_limited=served["rate_limited"],
        tool_calls=served["tool_calls"],
        tool_ok=served["tool_ok"],
        reason_rows=served["reason_rows"],
        reason_failed=served["reason_failed"],
        reason_in_full=served["reason_in_full"],
        cost=rounded(served.cost) or 0.0,
        cost_rows=served["cost_rows"],
        solved=metrics.solved,
        quality_source=quality_source,
        coverage_rows=metrics.coverage_count,
        coverage_mean=rounded(metrics.coverage),
        delta_s_rows=metrics.delta_s.count,
        delta_s_p50=rounded(metrics.delta_s.quantile(0.5)),
        delta_s_p95=rounded(metrics.delta_s.quantile(0.95)),
        latency_p50=rounded(served.latency.quantile(0.5)),
        latency_p95=rounded(served.latency.quantile(0.95)),
        lambda_groups=lambda_.groups,
        lambda_complete=lambda_.complete,
        lambda_convergent=lambda_.convergent,
        lambda_events=lambda_.events,
        lambda_flips=lambda_.flipped_groups + lambda_.flipped_events,
        pinned_from=PinnedFrom(start=pinned.start, end=pinned.end, hash=pinned.hash) if pinned else None,
    )


def weights(canary: float) -> Weights:
    return Weights(baseline=rounded(1 - canary) or 0.0, canary=canary)
