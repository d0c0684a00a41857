"""One partition's state machine: runs of records in, closed panes out.

The state is a function of the records in offset order: not of the clock, nor of how the records were cut into
runs, nor of restarts. ``step`` says what to send on; the caller sends it and then saves ``dump``.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidegate.gates.arrays import Ids, Ints
from tidegate.gates.codec import in_parts
from tidegate.gates.labels import ROW
from tidegate.gates.sums import COUNTERS, COVERAGE_BITS, WORST, Sums, Worst, cost_parts, square_parts, worst_rows
from tidegate.gates.window import CLIENT, LABELS, REQUEST_SOURCES, Detail, LostRange, PaneUnit
from tidegate.schemas.assignment import bucket
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.errors import HoleError, StateError
from tidegate.streams.engine.columns import Columns, decode, whose
from tidegate.streams.engine.event_classes import EventClasses, LeftOut, hash_of
from tidegate.streams.engine.gate_log import UNTOLD, Loss, Partial, unit_codec
from tidegate.streams.engine.runs import NEVER, Position, Run
from tidegate.streams.engine.slices import Slices, only, whole
from tidegate.streams.engine.stamped import StampedCodec

STEP = 2048
"""Records worked on at a time: small enough for the processor's cache."""
STEP_BYTES = 2 << 20
"""The same for what they take, unless it is a single one."""
DEAR_STEP = 128
"""Records worked on at a time where each was of a unit of its own, or told something new: one of them costs as much as
fifty others. Between the two, as many are taken as will have about so many such ones among them."""
IDS_BYTES = 1 << 20
"""Of event ids, read back at a time."""

_COST = COUNTERS.index("cost_rows"), COUNTERS.index("cost_high"), COUNTERS.index("cost_low")
_COST_KNOWN = COUNTERS.index("cost_known")
_SQUARE = COUNTERS.index("square_high")
_SOLVED_COST = COUNTERS.index("solved_cost_high")
UNIT_BYTES = 2 << 20
"""A unit whose names of one pane take more than this counts as dead letters of its own: a partial has to fit into a
record."""
REGIONS_MAX = 1_000
"""Regions that a partition takes up of a flag whose scope names none; events of others are dead letters."""
_TOO_MANY = (
    f"region: not among the first {REGIONS_MAX:,} of its flag; name those that count in the flag's scope.regions"
)
DEAD_UNITS_MAX = 1_000
"""Units that dead letters may name in one pane; those that name further ones count for none."""
LATE_CAP = 4096
"""Late events that one pane brings for corrections; later ones are only counted."""
TOOL_LOOP = 10
"""Calls of one tool with the same arguments in one request that make a loop."""
_COVERAGE = COUNTERS.index("coverage_rows"), COUNTERS.index("coverage_sum")

_LABELLED = {place: source for source, place in LABELS.items()}

Place = Callable[[int, str], PaneUnit]
"""Finder of the sums in which a unit's rows of a pane are counted."""


class Pane(msgspec.Struct, array_like=True):
    """An open pane. ``dead_letters``: those that nobody can be told to have sent; ``dead_of``: by the unit that they
    name. ``records``: accepted events that came in it. ``late``: late events that came in it and are kept. ``left``:
    events that came in it and count for no unit.
    """

    units: dict[str, PaneUnit] = msgspec.field(default_factory=dict)
    dead_letters: int = 0
    late: int = 0
    records: int = 0
    dead_of: dict[str, int] = msgspec.field(default_factory=dict)
    left: LeftOut | None = None

    def of(self, unit: str) -> PaneUnit:
        """One unit, made on first use."""
        return self.units.setdefault(unit, PaneUnit())

    def bury(self, unit: str | None) -> None:
        """Count a dead letter; of very many names the later ones are nobody's, and count for no unit."""
        if unit is None:
            self.dead_letters += 1
        elif unit in self.dead_of or len(self.dead_of) < DEAD_UNITS_MAX:
            self.dead_of[unit] = self.dead_of.get(unit, 0) + 1

    def settle(self) -> None:
        """Give each unit its dead letters, as the pane closes."""
        for unit, count in self.dead_of.items():
            self.of(unit).dead_letters += count


class Snapshot(msgspec.Struct, array_like=True):
    """The whole state of one partition.

    ``event_ids``: little-endian 64-bit hashes by open pane. ``regions``: those met so far, in order, of each flag whose
    scope names none. ``losses``: those that no partial has told yet.
    """

    partition: int
    pane_ms: int
    lateness_ms: int
    next: int = 0
    largest_ts: int = NEVER
    closed: int = NEVER
    open: dict[int, Pane] = msgspec.field(default_factory=dict)
    early_dead_letters: int = 0
    event_ids: dict[int, bytes] = msgspec.field(default_factory=dict)
    regions: dict[str, list[str]] = msgspec.field(default_factory=dict)
    losses: list[Loss] = msgspec.field(default_factory=list)


state_codec = StampedCodec(Snapshot)
_open = in_parts(Pane, units=dict[str, msgspec.Raw])
_codec_of_parts = StampedCodec(
    in_parts(Snapshot, open=dict[int, _open]),  # type: ignore[valid-type]  # made above
    Snapshot,
)


@dataclass
class Step:
    """The results of a run: partials in order; rows (offset, and error for dead letters) to send on; counts to show.

    ``left``: events that count for no unit. ``span``: the smallest and the largest ``ts`` of the valid records, ms.
    """

    partials: list[Partial] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    dead: list[tuple[int, str]] = field(default_factory=list)
    records: int = 0
    accepted: int = 0
    duplicates: int = 0
    ticks: int = 0
    probes: int = 0
    left: LeftOut = field(default_factory=LeftOut)
    span: tuple[int, int] | None = None

    def add(self, other: "Step") -> None:
        """Append the next step's results."""
        self.partials += other.partials
        self.late += other.late
        self.dead += other.dead
        self.records += other.records
        self.accepted += other.accepted
        self.duplicates += other.duplicates
        self.ticks += other.ticks
        self.probes += other.probes
        self.left.add(other.left)
        if other.span is not None:
            self.widen(*other.span)

    def widen(self, first: int, last: int) -> None:
        """Let the span reach from ``first`` to ``last``, ms."""
        self.span = (first, last) if self.span is None else (min(self.span[0], first), max(self.span[1], last))


class SourcePartition:
    """The panes of one partition. ``table`` may be shared by the partitions of one process."""

    def __init__(self, snapshot: Snapshot, table: EventClasses) -> None:
        self._state = snapshot
        self._table = table
        self._seen: dict[int, set[int]] = {}
        self._most = DEAR_STEP
        self._met = {f"{flag}|{region}" for flag, regions in snapshot.regions.items() for region in regions}

    @classmethod
    def fresh(cls, partition: int, clockwork: Clockwork, table: EventClasses, first: int = 0) -> "SourcePartition":
        """The state before the first record, which is at offset ``first``."""
        return cls(Snapshot(partition, clockwork.pane_ms, clockwork.lateness_ms, next=first), table)

    @classmethod
    def load(cls, blob: bytes, partition: int, clockwork: Clockwork, table: EventClasses) -> "SourcePartition":
        """The state that ``dump`` gave. Raises StateError if the bytes are none, or of other settings of time."""
        return only(cls.load_slices(blob, partition, clockwork, table))

    @classmethod
    def load_slices(
        cls, blob: bytes, partition: int, clockwork: Clockwork, table: EventClasses
    ) -> Slices["SourcePartition"]:
        """``load`` in slices; a slice is one unit in one open pane, or some of the ids that came in it."""
        try:
            snapshot = _codec_of_parts.load(blob)
            opened: dict[int, Pane] = {}
            for index, pane in snapshot.open.items():
                units = yield from unit_codec.load_parts(pane.units)
                opened[index] = Pane(**msgspec.structs.asdict(pane) | {"units": units})
            snapshot = Snapshot(**msgspec.structs.asdict(snapshot) | {"open": opened})
        except (StateError, msgspec.MsgspecError, ValueError, TypeError) as error:
            raise StateError(f"the state of partition {partition} cannot be read: {error}") from None
        found = snapshot.partition, snapshot.pane_ms, snapshot.lateness_ms
        wanted = partition, clockwork.pane_ms, clockwork.lateness_ms
        if found != wanted:
            raise StateError(
                f"the state of partition {partition} was written with (partition, pane ms, lateness ms) = {found}, "
                f"not {wanted}; give the old settings or start a new application id"
            )
        event_ids, snapshot.event_ids = snapshot.event_ids, {}
        state = cls(snapshot, table)
        for index, ids in event_ids.items():
            seen = state._seen[index] = set()
            for at in range(0, len(ids), IDS_BYTES):
                seen.update(np.frombuffer(ids[at : at + IDS_BYTES], "<u8").tolist())
                yield None
        yield state

    def dump(self) -> bytes:
        """The whole state, position included."""
        return only(self.dump_slices())

    def dump_slices(self) -> Slices[bytes]:
        """``dump`` in slices: one unit in one open pane, or the ids that came in it. No step may come between."""
        state, opened, event_ids = self._state, dict[int, Pane](), dict[int, bytes]()
        for index, pane in state.open.items():
            units = yield from unit_codec.dump_parts(pane.units)
            opened[index] = msgspec.structs.replace(pane, units=units)
        for index, ids in self._seen.items():
            event_ids[index] = np.fromiter(ids, "<u8", len(ids)).tobytes()
            yield None
        yield state_codec.dump(msgspec.structs.replace(state, open=opened, event_ids=event_ids))

    def release_slices(self) -> Slices[bool]:
        """Let go of what the state holds, which takes as long as it is large; a slice is one unit in one open pane.

        It is of no use afterwards. True at the end.
        """
        for pane in self._state.open.values():
            while pane.units:
                pane.units.popitem()
                yield None
        while self._seen:
            self._seen.popitem()
            yield None
        yield True

    @property
    def next(self) -> int:
        """The offset of the next record to step over."""
        return self._state.next

    @property
    def mark(self) -> Position:
        """Return the position that the state has reached."""
        return Position(self._state.next, (self._state.closed,))

    @property
    def watermark(self) -> int | None:
        """Largest accepted ``ts`` − lateness, ms; None before the first."""
        largest = self._state.largest_ts
        return None if largest == NEVER else largest - self._state.lateness_ms

    @property
    def open_panes(self) -> int:
        """Number of panes that hold something."""
        return len(self._state.open)

    def open_units(self) -> Iterator[tuple[int, Mapping[str, PaneUnit]]]:
        """Yield each open pane and what it holds, by unit."""
        return ((index, pane.units) for index, pane in sorted(self._state.open.items()))

    def step(self, run: Run) -> Step:
        """Take in a run; records below ``next`` are skipped. Raises HoleError if records are missing before it."""
        total = Step()
        for found in whole(self.step_slices(run)):
            total.add(found)
        return total

    def step_slices(self, run: Run) -> Slices[Step]:
        """``step`` in slices; in one some records are counted, or a unit's pane is closed.

        No slice ends while records are being counted: another partition may empty the table that they share.
        """
        if run.lost == self.next:
            self.lose(run.begin)
        skip = max(self.next - run.first, 0)
        if run.begin > self.next:
            raise HoleError(f"records {self.next} to {run.begin - 1} of partition {self._state.partition} are missing")
        for at, end in _portions(run.values, skip, lambda: self._most):
            stamps = None if run.timestamps is None else run.timestamps[at:end]
            yield from self._step(run.first + at, run.values[at:end], stamps)
        self._state.next = max(self.next, run.next)

    def lose(self, following: int) -> None:
        """Go on at offset ``following``, without the records before it: they may be of any pane that is not closed."""
        state = self._state
        lost = LostRange("telemetry", state.partition, self.next, following)
        state.losses.append(Loss(lost, state.closed, UNTOLD))
        state.next = following

    def _end_losses(self, ts: int) -> None:
        """End open losses: records lost before one of ``ts`` ms may be ahead of it by the lateness, and no more."""
        state = self._state
        end = (max(ts, state.largest_ts) + state.lateness_ms) // state.pane_ms + 1
        state.losses = [msgspec.structs.replace(loss, end=end) if loss.end == UNTOLD else loss for loss in state.losses]

    def _step(self, first: int, values: Sequence[bytes | None], timestamps: Sequence[int] | None) -> Slices[Step]:
        state, table = self._state, self._table
        known = len(table)
        columns = decode(values, timestamps, table)
        dear = max(len(table) - known, len(np.unique(columns.code)))
        self._most = min(max(len(values) * DEAR_STEP // max(dear, 1), DEAR_STEP), STEP)
        result = Step(dead=[(first + row, error) for row, error in columns.dead], records=len(values))
        largest = np.maximum.accumulate(np.maximum(columns.ts, state.largest_ts))
        closed = np.maximum((largest - state.lateness_ms) // state.pane_ms, state.closed)
        self._count_dead(columns, largest, values)
        if len(columns.row):
            if state.losses:
                self._end_losses(int(columns.ts[0]))
            pane = columns.ts // state.pane_ms
            cell = table.cell[columns.code]
            nothing = np.flatnonzero(cell < 0)
            if len(nothing):
                ticks = table.tick[columns.code[nothing]]
                result.ticks = int(ticks.sum())
                self._count_left_out(columns.code, largest, nothing[~ticks], result.left)
            result.probes = len(columns.query)
            result.span = int(columns.ts.min()), int(columns.ts.max())
            counted = self._of_regions_met(first, columns, np.flatnonzero(cell >= 0), cell, result)
            late = counted[pane[counted] < closed[counted]]
            if len(late):
                carriers = largest[late] // state.pane_ms
                self._count_late(cell[late], carriers)
                self._keep_late(first, columns, late, pane, cell, carriers)
                result.late = (columns.row[late] + first).tolist()
                counted = counted[pane[counted] >= closed[counted]]
            fresh = self._drop_duplicates(columns, counted, pane, closed, cell)
            result.accepted, result.duplicates = len(fresh), len(counted) - len(fresh)
            if len(fresh):
                self._count_read(largest[fresh])
                self._count(first, columns, fresh, pane[fresh], cell[fresh], self._of)
            state.largest_ts = int(largest[-1])
            result.partials = yield from self._close(np.unique(closed[closed > state.closed]).tolist())
        state.next = first + len(values)
        yield result

    def _count_dead(self, columns: Columns, largest: Ints, values: Sequence[bytes | None]) -> None:
        """Dead letters belong to the pane of the largest ``ts`` before them, or of the first ``ts`` of all.

        One that says which flag and region it is of counts there alone, if the gates know such a unit.
        """
        state = self._state
        for row, _ in columns.dead:
            before = int(np.searchsorted(columns.row, row)) - 1
            known = int(largest[before]) if before >= 0 else state.largest_ts
            if known == NEVER:
                state.early_dead_letters += 1
            else:
                self._pane(known // state.pane_ms).bury(whose(values[row]))
        if state.early_dead_letters and len(columns.ts):
            self._pane(int(columns.ts[0]) // state.pane_ms).dead_letters += state.early_dead_letters
            state.early_dead_letters = 0

    def _count_read(self, largest: Ints) -> None:
        """Count accepted events, which no repeat changes, in the panes in which they came."""
        came = largest // self._state.pane_ms
        for pane, count in zip(*(found.tolist() for found in np.unique(came, return_counts=True)), strict=True):
            self._pane(pane).records += count

    def _count_left_out(self, code: Ints, largest: Ints, rows: Ints, total: LeftOut) -> None:
        """Count events that count for no unit, in the panes in which they came: each combination once, in order."""
        if not len(rows):
            return
        groups = len(self._table)
        came = largest[rows] // self._state.pane_ms
        both, first, counts = np.unique((came - came[0]) * groups + code[rows], return_index=True, return_counts=True)
        for at in np.argsort(first).tolist():
            pane, group = divmod(int(both[at]), groups)
            onto = self._pane(pane + int(came[0]))
            onto.left = onto.left or LeftOut()
            for left in (onto.left, total):
                self._table.leave_out(group, int(counts[at]), left)

    def _of_regions_met(self, first: int, columns: Columns, counted: Ints, cell: Ints, result: Step) -> Ints:
        """The rows whose region is taken up; those of one region too many are dead letters, and count for no unit."""
        state, table, refused = self._state, self._table, []
        cells, rows = np.unique(cell[counted], return_index=True)
        for index in cells[np.argsort(rows)].tolist():
            unit = table.cells[index][0]
            if unit in self._met or not table.unnamed[index]:
                continue
            flag, region = unit.split("|", 1)
            met = state.regions.setdefault(flag, [])
            if len(met) < REGIONS_MAX:
                met.append(region)
                self._met.add(unit)
            else:
                refused.append(index)
        if not refused:
            return counted
        out = np.isin(cell[counted], refused)
        for row in counted[out].tolist():
            result.dead.append((first + int(columns.row[row]), _TOO_MANY))
        result.dead.sort()
        return counted[~out]

    def _count_late(self, cells: Ints, panes: Ints) -> None:
        for (pane, cell), count in _tally(panes, cells):
            self._pane(pane).of(self._table.cells[cell][0]).late += count

    def _keep_late(self, first: int, columns: Columns, late: Ints, pane: Ints, cell: Ints, carriers: Ints) -> None:
        """Late events that may belong to a window that is not long closed go along with the pane they came in."""
        pane_ms = self._state.pane_ms
        recent = np.flatnonzero((carriers - pane[late]) * pane_ms <= self._table.reach[cell[late]])
        for carrier in np.unique(carriers[recent]).tolist():
            rows = late[recent[carriers[recent] == carrier]]
            onto = self._pane(carrier)
            kept, dropped = rows[: LATE_CAP - onto.late], rows[LATE_CAP - onto.late :]
            onto.late += len(kept)

            def behind(index: int, unit: str, onto: Pane = onto) -> PaneUnit:
                return onto.of(unit).behind.setdefault(index, PaneUnit())

            if len(kept):
                self._count(first, columns, kept, pane[kept], cell[kept], behind)
            for (_, its_cell), count in _tally(cell[dropped], cell[dropped]):
                onto.of(self._table.cells[its_cell][0]).left_out += count

    def _of(self, pane: int, unit: str) -> PaneUnit:
        return self._pane(pane).of(unit)

    def _drop_duplicates(self, columns: Columns, counted: Ints, pane: Ints, closed: Ints, cell: Ints) -> Ints:
        """The rows whose id, of their flag and kind, is not in a pane that is open when they arrive."""
        ids = (columns.event[counted] ^ self._table.salt[columns.code[counted]]).tolist()
        panes = pane[counted].tolist()
        if len(set(ids)) == len(ids) and all(seen.isdisjoint(ids) for seen in self._seen.values()):
            if panes and min(panes) == max(panes):
                self._seen.setdefault(panes[0], set()).update(ids)
            else:
                for event, its_pane in zip(ids, panes, strict=True):
                    self._seen.setdefault(its_pane, set()).add(event)
            return counted
        fresh, repeated = [], []
        for row, event, its_pane, first_open in zip(
            counted.tolist(), ids, panes, closed[counted].tolist(), strict=True
        ):
            if any(event in seen for index, seen in self._seen.items() if index >= first_open):
                repeated.append(row)
            else:
                self._seen.setdefault(its_pane, set()).add(event)
                fresh.append(row)
        again = np.array(repeated, np.int64)
        for (its_pane, its_cell), count in _tally(pane[again], cell[again]):
            self._pane(its_pane).of(self._table.cells[its_cell][0]).duplicates += count
        return np.array(fresh, np.int64)

    def _count(self, first: int, columns: Columns, fresh: Ints, pane: Ints, cell: Ints, of: Place) -> None:
        """Add rows to their panes, one (pane, cell) after the other, each in offset order; ``of`` says where."""
        table = self._table
        heard = table.heard[columns.code[fresh]]
        if heard.any():
            self._note_labels(first, columns, fresh[heard], pane[heard], cell[heard], of)
            if heard.all():
                return
            fresh, pane, cell = fresh[~heard], pane[~heard], cell[~heard]
        order, starts, ends = _by_cell(pane, cell, len(table.cells))
        rows, pane, cell = fresh[order], pane[order], cell[order]
        code = columns.code[rows]
        counters = np.add.reduceat(self._counters(columns, rows, code), starts, axis=0).tolist()
        delta_s, latency = columns.delta_s[rows], columns.latency[rows]
        offset, sticky, event = columns.row[rows] + first, columns.sticky[rows], columns.event[rows]
        request, pins, measured = table.request[code], table.pins[code], table.measured[code]
        exposed = table.exposure[code]
        any_exposed = bool(exposed.any())
        for start, end, row in zip(starts.tolist(), ends.tolist(), counters, strict=True):
            its_pane = int(pane[start])
            unit, arm, source = table.cells[int(cell[start])]
            seen = of(its_pane, unit)
            sums = seen.of(arm).of(source)
            seen.saw(int(offset[start]), int(offset[end - 1]))
            sums.count(row)
            here = slice(start, end)
            if source == CLIENT:
                continue
            sums.delta_s.add(_present(delta_s[here], measured[here]))
            sums.latency.add(_present(latency[here], request[here]))
            if source in REQUEST_SOURCES:
                sums.requests.add(_those(event[here], request[here]))
            if source == "traffic":
                sums.sticky.add(sticky[here])
                if any_exposed:
                    sums.exposed.add(sticky[here][exposed[here]])
                if table.weights[int(cell[start])] is not None:
                    self._check_assignment(columns, rows[here], int(cell[start]), seen)
            self._note_pins(sums, pins[here], offset[here], its_pane)
            if arm == "canary":
                self._note_worst(columns, rows[here], code[here], offset[here], sums)
        if columns.query:
            self._note_probes(columns, rows, pane, cell, code, of)
        if not columns.lean:
            self._note_details(columns, rows, pane, cell, code, offset, of)

    def _note_labels(self, first: int, columns: Columns, labels: Ints, pane: Ints, cell: Ints, of: Place) -> None:
        """List labels in their panes, each (pane, cell) in offset order: who they are of is known to the gate alone."""
        table, pin_names = self._table, self._table.pin_names
        order, starts, ends = _by_cell(pane, cell, len(table.cells))
        at, pane, cell = labels[order], pane[order], cell[order]
        code = columns.code[at]
        rows = np.zeros(len(at), ROW)
        rows["request"] = [hash_of(columns.events[i].labels_event_id) for i in at.tolist()]
        rows["offset"] = columns.row[at] + first
        rows["delta_s"], rows["coverage"] = columns.delta_s[at], columns.coverage[at]
        rows["spoken"] = table.spoken[code]
        tagged = np.isin(at, np.fromiter(columns.query, np.int64, len(columns.query)))
        rows["run"] = np.where(tagged, table.run[code], -1)
        rows["query"] = [columns.query.get(i, 0) for i in at.tolist()]
        sets = table.pins[code]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            unit, arm, place = table.cells[int(cell[start])]
            here, seen = rows[start:end], of(int(pane[start]), unit)
            seen.saw(int(here["offset"][0]), int(here["offset"][-1]))
            into = seen.labels_of(arm, _LABELLED[place])
            # In the order of offsets: the first sets are listed, however the log was cut into runs.
            index = {name: into.set_of(pin_names[name]) for name in dict.fromkeys(sets[start:end].tolist())}
            here["pins"] = [index[name] for name in sets[start:end].tolist()]
            names = [columns.event_id(i) for i in at[start:end].tolist()] if arm == "canary" else []
            into.add(here, names)

    def _counters(self, columns: Columns, rows: Ints, code: Ints) -> Ints:
        """One row of counters an event."""
        table = self._table
        counters = table.untagged[code]
        if columns.query:
            probes = np.isin(rows, np.fromiter(columns.query, np.int64, len(columns.query)))
            counters[probes] = table.tagged[code[probes]]
        request, measured = table.request[code], table.measured[code]
        cost = columns.cost[rows]
        has_cost = request & ~np.isnan(cost)
        high, low = cost_parts(np.where(has_cost, cost, 0.0))
        counters[:, _COST[0]] = has_cost & table.solved_known[code]
        counters[:, _COST_KNOWN] = has_cost
        counters[:, _COST[1]] = high
        counters[:, _COST[2]] = low
        solved = table.solved[code]
        counters[:, _SOLVED_COST] = high * solved
        counters[:, _SOLVED_COST + 1] = low * solved
        for at, part in enumerate(square_parts(np.where(has_cost, cost, 0.0))):
            counters[:, _SQUARE + at] = part
        coverage = columns.coverage[rows]
        has_coverage = measured & ~np.isnan(coverage)
        counters[:, _COVERAGE[0]] = has_coverage
        counters[:, _COVERAGE[1]] = np.rint(np.where(has_coverage, coverage, 0.0) * float(1 << COVERAGE_BITS))
        return counters

    def _note_worst(self, columns: Columns, rows: Ints, code: Ints, offset: Ints, sums: Sums) -> None:
        """Keep the worst events of each metric, so that a failed gate can name them."""
        table = self._table
        request, measured = table.request[code], table.measured[code]
        for metric, badness, sign in (
            ("delta_s", _only(columns.delta_s[rows], measured), 1.0),
            ("coverage", _only(-columns.coverage[rows], measured), -1.0),
            ("latency", _only(columns.latency[rows], request), 1.0),
            ("cost", _only(columns.cost[rows], request), 1.0),
            ("error", table.errors[code], 1.0),
            ("tool", table.tool_failures[code], 1.0),
            ("lambda", table.flips[code], 1.0),
            ("reason", table.reason_failures[code], 1.0),
            ("reason_in_full", table.reasons_in_full[code], 1.0),
        ):
            known = sums.worst.get(metric, [])
            # Of equal ones the first is kept, and these come later.
            least = known[-1].badness if len(known) == WORST else -math.inf
            # fmax passes NaN over; with nothing but NaN there is nothing to keep.
            if np.fmax.reduce(badness) > least:
                found = [
                    Worst(
                        float(badness[i]),
                        float(badness[i]) * sign,
                        self._state.partition,
                        int(offset[i]),
                        columns.event_id(int(rows[i])),
                    )
                    for i in worst_rows(badness)
                ]
                sums.note_worst(metric, found)

    def _check_assignment(self, columns: Columns, rows: Ints, cell: int, seen: PaneUnit) -> None:
        """Count traffic that the hash of its sticky id would have sent to the other arm, at each stage's weight."""
        unit, arm, _ = self._table.cells[cell]
        weights = np.array(self._table.weights[cell])
        flag = unit.split("|", 1)[0]
        buckets = np.array([bucket(flag, columns.events.sticky_id(i)) for i in rows.tolist()])
        wrong = (buckets[:, None] >= weights) if arm == "canary" else (buckets[:, None] < weights)
        seen.details().misplace(arm, wrong.sum(axis=0).tolist())

    def _note_details(
        self, columns: Columns, rows: Ints, pane: Ints, cell: Ints, code: Ints, offset: Ints, of: Place
    ) -> None:
        """Note findings of single rows: manifest hashes, cache namespaces, tools."""
        table = self._table
        hashes = table.hash[code]
        known = np.flatnonzero(hashes >= 0)
        if len(known):
            facts = np.stack([pane[known], cell[known], hashes[known]])
            _, first, counts = np.unique(facts, axis=1, return_index=True, return_counts=True)
            by_offset = sorted(zip(offset[known[first]].tolist(), known[first].tolist(), counts.tolist(), strict=True))
            for _, at, count in by_offset:
                unit = table.cells[int(cell[at])][0]
                of(int(pane[at]), unit).details().see_hash(table.hash_names[int(hashes[at])], count)
        in_order = np.argsort(offset, kind="stable")
        told = table.request[code] & columns.detailed[rows]
        for at in in_order[told[in_order]].tolist():
            event = columns.events[int(rows[at])]
            unit, _, source = table.cells[int(cell[at])]
            if source == CLIENT or (event.cache_namespace is None and not event.tools):
                continue
            detail = of(int(pane[at]), unit).details()
            if event.cache_namespace is not None:
                detail.see_namespace(event.cache_namespace, [table.pin_names[int(table.pins[code[at]])]])
            if event.tools:
                self._note_tools(detail, event, int(offset[at]))

    def _note_tools(self, detail: Detail, event: Any, offset: int) -> None:
        calls: Counter[tuple[str, str]] = Counter()
        partition = self._state.partition
        for tool in event.tools:
            if tool.args_hash is not None:
                calls[tool.name, tool.args_hash] += 1
            if tool.idempotency_key is not None and tool.effect_id is not None:
                detail.effects.add(hash_of(tool.idempotency_key), hash_of(tool.effect_id))
            if tool.write and tool.idempotency_key is None:
                detail.unfenced.add(partition, offset, shortened(tool.name))
        for (name, _), count in calls.items():
            if count >= TOOL_LOOP:
                detail.tool_loops.add(partition, offset, shortened(name))

    def _note_pins(self, sums: Sums, pins: Ints, offset: Ints, pane: int) -> None:
        if (pins == pins[0]).all():
            found, first, counts = pins[:1], np.zeros(1, np.int64), np.array([len(pins)])
        else:
            found, first, counts = np.unique(pins, return_index=True, return_counts=True)
        for name, at, count in sorted(zip(found.tolist(), first.tolist(), counts.tolist(), strict=True), key=_by_first):
            if name >= 0:
                where = (pane, self._state.partition, int(offset[at]))
                sums.see_pins(self._table.pin_names[name], count, where)

    def _note_probes(self, columns: Columns, rows: Ints, pane: Ints, cell: Ints, code: Ints, of: Place) -> None:
        table = self._table
        for at in np.flatnonzero(np.isin(rows, np.fromiter(columns.query, np.int64, len(columns.query)))).tolist():
            state = int(table.state[code[at]])
            if state:
                unit, arm, source = table.cells[int(cell[at])]
                sums = of(int(pane[at]), unit).of(arm).of(source)
                sums.probe(columns.query[int(rows[at])], int(table.run[code[at]]), state)

    def _pane(self, index: int) -> Pane:
        return self._state.open.setdefault(index, Pane())

    def _close(self, steps: list[int]) -> Generator[None, None, list[Partial]]:
        """Close panes below each of the rising ``steps``: one partial a pane with content, and one at each end."""
        state = self._state
        partials = []
        for closed in steps:
            last = closed - 1
            for index in sorted({i for i in state.open if i < closed} | {last}):
                pane = state.open.pop(index, None) or Pane()
                pane.settle()
                units: dict[str, PaneUnit] = {}
                for unit in sorted(pane.units):
                    units[unit] = pane.units[unit].bounded(UNIT_BYTES).in_order()
                    yield None
                partials.append(
                    Partial(
                        state.partition,
                        index,
                        state.closed,
                        pane.dead_letters,
                        units,
                        records=pane.records,
                        left=pane.left,
                    )
                )
                state.closed = index + 1
        if steps:
            partials[0].losses, state.losses = state.losses, []
            self._seen = {pane: seen for pane, seen in self._seen.items() if pane >= state.closed}
        return partials


def _portions(values: Sequence[bytes | None], start: int, most: Callable[[], int]) -> Iterator[tuple[int, int]]:
    """Yield the portions of a run from ``start`` on: none takes much or has more than ``most`` records."""
    upto = np.cumsum([len(value) if value else 0 for value in values[start:]])
    at = 0
    while at < len(upto):
        taken = int(upto[at - 1]) if at else 0
        end = int(np.searchsorted(upto, taken + STEP_BYTES, side="right"))
        end = min(max(end, at + 1), at + most())
        yield start + at, start + min(end, len(upto))
        at = end


def shortened(text: str) -> str:
    """A name as findings show it."""
    return text[:100]


def _tally(one: Ints, other: Ints) -> list[tuple[tuple[int, int], int]]:
    if not len(one):
        return []
    pairs, counts = np.unique(np.stack([one, other]), axis=1, return_counts=True)
    return [((int(a), int(b)), int(n)) for (a, b), n in zip(pairs.T, counts, strict=True)]


def _by_cell(pane: Ints, cell: Ints, cells: int) -> tuple[Ints, Ints, Ints]:
    """The order of rows by (pane, cell), and where each pair's rows begin and end in it."""
    order = np.argsort((pane - pane.min()) * cells + cell, kind="stable")
    pane, cell = pane[order], cell[order]
    starts = np.flatnonzero((np.diff(pane, prepend=pane[0] - 1) != 0) | (np.diff(cell, prepend=cell[0]) != 0))
    return order, starts, np.append(starts[1:], len(order))


def _those(ids: Ids, keep: NDArray[np.bool_]) -> Ids:
    return ids if keep.all() else ids[keep]


def _present(values: NDArray[np.float64], request: NDArray[np.bool_]) -> NDArray[np.float64]:
    keep = request & ~np.isnan(values)
    return values if keep.all() else values[keep]


def _only(values: NDArray[np.float64], keep: NDArray[np.bool_]) -> NDArray[np.float64]:
    return values if keep.all() else np.where(keep, values, np.nan)


def _by_first(found: tuple[int, int, int]) -> int:
    return found[1]
