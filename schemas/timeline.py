"""The manifest in force at each time: revisions in the order in which they take effect."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tidegate.schemas.manifest import Flag


@dataclass(frozen=True)
class Revision:
    """One accepted manifest. ``effective_from``: the start of the first pane it applies to, ms; ``by``: who signed.

    ``retires``: flags of earlier ones that it takes out of service, as whoever signed it says.
    """

    number: int
    effective_from: int
    flags: Mapping[str, Flag]
    by: str = ""
    retires: tuple[str, ...] = ()


class Timeline:
    """Revisions by the time from which they apply; before the first there is no flag at all.

    Raises ValueError if numbers and times do not rise together.
    """

    def __init__(self, revisions: Sequence[Revision] = ()) -> None:
        self.revisions = tuple(revisions)
        for one, other in pairwise(self.revisions):
            if not (one.number < other.number and one.effective_from <= other.effective_from):
                raise ValueError(f"revision {other.number} does not follow revision {one.number}")
        self.starts = [revision.effective_from for revision in self.revisions]

    @classmethod
    def of(cls, flags: Mapping[str, Flag]) -> "Timeline":
        """Return a single manifest that has always been in force."""
        return cls([Revision(0, 0, flags)])

    def index(self, ts: int) -> int:
        """Return the position of the revision in force at ``ts`` ms; -1 before the first."""
        return bisect_right(self.starts, ts) - 1

    def flags(self, ts: int) -> Mapping[str, Flag]:
        """Return the flags in force at ``ts`` ms."""
        at = self.index(ts)
        return self.revisions[at].flags if at >= 0 else {}
