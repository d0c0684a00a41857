"""A replay of the topics from start to end, for a command or for an auditor's own Python.

It finds where the work resumes, places the orders, decides, and tells what of the past is not there any more.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tidegate.gates.recorder import Outcome
from tidegate.schemas.errors import InputError, StateError
from tidegate.schemas.operation import Operation
from tidegate.schemas.signed import TrustedKeys
from tidegate.schemas.timeline import Timeline
from tidegate.schemas.times import iso
from tidegate.streams.audit import recorded as past
from tidegate.streams.audit.topic_replay import ReplayRequest, TopicReplay
from tidegate.streams.dumps.records import RecordLike
from tidegate.streams.engine.pipeline import Corrected
from tidegate.streams.kafka import retained
from tidegate.streams.kafka.history import Extent, History
from tidegate.streams.report.text import many
from tidegate.streams.settings import Settings


@dataclass(frozen=True)
class Conducted:
    """A replay that is ready to decide. ``rest``: the telemetry that it reads."""

    replay: TopicReplay
    timeline: Timeline
    history: History
    rest: Extent

    @property
    def size(self) -> int:
        """Offsets of telemetry to read."""
        return self.rest.size

    def outcomes(self, progress: Callable[[int], None] = lambda _: None) -> Iterator[Outcome]:
        """Yield the decisions and commands in order, once; ``progress`` is told of offsets as they are read."""
        yield from self.replay.decide(self.history.read(self.rest), progress)


@contextmanager
def conduct(
    settings: Settings,
    timeline: Timeline | None = None,
    trusted: TrustedKeys | None = None,
    start: int | None = None,
    end: int | None = None,
    *,
    corrected: Corrected = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Conducted]:
    """Open the topics and make ready to decide what was decided after ``start``, from telemetry before ``end``, ms.

    ``timeline`` None: the signed revisions of the manifests topic, for which ``trusted`` keys are needed. ``corrected``
    gets the corrections, and ``tell`` a line for each thing that is not there any more. Nothing is written. Raises
    InputError where there is nothing to decide by or to resume from, NoBrokerError and TopicError.
    """
    with History(settings) as history:
        kept = kept_for(history, settings, start, tell)
        if timeline is None:
            if trusted is None:
                raise InputError("the revisions in the topic are signed: give the trusted keys, or a timeline")
            timeline = past.read_timeline(history.records(settings.manifests_topic), settings, trusted)
        ordered = settings.operations_topic
        # Of operations also those after --to: with telemetry behind they may stand before what was written earlier.
        records = history.records(ordered) if history.has(ordered) else ()
        operations = counted_operations(records, settings, trusted, ordered, tell)
        recorded = past.read_recorded(history, settings, tell)
        # A revision that is published ahead has turned no kill switch off yet.
        until = int(time.time() * 1000) if end is None else end
        asked = ReplayRequest(timeline, operations, settings.clockwork, recorded, until, part=end is not None)
        # After the decisions: what they rest on is then there.
        telemetry = history.extent(settings.telemetry_topic, None, end)
        cut = resume_point(kept, telemetry, asked, start, tell)
        marks = [None if gate is None else gate.mark for gate in cut.gates]
        if asked.orders():
            past.place_orders(recorded, history, settings, marks, tell)
            guessed = asked.guessed(marks)
            if guessed:
                tell(
                    f"{many(guessed, 'order')} that the gates' log no longer has, placed by the recorded decisions or "
                    "by time: what was decided around may differ"
                )
        again = resumed(history, settings, asked, cut, corrected)
        yield Conducted(again, timeline, history, telemetry.after(again.positions))


def kept_for(history: History, settings: Settings, start: int | None, tell: Callable[[str], None]) -> retained.Retained:
    """Find the checkpoints from which a replay from ``start`` may resume; a replay of everything needs and reads none.

    To be asked before anything else is read: what a checkpoint rests on is then there.
    """
    telemetry = history.extent(settings.telemetry_topic)
    firsts = [first for _, (first, _) in sorted(telemetry.kept.items())]
    if start is None and not telemetry.cut:
        return retained.Retained.none(firsts)
    return retained.find(history, settings, firsts, tell)


def resumed(
    history: History, settings: Settings, asked: ReplayRequest, cut: retained.ResumePoint, corrected: Corrected
) -> TopicReplay:
    """Load the replay that decides from a cut on. Raises InputError if its checkpoints cannot be read."""
    gates, windows = retained.load(history, settings, cut)
    try:
        return TopicReplay(asked, gates, windows, corrected)
    except StateError as error:
        raise InputError(
            f"a retained checkpoint is of another version: {error}; give a --from after which this one was at work"
        ) from None


def resume_point(
    kept: retained.Retained,
    telemetry: Extent,
    asked: ReplayRequest,
    start: int | None,
    tell: Callable[[str], None],
) -> retained.ResumePoint:
    """Choose and report the point to resume from. Raises InputError if there is none before ``start``."""
    if telemetry.cut:
        where = ", ".join(map(str, telemetry.cut))
        tell(f"history is cut: the first records of {telemetry.topic} are gone in partitions {where}")
    elif start is None:
        return kept.nothing
    first = kept.earliest()
    cut = first
    if start is not None:
        cut = kept.latest([asked.before(start, gate, len(kept.gates)) for gate in range(len(kept.gates))])
        if cut is None:
            remedy = f"the first is --from {iso(_reached(first, asked))}" if first else "leave --from out"
            raise InputError(f"--from: no retained checkpoint before it has all the telemetry after it; {remedy}")
    if cut is None:
        tell(
            "no retained checkpoint has all the telemetry after it, so every unit starts from scratch and its "
            "decisions may differ"
        )
        return kept.nothing
    if cut.from_beginning:
        tell("some partitions have no retained checkpoint before --from: telemetry is read from its beginning")
    else:
        tell(f"resumed at the checkpoint of {iso(cut.closed * asked.clockwork.pane_ms)}, retained by a worker")
    return cut


def _reached(cut: retained.ResumePoint, asked: ReplayRequest) -> int:
    """Return the last time, ms, at which some gate of a cut has decided something: --from cannot be before it."""
    count = len(cut.gates)
    return max(asked.reached(n, count)(gate.mark) for n, gate in enumerate(cut.gates) if gate is not None)


def counted_operations(
    records: Iterable[RecordLike],
    settings: Settings,
    trusted: TrustedKeys | None,
    where: str,
    tell: Callable[[str], None],
) -> dict[Operation, int]:
    """Read operations as workers take them, by offset; ``tell`` is told how many were refused."""
    operations, refused = past.read_orders(records, settings, trusted)
    if refused:
        tell(f"{many(refused, 'record')} of {where} refused: not valid operations")
    return operations
