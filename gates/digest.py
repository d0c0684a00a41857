"""A t-digest that gives the same bits for the same values in the same order.

fastdigest (t-digest of Dunning and Ertl, in Rust) is deterministic as long as it is fed in the same portions, so
values pass through a buffer of exactly ``CHUNK`` and the unmerged rest is part of the state. Up to ``CHUNK`` distinct
values the digest is exact: it holds them with their counts, and interpolates linearly between order statistics
(type 7 of Hyndman and Fan, 1996). Rounded values, on whose steps a t-digest errs most, are exact at any count.
Beyond that, values that come again and again stay counted beside the t-digest, which would blur their steps.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from fastdigest import TDigest
from numpy.typing import NDArray

from tidegate.gates.arrays import Floats

CHUNK = 512
CENTROIDS = 400
SKETCH = f"fastdigest-{CENTROIDS}x{CHUNK}/1"
STRIDE = 3
"""A value as often as this among 512 stays counted beside the t-digest."""
STEPS = CHUNK // 2
"""Most values counted beside the t-digest: any that makes up 1 in 256 finds a place."""
RANK_ERROR = 0.005
"""Largest error of a rank, as a share of the count, once a digest is no longer exact."""


@dataclass(frozen=True, eq=False)
class Counted:
    """Distinct values, ascending, and how often each occurs."""

    values: Floats
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, values: Floats) -> "Counted":
        """Count values; -0.0 counts as 0.0."""
        return cls(*np.unique(values + 0.0, return_counts=True))

    def merged(self, other: "Counted") -> "Counted":
        """Return the counts of both."""
        if not len(self.values):
            return other
        values = np.union1d(self.values, other.values)
        counts = np.zeros(len(values), np.int64)
        for part in (self, other):
            counts[np.searchsorted(values, part.values)] += part.counts
        return Counted(values, counts)

    def plus(self, values: Floats) -> "Counted":
        """Return the counts with more values."""
        return self.merged(Counted.of(values)) if len(values) else self

    @cached_property
    def upto(self) -> NDArray[np.int64]:
        """Number of values at most as large as each one."""
        return np.cumsum(self.counts)

    def at(self, rank: int) -> float:
        """Return the value at a 1-based rank."""
        return float(self.values[np.searchsorted(self.upto, rank)])

    def parted(self) -> "tuple[Counted, Counted]":
        """Return the ``STEPS`` most frequent values of at least ``STRIDE``, the lower first; and the rest."""
        steps = self.counts >= STRIDE
        if np.count_nonzero(steps) > STEPS:
            steps[np.argsort(-self.counts, kind="stable")[STEPS:]] = False
        return Counted(self.values[steps], self.counts[steps]), Counted(self.values[~steps], self.counts[~steps])


@dataclass(frozen=True, eq=False)
class Mixed:
    """Counted steps beside a t-digest."""

    steps: Counted
    rest: TDigest

    @cached_property
    def below(self) -> Floats:
        """The weight below each step."""
        within = self.rest.cdf_vec(self.steps.values.tolist())
        return np.asarray(within) * self.rest.mass() + (self.steps.upto - self.steps.counts)

    def quantile(self, q: float) -> float:
        """Return the value at quantile ``q`` in [0, 1]."""
        mass = self.rest.mass()
        if not len(self.steps.values):
            return self.rest.quantile(q)
        at = q * (mass + float(self.steps.upto[-1]))
        step = int(np.searchsorted(self.below, at, side="right")) - 1
        if step >= 0 and at <= self.below[step] + self.steps.counts[step]:
            return float(self.steps.values[step])
        counted = float(self.steps.upto[step]) if step >= 0 else 0.0
        value = self.rest.quantile(min(1.0, max(0.0, (at - counted) / mass)))
        low = self.steps.values[step] if step >= 0 else -math.inf
        high = self.steps.values[step + 1] if step + 1 < len(self.steps.values) else math.inf
        return float(min(high, max(low, value)))


def _fed(digest: TDigest, counted: Counted) -> TDigest:
    if len(counted.values):
        digest.batch_update(counted.values.tolist(), counted.counts.tolist())
    return digest


_NONE = Counted(np.empty(0), np.empty(0, np.int64))


class Digest:
    """Values of one metric: exact up to ``CHUNK`` distinct ones, a t-digest beyond.

    Mergeable; the result depends on the order of merges, so merge in a fixed order. Values must be finite.
    """

    __slots__ = ("_answer", "_buffer", "_counted", "_merged", "_used", "count")

    def __init__(self) -> None:
        self.count = 0
        self._counted = _NONE
        self._merged: TDigest | None = None
        self._buffer: Floats = np.empty(8)
        self._used = 0
        self._answer: Mixed | Counted | None = None

    @property
    def exact(self) -> bool:
        """True while every value is still held as it is."""
        return self._merged is None

    def add(self, values: Floats) -> None:
        """Append finite values, in order."""
        n = len(values)
        if not n:
            return
        self.count += n
        self._answer = None
        if self._used + n <= CHUNK:
            self._append(values)
            return
        start = 0
        if self._used:
            start = CHUNK - self._used
            self._append(values[:start])
            self._absorb(self._buffer)
            self._used = 0
        full = start + (n - start - 1) // CHUNK * CHUNK
        for at in range(start, full, CHUNK):
            self._absorb(values[at : at + CHUNK])
        self._append(values[full:])

    def merge(self, other: "Digest") -> None:
        """Take in another digest's values; the other stays as it is."""
        if other._merged is not None:
            if self._merged is None:
                self._merged = other._merged.copy()
            else:
                self._merged.merge_inplace(other._merged)
        if len(other._counted.values) or not self.exact:
            self._take(other._counted)
        self.count += other.count - other._used
        self._answer = None
        self.add(other._buffer[: other._used])

    def quantile(self, q: float) -> float | None:
        """Return the value at quantile ``q`` in [0, 1]; None when empty."""
        if not self.count:
            return None
        answer = self._prepared()
        if isinstance(answer, Mixed):
            return answer.quantile(q)
        at = q * (self.count - 1)
        low = math.floor(at)
        below, above = answer.at(low + 1), answer.at(min(low + 2, self.count))
        return below + (above - below) * (at - low)

    def order_statistic(self, rank: int) -> float:
        """Return the value at a 1-based rank: exact while the digest is, else the digest's estimate."""
        answer = self._prepared()
        if isinstance(answer, Mixed):
            return answer.quantile((rank - 0.5) / self.count)
        return answer.at(rank)

    def _prepared(self) -> "Mixed | Counted":
        if self._answer is None:
            counted = self._counted.plus(self._buffer[: self._used])
            if self._merged is None:
                self._answer = counted
            else:
                steps, rest = counted.parted()
                self._answer = Mixed(steps, _fed(self._merged.copy(), rest))
        return self._answer

    def _append(self, values: Floats) -> None:
        end = self._used + len(values)
        if end > len(self._buffer):
            grown = np.empty(min(CHUNK, max(end, 2 * len(self._buffer))))
            grown[: self._used] = self._buffer[: self._used]
            self._buffer = grown
        self._buffer[self._used : end] = values
        self._used = end

    def _absorb(self, chunk: Floats) -> None:
        if self._merged is not None:
            ordered = np.sort(chunk + 0.0)
            if not (ordered[STRIDE - 1 :] == ordered[: 1 - STRIDE]).any():
                # The usual case: no value becomes a step. The long way takes three times as long.
                steps = self._counted.values
                more = np.searchsorted(ordered, steps, "right") - np.searchsorted(ordered, steps, "left")
                if more.any():
                    self._counted = Counted(steps, self._counted.counts + more)
                    ordered = ordered[~np.isin(ordered, steps)]
                self._merged.batch_update(ordered.tolist())
                return
        self._take(Counted.of(chunk))

    def _take(self, more: "Counted") -> None:
        self._counted = self._counted.merged(more)
        if self._merged is None:
            if len(self._counted.values) <= CHUNK:
                return
            self._merged = TDigest(max_centroids=CENTROIDS)
        self._counted, rest = self._counted.parted()
        _fed(self._merged, rest)

    def dump(self) -> tuple[int, bytes, bytes, bytes, bytes]:
        """Return the state: count, t-digest (maybe empty), counted values and counts, buffered values; <f8 and <i8."""
        return (
            self.count,
            b"" if self._merged is None else self._merged.to_bytes(),
            self._counted.values.astype("<f8").tobytes(),
            self._counted.counts.astype("<i8").tobytes(),
            self._buffer[: self._used].astype("<f8").tobytes(),
        )

    @classmethod
    def load(cls, state: Any) -> "Digest":
        """Read back what ``dump`` gave."""
        count, merged, values, counts, rest = state
        digest = cls()
        digest.count = count
        digest._merged = TDigest.from_bytes(merged) if merged else None
        if values:
            digest._counted = Counted(np.frombuffer(values, "<f8"), np.frombuffer(counts, "<i8"))
        digest._append(np.frombuffer(rest, "<f8"))
        return digest
