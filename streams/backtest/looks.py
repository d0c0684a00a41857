"""The panes at which a sham rollout on sequential evidence has to be judged before its window ends.

A worker looks at every pane. To judge a pane costs a thousand times as much as to count it, so panes in which no gate
can be proven over its limit are passed over, by conditions that each proof implies: no stop is missed.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tidegate.gates.arrays import Floats, Ints
from tidegate.gates.bounds import quantile_ranks
from tidegate.gates.metrics import rate_surely_over
from tidegate.gates.sequential import COST_LEAST, Levels
from tidegate.gates.stage import StageEvidence
from tidegate.gates.sums import COVERAGE_BITS, HIGH_BITS, LOW_BITS
from tidegate.gates.unit import Unit
from tidegate.gates.window import LABELS, SERVED, Arm
from tidegate.schemas.manifest import SLACK, Flag
from tidegate.streams.backtest.arms import Bools, Groups, Split
from tidegate.streams.backtest.buckets import AT, BUCKETED_SOURCES

QUANTILE_ROWS_MAX = 1 << 24
"""A quantile that so many rows do not bound is not bounded here."""


@dataclass
class SpanValues:
    """The values of a stage's windows that are over, by metric and source: the canary's and the baseline's."""

    since: int | None = None
    values: dict[tuple[str, int], tuple[list[Floats], list[Floats]]] = field(default_factory=dict)

    def add(self, split: Split, evidence: StageEvidence) -> None:
        """Take in a window that is over; ``evidence``: with it. What a stage before has shown is forgotten."""
        if evidence.since is None or evidence.since != self.since:
            self.values = {}
        self.since = evidence.since
        if evidence.since is None:
            return
        for arm, groups, chosen in _arms(split):
            for metric in ("delta_s", "latency"):
                for source, (values, _) in _values(groups, metric, chosen).items():
                    self.values.setdefault((metric, source), ([], []))[arm].append(values)

    def of(self, metric: str, sources: Sequence[int], arm: int) -> Floats:
        """Return all of an arm's values from some sources."""
        found = [part for source in sources for part in self.values.get((metric, source), ([], []))[arm]]
        return np.concatenate(found) if found else np.empty(0)


def _arms(split: Split) -> Iterator[tuple[int, Groups, Bools]]:
    yield 0, split.span.under(split.effect), split.chosen
    yield 1, split.span.plain, ~split.chosen


def _values(groups: Groups, metric: str, chosen: Bools) -> dict[int, tuple[Floats, Ints]]:
    """Values and their panes by source."""
    values, group = (
        (groups.delta_s, groups.delta_s_group) if metric == "delta_s" else (groups.latency, groups.latency_group)
    )
    found = {}
    for source in groups.present:
        mine = groups.belongs(source, chosen)[group]
        found[source] = values[mine], groups.pane[group[mine]]
    return found


def looks(split: Split, flag: Flag, unit: Unit, past: SpanValues) -> Iterator[int]:
    """Yield the panes of a window, before its last, at whose end a gate could be proven over its limit."""
    found = _suspects(split, flag, unit, past)
    found[-1:] = False
    yield from np.flatnonzero(found).tolist()


def _suspects(split: Split, flag: Flag, unit: Unit, past: SpanValues) -> Bools:
    panes = split.span.plain.panes
    labels = [BUCKETED_SOURCES.index(name) for name in LABELS.values() if name in BUCKETED_SOURCES]
    if unit.evidence.left_out or set(labels) & set(split.span.plain.present):
        # What then counts is not what was counted here.
        return np.ones(panes, np.bool_)
    asked = _Asked(split, flag, unit, past)
    return asked.rates() | asked.quantiles() | asked.costs()


@dataclass
class _Asked:
    """One window of one rollout, and the conditions on it; each gives the panes that fulfil it."""

    split: Split
    flag: Flag
    unit: Unit
    past: SpanValues

    def __post_init__(self) -> None:
        self.panes = self.split.span.plain.panes
        levels = Levels.of(self.flag, 1)
        self.level = max(levels.part, levels.hard, levels.window)
        self.worth = self.flag.policy.design_effect
        self.canary, self.baseline = self.unit.evidence.canary, self.unit.evidence.baseline
        if self.unit.pinned is not None:
            self.baseline = self.unit.pinned.arm

    def _limits(self, gate: str, rule: str) -> list[float]:
        limit = self.flag.gates.limits()[gate]
        found = [rule_.value for rule_ in self.flag.abort_rules.hard if rule_.kind == rule]
        return [*found, *([limit] if limit is not None and not isinstance(limit, bool) else [])]

    def rates(self) -> Bools:
        """Errors, tool failures, coverage and λ."""
        found = np.zeros(self.panes, np.bool_)
        served = [s for s in self.split.canary if BUCKETED_SOURCES[s] in SERVED]
        rows = sum((self.split.canary[s] for s in served), np.zeros((self.panes, len(AT)), np.int64))
        total = self.canary.total
        requests, calls = rows[:, AT["requests"]] + total("requests"), rows[:, AT["tool_calls"]] + total("tool_calls")
        failed = calls - rows[:, AT["tool_ok"]] - total("tool_ok")
        for limit in self._limits("error_rate_max", "error_rate_over"):
            found |= self._proven(rows[:, AT["errors"]] + total("errors"), requests, limit)
        for limit in self._limits("tool_success_min", ""):
            found |= self._proven(failed, calls, round(1 - limit, 12))
        for source, counters in self.split.canary.items():
            known = _counters(self.canary, source)
            n = counters[:, AT["coverage_rows"]] + known("coverage_rows")
            good = (counters[:, AT["coverage_sum"]] + known("coverage_sum")) / float(1 << COVERAGE_BITS)
            for limit in self._limits("coverage_min", "coverage_under"):
                found |= self._proven(np.maximum(n - good, 0.0), n, round(1 - limit, 12))
            if self.flag.gates.lambda_convergent:
                found |= (counters[:, AT["lambda_bad_rows"]] + known("lambda_bad_rows")) > 0
        if self.flag.gates.lambda_convergent:
            found |= np.arange(self.panes) >= self.split.span.plain.first_flip
        return found

    def _proven(self, bad: NDArray[np.float64] | Ints, n: Ints, limit: float) -> Bools:
        """Mark the panes where a rate's bound excludes a limit; computed only where the value is over it."""
        found = np.zeros(self.panes, np.bool_)
        for pane in np.flatnonzero(bad > limit * n).tolist():
            rows = float(n[pane])
            found[pane] = rate_surely_over(
                min(float(bad[pane]), rows) / self.worth, rows / self.worth, limit, self.level
            )
        return found

    def quantiles(self) -> Bools:
        """Return both quantiles of ΔS by each source, and p95 of the latency of all that is served."""
        found = np.zeros(self.panes, np.bool_)
        present = self.split.span.plain.present
        for q, gate, rule in ((0.5, "delta_s.median_max", ""), (0.95, "delta_s.p95_max", "delta_s_p95_over")):
            for limit in self._limits(gate, rule):
                for source in present:
                    found |= self._drifts("delta_s", [source], q, limit)
        for limit in self._limits("latency_p95_uplift_max", ""):
            found |= self._drifts("latency", [s for s in present if BUCKETED_SOURCES[s] in SERVED], 0.95, limit)
        return found

    def _drifts(self, metric: str, sources: Sequence[int], q: float, limit: float) -> Bools:
        """Mark panes where the canary's lower order statistic may exceed the baseline's upper one by over ``limit``.

        With t a line, here the baseline's own quantile: either the canary has as many values above t and the limit as
        its lower rank leaves, or the baseline as few above t as its upper rank leaves. A rank's share of the rows only
        comes nearer to q as rows are added, so the ranks at the window's end will do.
        """
        canary, baseline = (
            _Counted.of(
                self.past.of(metric, sources, arm),
                [_values(groups, metric, chosen)[source] for source in sources],
                self.panes,
            )
            for arm, groups, chosen in _arms(self.split)
        )
        pinned = self.unit.pinned is not None
        if pinned:
            held = [
                self.baseline.sources[BUCKETED_SOURCES[s]]
                for s in sources
                if BUCKETED_SOURCES[s] in self.baseline.sources
            ]
            digests = [sums.delta_s if metric == "delta_s" else sums.latency for sums in held]
            lines = [line for digest in digests if (line := digest.quantile(q)) is not None]
            if not lines:
                return np.zeros(self.panes, np.bool_)
            t = min(lines)
        elif not len(baseline.all):
            return np.zeros(self.panes, np.bool_)
        else:
            t = float(np.quantile(baseline.all, q))
        down, up = least_rows(q, self.level / 2, self.worth)
        lower = quantile_ranks(len(canary.all), q, self.level / 2, design_effect=self.worth)[0]
        if lower is None:
            return np.zeros(self.panes, np.bool_)
        line = t * (1 + limit) if metric == "latency" else t + limit
        n, above = canary.n, canary.above(line - SLACK)
        high = above >= n * (1 - lower / len(canary.all)) - 2
        if pinned:
            found: Bools = (n >= down) & high
            return found
        upper = quantile_ranks(len(baseline.all), q, self.level / 2, design_effect=self.worth)[1]
        if upper is None:
            return np.zeros(self.panes, np.bool_)
        rest = baseline.n
        low = baseline.above(t - SLACK) <= rest * (1 - upper / len(baseline.all)) + 2
        found = (n >= down) & (rest >= up) & (high | low)
        return found

    def costs(self) -> Bools:
        """Mark the panes where the cost per solved is over its limit and enough are solved to say so, or nothing is."""
        limit = self.flag.gates.cost_uplift_max
        if limit is None:
            return np.zeros(self.panes, np.bool_)
        spent, solved = [], []
        for arm, groups, chosen in _arms(self.split):
            known = self.canary if arm == 0 else self.baseline
            fixed = arm == 1 and self.unit.pinned is not None
            cost, good = np.zeros(self.panes), np.zeros(self.panes)
            for source in groups.present if not fixed else ():
                if BUCKETED_SOURCES[source] in SERVED:
                    mine = groups.belongs(source, chosen)
                    high, low = (groups.counters[mine, AT[f"cost_{part}"]] for part in ("high", "low"))
                    each = high / (1 << HIGH_BITS) + low / (1 << (HIGH_BITS + LOW_BITS))
                    cost += np.bincount(groups.pane[mine], each, self.panes)
                    good += np.bincount(groups.pane[mine], groups.counters[mine, AT["solved"]], self.panes)
            spent.append(np.cumsum(cost) + known.served().cost)
            solved.append(np.cumsum(good) + known.total("solved"))
        over = spent[0] * solved[1] > (1 + limit) * (1 - 1e-9) * spent[1] * solved[0]
        found: Bools = (solved[1] >= COST_LEAST) & (((solved[0] >= COST_LEAST) & over) | (solved[0] == 0))
        return found


def _counters(arm: Arm, source: int) -> "_Known":
    return _Known(arm, BUCKETED_SOURCES[source])


@dataclass(frozen=True)
class _Known:
    """An arm's counters from one source; 0 where there are none."""

    arm: Arm
    source: str

    def __call__(self, counter: str) -> int:
        return self.arm.sources[self.source][counter] if self.source in self.arm.sources else 0


@dataclass(frozen=True)
class _Counted:
    """Values of a stage up to each pane. ``past``: of windows before; ``n``: how many up to each pane's end."""

    past: Floats
    values: Floats
    pane: Ints
    panes: int

    @classmethod
    def of(cls, past: Floats, parts: Sequence[tuple[Floats, Ints]], panes: int) -> "_Counted":
        """Return the past and the window's parts."""
        none = np.empty(0), np.empty(0, np.int64)
        values, pane = (np.concatenate(column) for column in zip(none, *parts, strict=True))
        return cls(past, values, pane, panes)

    @property
    def all(self) -> Floats:
        """All values, the whole window's included."""
        return np.concatenate([self.past, self.values])

    @property
    def n(self) -> Ints:
        """Return the number of values up to the end of each pane."""
        return len(self.past) + np.cumsum(np.bincount(self.pane, minlength=self.panes))

    def above(self, line: float) -> Ints:
        """Return the number of values above a line up to the end of each pane."""
        here = np.bincount(self.pane[self.values > line], minlength=self.panes)
        return int((self.past > line).sum()) + np.cumsum(here)


@lru_cache(64)
def least_rows(q: float, level: float, design_effect: float) -> tuple[int, int]:
    """Return the fewest rows that bound a quantile from below, and from above."""

    def bounded(end: int) -> int:
        return bisect_left(
            range(QUANTILE_ROWS_MAX),
            True,
            key=lambda n: quantile_ranks(n, q, level, design_effect=design_effect)[end] is not None,
        )

    return bounded(0), bounded(1)
