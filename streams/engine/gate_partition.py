"""From partials to decisions: panes merged in (pane, partition) order, units advanced, records given out.

A pane is merged when every source partition has closed it, so the order in which partials arrive does not matter.
Operators' orders stand in the same log, between the partials, and are carried out where they stand.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from operator import itemgetter
from typing import Any, Literal, Self

import msgspec

from tidegate.gates.codec import StateCodec, in_parts
from tidegate.gates.kinds import machine
from tidegate.gates.machine import Machine
from tidegate.gates.recorder import Outcome
from tidegate.gates.regions import Regions
from tidegate.gates.unit import Unit, begin, dormant, first_weight
from tidegate.gates.window import LostRange
from tidegate.schemas.canonical import canonical
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.correction import Correction
from tidegate.schemas.decision import OperationBy
from tidegate.schemas.errors import HoleError, StateError
from tidegate.schemas.manifest import Flag
from tidegate.schemas.timeline import Revision, Timeline
from tidegate.streams.engine.gate_log import Loss, Order, Partial, _waiting, _with_units, unit_codec
from tidegate.streams.engine.runs import NEVER, Position
from tidegate.streams.engine.slices import Slices, only, whole
from tidegate.streams.engine.stamped import StampedCodec


class Kill(msgspec.Struct, array_like=True):
    """A kill that stands: regions of the flag that begin are killed too. ``revision``: -1 for an operator's."""

    operation: OperationBy
    manifest_hash: str
    revision: int


class GateSnapshot(msgspec.Struct, array_like=True):
    """The whole state of one gate partition.

    ``retired``: units that a revision of the manifest ended; their chains of records go on where they begin again.
    ``flags``: by name, in its resolved form, the flag that units last had, also where no manifest has it any more.
    ``revision``: number of the last revision that took effect. ``switched``: by flag, revision and manifest hash with
    which its kill switch was last turned off or on. ``losses``: whose panes are not all closed. ``adrift``: by source
    partition that has sent no partial since, what the gate's own log lost. ``paused``: by flag, the pause that holds
    its promotes, also where its units begin later.
    """

    gate: int
    gates: int
    pane_ms: int
    lateness_ms: int
    closed: list[int]
    next: int = 0
    waiting: dict[int, dict[int, Partial]] = msgspec.field(default_factory=dict)
    units: dict[str, Unit] = msgspec.field(default_factory=dict)
    retired: dict[str, Unit] = msgspec.field(default_factory=dict)
    revision: int = -1
    operations_next: int = 0
    kills: dict[str, Kill] = msgspec.field(default_factory=dict)
    switched: dict[str, tuple[int, str]] = msgspec.field(default_factory=dict)
    flags: dict[str, bytes] = msgspec.field(default_factory=dict)
    losses: list[Loss] = msgspec.field(default_factory=list)
    adrift: dict[int, list[LostRange]] = msgspec.field(default_factory=dict)
    paused: dict[str, OperationBy] = msgspec.field(default_factory=dict)


gate_codec = StampedCodec(GateSnapshot)
_codec_of_parts = StampedCodec(
    in_parts(
        GateSnapshot,
        waiting=dict[int, dict[int, _waiting]],  # type: ignore[valid-type]  # made above
        units=dict[str, msgspec.Raw],
        retired=dict[str, msgspec.Raw],
    ),
    GateSnapshot,
)
_unit_codec = StateCodec(Unit)


def switches(timeline: Timeline, index: int) -> Iterator[Order]:
    """Yield the orders of a revision's kill switches: kills where they are off, rearms where they are on again."""
    revisions = timeline.revisions[: index + 1]
    for name, flag in revisions[-1].flags.items():
        if flag.kind != "kill_switch":
            continue
        since, changed = _since(revisions, name)
        if flag.ramp_stages[0] == 0 or changed:
            yield _switch(since, flag)


def _since(revisions: Sequence[Revision], name: str) -> tuple[Revision, bool]:
    """The first of the last revisions in which a flag is the same, and whether it was another kill switch before.

    A flag that was out of the manifest for a while was off: its units were retired.
    """
    flag, since = revisions[-1].flags[name], revisions[-1]
    for earlier in reversed(revisions[:-1]):
        before = earlier.flags.get(name)
        if before is None:
            return since, any(name in revision.flags for revision in revisions if revision.number < earlier.number)
        if before.manifest_hash != flag.manifest_hash:
            return since, before.kind == "kill_switch"
        since = earlier
    return since, False


def _switch(since: Revision, flag: Flag) -> Order:
    off = flag.ramp_stages[0] == 0
    by = OperationBy(
        kind="kill" if off else "rearm",
        ts=since.effective_from,
        actor=since.by or "manifest",
        reason=f"kill switch is {'off' if off else 'on'} in revision {since.number}",
    )
    return Order(flag.name, by, revision=since.number, manifest_hash=flag.manifest_hash)


def all_switches(timeline: Timeline, until: int | None = None) -> list[Order]:
    """Return the orders of the kill switches of all revisions in force before ``until``, ms, each once."""
    in_force = sorted({timeline.index(start) for start in timeline.starts if until is None or start < until})
    return list({(o.flag, o.revision): o for index in in_force for o in switches(timeline, index)}.values())


class GatePartition:
    """The units of one gate partition, fed with partials and orders as they stand in its log.

    ``timeline`` may grow with ``renew``. A revision takes effect at the end of the pane before it, so that two
    manifests never mix in a window: units whose flag it changes are cut there, the others go on undisturbed. Change
    freezes are held against a window's end, and are those of the revision in force then.
    """

    def __init__(self, snapshot: GateSnapshot, clockwork: Clockwork, timeline: Timeline) -> None:
        self._state = snapshot
        self._timeline = self._known = timeline
        self._clockwork = clockwork
        self._ramps: dict[str, Machine] = {}
        self._regions: dict[str, Regions] = {}
        self._corrections: list[Correction] = []
        self._labels: Counter[str] = Counter()
        self._noted: dict[str, str] = {}
        self._scheduled: deque[Order] = deque()
        self._applied = max((i for i, r in enumerate(timeline.revisions) if r.number <= snapshot.revision), default=-1)
        self._panes = list(snapshot.waiting)
        heapify(self._panes)

    def _resume(self) -> Slices[Self]:
        """Take up the units of the snapshot."""
        snapshot, known = self._state, dict[tuple[str, str], Flag | None]()
        for name, unit in list(snapshot.units.items()):
            named = name.split("|", 1)[0], unit.manifest_hash
            if named not in known:
                known[named] = self._flag(*named)
            flag = known[named]
            if flag is not None:
                self._run(name, flag, unit)
            else:
                self._retire(name)
            yield None
        # What was noted under a manifest that is there no more, an unsigned file that was changed, does not count.
        for flag_name, kill in list(snapshot.kills.items()):
            if self._flag(flag_name, kill.manifest_hash) is None:
                del snapshot.kills[flag_name]
        for flag_name, (_, manifest_hash) in list(snapshot.switched.items()):
            if self._flag(flag_name, manifest_hash) is None:
                del snapshot.switched[flag_name]
        yield self

    def _flag(self, name: str, manifest_hash: str) -> Flag | None:
        """The flag of that name and content, from the last revision that took effect, or else from whatever one."""
        revisions, now = self._timeline.revisions, self._applied + 1
        flags = (revision.flags.get(name) for revision in (*revisions[:now][::-1], *revisions[now:]))
        return next((flag for flag in flags if flag is not None and flag.manifest_hash == manifest_hash), None)

    @classmethod
    def fresh(
        cls, gate: int, gates: int, partitions: int, clockwork: Clockwork, timeline: Timeline, first: int = 0
    ) -> Self:
        """The state before the first entry, which is at offset ``first``. ``partitions``: of the source topic."""
        closed = [NEVER] * partitions
        snapshot = GateSnapshot(gate, gates, clockwork.pane_ms, clockwork.lateness_ms, closed, first)
        return cls(snapshot, clockwork, timeline)

    @classmethod
    def load(
        cls, blob: bytes, gate: int, gates: int, partitions: int, clockwork: Clockwork, timeline: Timeline
    ) -> Self:
        """The state that ``dump`` gave. Raises StateError if the bytes are none, or of another shape of the topics."""
        return only(cls.load_slices(blob, gate, gates, partitions, clockwork, timeline))

    @classmethod
    def load_slices(
        cls, blob: bytes, gate: int, gates: int, partitions: int, clockwork: Clockwork, timeline: Timeline
    ) -> Slices[Self]:
        """``load`` in slices; a slice is a unit."""
        try:
            snapshot = _codec_of_parts.load(blob)
            units = yield from _unit_codec.load_parts(snapshot.units)
            retired = yield from _unit_codec.load_parts(snapshot.retired)
            waiting: dict[int, dict[int, Partial]] = {}
            for pane, partials in snapshot.waiting.items():
                waiting[pane] = {}
                for partition, partial in partials.items():
                    waiting[pane][partition] = yield from _with_units(partial)
            parts = {"units": units, "retired": retired, "waiting": waiting}
            snapshot = GateSnapshot(**msgspec.structs.asdict(snapshot) | parts)
        except (StateError, msgspec.MsgspecError, ValueError, TypeError) as error:
            raise StateError(f"the state of gate {gate} cannot be read: {error}") from None
        found = snapshot.gate, snapshot.gates, len(snapshot.closed), snapshot.pane_ms, snapshot.lateness_ms
        wanted = gate, gates, partitions, clockwork.pane_ms, clockwork.lateness_ms
        if found != wanted:
            raise StateError(
                f"the state of gate {gate} was written with (gate, gates, partitions, pane ms, lateness ms) = "
                f"{found}, not {wanted}; give the old settings and partitions or start a new application id"
            )
        yield from cls(snapshot, clockwork, timeline)._resume()

    def dump(self) -> bytes:
        """The whole state, position included."""
        return only(self.dump_slices())

    def dump_slices(self) -> Slices[bytes]:
        """``dump`` in slices; a slice is a unit. No step may come between."""
        state = self._state
        units = yield from _unit_codec.dump_parts(state.units)
        retired = yield from _unit_codec.dump_parts(state.retired)
        waiting: dict[int, dict[int, Partial]] = {}
        for pane, partials in state.waiting.items():
            waiting[pane] = {}
            for partition, partial in partials.items():
                seen = yield from unit_codec.dump_parts(partial.units)
                waiting[pane][partition] = msgspec.structs.replace(partial, units=seen)
        yield gate_codec.dump(msgspec.structs.replace(state, units=units, retired=retired, waiting=waiting))

    def release_slices(self) -> Slices[bool]:
        """Let go of what the state holds, which takes as long as it is large; a slice is a unit.

        It is of no use afterwards. True at the end.
        """
        state, waiting = self._state, [p.units for pane in self._state.waiting.values() for p in pane.values()]
        held: tuple[dict[str, Any], ...] = (self._ramps, state.units, state.retired, *waiting)
        for units in held:
            while units:
                units.popitem()
                yield None
        yield True

    def renew(self, timeline: Timeline) -> None:
        """Take a timeline that has grown by later revisions: from the next entry on, if one is under way."""
        self._known = timeline

    @property
    def next(self) -> int:
        """The offset of the next entry in its topic."""
        return self._state.next

    @property
    def mark(self) -> Position:
        """Return the position that the state has reached."""
        state = self._state
        switched = {flag: revision for flag, (revision, _) in state.switched.items()}
        return Position(state.next, tuple(state.closed), state.operations_next, switched)

    @property
    def operations_next(self) -> int:
        """The offset in the operations topic after the last operation that was carried out here."""
        return self._state.operations_next

    @property
    def revision(self) -> int:
        """Number of the last revision of the manifest that took effect here; -1 before the first."""
        return self._state.revision

    @property
    def watermark(self) -> int | None:
        """The end of the last pane that every source partition has closed, ms; None before the first."""
        closed = min(self._state.closed)
        return None if closed == NEVER else closed * self._state.pane_ms

    @property
    def ramps(self) -> Mapping[str, Machine]:
        """The running units by ``flag|region``."""
        return self._ramps

    @property
    def retired(self) -> Mapping[str, Unit]:
        """The units by ``flag|region`` whose flag has left the manifest, after their last command."""
        return {name: unit for name, unit in self._state.retired.items() if unit.retired}

    def stranded(self, ts: int) -> list[Order]:
        """Return the orders, of ``ts`` ms, that follow from a manifest changed without a revision, as a file is.

        Last commands for flags that it does not name any more, and weights for kill switches that it turns on.
        """
        flags, orders = self._known.flags(ts), {}

        def order(kind: Literal["retire", "rearm"], reason: str, manifest_hash: str) -> Order:
            by = OperationBy(kind=kind, ts=ts, actor="manifest", reason=reason)
            return Order(flag_name, by, revision=0, manifest_hash=manifest_hash)

        for name, unit in sorted(self._state.retired.items(), key=itemgetter(0)):
            flag_name = name.split("|", 1)[0]
            flag = flags.get(flag_name)
            if flag is None and not unit.retired:
                orders[flag_name] = order("retire", "the manifest file does not name it any more", "")
            if flag is None or not flag.kind == unit.kind == "kill_switch":
                continue
            if flag.ramp_stages[0] not in (0, unit.weight):
                orders[flag_name] = order("rearm", "kill switch is on in the manifest file", flag.manifest_hash)
        return list(orders.values())

    @property
    def waiting(self) -> int:
        """Panes that some partition has not closed yet."""
        return len(self._state.waiting)

    def step(self, offset: int, partial: Partial) -> Iterator[Outcome]:
        """Take in the partial at ``offset``; give what follows, in order. Exhaust it before ``dump``.

        A partial that was seen before is dropped: after a crash they are sent again. Raises HoleError if an entry is
        missing before this one.
        """
        return whole(self.step_slices(offset, partial))

    def operate(self, offset: int, order: Order) -> Iterator[Outcome]:
        """Carry out the order at ``offset`` at once, whatever the time; as ``step``.

        One that was carried out before is dropped: whoever forwards orders may do so again.
        """
        return whole(self.operate_slices(offset, order))

    def step_slices(self, offset: int, partial: Partial) -> Slices[Outcome]:
        """``step`` in slices; in one one unit takes in what a partition saw of it, or ends a pane, at most."""
        state = self._state
        if not self._follows(offset):
            return
        if not 0 <= partial.partition < len(state.closed):
            raise StateError(
                f"a partial of partition {partial.partition}, but the source topic had {len(state.closed)} partitions"
            )
        closed = state.closed[partial.partition]
        if partial.pane < closed:
            return
        adrift = state.adrift.get(partial.partition, [])
        if partial.previous != closed and not adrift:
            raise HoleError(
                f"partition {partial.partition} closed panes up to {closed}, "
                f"but its next partial starts at {partial.previous}"
            )
        done = min(state.closed)
        begun = state.waiting.get(partial.pane, {}).get(partial.partition)
        if begun is not None:
            # Pieces that are sent again after a crash say the same.
            begun.units.update(partial.units)
            partial.units = begun.units
        if partial.units or partial.dead_letters or partial.records:
            if partial.pane not in state.waiting:
                state.waiting[partial.pane] = {}
                heappush(self._panes, partial.pane)
            state.waiting[partial.pane][partial.partition] = partial
        if partial.more:
            return
        # Of the partial itself earlier pieces may be gone.
        state.losses += [*partial.losses, *(Loss(lost, closed, partial.pane + 1) for lost in adrift)]
        state.adrift.pop(partial.partition, None)
        state.closed[partial.partition] = partial.pane + 1
        yield from self._advance(done, min(state.closed))

    def lose(self, following: int) -> None:
        """Go on with the entry at offset ``following``, without those before it: any partition's may be among them."""
        state = self._state
        lost = LostRange("partials", state.gate, state.next, following)
        for partition in range(len(state.closed)):
            state.adrift.setdefault(partition, []).append(lost)
        state.next = following

    def operate_slices(self, offset: int, order: Order) -> Slices[Outcome]:
        """``operate`` in slices; in one a single unit is operated on, at most."""
        state = self._state
        if not self._follows(offset):
            return
        if order.revision >= 0:
            asked = not order.manifest_hash or self._flag(order.flag, order.manifest_hash) is not None
            # Read again under a file that was changed since, what the old text asked for does not count.
            if self._switched_off(order) or not asked:
                return
            state.switched[order.flag] = order.revision, order.manifest_hash
        else:
            if order.offset < state.operations_next:
                return
            state.operations_next = order.offset + 1
        yield from self._carry_out(order, min(state.closed))

    def _switched_off(self, order: Order) -> bool:
        """Tell whether it is a kill switch's order that was carried out before, or overtaken by a later revision."""
        last, manifest_hash = self._state.switched.get(order.flag, (-1, ""))
        same = (order.revision, order.manifest_hash) == (last, manifest_hash)
        return order.revision >= 0 and (order.revision < last or same)

    def take_corrections(self) -> list[Correction]:
        """Return and forget the corrections of the steps since the last call. Take them before ``dump``."""
        taken = list(self._corrections)
        self._corrections.clear()
        return taken

    def take_labels(self) -> Counter[str]:
        """Return and forget the fates of the labels that came in time, in the steps since the last call."""
        taken = +self._labels
        self._labels.clear()
        return taken

    def schedule(self, orders: Iterable[Order]) -> None:
        """Orders that stand in no log: carried out before the first pane whose end + lateness is past their ts."""
        self._scheduled = deque(sorted(orders, key=lambda order: order.operation.ts))

    def finish(self) -> Iterator[Outcome]:
        """Carry out the orders that are still scheduled."""
        while self._scheduled:
            yield from whole(self._carry_out_due(NEVER, min(self._state.closed)))

    def _follows(self, offset: int) -> bool:
        """Move on if the entry at ``offset`` is the next one; False for one from before. HoleError for a later one."""
        state = self._state
        if offset > state.next:
            raise HoleError(f"partials {state.next} to {offset - 1} of gate {state.gate} are missing")
        if offset < state.next:
            return False
        state.next = offset + 1
        # Not between two slices of one entry, as they fall at other places in every run.
        self._timeline = self._known
        return True

    def _advance(self, done: int, closed: int) -> Slices[Outcome]:
        """Merge and close panes from ``done`` to ``closed``; those in which nothing happens are passed over."""
        state, pane_ms = self._state, self._state.pane_ms
        while True:
            ends = [pane + 1 for pane in self._panes[:1] if pane < closed]
            deadlines = [ramp.deadline for ramp in self._ramps.values() if ramp.deadline is not None]
            ends += [deadline // pane_ms for deadline in deadlines if deadline <= closed * pane_ms]
            # A revision that came to be known too late takes effect as soon as it can.
            starts = self._timeline.starts[self._applied + 1 :]
            changes = [max(start // pane_ms, done) for start in starts if start <= closed * pane_ms]
            if not (ends or changes):
                return
            end = min(ends + changes)
            while self._scheduled and self._scheduled[0].operation.ts < end * pane_ms + state.lateness_ms:
                yield from self._carry_out_due(done, end)
            if end in ends:
                partials = state.waiting.pop(end - 1, {})
                if partials:
                    heappop(self._panes)
                yield from self._merge(end - 1, partials)
                self._mark_losses(end)
                brought = [(p, read.records, read.dead_letters) for p, read in partials.items()]
                for _, ramp in sorted(self._ramps.items()):
                    for partition, records, dead_letters in brought:
                        if records or dead_letters:
                            ramp.unit.window.read(partition, records, dead_letters)
                    yield from ramp.close(end * pane_ms)
                    yield None
            if end in changes:
                yield from self._revise(end * pane_ms)
            done = end

    def _mark_losses(self, end: int) -> None:
        """Hold what was lost against the windows that it may be of, up to the pane before ``end``."""
        state, pane_ms = self._state, self._state.pane_ms
        for loss in state.losses:
            for ramp in self._ramps.values():
                if loss.first < end and ramp.unit.window.start < loss.end * pane_ms:
                    ramp.unit.window.lose(loss.lost)
        state.losses = [loss for loss in state.losses if loss.end > end]

    def _carry_out_due(self, done: int, end: int) -> Slices[Outcome]:
        """Carry out the next scheduled order, which came when panes from ``done`` up to ``end`` were closed."""
        order = self._scheduled.popleft()
        at = (order.operation.ts - self._state.lateness_ms) // self._state.pane_ms
        yield from self._carry_out(order, min(max(at, done), end))

    def _merge(self, pane: int, partials: dict[int, Partial]) -> Slices[Outcome]:
        start, ramps = pane * self._state.pane_ms, self._ramps
        shown: set[str] = set()
        for partial in partials.values():
            rising = (name for name in partial.units if name not in ramps or ramps[name].asleep)
            shown |= {name for name in rising if partial.units[name].accepted}
            yield None
        for name in sorted(shown):
            if name not in ramps:
                yield from self._begin(name, start)
            else:
                ramps[name].wake(start)
            yield None
        for partition, partial in sorted(partials.items()):
            for name, seen in partial.units.items():
                if name in ramps:
                    ramps[name].add(partition, seen)
                    yield None

    def _begin(self, name: str, start: int) -> Iterator[Outcome]:
        flag_name, region = name.split("|", 1)
        flag = self._timeline.flags(start).get(flag_name)
        if flag is None:
            return
        before = self._state.retired.pop(name, None)
        ramp = self._run(name, flag, begin(flag, region, start, self._clockwork, before))
        kill = self._state.kills.get(flag_name)
        if kill is not None:
            yield from ramp.operate(kill.operation, start)
        elif before is not None:
            yield from ramp.begun(before)
        paused = self._state.paused.get(flag_name)
        if paused is not None and not ramp.unit.paused:
            yield from ramp.operate(paused, start)

    def _run(self, name: str, flag: Flag, unit: Unit) -> Machine:
        self._state.units[name] = unit
        self._note(flag)
        regions = self._regions.setdefault(flag.name, Regions())
        self._ramps[name] = machine(flag, unit, self._clockwork, regions)
        self._ramps[name].corrections, self._ramps[name].labels = self._corrections, self._labels
        return self._ramps[name]

    def _retire(self, name: str) -> None:
        ramp = self._ramps.pop(name, None)
        if ramp is not None:
            ramp.regions.note(ramp.unit.region, ())
        self._state.retired[name] = self._state.units.pop(name)

    def _note(self, flag: Flag) -> None:
        if self._noted.get(flag.name) != flag.manifest_hash:
            self._noted[flag.name] = flag.manifest_hash
            self._state.flags[flag.name] = canonical(flag.resolved())

    def _dropped(self, flag_name: str, names: Iterable[str]) -> Iterator[Machine]:
        """These units of a flag that is in no manifest any more, in order, as they were when it left."""
        for name in sorted(names):
            unit = self._state.retired[name]
            flag = self._flag(flag_name, unit.manifest_hash) or self._last_flag(flag_name)
            yield machine(flag, unit, self._clockwork)

    def _last_flag(self, flag_name: str) -> Flag:
        return Flag.from_resolved(msgspec.json.decode(self._state.flags[flag_name]))

    def _revise(self, at: int) -> Slices[Outcome]:
        """Go over to the revision that is in force from ``at`` ms on."""
        state = self._state
        self._applied = self._timeline.index(at)
        revision = self._timeline.revisions[self._applied]
        state.revision = revision.number

        def changed(flag_name: str, manifest_hash: str) -> bool:
            flag = revision.flags.get(flag_name)
            return flag is None or flag.manifest_hash != manifest_hash

        for name, ramp in sorted(self._ramps.items()):
            if changed(ramp.flag.name, ramp.unit.manifest_hash):
                yield from ramp.cut(at)
                settle = revision.flags.get(ramp.flag.name, ramp.flag).window.settle_ms
                ramp.unit.fresh_from = self._clockwork.stage_start(at, settle)
                self._retire(name)
            else:
                ramp.flag = revision.flags[ramp.flag.name]
            yield None
        yield from self._retire_dropped(revision, at)
        for flag_name, kill in list(state.kills.items()):
            # A kill given under this revision already, while the telemetry was behind, goes on.
            since = kill.revision >= revision.number if kill.revision >= 0 else kill.operation.ts >= at
            if flag_name not in revision.flags or (changed(flag_name, kill.manifest_hash) and not since):
                del state.kills[flag_name]
        for flag_name in state.paused.keys() - revision.flags.keys():
            del state.paused[flag_name]

    def _retire_dropped(self, revision: Revision, at: int) -> Slices[Outcome]:
        """Give each unit whose flag the revision takes out its last command, also those that wait for an event."""
        units: dict[str, list[str]] = {}
        for name, unit in self._state.retired.items():
            flag_name = name.split("|", 1)[0]
            if not unit.retired and flag_name not in revision.flags:
                units.setdefault(flag_name, []).append(name)
        for flag_name in sorted(units):
            said = "retires it" if flag_name in revision.retires else "does not name it any more"
            by = OperationBy(
                kind="retire",
                ts=revision.effective_from,
                actor=revision.by or "manifest",
                reason=f"revision {revision.number} {said}",
            )
            for ramp in self._dropped(flag_name, units[flag_name]):
                yield from ramp.retire(by, at)
                yield None

    def _carry_out(self, order: Order, closed: int) -> Slices[Outcome]:
        """Carry out an order that stands where all source partitions have closed the panes below ``closed``."""
        by, kills = order.operation, self._state.kills
        if by.kind in ("pause", "resume", "promote"):
            yield from self._hold_or_move(order.flag, by, closed)
            return
        flags = self._candidates(order)
        if not flags:
            yield from self._carry_out_on_dropped(order, closed)
            return
        if by.kind == "kill":
            kills[order.flag] = Kill(by, flags[-1].manifest_hash, order.revision)
        else:
            kill = kills.get(order.flag)
            if order.revision >= 0 and kill is not None and kill.revision < 0 and kill.operation.ts >= by.ts:
                return  # Whoever killed it knew the revision.
            kills.pop(order.flag, None)
        for name, flag in self._units_of(order.flag, flags):
            if name not in self._ramps:
                region = name.split("|", 1)[1]
                before = self._state.retired.pop(name, None)
                self._run(name, flag, dormant(flag, region, self._clockwork, before))
            if by.kind != "rearm" or order.revision < 0 or self._switch_on(name, flags[-1]):
                yield from self._ramps[name].operate(by, closed * self._state.pane_ms)
            yield None

    def _hold_or_move(self, flag_name: str, by: OperationBy, closed: int) -> Slices[Outcome]:
        """Carry out a pause, a resume or a promote by hand where units of the flag run; later ones begin paused."""
        if by.kind == "pause" and self._candidates(Order(flag_name, by)):
            self._state.paused[flag_name] = by
        elif by.kind == "resume":
            self._state.paused.pop(flag_name, None)
            for name, unit in self._state.retired.items():
                unit.paused = unit.paused and name.split("|", 1)[0] != flag_name
        for name in sorted(self._ramps):
            if name.split("|", 1)[0] == flag_name:
                yield from self._ramps[name].operate(by, closed * self._state.pane_ms)
                yield None

    def _switch_on(self, name: str, flag: Flag) -> bool:
        """Put a unit under the kill switch that a revision turns on; False if that changes nothing for it yet.

        A kill switch has no windows, so it need not wait for telemetry. A unit that is of another kind so far does.
        """
        ramp = self._ramps[name]
        if ramp.flag.kind != "kill_switch" or (ramp.unit.weight == first_weight(flag) and not ramp.unit.latched):
            return False
        self._retire(name)
        before = self._state.retired.pop(name)
        self._run(name, flag, dormant(flag, before.region, self._clockwork, before))
        return True

    def _carry_out_on_dropped(self, order: Order, closed: int) -> Slices[Outcome]:
        """Carry out an order for a flag that is in no manifest any more: its units can be killed, and retired once."""
        by = order.operation
        names = [name for name in self._state.retired if name.split("|", 1)[0] == order.flag]
        for ramp in self._dropped(order.flag, names):
            if by.kind == "kill":
                yield from ramp.operate(by, closed * self._state.pane_ms)
            elif by.kind == "retire" and not ramp.unit.retired:
                yield from ramp.retire(by, by.ts)
            yield None

    def _candidates(self, order: Order) -> list[Flag]:
        """The flag as the windows are judged by now, and as it is when the order is given, if telemetry is behind."""
        revisions = self._timeline.revisions
        at = self._timeline.index(order.operation.ts)
        if order.revision >= 0:
            at = next((i for i, revision in enumerate(revisions) if revision.number == order.revision), at)
        found = [revisions[i].flags.get(order.flag) for i in (self._applied, at) if i >= 0]
        return [flag for flag in found if flag is not None]

    def _units_of(self, name: str, flags: list[Flag]) -> list[tuple[str, Flag]]:
        """The units of a flag that run, that a manifest names or that telemetry once showed, each with its flag."""
        named = {region: flag for flag in reversed(flags) for region in flag.scope.regions if region != "all"}
        units = {f"{name}|{region}" for region in named}
        units |= {unit for unit in (*self._ramps, *self._state.retired) if unit.split("|", 1)[0] == name}
        return [(unit, named.get(unit.split("|", 1)[1], flags[0])) for unit in sorted(units)]
