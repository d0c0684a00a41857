"""Worker processes of the simulation: the real ``Worker`` over stand-ins for Faust's app and its clock."""

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import msgspec
from aiokafka.errors import KafkaConnectionError
from faust.types import TP

from tests.faults.kafka import Poller, Producer, Reader
from tests.faults.traffic import timeline
from tidegate.gates import bounds
from tidegate.schemas import canonical, decision
from tidegate.streams.engine import gate_partition as windows
from tidegate.streams.kafka import checkpoints, follow, operations, turns
from tidegate.streams.worker import app
from tidegate.streams.worker import checkpointer as keeper

if TYPE_CHECKING:
    from tests.faults.world import World

current: contextvars.ContextVar["Process"] = contextvars.ContextVar("process")
"""The process that the running task belongs to."""


class Stream:
    """What an agent iterates over."""

    def __init__(self) -> None:
        self.queue: deque[Any] = deque()
        self._more: asyncio.Future[None] | None = None

    def put(self, event: Any) -> None:
        """Hand the agent a message."""
        self.queue.append(event)
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    async def events(self) -> AsyncIterator[Any]:
        """Messages, for ever."""
        while True:
            while not self.queue:
                self._more = asyncio.get_running_loop().create_future()
                await self._more
            yield self.queue.popleft()


class App:
    """What a worker uses of a Faust app. Made within a process, see ``current``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.process = current.get()
        self.conf = SimpleNamespace()
        self.transport = SimpleNamespace()
        self.consumer_generation_id = 0
        self.consumer = self
        self._thread = self
        self.agents: dict[str, Callable[[Stream], Coroutine[Any, Any, None]]] = {}
        self.on_partitions_revoked = self.on_before_shutdown = SimpleNamespace(connect=lambda handler: handler)
        self.timer = self.task = lambda *_: lambda function: function

    def topic(self, name: str, **_: Any) -> str:
        return name

    def agent(self, topic: str, **_: Any) -> Callable[[Any], Any]:
        return lambda function: self.agents.setdefault(topic, function)

    async def maybe_start_producer(self) -> Producer:
        return self.process.producer

    async def crash(self, error: Exception) -> None:
        self.process.crashed = error

    async def highwaters(self, *tps: TP) -> dict[TP, int]:
        await self.process.world.cluster.moment()
        return {tp: self.process.world.cluster.log(tp).end for tp in tps}

    def _ensure_consumer(self) -> Any:
        return SimpleNamespace(commit=self.process.commit)

    async def call_thread(self, function: Callable[[Any], Coroutine[Any, Any, None]], offsets: Any) -> None:
        await function(offsets)


class Process:
    """A worker process. ``member``: the group has it; a zombie goes on without. ``skew``: of its clock, ms."""

    def __init__(self, world: "World", number: int) -> None:
        self.world, self.number = world, number
        self.producer = Producer(world.cluster)
        self.skew = world.rng.choice((0, 0, 0, -4_000, 700, 20_000, 90_000))
        self.member, self.frozen, self.flowing, self.leaving, self.alive = True, False, False, False, True
        self.crashed: Exception | None = None
        self.positions: dict[TP, int] = {}
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.job: asyncio.Task[None] | None = None
        self.timer: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()
        self._context.run(current.set, self)
        plan = world.plan
        self.worker: app.Worker = self._context.run(
            app.Worker, world.settings, timeline(), None, plan.partitions, plan.gates
        )
        fake: Any = self.worker.app
        self.streams = {topic: Stream() for topic in fake.agents}
        self.agents = [self.spawn(agent(self.streams[topic])) for topic, agent in fake.agents.items()]
        self.spawn(self.worker._follow_operations())

    @property
    def busy(self) -> bool:
        """Whether it is saving or loading states for the group."""
        return self.job is not None and not self.job.done()

    @property
    def left(self) -> bool:
        """Whether it has shut down."""
        return self.leaving and not self.busy

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it as a task of this process."""
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())

    async def _fatal(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """As Faust does with its timers and callbacks."""
        try:
            await work()
        except Exception as error:
            await self.worker.fail(error)

    async def commit(self, offsets: dict[Any, int]) -> None:
        """The group's offsets, for dashboards."""
        world = self.world
        await world.cluster.moment()
        if world.cluster.chance(world.cluster.weather.uncommitted):
            raise KafkaConnectionError("away")
        for tp, offset in offsets.items():
            world.committed[TP(*tp)] = offset
            world.promises.committed(TP(*tp), offset)

    def revoke(self) -> None:
        """The group takes all partitions away: buffers are cleared, states saved."""
        self._hold()
        self.job = self.spawn(self._fatal(self.worker._save_all))

    def _hold(self) -> None:
        self.flowing = False
        for stream in self.streams.values():
            stream.queue.clear()

    def assign(self, tps: list[TP], generation: int) -> None:
        """The group gives these partitions: states are loaded, then reading starts."""
        self.worker.app.consumer_generation_id = generation
        self.job = self.spawn(self._assigned(tps))

    async def _assigned(self, tps: list[TP]) -> None:
        try:
            positions = await self.worker.restore(tps, dict.fromkeys(tps, 0))
        except Exception as error:
            await self.worker.fail(error)
            return
        self.positions, self.flowing = dict(positions), True

    def leave(self) -> None:
        """SIGTERM. It may come in the middle of a rebalance, whose callback is cancelled then."""
        self._hold()
        if self.job is not None:
            self.job.cancel()
        self.leaving = True
        if self.world.cluster.chance(0.5):
            for agent in self.agents:
                agent.cancel()
        self.job = self.spawn(self._fatal(self.worker._shut_down))

    def idle(self) -> None:
        """The timer goes off, if the last call is done."""
        if self.timer is None or self.timer.done():
            self.timer = self.spawn(self._fatal(self.worker._idle))

    def kill(self) -> None:
        """SIGKILL."""
        self.alive = self.member = self.flowing = False
        self.world.cluster.bury(self.producer)
        for task in list(self.tasks):
            task.cancel()


class _Silence:
    """A log that nobody reads."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None


@lru_cache(4096)
def _packed(packed: bytes) -> bytes:
    return _canonical_now(msgspec.msgpack.decode(packed))


def _canonical(obj: Any) -> bytes:
    return _packed(msgspec.msgpack.encode(obj))


_canonical_now = canonical.canonical
_log_m = lru_cache(1 << 16)(bounds._log_m)


@contextmanager
def patched(world: "World") -> Iterator[None]:
    """The streams' modules on the world's Kafka and clock."""
    silence: Any = _Silence()
    clock = SimpleNamespace(
        monotonic=lambda: world.now / 1000,
        time=lambda: (world.now + current.get().skew) / 1000,
    )
    with ExitStack() as stack:
        for target, name, value in (
            (app, "faust", SimpleNamespace(App=App)),
            (app, "fetch_as_runs", lambda topics: None),
            (app, "log", silence),
            (app, "logging", SimpleNamespace(getLogger=lambda: silence, CRITICAL=50)),
            (app, "time", clock),
            (app, "threading", SimpleNamespace(Timer=lambda *_: silence)),
            (follow, "reader", Poller(world.cluster)),
            (follow, "RETRY_SECONDS", 0),
            (follow, "log", silence),
            (follow, "time", clock),
            (keeper, "time", clock),
            (keeper, "UNCONFIRMED_MAX", world.plan.unconfirmed_max),
            (operations, "log", silence),
            (checkpoints, "time", clock),
            # The dearest of what is computed again and again, remembered by its arguments.
            (canonical, "canonical", _canonical),
            (decision, "canonical", _canonical),
            (bounds, "_log_m", _log_m),
            (checkpoints, "CHUNK_BYTES", world.plan.chunk_bytes),
            # So small that most partials are sent in pieces.
            (windows, "PIECE_BYTES", 2_000),
            # A turn for everybody, a fault among them, after each slice, as may be where there are many units.
            (turns, "TURN_SECONDS", 0),
            (checkpoints, "reader", Reader(world.cluster)),
        ):
            stack.enter_context(patch.object(target, name, value, create=True))
        yield


def task_factory(
    loop: asyncio.AbstractEventLoop, work: Any, context: contextvars.Context | None = None
) -> asyncio.Task[Any]:
    """Every task belongs to a process, and dies with it."""
    task = asyncio.Task(work, loop=loop, context=context)
    process = context.get(current) if context is not None else current.get(None)
    if process is not None:
        process.tasks[task] = None
        task.add_done_callback(lambda task: process.tasks.pop(task, None))
    return task
