"""One partition's state between two crashes: what was sent, and the numbered steps of a checkpoint."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from aiokafka.structs import RecordMetadata
from faust.types import TP

from tidegate.streams.kafka import checkpoints
from tidegate.streams.kafka.retained import Agent, RetainedEntry, retain
from tidegate.streams.kafka.turns import result_of

if TYPE_CHECKING:
    from tidegate.streams.worker.app import Worker

WRITE_BYTES_PER_SECOND = 1 << 20
"""States larger than this are saved less often, so that saving stays cheap beside reading."""
UNCONFIRMED_MAX = 2_000
"""Records sent and not yet confirmed at which an agent waits."""


class Checkpointer:
    """One partition of one agent: its state, what it sent, and its checkpoints."""

    def __init__(self, worker: "Worker", agent: Agent, topic: str, tp: TP, state: Any, turn: int = 0) -> None:
        self.worker, self.agent, self.topic, self.tp, self.state = worker, agent, topic, tp, state
        self.unconfirmed: list[Awaitable[Any]] = []
        self.saved_next = state.next
        self.saved_at = self.heard_at = time.monotonic()
        # When the last record that was taken had been written, s of the epoch; None: none was yet.
        self.written_at: float | None = None
        self.pause = worker.settings.checkpoint_every / 1000
        self.saving: asyncio.Task[None] | None = None
        self.turn, self.generation = turn, worker.app.consumer_generation_id
        self.span = self._span()
        # Held from a step to the sending of its results: no checkpoint may fall between.
        self.lock = asyncio.Lock()
        self.whole = True
        # Of a gate: the orders that were put into its log since this worker has it.
        self.operations_next: int = getattr(state, "operations_next", 0)
        self.switched: set[tuple[str, int]] = set()

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, partition: int, headers: Any = None
    ) -> None:
        """Send a result; it is confirmed before the next checkpoint is written."""
        self.unconfirmed.append(await self.worker.send(topic, key, value, partition, headers))
        if len(self.unconfirmed) >= UNCONFIRMED_MAX:
            await self.confirm(self._taken())

    def _taken(self) -> list[Awaitable[Any]]:
        taken, self.unconfirmed = self.unconfirmed, []
        return taken

    async def confirm(self, sent: list[Awaitable[Any]]) -> None:
        """Wait until the broker has all of these."""
        for one in sent:
            await one

    def maybe_save(self) -> None:
        """Start a checkpoint if it is time for one and none is under way."""
        due = time.monotonic() - self.saved_at >= self.pause
        if due and self.saving is None and self.state.next != self.saved_next:
            self.saving = asyncio.create_task(self._save())

    async def save_now(self) -> None:
        """Write the last checkpoint before the partition or the process goes."""
        # Shielded: a cancelled caller must not end a checkpoint whose list no later one would wait for.
        # In a loop: of two callers who waited for the same one, the second must not begin another beside the first's,
        # which would be written without waiting for what the first has on its list.
        while self.saving is not None:
            await asyncio.shield(self.saving)
        if self.state.next != self.saved_next and not self.worker.failed:
            self.saving = asyncio.create_task(self._save())
            await asyncio.shield(self.saving)

    async def release(self) -> None:
        """Let go of the state, with turns for everybody else: it was saved, and another worker may have it by now."""
        async with self.lock:
            self.whole = False
            await result_of(self.state.release_slices())

    async def _save(self) -> None:
        try:
            # 1. State, position and the list of what was sent are taken between two steps, so that a checkpoint
            #    that forgot a pane always has that pane's partial on its list.
            async with self.lock:
                if self.worker.failed or not self.whole:
                    return
                state = await result_of(self.state.dump_slices())
                mark, sent = self.state.mark, self._taken()
                span = self._span()
            # 2. What was sent must be on disk first. A crash here: the older checkpoint sends it again.
            await self.confirm(sent)
            # 3. The state itself. A crash here: the older checkpoint is still the newest.
            self.turn += 1
            confirmed = await checkpoints.write_checkpoint(self._send_checkpoint, state, self.turn, self.generation)
            # 4. Only a confirmed one counts as saved.
            await confirmed
            self.saved_next, self.saved_at = mark.next, time.monotonic()
            written = len(state)
            self.worker.metrics.saved(self.agent, self.tp.partition, written)
            # 5. A copy for auditors, once in each span of event time. A crash here: this span may have none.
            if span is not None and span != self.span:
                entry = RetainedEntry(self.agent, self.tp.partition, self.worker.shape, mark)
                await retain(self._send_retained, entry, state)
                self.span, written = span, 2 * written
            self.pause = max(self.worker.settings.checkpoint_every / 1000, written / WRITE_BYTES_PER_SECOND)
            # 6. The group's offset is for dashboards; nothing reads it back.
            await self.worker.publish_position(self.tp, mark.next)
        except Exception as error:
            await self.worker.fail(error)
        finally:
            self.saving = None

    def _span(self) -> int | None:
        """Return the span of event time that the state is in; None before the first event."""
        watermark: int | None = self.state.watermark
        return None if watermark is None else watermark // self.worker.settings.retain_every

    async def _send_checkpoint(self, key: bytes, value: bytes) -> Awaitable[RecordMetadata]:
        return await self.worker.send(self.topic, key, value, self.tp.partition)

    async def _send_retained(self, partition: int, value: bytes) -> Awaitable[RecordMetadata]:
        return await self.worker.send(self.worker.settings.retained_topic, None, value, partition)
