"""A t-digest that gives the same bits for the same values in the same order.

fastdigest (t-digest of Dunning and Ertl, in Rust) is deterministic as long as it is fed in the same portions, so
values pass through a buffer of exactly ``CHUNK`` and the unmerged rest is part of the state. Up to one chunk the
digest is exact: sorted values, linear interpolation between order statistics (type 7 of Hyndman and Fan, 1996).
"""

import math
from typing import Any

import numpy as np
from fastdigest import TDigest
from numpy.typing import NDArray

CHUNK = 512
CENTROIDS = 200
SKETCH = f"fastdigest-{CENTROIDS}x{CHUNK}/1"
RANK_ERROR = 0.005
"""Largest error of a rank, as a share of the count, once a digest is no longer exact."""

Floats = NDArray[np.float64]


class Digest:
    """Values of one metric: exact up to ``CHUNK`` of them, a t-digest beyond.

    Mergeable; the result depends on the order of merges, so merge in a fixed order. Values must be finite.
    """

    __slots__ = ("_answer", "_buffer", "_merged", "_used", "count")

    def __init__(self) -> None:
        self.count = 0
        self._merged: TDigest | None = None
        self._buffer: Floats = np.empty(8)
        self._used = 0
        self._answer: TDigest | Floats | None = None

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
            self.count += other.count - other._used
            self._answer = None
        self.add(other._buffer[: other._used])

    def quantile(self, q: float) -> float | None:
        """The value at quantile ``q`` in [0, 1]; None when empty."""
        if not self.count:
            return None
        answer = self._prepared()
        if isinstance(answer, TDigest):
            return answer.quantile(q)
        at = q * (self.count - 1)
        low = math.floor(at)
        below, above = float(answer[low]), float(answer[min(low + 1, self.count - 1)])
        return below + (above - below) * (at - low)

    def order_statistic(self, rank: int) -> float:
        """The value at a 1-based rank: exact while the digest is, else the digest's estimate."""
        answer = self._prepared()
        if isinstance(answer, TDigest):
            return answer.quantile((rank - 0.5) / self.count)
        return float(answer[rank - 1])

    def _prepared(self) -> TDigest | Floats:
        if self._answer is None:
            rest = self._buffer[: self._used]
            if self._merged is None:
                self._answer = np.sort(rest, kind="stable")
            else:
                self._answer = self._merged.copy()
                if len(rest):
                    self._answer.batch_update(rest.tolist())
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
        if self._merged is None:
            self._merged = TDigest(max_centroids=CENTROIDS)
        self._merged.batch_update(chunk.tolist())

    def dump(self) -> tuple[int, bytes, bytes]:
        """The state: count, merged part (empty if none), buffered values as little-endian doubles."""
        merged = b"" if self._merged is None else self._merged.to_bytes()
        return self.count, merged, self._buffer[: self._used].astype("<f8").tobytes()

    @classmethod
    def load(cls, state: Any) -> "Digest":
        """Read back what ``dump`` gave."""
        count, merged, rest = state
        digest = cls()
        digest.count = count
        digest._merged = TDigest.from_bytes(merged) if merged else None
        digest._append(np.frombuffer(rest, "<f8"))
        return digest
