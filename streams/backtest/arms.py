"""Sham arms made of buckets: their sums, window by window, with or without a regression put in."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace as with_changes
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tidegate.gates.arrays import Floats, Ids, Ints
from tidegate.gates.digest import Digest
from tidegate.gates.sums import (
    CARRIES,
    COUNTERS,
    COVERAGE_BITS,
    FLIPPED,
    HIGH_BITS,
    LOW_BITS,
    SQUARE_BITS,
    Sums,
    cost_parts,
    square_parts,
)
from tidegate.gates.window import SERVED, Arm
from tidegate.schemas.errors import InputError
from tidegate.schemas.manifest import SLACK, Flag
from tidegate.streams.backtest.buckets import (
    AT,
    BLOCK_ROWS,
    BUCKETED_SOURCES,
    BUCKETS,
    SPLIT,
    Block,
    carry,
    drawn,
    mixed,
)

_COST_PARTS = sorted({AT[part] for carried in CARRIES for part in carried})

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Effect:
    """A regression that a sham canary is given: ``metric`` error, latency, cost, delta_s or coverage, and its size.

    An error is an error and nothing else: what the request cost and whether it was solved stay as they were.
    """

    metric: str
    size: float

    @property
    def text(self) -> str:
        """The effect as it was written."""
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
        """Return the groups of panes ``low`` to ``high``, exclusive, in numbered blocks."""
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
        """Return the same, had the regression been there."""
        size, counters = effect.size, self.counters.copy()
        if effect.metric == "latency":
            return with_changes(self, latency=self.latency * size)
        if effect.metric == "delta_s":
            return with_changes(self, delta_s=np.clip(self.delta_s + size, 0.0, 2.0))
        if effect.metric == "error":
            counters[:, AT["errors"]] += self._extra_errors(size, seed)
        elif effect.metric == "cost":
            _make_dearer(counters, size)
        else:
            most = counters[:, AT["coverage_rows"]] << COVERAGE_BITS
            total = counters[:, AT["coverage_sum"]] + np.rint(most * size).astype(np.int64)
            counters[:, AT["coverage_sum"]] = np.clip(total, 0, most)
        return with_changes(self, counters=counters)

    def _extra_errors(self, rate: float, seed: int) -> Ints:
        """Count each group's good requests that fail: each by itself with that chance, from a hash of its place."""
        good = self.counters[:, AT["requests"]] - self.counters[:, AT["errors"]]
        # Places do not depend on the span that they are looked at in.
        place = (self.number * len(BUCKETED_SOURCES) * BUCKETS + self.key).astype(np.uint64)
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
                carry(found[source])
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
            edges = np.searchsorted(key[order], np.arange(len(BUCKETED_SOURCES) * BUCKETS + 1)).tolist()
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
        """Return the λ groups of a source, as seen up to the end of a pane."""
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
        """Return the sums of an arm of these buckets over the whole span; of the gold set both arms have all."""
        arm = Arm()
        for source in self.present:
            mine = self._mine(source, chosen)
            sums = Sums(groups=dict(self.all_lambda_groups[source]))
            sums.count(self.totals[source][mine].sum(axis=0).tolist())
            for metric, into in (("delta_s", sums.delta_s), ("latency", sums.latency)):
                for bucket, digest in self.digests[metric, source].items():
                    if mine[bucket]:
                        into.merge(digest)
            arm.sources[BUCKETED_SOURCES[source]] = sums
        return arm

    def sums_until(self, chosen: Bools) -> dict[int, Ints]:
        """Return an arm's counters by source as (pane, counter), each pane with those before it; costs are left out."""
        found = {}
        for source, (pane, bucket, counters) in self.by_source.items():
            mine = self._mine(source, chosen)[bucket]
            sums = np.zeros((int(mine.sum()) + 1, len(COUNTERS)), np.int64)
            np.cumsum(counters[mine], axis=0, out=sums[1:])
            sums[:, _COST_PARTS] = 0
            found[source] = sums[np.searchsorted(pane[mine], np.arange(self.panes), side="right")]
        return found

    def arm_until(self, pane: int, chosen: Bools, sums_until: Mapping[int, Ints], *, delta_s: bool) -> Arm:
        """Return an arm's sums up to a pane's end, as far as hard rules read them; ``delta_s``: with its values."""
        arm = Arm()
        for source, counters in sums_until.items():
            sums = Sums(counters=counters[pane].tolist(), groups=self.lambda_groups(source, pane))
            if delta_s:
                sums.delta_s.add(self.delta_s[self._values_until(source, pane, chosen)])
            arm.sources[BUCKETED_SOURCES[source]] = sums
        return arm

    def _values_until(self, source: int, pane: int, chosen: Bools) -> Bools:
        key = self.key[self.delta_s_group]
        until = (key // BUCKETS == source) & (self.pane[self.delta_s_group] <= pane)
        found: Bools = until & self._mine(source, chosen)[key % BUCKETS]
        return found

    def arm_at(self, pane: int, chosen: Bools) -> Arm:
        """Return all sums of an arm up to the end of a pane."""
        arm = Arm()
        for source in self.present:
            here = self.belongs(source, chosen) & (self.pane <= pane)
            sums = Sums(groups=self.lambda_groups(source, pane))
            sums.count(self.counters[here].sum(axis=0).tolist())
            sums.delta_s.add(self.delta_s[here[self.delta_s_group]])
            sums.latency.add(self.latency[here[self.latency_group]])
            arm.sources[BUCKETED_SOURCES[source]] = sums
        return arm

    def belongs(self, source: int, chosen: Bools) -> Bools:
        """By group, whether it is of a source and an arm."""
        found: Bools = (self.key // BUCKETS == source) & self._mine(source, chosen)[self.key % BUCKETS]
        return found

    def _mine(self, source: int, chosen: Bools) -> Bools:
        return chosen if BUCKETED_SOURCES[source] in SPLIT else np.ones(BUCKETS, np.bool_)

    def above(self, source: int, limit: float) -> tuple[Ints, Ints]:
        """Values of ΔS, and those of them above ``limit``, as (pane, bucket)."""
        here = self.key[self.delta_s_group] // BUCKETS == source
        group, values = self.delta_s_group[here], self.delta_s[here]
        place = self.pane[group] * BUCKETS + self.key[group] % BUCKETS
        shape, size = (self.panes, BUCKETS), self.panes * BUCKETS
        rows = np.bincount(place, minlength=size).reshape(shape)
        return rows, np.bincount(place[values > limit], minlength=size).reshape(shape)


def _make_dearer(counters: Ints, factor: float) -> None:
    """Multiply what each group's requests cost."""
    for name in ("cost", "solved_cost"):
        high, low = AT[f"{name}_high"], AT[f"{name}_low"]
        cost = counters[:, high] / (1 << HIGH_BITS) + counters[:, low] / (1 << (HIGH_BITS + LOW_BITS))
        counters[:, high], counters[:, low] = cost_parts(cost * factor)
    parts = [AT[name] for name in ("square_high", "square_mid", "square_low")]
    square = sum(counters[:, at] * 2.0 ** (SQUARE_BITS - i * LOW_BITS) for i, at in enumerate(parts))
    for at, part in zip(parts, square_parts(np.sqrt(square) * factor), strict=True):
        counters[:, at] = part


def digest_of(values: Floats) -> Digest:
    """Return a digest of values in order."""
    digest = Digest()
    digest.add(values)
    return digest


class EffectSpan:
    """A window's or settling span's groups, as they were and under each regression that was asked for."""

    def __init__(self, plain: Groups, seed: int) -> None:
        self.plain, self._seed = plain, seed
        self._under: dict[Effect, Groups] = {}
        self._above: dict[tuple[Effect | None, int, float], tuple[Ints, Ints]] = {}
        self._usual: dict[int, float] = {}

    def under(self, effect: Effect | None) -> Groups:
        """Return the groups under a regression; None: as they were."""
        if effect is None:
            return self.plain
        if effect not in self._under:
            self._under[effect] = self.plain.under(effect, self._seed)
        return self._under[effect]

    def above(self, effect: Effect | None, source: int, limit: float) -> tuple[Ints, Ints]:
        """Return ``Groups.above``, computed once for each question."""
        asked = effect, source, limit
        if asked not in self._above:
            self._above[asked] = self.under(effect).above(source, limit)
        return self._above[asked]

    def usual(self, source: int) -> float:
        """Return a ΔS that one value in ten of a source exceeds."""
        if source not in self._usual:
            values = self.plain.delta_s[self.plain.key[self.plain.delta_s_group] // BUCKETS == source]
            self._usual[source] = float(np.quantile(values, 0.9)) if len(values) else 0.0
        return self._usual[source]


@dataclass(frozen=True)
class Split:
    """The sham arms of a span: the canary is the ``chosen`` buckets, under an effect or as they were."""

    span: EffectSpan
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

    def arms_at(self, pane: int) -> tuple[Arm, Arm]:
        """Canary and baseline up to the end of a pane, as every gate reads them."""
        return self.span.under(self.effect).arm_at(pane, self.chosen), self.span.plain.arm_at(pane, ~self.chosen)

    def suspects(self, flag: Flag) -> list[tuple[int, bool]]:
        """Return the panes at whose end a hard rule could fire at all, and whether it takes ΔS to tell.

        A rule fires early only if its value is over the limit, which the counters of each source tell; for ΔS it takes
        shares of values above fixed lines, with room for the error of a digest. So the rules themselves, which cost
        a thousand times as much, are asked in these panes only.
        """
        panes, least = self.span.plain.panes, flag.window.min_requests
        plain, quality = np.zeros(panes, np.bool_), np.zeros(panes, np.bool_)
        for rule in flag.abort_rules.hard:
            if rule.kind == "error_rate_over":
                served = [self.canary[s] for s in self.canary if BUCKETED_SOURCES[s] in SERVED]
                if served:
                    both = sum(served[1:], served[0])
                    plain |= (both[:, AT["requests"]] >= least) & _over(both, "errors", "requests", rule.value)
            elif rule.kind == "coverage_under":
                for counters in self.canary.values():
                    rows = counters[:, AT["coverage_rows"]].astype(np.float64)
                    mean = counters[:, AT["coverage_sum"]] / float(1 << COVERAGE_BITS)
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
        """Mark the panes where p95 of the canary may be over the baseline's by more than ``limit``.

        With t a line: either the canary has 5 % of its values above t + limit, or the baseline's p95 is below t.
        """
        line, split = self.span.usual(source), BUCKETED_SOURCES[source] in SPLIT
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
    found: Bools = counters[:, AT[what]] > (limit + SLACK / 2) * counters[:, AT[of]]
    return found
