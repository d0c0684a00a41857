"""The manifests by which the regions of one flag assign, kept as they change: no decision looks at all regions."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

REGIONS_SHOWN = 32
"""Regions told of by name: telemetry may invent any number, and every region's decision would list all of them."""


@dataclass(frozen=True)
class Divergence:
    """The first regions by name with the manifest hashes that they assign by, and how many regions there are."""

    shown: dict[str, list[str]]
    count: int


class Regions:
    """The manifest hashes that each region's events came from, those of its current window or else of the one before.

    Derived from the units; no part of their state.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, tuple[str, ...]] = {}
        self._names: list[str] = []
        self._counts: Counter[str] = Counter()

    def note(self, region: str, hashes: Iterable[str]) -> None:
        """Set what a region assigns by; nothing for a region that does not say."""
        new, old = tuple(sorted(hashes)), self._hashes.get(region, ())
        if new == old:
            return
        self._counts.subtract(old)
        self._counts.update(new)
        for gone in old:
            if not self._counts[gone]:
                del self._counts[gone]
        if not old:
            insort(self._names, region)
        if new:
            self._hashes[region] = new
        else:
            del self._hashes[region]
            del self._names[bisect_left(self._names, region)]

    def diverging(self, region: str, hashes: Iterable[str]) -> Divergence | None:
        """Return the divergence that ``region`` sees, whose window's events came from ``hashes``; None without one."""
        mine, before = sorted(hashes), self._hashes.get(region, ())
        others = len(self._hashes) - bool(before)
        alone = sum(self._counts[name] == 1 for name in before)
        kinds = len(self._counts) - alone + sum(self._counts[name] - (name in before) == 0 for name in mine)
        if kinds < 2 or others + bool(mine) < 2:
            return None
        names = (name for name in self._names if name != region)
        shown = {name: list(self._hashes[name]) for name in islice(names, REGIONS_SHOWN)}
        if mine:
            shown[region] = mine
        first = dict(islice(sorted(shown.items()), REGIONS_SHOWN))
        return Divergence(first, others + bool(mine))
