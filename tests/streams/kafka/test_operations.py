"""Orders and revisions in a gate's log: carried out where they stand, once, and the same after any crash."""

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streams.events import CLOCKWORK, LATENESS, NOON, PANE, RAMP, event, healthy_pane, tick, written
from tidegate.gates.recorder import Outcome
from tidegate.schemas.decision import Command, Decision, OperationBy
from tidegate.schemas.errors import HoleError
from tidegate.schemas.load import load_manifest
from tidegate.schemas.operation import Operation
from tidegate.schemas.timeline import Revision, Timeline
from tidegate.streams.audit.recorded import read_orders
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import Order, is_order, order_codec, order_key, partial_codec
from tidegate.streams.engine.gate_partition import GatePartition, switches
from tidegate.streams.engine.pipeline import Pipeline
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import SourcePartition
from tidegate.streams.kafka.operations import OperationLog
from tidegate.streams.settings import load_settings

SETTINGS = load_settings()
SETTLED = 2 * PANE
"""Lateness and settle, rounded up to a pane."""
ELSEWHERE = RAMP + "    scope: {regions: [eu, us]}\n"
SWITCH = """
flags:
  s: {kind: kill_switch, traffic: {canary_weight: %s}, scope: {regions: [eu, us]}}
"""


def timeline(*texts: str | tuple[int, str]) -> Timeline:
    """Revisions 1, 2, …: a manifest in force since ever, or from a time."""
    revisions = []
    for number, text in enumerate(texts, 1):
        start, yaml = (0, text) if isinstance(text, str) else text
        revisions.append(Revision(number, start, load_manifest(yaml).flags, "signer"))
    return Timeline(revisions)


def by(kind: str, ts: int = NOON) -> OperationBy:
    return OperationBy(kind=kind, ts=ts, actor="Ada", reason="because")  # type: ignore[arg-type]


def kill(flag: str = "f", ts: int = NOON, offset: int = 0) -> Order:
    return Order(flag, by("kill", ts), offset)


def rearm(flag: str = "f", ts: int = NOON, offset: int = 1) -> Order:
    return Order(flag, by("rearm", ts), offset)


class Gate:
    """One partition and one gate, with the gate's log between them; whatever is put into the log is carried out."""

    def __init__(self, known: Timeline) -> None:
        self.timeline = known
        self.table = EventClasses(known)
        self.window = SourcePartition.fresh(0, CLOCKWORK, self.table)
        self.state = GatePartition.fresh(0, 1, 1, CLOCKWORK, known)
        self.log: list[bytes | Order] = []
        self.decisions: list[Decision] = []
        self.commands: list[Command] = []

    def learn(self, known: Timeline) -> None:
        self.timeline = known
        self.table.renew(known)
        self.state.renew(known)

    def telemetry(self, values: Sequence[bytes | None]) -> list[Decision]:
        partials = self.window.step(Run(self.window.next, values)).partials
        return self.put(*(partial_codec.dump(partial) for partial in partials))

    def order(self, *orders: Order) -> list[Decision]:
        return self.put(*orders)

    def put(self, *entries: bytes | Order) -> list[Decision]:
        """Append to the log and read on; the decisions that follow."""
        self.log += entries
        given: list[Outcome] = []
        for offset in range(self.state.next, len(self.log)):
            given += read(self.state, offset, self.log[offset])
        self.decisions += [decision for decision, _ in given]
        self.commands += [command for _, command in given if command is not None]
        return [decision for decision, _ in given]

    def until(self, panes: int, region: str = "", first: int = 0) -> list[Decision]:
        """Healthy panes of one region from ``NOON`` on, then a tick that closes them."""
        events = [
            event | {"region": region} for pane in range(first, panes) for event in healthy_pane(NOON + pane * PANE)
        ]
        return self.telemetry([*written(events), tick(NOON + panes * PANE + LATENESS)])

    def restart(self, known: Timeline | None = None) -> None:
        """A crash right after a checkpoint."""
        self.timeline = known or self.timeline
        self.state = GatePartition.load(self.state.dump(), 0, 1, 1, CLOCKWORK, self.timeline)


def read(state: GatePartition, offset: int, entry: bytes | Order) -> list[Outcome]:
    if isinstance(entry, Order):
        return list(state.operate(offset, order_codec.load(order_codec.dump(entry))))
    return list(state.step(offset, partial_codec.load(entry)))


def said(decisions: Sequence[Decision]) -> list[tuple[str, str, list[str]]]:
    return [(decision.region, decision.verdict, decision.reasons) for decision in decisions]


# -- orders -----------------------------------------------------------------------------------------------------------


def test_a_kill_needs_no_telemetry() -> None:
    """Nothing was ever read, and every region that the manifest names gets canary 0, with who and why."""
    gate = Gate(timeline(ELSEWHERE))
    assert said(gate.order(kill())) == [("eu", "kill", ["kill"]), ("us", "kill", ["kill"])]
    for command, decision in zip(gate.commands, gate.decisions, strict=True):
        assert (command.action, command.severity, command.weights.canary) == ("kill", "hard", 0)
        assert (command.effective_from, decision.decided_at) == (NOON, NOON)
        assert decision.operation == by("kill")
        assert (decision.window.start, decision.window.end, decision.window.closed) == (NOON, NOON, False)
        assert (decision.gates, decision.abort_rules) == ([], [])


def test_a_kill_reaches_the_regions_that_telemetry_has_shown() -> None:
    gate = Gate(timeline(RAMP))
    gate.until(3, "ap")
    gate.until(4, "eu", first=3)
    assert said(gate.order(kill()))[:2] == [("ap", "kill", ["kill"]), ("eu", "kill", ["kill"])]
    window = gate.decisions[-2].window
    assert (window.start, window.end) == (NOON, NOON + 20_000), "the last decided window"


def test_orders_for_flags_that_nobody_knows_change_nothing() -> None:
    gate = Gate(timeline(ELSEWHERE))
    before = gate.state.dump()
    assert gate.order(kill("nobody")) == []
    after = gate.state
    assert (after.next, after.operations_next) == (1, 1)
    assert not after.ramps
    assert len(after.dump()) == len(before)


def test_what_is_killed_promotes_nothing_until_it_is_rearmed() -> None:
    gate = Gate(timeline(RAMP))
    gate.until(1)
    gate.order(kill())
    held = gate.until(9, first=1)
    assert {(decision.verdict, *decision.reasons) for decision in held} == {("hold", "latched")}
    assert said(gate.order(rearm()))[-1] == ("", "rearm", ["rearm"])
    assert (gate.commands[-1].weights.canary, gate.commands[-1].previous_weights.canary) == (0.25, 0)
    assert "promote" in [decision.verdict for decision in gate.until(15, first=9)]


def test_a_region_that_shows_up_after_the_kill_is_killed_with_its_first_event() -> None:
    """Global off means also where nobody was yet; after a rearm a new region begins as ever."""
    gate = Gate(timeline(RAMP))
    gate.until(1, "eu")
    gate.order(kill())
    shown = gate.until(2, "us", first=1)
    assert ("us", "kill", ["kill"]) in said(shown)
    assert [command.region for command in gate.commands] == ["eu", "us"]
    gate.order(rearm())
    assert ("ap", "kill", ["kill"]) not in said(gate.until(3, "ap", first=2))


def test_telemetry_wakes_what_an_order_began() -> None:
    """A unit that a kill began without telemetry gets its windows with its first event."""
    gate = Gate(timeline(ELSEWHERE))
    gate.order(kill(), rearm())
    decided = gate.until(4, "eu")
    assert said(decided) == [("eu", "promote", ["all_gates_pass"])]
    assert decided[0].window.start == NOON + SETTLED
    assert decided[0].previous_hash == gate.decisions[2].hash


def test_an_order_that_is_forwarded_again_is_carried_out_once() -> None:
    gate = Gate(timeline(ELSEWHERE))
    gate.order(kill(offset=4), rearm(offset=7))
    commands = list(gate.commands)
    assert gate.order(kill(offset=4), rearm(offset=7)) == []
    assert gate.commands == commands
    assert gate.state.operations_next == 8
    assert said(gate.order(kill(offset=8, ts=NOON + 1))) == [("eu", "kill", ["kill"]), ("us", "kill", ["kill"])]


def test_an_order_counts_in_the_log_like_a_partial() -> None:
    """Read again it is dropped; a hole before it is found."""
    gate = Gate(timeline(ELSEWHERE))
    gate.order(kill())
    assert list(gate.state.operate(0, kill(offset=9))) == []
    with pytest.raises(HoleError):
        list(gate.state.operate(2, kill(offset=9)))


def test_keys_tell_orders_from_partials() -> None:
    assert order_key(kill(offset=12)) == b"operation|12"
    assert order_key(Order("s", by("kill"), revision=3)) == b"switch|3|s"
    assert is_order(order_key(kill()))
    assert is_order(order_key(Order("s", by("kill"), revision=3)))
    assert not is_order(b"0|170000000")
    assert not is_order(None)


seeds = st.integers(0, 2**32 - 1)


def mixed_log(rng: random.Random) -> tuple[Timeline, list[bytes | Order]]:
    """Two units' telemetry with orders and two changes of the manifest in between, some orders twice."""
    known = timeline(
        ELSEWHERE + "  g: {window: {length: 20s}}\n",
        (NOON + 5 * PANE, ELSEWHERE.replace("20s", "30s") + "  g: {window: {length: 20s}}\n"),
        (NOON + 9 * PANE, ELSEWHERE),
    )
    gate = Gate(known)
    offset = 0
    gate.telemetry(written([item | {"flag": "g"} for item in healthy_pane(NOON)]))
    for pane in range(14):
        gate.until(pane + 1, rng.choice(["eu", "us"]), first=pane)
        if rng.random() < 0.4:
            kind, behind = rng.choice(["kill", "rearm", "rearm", "pause", "resume", "promote"]), rng.choice([0, 0, 6])
            given = Order(rng.choice("ffg"), by(kind, NOON + (pane + behind) * PANE + offset), offset)
            offset += 1
            gate.order(given)
            if rng.random() < 0.5:
                gate.order(given)
    return known, gate.log


@settings(max_examples=6, deadline=None)
@given(seed=seeds)
def test_a_crash_at_any_point_gives_the_same_bytes_again(seed: int) -> None:
    """Every kind of order and revisions included; and what comes between two checkpoints is repeated exactly."""
    rng = random.Random(seed)
    known, log = mixed_log(rng)

    def records(outcomes: list[Outcome]) -> list[bytes]:
        return [record.to_bytes() for pair in outcomes for record in pair if record is not None]

    state = GatePartition.fresh(0, 1, 1, CLOCKWORK, known)
    expected = [records(read(state, offset, entry)) for offset, entry in enumerate(log)]
    state = GatePartition.fresh(0, 1, 1, CLOCKWORK, known)
    saved = state.dump()
    while state.next < len(log):
        assert records(read(state, state.next, log[state.next])) == expected[state.next - 1]
        if rng.random() < 0.3:
            saved = state.dump()
        if rng.random() < 0.2:
            state = GatePartition.load(saved, 0, 1, 1, CLOCKWORK, known)
            assert state.dump() == saved


def test_the_logs_of_the_crash_test_hold_what_it_is_about() -> None:
    found: Counter[str] = Counter()
    by_hand = False
    for seed in range(24):
        known, log = mixed_log(random.Random(seed))
        state = GatePartition.fresh(0, 1, 1, CLOCKWORK, known)
        for offset, entry in enumerate(log):
            for decision, _ in read(state, offset, entry):
                found.update([decision.verdict, *decision.reasons])
                by_hand = by_hand or (decision.verdict == "promote" and decision.operation is not None)
    assert found.keys() >= {"kill", "rearm", "promote", "latched", "window_unstable", "manifest_revision", "retire"}
    assert found.keys() >= {"pause", "resume", "paused"}
    assert by_hand


# -- revisions --------------------------------------------------------------------------------------------------------

BOUNDARY = NOON + 3 * PANE
CHANGED = RAMP.replace("20s", "30s")


@pytest.mark.parametrize(("panes", "cut"), [(1, True), (2, False), (3, False)], ids=["window", "end", "settling"])
def test_a_revision_cuts_the_windows_of_the_flags_it_changes(panes: int, cut: bool) -> None:
    """The window that runs is not judged, and no decision holds telemetry from both sides of the boundary."""
    boundary = NOON + panes * PANE
    gate = Gate(timeline(RAMP, (boundary, CHANGED)))
    decisions = gate.until(12)
    first, second = (revision.flags["f"].manifest_hash for revision in gate.timeline.revisions)
    hashes = [decision.manifest_hash for decision in decisions]
    assert hashes == sorted(hashes, key=[first, second].index)
    assert {first, second} == set(hashes)
    for decision in decisions:
        if not decision.gates:
            continue  # the new revision's first word rests on no window
        # A window that is cut has its nominal end; it was judged on what lies before the boundary.
        judged_until = decision.window.end if decision.window.closed else decision.decided_at
        side = (decision.window.start < boundary, judged_until <= boundary)
        assert side == ((True, True) if decision.manifest_hash == first else (False, False))
    begun = next(decision for decision in decisions if decision.gates and decision.manifest_hash == second)
    assert (begun.window.start, begun.stage.index) == (boundary + SETTLED, 0)
    unstable = [decision for decision in decisions if decision.reasons == ["window_unstable"]]
    assert [(decision.decided_at, decision.verdict, decision.window.closed) for decision in unstable] == (
        [(boundary, "hold", False)] if cut else []
    )


def test_the_chain_of_a_unit_goes_on_under_the_next_revision() -> None:
    """One chain and one count of commands, and the router is told the first stage's weight again."""
    gate = Gate(timeline(RAMP, (BOUNDARY, CHANGED)))
    gate.until(12)
    assert [d.previous_hash for d in gate.decisions] == [None, *(d.hash for d in gate.decisions[:-1])]
    assert [c.seq for c in gate.commands] == list(range(1, len(gate.commands) + 1))
    assert [c.previous_weights.canary for c in gate.commands[1:]] == [c.weights.canary for c in gate.commands[:-1]]
    assert [(c.action, c.weights.canary) for c in gate.commands[:2]] == [("promote", 1.0), ("rearm", 0.25)]
    assert gate.commands[1].reasons == ["manifest_revision"]


def test_flags_that_a_revision_leaves_as_they_are_go_on_undisturbed() -> None:
    """Byte for byte, also those that are only written differently."""
    other = "  g: {window: {length: 10s}}\n"
    rewritten = RAMP.replace("length: 20s, settle: 5s", "settle: 5000ms, length: 20000ms")
    with_revision = Gate(timeline(RAMP, (BOUNDARY, rewritten + other)))
    without = Gate(timeline(RAMP))
    assert [d.to_bytes() for d in with_revision.until(12)] == [d.to_bytes() for d in without.until(12)]


def frozen(start: int, end: int) -> str:
    times = [datetime.fromtimestamp(ms / 1000, UTC).isoformat() for ms in (start, end)]
    return f'freeze_windows: [{{from: "{times[0]}", to: "{times[1]}", reason: r}}]' + RAMP


@pytest.mark.parametrize("restarted", [False, True])
def test_a_revision_that_only_changes_freezes_starts_no_rollout_over(restarted: bool) -> None:
    """A freeze from the boundary on holds the promote that was due, and the next revision lifts it; nothing is cut."""
    lifted = NOON + 5 * PANE
    revisions = timeline(RAMP, (NOON + PANE, frozen(NOON, NOON + 100 * PANE)), (lifted, RAMP))
    gate = Gate(revisions)
    for panes in range(12):
        gate.until(panes + 1, first=panes)
        if restarted:
            gate.restart()
    found = [(d.verdict, d.reasons, d.window.end) for d in gate.decisions[:3]]
    assert found == [
        ("hold", ["change_freeze"], NOON + 2 * PANE),
        ("hold", ["change_freeze"], NOON + 4 * PANE),
        ("promote", ["all_gates_pass"], NOON + 6 * PANE),
    ]
    assert all(d.window.closed and "manifest_revision" not in d.reasons for d in gate.decisions)


REASONED = RAMP + "    kind: safety_guard\n"


def stepped_in(*revisions: str | tuple[int, str]) -> Gate:
    """A safety guard that stepped in after its first window, and went on for 12 panes."""
    gate = Gate(timeline(*revisions))
    failing = [event | {"reason_status": "failed", "output_mode": "full"} for event in healthy_pane(NOON)]
    gate.telemetry([*written(failing), tick(NOON + 2 * PANE + LATENESS)])
    for pane in range(2, 12):
        fine = [event | {"reason_status": "ok"} for event in healthy_pane(NOON + pane * PANE)]
        gate.telemetry([*written(fine), tick(NOON + (pane + 1) * PANE + LATENESS)])
    return gate


def test_a_guard_that_stepped_in_stays_in_under_a_new_revision_until_a_clean_window() -> None:
    gate = stepped_in(REASONED, (BOUNDARY, CHANGED + "    kind: safety_guard\n"))
    assert [command.action for command in gate.commands] == ["degrade", "restore"]
    assert gate.commands[1].manifest_hash == gate.timeline.revisions[1].flags["f"].manifest_hash


@pytest.mark.parametrize("kind", ["progressive_rollout", "cost_guard"])
def test_a_revision_that_makes_a_guard_another_kind_of_flag_ends_what_it_had_begun(kind: str) -> None:
    """What stepped in is there no more, and a guard of another kind has not: ``rearm``, though the weights are the
    same."""
    gate = stepped_in(REASONED, (BOUNDARY, CHANGED + f"    kind: {kind}\n"))
    first, second, *_ = gate.commands
    assert (first.action, second.action, second.reasons) == ("degrade", "rearm", ["manifest_revision"])
    assert second.weights == second.previous_weights


OTHER = "flags:\n  g: {window: {length: 10s}}\n"


def test_a_flag_that_a_revision_takes_out_is_retired_and_decided_no_more_until_it_is_back() -> None:
    """Its last command is canary 0, by whoever signed the revision; a later one begins it again on the same chain."""
    gate = Gate(timeline(RAMP, (BOUNDARY, OTHER), (NOON + 6 * PANE, RAMP)))
    assert all(decision.decided_at <= BOUNDARY for decision in gate.until(6))
    last, command = gate.decisions[-1], gate.commands[-1]
    assert (last.verdict, last.reasons, last.decided_at) == ("retire", ["retire"], BOUNDARY)
    assert last.operation is not None
    assert (last.operation.kind, last.operation.actor, last.operation.ts) == ("retire", "signer", BOUNDARY)
    assert last.operation.reason == "revision 2 does not name it any more"
    assert (command.action, command.weights.canary, command.effective_from) == ("retire", 0, BOUNDARY)
    assert list(gate.state.retired) == ["f|"]
    again = gate.until(12, first=6)
    assert again[0].previous_hash == last.hash
    assert said(again)[0] == ("", "rearm", ["manifest_revision"])
    assert "promote" in [decision.verdict for decision in again]
    assert gate.state.retired == {}


def test_a_flag_that_waits_for_its_first_event_under_a_revision_is_retired_by_the_next() -> None:
    """Changed, not seen since, and then taken out: its routers still serve what the first revision said."""
    gate = Gate(timeline(RAMP, (NOON + 3 * PANE, CHANGED), (NOON + 5 * PANE, OTHER)))
    gate.until(3)
    gate.telemetry([tick(NOON + 8 * PANE)])
    assert [command.action for command in gate.commands] == ["promote", "retire"]


def test_a_revision_says_which_flags_it_was_meant_to_retire() -> None:
    revisions = timeline(RAMP, (BOUNDARY, OTHER)).revisions
    gate = Gate(Timeline([revisions[0], dataclasses.replace(revisions[1], retires=("f",))]))
    gate.until(6)
    operation = gate.decisions[-1].operation
    assert operation is not None
    assert operation.reason == "revision 2 retires it"


def test_a_flag_that_has_left_the_manifest_can_be_killed_in_every_region() -> None:
    """Also one that was killed before, and after a restart; a rearm has nothing to begin again."""
    gate = Gate(timeline(ELSEWHERE, (BOUNDARY, OTHER)))
    gate.until(3, "eu")
    gate.until(4, "us", first=3)
    gate.telemetry([tick(NOON + 8 * PANE)])
    retired = {decision.region for decision in gate.decisions if decision.verdict == "retire"}
    assert retired == {"eu"}, "us had no event before it was over"
    gate.restart()
    assert said(gate.order(kill(ts=NOON + 9 * PANE, offset=0))) == [("eu", "kill", ["kill"])]
    assert gate.commands[-1].weights.canary == 0
    assert gate.order(rearm(ts=NOON + 9 * PANE, offset=1)) == []
    assert said(gate.order(kill(ts=NOON + 9 * PANE + 1, offset=2))) == [("eu", "kill", ["kill"])]
    seqs = [command.seq for command in gate.commands if command.region == "eu"]
    assert seqs == list(range(1, len(seqs) + 1))


def test_a_flag_that_left_and_was_killed_begins_again_with_the_revision_that_names_it_again() -> None:
    gate = Gate(timeline(RAMP, (BOUNDARY, OTHER), (NOON + 6 * PANE, RAMP)))
    gate.until(5)
    gate.order(kill(ts=NOON + 5 * PANE, offset=0))
    again = gate.until(12, first=6)
    assert said(again)[0] == ("", "rearm", ["manifest_revision"])
    assert "promote" in [decision.verdict for decision in again]


def test_a_flag_that_a_file_does_not_name_any_more_is_retired_and_can_be_killed() -> None:
    """A file has no revision that could say when: the worker that starts with the new text orders it."""
    gate = Gate(Timeline.of(load_manifest(RAMP).flags))
    gate.until(3)
    weight = gate.commands[-1].weights.canary
    assert weight > 0
    without = Timeline.of(load_manifest(OTHER).flags)
    gate.restart(without)
    (order,) = gate.state.stranded(NOON + 9 * PANE)
    assert said(gate.order(order)) == [("", "retire", ["retire"])]
    assert (gate.commands[-1].weights.canary, gate.commands[-1].previous_weights.canary) == (0, weight)
    assert gate.state.stranded(NOON + 9 * PANE) == []
    gate.restart(without)
    assert gate.state.stranded(NOON + 9 * PANE) == []
    assert said(gate.order(kill(ts=NOON + 10 * PANE))) == [("", "kill", ["kill"])]


@pytest.mark.parametrize("learnt", [0, 1, 2])
def test_it_does_not_matter_when_a_revision_is_learnt_as_long_as_it_is_in_time(learnt: int) -> None:
    """From the start, as a replay does, or just before the first event that it is for."""
    both = timeline(RAMP, (BOUNDARY, CHANGED))
    at_once, later = Gate(both), Gate(Timeline(both.revisions[:1]))
    at_once.until(learnt)
    at_once.until(12, first=learnt)
    later.until(learnt)
    later.learn(both)
    later.until(12, first=learnt)
    assert [d.to_bytes() for d in later.decisions] == [d.to_bytes() for d in at_once.decisions]
    assert [c.to_bytes() for c in later.commands] == [c.to_bytes() for c in at_once.commands]


def test_a_revision_that_comes_too_late_takes_effect_as_soon_as_it_can() -> None:
    gate = Gate(timeline(RAMP))
    gate.until(5)
    gate.learn(timeline(RAMP, (BOUNDARY, CHANGED)))
    hashes = {decision.manifest_hash for decision in gate.until(12, first=5) if decision.window.closed}
    assert hashes == {gate.timeline.revisions[1].flags["f"].manifest_hash}


def test_before_the_first_revision_there_is_nothing_to_decide() -> None:
    gate = Gate(timeline((BOUNDARY, RAMP)))
    decided = gate.until(12)
    assert decided
    assert min(decision.window.start for decision in decided) == BOUNDARY


def test_a_kill_ends_with_the_next_revision_that_changes_the_flag() -> None:
    gate = Gate(timeline(RAMP, (BOUNDARY, CHANGED)))
    gate.until(1)
    gate.order(kill(ts=NOON + PANE))
    gate.until(12, first=1)
    assert [command.action for command in gate.commands][:2] == ["kill", "rearm"]
    assert "promote" in [decision.verdict for decision in gate.decisions]


def test_a_kill_outlives_a_revision_that_leaves_the_flag_as_it_is() -> None:
    gate = Gate(timeline(RAMP, (BOUNDARY, RAMP + "  g: {}\n")))
    gate.until(1, "eu")
    gate.order(kill(ts=NOON + PANE))
    gate.until(8, "eu", first=1)
    shown = gate.until(12, "us", first=8)
    assert ("us", "kill", ["kill"]) in said(shown)
    assert {command.action for command in gate.commands} == {"kill"}


def test_a_kill_under_the_new_revision_holds_although_the_telemetry_is_behind_it() -> None:
    """The operator kills what runs now; the backlog then reaches the revision, which must not turn it on again."""
    gate = Gate(timeline(RAMP, (BOUNDARY, CHANGED)))
    gate.until(1)
    gate.order(kill(ts=BOUNDARY + PANE))
    gate.restart()
    gate.until(12, first=1)
    assert {command.weights.canary for command in gate.commands} == {0}
    assert {command.action for command in gate.commands} == {"kill"}
    assert len({decision.manifest_hash for decision in gate.decisions}) == 2
    assert all(decision.verdict in ("kill", "hold") for decision in gate.decisions)
    gate.order(rearm(ts=BOUNDARY + 3 * PANE))
    assert "promote" in [decision.verdict for decision in gate.until(20, first=12)]


def test_an_unsigned_file_that_was_changed_begins_anew() -> None:
    """It has no time of its own: what ran under the old text ends, kills of it too, and the chains go on."""
    gate = Gate(Timeline.of(load_manifest(RAMP).flags))
    gate.until(1)
    gate.order(kill())
    last = gate.decisions[-1]
    changed = Timeline.of(load_manifest(CHANGED).flags)
    gate.restart(changed)
    gate.table.renew(changed)
    decided = gate.until(12, first=1)
    assert decided[0].previous_hash == last.hash
    assert {decision.manifest_hash for decision in decided} == {changed.revisions[0].flags["f"].manifest_hash}
    assert said(decided)[0] == ("", "rearm", ["manifest_revision"])


def test_an_unsigned_file_that_stays_goes_on_after_a_restart() -> None:
    gate, other = (Gate(Timeline.of(load_manifest(RAMP).flags)) for _ in range(2))
    for part in range(0, 12, 3):
        gate.until(part + 3, first=part)
        gate.restart()
        other.until(part + 3, first=part)
    assert [d.to_bytes() for d in gate.decisions] == [d.to_bytes() for d in other.decisions]


# -- kill switches ----------------------------------------------------------------------------------------------------

ON, OFF = SWITCH % "1.0", SWITCH % "0"


def test_a_kill_switch_that_a_revision_turns_off_is_a_kill_by_its_signer() -> None:
    (order,) = switches(timeline(ON, (NOON, OFF)), 1)
    assert (order.flag, order.revision, order.offset) == ("s", 2, -1)
    assert order.operation == OperationBy(
        kind="kill", ts=NOON, actor="signer", reason="kill switch is off in revision 2"
    )
    assert list(switches(timeline(ON, (NOON, OFF)), 0)) == []
    unsigned = Timeline.of(load_manifest(OFF).flags)
    assert [o.operation.actor for o in switches(unsigned, 0)] == ["manifest"]


def test_a_switch_that_stays_off_is_off_since_the_first_such_revision() -> None:
    known = timeline(OFF, (NOON, ON), (NOON + PANE, OFF), (NOON + 2 * PANE, OFF + "  g: {}\n"))
    assert [[order.revision for order in switches(known, index)] for index in range(4)] == [[1], [2], [3], [3]]


def test_a_kill_switch_that_is_turned_off_and_on_speaks_without_telemetry() -> None:
    """In every region that the manifest names, both times, and with the weight that the last revision says."""
    gate = Gate(timeline(ON, (NOON, OFF), (NOON + PANE, ON)))
    for index in range(3):
        gate.order(*switches(gate.timeline, index))
    assert said(gate.decisions) == [
        *(("eu", "kill", ["kill"]), ("us", "kill", ["kill"])),
        *(("eu", "rearm", ["rearm"]), ("us", "rearm", ["rearm"])),
    ]
    assert [(command.seq, command.weights.canary) for command in gate.commands] == [(1, 0), (1, 0), (2, 1), (2, 1)]
    back = gate.decisions[-1]
    assert back.operation is not None
    assert back.operation.reason == "kill switch is on in revision 3"
    assert back.manifest_hash == gate.timeline.revisions[2].flags["s"].manifest_hash
    gate.restart()
    assert gate.order(*switches(gate.timeline, 2)) == []
    # Telemetry that reaches the revisions later has nothing to add.
    assert gate.telemetry([*written([event(flag="s", region="eu", ts=NOON + n * PANE) for n in range(4)])]) == []


def test_a_kill_switch_that_was_never_off_says_nothing() -> None:
    gate = Gate(timeline(ON, (NOON, ON + "  g: {}\n")))
    assert [list(switches(gate.timeline, index)) for index in range(2)] == [[], []]


def test_a_switch_is_not_turned_on_over_a_later_kill() -> None:
    """The operator killed what the revision had turned on; the worker that tells of the revision comes late."""
    gate = Gate(timeline(OFF, (NOON, ON)))
    gate.order(*switches(gate.timeline, 0), kill("s", NOON + 1, 0))
    assert gate.order(*switches(gate.timeline, 1)) == []
    assert {command.weights.canary for command in gate.commands} == {0}


def test_what_an_old_file_asked_for_is_not_carried_out_under_the_new_one() -> None:
    """The worker ended before its first checkpoint, and reads its log again with the new text."""
    off, on = (Timeline.of(load_manifest(text).flags) for text in (OFF, ON))
    gate = Gate(on)
    assert gate.order(*switches(off, 0)) == []


def test_a_kill_switch_of_a_file_that_is_turned_off_and_on_speaks_without_telemetry() -> None:
    """A file has no revisions; what was off is told that it is on when a worker starts with the new text."""
    off, on = (Timeline.of(load_manifest(text).flags) for text in (OFF, ON))
    gate = Gate(off)
    gate.order(*switches(off, 0))
    gate.restart(on)
    assert list(switches(on, 0)) == []
    assert said(gate.order(*gate.state.stranded(NOON))) == [("eu", "rearm", ["rearm"]), ("us", "rearm", ["rearm"])]
    assert {command.weights.canary for command in gate.commands[2:]} == {1}
    assert gate.state.stranded(NOON) == []
    gate.restart()
    assert gate.state.stranded(NOON) == []


def test_a_switch_is_turned_off_in_every_region_and_once() -> None:
    gate = Gate(timeline(ON, (NOON, OFF)))
    (order,) = switches(gate.timeline, 1)
    assert said(gate.order(order, order)) == [("eu", "kill", ["kill"]), ("us", "kill", ["kill"])]
    gate.restart()
    assert gate.order(order) == []
    assert {command.weights.canary for command in gate.commands} == {0}


def test_a_switch_goes_on_again_by_a_revision_and_off_by_the_next() -> None:
    gate = Gate(timeline(OFF, (BOUNDARY, ON), (NOON + 6 * PANE, OFF)))

    def service(first: int, last: int) -> None:
        events = [e | {"flag": "s", "region": "eu"} for p in range(first, last) for e in healthy_pane(NOON + p * PANE)]
        gate.telemetry([*written(events), tick(NOON + last * PANE + LATENESS)])

    gate.order(*switches(gate.timeline, 0))
    service(0, 5)
    gate.order(*switches(gate.timeline, 2))
    service(5, 10)
    weights = [(command.action, command.weights.canary) for command in gate.commands if command.region == "eu"]
    assert weights[:3] == [("kill", 0), ("rearm", 1.0), ("kill", 0)]
    assert {weight for action, weight in weights[3:]} <= {0}


def test_a_worker_that_fell_behind_turns_no_switch_off_by_an_old_revision() -> None:
    gate = Gate(timeline(OFF, (BOUNDARY, ON), (NOON + 6 * PANE, OFF)))
    gate.order(*switches(gate.timeline, 0))
    gate.order(*switches(gate.timeline, 2))
    assert gate.order(*switches(gate.timeline, 0)) == []


def test_an_unsigned_switch_that_is_turned_on_and_off_again_is_off() -> None:
    """Both files are revision 0; the same text twice must not look like the same order twice."""
    off, on = (Timeline.of(load_manifest(text).flags) for text in (OFF, ON))
    gate = Gate(off)
    assert len(gate.order(*switches(off, 0))) == 2
    gate.restart()
    assert gate.order(*switches(off, 0)) == []
    gate.restart(on)
    gate.restart(off)
    assert len(gate.order(*switches(off, 0))) == 2


# -- a replay's file of operations ------------------------------------------------------------------------------------


def replayed(text: str, panes: int, *operations: Operation) -> list[Decision]:
    pipeline = Pipeline(timeline(text), 1, CLOCKWORK, operations)
    events = [event for pane in range(panes) for event in healthy_pane(NOON + pane * PANE)]
    log = [*written(events), tick(NOON + panes * PANE + LATENESS)]
    return [decision for decision, _ in (*pipeline.step(0, Run(0, log)), *pipeline.finish())]


def operation(kind: Any, ts: int) -> Operation:
    return Operation(actor="Ada", flag="f", kind=kind, reason="because", ts=ts)


@pytest.mark.parametrize(("ts", "place"), [(0, 0), (LATENESS - 1, 0), (LATENESS, 1)])
def test_an_operation_of_a_file_comes_before_the_first_decision_whose_end_and_lateness_is_past_its_ts(
    ts: int, place: int
) -> None:
    end = NOON + 20_000
    decisions = replayed(RAMP.replace("stages: [0.25, 1.0]", "stages: [0.25]"), 4, operation("kill", end + ts))
    assert [decision.verdict for decision in decisions].index("kill") == place
    assert decisions[1 - place].window.end == end


def test_operations_after_the_last_decision_are_carried_out_at_the_end() -> None:
    decisions = replayed(RAMP, 3, operation("rearm", NOON + 10**7 + 1), operation("kill", NOON + 10**7))
    assert [decision.verdict for decision in decisions[-2:]] == ["kill", "rearm"]


def test_a_replay_turns_off_the_switches_of_its_revisions() -> None:
    both = timeline(ON, (NOON, OFF), (NOON + PANE, OFF + "  g: {}\n"))
    pipeline = Pipeline(both, 1, CLOCKWORK)
    decisions = [decision for decision, _ in pipeline.finish()]
    assert [(d.region, d.verdict, d.decided_at) for d in decisions] == [("eu", "kill", NOON), ("us", "kill", NOON)]


def test_a_replay_puts_a_kill_where_the_worker_put_it() -> None:
    """The worker's log holds it after the decisions that it had made by then; the file's rule puts it there again."""
    gate = Gate(timeline(RAMP))
    gate.until(2)
    gate.order(kill(ts=NOON + 2 * PANE + LATENESS + 1))
    gate.until(8, first=2)
    again = replayed(RAMP, 8, operation("kill", NOON + 2 * PANE + LATENESS + 1))
    assert [without_offsets(d) for d in again] == [without_offsets(d) for d in gate.decisions]


def without_offsets(decision: Decision) -> str:
    """A decision without what the extra tick in the live log changes: its source offsets and the hashes."""
    record = json.loads(decision.to_bytes())
    for name in ("source", "hash", "previous_hash", "exemplars"):
        del record[name]
    return json.dumps(record)


# -- the operations topic ---------------------------------------------------------------------------------------------


def record(value: bytes, offset: int, timestamp: int = NOON) -> Any:
    return SimpleNamespace(value=value, offset=offset, timestamp=timestamp)


def test_operations_become_orders_with_their_offsets() -> None:
    log = OperationLog(SETTINGS, None)
    assert log.take(record(operation("kill", NOON).to_bytes(), 3))
    assert log.take(record(operation("rearm", NOON + 1).to_bytes(), 5))
    assert log.orders == [kill(offset=3), Order("f", by("rearm", NOON + 1), 5)]


def test_a_record_that_is_written_again_is_refused() -> None:
    """Whoever copies an old rearm into the topic turns nothing on; the operator's next one is another record."""
    log = OperationLog(SETTINGS, None)
    rearming = operation("rearm", NOON).to_bytes()
    assert log.take(record(rearming, 0))
    assert log.take(record(operation("kill", NOON + 1).to_bytes(), 1))
    assert log.take(record(rearming, 2)) is None
    assert [given.operation.kind for given in log.orders] == ["rearm", "kill"]


def test_an_old_operation_that_is_written_again_is_refused_in_a_log_that_never_had_it() -> None:
    """A new topic, or another cluster: what was ordered long ago is nobody's order, and a replay refuses it as well."""
    log = OperationLog(SETTINGS, None)
    late = record(operation("rearm", NOON).to_bytes(), 0, NOON + 86_400_001)
    assert log.take(late) is None
    assert read_orders([late], SETTINGS, None) == ({}, 1)
    assert log.take(record(operation("rearm", NOON).to_bytes(), 1, NOON + 86_400_000))


def test_an_operation_from_the_future_is_refused() -> None:
    log = OperationLog(SETTINGS, None)
    assert log.take(record(operation("kill", NOON).to_bytes(), 0, NOON - 60_001)) is None
    assert log.take(record(operation("kill", NOON).to_bytes(), 1, NOON - 60_000))
