"""Confidence bounds that hold at every look, so that checking each pane costs no false alarms.

One statistic carries the module: the log odds of counts under a Dirichlet mixture centred on the
expected shares, against those shares themselves. While the shares are true its exponential is a
martingale that starts at 1, so the chance that it ever reaches 1/alpha is at most alpha. With two
arms, shares (p, 1 - p), it is the two-sided beta-binomial mixture (Howard, Ramdas, McAuliffe &
Sekhon, Annals of Statistics 2021, arXiv 1810.08240), which bounds a rate, a mean of values in
[0, 1] and the ranks of a quantile (Howard & Ramdas, Bernoulli 28(3), 2022, arXiv 1906.09712). With
any number of arms it is the sequential sample-ratio test (Lindon & Malek, NeurIPS 2022,
arXiv 2011.03567).

What is no share has no such martingale: the mean of costs is bounded by an asymptotic confidence sequence
(Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, Annals of Statistics 2024, arXiv 2103.06476).

It is convex in the count and not positive where count and share agree; its sublevel set in p is an
interval. So one evaluation tells on which side of a bound a limit lies. What lgamma cancels away
leaves an error below 1e-6 at n = 1e8, which is 1e-6 of alpha.
"""

import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from fractions import Fraction


def alpha_for_window(alpha: float, window: int) -> float:
    """Return the part of a rollout's `alpha` for its window number `window` = 1, 2, 3, ...

    All parts together sum to `alpha`, however long the rollout.

    Raises ValueError for a window below 1.
    """
    if window < 1:
        raise ValueError(f"windows count from 1, not {window}")
    return alpha / (window * (window + 1))


def log_odds_sample_ratio(counts: Sequence[float], shares: Sequence[float], concentration: float = 100.0) -> float:
    """Natural log of the odds that `counts` do not come from `shares`, at any look.

    `counts` has one entry per arm (distinct sticky ids: the requests of one id are not independent)
    and `shares` the arms' expected weights. Results of stages with other weights add up. At or over
    ln(1/alpha) the shares are refuted at level alpha. `concentration` is the weight of the
    alternative's prior, in observations.

    Raises ValueError unless the shares are positive, one per count, and sum to 1.
    Source: Lindon & Malek 2022.
    """
    if not (min(shares) > 0.0 and abs(sum(shares) - 1.0) <= 1e-9):
        raise ValueError(f"shares must be positive and sum to 1, not {tuple(shares)}")
    odds = math.lgamma(concentration) - math.lgamma(concentration + sum(counts))
    for count, share in zip(counts, shares, strict=True):
        prior = concentration * share
        odds += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
    return odds


def interval(k: float, n: float, alpha: float, n_opt: float) -> tuple[float, float]:
    """Lower and upper bound of a rate or mean, right at all looks at once with chance >= 1 - alpha.

    `k` is the number of successes among `n` observations, or the sum of `n` values in [0, 1];
    `n_opt` is the n at which the interval is tightest. The ends are the outermost doubles that
    `excludes_from_below` and `excludes_from_above` let stand.

    Raises ValueError unless 0 <= k <= n and 0 < alpha < 1.
    """

    def too_low(p: float) -> bool:
        return excludes_from_below(k, n, p, alpha, n_opt)

    def too_high(p: float) -> bool:
        return excludes_from_above(k, n, p, alpha, n_opt)

    lower = _edge(0.0, k / n, too_low) if too_low(0.0) else 0.0
    upper = _edge(1.0, k / n, too_high) if too_high(1.0) else 1.0
    return lower, upper


def excludes_from_below(k: float, n: float, limit: float, alpha: float, n_opt: float) -> bool:
    """Tell whether the lower bound of `interval` is over `limit`, for one evaluation of the statistic.

    The lower bound is over 0 exactly if k > 1, as the statistic then grows without end towards
    p = 0, and it is never over 1.

    Raises ValueError unless 0 <= k <= n and 0 < alpha < 1.
    """
    threshold = _threshold(k, n, alpha)
    if limit <= 0.0:
        return limit < 0.0 or k > 1.0
    return k > limit * n and _log_m(k, n, limit, alpha, n_opt) > threshold


def excludes_from_above(k: float, n: float, limit: float, alpha: float, n_opt: float) -> bool:
    """Tell whether the upper bound of `interval` is under `limit`, for one evaluation of the statistic.

    The upper bound is under 1 exactly if n - k > 1, and it is never under 0.

    Raises ValueError unless 0 <= k <= n and 0 < alpha < 1.
    """
    threshold = _threshold(k, n, alpha)
    if limit >= 1.0:
        return limit > 1.0 or n - k > 1.0
    return k < limit * n and _log_m(k, n, limit, alpha, n_opt) > threshold


def quantile_ranks(
    n: int, p: float, alpha: float, n_opt: float = 1000.0, *, slack: float = 0.0, design_effect: float = 1.0
) -> tuple[int | None, int | None]:
    """Ranks of the two of `n` order statistics that enclose the p-quantile at all looks at once.

    Ranks count from 1; None is an infinite end: the sample's extremes never stand in for a bound
    that the data cannot give. `slack` is the rank error of the sketch that will be asked for the
    ranks, as a share of n (0.005 for half a percentage point): it moves each rank outward by
    ceil(slack n). ``design_effect``: how many of the `n` are worth one; the ranks among so many
    fewer stand at the same share of `n`, moved outward to the next whole one.

    Raises ValueError unless 0 < p < 1 and 0 < alpha < 1. Source: Howard & Ramdas 2022.
    """
    if not 0.0 < p < 1.0:
        raise ValueError(f"a quantile lies between 0 and 1, not at {p}")
    rows, n = n, int(n / design_effect)
    threshold = _threshold(0, n, alpha)

    def log_m(count: int) -> float:
        return _log_m(count, n, p, alpha, n_opt)

    middle = math.floor(n * p)
    down, up = range(middle + 1), range(middle + 1, n + 1)
    lower = bisect_left(down, True, key=lambda count: log_m(count) < threshold)
    upper = middle + 1 + bisect_left(up, True, key=lambda count: log_m(count) > threshold)
    found_lower, found_upper = lower > 0, upper <= n
    if n < rows:
        # The scaled upper rank rounds up and the lower one down, so neither end gains by it.
        lower, upper = lower * rows // max(n, 1), -(-upper * rows // max(n, 1))
    widening = math.ceil(slack * rows)
    return (
        lower - widening if found_lower and lower > widening else None,
        upper + widening if found_upper and upper + widening <= rows else None,
    )


def half_width(n: float, variance: float, alpha: float, n_opt: float = 1000.0) -> float:
    """Half the width of a confidence sequence of a mean, right at all looks at once with chance near 1 - alpha.

    `variance` is that of one of the `n` values, as it was measured: the sequence is asymptotic, so
    few values are no basis for it. Infinite without values. `n_opt` is the n at which it is
    tightest.

    Raises ValueError unless 0 < alpha < 1. Source: Waudby-Smith et al. 2024, equation 3.
    """
    _threshold(0, 0, alpha)
    if n <= 0:
        return math.inf
    width = -2.0 * math.log(alpha)
    mixed = n * (width + math.log(width) + 1.0) / n_opt
    return math.sqrt(variance * 2.0 * (mixed + 1.0) / (n * mixed) * math.log(math.sqrt(mixed + 1.0) / alpha))


def ratio_variance(n: int, c: Fraction, s: Fraction, cc: Fraction, ss: Fraction, cs: Fraction) -> float:
    """Variance, times n, of the ratio of two sums over the same `n` units, by the delta method.

    `c`, `s`: the sums above and below; `cc`, `ss`, `cs`: of their squares and products. Exact sums
    leave nothing to cancellation.

    Raises ValueError where the sum below is not positive. Source: Deng, Knoblich & Lu, KDD 2018.
    """
    if s <= 0:
        raise ValueError(f"a ratio over {s}")
    # (c_i - R s_i) has mean 0: its variance over the mean below, squared.
    ratio = c / s
    return float(max((cc - 2 * ratio * cs + ratio * ratio * ss) * n / (s * s), Fraction(0)))


def _threshold(k: float, n: float, alpha: float) -> float:
    if not 0.0 <= k <= n:
        raise ValueError(f"{k} successes in {n} observations")
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha lies between 0 and 1, not at {alpha}")
    return -math.log(alpha)


def _log_m(k: float, n: float, p: float, alpha: float, n_opt: float) -> float:
    # Howard et al. write it in s, v, g, h and r; with g = p and h = 1 - p only r / (g h) remains.
    width = -2.0 * math.log(alpha)
    concentration = max(n_opt / (width + math.log1p(width)) - 1.0, 1e-3)
    p = max(p, sys.float_info.min)
    return log_odds_sample_ratio((k, n - k), (p, 1.0 - p), concentration)


def _edge(outside: float, inside: float, excluded: Callable[[float], bool]) -> float:
    """Return the double next to `outside` that is not excluded, by bisection down to neighbours."""
    while outside != (middle := (outside + inside) / 2.0) != inside:
        if excluded(middle):
            outside = middle
        else:
            inside = middle
    return inside
