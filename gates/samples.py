"""Samples of 64-bit ids, thinned by hash so that merging in any order gives the same bytes."""

from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidegate.gates.arrays import Ids

SAMPLE_CAP = 1 << 17
"""Sticky ids held for one arm of one stage; beyond it every second, fourth, … id by hash is followed."""
REQUESTS_CAP = 1 << 15
"""Ids of requests held for one arm and source of one stage, thinned the same way."""

KEYS_CAP = 1 << 14
"""Idempotency keys held for one unit and window; beyond it every second, fourth, … key by hash is followed."""


class IdSample:
    """A set of 64-bit hashes of ids, thinned by hash value once it outgrows ``cap``.

    Level k keeps the hashes below 2^(64-k), the same ones whatever the order of arrival, so questions about the
    set are answered exactly for one id in 2^k.
    """

    __slots__ = ("_ids", "_level", "_new", "_waiting")

    def __init__(self, level: int = 0, ids: Ids | None = None) -> None:
        self._level = level
        self._ids: Ids = np.empty(0, np.uint64) if ids is None else ids
        self._new: list[Ids] = []
        self._waiting = 0

    def add(self, ids: Ids) -> None:
        """Add hashes, repeats allowed."""
        if len(ids):
            self._new.append(ids)
            self._waiting += len(ids)
            if self._waiting > max(4096, len(self._ids)):
                self._settle()

    def merge(self, other: "IdSample") -> None:
        """Add another sample's ids; the coarser of the two levels holds."""
        # Not self.level: what waits here need not be sorted yet, and can only make the level higher.
        if other.level > self._level:
            self._level = other.level
            self._ids = self._thin(self._ids)
        self.add(other.ids)

    def drop(self, ids: Ids) -> None:
        """Forget some hashes, ascending."""
        known = self.ids
        self._ids = known[~np.isin(known, ids, assume_unique=True)]

    @property
    def cap(self) -> int:
        """Most hashes that are kept."""
        return SAMPLE_CAP

    @property
    def level(self) -> int:
        """One hash in 2^level is kept."""
        self._settle()
        return self._level

    @property
    def ids(self) -> Ids:
        """The distinct hashes, ascending."""
        self._settle()
        return self._ids

    def within(self, level: int) -> Ids:
        """Return the distinct hashes that a sample of that (coarser or equal) level keeps."""
        ids = self.ids
        return ids[: np.searchsorted(ids, kept_below(level), side="right")]

    def _settle(self) -> None:
        if not self._new:
            return
        # Levels only grow with the set, so thinning late or early ends at the same level.
        fresh = np.unique(self._thin(np.concatenate(self._new)))
        if len(self._ids):
            merged = np.concatenate([self._ids, fresh])
            # Two ascending runs: a stable sort merges them.
            merged.sort(kind="stable")
            fresh = merged[np.diff(merged, prepend=~merged[:1]) != 0]
        self._ids = fresh
        self._new, self._waiting = [], 0
        self.shrink(self.cap)

    def shrink(self, most: int) -> None:
        """Thin until at most so many hashes are left."""
        self._settle()
        while len(self._ids) > most:
            self._level += 1
            self._ids = self._thin(self._ids)

    def _thin(self, ids: Ids) -> Ids:
        return ids[ids <= kept_below(self._level)] if self._level else ids

    def dump(self) -> tuple[int, bytes]:
        """Level and ascending little-endian hashes."""
        return self.level, self.ids.astype("<u8").tobytes()

    @classmethod
    def load(cls, state: Any) -> Self:
        """Read back what ``dump`` gave."""
        level, ids = state
        return cls(level, np.frombuffer(ids, "<u8"))


def kept_below(level: int) -> np.uint64:
    """Return the largest hash that is kept at a level."""
    return np.uint64((1 << (64 - level)) - 1)


class RequestSample(IdSample):
    """A set of hashes of request ids."""

    __slots__ = ()

    @property
    def cap(self) -> int:
        """Most hashes that are kept."""
        return REQUESTS_CAP

    def knows(self, ids: Ids, level: int) -> NDArray[np.bool_]:
        """Tell for each hash whether it is in the set as sampled at a level."""
        found = self.within(level)
        if not len(found):
            return np.zeros(len(ids), np.bool_)
        at = np.minimum(np.searchsorted(found, ids), len(found) - 1)
        known: NDArray[np.bool_] = found[at] == ids
        return known


def shared(one: IdSample, other: IdSample) -> tuple[Ids, int]:
    """Return the hashes in both samples, and the level at which they were looked at."""
    level = max(one.level, other.level)
    return np.intersect1d(one.within(level), other.within(level), assume_unique=True), level


class Effects(msgspec.Struct, array_like=True):
    """The effect of each idempotency key, both as 64-bit hashes, thinned by the key's hash like ``IdSample``.

    ``conflicts``: keys that showed a second effect, as a set that keeps its order in a checkpoint.
    """

    level: int = 0
    effects: dict[int, int] = msgspec.field(default_factory=dict)
    conflicts: dict[int, None] = msgspec.field(default_factory=dict)

    def add(self, key: int, effect: int) -> None:
        """Note that a key had an effect."""
        if key < 1 << (64 - self.level):
            if self.effects.setdefault(key, effect) != effect:
                self.conflicts[key] = None
                # Which effect is held must not depend on which came first.
                self.effects[key] = min(self.effects[key], effect)
            self._thin()

    def merge(self, other: "Effects") -> None:
        """Add another span's keys."""
        if other.level > self.level:
            self.level = other.level
            self._drop()
        self.conflicts |= {key: None for key in other.conflicts if key < 1 << (64 - self.level)}
        for key, effect in other.effects.items():
            self.add(key, effect)

    def _thin(self) -> None:
        while len(self.effects) > KEYS_CAP:
            self.level += 1
            self._drop()

    def _drop(self) -> None:
        bound = 1 << (64 - self.level)
        self.effects = {key: effect for key, effect in self.effects.items() if key < bound}
        self.conflicts = {key: None for key in self.conflicts if key < bound}
