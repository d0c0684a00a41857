"""The price of evidence: rows until an anytime bound settles a gate or a hard rule.

The bounds are those that decisions show and early aborts use; here they are asked beforehand, with the rows that a
given true rate is expected to bring.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from tidegate.gates.bounds import alpha_for_window, excludes_from_above, excludes_from_below, quantile_ranks
from tidegate.gates.metrics import INFORMATION_N_OPT, mean_surely_under, rate_n_opt, rate_surely_over
from tidegate.gates.rules import INFORMATION_ALPHA, QUALITY_GATES
from tidegate.gates.sequential import Levels
from tidegate.schemas.manifest import PAGE, Flag, HardRule

ROWS_MAX = 1_000_000_000
"""More rows than this count as never."""
P95_TAIL = 0.05
WORSE = 2.0
"""The regression asked about, as a multiple of what the rule allows."""
LOW_COVERAGE = 0.75
"""The same for mean coverage, as a share of the rule's limit."""
LEAST_WORSE = 0.01


def kind_gates(kind: str) -> tuple[str, ...]:
    """Return the gates that a kind of flag decides on; a safety guard and a kill switch have none."""
    match kind:
        case "progressive_rollout":
            return tuple(PAGE.gates.limits())
        case "quality_gated":
            return QUALITY_GATES
        case "cost_guard":
            return ("cost_uplift_max",)
    return ()


def judged_gates(flag: Flag) -> tuple[str, ...]:
    """Return the gates of the flag's kind that are on."""
    limits = flag.gates.limits()
    return tuple(gate for gate in kind_gates(flag.kind) if limits[gate] is not None and limits[gate] is not False)


def rows_to_clear(limit: float, rate: float = 0.0, alpha: float = INFORMATION_ALPHA) -> int | None:
    """Rows of a true ``rate`` until its upper bound is under ``limit``; None: never."""
    return first(lambda n: excludes_from_above(rate * n, n, limit, alpha, rate_n_opt(limit)))


def bad_share(gate: str, limit: float) -> float | None:
    """Return the largest share of bad rows with which a gate passes; None where it is no statement about a share.

    A quantile's gate is the statement that at most 5 % (p95) or half (median) of the canary's values lie beyond the
    baseline's quantile and the limit.
    """
    match gate:
        case "delta_s.median_max":
            return 0.5
        case "delta_s.p95_max" | "latency_p95_uplift_max":
            return P95_TAIL
        case "coverage_min" | "tool_success_min":
            return round(1 - limit, 12)
        case "error_rate_max":
            return limit
    return None


@dataclass(frozen=True)
class Certainty:
    """Rows of the canary until a gate's anytime bound is within its limit, with no bad row or half the allowed share.

    None: never.
    """

    perfect: int | None
    at_half: int | None


def certainty(flag: Flag, gate: str) -> Certainty | None:
    """Return the rows it takes to be sure of a gate; None for λ and cost, which have no such bound."""
    limit = flag.gates.limits()[gate]
    share = None if limit is None else bad_share(gate, float(limit))
    return None if share is None else Certainty(rows_to_clear(share), rows_to_clear(share, share / 2))


@dataclass(frozen=True)
class Catch:
    """When a hard rule fires early on a regression.

    ``regression``: the canary's true rate, or mean coverage; for ΔS the share of its values that lie beyond the limit
    above all of the baseline's. ``canary``, ``baseline``: rows needed of each arm; None: never.
    """

    regression: float | None
    canary: int | None
    baseline: int = 0


def catch(flag: Flag, rule: HardRule, window: int) -> Catch:
    """Rows until ``rule`` fires early in window number ``window`` = 1, 2, 3, … of a rollout; at least min_requests."""
    staged = flag.kind == "progressive_rollout" and flag.policy.evidence == "sequential"
    alpha = alpha_for_window(flag.policy.false_stop, window) / len(flag.abort_rules.hard)
    alpha = Levels.of(flag, window).hard if staged else alpha
    least, limit = flag.window.min_requests, rule.value
    if rule.kind == "delta_s_p95_over":
        share = P95_TAIL * WORSE
        canary = first(lambda n: excludes_from_below(share * n, n, P95_TAIL, alpha / 2, INFORMATION_N_OPT))
        baseline = first(lambda n: quantile_ranks(n, 0.95, alpha / 2)[1] is not None)
        return Catch(share, _at_least(least, canary), max(least, baseline or 0))
    if rule.kind == "coverage_under":
        mean = round(limit * LOW_COVERAGE, 12)
        rows = first(lambda n: mean_surely_under(mean * n, n, limit, alpha)) if limit > 0 else None
        return Catch(mean if limit > 0 else None, _at_least(least, rows))
    if limit >= 1:
        return Catch(None, None)
    rate = round(min(WORSE * limit, (1 + limit) / 2), 12) if limit > 0 else LEAST_WORSE
    if rule.kind == "lambda_flip_rate_over":
        alpha /= 2
    return Catch(rate, _at_least(least, first(lambda n: rate_surely_over(rate * n, n, limit, alpha))))


def _at_least(least: int, rows: int | None) -> int | None:
    return None if rows is None else max(least, rows)


def first(holds: Callable[[int], bool]) -> int | None:
    """Return the smallest n >= 1 from which on ``holds``; None: not up to ``ROWS_MAX``."""
    top = 1
    while not holds(top):
        top *= 2
        if top > ROWS_MAX:
            return None
    return bisect_left(range(top + 1), True, lo=top // 2 + 1, key=holds)
