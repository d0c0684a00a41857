"""The price of a ramp, before it begins: rows until sequential evidence settles a stage, and until it stops one.

All of it is asked of the bounds that decide, with the rows that a given true rate is expected to bring.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from tidegate.gates.bounds import quantile_ranks
from tidegate.gates.metrics import rate_surely_over
from tidegate.gates.power import bad_share, first, judged_gates, rows_to_clear
from tidegate.gates.sequential import COST_LEAST, KEY_OF, TWO_ARMED, Levels
from tidegate.schemas.manifest import Flag

QUANTILES = {"delta_s.median_max": 0.5, "delta_s.p95_max": 0.95, "latency_p95_uplift_max": 0.95}
SHARE_GATES = ("error_rate_max", "tool_success_min", "coverage_min")


@dataclass(frozen=True)
class Takes:
    """Rows of an arm until a gate can pass for a canary like the baseline.

    ``what``: requests, tool calls, λ groups. ``baseline``: whether it takes as many of the baseline. None: never.
    """

    gate: str
    rows: int | None
    what: str = "requests"
    baseline: bool = False


def to_pass(flag: Flag) -> Iterator[Takes]:
    """Yield each gate that is on, at rates of half the limit; of a quantile the first rows that bound it."""
    levels, limits = Levels.of(flag, 1), flag.gates.limits()
    worth = flag.policy.design_effect
    for gate in judged_gates(flag):
        value = getattr(flag.policy.rule_out, KEY_OF[gate])
        what = {"tool_success_min": "tool calls", "lambda_convergent": "λ groups"}.get(gate, "requests")
        rows: int | None = 1
        if gate in QUANTILES:
            rows = first(partial(_bounded, QUANTILES[gate], levels.promote / 2))
        elif gate == "cost_uplift_max":
            rows = COST_LEAST
        elif gate == "lambda_convergent":
            rows = rows_to_clear(value, 0.0, levels.promote)
        elif value is not None:
            share = bad_share(gate, float(limits[gate] or 0.0)) or 0.0
            worst = value if gate == "error_rate_max" else round(1 - value, 12)
            rows = rows_to_clear(worst, share / 2, levels.promote)
        scaled = None if rows is None else math.ceil(rows * worth)
        yield Takes(gate, scaled, what, gate in TWO_ARMED)


def to_stop(flag: Flag) -> Iterator[Takes]:
    """Rows of a canary at a value to rule out until it is stopped, of the gates that are shares."""
    levels, limits = Levels.of(flag, 1), flag.gates.limits()
    for gate in SHARE_GATES:
        value = getattr(flag.policy.rule_out, KEY_OF[gate])
        if gate not in judged_gates(flag) or value is None:
            continue
        limit = bad_share(gate, float(limits[gate] or 0.0)) or 0.0
        worst = value if gate == "error_rate_max" else round(1 - value, 12)
        rows = first(partial(_stopped, worst, limit, levels.stop(gate)))
        scaled = None if rows is None else math.ceil(rows * flag.policy.design_effect)
        yield Takes(gate, scaled, "tool calls" if gate == "tool_success_min" else "requests")


def _bounded(q: float, level: float, n: int) -> bool:
    return quantile_ranks(n, q, level)[1] is not None


def _stopped(rate: float, limit: float, level: float, n: int) -> bool:
    return rate_surely_over(rate * n, n, limit, level)


def finishes_by_point(flag: Flag, requests: list[float]) -> float:
    """Chance that a healthy canary passes every window by its values, ``requests`` of it in a window of each stage.

    By the binomial law, of errors and of tool calls (one a request) at half of what their limits allow; the other gates
    are taken to pass.
    """
    chance, limits = 1.0, flag.gates.limits()
    for n in map(round, requests):
        for gate in ("error_rate_max", "tool_success_min"):
            if gate in judged_gates(flag):
                limit = bad_share(gate, float(limits[gate] or 0.0)) or 0.0
                chance *= _at_most(math.floor(limit * n + 1e-9), n, limit / 2) ** flag.window.hold_windows
    return chance


def _at_most(k: int, n: int, p: float) -> float:
    if not 0 < p < 1 or k >= n:
        return 1.0
    whole, bad, good = math.lgamma(n + 1), math.log(p), math.log1p(-p)
    logs = (whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * bad + (n - i) * good for i in range(k + 1))
    return min(math.fsum(map(math.exp, logs)), 1.0)
