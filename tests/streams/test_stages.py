"""Sequential evidence from logs to verdicts, against the slow model of ``stages``, and its bytes whatever the order."""

import random
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import yaml

from tests.streams.events import CLOCKWORK, LATENESS, NOON, PANE, draw_runs, flags, probes, served, tick, written
from tests.streams.reference import Partition
from tests.streams.stages import Ramp
from tidegate.schemas.decision import Decision
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import Partial, partial_codec
from tidegate.streams.engine.gate_partition import GatePartition
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import SourcePartition

MANIFEST = """
flags:
  f:
    versions: {MODEL_VER: m1}
    traffic: {canary_weight: 0.5, baseline_weight: 0.5, stages: [0.5, 0.75, 1.0]}
    window: {length: 30s, settle: 5s, min_requests: 20, min_lambda_groups: 1, hold_windows: 1, late_max: 0.02}
    gates: {delta_s: {median_max: 0.05, p95_max: 0.1}, coverage_min: 0.7, lambda_convergent: true,
            latency_p95_uplift_max: 0.2, error_rate_max: 0.05, tool_success_min: 0.95, cost_uplift_max: 0.15}
    abort_rules:
      hard: [{kind: delta_s_p95_over, value: 0.2}, {kind: coverage_under, value: 0.6},
             {kind: lambda_flip_rate_over, value: 0.45}, {kind: error_rate_over, value: 0.08}]
    policy:
      evidence: sequential
      false_stop: 0.2
      wrong_promote: 0.2
      quality_gain: off
      rule_out: {error_rate: 0.12, delta_s_p95: 0.3, coverage: 0.55, lambda_flip_rate: 0.5, delta_s_median: 0.15,
                 latency_p95_uplift: 0.6, cost_uplift: 0.4, tool_success: 0.88}
"""
FATES = ("healthy", "between", "errors", "few errors", "tools", "coverage", "flips", "drift", "slow", "dear", "late")
SEEDS, PARTITIONS = 2, 2
PANES = {"healthy": 38}
"""How long a log lasts, if not 18 panes: until the last stage is passed."""
Log = list[bytes | None]


def rules() -> dict[str, Any]:
    """The manifest as the model reads it."""
    found: dict[str, Any] = yaml.safe_load(MANIFEST)["flags"]["f"]
    hard = {rule["kind"]: rule["value"] for rule in found["abort_rules"]["hard"]}
    return found | {"hard": hard, "panes": 3, "settle_panes": 2, "stages": found["traffic"]["stages"]}


def values(rng: np.random.Generator, fate: str, arm: str) -> dict[str, Any]:
    """What a request says; so few different values that every digest is exact."""
    bad = fate if arm == "canary" else "healthy"
    errors = {"errors": 0.3, "few errors": 0.09, "between": 0.07}.get(bad, 0.01)
    return {
        "sticky_id": f"{arm} {rng.integers(3)}",
        "status": 500 if rng.random() < errors else 200,
        "latency_ms": float(round(rng.lognormal(4, 0.3) * (1.9 if bad == "slow" else 1.0))),
        "delta_s": round(min(rng.lognormal(-3, 0.5) + (0.3 if bad == "drift" else 0.0), 2.0), 2),
        "coverage": round(rng.beta(16, 4) * (0.6 if bad == "coverage" else 1.0), 2),
        "cost": round(rng.lognormal(-2, 0.4) * (1.7 if bad == "dear" else 1.0), 3),
        "solved": bool(rng.random() < 0.8),
        "tool_calls": 1,
        "tool_ok": int(rng.random() > (0.15 if bad == "tools" else 0.01)),
    }


def logs(fate: str, seed: int) -> list[Log]:
    """Two partitions of a service whose canary is healthy for some panes and then as it is fated to be."""
    rng = np.random.default_rng(seed)
    turns = int(rng.choice([0, 4, 9]))
    events: list[list[dict[str, Any]]] = [[] for _ in range(PARTITIONS)]
    panes = PANES.get(fate, 18)
    for pane in range(panes):
        now = fate if pane >= turns else "healthy"
        ts = NOON + pane * PANE
        made = []
        for arm in ("canary", "baseline"):
            for i in range(2):
                group = probes(f"{pane}.{i}", ts, arm)
                if now == "flips" and arm == "canary" and rng.random() < 0.6:
                    group[3]["lambda_state"] = "×"
                made += group[: 6 - int(rng.random() < 0.2)]
            made += [served(f"{pane}/{i}", ts, arm) for i in range(40)]
        for event in made:
            event |= values(rng, now, event["arm"]) | {"ts": ts + int(rng.integers(PANE))}
        made.sort(key=lambda event: event["ts"] + int(rng.integers(3_000)))
        for event in made:
            if now == "late" and pane % 3 == 1 and rng.random() < 0.1:
                event["ts"] -= 4 * PANE
            events[int(rng.integers(PARTITIONS))].append(event)
    return [[*written(part), tick(NOON + panes * PANE + 2 * LATENESS)] for part in events]


def partials(log: Log, partition: int, rng: random.Random | None = None) -> list[Partial]:
    """The panes of one partition; with ``rng`` cut into runs by chance, with restarts between them."""
    table = EventClasses(Timeline.of(flags(MANIFEST)))
    state = SourcePartition.fresh(partition, CLOCKWORK, table, 0)
    if rng is None:
        return state.step(Run(0, log)).partials
    found = []
    for run in draw_runs(rng, log):
        found += state.step(run).partials
        if rng.random() < 0.1:
            state = SourcePartition.load(state.dump(), partition, CLOCKWORK, EventClasses(Timeline.of(flags(MANIFEST))))
    return found


def decided(sent: list[Partial], rng: random.Random | None = None) -> list[Decision]:
    """What the gate says of them; with ``rng`` restarted now and then."""
    state, found = GatePartition.fresh(0, 1, PARTITIONS, CLOCKWORK, Timeline.of(flags(MANIFEST))), []
    for offset, partial in enumerate(sent):
        found += [d for d, _ in state.step(offset, partial_codec.load(partial_codec.dump(partial)))]
        if rng is not None and rng.random() < 0.3:
            state = GatePartition.load(state.dump(), 0, 1, PARTITIONS, CLOCKWORK, Timeline.of(flags(MANIFEST)))
    return found


@cache
def plainly(fate: str, seed: int) -> tuple[list[Log], list[Decision]]:
    made = logs(fate, seed)
    return made, decided([p for n, log in enumerate(made) for p in partials(log, n)])


def compared(fate: str, seed: int) -> list[Decision]:
    """The decisions of a log up to the first pass or end, after they were found to be the model's."""
    made, found = plainly(fate, seed)
    read = [Partition(MANIFEST, PANE, LATENESS) for _ in made]
    for partition, log in zip(read, made, strict=True):
        for offset, value in enumerate(log):
            partition.take(offset, value)
    ends = [partition.closed for partition in read if partition.closed is not None]
    expected = list(Ramp(rules(), read, "f|", NOON // PANE).decisions(min(ends)))
    found = found[: len(expected)]
    assert [(d.verdict, d.window.closed, d.decided_at // PANE) for d in found] == [
        (said.verdict, said.closed, said.pane) for said in expected
    ]
    for decision, said in zip(found, expected, strict=True):
        shown = {gate.gate: gate for gate in decision.gates}
        assert not said.gates or {name: gate.status for name, gate in shown.items()} == {
            name: status for name, (status, _, _) in said.gates.items()
        }
        for name, (_, lower, upper) in said.gates.items():
            bounds = (shown[name].lower, lower), (shown[name].upper, upper)
            for end, bound in bounds:
                assert end == (None if bound is None else pytest.approx(bound, abs=2e-6)), (name, decision.decided_at)
    return found


@pytest.mark.parametrize("fate", FATES)
def test_verdicts_and_bounds_are_the_slow_model_s(fate: str) -> None:
    """Every decision, every gate's status and both ends of its bound, stage by stage."""
    for seed in range(SEEDS):
        assert compared(fate, seed)


def test_the_logs_show_every_verdict_and_stage() -> None:
    """Else the comparison would compare little."""
    seen = Counter(
        (d.verdict, d.window.closed) for fate in FATES for seed in range(SEEDS) for d in plainly(fate, seed)[1]
    )
    assert {("promote", True), ("pass", True), ("hold", True), ("rollback", False), ("abort", False)} <= set(seen), seen
    assert {verdict for verdict, _ in seen} >= {"freeze"}
    left_out = [d.evidence.left_out for d in plainly("late", 0)[1] if d.evidence]
    assert max(left_out) > 0


@pytest.mark.parametrize("fate", ["healthy", "few errors", "slow", "late"])
def test_order_of_panes_restarts_and_batch_edges_give_the_same_bytes(fate: str) -> None:
    made, found = plainly(fate, 1)
    for seed in range(3):
        rng = random.Random(seed)
        queues = [partials(log, n, rng) for n, log in enumerate(made)]
        sent = []
        while any(queues):
            sent.append(rng.choice([queue for queue in queues if queue]).pop(0))
        again = decided(sent, rng)
        assert [d.to_bytes() for d in again] == [d.to_bytes() for d in found]
