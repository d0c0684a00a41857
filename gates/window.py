"""One window of one unit: the sums of both arms, and what was seen around them."""

from collections.abc import Iterable
from typing import Literal

import msgspec

from tidegate.gates.digest import Digest
from tidegate.gates.labels import Labels
from tidegate.gates.samples import Effects
from tidegate.gates.sums import COUNTERS, PANE_REQUESTS_CAP, WORST, Sums, Worst

SERVED = ("traffic", "gold")
"""Sources that latency, errors, tools and cost are read from, merged in this order."""
REQUEST_SOURCES = ("traffic", "gold", "shadow")
"""Sources that pins are read from."""
LABELS = {"traffic": "label", "gold": "gold_label", "shadow": "shadow_label"}
"""The source under which the labels of a source's requests are kept."""
CLIENT = "client"
"""The source of rows whose assignment a client evaluated: they are no evidence."""
SOURCES = (*REQUEST_SOURCES, *LABELS.values(), CLIENT)

NAMESPACES_CAP = 1024
"""Cache namespaces followed in one unit and window; later ones are only counted."""
HASHES_CAP = 8
"""Manifest hashes told apart in one unit and window; later ones count as the last."""
DEAD_LETTERS_MAX = 0.01
"""Share of dead letters above which a window, or what a partition brought to it, is not whole."""
EXAMPLES = 3
"""Places told of each finding."""


class Arm(msgspec.Struct, array_like=True):
    """One arm's sums by source (traffic, gold, shadow)."""

    sources: dict[str, Sums] = msgspec.field(default_factory=dict)

    def of(self, source: str) -> Sums:
        """Return the sums of one source, made on first use."""
        known = self.sources.get(source)
        if known is None:  # setdefault would make one that is thrown away, each time
            known = self.sources[source] = Sums()
        return known

    def merge(self, other: "Arm") -> None:
        """Add another span's sums."""
        for source in SOURCES:
            if source in other.sources:
                self.of(source).merge(other.sources[source])

    @classmethod
    def gathered(cls, *arms: "Arm") -> "Arm":
        """Return the arm over several windows: bounded as one is, for λ groups and pins are not kept by name."""
        whole = cls()
        for source in SOURCES:
            for arm in arms:
                if source in arm.sources:
                    whole.of(source).gather(arm.sources[source])
        return whole

    def has(self, source: str, counter: str) -> bool:
        """Tell whether a source has counted any of a counter."""
        return source in self.sources and self.sources[source][counter] > 0

    def worst(self, metric: str, sources: Iterable[str]) -> list[Worst]:
        """Return the worst events of a metric over some sources."""
        found = [worst for s in sources if s in self.sources for worst in self.sources[s].worst.get(metric, ())]
        return sorted(found, key=lambda worst: worst.rank)[:WORST]

    def total(self, counter: str) -> int:
        """Return a counter over the served sources."""
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
        """Return the same to send on, sources and worst events by name: bytes do not tell how records came in runs."""
        for sums in self.sources.values():
            sums.worst = dict(sorted(sums.worst.items()))
            sums.requests.shrink(PANE_REQUESTS_CAP)
        return Arm({source: self.sources[source] for source in sorted(self.sources)})

    @property
    def accepted(self) -> int:
        """Events of any kind and source."""
        kinds = ("requests", "exposures", "labels", "labels_foreign", "labels_not_followed")
        return sum(s[kind] for s in self.sources.values() for kind in kinds)


class Finds(msgspec.Struct, array_like=True):
    """The count of a finding, and its first places: (partition, offset, what)."""

    count: int = 0
    first: list[tuple[int, int, str]] = msgspec.field(default_factory=list)

    def add(self, partition: int, offset: int, what: str) -> None:
        """Add one finding."""
        self.merge(Finds(1, [(partition, offset, what)]))

    def merge(self, other: "Finds") -> None:
        """Add the findings of a later span; keep the first ``EXAMPLES`` of both."""
        self.count += other.count
        if len(self.first) < EXAMPLES:
            self.first = [*self.first, *other.first][:EXAMPLES]


class Detail(msgspec.Struct, array_like=True):
    """Findings of single rows about the evidence itself.

    ``namespaces``: by cache namespace, the first two sets of pins it was seen under. ``hashes``: rows by the manifest
    hash that their assignment came from. ``misplaced``: by arm, traffic rows that a canary weight of each stage would
    have sent to the other arm.
    """

    namespaces: dict[str, list[str]] = msgspec.field(default_factory=dict)
    namespaces_dropped: int = 0
    effects: Effects = msgspec.field(default_factory=Effects)
    unfenced: Finds = msgspec.field(default_factory=Finds)
    tool_loops: Finds = msgspec.field(default_factory=Finds)
    hashes: dict[str, int] = msgspec.field(default_factory=dict)
    misplaced: dict[str, list[int]] = msgspec.field(default_factory=dict)

    def see_namespace(self, name: str, pins: list[str]) -> None:
        """Note the sets of pins that a namespace was used under."""
        known = self.namespaces.get(name)
        if known is not None:
            self.namespaces[name] = sorted({*known, *pins})[:2]
        elif len(self.namespaces) < NAMESPACES_CAP:
            self.namespaces[name] = sorted(pins)[:2]
        else:
            self.namespaces_dropped += 1

    def see_hash(self, name: str, count: int) -> None:
        """Note rows under a manifest hash."""
        if name not in self.hashes and len(self.hashes) == HASHES_CAP:
            name = next(reversed(self.hashes))
        self.hashes[name] = self.hashes.get(name, 0) + count

    def misplace(self, arm: str, counts: list[int]) -> None:
        """Add rows by stage that are in the wrong arm."""
        known = self.misplaced.get(arm)
        self.misplaced[arm] = counts if known is None else [a + b for a, b in zip(known, counts, strict=True)]

    def merge(self, other: "Detail") -> None:
        """Add the findings of a later span."""
        for name, pins in other.namespaces.items():
            self.see_namespace(name, pins)
        self.namespaces_dropped += other.namespaces_dropped
        self.effects.merge(other.effects)
        self.unfenced.merge(other.unfenced)
        self.tool_loops.merge(other.tool_loops)
        for name, count in other.hashes.items():
            self.see_hash(name, count)
        for arm, counts in other.misplaced.items():
            self.misplace(arm, counts)


class Offsets(msgspec.Struct, array_like=True):
    """First and last source offset of a unit's events in one partition."""

    first: int
    last: int


class PaneUnit(msgspec.Struct, array_like=True):
    """Everything that one partition saw of one unit in one pane.

    ``behind``: by their own pane, the late events that came while this one was open; ``left_out``: how many more did.
    ``dead_letters``: those that say they are of this unit. ``labels``: by arm and source of what they label.
    """

    arms: dict[str, Arm] = msgspec.field(default_factory=dict)
    late: int = 0
    duplicates: int = 0
    offsets: Offsets | None = None
    detail: Detail | None = None
    behind: "dict[int, PaneUnit]" = msgspec.field(default_factory=dict)
    left_out: int = 0
    dead_letters: int = 0
    labels: dict[str, dict[str, Labels]] = msgspec.field(default_factory=dict)

    def details(self) -> Detail:
        """Return the findings of single rows, made on first use."""
        if self.detail is None:
            self.detail = Detail()
        return self.detail

    def of(self, arm: str) -> Arm:
        """Return one arm, made on first use."""
        known = self.arms.get(arm)
        if known is None:
            known = self.arms[arm] = Arm()
        return known

    def labels_of(self, arm: str, source: str) -> Labels:
        """Return the labels of one arm and source, made on first use."""
        return self.labels.setdefault(arm, {}).setdefault(source, Labels())

    def in_order(self) -> "PaneUnit":
        """Return the same, its arms by name."""
        labels = {arm: dict(sorted(self.labels[arm].items())) for arm in sorted(self.labels)}
        arms = {arm: self.arms[arm].in_order() for arm in sorted(self.arms)}
        behind = {pane: self.behind[pane].in_order() for pane in sorted(self.behind)}
        return PaneUnit(
            arms,
            self.late,
            self.duplicates,
            self.offsets,
            self.detail,
            behind,
            self.left_out,
            self.dead_letters,
            labels,
        )

    def bounded(self, most: int) -> "PaneUnit":
        """Return the same, or if its names take more than ``most`` bytes, all of it as dead letters of its own."""
        if self.unbounded_bytes <= most:
            return self
        return PaneUnit(late=self.late, duplicates=self.duplicates, dead_letters=self.dead_letters + self.accepted)

    def saw(self, first: int, last: int) -> None:
        """Widen the range of source offsets."""
        if self.offsets is None:
            self.offsets = Offsets(first, last)
        else:
            self.offsets = Offsets(min(first, self.offsets.first), max(last, self.offsets.last))

    @property
    def accepted(self) -> int:
        """Events that count for the unit, and labels that may."""
        said = sum(labels.count for by_source in self.labels.values() for labels in by_source.values())
        return said + sum(arm.accepted for arm in self.arms.values())

    @property
    def unbounded_bytes(self) -> int:
        """Bytes that grow with the telemetry's own names: pins, namespaces, event ids, probe groups."""
        size = sum(labels.unbounded_bytes for by_source in self.labels.values() for labels in by_source.values())
        for arm in self.arms.values():
            for sums in arm.sources.values():
                size += sum(len(pins.encode()) for pins in sums.pins) + 12 * len(sums.groups)
                size += sum(len(one.event_id.encode()) for found in sums.worst.values() for one in found)
        if self.detail is not None:
            for name, pins in self.detail.namespaces.items():
                size += len(name.encode()) + sum(len(one.encode()) for one in pins)
        return size + sum(late.unbounded_bytes for late in self.behind.values())


class Read(msgspec.Struct, array_like=True):
    """The records of a partition in a span of time: accepted events, and dead letters that name no unit."""

    records: int = 0
    dead_letters: int = 0

    @property
    def spoilt(self) -> bool:
        """True if dead letters are more than a small share."""
        return self.dead_letters > DEAD_LETTERS_MAX * (self.records + self.dead_letters)


class LostRange(msgspec.Struct, array_like=True, frozen=True):
    """Records that a topic deleted before they were read: offsets ``first`` to before ``next`` of a log's partition."""

    log: Literal["telemetry", "partials"]
    partition: int
    first: int
    next: int


class UnitWindow(msgspec.Struct, array_like=True):
    """The merged panes of [start, end), ms.

    ``ids``: sticky ids of traffic seen, once a pane and partition; ``orphans``: those of them never exposed.
    ``behind``: the window's late events, which it is not judged by; ``left_out``: those that may be its own, and were
    too many to be looked at. ``unexpected``: users whom the canary served at weight 0. ``dead_letters``:
    of this unit, ``partitions``: what each one brought to all units. ``lost``: records that nobody read, some of which
    may be the window's.
    """

    start: int
    end: int
    baseline: Arm = msgspec.field(default_factory=Arm)
    canary: Arm = msgspec.field(default_factory=Arm)
    late: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    offsets: dict[int, Offsets] = msgspec.field(default_factory=dict)
    detail: Detail = msgspec.field(default_factory=Detail)
    orphans: int = 0
    ids: int = 0
    behind: "UnitWindow | None" = None
    left_out: int = 0
    unexpected: int = 0
    partitions: dict[int, Read] = msgspec.field(default_factory=dict)
    lost: list[LostRange] = msgspec.field(default_factory=list)

    def lose(self, lost: LostRange) -> None:
        """Note that records of the window may be among these."""
        if lost not in self.lost:
            self.lost.append(lost)

    def merge(self, partition: int, seen: PaneUnit) -> None:
        """Add what one partition saw, but for labels; call in (pane, partition) order."""
        for name, arm in (("baseline", self.baseline), ("canary", self.canary)):
            if name in seen.arms:
                arm.merge(seen.arms[name])
        if seen.detail is not None:
            self.detail.merge(seen.detail)
        self.late += seen.late
        self.duplicates += seen.duplicates
        self.dead_letters += seen.dead_letters
        if seen.offsets is not None:
            self._widen(partition, seen.offsets)

    def arm(self, name: str) -> Arm:
        """Return an arm by name."""
        return self.canary if name == "canary" else self.baseline

    def read(self, partition: int, records: int, dead_letters: int) -> None:
        """Note what a partition brought in a pane: accepted events, and dead letters that anybody may have sent."""
        known = self.partitions.setdefault(partition, Read())
        known.records += records
        known.dead_letters += dead_letters

    @property
    def dead(self) -> int:
        """Dead letters of the unit, and those of nobody's where they are more than a small share of a partition."""
        return self.dead_letters + sum(read.dead_letters for read in self.partitions.values() if read.spoilt)

    def _widen(self, partition: int, seen: Offsets) -> None:
        known = self.offsets.get(partition, seen)
        self.offsets[partition] = Offsets(min(known.first, seen.first), max(known.last, seen.last))

    def note_late(self, partition: int, pane: int, seen: PaneUnit) -> "UnitWindow | None":
        """Keep late events of a pane that starts at ``pane`` ms, if it is one of this window; where they are kept."""
        if not self.start <= pane < self.end:
            return None
        if self.behind is None:
            self.behind = UnitWindow(self.start, self.end)
        self.behind.merge(partition, seen)
        return self.behind

    def made_whole(self) -> "UnitWindow":
        """Return a window of its own with the late events counted in."""
        whole = UnitWindow(
            self.start, self.end, late=self.late, duplicates=self.duplicates, dead_letters=self.dead_letters
        )
        whole.partitions = self.partitions
        for part in (self, self.behind or UnitWindow(self.start, self.end)):
            whole.baseline.merge(part.baseline)
            whole.canary.merge(part.canary)
            whole.detail.merge(part.detail)
            for partition, seen in part.offsets.items():
                whole._widen(partition, seen)
        return whole

    @property
    def accepted(self) -> int:
        """Events that count for the unit."""
        return self.baseline.accepted + self.canary.accepted
