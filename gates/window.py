"""One window of one unit: the sums of both arms, and what was seen around them."""

import msgspec

from gates.digest import Digest
from gates.sums import COUNTERS, Sums

SERVED = ("traffic", "gold")
"""Sources that latency, errors, tools and cost are read from, merged in this order."""
REQUEST_SOURCES = ("traffic", "gold", "shadow")
"""Sources that pins are read from."""


class Arm(msgspec.Struct, array_like=True):
    """One arm's sums by source (traffic, gold, shadow)."""

    sources: dict[str, Sums] = msgspec.field(default_factory=dict)

    def of(self, source: str) -> Sums:
        """The sums of one source, made on first use."""
        return self.sources.setdefault(source, Sums())

    def total(self, counter: str) -> int:
        """A counter over the served sources."""
        at = COUNTERS.index(counter)
        return sum(self.sources[s].counters[at] for s in SERVED if s in self.sources)

    def served(self) -> Sums:
        """Counters and latencies over the served sources."""
        total = Sums()
        for source in SERVED:
            if source in self.sources:
                total.count(self.sources[source].counters)
                total.latency.merge(self.sources[source].latency)
        return total

    @property
    def latency(self) -> Digest:
        """Latencies of the served sources, ms."""
        return self.served().latency

    def in_order(self) -> "Arm":
        """The same, its sources by name: bytes do not tell how records came in runs."""
        return Arm({source: self.sources[source] for source in sorted(self.sources)})

    @property
    def accepted(self) -> int:
        """Events of any kind and source."""
        return sum(s["requests"] + s["exposures"] for s in self.sources.values())


class Offsets(msgspec.Struct, array_like=True):
    """First and last source offset of a unit's events in one partition."""

    first: int
    last: int


class PaneUnit(msgspec.Struct, array_like=True):
    """What one partition saw of one unit in one pane."""

    arms: dict[str, Arm] = msgspec.field(default_factory=dict)
    late: int = 0
    duplicates: int = 0
    offsets: Offsets | None = None

    def of(self, arm: str) -> Arm:
        """One arm, made on first use."""
        return self.arms.setdefault(arm, Arm())

    def in_order(self) -> "PaneUnit":
        """The same, its arms by name."""
        arms = {arm: self.arms[arm].in_order() for arm in sorted(self.arms)}
        return PaneUnit(arms, self.late, self.duplicates, self.offsets)

    def saw(self, first: int, last: int) -> None:
        """Widen the range of source offsets."""
        if self.offsets is None:
            self.offsets = Offsets(first, last)
        else:
            self.offsets = Offsets(min(first, self.offsets.first), max(last, self.offsets.last))

    @property
    def accepted(self) -> int:
        """Events that count for the unit."""
        return sum(arm.accepted for arm in self.arms.values())


class Window(msgspec.Struct, array_like=True):
    """The merged panes of [start, end), ms."""

    start: int
    end: int
    baseline: Arm = msgspec.field(default_factory=Arm)
    canary: Arm = msgspec.field(default_factory=Arm)
    late: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    offsets: dict[int, Offsets] = msgspec.field(default_factory=dict)

    def merge(self, partition: int, seen: PaneUnit) -> None:
        """Add what one partition saw; call in (pane, partition) order."""
        for name, arm in (("baseline", self.baseline), ("canary", self.canary)):
            if name in seen.arms:
                for source in REQUEST_SOURCES:
                    if source in seen.arms[name].sources:
                        arm.of(source).merge(seen.arms[name].sources[source])
        self.late += seen.late
        self.duplicates += seen.duplicates
        if seen.offsets is not None:
            known = self.offsets.get(partition, seen.offsets)
            self.offsets[partition] = Offsets(min(known.first, seen.offsets.first), max(known.last, seen.offsets.last))

    @property
    def accepted(self) -> int:
        """Events that count for the unit."""
        return self.baseline.accepted + self.canary.accepted
