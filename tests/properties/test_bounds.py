"""What holds of the bounds for all counts, levels and sizes."""

import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tidegate.gates.bounds import (
    alpha_for_window,
    excludes_from_above,
    excludes_from_below,
    interval,
    log_odds_sample_ratio,
    quantile_ranks,
)

# What rounding may do to an end that is not compared with itself; n goes to 1e8, an end to 1e-9.
NOISE = 1e-9

sizes = st.integers(1, 200) | st.integers(1, 10**8)
levels = st.floats(1e-12, 0.5)
tightest_at = st.floats(1, 1e6)
quantiles = st.sampled_from([0.5, 0.95, 0.99]) | st.floats(1e-3, 1 - 1e-3)
limits = st.floats(0, 1) | st.floats(1e-9, 1e-2) | st.floats(1e-9, 1e-2).map(lambda x: 1 - x)


@dataclass(frozen=True)
class Sample:
    k: float
    n: int


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    n = draw(sizes)
    near = st.integers(0, min(n, 5))
    k = draw(st.integers(0, n) | near | near.map(lambda few: n - few) | st.floats(0, n))
    return Sample(k, n)


@given(samples(), levels, tightest_at)
def test_interval_contains_the_observed_share(sample: Sample, alpha: float, n_opt: float) -> None:
    lower, upper = interval(sample.k, sample.n, alpha, n_opt)
    assert 0.0 <= lower <= sample.k / sample.n <= upper <= 1.0


@given(samples(), levels, tightest_at, limits)
def test_one_evaluation_agrees_with_the_interval(sample: Sample, alpha: float, n_opt: float, limit: float) -> None:
    k, n = sample.k, sample.n
    lower, upper = interval(k, n, alpha, n_opt)
    for tried in (limit, lower / 2, lower, upper, (1 + upper) / 2, k / n, 0.0, 1.0):
        if tried in (0.0, 1.0) or abs(tried - lower) > NOISE * lower:
            assert excludes_from_below(k, n, tried, alpha, n_opt) == (lower > tried)
        if tried in (0.0, 1.0) or abs(tried - upper) > NOISE * (1 - upper):
            assert excludes_from_above(k, n, tried, alpha, n_opt) == (upper < tried)
    assert not excludes_from_below(k, n, lower, alpha, n_opt)
    assert not excludes_from_above(k, n, upper, alpha, n_opt)


@given(samples(), levels, st.floats(0.01, 1), tightest_at)
def test_a_stricter_level_never_gives_a_narrower_interval(
    sample: Sample, alpha: float, share: float, n_opt: float
) -> None:
    lower, upper = interval(sample.k, sample.n, alpha, n_opt)
    strict_lower, strict_upper = interval(sample.k, sample.n, alpha * share, n_opt)
    assert strict_lower <= lower + NOISE
    assert strict_upper >= upper - NOISE


@given(samples(), levels, tightest_at)
def test_failures_mirror_successes(sample: Sample, alpha: float, n_opt: float) -> None:
    """In steps of 1/1024, so that n - k is exact and the two questions are the same one."""
    k, n = round(sample.k * 1024) / 1024, sample.n
    lower, upper = interval(k, n, alpha, n_opt)
    mirrored_lower, mirrored_upper = interval(n - k, n, alpha, n_opt)
    assert math.isclose(mirrored_lower, 1 - upper, abs_tol=NOISE)
    assert math.isclose(mirrored_upper, 1 - lower, abs_tol=NOISE)


@given(samples(), st.floats(0, 1), levels, tightest_at)
def test_more_successes_never_lower_an_end(sample: Sample, share: float, alpha: float, n_opt: float) -> None:
    k, n = sample.k, sample.n
    more = min(float(n), k + share * (n - k))
    lower, upper = interval(k, n, alpha, n_opt)
    raised_lower, raised_upper = interval(more, n, alpha, n_opt)
    assert raised_lower >= lower - NOISE
    assert raised_upper >= upper - NOISE


@given(samples(), levels, tightest_at, limits, limits)
def test_a_looser_limit_is_never_excluded_before_a_tighter_one(
    sample: Sample, alpha: float, n_opt: float, one: float, other: float
) -> None:
    k, n, low, high = sample.k, sample.n, min(one, other), max(one, other)
    if high - low > NOISE * high:
        below = [excludes_from_below(k, n, limit, alpha, n_opt) for limit in (low, high)]
        assert below[0] >= below[1]
    if high - low > NOISE * (1 - low):
        above = [excludes_from_above(k, n, limit, alpha, n_opt) for limit in (low, high)]
        assert above[0] <= above[1]


@given(sizes, quantiles, levels, tightest_at)
def test_ranks_enclose_the_sample_quantile(n: int, p: float, alpha: float, n_opt: float) -> None:
    lower, upper = quantile_ranks(n, p, alpha, n_opt)
    assert lower is None or 1 <= lower <= math.floor(n * p) + 1
    assert upper is None or math.floor(n * p) + 1 <= upper <= n


@given(sizes, quantiles, levels, st.floats(0.01, 1), tightest_at)
def test_a_stricter_level_never_gives_narrower_ranks(
    n: int, p: float, alpha: float, share: float, n_opt: float
) -> None:
    lower, upper = quantile_ranks(n, p, alpha, n_opt)
    strict_lower, strict_upper = quantile_ranks(n, p, alpha * share, n_opt)
    assert (strict_lower or 0) <= (lower or 0)
    assert (strict_upper or n + 1) >= (upper or n + 1)


@given(st.integers(1, 10_000), st.sampled_from([0.25, 0.5, 0.75]), levels, tightest_at)
def test_ranks_from_the_top_mirror_ranks_from_the_bottom(n: int, p: float, alpha: float, n_opt: float) -> None:
    lower, upper = quantile_ranks(n, p, alpha, n_opt)
    mirrored_lower, mirrored_upper = quantile_ranks(n, 1 - p, alpha, n_opt)
    assert mirrored_lower == (None if upper is None else n + 1 - upper)
    assert mirrored_upper == (None if lower is None else n + 1 - lower)


@given(sizes, quantiles, levels, st.floats(0, 0.2), tightest_at)
def test_slack_shifts_each_rank_by_its_ceiling_or_off_the_end(
    n: int, p: float, alpha: float, slack: float, n_opt: float
) -> None:
    lower, upper = quantile_ranks(n, p, alpha, n_opt)
    wide_lower, wide_upper = quantile_ranks(n, p, alpha, n_opt, slack=slack)
    shift = math.ceil(slack * n)
    assert wide_lower == (lower - shift if lower is not None and lower > shift else None)
    assert wide_upper == (upper + shift if upper is not None and upper + shift <= n else None)


@given(sizes, limits, st.floats(1e-3, 1e6))
def test_counts_at_their_expected_value_are_no_evidence(n: int, p: float, concentration: float) -> None:
    """The premise of deciding by one evaluation: the statistic is not positive at s = 0."""
    if 0.0 < p < 1.0 and p * concentration > 1e-300:
        odds = log_odds_sample_ratio((n * p, n - n * p), (p, 1 - p), concentration)
        assert odds <= 1e-5


@given(levels, st.integers(1, 10**6))
def test_no_number_of_windows_spends_more_than_the_level(alpha: float, windows: int) -> None:
    """The parts telescope: what is left after window j is alpha / (j + 1)."""
    left = alpha / windows - alpha_for_window(alpha, windows)
    assert math.isclose(left, alpha / (windows + 1), rel_tol=1e-6)
