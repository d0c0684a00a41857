"""Gates that decide when they know: limits and values to rule out, held against anytime bounds.

A gate **passes** when its value is within the limit and its bound excludes the value to rule out; it **fails** when
its bound excludes the limit itself; until then it is **undecided**. The levels: a canary at or within all limits is
stopped with a chance of at most ``false_stop`` over the rollout, so each gate has an equal part of it in each stage; a
canary at a value to rule out passes that gate in a stage with a chance of at most ``wrong_promote``, which is not
split, as all gates have to pass (an intersection-union test).

A chance is bounded only if what is looked at grows and nothing of it goes away again. So what is proven on the windows
that count has to be proven on all rows of the stage too, those that were left out included. On these a hard rule costs
its gate nothing, for what excludes the rule's value excludes the limit. What it looks at beside them, windows alone and
settling spans, has shares of its own.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, Self

import msgspec

from tidegate.gates.bounds import alpha_for_window, excludes_from_above, half_width, interval
from tidegate.gates.digest import Digest
from tidegate.gates.metrics import (
    UNKNOWN,
    ArmMetrics,
    Interval,
    difference,
    quantile_interval,
    rate_n_opt,
    rate_surely_over,
    uplift,
)
from tidegate.gates.rules import SOFT_GATES, Comparison, rounded
from tidegate.schemas.catalogue import FLOORS
from tidegate.schemas.decision import GateForecast, GateResult, RuleResult
from tidegate.schemas.manifest import GATE_OF_RULE, RULED_OUT, SLACK, Flag

COST_LEAST = 50
"""Solved requests of either arm below which the cost gate is unknown: its bound is asymptotic."""
GROWTH_MAX = 1 << 14
"""A gate that so many times the present rows would not settle does not end soon."""
FORECAST_STEP = 1.02
"""The precision of a forecast of the rows that a gate still needs, as a factor."""
STAGE_SHARE = 0.75
"""Of a gate's part, what a stage's rows are looked at with where its hard rule looks at other rows too."""
SETTLING_SHARE = WINDOWS_SHARE = 0.125
"""The rest: for the settling span before a stage, and for windows alone, all stages' together."""
KEY_OF = {about.gate: key for key, about in RULED_OUT.items()}
"""The key under ``policy.rule_out`` of each gate."""


@dataclass(frozen=True)
class Levels:
    """At which levels a stage is looked at.

    ``part``: of one gate in one stage. ``promote``: of every gate. ``hard``: of hard rules on the rows that they look
    at together, ``window``: on a window alone. ``ruled``: gates that share their part with a hard rule.
    """

    part: float
    promote: float
    hard: float
    window: float
    ruled: frozenset[str] = frozenset()

    @classmethod
    def of(cls, flag: Flag, window: int, cycle: int = 1, *, settling: bool = False) -> Self:
        """Return a flag's levels in its rollout's window number ``window`` = 1, 2, 3, …, or the settling before it.

        ``cycle``: a unit that has passed its last stage is judged anew again and again; all that follows the first
        time shares one part more.
        """
        on = {gate for gate, limit in flag.gates.limits().items() if limit is not None and limit is not False}
        ruled = frozenset(GATE_OF_RULE.get(rule.kind, "lambda_convergent") for rule in flag.abort_rules.hard)
        stages = len(flag.ramp_stages)
        whole = flag.policy.false_stop / (max(len(on | ruled), 1) * stages)
        part = whole if cycle == 1 else alpha_for_window(whole, cycle - 1)
        return cls(
            part,
            flag.policy.wrong_promote,
            hard=SETTLING_SHARE * whole if settling else STAGE_SHARE * part,
            window=alpha_for_window(WINDOWS_SHARE * whole * stages, window),
            ruled=ruled,
        )

    def stop(self, gate: str) -> float:
        """Of a gate on the stage's rows."""
        return self.part * (STAGE_SHARE if gate in self.ruled else 1.0)


class Test(Protocol):
    """A test of a gate's value against a bound."""

    def exceeds(self, limit: float, level: float) -> bool:
        """Tell whether the bound excludes ``limit`` and everything better."""
        ...

    def excludes(self, value: float, level: float) -> bool:
        """Tell whether the bound excludes ``value`` and everything worse."""
        ...

    def ends(self, limit: float, value: float, stop: float, promote: float) -> Interval:
        """Return the interval as the gate shows it, each end at the level at which it decides."""
        ...

    def grown(self, times: float, *, pinned: bool) -> "Test":
        """Return the same values from so many times the rows; of the canary alone where the baseline is ``pinned``."""
        ...


@dataclass(frozen=True)
class Proportion:
    """Bad ones among ``n``, both divided by the design effect.

    ``good``: what is shown is the share of good ones; limits are shares of them too, unless they are of ``flips``.
    """

    bad: float
    n: float
    good: bool = False
    flips: bool = False

    def _of(self, limit: float) -> float:
        return round(1 - limit, 12) if self.good and not self.flips else limit

    def exceeds(self, limit: float, level: float) -> bool:
        """By the lower bound of the bad share."""
        return rate_surely_over(self.bad, self.n, self._of(limit), level)

    def excludes(self, value: float, level: float) -> bool:
        """By its upper bound."""
        worst = self._of(value)
        return self.n > 0 and excludes_from_above(self.bad, self.n, worst, level, rate_n_opt(worst))

    def ends(self, limit: float, value: float, stop: float, promote: float) -> Interval:
        """Return each end where it is tightest for what it is asked."""
        if not self.n:
            return UNKNOWN
        lower = interval(self.bad, self.n, stop, rate_n_opt(self._of(limit)))[0]
        upper = interval(self.bad, self.n, promote, rate_n_opt(self._of(value)))[1]
        return (1 - upper, 1 - lower) if self.good else (lower, upper)

    def grown(self, times: float, *, pinned: bool) -> "Proportion":
        """Return the same share of more rows."""
        return replace(self, bad=self.bad * times, n=self.n * times)


@dataclass(frozen=True)
class Quantiles:
    """A quantile of both arms, as a difference or (``ratio``) an uplift; the arms share each level."""

    canary: Digest
    baseline: Digest
    q: float
    ratio: bool
    design_effect: float

    def _ends(self, level: float) -> Interval:
        c, b = (quantile_interval(arm, self.q, level / 2, self.design_effect) for arm in (self.canary, self.baseline))
        return _compared(c, b, ratio=self.ratio)

    def exceeds(self, limit: float, level: float) -> bool:
        """By the canary's lower and the baseline's upper order statistic."""
        lower = self._ends(level)[0]
        return lower is not None and lower > limit + SLACK

    def excludes(self, value: float, level: float) -> bool:
        """Return the other way round."""
        upper = self._ends(level)[1]
        return upper is not None and upper < value - SLACK

    def ends(self, limit: float, value: float, stop: float, promote: float) -> Interval:
        """Return each end at its level."""
        return self._ends(stop)[0], self._ends(promote)[1]

    def grown(self, times: float, *, pinned: bool) -> "Test":
        """By the shares of the present values at which the order statistics would stand."""
        return _Grown(self, times, 1.0 if pinned else times)


@dataclass(frozen=True)
class _Grown:
    """Quantiles of so many times the rows. Ranks are those of a normal mixture: near, and a thousand times faster."""

    of: Quantiles
    canary: float
    baseline: float

    def _ends(self, level: float) -> Interval:
        c = self._arm(self.of.canary, self.canary, level / 2)
        b = self._arm(self.of.baseline, self.baseline, level / 2)
        return _compared(c, b, ratio=self.of.ratio)

    def _arm(self, digest: Digest, times: float, level: float) -> Interval:
        q = self.of.q
        reach = half_width(digest.count * times / self.of.design_effect, q * (1 - q), level)
        low, high = q - reach, q + reach
        return digest.quantile(low) if low > 0 else None, digest.quantile(high) if high < 1 else None

    def exceeds(self, limit: float, level: float) -> bool:
        """Tell whether the bound excludes ``limit`` and everything better."""
        lower = self._ends(level)[0]
        return lower is not None and lower > limit + SLACK

    def excludes(self, value: float, level: float) -> bool:
        """Tell whether the bound excludes ``value`` and everything worse."""
        upper = self._ends(level)[1]
        return upper is not None and upper < value - SLACK

    def ends(self, limit: float, value: float, stop: float, promote: float) -> Interval:
        """Return the lower bound at the level ``stop``, and the upper one at the level ``promote``."""
        return self._ends(stop)[0], self._ends(promote)[1]

    def grown(self, times: float, *, pinned: bool) -> "Test":
        """Further."""
        return _Grown(self.of, self.canary * times, self.baseline * (1.0 if pinned else times))


@dataclass(frozen=True)
class Costs:
    """The uplift of cost per solved, and what each arm's part of it varies by: rows, and variance times their number.

    By the delta method and an asymptotic confidence sequence; all parts share each level, and their half-widths add up.
    """

    uplift: float
    canary: tuple[tuple[float, float], ...]
    baseline: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, canary: ArmMetrics, baseline: ArmMetrics, design_effect: float) -> "Costs | None":
        """Return both arms compared; None where their costs have no ratio."""
        c, b = canary.cost_per_solved, baseline.cost_per_solved
        observed = uplift(c, b)
        if observed is None or c is None or b is None:
            return None
        # Nothing over nothing: neither arm's requests cost anything.
        of_canary, of_baseline = (1 / b**2, c**2 / b**4) if b else (0.0, 0.0)
        parts = [
            tuple((n / design_effect, variance * scale) for n, variance in arm.cost_variances)
            for arm, scale in ((canary, of_canary), (baseline, of_baseline))
        ]
        return cls(observed, parts[0], parts[1])

    def _half(self, level: float) -> float:
        parts = (*self.canary, *self.baseline)
        return sum(half_width(n, variance, level / len(parts)) for n, variance in parts)

    def exceeds(self, limit: float, level: float) -> bool:
        """By the lower end."""
        # The bound costs more than the look at the value.
        return self.uplift > limit + SLACK and self.uplift - self._half(level) > limit + SLACK

    def excludes(self, value: float, level: float) -> bool:
        """By the upper end."""
        return self.uplift + self._half(level) < value - SLACK

    def ends(self, limit: float, value: float, stop: float, promote: float) -> Interval:
        """Return each end at its level."""
        return self.uplift - self._half(stop), self.uplift + self._half(promote)

    def grown(self, times: float, *, pinned: bool) -> "Costs":
        """Return the same variances of more rows."""
        canary = tuple((n * times, variance) for n, variance in self.canary)
        baseline = self.baseline if pinned else tuple((n * times, variance) for n, variance in self.baseline)
        return replace(self, canary=canary, baseline=baseline)


def _compared(canary: Interval, baseline: Interval, *, ratio: bool) -> Interval:
    how: Callable[[float | None, float | None], float | None] = uplift if ratio else difference
    return how(canary[0], baseline[1]), how(canary[1], baseline[0])


TWO_ARMED = frozenset(("delta_s.median_max", "delta_s.p95_max", "latency_p95_uplift_max", "cost_uplift_max"))
"""Gates whose bound needs rows of the baseline too."""


@dataclass(frozen=True)
class Sequential(Comparison):
    """Both arms of a stage's evidence under a flag's rules.

    ``own``: the arms of the present window alone, which hard rules look at too, so that a long healthy past hides no
    sudden fault. ``whole``: the arms with the rows of windows that were left out, where there are any. ``ms``: how
    long the evidence took to come. ``pinned``: the baseline grows no more.
    """

    levels: Levels = Levels(0.05, 0.05, 0.05, 0.05)
    own: Comparison | None = None
    whole: "Sequential | None" = None
    ms: int = 0
    pinned: bool = False

    def gates(self) -> list[GateResult]:
        """Return the eight gates, in the order of the manifest, with bounds, and forecasts where they are undecided."""
        results = [self._settled(result) for result in self._by_value(bounds=False)]
        return [self._foreseen(result) for result in self._waive_dear(results)]

    def stops(self) -> list[str]:
        """Return the gates that are proven over their limit, without one that is waived."""
        results = [
            msgspec.structs.replace(one, status="undecided") if one.status == "fail" and not self._proven(one) else one
            for one in self._by_value(bounds=False)
        ]
        if results[-1].status == "fail":
            results = self._waive_dear(results)
        return [result.gate for result in results if result.status == "fail"]

    def _waive_dear(self, results: list[GateResult]) -> list[GateResult]:
        """Return the waiver, which a cost over the limit is open to whether or not it is proven."""
        cost = results[-1]
        dear = cost.status in ("fail", "undecided") and (cost.observed or 0.0) > float(cost.threshold or 0.0) + SLACK
        if not dear:
            return results
        waived = self._waive([*results[:-1], msgspec.structs.replace(cost, status="fail")])
        return waived if waived[-1].status == "waived" else results

    def _settled(self, by_value: GateResult) -> GateResult:
        """Return a gate by its bounds."""
        value = self._rule_out(by_value.gate)
        result = msgspec.structs.replace(by_value, rule_out=value)
        test = self._test(by_value.gate)
        if test is None or by_value.status == "off":
            return result
        limit = _limit(by_value)
        lower, upper = self._ends(by_value.gate, test, limit, limit if value is None else value)
        result = msgspec.structs.replace(result, lower=rounded(lower, 6), upper=rounded(upper, 6))
        if by_value.status not in ("pass", "fail"):
            return result
        if by_value.gate == "cost_uplift_max" and self._too_few_solved:
            return msgspec.structs.replace(result, status="fail" if self._proven(by_value) else "unknown")
        if by_value.status == "fail":
            return msgspec.structs.replace(result, status="fail" if self._proven(by_value) else "undecided")
        clear = value is None or test.excludes(value, self.levels.promote)
        return msgspec.structs.replace(result, status="pass" if clear else "undecided")

    def _ends(self, gate: str, test: Test, limit: float, value: float) -> Interval:
        """Return both ends; the one that stops is the looser of those of the windows that count and of all of them."""
        stop, promote = self.levels.stop(gate), self.levels.promote
        lower, upper = test.ends(limit, value, stop, promote)
        more = self.whole._test(gate) if self.whole else None
        if more is None:
            return lower, upper
        low, high = more.ends(limit, value, stop, promote)
        if gate in FLOORS:
            return lower, None if upper is None or high is None else max(upper, high)
        return None if lower is None or low is None else min(lower, low), upper

    def _proven(self, failed: GateResult) -> bool:
        """Tell whether a gate that fails by its value is surely over its limit, on all rows too."""
        return self._excluded(failed) and (self.whole is None or self.whole._excluded(failed))

    def _excluded(self, failed: GateResult) -> bool:
        """Tell whether the bound of a gate that fails by its value excludes its limit."""
        if failed.gate == "lambda_convergent":
            return True
        if failed.gate == "cost_uplift_max" and self._too_few_solved:
            # So many would have been solved at the baseline's share that none by chance has odds of e^-50.
            c, b = self.canary, self.baseline
            share = b.solved / b.solved_known if b.solved_known else 0.0
            worth = c.solved_known / self._design_effect
            return not c.solved and b.solved >= COST_LEAST and share * worth >= COST_LEAST
        test = self._test(failed.gate)
        return test is not None and test.exceeds(_limit(failed), self.levels.stop(failed.gate))

    @property
    def _too_few_solved(self) -> bool:
        return min(self.canary.solved, self.baseline.solved) < COST_LEAST

    def _rule_out(self, gate: str) -> float | None:
        value: float | None = getattr(self.flag.policy.rule_out, KEY_OF[gate])
        return value

    def _test(self, gate: str) -> Test | None:
        """Return the test of a gate's value; None where there is nothing to test."""
        c, b, worth = self.canary, self.baseline, self._design_effect
        match gate:
            case "delta_s.median_max" | "delta_s.p95_max":
                return Quantiles(c.delta_s, b.delta_s, 0.5 if gate == "delta_s.median_max" else 0.95, False, worth)
            case "latency_p95_uplift_max":
                return Quantiles(c.served.latency, b.served.latency, 0.95, True, worth)
            case "coverage_min":
                n = c.coverage_count
                return Proportion(max(n - c.coverage_sum, 0.0) / worth, n / worth, good=True)
            case "lambda_convergent":
                bad, n = self._flips
                return Proportion(bad / worth, n / worth, good=True, flips=True)
            case "error_rate_max":
                return Proportion(c.served["errors"] / worth, c.rows / worth)
            case "tool_success_min":
                calls = c.served["tool_calls"]
                return Proportion((calls - c.served["tool_ok"]) / worth, calls / worth, good=True)
        return Costs.of(c, b, worth)

    @property
    def _flips(self) -> tuple[int, int]:
        """Flipped ones among the complete groups, or rows; an incomplete group that flipped counts too."""
        if self.flag.policy.lambda_source == "probes":
            seen = self.canary.lambda_
            return min(seen.flipped_groups, seen.complete), seen.complete
        return self.canary.lambda_bad, self.canary.lambda_count

    def _foreseen(self, result: GateResult) -> GateResult:
        if result.status != "undecided":
            return result
        return msgspec.structs.replace(result, forecast=self._forecast(result))

    def _forecast(self, result: GateResult) -> GateForecast:
        """Forecast the rows that settle a gate at its present values."""
        test, limit, value, levels = self._test(result.gate), _limit(result), result.rule_out, self.levels
        within = self._within(result)
        never = GateForecast(outcome=None, canary=None, baseline=None, minutes=None)
        if test is None or value is None or (not within and self._short_of(result, value)):
            return never

        whole = None if within or self.whole is None else self.whole
        tests = [test, whole._test(result.gate)] if whole else [test]

        def settled(times: float) -> bool:
            grown = [one.grown(times, pinned=self.pinned) for one in tests if one]
            if within:
                return all(one.excludes(value, levels.promote) for one in grown)
            return all(one.exceeds(limit, levels.stop(result.gate)) for one in grown)

        steps = range(math.ceil(math.log(GROWTH_MAX) / math.log(FORECAST_STEP)))
        at = bisect_left(steps, True, key=lambda step: settled(FORECAST_STEP ** (step + 1)))
        if at == len(steps):
            return never
        times = FORECAST_STEP ** (at + 1)
        two_armed = result.gate in TWO_ARMED and not self.pinned
        rows = whole or self
        return GateForecast(
            outcome="pass" if within else "fail",
            canary=round((times - 1) * rows.canary.rows),
            baseline=round((times - 1) * rows.baseline.rows) if two_armed else 0,
            minutes=round((times - 1) * self.ms / 60_000, 1),
        )

    def _within(self, result: GateResult) -> bool:
        limit, observed = _limit(result), result.observed or 0.0
        return observed >= limit - SLACK if result.gate in FLOORS else observed <= limit + SLACK

    def _short_of(self, result: GateResult, value: float) -> bool:
        observed = result.observed or 0.0
        return observed >= value - SLACK if result.gate in FLOORS else observed <= value + SLACK

    def rules(
        self, gates: Iterable[GateResult], alpha: float | None, more: Iterable[RuleResult] = ()
    ) -> list[RuleResult]:
        """Return the abort rules, hard ones first; soft ones fire with their gate, at a window's end or before."""
        by_id = {gate.gate: gate for gate in gates}
        soft = [
            self._soft(rule.kind, rule.value, by_id[SOFT_GATES[rule.kind]], ended=True)
            for rule in self.flag.abort_rules.soft
        ]
        return [*self.hard_rules(), *more, *soft]

    def hard_rules(self, alpha: float | None = None) -> list[RuleResult]:
        """Return the hard rules: on the stage's rows, whatever is wrong with them, and on the present window alone."""
        results = super().hard_rules(self.levels.hard)
        if self.own is None:
            return results
        own = self.own.hard_rules(self.levels.window)
        return [one if one.fired else other if other.fired else one for one, other in zip(results, own, strict=True)]


def _limit(result: GateResult) -> float:
    """Return a gate's limit as a number: of λ, no flip."""
    return 0.0 if isinstance(result.threshold, bool) or result.threshold is None else result.threshold
