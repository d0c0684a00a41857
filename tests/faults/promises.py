"""What has to hold at every moment of a run, not only at its end."""

import hashlib
from collections.abc import Iterable

import msgspec
from faust.types import TP

from tests.faults.kafka import Log, Record
from tests.faults.traffic import LATENESS, PANE
from tidegate.streams.engine.gate_partition import GateSnapshot
from tidegate.streams.engine.source_partition import Snapshot
from tidegate.streams.engine.stamped import StampedCodec
from tidegate.streams.kafka import checkpoints
from tidegate.streams.settings import Settings
from tidegate.streams.worker.checkpointer import Checkpointer

OPEN_PANES_MAX = LATENESS // PANE + 3


class Promises:
    """What the logs and the workers show, held against what the commit steps promise.

    ``broken``: the first promise that did not hold. ``saved``: the largest position in a whole checkpoint, by source
    partition.
    """

    def __init__(self, settings: Settings, unconfirmed_max: int) -> None:
        self._kinds: dict[str, tuple[str, type[msgspec.Struct]]] = {
            settings.window_checkpoints_topic: (settings.telemetry_topic, Snapshot),
            settings.gate_checkpoints_topic: (settings.partials_topic, GateSnapshot),
        }
        self._codecs = {topic: StampedCodec(kind) for topic, (_, kind) in self._kinds.items()}
        self._unconfirmed_max = unconfirmed_max
        self.saved: dict[TP, int] = {}
        self.broken: str | None = None

    def demand(self, holds: bool, what: str) -> None:
        """Note the first promise that does not hold."""
        if not holds and self.broken is None:
            self.broken = what

    def checkpoints(self, tp: TP) -> bool:
        """Whether a partition holds checkpoints."""
        return tp.topic in self._kinds

    def appended(self, tp: TP, log: Log, record: Record) -> None:
        """A record has come to a log."""
        position = self._position(tp, log, record)
        if position is not None:
            source = TP(self._kinds[tp.topic][0], tp.partition)
            self.saved[source] = max(self.saved.get(source, 0), position)

    def committed(self, tp: TP, offset: int) -> None:
        """The group's offset never runs ahead of what is saved."""
        self.demand(offset <= self.saved.get(tp, 0), f"{tp} committed at {offset} before it was saved")

    def compact(self, tp: TP, log: Log, until: int) -> None:
        """Compaction leaves a whole checkpoint where there was one."""
        before = self._whole(tp, log)
        log.compact(until)
        self.demand(self._whole(tp, log) or not before, f"no whole checkpoint of {tp} is left")

    def look_at(self, keepers: Iterable[Checkpointer]) -> None:
        """What counts as saved is, and memory is bounded."""
        for keeper in keepers:
            # Between two steps, that is, and not after one that broke off.
            if keeper.whole:
                self._look_at(keeper.tp, keeper)

    def _look_at(self, tp: TP, keeper: Checkpointer) -> None:
        state, unconfirmed = keeper.state, len(keeper.unconfirmed)
        self.demand(keeper.saved_next <= self.saved.get(tp, 0), f"{tp} counts as saved before it is")
        self.demand(unconfirmed <= self._unconfirmed_max, f"{tp} goes on with {unconfirmed} records unconfirmed")
        if keeper.agent == "window":
            self.demand(state.open_panes <= OPEN_PANES_MAX, f"{tp} holds {state.open_panes} open panes")
        else:
            closed = state._state.closed
            # One more for each partition, of whose next pane some pieces are there.
            bound = max(closed) - min(closed) + len(closed)
            kept = state.waiting <= bound and all(pane >= min(closed) for pane in state._state.waiting)
            self.demand(kept, f"{tp} keeps partials that every partition closed")

    def _whole(self, tp: TP, log: Log) -> bool:
        return any(self._position(tp, log, record) is not None for record in reversed(log.records.values()))

    def _position(self, tp: TP, log: Log, record: Record) -> int | None:
        """The position in a checkpoint; None if the record closes none, or none that is whole."""
        if not self.checkpoints(tp) or record.key is None or not record.key.startswith(b"state"):
            return None
        closing = checkpoints._decoder.decode(record.value or b"")
        state = closing.state
        if closing.chunks:
            state = b"".join(log.records[at].value or b"" for at in closing.chunks if at in log.records)
        if hashlib.sha256(state).digest() != closing.sha256:
            return None
        kind = self._kinds[tp.topic][1]
        state = state[self._codecs[tp.topic].begins(state) :]
        position: int = msgspec.msgpack.decode(state)[kind.__struct_fields__.index("next")]
        return position
