"""Digests: exact while small, the same bits for the same values in the same order, whole in a state."""

import math

import numpy as np
import pytest

from tidegate.gates.digest import CHUNK, RANK_ERROR, SKETCH, Digest
from tidegate.schemas.event import MAX_LATENCY

RNG = np.random.default_rng(20_240_607)
VALUES = RNG.lognormal(size=3_000)
QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def digest(values: np.ndarray) -> Digest:
    made = Digest()
    made.add(values)
    return made


def answers(one: Digest) -> list[float | None]:
    return [one.quantile(q) for q in QUANTILES]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 20, 21, 511, 512])
def test_up_to_512_values_are_exact_by_linear_interpolation(n: int) -> None:
    """Exact at small n: type 7 of Hyndman and Fan, which is numpy's default."""
    one = digest(VALUES[:n])
    assert one.exact
    assert answers(one) == pytest.approx(np.quantile(VALUES[:n], QUANTILES).tolist(), rel=1e-12)


def test_up_to_512_distinct_values_are_exact_at_any_count() -> None:
    """Beyond that it is a sketch with a rank error of half a percentage point."""
    assert CHUNK == 512
    assert RANK_ERROR == 0.005
    rng = np.random.default_rng(3)
    steps = rng.integers(0, 512, 20_000) / 100
    merged = Digest()
    for pane in np.split(steps, [5, 900, 901, 14_000]):
        merged.merge(digest(pane))
    for one in (digest(steps), merged):
        assert one.exact
        assert answers(one) == pytest.approx(np.quantile(steps, QUANTILES).tolist(), rel=1e-12)
    assert not digest(rng.random(1_025)).exact


def test_interpolation_is_between_order_statistics() -> None:
    """By hand: p95 of 1..21 is 20, of 0 and 1 is 0.95."""
    assert digest(np.arange(21, 0, -1.0)).quantile(0.95) == 20.0
    assert digest(np.array([1.0, 0.0])).quantile(0.95) == pytest.approx(0.95)


def test_an_empty_digest_has_no_quantile() -> None:
    """None, never NaN."""
    assert Digest().quantile(0.5) is None
    empty = digest(np.empty(0))
    assert (empty.count, empty.exact, empty.quantile(0.95)) == (0, True, None)


@pytest.mark.parametrize("n", [600, 1_024, 1_025, 3_000])
def test_the_extremes_are_never_passed(n: int) -> None:
    """Quantiles 0 and 1 are the smallest and the largest value, and none lies outside."""
    one = digest(VALUES[:n])
    low, high = VALUES[:n].min(), VALUES[:n].max()
    found = [x for q in np.linspace(0, 1, 101) if (x := one.quantile(float(q))) is not None]
    assert len(found) == 101
    assert (found[0], found[-1]) == (low, high)
    assert found == sorted(found)


@pytest.mark.parametrize("n", [5, 512])
def test_an_order_statistic_is_exact_while_the_digest_is(n: int) -> None:
    """1-based ranks."""
    one = digest(VALUES[:n])
    assert [one.order_statistic(rank) for rank in range(1, n + 1)] == sorted(VALUES[:n].tolist())


def test_an_order_statistic_of_a_sketch_is_within_its_rank_error() -> None:
    """Half a percentage point of 3,000 is 15 ranks."""
    one, exact = digest(VALUES), np.sort(VALUES)
    for rank in (30, 1_500, 2_784, 2_910, 2_999):
        found = int(np.searchsorted(exact, one.order_statistic(rank), side="right"))
        assert abs(found - rank) <= 15


@pytest.mark.parametrize("value", [0.7, 0.1, 100.0, 0.0])
@pytest.mark.parametrize("n", [600, 20_000])
def test_equal_values_stay_equal_within_the_slack_of_the_gates(value: float, n: int) -> None:
    """600 × 0.7 has its quantiles at 0.7 within 1e-9."""
    one = digest(np.full(n, value))
    assert answers(one) == pytest.approx([value] * len(QUANTILES), abs=1e-10)


def test_asking_changes_nothing() -> None:
    """A digest that was asked in between gives the same bits as one that was not."""
    asked, plain = Digest(), Digest()
    for at in range(0, 3_000, 100):
        asked.add(VALUES[at : at + 100])
        asked.quantile(0.95)
        asked.order_statistic(1)
        plain.add(VALUES[at : at + 100])
    assert asked.dump() == plain.dump()
    assert answers(asked) == answers(plain)


@pytest.mark.parametrize("n", [3, 512, 513, 3_000])
def test_merging_leaves_the_other_digest_as_it_was(n: int) -> None:
    """The other stays as it is, and later additions to either do not reach into the other."""
    other = digest(VALUES[:n])
    before, told = other.dump(), answers(other)
    whole = Digest()
    whole.merge(other)
    whole.add(VALUES[:1_000])
    whole.merge(other)
    assert (other.dump(), answers(other)) == (before, told)
    kept = whole.dump()
    other.add(VALUES[:1_000])
    assert whole.dump() == kept
    assert whole.count == 2 * n + 1_000


def test_merging_exact_digests_is_adding_their_values() -> None:
    """Panes of few values merge without loss: exact up to 512, and the same bits beyond."""
    merged, added = Digest(), digest(VALUES)
    for at in range(0, 3_000, 250):
        merged.merge(digest(VALUES[at : at + 250]))
        if at == 250:
            assert merged.exact
    assert merged.dump() == added.dump()


def test_merging_into_an_empty_digest_gives_the_other() -> None:
    """The first pane of a window is the window."""
    merged = Digest()
    merged.merge(digest(VALUES))
    assert merged.dump() == digest(VALUES).dump()
    merged.merge(Digest())
    assert merged.dump() == digest(VALUES).dump()


def test_answers_follow_every_addition_and_merge() -> None:
    """What was worked out for one question is not kept past the next value."""
    one = digest(np.array([1.0]))
    assert one.quantile(1.0) == 1.0
    one.add(np.array([2.0]))
    assert one.quantile(1.0) == 2.0
    one.merge(digest(np.array([3.0])))
    assert one.quantile(1.0) == 3.0
    one.merge(digest(np.arange(600.0)))
    assert one.quantile(1.0) == 599.0


def test_a_digest_takes_its_own_copy_of_the_values() -> None:
    """An array that is written to later does not change what was added."""
    values = VALUES[:100].copy()
    one = digest(values)
    before = one.dump()
    values[:] = 0.0
    assert one.dump() == before


def test_the_state_is_count_centroids_and_little_endian_doubles() -> None:
    """A dump is portable: the unmerged rest as <f8, and no centroids while exact."""
    count, merged, values, counts, rest = digest(VALUES[:3]).dump()
    assert (count, merged, values, counts) == (3, b"", b"", b"")
    assert rest == VALUES[:3].astype("<f8").tobytes()
    count, merged, values, counts, rest = digest(np.repeat([2.0, 1.0], 257)).dump()
    assert (count, merged, rest) == (514, b"", np.array([1.0, 1.0]).astype("<f8").tobytes())
    assert values == np.array([1.0, 2.0]).astype("<f8").tobytes()
    assert counts == np.array([255, 257]).astype("<i8").tobytes()
    count, merged, values, counts, rest = digest(VALUES[:1_025]).dump()
    assert (count, values, counts, len(rest)) == (1_025, b"", b"", 8)
    assert merged


def test_the_sketch_names_its_sizes_and_version() -> None:
    """`engine.sketch` is `…/1`: whoever changes the sketch changes its name."""
    assert SKETCH.endswith("/1")
    assert str(CHUNK) in SKETCH


def test_the_largest_doubles_give_no_infinity() -> None:
    """A quantile lies between the values, up to the largest latency that a record may have."""
    for n in (40, 600, 3_000):
        found = answers(digest(np.full(n, MAX_LATENCY)))
        assert all(x is not None and math.isfinite(x) for x in found), n
