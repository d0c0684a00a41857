"""One partition's state machine: runs of records in, closed panes out.

The state is a function of the records in offset order: not of the clock, nor of how the records were cut into
runs, nor of restarts. ``step`` says what to send on; the caller sends it and then saves ``dump``.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from tidegate.gates.arrays import Ints
from tidegate.gates.codec import in_parts
from tidegate.gates.window import LostRange, PaneUnit
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.errors import HoleError, StateError
from tidegate.streams.engine.columns import Columns, decode, whose
from tidegate.streams.engine.counting import ROWS_HELD, Rows, Taker
from tidegate.streams.engine.event_classes import EventClasses, LeftOut
from tidegate.streams.engine.gate_log import UNTOLD, Loss, Partial, unit_codec
from tidegate.streams.engine.runs import NEVER, Position, Run
from tidegate.streams.engine.slices import Slices, only, whole
from tidegate.streams.engine.stamped import StampedCodec

STEP = 2048
"""Records worked on at a time: small enough for the processor's cache."""
STEP_BYTES = 2 << 20
"""The same for what they take, unless it is a single one."""
DEAR_STEP = 128
"""Records worked on at a time where each told something new: one of them costs as much as a dozen others. Between the
two, as many are taken as will have about so many such ones among them."""
IDS_BYTES = 1 << 20
"""Of event ids, read back at a time."""

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
        known = self.units.get(unit)
        if known is None:
            known = self.units[unit] = PaneUnit()
        return known

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
    """The panes of one partition. ``table`` may be shared by the partitions of one process.

    ``rows``: who takes in what is accepted, unless it is counted into the panes.
    """

    def __init__(self, snapshot: Snapshot, table: EventClasses, rows: Taker | None = None) -> None:
        self._state = snapshot
        self._table = table
        self._rows: Taker = Rows(snapshot.partition, table) if rows is None else rows
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
        yield from self._rows.sum_slices(self._of)
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
        yield from self._rows.sum_slices(self._of)
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
        for _ in self._rows.sum_slices(self._of):
            pass
        return ((index, pane.units) for index, pane in sorted(self._state.open.items()))

    def step(self, run: Run) -> Step:
        """Take in a run; records below ``next`` are skipped. Raises HoleError if records are missing before it."""
        total = Step()
        for found in whole(self.step_slices(run)):
            total.add(found)
        return total

    def step_slices(self, run: Run) -> Slices[Step]:
        """``step`` in slices; in one some records are taken in, an arm's are summed, or a unit's pane is closed."""
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
        dear = len(table) - known
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
                self._rows.hold(first, columns, fresh, pane[fresh], cell[fresh], self._of)
            state.largest_ts = int(largest[-1])
            if closed[-1] > state.closed:
                result.partials = yield from self._close(np.unique(closed[closed > state.closed]).tolist())
            elif len(self._rows) >= ROWS_HELD:
                yield from self._rows.sum_slices(self._of)
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
        if came[0] == came[-1]:
            self._pane(int(came[0])).records += len(came)
            return
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
                self._rows.count(first, columns, kept, pane[kept], cell[kept], behind)
            for (_, its_cell), count in _tally(cell[dropped], cell[dropped]):
                onto.of(self._table.cells[its_cell][0]).left_out += count

    def _of(self, pane: int, unit: str) -> PaneUnit:
        return self._pane(pane).of(unit)

    def _drop_duplicates(self, columns: Columns, counted: Ints, pane: Ints, closed: Ints, cell: Ints) -> Ints:
        """The rows whose id, of their flag and kind, is not in a pane that is open when they arrive."""
        ids = (columns.event[counted] ^ self._table.salt[columns.code[counted]]).tolist()
        panes = pane[counted].tolist()
        if len(set(ids)) == len(ids) and all(seen.isdisjoint(ids) for seen in self._seen.values()):
            if len(set(panes)) == 1:
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

    def _pane(self, index: int) -> Pane:
        known = self._state.open.get(index)
        if known is None:
            known = self._state.open[index] = Pane()
        return known

    def _close(self, steps: list[int]) -> Generator[None, None, list[Partial]]:
        """Close panes below each of the rising ``steps``: one partial a pane with content, and one at each end."""
        state = self._state
        partials = []
        yield from self._rows.sum_slices(self._of)
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
        partials[0].losses, state.losses = state.losses, []
        self._seen = {pane: seen for pane, seen in self._seen.items() if pane >= state.closed}
        self._rows.forget(state.closed)
        return partials


def _portions(values: Sequence[bytes | None], start: int, most: Callable[[], int]) -> Iterator[tuple[int, int]]:
    """Yield the portions of a run from ``start`` on: none takes much or has more than ``most`` records."""
    if sum(map(len, filter(None, values))) <= STEP_BYTES:
        at = start
        while at < len(values):
            begin, at = at, min(at + most(), len(values))
            yield begin, at
        return
    upto = np.cumsum([len(value) if value else 0 for value in values[start:]])
    at = 0
    while at < len(upto):
        taken = int(upto[at - 1]) if at else 0
        end = int(np.searchsorted(upto, taken + STEP_BYTES, side="right"))
        end = min(max(end, at + 1), at + most())
        yield start + at, start + min(end, len(upto))
        at = end


def _tally(one: Ints, other: Ints) -> list[tuple[tuple[int, int], int]]:
    if not len(one):
        return []
    pairs, counts = np.unique(np.stack([one, other]), axis=1, return_counts=True)
    return [((int(a), int(b)), int(n)) for (a, b), n in zip(pairs.T, counts, strict=True)]
