"""Retained checkpoints: where a replay takes the work up in mid-history, as a worker does after a crash.

Workers copy a state now and then to a topic that keeps it for as long as telemetry is kept: its parts to one partition,
and to the other, the index, a small entry that says what they are. Auditors read the index, and the parts of what they
choose: a checkpoint of every gate and of every source partition that fit together. A partition's may be older than a
gate's, as what a gate has had is dropped, but not newer.
"""

import hashlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import msgspec
from aiokafka.structs import RecordMetadata

from tidegate.schemas.errors import TopicError
from tidegate.streams.engine.runs import NEVER, Position
from tidegate.streams.kafka.history import Extent, History
from tidegate.streams.kafka.turns import state_sha256
from tidegate.streams.report.text import many
from tidegate.streams.settings import Settings

INDEX, PARTS = 0, 1
"""The partitions of the topic."""
PART_BYTES = 512 * 1024

SendRetained = Callable[[int, bytes], Awaitable[Awaitable[RecordMetadata]]]
"""Send a value to a partition of the topic; awaiting the result's result confirms it."""


Agent = Literal["gate", "window"]


class Shape(msgspec.Struct, array_like=True, frozen=True):
    """The deployment that a state is of: its telemetry topic with its partitions, its gates, pane and lateness, ms."""

    telemetry: str
    partitions: int
    gates: int
    pane_ms: int
    lateness_ms: int


class RetainedEntry(msgspec.Struct, array_like=True, frozen=True):
    """A retained checkpoint, as the index has it. ``parts``: the offsets of the state's parts; ``sha256``: of all."""

    agent: Agent
    partition: int
    shape: Shape
    mark: Position
    parts: tuple[int, ...] = ()
    sha256: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RetainedEntry)


async def retain(send: SendRetained, entry: RetainedEntry, state: bytes) -> None:
    """Write a state that ``entry`` tells of, first its parts. A crash in between leaves parts that nobody asks for."""
    starts = range(0, max(len(state), 1), PART_BYTES)
    parts = [await send(PARTS, state[at : at + PART_BYTES]) for at in starts]
    offsets = tuple([(await part).offset for part in parts])
    whole = msgspec.structs.replace(entry, parts=offsets, sha256=await state_sha256(state))
    await (await send(INDEX, _encoder.encode(whole)))


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint of every gate and of every source partition; None: nothing was done before, begin at offset 0."""

    gates: Sequence[RetainedEntry | None]
    windows: Sequence[RetainedEntry | None]

    @property
    def closed(self) -> int:
        """The panes, below this one, that every partition had closed for every gate."""
        return min(NEVER if gate is None else min(gate.mark.closed) for gate in self.gates)

    @property
    def from_beginning(self) -> bool:
        """True if some telemetry is read from its beginning."""
        return None in self.windows


@dataclass(frozen=True)
class Retained:
    """The retained checkpoints by gate and by source partition. ``firsts``: the telemetry's first offsets there are."""

    gates: Sequence[Sequence[RetainedEntry]]
    windows: Sequence[Sequence[RetainedEntry]]
    firsts: Sequence[int]

    @classmethod
    def none(cls, firsts: Sequence[int]) -> Self:
        """Nothing was."""
        return cls([[]], [[]] * len(firsts), firsts)

    @property
    def nothing(self) -> ResumePoint:
        """Nothing is taken up."""
        return ResumePoint([None], [None] * len(self.firsts))

    def latest(self, fits: Sequence[Callable[[Position], bool]]) -> ResumePoint | None:
        """Return the latest of each gate that fits, and partitions to go with them; None if telemetry is gone."""
        gates = [
            _furthest(entry for entry in entries if its_fits(entry.mark))
            for entries, its_fits in zip(self.gates, fits, strict=True)
        ]
        windows: list[RetainedEntry | None] = []
        for partition, (entries, first) in enumerate(zip(self.windows, self.firsts, strict=True)):
            known = min(NEVER if gate is None else gate.mark.closed[partition] for gate in gates)
            older = (entry for entry in entries if entry.mark.closed[0] <= known and entry.mark.next >= first)
            found = _furthest(older)
            if found is None and first > 0:
                return None
            windows.append(found)
        return ResumePoint(gates, windows)

    def earliest(self) -> ResumePoint | None:
        """Return the earliest after which all telemetry is there."""
        times = sorted({min(entry.mark.closed) for entries in self.gates for entry in entries})
        at = bisect_left(times, True, key=lambda time: self._by(time) is not None)
        return self._by(times[at]) if at < len(times) else None

    def _by(self, time: int) -> ResumePoint | None:
        return self.latest([lambda mark: min(mark.closed) <= time] * len(self.gates))


def _furthest(entries: Iterable[RetainedEntry]) -> RetainedEntry | None:
    return max(entries, key=lambda entry: entry.mark.next, default=None)


def find(
    history: History, settings: Settings, firsts: Sequence[int], tell: Callable[[str], None] = lambda _: None
) -> Retained:
    """Find the checkpoints that workers have retained; if there are none, ``tell`` is told why.

    ``firsts``: the first offset there is of each telemetry partition. Raises TopicError if it is of another deployment.
    """
    topic = settings.retained_topic
    if not history.has(topic):
        tell(
            f"no retained checkpoints: topic {topic} is not there, or not readable for this user; its name begins with "
            "the workers' TIDEGATE_APPLICATION_ID"
        )
        return Retained.none(firsts)
    extent, entries, garbage = history.extent(topic), list[RetainedEntry](), 0
    first_part = extent.kept.get(PARTS, (0, 0))[0]
    for run in history.read(extent.only(INDEX)):
        for record in run:
            try:
                entry = _decoder.decode(record.value or b"")
            except msgspec.MsgspecError:
                garbage += 1
                continue
            if min(entry.parts, default=-1) >= first_part:
                entries.append(entry)
    if garbage:
        tell(f"{many(garbage, 'record')} of {topic} could not be read as a retained checkpoint")
    if not entries:
        tell(f"no retained checkpoints: topic {topic} has none")
        return Retained.none(firsts)
    found = {entry.shape for entry in entries}
    own = Shape(settings.telemetry_topic, len(firsts), entries[-1].shape.gates, settings.pane, settings.lateness)
    if found != {own}:
        raise TopicError(
            f"{topic} has checkpoints of other workers: (telemetry topic, partitions, gates, pane ms, lateness ms) was "
            f"{_told(found - {own})}, not {_told({own})}; give their --pane, --lateness, TIDEGATE_TOPIC_PREFIX and "
            "TIDEGATE_APPLICATION_ID"
        )
    by_place: dict[tuple[str, int], list[RetainedEntry]] = defaultdict(list)
    for entry in entries:
        by_place[entry.agent, entry.partition].append(entry)
    gates, windows = (
        [by_place["gate", n] for n in range(own.gates)],
        [by_place["window", n] for n in range(len(firsts))],
    )
    return Retained(gates, windows, firsts)


def _told(shapes: set[Shape]) -> str:
    return " or ".join(str(msgspec.structs.astuple(shape)) for shape in shapes)


def load(history: History, settings: Settings, cut: ResumePoint) -> tuple[list[bytes | None], list[bytes | None]]:
    """Return the states of the gates and of the source partitions. Raises TopicError if one is no longer whole."""
    topic = settings.retained_topic
    gates, windows = (
        [None if entry is None else _state(history, topic, entry) for entry in entries]
        for entries in (cut.gates, cut.windows)
    )
    return gates, windows


def _state(history: History, topic: str, entry: RetainedEntry) -> bytes:
    wanted, values = set(entry.parts), dict[int, bytes]()
    bounds = {PARTS: (min(wanted), max(wanted) + 1)}
    for run in history.read(Extent(topic, bounds, bounds)):
        values |= {record.offset: record.value or b"" for record in run if record.offset in wanted}
    state = b"".join(values.get(part, b"") for part in entry.parts)
    if hashlib.sha256(state).digest() != entry.sha256:
        raise TopicError(
            f"{topic}-{PARTS} offset {min(wanted)}: the checkpoint of {entry.agent} {entry.partition} there is not "
            "whole; give another --from"
        )
    return state
