"""The recorded past besides telemetry: decisions, commands, manifests, and the places of orders.

Decisions depend on where an operator's order stood among the panes. That is told by the gates' own log, where it is
still kept; else the recorded decisions bound it; else its time decides, as for ``--operations``.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aiokafka import ConsumerRecord

from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import Decision, OperationBy, decision_from_bytes
from tidegate.schemas.errors import EventError, InputError, Refusal, StateError, TopicError
from tidegate.schemas.operation import Operation, check_time, read_operation
from tidegate.schemas.signed import TrustedKeys
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.compare import by_unit
from tidegate.streams.dumps.records import RecordLike
from tidegate.streams.engine.gate_log import Order, Partial, is_order, order_codec, partial_codec
from tidegate.streams.engine.runs import NEVER, Position
from tidegate.streams.kafka.history import Extent, History
from tidegate.streams.kafka.manifests import ManifestLog
from tidegate.streams.settings import Settings


@dataclass
class Recorded:
    """The contents of all topics but that of telemetry.

    ``exact``: by order, the pane before which it was carried out, and its offset in the gates' log. ``whole``: the log
    has all since where the replay begins, so what is not there was not carried out.
    """

    chains: dict[str, list[Decision]] = field(default_factory=dict)
    values: dict[str, list[bytes]] = field(default_factory=dict)
    commands: list[bytes] = field(default_factory=list)
    exact: dict[tuple[str, OperationBy], tuple[int, int]] = field(default_factory=dict)
    whole: bool = False

    def place(self, order: Order, clockwork: Clockwork) -> int:
        """Return the panes, below this one, that were closed when an order was carried out."""
        wanted = order.flag, order.operation
        if wanted in self.exact:
            return self.exact[wanted][0]
        low, high = self._between(wanted, clockwork.pane_ms)
        return min(max((order.operation.ts - clockwork.lateness_ms) // clockwork.pane_ms, low), high)

    def among(self, order: Order) -> int:
        """Return an order's place in its gate's log: an offset; -1 before what is still there; 1 << 62 for not yet."""
        wanted = order.flag, order.operation
        if wanted in self.exact:
            return self.exact[wanted][1]
        carried_out = any((d.flag, d.operation) == wanted for chain in self.chains.values() for d in chain)
        return -1 if carried_out else 1 << 62

    def _between(self, wanted: tuple[str, OperationBy], pane_ms: int) -> tuple[int, int]:
        """Return the least and the most panes that the decisions around the records of an order allow."""
        lows, high = [NEVER], -NEVER
        for chain in self.chains.values():
            for number, decision in enumerate(chain):
                if (decision.flag, decision.operation) != wanted:
                    continue
                before = [d.decided_at for d in chain[:number] if d.operation is None]
                after = [d.decided_at for d in chain[number:] if d.operation is None]
                lows += [ms // pane_ms for ms in before[-1:]]
                high = min([high, *(ms // pane_ms - 1 for ms in after[:1])])
        # A region that began later was killed then: its record says nothing of when the order came.
        return max(low for low in lows if low <= high), high


def read_recorded(history: History, settings: Settings, tell: Callable[[str], None]) -> Recorded:
    """Recorded decisions and commands."""
    past = Recorded()
    if history.has(settings.decisions_topic):
        values = (r.value for r in history.records(settings.decisions_topic) if r.value is not None)
        past.values = by_unit(values)
        for unit, lines in past.values.items():
            past.chains[unit] = [d for d in map(_decision, lines) if d is not None]
    else:
        tell(f"topic {settings.decisions_topic} is not there")
    if history.has(settings.control_topic):
        past.commands = [r.value for r in history.records(settings.control_topic) if r.value is not None]
    return past


def _decision(line: bytes) -> Decision | None:
    try:
        return decision_from_bytes(line)
    except EventError:
        return None


def place_orders(
    past: Recorded, history: History, settings: Settings, gates: Sequence[Position | None], tell: Callable[[str], None]
) -> None:
    """Find where the gates' log has the orders. ``gates``: how far those are that go on; None: one that begins."""
    topic = settings.partials_topic
    if not history.has(topic):
        tell(f"topic {topic} is not there, or not readable for this user: operations are placed by the decisions")
        return
    try:
        extent = history.extent(topic)
        begun = {gate: mark for gate, mark in enumerate(gates) if mark is not None}
        past.whole = all(first <= (begun[g].next if g in begun else 0) for g, (first, _) in extent.kept.items())
        # What came before tells nothing that the gates that go on do not know better.
        known = begun if past.whole else {}
        past.exact = _gate_log(history, extent.after({gate: mark.next for gate, mark in known.items()}), known)
    except (StateError, TopicError) as error:
        past.whole = False
        tell(f"{error}; operations are placed by the decisions")


def _gate_log(
    history: History, extent: Extent, gates: Mapping[int, Position]
) -> dict[tuple[str, OperationBy], tuple[int, int]]:
    """By order, how far all source partitions were closed where it stands, and its place among the orders.

    ``gates``: how far they were where the range begins, as far as that is known.
    """
    begun: dict[int, ConsumerRecord] = {}
    closed: dict[int, dict[int, int]] = defaultdict(dict)
    closed |= {gate: dict(enumerate(mark.closed)) for gate, mark in gates.items()}
    waiting: list[tuple[int, Order, int, dict[int, int]]] = []
    for run in history.read(extent):
        for record in run:
            first = begun.setdefault(record.partition, record)
            gate = closed[record.partition]
            if is_order(record.key):
                order = order_codec.load(record.value)
                # Each worker that begins puts a kill switch there once more; where it stood first may be gone.
                from_start = first.offset == 0 or record.partition in gates
                if order.revision < 0 or from_start or first.timestamp < order.operation.ts:
                    waiting.append((record.partition, order, record.offset, dict(gate)))
                continue
            head: Partial = partial_codec.load(record.value)
            if head.partition not in gate:
                # It says how far the partition was closed before, also where the log's beginning is gone.
                for other, _, _, known in waiting:
                    if other == record.partition:
                        known[head.partition] = head.previous
            if head.more:
                continue
            gate[head.partition] = max(gate.get(head.partition, NEVER), head.pane + 1)
    places: dict[tuple[str, OperationBy], tuple[int, int]] = {}
    for _, order, offset, known in waiting:
        places.setdefault((order.flag, order.operation), (min(known.values(), default=NEVER), offset))
    return places


def read_timeline(records: Iterable[RecordLike], settings: Settings, trusted: TrustedKeys) -> Timeline:
    """Return the revisions in records of the manifests topic. Raises InputError if there is none."""
    found = ManifestLog(settings, trusted)
    refused: list[str] = []
    for record in records:
        outcome = found.take(record)
        if isinstance(outcome, Refusal):
            refused.append(f"offset {record.offset}: {outcome}")
    if not found.timeline.revisions:
        why = f", {len(refused)} refused, the last at {refused[-1]}" if refused else ""
        raise InputError(f"{settings.manifests_topic} has no manifest{why}; publish one, or give --manifest")
    return found.timeline


def read_orders(
    records: Iterable[RecordLike], settings: Settings, trusted: TrustedKeys | None
) -> tuple[dict[Operation, int], int]:
    """Return the operations that count, as workers take them, by offset in order, and how many records were refused."""
    taken: dict[Operation, int] = {}
    refused = 0
    for record in records:
        try:
            operation = read_operation(record.value, settings.deployment, trusted)
            check_time(operation, record.timestamp, settings.operation_max_age)
            if operation in taken:
                raise Refusal("once more")
        except Refusal:
            refused += 1
            continue
        taken[operation] = record.offset
    return taken, refused
