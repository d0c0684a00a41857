"""Units on /metrics: read from their states at each scrape, so that nothing that moved away stays."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tidegate.gates.unit import Unit
from tidegate.schemas.catalogue import FLOORS, GUARDS
from tidegate.schemas.decision import Decision, GateResult
from tidegate.streams.engine.gate_partition import GatePartition

UNITS_MAX = 1_000
"""Units that a worker shows: regions come from telemetry, and anybody may invent more of them."""
GATED_UNITS_MAX = 200
"""Units whose gates a worker shows: eight gates, five numbers each."""
UNIT = ["flag", "region"]
UNIT_STATES = (
    *("ramping", "settling", "graduated", "latched", "asleep", "retired"),
    *("open", "closed", "engaged", "standby", "on", "off"),
)
"""In which a unit can be: of rollouts, or of any kind; of quality gates, of guards and of kill switches."""


class Seen(NamedTuple):
    """One unit at a scrape. ``window_ms``: 0 without windows. ``decided_at``: ms; None: never."""

    weight: float
    stage: int
    state: str
    window_ms: int
    decided_at: int | None
    gates: tuple[GateResult, ...]


class LastDecision(NamedTuple):
    """A unit's last decision, as far as it is shown."""

    hash: str
    decided_at: int
    gates: tuple[GateResult, ...]


def state_of(unit: Unit) -> str:
    """Return one of ``UNIT_STATES``."""
    if unit.retired:
        return "retired"
    if unit.kind == "kill_switch":
        return "on" if unit.weight else "off"
    if unit.latched:
        return "latched"
    if unit.asleep:
        return "asleep"
    if unit.kind == "quality_gated":
        return "open" if unit.engaged else "closed"
    if unit.kind in GUARDS:
        return "engaged" if unit.engaged else "standby"
    return "settling" if unit.settling else "graduated" if unit.graduated else "ramping"


class UnitGauges(Collector):
    """The units of the gates that a worker has; of a unit's gates what its last decision said, if this worker wrote it.

    A decision is shown while the unit's state names it as the last of its chain: not what another worker has overtaken.
    """

    def __init__(self) -> None:
        self._seen: dict[int, dict[str, Seen]] = {}
        self._said: dict[str, LastDecision] = {}

    def decided(self, decision: Decision) -> None:
        """Note a unit's last decision."""
        if decision.key in self._said or len(self._said) < UNITS_MAX:
            self._said[decision.key] = LastDecision(decision.hash, decision.decided_at, tuple(decision.gates))

    def see(self, partition: int, gate: GatePartition) -> None:
        """Take the units of a gate as they are now."""
        running = ((name, ramp.unit, ramp.flag.window.length_ms * ramp.windowed) for name, ramp in gate.ramps.items())
        gone = ((name, unit, 0) for name, unit in gate.retired.items())
        reached = gate.watermark
        self._seen[partition] = {
            name: self._of(name, unit, window_ms, reached) for name, unit, window_ms in chain(running, gone)
        }

    def forget(self, partition: int) -> None:
        """Show no unit of a gate that has moved away."""
        self._seen.pop(partition, None)

    def _of(self, name: str, unit: Unit, window_ms: int, reached: int | None) -> Seen:
        said = self._said.get(name)
        if said is not None and said.hash != unit.previous_hash:
            del self._said[name]
            said = None
        decided_at = said and said.decided_at
        if said is None and unit.last_window is not None:
            # A stop cuts its window, whose end is still to come.
            decided_at = min(unit.last_window[1], unit.last_window[1] if reached is None else reached)
        return Seen(unit.weight, unit.stage, state_of(unit), window_ms, decided_at, said.gates if said else ())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the families, each with all units that have room."""
        units = [(name.split("|", 1), one) for gate in list(self._seen.values()) for name, one in gate.items()]
        shown = units[:UNITS_MAX]
        yield _family("canary_weight", "share of traffic", ((unit, one.weight) for unit, one in shown))
        yield _family(
            "unit_retired",
            "1 where the flag has left the manifest",
            ((unit, float(one.state == "retired")) for unit, one in shown),
        )
        yield _family("unit_stage", "index of the stage, from 0", ((unit, one.stage) for unit, one in shown))
        yield _family(
            "unit_state",
            f"1 for the state that the unit is in: {', '.join(UNIT_STATES)}",
            (([*unit, one.state], 1) for unit, one in shown),
            "state",
        )
        yield _family(
            "unit_window_seconds",
            "length of a window; nothing where there are none",
            ((unit, one.window_ms / 1000) for unit, one in shown if one.window_ms),
        )
        yield _family(
            "unit_decided_timestamp_seconds",
            "event time of the last decision, s of the epoch",
            ((unit, one.decided_at / 1000) for unit, one in shown if one.decided_at is not None),
        )
        yield from _gates([(unit, gate) for unit, one in islice(shown, GATED_UNITS_MAX) for gate in one.gates])
        rest = GaugeMetricFamily("tidegate_units_without_weight", "units beyond those with a weight here")
        rest.add_metric([], len(units) - len(shown))
        yield rest


_Value = Callable[[GateResult], float | None]


def _gates(gates: list[tuple[list[str], GateResult]]) -> Iterator[GaugeMetricFamily]:
    def family(name: str, said: str, value: _Value) -> GaugeMetricFamily:
        found = (([*unit, gate.gate], value(gate)) for unit, gate in gates if gate.status != "off")
        return _family(name, said, ((labels, number) for labels, number in found if number is not None), "gate")

    yield family("gate_value", "what the last decision saw; nothing where it is unknown", lambda gate: gate.observed)
    yield family("gate_limit", "what that is held against; λ: 1", _limit)
    yield family("gate_bound", "the worse end of the value's interval, which has to exclude rule_out", _bound)
    yield family("gate_rule_out", "what the bound has to exclude to pass; nothing with point evidence", _rule_out)
    yield _family(
        "gate_status",
        "1 for the status that the gate has: pass, fail, undecided, unknown, waived, not_applicable, off",
        (([*unit, gate.gate, gate.status], 1) for unit, gate in gates),
        "gate",
        "status",
    )


def _family(
    name: str, said: str, values: Iterable[tuple[Sequence[str], float]], *more_labels: str
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"tidegate_{name}", said, labels=[*UNIT, *more_labels])
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _limit(gate: GateResult) -> float | None:
    return None if gate.threshold is None else float(gate.threshold)


def _bound(gate: GateResult) -> float | None:
    return gate.lower if gate.gate in FLOORS else gate.upper


def _rule_out(gate: GateResult) -> float | None:
    if gate.rule_out is None or gate.gate != "lambda_convergent":
        return gate.rule_out
    # A share of flips; its value, bound and limit are of those that converge.
    return 1 - gate.rule_out
