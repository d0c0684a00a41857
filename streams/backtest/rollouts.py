"""Decisions by chance alone: a baseline's history split into sham arms, and sham rollouts over it.

``aggregate`` reads the events once, into buckets of sticky ids by pane; each rollout then adds up some of the buckets.
"""

import math
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from tidegate.gates.arrays import Ints
from tidegate.gates.kinds import machine
from tidegate.gates.unit import begin
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.errors import InputError
from tidegate.schemas.manifest import Flag
from tidegate.schemas.timeline import Timeline
from tidegate.streams.backtest.arms import Effect, EffectSpan, Groups, Split
from tidegate.streams.backtest.buckets import (
    AT,
    BLOCK_ROWS,
    BUCKETED_SOURCES,
    BUCKETS,
    CACHED,
    SPLIT,
    Block,
    UnitRows,
    bucket_of,
    drawn,
    mixed,
)
from tidegate.streams.backtest.looks import SpanValues, looks
from tidegate.streams.dumps.log import runs
from tidegate.streams.engine.columns import Columns
from tidegate.streams.engine.counting import Place, row_counters
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.runs import NEVER
from tidegate.streams.engine.slices import Slices
from tidegate.streams.engine.source_partition import Snapshot, SourcePartition


class BaselineHistory:
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
        self._rows: dict[str, UnitRows] = {}
        self._cells: list[tuple[str, str, str]] = []
        self._unit, self._key = np.empty(0, np.int64), np.empty(0, np.int64)
        self.block = lru_cache(CACHED)(self._block)
        self.span = lru_cache(CACHED)(self._span)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def cells(self, table: EventClasses) -> tuple[Ints, Ints]:
        """By cell of the table: the number of its unit, and its first key; -1 where it is not the baseline's."""
        if self._cells is not table.cells or len(self._unit) != len(table.cells):
            self._cells = table.cells
            units = {unit: i for i, unit in enumerate(dict.fromkeys(unit for unit, _, _ in table.cells))}
            found = [
                (units[unit], BUCKETED_SOURCES.index(source) * BUCKETS)
                if arm == "baseline" and source in BUCKETED_SOURCES
                else (-1, -1)
                for unit, arm, source in table.cells
            ]
            self._unit, self._key = np.array(found, np.int64).reshape(-1, 2).T
        return self._unit, self._key

    def take(self, columns: Columns, at: Ints, pane: Ints, cell: Ints, counters: Ints, table: EventClasses) -> None:
        """Add the accepted rows ``at`` of a decoded run, with their panes, cells and counters."""
        units, keys = self.cells(table)
        code, unit = columns.code[at], units[cell]
        key = keys[cell] + bucket_of(columns.sticky[at], self.seed)
        delta_s = np.where(table.measured[code], columns.delta_s[at], np.nan)
        latency = np.where(table.request[code], columns.latency[at], np.nan)
        for number in np.unique(unit).tolist():
            here = np.flatnonzero(unit == number)
            name = table.cells[int(cell[here[0]])][0]
            rows = self._rows.setdefault(name, UnitRows())
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
        self.requests[unit] = self.requests.get(unit, 0) + int(block.counters[:, AT["requests"]].sum())
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
        """Return the start of the first pane with rows, ms."""
        return min(entry[0] for entry in self._index[unit]) * self.pane_ms

    def covers(self, unit: str, flag: Flag) -> bool:
        """Tell whether the log closes a window of a unit."""
        return self.first(unit) + flag.window.length_ms <= self.end

    def _block(self, at: int, size: int) -> Block:
        self._file.seek(at)
        return Block.load(self._file.read(size))

    def _span(self, unit: str, start: int, end: int) -> "EffectSpan":
        low, high = start // self.pane_ms, end // self.pane_ms
        parts = [
            (number, self.block(at, size))
            for number, (first, last, at, size) in enumerate(self._index[unit])
            if first < high and last >= low
        ]
        return EffectSpan(Groups.of(parts, low, high), self.seed)


class _Bucketed:
    """Rows that go into a history instead of panes; what is accepted is the same."""

    def __init__(self, history: BaselineHistory, table: EventClasses) -> None:
        self._history, self._table = history, table

    def __len__(self) -> int:
        return 0

    def hold(self, first: int, columns: Columns, rows: Ints, pane: Ints, cell: Ints, of: Place) -> None:
        """Take the baseline's."""
        units, _ = self._history.cells(self._table)
        wanted = np.flatnonzero(units[cell] >= 0)
        if len(wanted):
            rows = rows[wanted]
            counters = row_counters(columns, rows, self._table)
            self._history.take(columns, rows, pane[wanted], cell[wanted], counters, self._table)

    def count(self, *_: object) -> None:
        """Pass over late ones: a history holds what was accepted."""

    def sum_slices(self, of: Place) -> Slices[None]:
        """Hold nothing."""
        yield from ()

    def forget(self, closed: int) -> None:
        """Remember nothing."""


def aggregate(
    paths: Sequence[Path],
    flags: Mapping[str, Flag],
    partitions: int,
    clockwork: Clockwork,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> BaselineHistory:
    """Read the baseline's history of every flag, once. Raises InputError as ``runs``, or if the log closes no pane."""
    table, history = EventClasses(Timeline.of(flags)), BaselineHistory(seed, clockwork.pane_ms)
    states: dict[int, SourcePartition] = {}
    closed = [NEVER] * partitions
    try:
        for partition, run in runs(paths, partitions, progress):
            if partition not in states:
                snapshot = Snapshot(partition, clockwork.pane_ms, clockwork.lateness_ms, next=run.first)
                states[partition] = SourcePartition(snapshot, table, _Bucketed(history, table))
            for partial in states[partition].step(run).partials:
                closed[partition] = partial.pane + 1
        if min(closed) == NEVER:
            raise InputError(f"partition {closed.index(NEVER)} closes no pane; end the log with a tick")
        history.finish(min(closed) * clockwork.pane_ms)
    except BaseException:
        history.close()
        raise
    return history


WINDOWS_MAX = {"point": 100, "sequential": 1_000}
"""Windows after which a sham rollout that neither stops nor passes is given up: a stage of few requests takes days."""
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
    """Return the flag without its shadow stage: nobody mirrors requests to a sham canary."""
    return flag.model_copy(update={"traffic": flag.traffic.model_copy(update={"shadow": False})})


def buckets_for(weight: float) -> int:
    """Return the number of buckets of a canary of that weight."""
    return max(1, round(weight * BUCKETS))


def rollout_length(flag: Flag, clockwork: Clockwork) -> int:
    """Return how long a rollout takes that is green all the way, ms."""
    length, end = flag.window.length_ms * flag.window.hold_windows, 0
    for _ in flag.ramp_stages[1:]:
        end = clockwork.stage_start(end + length, flag.window.settle_ms)
    return end + length


def starts(history: BaselineHistory, unit: str, flag: Flag, clockwork: Clockwork) -> list[int]:
    """Return the times at which sham rollouts may begin, ms: each window with time for a whole one, else the first."""
    first, length = history.first(unit), flag.window.length_ms
    last = history.end - rollout_length(flag, clockwork)
    return list(range(first, max(last, first) + 1, length))


def rehearse(
    history: BaselineHistory,
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
    history: BaselineHistory,
    unit: str,
    flag: Flag,
    clockwork: Clockwork,
    start: int,
    order: Ints,
    effect: Effect | None,
) -> Rollout:
    """Return one rollout from ``start`` ms on, decided by the flag's own state machine; ``order``: of the buckets."""
    state = begin(flag, unit.split("|", 1)[1], start, clockwork)
    ramp = machine(flag, state, clockwork)
    path: list[tuple[str, list[str], int]] = []
    staged = flag.kind == "progressive_rollout" and flag.policy.evidence == "sequential"
    past = SpanValues()
    for _ in range(WINDOWS_MAX[flag.policy.evidence]):
        window = state.window
        if window.end > history.end:
            break
        chosen = np.zeros(BUCKETS, np.bool_)
        chosen[order[: buckets_for(flag.ramp_stages[state.stage])]] = True
        split = Split(history.span(unit, window.start, window.end), effect, chosen)
        suspects = dict(split.suspects(flag))
        if staged and not state.settling:
            suspects |= dict.fromkeys(looks(split, flag, state, past), True)
        for pane, delta_s in sorted(suspects.items()):
            at = window.start + (pane + 1) * clockwork.pane_ms
            if at == window.end and not state.settling:
                break
            if staged:
                window.canary, window.baseline = split.arms_at(pane)
                if at == window.end:
                    break
                # A freeze goes on, a stop ends it.
                path += [(one.verdict, one.reasons, one.decided_at - start) for one, _ in ramp.close(at)]
                if path and path[-1][0] in STOPS:
                    return Rollout(path, early=True)
                continue
            window.canary, window.baseline = split.arms_until(pane, delta_s=delta_s)
            early = ramp.judge_pane()
            if early is not None:
                return Rollout([*path, (early.verdict, early.reasons, at - start)], early=True)
        if not state.settling:
            window.canary, window.baseline = split.arms
        for decision, _ in ramp.close(window.end):
            path.append((decision.verdict, decision.reasons, decision.decided_at - start))
        past.add(split, state.evidence)
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
    """Return the binomial interval of Clopper and Pearson (Biometrika 26, 1934) for ``k`` of ``n``."""
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
    """Return the chance of at most ``k`` successes."""
    if not 0 < p < 1:
        return float(p <= 0)
    whole, up, down = math.lgamma(n + 1), math.log(p), math.log1p(-p)
    terms = (whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * up + (n - i) * down for i in range(k + 1))
    return math.fsum(map(math.exp, terms))


@dataclass(frozen=True)
class Outcomes:
    """Ends of sham rollouts. ``frozen``: those with a freeze on the way. ``causes``: by what they were caught.

    Each is a rate of all rollouts; what is held against a promise is a rate of those that came to an end, since one
    that the history cut short might yet have been stopped.
    """

    aborted_early: Rate
    aborted_at_end: Rate
    rolled_back: Rate
    frozen: Rate
    passed: Rate
    open: Rate
    causes: dict[str, int]

    @property
    def aborted(self) -> Rate:
        """Aborted, of those that came to an end."""
        return self._ended(self.aborted_early.count + self.aborted_at_end.count)

    @property
    def rolled(self) -> Rate:
        """Rolled back, of those that came to an end."""
        return self._ended(self.rolled_back.count)

    @property
    def stopped(self) -> Rate:
        """Aborted or rolled back, of those that came to an end."""
        return self._ended(self.aborted.count + self.rolled.count)

    def _ended(self, count: int) -> Rate:
        return Rate(count, self.open.of - self.open.count)


def outcomes(rollouts: Sequence[Rollout]) -> Outcomes:
    """Return the rates of a set of sham rollouts."""
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
    """The time that a regression lives until the first abort, freeze or rollback, ms, lateness included.

    ``lived``: of the caught ones, rising. ``median``, ``p90``: over all rollouts; None where too many were never
    caught. ``by``: how many each verdict caught, early aborts apart.
    """

    lived: list[int]
    of: int
    by: dict[str, int]

    @property
    def missed(self) -> Rate:
        """The share of rollouts in which it was never caught."""
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
        """Return the share of all rollouts caught within a time."""
        return bisect_right(self.lived, ms) / self.of


def lifetime(rollouts: Sequence[Rollout], lateness_ms: int) -> Lifetime:
    """Measure how long a regression lived in a set of sham rollouts."""
    caught = [rollout.caught for rollout in rollouts]
    lived = sorted(step[2] + lateness_ms for step in caught if step)
    by = Counter(
        "early abort" if rollout.early and rollout.caught is rollout.path[-1] else step[0]
        for rollout, step in zip(rollouts, caught, strict=True)
        if step
    )
    return Lifetime(lived, len(rollouts), dict(sorted(by.items())))
