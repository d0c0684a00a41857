"""The state of the status page: the newest decisions of every unit, within bounds, and its listeners.

Memory is bounded whatever the topics hold. Units shown: ``SHOWN_UNITS_MAX``. Of each the last decision is known,
and of those before it what the charts need, ``UNIT_WINDOWS_MAX`` a unit and ``WINDOWS_IN_ALL`` together, the oldest
forgotten first. Whole records are kept up to ``RECORD_BYTES`` together.
"""

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from tidegate.schemas.decision import Command, Decision, command_from_bytes, decision_from_bytes
from tidegate.schemas.errors import EventError
from tidegate.streams.report.board import Standing, standing
from tidegate.streams.report.rollout import UnitHistory, ramp
from tidegate.streams.report.terminal import Standings

SHOWN_UNITS_MAX = 1_000
UNIT_WINDOWS_MAX = 500
WINDOWS_IN_ALL = 20_000
RECORD_BYTES = 64 << 20
COMMANDS_MAX = 200
LISTENERS_MAX = 100
SHORT_ID = re.compile(r"(?:sha256:)?([0-9a-f]{8,64})")

UnitKey = tuple[str, str]
"""Flag and region."""


@dataclass
class _Known:
    """A unit as it is known; ``windows``: its decisions without what no chart shows; ``weight``: None: not known."""

    windows: deque[Decision] = field(default_factory=deque)
    commands: OrderedDict[str, Command] = field(default_factory=OrderedDict)
    written: int = 0
    weight: float | None = None


class Listener:
    """A reader who hears which units changed; however slow, it holds each unit once."""

    def __init__(self) -> None:
        self.ended = False
        self._changed: dict[UnitKey, None] = {}
        self._something = asyncio.Event()

    def hear(self, unit: UnitKey) -> None:
        """Take note of a change."""
        self._changed[unit] = None
        self._something.set()

    def wake(self) -> None:
        """Come back without a change: the broker has gone, or is back."""
        self._something.set()

    async def changes(self, patience: float) -> list[UnitKey]:
        """Wait for changes, at most ``patience`` seconds, and return them; empty where there were none."""
        try:
            async with asyncio.timeout(patience):
                await self._something.wait()
        except TimeoutError:
            return []
        self._something.clear()
        changed, self._changed = list(self._changed), {}
        return changed


class StatusState:
    """The newest decisions of every unit, by unit and by id; ``refused``: units beyond those that are shown."""

    def __init__(self) -> None:
        self._standings = Standings()
        self._known: dict[UnitKey, _Known] = {}
        self._records: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._order: deque[UnitKey] = deque()
        self._listeners: set[Listener] = set()
        self._away: dict[str, int] = {}
        self.refused: set[UnitKey] = set()

    def decided(self, value: bytes | None, written: int) -> None:
        """Take in a record of the decisions topic, ``written`` at a time, ms; what is no decision is passed over."""
        try:
            decision = decision_from_bytes(value or b"")
        except EventError:
            return
        unit = decision.flag, decision.region
        known = self._unit(unit)
        if known is None or any(one.decision_id == decision.decision_id for one in known.windows):
            return
        self._standings.follow(decision)
        known.written, known.weight = written, None
        known.windows.append(_thin(decision))
        self._order.append(unit)
        if len(known.windows) > UNIT_WINDOWS_MAX:
            self._order.remove(unit)
            known.windows.popleft()
        while len(self._order) > WINDOWS_IN_ALL:
            oldest = self._known[self._order.popleft()].windows
            # The last of a unit stays, whatever its age.
            if len(oldest) > 1:
                oldest.popleft()
        self._keep(decision.decision_id, value or b"")
        self._tell(unit)

    def commanded(self, value: bytes | None) -> None:
        """Take in a record of the control topic; what is no command is passed over."""
        try:
            command = command_from_bytes(value or b"")
        except EventError:
            return
        unit = command.flag, command.region
        known = self._unit(unit)
        if known is None or command.decision_id in known.commands:
            return
        known.commands[command.decision_id], known.weight = command, None
        if len(known.commands) > COMMANDS_MAX:
            known.commands.popitem(last=False)
        self._tell(unit)

    def away(self, topic: str, since: int | None) -> None:
        """Note since when a topic cannot be read, ms; None: it can."""
        before = self.away_since
        if since is None:
            self._away.pop(topic, None)
        else:
            self._away.setdefault(topic, since)
        if self.away_since != before:
            for listener in self._listeners:
                listener.wake()

    @property
    def away_since(self) -> int | None:
        """Since when the broker does not answer, ms; None: it does."""
        return min(self._away.values(), default=None)

    def _unit(self, unit: UnitKey) -> _Known | None:
        known = self._known.get(unit)
        if known is None and len(self._known) < SHOWN_UNITS_MAX:
            known = self._known[unit] = _Known()
        if known is None and len(self.refused) < SHOWN_UNITS_MAX:
            self.refused.add(unit)
        return known

    def _keep(self, decision_id: str, value: bytes) -> None:
        self._records[decision_id] = value
        self._bytes += len(value)
        while self._bytes > RECORD_BYTES and len(self._records) > 1:
            _, gone = self._records.popitem(last=False)
            self._bytes -= len(gone)

    @property
    def units(self) -> list[UnitKey]:
        """The units with a decision, by name."""
        return sorted(unit for unit, known in self._known.items() if known.windows)

    def last(self, unit: UnitKey) -> Decision | None:
        """Return a unit's last decision, whole."""
        return self._standings.last.get("|".join(unit))

    def written(self, unit: UnitKey) -> int:
        """Return when a unit's last decision was written, ms."""
        return self._known[unit].written

    def standing(self, unit: UnitKey, now: int) -> Standing:
        """Say how a unit with a decision stands."""
        return standing("|".join(unit), self._standings, self.weight(unit), now)

    def weight(self, unit: UnitKey) -> float:
        """Return the canary's weight, as the last command says, or else what the decisions come to."""
        known = self._known[unit]
        if known.weight is None and known.commands:
            known.weight = max(known.commands.values(), key=lambda one: one.seq).weights.canary
        elif known.weight is None:
            steps = ramp(self.history(unit))
            known.weight = steps[-1].weight if steps else self._standings.last["|".join(unit)].stage.canary_weight
        return known.weight

    def history(self, unit: UnitKey) -> UnitHistory:
        """Return what is known of a unit's decisions, without what no chart shows, and of its commands."""
        known = self._known[unit]
        return UnitHistory(*unit, tuple(known.windows), known.commands)

    def find(self, written_id: str) -> list[bytes]:
        """Return the records, two at most, whose id begins with 8 or more hex digits."""
        digits = SHORT_ID.fullmatch(written_id.lower())
        if digits is None:
            return []
        whole = self._records.get(f"sha256:{digits[1]}")
        if whole is not None:
            return [whole]
        found = (value for name, value in self._records.items() if name.startswith(f"sha256:{digits[1]}"))
        return list(islice(found, 2))

    def command_of(self, decision: Decision) -> Command | None:
        """Return the command that carries out a decision, if it is known."""
        known = self._known.get((decision.flag, decision.region))
        return known.commands.get(decision.decision_id) if known else None

    @contextmanager
    def listening(self) -> Iterator[Listener | None]:
        """Hear of changes for as long as one is within; None: too many do already."""
        if len(self._listeners) >= LISTENERS_MAX:
            yield None
            return
        listener = Listener()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def end(self) -> None:
        """Send all listeners home: the server stops."""
        for listener in self._listeners:
            listener.ended = True
            listener.wake()

    def _tell(self, unit: UnitKey) -> None:
        for listener in self._listeners:
            listener.hear(unit)


def _thin(decision: Decision) -> Decision:
    """Return a decision without what no chart or list shows."""
    return msgspec.structs.replace(
        decision,
        gates=[],
        abort_rules=[],
        evidence_problems=[],
        warnings=[],
        relaxed=[],
        exemplars={},
        source=[],
        versions={},
        forecast=None,
    )
