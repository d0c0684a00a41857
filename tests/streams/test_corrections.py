"""Late events that would have changed a closed window's verdict: a record says so, and nothing else changes."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streams.events import CLOCKWORK, LATENESS, NOON, PANE, RAMP, healthy_pane, probes, served, tick, written
from tidegate.schemas.canonical import sha256_of
from tidegate.schemas.correction import Correction, correction_from_bytes
from tidegate.schemas.decision import Command, Decision
from tidegate.schemas.errors import EventError
from tidegate.schemas.load import load_manifest
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine import source_partition as panes
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import partial_codec
from tidegate.streams.engine.gate_partition import GatePartition
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import SourcePartition

STEADY = RAMP.replace("stages: [0.25, 1.0]", "stages: [0.25]")
"""At its last stage: window after window of 20 s, without a ramp step between them."""
CHANGES: list[dict[str, Any]] = [{"status": 500}, {"coverage": 0.0}, {"delta_s": 1.9}, {}, {"latency_ms": 900.0}]


@dataclass
class Watch:
    """One gate over some partitions, and everything that it says."""

    text: str = STEADY
    partitions: int = 1
    restarts: bool = False
    decisions: list[Decision] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    corrections: list[Correction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.timeline = Timeline.of(load_manifest(self.text).flags)
        table = EventClasses(self.timeline)
        self.states = [SourcePartition.fresh(p, CLOCKWORK, table) for p in range(self.partitions)]
        self.gate = GatePartition.fresh(0, 1, self.partitions, CLOCKWORK, self.timeline)
        self.entries = 0

    def read(self, values: Sequence[bytes | None], partition: int = 0) -> None:
        state = self.states[partition]
        for partial in state.step(Run(state.next, values)).partials:
            for decision, command in self.gate.step(self.entries, partial_codec.load(partial_codec.dump(partial))):
                self.decisions.append(decision)
                self.commands += [command] if command else []
            self.corrections += self.gate.take_corrections()
            self.entries += 1
            if self.restarts:
                self.gate = GatePartition.load(self.gate.dump(), 0, 1, self.partitions, CLOCKWORK, self.timeline)
        if self.restarts:
            self.states[partition] = SourcePartition.load(
                state.dump(), partition, CLOCKWORK, EventClasses(self.timeline)
            )

    def panes(self, first: int, last: int, **canary: Any) -> None:
        """Healthy panes, the last of them closed by the first event of the pane after lateness."""
        for pane in range(first, last):
            self.read(written(healthy_pane(NOON + pane * PANE, **canary)))
        self.read([tick(NOON + last * PANE + LATENESS)])

    def late(self, pane: int, **canary: Any) -> None:
        """A pane's worth of canary events whose pane is closed, and a tick that closes the pane they came in."""
        state = self.states[0]
        assert state.watermark is not None
        self.read([*written(late_events(pane, **canary)), tick(state.watermark + LATENESS + 2 * PANE)])

    def said(self) -> list[tuple[int, str, str]]:
        """Window's start in panes, verdict as decided, verdict as corrected."""
        return [((c.window.start - NOON) // PANE, c.said.verdict, c.corrected.verdict) for c in self.corrections]


def late_events(pane: int, **canary: Any) -> list[dict[str, Any]]:
    return probes(f"late{pane}", NOON + pane * PANE + 5, "canary", **canary)


def test_errors_that_come_late_would_have_aborted() -> None:
    """The record names decision, window, verdicts and counts, and holds every gate with the late events counted."""
    watch = Watch()
    watch.panes(0, 2)
    (decision,) = watch.decisions
    before = decision.to_bytes()
    watch.late(1, status=500)
    (correction,) = watch.corrections
    assert (correction.said.verdict, correction.corrected.verdict) == ("pass", "abort")
    assert correction.corrected.reasons == ["error_rate_over"]
    assert (correction.decision_id, correction.decision_hash) == (decision.decision_id, decision.hash)
    assert (correction.window, correction.late) == (decision.window, {"baseline": 0, "canary": 6})
    assert correction.corrected_at == NOON + 4 * PANE
    errors = next(gate for gate in correction.gates if gate.gate == "error_rate_max")
    assert (errors.observed, errors.n_canary) == (0.333333333333, 18)
    assert len(correction.gates) == 8
    # Nothing else follows from it.
    assert watch.decisions[0].to_bytes() == before
    assert watch.commands == []
    assert [decision.verdict for decision in watch.decisions[1:]] == ["hold"]


def test_a_correction_is_a_sealed_record() -> None:
    watch = Watch()
    watch.panes(0, 2)
    watch.late(1, status=500)
    value = watch.corrections[0].to_bytes()
    read = correction_from_bytes(value)
    assert read == watch.corrections[0]
    fields = {name: found for name, found in json.loads(value).items() if name != "hash"}
    assert read.hash == sha256_of(fields)
    assert read.key == "f|"
    for bad in (b"", b"{}", b"[" * 100_000, b"\xff"):
        with pytest.raises(EventError, match="not a correction"):
            correction_from_bytes(bad)


def test_late_events_that_change_no_verdict_are_not_told() -> None:
    watch = Watch()
    watch.panes(0, 2)
    watch.late(1)
    assert watch.corrections == []


def test_a_window_that_waited_for_evidence_would_have_been_decided() -> None:
    """Also where the events were late before the window's end: they are in no verdict, and so in a correction."""
    watch = Watch(STEADY.replace("min_requests: 6", "min_requests: 37").replace("20s", "60s, late_max: 0.9"))
    watch.panes(0, 3)
    watch.read(written(late_events(0)))
    watch.panes(3, 6)
    (decision,) = watch.decisions
    assert (decision.verdict, decision.late, decision.arms["canary"].requests) == ("hold", 6, 36)
    assert watch.said() == [(0, "hold", "pass")]


def test_later_events_may_take_a_correction_back() -> None:
    """Each change of the verdict is told once."""
    watch = Watch(STEADY.replace("length: 20s", "length: 60s"))
    watch.panes(0, 6)
    watch.read([event for pane in range(6) for event in written(late_events(pane, coverage=0.4))])
    watch.read([tick(NOON + 9 * PANE + LATENESS)])
    watch.read([*written([served(f"more{i}", NOON + 7, "canary", coverage=1.0) for i in range(300)])])
    watch.read([tick(NOON + 14 * PANE + LATENESS)])
    assert watch.said() == [(0, "pass", "rollback"), (0, "pass", "pass")]


def test_a_window_is_corrected_until_the_next_one_is_decided() -> None:
    watch = Watch()
    watch.panes(0, 4)
    assert len(watch.decisions) == 2
    watch.late(1, status=500)
    assert watch.corrections == []
    watch = Watch()
    watch.panes(0, 4)
    watch.late(3, status=500)
    assert watch.said() == [(2, "pass", "abort")]


def test_nothing_is_corrected_where_nothing_was_decided() -> None:
    """After an end the windows are held as latched, whatever comes late."""
    watch = Watch()
    watch.panes(0, 2, status=500)
    assert [command.action for command in watch.commands] == ["abort"]
    watch.panes(2, 4)
    watch.late(3, status=500)
    assert watch.corrections == []


def test_a_promote_is_corrected_and_the_ramp_goes_on() -> None:
    """Never a second command: the stage after it runs as if nothing had come."""
    watch, other = Watch(RAMP), Watch(RAMP)
    for one in (watch, other):
        one.panes(0, 2)
    watch.late(1, status=500)
    other.read([tick(NOON + 4 * PANE + LATENESS)])
    for one in (watch, other):
        one.panes(4, 8)
    assert watch.said() == [(0, "promote", "abort")]
    assert [c.to_bytes() for c in watch.commands] == [c.to_bytes() for c in other.commands]
    # The baseline that was pinned with the promote has no late event in it.
    assert [d.arms["baseline"] for d in watch.decisions[1:]] == [d.arms["baseline"] for d in other.decisions[1:]]


def test_what_comes_much_too_late_is_not_kept() -> None:
    watch = Watch()
    watch.panes(0, 12)
    state = watch.states[0]
    state.step(Run(state.next, written(late_events(1))))
    behind = [unit.behind for pane in state._state.open.values() for unit in pane.units.values()]
    assert behind == [{}]


def test_a_flood_of_late_events_is_cut_and_the_rest_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panes, "LATE_CAP", 4)
    watch = Watch()
    watch.panes(0, 2)
    watch.late(1, status=500)
    (correction,) = watch.corrections
    assert (correction.late["canary"], correction.left_out) == (4, 2)


def test_other_problems_stay_as_they_were_found() -> None:
    """Missing pins in late events are seen; a sticky id that moved stays found."""
    watch = Watch()
    watch.read(written([served("early", NOON - 2 * PANE, "baseline")]))
    both = [served("x", NOON + 9, arm, event_id=f"x{arm}", sticky_id="moved") for arm in ("canary", "baseline")]
    watch.read(written(both))
    watch.panes(0, 2)
    assert watch.decisions[1].reasons == ["sticky_violation"]
    watch.late(1, status=500, versions=None)
    (correction,) = watch.corrections
    found = [problem.problem for problem in correction.evidence_problems]
    assert (correction.corrected.verdict, found) == ("abort", ["pins_missing", "sticky_violation"])


def log_of(seed: int) -> list[list[bytes]]:
    """Two partitions' logs of some windows, with late events of both arms and all kinds of quality."""
    rnd = random.Random(seed)
    logs: list[list[bytes]] = [[], []]
    for pane in range(14):
        for event in healthy_pane(NOON + pane * PANE):
            logs[rnd.randrange(2)] += written([event])  # type: ignore[arg-type]
        if pane > 2 and rnd.random() < 0.6:
            old = pane - rnd.choice([2, 3, 4])
            changes = rnd.choice(CHANGES)
            for number, event in enumerate(late_events(old, **changes)):
                event |= {"event_id": f"late/{pane}/{number}", "arm": rnd.choice(["canary", "baseline"])}
                logs[rnd.randrange(2)] += written([event])  # type: ignore[arg-type]
        for log in logs:
            log.append(tick(NOON + pane * PANE + PANE - 1))
    for log in logs:
        log.append(tick(NOON + 20 * PANE))
    return logs


def corrected(logs: list[list[bytes]], rnd: random.Random | None, restarts: bool = False) -> list[bytes]:
    watch = Watch(STEADY.replace("20s", "20s, late_max: 0.9"), partitions=2, restarts=restarts)
    at = [0, 0]
    while any(at[p] < len(logs[p]) for p in (0, 1)):
        partition = 0 if at[0] < len(logs[0]) else 1
        size = len(logs[partition])
        if rnd is not None:
            partition = rnd.choice([p for p in (0, 1) if at[p] < len(logs[p])])
            size = rnd.choice([1, 3, 20])
        watch.read(logs[partition][at[partition] : at[partition] + size], partition)
        at[partition] += size
    return [correction.to_bytes() for correction in watch.corrections]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_same_log_gives_the_same_corrections(seed: int) -> None:
    """Whatever the order of partitions, the cuts of the runs and the restarts."""
    logs = log_of(seed)
    expected = corrected(logs, None)
    assert corrected(logs, random.Random(seed)) == expected
    assert corrected(logs, random.Random(seed + 1), restarts=True) == expected


def test_the_logs_of_that_property_have_corrections() -> None:
    assert sum(len(corrected(log_of(seed), None)) for seed in range(10)) > 10


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_corrected_verdict_is_that_of_the_log_in_order(seed: int) -> None:
    """First window: the last word on it is what would have been decided had the same events come in time."""
    rnd = random.Random(seed)
    changes = rnd.choice(CHANGES)
    events = [(pane, event) for pane in range(2) for event in healthy_pane(NOON + pane * PANE)]
    events += [(pane, event) for pane in range(2) for event in late_events(pane, **changes)]
    late = [rnd.random() < 0.4 for _ in events]
    in_time, in_parts = Watch(), Watch()
    prompt = [event for event, is_late in zip(events, late, strict=True) if not is_late]
    for watch, chosen in ((in_time, events), (in_parts, prompt)):
        for pane in range(2):
            watch.read(written([event for its, event in chosen if its == pane]))
        watch.read([tick(NOON + 2 * PANE + LATENESS)])
    kept = [event for (_, event), is_late in zip(events, late, strict=True) if is_late]
    in_parts.read([*written(kept), tick(NOON + 4 * PANE + LATENESS)])
    last = in_parts.corrections[-1].corrected if in_parts.corrections else in_parts.decisions[0]
    # An early abort ends a window before its end.
    if in_time.decisions[0].window.closed and in_parts.decisions[0].window.closed:
        assert last.verdict == in_time.decisions[0].verdict
