"""Checkpoints of one partition: whoever asks for one, and however many at once, what was sent is confirmed first."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from tidegate.streams.engine.runs import Position
from tidegate.streams.engine.slices import Slices
from tidegate.streams.kafka import checkpoints
from tidegate.streams.kafka.retained import RetainedEntry, Shape
from tidegate.streams.worker import checkpointer as keeper
from tidegate.streams.worker.checkpointer import Checkpointer
from tidegate.streams.worker.health import Metrics

TP_ = TP("partials", 0)


class Broker:
    """Takes records and confirms them when told to; ``saved``: positions of checkpoints with what was unconfirmed."""

    def __init__(self) -> None:
        self.confirmations: list[asyncio.Future[None]] = []
        self.saved: list[tuple[int, int]] = []
        self.failed = None
        self.shape = Shape("telemetry", 1, 1, 1, 1)
        self.settings = SimpleNamespace(checkpoint_every=1000, retain_every=1000)
        self.app = SimpleNamespace(consumer_generation_id=1)
        self.metrics = Metrics()

    async def send(self, topic: str, key: Any, value: Any, partition: int, headers: Any = None) -> Any:
        if topic == "checkpoints":
            unconfirmed = sum(not one.done() for one in self.confirmations)
            self.saved.append((checkpoints._decoder.decode(value).turn, unconfirmed))
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            done.set_result(SimpleNamespace(offset=0))
            return done
        self.confirmations.append(asyncio.get_running_loop().create_future())
        return self.confirmations[-1]

    async def publish_position(self, tp: TP, offset: int) -> None:
        pass

    async def fail(self, error: Exception) -> None:
        raise error


class State:
    """A state that is nothing but its position and time."""

    next = 0
    watermark: int | None = None

    @property
    def mark(self) -> Position:
        return Position(self.next, ())

    def dump_slices(self) -> Slices[bytes]:
        yield None
        yield b"%d" % self.next


def test_two_who_ask_at_once_wait_for_the_same_checkpoint() -> None:
    """A rebalance and the end of the process, while one is being written: none goes before what was sent for it."""

    async def run() -> None:
        broker, state = Broker(), State()
        worker: Any = broker
        keeper = Checkpointer(worker, "gate", "checkpoints", TP_, state)
        await keeper.send("decisions", None, b"first", 0)
        state.next = 1
        asking = [asyncio.create_task(keeper.save_now())]
        await asyncio.sleep(0.01)
        await keeper.send("decisions", None, b"second", 0)
        state.next = 2
        asking += [asyncio.create_task(keeper.save_now()) for _ in range(3)]
        for one in (0, 1):
            await asyncio.sleep(0.01)
            broker.confirmations[one].set_result(None)
        await asyncio.wait_for(asyncio.gather(*asking), 5)
        assert [unconfirmed for _, unconfirmed in broker.saved] == [1, 0]
        assert (keeper.saved_next, len(broker.saved)) == (2, 2)

    asyncio.run(run())


def test_the_first_checkpoint_in_a_span_of_time_is_retained(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not one of a span that a restart begins in."""
    retained: list[int] = []

    async def noted(send: Any, entry: RetainedEntry, state: bytes) -> None:
        retained.append(entry.mark.next)

    monkeypatch.setattr(keeper, "retain", noted)

    async def run(times: list[int | None], state: State) -> None:
        worker: Any = Broker()
        keeper = Checkpointer(worker, "gate", "checkpoints", TP_, state)
        for watermark in times:
            state.next, state.watermark = state.next + 1, watermark
            await keeper.save_now()

    state = State()
    asyncio.run(run([None, 1_500, 1_999, 2_000, 2_999, 7_000], state))
    assert retained == [2, 4, 6]
    asyncio.run(run([7_999, 8_000], state))
    assert retained[3:] == [8]
