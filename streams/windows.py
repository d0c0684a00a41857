"""From partials to decisions: panes merged in (pane, partition) order, units advanced, records given out.

A pane is merged when every source partition has closed it, so the order in which partials arrive does not matter.
"""

from collections.abc import Iterator, Mapping
from zlib import crc32

import msgspec

from gates.ramp import Clockwork, Ramp, Unit, begin
from gates.sums import StateCodec
from schemas.decision import Command, Decision
from schemas.errors import HoleError, StateError
from schemas.manifest import Flag
from streams.panes import NEVER, Partial


def gate_of(flag: str, gates: int) -> int:
    """The gate partition that decides for a flag: all regions of a flag meet in one."""
    return crc32(flag.encode()) % gates


def split(partial: Partial, gates: int) -> list[Partial]:
    """One partial for each gate partition; each carries the time, and the units that are decided there."""
    parts = [Partial(partial.partition, partial.pane, partial.previous, partial.dead_letters, {}) for _ in range(gates)]
    for unit, seen in partial.units.items():
        parts[gate_of(unit.split("|", 1)[0], gates)].units[unit] = seen
    return parts


class GateSnapshot(msgspec.Struct, array_like=True):
    """The whole state of one gate partition."""

    gate: int
    gates: int
    pane_ms: int
    lateness_ms: int
    closed: list[int]
    next: int = 0
    waiting: dict[int, dict[int, Partial]] = msgspec.field(default_factory=dict)
    units: dict[str, Unit] = msgspec.field(default_factory=dict)


_codec = StateCodec(GateSnapshot)


class GateState:
    """The units of one gate partition, fed with partials in the order of their topic."""

    def __init__(self, snapshot: GateSnapshot, clockwork: Clockwork, flags: Mapping[str, Flag]) -> None:
        self._state = snapshot
        self._flags = flags
        self._clockwork = clockwork
        self._ramps: dict[str, Ramp] = {}
        for name, unit in snapshot.units.items():
            flag = flags.get(name.split("|", 1)[0])
            if flag is not None and flag.manifest_hash == unit.manifest_hash:
                self._ramps[name] = Ramp(flag, unit, self._clockwork)

    @classmethod
    def fresh(
        cls,
        gate: int,
        gates: int,
        partitions: int,
        clockwork: Clockwork,
        flags: Mapping[str, Flag],
        first: int = 0,
    ) -> "GateState":
        """The state before the first partial, which is at offset ``first``. ``partitions``: of the source topic."""
        closed = [NEVER] * partitions
        snapshot = GateSnapshot(gate, gates, clockwork.pane_ms, clockwork.lateness_ms, closed, first)
        return cls(snapshot, clockwork, flags)

    @classmethod
    def load(
        cls, blob: bytes, gate: int, gates: int, partitions: int, clockwork: Clockwork, flags: Mapping[str, Flag]
    ) -> "GateState":
        """The state that ``dump`` gave. Raises StateError if the bytes are none, or of another shape of the topics."""
        try:
            snapshot = _codec.load(blob)
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            raise StateError(f"the state of gate {gate} cannot be read: {error}") from None
        found = snapshot.gate, snapshot.gates, len(snapshot.closed), snapshot.pane_ms, snapshot.lateness_ms
        wanted = gate, gates, partitions, clockwork.pane_ms, clockwork.lateness_ms
        if found != wanted:
            raise StateError(
                f"the state of gate {gate} was written with (gate, gates, partitions, pane ms, lateness ms) = "
                f"{found}, not {wanted}; give the old settings and partitions or start a new application id"
            )
        return cls(snapshot, clockwork, flags)

    def dump(self) -> bytes:
        """The whole state, position included."""
        return _codec.dump(self._state)

    @property
    def next(self) -> int:
        """The offset of the next partial in its topic."""
        return self._state.next

    @property
    def watermark(self) -> int | None:
        """The end of the last pane that every source partition has closed, ms; None before the first."""
        closed = min(self._state.closed)
        return None if closed == NEVER else closed * self._state.pane_ms

    @property
    def ramps(self) -> Mapping[str, Ramp]:
        """The running units by ``flag|region``."""
        return self._ramps

    @property
    def waiting(self) -> int:
        """Panes that some partition has not closed yet."""
        return len(self._state.waiting)

    def step(self, offset: int, partial: Partial) -> Iterator[tuple[Decision, Command | None]]:
        """Take in the partial at ``offset``; give what follows, in order. Exhaust it before ``dump``.

        A partial that was seen before is dropped: after a crash they are sent again. Raises HoleError if one is
        missing before this one.
        """
        state = self._state
        if offset < state.next:
            return
        if offset > state.next:
            raise HoleError(f"partials {state.next} to {offset - 1} of gate {state.gate} are missing")
        state.next = offset + 1
        if not 0 <= partial.partition < len(state.closed):
            raise StateError(
                f"a partial of partition {partial.partition}, but the source topic had {len(state.closed)} partitions"
            )
        closed = state.closed[partial.partition]
        if partial.pane < closed:
            return
        if partial.previous != closed:
            raise HoleError(
                f"partition {partial.partition} closed panes up to {closed}, "
                f"but its next partial starts at {partial.previous}"
            )
        state.closed[partial.partition] = partial.pane + 1
        if partial.units or partial.dead_letters:
            state.waiting.setdefault(partial.pane, {})[partial.partition] = partial
        yield from self._advance(min(state.closed))

    def _advance(self, closed: int) -> Iterator[tuple[Decision, Command | None]]:
        """Merge and close panes below ``closed``; panes in which nothing happens are passed over."""
        state, pane_ms = self._state, self._state.pane_ms
        while True:
            ends = [pane + 1 for pane in state.waiting if pane < closed]
            deadlines = [ramp.deadline for ramp in self._ramps.values() if ramp.deadline is not None]
            ends += [deadline // pane_ms for deadline in deadlines if deadline <= closed * pane_ms]
            if not ends:
                return
            end = min(ends)
            self._merge(end - 1, state.waiting.pop(end - 1, {}))
            for _, ramp in sorted(self._ramps.items()):
                yield from ramp.close(end * pane_ms)

    def _merge(self, pane: int, partials: dict[int, Partial]) -> None:
        for partial in partials.values():
            for name, seen in partial.units.items():
                if not seen.accepted:
                    continue
                if name not in self._ramps:
                    self._begin(name, pane * self._state.pane_ms)
                elif self._ramps[name].asleep:
                    self._ramps[name].wake(pane * self._state.pane_ms)
        for partition, partial in sorted(partials.items()):
            for name, seen in partial.units.items():
                if name in self._ramps:
                    self._ramps[name].add(partition, seen)
        dead_letters = sum(partial.dead_letters for partial in partials.values())
        for ramp in self._ramps.values():
            ramp.unit.window.dead_letters += dead_letters

    def _begin(self, name: str, start: int) -> None:
        flag_name, region = name.split("|", 1)
        flag = self._flags.get(flag_name)
        if flag is not None:
            unit = begin(flag, region, start, self._state.units.get(name))
            self._state.units[name] = unit
            self._ramps[name] = Ramp(flag, unit, self._clockwork)
