"""What holds of the quantile sketch for any values, any cuts and any merges in a fixed order."""

import random
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tidegate.gates.digest import CHUNK, RANK_ERROR, Digest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tdigest import TDigest as SecondOpinion

Floats = NDArray[np.float64]
SEED = 20_240_607
QUANTILES = (0.5, 0.95)
PANES = 360
TIES = 1e-9
"""A mean of equal values may miss them by rounding; the gates forgive as much."""


def lognormal(rng: np.random.Generator, n: int) -> Floats:
    return rng.lognormal(4.0, 1.0, n)


def uniform(rng: np.random.Generator, n: int) -> Floats:
    return rng.random(n)


def constant_heavy(rng: np.random.Generator, n: int) -> Floats:
    """Nine in ten values are the same, the rest lie on both sides of it."""
    return np.where(rng.random(n) < 0.9, 0.7, rng.random(n))


def two_atoms(rng: np.random.Generator, n: int) -> Floats:
    """A step right at the p95: 94.9 % zeros, 5.1 % ones."""
    return (rng.random(n) < 0.051).astype(np.float64)


def steps(rng: np.random.Generator, n: int) -> Floats:
    """A few values of any weights, among others that never come twice."""
    weights = rng.dirichlet(np.full(12, 0.5))
    return np.where(rng.random(n) < 0.6, rng.choice(np.round(rng.random(12), 3), n, p=weights), rng.random(n))


def rounded(rng: np.random.Generator, n: int) -> Floats:
    """Latencies in whole milliseconds: thousands of values, the usual ones over and over."""
    return np.round(rng.lognormal(6.0, 0.7, n))


def rising(rng: np.random.Generator, n: int) -> Floats:
    return np.sort(rng.lognormal(4.0, 1.0, n))


def falling(rng: np.random.Generator, n: int) -> Floats:
    return rising(rng, n)[::-1].copy()


def drifting(rng: np.random.Generator, n: int) -> Floats:
    """Each pane slower than the one before, with noise: no pane looks like the whole."""
    return np.linspace(1.0, 10.0, n) * rng.lognormal(0.0, 0.3, n)


INPUTS = (lognormal, uniform, constant_heavy, two_atoms, steps, rounded, rising, falling, drifting)


def digest(values: Floats) -> Digest:
    made = Digest()
    made.add(values)
    return made


def rank_error(values: Floats, q: float, answer: float | None) -> float:
    """How far the answer's rank is from q, in shares of the count: 0 anywhere on a step that covers q."""
    assert answer is not None
    exact, slack = np.sort(values), TIES * max(1.0, abs(answer))
    below = float(np.searchsorted(exact, answer - slack, side="left")) / len(exact)
    upto = float(np.searchsorted(exact, answer + slack, side="right")) / len(exact)
    return max(below - q, q - upto, 0.0)


@pytest.mark.parametrize("n", [513, 1_000, 5_000, 50_000, 200_000])
@pytest.mark.parametrize("make", INPUTS)
def test_a_rank_is_off_by_at_most_half_a_percentage_point(make: Callable[..., Floats], n: int) -> None:
    """Rank error ≤ 0.5 percentage points at p50 and p95, against the sorted values."""
    values = make(np.random.default_rng(SEED + n), n)
    one = digest(values)
    for q in QUANTILES:
        error = rank_error(values, q, one.quantile(q))
        assert error <= RANK_ERROR, f"seed {SEED + n}, {make.__name__}: p{100 * q:g} is off by {error:.4%}"


@pytest.mark.parametrize("per_pane", [30, 520, 555])
@pytest.mark.parametrize("make", INPUTS)
def test_a_rank_is_off_by_no_more_after_merging_a_window_of_panes(make: Callable[..., Floats], per_pane: int) -> None:
    """360 pane digests merged in order: still at most half a percentage point."""
    values = make(np.random.default_rng(SEED + per_pane), PANES * per_pane)
    window = Digest()
    for pane in np.split(values, PANES):
        window.merge(digest(pane))
    assert window.count == len(values)
    for q in QUANTILES:
        error = rank_error(values, q, window.quantile(q))
        assert error <= RANK_ERROR, f"seed {SEED + per_pane}, {make.__name__}: p{100 * q:g} is off by {error:.4%}"


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(INPUTS),
    st.lists(st.integers(0, 3_000), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
)
@example(two_atoms, [30, 604, 768], 354)
@example(constant_heavy, [2711, 3000], 0)
def test_panes_of_any_sizes_merge_within_the_rank_error(
    make: Callable[..., Floats], sizes: list[int], seed: int
) -> None:
    """Whatever mix of exact and sketched panes, full and empty."""
    values = make(np.random.default_rng(seed), sum(sizes))
    window = Digest()
    for pane in np.split(values, np.cumsum(sizes)[:-1]):
        window.merge(digest(pane))
    assert window.exact or len(np.unique(values)) > CHUNK
    if sum(sizes):
        for q in QUANTILES:
            assert rank_error(values, q, window.quantile(q)) <= (TIES if window.exact else RANK_ERROR) + 1 / len(values)


@pytest.fixture
def seeded() -> Iterator[None]:
    """The second opinion draws from the global generator; give it back as it was."""
    state = random.getstate()
    random.seed(SEED)
    yield
    random.setstate(state)


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("make", [lognormal, uniform, constant_heavy, rising, falling, drifting])
def test_another_t_digest_agrees(make: Callable[..., Floats]) -> None:
    """tdigest of 4,000 values gives the same quantiles, within one point of rank or, on steps, 1 in 1,000."""
    values = make(np.random.default_rng(SEED), 4_000)
    ours, theirs = digest(values), SecondOpinion(delta=0.005)
    theirs.batch_update(values.tolist())
    for q in QUANTILES:
        one, other = ours.quantile(q), theirs.percentile(100 * q)
        assert one is not None
        assert rank_error(values, q, other) <= 0.01 or one == pytest.approx(other, rel=1e-3)
        assert rank_error(values, q, one) <= RANK_ERROR


@pytest.mark.parametrize("q", QUANTILES)
def test_values_that_a_service_rounds_are_ranked_as_well(q: float) -> None:
    """ΔS rounded to two decimals: steps of a few percent, and still at most half a percentage point."""
    errors = {}
    for seed in range(SEED, SEED + 20):
        values = np.round(np.random.default_rng(seed).beta(2.0, 20.0, 20_000), 2)
        errors[seed] = rank_error(values, q, digest(values).quantile(q))
    seed, error = max(errors.items(), key=lambda item: item[1])
    assert error <= RANK_ERROR, f"seed {seed}: off by {error:.4%}"


VALUES = constant_heavy(np.random.default_rng(SEED), 6_000)
sizes = st.integers(0, 6_000) | st.sampled_from([1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1])
cuts = st.lists(st.integers(0, 6_000) | st.integers(0, 12).map(lambda k: k * CHUNK), max_size=8)


@settings(max_examples=60, deadline=None)
@given(sizes, cuts)
@example(CHUNK, [CHUNK])
@example(CHUNK + 1, [CHUNK])
@example(3 * CHUNK, [1, CHUNK, CHUNK + 1])
def test_the_bits_do_not_depend_on_how_values_were_cut_into_additions(n: int, at: list[int]) -> None:
    """The same values in the same order give the same bits under any split."""
    whole, parts = digest(VALUES[:n]), Digest()
    for part in np.split(VALUES[:n], sorted(min(cut, n) for cut in at)):
        parts.add(part)
    assert parts.dump() == whole.dump()
    assert [parts.quantile(q) for q in QUANTILES] == [whole.quantile(q) for q in QUANTILES]


@settings(max_examples=60, deadline=None)
@given(sizes, cuts)
def test_the_bits_do_not_depend_on_being_written_down_and_read_back(n: int, at: list[int]) -> None:
    """A dump and load at any point of adding changes nothing of what follows."""
    whole, restored = digest(VALUES[:n]), Digest()
    for part in np.split(VALUES[:n], sorted(min(cut, n) for cut in at)):
        restored.add(part)
        restored = Digest.load(restored.dump())
    assert restored.dump() == whole.dump()
    assert restored.exact == whole.exact
    assert [restored.quantile(q) for q in QUANTILES] == [whole.quantile(q) for q in QUANTILES]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1_500), min_size=1, max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
def test_merges_give_the_same_bits_after_a_restore_of_either_side(panes: list[int], restored: list[bool]) -> None:
    """Merged in the same order, with any of the digests restored in between: the same bits."""
    straight, broken, at = Digest(), Digest(), 0
    for n, restore in zip(panes, restored, strict=False):
        pane = digest(VALUES[at % 4_000 :][:n])
        at += n
        straight.merge(pane)
        broken.merge(Digest.load(pane.dump()))
        if restore:
            broken = Digest.load(broken.dump())
    assert broken.dump() == straight.dump()
    assert [broken.quantile(q) for q in QUANTILES] == [straight.quantile(q) for q in QUANTILES]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=CHUNK), st.floats(0, 1))
def test_up_to_512_values_any_quantile_is_exact(values: list[float], q: float) -> None:
    """Type 7, as numpy computes it."""
    one = digest(np.array(values))
    assert one.exact
    assert one.quantile(q) == pytest.approx(float(np.quantile(values, q)), rel=1e-9, abs=1e-9)
