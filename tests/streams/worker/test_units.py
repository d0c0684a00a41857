"""What a worker shows of its units: their states as they are, and of their gates what was said last."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.streams.events import CLOCKWORK, NOON, flags
from tests.streams.play import play
from tests.streams.worker.test_health import gate, owning, samples
from tidegate.gates.kinds import machine
from tidegate.gates.unit import begin, dormant
from tidegate.schemas.decision import Decision
from tidegate.streams.worker import units
from tidegate.streams.worker.health import Metrics
from tidegate.streams.worker.units import UNIT_STATES, state_of

Labels = tuple[tuple[str, str], ...]


def gauge(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """A gauge's values by those of its labels that are no unit's."""
    return {
        tuple(value for label, value in labels if label not in ("flag", "region")): number
        for (found, labels), number in samples(metrics).items()
        if found == f"tidegate_{name}"
    }


def told(scenario: str, decisions: int | None = None) -> tuple[Metrics, Decision, Any]:
    """Metrics of a worker that has decided on a simulation, the last decision, and its gate."""
    played, metrics = play(scenario), owning(("gate", 0))
    for decision in played.decisions[:decisions]:
        metrics.units.decided(decision)
    (gate,) = played.pipeline.gates
    metrics.see(0, gate)
    return metrics, played.decisions[-1], gate


def test_each_gate_is_shown_with_value_bound_limit_and_status_as_the_last_decision_has_them() -> None:
    metrics, last, _ = told("healthy")
    judged = {gate.gate: gate for gate in last.gates}
    assert len(judged) == 8
    values = gauge(metrics, "gate_value")
    assert values == {(name,): gate.observed for name, gate in judged.items() if gate.observed is not None}
    assert gauge(metrics, "gate_limit") == {(name,): float(gate.threshold or 0) for name, gate in judged.items()}
    bounds = gauge(metrics, "gate_bound")
    assert bounds["coverage_min",] == judged["coverage_min"].lower != judged["coverage_min"].upper
    assert bounds["error_rate_max",] == judged["error_rate_max"].upper != judged["error_rate_max"].lower
    assert gauge(metrics, "gate_status") == {(name, gate.status): 1 for name, gate in judged.items()}


def test_what_a_bound_has_to_exclude_is_on_the_scale_of_the_value() -> None:
    """Of λ the manifest gives the share that flips, and the value is the share that converges."""
    metrics, last, _ = told("healthy")
    judged = {gate.gate: gate.rule_out for gate in last.gates}
    shown = gauge(metrics, "gate_rule_out")
    lambda_ = judged.pop("lambda_convergent")
    assert lambda_ is not None
    assert shown.pop(("lambda_convergent",)) == 1 - lambda_
    assert shown == {(name,): value for name, value in judged.items() if value is not None}
    assert shown


def test_a_gate_that_is_off_and_a_value_that_is_unknown_have_no_number() -> None:
    metrics, last, gate = told("healthy", decisions=0)
    one, other, *_ = last.gates
    changed = msgspec.structs.replace(
        last,
        gates=[
            msgspec.structs.replace(one, status="off", threshold=None),
            msgspec.structs.replace(other, status="unknown", observed=None, lower=None, upper=None),
        ],
    )
    metrics.units.decided(changed)
    metrics.see(0, gate)
    assert gauge(metrics, "gate_status") == {(one.gate, "off"): 1, (other.gate, "unknown"): 1}
    assert gauge(metrics, "gate_value") == gauge(metrics, "gate_bound") == {}
    assert gauge(metrics, "gate_limit") == {(other.gate,): other.threshold}


def test_the_last_decision_is_dated_by_its_event_time() -> None:
    metrics, last, _ = told("healthy")
    assert gauge(metrics, "unit_decided_timestamp_seconds") == {(): last.decided_at / 1000}


def test_what_another_worker_has_overtaken_is_not_shown() -> None:
    """The unit was there meanwhile: its state says which decision is the last of its chain."""
    metrics, last, gate = told("healthy", decisions=-1)
    assert gauge(metrics, "gate_value") == gauge(metrics, "gate_status") == {}
    assert gauge(metrics, "unit_decided_timestamp_seconds") == {(): last.window.end / 1000}
    metrics.units.decided(last)
    metrics.see(0, gate)
    assert len(gauge(metrics, "gate_status")) == 8


def test_a_unit_that_goes_and_comes_back_undecided_is_shown_as_before() -> None:
    """Each rebalance takes everything away, and gives most of it back."""
    metrics, _, gate = told("healthy")
    before = samples(metrics)
    metrics.forget("gate", 0)
    assert not any(dict(labels).get("flag") for _, labels in samples(metrics))
    metrics.own("gate", 0)
    metrics.see(0, gate)
    after = samples(metrics)
    names = [key for key in before if key[1] and key[1][0][0] == "flag"]
    assert names
    assert {key: after[key] for key in names} == {key: before[key] for key in names}


def test_a_decision_that_a_stop_made_before_the_windows_end_is_not_dated_in_the_future() -> None:
    """A worker that takes the unit over knows the window, and how far the time is."""
    metrics, held = owning(("gate", 0)), gate({"f|eu": 0.0})
    held.ramps["f|eu"].unit.last_window = (NOON - 60_000, NOON + 600_000)
    metrics.see(0, held)
    assert gauge(metrics, "unit_decided_timestamp_seconds") == {(): NOON / 1000}
    held.watermark = NOON + 900_000
    metrics.see(0, held)
    assert gauge(metrics, "unit_decided_timestamp_seconds") == {(): NOON / 1000 + 600}


def test_the_states_are_those_that_are_listed() -> None:
    flag = flags()["wide"]
    unit = begin(flag, "eu", NOON, CLOCKWORK)
    seen = []
    for change in ({"settling": False}, {"settling": True}, {"settling": False, "graduated": True}, {"latched": True}):
        for name, value in change.items():
            setattr(unit, name, value)
        seen.append(state_of(unit))
    seen.append(state_of(dormant(flag, "eu", CLOCKWORK)))
    unit.retired = True
    seen.append(state_of(unit))
    for kind in ("quality_gated", "cost_guard"):
        for engaged in (True, False):
            other = begin(flag, "eu", NOON, CLOCKWORK)
            other.kind, other.engaged = kind, engaged
            seen.append(state_of(other))
    for weight in (0.5, 0.0):
        switch = dormant(flag, "eu", CLOCKWORK)
        switch.kind, switch.weight = "kill_switch", weight
        seen.append(state_of(switch))
    assert sorted(set(seen)) == sorted(UNIT_STATES)
    assert seen[:6] == ["ramping", "settling", "graduated", "latched", "asleep", "retired"]


def test_every_metric_is_in_the_docs_by_its_name() -> None:
    text = (Path(__file__).parents[3] / "docs" / "operating.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `tidegate_")]
    told: set[str] = set()
    for row in rows:
        names = re.findall(r"`(\w+)`", row.split("|")[1])
        stem = names[0].removesuffix("_total")
        stem = stem.rsplit("_", 1)[0]
        told |= {name if name.startswith("tidegate") else stem + name for name in names}
    suffixes = {"counter": "_total", "info": "_info"}
    families = Metrics().registry.collect()
    assert {one.name + suffixes.get(one.type, "") for one in families if one.name.startswith("tidegate_")} == told


@pytest.mark.parametrize("scenario", ["healthy", "errors"])
def test_a_unit_has_one_state(scenario: str) -> None:
    """As a label whose value changes: the one before is gone."""
    metrics, _, _ = told(scenario)
    assert gauge(metrics, "unit_state") == {("graduated" if scenario == "healthy" else "latched",): 1}


def test_gates_are_shown_of_so_many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty series a unit are too many for all that telemetry may invent."""
    monkeypatch.setattr(units, "GATED_UNITS_MAX", 2)
    metrics, last, gate = told("healthy")
    flag = gate.ramps[last.key].flag
    for region in ("a", "b", "c"):
        unit = begin(flag, region, NOON, CLOCKWORK)
        unit.previous_hash = region
        gate.ramps[f"{flag.name}|{region}"] = machine(flag, unit, CLOCKWORK)
        metrics.units.decided(msgspec.structs.replace(last, region=region, hash=region))
    try:
        metrics.see(0, gate)
        regions = {dict(labels)["region"] for name, labels in samples(metrics) if name == "tidegate_gate_status"}
        assert regions == {last.region, "a"}
        assert len(gauge(metrics, "unit_stage")) == 1
        everything = {dict(labels)["region"] for name, labels in samples(metrics) if name == "tidegate_unit_stage"}
        assert everything == {last.region, "a", "b", "c"}
    finally:
        for region in ("a", "b", "c"):
            del gate.ramps[f"{flag.name}|{region}"]
