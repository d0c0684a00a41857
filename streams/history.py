"""The topics as an auditor reads them: a range of time, without a group, and nothing is ever written.

Decisions depend on where an operator's order stood among the panes. That is told by the gates' own log, where it is
still kept; else the recorded decisions bound it; else its time decides, as for ``--operations``.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from gates.unit import Clockwork, Unit
from schemas.decision import Decision, OperationBy, decision_from_bytes
from schemas.errors import EventError, InputError, NoBrokerError, Refusal, SettingsError, TopicError
from schemas.event import FUTURE_MS
from schemas.manifest import Flag
from schemas.operation import Operation, check_time, read_operation
from schemas.signed import TrustedKeys
from schemas.timeline import Timeline
from streams.differences import told
from streams.dumps import Recorded
from streams.manifests import ManifestLog
from streams.operations import is_order
from streams.panes import NEVER, Partial, Run, partial_codec
from streams.reach import why
from streams.replay import Corrected, Pipeline, by_unit
from streams.settings import Settings
from streams.windows import GateSnapshot, GateState, Order, Outcome, order_codec, switches

CONNECT_MS = 10_000
PATIENCE_SECONDS = 30.0
"""How long a topic may give nothing while its end is not reached."""


@dataclass(frozen=True)
class Extent:
    """A range of a topic. ``bounds``: first offset and the one after the last by partition; ``kept``: all there is."""

    topic: str
    bounds: Mapping[int, tuple[int, int]]
    kept: Mapping[int, tuple[int, int]]

    @property
    def size(self) -> int:
        """Offsets in the range; of a compacted topic fewer records."""
        return sum(max(end - first, 0) for first, end in self.bounds.values())

    @property
    def cut(self) -> list[int]:
        """Partitions whose first records are gone."""
        return sorted(partition for partition, (first, _) in self.kept.items() if first > 0)


class History:
    """A consumer that has no group, commits nothing and makes no topic. Raises NoBrokerError if no broker answers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runner = asyncio.Runner()
        self._consumer: AIOKafkaConsumer | None = None
        self._topics: Collection[str] = ()

    def __enter__(self) -> Self:
        try:
            self._consumer = self._runner.run(self._start())
            self._topics = self._run(self._consumer.topics(), "the list of topics")
        except (KafkaError, OSError) as error:
            reason = self._runner.run(why(self._settings, error))
            self.close()
            raise NoBrokerError(f"no Kafka answers at {self._settings.broker}: {reason}") from None
        except BaseException:
            self.close()
            raise
        return self

    async def _start(self) -> AIOKafkaConsumer:
        settings = self._settings
        consumer = AIOKafkaConsumer(
            **settings.kafka,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=settings.fetch_wait,
            request_timeout_ms=max(CONNECT_MS, settings.fetch_wait * 2),
        )
        try:
            await consumer.start()
        except BaseException:
            await consumer.stop()
            raise
        return consumer

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the broker go."""
        if self._consumer is not None:
            self._runner.run(self._consumer.stop())
            self._consumer = None
        self._runner.close()

    def _run(self, coroutine: Any, topic: str) -> Any:
        try:
            return self._runner.run(coroutine)
        except (KafkaError, OSError) as error:
            raise TopicError(f"{topic} at {self._settings.broker} cannot be read: {error!r}") from None

    def has(self, topic: str) -> bool:
        """Whether the broker has the topic and shows it to this user."""
        return topic in self._topics

    def extent(self, topic: str, start: int | None = None, end: int | None = None) -> Extent:
        """What the topic holds now from ``start`` to before ``end``, ms, by the records' own times.

        Raises TopicError if the topic is not there.
        """
        if not self.has(topic):
            raise TopicError(f"topic {topic} at {self._settings.broker} is not there, or not readable for this user")
        found: Extent = self._run(self._extent(topic, start, end), topic)
        return found

    async def _extent(self, topic: str, start: int | None, end: int | None) -> Extent:
        consumer = self._consumer
        assert consumer is not None  # noqa: S101 - within the context
        # The first makes the client learn of the others; the topic is known to be there, so none is made by asking.
        probe = TopicPartition(topic, 0)
        consumer.assign([probe])
        await consumer.beginning_offsets([probe])
        partitions = sorted(consumer.partitions_for_topic(topic) or ())
        if not partitions:
            raise TopicError(f"topic {topic} at {self._settings.broker}: the broker names no partition of it")
        places = [TopicPartition(topic, partition) for partition in partitions]
        firsts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)

        async def at(ms: int | None, otherwise: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
            if ms is None:
                return dict(otherwise)
            found = await consumer.offsets_for_times({place: max(ms, 0) for place in places})
            return {place: found[place].offset if found[place] is not None else ends[place] for place in places}

        low, high = await at(start, firsts), await at(end, ends)
        bounds = {place.partition: (low[place], max(low[place], min(high[place], ends[place]))) for place in places}
        return Extent(topic, bounds, {place.partition: (firsts[place], ends[place]) for place in places})

    def read(self, extent: Extent) -> Iterator[list[ConsumerRecord]]:
        """The records of a range in runs of one partition each, in order within it. Raises TopicError."""
        consumer = self._consumer
        assert consumer is not None  # noqa: S101 - within the context
        places = {TopicPartition(extent.topic, p): b for p, b in extent.bounds.items() if b[0] < b[1]}
        if not places:
            return
        self._run(self._seek(places), extent.topic)
        behind, moved = set(places), time.monotonic()
        while behind:
            fetched = self._run(consumer.getmany(*behind, timeout_ms=1000), extent.topic)
            for place, records in sorted(fetched.items()):
                within = [record for record in records if record.offset < places[place][1]]
                if within:
                    yield within
            reached = {p for p in behind if self._run(consumer.position(p), extent.topic) >= places[p][1]}
            behind -= reached
            if fetched or reached:
                moved = time.monotonic()
            elif time.monotonic() - moved > PATIENCE_SECONDS:
                raise TopicError(f"topic {extent.topic} gave nothing for {PATIENCE_SECONDS:g} s before its end")

    async def _seek(self, places: Mapping[TopicPartition, tuple[int, int]]) -> None:
        assert self._consumer is not None  # noqa: S101 - within the context
        self._consumer.assign(list(places))
        for place, (first, _) in places.items():
            self._consumer.seek(place, first)

    def records(self, topic: str, start: int | None = None, end: int | None = None) -> list[ConsumerRecord]:
        """All records of a range that fits into memory. Raises TopicError."""
        return [record for run in self.read(self.extent(topic, start, end)) for record in run]


def moment(_: object, parameter: Any, value: str | None) -> int | None:
    """An option's time, ISO 8601 (UTC if it names no zone) or ms, as ms. Raises SettingsError."""
    if value is None:
        return None
    try:
        if value.isascii() and value.isdigit():
            ms = int(value)
        else:
            at = datetime.fromisoformat(value)
            ms = math.floor((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        ms = -1
    if not 0 <= ms < 1 << 53:
        option = parameter.opts[0]
        raise SettingsError(f"{option}: {value[:40]!r} is no time; write 2025-01-31T12:00:00Z, or ms")
    return ms


def iso(ms: int) -> str:
    """A time in ms as ISO 8601."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# What was decided, and where operations stood


@dataclass(frozen=True)
class Seed:
    """Where a unit is taken up in mid-history: before the recorded decision number ``index`` of its chain."""

    index: int
    start: int
    values: Mapping[str, Any]

    def apply(self, unit: Unit) -> None:
        """Set what the decisions tell of the unit's state at ``start``."""
        for name, value in self.values.items():
            setattr(unit, name, value)


@dataclass
class Past:
    """What the topics tell besides telemetry. ``at``: the pane before which an order was carried out, by the order."""

    chains: dict[str, list[Decision]] = field(default_factory=dict)
    values: dict[str, list[bytes]] = field(default_factory=dict)
    commands: list[bytes] = field(default_factory=list)
    exact: dict[tuple[str, OperationBy], tuple[int, int]] = field(default_factory=dict)

    def place(self, order: Order, clockwork: Clockwork) -> int:
        """The panes, below this one, that were closed when an order was carried out."""
        wanted = order.flag, order.operation
        if wanted in self.exact:
            return self.exact[wanted][0]
        low, high = self._between(wanted, clockwork.pane_ms)
        return min(max((order.operation.ts - clockwork.lateness_ms) // clockwork.pane_ms, low), high)

    def _between(self, wanted: tuple[str, OperationBy], pane_ms: int) -> tuple[int, int]:
        """The least and the most panes that the decisions around the records of an order allow."""
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

    def seeds(self, start: int) -> dict[str, Seed]:
        """By unit, the first recorded window that starts at least its own length after ``start``, ms."""
        found = {}
        for unit, chain in self.chains.items():
            for number, decision in enumerate(chain):
                window = decision.window
                after = chain[number - 1] if number else None
                follows = after is None or (after.operation is None and after.window.end <= window.start)
                whole = window.closed and decision.gates and follows
                if whole and window.start >= start + window.end - window.start:
                    found[unit] = Seed(number, window.start, _state(chain[:number], decision))
                    break
        return found


def _state(before: Sequence[Decision], decision: Decision) -> dict[str, Any]:
    """The fields of a unit that its earlier decisions and its next one tell."""
    weight, latched = decision.stage.canary_weight, "latched" in decision.reasons
    state: dict[str, Any] = {"stage": decision.stage.index, "weight": weight, "latched": latched}
    state["engaged"] = decision.kind == "quality_gated" and weight > 0
    state["locked"] = {name: dict(pins) for name, pins in decision.versions.items()}
    state["seq"] = sum(d.verdict not in ("pass", "hold") for d in before)
    state["previous_hash"] = before[-1].hash if before else None
    windows = [d for d in before if d.operation is None and d.gates and d.window.closed]
    state["last_window"] = (windows[-1].window.start, windows[-1].window.end) if windows else None
    if windows and windows[-1].stage.index == decision.stage.index and windows[-1] is before[-1]:
        # What the sample-ratio test found stands for the whole stage.
        found = [p.detail for p in windows[-1].evidence_problems if p.problem == "sample_ratio_mismatch"]
        state["ratio"] = found[0] if found else None
    number, green, strike = 1, 0, False
    for d in before:
        if d.verdict == "rearm":
            number, green, strike = 1, 0, False
        elif d.gates and d.window.closed:
            number += 1
            green = green + 1 if "hold_windows" in d.reasons else 0
            strike = d.verdict == "freeze" or (strike and "hold_windows" not in d.reasons and d.verdict != "promote")
    return state | {"number": number, "green": green, "strike": strike}


def read_past(history: History, settings: Settings, tell: Callable[[str], None], *, placed: bool) -> Past:
    """Recorded decisions and commands, and, if ``placed``, where the gates' log has the orders."""
    past = Past()
    if history.has(settings.decisions_topic):
        values = (r.value for r in history.records(settings.decisions_topic) if r.value is not None)
        past.values = by_unit(values)
        for unit, lines in past.values.items():
            past.chains[unit] = [d for d in map(_decision, lines) if d is not None]
    else:
        tell(f"topic {settings.decisions_topic} is not there: operations are placed by their time")
    if history.has(settings.control_topic):
        past.commands = [r.value for r in history.records(settings.control_topic) if r.value is not None]
    if placed and history.has(settings.partials_topic):
        try:
            past.exact = _gate_log(history, history.extent(settings.partials_topic))
        except TopicError as error:
            tell(f"{error}; operations are placed by the decisions")
    return past


def _decision(line: bytes) -> Decision | None:
    try:
        return decision_from_bytes(line)
    except EventError:
        return None


def _gate_log(history: History, extent: Extent) -> dict[tuple[str, OperationBy], tuple[int, int]]:
    """By order, how far all source partitions were closed where it stands, and its place among the orders."""
    closed: dict[int, dict[int, int]] = defaultdict(dict)
    waiting: list[tuple[int, Order, int, dict[int, int]]] = []
    for run in history.read(extent):
        for record in run:
            gate = closed[record.partition]
            if is_order(record.key):
                waiting.append((record.partition, order_codec.load(record.value), record.offset, dict(gate)))
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


def read_timeline(records: Iterable[Recorded], settings: Settings, trusted: TrustedKeys) -> Timeline:
    """The revisions in records of the manifests topic. Raises InputError if there is none."""
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


def read_orders(records: Iterable[Recorded], trusted: TrustedKeys | None) -> tuple[list[Operation], int]:
    """The operations that count, as workers take them, and how many records were refused."""
    taken: dict[Operation, None] = {}
    refused = 0
    for record in records:
        try:
            operation = read_operation(record.value, trusted)
            check_time(operation, record.timestamp)
            if operation in taken:
                raise Refusal("once more")
        except Refusal:
            refused += 1
            continue
        taken[operation] = None
    return list(taken), refused


# Deciding again


class PlacedGate(GateState):
    """A gate that carries out each order once the panes below its place are closed, as in the log of a worker.

    ``first``: panes from here on count, and units with a seed begin where it says.
    """

    orders: list[tuple[int, Order]]
    first: int
    seeds: Mapping[str, Seed]
    _reached = NEVER

    def _advance(self, done: int, closed: int) -> Iterator[Outcome]:
        while self.orders and self.orders[0][0] <= closed:
            at, order = self.orders.pop(0)
            if at > done:
                yield from super()._advance(done, at)
                done = at
            self._reached = at
            yield from self._carry_out(order)
        yield from super()._advance(done, closed)

    def finish(self) -> Iterator[Outcome]:
        """Carry out the orders that are still to come."""
        for at, order in self.orders:
            self._reached = at
            yield from self._carry_out(order)
        self.orders = []

    def _units_of(self, name: str, flags: list[Flag]) -> set[str]:
        units = super()._units_of(name, flags)
        # What came before a unit is taken up is in its seed.
        start = self._reached * self._clockwork.pane_ms
        early = {unit for unit in units if unit in self.seeds and start < self.seeds[unit].start}
        for unit in early:
            del self._ramps[unit], self._state.units[unit]
        return units - early

    def _merge(self, pane: int, partials: dict[int, Partial]) -> Iterator[Outcome]:
        start = pane * self._clockwork.pane_ms
        for partition, one in partials.items():
            counted = {n: seen for n, seen in one.units.items() if start >= self._start_of(n)}
            dead = one.dead_letters if pane >= self.first else 0
            partials[partition] = Partial(one.partition, one.pane, one.previous, dead, counted)
        yield from super()._merge(pane, partials)

    def _start_of(self, name: str) -> int:
        return self.seeds[name].start if name in self.seeds else self.first * self._clockwork.pane_ms

    def _begin(self, name: str, start: int) -> Iterator[Outcome]:
        seed = self.seeds.get(name)
        flag = self._timeline.flags(start).get(name.split("|", 1)[0])
        if seed is None or flag is None or name in self._state.retired:
            yield from super()._begin(name, start)
            return
        # The first pane of the window may have held no event.
        start -= (start - seed.start) % flag.window.length_ms
        kill = self._state.kills.pop(flag.name, None)
        yield from super()._begin(name, start)
        seed.apply(self._state.units[name])
        if kill is not None:
            self._state.kills[flag.name] = kill


@dataclass(frozen=True)
class Asked:
    """What is to be decided again. ``start``: ms, None: from the beginning of what is kept."""

    timeline: Timeline
    operations: Sequence[Operation]
    clockwork: Clockwork
    start: int | None
    past: Past
    seeds: Mapping[str, Seed]


def _pipeline(asked: Asked, partitions: int) -> Pipeline:
    clockwork, timeline = asked.clockwork, asked.timeline
    pipeline = Pipeline(timeline, partitions, clockwork)
    snapshot = GateSnapshot(0, 1, clockwork.pane_ms, clockwork.lateness_ms, [NEVER] * partitions)
    gate = PlacedGate(snapshot, clockwork, timeline)
    in_force = sorted({timeline.index(start) for start in timeline.starts})
    switched = {(o.flag, o.revision): o for index in in_force for o in switches(timeline, index)}
    orders = [*switched.values(), *(Order(o.flag, o.by) for o in asked.operations)]
    late = 1 << 62

    def key(placed: tuple[int, Order]) -> tuple[int, int, int]:
        at, order = placed
        return at, asked.past.exact.get((order.flag, order.operation), (0, late))[1], order.operation.ts

    gate.first = NEVER if asked.start is None else -(-asked.start // clockwork.pane_ms)
    placed = [(asked.past.place(order, clockwork), order) for order in orders]
    gate.orders = sorted((one for one in placed if asked.start is None or one[0] >= gate.first), key=key)
    gate.seeds = asked.seeds
    pipeline.gate = gate
    return pipeline


def telemetry_extent(history: History, topic: str, start: int | None, end: int | None) -> Extent:
    """The records that can hold an event from ``start`` on: an event may be ahead of its record's own time."""
    return history.extent(topic, None if start is None else start - FUTURE_MS, end)


def decide(
    runs: Iterable[Sequence[ConsumerRecord]],
    partitions: int,
    asked: Asked,
    progress: Callable[[int], None],
    corrected: Corrected = lambda _: None,
) -> Iterator[Outcome]:
    """The decisions and commands that follow from records of the telemetry topic; ``corrected`` gets the corrections.

    Raises InputError where records within a partition are missing.
    """
    pipeline = _pipeline(asked, partitions)
    pipeline.corrected = corrected
    following: dict[int, int] = {}
    for run in runs:
        first, partition = run[0], run[0].partition
        due = following.get(partition, first.offset)
        if [record.offset for record in run] != list(range(due, due + len(run))):
            raise InputError(f"{first.topic}: records after {due} of partition {partition} are missing; it has a gap")
        following[partition] = due + len(run)
        yield from pipeline.step(
            partition, Run(due, [record.value for record in run], [record.timestamp for record in run])
        )
        progress(len(run))
    yield from pipeline.finish()


# Comparing with what was recorded


class _Numbered(msgspec.Struct):
    flag: str
    region: str
    seq: int


def difference(made: Sequence[bytes], commands: Sequence[bytes], asked: Asked, *, part: bool) -> str | None:
    """Where records first differ from the recorded ones; None if nowhere. ``part``: more may be recorded than made.

    In mid-history only units with a seed are compared. The control topic is compacted: a unit's last command has to
    be there, and those that are there have to be the same.
    """
    ours, theirs = by_unit(made), asked.past.values
    for unit in sorted(ours.keys() | theirs.keys()):
        if asked.start is not None and unit not in asked.seeds:
            continue
        one, other = ours.get(unit, []), theirs.get(unit, [])
        other = other[asked.seeds[unit].index if unit in asked.seeds else 0 :]
        for number, (a, b) in enumerate(zip(one, other, strict=False), 1):
            if a != b:
                return f"{unit}: decision {number} differs{told(a, b)}"
        if len(one) > len(other) or (len(one) < len(other) and not part):
            return f"{unit}: {len(one)} decisions here, {len(other)} in the topic"
    return _commands_differ(commands, asked, part=part)


def _commands_differ(commands: Sequence[bytes], asked: Asked, *, part: bool) -> str | None:
    ours, theirs = _numbered(commands), _numbered(asked.past.commands)
    for unit in sorted(ours.keys() | theirs.keys()):
        if asked.start is not None and unit not in asked.seeds:
            continue
        one, other = ours.get(unit, {}), theirs.get(unit, {})
        for seq in sorted(one.keys() & other.keys()):
            if one[seq] != other[seq]:
                return f"{unit}: command {seq} differs{told(one[seq], other[seq])}"
        last, recorded = max(one, default=0), max(other, default=0)
        if last > recorded or (last < recorded and not part and last):
            return f"{unit}: the last command is {last} here, {recorded} in the topic"
        if not last and recorded and not part and asked.start is None:
            return f"{unit}: no command here, {recorded} in the topic"
    return None


def _numbered(commands: Iterable[bytes]) -> dict[str, dict[int, bytes]]:
    found: dict[str, dict[int, bytes]] = defaultdict(dict)
    for value in commands:
        try:
            head = msgspec.json.decode(value, type=_Numbered)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise InputError(f"not a command: {error}") from None
        found[f"{head.flag}|{head.region}"][head.seq] = value
    return found
