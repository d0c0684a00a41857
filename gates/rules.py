"""Gates and abort rules: one small function each, from the metrics of both arms to a result.

All gates and all rules are evaluated and listed, also when the first fails.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Self

import msgspec

from tidegate.gates.metrics import (
    MISSING_MAX,
    UNKNOWN,
    ArmMetrics,
    Arms,
    Interval,
    Pair,
    difference,
    drift_interval,
    mean_surely_under,
    mostly_present,
    rate_interval,
    rate_surely_over,
    uplift,
    uplift_interval,
)
from tidegate.schemas.decision import GateResult, RuleResult, Status
from tidegate.schemas.manifest import SLACK, Flag

INFORMATION_ALPHA = 0.05
QUALITY_GATES = ("delta_s.median_max", "delta_s.p95_max", "coverage_min", "lambda_convergent")
QUALITY_RULES = ("delta_s_p95_over", "coverage_under", "lambda_flip_rate_over")
SOFT_GATES = {
    "latency_p95_over_budget": "latency_p95_uplift_max",
    "cost_per_solved_over_budget": "cost_uplift_max",
}
"""The gate that each soft rule watches."""


def rounded(value: float | None, digits: int = 12) -> float | None:
    """Return a number as records show it: what lies below the rounding differs between math libraries."""
    return None if value is None else round(value, digits) + 0.0


@dataclass(frozen=True)
class Comparison:
    """Both arms of one unit, and the flag whose rules apply.

    ``quality``, ``served``: further pairs of the arms that hard rules look at, as in ``Arms``.
    """

    flag: Flag
    canary: ArmMetrics
    baseline: ArmMetrics
    quality: tuple[Pair, ...] = ()
    served: tuple[Pair, ...] = ()

    @classmethod
    def of(cls, flag: Flag, arms: Arms) -> Self:
        """Return both arms as they were read."""
        return cls(flag, arms.canary, arms.baseline, arms.quality, arms.served)

    def gates(self) -> list[GateResult]:
        """Return the eight gates, in the order of the manifest."""
        return self._waive(self._by_value(bounds=True))

    def _by_value(self, *, bounds: bool) -> list[GateResult]:
        """Return the gates by their values alone, without the waiver; ``bounds``: with anytime intervals."""
        return [result(bounds) for result in self._gates()]

    def _gates(self) -> list["_Result"]:
        gates = self.flag.gates
        return [
            self._delta_s("delta_s.median_max", gates.delta_s.median_max, 0.5),
            self._delta_s("delta_s.p95_max", gates.delta_s.p95_max, 0.95),
            self._coverage(gates.coverage_min),
            self._lambda(gates.lambda_convergent),
            self._latency(gates.latency_p95_uplift_max),
            self._error_rate(gates.error_rate_max),
            self._tool_success(gates.tool_success_min),
            self._cost(gates.cost_uplift_max),
        ]

    @property
    def _design_effect(self) -> float:
        return self.flag.policy.design_effect

    def _enough(self, canary: int, baseline: int) -> bool:
        least = self.flag.window.min_requests
        return canary >= least and baseline >= least

    @property
    def _enough_served(self) -> bool:
        return self._enough(self.canary.rows, self.baseline.rows)

    def _delta_s(self, gate: str, limit: float | None, q: float) -> "_Result":
        c, b = self.canary.delta_s, self.baseline.delta_s
        values = c.quantile(q), b.quantile(q)
        observed = difference(*values)
        return _Result(
            gate,
            limit,
            _at_most(observed if self._delta_s_known else None, limit),
            observed,
            values,
            (c.count, b.count),
            lambda: drift_interval(c, b, q, INFORMATION_ALPHA, self._design_effect),
        )

    @property
    def _delta_s_known(self) -> bool:
        c, b = self.canary, self.baseline
        return self._enough(c.delta_s_rows, b.delta_s_rows) and all(
            mostly_present(arm.delta_s_rows, arm.delta_s.count) for arm in (c, b)
        )

    def _coverage_known(self, *arms: ArmMetrics) -> bool:
        return self._enough(self.canary.coverage_rows, self.baseline.coverage_rows) and all(
            mostly_present(arm.coverage_rows, arm.coverage_count) for arm in arms
        )

    def _coverage(self, limit: float | None) -> "_Result":
        rows, observed = self.canary.coverage_count, self.canary.coverage
        return _Result(
            "coverage_min",
            limit,
            _at_least(observed if self._coverage_known(self.canary) else None, limit),
            observed,
            (observed, self.baseline.coverage),
            (rows, self.baseline.coverage_count),
            lambda: rate_interval(self.canary.coverage_sum, rows, INFORMATION_ALPHA, self._design_effect),
        )

    def _lambda(self, wanted: bool) -> "_Result":
        c, b = self.canary.lambda_, self.baseline.lambda_
        least = self.flag.window.min_lambda_groups
        if self.flag.policy.lambda_source == "probes":
            good, n, share, other, n_other = c.convergent, c.complete, c.share, b.share, b.complete
            known = n >= least
        else:
            (good, n, share), (_, n_other, other) = (_convergent_rows(a) for a in (self.canary, self.baseline))
            known = n >= least and mostly_present(self.canary.lambda_rows, n)
        status: Status = "unknown"
        if known and self._enough(self.canary.lambda_rows, self.baseline.lambda_rows):
            status = "pass" if good == n else "fail"
        return _Result(
            "lambda_convergent",
            True if wanted else None,
            status,
            share,
            (share, other),
            (n, n_other),
            lambda: rate_interval(good, n, INFORMATION_ALPHA, self._design_effect),
        )

    def _latency(self, limit: float | None) -> "_Result":
        c, b = self.canary.served.latency, self.baseline.served.latency
        values = c.quantile(0.95), b.quantile(0.95)
        observed = uplift(*values)
        return _Result(
            "latency_p95_uplift_max",
            limit,
            _at_most(observed if self._enough_served else None, limit),
            observed,
            values,
            (c.count, b.count),
            lambda: uplift_interval(c, b, 0.95, INFORMATION_ALPHA, self._design_effect),
        )

    def _error_rate(self, limit: float | None) -> "_Result":
        observed, errors = self.canary.error_rate, self.canary.served["errors"]
        return _Result(
            "error_rate_max",
            limit,
            _at_most(observed if self._enough_served else None, limit),
            observed,
            (observed, self.baseline.error_rate),
            (self.canary.rows, self.baseline.rows),
            lambda: rate_interval(errors, self.canary.rows, INFORMATION_ALPHA, self._design_effect),
        )

    def _tool_success(self, limit: float | None) -> "_Result":
        c, b = self.canary.served, self.baseline.served
        calls, observed = c["tool_calls"], self.canary.tool_success
        known = self._enough_served and c["tool_missing"] <= MISSING_MAX * c["tool_rows"]
        status = _at_least(observed if known else None, limit)
        if not any(arm[counter] for arm in (c, b) for counter in ("tool_calls", "tool_missing")):
            status = "not_applicable" if self._enough_served else "unknown"
        return _Result(
            "tool_success_min",
            limit,
            status,
            observed,
            (observed, self.baseline.tool_success),
            (calls, b["tool_calls"]),
            lambda: rate_interval(c["tool_ok"], calls, INFORMATION_ALPHA, self._design_effect),
        )

    def _cost(self, limit: float | None) -> "_Result":
        c, b = self.canary, self.baseline
        observed = uplift(c.cost_per_solved, b.cost_per_solved)
        known = (
            self._enough_served
            and self._enough(c.solved_rows, b.solved_rows)
            and bool(b.solved)
            and all(mostly_present(arm.rows, arm.cost_rows) for arm in (c, b))
            and all(mostly_present(arm.solved_rows, arm.solved_known) for arm in (c, b))
        )
        status = _at_most(observed if known else None, limit)
        if known and not c.solved:
            status = "fail"
        return _Result(
            "cost_uplift_max",
            limit,
            status,
            observed,
            (c.cost_per_solved, b.cost_per_solved),
            (c.solved, b.solved),
            lambda: UNKNOWN,
        )

    def _waive(self, results: list[GateResult]) -> list[GateResult]:
        """Let a dearer canary pass where it is better: the cost gate alone fails and quality gained."""
        gain, cost = self.flag.policy.quality_gain, results[-1]
        if (
            gain is None
            or [r.gate for r in results if r.status == "fail"] != ["cost_uplift_max"]
            or cost.observed is None
            or cost.observed > gain.max_cost_uplift + SLACK
        ):
            return results
        c, b = self.canary, self.baseline
        if not (self._delta_s_known and self._coverage_known(c, b)):
            return results
        median = difference(c.delta_s.quantile(0.5), b.delta_s.quantile(0.5))
        tail = difference(c.delta_s.quantile(0.95), b.delta_s.quantile(0.95))
        coverage = difference(c.coverage, b.coverage)
        flips = (c.lambda_.flip_rate or 0.0) - (b.lambda_.flip_rate or 0.0)
        if median is None or tail is None or coverage is None:
            return results
        gained = -median >= gain.delta_s_median_gain - SLACK or coverage >= gain.coverage_gain - SLACK
        if gained and max(median, tail, -coverage, flips) <= SLACK:
            results[-1] = _replace_status(cost, "waived")
        return results

    def rules(
        self, gates: Iterable[GateResult], alpha: float | None, more: Iterable[RuleResult] = ()
    ) -> list[RuleResult]:
        """Return the abort rules of the manifest, hard ones first; ``more`` are hard ones that do not read metrics.

        ``alpha`` None: the window has ended and a rule fires on the value itself. Otherwise the window is open
        and a hard rule fires only on an anytime bound at level ``alpha``, which the caller has split over the
        rules; soft rules wait for the window's end.
        """
        by_id = {gate.gate: gate for gate in gates}
        soft = [
            self._soft(rule.kind, rule.value, by_id[SOFT_GATES[rule.kind]], ended=alpha is None)
            for rule in self.flag.abort_rules.soft
        ]
        return [*self.hard_rules(alpha), *more, *soft]

    def hard_rules(self, alpha: float | None) -> list[RuleResult]:
        """Return the hard rules alone; ``alpha`` as for ``rules``.

        A rule fires if it does on any pair of the arms; the pairs share ``alpha``. What is shown is the pair that
        fired, else the one that the gates read.
        """
        results = []
        for rule in self.flag.abort_rules.hard:
            pairs = [(self.canary, self.baseline), *self.served, *(self.quality if rule.kind in QUALITY_RULES else ())]
            part = None if alpha is None else alpha / len(pairs)
            looks = [replace(self, canary=c, baseline=b)._hard(rule.kind, rule.value, part) for c, b in pairs]
            results.append(next((look for look in looks if look.fired), looks[0]))
        return results

    def _hard(self, kind: str, limit: float, alpha: float | None) -> RuleResult:
        c, b = self.canary, self.baseline
        least, worth = self.flag.window.min_requests, self._design_effect
        surely = False
        if kind == "delta_s_p95_over":
            n, enough = c.delta_s.count, min(c.delta_s.count, b.delta_s.count) >= least
            observed = difference(c.delta_s.quantile(0.95), b.delta_s.quantile(0.95))
            over = observed is not None and observed > limit + SLACK
            if over and enough and alpha is not None:
                lower = drift_interval(c.delta_s, b.delta_s, 0.95, alpha, worth)[0]
                surely = lower is not None and lower > limit + SLACK
        elif kind == "coverage_under":
            n, observed = c.coverage_count, c.coverage
            enough, over = n >= least, observed is not None and observed < limit - SLACK
            if over and enough and alpha is not None:
                surely = mean_surely_under(c.coverage_sum / worth, n / worth, limit, alpha)
        elif kind == "lambda_flip_rate_over":
            n, observed = c.lambda_rows, c.lambda_.flip_rate
            enough, over = n >= least, observed is not None and observed > limit + SLACK
            if over and enough and alpha is not None:
                tests, half = c.lambda_.tests, alpha / 2
                surely = any(rate_surely_over(k / worth, units / worth, limit, half) for k, units in tests)
        else:
            n, observed = c.rows, c.error_rate
            enough, over = n >= least, observed is not None and observed > limit + SLACK
            if over and enough and alpha is not None:
                surely = rate_surely_over(c.served["errors"] / worth, n / worth, limit, alpha)
        return RuleResult(
            kind=kind,
            severity="hard",
            value=limit,
            observed=rounded(observed),
            n=n,
            fired=enough and over and (alpha is None or surely),
        )

    def _soft(self, kind: str, limit: float | None, gate: GateResult, *, ended: bool) -> RuleResult:
        over = gate.observed is None or (limit is not None and gate.observed > limit + SLACK)
        return RuleResult(
            kind=kind,
            severity="soft",
            value=limit,
            observed=gate.observed,
            n=gate.n_canary,
            fired=ended and gate.status == "fail" and over,
        )


def _convergent_rows(arm: ArmMetrics) -> tuple[int, int, float | None]:
    rows = arm.lambda_count
    good = rows - arm.lambda_bad
    return good, rows, good / rows if rows else None


def _at_most(observed: float | None, limit: float | None) -> Status:
    if observed is None or limit is None:
        return "unknown"
    return "pass" if observed <= limit + SLACK else "fail"


def _at_least(observed: float | None, limit: float | None) -> Status:
    if observed is None or limit is None:
        return "unknown"
    return "pass" if observed >= limit - SLACK else "fail"


@dataclass(frozen=True)
class _Result:
    """A gate's result, its interval left open until it is asked for: that costs a hundred times as much."""

    gate: str
    limit: float | bool | None
    status: Status
    observed: float | None
    values: tuple[float | None, float | None]
    counts: tuple[int, int]
    interval: Callable[[], Interval]

    def __call__(self, bounds: bool) -> GateResult:
        lower, upper = self.interval() if bounds else UNKNOWN
        return GateResult(
            gate=self.gate,
            status="off" if self.limit is None else self.status,
            observed=rounded(self.observed),
            threshold=self.limit,
            canary=rounded(self.values[0]),
            baseline=rounded(self.values[1]),
            n_canary=self.counts[0],
            n_baseline=self.counts[1],
            lower=rounded(lower, 6),
            upper=rounded(upper, 6),
        )


def _replace_status(result: GateResult, status: Status) -> GateResult:
    return msgspec.structs.replace(result, status=status)
