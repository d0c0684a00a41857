"""An auditor who comes afterwards: takes the work up at what was retained, and holds it against what was recorded."""

import random
from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
from faust.types import TP

from tests.faults.traffic import CLOCKWORK, LATENESS, PANE, PANES, START, timeline
from tidegate.schemas.errors import TidegateError
from tidegate.streams.audit.recorded import place_orders, read_orders, read_recorded
from tidegate.streams.audit.topic_replay import ReplayRequest, TopicReplay
from tidegate.streams.kafka.history import Extent
from tidegate.streams.kafka.retained import ResumePoint, find, load

if TYPE_CHECKING:
    from tests.faults.world import World

AUDITS = 3


class Topics:
    """What is used of ``History``, over the logs of a world."""

    def __init__(self, world: "World") -> None:
        self._logs = world.cluster.logs
        settings, plan = world.settings, world.plan
        self._partitions = {
            settings.telemetry_topic: plan.partitions,
            settings.retained_topic: 2,
            settings.operations_topic: 1,
        }
        self._gates = plan.gates

    def has(self, topic: str) -> bool:
        """Whether it is there."""
        return True

    def extent(self, topic: str) -> Extent:
        """All of it."""
        count = self._partitions.get(topic, self._gates)
        ends = {p: self._logs[TP(topic, p)].end if TP(topic, p) in self._logs else 0 for p in range(count)}
        bounds = {partition: (0, end) for partition, end in ends.items()}
        return Extent(topic, bounds, bounds)

    def read(self, extent: Extent) -> Iterator[list[Any]]:
        """The records of a range, a run for each partition."""
        for partition, (first, end) in extent.bounds.items():
            log = self._logs.get(TP(extent.topic, partition))
            run = [
                SimpleNamespace(
                    topic=extent.topic,
                    partition=partition,
                    offset=offset,
                    key=record.key,
                    value=record.value,
                    timestamp=record.timestamp,
                )
                for offset, record in (log.records.items() if log is not None else ())
                if first <= offset < end
            ]
            if run:
                yield run

    def records(self, topic: str) -> list[Any]:
        """All records of a topic."""
        return [record for run in self.read(self.extent(topic)) for record in run]


def _nobody(_: str) -> None:
    """Who is told what a person would be."""


def audit(world: "World", corrections: Collection[bytes]) -> tuple[int, str | None]:
    """How often the work was taken up in mid-history, and the first difference from what was recorded.

    ``corrections``: all that were recorded.
    """
    rng = random.Random(f"audit {world.plan.seed}")
    topics: Any = Topics(world)
    settings = world.settings
    operations, _ = read_orders(topics.records(settings.operations_topic), settings, None)
    recorded = read_recorded(topics, settings, _nobody)
    asked = ReplayRequest(timeline(), operations, CLOCKWORK, recorded, 1 << 53)
    taken_up = 0
    for number in range(AUDITS):
        kept = find(topics, settings, [0] * world.plan.partitions)
        start: int | None = None
        if number:
            start = rng.randrange(START, START + PANES * PANE + LATENESS)
            cut = kept.latest([asked.before(start, gate, len(kept.gates)) for gate in range(len(kept.gates))])
        else:
            # The beginning of the telemetry is gone.
            firsts = [rng.choice([0, *(place.mark.next for place in places)]) for places in kept.windows]
            cut = find(topics, settings, firsts).earliest()
        if cut is None or cut.from_beginning:
            continue
        taken_up += 1
        try:
            difference = _difference(topics, world, asked, cut, start, corrections)
        except TidegateError as error:
            difference = str(error)
        if difference is not None:
            return taken_up, f"taken up at pane {cut.closed}: {difference}"
    return taken_up, None


def _difference(
    topics: Any,
    world: "World",
    asked: ReplayRequest,
    cut: ResumePoint,
    start: int | None,
    corrections: Collection[bytes],
) -> str | None:
    corrected: list[Any] = []
    marks = [None if gate is None else gate.mark for gate in cut.gates]
    place_orders(asked.past, topics, world.settings, marks, _nobody)
    again = TopicReplay(asked, *load(topics, world.settings, cut), corrected.append)
    rest = topics.extent(world.settings.telemetry_topic).after(again.positions)
    decisions, commands = [], []
    for decision, command in again.decide(topics.read(rest)):
        decisions.append(decision.to_bytes())
        commands += [] if command is None else [command.to_bytes()]
    recorded = [decision for chain in asked.past.chains.values() for decision in chain]
    if start is not None and not {d.to_bytes() for d in recorded if d.decided_at > start}.issubset(decisions):
        return f"something was decided after {start} and before that"
    had = max(max(gate.mark.closed) for gate in cut.gates if gate is not None) * PANE
    made = {correction.to_bytes() for correction in corrected if correction.corrected_at > had}
    if made != {value for value in corrections if msgspec.json.decode(value)["corrected_at"] > had}:
        return "other corrections"
    return again.difference(decisions, commands)
