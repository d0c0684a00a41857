"""Consecutive records of one partition, and how far a state is."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

NEVER = -(2**53)
"""Before the first valid record no pane is closed and no time is known."""


@dataclass(frozen=True)
class Run:
    """Consecutive records of one partition. ``timestamps``: the records' own, ms, -1 or None where there are none.

    The log holds nothing else from ``since`` on and before ``until``; None: from the first record, up to the last. Its
    offsets have gaps where compaction took records out, and where a transaction has its mark or was taken back.
    ``lost``: from there on and before ``begin``, the worker's topic had deleted what was not read yet.
    """

    first: int
    values: Sequence[bytes | None]
    timestamps: Sequence[int] | None = None
    since: int | None = None
    until: int | None = None
    lost: int | None = None

    @property
    def begin(self) -> int:
        """The offset from which on it has everything."""
        return self.first if self.since is None else self.since

    @property
    def next(self) -> int:
        """The offset after all that it tells of."""
        return self.first + len(self.values) if self.until is None else self.until


class Position(msgspec.Struct, array_like=True, frozen=True):
    """The position that a state has reached, to choose one without reading it.

    ``next``: the offset to read on from. ``closed``: panes below it are closed, by source partition; of a source
    partition's own state only that one. ``operations_next``: of a gate, the operation to carry out next, and
    ``switched``: the revision that last turned each kill switch off there.
    """

    next: int
    closed: tuple[int, ...]
    operations_next: int = 0
    switched: dict[str, int] = {}
