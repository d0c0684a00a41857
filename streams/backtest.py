"""What another manifest would have decided, and what chance alone decides: both judged on recorded telemetry.

``compare`` lets manifest B look wherever manifest A looks, on the evidence that A's ramp produced. ``aggregate`` and
``rehearse`` split the baseline's history into sham arms: the events are read once, into buckets of sticky ids by pane,
and each sham rollout then adds up some of the buckets.
"""

import math
import tempfile
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from dataclasses import replace as with_changes
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import xxhash
from msgspec.structs import replace
from numpy.typing import NDArray

from gates.digest import Digest
from gates.guards import machine
from gates.machine import Machine
from gates.rules import SLACK
from gates.sums import COUNTERS, COVERAGE_BITS, FLIPPED, HIGH_BITS, LOW_BITS, Ids, IdSample, Ints, Sums, cost_parts
from gates.unit import Clockwork, Unit, begin
from gates.window import SERVED, Arm
from schemas.decision import Decision, GateResult, RuleResult
from schemas.errors import InputError
from schemas.manifest import Flag, Rule
from schemas.timeline import Timeline
from streams.columns import Columns, GroupTable
from streams.panes import NEVER, STEP, Partial, PartitionState, Run, Snapshot
from streams.replay import Record, read_lines, read_record

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def runs(
    paths: Sequence[Path], partitions: int, progress: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[int, Run]]:
    """Partition and run of everything in the files, each partition in order.

    Raises InputError for a file that cannot be read or that lacks records within a partition.
    """
    waiting: dict[int, tuple[int, list[bytes], list[int]]] = {}
    following: dict[int, int] = {}
    for path, number, line in read_lines(paths, progress):
        try:
            # With one partition a bare event's place is known without a look into it.
            whole = partitions == 1 and b'"partition"' not in line
            records = [Record(0, None, -1, line)] if whole else read_record(line, partitions)
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        for record in records:
            partition, due = record.partition, following.get(record.partition)
            offset = due or 0 if record.offset is None else record.offset
            if due is not None and offset < due:
                continue
            if due is not None and offset > due:
                raise InputError(
                    f"{path}:{number}: records {due} to {offset - 1} of partition {partition} are missing; "
                    "give all files of the dump, in order"
                )
            following[partition] = offset + 1
            _, values, stamps = waiting.setdefault(partition, (offset, [], []))
            values.append(record.value)
            stamps.append(record.timestamp)
            if len(values) == STEP:
                yield partition, Run(*waiting.pop(partition))
    for partition, run in sorted(waiting.items()):
        yield partition, Run(*run)


@dataclass(frozen=True)
class Side:
    """What one manifest said at ``at`` ms, and the numbers it rests on."""

    verdict: str
    reasons: list[str]
    at: int
    gates: list[GateResult]
    rules: list[RuleResult]
    problems: list[str]

    @classmethod
    def of(cls, decision: Decision) -> Self:
        """The part of a decision that is compared."""
        found = list(dict.fromkeys(problem.problem for problem in decision.evidence_problems))
        return cls(decision.verdict, decision.reasons, decision.decided_at, decision.gates, decision.abort_rules, found)


@dataclass(frozen=True)
class Difference:
    """A gate, abort rule or evidence problem on which A and B do not agree; A's part first.

    ``said``: a gate's status; ``fired``, ``quiet`` or ``no rule``; ``found`` or ``fine`` for an evidence problem.
    """

    name: str
    observed: tuple[float | None, float | None]
    limits: tuple[float | bool | None, float | bool | None]
    said: tuple[str, str]


@dataclass(frozen=True)
class Window:
    """One window of one unit, as A and B judge it. A side is None where that manifest said nothing and went on.

    ``weight``: the canary's in A's stage.
    """

    unit: str
    start: int
    end: int
    weight: float
    a: Side | None
    b: Side | None
    differences: list[Difference]

    @property
    def same(self) -> bool:
        """Whether both say the same at the same moment."""
        return self.a is not None and self.b is not None and (self.a.verdict, self.a.at) == (self.b.verdict, self.b.at)


def placed(b: Flag, a: Flag) -> tuple[Flag, list[str]]:
    """B's flag with what makes the history taken from A's, and the names of the settings of B that go by that.

    Raises InputError for flags of two kinds.
    """
    if a.kind != b.kind:
        raise InputError(f"flag {a.name} is a {a.kind} in A and a {b.kind} in B; only flags of one kind compare")
    history: dict[str, tuple[Any, Any]] = {
        "scope": (a.scope, b.scope),
        "versions": (a.versions, b.versions),
        "baseline_versions": (a.baseline_versions, b.baseline_versions),
        "traffic": (a.ramp_stages, b.ramp_stages),
        "window.length": (a.window.length_ms, b.window.length_ms),
        "window.settle": (a.window.settle_ms, b.window.settle_ms),
        "policy.assignment": (a.policy.assignment, b.policy.assignment),
    }
    span = {"length_ms": a.window.length_ms, "settle_ms": a.window.settle_ms}
    changed = {
        "scope": a.scope,
        "versions": a.versions,
        "baseline_versions": a.baseline_versions,
        "traffic": a.traffic,
        "window": b.window.model_copy(update=span),
        "policy": b.policy.model_copy(update={"assignment": a.policy.assignment}),
    }
    return b.model_copy(update=changed), [name for name, (one, other) in history.items() if one != other]


class Shadow:
    """B beside one unit of A. It sees A's windows, stages and ids, and remembers only what is its own.

    After a stop B goes on as if it had not stopped: each window is asked for by itself.
    """

    def __init__(self, flag: Flag, clockwork: Clockwork) -> None:
        self.flag, self._clockwork = flag, clockwork
        self._green, self._strike, self._engaged = 0, False, False
        self.stopped: Decision | None = None

    def look(self, unit: Unit, end: int, peers: dict[str, Machine]) -> Decision | None:
        """B's decision at the end of a pane, on A's state before A decides; None where it says nothing."""
        if self.stopped is not None:
            return None
        # Of what B's copy shares with A's unit, a promote would change this in place.
        earlier = IdSample(unit.earlier_canary.level, unit.earlier_canary.ids)
        mine = replace(unit, green=self._green, strike=self._strike, engaged=self._engaged, earlier_canary=earlier)
        outcome = next(machine(self.flag, mine, self._clockwork, peers).close(end), None)
        self._green, self._strike, self._engaged = mine.green, mine.strike, mine.engaged
        if outcome is None:
            return None
        decision = outcome[0]
        if decision.verdict in ("abort", "rollback"):
            self._green, self._strike = 0, False
        if decision.verdict == "abort" and not decision.window.closed:
            self.stopped = decision
        return decision

    def promoted(self) -> None:
        """A went on to its next stage."""
        self._green = 0


class Beside:
    """Every unit under A with B beside it, fed with partials as they close."""

    def __init__(self, a: Mapping[str, Flag], b: Mapping[str, Flag], partitions: int, clockwork: Clockwork) -> None:
        self._a, self._b, self._clockwork = a, b, clockwork
        self._closed = [NEVER] * partitions
        self._waiting: dict[int, dict[int, Partial]] = {}
        self._machines: dict[str, Machine] = {}
        self._shadows: dict[str, Shadow] = {}
        self.decisions: Callable[[Decision], None] = lambda _: None

    def step(self, partial: Partial) -> Iterator[Window]:
        """Take in a partial; give the windows that end with it."""
        self._closed[partial.partition] = partial.pane + 1
        if partial.units or partial.dead_letters:
            self._waiting.setdefault(partial.pane, {})[partial.partition] = partial
        closed, pane_ms = min(self._closed), self._clockwork.pane_ms
        while True:
            ends = [pane + 1 for pane in self._waiting if pane < closed]
            deadlines = [ramp.deadline for ramp in self._machines.values() if ramp.deadline is not None]
            ends += [deadline // pane_ms for deadline in deadlines if deadline <= closed * pane_ms]
            if not ends:
                return
            end = min(ends)
            self._merge((end - 1) * pane_ms, self._waiting.pop(end - 1, {}))
            for name, ramp in sorted(self._machines.items()):
                yield from self._close(name, ramp, end * pane_ms)

    def _merge(self, start: int, partials: dict[int, Partial]) -> None:
        shown = {name for partial in partials.values() for name, seen in partial.units.items() if seen.accepted}
        for name in sorted(shown):
            if name not in self._machines:
                flag_name, region = name.split("|", 1)
                flag = self._a[flag_name]
                self._machines[name] = machine(flag, begin(flag, region, start), self._clockwork, self._machines)
                if flag_name in self._b:
                    self._shadows[name] = Shadow(self._b[flag_name], self._clockwork)
            elif self._machines[name].asleep:
                self._machines[name].wake(start)
        for partition, partial in sorted(partials.items()):
            for name, seen in partial.units.items():
                if name in self._machines:
                    self._machines[name].add(partition, seen)
        dead_letters = sum(partial.dead_letters for partial in partials.values())
        for ramp in self._machines.values():
            ramp.unit.window.dead_letters += dead_letters

    def _close(self, name: str, ramp: Machine, end: int) -> Iterator[Window]:
        shadow, window, cut = self._shadows.get(name), ramp.unit.window, ramp.unit.cut
        weight = 0.0 if ramp.unit.latched else ramp.stages[ramp.unit.stage]
        theirs = shadow.look(ramp.unit, end, self._machines) if shadow else None
        outcomes = list(ramp.close(end))
        ours = outcomes[0][0] if outcomes else None
        if ours is not None:
            self.decisions(ours)
        if shadow is None:
            return
        over = ramp.unit.window is not window
        theirs = theirs or shadow.stopped
        stops = theirs is not None and theirs is shadow.stopped
        if not cut and (ours is not None or (theirs is not None and (over or not stops))):
            a, b = Side.of(ours) if ours else None, Side.of(theirs) if theirs else None
            yield Window(name, window.start, window.end, weight, a, b, self._differences(name, a, b))
        if over or (ours is not None and ours.verdict == "abort"):
            shadow.stopped = None
        if ours is not None and ours.verdict == "promote":
            shadow.promoted()

    def _differences(self, name: str, a: Side | None, b: Side | None) -> list[Difference]:
        flag = name.split("|", 1)[0]
        return differences((a, b), (self._a[flag], self._b[flag]))


def differences(sides: tuple[Side | None, Side | None], flags: tuple[Flag, Flag]) -> list[Difference]:
    """Where two judgements of one window part; of judgements at two moments the hard rules that fired."""
    a, b = sides
    if any(side and side.reasons == ["latched"] for side in sides):
        return []
    found: list[Difference] = []
    together = a is not None and b is not None and a.at == b.at
    if a and b and together:
        for one, other in zip(a.gates, b.gates, strict=True):
            if one.status != other.status:
                observed, limits = (one.observed, other.observed), (one.threshold, other.threshold)
                found.append(Difference(one.gate, observed, limits, (one.status, other.status)))
    rules = [rule for side in sides if side for rule in side.rules if rule.fired]
    for kind in dict.fromkeys(rule.kind for rule in rules if together or rule.severity == "hard"):
        here, there = (_rule(kind, side, flag) for side, flag in zip(sides, flags, strict=True))
        if here[2] != there[2] or not together:
            found.append(Difference(kind, (here[0], there[0]), (here[1], there[1]), (here[2], there[2])))
    if a and b and together:
        for problem in dict.fromkeys((*a.problems, *b.problems)):
            said = ["found" if problem in side.problems else "fine" for side in (a, b)]
            if said[0] != said[1]:
                found.append(Difference(problem, (None, None), (None, None), (said[0], said[1])))
    return found


def _rule(kind: str, side: Side | None, flag: Flag) -> tuple[float | None, float | None, str]:
    """A rule's value, its limit and what it said; a side that went on has a limit, but no value."""
    seen = next((rule for rule in side.rules if rule.kind == kind), None) if side else None
    if seen is not None:
        return seen.observed, seen.value, "fired" if seen.fired else "quiet"
    rules: tuple[Rule, ...] = (*flag.abort_rules.hard, *flag.abort_rules.soft)
    limit = next((rule.value for rule in rules if rule.kind == kind), None)
    return None, limit, "quiet" if side is None and limit is not None else "no rule"


def compare(
    paths: Sequence[Path],
    a: Mapping[str, Flag],
    b: Mapping[str, Flag],
    partitions: int,
    clockwork: Clockwork,
    progress: Callable[[int], None] = lambda _: None,
    decisions: Callable[[Decision], None] = lambda _: None,
) -> Iterator[Window]:
    """Every window that A decides in the files, with what B says to it; units of flags that B lacks are left out.

    ``b``: flags as ``placed`` gives them. ``decisions`` is told each decision of A, which is what a replay gives.
    """
    table = GroupTable(Timeline.of(a))
    beside = Beside(a, b, partitions, clockwork)
    beside.decisions = decisions
    states: dict[int, PartitionState] = {}
    for partition, run in runs(paths, partitions, progress):
        if partition not in states:
            states[partition] = PartitionState.fresh(partition, clockwork, table, run.first)
        for partial in states[partition].step(run).partials:
            yield from beside.step(partial)


BUCKETS = 64
"""Sticky ids are put into this many buckets; a sham canary is some of them."""
SPLIT, SHARED = ("traffic", "label"), ("gold", "gold_label")
"""Sources that the sham arms divide between them, and those that both are given whole: the gold set is asked of
both arms, so half of it would be no rehearsal."""
SOURCES = (*SPLIT, *SHARED)
BLOCK_ROWS = 1 << 16
"""Rows that are added up together."""
CACHED = 6
"""Blocks, and spans of time, held in memory."""

_AT = {name: i for i, name in enumerate(COUNTERS)}


def mixed(values: Ids) -> Ids:
    """64 bits that look drawn by chance, the same for the same input (splitmix64)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def drawn(*what: object) -> int:
    """A 64-bit number for a purpose."""
    return xxhash.xxh3_64_intdigest(repr(what).encode())


def bucket_of(sticky: Ids, seed: int) -> Ints:
    """The bucket of sticky ids, which are given as 64-bit hashes."""
    return (mixed(sticky ^ np.uint64(drawn("bucket", seed))) >> np.uint64(58)).astype(np.int64)


@dataclass(frozen=True)
class Block:
    """Rows added up by (pane, source, bucket), one group each, in that order.

    ``key``: index in ``SOURCES`` × ``BUCKETS`` + bucket. ``delta_s``, ``latency``: the values, group by group, as many
    as the counts beside them say. ``probes``: pane, key, query, runs of λ groups.
    """

    pane: Ints
    key: Ints
    counters: Ints
    delta_s_count: Ints
    delta_s: Floats
    latency_count: Ints
    latency: Floats
    probe_pane: Ints
    probe_key: Ints
    probe_query: Ids
    probe_runs: Ints

    def dump(self) -> bytes:
        """Compressed bytes."""
        arrays = [(a.dtype.str, a.shape, a.tobytes()) for a in vars(self).values()]
        return zlib.compress(msgspec.msgpack.encode(arrays), 1)

    @classmethod
    def load(cls, blob: bytes) -> Self:
        """What ``dump`` gave."""
        arrays = msgspec.msgpack.decode(zlib.decompress(blob))
        return cls(*(np.frombuffer(data, dtype).reshape(shape) for dtype, shape, data in arrays))


@dataclass
class Rows:
    """Accepted rows of one unit that are not added up yet: one list entry a run."""

    pane: list[Ints] = field(default_factory=list)
    key: list[Ints] = field(default_factory=list)
    counters: list[Ints] = field(default_factory=list)
    delta_s: list[Floats] = field(default_factory=list)
    latency: list[Floats] = field(default_factory=list)
    probes: list[tuple[int, int, int, int]] = field(default_factory=list)
    count: int = 0

    def block(self) -> Block:
        """The rows, added up."""
        pane, key, counters = np.concatenate(self.pane), np.concatenate(self.key), np.concatenate(self.counters)
        order = np.lexsort((key, pane))
        pane, key = pane[order], key[order]
        new = np.ones(len(pane), np.bool_)
        new[1:] = (np.diff(pane) != 0) | (np.diff(key) != 0)
        starts, group = np.flatnonzero(new), np.cumsum(new) - 1
        totals = np.add.reduceat(counters[order], starts, axis=0)
        _carry(totals)
        probes = np.array(self.probes, object).reshape(-1, 4)
        return Block(
            pane[starts],
            key[starts],
            totals,
            *_present(np.concatenate(self.delta_s)[order], group, len(starts)),
            *_present(np.concatenate(self.latency)[order], group, len(starts)),
            probes[:, 0].astype(np.int64),
            probes[:, 1].astype(np.int64),
            probes[:, 2].astype(np.uint64),
            probes[:, 3].astype(np.int64),
        )


def _present(values: Floats, group: Ints, groups: int) -> tuple[Ints, Floats]:
    """How many values each group has, and the values."""
    here = ~np.isnan(values)
    return np.bincount(group[here], minlength=groups), values[here]


def _carry(counters: Ints) -> None:
    """Move what the low parts of costs have too much into the high parts, so that sums stay inside 64 bits."""
    high, low = _AT["cost_high"], _AT["cost_low"]
    counters[..., high] += counters[..., low] >> LOW_BITS
    counters[..., low] &= (1 << LOW_BITS) - 1


class History:
    """The baseline's rows of every unit, in buckets by pane, in a temporary file.

    In memory is one block that fills, and the blocks and spans that were last asked for. ``end``: the log closes
    everything before it, ms. ``requests``: by unit.
    """

    def __init__(self, seed: int, pane_ms: int) -> None:
        self.seed, self.pane_ms, self.end = seed, pane_ms, NEVER
        self.requests: dict[str, int] = {}
        self.gold: set[str] = set()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 closed by close()
        self._index: dict[str, list[tuple[int, int, int, int]]] = {}
        self._rows: dict[str, Rows] = {}
        self._cells: list[tuple[str, str, str]] = []
        self._unit, self._key = np.empty(0, np.int64), np.empty(0, np.int64)
        self.block = lru_cache(CACHED)(self._block)
        self.span = lru_cache(CACHED)(self._span)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def cells(self, table: GroupTable) -> tuple[Ints, Ints]:
        """By cell of the table: the number of its unit, and its first key; -1 where it is not the baseline's."""
        if self._cells is not table.cells or len(self._unit) != len(table.cells):
            self._cells = table.cells
            units = {unit: i for i, unit in enumerate(dict.fromkeys(unit for unit, _, _ in table.cells))}
            found = [
                (units[unit], SOURCES.index(source) * BUCKETS) if arm == "baseline" and source in SOURCES else (-1, -1)
                for unit, arm, source in table.cells
            ]
            self._unit, self._key = np.array(found, np.int64).reshape(-1, 2).T
        return self._unit, self._key

    def take(self, columns: Columns, at: Ints, pane: Ints, cell: Ints, counters: Ints, table: GroupTable) -> None:
        """Add the accepted rows ``at`` of a decoded run, with their panes, cells and counters."""
        units, keys = self.cells(table)
        code, unit = columns.code[at], units[cell]
        key = keys[cell] + bucket_of(columns.sticky[at], self.seed)
        delta_s = np.where(table.measured[code], columns.delta_s[at], np.nan)
        latency = np.where(table.request[code], columns.latency[at], np.nan)
        for number in np.unique(unit).tolist():
            here = np.flatnonzero(unit == number)
            name = table.cells[int(cell[here[0]])][0]
            rows = self._rows.setdefault(name, Rows())
            rows.pane.append(pane[here])
            rows.key.append(key[here])
            rows.counters.append(counters[here])
            rows.delta_s.append(delta_s[here])
            rows.latency.append(latency[here])
            rows.count += len(here)
            for i in here.tolist() if columns.query else ():
                query, state = columns.query.get(int(at[i])), int(table.state[code[i]])
                if query is not None and state:
                    rows.probes.append((int(pane[i]), int(key[i]), query, state << 2 * int(table.run[code[i]])))
            if rows.count >= BLOCK_ROWS:
                self.flush(name)

    def flush(self, unit: str) -> None:
        """Write a unit's rows as a block."""
        block = self._rows.pop(unit).block()
        self.requests[unit] = self.requests.get(unit, 0) + int(block.counters[:, _AT["requests"]].sum())
        if (block.key >= len(SPLIT) * BUCKETS).any():
            self.gold.add(unit)
        blob, at = block.dump(), self._file.seek(0, 2)
        self._file.write(blob)
        entry = int(block.pane[0]), int(block.pane[-1]), at, len(blob)
        self._index.setdefault(unit, []).append(entry)

    def finish(self, end: int) -> None:
        """Write what is left; ``end``: as the attribute."""
        for unit in list(self._rows):
            self.flush(unit)
        self.end = end

    @property
    def units(self) -> list[str]:
        """Units with any baseline rows."""
        return sorted(self._index)

    def first(self, unit: str) -> int:
        """The start of the first pane with rows, ms."""
        return min(entry[0] for entry in self._index[unit]) * self.pane_ms

    def covers(self, unit: str, flag: Flag) -> bool:
        """Whether the log closes a window of a unit."""
        return self.first(unit) + flag.window.length_ms <= self.end

    def _block(self, at: int, size: int) -> Block:
        self._file.seek(at)
        return Block.load(self._file.read(size))

    def _span(self, unit: str, start: int, end: int) -> "Span":
        low, high = start // self.pane_ms, end // self.pane_ms
        parts = [
            (number, self.block(at, size))
            for number, (first, last, at, size) in enumerate(self._index[unit])
            if first < high and last >= low
        ]
        return Span(Groups.of(parts, low, high), self.seed)


class BucketedPartition(PartitionState):
    """A partition whose accepted rows go into a history instead of panes; what is accepted is the same."""

    def __init__(self, snapshot: Snapshot, table: GroupTable, history: History) -> None:
        super().__init__(snapshot, table)
        self.history = history

    def _count(self, first: int, columns: Columns, fresh: Ints, pane: Ints, cell: Ints) -> None:
        units, _ = self.history.cells(self._table)
        wanted = np.flatnonzero(units[cell] >= 0)
        if len(wanted):
            rows = fresh[wanted]
            counters = self._counters(columns, rows, columns.code[rows])
            self.history.take(columns, rows, pane[wanted], cell[wanted], counters, self._table)


def aggregate(
    paths: Sequence[Path],
    flags: Mapping[str, Flag],
    partitions: int,
    clockwork: Clockwork,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> History:
    """The baseline's history of every flag, read once. Raises InputError as ``runs``, or if the log closes nothing."""
    table, history = GroupTable(Timeline.of(flags)), History(seed, clockwork.pane_ms)
    states: dict[int, BucketedPartition] = {}
    closed = [NEVER] * partitions
    try:
        for partition, run in runs(paths, partitions, progress):
            if partition not in states:
                snapshot = Snapshot(partition, clockwork.pane_ms, clockwork.lateness_ms, next=run.first)
                states[partition] = BucketedPartition(snapshot, table, history)
            for partial in states[partition].step(run).partials:
                closed[partition] = partial.pane + 1
        if min(closed) == NEVER:
            raise InputError(f"partition {closed.index(NEVER)} closes no pane; end the log with a tick")
        history.finish(min(closed) * clockwork.pane_ms)
    except BaseException:
        history.close()
        raise
    return history


@dataclass(frozen=True)
class Effect:
    """A regression that a sham canary is given: ``metric`` error, latency, cost, delta_s or coverage, and its size.

    An error is an error and nothing else: what the request cost and whether it was solved stay as they were.
    """

    metric: str
    size: float

    @property
    def text(self) -> str:
        """As it was written."""
        return f"{self.metric}={self.size:g}"


EFFECTS: dict[str, tuple[float, float]] = {
    "error": (0.0, 1.0),
    "latency": (0.001, 1000.0),
    "cost": (0.0, 1000.0),
    "delta_s": (-2.0, 2.0),
    "coverage": (-1.0, 1.0),
}
"""Metrics that a regression can be put on, and the range of its size: an added error rate; factors; shifts."""


def read_effect(text: str) -> Effect:
    """``error=0.02`` and the like. Raises InputError with the way out."""
    metric, _, size = text.partition("=")
    number = math.nan
    with suppress(ValueError):
        number = float(size)
    if metric not in EFFECTS:
        raise InputError(f"{text}: no regression of that name; write one of {', '.join(f'{m}=…' for m in EFFECTS)}")
    low, high = EFFECTS[metric]
    if not low <= number <= high:
        raise InputError(f"{text}: {metric} takes a number from {low:g} to {high:g}, such as {_EXAMPLES[metric]}")
    return Effect(metric, number)


_EXAMPLES = {
    "error": "error=0.02 (2 % more of the requests fail)",
    "latency": "latency=1.3 (all take 30 % longer)",
    "cost": "cost=1.2 (all cost 20 % more)",
    "delta_s": "delta_s=0.05 (ΔS is 0.05 higher)",
    "coverage": "coverage=-0.1 (coverage is 0.1 lower)",
}


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of a span of panes. ``number``: of the block that each group stands in; the rest as in ``Block``.

    ``pane`` counts from ``first``, of ``panes`` panes. ``delta_s_group``, ``latency_group``: the group of each value.
    """

    first: int
    panes: int
    pane: Ints
    key: Ints
    number: Ints
    counters: Ints
    delta_s: Floats
    delta_s_group: Ints
    latency: Floats
    latency_group: Ints
    probe_pane: Ints
    probe_source: Ints
    probe_query: Ids
    probe_runs: Ints

    @classmethod
    def of(cls, blocks: Sequence[tuple[int, Block]], low: int, high: int) -> Self:
        """The groups of panes ``low`` to ``high``, exclusive, in numbered blocks."""
        columns: list[list[Any]] = [[] for _ in range(12)]
        groups = 0
        for number, block in blocks:
            here = (block.pane >= low) & (block.pane < high)
            place = np.cumsum(here) - 1 + groups
            probes = (block.probe_pane >= low) & (block.probe_pane < high)
            each = [np.repeat(here, counts) for counts in (block.delta_s_count, block.latency_count)]
            into = [np.repeat(place, counts) for counts in (block.delta_s_count, block.latency_count)]
            found = (
                block.pane[here] - low,
                block.key[here],
                np.full(int(here.sum()), number),
                block.counters[here],
                block.delta_s[each[0]],
                into[0][each[0]],
                block.latency[each[1]],
                into[1][each[1]],
                block.probe_pane[probes] - low,
                block.probe_key[probes] // BUCKETS,
                block.probe_query[probes],
                block.probe_runs[probes],
            )
            for column, part in zip(columns, found, strict=True):
                column.append(part)
            groups += int(here.sum())
        if not blocks:
            none, no_floats = np.empty(0, np.int64), np.empty(0)
            counters, queries = np.empty((0, len(COUNTERS)), np.int64), np.empty(0, np.uint64)
            return cls(
                low, high - low, none, none, none, counters, no_floats, none, no_floats, none, none, none, queries, none
            )
        return cls(low, high - low, *(np.concatenate(column) for column in columns))

    def under(self, effect: Effect, seed: int) -> "Groups":
        """The same, had the regression been there."""
        size, counters = effect.size, self.counters.copy()
        if effect.metric == "latency":
            return with_changes(self, latency=self.latency * size)
        if effect.metric == "delta_s":
            return with_changes(self, delta_s=np.clip(self.delta_s + size, 0.0, 2.0))
        if effect.metric == "error":
            counters[:, _AT["errors"]] += self._extra_errors(size, seed)
        elif effect.metric == "cost":
            cost = counters[:, _AT["cost_high"]] / (1 << HIGH_BITS)
            cost += counters[:, _AT["cost_low"]] / (1 << (HIGH_BITS + LOW_BITS))
            counters[:, _AT["cost_high"]], counters[:, _AT["cost_low"]] = cost_parts(cost * size)
        else:
            most = counters[:, _AT["coverage_rows"]] << COVERAGE_BITS
            total = counters[:, _AT["coverage_sum"]] + np.rint(most * size).astype(np.int64)
            counters[:, _AT["coverage_sum"]] = np.clip(total, 0, most)
        return with_changes(self, counters=counters)

    def _extra_errors(self, rate: float, seed: int) -> Ints:
        """How many of each group's good requests fail: each by itself with that chance, from a hash of its place."""
        good = self.counters[:, _AT["requests"]] - self.counters[:, _AT["errors"]]
        # Places do not depend on the span that they are looked at in.
        place = (self.number * len(SOURCES) * BUCKETS + self.key).astype(np.uint64)
        lot = mixed(mixed(place ^ np.uint64(drawn("error", seed))) ^ (self.pane + self.first).astype(np.uint64))
        index = np.arange(good.sum()) - np.repeat(np.cumsum(good) - good, good)
        chance = mixed(np.repeat(lot, good) + index.astype(np.uint64)) >> np.uint64(11)
        fails = chance < np.uint64(min(int(rate * 2**53), 2**53))
        return np.bincount(np.repeat(np.arange(len(good)), good)[fails], minlength=len(good))

    @cached_property
    def present(self) -> list[int]:
        """The sources that there are rows of, as indices in ``SOURCES``."""
        found: list[int] = np.unique(self.key // BUCKETS).tolist()
        return found

    @cached_property
    def by_source(self) -> dict[int, tuple[Ints, Ints, Ints]]:
        """Pane, bucket and counters of each source's groups, pane by pane."""
        order = np.argsort(self.pane, kind="stable")
        source = self.key[order] // BUCKETS
        found = {}
        for one in self.present:
            mine = order[source == one]
            found[one] = self.pane[mine], self.key[mine] % BUCKETS, self.counters[mine]
        return found

    @cached_property
    def totals(self) -> dict[int, Ints]:
        """Counters of each source as (bucket, counter)."""
        found = {}
        for source, (_, bucket, counters) in self.by_source.items():
            found[source] = np.zeros((BUCKETS, len(COUNTERS)), np.int64)
            for at in range(0, len(bucket), BLOCK_ROWS):
                here = slice(at, at + BLOCK_ROWS)
                np.add.at(found[source], bucket[here], counters[here])
                _carry(found[source])
        return found

    @cached_property
    def digests(self) -> dict[tuple[str, int], dict[int, Digest]]:
        """ΔS and latency of each source, by bucket where there are any."""
        found = {}
        for metric, values, group in (
            ("delta_s", self.delta_s, self.delta_s_group),
            ("latency", self.latency, self.latency_group),
        ):
            key = self.key[group]
            order = np.argsort(key, kind="stable")
            edges = np.searchsorted(key[order], np.arange(len(SOURCES) * BUCKETS + 1)).tolist()
            sorted_values = values[order]
            for source in self.present:
                first = source * BUCKETS
                found[metric, source] = {
                    bucket: digest_of(sorted_values[edges[first + bucket] : edges[first + bucket + 1]])
                    for bucket in range(BUCKETS)
                    if edges[first + bucket] < edges[first + bucket + 1]
                }
        return found

    def lambda_groups(self, source: int, pane: int) -> dict[int, int]:
        """The λ groups of a source, as seen up to the end of a pane."""
        sums = Sums()
        here = (self.probe_source == source) & (self.probe_pane <= pane)
        for query, seen in zip(self.probe_query[here].tolist(), self.probe_runs[here].tolist(), strict=True):
            # All of a row's runs at once: they are packed as one run's states are.
            sums.probe(query, 0, seen)
        return sums.groups

    @cached_property
    def all_lambda_groups(self) -> dict[int, dict[int, int]]:
        """The λ groups of the whole span by source."""
        return {source: self.lambda_groups(source, self.panes) for source in self.present}

    @cached_property
    def first_flip(self) -> int:
        """The first pane with a λ group's run that is not convergent; ``panes`` if there is none."""
        flips = self.probe_pane[(self.probe_runs & (FLIPPED * 0x555)) != 0]
        return int(flips.min()) if len(flips) else self.panes

    def arm(self, chosen: Bools) -> Arm:
        """What an arm of these buckets shows in the whole span; of the gold set both arms show all."""
        arm = Arm()
        for source in self.present:
            mine = self._mine(source, chosen)
            sums = Sums(groups=dict(self.all_lambda_groups[source]))
            sums.count(self.totals[source][mine].sum(axis=0).tolist())
            for metric, into in (("delta_s", sums.delta_s), ("latency", sums.latency)):
                for bucket, digest in self.digests[metric, source].items():
                    if mine[bucket]:
                        into.merge(digest)
            arm.sources[SOURCES[source]] = sums
        return arm

    def sums_until(self, chosen: Bools) -> dict[int, Ints]:
        """An arm's counters by source as (pane, counter), each pane with those before it; costs are left out."""
        found = {}
        for source, (pane, bucket, counters) in self.by_source.items():
            mine = self._mine(source, chosen)[bucket]
            sums = np.zeros((int(mine.sum()) + 1, len(COUNTERS)), np.int64)
            np.cumsum(counters[mine], axis=0, out=sums[1:])
            sums[:, [_AT["cost_high"], _AT["cost_low"]]] = 0
            found[source] = sums[np.searchsorted(pane[mine], np.arange(self.panes), side="right")]
        return found

    def arm_until(self, pane: int, chosen: Bools, sums_until: Mapping[int, Ints], *, delta_s: bool) -> Arm:
        """What an arm shows up to the end of a pane, as far as hard rules read it; ``delta_s``: with its values."""
        arm = Arm()
        for source, counters in sums_until.items():
            sums = Sums(counters=counters[pane].tolist(), groups=self.lambda_groups(source, pane))
            if delta_s:
                sums.delta_s.add(self.delta_s[self._values_until(source, pane, chosen)])
            arm.sources[SOURCES[source]] = sums
        return arm

    def _values_until(self, source: int, pane: int, chosen: Bools) -> Bools:
        key = self.key[self.delta_s_group]
        until = (key // BUCKETS == source) & (self.pane[self.delta_s_group] <= pane)
        found: Bools = until & self._mine(source, chosen)[key % BUCKETS]
        return found

    def _mine(self, source: int, chosen: Bools) -> Bools:
        return chosen if SOURCES[source] in SPLIT else np.ones(BUCKETS, np.bool_)

    def above(self, source: int, limit: float) -> tuple[Ints, Ints]:
        """Values of ΔS, and those of them above ``limit``, as (pane, bucket)."""
        here = self.key[self.delta_s_group] // BUCKETS == source
        group, values = self.delta_s_group[here], self.delta_s[here]
        place = self.pane[group] * BUCKETS + self.key[group] % BUCKETS
        shape, size = (self.panes, BUCKETS), self.panes * BUCKETS
        rows = np.bincount(place, minlength=size).reshape(shape)
        return rows, np.bincount(place[values > limit], minlength=size).reshape(shape)


def digest_of(values: Floats) -> Digest:
    """A digest of values in order."""
    digest = Digest()
    digest.add(values)
    return digest


class Span:
    """A window's or settling span's groups, as they were and under each regression that was asked for."""

    def __init__(self, plain: Groups, seed: int) -> None:
        self.plain, self._seed = plain, seed
        self._under: dict[Effect, Groups] = {}
        self._above: dict[tuple[Effect | None, int, float], tuple[Ints, Ints]] = {}
        self._usual: dict[int, float] = {}

    def under(self, effect: Effect | None) -> Groups:
        """The groups under a regression; None: as they were."""
        if effect is None:
            return self.plain
        if effect not in self._under:
            self._under[effect] = self.plain.under(effect, self._seed)
        return self._under[effect]

    def above(self, effect: Effect | None, source: int, limit: float) -> tuple[Ints, Ints]:
        """As ``Groups.above``, once for each question."""
        asked = effect, source, limit
        if asked not in self._above:
            self._above[asked] = self.under(effect).above(source, limit)
        return self._above[asked]

    def usual(self, source: int) -> float:
        """A ΔS that one value in ten of a source exceeds."""
        if source not in self._usual:
            values = self.plain.delta_s[self.plain.key[self.plain.delta_s_group] // BUCKETS == source]
            self._usual[source] = float(np.quantile(values, 0.9)) if len(values) else 0.0
        return self._usual[source]


@dataclass(frozen=True)
class Split:
    """The sham arms of a span: the canary is the ``chosen`` buckets, under an effect or as they were."""

    span: Span
    effect: Effect | None
    chosen: Bools

    @cached_property
    def canary(self) -> dict[int, Ints]:
        """The canary's counters by source as (pane, counter), added up from the first pane on."""
        return self.span.under(self.effect).sums_until(self.chosen)

    @cached_property
    def baseline(self) -> dict[int, Ints]:
        """The same of the baseline."""
        return self.span.plain.sums_until(~self.chosen)

    @property
    def arms(self) -> tuple[Arm, Arm]:
        """Canary and baseline of the whole span."""
        return self.span.under(self.effect).arm(self.chosen), self.span.plain.arm(~self.chosen)

    def arms_until(self, pane: int, *, delta_s: bool) -> tuple[Arm, Arm]:
        """Canary and baseline up to the end of a pane, as hard rules read them."""
        canary, plain = self.span.under(self.effect), self.span.plain
        return (
            canary.arm_until(pane, self.chosen, self.canary, delta_s=delta_s),
            plain.arm_until(pane, ~self.chosen, self.baseline, delta_s=delta_s),
        )

    def suspects(self, flag: Flag) -> list[tuple[int, bool]]:
        """The panes at whose end a hard rule could fire at all, and whether it takes ΔS to tell.

        A rule fires early only if its value is over the limit, which the counters of each source tell; for ΔS it takes
        shares of values above fixed lines, with room for the error of a digest. So the rules themselves, which cost
        a thousand times as much, are asked in these panes only.
        """
        panes, least = self.span.plain.panes, flag.window.min_requests
        plain, quality = np.zeros(panes, np.bool_), np.zeros(panes, np.bool_)
        for rule in flag.abort_rules.hard:
            if rule.kind == "error_rate_over":
                served = [self.canary[s] for s in self.canary if SOURCES[s] in SERVED]
                if served:
                    both = sum(served[1:], served[0])
                    plain |= (both[:, _AT["requests"]] >= least) & _over(both, "errors", "requests", rule.value)
            elif rule.kind == "coverage_under":
                for counters in self.canary.values():
                    rows = counters[:, _AT["coverage_rows"]].astype(np.float64)
                    mean = counters[:, _AT["coverage_sum"]] / float(1 << COVERAGE_BITS)
                    plain |= (rows >= least) & (mean < (rule.value - SLACK / 2) * rows)
            elif rule.kind == "lambda_flip_rate_over":
                plain |= np.arange(panes) >= self.span.plain.first_flip
                for counters in self.canary.values():
                    plain |= _over(counters, "lambda_flips", "lambda_events", rule.value)
            else:
                for source in self.canary:
                    quality |= self._drifts(source, rule.value)
        return [(pane, bool(quality[pane])) for pane in np.flatnonzero(plain | quality).tolist()]

    def _drifts(self, source: int, limit: float) -> Bools:
        """Where p95 of the canary may be over the baseline's by more than ``limit``.

        With t a line: either the canary has 5 % of its values above t + limit, or the baseline's p95 is below t.
        """
        line, split = self.span.usual(source), SOURCES[source] in SPLIT
        rows, high = self.span.above(self.effect, source, line + limit)
        chosen = self.chosen if split else np.ones(BUCKETS, np.bool_)
        n, over = (counts[:, chosen].sum(axis=1).cumsum() for counts in (rows, high))
        rows, high = self.span.above(None, source, line)
        rest = ~self.chosen if split else np.ones(BUCKETS, np.bool_)
        n_rest, over_rest = (counts[:, rest].sum(axis=1).cumsum() for counts in (rows, high))
        high_canary, low_baseline = (over > 0) & (over >= 0.04 * n), over_rest <= 0.06 * n_rest + 1
        found: Bools = (n > 0) & (n_rest > 0) & (high_canary | low_baseline)
        return found


def _over(counters: Ints, what: str, of: str, limit: float) -> Bools:
    found: Bools = counters[:, _AT[what]] > (limit + SLACK / 2) * counters[:, _AT[of]]
    return found


WINDOWS_MAX = 100
"""Windows after which a sham rollout that neither stops nor passes is given up."""
STOPS = ("abort", "rollback")
CATCHES = ("abort", "freeze", "rollback")
"""Verdicts by which a regression is noticed."""


@dataclass(frozen=True)
class Rollout:
    """One sham rollout. ``path``: verdict, reasons and time since its start, ms, of each decision; ``early``: the last
    one came before its window's end."""

    path: list[tuple[str, list[str], int]]
    early: bool = False

    @property
    def ended(self) -> str:
        """abort, rollback or pass, or ``open``: the history, or patience, ended first."""
        last = self.path[-1][0] if self.path else "hold"
        return last if last in (*STOPS, "pass") else "open"

    @property
    def caught(self) -> tuple[str, list[str], int] | None:
        """The first abort, freeze or rollback."""
        return next((step for step in self.path if step[0] in CATCHES), None)


def sham_flag(flag: Flag) -> Flag:
    """The flag without its shadow stage: nobody mirrors requests to a sham canary."""
    return flag.model_copy(update={"traffic": flag.traffic.model_copy(update={"shadow": False})})


def buckets_for(weight: float) -> int:
    """How many buckets are a canary of that weight."""
    return max(1, round(weight * BUCKETS))


def rollout_length(flag: Flag, clockwork: Clockwork) -> int:
    """How long a rollout takes that is green all the way, ms."""
    length, end = flag.window.length_ms * flag.window.hold_windows, 0
    for _ in flag.ramp_stages[1:]:
        end = clockwork.stage_start(end + length, flag.window.settle_ms)
    return end + length


def starts(history: History, unit: str, flag: Flag, clockwork: Clockwork) -> list[int]:
    """Where sham rollouts may begin: at every window that leaves time for a whole one, else at the first, ms."""
    first, length = history.first(unit), flag.window.length_ms
    last = history.end - rollout_length(flag, clockwork)
    return list(range(first, max(last, first) + 1, length))


def rehearse(
    history: History,
    unit: str,
    flag: Flag,
    clockwork: Clockwork,
    n: int,
    effects: Sequence[Effect] = (),
    progress: Callable[[], None] = lambda: None,
) -> dict[Effect | None, list[Rollout]]:
    """``n`` sham rollouts of a unit without and with each regression, on the same splits; None: without.

    Each begins at a moment of the history and with an order of the buckets that follow from the history's seed and its
    number; the canary of a stage is the first buckets of that order, so it only ever grows.
    """
    flag = sham_flag(flag)
    choices = starts(history, unit, flag, clockwork)
    begins = [choices[drawn("start", history.seed, i) % len(choices)] for i in range(n)]
    found: dict[Effect | None, list[Rollout]] = {effect: [Rollout([])] * n for effect in (None, *effects)}
    # In order of time, so that neighbours find their spans in memory.
    for i in sorted(range(n), key=lambda i: (begins[i], i)):
        order = np.argsort(mixed(np.arange(BUCKETS, dtype=np.uint64) ^ np.uint64(drawn("split", history.seed, i))))
        for effect in (None, *effects):
            found[effect][i] = sham_rollout(history, unit, flag, clockwork, begins[i], order, effect)
        progress()
    return found


def sham_rollout(
    history: History, unit: str, flag: Flag, clockwork: Clockwork, start: int, order: Ints, effect: Effect | None
) -> Rollout:
    """One rollout from ``start`` ms on, decided by the flag's own state machine; ``order``: of the buckets."""
    state = begin(flag, unit.split("|", 1)[1], start)
    ramp = machine(flag, state, clockwork)
    path: list[tuple[str, list[str], int]] = []
    while len(path) < WINDOWS_MAX and state.window.end <= history.end:
        window = state.window
        chosen = np.zeros(BUCKETS, np.bool_)
        chosen[order[: buckets_for(flag.ramp_stages[state.stage])]] = True
        split = Split(history.span(unit, window.start, window.end), effect, chosen)
        for pane, delta_s in split.suspects(flag):
            at = window.start + (pane + 1) * clockwork.pane_ms
            if at == window.end and not state.settling:
                break
            window.canary, window.baseline = split.arms_until(pane, delta_s=delta_s)
            early = ramp.judge_pane()
            if early is not None:
                return Rollout([*path, (early.verdict, early.reasons, at - start)], early=True)
        if not state.settling:
            window.canary, window.baseline = split.arms
        for decision, _ in ramp.close(window.end):
            path.append((decision.verdict, decision.reasons, decision.decided_at - start))
        if path and path[-1][0] in (*STOPS, "pass"):
            break
    return Rollout(path)


@dataclass(frozen=True)
class Rate:
    """A share of trials with its exact 95 % interval (Clopper and Pearson)."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """count ÷ of."""
        return self.count / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends."""
        return exact_interval(self.count, self.of)


def exact_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The binomial interval of Clopper and Pearson (Biometrika 26, 1934) for ``k`` of ``n``."""
    tail = (1 - confidence) / 2
    lower = 0.0 if k == 0 else _solve(lambda p: 1 - _at_most(k - 1, n, p) < tail)
    upper = 1.0 if k == n else _solve(lambda p: _at_most(k, n, p) > tail)
    return lower, upper


def _solve(below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if below(middle) else (low, middle)
    return low


def _at_most(k: int, n: int, p: float) -> float:
    """The chance of at most ``k`` successes."""
    if not 0 < p < 1:
        return float(p <= 0)
    whole, up, down = math.lgamma(n + 1), math.log(p), math.log1p(-p)
    terms = (whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * up + (n - i) * down for i in range(k + 1))
    return math.fsum(map(math.exp, terms))


@dataclass(frozen=True)
class Outcomes:
    """How sham rollouts ended. ``frozen``: those with a freeze on the way. ``causes``: by what they were caught."""

    aborted_early: Rate
    aborted_at_end: Rate
    rolled_back: Rate
    frozen: Rate
    passed: Rate
    open: Rate
    causes: dict[str, int]


def outcomes(rollouts: Sequence[Rollout]) -> Outcomes:
    """The rates of a set of sham rollouts."""
    n = len(rollouts)

    def rate(holds: Callable[[Rollout], bool]) -> Rate:
        return Rate(sum(map(holds, rollouts)), n)

    causes = Counter(reason for rollout in rollouts if rollout.caught for reason in rollout.caught[1])
    return Outcomes(
        rate(lambda r: r.ended == "abort" and r.early),
        rate(lambda r: r.ended == "abort" and not r.early),
        rate(lambda r: r.ended == "rollback"),
        rate(lambda r: any(verdict == "freeze" for verdict, *_ in r.path)),
        rate(lambda r: r.ended == "pass"),
        rate(lambda r: r.ended == "open"),
        dict(sorted(causes.items(), key=lambda item: (-item[1], item[0]))),
    )


@dataclass(frozen=True)
class Lifetime:
    """How long a regression lives until the first abort, freeze or rollback, ms, lateness included.

    ``lived``: of the caught ones, rising. ``median``, ``p90``: over all rollouts; None where too many were never
    caught. ``by``: how many each verdict caught, early aborts apart.
    """

    lived: list[int]
    of: int
    by: dict[str, int]

    @property
    def missed(self) -> Rate:
        """Those never caught."""
        return Rate(self.of - len(self.lived), self.of)

    @property
    def median(self) -> int | None:
        """Half of the rollouts are caught by then."""
        return self.quantile(0.5)

    @property
    def p90(self) -> int | None:
        """Nine in ten are caught by then."""
        return self.quantile(0.9)

    def quantile(self, q: float) -> int | None:
        """When a share of all rollouts is caught."""
        rank = math.ceil(q * self.of)
        return self.lived[rank - 1] if 0 < rank <= len(self.lived) else None

    def caught_by(self, ms: int) -> float:
        """The share of all rollouts caught within a time."""
        return bisect_right(self.lived, ms) / self.of


def lifetime(rollouts: Sequence[Rollout], lateness_ms: int) -> Lifetime:
    """How long a regression lived in a set of sham rollouts."""
    caught = [rollout.caught for rollout in rollouts]
    lived = sorted(step[2] + lateness_ms for step in caught if step)
    by = Counter(
        "early abort" if rollout.early and rollout.caught is rollout.path[-1] else step[0]
        for rollout, step in zip(rollouts, caught, strict=True)
        if step
    )
    return Lifetime(lived, len(rollouts), dict(sorted(by.items())))
