"""What a topic deleted before it was read: an operator may let a worker go on, and nothing is decided on the rest."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streams.events import CLOCKWORK, LATENESS, NOON, PANE, RAMP, flags, fresh, healthy_pane, tick, written
from tidegate.schemas.decision import Command, Decision
from tidegate.schemas.errors import HoleError, InputError
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.replay import replay
from tidegate.streams.engine.gate_log import partial_codec, pieces
from tidegate.streams.engine.gate_partition import GatePartition
from tidegate.streams.engine.pipeline import Pipeline
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import SourcePartition

Outcome = tuple[Decision, Command | None]
WINDOW = 20_000
PANES = 24
STAGES = [round(0.4 + stage / 1000, 3) for stage in range(PANES)]
STAYS = RAMP.replace("{canary_weight: 0.25, baseline_weight: 0.75, stages: [0.25, 1.0]}", f"{{stages: {STAGES}}}")
"""The telemetry stays as it is, and so do the weights, nearly."""
TIMELINE = Timeline.of(flags(STAYS))


def log(first: int, following: int) -> list[bytes | None]:
    """A healthy service's, with the tick at its end that tells of the loss."""
    values: list[bytes | None] = []
    for pane in range(PANES):
        values += written(healthy_pane(NOON + pane * PANE))
    deleted = {"first": first, "next": following}
    end = NOON + (PANES + 2) * PANE
    return [*values, json.dumps({"kind": "tick", "ts": end, "deleted_unread": deleted}).encode()]


EVENTS = len(log(0, 1)) - 1
FAR = NOON


def decided(values: list[bytes | None], first: int, following: int) -> list[Outcome]:
    """As a worker that had read up to ``first`` when ``following`` was what its topic began with."""
    pipeline = Pipeline(TIMELINE, 1, CLOCKWORK)
    outcomes = list(pipeline.step(0, Run(0, values[:first])))
    state = pipeline.partitions[0]
    state.lose(following)
    pipeline.partitions[0] = SourcePartition.load(state.dump(), 0, CLOCKWORK, pipeline.table)
    return outcomes + list(pipeline.step(0, Run(following, values[following:])))


def replayed(values: list[bytes | None], folder: str, gone: range) -> list[Outcome]:
    """What a dump gives that has the log but for ``gone``."""
    path = Path(folder) / "telemetry.ndjson"
    with path.open("wb") as file:
        for offset, value in enumerate(values):
            if offset not in gone:
                assert value is not None
                file.write(b'{"partition":0,"offset":%d,"value":%s}\n' % (offset, value))
    return list(replay([path], TIMELINE, 1, CLOCKWORK))


def told(outcomes: list[Outcome]) -> list[bytes]:
    return [record.to_bytes() for outcome in outcomes for record in outcome if record is not None]


def losses(decision: Decision) -> Iterator[dict[str, Any]]:
    return (
        found.detail
        for found in decision.evidence_problems
        if found.problem == "window_unstable" and "lost" in found.detail
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, EVENTS - 1), st.integers(1, 60))
def test_a_loss_holds_the_windows_it_touches_and_no_others_live_and_in_each_replay(first: int, count: int) -> None:
    following = min(first + count, EVENTS)
    values = log(first, following)
    live = decided(values, first, following)
    with TemporaryDirectory() as folder:
        # An archive that has what the worker lost decides as the worker did; so does one that lost it too.
        assert told(replayed(values, folder, range(0))) == told(live)
        assert told(replayed(values, folder, range(first, following))) == told(live)
    per_pane = EVENTS // PANES
    lost_from, lost_to = first // per_pane, (following - 1) // per_pane
    detail = {
        "lost": "telemetry",
        "partition": 0,
        "offsets": {"first": first, "last": following - 1},
        "count": following - first,
    }
    for decision, _ in live:
        window = [(t - NOON) // PANE for t in (decision.window.start, decision.window.end)]
        found = list(losses(decision))
        assert found in ([], [detail])
        if window[0] <= lost_to and lost_from < window[1]:
            assert found
            assert decision.verdict == "hold"
        # Records may be late by lateness, and the panes that wait for them are open when it happens.
        if lost_to + (2 * LATENESS + WINDOW) // PANE < window[0] or window[1] < lost_from - 2 * LATENESS // PANE:
            assert not found


def test_a_held_ramp_goes_on_after_a_loss() -> None:
    live = decided(log(40, 60), 40, 60)
    held = [decision.window.end for decision, _ in live if list(losses(decision))]
    after = [decision for decision, _ in live if decision.window.start >= max(held)]
    assert [decision.verdict for decision in after].count("hold") == 0
    assert after


def test_a_loss_that_was_told_twice_is_the_larger_one(tmp_path: Path) -> None:
    """A worker was killed before it had saved where it went on; the next one lost more."""
    values = log(30, 45)
    values.insert(50, json.dumps({"kind": "tick", "ts": NOON, "deleted_unread": {"first": 30, "next": 40}}).encode())
    assert told(replayed(values, str(tmp_path), range(0))) == told(decided(values, 30, 45))


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "exposure", "deleted_unread": {"first": 30, "next": 45}},
        {"kind": "tick", "deleted_unread": {"first": 45, "next": 45}},
        {"kind": "tick", "deleted_unread": {"first": 30, "next": 70_000}},
        {"kind": "tick", "deleted_unread": {"first": 30}},
        {"kind": "tick", "tenant": "deleted_unread"},
    ],
)
def test_nothing_else_tells_of_a_loss(tmp_path: Path, value: dict[str, Any]) -> None:
    values = [*log(0, 1)[:-1], json.dumps({"ts": NOON, **value}).encode(), tick(NOON + (PANES + 2) * PANE)]
    outcomes = replayed(values, str(tmp_path), range(0))
    assert len(outcomes) > 4
    assert not any(list(losses(decision)) for decision, _ in outcomes)


def test_records_that_are_missing_without_a_word_are_no_loss(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="records 30 to 44 of partition 0 are missing"):
        replayed([*log(0, 1)[:-1], tick(NOON)], str(tmp_path), range(30, 45))


def entries(partition: int) -> list[bytes]:
    """What a source partition sends its gate, a piece each."""
    values: list[bytes | None] = []
    for pane in range(PANES):
        values += written(healthy_pane(NOON + pane * PANE))
    state = fresh(partition=partition, text=STAYS)
    partials = state.step(Run(0, [*values, tick(NOON + (PANES + 2) * PANE)])).partials
    return [piece for partial in partials for piece in pieces(partial)]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 20), st.randoms(use_true_random=False))
def test_a_gate_whose_own_log_lost_entries_holds_what_they_touch(first: int, count: int, rnd: Any) -> None:
    """Of two source partitions, whose partials alternate as they like."""
    queues = [entries(0), entries(1)]
    mixed: list[bytes] = []
    while any(queues):
        mixed.append(rnd.choice([queue for queue in queues if queue]).pop(0))
    following = min(first + count, len(mixed) - 8)
    gate = GatePartition.fresh(0, 1, 2, CLOCKWORK, TIMELINE)
    live = [out for at in range(first) for out in gate.step(at, partial_codec.load(mixed[at]))]
    gate.lose(following)
    gate = GatePartition.load(gate.dump(), 0, 1, 2, CLOCKWORK, TIMELINE)
    live += [out for at in range(following, len(mixed)) for out in gate.step(at, partial_codec.load(mixed[at]))]
    touched = {
        pane for entry in mixed[first:following] for pane in [(partial_codec.load(entry).pane * PANE - NOON) // PANE]
    }
    for decision, _ in live:
        window = range((decision.window.start - NOON) // PANE, (decision.window.end - NOON) // PANE)
        found = list(losses(decision))
        if touched & set(window):
            assert found
            assert found[0]["lost"] == "partials"
            assert found[0]["offsets"] == {"first": first, "last": following - 1}
            assert decision.verdict == "hold"
    # Of each partition, up to its first partial behind the loss.
    behind = [partial_codec.load(entry) for entry in mixed[following:]]
    ends = [next((partial.pane for partial in behind if partial.partition == p), FAR) for p in (0, 1)]
    after = [d for d, _ in live if d.window.start > max(ends) * PANE]
    assert not any(list(losses(decision)) for decision in after)


def test_without_a_word_a_gate_does_not_go_on() -> None:
    values = entries(0)
    gate = GatePartition.fresh(0, 1, 1, CLOCKWORK, TIMELINE)
    list(gate.step(0, partial_codec.load(values[0])))
    with pytest.raises(HoleError):
        list(gate.step(2, partial_codec.load(values[2])))
