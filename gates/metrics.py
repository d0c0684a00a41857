"""The numbers that gates and abort rules read, computed from the sums of both arms.

Every value is None where it is not known: nothing here is ever NaN.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal

from tidegate.gates.bounds import excludes_from_above, excludes_from_below, interval, quantile_ranks, ratio_variance
from tidegate.gates.digest import RANK_ERROR, Digest
from tidegate.gates.sums import COVERAGE_BITS, Sums
from tidegate.gates.window import LABELS, SERVED, Arm

INFORMATION_N_OPT = 1000
MISSING_MAX = 0.05
"""Largest share of rows without a metric at which the metric still counts as known."""

Interval = tuple[float | None, float | None]
UNKNOWN: Interval = (None, None)


def rate_n_opt(limit: float) -> float:
    """Return the n at which a rate's bound is tightest when it is held against ``limit``."""
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
class MetricSource:
    """The source of a metric: the sums to read it from, and the number of rows that should have it.

    ``labels``: how many of those are labels, which have taken the metric over; 0 where the requests' own values and
    what labels there are are read together.
    """

    sums: Sums
    rows: int
    labels: int = 0


LABELLED: dict[str, Callable[[Sums], int]] = {
    "delta_s": lambda labels: labels.delta_s.count,
    "coverage": lambda labels: labels["coverage_rows"],
    "lambda": lambda labels: labels["lambda_rows"],
    "solved": lambda labels: labels["solved_rows"],
}
"""Readers of the number of labels that have each metric."""


@dataclass(frozen=True)
class ArmMetrics:
    """One arm's evidence: served rows for latency, errors, tools and cost; quality rows for ΔS, coverage and λ.

    ``labels`` of the quality source, ``served_labels`` of all served ones. ``taken_over``: metrics for which both arms
    have enough labels, so that these alone are its rows; of the others values and labels are read together.
    """

    served: Sums
    quality: Sums
    labels: Sums = field(default_factory=Sums)
    served_labels: Sums = field(default_factory=Sums)
    taken_over: frozenset[str] = frozenset()
    traffic: int = 0
    """Requests of users, mirrored ones in a shadow stage."""

    @property
    def rows(self) -> int:
        """Served requests."""
        return self.served["requests"]

    @property
    def quality_rows(self) -> int:
        """Requests of the quality source in use."""
        return self.quality["requests"]

    @cached_property
    def _together(self) -> Sums:
        if not self.labels["labels"]:
            return self.quality
        together = Sums()
        together.merge(self.quality)
        together.merge(self.labels)
        return together

    def told(self, metric: str) -> MetricSource:
        """Return the rows of ΔS, coverage or λ."""
        if metric in self.taken_over:
            n = LABELLED[metric](self.labels)
            return MetricSource(self.labels, n, n)
        return MetricSource(self._together, self.quality_rows)

    @property
    def delta_s(self) -> Digest:
        """ΔS of the quality source in use."""
        return self.told("delta_s").sums.delta_s

    @property
    def delta_s_rows(self) -> int:
        """Rows that should have a ΔS."""
        return self.told("delta_s").rows

    @property
    def coverage(self) -> float | None:
        """Mean coverage of the quality source in use."""
        return self.told("coverage").sums.coverage

    @property
    def coverage_sum(self) -> float:
        """Σ coverage."""
        return self.told("coverage").sums["coverage_sum"] / (1 << COVERAGE_BITS)

    @property
    def coverage_count(self) -> int:
        """Rows with a coverage."""
        return self.told("coverage").sums["coverage_rows"]

    @property
    def coverage_rows(self) -> int:
        """Rows that should have a coverage."""
        return self.told("coverage").rows

    @property
    def lambda_rows(self) -> int:
        """Rows that λ is read from."""
        return self.told("lambda").rows

    @property
    def lambda_count(self) -> int:
        """Rows with a λ state."""
        return self.told("lambda").sums["lambda_rows"]

    @property
    def lambda_bad(self) -> int:
        """Rows with a λ state other than convergent."""
        return self.told("lambda").sums["lambda_bad_rows"]

    @property
    def _solved_labels(self) -> int:
        return self.served_labels["solved_rows"]

    @property
    def solved(self) -> int:
        """Solved requests, or labels that say so; both together where there are too few labels to take over."""
        own = 0 if "solved" in self.taken_over else self.served["solved"]
        return own + self.served_labels["solved"]

    @property
    def cost_rows(self) -> int:
        """Requests whose cost per solved is known."""
        return self.served["cost_known" if self._solved_labels else "cost_rows"]

    @property
    def solved_rows(self) -> int:
        """Rows that should say whether they were solved."""
        return self._solved_labels if "solved" in self.taken_over else self.rows

    @property
    def solved_known(self) -> int:
        """Rows that say whether they were solved."""
        own = 0 if "solved" in self.taken_over else self.served["solved_rows"]
        return own + self._solved_labels

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
        if self._solved_labels:
            return self.served.cost / self.cost_rows * self.solved_known / self.solved if self.cost_rows else None
        return self.served.cost / self.solved

    @property
    def cost_variances(self) -> list[tuple[int, float]]:
        """Return the variance of the cost per solved: of each part its rows, and the variance times their number.

        One part where each request says what it cost and whether it was solved, by the delta method over both; with
        labels two, the mean cost and the share of labels that say solved. Empty where nothing was solved.
        """
        if not self.solved or not self.cost_rows:
            return []
        served, n = self.served, self.cost_rows
        cost = served.exact_cost
        if not self._solved_labels:
            solved, product = Fraction(self.solved), served.exact_solved_cost
            return [(self.rows, ratio_variance(self.rows, cost, solved, served.exact_square, solved, product))]
        mean, share = cost / n, Fraction(self.solved, self.solved_known)
        of_mean = max(served.exact_square / n - mean * mean, Fraction(0)) / share**2
        return [(n, float(of_mean)), (self.solved_known, float(mean**2 * (1 - share) / share**3))]

    @cached_property
    def lambda_(self) -> Lambda:
        """λ of the quality source in use."""
        sums = self.told("lambda").sums
        groups, full, convergent, flips = sums.lambda_groups
        return Lambda(
            groups=groups,
            complete=full,
            convergent=convergent,
            flipped_groups=flips,
            events=sums["lambda_events"],
            flipped_events=sums["lambda_flips"],
        )


def mostly_present(rows: int, present: int) -> bool:
    """Tell whether a metric has values on all but a small share of the rows."""
    return present > 0 and (rows - present) <= MISSING_MAX * rows


Pair = tuple[ArmMetrics, ArmMetrics]
QualitySource = Literal["gold_if_present", "gold", "traffic"]


@dataclass(frozen=True)
class Arms:
    """Both arms as they are judged. ``use``: the quality source in use, ``gold`` or ``traffic``.

    Hard rules look at further pairs of the same arms, so that rows which the gates do not read are seen by somebody.
    ``quality``: of ΔS, coverage and λ inline values and labels apart, and traffic beside gold; ``served``: what the
    canary serves in a shadow stage.
    """

    canary: ArmMetrics
    baseline: ArmMetrics
    use: str
    quality: tuple[Pair, ...] = ()
    served: tuple[Pair, ...] = ()


def read_arms(canary: Arm, baseline: Arm, quality_source: QualitySource, least: int, *, shadow: bool = False) -> Arms:
    """Canary and baseline by the sources that count for them.

    Labels take a metric over, and gold takes quality over (``gold_if_present``), where both arms have ``least`` of
    them. ``shadow``: the canary's mirrored requests stand where its traffic would.
    """
    served = canary
    if shadow:
        moved = {"traffic": "shadow", "label": "shadow_label", "gold": "gold", "gold_label": "gold_label"}
        canary = Arm({place: canary.sources[name] for place, name in moved.items() if name in canary.sources})
    arms = canary, baseline
    use = quality_source
    if use == "gold_if_present":
        use = "gold" if all(_golden(arm, least) for arm in arms) else "traffic"
    one, other = _pair(arms, use, least)
    quality = _apart(arms, use) if any(arm.has(LABELS[use], "labels") for arm in arms) else []
    if quality_source == "gold_if_present":
        beside = "traffic" if use == "gold" else "gold"
        if all(arm.has(beside, "requests") or arm.has(LABELS[beside], "labels") for arm in arms):
            quality += [_pair(arms, beside, least)]
    mirrored = shadow and served.has("traffic", "requests")
    return Arms(one, other, use, tuple(quality), (_pair((served, baseline), "traffic", least),) if mirrored else ())


def _golden(arm: Arm, least: int) -> bool:
    """Tell whether an arm has enough gold events, or labels of them."""
    rows = [
        arm.sources[source][counter] if source in arm.sources else 0
        for source, counter in (("gold", "requests"), (LABELS["gold"], "labels"))
    ]
    return max(rows) >= max(least, 1)


def _pair(arms: tuple[Arm, Arm], use: str, least: int) -> Pair:
    one, other = (_read(arm, use) for arm in arms)
    taken = {
        metric
        for metric, count in LABELLED.items()
        if all(count(arm.served_labels if metric == "solved" else arm.labels) >= max(least, 1) for arm in (one, other))
    }
    return replace(one, taken_over=frozenset(taken)), replace(other, taken_over=frozenset(taken))


def _apart(arms: tuple[Arm, Arm], use: str) -> list[Pair]:
    """Return the requests' own values without the labels, and the labels without them."""
    one, other = (_read(arm, use) for arm in arms)
    words = frozenset(LABELLED)
    own = tuple(replace(arm, labels=Sums(), served_labels=Sums()) for arm in (one, other))
    told = replace(one, taken_over=words), replace(other, taken_over=words)
    return [(own[0], own[1]), told]


def _read(arm: Arm, use: str) -> ArmMetrics:
    none = Sums()
    labels = Sums()
    for source in SERVED:
        if LABELS[source] in arm.sources:
            labels.count(arm.sources[LABELS[source]].counters)
    traffic = arm.sources["traffic"]["requests"] if "traffic" in arm.sources else 0
    quality, told = arm.sources.get(use, none), arm.sources.get(LABELS[use], none)
    return ArmMetrics(arm.served(), quality, told, labels, traffic=traffic)


def difference(canary: float | None, baseline: float | None) -> float | None:
    """canary − baseline."""
    return None if canary is None or baseline is None else canary - baseline


def uplift(canary: float | None, baseline: float | None) -> float | None:
    """canary ÷ baseline − 1; 0 of nothing over nothing.

    Not known over a baseline of 0 else, or of so little that no number holds the ratio.
    """
    if canary == baseline == 0:
        return 0.0
    ratio = canary / baseline - 1 if canary is not None and baseline else math.inf
    return ratio if math.isfinite(ratio) else None


def rate_interval(successes: float, n: int, alpha: float, design_effect: float = 1.0) -> Interval:
    """Anytime interval of a rate or of a mean of values in [0, 1]; so many rows are worth one."""
    return interval(successes / design_effect, n / design_effect, alpha, INFORMATION_N_OPT) if n else UNKNOWN


def quantile_interval(digest: Digest, q: float, alpha: float, design_effect: float = 1.0) -> Interval:
    """Anytime interval of a quantile; an end is None where the data cannot bound it."""
    if not digest.count:
        return UNKNOWN
    slack = 0.0 if digest.exact else RANK_ERROR
    lower, upper = quantile_ranks(digest.count, q, alpha, slack=slack, design_effect=design_effect)
    return (
        None if lower is None else digest.order_statistic(lower),
        None if upper is None else digest.order_statistic(upper),
    )


def drift_interval(canary: Digest, baseline: Digest, q: float, alpha: float, design_effect: float = 1.0) -> Interval:
    """Anytime interval of the difference of two quantiles; the level is shared by the two arms."""
    c, b = (quantile_interval(arm, q, alpha / 2, design_effect) for arm in (canary, baseline))
    return difference(c[0], b[1]), difference(c[1], b[0])


def uplift_interval(canary: Digest, baseline: Digest, q: float, alpha: float, design_effect: float = 1.0) -> Interval:
    """Anytime interval of the ratio of two quantiles, minus 1; the level is shared by the two arms."""
    c, b = (quantile_interval(arm, q, alpha / 2, design_effect) for arm in (canary, baseline))
    return uplift(c[0], b[1]), uplift(c[1], b[0])


def rate_surely_over(successes: float, n: float, limit: float, alpha: float) -> bool:
    """Tell whether a rate's anytime lower bound is over the limit."""
    return n > 0 and excludes_from_below(successes, n, limit, alpha, rate_n_opt(limit))


def mean_surely_under(total: float, n: float, limit: float, alpha: float) -> bool:
    """Tell whether the anytime upper bound of a mean of values in [0, 1] is under the limit."""
    return n > 0 and excludes_from_above(total, n, limit, alpha, rate_n_opt(limit))
