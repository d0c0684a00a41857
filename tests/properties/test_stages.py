"""What every gate promises of many stages: an intolerable canary seldom passes, one at a limit is seldom stopped.

Each case draws its values for all stages at once. Where the values themselves say that a gate cannot pass, or cannot
be proven over its limit, it is not asked; a sample of these is, to hold the short cut. All others are put into sums,
merged window by window as a stage does, and judged by the gate itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gates.build import flag
from tidegate.gates.bounds import excludes_from_above, quantile_ranks
from tidegate.gates.metrics import ArmMetrics, rate_n_opt, rate_surely_over
from tidegate.gates.sequential import Levels, Sequential
from tidegate.gates.sums import COUNTERS, COVERAGE_BITS, Sums, cost_parts, square_parts
from tidegate.schemas.manifest import Flag

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Draw = Callable[[np.random.Generator, int], Floats]
STAGES = 2_000
WINDOW, WINDOWS = 90, 14
"""Canary requests in a window of 15 minutes at 2 requests a second, and windows."""
NOT_ASKED = 4
"""Of the stages that the short cut leaves out at a look, so many are asked all the same."""


def alone(gate: str, limit: str, rule_out: str = "") -> Flag:
    """A flag with one gate and two stages, so that the gate's part of false_stop is large enough to be tested."""
    written = dict.fromkeys(
        ("coverage_min", "latency_p95_uplift_max", "error_rate_max", "tool_success_min", "cost_uplift_max"), "null"
    )
    quality = {"median_max": "null", "p95_max": "null"}
    (quality if "." in gate else written)[gate.split(".")[-1]] = limit
    written.setdefault("lambda_convergent", "false")
    gates = ", ".join(f"{name}: {value}" for name, value in written.items())
    drift = ", ".join(f"{name}: {value}" for name, value in quality.items())
    return flag(
        f"policy: {{evidence: sequential, rule_out: {{{rule_out}}}}}\n"
        f"gates: {{{gates}, delta_s: {{{drift}}}}}\n"
        "abort_rules: {hard: [], soft: []}\ntraffic: {stages: [0.5, 1.0]}"
    )


@dataclass(frozen=True)
class Case:
    """One gate, and how its values are spread in an arm like the baseline.

    ``worse``: gives values of a canary that is as far from the baseline as it is told.
    """

    gate: str
    flag: Flag
    limit: float
    rule_out: float
    draw: Draw
    worse: Callable[[Floats, float], Floats] = lambda values, by: values
    window: int = WINDOW
    windows: int = WINDOWS
    level: Levels = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "level", Levels.of(self.flag, 1))

    @property
    def looks(self) -> range:
        """Rows of the canary at each window's end."""
        return range(self.window, self.window * self.windows + 1, self.window)

    @property
    def q(self) -> float:
        """The quantile that the gate compares."""
        return 0.5 if self.gate == MEDIAN else 0.95

    def compared(self, canary: Floats, baseline: Floats) -> Floats:
        """A difference or an uplift."""
        return canary / baseline - 1 if self.worse is scaled else canary - baseline

    def result(self, canary: Floats, baseline: Floats) -> str:
        """What the gate says of these rows."""
        arms = [self._sums(values) for values in (canary, baseline)]
        c, b = (ArmMetrics(sums, sums) for sums in arms)
        return next(r.status for r in Sequential(self.flag, c, b, levels=self.level).gates() if r.gate == self.gate)

    def _sums(self, values: Floats) -> Sums:
        whole = Sums()
        for at in range(0, len(values), self.window):
            whole.gather(sums_of(self.gate, values[at : at + self.window]))
        return whole


def sums_of(gate: str, values: Floats) -> Sums:
    """One arm in one window, each row with a value of the gate's metric."""
    n = len(values)
    row, sums = {"requests": n}, Sums()
    match gate:
        case "error_rate_max":
            row["errors"] = int(values.sum())
        case "tool_success_min":
            row |= {"tool_rows": n, "tool_calls": n, "tool_ok": n - int(values.sum())}
        case "coverage_min":
            row |= {"coverage_rows": n, "coverage_sum": round(float((1 - values).sum()) * (1 << COVERAGE_BITS))}
        case "lambda_convergent":
            flips = int(values.sum())
            row["lambda_rows"] = 6 * n
            sums.past = [n, n, n - flips, flips]
        case "latency_p95_uplift_max":
            sums.latency.add(values)
        case "cost_uplift_max":
            cost, solved = np.abs(values), values > 0
            row |= {"cost_rows": n, "cost_known": n, "solved_rows": n, "solved": int(solved.sum())}
            row["cost_high"], row["cost_low"] = (int(part.sum()) for part in cost_parts(cost))
            squares = (int(part.sum()) for part in square_parts(cost))
            row["square_high"], row["square_mid"], row["square_low"] = squares
            row["solved_cost_high"], row["solved_cost_low"] = (int(part.sum()) for part in cost_parts(cost[solved]))
        case _:
            sums.delta_s.add(values)
    sums.count([row.get(counter, 0) for counter in COUNTERS])
    return sums


# How values are spread


def often(rate: float) -> Draw:
    return lambda rng, n: (rng.random((STAGES, n)) < rate).astype(np.float64)


def steps(values: list[float], shares: list[float]) -> Draw:
    return lambda rng, n: rng.choice(values, (STAGES, n), p=shares)


def uncovered(mean: float) -> Draw:
    """1 − coverage."""
    return lambda rng, n: rng.beta(3 * mean, 3 * (1 - mean), (STAGES, n))


def solved(cost: Draw) -> Draw:
    """Costs, of requests that are not solved with a minus."""
    return lambda rng, n: cost(rng, n) * np.where(rng.random((STAGES, n)) < 0.8, 1.0, -1.0)


def shifted(values: Floats, by: float) -> Floats:
    return values + by


def scaled(values: Floats, by: float) -> Floats:
    return values * (1 + by)


DRIFTS: dict[str, Draw] = {
    "lognormal": lambda rng, n: np.minimum(rng.lognormal(-3, 0.6, (STAGES, n)), 1.8),
    "heavy tail": lambda rng, n: np.minimum(0.02 * (1 + rng.pareto(1.2, (STAGES, n))), 1.8),
    "steps": steps([0.0, 0.05, 0.1, 0.2, 0.4], [0.3, 0.24, 0.2, 0.2, 0.06]),
}
LATENCIES: dict[str, Draw] = {
    "lognormal": lambda rng, n: rng.lognormal(5, 0.8, (STAGES, n)),
    "heavy tail": lambda rng, n: 100 * (1 + rng.pareto(1.1, (STAGES, n))),
    "steps": steps([50, 100, 200, 400, 1000], [0.3, 0.3, 0.2, 0.14, 0.06]),
}
COSTS: dict[str, Draw] = {
    "lognormal": lambda rng, n: rng.lognormal(-3, 0.8, (STAGES, n)),
    "heavy tail": lambda rng, n: rng.lognormal(-3, 1.5, (STAGES, n)),
    "steps": steps([0.01, 0.5], [0.95, 0.05]),
}
ERRORS, TOOLS, COVERAGE, LAMBDA = "error_rate_max", "tool_success_min", "coverage_min", "lambda_convergent"
MEDIAN, P95, LATENCY, COST = "delta_s.median_max", "delta_s.p95_max", "latency_p95_uplift_max", "cost_uplift_max"
SHARES = (ERRORS, TOOLS, COVERAGE, LAMBDA)
LONG = {"window": 600, "windows": 6}


def spread() -> Iterator[tuple[str, Case]]:
    """The cases that compare the arms; ``no longer exact``: every look has more distinct values than a digest holds."""
    for name in ("lognormal", "heavy tail", "steps"):
        median = alone(MEDIAN, "0.03", "delta_s_median: 0.06")
        p95 = alone(P95, "0.10", "delta_s_p95: 0.15")
        latency = alone(LATENCY, "0.15", "latency_p95_uplift: 0.30")
        cases = [
            Case(MEDIAN, median, 0.03, 0.06, DRIFTS[name], shifted),
            Case(P95, p95, 0.10, 0.15, DRIFTS[name], shifted),
            Case(LATENCY, latency, 0.15, 0.30, LATENCIES[name], scaled),
        ]
        for case in cases:
            yield f"{case.gate} {name}", case
            if name != "steps":
                inexact = Case(case.gate, case.flag, case.limit, case.rule_out, case.draw, case.worse, **LONG)
                yield f"{case.gate} {name}, no longer exact", inexact
        cost = alone(COST, "0.10", "cost_uplift: 0.20")
        yield f"{COST} {name}", Case(COST, cost, 0.10, 0.20, solved(COSTS[name]), scaled)


def shares(*, at_limit: bool) -> Iterator[tuple[str, Case]]:
    """The cases of shares of bad rows: exactly at the limit, or at the value to rule out."""
    for gate, limit, value, key in (
        (ERRORS, 0.005, 0.01, "error_rate"),
        (TOOLS, 0.01, 0.02, "tool_success"),
        (COVERAGE, 0.30, 0.40, "coverage"),
    ):
        good = gate != ERRORS
        rules = alone(gate, str(round(1 - limit, 9) if good else limit), f"{key}: {1 - value if good else value}")
        rate = limit if at_limit else value
        yield gate, Case(gate, rules, limit, value, uncovered(rate) if gate == COVERAGE else often(rate))
    if not at_limit:
        yield LAMBDA, Case(LAMBDA, alone(LAMBDA, "true", "lambda_flip_rate: 0.2"), 0.0, 0.2, often(0.2), window=12)


# Short cuts


def may_pass(case: Case, canary: Floats, baseline: Floats) -> Bools:
    """The stages in which the value to rule out is excluded, or nearly so."""
    level, n = case.level.promote, canary.shape[1]
    if case.gate in SHARES:
        bad = np.floor(canary.sum(axis=1) + 1e-9)
        clear = {
            k: excludes_from_above(float(k), n, case.rule_out, level, rate_n_opt(case.rule_out))
            for k in set(bad.tolist())
        }
        return np.array([clear[k] for k in bad.tolist()])
    if case.gate == COST:
        uplift, error = uplifts(canary, baseline)
        return np.asarray(uplift + 2 * error < case.rule_out)
    lower, upper = quantile_ranks(n, case.q, level / 2)
    if upper is None or lower is None:
        return np.zeros(STAGES, bool)
    return np.asarray(case.compared(at(canary, upper), at(baseline, lower)) < case.rule_out)


def may_fail(case: Case, canary: Floats, baseline: Floats) -> Bools:
    """The stages in which the limit is excluded, or nearly so."""
    level, n = case.level.stop(case.gate), canary.shape[1]
    if case.gate in SHARES:
        bad = np.ceil(canary.sum(axis=1) - 1e-9)
        over = {k: rate_surely_over(float(k), n, case.limit, level) for k in set(bad.tolist())}
        return np.array([over[k] for k in bad.tolist()])
    if case.gate == COST:
        uplift, error = uplifts(canary, baseline)
        return np.asarray(uplift - 2 * error > case.limit)
    lower, upper = quantile_ranks(n, case.q, level / 2)
    if lower is None or upper is None:
        return np.zeros(STAGES, bool)
    return np.asarray(case.compared(at(canary, lower), at(baseline, upper)) > case.limit)


def at(values: Floats, rank: int) -> Floats:
    """The order statistic of each stage; a digest that is no longer exact is asked for one further out."""
    return np.asarray(np.partition(values, rank - 1, axis=1)[:, rank - 1])


def uplifts(canary: Floats, baseline: Floats) -> tuple[Floats, Floats]:
    """The uplift of cost per solved, and its standard error by the delta method."""
    (c, c_error), (b, b_error) = (_ratio(np.abs(values), values > 0) for values in (canary, baseline))
    return c / b - 1, np.hypot(c_error / b, b_error * c / b**2)


def _ratio(cost: Floats, solved: Bools) -> tuple[Floats, Floats]:
    ratio = cost.sum(axis=1) / solved.sum(axis=1)
    left = cost - ratio[:, None] * solved
    return ratio, left.std(axis=1) / solved.mean(axis=1) / np.sqrt(cost.shape[1])


def stages_that(case: Case, status: str, by: float, seed: int) -> int:
    """How many stages of a canary that is worse ``by`` so much get a status at any window's end."""
    rng = np.random.default_rng(seed)
    canary, baseline = (case.draw(rng, case.looks[-1]) for _ in range(2))
    canary = case.worse(canary, by)
    may = may_pass if status == "pass" else may_fail
    ended = np.zeros(STAGES, bool)
    for n in case.looks:
        asked = may(case, canary[:, :n], baseline[:, :n])
        for i in np.flatnonzero(asked & ~ended).tolist():
            ended[i] = case.result(canary[i, :n], baseline[i, :n]) == status
        for i in rng.choice(np.flatnonzero(~asked), NOT_ASKED).tolist() if not asked.all() else ():
            assert case.result(canary[i, :n], baseline[i, :n]) != status, f"the short cut misses stage {i} at {n} rows"
    return int(ended.sum())


def allowed(chance: float) -> float:
    """So many of 2,000 that a true chance of that size is exceeded once in about 3,000 seeds."""
    return float(STAGES * chance + 3.4 * (STAGES * chance * (1 - chance)) ** 0.5)


SPREAD = dict(spread())
INTOLERABLE = {**SPREAD, **dict(shares(at_limit=False))}
AT_THE_LIMIT = {**SPREAD, **dict(shares(at_limit=True))}


@pytest.mark.parametrize("name", INTOLERABLE)
def test_of_2000_canaries_at_a_value_to_rule_out_no_more_than_wrong_promote_pass_that_gate(name: str) -> None:
    """Looked at with every window: one that passes at any of them counts."""
    case = INTOLERABLE[name]
    passed = stages_that(case, "pass", case.rule_out, 11)
    assert passed <= allowed(case.level.promote), f"{passed} of {STAGES}"


@pytest.mark.parametrize("name", AT_THE_LIMIT)
def test_of_2000_canaries_at_a_limit_no_more_than_the_gate_s_part_of_false_stop_are_stopped(name: str) -> None:
    case = AT_THE_LIMIT[name]
    stopped = stages_that(case, "fail", case.limit, 12)
    assert stopped <= allowed(case.level.stop(case.gate)), f"{stopped} of {STAGES}"


def test_of_2000_canaries_at_all_limits_at_once_no_more_than_false_stop_are_stopped() -> None:
    """With the page's gates and hard rules: the parts of all gates add up."""
    rules, stopped = flag("policy: {evidence: sequential}\ntraffic: {stages: [0.5]}"), 0
    for name in (
        ERRORS,
        TOOLS,
        COVERAGE,
        f"{MEDIAN} lognormal",
        f"{P95} steps",
        f"{LATENCY} steps",
        f"{COST} heavy tail",
    ):
        stopped += stages_that(replace(AT_THE_LIMIT[name], flag=rules), "fail", AT_THE_LIMIT[name].limit, 13)
    assert stopped <= allowed(rules.policy.false_stop), f"{stopped} of {STAGES}"
