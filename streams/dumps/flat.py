"""Columns beside a record's bytes that a query can ask without reading JSON: of decisions, and of commands."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tidegate.schemas.decision import Command, Decision, command_from_bytes, decision_from_bytes
from tidegate.schemas.errors import EventError


class FlatColumns(NamedTuple):
    """Columns of a dump: by name their type, of Arrow, and what stands there of a record's value.

    Moments are UTC, in ``timestamp`` columns. A value that is no such record leaves them null.
    """

    types: Mapping[str, str]
    of: Callable[[bytes], Mapping[str, object]]


_DECISION: dict[str, tuple[str, Callable[[Decision], object]]] = {
    "flag": ("string", lambda d: d.flag),
    "region": ("string", lambda d: d.region),
    "kind": ("string", lambda d: d.kind),
    "verdict": ("string", lambda d: d.verdict),
    "reasons": ("strings", lambda d: d.reasons),
    "rule": ("string", lambda d: next((rule.kind for rule in d.abort_rules if rule.fired), None)),
    "fired_rules": ("strings", lambda d: [rule.kind for rule in d.abort_rules if rule.fired]),
    "failed_gates": ("strings", lambda d: [gate.gate for gate in d.gates if gate.status == "fail"]),
    "evidence_problems": ("strings", lambda d: [problem.problem for problem in d.evidence_problems]),
    "decided_at": ("timestamp", lambda d: d.decided_at),
    "window_start": ("timestamp", lambda d: d.window.start),
    "window_end": ("timestamp", lambda d: d.window.end),
    "window_closed": ("bool", lambda d: d.window.closed),
    "stage": ("int", lambda d: d.stage.index),
    "canary_weight": ("double", lambda d: d.stage.canary_weight),
    "actor": ("string", lambda d: d.operation.actor if d.operation else None),
    "actor_reason": ("string", lambda d: d.operation.reason if d.operation else None),
    "decision_id": ("string", lambda d: d.decision_id),
    "manifest_hash": ("string", lambda d: d.manifest_hash),
}
_COMMAND: dict[str, tuple[str, Callable[[Command], object]]] = {
    "flag": ("string", lambda c: c.flag),
    "region": ("string", lambda c: c.region),
    "seq": ("int", lambda c: c.seq),
    "action": ("string", lambda c: c.action),
    "severity": ("string", lambda c: c.severity),
    "rule": ("string", lambda c: c.rule),
    "reasons": ("strings", lambda c: c.reasons),
    "canary_weight": ("double", lambda c: c.weights.canary),
    "previous_canary_weight": ("double", lambda c: c.previous_weights.canary),
    "effective_from": ("timestamp", lambda c: c.effective_from),
    "command_id": ("string", lambda c: c.command_id),
    "decision_id": ("string", lambda c: c.decision_id),
    "manifest_hash": ("string", lambda c: c.manifest_hash),
}


def _flat(columns: Mapping[str, tuple[str, Callable[[Any], object]]], read: Callable[[bytes], Any]) -> FlatColumns:
    def of(value: bytes) -> Mapping[str, object]:
        try:
            record = read(value)
        except EventError:
            return {}
        return {name: cell(record) for name, (_, cell) in columns.items()}

    return FlatColumns({name: kind for name, (kind, _) in columns.items()}, of)


DECISIONS = _flat(_DECISION, decision_from_bytes)
COMMANDS = _flat(_COMMAND, command_from_bytes)
