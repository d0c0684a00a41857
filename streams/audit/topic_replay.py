"""Deciding the past again from the topics, from the beginning or from retained checkpoints, and holding it against what
was recorded."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from aiokafka import ConsumerRecord

from tidegate.gates.recorder import Outcome
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.errors import InputError
from tidegate.schemas.operation import Operation
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.compare import by_unit, describe_differences
from tidegate.streams.audit.recorded import Recorded
from tidegate.streams.engine.gate_log import Order, gate_of
from tidegate.streams.engine.gate_partition import GatePartition, all_switches
from tidegate.streams.engine.pipeline import Corrected, Pipeline
from tidegate.streams.engine.runs import Position, Run
from tidegate.streams.engine.slices import Slices, whole
from tidegate.streams.engine.source_partition import SourcePartition
from tidegate.streams.engine.tally import Tally
from tidegate.streams.report.text import many


class PlacedGate(GatePartition):
    """A gate that carries out each order once the panes below its place are closed, as in the log of a worker."""

    orders: list[tuple[int, Order]]
    until: int | None

    def expect(self, orders: Iterable[tuple[int, Order]], until: int | None) -> None:
        """Set the orders that are to come, by place, but for kill switches that it knows to be off.

        ``until``: those behind the last pane only if they were given before it, ms.
        """
        self.orders, self.until = [(at, order) for at, order in orders if not self._switched_off(order)], until

    def _advance(self, done: int, closed: int) -> Slices[Outcome]:
        while self.orders and self.orders[0][0] <= closed:
            at, order = self.orders.pop(0)
            if at > done:
                yield from super()._advance(done, at)
                done = at
            yield from self._carry_out(order, at)
        yield from super()._advance(done, closed)

    def finish(self) -> Iterator[Outcome]:
        """Carry out the orders that are still to come."""
        for _, order in self.orders:
            if self.until is None or order.operation.ts < self.until:
                yield from whole(self._carry_out(order, min(self._state.closed)))
        self.orders = []

    @property
    def heads(self) -> dict[str, "Head"]:
        """Return the last hash and number of each unit's chain."""
        units = self._state.retired | self._state.units
        return {name: Head(unit.previous_hash, unit.seq) for name, unit in units.items()}


@dataclass(frozen=True)
class Head:
    """The end of a unit's chain: the hash of its last decision, and the number of its last command."""

    hash: str | None = None
    seq: int = 0


@dataclass(frozen=True)
class ReplayRequest:
    """A request to decide again.

    ``operations``: by their offsets. ``until``: no kill switch has been turned off from then on, ms. ``part``: what is
    recorded goes on after that.
    """

    timeline: Timeline
    operations: Mapping[Operation, int]
    clockwork: Clockwork
    past: Recorded
    until: int
    part: bool = False

    def orders(self) -> list[Order]:
        """Operators' orders, and the kill switches that the revisions turned off."""
        operations = (Order(o.flag, o.by, offset) for o, offset in self.operations.items())
        return [*all_switches(self.timeline, self.until), *operations]

    def had(self, order: Order, gate: Position) -> bool:
        """Tell whether a gate at this position has carried out an order, or one that has overtaken it."""
        # Also where the gates' log has lost its first record and kept a later one, which the gate dropped.
        if order.revision >= 0:
            return order.revision <= gate.switched.get(order.flag, -1)
        return order.offset < gate.operations_next

    def due(self, order: Order, gate: Position) -> bool:
        """Tell whether an order is still to come for a gate at this position."""
        there = (order.flag, order.operation) in self.past.exact or not self.past.whole
        return there and not self.had(order, gate)

    def guessed(self, gates: Sequence[Position | None]) -> int:
        """Count the orders to come whose place is not known. ``gates``: the positions that the replay goes on from."""
        waiting = (o for o in self.orders() if self.due(o, gates[gate_of(o.flag, len(gates))] or Position(0, ())))
        return sum((order.flag, order.operation) not in self.past.exact for order in waiting)

    def reached(self, gate: int, gates: int) -> Callable[[Position], int]:
        """Return a function: the last time, ms, at which a gate at a position may have decided something."""
        orders = [order for order in self.orders() if gate_of(order.flag, gates) == gate]
        pane_ms = self.clockwork.pane_ms
        return lambda mark: max(
            [min(mark.closed) * pane_ms, *(order.operation.ts for order in orders if self.had(order, mark))]
        )

    def before(self, start: int, gate: int, gates: int) -> Callable[[Position], bool]:
        """Return a test: has a gate at a position decided nothing after ``start``, ms?"""
        reached = self.reached(gate, gates)
        return lambda mark: reached(mark) <= start


class TopicReplay:
    """The past, decided again. ``gates``, ``windows``: states to go on from, of every gate and source partition; None
    for one that has not begun. ``corrected`` gets the corrections.

    Raises StateError for states of other settings.
    """

    def __init__(
        self,
        asked: ReplayRequest,
        gates: Sequence[bytes | None],
        windows: Sequence[bytes | None],
        corrected: Corrected = lambda _: None,
    ) -> None:
        self._asked = asked
        clockwork, timeline = asked.clockwork, asked.timeline
        self._pipeline = pipeline = Pipeline(timeline, len(windows), clockwork)
        pipeline.corrected = corrected

        def key(placed: tuple[int, Order]) -> tuple[int, int, int, int]:
            at, order = placed
            return at, asked.past.among(order), order.offset, order.operation.ts

        placed = sorted(((asked.past.place(order, clockwork), order) for order in asked.orders()), key=key)
        self._gates = []
        for number, blob in enumerate(gates):
            shape = number, len(gates), len(windows), clockwork, timeline
            gate = PlacedGate.fresh(*shape) if blob is None else PlacedGate.load(blob, *shape)
            mine = (one for one in placed if gate_of(one[1].flag, len(gates)) == number)
            gate.expect((one for one in mine if asked.due(one[1], gate.mark)), asked.until if asked.part else None)
            self._gates.append(gate)
        pipeline.gates = list(self._gates)
        for partition, blob in enumerate(windows):
            if blob is not None:
                state = SourcePartition.load(blob, partition, clockwork, pipeline.table)
                pipeline.partitions[partition] = state
        self._heads = {name: head for gate in self._gates for name, head in gate.heads.items()}

    @property
    def tally(self) -> Tally:
        """The records that were read, counted by what became of them."""
        return self._pipeline.tally

    @property
    def positions(self) -> dict[int, int]:
        """The offsets to read on from, of the partitions that go on."""
        return {partition: state.next for partition, state in self._pipeline.partitions.items()}

    def decide(
        self, runs: Iterable[Sequence[ConsumerRecord]], progress: Callable[[int], None] = lambda _: None
    ) -> Iterator[Outcome]:
        """Yield the decisions and commands that follow from records of the telemetry topic, in order in each partition.

        Offsets without a record are those that have none in the topic.
        """
        for records in runs:
            partition = records[0].partition
            for run in dense(records, self.positions.get(partition)):
                yield from self._pipeline.step(partition, run)
            progress(len(records))
        yield from self._pipeline.finish()
        self.tally.unclosed = self._pipeline.unclosed()

    def difference(self, made: Sequence[bytes], commands: Sequence[bytes]) -> str | None:
        """Describe the first difference of all that was decided from the records; None if there is none.

        The control topic is compacted: a unit's last command has to be there, and those that are there have to be the
        same.
        """
        part = self._asked.part
        ours, theirs = by_unit(made), self._asked.past.values
        for unit in sorted(ours.keys() | theirs.keys()):
            one, other = ours.get(unit, []), theirs.get(unit, [])
            head = self._heads.get(unit, Head())
            if head.hash is not None:
                behind = next((n for n, line in enumerate(other, 1) if _hash_of(line) == head.hash), None)
                if behind is None:
                    return (
                        f"{unit}: its checkpoint follows the decision with hash {head.hash}, which is not in the topic"
                    )
                other = other[behind:]
            for number, (a, b) in enumerate(zip(one, other, strict=False), 1):
                if a != b:
                    return f"{unit}: decision {number} differs{describe_differences(a, b)}"
            if len(one) > len(other) or (len(one) < len(other) and not part):
                return f"{unit}: {many(len(one), 'decision')} here, {len(other)} in the topic"
        return self._commands_differ(commands)

    def _commands_differ(self, commands: Sequence[bytes]) -> str | None:
        ours, theirs = _numbered(commands), _numbered(self._asked.past.commands)
        for unit in sorted(ours.keys() | theirs.keys()):
            one, other = ours.get(unit, {}), theirs.get(unit, {})
            for seq in sorted(one.keys() & other.keys()):
                if one[seq] != other[seq]:
                    return f"{unit}: command {seq} differs{describe_differences(one[seq], other[seq])}"
            last, recorded = max(one, default=self._heads.get(unit, Head()).seq), max(other, default=0)
            if last > recorded or (last < recorded and not self._asked.part):
                return f"{unit}: the last command is {last} here, {recorded} in the topic"
        return None


def dense(records: Sequence[ConsumerRecord], due: int | None) -> Iterator[Run]:
    """Records of one partition as runs, which cover the offsets between them too, from the one that is due on."""
    start = 0
    for end in range(1, len(records) + 1):
        if end == len(records) or records[end].offset != records[end - 1].offset + 1:
            part = records[start:end]
            yield Run(part[0].offset, [record.value for record in part], [record.timestamp for record in part], due)
            start, due = end, part[-1].offset + 1


class _Hashed(msgspec.Struct):
    hash: str


def _hash_of(line: bytes) -> str | None:
    try:
        return msgspec.json.decode(line, type=_Hashed).hash
    except (msgspec.MsgspecError, UnicodeError):
        return None


class _Numbered(msgspec.Struct):
    flag: str
    region: str
    seq: int


def _numbered(commands: Iterable[bytes]) -> dict[str, dict[int, bytes]]:
    found: dict[str, dict[int, bytes]] = defaultdict(dict)
    for value in commands:
        try:
            head = msgspec.json.decode(value, type=_Numbered)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise InputError(f"not a command: {error}") from None
        found[f"{head.flag}|{head.region}"][head.seq] = value
    return found
