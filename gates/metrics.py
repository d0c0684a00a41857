"""The numbers that gates and abort rules read, computed from the sums of both arms.

Every value is None where it is not known: nothing here is ever NaN.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from gates.bounds import excludes_from_above, excludes_from_below, interval, quantile_ranks
from gates.digest import RANK_ERROR, Digest
from gates.sums import COVERAGE_BITS, Sums, complete, flipped
from gates.window import LABELS, SERVED, Arm

INFORMATION_N_OPT = 1000
MISSING_MAX = 0.05
"""Largest share of rows without a metric at which the metric still counts as known."""

Interval = tuple[float | None, float | None]
UNKNOWN: Interval = (None, None)


def rate_n_opt(limit: float) -> float:
    """The n at which a rate's bound is tightest when it is held against ``limit``."""
    return max(200.0, 3 / limit) if limit > 0 else 200.0


@dataclass(frozen=True)
class Lambda:
    """λ of one arm: probe groups and untagged events."""

    groups: int
    complete: int
    convergent: int
    flipped_groups: int
    events: int
    flipped_events: int

    @property
    def share(self) -> float | None:
        """Convergent groups ÷ complete groups."""
        return self.convergent / self.complete if self.complete else None

    @property
    def tests(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(flips, units) of probes and of traffic."""
        return (self.flipped_groups, self.groups), (self.flipped_events, self.events)

    @property
    def flip_rate(self) -> float | None:
        """The worse of the two shares of units with any state but convergent."""
        return max((flips / units for flips, units in self.tests if units), default=None)


@dataclass(frozen=True)
class ArmMetrics:
    """One arm's evidence: served rows for latency, errors, tools and cost; quality rows for ΔS, coverage and λ.

    Where there is any label for a metric (``labels`` of the quality source, ``served_labels`` of all served ones),
    that metric's rows are its labels.
    """

    served: Sums
    quality: Sums
    labels: Sums = field(default_factory=Sums)
    served_labels: Sums = field(default_factory=Sums)

    @property
    def rows(self) -> int:
        """Served requests."""
        return self.served["requests"]

    @property
    def quality_rows(self) -> int:
        """Requests of the quality source in use."""
        return self.quality["requests"]

    @cached_property
    def _coverage(self) -> Sums:
        return self.labels if self.labels["coverage_rows"] else self.quality

    @cached_property
    def _lambda(self) -> Sums:
        return self.labels if self.labels["lambda_rows"] else self.quality

    @property
    def delta_s(self) -> Digest:
        """ΔS of the quality source in use."""
        return self.labels.delta_s if self.labels.delta_s.count else self.quality.delta_s

    @property
    def delta_s_rows(self) -> int:
        """Rows that should have a ΔS."""
        return self.labels.delta_s.count or self.quality_rows

    @property
    def coverage(self) -> float | None:
        """Mean coverage of the quality source in use."""
        return self._coverage.coverage

    @property
    def coverage_sum(self) -> float:
        """Σ coverage."""
        return self._coverage["coverage_sum"] / (1 << COVERAGE_BITS)

    @property
    def coverage_count(self) -> int:
        """Rows with a coverage."""
        return self._coverage["coverage_rows"]

    @property
    def coverage_rows(self) -> int:
        """Rows that should have a coverage."""
        return self.labels["coverage_rows"] or self.quality_rows

    @property
    def lambda_rows(self) -> int:
        """Rows that λ is read from."""
        return self.labels["lambda_rows"] or self.quality_rows

    @property
    def lambda_count(self) -> int:
        """Rows with a λ state."""
        return self._lambda["lambda_rows"]

    @property
    def lambda_bad(self) -> int:
        """Rows with a λ state other than convergent."""
        return self._lambda["lambda_bad_rows"]

    @property
    def solved(self) -> int:
        """Solved requests, or labels that say so."""
        return (self.served_labels if self.served_labels["solved_rows"] else self.served)["solved"]

    @property
    def cost_rows(self) -> int:
        """Requests whose cost per solved is known."""
        return self.served["cost_known" if self.served_labels["solved_rows"] else "cost_rows"]

    @property
    def solved_rows(self) -> int:
        """Rows that should say whether they were solved."""
        return self.served_labels["solved_rows"] or self.rows

    @property
    def error_rate(self) -> float | None:
        """Errors ÷ requests."""
        return self.served["errors"] / self.rows if self.rows else None

    @property
    def tool_success(self) -> float | None:
        """Good tool calls ÷ tool calls."""
        calls = self.served["tool_calls"]
        return self.served["tool_ok"] / calls if calls else None

    @property
    def cost_per_solved(self) -> float | None:
        """Σ cost ÷ solved requests; with labels, the mean known cost ÷ the share of labels that say solved."""
        if not self.solved:
            return None
        judged = self.served_labels["solved_rows"]
        if judged:
            return self.served.cost / self.cost_rows * judged / self.solved if self.cost_rows else None
        return self.served.cost / self.solved

    @cached_property
    def lambda_(self) -> Lambda:
        """λ of the quality source in use."""
        groups = self._lambda.groups.values()
        full = [g for g in groups if complete(g)]
        return Lambda(
            groups=len(groups),
            complete=len(full),
            convergent=sum(not flipped(g) for g in full),
            flipped_groups=sum(map(flipped, groups)),
            events=self._lambda["lambda_events"],
            flipped_events=self._lambda["lambda_flips"],
        )


def mostly_present(rows: int, present: int) -> bool:
    """Whether a metric has values, and on all but a small share of the rows."""
    return present > 0 and (rows - present) <= MISSING_MAX * rows


def read_arms(
    canary: Arm, baseline: Arm, quality_source: Literal["gold_if_present", "gold", "traffic"], *, shadow: bool = False
) -> tuple[ArmMetrics, ArmMetrics, str]:
    """Canary, baseline and the quality source in use (``gold`` or ``traffic``) for both.

    ``shadow``: the canary's mirrored requests stand where its traffic would.
    """
    use = quality_source
    if use == "gold_if_present":
        use = "gold" if all(map(_golden, (canary, baseline))) else "traffic"
    if shadow:
        moved = {"traffic": "shadow", "label": "shadow_label", "gold": "gold", "gold_label": "gold_label"}
        canary = Arm({place: canary.sources[name] for place, name in moved.items() if name in canary.sources})
    return _read(canary, use), _read(baseline, use), use


def _golden(arm: Arm) -> bool:
    """Whether an arm has gold events, or labels of some."""
    return any(arm.has(source, counter) for source, counter in (("gold", "requests"), (LABELS["gold"], "labels")))


def _read(arm: Arm, use: str) -> ArmMetrics:
    none = Sums()
    labels = Sums()
    for source in SERVED:
        if LABELS[source] in arm.sources:
            labels.count(arm.sources[LABELS[source]].counters)
    return ArmMetrics(arm.served(), arm.sources.get(use, none), arm.sources.get(LABELS[use], none), labels)


def difference(canary: float | None, baseline: float | None) -> float | None:
    """canary − baseline."""
    return None if canary is None or baseline is None else canary - baseline


def uplift(canary: float | None, baseline: float | None) -> float | None:
    """canary ÷ baseline − 1; not known over a baseline of 0, or of so little that no number holds the ratio."""
    ratio = canary / baseline - 1 if canary is not None and baseline else math.inf
    return ratio if math.isfinite(ratio) else None


def rate_interval(successes: float, n: int, alpha: float) -> Interval:
    """Anytime interval of a rate or of a mean of values in [0, 1]."""
    return interval(successes, n, alpha, INFORMATION_N_OPT) if n else UNKNOWN


def quantile_interval(digest: Digest, q: float, alpha: float) -> Interval:
    """Anytime interval of a quantile; an end is None where the data cannot bound it."""
    if not digest.count:
        return UNKNOWN
    lower, upper = quantile_ranks(digest.count, q, alpha, slack=0.0 if digest.exact else RANK_ERROR)
    return (
        None if lower is None else digest.order_statistic(lower),
        None if upper is None else digest.order_statistic(upper),
    )


def drift_interval(canary: Digest, baseline: Digest, q: float, alpha: float) -> Interval:
    """Anytime interval of the difference of two quantiles; the level is shared by the two arms."""
    c, b = quantile_interval(canary, q, alpha / 2), quantile_interval(baseline, q, alpha / 2)
    return difference(c[0], b[1]), difference(c[1], b[0])


def uplift_interval(canary: Digest, baseline: Digest, q: float, alpha: float) -> Interval:
    """Anytime interval of the ratio of two quantiles, minus 1; the level is shared by the two arms."""
    c, b = quantile_interval(canary, q, alpha / 2), quantile_interval(baseline, q, alpha / 2)
    return uplift(c[0], b[1]), uplift(c[1], b[0])


def rate_surely_over(successes: float, n: int, limit: float, alpha: float) -> bool:
    """Whether a rate's anytime lower bound is over the limit."""
    return n > 0 and excludes_from_below(successes, n, limit, alpha, rate_n_opt(limit))


def mean_surely_under(total: float, n: int, limit: float, alpha: float) -> bool:
    """Whether the anytime upper bound of a mean of values in [0, 1] is under the limit."""
    return n > 0 and excludes_from_above(total, n, limit, alpha, rate_n_opt(limit))
