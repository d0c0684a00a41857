"""A whole deployment in one event loop: the real workers over a model of Faust and Kafka, with faults by seed.

Everything that is left to chance in a real deployment (who goes next, how much is fetched, when the broker confirms,
who dies, who is thought dead and goes on) is drawn from one seed, so a run is a function of its seed.
"""

import asyncio
import contextvars
import hashlib
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import aiokafka
import msgspec
from aiokafka.errors import KafkaConnectionError
from faust.types import TP

from gates import bounds
from schemas import canonical, decision
from streams import app, checkpoints, follow, operations
from streams.fetch import FetchedRun
from streams.panes import Run, Snapshot
from streams.settings import Settings
from streams.windows import GateSnapshot
from tests.faults.kafka import Cluster, Log, Poller, Producer, Reader, Record, Weather
from tests.faults.traffic import KINDS, LATENESS, PANE, START, logs, order, timeline
from tests.faults.undisturbed import Contradiction, Output, undisturbed

CHAOS_STEPS = 500
HEAL_STEPS = 4_000
BUFFER = 16
"""Messages that Faust holds for an agent."""
OPEN_PANES_MAX = LATENESS // PANE + 3
_current: contextvars.ContextVar["Process"] = contextvars.ContextVar("process")


@dataclass(frozen=True)
class Plan:
    """What a seed makes of a run. ``odds``: how often each action is taken; ``slow``: by telemetry partition."""

    seed: int
    kind: int
    partitions: int
    gates: int
    workers: int
    ticks: bool
    orders: bool
    chunk_bytes: int
    unconfirmed_max: int
    checkpoint_every: int
    weather: Weather
    slow: tuple[float, ...]
    odds: dict[str, float]

    @classmethod
    def of(cls, seed: int) -> "Plan":
        """Each seed leaves out some faults and exaggerates others: bugs hide where all are equally likely."""
        rng = random.Random(f"plan {seed}")
        partitions = rng.choice((2, 3))

        def some(*values: float) -> float:
            return rng.choice((0.0, *values))

        odds = {
            "produce": 12.0,
            "fetch": 20.0,
            "transmit": 12.0,
            "progress": 20.0,
            "unblock": 6.0,
            "idle": 6.0,
            "poll": 6.0,
            "join": 25.0,
            "learn": 0.3,
            "crash": some(0.2, 0.5, 1.0),
            "terminate": some(0.2, 0.5),
            "rebalance": some(0.2, 0.5),
            "freeze": some(0.2, 0.5, 1.0),
            "thaw": 0.5,
            "stall": some(0.5, 2.0),
            "flow": 0.7,
            "compact": some(1.0, 3.0),
            "commit_fails": some(0.3),
        }
        return cls(
            seed=seed,
            kind=seed % KINDS,
            partitions=partitions,
            gates=rng.choice((1, 2)),
            workers=rng.choice((1, 2, 3)),
            ticks=rng.random() < 0.2,
            orders=rng.random() < 0.2,
            chunk_bytes=rng.choice((1_500, 6_000, 512 * 1024)),
            unconfirmed_max=rng.choice((1, 3, 2_000)),
            checkpoint_every=rng.choice((50, 300, 1_500)),
            weather=Weather(
                blocked=some(0.2, 0.7),
                lost=some(0.1, 0.3),
                refused=some(0.003),
                unread=some(0.1),
                ghosts=some(0.3, 0.9),
            ),
            slow=tuple(some(0.3, 0.8) for _ in range(partitions)),
            odds=odds,
        )


class Failure(AssertionError):
    """What a seed broke; the text says how to run it again."""


@dataclass
class Outcome:
    """A run: how often each fault struck, and what came out."""

    plan: Plan
    counts: Counter[str]
    output: Output
    expected: Output
    trace: str


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
    """What a worker uses of a Faust app. Made within a process, see ``_current``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.process = _current.get()
        self.conf = SimpleNamespace()
        self.transport = SimpleNamespace()
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
        self._context.run(_current.set, self)
        plan = world.plan
        self.worker: app.Worker = self._context.run(
            app.Worker, world.settings, timeline(), None, plan.partitions, plan.gates
        )
        fake: Any = self.worker.app
        self.streams = {topic: Stream() for topic in fake.agents}
        self.agents = [self.spawn(agent(self.streams[topic])) for topic, agent in fake.agents.items()]
        self.spawn(self.worker._follow_operations())

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
        """The group's offsets. Nothing may read them back, and they never run ahead of what is saved."""
        world = self.world
        await world.cluster.moment()
        if world.healthy is False and world.cluster.chance(world.plan.odds["commit_fails"]):
            raise KafkaConnectionError("away")
        for tp, offset in offsets.items():
            world.committed[TP(*tp)] = offset
            world.demand(offset <= world.saved.get(TP(*tp), 0), f"{TP(*tp)} committed at {offset} before it was saved")

    def revoke(self) -> None:
        """The group takes all partitions away: buffers are cleared, states saved."""
        self._hold()
        self.job = self.spawn(self._fatal(self.worker._save_all))

    def _hold(self) -> None:
        self.flowing = False
        for stream in self.streams.values():
            stream.queue.clear()

    def assign(self, tps: list[TP]) -> None:
        """The group gives these partitions: states are loaded, then reading starts."""
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
        self.alive = self.member = False
        self.world.cluster.bury(self.producer)
        for task in list(self.tasks):
            task.cancel()


class World:
    """The deployment of one seed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(f"world {plan.seed}")
        self.counts: Counter[str] = Counter()
        self.now = START
        self.cluster = Cluster(self.rng, lambda: self.now, _current.get, self.counts)
        self.cluster.appended = self._appended
        self.settings = settings(plan.checkpoint_every, plan.ticks)
        self.telemetry = [TP(self.settings.telemetry_topic, p) for p in range(plan.partitions)]
        self.partials = [TP(self.settings.partials_topic, g) for g in range(plan.gates)]
        self.unwritten = [deque(entries) for entries in logs(plan.kind, plan.partitions)]
        self.processes: list[Process] = []
        self.started = 0
        self.moving = False
        """A rebalance is under way."""
        self.unsettled = True
        """A rebalance is due."""
        self.healthy = False
        self.saved: dict[TP, int] = {}
        """By source partition: the largest position in a whole checkpoint."""
        self.committed: dict[TP, int] = {}
        self.broken: str | None = None
        self.trace = hashlib.sha256()

    def demand(self, holds: bool, what: str) -> None:
        """Note the first promise that does not hold."""
        if not holds and self.broken is None:
            self.broken = what

    # What the world does, one action a step.

    async def run(self) -> None:
        """Chaos first; then everything is well again and has to be caught up, twice: the second time from the
        checkpoints alone."""
        self.cluster.weather = self.plan.weather
        for _ in range(CHAOS_STEPS):
            await self._step()
        await self._heal()
        for process in self.processes:
            process.kill()
        self._reap()
        await self._settle()

    async def _step(self) -> None:
        self._act(self._draw(self.plan.odds))
        self.now += self.rng.choice((0, 0, 5, 40))
        for _ in range(self.rng.choice((0, 1, 1, 2, 3, 9))):
            await asyncio.sleep(0)
        self._look()

    def _draw(self, odds: dict[str, float]) -> str:
        return self.rng.choices(list(odds), odds.values())[0]

    def _act(self, action: str) -> None:
        getattr(self, f"_{action}")()

    def _awake(self) -> list[Process]:
        return [process for process in self.processes if not process.frozen]

    def _one(self, fit: Callable[[Process], bool] = lambda process: True) -> Process | None:
        found = [process for process in self._awake() if fit(process)]
        return self.rng.choice(found) if found else None

    def _produce(self) -> None:
        partition = self.rng.randrange(self.plan.partitions)
        if not self.cluster.chance(self.plan.slow[partition]):
            self._write(partition, self.rng.choice((1, 4, 12)))
        if self.plan.orders and self.cluster.chance(0.03) and self.counts["orders"] < 4:
            self.counts["orders"] += 1
            value = order(self.rng, self.now)
            self.cluster.append(TP(self.settings.operations_topic, 0), Record(None, value, (), self.now))

    def _write(self, partition: int, count: int) -> None:
        entries = self.unwritten[partition]
        for _ in range(min(count, len(entries))):
            entry = entries.popleft()
            self.now = max(self.now, entry.ts)
            self.cluster.append(self.telemetry[partition], Record(None, entry.value, (), self.now))

    def _fetch(self) -> None:
        process = self._one(lambda process: process.flowing and bool(process.positions))
        if process is None:
            return
        tp = self.rng.choice(list(process.positions))
        log, at = self.cluster.log(tp), process.positions[tp]
        stream = process.streams[tp.topic]
        count = min(self.rng.choice((2, 10, 60)), log.end - at)
        if count and len(stream.queue) < BUFFER:
            self._deliver(stream, tp, log, at, count)
            process.positions[tp] = at + count

    def _deliver(self, stream: Stream, tp: TP, log: Log, at: int, count: int) -> None:
        records = [log.records[offset] for offset in range(at, at + count)]
        if tp.topic == self.settings.telemetry_topic:
            run = Run(at, [r.value for r in records], [r.timestamp for r in records])
            value = FetchedRun(run, [r.key for r in records], {})
            stream.put(SimpleNamespace(message=SimpleNamespace(tp=tp, offset=run.next - 1, key=None), value=value))
            return
        for offset, record in enumerate(records, at):
            message = SimpleNamespace(tp=tp, offset=offset, key=record.key)
            stream.put(SimpleNamespace(message=message, value=record.value))

    def _stall(self) -> None:
        """A partition loses its leader: nothing is written to it for a while."""
        results = [tp for tp in self.cluster.logs if tp.topic != self.settings.telemetry_topic]
        if results:
            self.cluster.stalled.add(self.rng.choice(results))
            self.counts["stalls"] += 1

    def _flow(self) -> None:
        self.cluster.stalled.clear()

    def _transmit(self) -> None:
        process = self._one(lambda process: process.producer.ready)
        if process is not None:
            self.cluster.transmit(process.producer)

    def _progress(self) -> None:
        stopped = {process.producer for process in self.processes if process.frozen}
        wire = [r for r in self.cluster.wire if r.offsets is None or r.producer not in stopped]
        wire = [r for r in wire if r.tp not in self.cluster.stalled]
        if wire:
            self.cluster.progress(self.rng.choice(wire))

    def _unblock(self) -> None:
        waiting = [room for room in self.cluster.blocked if not room.done()]
        self.cluster.blocked = waiting
        if waiting:
            self.rng.choice(waiting).set_result(None)

    def _idle(self) -> None:
        process = self._one()
        if process is not None and not process.leaving:
            process.idle()

    def _poll(self) -> None:
        """A poll of an operations topic that has nothing new ends, all of them once all is well."""
        self.cluster.polls = [(process, until) for process, until in self.cluster.polls if not until.done()]
        awake = [
            until for process, until in self.cluster.polls if not (isinstance(process, Process) and process.frozen)
        ]
        for until in awake if self.healthy else self.rng.sample(awake, min(1, len(awake))):
            until.set_result(None)

    def _crash(self) -> None:
        process = self._one()
        if process is not None:
            self.counts["crashes"] += 1
            self._kill(process)

    def _kill(self, process: Process) -> None:
        process.kill()
        self._reap()

    def _reap(self) -> None:
        dead = [process for process in self.processes if not process.alive]
        self.processes = [process for process in self.processes if process.alive]
        self.unsettled = self.unsettled or bool(dead)

    def _terminate(self) -> None:
        process = self._one(lambda process: not process.leaving)
        if process is not None:
            self.counts["terminations"] += 1
            process.leave()

    def _freeze(self) -> None:
        """SIGSTOP, or a network that hides a process from the group alone."""
        process = self._one(lambda process: process.member and process.flowing)
        if process is not None:
            process.frozen = self.cluster.chance(0.5)
            process.member = False
            self.unsettled = True
            self.counts["zombies"] += 1

    def _thaw(self) -> None:
        for process in self.processes:
            process.frozen = False

    def _learn(self) -> None:
        """A zombie hears that its partitions are gone, saves once more, and joins again."""
        process = self._one(lambda process: not process.member and not process.leaving)
        if process is not None and (process.job is None or process.job.done()):
            process.revoke()
            process.member = self.unsettled = True

    def _rebalance(self) -> None:
        self.unsettled = True

    def _commit_fails(self) -> None:
        """A chance, not an action."""

    def _compact(self) -> None:
        if self.cluster.reading:
            return
        for tp, log in self.cluster.logs.items():
            if tp.topic in (self.settings.window_checkpoints_topic, self.settings.gate_checkpoints_topic) and log.end:
                log.compact(self.rng.randrange(log.end) + 1)

    def _join(self) -> None:
        """One step of the group: members start, give up what they have, and get something new."""
        members = [process for process in self.processes if process.member and not process.leaving]
        if len(members) < self.plan.workers:
            self.started += 1
            self.processes.append(Process(self, self.started))
            self.unsettled = True
        elif self.moving:
            waiting = [process for process in members if process.job is not None and not process.job.done()]
            if not waiting:
                self._assign(members)
            elif not self.healthy and self.cluster.chance(0.1):
                # Too slow for the group: what it still does is a zombie's work.
                self.rng.choice(waiting).member = False
                self.counts["zombies"] += 1
        elif self.unsettled and all(process.job is None or process.job.done() for process in members):
            self.unsettled, self.moving = False, True
            self.counts["rebalances"] += 1
            for process in members:
                process.revoke()

    def _assign(self, members: list[Process]) -> None:
        self.moving = False
        owned: dict[Process, list[TP]] = {process: [] for process in members}
        for tp in (*self.telemetry, *self.partials):
            owned[self.rng.choice(members)].append(tp)
        for process, tps in owned.items():
            process.assign(tps)

    # What has to hold at every step.

    def _appended(self, tp: TP, offset: int, record: Record) -> None:
        value = hashlib.sha256(record.value or b"").digest()
        self.trace.update(repr((*tp, offset, record.key, record.timestamp)).encode() + value)
        sources = {
            self.settings.window_checkpoints_topic: (self.settings.telemetry_topic, Snapshot),
            self.settings.gate_checkpoints_topic: (self.settings.partials_topic, GateSnapshot),
        }
        if tp.topic in sources and record.key == b"state":
            topic, kind = sources[tp.topic]
            position = self._position(tp, record, kind)
            if position is not None:
                source = TP(topic, tp.partition)
                self.saved[source] = max(self.saved.get(source, 0), position)

    def _position(self, tp: TP, record: Record, kind: type[msgspec.Struct]) -> int | None:
        closing = checkpoints._decoder.decode(record.value or b"")
        log = self.cluster.log(tp)
        state = closing.state
        if closing.chunks:
            state = b"".join(log.records[at].value or b"" for at in closing.chunks if at in log.records)
        if hashlib.sha256(state).digest() != closing.sha256:
            return None
        position: int = msgspec.msgpack.decode(state)[kind.__struct_fields__.index("next")]
        return position

    def _look(self) -> None:
        for process in self.processes:
            if process.crashed is not None:
                self.counts[type(process.crashed).__name__] += 1
                self._kill(process)
                continue
            if process.leaving and process.job is not None and process.job.done():
                # The producer is flushed at the end, if the end is waited for.
                if process.producer.idle or self.cluster.chance(0.1):
                    self._kill(process)
                continue
            for tp, keeper in process.worker.keepers.items():
                # Between two steps, that is.
                if not keeper.lock.locked():
                    self._look_at(tp, keeper)

    def _look_at(self, tp: TP, keeper: app.Keeper) -> None:
        self.demand(keeper.saved_next <= self.saved.get(tp, 0), f"{tp} counts as saved before it is")
        self.demand(len(keeper.unconfirmed) <= self.plan.unconfirmed_max, f"{tp} does not wait for confirmations")
        state = keeper.state
        if keeper.agent == "window":
            self.demand(state.open_panes <= OPEN_PANES_MAX, f"{tp} holds {state.open_panes} open panes")
        else:
            closed = state._state.closed
            self.demand(state.waiting <= max(closed) - min(closed), f"{tp} keeps partials that every partition closed")

    # How it ends.

    async def _heal(self) -> None:
        self.healthy = True
        self.cluster.stalled.clear()
        self.cluster.weather = Weather(ghosts=self.plan.weather.ghosts)
        for process in list(self.processes):
            if process.frozen or not process.member:
                self._kill(process)
        for partition in range(self.plan.partitions):
            self._write(partition, 10**9)
        await self._settle()

    async def _settle(self) -> None:
        odds = {name: chance for name, chance in self.plan.odds.items() if name in _WELL}
        quiet = 0
        for _ in range(HEAL_STEPS):
            for action in (*odds, "fetch", "transmit", "progress", "progress"):
                self._act(action)
            self.now += 100
            for _ in range(4):
                await asyncio.sleep(0)
            self._look()
            # Orders may still be on their way.
            quiet = quiet + 1 if self._settled() else 0
            if quiet == 4:
                return
        failures = {name: count for name, count in self.counts.items() if name.endswith("Error")}
        raise Failure(f"never caught up; workers ended with {failures}")

    def _settled(self) -> bool:
        owned: dict[TP, Any] = {}
        for process in self.processes:
            if not (process.flowing and process.producer.idle):
                return False
            owned |= process.worker.keepers
        everything = {*self.telemetry, *self.partials}
        at_rest = not (self.unsettled or self.moving or self.cluster.wire) and owned.keys() == everything
        return at_rest and all(
            keeper.state.next == self.cluster.log(tp).end == keeper.saved_next and keeper.saving is None
            for tp, keeper in owned.items()
        )

    def output(self) -> Output:
        """What the logs hold. Raises Contradiction."""
        output = Output()
        for tp, log in self.cluster.logs.items():
            for record in log.records.values():
                if tp.topic == self.settings.partials_topic and not operations.is_order(record.key):
                    output.partial(tp.partition, record.value or b"")
                elif tp.topic in (self.settings.late_topic, self.settings.dead_letter_topic):
                    headers = dict(record.headers)
                    kind = tp.topic.rsplit(".", 1)[1]
                    output.set_aside(kind, tp.partition, int(headers["tidegate.offset"]), record.value)
                elif tp.topic in (self.settings.decisions_topic, self.settings.control_topic):
                    output.said(record.value or b"")
        return output

    def expected(self) -> Output:
        """What the same telemetry gives without faults."""
        plan = self.plan
        if not (plan.ticks or plan.orders):
            return _expected(plan.kind, plan.partitions, plan.gates)
        telemetry = [list(self.cluster.log(tp).records.values()) for tp in self.telemetry]
        gates = [list(self.cluster.log(tp).records.values()) for tp in self.partials]
        return undisturbed(telemetry, plan.gates, gates if plan.orders else None)


_WELL = ("fetch", "transmit", "progress", "unblock", "idle", "poll", "join")
"""The actions that are no faults."""


@cache
def _expected(kind: int, partitions: int, gates: int) -> Output:
    records = [[Record(None, entry.value, (), entry.ts) for entry in entries] for entries in logs(kind, partitions)]
    return undisturbed(records, gates, None)


@cache
def settings(checkpoint_every: int, ticks: bool) -> Settings:
    """Of every process."""
    return Settings(
        pane=PANE, lateness=LATENESS, checkpoint_every=checkpoint_every, tick_idle_after=4_000 if ticks else None
    )


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
def _patched(world: World) -> Iterator[None]:
    """The streams' modules on the world's Kafka and clock."""
    silence: Any = _Silence()
    clock = SimpleNamespace(
        monotonic=lambda: world.now / 1000,
        time=lambda: (world.now + _current.get().skew) / 1000,
    )
    with ExitStack() as stack:
        for target, name, value in (
            (app, "faust", SimpleNamespace(App=App)),
            (app, "install", lambda topics: None),
            (app, "log", silence),
            (app, "logging", SimpleNamespace(getLogger=lambda: silence, CRITICAL=50)),
            (app, "time", clock),
            (app, "threading", SimpleNamespace(Timer=lambda *_: silence)),
            (follow, "AIOKafkaConsumer", Poller(world.cluster)),
            (follow, "RETRY_SECONDS", 0),
            (follow, "log", silence),
            (follow, "time", clock),
            (app, "UNCONFIRMED_MAX", world.plan.unconfirmed_max),
            (operations, "log", silence),
            (checkpoints, "time", clock),
            # The dearest of what is computed again and again, remembered by its arguments.
            (canonical, "canonical", _canonical),
            (decision, "canonical", _canonical),
            (bounds, "_log_m", _log_m),
            (checkpoints, "CHUNK_BYTES", world.plan.chunk_bytes),
            (aiokafka, "AIOKafkaConsumer", Reader(world.cluster)),
        ):
            stack.enter_context(patch.object(target, name, value, create=True))
        yield


def _task(loop: asyncio.AbstractEventLoop, work: Any, context: contextvars.Context | None = None) -> asyncio.Task[Any]:
    """Every task belongs to a process, and dies with it."""
    task = asyncio.Task(work, loop=loop, context=context)
    process = context.get(_current) if context is not None else _current.get(None)
    if process is not None:
        process.tasks[task] = None
        task.add_done_callback(lambda task: process.tasks.pop(task, None))
    return task


def run(seed: int) -> Outcome:
    """The run of a seed. Raises Failure with the seed if anything is not as in the undisturbed run."""
    world = World(Plan.of(seed))

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(_task)
        await world.run()

    try:
        with _patched(world):
            asyncio.run(main())
            output, expected = world.output(), world.expected()
        if world.broken or (difference := output.difference(expected)):
            raise Failure(world.broken or difference)
    except (Failure, Contradiction) as failure:
        again = f"seed {seed}: make simulate-faults SEEDS=1 FIRST={seed}"
        raise Failure(f"{failure}\n{again}") from None
    return Outcome(world.plan, world.counts, output, expected, world.trace.hexdigest())
