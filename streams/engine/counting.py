"""Rows of one partition counted into its panes.

What single rows tell (labels, probes, tools, the worst of a metric) is noted at once. Their numbers are held as columns
and summed by pane, unit, arm and source when there are many or somebody asks: each of those costs dozens of
microseconds, however many rows it has. When that is changes nothing: sums do not tell how rows came in portions.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tidegate.gates.arrays import Floats, Ids, Ints
from tidegate.gates.labels import ROW
from tidegate.gates.sums import COUNTERS, COVERAGE_BITS, WORST, Sums, Worst, cost_parts, square_parts, worst_rows
from tidegate.gates.window import CLIENT, LABELS, REQUEST_SOURCES, Detail, PaneUnit
from tidegate.schemas.assignment import bucket
from tidegate.streams.engine.columns import Columns
from tidegate.streams.engine.event_classes import EventClasses, hash_of
from tidegate.streams.engine.slices import Slices

ROWS_HELD = 1 << 15
"""Rows of one partition that are held, 74 bytes each, before they are summed."""
METRICS = 9
"""Metrics that the worst events are kept of."""
TOOL_LOOP = 10
"""Calls of one tool with the same arguments in one request that make a loop."""

_PLACE = {counter: at for at, counter in enumerate(COUNTERS)}
_LABELLED = {place: source for source, place in LABELS.items()}

Flags = NDArray[np.bool_]
Place = Callable[[int, str], PaneUnit]
"""Finder of the sums in which a unit's rows of a pane are counted."""


@dataclass(frozen=True)
class Meanings:
    """Meanings that combinations of fields had when rows were taken in, whatever becomes of the table since.

    Lists and arrays of one table that was not emptied in between are those of the last one, or begin them.
    """

    cells: list[tuple[str, str, str]]
    pin_names: list[str]
    tagged: Ints
    untagged: Ints
    pins: Ints
    request: Flags
    measured: Flags
    exposure: Flags
    solved: Ints
    solved_known: Flags

    @classmethod
    def of(cls, table: EventClasses) -> Self:
        """Take what the table says now."""
        return cls(*(getattr(table, field.name) for field in fields(cls)))


@dataclass(frozen=True)
class Numbers:
    """Columns of rows, in offset order within each pane and cell. ``probe``: a run of a λ group."""

    pane: Ints
    cell: Ints
    code: Ints
    offset: Ints
    probe: Flags
    event: Ids
    sticky: Ids
    delta_s: Floats
    coverage: Floats
    latency: Floats
    cost: Floats

    @classmethod
    def joined(cls, parts: "list[Numbers]") -> "Numbers":
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def at(self, rows: Ints) -> "Numbers":
        """Some of the rows, by position."""
        return Numbers(*(getattr(self, field.name)[rows] for field in fields(Numbers)))


class Taker(Protocol):
    """A taker of the rows that a partition accepts. ``of``: where they are counted."""

    def __len__(self) -> int:
        """Return how many rows are held."""

    def hold(self, first: int, columns: Columns, rows: Ints, pane: Ints, cell: Ints, of: Place) -> None:
        """Take in rows of open panes; ``first``: the offset of the first record."""

    def count(self, first: int, columns: Columns, rows: Ints, pane: Ints, cell: Ints, of: Place) -> None:
        """Take in late rows, at once."""

    def sum_slices(self, of: Place) -> Slices[None]:
        """Sum what is held."""

    def forget(self, closed: int) -> None:
        """Let go of what was remembered of panes below ``closed``."""


class Rows:
    """The rows of one partition on their way into its panes; ``len``: how many are held.

    ``of``: where rows are counted, the same each time for those that are held.
    """

    def __init__(self, partition: int, table: EventClasses) -> None:
        self._partition, self._table = partition, table
        self._held: list[tuple[Meanings, list[Numbers]]] = []
        self._len = 0
        self._cells = _Cells(table)
        self._least = _Least()

    def __len__(self) -> int:
        return self._len

    def hold(self, first: int, columns: Columns, rows: Ints, pane: Ints, cell: Ints, of: Place) -> None:
        """Note what single rows tell, and keep their numbers; ``first``: the offset of the first record."""
        numbers = self._note(first, columns, rows, pane, cell, of, self._least)
        if numbers is None:
            return
        known = Meanings.of(self._table)
        if self._held and self._held[-1][0].cells is known.cells:
            self._held[-1] = known, [*self._held[-1][1], numbers]
        else:
            self._held.append((known, [numbers]))
        self._len += len(numbers.pane)

    def count(self, first: int, columns: Columns, rows: Ints, pane: Ints, cell: Ints, of: Place) -> None:
        """Count rows at once, where ``of`` says."""
        numbers = self._note(first, columns, rows, pane, cell, of, None)
        if numbers is not None:
            for _ in _summed(numbers, Meanings.of(self._table), self._partition, of):
                pass

    def sum_slices(self, of: Place) -> Slices[None]:
        """Sum what is held; a slice is one arm and source of one unit in one pane. It is exhausted before the next."""
        held, self._held, self._len = self._held, [], 0
        for known, parts in held:
            yield from _summed(Numbers.joined(parts), known, self._partition, of)

    def forget(self, closed: int) -> None:
        """Let go of what was remembered of panes below ``closed``."""
        self._least.forget(closed)

    def _note(
        self, first: int, columns: Columns, rows: Ints, pane: Ints, cell: Ints, of: Place, least: "_Least | None"
    ) -> Numbers | None:
        """Note what single rows tell; the numbers of all but labels. ``least``: of the panes that ``of`` gives."""
        table = self._table
        if self._cells.renewed():
            self._least.forget(None)
        code = columns.code[rows]
        heard = table.heard[code]
        if heard.any():
            self._note_labels(first, columns, rows[heard], pane[heard], cell[heard], of)
            rows, pane, cell, code = (part[~heard] for part in (rows, pane, cell, code))
            if not len(rows):
                return None
        probe = np.zeros(len(rows), np.bool_)
        if columns.query:
            probe = np.isin(rows, np.fromiter(columns.query, np.int64, len(columns.query)))
        numbers = Numbers(
            pane,
            cell,
            code,
            columns.row[rows] + first,
            probe,
            columns.event[rows],
            columns.sticky[rows],
            columns.delta_s[rows],
            columns.coverage[rows],
            columns.latency[rows],
            columns.cost[rows],
        )
        self._note_worst(columns, rows, numbers, of, least)
        hashed = np.flatnonzero(self._cells.hashed[cell])
        if len(hashed):
            self._check_assignment(columns, rows[hashed], numbers.at(hashed), of)
        if columns.query:
            self._note_probes(columns, rows, numbers, of)
        if not columns.lean:
            self._note_details(columns, rows, numbers, of)
        return numbers

    def _note_labels(self, first: int, columns: Columns, labels: Ints, pane: Ints, cell: Ints, of: Place) -> None:
        """List labels in their panes, each (pane, cell) in offset order: who they are of is known to the gate alone."""
        table, pin_names = self._table, self._table.pin_names
        order, starts, ends = by_cell(pane, cell)
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

    def _note_worst(self, columns: Columns, rows: Ints, numbers: Numbers, of: Place, least: "_Least | None") -> None:
        """Keep the canary's worst events of each metric, so that a failed gate can name them."""
        table = self._table
        at = np.flatnonzero(self._cells.judged[numbers.cell])
        if not len(at):
            return
        order, starts, ends = by_cell(numbers.pane[at], numbers.cell[at])
        at = at[order]
        code, panes, cells = numbers.code[at], numbers.pane[at[starts]], numbers.cell[at[starts]]
        bars = np.full((METRICS, len(panes)), -math.inf) if least is None else least.of(panes, cells)
        request, measured = table.request[code], table.measured[code]
        found_sums: dict[int, Sums] = {}
        for place, (metric, badness, sign) in enumerate(
            (
                ("delta_s", _only(numbers.delta_s[at], measured), 1.0),
                ("coverage", _only(-numbers.coverage[at], measured), -1.0),
                ("latency", _only(numbers.latency[at], request), 1.0),
                ("cost", _only(numbers.cost[at], request), 1.0),
                ("error", table.errors[code], 1.0),
                ("tool", table.tool_failures[code], 1.0),
                ("lambda", table.flips[code], 1.0),
                ("reason", table.reason_failures[code], 1.0),
                ("reason_in_full", table.reasons_in_full[code], 1.0),
            )
        ):
            # fmax passes NaN over; with nothing but NaN there is nothing to keep. Of equal ones the first is kept, and
            # these come later.
            most = np.fmax.reduceat(badness, starts)
            for group in np.flatnonzero(most > bars[place]).tolist():
                pane, cell = int(panes[group]), int(cells[group])
                sums = found_sums.get(group)
                if sums is None:
                    unit, arm, source = table.cells[cell]
                    sums = found_sums[group] = of(pane, unit).of(arm).of(source)
                here = slice(int(starts[group]), int(ends[group]))
                known = sums.worst.get(metric, [])
                if len(known) < WORST or most[group] > known[-1].badness:
                    found = [
                        Worst(
                            float(badness[i]),
                            float(badness[i]) * sign,
                            self._partition,
                            int(numbers.offset[at[i]]),
                            columns.event_id(int(rows[at[i]])),
                        )
                        for i in _worst_of(badness, here)
                    ]
                    sums.note_worst(metric, found)
                    known = sums.worst[metric]
                if least is not None and len(known) == WORST:
                    least.note(place, pane, cell, known[-1].badness)

    def _check_assignment(self, columns: Columns, rows: Ints, numbers: Numbers, of: Place) -> None:
        """Count traffic that the hash of its sticky id would have sent to the other arm, at each stage's weight."""
        table = self._table
        order, starts, ends = by_cell(numbers.pane, numbers.cell)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            first = int(order[start])
            cell = int(numbers.cell[first])
            unit, arm, _ = table.cells[cell]
            flag, weights = unit.split("|", 1)[0], np.array(table.weights[cell])
            buckets = np.array([bucket(flag, columns.events.sticky_id(i)) for i in rows[order[start:end]].tolist()])
            wrong = (buckets[:, None] >= weights) if arm == "canary" else (buckets[:, None] < weights)
            of(int(numbers.pane[first]), unit).details().misplace(arm, wrong.sum(axis=0).tolist())

    def _note_probes(self, columns: Columns, rows: Ints, numbers: Numbers, of: Place) -> None:
        table = self._table
        for at in np.flatnonzero(numbers.probe).tolist():
            code = int(numbers.code[at])
            state = int(table.state[code])
            if state:
                unit, arm, source = table.cells[int(numbers.cell[at])]
                sums = of(int(numbers.pane[at]), unit).of(arm).of(source)
                sums.probe(columns.query[int(rows[at])], int(table.run[code]), state)

    def _note_details(self, columns: Columns, rows: Ints, numbers: Numbers, of: Place) -> None:
        """Note findings of single rows: manifest hashes, cache namespaces, tools."""
        table = self._table
        hashes = table.hash[numbers.code]
        known = np.flatnonzero(hashes >= 0)
        if len(known):
            pane, cell = numbers.pane[known], numbers.cell[known]
            facts = ((pane - pane.min()) * len(table.cells) + cell) * len(table.hash_names) + hashes[known]
            _, first, counts = np.unique(facts, return_index=True, return_counts=True)
            for index in np.argsort(first).tolist():
                at = int(known[first[index]])
                unit = table.cells[int(numbers.cell[at])][0]
                name = table.hash_names[int(hashes[at])]
                of(int(numbers.pane[at]), unit).details().see_hash(name, int(counts[index]))
        for at in np.flatnonzero(table.request[numbers.code] & columns.detailed[rows]).tolist():
            event = columns.events[int(rows[at])]
            unit, _, source = table.cells[int(numbers.cell[at])]
            if source == CLIENT or (event.cache_namespace is None and not event.tools):
                continue
            detail = of(int(numbers.pane[at]), unit).details()
            if event.cache_namespace is not None:
                pins = table.pin_names[int(table.pins[numbers.code[at]])]
                detail.see_namespace(event.cache_namespace, [pins])
            if event.tools:
                self._note_tools(detail, event, int(numbers.offset[at]))

    def _note_tools(self, detail: Detail, event: Any, offset: int) -> None:
        calls: Counter[tuple[str, str]] = Counter()
        partition = self._partition
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


class _Cells:
    """Facts about the table's cells as arrays: the worst events are kept of those that are ``judged``, and of
    those that are ``hashed`` assignment can be checked.
    """

    def __init__(self, table: EventClasses) -> None:
        self._table, self._cells = table, table.cells
        self.judged = self.hashed = np.empty(0, np.bool_)

    def renewed(self) -> bool:
        """Take in new cells; True if the table was emptied."""
        table = self._table
        emptied = table.cells is not self._cells
        if emptied:
            self._cells, self.judged, self.hashed = table.cells, self.judged[:0], self.hashed[:0]
        known = len(self.judged)
        if known < len(table.cells):
            judged = [arm == "canary" and source != CLIENT for _, arm, source in table.cells[known:]]
            self.judged = np.concatenate([self.judged, np.array(judged, np.bool_)])
            hashed = [weights is not None for weights in table.weights[known:]]
            self.hashed = np.concatenate([self.hashed, np.array(hashed, np.bool_)])
        return emptied


class _Least:
    """Bars that an event has to be over to be among the worst, as far as they are known, by metric, pane and cell."""

    def __init__(self) -> None:
        self._panes: dict[int, Floats] = {}

    def of(self, panes: Ints, cells: Ints) -> Floats:
        """Return the bars: a row a metric, a column a pane and cell."""
        least = np.empty((METRICS, len(panes)))
        for pane in dict.fromkeys(panes.tolist()):
            here = panes == pane
            least[:, here] = self._pane(pane, int(cells.max()))[:, cells[here]]
        return least

    def note(self, metric: int, pane: int, cell: int, badness: float) -> None:
        """Remember what the last one of a full list has."""
        self._pane(pane, cell)[metric, cell] = badness

    def forget(self, closed: int | None) -> None:
        """Let go of panes below ``closed``, or of all of them."""
        self._panes = {pane: least for pane, least in self._panes.items() if closed is not None and pane >= closed}

    def _pane(self, pane: int, cell: int) -> Floats:
        known = self._panes.get(pane)
        if known is None or known.shape[1] <= cell:
            grown = np.full((METRICS, 2 * cell + 1), -math.inf)
            if known is not None:
                grown[:, : known.shape[1]] = known
            known = self._panes[pane] = grown
        return known


def _summed(numbers: Numbers, known: Meanings, partition: int, of: Place) -> Slices[None]:
    """Add rows to their panes, one (pane, cell) after the other, each in offset order."""
    order, starts, ends = by_cell(numbers.pane, numbers.cell)
    numbers = numbers.at(order)
    code = numbers.code
    request, measured, exposed = known.request[code], known.measured[code], known.exposure[code]
    classes = _Classes.of(numbers, known, starts, ends)
    counters = _counters(numbers, known, classes, starts)
    delta_s = _Kept(numbers.delta_s, measured & ~np.isnan(numbers.delta_s), starts, ends)
    latency = _Kept(numbers.latency, request & ~np.isnan(numbers.latency), starts, ends)
    requests = _Kept(numbers.event, request, starts, ends)
    exposures = _Kept(numbers.sticky, exposed, starts, ends)
    places = zip(numbers.pane[starts].tolist(), numbers.cell[starts].tolist(), strict=True)
    offsets = zip(numbers.offset[starts].tolist(), numbers.offset[ends - 1].tolist(), strict=True)
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    for group, ((pane, cell), (first, last), (start, end)) in enumerate(zip(places, offsets, spans, strict=True)):
        unit, arm, source = known.cells[cell]
        seen = of(pane, unit)
        sums = seen.of(arm).of(source)
        seen.saw(first, last)
        # A list for each of thousands of groups at once would be gone through by the garbage collector for 0.3 s.
        sums.count(counters[group].tolist())
        if source != CLIENT:
            sums.delta_s.add(delta_s[group])
            sums.latency.add(latency[group])
            if source in REQUEST_SOURCES:
                sums.requests.add(requests[group])
            if source == "traffic":
                sums.sticky.add(numbers.sticky[start:end])
                sums.exposed.add(exposures[group])
            for pins, count, at in classes.pin_sets(group):
                sums.see_pins(known.pin_names[pins], count, (pane, partition, int(numbers.offset[at])))
        yield None


class _Kept:
    """Some of a column's values, by group of rows."""

    def __init__(self, values: NDArray[Any], keep: Flags, starts: Ints, ends: Ints) -> None:
        if keep.all():
            self._values, self._starts, self._ends = values, starts.tolist(), ends.tolist()
        else:
            upto = np.concatenate([[0], np.cumsum(keep)])
            self._values, self._starts, self._ends = values[keep], upto[starts].tolist(), upto[ends].tolist()

    def __getitem__(self, group: int) -> NDArray[Any]:
        return self._values[self._starts[group] : self._ends[group]]


@dataclass(frozen=True)
class _Classes:
    """Each combination of fields once in a group of rows: its code, how many rows have it, and which is the first.

    ``probe``: of rows that are runs of a λ group, told apart. ``starts``: where groups begin.
    """

    code: Ints
    probe: Flags
    count: Ints
    first: Ints
    pins: list[int]
    starts: Ints
    uniform: list[bool]

    @classmethod
    def of(cls, numbers: Numbers, known: Meanings, starts: Ints, ends: Ints) -> "_Classes":
        """The combinations of rows that stand in groups."""
        codes = 2 * len(known.request)
        group = np.repeat(np.arange(len(starts)), ends - starts)
        key = group * codes + 2 * numbers.code + numbers.probe
        if len(starts) * codes <= 1 << 16:
            key = key.astype(np.uint16)  # numpy sorts these several times as fast
        key, first, count = np.unique(key, return_index=True, return_counts=True)
        group, rest = np.divmod(key.astype(np.int64), codes)
        code, begins = rest >> 1, np.flatnonzero(np.diff(group, prepend=-1))
        pins = known.pins[code]
        uniform = np.minimum.reduceat(pins, begins) == np.maximum.reduceat(pins, begins)
        return cls(code, (rest & 1).astype(np.bool_), count, first, pins.tolist(), begins, uniform.tolist())

    def pin_sets(self, group: int) -> Iterator[tuple[int, int, int]]:
        """The sets of pins in a group by the first row that has them: which, how many rows, and the first one."""
        start = int(self.starts[group])
        end = int(self.starts[group + 1]) if group + 1 < len(self.starts) else len(self.code)
        if self.uniform[group]:
            if self.pins[start] >= 0:
                yield self.pins[start], int(self.count[start:end].sum()), int(self.first[start:end].min())
            return
        met: dict[int, tuple[int, int]] = {}
        for at in range(start, end):
            count, first = met.get(self.pins[at], (0, int(self.first[at])))
            met[self.pins[at]] = count + int(self.count[at]), min(first, int(self.first[at]))
        for pins, (count, first) in sorted(met.items(), key=_by_first):
            if pins >= 0:
                yield pins, count, first


def _counters(numbers: Numbers, known: Meanings, classes: _Classes, starts: Ints) -> Ints:
    """One row of counters a group: what its combinations of fields count for, and what is in its columns."""
    counted = np.where(classes.probe[:, None], known.tagged[classes.code], known.untagged[classes.code])
    counters: Ints = np.add.reduceat(counted * classes.count[:, None], classes.starts, axis=0)
    for place, values in _counted_columns(known, numbers.code, numbers.cost, numbers.coverage):
        counters[:, place] = np.add.reduceat(values, starts, dtype=np.int64)
    return counters


def row_counters(columns: Columns, rows: Ints, table: EventClasses) -> Ints:
    """One row of counters an event."""
    code = columns.code[rows]
    counters: Ints = table.untagged[code]
    if columns.query:
        probes = np.isin(rows, np.fromiter(columns.query, np.int64, len(columns.query)))
        counters[probes] = table.tagged[code[probes]]
    for place, values in _counted_columns(Meanings.of(table), code, columns.cost[rows], columns.coverage[rows]):
        counters[:, place] = values
    return counters


def _counted_columns(known: Meanings, code: Ints, cost: Floats, coverage: Floats) -> Iterator[tuple[int, Ints | Flags]]:
    """Yield what rows count for by their columns: which counter, and its values."""
    has_cost = known.request[code] & ~np.isnan(cost)
    if has_cost.any():
        cost = np.where(has_cost, cost, 0.0)
        solved = known.solved[code]
        yield _PLACE["cost_rows"], has_cost & known.solved_known[code]
        yield _PLACE["cost_known"], has_cost
        for part, values in zip(("high", "low"), cost_parts(cost), strict=True):
            yield _PLACE[f"cost_{part}"], values
            yield _PLACE[f"solved_cost_{part}"], values * solved
        for part, values in zip(("high", "mid", "low"), square_parts(cost), strict=True):
            yield _PLACE[f"square_{part}"], values
    has_coverage = known.measured[code] & ~np.isnan(coverage)
    if has_coverage.any():
        yield _PLACE["coverage_rows"], has_coverage
        scaled = np.rint(np.where(has_coverage, coverage, 0.0) * float(1 << COVERAGE_BITS))
        yield _PLACE["coverage_sum"], scaled.astype(np.int64)


def by_cell(pane: Ints, cell: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the order of rows by (pane, cell), and where each pair's rows begin and end in it."""
    first = pane.min()
    cells = int(cell.max()) + 1
    key = (pane - first) * cells + cell
    if (int(pane.max()) - int(first) + 1) * cells <= 1 << 16:
        key = key.astype(np.uint16)  # numpy sorts these several times as fast
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return order, starts, np.append(starts[1:], len(order))


def shortened(text: str) -> str:
    """A name as findings show it."""
    return text[:100]


def _worst_of(badness: Floats, here: slice) -> list[int]:
    """Return which rows of a group are its worst."""
    if here.stop - here.start == 1:
        return [here.start]  # it was found to be bad
    return [here.start + one for one in worst_rows(badness[here])]


def _only(values: Floats, keep: Flags) -> Floats:
    return values if keep.all() else np.where(keep, values, np.nan)


def _by_first(found: tuple[int, tuple[int, int]]) -> int:
    return found[1][1]
