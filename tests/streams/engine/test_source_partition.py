"""One partition's panes against the contract's section 3, and against the slow model of ``reference``."""

import json
import math
import random
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streams.events import (
    CLOCKWORK,
    LATENESS,
    MANIFEST,
    NOON,
    PANE,
    content,
    draw_log,
    draw_runs,
    flags,
    fresh,
    partials_of,
    record,
    sums_of,
    tick,
    unit_of,
)
from tests.streams.reference import Cell, Partition, Seen, hashed, quantile
from tidegate.gates.labels import SPOKEN, Labels
from tidegate.gates.sums import Sums
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.errors import HoleError, StateError
from tidegate.schemas.timeline import Revision, Timeline
from tidegate.streams.engine import source_partition as panes
from tidegate.streams.engine.event_classes import UNKNOWN_MAX, EventClasses, LeftOut
from tidegate.streams.engine.gate_log import Partial, partial_codec
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import SourcePartition, Step

pytestmark = pytest.mark.usefixtures("decoder")

FIRST_PANE = NOON // PANE
COUNTED = [
    "requests",
    "exposures",
    "errors",
    "rate_limited",
    "tool_calls",
    "tool_ok",
    "tool_rows",
    "tool_missing",
    "cost_rows",
    "solved",
    "lambda_rows",
    "lambda_bad_rows",
    "lambda_events",
    "lambda_flips",
    "lambda_misspelt",
]

seeds = st.integers(0, 2**32 - 1)


def compare_cell(sums: Sums, cell: Cell) -> None:
    assert {name: sums[name] for name in COUNTED} == {name: cell.counts[name] for name in COUNTED}
    assert sums["coverage_rows"] == len(cell.coverage)
    if cell.coverage:
        assert sums.coverage == pytest.approx(sum(cell.coverage) / len(cell.coverage), abs=1e-11)
    assert sums.cost == pytest.approx(float(cell.cost), rel=1e-15, abs=1e-15)
    assert float(sums.exact_solved_cost) == pytest.approx(float(cell.solved_cost), rel=1e-15, abs=1e-15)
    assert float(sums.exact_square) == pytest.approx(float(cell.square), rel=1e-15, abs=1e-18)
    for digest, values in ((sums.delta_s, cell.delta_s), (sums.latency, cell.latency)):
        assert digest.exact
        assert np.frombuffer(digest.dump()[-1], "<f8").tolist() == values
        if values:
            for q in (0.5, 0.95):
                assert digest.quantile(q) == pytest.approx(quantile(values, q), rel=1e-12, abs=1e-12)
    states = {1: True, 2: False}
    assert {
        group: {run: states[runs >> 2 * run & 3] for run in range(6) if runs >> 2 * run & 3}
        for group, runs in sums.groups.items()
    } == cell.groups
    found = {tuple(sorted(json.loads(pins).items())): [seen.count, seen.first[2]] for pins, seen in sums.pins.items()}
    assert found == cell.pins
    assert set(sums.sticky.ids.tolist()) == cell.sticky
    assert set(sums.requests.ids.tolist()) == cell.requests


def compare_panes(partials: Iterable[Partial], model: Partition, partition: int) -> None:
    previous, found = None, {}
    for partial in partials:
        assert partial.partition == partition
        if previous is not None:
            assert partial.previous == previous + 1
            assert partial.pane > previous
        previous = partial.pane
        found[partial.pane] = partial
    assert {pane for pane, p in found.items() if p.units} == set(model.panes)
    assert {pane: p.dead_letters for pane, p in found.items() if p.dead_letters} == {
        # Where nothing came before it, a dead letter counts in the pane of the closing tick, which stays open.
        pane: count
        for pane, count in model.dead.items()
        if count and (previous is None or pane <= previous)
    }
    for pane, units in model.panes.items():
        assert set(found[pane].units) == set(units)
        for unit, seen in units.items():
            compare_unit(found[pane].units[unit], seen, pane, model)


def test_what_counts_for_no_unit_goes_along_with_the_pane_it_came_in() -> None:
    """Whatever its own time, and the same however the records are cut; a tick is no event."""
    log = [
        record(event_id="1"),
        record(event_id="2", flag="mistyped"),
        record(event_id="3", flag="mistyped", ts=NOON - 10 * PANE),
        record(event_id="4", source="warmup"),
        tick(NOON + PANE),
        record(event_id="5", flag="narrow", region="nowhere", ts=NOON),
        tick(NOON + 9 * PANE),
    ]
    cuts = [[Run(n, [value]) for n, value in enumerate(log)], [Run(0, log)]]
    one, other = (
        [partial for run in runs for partial in state.step(run).partials]
        for runs, state in [(cut, fresh(0)) for cut in cuts]
    )
    everything = "region, tenant, endpoint, cohort, surface"
    left = {partial.pane - FIRST_PANE: partial.left for partial in one if partial.left}
    assert left == {
        0: LeftOut(warmup=1, unknown={"mistyped": 2}),
        1: LeftOut(outside={everything: 1}),
    }
    assert [partial_codec.dump(partial) for partial in one] == [partial_codec.dump(partial) for partial in other]


@pytest.mark.parametrize("later", [[], [NOON + 10**9]], ids=["no other", "another one"])
def test_before_the_first_manifest_is_in_force_nothing_counts_whatever_comes_later(later: list[int]) -> None:
    """Whether or not a further revision is known yet: a worker's bytes are those of a later replay."""
    starts = [NOON, *later]
    revisions = [Revision(number, start, flags()) for number, start in enumerate(starts, 1)]
    table = EventClasses(Timeline(revisions))
    log = [
        record(event_id="1", ts=NOON - 1),
        record(event_id="2", ts=NOON - 1, flag="mistyped"),
        # The same id again, now in force: it is no repeat of what did not count.
        record(event_id="1", ts=NOON),
        record(event_id="3", ts=NOON),
        tick(NOON + 9 * PANE),
    ]
    total = SourcePartition.fresh(0, CLOCKWORK, table).step(Run(0, log))
    assert (total.accepted, total.duplicates) == (2, 0)
    assert total.left == LeftOut(early=2)


def test_of_very_many_unknown_flags_the_first_are_named() -> None:
    log = [record(event_id=str(n), flag=f"f{n}") for n in range(UNKNOWN_MAX + 5)]
    (found,) = (
        partial.left for partial in fresh(0).step(Run(0, [*log, tick(NOON + 9 * PANE)])).partials if partial.left
    )
    assert (list(found.unknown), found.unnamed) == ([f"f{n}" for n in range(UNKNOWN_MAX)], 5)
    assert found.unknown_flag == UNKNOWN_MAX + 5


def compare_labels(labels: Labels, told: list[dict[str, Any]], arm: str, model: Partition) -> None:
    """What each label says, one by one."""
    names = ("request", "offset", "delta_s", "coverage", "query", "run")
    assert labels.count == len(told)
    assert labels.names == ([event["labels_event_id"] for event in told] if arm == "canary" else [])
    for row, event in zip(labels.table, told, strict=True):
        state = event.get("lambda_state")
        tagged = all(name in event for name in ("query_id", "paraphrase", "seed"))
        expected = (
            hashed(event["labels_event_id"]),
            event["offset"],
            event.get("delta_s", math.nan),
            event.get("coverage", math.nan),
            hashed(event["query_id"]) if tagged else 0,
            (event["paraphrase"] - 1) * 2 + event["seed"] - 1 if tagged else -1,
        )
        assert [row[name] for name in names] == pytest.approx(list(expected), rel=0, abs=0, nan_ok=True)
        said = {name for bit, name in enumerate(SPOKEN) if row["spoken"] >> bit & 1}
        counts = Cell()
        if state is not None:
            model.note_state(event, counts)
        expected_bits = {name for name in SPOKEN if counts.counts[name]}
        expected_bits |= {"solved_rows"} if "solved" in event else set()
        expected_bits |= {"solved"} if event.get("solved") else set()
        assert said == expected_bits
        assert tuple(sorted(json.loads(labels.pins[row["pins"]]).items())) == model.pins(event)


def compare_unit(unit: Any, seen: Seen, pane: int, model: Partition) -> None:
    assert (unit.late, unit.duplicates) == (seen.late, seen.duplicates)
    cells = {(arm, source): sums for arm, kept in unit.arms.items() for source, sums in kept.sources.items()}
    assert set(cells) == set(seen.cells)
    for key, sums in cells.items():
        compare_cell(sums, seen.cells[key])
        assert all(pins.first[0] == pane for pins in sums.pins.values())
    labels = {(arm, source): each for arm, kept in unit.labels.items() for source, each in kept.items()}
    assert set(labels) == set(seen.labels)
    for (arm, source), told in seen.labels.items():
        compare_labels(labels[arm, source], told, arm, model)
    if seen.offsets:
        assert (unit.offsets.first, unit.offsets.last) == (min(seen.offsets), max(seen.offsets))
    else:
        assert unit.offsets is None


@settings(max_examples=120, deadline=None)
@given(seed=seeds, length=st.integers(0, 150), stamped=st.booleans())
def test_what_the_columns_count_is_what_one_event_after_the_other_counts(seed: int, length: int, stamped: bool) -> None:
    """Panes, late, duplicates, dead letters, watermark and every value of a random log equal the slow model's."""
    rng = random.Random(seed)
    log = [*draw_log(seed, length), tick(NOON + 10**9)]
    first = rng.choice([0, 7, 10**12])
    stamps = [NOON + rng.choice([-60_000, -55_000, 0, 10**10]) if rng.random() < 0.5 else -1 for _ in log]
    stamps[-1] = -1
    model = Partition(MANIFEST, PANE, LATENESS)
    for row, value in enumerate(log):
        model.take(first + row, value, stamps[row] if stamped else -1)

    state, total = fresh(first, partition=3), Step()
    for run in draw_runs(rng, log, stamps if stamped else None):
        total.add(state.step(Run(first + run.first, run.values, run.timestamps)))

    compare_panes(total.partials, model, partition=3)
    assert total.late == model.late_offsets
    assert [offset for offset, _ in total.dead] == model.dead_offsets
    assert all(error for _, error in total.dead)
    assert (total.accepted, total.duplicates) == (model.accepted, model.duplicates)
    left = total.left
    assert (left.warmup, left.outside, left.unknown, left.unnamed) == (model.warmup, model.outside, model.unknown, 0)
    assert state.watermark == NOON + 10**9 - LATENESS
    still_open = [pane for pane, count in model.dead.items() if count and pane > total.partials[-1].pane]
    assert (state.next, state.open_panes) == (first + len(log), len(still_open))


@settings(max_examples=40, deadline=None)
@given(seed=seeds, length=st.integers(1, 200))
def test_a_restore_at_any_point_and_any_cut_gives_the_same_partials(seed: int, length: int) -> None:
    """State and position are one; what was dumped and loaded goes on to the same bytes, with a cold cache too."""
    log = [*draw_log(seed, length), tick(NOON + 10**9)]
    expected = [content(p) for p in fresh().step(Run(0, log)).partials]

    rng = random.Random(seed)
    state, found = fresh(), []
    for run in draw_runs(rng, log):
        found += [content(p) for p in state.step(run).partials]
        if rng.random() < 0.3:
            state = SourcePartition.load(state.dump(), 0, CLOCKWORK, EventClasses(Timeline.of(flags())))
    assert found == expected


def test_partials_that_are_sent_again_are_the_same_bytes() -> None:
    """After a crash a partition reads on from its checkpoint in other portions, and says the same."""
    log = [*draw_log(0, 150), tick(NOON + 10**6)]
    expected = [partial_codec.dump(p) for p in fresh().step(Run(0, log)).partials]
    state = fresh()
    found = [partial_codec.dump(p) for run in draw_runs(random.Random(0), log) for p in state.step(run).partials]
    assert found == expected


class TestWatermark:
    def test_it_is_the_largest_ts_minus_lateness_in_offset_order(self) -> None:
        state = fresh()
        assert state.watermark is None
        state.step(Run(0, [tick(NOON + 5), tick(NOON)]))
        assert state.watermark == NOON + 5 - LATENESS

    @pytest.mark.parametrize(
        "moves",
        [
            {},
            {"source": "warmup"},
            {"flag": "nobody's"},
            {"flag": "narrow", "tenant": "gamma"},
            {"kind": "exposure"},
            {"source": "shadow"},
        ],
    )
    def test_every_valid_record_moves_it(self, moves: dict[str, Any]) -> None:
        """Also warm-up, out of scope and of unknown flags."""
        state = fresh()
        state.step(Run(0, [record(ts=NOON + 7, **moves)]))
        assert state.watermark == NOON + 7 - LATENESS

    def test_a_duplicate_and_a_late_event_are_valid_records(self) -> None:
        state = fresh()
        state.step(Run(0, [record(ts=NOON), record(ts=NOON + 3)]))
        assert state.watermark == NOON + 3 - LATENESS

    @pytest.mark.parametrize("dead", [None, b"x", record(ts=NOON + 99, cost=-1), record(ts=NOON + 99, arm=None)])
    def test_a_dead_letter_does_not_move_it(self, dead: bytes | None) -> None:
        state = fresh()
        state.step(Run(0, [tick(NOON), dead]))
        assert state.watermark == NOON - LATENESS

    def test_an_event_from_the_future_does_not_move_it(self) -> None:
        """A ts more than 60 s ahead of the record's own timestamp is dead-lettered."""
        state = fresh()
        state.step(Run(0, [tick(NOON), tick(NOON + 60_001)], [NOON, NOON]))
        assert state.watermark == NOON - LATENESS


class TestClosing:
    def test_a_pane_closes_when_the_watermark_reaches_its_end(self) -> None:
        """Not a millisecond earlier."""
        end = NOON + PANE
        state = fresh()
        assert [p.pane for p in state.step(Run(0, [record(), tick(end + LATENESS - 1)])).partials if p.units] == []
        assert [p.pane for p in state.step(Run(2, [tick(end + LATENESS)])).partials if p.units] == [FIRST_PANE]

    def test_panes_are_aligned_to_the_epoch(self) -> None:
        partials = partials_of([record(event_id="a", ts=NOON - 1), record(event_id="b")])
        assert [p.pane for p in partials if p.units] == [FIRST_PANE - 1, FIRST_PANE]

    @pytest.mark.parametrize(("pane", "lateness"), [(1, 0), (100, 0), (7, 1_000), (3_600_000, 1)])
    def test_pane_and_lateness_are_settings(self, pane: int, lateness: int) -> None:
        clockwork = Clockwork(pane, lateness, "t")
        state = SourcePartition.fresh(
            0, clockwork, EventClasses(Timeline.of(flags(MANIFEST.replace("30s", "1h").replace("20s", "1h"))))
        )
        end = (NOON // pane + 1) * pane
        assert not [p for p in state.step(Run(0, [record(), tick(end + lateness - 1)])).partials if p.units]
        assert [p.pane for p in state.step(Run(2, [tick(end + lateness)])).partials if p.units] == [NOON // pane]

    def test_panes_close_in_order_and_say_where_the_one_before_ended(self) -> None:
        """A leap over empty panes costs one partial, not one a pane."""
        values = [record(event_id="a"), record(event_id="b", ts=NOON + 3 * PANE), tick(NOON + 10**12)]
        partials = fresh().step(Run(0, values)).partials
        assert [p.pane for p in partials if p.units] == [FIRST_PANE, FIRST_PANE + 3]
        assert all(b.previous == a.pane + 1 for a, b in pairwise(partials))
        assert len(partials) < 6

    def test_an_event_ahead_of_time_waits_in_its_own_pane(self) -> None:
        state = fresh()
        state.step(Run(0, [record(event_id="ahead", ts=NOON + 50_000), record(event_id="now", ts=NOON + 40_000)]))
        assert state.open_panes == 2


class TestLate:
    def late(self, *values: bytes) -> tuple[list[int], list[Partial]]:
        result = fresh().step(Run(0, [*values, tick(NOON + 10**9)]))
        return result.late, result.partials

    def test_an_event_whose_pane_is_closed_is_late_and_never_added(self) -> None:
        """It is counted in its unit, at the pane of the partition's largest ts."""
        now = NOON + PANE + LATENESS
        late, partials = self.late(record(event_id="a"), tick(now), record(event_id="b", ts=NOON + PANE - 1))
        assert late == [2]
        by_pane = {p.pane: p.units["wide|"] for p in partials if p.units}
        assert by_pane[FIRST_PANE].accepted == 1
        assert (by_pane[now // PANE].late, by_pane[now // PANE].accepted) == (1, 0)

    def test_an_event_in_a_pane_still_open_is_not_late_however_old(self) -> None:
        late, _ = self.late(tick(NOON + PANE + LATENESS), record(ts=NOON + PANE))
        assert late == []

    def test_the_pane_an_event_closes_by_itself_is_closed_for_the_next(self) -> None:
        """Within one run too: the watermark moves with each record."""
        late, _ = self.late(record(event_id="a", ts=NOON + PANE + LATENESS), record(event_id="b", ts=NOON))
        assert late == [1]

    def test_the_same_id_after_its_pane_closed_is_late_and_not_a_duplicate(self) -> None:
        result = fresh().step(Run(0, [record(), tick(NOON + PANE + LATENESS), record()]))
        assert (result.late, result.duplicates) == ([2], 0)

    @pytest.mark.parametrize("nothing", [{"source": "warmup"}, {"flag": "nobody's"}, {"flag": "narrow"}])
    def test_what_counts_for_nothing_is_not_late_either(self, nothing: dict[str, str]) -> None:
        late, partials = self.late(tick(NOON + 10**6), record(**nothing))
        assert late == []
        assert not any(p.units for p in partials)


class TestDuplicates:
    def test_the_same_id_while_its_pane_is_open_is_dropped_and_counted(self) -> None:
        unit = unit_of(record(latency_ms=1), record(latency_ms=2), record(latency_ms=3))
        assert (unit.accepted, unit.duplicates) == (1, 2)
        assert sums_of(record(latency_ms=1), record(latency_ms=2)).latency.quantile(1) == 1

    def test_it_is_the_id_that_counts_and_not_what_the_event_says(self) -> None:
        unit = unit_of(record(), record(arm="baseline", sticky_id="other"))
        assert (unit.accepted, unit.duplicates) == (1, 1)

    def test_an_id_whose_pane_closed_may_come_again(self) -> None:
        """With a new ts in an open pane it is a new event."""
        result = fresh().step(Run(0, [record(), tick(NOON + PANE + LATENESS), record(ts=NOON + PANE + LATENESS)]))
        assert (result.accepted, result.duplicates, result.late) == (2, 0, [])

    def test_the_memory_of_ids_ends_with_their_pane(self) -> None:
        """What is remembered is bounded by the open panes."""
        state, sizes = fresh(), []
        for pane in range(20):
            values = [record(event_id=f"{pane}/{i}", ts=NOON + pane * PANE) for i in range(50)]
            state.step(Run(state.next, values))
            sizes.append(len(state.dump()))
        assert max(sizes[10:]) <= max(sizes[:10]) + 100

    def test_an_id_is_remembered_over_a_restore(self) -> None:
        state = fresh()
        state.step(Run(0, [record()]))
        again = SourcePartition.load(state.dump(), 0, CLOCKWORK, EventClasses(Timeline.of(flags())))
        assert again.step(Run(1, [record()])).duplicates == 1

    def test_they_change_no_offsets(self) -> None:
        """``source`` offsets are those of accepted events."""
        unit = unit_of(record(event_id="a"), record(event_id="b"), record(event_id="a"))
        assert (unit.offsets.first, unit.offsets.last) == (0, 1)  # type: ignore[union-attr]


class TestDeadLetters:
    def dead_by_pane(self, *values: bytes | None) -> dict[int, int]:
        return {p.pane: p.dead_letters for p in partials_of(list(values)) if p.dead_letters}

    def test_they_count_in_the_pane_of_the_largest_ts_at_their_offset(self) -> None:
        values = [record(), b"x", tick(NOON + PANE), b"x", None, tick(NOON), b"x"]
        assert self.dead_by_pane(*values) == {FIRST_PANE: 1, FIRST_PANE + 1: 3}

    def test_those_before_any_time_is_known_count_with_the_first(self) -> None:
        assert self.dead_by_pane(b"x", None, record(ts=NOON + PANE)) == {FIRST_PANE + 1: 2}

    def test_one_that_no_record_follows_stays_in_the_state(self) -> None:
        state = fresh()
        assert state.step(Run(0, [b"x"])).partials == []
        again = SourcePartition.load(state.dump(), 0, CLOCKWORK, EventClasses(Timeline.of(flags())))
        partials = again.step(Run(1, [tick(NOON), tick(NOON + 10**6)])).partials
        assert sum(p.dead_letters for p in partials) == 1

    def test_their_offsets_and_errors_are_told(self) -> None:
        result = fresh(5).step(Run(5, [b"x", record(), record(event_id="b", arm="other")]))
        assert [offset for offset, _ in result.dead] == [5, 7]
        assert "arm" in result.dead[1][1]


class TestOrder:
    def test_records_that_are_missing_stop_the_partition(self) -> None:
        state = fresh()
        with pytest.raises(HoleError, match=r"records 0 to 2 of partition 0 are missing"):
            state.step(Run(3, [record()]))
        with pytest.raises(HoleError, match=r"records 0 to 1 of partition 0 are missing"):
            state.step(Run(3, [record()], since=2))

    def test_offsets_that_the_log_itself_does_not_have_are_passed(self) -> None:
        """Those of transactions and of compacted records; the records keep theirs."""
        state = fresh()
        state.step(Run(3, [record(), b"x"], since=0, until=9))
        assert state.next == 9
        assert [offset for offset, _ in state.step(Run(11, [b"x"], since=9)).dead] == [11]
        state.step(Run(14, [], since=12))
        assert state.next == 14
        before = state.dump()
        state.step(Run(3, [record(), b"x"], since=0, until=9))
        assert state.dump() == before

    def test_records_that_were_seen_are_skipped(self) -> None:
        """A run that overlaps counts only what is new; one that is all old changes nothing."""
        state = fresh()
        log: list[bytes | None] = [record(event_id=str(i)) for i in range(6)]
        state.step(Run(0, log[:4]))
        before = state.dump()
        assert state.step(Run(0, log[:3])).accepted == 0
        assert state.dump() == before
        result = state.step(Run(2, log[2:]))
        assert (result.accepted, result.duplicates, state.next) == (2, 0, 6)

    def test_an_empty_run_changes_nothing(self) -> None:
        state = fresh()
        assert state.step(Run(0, [])).partials == []
        assert state.next == 0

    def test_timestamps_stay_with_their_records_when_some_are_skipped(self) -> None:
        state = fresh()
        state.step(Run(0, [tick(NOON), tick(NOON)]))
        result = state.step(Run(0, [tick(NOON), tick(NOON), tick(NOON + 60_001)], [0, 0, NOON]))
        assert [offset for offset, _ in result.dead] == [2]


class TestState:
    def test_bytes_that_are_no_state_are_refused(self) -> None:
        for blob in (b"", b"\x00", b"\xff" * 40, fresh().dump()[:-1]):
            with pytest.raises(StateError, match="partition 0"):
                SourcePartition.load(blob, 0, CLOCKWORK, EventClasses(Timeline.of(flags())))

    @pytest.mark.parametrize(
        ("partition", "clockwork"),
        [(1, CLOCKWORK), (0, Clockwork(PANE, 0, "t")), (0, Clockwork(PANE * 2, LATENESS, "t"))],
    )
    def test_a_state_of_other_settings_is_refused_with_the_way_out(self, partition: int, clockwork: Clockwork) -> None:
        with pytest.raises(StateError, match="old settings or start a new application id"):
            SourcePartition.load(fresh().dump(), partition, clockwork, EventClasses(Timeline.of(flags())))

    def test_ids_that_collide_in_no_way_share_the_table(self) -> None:
        """Partitions of one process may share a table, and it may be emptied at any time."""
        table = EventClasses(Timeline.of(flags()))
        log = draw_log(11, 400)
        expected = [content(p) for p in partials_of(log)]
        one = SourcePartition.fresh(0, CLOCKWORK, table)
        other = SourcePartition.fresh(1, CLOCKWORK, table)
        found = []
        for run in draw_runs(random.Random(5), [*log, tick(NOON + 10**6)]):
            found += [content(p) for p in one.step(run).partials]
            other.step(run)
            if run.first % 3 == 0:
                table.clear()
        assert found == expected


class TestDigestsBeyondTheExactRange:
    @pytest.mark.parametrize("n", [511, 512, 513, 1_500])
    def test_quantiles_stay_within_half_a_point_of_rank(self, n: int) -> None:
        """Exact up to 512 values, rank error ≤ 0.5 points beyond."""
        rng = random.Random(n)
        values = [rng.lognormvariate(5, 1) for _ in range(n)]
        records = [record(event_id=str(i), latency_ms=value) for i, value in enumerate(values)]
        digest = sums_of(*records).latency
        assert digest.count == n
        for q in (0.5, 0.95):
            answer = digest.quantile(q)
            assert answer is not None
            if n <= 512:
                assert answer == pytest.approx(quantile(values, q), rel=1e-12)
            else:
                assert abs(sum(v <= answer for v in values) / n - q) <= 0.005 + 1 / n


def test_a_unit_whose_names_fit_into_no_record_counts_as_dead_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """So its windows are unstable and nothing is promoted; units beside it are as they were."""
    monkeypatch.setattr(panes, "UNIT_BYTES", 2_000)
    hostile = [record(event_id=f"e{i}", region="x", versions={"MODEL_VER": f"{i}" * 100}) for i in range(30)]
    partial = next(p for p in partials_of([*hostile, record(event_id="fine", region="y")]) if p.units)
    large, small = partial.units["wide|x"], partial.units["wide|y"]
    assert (large.accepted, small.accepted, partial.dead_letters) == (0, 1, 0)
    assert (large.dead_letters, small.dead_letters) == (30, 0)


class TestRegions:
    """A flag that names no regions takes up as many as it is shown, within bounds."""

    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(panes, "REGIONS_MAX", 2)

    def log(self) -> list[bytes]:
        """Three regions beyond the bound, each also late and in a later pane, and a flag that names its regions."""
        shown = [("r1", 0), ("r2", 0), ("r3", 0), ("r1", 0), ("r4", PANE), ("r2", PANE), ("r5", 5 * PANE), ("r3", 0)]
        records = [record(event_id=f"{n}", region=region, ts=NOON + at) for n, (region, at) in enumerate(shown)]
        named = {"flag": "narrow", "tenant": "acme", "endpoint": "/a", "cohort": "c1", "surface": "web"}
        records += [
            record(event_id=f"n{region}", region=region, ts=NOON + 5 * PANE, **named) for region in ("eu", "us")
        ]
        return [*records, record(event_id="last", region="r2", ts=NOON + 5 * PANE), tick(ts=NOON + 8 * PANE)]

    def test_those_that_came_first_stay_and_events_of_others_are_dead_letters(self) -> None:
        step = fresh().step(Run(0, self.log()))
        seen = {
            partial.pane - FIRST_PANE: (
                {unit: pane.accepted for unit, pane in partial.units.items()},
                partial.dead_letters,
            )
            for partial in step.partials
            if partial.units or partial.dead_letters
        }
        # They name their units, which nobody has: they count for none.
        assert seen == {
            0: ({"wide|r1": 2, "wide|r2": 1}, 0),
            1: ({"wide|r2": 1}, 0),
            5: ({"narrow|eu": 1, "narrow|us": 1, "wide|r2": 1}, 0),
        }
        assert [offset for offset, _ in step.dead] == [2, 4, 6, 7]
        assert all("scope.regions" in error for _, error in step.dead)
        assert step.late == []

    @given(cuts=st.sets(st.integers(1, 11)), saved=st.integers(0, 12))
    def test_cuts_and_restarts_do_not_matter(self, cuts: set[int], saved: int) -> None:
        log = self.log()
        whole, state, pieces = fresh().step(Run(0, log)), fresh(), Step()
        for first, end in pairwise([0, *sorted(cuts | {saved} - {0}), len(log)]):
            pieces.add(state.step(Run(first, log[first:end])))
            if end == saved:
                state = SourcePartition.load(state.dump(), 0, CLOCKWORK, EventClasses(Timeline.of(flags())))
        assert [content(partial) for partial in pieces.partials] == [content(partial) for partial in whole.partials]
        assert pieces.dead == whole.dead
