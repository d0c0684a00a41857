"""The bounds against published numbers, scipy and what they promise: few misses at any look."""

import math
from itertools import accumulate

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import betaln

from gates.bounds import (
    alpha_for_window,
    excludes_from_above,
    excludes_from_below,
    interval,
    log_odds_sample_ratio,
    quantile_ranks,
)

RUNS = 2_000
SEED = 20_240_607


def howard_log_m(s: float, n: int, g: float, h: float, p: float, alpha: float, n_opt: float) -> float:
    """The mixture as the paper writes it, in s, v, g, h and r, with scipy's log beta."""
    v = p * (1 - p) * n
    width = 2 * math.log(1 / alpha)
    rho = p * (1 - p) * n_opt / (width + math.log(1 + width))
    r = max(rho - g * h, 1e-3 * g * h)
    t = g + h
    return float(
        v / (g * h) * math.log(t)
        - (v + h * s) / (h * t) * math.log(g)
        - (v - g * s) / (g * t) * math.log(h)
        + betaln((r + v - g * s) / (g * t), (r + v + h * s) / (h * t))
        - betaln(r / (g * t), r / (h * t))
    )


def sup_ranks(n: int, p: float, alpha: float, n_opt: float) -> tuple[int | None, int | None]:
    """The quantile's ranks by their definition: real-valued M by root finding, then the floor."""

    def reach(g: float, h: float) -> float | None:
        def over(s: float) -> float:
            return howard_log_m(s, n, g, h, p, alpha, n_opt) - math.log(1 / alpha)

        end = p * (1 - p) * n / g
        return float(brentq(over, 0, end, xtol=1e-10)) if over(end) > 0 else None

    below, above = reach(1 - p, p), reach(p, 1 - p)
    return (
        None if below is None else math.floor(n * p - below) + 1,
        None if above is None else math.floor(n * p + above) + 1,
    )


@pytest.mark.parametrize(
    ("k", "n", "n_opt", "lower", "upper"),
    [
        (700, 1000, 100, 0.651629, 0.745949),
        (15, 50, 50, 0.129556, 0.511896),
        (5, 50, 50, 0.013021, 0.269264),
        (1, 50, 50, 0.0, 0.13489),
        (100, 200, 1, 0.328923, 0.671076),
        (1, 2, 50, 0.0, 1.0),
    ],
)
def test_interval_of_a_rate_equals_the_published_one(k: int, n: int, n_opt: int, lower: float, upper: float) -> None:
    """The vectors are cut, not rounded, to the digits shown."""
    assert interval(k, n, 0.05, n_opt) == pytest.approx((lower, upper), abs=2e-6)


def test_no_observations_bound_nothing() -> None:
    assert interval(0, 0, 0.05, 200) == (0.0, 1.0)
    assert not excludes_from_below(0, 0, 0.0, 0.05, 200)
    assert not excludes_from_above(0, 0, 1.0, 0.05, 200)
    assert quantile_ranks(0, 0.95, 0.05) == (None, None)


@pytest.mark.parametrize("k", [0, 0.5, 1, 1.0001, 2, 50, 98, 98.9999, 99, 99.5, 100])
def test_limits_at_and_beyond_the_ends_are_decided_exactly(k: float) -> None:
    """Over 0 needs more than one success, under 1 more than one failure, and nothing is outside."""
    assert excludes_from_below(k, 100, 0.0, 0.05, 200) == (k > 1)
    assert excludes_from_above(k, 100, 1.0, 0.05, 200) == (100 - k > 1)
    assert excludes_from_below(k, 100, -0.1, 0.05, 200)
    assert excludes_from_above(k, 100, 1.1, 0.05, 200)
    for limit in (1.0, 1.1):
        assert not excludes_from_below(k, 100, limit, 0.05, 200)
    for limit in (0.0, -0.1):
        assert not excludes_from_above(k, 100, limit, 0.05, 200)


@pytest.mark.parametrize("limit", [5e-324, 1e-310, 1e-300])
def test_a_limit_too_small_to_tell_from_zero_is_no_error(limit: float) -> None:
    assert excludes_from_below(2, 100, limit, 0.05, 1)
    assert not excludes_from_below(1, 100, limit, 0.05, 1)
    assert not excludes_from_above(0, 100, limit, 0.05, 1)


@pytest.mark.parametrize("k", [-1, 11, math.nan])
def test_impossible_counts_are_refused(k: float) -> None:
    for bound in (excludes_from_below, excludes_from_above):
        with pytest.raises(ValueError, match="successes in 10"):
            bound(k, 10, 0.5, 0.05, 200)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_a_level_outside_zero_and_one_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        interval(5, 10, alpha, 200)
    with pytest.raises(ValueError, match="alpha"):
        quantile_ranks(10, 0.5, alpha)


@pytest.mark.parametrize(
    ("p", "alpha", "first"),
    [(0.5, 0.05, 31), (0.95, 0.05, 162), (0.99, 0.05, 499), (0.95, 0.01, 189)],
)
def test_a_quantile_has_a_finite_upper_end_from_the_published_n_on(p: float, alpha: float, first: int) -> None:
    finite = [n for n in range(1, 800) if quantile_ranks(n, p, alpha)[1] is not None]
    assert finite == list(range(first, 800))


def test_p95_of_a_thousand_values_spans_the_published_ranks() -> None:
    assert quantile_ranks(1_000, 0.95, 0.05) == (928, 970)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize(("alpha", "n_opt"), [(0.05, 1000), (0.01, 1000), (1e-4, 50), (0.3, 5000)])
def test_ranks_found_among_integers_are_those_of_the_supremum(p: float, alpha: float, n_opt: float) -> None:
    for n in (*range(1, 60), 161, 162, 188, 189, 498, 499, 1_000, 4_321, 100_000):
        assert quantile_ranks(n, p, alpha, n_opt) == sup_ranks(n, p, alpha, n_opt), n


def test_slack_moves_both_ranks_outward_and_off_the_ends() -> None:
    """Half a percentage point of 1,000 values is 5 ranks; a started rank counts in full."""
    assert quantile_ranks(1_000, 0.95, 0.05, slack=0.005) == (923, 975)
    assert quantile_ranks(1_000, 0.95, 0.05, slack=0.0051) == (922, 976)
    assert quantile_ranks(1_000, 0.95, 0.05, slack=0.03) == (898, 1_000)
    assert quantile_ranks(1_000, 0.95, 0.05, slack=0.031) == (897, None)
    assert quantile_ranks(1_000, 0.05, 0.05)[0] == 31
    assert quantile_ranks(1_000, 0.05, 0.05, slack=0.03)[0] == 1
    assert quantile_ranks(1_000, 0.05, 0.05, slack=0.031)[0] is None


@pytest.mark.parametrize("p", [0.0, 1.0, -0.5, math.nan])
def test_a_quantile_outside_zero_and_one_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="quantile"):
        quantile_ranks(10, p, 0.05)


def test_windows_spend_the_level_without_ever_exceeding_it() -> None:
    spent = list(accumulate(alpha_for_window(0.01, j) for j in range(1, 10_001)))
    assert spent[0] == 0.005
    assert spent[-1] == pytest.approx(0.01 * (1 - 1 / 10_001), rel=1e-12)
    with pytest.raises(ValueError, match="count from 1"):
        alpha_for_window(0.01, 0)


@pytest.mark.parametrize(
    ("concentration", "expected"),
    [
        (10_000, [-0.0039925, -0.0082666, -0.0102976, -0.0146435]),
        (1, [-4.3170, -5.0380, -5.2559, -5.6098]),
    ],
)
def test_sample_ratio_odds_equal_the_published_ones(concentration: float, expected: list[float]) -> None:
    totals = np.cumsum([[20, 17, 9], [18, 21, 8], [4, 6, 4], [18, 19, 11]], axis=0).tolist()
    odds = [log_odds_sample_ratio(counts, (0.4, 0.4, 0.2), concentration) for counts in totals]
    assert odds == pytest.approx(expected, abs=6e-8 if concentration > 1 else 6e-5)


def test_a_lopsided_half_and_half_split_is_refuted() -> None:
    assert log_odds_sample_ratio((9463, 7681), (0.5, 0.5)) == pytest.approx(89.67, abs=5e-3)
    assert log_odds_sample_ratio((8600, 8544), (0.5, 0.5)) < math.log(1_000)


@pytest.mark.parametrize(
    ("counts", "shares"),
    [
        ((5, 5), (0.0, 1.0)),
        ((5, 5), (0.5, 0.6)),
        ((5, 5), (0.5, math.nan)),
        ((5, 5, 5), (0.5, 0.5)),
        ((5,), (0.5, 0.5)),
    ],
)
def test_shares_that_are_no_split_of_the_counts_are_refused(
    counts: tuple[float, ...], shares: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match=r"shares|zip"):
        log_odds_sample_ratio(counts, shares)


@pytest.mark.parametrize(
    ("limit", "perfect", "at_half"),
    [(0.005, 780, 6_720), (0.01, 389, 3_352), (0.05, 98, 573), (0.5, 16, 43)],
)
def test_evidence_costs_the_published_number_of_requests(limit: float, perfect: int, at_half: int) -> None:
    """Smallest n at which the upper bound clears the gate; error, tool, p95 and median gates."""
    n_opt = max(200, 3 / limit)

    def first(share: float) -> int:
        return next(n for n in range(1, 9_999) if excludes_from_above(share * n, n, limit, 0.05, n_opt))

    assert (first(0.0), first(limit / 2)) == (perfect, at_half)


@pytest.mark.parametrize("p", [1e-6, 0.005, 0.3, 0.5, 0.95, 1 - 1e-6])
@pytest.mark.parametrize("n", [1, 2, 50, 10_000, 1_000_000])
def test_interval_ends_are_the_roots_that_scipy_finds(p: float, n: int) -> None:
    """On scipy's log beta the statistic equals ln(1/alpha) where the interval ends."""
    alpha, n_opt = 0.01, 600
    spread = 3 * math.sqrt(n * p * (1 - p))
    for k in {0, n, *(min(n, max(0, round(n * p + d))) for d in (-spread, 0, spread))}:
        lower, upper = interval(k, n, alpha, n_opt)
        assert (lower == 0.0, upper == 1.0) == (k <= 1, n - k <= 1)
        for end in {lower, upper} - {0.0, 1.0}:
            log_m = howard_log_m(k - n * end, n, end, 1 - end, end, alpha, n_opt)
            assert log_m == pytest.approx(math.log(1 / alpha), abs=1e-5)


@pytest.mark.parametrize("p", [1e-6, 0.005, 0.5, 1 - 1e-6])
def test_log_odds_lose_less_than_a_millionth_to_cancellation(p: float) -> None:
    """Stirling's form, in which the large terms never appear, is the reference up to n = 1e8."""

    def remainder(x: float) -> float:
        if x < 20:
            return math.lgamma(x) - (x - 0.5) * math.log(x) + x - 0.5 * math.log(2 * math.pi)
        return 1 / (12 * x) - 1 / (360 * x**3) + 1 / (1260 * x**5)

    def reference(k: int, n: int, weight: float) -> float:
        total = weight + n
        odds = 0.5 * math.log(total / weight) + remainder(weight) - remainder(total)
        for count, share in ((k, p), (n - k, 1 - p)):
            prior, posterior = weight * share, weight * share + count
            odds += posterior * math.log1p((count - n * share) / (total * share))
            odds += 0.5 * math.log(prior / posterior) + remainder(posterior) - remainder(prior)
        return odds

    for n in (1, 100, 10_000, 1_000_000, 100_000_000):
        for sigmas in (-6, -3, 0, 3, 6):
            k = min(n, max(0, round(n * p + sigmas * math.sqrt(n * p * (1 - p)))))
            for weight in (1e-3, 1.0, 75.0, 1e5):
                odds = log_odds_sample_ratio((k, n - k), (p, 1 - p), weight)
                assert odds == pytest.approx(reference(k, n, weight), abs=1e-6, rel=1e-9)


@pytest.mark.parametrize("p", [0.005, 0.3, 0.95])
def test_a_rate_looked_at_after_every_batch_is_rarely_missed(p: float) -> None:
    """100 looks at 2,000 runs miss at most 5 %; a fixed-sample interval misses far more."""
    rng = np.random.default_rng(SEED)
    looks, batch, alpha = 100, 50, 0.05
    n_opt = max(200, 3 / p)
    successes = rng.binomial(batch, p, size=(RUNS, looks)).cumsum(axis=1)
    sizes = batch * np.arange(1, looks + 1)
    missed = sum(
        any(
            excludes_from_below(k, n, p, alpha, n_opt) or excludes_from_above(k, n, p, alpha, n_opt)
            for k, n in zip(run, sizes.tolist(), strict=True)
        )
        for run in successes.tolist()
    )
    naive = np.abs(successes / sizes - p) > 1.96 * np.sqrt(p * (1 - p) / sizes)
    assert missed <= alpha * RUNS, f"seed {SEED}: {missed} of {RUNS} runs"
    assert naive.any(axis=1).mean() > 4 * alpha


def test_a_mean_of_values_between_zero_and_one_is_rarely_missed() -> None:
    """Σx stands in for the successes: here half the values are 0 or 1 and half lie between."""
    rng = np.random.default_rng(SEED)
    looks, batch, alpha, mean = 50, 40, 0.05, 0.7
    shape = (RUNS, looks, batch)
    values = np.where(rng.random(shape) < 0.5, rng.random(shape) < mean, rng.beta(1.4, 0.6, size=shape))
    sums = values.sum(axis=2).cumsum(axis=1)
    sizes = batch * np.arange(1, looks + 1)
    missed = sum(
        any(
            excludes_from_below(k, n, mean, alpha, 200) or excludes_from_above(k, n, mean, alpha, 200)
            for k, n in zip(run, sizes.tolist(), strict=True)
        )
        for run in sums.tolist()
    )
    deviation = values.std()
    naive = np.abs(sums / sizes - mean) > 1.96 * deviation / np.sqrt(sizes)
    assert missed <= alpha * RUNS, f"seed {SEED}: {missed} of {RUNS} runs"
    assert naive.any(axis=1).mean() > 3 * alpha


@pytest.mark.parametrize("p", [0.5, 0.95])
@pytest.mark.parametrize("ties", [False, True])
def test_a_quantile_looked_at_after_every_batch_is_rarely_missed(p: float, ties: bool) -> None:
    """25 looks at 2,000 runs of skewed values, smooth or in whole steps, miss at most 5 %."""
    rng = np.random.default_rng(SEED)
    looks, batch, alpha = 25, 40, 0.05
    values = rng.exponential(size=(RUNS, looks * batch)).astype(np.float32)
    truth = -math.log(1 - p)
    if ties:
        values, truth = np.ceil(4 * values), math.ceil(4 * truth)
    missed = np.zeros(RUNS, dtype=bool)
    naive = np.zeros(RUNS, dtype=bool)
    for n in range(batch, looks * batch + 1, batch):
        # X(rank) <= truth exactly if at least rank values are, so counting replaces sorting.
        at_most = (values[:, :n] <= truth).sum(axis=1)
        under = (values[:, :n] < truth).sum(axis=1)
        lower, upper = quantile_ranks(n, p, alpha)
        if lower is not None:
            missed |= at_most < lower
        if upper is not None:
            missed |= under >= upper
        reach = 1.96 * math.sqrt(n * p * (1 - p))
        naive |= (at_most < math.floor(n * p - reach) + 1) | (under >= n * p + reach)
    assert missed.mean() <= alpha, f"seed {SEED}: {missed.sum()} of {RUNS} runs"
    if not ties:
        assert naive.mean() > 2 * alpha
