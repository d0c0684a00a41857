"""Sums of an arm: the same in whatever order they are added up, exact in cost and coverage, whole in a state."""

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest

from tests.gates.build import PINNED, Event, healthy, ids, probes, requests, seen, sums_of
from tidegate.gates import samples
from tidegate.gates.codec import StateCodec
from tidegate.gates.samples import IdSample, shared
from tidegate.gates.sums import CONVERGED, COUNTERS, FLIPPED, PIN_SETS_CAP, Sums, complete, cost_parts, flipped
from tidegate.gates.window import Arm, PaneUnit, UnitWindow

SEED = 20_240_607


def costs(values: list[float]) -> Sums:
    return sums_of([Event("canary", cost=value) for value in values])


def test_cost_is_summed_exactly_and_rounded_once() -> None:
    """Σcost of 0.1 ten times is the double nearest to ten times 0.1, in any order and over any panes."""
    rng = random.Random(SEED)
    values = [rng.choice([0.1, 1e-9, 3.3, 1e9, 7e-5, 123456.789]) for _ in range(300)]
    exact = float(sum(map(Fraction, values)))
    for _ in range(5):
        rng.shuffle(values)
        parts = Sums()
        for at in range(0, 300, 7):
            parts.merge(costs(values[at : at + 7]))
        assert parts.cost == pytest.approx(exact, rel=1e-15)
        assert parts.cost == costs(values).cost
    assert costs([0.1] * 10).cost == 1.0


@pytest.mark.parametrize("value", [0.0, 1e-12, 0.1, 0.999999999999, 1.0, 1e9, 2.0**-12, 2.0**-57])
def test_a_cost_splits_into_whole_numbers_that_give_it_back(value: float) -> None:
    """High in units of 2^-12, low in units of 2^-57."""
    high, low = cost_parts(np.array([value]))
    assert high[0] * 2.0**-12 + low[0] * 2.0**-57 == pytest.approx(value, abs=2.0**-57, rel=1e-15)


def test_squares_and_the_cost_of_solved_requests_are_summed_exactly_in_any_order() -> None:
    """Each square is rounded once; what follows loses nothing, however the rows were grouped."""
    rng = random.Random(SEED)
    values = [(rng.choice([0.1, 1e-7, 3.3, 1e9, 7e-5, 123456.789]), rng.random() < 0.5) for _ in range(300)]
    square = sum(Fraction(cost * cost) for cost, _ in values)
    solved_cost = sum(Fraction(cost) for cost, solved in values if solved)
    found = []
    for _ in range(3):
        rng.shuffle(values)
        parts = Sums()
        for at in range(0, 300, 7):
            parts.merge(sums_of([Event("canary", cost=cost, solved=solved) for cost, solved in values[at : at + 7]]))
        found.append((parts.exact_square, parts.exact_solved_cost))
    assert found[1:] == found[:-1]
    # What lies below the last part's unit is rounded, once a row.
    assert abs(found[0][0] - square) < 300 * Fraction(1, 2**70)
    assert abs(found[0][1] - solved_cost) < 300 * Fraction(1, 2**57)


def test_the_square_of_a_small_cost_keeps_its_digits() -> None:
    """A hundred-thousandth of a cent is still told from nothing."""
    assert float(costs([1e-7]).exact_square) == pytest.approx(1e-14, rel=1e-7)


def test_the_sum_of_the_dearest_costs_does_not_wrap() -> None:
    """A sum beyond 63 bits stays at the top: it never turns negative."""
    sums = Sums()
    row = [0] * len(COUNTERS)
    row[COUNTERS.index("cost_high")] = 2**63 - 1
    for _ in range(3):
        sums.count(row)
    assert sums.cost > 1e15
    assert StateCodec(Sums).load(StateCodec(Sums).dump(sums)).cost == sums.cost


def test_coverage_is_a_mean_without_drift() -> None:
    """The mean of 600 × 0.7 is 0.7 to 1e-12, however the rows were grouped."""
    whole = sums_of(requests("canary", 600, coverage=0.7))
    parts = Sums()
    for _ in range(60):
        parts.merge(sums_of(requests("canary", 10, coverage=0.7)))
    assert whole.coverage == parts.coverage == pytest.approx(0.7, abs=1e-12)
    assert Sums().coverage is None


@pytest.mark.parametrize("order", list(itertools.permutations((CONVERGED, FLIPPED, CONVERGED))))
def test_a_repeated_run_keeps_its_worse_state_in_any_order(order: tuple[int, ...]) -> None:
    """A repeated run counts at its worse state."""
    sums = Sums()
    for state in order:
        sums.probe(7, 3, state)
    assert sums.groups == {7: FLIPPED << 6}


def test_a_group_is_complete_with_six_runs_and_flipped_by_one_of_them() -> None:
    """All 3^6 groups against a list of what each run was."""
    for states in itertools.product((0, CONVERGED, FLIPPED), repeat=6):
        sums = Sums()
        for run, state in enumerate(states):
            if state:
                sums.probe(1, run, state)
        packed = sums.groups.get(1, 0)
        assert complete(packed) == all(states)
        assert flipped(packed) == (FLIPPED in states)


def test_the_runs_of_a_group_meet_across_panes() -> None:
    """A λ group is complete within a window, not within a pane or a partition."""
    whole = Sums()
    for probe in probes("canary"):
        whole.merge(sums_of([probe]))
    assert [complete(runs) for runs in whole.groups.values()] == [True]


def test_everything_but_the_digests_is_the_same_in_any_order() -> None:
    """Counters, λ groups and pins do not depend on the order of the panes."""
    events = [*healthy(10, cost=0.3), *probes("canary", "r", ["×", "→"])]
    other = {**PINNED, "MODEL_VER": "other"}
    panes = [sums_of([e], i) for i, e in enumerate([*events, Event("canary", pins=other)])]
    rng = random.Random(SEED)
    results = []
    for _ in range(4):
        rng.shuffle(panes)
        whole = Sums()
        for pane in panes:
            whole.merge(pane)
        results.append((whole.counters, whole.groups, whole.pins, whole.delta_s.count))
    assert all(result == results[0] for result in results)


def test_merging_leaves_the_other_sums_as_they_were() -> None:
    """A pane that was merged is not changed by what follows."""
    pane = sums_of([*healthy(5), *probes("canary")])
    before = StateCodec(Sums).dump(pane)
    whole = Sums()
    for _ in range(3):
        whole.merge(pane)
        whole.merge(sums_of(requests("canary", 3)))
    assert StateCodec(Sums).dump(pane) == before


def test_the_first_place_of_a_set_of_pins_is_the_earliest() -> None:
    """First by pane, then partition, then offset, whichever came in first."""
    sums = Sums()
    for where in ((5, 0, 9), (4, 1, 70), (4, 1, 8), (6, 0, 0)):
        sums.see_pins("{}", 2, where)
    assert (sums.pins["{}"].count, sums.pins["{}"].first) == (8, (4, 1, 8))


def test_the_list_of_pin_sets_is_bounded() -> None:
    """A service that sends a new pin with every request cannot fill the memory."""
    sums = Sums()
    for i in range(10 * PIN_SETS_CAP):
        sums.see_pins(f'{{"MODEL_VER":"{i}"}}', 1, (0, 0, i))
    assert len(sums.pins) == PIN_SETS_CAP


def test_a_sample_of_ids_is_the_set_of_them() -> None:
    """Distinct, ascending, in any order and with repeats."""
    rng = random.Random(SEED)
    names = [f"id-{rng.randrange(4_000)}" for _ in range(20_000)]
    sample, merged = IdSample(), IdSample()
    for at in range(0, 20_000, 700):
        sample.add(ids(names[at : at + 700]))
        part = IdSample()
        part.add(ids(reversed(names[at : at + 700])))
        merged.merge(part)
    truth = sorted(set(ids(names).tolist()))
    assert sample.ids.tolist() == merged.ids.tolist() == truth
    assert sample.level == merged.level == 0
    assert sample.within(0).tolist() == truth


def test_two_samples_share_the_ids_that_are_in_both() -> None:
    """The intersection of the two sets."""
    one, other = IdSample(), IdSample()
    one.add(ids(f"u{i}" for i in range(100)))
    other.add(ids(f"u{i}" for i in range(90, 300)))
    found, level = shared(one, other)
    assert set(found.tolist()) == set(ids(f"u{i}" for i in range(90, 100)).tolist())
    assert level == 0


def test_a_thinned_sample_answers_exactly_for_the_ids_it_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the cap the ids below 2^(64-level) are followed, whatever the order of arrival."""
    monkeypatch.setattr(samples, "SAMPLE_CAP", 64)
    names = [f"u{i}" for i in range(1_000)]
    forward, backward = IdSample(), IdSample()
    forward.add(ids(names))
    for name in reversed(names):
        backward.add(ids([name]))
    assert forward.dump() == backward.dump()
    assert 0 < len(forward.ids) <= 64
    bound = 1 << (64 - forward.level)
    assert forward.ids.tolist() == sorted(h for h in ids(names).tolist() if h < bound)
    small = IdSample()
    small.add(ids(names[:50]))
    found, level = shared(forward, small)
    assert level == forward.level
    assert found.tolist() == sorted(h for h in ids(names[:50]).tolist() if h < bound)
    small.merge(forward)
    assert small.dump() == forward.dump()


def test_a_thinned_sample_says_its_level_before_and_after_its_ids_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The level belongs to the ids: in a dump, in a merge and in a comparison, also just after an addition."""
    monkeypatch.setattr(samples, "SAMPLE_CAP", 64)

    def fresh() -> IdSample:
        sample = IdSample()
        sample.add(ids(f"u{i}" for i in range(1_000)))
        return sample

    known = fresh()
    assert len(known.ids) <= 64
    assert fresh().level == known.level
    assert fresh().dump() == known.dump()
    assert shared(fresh(), fresh())[1] == known.level
    merged = IdSample()
    merged.add(ids(f"v{i}" for i in range(50)))
    merged.merge(fresh())
    assert merged.dump()[0] == known.level
    assert max(merged.ids.tolist()) < 1 << (64 - known.level)


def test_of_two_samples_the_coarser_level_holds_whichever_takes_up_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thinned sample that takes up a whole one still follows one id in 2^level, not all of the new ones."""
    monkeypatch.setattr(samples, "SAMPLE_CAP", 64)
    thinned, whole = IdSample(), IdSample()
    thinned.add(ids(f"u{i}" for i in range(1_000)))
    level = thinned.level
    whole.add(ids(f"v{i}" for i in range(20)))
    assert (level > 0, whole.level) == (True, 0)
    thinned.merge(whole)
    bound = 1 << (64 - thinned.level)
    names = [*(f"u{i}" for i in range(1_000)), *(f"v{i}" for i in range(20))]
    assert thinned.level >= level
    assert thinned.ids.tolist() == sorted(h for h in ids(names).tolist() if h < bound)


def test_a_sample_survives_being_written_down_and_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dump and load at any point change nothing of what follows."""
    monkeypatch.setattr(samples, "SAMPLE_CAP", 64)
    plain, restored = IdSample(), IdSample()
    for at in range(0, 600, 17):
        some = ids(f"u{i}" for i in range(at, at + 17))
        plain.add(some)
        restored = IdSample.load(restored.dump())
        restored.add(some)
    assert plain.dump() == restored.dump()


def test_a_pane_survives_being_written_down_and_read_back() -> None:
    """StateCodec gives back the same bytes, digests and samples included."""
    codec = StateCodec(PaneUnit)
    pane = seen([*healthy(700), *requests("canary", 3, source="gold"), Event("canary", kind="exposure")], late=3)
    blob = codec.dump(pane)
    again = codec.load(blob)
    assert codec.dump(again) == blob
    assert again.accepted == pane.accepted == 2 * 706 + 4
    ours, theirs = pane.of("canary").of("traffic"), again.of("canary").of("traffic")
    assert theirs.delta_s.quantile(0.95) == ours.delta_s.quantile(0.95)
    assert theirs.sticky.ids.tolist() == ours.sticky.ids.tolist()


def test_a_codec_refuses_what_it_does_not_know() -> None:
    """A state with a field of another type is a mistake in the code, not data."""
    with pytest.raises(NotImplementedError):
        StateCodec(object).dump(object())


def test_a_window_is_its_panes_by_source_with_the_range_of_offsets_of_each_partition() -> None:
    """Counts add up, sources stay apart, offsets are first and last per partition."""
    window = UnitWindow(0, 60_000)
    gold = requests("canary", 2, source="gold")
    window.merge(0, seen([*requests("canary", 3), *gold], late=1, duplicates=2, first=10))
    window.merge(1, seen(requests("baseline", 4), first=500))
    window.merge(0, seen([Event("canary", kind="exposure")], late=1, first=40))
    assert window.canary.of("traffic")["requests"] == 3
    assert window.canary.of("gold")["requests"] == 2
    assert window.baseline.of("traffic")["requests"] == 4
    assert (window.late, window.duplicates, window.accepted) == (2, 2, 10)
    spans = {partition: (span.first, span.last) for partition, span in window.offsets.items()}
    assert spans == {0: (10, 40), 1: (500, 503)}


def test_served_rows_are_traffic_and_gold() -> None:
    """Shadow rows are kept apart from what latency, errors, tools and cost are read from."""
    arm = Arm()
    for source, n in (("traffic", 3), ("gold", 2), ("shadow", 9)):
        arm.of(source).merge(sums_of(requests("canary", n)))
    assert arm.served()["requests"] == 5
    assert arm.served().latency.count == 5
    assert arm.accepted == 14
