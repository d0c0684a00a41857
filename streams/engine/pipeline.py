"""Every source partition and gate partition in one process, fed by hand."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from tidegate.gates.recorder import Outcome
from tidegate.gates.window import PaneUnit
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.correction import Correction
from tidegate.schemas.operation import Operation
from tidegate.schemas.timeline import Timeline
from tidegate.schemas.times import iso
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import Order, partial_codec, split
from tidegate.streams.engine.gate_partition import GatePartition, all_switches
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import SourcePartition
from tidegate.streams.engine.tally import Tally

NAMED = 8
"""Partitions that a line for people names."""


Corrected = Callable[[Correction], None]


class Pipeline:
    """Every partition and gate in one process, fed by hand; operations take effect by their ts.

    What it gives depends on each partition's records in order, not on how partitions or runs alternate. ``gates``: one
    that has not begun, unless others are put in its place. ``corrected`` gets the corrections.
    """

    def __init__(
        self, timeline: Timeline, partitions: int, clockwork: Clockwork, operations: Sequence[Operation] = ()
    ) -> None:
        self.table = EventClasses(timeline)
        self.clockwork = clockwork
        self.count = partitions
        self.partitions: dict[int, SourcePartition] = {}
        gate = GatePartition.fresh(0, 1, partitions, clockwork, timeline)
        gate.schedule([*all_switches(timeline), *(Order(o.flag, o.by) for o in operations)])
        self.gates = [gate]
        self.corrected: Corrected = lambda _: None
        self.tally = Tally()
        self._begun: dict[str, int] = {}

    def step(self, partition: int, run: Run) -> Iterator[Outcome]:
        """Take in a run of one partition; give the decisions that follow. Raises HoleError on missing offsets."""
        if partition not in self.partitions:
            self.partitions[partition] = SourcePartition.fresh(partition, self.clockwork, self.table, run.first)
        step = self.partitions[partition].step(run)
        self.tally.add(step)
        for partial in step.partials:
            self._note_begun(partial.pane, partial.units)
            for gate, part in zip(self.gates, split(partial, len(self.gates)), strict=True):
                # Through the codec, as on the wire: the gate takes over what a partial holds.
                yield from gate.step(gate.next, partial_codec.load(partial_codec.dump(part)))
                for correction in gate.take_corrections():
                    self.corrected(correction)
                self.tally.labels += gate.take_labels()

    def _note_begun(self, pane: int, units: Mapping[str, PaneUnit]) -> None:
        for name, seen in units.items():
            if pane < self._begun.get(name, pane + 1) and seen.accepted:
                self._begun[name] = pane

    def unclosed(self) -> str:
        """Why no window was closed, and what closes one."""
        for state in self.partitions.values():
            for pane, units in state.open_units():
                self._note_begun(pane, units)
        flags = self.table.timeline.revisions[-1].flags if self.table.timeline.revisions else {}
        ends = [
            pane * self.clockwork.pane_ms + flags[flag].window.length_ms
            for name, pane in self._begun.items()
            if (flag := name.split("|", 1)[0]) in flags and flags[flag].kind != "kill_switch"
        ]
        if not ends:
            return "no window was closed: no event counted for a flag that has windows"
        due = min(ends) + self.clockwork.lateness_ms
        marks = {partition: state.watermark for partition, state in self.partitions.items()}
        behind = [n for n in range(self.count) if (mark := marks.get(n)) is None or mark < min(ends)]
        where = f"partition{'s' if len(behind) > 1 else ''} {', '.join(map(str, behind[:NAMED]))}"
        more = f" and {len(behind) - NAMED} more" if len(behind) > NAMED else ""
        return (
            f"no window was closed: the first one ends at {iso(min(ends))}, and is closed by a tick, or any event, "
            f"with ts {due} ({iso(due)}) or later in every partition"
            + (f"; {where}{more} came to no such time" if behind else "")
        )

    def finish(self) -> Iterator[Outcome]:
        """Carry out the operations that were given after everything that the logs decide."""
        for gate in self.gates:
            yield from gate.finish()
