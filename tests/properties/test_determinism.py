"""The same log gives the same bytes: whatever the interleaving, the cuts, the restarts and the number of gates.

A whole deployment over the pure core, with faults by seed; hypothesis shows the seed of a failure. What a unit says
is compared as ``flag|region`` → records in order, repeats dropped, as consumers do.
"""

import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.load import load_manifest
from tidegate.schemas.manifest import Flag
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import partial_codec, split
from tidegate.streams.engine.gate_partition import GatePartition
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import SourcePartition

pytestmark = pytest.mark.usefixtures("decoder")

PANE = 10_000
CLOCKWORK = Clockwork(PANE, 5_000, "tidegate.telemetry")
START = 1_700_000_000_000
PARTITIONS = 3
MANIFEST = """
flags:
  ramp: &flag
    versions: {MODEL_VER: m1}
    traffic: {canary_weight: 0.1, baseline_weight: 0.9, stages: [0.1, 0.5, 1.0]}
    window: {length: 20s, settle: 5s, min_requests: 5, min_lambda_groups: 1, late_max: 1.0}
    policy: {evidence: point}
  second:
    traffic: {canary_weight: 0.5, baseline_weight: 0.5, stages: [0.5, 1.0]}
    window: {length: 30s, settle: 0s, min_requests: 5, hold_windows: 2, late_max: 1.0}
    policy: {quality_source: traffic, on_pin_drift: abort}
  third: *flag
"""
PINS = dict.fromkeys(("PROMPT_VER", "INDEX_HASH", "RERANK_CONF", "TOK_VER", "ANALYZER_CONF"), "1") | {"MODEL_VER": "m1"}
FATES: dict[tuple[str, str], str] = {
    ("ramp", "a"): "healthy",
    ("ramp", "b"): "drift",
    ("ramp", ""): "slow",
    ("second", "a"): "errors",
    ("second", "b|c"): "pins",
    ("third", "a"): "healthy",
    ("third", "b"): "dear",
}

Log = list[bytes]
seeds = st.integers(0, 2**32 - 1)


@cache
def flags() -> dict[str, Flag]:
    return dict(load_manifest(MANIFEST).flags)


def request(rng: random.Random, number: int, ts: int, flag: str, region: str, arm: str) -> dict[str, Any]:
    fate = FATES[flag, region] if arm == "canary" and ts > START + 15_000 else "healthy"
    drifted = fate == "pins" and ts > START + 70_000
    return {
        "event_id": f"{number}",
        "ts": ts,
        "flag": flag,
        "region": region,
        "arm": arm,
        "sticky_id": f"{arm}{rng.randrange(4 if arm == 'canary' else 8)}",
        "latency_ms": rng.lognormvariate(4, 0.02) * (3 if fate == "slow" else 1),
        "status": 500 if fate == "errors" and rng.random() < 0.7 else 200,
        "versions": PINS | {"INDEX_HASH": "2"} if drifted else PINS,
        "delta_s": 0.1 + rng.random() * 0.01 + (0.4 if fate == "drift" else 0.0),
        "coverage": 0.9,
        "cost": 0.02 if fate == "dear" else 0.01,
        "solved": True,
    }


def scenario(seed: int, *, late: bool = True, panes: int = 9) -> list[Log]:
    """What three partitions hold of a service with seven units: healthy, drifting, slow, failing and dear ones."""
    rng = random.Random(seed)
    logs: list[Log] = [[] for _ in range(PARTITIONS)]
    number = 0
    for pane in range(panes):
        events = []
        for flag, region in FATES:
            for arm in ("baseline", "canary"):
                for run in range(rng.randrange(8, 11)):
                    number += 1
                    ts = START + pane * PANE + rng.randrange(PANE)
                    event = request(rng, number, ts, flag, region, arm)
                    if run < 6:
                        event |= {"query_id": "q", "paraphrase": run // 2 + 1, "seed": run % 2 + 1}
                        event |= {"lambda_state": "→", "source": "gold" if flag == "ramp" else "traffic"}
                    events.append(event)
        # A little out of order, as several servers write.
        events.sort(key=lambda event: event["ts"] + rng.randrange(3_000))
        for event in events:
            partition = sum(event["sticky_id"].encode()) % PARTITIONS
            if late and rng.random() < 0.01:
                event["ts"] = max(START, event["ts"] - 40_000)
            logs[partition].append(json.dumps(event).encode())
            if rng.random() < 0.001:
                logs[partition].append(rng.choice([b"no event", b'{"flag": "ramp"}']))
    for log in logs:
        log.append(b'{"kind":"tick","ts":%d}' % (START + (panes + 3) * PANE))
    return logs


@dataclass
class Said:
    """What came out, by unit, and all bytes in the order in which they came."""

    decisions: dict[str, list[bytes]] = field(default_factory=dict)
    commands: dict[str, list[bytes]] = field(default_factory=dict)
    repeats: int = 0

    def take(self, outcomes: Any) -> None:
        for decision, command in outcomes:
            self._add(self.decisions, decision)
            if command is not None:
                self._add(self.commands, command)

    def _add(self, kept: dict[str, list[bytes]], record: Any) -> None:
        unit, value = kept.setdefault(record.key, []), record.to_bytes()
        if value in unit:
            self.repeats += 1
        else:
            unit.append(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Said) and (self.decisions, self.commands) == (other.decisions, other.commands)

    __hash__ = None  # type: ignore[assignment]


class Deployment:
    """Workers without Kafka: partitions write partials to the gates' logs, gates read them; either may crash."""

    def __init__(self, logs: list[Log], gates: int = 1) -> None:
        self.logs, self.gates = logs, gates
        self.said = Said()
        self.partials: list[list[bytes]] = [[] for _ in range(gates)]
        self.windows = [
            SourcePartition.fresh(p, CLOCKWORK, EventClasses(Timeline.of(flags()))) for p in range(len(logs))
        ]
        self.deciders = [
            GatePartition.fresh(g, gates, len(logs), CLOCKWORK, Timeline.of(flags())) for g in range(gates)
        ]
        self.window_saves = [state.dump() for state in self.windows]
        self.gate_saves = [state.dump() for state in self.deciders]

    def read(self, partition: int, count: int) -> bool:
        """Take the next records of a partition; False at its end."""
        state, log = self.windows[partition], self.logs[partition]
        run = Run(state.next, log[state.next : state.next + count])
        for partial in state.step(run).partials:
            for gate, part in enumerate(split(partial, self.gates)):
                self.partials[gate].append(partial_codec.dump(part))
        return state.next < len(log)

    def decide(self, gate: int, count: int) -> None:
        """Take the next partials of a gate."""
        state = self.deciders[gate]
        for offset in range(state.next, min(state.next + count, len(self.partials[gate]))):
            self.said.take(state.step(offset, partial_codec.load(self.partials[gate][offset])))

    def save_window(self, partition: int) -> None:
        self.window_saves[partition] = self.windows[partition].dump()

    def save_gate(self, gate: int) -> None:
        self.gate_saves[gate] = self.deciders[gate].dump()

    def crash_window(self, partition: int) -> None:
        """Back to the last checkpoint: what was read since is read, and written, again."""
        blob = self.window_saves[partition]
        self.windows[partition] = SourcePartition.load(blob, partition, CLOCKWORK, EventClasses(Timeline.of(flags())))

    def crash_gate(self, gate: int) -> None:
        blob = self.gate_saves[gate]
        self.deciders[gate] = GatePartition.load(
            blob, gate, self.gates, len(self.logs), CLOCKWORK, Timeline.of(flags())
        )

    def finish(self) -> Said:
        for partition in range(len(self.logs)):
            while self.read(partition, 5_000):
                pass
        for gate in range(self.gates):
            self.decide(gate, 10**9)
        return self.said


def undisturbed(logs: list[Log]) -> Said:
    return Deployment(logs).finish()


def disturbed(logs: list[Log], rng: random.Random, gates: int, trouble: float) -> Said:
    """Random interleaving and cuts; with ``trouble`` > 0 also checkpoints and crashes at random moments."""
    deployment = Deployment(logs, gates)
    alive = set(range(len(logs)))
    while alive:
        partition, gate = rng.choice(sorted(alive)), rng.randrange(gates)
        if not deployment.read(partition, rng.choice([1, 7, 60, 400])):
            alive.discard(partition)
        deployment.decide(gate, rng.choice([0, 1, 3, 50]))
        if rng.random() < trouble:
            deployment.save_window(rng.randrange(len(logs)))
            deployment.save_gate(rng.randrange(gates))
        if rng.random() < trouble:
            deployment.crash_gate(gate)
        if rng.random() < trouble / 3:
            deployment.crash_window(partition)
            alive.add(partition)
    return deployment.finish()


def test_the_logs_of_these_tests_lead_to_every_verdict() -> None:
    """What is the same bytes below is not nothing."""
    said = undisturbed(scenario(1, panes=14))
    verdicts = Counter(json.loads(line)["verdict"] for lines in said.decisions.values() for line in lines)
    assert set(verdicts) >= {"promote", "pass", "hold", "freeze", "rollback", "abort"}
    decisions = [json.loads(line) for lines in said.decisions.values() for line in lines]
    assert any(not decision["window"]["closed"] for decision in decisions)
    assert any(decision["late"] for decision in decisions)
    assert any(decision["dead_letters"] for decision in decisions)
    assert len(said.decisions) == len(FATES)


@settings(max_examples=6, deadline=None)
@given(seed=seeds)
def test_interleaving_and_cuts_of_partitions_do_not_matter(seed: int) -> None:
    logs = scenario(seed)
    assert disturbed(logs, random.Random(seed), gates=1, trouble=0) == undisturbed(logs)


@settings(max_examples=6, deadline=None)
@given(seed=seeds)
def test_a_crash_of_any_stage_at_any_point_does_not_matter(seed: int) -> None:
    """Partials and records come twice then, the same bytes."""
    logs = scenario(seed)
    assert disturbed(logs, random.Random(seed), gates=1, trouble=0.2) == undisturbed(logs)


@settings(max_examples=6, deadline=None)
@given(seed=seeds, gates=st.sampled_from([3, 4]))
def test_the_number_of_gates_does_not_matter(seed: int, gates: int) -> None:
    """Per unit the same bytes, with crashes too."""
    logs = scenario(seed)
    assert disturbed(logs, random.Random(seed), gates=gates, trouble=0.1) == undisturbed(logs)


def test_crashes_are_what_these_tests_make() -> None:
    """The simulated crash does send records again."""
    assert disturbed(scenario(3), random.Random(3), gates=1, trouble=0.3).repeats > 0


def test_a_worker_that_was_thought_dead_may_go_on_writing() -> None:
    """Two owners of one partition write the same partials in any mixture."""
    logs = scenario(5)
    expected = undisturbed(logs)
    for seed in range(3):
        rng = random.Random(seed)
        deployment = Deployment(logs)
        zombies = Deployment(logs)
        zombies.partials = deployment.partials
        for _ in range(150):
            rng.choice([deployment, zombies]).read(rng.randrange(PARTITIONS), rng.choice([5, 60]))
            deployment.decide(0, rng.randrange(4))
        assert deployment.finish() == expected


def doubled(logs: list[Log], rng: random.Random) -> list[Log]:
    """Every event twice: at once, or a few records later, but while its pane is open: later it would be late."""
    result = []
    for log in logs:
        twice: Log = []
        waiting: list[tuple[int, int, bytes]] = []
        largest = 0
        for at, value in enumerate(log):
            told = re.search(rb'"ts": ?([0-9]+)', value)
            largest = max(largest, int(told[1]) if told else 0)
            open_from = (largest - CLOCKWORK.lateness_ms) // PANE
            twice += [again for due, pane, again in waiting if due <= at or pane < open_from]
            waiting = [one for one in waiting if one[0] > at and one[1] >= open_from]
            twice.append(value)
            if told and b'"event_id"' in value:
                waiting.append((at + rng.choice([0, 1, 5]), int(told[1]) // PANE, value))
        result.append(twice + [again for _, _, again in waiting])
    return result


def without_offsets(decision: bytes) -> dict[str, Any]:
    """A decision without what duplicates may change: ``duplicates``, source offsets and the hashes."""
    record: dict[str, Any] = json.loads(decision)
    for name in ("duplicates", "source", "hash", "previous_hash"):
        del record[name]
    for problem in record["evidence_problems"]:
        problem["detail"].pop("first", None)
    for worst in record["exemplars"].values():
        for exemplar in worst:
            del exemplar["offset"]
    for arm in record["arms"].values():
        if arm["pinned_from"]:
            del arm["pinned_from"]["hash"]
    return record


@settings(max_examples=6, deadline=None)
@given(seed=seeds)
@example(seed=42035)
def test_every_event_doubled_changes_nothing_but_duplicates_offsets_and_hashes(seed: int) -> None:
    """The same verdicts, gates, rules, arms, ids and everything else, and the same bytes of every command."""
    logs = scenario(seed, late=False)
    once, twice = undisturbed(logs), undisturbed(doubled(logs, random.Random(seed)))
    assert twice.commands == once.commands
    assert {unit: [without_offsets(d) for d in lines] for unit, lines in twice.decisions.items()} == {
        unit: [without_offsets(d) for d in lines] for unit, lines in once.decisions.items()
    }
    assert sum(json.loads(d)["duplicates"] for lines in twice.decisions.values() for d in lines) > 0


@settings(max_examples=4, deadline=None)
@given(seed=seeds)
def test_late_events_doubled_change_no_metric_either(seed: int) -> None:
    """They come again after their pane has closed, so they are late once more: as long as the share of late events
    is not what a verdict hangs on (``late_max`` is 1 here), verdicts and commands stay."""
    logs = scenario(seed)
    once, twice = undisturbed(logs), undisturbed(doubled(logs, random.Random(seed)))

    def metrics(said: Said) -> dict[str, list[Any]]:
        kept = ("verdict", "gates", "abort_rules", "arms")
        return {
            unit: [[without_offsets(d)[name] for name in kept] for d in lines] for unit, lines in said.decisions.items()
        }

    assert metrics(twice) == metrics(once)
    assert twice.commands == once.commands


@pytest.mark.parametrize("silent", range(PARTITIONS))
def test_a_silent_partition_holds_everything_and_its_tick_releases_it(silent: int) -> None:
    logs = scenario(3, panes=6)
    expected = undisturbed(logs)
    deployment = Deployment(logs)
    for partition in set(range(PARTITIONS)) - {silent}:
        while deployment.read(partition, 500):
            pass
    deployment.decide(0, 10**9)
    assert deployment.said.decisions == {}
    assert deployment.finish() == expected
