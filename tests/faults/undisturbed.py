"""What a deployment says that nothing ever happens to, and what another one said, in a form that compares."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from tests.faults.kafka import Record
from tests.faults.traffic import CLOCKWORK, timeline
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import is_order, order_codec, partial_codec, pieces, split
from tidegate.streams.engine.gate_partition import GatePartition
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import SourcePartition


class Contradiction(AssertionError):
    """Two records with the same id and different bytes."""


class _Ids(msgspec.Struct):
    flag: str
    region: str
    decision_id: str = ""
    command_id: str = ""
    correction_id: str = ""


_ids = msgspec.json.Decoder(_Ids)


@dataclass
class Output:
    """Everything that left the core, repeats dropped by id.

    ``partials``: by (gate, partition), in order. ``aside``: late events and dead letters by (topic, partition, offset).
    ``decisions``, ``commands``, ``corrections``: by ``flag|region``, in order.
    """

    partials: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)
    aside: dict[tuple[str, int, int], bytes | None] = field(default_factory=dict)
    decisions: dict[str, list[bytes]] = field(default_factory=dict)
    commands: dict[str, list[bytes]] = field(default_factory=dict)
    corrections: dict[str, list[bytes]] = field(default_factory=dict)
    _seen: dict[object, bytes | None] = field(default_factory=dict, compare=False)

    def _fresh(self, name: object, value: bytes | None) -> bool:
        if name not in self._seen:
            self._seen[name] = value
            return True
        if self._seen[name] != value:
            raise Contradiction(f"{name}: once {self._seen[name]!r}, then {value!r}")
        return False

    def partial(self, gate: int, value: bytes) -> bool:
        """Add a partial from a gate's log; False for a repeat. Raises Contradiction."""
        partial = partial_codec.load(value)
        fresh = self._fresh((gate, partial.partition, partial.pane, partial.more, *partial.units), value)
        if fresh:
            self.partials.setdefault((gate, partial.partition), []).append(value)
        return fresh

    def set_aside(self, kind: str, partition: int, offset: int, value: bytes | None) -> None:
        """Add a late event or a dead letter. Raises Contradiction."""
        if self._fresh((kind, partition, offset), value):
            self.aside[kind, partition, offset] = value

    def said(self, value: bytes) -> None:
        """Add a decision, a command or a correction. Raises Contradiction."""
        ids = _ids.decode(value)
        units = self.corrections if ids.correction_id else self.commands if ids.command_id else self.decisions
        if self._fresh(ids.correction_id or ids.command_id or ids.decision_id, value):
            units.setdefault(f"{ids.flag}|{ids.region}", []).append(value)

    def difference(self, other: "Output") -> str | None:
        """Where another output first differs; None if nowhere."""
        for what in ("partials", "aside", "decisions", "commands", "corrections"):
            ours, theirs = getattr(self, what), getattr(other, what)
            for name in sorted(ours.keys() | theirs.keys()):
                one, two = ours.get(name), theirs.get(name)
                if one != two:
                    return f"{what} of {name}: {_short(one)}, undisturbed {_short(two)}"
        return None

    @property
    def sha256(self) -> bytes:
        """Over decisions, commands and corrections, unit by unit."""
        digest = hashlib.sha256()
        for units in (self.decisions, self.commands, self.corrections):
            for name, values in sorted(units.items()):
                digest.update(name.encode() + b"\n" + b"\n".join(values) + b"\n")
        return digest.digest()


def _short(found: object) -> str:
    return f"{len(found)} records" if isinstance(found, list) else repr(found)[:80]


def undisturbed(telemetry: Sequence[Sequence[Record]], gates: int, orders: Sequence[Iterable[Record]] | None) -> Output:
    """One partition after the other, each in one run, and no fault.

    ``orders``: the gates' logs of another run, whose order the gates then follow: what an operator's order does
    depends on where it stands between the partials.
    """
    output = Output()
    table = EventClasses(timeline())
    partials: list[list[bytes]] = [[] for _ in range(gates)]
    for partition, records in enumerate(telemetry):
        state = SourcePartition.fresh(partition, CLOCKWORK, table)
        result = state.step(Run(0, [r.value for r in records], [r.timestamp for r in records]))
        for partial in result.partials:
            for gate, part in enumerate(split(partial, gates)):
                for piece in pieces(part):
                    partials[gate].append(piece)
                    output.partial(gate, piece)
        for offset in result.late:
            output.set_aside("late", partition, offset, records[offset].value)
        for offset, _ in result.dead:
            output.set_aside("dead-letter", partition, offset, records[offset].value)
    for gate in range(gates):
        decider = GatePartition.fresh(gate, gates, len(telemetry), CLOCKWORK, timeline())
        entries = [(b"", value) for value in partials[gate]] if orders is None else _once(orders[gate])
        for offset, (key, value) in enumerate(entries):
            if is_order(key):
                outcomes = decider.operate(offset, order_codec.load(value))
            else:
                outcomes = decider.step(offset, partial_codec.load(value))
            for decision, command in outcomes:
                output.said(decision.to_bytes())
                if command is not None:
                    output.said(command.to_bytes())
            for correction in decider.take_corrections():
                output.said(correction.to_bytes())
    return output


def _once(log: Iterable[Record]) -> list[tuple[bytes, bytes]]:
    """The entries of a gate's log without repeats."""
    return list(dict.fromkeys((record.key or b"", record.value or b"") for record in log))
