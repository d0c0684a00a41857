"""Taken up at retained checkpoints from any time on, the past gives the bytes that were recorded after it.

A deployment over the pure core is run at random, with crashes and checkpoints on the way: all kinds of flags,
revisions that change, remove and bring back flags, kill switches, operators' orders that stand in the gates' logs. Then
it is decided again from random times; hypothesis shows the seed of a failure.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.gates import unit
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import decision_from_bytes
from tidegate.schemas.load import load_manifest
from tidegate.schemas.operation import Operation
from tidegate.schemas.timeline import Revision, Timeline
from tidegate.streams.audit.compare import by_unit
from tidegate.streams.audit.conductor import _reached
from tidegate.streams.audit.recorded import Recorded, place_orders
from tidegate.streams.audit.topic_replay import PlacedGate, ReplayRequest, TopicReplay
from tidegate.streams.commands.outcomes import After
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import Order, gate_of, order_codec, partial_codec, split
from tidegate.streams.engine.gate_partition import GatePartition, switches
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import SourcePartition
from tidegate.streams.kafka.history import Extent
from tidegate.streams.kafka.retained import Agent, ResumePoint, Retained, RetainedEntry, Shape
from tidegate.streams.settings import load_settings

PANE = 10_000
CLOCKWORK = Clockwork(PANE, 5_000, "tidegate.telemetry")
START = 1_700_000_000_000
PANES = 22
PARTITIONS = 3
QUIET = 4
"""Panes in the middle in which some units are silent for longer than it takes to fall asleep."""
RAMP = """
  ramp:
    versions: {MODEL_VER: m1}
    traffic: {canary_weight: 0.1, baseline_weight: 0.9, stages: [0.1, 1.0]}
    window: {length: 20s, settle: 5s, min_requests: 4, min_lambda_groups: 1, late_max: 1.0}
    policy: {evidence: point, quality_source: traffic, lambda_source: traffic}
"""
GUARDS = """
  quality: {kind: quality_gated, window: &window {length: 20s, settle: 0s, min_requests: 3, late_max: 1.0},
    gates: &gates {lambda_convergent: false, tool_success_min: null}, policy: &policy {quality_source: traffic}}
  safety: {kind: safety_guard, window: *window, gates: *gates, policy: *policy}
  cost: {kind: cost_guard, window: *window, gates: *gates, policy: *policy}
"""
SWITCH = """
  switch: {kind: kill_switch, traffic: {canary_weight: %s}, scope: {regions: [a, c]}}
"""
CHANGED = """
  changed: {kind: %s, window: {length: %s, settle: 0s, min_requests: 3, late_max: 1.0}, traffic: {stages: [%s, 1.0]},
    gates: {lambda_convergent: false, tool_success_min: null}, policy: {quality_source: traffic}}
"""
GONE = """
  gone: {window: {length: 30s, settle: 0s, min_requests: 3, late_max: 1.0}, gates: {lambda_convergent: false}}
"""
ROLLOUT = "progressive_rollout"
REVISIONS = (
    RAMP + GUARDS + SWITCH % 0.5 + CHANGED % (ROLLOUT, "20s", 0.05) + GONE,
    RAMP + GUARDS + SWITCH % 0 + CHANGED % (ROLLOUT, "30s", 0.25),
    RAMP + GUARDS + SWITCH % 0.5 + CHANGED % ("cost_guard", "30s", 0.05) + GONE,
    RAMP + GUARDS + SWITCH % 0 + CHANGED % (ROLLOUT, "20s", 0.05) + GONE,
    SWITCH % 0.5,
    SWITCH % 0,
)
FLAGS = ("ramp", "quality", "safety", "cost", "switch", "changed", "gone")
UNITS = (*((flag, "a") for flag in FLAGS), ("ramp", "b"), ("ramp", "c"), ("cost", "b"), ("gone", "b|x"), ("other", "a"))
PINS = dict.fromkeys(("PROMPT_VER", "INDEX_HASH", "RERANK_CONF", "TOK_VER", "ANALYZER_CONF"), "1") | {"MODEL_VER": "m1"}
seeds = st.integers(0, 2**32 - 1)


@cache
def revisions() -> list[dict[str, Any]]:
    return [dict(load_manifest("flags:" + text).flags) for text in REVISIONS]


def timeline(rng: random.Random) -> Timeline:
    """Four revisions, each of which begins at some pane of the log, and two that are published ahead."""
    starts = [
        0,
        *(START + pane * PANE for pane in sorted(rng.sample(range(2, PANES - 1), 3))),
        START + 10**8,
        START + 10**8 + PANE,
    ]
    return Timeline([Revision(n, at, flags) for n, (at, flags) in enumerate(zip(starts, revisions(), strict=True), 1)])


def request(rng: random.Random, number: int, ts: int, flag: str, region: str, arm: str, bad: str) -> dict[str, Any]:
    wrong = bad if arm == "canary" or bad == "crossing" else ""
    return {
        "event_id": f"{number}",
        "ts": ts,
        "flag": flag,
        "region": region,
        "arm": arm,
        "sticky_id": f"{'user' if wrong == 'crossing' else arm}{rng.randrange(4 if arm == 'canary' else 8)}",
        "latency_ms": rng.lognormvariate(4, 0.02) * (3 if wrong == "slow" else 1),
        "status": 500 if wrong == "errors" and rng.random() < 0.7 else 200,
        "versions": PINS | {"INDEX_HASH": "2"} if wrong == "pins" else PINS,
        "delta_s": 0.1 + rng.random() * 0.01 + (0.4 if wrong == "drift" else 0.0),
        "coverage": 0.9,
        "cost": 0.02 if wrong == "dear" else 0.01,
        "solved": True,
    }


def scenario(rng: random.Random) -> list[list[bytes]]:
    """What the partitions hold: faults come and go, events come late, some units are silent for a while."""
    logs: list[list[bytes]] = [[b"no event"] * rng.randrange(2) for _ in range(PARTITIONS)]
    silent = rng.choice([None, *range(PARTITIONS)])
    number = 0
    fault = {unit: rng.choice(["", "", "", "slow", "errors", "pins", "drift", "dear", "crossing"]) for unit in UNITS}
    late = rng.sample(FLAGS, 1)
    exposed, broken = rng.choice([None, *UNITS]), rng.choice([0.0, 0.001])
    spans = {unit: sorted(rng.sample(range(PANES), 2)) for unit in UNITS}
    begins = {unit: rng.choice([0, 0, 0, rng.randrange(PANES)]) for unit in UNITS}
    quiet = {unit: rng.choice([PANES, PANES, rng.randrange(PANES)]) for unit in UNITS}
    for pane in range(PANES):
        events = []
        for flag, region in UNITS:
            unit = flag, region
            if pane < begins[unit] or quiet[unit] <= pane < quiet[unit] + 11:
                continue
            first, last = spans[unit]
            for arm in ("baseline", "canary"):
                for run in range(rng.randrange(4, 8)):
                    number += 1
                    ts = START + pane * PANE + rng.randrange(PANE)
                    event = request(rng, number, ts, flag, region, arm, fault[unit] if first <= pane < last else "")
                    if run < 6 and flag == "ramp":
                        event |= {"query_id": "q", "paraphrase": run // 2 + 1, "seed": run % 2 + 1, "lambda_state": "→"}
                    if flag == "safety":
                        failed = rng.random() < 0.02
                        event |= {"reason_status": "failed" if failed else "ok", "output_mode": "full"}
                    if rng.random() < 0.05:
                        event["source"] = rng.choice(["gold", "shadow"])
                    if unit == exposed and rng.random() < 0.3:
                        event["kind"] = "exposure"
                        del event["status"], event["latency_ms"]
                    events.append(event)
        events.sort(key=lambda event: event["ts"] + rng.randrange(3_000))
        for event in events:
            partition = sum(event["sticky_id"].encode()) % PARTITIONS
            if partition == silent:
                partition = (partition + 1) % PARTITIONS
            if rng.random() < (0.5 if event["flag"] in late and pane % 3 == 0 else 0.01):
                event["ts"] = max(START, event["ts"] - rng.choice([20_000, 40_000]))
            logs[partition].append(json.dumps(event).encode())
            if rng.random() < broken:
                logs[partition].append(rng.choice([b"no event", logs[partition][-1]]))
        if silent is not None and rng.random() < 0.3:
            logs[silent].append(b'{"kind":"tick","ts":%d}' % (START + pane * PANE))
    for log in logs:
        if rng.random() < 0.9:
            log.append(b'{"kind":"tick","ts":%d}' % (START + (PANES + rng.choice([2, 3, 9])) * PANE))
    return logs


@dataclass
class Logged:
    """A record of a gate's log."""

    partition: int
    offset: int
    key: bytes
    value: bytes
    timestamp: int


class Live:
    """A deployment that is run at random, with crashes, and what it leaves behind."""

    def __init__(self, rng: random.Random, *, gates: int) -> None:
        self.rng, self.timeline, self.gates = rng, timeline(rng), gates
        self.logs = scenario(rng)
        self.shape = Shape("tidegate.telemetry", PARTITIONS, gates, PANE, CLOCKWORK.lateness_ms)
        self.decisions: list[bytes] = []
        self.commands: list[bytes] = []
        self.corrections: dict[bytes, int] = {}
        self.entries: list[list[Logged]] = [[] for _ in range(gates)]
        self.operations: dict[Operation, int] = {}
        self.put: list[int] = [0] * gates
        self.switched: set[tuple[str, int]] = set()
        self.table = EventClasses(self.timeline)
        self.windows = [SourcePartition.fresh(p, CLOCKWORK, self.table) for p in range(PARTITIONS)]
        self.deciders = [self._fresh(gate) for gate in range(gates)]
        self.kept: tuple[list[list[RetainedEntry]], list[list[RetainedEntry]]] = (
            [[] for _ in range(gates)],
            [[], [], []],
        )
        self.blobs: list[bytes] = []
        self.now = START
        self._run()

    def _fresh(self, gate: int) -> GatePartition:
        return GatePartition.fresh(gate, self.gates, PARTITIONS, CLOCKWORK, self.timeline)

    def _run(self) -> None:
        rng, alive = self.rng, set(range(PARTITIONS))
        favour = [rng.choice([1, 3, 9]) for _ in range(PARTITIONS)]
        while alive:
            partition = rng.choice([p for p in sorted(alive) for _ in range(favour[p])])
            if not self._read(partition, rng.choice([1, 7, 60])):
                alive.discard(partition)
            if rng.random() < 0.02:
                self._order()
            for gate in range(self.gates):
                self._decide(gate, rng.choice([0, 1, 3, 50]))
            if rng.random() < 0.3:
                self._keep("window", self.windows, self.kept[1])
            if rng.random() < 0.3:
                self._keep("gate", self.deciders, self.kept[0])
            if rng.random() < 0.03:
                self._crash(alive)
        for gate in range(self.gates):
            self._decide(gate, 10**9)

    def _read(self, partition: int, count: int) -> bool:
        state, log = self.windows[partition], self.logs[partition]
        values = log[state.next : state.next + count]
        for value in values:
            if value != b"no event":
                self._pass(json.loads(value)["ts"])
        for partial in state.step(Run(state.next, values)).partials:
            for gate, part in enumerate(split(partial, self.gates)):
                self._enter(gate, b"%d|%d" % (partial.partition, partial.pane), partial_codec.dump(part))
        return state.next < len(log)

    def _pass(self, ts: int) -> None:
        """The clock goes on to a time, if it is later; no revision is missed on the way."""
        for now in (*(start for start in self.timeline.starts if self.now < start < ts), max(ts, self.now)):
            self.now = now
            self._switch()

    def _enter(self, gate: int, key: bytes, value: bytes) -> None:
        self.entries[gate].append(Logged(gate, len(self.entries[gate]), key, value, self.now))

    def _order(self) -> None:
        """An operator orders something; now and then one whose clock is behind or ahead."""
        rng, number = self.rng, len(self.operations)
        ts = self.now + rng.choice([0, 0, 0, -2_000, 3_000, -70_000])
        operation = Operation(
            actor="Ada", flag=rng.choice(FLAGS), kind=rng.choice(["kill", "rearm"]), reason=f"{number}", ts=ts
        )
        self.operations[operation] = 2 * number
        self._put_orders()

    def _put_orders(self) -> None:
        for operation, offset in self.operations.items():
            gate = gate_of(operation.flag, self.gates)
            if offset >= self.put[gate]:
                order = Order(operation.flag, operation.by, offset)
                self._enter(gate, b"operation|%d" % offset, order_codec.dump(order))
                self.put[gate] = offset + 1

    def _switch(self) -> None:
        for order in switches(self.timeline, self.timeline.index(self.now)):
            if (order.flag, order.revision) not in self.switched:
                self._enter(gate_of(order.flag, self.gates), b"switch|", order_codec.dump(order))
                self.switched.add((order.flag, order.revision))

    def _decide(self, gate: int, count: int) -> None:
        state = self.deciders[gate]
        for entry in self.entries[gate][state.next : state.next + count]:
            if entry.key.startswith((b"operation", b"switch")):
                outcomes = state.operate(entry.offset, order_codec.load(entry.value))
            else:
                outcomes = state.step(entry.offset, partial_codec.load(entry.value))
            for decision, command in outcomes:
                self.decisions.append(decision.to_bytes())
                self.commands += [] if command is None else [command.to_bytes()]
            self.corrections |= {c.to_bytes(): c.corrected_at for c in state.take_corrections()}

    def _keep(self, agent: Agent, states: Sequence[Any], places: list[list[RetainedEntry]]) -> None:
        number = self.rng.randrange(len(states))
        state = states[number]
        if state.watermark is not None:
            places[number].append(RetainedEntry(agent, number, self.shape, state.mark, (len(self.blobs),)))
            self.blobs.append(state.dump())

    def _crash(self, alive: set[int]) -> None:
        """A worker dies: one partition and one gate go on from a checkpoint; orders are put into the log once more."""
        rng = self.rng
        partition, gate = rng.randrange(PARTITIONS), rng.randrange(self.gates)
        if self.kept[1][partition]:
            blob = self.blobs[self.kept[1][partition][-1].parts[0]]
            self.windows[partition] = SourcePartition.load(blob, partition, CLOCKWORK, self.table)
            alive.add(partition)
        if self.kept[0][gate]:
            blob = self.blobs[self.kept[0][gate][-1].parts[0]]
            state = GatePartition.load(blob, gate, self.gates, PARTITIONS, CLOCKWORK, self.timeline)
        else:
            state = self._fresh(gate)
        self.deciders[gate] = state
        self.put[gate] = state.operations_next
        self._put_orders()
        self.switched = {(flag, n) for flag, n in self.switched if gate_of(flag, self.gates) != gate}

    # Afterwards

    def retained(self, firsts: Sequence[int] = (0, 0, 0)) -> Retained:
        return Retained(*self.kept, firsts)

    def asked(self) -> ReplayRequest:
        values = by_unit(self.decisions)
        chains = {unit: [decision_from_bytes(line) for line in lines] for unit, lines in values.items()}
        return ReplayRequest(
            self.timeline, self.operations, CLOCKWORK, Recorded(chains, values, self.commands), self.now + 1
        )

    def place(self, asked: ReplayRequest, cut: ResumePoint, gone: Sequence[int]) -> None:
        """Find where the orders stand in what is left of the gates' logs; ``gone``: the first offsets that are."""
        kept = {
            gate: (first, len(entries)) for gate, (first, entries) in enumerate(zip(gone, self.entries, strict=True))
        }

        def read(extent: Extent) -> list[list[Logged]]:
            return [self.entries[gate][first:end] for gate, (first, end) in extent.bounds.items() if first < end]

        history: Any = SimpleNamespace(has=lambda _: True, extent=lambda topic: Extent(topic, kept, kept), read=read)
        marks = [None if gate is None else gate.mark for gate in cut.gates]
        place_orders(asked.past, history, load_settings(), marks, print)

    def load(self, places: Sequence[RetainedEntry | None]) -> list[bytes | None]:
        return [None if place is None else self.blobs[place.parts[0]] for place in places]

    def runs(self, positions: dict[int, int], rng: random.Random) -> Iterator[list[Any]]:
        following = {p: positions.get(p, 0) for p in range(PARTITIONS)}
        while left := [p for p, at in following.items() if at < len(self.logs[p])]:
            p = rng.choice(left)
            count = rng.choice([1, 9, 400])
            values = self.logs[p][following[p] : following[p] + count]
            yield [
                SimpleNamespace(topic="t", partition=p, offset=following[p] + n, value=value, timestamp=-1)
                for n, value in enumerate(values)
            ]
            following[p] += count


def after(lines: Sequence[bytes], start: int | None) -> dict[str, list[bytes]]:
    return by_unit(After(start).of(lines))


@dataclass
class Taken:
    """What was decided again."""

    cut: ResumePoint
    decisions: list[bytes]
    commands: list[bytes]
    corrections: dict[bytes, int]
    difference: str | None


def again(live: Live, asked: ReplayRequest, cut: ResumePoint, rng: random.Random) -> Taken:
    """All of the gates' logs that is older than the checkpoints may be gone."""
    live.place(asked, cut, [0 if gate is None else rng.choice([0, gate.mark.next]) for gate in cut.gates])
    corrected: list[Any] = []
    found = TopicReplay(asked, live.load(cut.gates), live.load(cut.windows), corrected.append)
    decisions, commands = [], []
    for decision, command in found.decide(live.runs(found.positions, rng)):
        decisions.append(decision.to_bytes())
        commands += [] if command is None else [command.to_bytes()]
    corrections = {c.to_bytes(): c.corrected_at for c in corrected}
    return Taken(cut, decisions, commands, corrections, found.difference(decisions, commands))


def latest(kept: Retained, asked: ReplayRequest, start: int) -> ResumePoint | None:
    return kept.latest([asked.before(start, gate, len(kept.gates)) for gate in range(len(kept.gates))])


def check(live: Live, taken: Taken, start: int) -> None:
    """What was decided after ``start`` is what was recorded, corrections included."""
    assert taken.difference is None
    assert after(taken.decisions, start) == after(live.decisions, start)
    recorded = {value for value, at in live.corrections.items() if at > start}
    assert {value for value, at in taken.corrections.items() if at > start} == recorded


def moments(live: Live, rng: random.Random) -> list[int]:
    """Times to begin at: anywhere, at a decision and right before one, before and after everything."""
    decided = [json.loads(line)["decided_at"] for line in live.decisions]
    anywhere = rng.randrange(START, START + PANES * PANE)
    return [anywhere, rng.choice(decided), rng.choice(decided) - 1, 0, START + 2 * PANES * PANE]


def deployment(seed: int) -> tuple[Live, random.Random]:
    rng = random.Random(seed)
    return Live(rng, gates=rng.choice([1, 2, 3])), rng


@pytest.fixture(autouse=True, scope="module")
def soon_asleep() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit, "ASLEEP_AFTER", QUIET)
        yield


def test_these_deployments_show_everything() -> None:
    """What is the same bytes below is not nothing."""
    verdicts, corrections, repeats = set(), 0, 0
    for seed in (1, 4, 5):
        live, _ = deployment(seed)
        verdicts |= {json.loads(line)["verdict"] for line in live.decisions}
        corrections += len(live.corrections)
        repeats += len(live.decisions) - len(set(live.decisions))
    guards = {"open", "close", "degrade", "fallback", "restore"}
    assert verdicts >= {"promote", "pass", "hold", "freeze", "rollback", "abort", "kill", "rearm", *guards}
    assert corrections > 0
    assert repeats > 0


@settings(max_examples=3, deadline=None)
@given(seed=seeds)
def test_from_any_time_on_the_past_gives_what_was_recorded_after_it(seed: int) -> None:
    live, rng = deployment(seed)
    asked = live.asked()
    for start in moments(live, rng):
        cut = latest(live.retained(), asked, start)
        assert cut is not None
        check(live, again(live, asked, cut, rng), start)


@settings(max_examples=2, deadline=None)
@given(seed=seeds)
def test_where_telemetry_is_gone_the_first_time_that_is_named_can_be_begun_at(seed: int) -> None:
    live, rng = deployment(seed)
    asked = live.asked()
    kept = live.retained([rng.choice([0, *(place.mark.next for place in places)]) for places in live.kept[1]])
    first = kept.earliest()
    if first is None:
        return
    assert again(live, asked, first, rng).difference is None
    start = _reached(first, asked)
    cut = latest(kept, asked, start)
    assert cut is not None
    check(live, again(live, asked, cut, rng), start)


@settings(max_examples=2, deadline=None)
@given(seed=seeds)
def test_also_without_the_gates_logs_nothing_was_decided_after_the_time_and_before_the_checkpoints(seed: int) -> None:
    """Kill switches are decided with the time of their revision, which the telemetry has not reached then."""
    live, rng = deployment(seed)
    asked = live.asked()
    switched = {order.operation.ts for order in asked.orders() if order.revision >= 0}
    for start in [*moments(live, rng), *(ts - 1 for ts in switched)]:
        cut = latest(live.retained(), asked, start)
        assert cut is not None
        for gate, blob in enumerate(live.load(cut.gates)):
            if blob is None:
                continue
            state = PlacedGate.load(blob, gate, live.gates, PARTITIONS, CLOCKWORK, live.timeline)
            for name, head in state.heads.items():
                chain = asked.past.chains.get(name, [])
                done = next((n for n, decision in enumerate(chain, 1) if decision.hash == head.hash), 0)
                assert all(decision.decided_at <= start for decision in chain[:done])
