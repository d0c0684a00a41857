"""The telemetry of the last minutes, counted from the panes that workers have closed."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from aiokafka import ConsumerRecord

from tidegate.schemas.errors import StateError, TopicError
from tidegate.streams.engine.gate_log import Partial, is_order, partial_codec
from tidegate.streams.engine.tally import Tally
from tidegate.streams.kafka.tail import tail
from tidegate.streams.settings import Settings

MINUTES = 5
"""Minutes of closed panes that are read."""


class Recent:
    """The events of panes that were closed lately, counted; ``hidden``: why they cannot be read.

    Each once, whoever sends it again. ``read``: set once everything up to now is in.
    """

    def __init__(self, pane_ms: int) -> None:
        self.tally, self.hidden, self.read = Tally(), "", asyncio.Event()
        self._pane_ms = pane_ms
        self._open: dict[tuple[int, int], tuple[int, set[str]]] = {}

    def take(self, gate: int, key: bytes | None, value: bytes | None) -> None:
        """Take in an entry of a gate's log."""
        if value is None or is_order(key):
            return
        try:
            partial = partial_codec.load(value)
        except StateError:
            self.hidden = "the workers are of another version"
            return
        self._count(gate, partial)

    def _count(self, gate: int, partial: Partial) -> None:
        place = gate, partial.partition
        pane, known = self._open.get(place, (partial.pane, set[str]()))
        if partial.pane < pane:
            return
        if partial.pane > pane:
            pane, known = partial.pane, set()
        # After a crash a pane, or pieces of it, may be sent again.
        partial.units = {unit: seen for unit, seen in partial.units.items() if unit not in known}
        self._open[place] = (pane, known | partial.units.keys()) if partial.more else (pane + 1, set())
        self.tally.closed(partial, self._pane_ms, shared=gate == 0)

    def told(self) -> str:
        """Return one line."""
        if self.hidden:
            return f"telemetry: how much of it counts is not known here: {self.hidden}"
        if self.tally.step.span is None:
            return f"telemetry: none in a pane that was closed in the last {MINUTES} minutes"
        return f"telemetry: {self.tally.told()}"


@asynccontextmanager
async def recent(settings: Settings) -> AsyncIterator[Recent]:
    """Follow the closed panes of the last minutes, and each new one, for as long as one is within."""
    seen = Recent(settings.pane)
    following = asyncio.create_task(_follow(settings, seen))
    try:
        await seen.read.wait()
        yield seen
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


async def _follow(settings: Settings, seen: Recent) -> None:
    def take(records: Iterable[ConsumerRecord]) -> None:
        for record in records:
            seen.take(record.partition, record.key, record.value)

    try:
        async with tail(settings, settings.partials_topic) as closed:
            await closed.since(int(time.time() * 1000) - MINUTES * 60_000)
            take(await closed.history())
            seen.read.set()
            while True:
                take(await closed.more())
    except TopicError as error:
        seen.hidden = str(error)
    finally:
        seen.read.set()
