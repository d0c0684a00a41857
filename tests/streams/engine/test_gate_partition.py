"""From partials to decisions: units, windows and the global watermark of the contract's section 3."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streams.events import (
    CLOCKWORK,
    LATENESS,
    MANIFEST,
    NOON,
    PANE,
    RAMP,
    draw_log,
    draw_runs,
    flags,
    fresh,
    healthy_pane,
    partials_of,
    record,
    tick,
    written,
)
from tests.streams.reference import SIX, Cell, Partition, Seen, hashed, quantile
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import Command, Decision
from tidegate.schemas.errors import HoleError, StateError
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine import gate_log
from tidegate.streams.engine.gate_log import Partial, gate_of, partial_codec, pieces, split
from tidegate.streams.engine.gate_partition import GatePartition
from tidegate.streams.engine.pipeline import Pipeline
from tidegate.streams.engine.runs import NEVER, Run
from tidegate.streams.engine.source_partition import SourcePartition

Outcome = tuple[Decision, Command | None]
SERVED = ("traffic", "gold")


def decided(*logs: list[bytes | None], text: str = MANIFEST) -> list[Outcome]:
    """What follows from the logs of all partitions."""
    pipeline = Pipeline(Timeline.of(flags(text)), len(logs), CLOCKWORK)
    return [outcome for p, log in enumerate(logs) for outcome in pipeline.step(p, Run(0, log))]


def decisions(*logs: list[bytes | None], text: str = MANIFEST) -> list[Decision]:
    return [decision for decision, _ in decided(*logs, text=text)]


# -- the slow model ---------------------------------------------------------------------------------------------------


class Heard:
    """The labels of a unit that never leaves its first stage, pane by pane: those that count, and how many do not."""

    def __init__(self, unit: str, start: int, closed: int, partitions: list[Partition]) -> None:
        flag = flags()[unit.split("|")[0]]
        self.start, self.known = start, set[tuple[str, str, int]]()
        self.locked = {"canary": dict(flag.versions), "baseline": dict(flag.baseline_versions)}
        self.counting: dict[int, list[tuple[str, str, dict[str, Any]]]] = {}
        self.foreign: Counter[tuple[int, str]] = Counter()
        reach = (2 * flag.window.length_ms + flag.window.settle_ms) // PANE
        for pane in range(start, closed):
            seen = [(partition, partition.panes.get(pane, {}).get(unit, Seen())) for partition in partitions]
            for partition, its in seen:
                self.note_requests(its)
                self.note_late([e for e in its.behind if e["ts"] // PANE >= max(start, pane - reach)])
                assert partition.pane_ms == PANE
            for partition, its in seen:
                for (arm, source), labels in its.labels.items():
                    for event in labels:
                        pins = dict(partition.pins(event))
                        own = pins == self.locked[arm] and all(name in pins for name in SIX)
                        if own or (arm, source, hashed(event["labels_event_id"])) in self.known:
                            self.counting.setdefault(pane, []).append((arm, source, event))
                        else:
                            self.foreign[pane, arm] += 1

    def note_requests(self, seen: Seen) -> None:
        """Remember whose requests they are, and lock the pins that were seen first."""
        for (arm, source), cell in seen.cells.items():
            self.known |= {(arm, source, request) for request in cell.requests}
        sets = [(offset, arm, pins) for (arm, _), cell in seen.cells.items() for pins, (_, offset) in cell.pins.items()]
        for _, arm, pins in sorted(sets):
            for name, pin in pins:
                self.locked[arm].setdefault(name, pin)

    def note_late(self, events: list[dict[str, Any]]) -> None:
        """A request that came late is the stage's as well, in no sum."""
        for event in events:
            if event["kind"] == "request":
                self.known.add((event["arm"], event.get("source", "traffic"), hashed(event["event_id"])))


class Span:
    """One window of one unit: the sum of its panes over all partitions."""

    def __init__(self, unit: str, start: int, end: int, partitions: list[Partition], heard: Heard) -> None:
        self.unit, self.start, self.end = unit, start, end
        self.words = [word for pane in range(start, end) for word in heard.counting.get(pane, ())]
        self.foreign = {arm: sum(heard.foreign[p, arm] for p in range(start, end)) for arm in ("canary", "baseline")}
        self.spell = partitions[0].note_state
        self.seen: list[tuple[int, Seen]] = [
            (number, partition.panes.get(pane, {}).get(unit, Seen()))
            for pane in range(start, end)
            for number, partition in enumerate(partitions)
        ]
        self.dead = sum(seen.dead for _, seen in self.seen)
        for partition in partitions:
            dead, records = (sum(found[p] for p in range(start, end)) for found in (partition.dead, partition.records))
            self.dead += dead if dead > 0.01 * (dead + records) else 0

    def cells(self, arm: str, *sources: str) -> list[Cell]:
        return [seen.cells[arm, s] for s in sources for _, seen in self.seen if (arm, s) in seen.cells]

    def count(self, arm: str, name: str, *sources: str) -> int:
        return sum(cell.counts[name] for cell in self.cells(arm, *sources))

    def said(self, arm: str, *sources: str) -> list[dict[str, Any]]:
        return [event for of, source, event in self.words if of == arm and source in sources]

    def check(self, found: Decision) -> None:
        assert (found.late, found.duplicates) == (
            sum(seen.late for _, seen in self.seen),
            sum(seen.duplicates for _, seen in self.seen),
        )
        assert found.dead_letters == self.dead
        offsets: dict[int, list[int]] = {}
        for number, seen in self.seen:
            offsets.setdefault(number, []).extend(seen.offsets)
        assert [(s.partition, s.first, s.last) for s in found.source] == [
            (number, min(taken), max(taken)) for number, taken in sorted(offsets.items()) if taken
        ]
        for arm in ("canary", "baseline"):
            self.check_arm(found.arms[arm], arm, "gold" if self.unit.startswith("narrow|") else "traffic")

    def check_arm(self, found: Any, arm: str, quality: str) -> None:
        for name in ("requests", "errors", "rate_limited", "exposures", "tool_calls", "tool_ok", "cost_rows"):
            assert getattr(found, name) == self.count(arm, name, *SERVED), name
        solved = sum(bool(event.get("solved")) for event in self.said(arm, *SERVED))
        assert found.solved == self.count(arm, "solved", *SERVED) + solved
        labels = len(self.said(arm, "traffic", "gold", "shadow"))
        assert (found.labels, found.labels_foreign, found.labels_not_followed) == (labels, self.foreign[arm], 0)
        for source in ("traffic", "gold", "shadow"):
            assert getattr(found, source) == self.count(arm, "requests", source)
        assert found.quality_source == quality
        latency = [v for cell in self.cells(arm, *SERVED) for v in cell.latency]
        delta_s = [v for cell in self.cells(arm, quality) for v in cell.delta_s]
        coverage = [v for cell in self.cells(arm, quality) for v in cell.coverage]
        delta_s += [event["delta_s"] for event in self.said(arm, quality) if "delta_s" in event]
        coverage += [event["coverage"] for event in self.said(arm, quality) if "coverage" in event]
        assert (found.delta_s_rows, found.coverage_rows) == (len(delta_s), len(coverage))
        for p50, p95, values in (
            (found.latency_p50, found.latency_p95, latency),
            (found.delta_s_p50, found.delta_s_p95, delta_s),
        ):
            if not values:
                assert (p50, p95) == (None, None)
            else:
                assert [p50, p95] == pytest.approx([quantile(values, 0.5), quantile(values, 0.95)], rel=1e-9, abs=1e-9)
        if coverage:
            assert found.coverage_mean == pytest.approx(sum(coverage) / len(coverage), abs=1e-9)
        else:
            assert found.coverage_mean is None
        assert found.cost == pytest.approx(float(sum(cell.cost for cell in self.cells(arm, *SERVED))), abs=1e-9)
        groups: dict[int, dict[int, bool]] = {}
        words = Cell()
        for event in self.said(arm, quality):
            if "lambda_state" in event:
                self.spell(event, words)
        for cell in [*self.cells(arm, quality), words]:
            for group, runs in cell.groups.items():
                kept = groups.setdefault(group, {})
                for run, converged in runs.items():
                    kept[run] = kept.get(run, True) and converged
        complete = [runs for runs in groups.values() if len(runs) == 6]
        assert (found.lambda_groups, found.lambda_complete) == (len(groups), len(complete))
        assert found.lambda_convergent == sum(all(runs.values()) for runs in complete)


def expected_spans(partitions: list[Partition]) -> Iterator[Span]:
    """Windows follow one another from the pane of a unit's earliest accepted event, up to the global watermark."""
    ends = [partition.closed for partition in partitions]
    closed = min(-1 if end is None else end for end in ends)
    lengths = {
        name: int(flag["window"]["length"][:-1]) * 1000 for name, flag in yaml.safe_load(MANIFEST)["flags"].items()
    }
    starts: dict[str, int] = {}
    for partition in partitions:
        for pane, units in partition.panes.items():
            for unit, seen in units.items():
                if seen.offsets and pane < closed:
                    starts[unit] = min(pane, starts.get(unit, pane))
    spans = []
    for unit, start in starts.items():
        length = lengths[unit.split("|")[0]] // PANE
        heard = Heard(unit, start, closed, partitions)
        spans += [Span(unit, at, at + length, partitions, heard) for at in range(start, closed - length + 1, length)]
    yield from sorted(spans, key=lambda span: (span.end, span.unit))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    ended=st.booleans(),
)
def test_every_window_of_every_unit_is_decided_on_its_own_events(seed: int, lengths: list[int], ended: bool) -> None:
    """Spans, counts, values, late, duplicates, dead letters and offsets of random logs equal the slow model's."""
    logs = [draw_log(seed + p, n) + ([tick(NOON + 300_000)] if ended else []) for p, n in enumerate(lengths)]
    partitions = [Partition(MANIFEST, PANE, LATENESS) for _ in logs]
    for partition, log in zip(partitions, logs, strict=True):
        for offset, value in enumerate(log):
            partition.take(offset, value)
    found = decisions(*logs)
    spans = list(expected_spans(partitions))
    assert [(f"{d.flag}|{d.region}", d.window.start, d.window.end) for d in found] == [
        (span.unit, span.start * PANE, span.end * PANE) for span in spans
    ]
    for decision, span in zip(found, spans, strict=True):
        assert decision.window.closed
        assert decision.decided_at == decision.window.end
        span.check(decision)


# -- one sentence a test ----------------------------------------------------------------------------------------------


def spans(found: list[Decision]) -> list[tuple[str, int, int]]:
    """Region, and window in panes after noon."""
    return [(d.region, (d.window.start - NOON) // PANE, (d.window.end - NOON) // PANE) for d in found]


END = tick(NOON + 60_000 + LATENESS)


class TestFirstWindow:
    def test_it_starts_at_the_pane_of_the_earliest_accepted_event(self) -> None:
        """Over all partitions, whichever comes first."""
        one: list[bytes | None] = [record(event_id="a", ts=NOON + 10_001), END]
        other: list[bytes | None] = [record(event_id="b", ts=NOON + 19_000), record(event_id="c", ts=NOON + 9_999), END]
        assert spans(decisions(one, other)) == spans(decisions(other, one)) == [("", 0, 3), ("", 3, 6)]

    @pytest.mark.parametrize("nothing", [{"source": "warmup"}, {"flag": "nobody's"}, {"kind": "tick"}])
    def test_what_counts_for_nothing_starts_nothing(self, nothing: dict[str, str]) -> None:
        """Warm-up starts nothing."""
        log: list[bytes | None] = [record(event_id="a", **nothing), record(event_id="b", ts=NOON + 30_000), END]
        assert spans(decisions(log)) == [("", 3, 6)]

    def test_dead_letters_and_late_events_start_nothing(self) -> None:
        log: list[bytes | None] = [tick(NOON + 50_000), b"x", record(ts=NOON), tick(NOON + 10**6)]
        assert decisions(log) == []

    @pytest.mark.parametrize("something", [{"kind": "exposure"}, {"source": "shadow"}, {"source": "gold"}])
    def test_any_other_accepted_event_does(self, something: dict[str, str]) -> None:
        log: list[bytes | None] = [record(event_id="a", **something), record(event_id="b", ts=NOON + 30_000), END]
        assert spans(decisions(log)) == [("", 0, 3), ("", 3, 6)]

    def test_each_region_is_a_unit_with_windows_of_its_own(self) -> None:
        log: list[bytes | None] = [
            record(event_id="a", region="eu"),
            record(event_id="b", region="us", ts=NOON + 20_000),
            END,
        ]
        assert spans(decisions(log)) == [("eu", 0, 3), ("us", 2, 5), ("eu", 3, 6)]


class TestWindows:
    def test_the_next_begins_where_the_last_ended_also_in_silence(self) -> None:
        log: list[bytes | None] = [record(), tick(NOON + 120_000 + LATENESS)]
        assert spans(decisions(log)) == [("", at, at + 3) for at in range(0, 12, 3)]

    def test_a_window_is_decided_when_the_global_watermark_reaches_its_end(self) -> None:
        """Not a millisecond earlier, and not before the last partition."""
        end = NOON + 30_000 + LATENESS
        assert decisions([record(), tick(end)], [tick(end - 1)]) == []
        assert len(decisions([record(), tick(end)], [tick(end)])) == 1

    def test_a_silent_partition_holds_the_watermark_and_a_tick_releases_it(self) -> None:
        pipeline = Pipeline(Timeline.of(flags()), 2, CLOCKWORK)
        assert list(pipeline.step(0, Run(0, [record(), END, tick(NOON + 500_000)]))) == []
        assert len(list(pipeline.step(1, Run(0, [END])))) == 2

    def test_after_a_promote_the_new_stage_starts_after_lateness_and_settling_on_a_pane(self) -> None:
        """S = E + lateness + settle rounded up to a pane; its windows start there."""
        log = written(healthy_pane(NOON))
        log += [tick(NOON + 20_000 + LATENESS)]
        settled = NOON + 20_000 + 20_000
        log += [*written(healthy_pane(settled)), tick(settled + 20_000 + LATENESS)]
        (first, promote), (second, _) = decided(log, text=RAMP)
        assert (first.verdict, first.window.end) == ("promote", NOON + 20_000)
        assert promote is not None
        assert promote.effective_from == settled
        assert (second.window.start, second.stage.index) == (settled, 1)

    def test_what_comes_between_the_stages_is_in_neither(self) -> None:
        """Panes in [E, S) have sums of their own."""
        between = NOON + 20_000
        log = written(healthy_pane(NOON) + healthy_pane(between))
        log += [*written(healthy_pane(between + 20_000)), tick(NOON + 10**5)]
        first, second = decisions(log, text=RAMP)[:2]
        assert first.arms["canary"].requests == second.arms["canary"].requests == 6

    def test_dead_letters_of_nobody_count_in_every_unit_and_late_events_in_their_own(self) -> None:
        log: list[bytes | None] = [
            record(event_id="a", region="eu"),
            record(event_id="b", region="us"),
            tick(NOON + 25_000),
            b"x",
            record(event_id="c", region="us", ts=NOON),
            tick(NOON + 30_000 + LATENESS),
        ]
        eu, us = decisions(log)
        assert [(d.dead_letters, d.late) for d in (eu, us)] == [(1, 0), (1, 1)]

    def test_a_dead_letter_that_names_its_unit_counts_there_alone(self) -> None:
        """One service's garbage does not hold up the others."""
        log: list[bytes | None] = [
            record(event_id="a", region="eu"),
            record(event_id="b", region="us"),
            record(event_id="c", region="us", latency_ms=-1.0),
            record(event_id="d", region="ap", latency_ms=-1.0),
            record(event_id="e", flag="nobody's", latency_ms=-1.0),
            tick(NOON + 30_000 + LATENESS),
        ]
        eu, us = decisions(log)
        assert [d.dead_letters for d in (eu, us)] == [0, 1]

    @pytest.mark.parametrize(("garbage", "counts"), [(1, 0), (2, 2)])
    def test_garbage_of_nobody_counts_only_where_it_is_more_than_1_percent_of_a_partition(
        self, garbage: int, counts: int
    ) -> None:
        """One in a hundred records of the partition in that window is let be, however small the unit is."""
        log: list[bytes | None] = [record(event_id="small", region="eu")]
        log += [record(event_id=f"{i}", region="us") for i in range(98)]
        log += [b"x"] * garbage
        log.append(tick(NOON + 30_000 + LATENESS))
        assert [d.dead_letters for d in decisions(log)] == [counts, counts]

    def test_an_event_of_the_far_future_costs_a_thousand_records_and_no_more(self) -> None:
        """A unit that hears nothing for 1,000 windows sleeps until its next event, which starts a window."""
        far = NOON + 10**11
        log = [*written(healthy_pane(NOON)), *written(healthy_pane(far)), tick(4_102_444_799_999)]
        found = decisions(log, text=RAMP)
        assert len(found) == 2 * (1 + 1_000)
        assert [d.window.start for d in found if d.arms["canary"].requests] == [NOON, far // PANE * PANE]
        assert {d.verdict for d in found[1:1_001]} == {"hold"}


class TestNumbersAtTheEdge:
    """No metric is ever NaN in a record, whatever finite values the telemetry holds: it is null."""

    @pytest.mark.parametrize(
        ("canary", "baseline"),
        [(1e9, 1e-300), (1.0, 5e-324), (1e9, 1e9), (5e-324, 1e9), (0, 0)],
    )
    @pytest.mark.parametrize("n", [10, 1_500])
    def test_any_finite_latency_can_be_decided_on(self, canary: float, baseline: float, n: int) -> None:
        """A valid event must not stop the gate for good."""
        log: list[bytes | None] = [
            record(event_id=f"{arm}{i}", arm=arm, sticky_id=f"{arm}{i}", latency_ms=latency, flag="f")
            for arm, latency in (("canary", canary), ("baseline", baseline))
            for i in range(n)
        ]
        (decision,) = decisions([*log, tick(NOON + 20_000 + LATENESS)], text=RAMP)
        assert decision.arms["canary"].requests == n
        assert b"null" in decision.to_bytes()

    @pytest.mark.parametrize(("canary", "baseline"), [(1e9, 1e-17), (1e9, 5e-324), (0, 1e9), (0, 0)])
    def test_any_cost_can_be_decided_on(self, canary: float, baseline: float) -> None:
        log: list[bytes | None] = [
            record(event_id=f"{arm}{i}", arm=arm, sticky_id=f"{arm}{i}", cost=cost, solved=True, flag="f")
            for arm, cost in (("canary", canary), ("baseline", baseline))
            for i in range(20)
        ]
        (decision,) = decisions([*log, tick(NOON + 20_000 + LATENESS)], text=RAMP)
        assert decision.to_bytes()


class TestSplit:
    def test_all_regions_of_a_flag_meet_at_one_gate(self) -> None:
        partials = partials_of(draw_log(5, 300))
        for gates in (1, 3, 4):
            for partial in partials:
                parts = split(partial, gates)
                assert len(parts) == gates
                assert {unit for part in parts for unit in part.units} == set(partial.units)
                for gate, part in enumerate(parts):
                    assert {gate_of(unit.split("|")[0], gates) for unit in part.units} <= {gate}

    def test_every_gate_learns_the_time_and_the_dead_letters(self) -> None:
        partial = Partial(2, 7, 5, 3, {})
        for part in split(partial, 3):
            assert (part.partition, part.pane, part.previous, part.dead_letters) == (2, 7, 5, 3)

    def test_the_gate_of_a_flag_is_the_same_everywhere(self) -> None:
        """Fixed numbers: a worker of another version or machine must agree."""
        assert [gate_of(flag, 4) for flag in ("f", "prompt_pack_vNplus1", "é")] == [0, 0, 2]


class TestStep:
    def gate(self, partitions: int = 1) -> GatePartition:
        return GatePartition.fresh(0, 1, partitions, CLOCKWORK, Timeline.of(flags()))

    def test_a_partial_sent_again_is_dropped(self) -> None:
        """After a crash they come twice, at new offsets, and some out of turn with those of the next life."""
        partials = partials_of([record(), *draw_log(2, 150)])
        once, again = self.gate(), self.gate()
        expected = [o for i, p in enumerate(partials) for o in once.step(i, _copy(p))]
        rng = random.Random(1)
        sent = []
        for i, partial in enumerate(partials):
            sent.append(partial)
            if rng.random() < 0.3:
                sent += partials[max(0, i - rng.randrange(5)) : i + 1]
        found = [o for i, p in enumerate(sent) for o in again.step(i, _copy(p))]
        assert expected
        assert [d.to_bytes() for d, _ in found] == [d.to_bytes() for d, _ in expected]

    def test_records_below_the_position_are_skipped(self) -> None:
        gate = self.gate()
        for i, partial in enumerate(partials_of([record()])):
            list(gate.step(i, _copy(partial)))
        before = gate.dump()
        list(gate.step(0, partials_of([record()])[0]))
        assert gate.dump() == before

    def test_a_missing_record_stops_the_gate(self) -> None:
        with pytest.raises(HoleError, match="partials 0 to 3 of gate 0"):
            list(self.gate().step(4, Partial(0, 1, NEVER, 0, {})))

    def test_a_missing_partial_stops_the_gate(self) -> None:
        """``previous`` shows the gap although the topic's offsets are dense."""
        gate = self.gate()
        list(gate.step(0, Partial(0, 4, NEVER, 0, {})))
        with pytest.raises(HoleError, match="closed panes up to 5, but its next partial starts at 6"):
            list(gate.step(1, Partial(0, 7, 6, 0, {})))

    @pytest.mark.parametrize("partition", [-1, 1])
    def test_a_partial_of_a_partition_that_the_source_did_not_have_stops_the_gate(self, partition: int) -> None:
        """A source topic that grew would hold or forget events."""
        with pytest.raises(StateError, match="1 partitions"):
            list(self.gate().step(0, Partial(partition, 1, NEVER, 0, {})))

    def test_the_order_in_which_partitions_report_does_not_matter(self) -> None:
        logs = [[*draw_log(3 + p, 200), tick(NOON + 400_000)] for p in range(3)]
        sent = [p for n, log in enumerate(logs) for p in fresh(partition=n).step(Run(0, log)).partials]

        def found(order: list[Partial]) -> list[bytes]:
            gate = self.gate(3)
            return [d.to_bytes() for i, p in enumerate(order) for d, _ in gate.step(i, _copy(p))]

        expected = found(sent)
        assert expected
        for seed in range(5):
            rng = random.Random(seed)
            queues = [[p for p in sent if p.partition == n] for n in range(3)]
            order = []
            while any(queues):
                order.append(rng.choice([q for q in queues if q]).pop(0))
            assert found(order) == expected

    def test_the_watermark_is_the_least_of_all_partitions(self) -> None:
        gate = self.gate(2)
        assert gate.watermark is None
        list(gate.step(0, Partial(0, 9, NEVER, 0, {})))
        assert gate.watermark is None
        list(gate.step(1, Partial(1, 4, NEVER, 0, {})))
        assert gate.watermark == 5 * PANE

    def test_panes_that_all_partitions_closed_are_not_kept(self) -> None:
        pipeline = Pipeline(Timeline.of(flags()), 2, CLOCKWORK)
        log = [*draw_log(8, 150), tick(NOON + 500_000)]
        list(pipeline.step(0, Run(0, log)))
        assert pipeline.gates[0].waiting > 0
        list(pipeline.step(1, Run(0, [tick(NOON + 500_000)])))
        assert pipeline.gates[0].waiting == 0


def test_a_partial_in_pieces_is_the_partial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their size, sent again in part or whole, with restarts between them."""
    text = MANIFEST + RAMP.replace("flags:\n", "")
    partials = partials_of(
        [*draw_log(21, 300), *written(healthy_pane(NOON + 10**6)), tick(NOON + 10**6 + 50_000)], text=text
    )
    timeline = Timeline.of(flags(text))
    whole = GatePartition.fresh(0, 1, 1, CLOCKWORK, timeline)
    expected = [d.to_bytes() for i, p in enumerate(partials) for d, _ in whole.step(i, _copy(p))]
    for size in (1, 2_000, 20_000):
        monkeypatch.setattr(gate_log, "PIECE_BYTES", size)
        rnd, log = random.Random(size), list[bytes]()
        for partial in partials:
            sent = list(pieces(_copy(partial)))
            assert len(sent) > 1 or len(partial.units) < 2 or size > 1
            log += sent[: rnd.randrange(len(sent))] + sent if rnd.random() < 0.3 else sent
        state, found = GatePartition.fresh(0, 1, 1, CLOCKWORK, timeline), list[bytes]()
        for offset, value in enumerate(log):
            found += [d.to_bytes() for d, _ in state.step(offset, partial_codec.load(value))]
            state = GatePartition.load(state.dump(), 0, 1, 1, CLOCKWORK, timeline)
        assert found == expected


class TestState:
    def test_a_restore_anywhere_gives_the_same_bytes(self) -> None:
        log = [*draw_log(21, 300), *written(healthy_pane(NOON + 10**6)), tick(NOON + 10**6 + 50_000)]
        text = MANIFEST + RAMP.replace("flags:\n", "")
        partials = partials_of(log, text=text)
        one = GatePartition.fresh(0, 1, 1, CLOCKWORK, Timeline.of(flags(text)))
        expected = [d.to_bytes() for i, p in enumerate(partials) for d, _ in one.step(i, _copy(p))]
        other, found = GatePartition.fresh(0, 1, 1, CLOCKWORK, Timeline.of(flags(text))), []
        for i, partial in enumerate(partials):
            found += [d.to_bytes() for d, _ in other.step(i, _copy(partial))]
            other = GatePartition.load(other.dump(), 0, 1, 1, CLOCKWORK, Timeline.of(flags(text)))
        assert expected
        assert found == expected

    def test_bytes_that_are_no_state_are_refused(self) -> None:
        whole = GatePartition.fresh(0, 1, 1, CLOCKWORK, Timeline.of(flags())).dump()
        for blob in (b"", b"\x90", b"\xff" * 20, whole[:-1]):
            with pytest.raises(StateError, match="gate 0"):
                GatePartition.load(blob, 0, 1, 1, CLOCKWORK, Timeline.of(flags()))

    @pytest.mark.parametrize(
        ("gate", "gates", "partitions", "clockwork"),
        [
            (1, 4, 2, CLOCKWORK),
            (0, 3, 2, CLOCKWORK),
            (0, 4, 3, CLOCKWORK),
            (0, 4, 2, Clockwork(PANE, 1, "t")),
            (0, 4, 2, Clockwork(2 * PANE, LATENESS, "t")),
        ],
    )
    def test_a_state_of_other_topics_or_times_is_refused_with_the_way_out(
        self, gate: int, gates: int, partitions: int, clockwork: Clockwork
    ) -> None:
        blob = GatePartition.fresh(0, 4, 2, CLOCKWORK, Timeline.of(flags())).dump()
        with pytest.raises(StateError, match="old settings and partitions or start a new application id"):
            GatePartition.load(blob, gate, gates, partitions, clockwork, Timeline.of(flags()))

    def test_a_window_of_the_partition_state_is_not_shared_with_the_gate(self) -> None:
        """What a gate does to a partial must not reach the panes it came from."""
        runs = draw_runs(random.Random(1), [*draw_log(31, 200), tick(NOON + 500_000)])
        state: SourcePartition = fresh()
        partials = [p for run in runs for p in state.step(run).partials]
        before = [partial_codec.dump(p) for p in partials]
        gate = GatePartition.fresh(0, 1, 1, CLOCKWORK, Timeline.of(flags()))
        for i, partial in enumerate(partials):
            list(gate.step(i, _copy(partial)))
        assert [partial_codec.dump(p) for p in partials] == before


def _copy(partial: Partial) -> Partial:
    """As on the wire: a gate takes over what a partial holds."""
    return partial_codec.load(partial_codec.dump(partial))
