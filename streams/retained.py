"""Retained checkpoints: where a replay takes the work up in mid-history, as a worker does after a crash.

One of every gate and one of every partition are needed that fit together: a partition's may be older than a gate's, as
what a gate has had is dropped, but not newer.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemas.errors import StateError, TopicError
from streams.checkpoints import RETAINED_CHUNK_KEY, RETAINED_KEY, closing_of
from streams.history import Extent, History
from streams.panes import NEVER, Mark
from streams.settings import Settings


@dataclass(frozen=True)
class Place:
    """Where a retained checkpoint lies: the offsets of its first and its closing record."""

    first: int
    offset: int
    mark: Mark


@dataclass(frozen=True)
class Cut:
    """A checkpoint of every gate and of every source partition; None: nothing was done before, begin at offset 0."""

    gates: Sequence[Place | None]
    windows: Sequence[Place | None]

    @property
    def closed(self) -> int:
        """The panes, below this one, that every partition had closed for every gate."""
        return min(NEVER if gate is None else min(gate.mark.closed) for gate in self.gates)

    @property
    def begins(self) -> bool:
        """Whether some telemetry is read from its beginning."""
        return None in self.windows


@dataclass(frozen=True)
class Retained:
    """The retained checkpoints by gate and by source partition. ``firsts``: the telemetry's first offsets there are."""

    gates: Sequence[Sequence[Place]]
    windows: Sequence[Sequence[Place]]
    firsts: Sequence[int]

    @property
    def nothing(self) -> Cut:
        """Nothing is taken up."""
        return Cut([None], [None] * len(self.firsts))

    def latest(self, fits: Sequence[Callable[[Mark], bool]]) -> Cut | None:
        """The latest of each gate that fits, with partitions to go with them; None where telemetry is gone for that."""
        gates: list[Place | None] = []
        for places, its_fits in zip(self.gates, fits, strict=True):
            gates.append(max((p for p in places if its_fits(p.mark)), key=lambda place: place.mark.next, default=None))
        windows: list[Place | None] = []
        for partition, (places, first) in enumerate(zip(self.windows, self.firsts, strict=True)):
            known = min(NEVER if gate is None else gate.mark.closed[partition] for gate in gates)
            older = (p for p in places if p.mark.closed[0] <= known and p.mark.next >= first)
            found = max(older, key=lambda place: place.mark.next, default=None)
            if found is None and first > 0:
                return None
            windows.append(found)
        return Cut(gates, windows)

    def earliest(self) -> Cut | None:
        """The earliest after which all telemetry is there."""
        times = sorted({min(place.mark.closed) for places in self.gates for place in places})
        at = bisect_left(times, True, key=lambda time: self._by(time) is not None)
        return self._by(times[at]) if at < len(times) else None

    def _by(self, time: int) -> Cut | None:
        return self.latest([lambda mark: min(mark.closed) <= time] * len(self.gates))


def find(history: History, settings: Settings, firsts: Sequence[int], tell: Callable[[str], None]) -> Retained:
    """What workers have retained; nothing where they have no topics, which is told. Raises TopicError.

    ``firsts``: the first offset there is of each telemetry partition.
    """
    topics = settings.gate_checkpoints_topic, settings.window_checkpoints_topic
    missing = [topic for topic in topics if not history.has(topic)]
    if missing:
        tell(
            f"no checkpoints: topic {missing[0]} is not there, or not readable for this user; "
            "its name begins with the workers' TIDEGATE_APPLICATION_ID"
        )
        return Retained([[]], [[]] * len(firsts), firsts)
    gates, windows = (_places(history, topic) for topic in topics)
    if len(windows) != len(firsts):
        raise TopicError(
            f"topic {topics[1]} has {len(windows)} partitions, not {len(firsts)}, so it belongs to other telemetry; "
            "give the workers' TIDEGATE_APPLICATION_ID"
        )
    return Retained(gates, windows, firsts)


def _places(history: History, topic: str) -> list[list[Place]]:
    extent = history.extent(topic)
    found, chunks = defaultdict[int, list[Place]](list), defaultdict[int, set[int]](set)
    for run in history.read(extent):
        for record in run:
            if record.key is not None and record.key.startswith(RETAINED_CHUNK_KEY):
                chunks[record.partition].add(record.offset)
            if record.key is None or not record.key.startswith(RETAINED_KEY):
                continue
            try:
                closing = closing_of(record.value or b"")
            except StateError as error:
                raise TopicError(f"{topic}-{record.partition} offset {record.offset}: {error}") from None
            # Another that was thought dead may have written over its chunks.
            if chunks[record.partition].issuperset(closing.chunks):
                first = min([record.offset, *closing.chunks])
                found[record.partition].append(Place(first, record.offset, closing.mark))
    return [found[partition] for partition in sorted(extent.bounds)]


def load(history: History, settings: Settings, cut: Cut) -> tuple[list[bytes | None], list[bytes | None]]:
    """The states of the gates and of the source partitions. Raises TopicError if one is no longer whole."""
    return _states(history, settings.gate_checkpoints_topic, cut.gates), _states(
        history, settings.window_checkpoints_topic, cut.windows
    )


def _states(history: History, topic: str, places: Sequence[Place | None]) -> list[bytes | None]:
    return [None if place is None else _state(history, topic, n, place) for n, place in enumerate(places)]


def _state(history: History, topic: str, partition: int, place: Place) -> bytes:
    bounds = {partition: (place.first, place.offset + 1)}
    values = {r.offset: r.value or b"" for run in history.read(Extent(topic, bounds, bounds)) for r in run}
    where, state = f"{topic}-{partition} offset {place.offset}", None
    try:
        if place.offset in values:
            state = closing_of(values[place.offset]).whole(values)
    except StateError as error:
        raise TopicError(f"{where}: {error}") from None
    if state is None:
        raise TopicError(f"{where}: this retained checkpoint has gone by now; run it again")
    return state
