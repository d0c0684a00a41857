"""Small models of how others judge a canary, each from its public documentation, with the page's limits.

They are given the same requests and the same seven numbers as Tidegate, and the limits that its gates have. A check
reads the requests since the one before. What the peers' own infrastructure adds (scrape intervals, retries) is left
out.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bench.evidence.ramps import PATIENCE, Outcome, System
from bench.evidence.traffic import (
    COST,
    COVERAGE_SIGMA,
    DELTA_S,
    DELTA_S_SIGMA,
    LATENCY_MS,
    SIGMA,
    Bools,
    Canary,
    Floats,
    Pair,
    Requests,
    Traffic,
)
from tidegate.gates.bounds import half_width
from tidegate.schemas.manifest import LESS_IS_LOOSER, RULED_OUT, Flag


@dataclass(frozen=True)
class Metric:
    """One gate's number as a check reads it. ``limit``: up to where it is fine, ``rule_out``: from where it is not."""

    name: str
    limit: float
    rule_out: float

    @property
    def floor(self) -> bool:
        """Whether more is better."""
        return self.name in LESS_IS_LOOSER

    def fine(self, value: float) -> bool:
        """Whether a value is within the limit."""
        return value >= self.limit if self.floor else value <= self.limit

    def intolerable(self, value: float) -> bool:
        """Whether a value is at or beyond the one to rule out."""
        return value <= self.rule_out if self.floor else value >= self.rule_out


def metrics(rules: Flag) -> list[Metric]:
    """Those that the flag's gates judge, with the limits and the values to rule out that it resolves to."""
    limits, found = rules.gates.limits(), []
    for key, about in RULED_OUT.items():
        limit, rule_out = limits[about.gate], getattr(rules.policy.rule_out, key)
        if rule_out is not None and limit is not None and not isinstance(limit, bool):
            found.append(Metric(about.gate, limit, rule_out))
    return found


def values(pair: Pair) -> dict[str, float]:
    """What a check sees, by gate; a number that its requests do not give is left out."""
    baseline, canary = pair
    found: dict[str, float] = {}
    if canary.n:
        found |= {
            "error_rate_max": float(canary.error.mean()),
            "tool_success_min": 1 - float(canary.tool_failed.mean()),
            "coverage_min": float(canary.coverage.mean()),
        }
    if canary.n and baseline.n:
        found |= {
            "delta_s.median_max": float(np.median(canary.delta_s) - np.median(baseline.delta_s)),
            "delta_s.p95_max": float(p95(canary.delta_s) - p95(baseline.delta_s)),
            "latency_p95_uplift_max": float(
                np.quantile(canary.latency, 0.95) / np.quantile(baseline.latency, 0.95) - 1
            ),
        }
    if canary.solved.any() and baseline.solved.any():
        found["cost_uplift_max"] = _cost_per_solved(canary) / _cost_per_solved(baseline) - 1
    return found


def p95(values: Floats) -> float:
    """The 95th percentile."""
    return float(np.quantile(values, 0.95))


def _cost_per_solved(requests: Requests) -> float:
    return float(requests.cost.sum() / requests.solved.sum())


ARGO_MINUTES, ARGO_FAILURES, STAGE_MINUTES = 5, 3, 15
"""Of the example in its documentation: a measurement every five minutes, failed with the third bad one."""
STAGES = (0.05, 0.25, 0.50)
"""Weights before 100 %, as the page has them; where a peer's schedule goes by time, each holds for one window."""


def argo(rules: Flag, *, inconclusive: bool = False) -> System:
    """Argo Rollouts: weights by schedule, and a background AnalysisRun that counts each metric's bad measurements.

    ``inconclusive``: with a failureCondition too, at the value to rule out; what lies between is inconclusive, and
    the third such measurement of a metric pauses the rollout until a person decides.
    """
    judged = metrics(rules)

    def run(traffic: Traffic, canary: Canary) -> Outcome:
        exposed = 0
        failed: Counter[str] = Counter()
        unsure: Counter[str] = Counter()
        for start in range(0, len(STAGES) * STAGE_MINUTES, ARGO_MINUTES):
            stage, end = start // STAGE_MINUTES, start + ARGO_MINUTES
            pair = traffic.span(start, end, STAGES[stage], canary)
            exposed += pair[1].n
            seen = values(pair)
            for metric in judged:
                if metric.name not in seen or metric.fine(seen[metric.name]):
                    continue
                if inconclusive and not metric.intolerable(seen[metric.name]):
                    unsure[metric.name] += 1
                else:
                    failed[metric.name] += 1
            if any(count >= ARGO_FAILURES for count in failed.values()):
                return Outcome("stopped", end, exposed, stage)
            if any(count >= ARGO_FAILURES for count in unsure.values()):
                return Outcome("waits", end, exposed, stage)
        return Outcome("finished", end, exposed, len(STAGES))

    return run


FLAGGER_MINUTES, FLAGGER_FAILURES = 1, 10
FLAGGER_WEIGHTS = tuple(weight / 100 for weight in range(5, 55, 5))
"""Of the example in its documentation: interval 1m, threshold 10, stepWeight 5, maxWeight 50."""


def flagger(rules: Flag) -> System:
    """Flagger: a check a minute; if every metric is fine the weight takes a step, else the failed checks do.

    A metric without values halts the canary like a bad one. At the threshold it is rolled back.
    """
    judged = metrics(rules)

    def run(traffic: Traffic, canary: Canary) -> Outcome:
        step = failed = exposed = 0
        while True:
            end = (step + failed + 1) * FLAGGER_MINUTES
            pair = traffic.span(end - FLAGGER_MINUTES, end, FLAGGER_WEIGHTS[step], canary)
            exposed += pair[1].n
            seen = values(pair)
            if all(metric.name in seen and metric.fine(seen[metric.name]) for metric in judged):
                step += 1
            else:
                failed += 1
            if failed >= FLAGGER_FAILURES:
                return Outcome("stopped", end, exposed, step)
            if step == len(FLAGGER_WEIGHTS):
                return Outcome("finished", end, exposed, step)

    return run


MEANS_LEVEL, MEANS_N_OPT = 0.05, 5000
"""GrowthBook's defaults: 95 % confidence sequences, tightest at 5,000 units."""
MEANS_LEAST = 50
"""Requests of an arm below which the asymptotic sequence is not looked at."""


def means(rules: Flag) -> System:
    """A sequential test of means: weights by schedule, rolled back once any metric is proven worse than the baseline.

    It asks whether the canary is worse at all, by an asymptotic confidence sequence of the difference of means over
    the whole rollout, at each metric's own level; it has no limit, and without proof the rollout goes on.
    """
    worse = list(dict.fromkeys((_MEANS[metric.name], -1 if metric.floor else 1) for metric in metrics(rules)))

    def run(traffic: Traffic, canary: Canary) -> Outcome:
        arms = (Moments(), Moments())
        for minute in range(len(STAGES) * STAGE_MINUTES):
            stage = minute // STAGE_MINUTES
            for moments, requests in zip(arms, traffic.arms(minute, STAGES[stage], canary), strict=True):
                moments.add(requests)
            if any(_proven_worse(arms, name, sign) for name, sign in worse):
                return Outcome("stopped", minute + 1, arms[1].n, stage)
        return Outcome("finished", minute + 1, arms[1].n, len(STAGES))

    return run


_MEANS = {
    "error_rate_max": "error",
    "tool_success_min": "tool_ok",
    "coverage_min": "coverage",
    "delta_s.median_max": "delta_s",
    "delta_s.p95_max": "delta_s",
    "latency_p95_uplift_max": "latency",
    "cost_uplift_max": "cost",
}


class Moments:
    """Sums and sums of squares of one arm's requests so far."""

    def __init__(self) -> None:
        self.n = 0
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, requests: Requests) -> None:
        """Take in a minute."""
        self.n += requests.n
        columns: Mapping[str, Floats | Bools] = {
            "error": requests.error,
            "tool_ok": ~requests.tool_failed,
            "coverage": requests.coverage,
            "delta_s": requests.delta_s,
            "latency": requests.latency,
            "cost": requests.cost,
        }
        for name, column in columns.items():
            known = self._sums.get(name, (0.0, 0.0))
            values = column.astype(np.float64)
            self._sums[name] = known[0] + float(values.sum()), known[1] + float(values @ values)

    def mean(self, name: str) -> float:
        """Of one metric."""
        return self._sums[name][0] / self.n

    def variance(self, name: str) -> float:
        """Of one request's value."""
        return max(self._sums[name][1] / self.n - self.mean(name) ** 2, 0.0)


def _proven_worse(arms: tuple[Moments, Moments], name: str, sign: int) -> bool:
    """Whether the confidence sequence of canary − baseline lies on the worse side of 0."""
    baseline, canary = arms
    if min(baseline.n, canary.n) < MEANS_LEAST:
        return False
    n = baseline.n + canary.n
    # Of one of all n requests, so that variance / n is that of the difference of the two means.
    variance = n * (canary.variance(name) / canary.n + baseline.variance(name) / baseline.n)
    difference = sign * (canary.mean(name) - baseline.mean(name))
    return difference > half_width(n, variance, MEANS_LEVEL, MEANS_N_OPT)


def wald(rules: Flag) -> System:
    """Wald's sequential probability ratio test of every metric, limit against the value to rule out.

    It knows what nobody knows: the family and spread of each metric, and the baseline exactly. Levels and the split
    over gates and stages are Tidegate's. It moves on in the minute in which all metrics are decided: nothing that
    keeps the same promise decides sooner on the average.
    """
    judged = metrics(rules)
    stages = rules.ramp_stages
    stop = rules.policy.false_stop / (len(judged) * len(stages))
    beta = rules.policy.wrong_promote
    up, down = math.log((1 - beta) / stop), math.log(beta / (1 - stop))
    ratios = [_RATIOS[metric.name](metric) for metric in judged]

    def run(traffic: Traffic, canary: Canary) -> Outcome:
        exposed = minute = 0
        for stage, weight in enumerate(stages):
            odds, open_ = [0.0] * len(judged), set(range(len(judged)))
            while open_:
                if minute == PATIENCE:
                    return Outcome("open", minute, exposed, stage)
                requests = traffic.arms(minute, weight, canary)[1]
                minute, exposed = minute + 1, exposed + requests.n
                for i in sorted(open_):
                    odds[i] += ratios[i](requests)
                    if odds[i] >= up:
                        return Outcome("stopped", minute, exposed, stage)
                    if odds[i] <= down:
                        open_.discard(i)
        return Outcome("finished", minute, exposed, len(stages) - 1)

    return run


Ratio = Callable[[Requests], float]
"""Log likelihood of a minute's requests under the value to rule out, less that under the limit."""


def _bernoulli(column: Callable[[Requests], Bools], good: float, bad: float) -> Ratio:
    hit, miss = math.log(bad / good), math.log((1 - bad) / (1 - good))

    def ratio(requests: Requests) -> float:
        hits = int(column(requests).sum())
        return hits * hit + (requests.n - hits) * miss

    return ratio


def _normal(column: Callable[[Requests], Floats], good: float, bad: float, sigma: float) -> Ratio:
    slope, middle = (bad - good) / sigma**2, (good + bad) / 2

    def ratio(requests: Requests) -> float:
        found = column(requests)
        return float(slope * (found.sum() - middle * len(found)))

    return ratio


def _of_delta_s(metric: Metric, at: float) -> Ratio:
    """ΔS is the baseline's times a factor; ``at``: the baseline's quantile that the metric is about."""
    good, bad = (math.log(DELTA_S * (at + shift) / at) for shift in (metric.limit, metric.rule_out))
    return _normal(lambda requests: np.log(requests.delta_s), good, bad, DELTA_S_SIGMA)


_P95 = 1.6448536269514722
_RATIOS: dict[str, Callable[[Metric], Ratio]] = {
    "error_rate_max": lambda m: _bernoulli(lambda r: r.error, m.limit, m.rule_out),
    "tool_success_min": lambda m: _bernoulli(lambda r: r.tool_failed, 1 - m.limit, 1 - m.rule_out),
    "coverage_min": lambda m: _normal(lambda r: r.coverage, m.limit, m.rule_out, COVERAGE_SIGMA),
    "delta_s.median_max": lambda m: _of_delta_s(m, DELTA_S),
    "delta_s.p95_max": lambda m: _of_delta_s(m, DELTA_S * math.exp(_P95 * DELTA_S_SIGMA)),
    "latency_p95_uplift_max": lambda m: _of_lognormal(lambda r: r.latency, m, LATENCY_MS),
    # What is solved is the baseline's share, so the cost of a request has all the news of cost per solved.
    "cost_uplift_max": lambda m: _of_lognormal(lambda r: r.cost, m, COST),
}


def _of_lognormal(column: Callable[[Requests], Floats], metric: Metric, median: float) -> Ratio:
    """The baseline's times a factor, whose spread does not change: an uplift of any quantile."""
    good, bad = (math.log(median * (1 + uplift)) for uplift in (metric.limit, metric.rule_out))
    return _normal(lambda requests: np.log(column(requests)), good, bad, SIGMA)
