"""A whole deployment in one event loop: the real workers over a model of Faust and Kafka, with faults by seed.

Everything that is left to chance in a real deployment (who goes next, how much is fetched, when the broker confirms,
who dies, who is thought dead and goes on) is drawn from one seed, so a run is a function of its seed.
"""

import asyncio
import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from aiokafka.errors import KafkaError
from faust.types import TP

from tests.faults.auditor import audit
from tests.faults.kafka import Cluster, Log, Record, Request, Wait, Weather
from tests.faults.plan import Plan
from tests.faults.process import Process, Stream, current, patched, task_factory
from tests.faults.promises import Promises
from tests.faults.traffic import LATENESS, PANE, START, logs, order
from tests.faults.undisturbed import Contradiction, Output, undisturbed
from tidegate.schemas.errors import TopicError
from tidegate.streams.engine import gate_log
from tidegate.streams.engine.runs import Run
from tidegate.streams.settings import Settings, load_settings
from tidegate.streams.worker.fetch import FetchedRun

CHAOS_STEPS = 600
HEAL_STEPS = 1_500
BUFFER = 16
"""Messages that Faust holds for an agent."""


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


class World:
    """The deployment of one seed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(f"world {plan.seed}")
        self.counts: Counter[str] = Counter()
        self.now = START
        self.cluster = Cluster(self.rng, lambda: self.now, current.get, self.counts)
        self.cluster.appended, self.cluster.arrived = self._appended, self._arrived
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
        self.promises = Promises(self.settings, plan.unconfirmed_max)
        self.committed: dict[TP, int] = {}
        self.trace = hashlib.sha256()

    async def run(self) -> None:
        """Chaos first; then everything is well again and has to be caught up, twice: the second time from the
        checkpoints alone."""
        self.cluster.weather = self.plan.weather
        for _ in range(CHAOS_STEPS):
            await self._step()
            if self.cluster.chance(0.03) and self._read_out():
                break
        await self._heal()
        for process in self.processes:
            process.kill()
        await self._settle()

    async def _step(self) -> None:
        for action in ("join", "transmit", "progress", "progress"):
            if self.cluster.chance(0.6):
                self._act(action)
        odds = self.plan.odds
        self._act(self.rng.choices(list(odds), list(odds.values()))[0])
        self.now += self.rng.choice((0, 5, 40, 200))
        for _ in range(self.rng.choice((0, 1, 1, 2, 3, 9))):
            await asyncio.sleep(0)
        self._reap()
        if self.cluster.chance(0.25):
            self._look()
        self._check()

    def _act(self, action: str) -> None:
        getattr(self, f"_{action}")()

    def _awake(self) -> list[Process]:
        return [process for process in self.processes if process.alive and not process.frozen]

    def _one(self, fit: Callable[[Process], bool] = lambda process: True) -> Process | None:
        found = [process for process in self._awake() if fit(process)]
        return self.rng.choice(found) if found else None

    def _produce(self) -> None:
        partition = self.rng.randrange(self.plan.partitions)
        if not self.cluster.chance(self.plan.slow[partition]):
            self._write(partition, self.rng.choice((2, 8, 25)))
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
        behind = [
            (process, tp, at)
            for process in self._awake()
            if process.flowing
            for tp, at in process.positions.items()
            if at < self.cluster.log(tp).end and len(process.streams[tp.topic].queue) < BUFFER
        ]
        if behind:
            process, tp, at = self.rng.choice(behind)
            log = self.cluster.log(tp)
            count = min(self.rng.choice((2, 10, 60)), log.end - at)
            self._deliver(process.streams[tp.topic], tp, log, at, count)
            process.positions[tp] = at + count

    def _deliver(self, stream: Stream, tp: TP, log: Log, at: int, count: int) -> None:
        records = [log.records[offset] for offset in range(at, at + count)]
        if tp.topic == self.settings.telemetry_topic:
            run = Run(at, [r.value for r in records], [r.timestamp for r in records])
            value = FetchedRun(run, [r.key for r in records], {})
            stream.put(SimpleNamespace(message=SimpleNamespace(tp=tp, offset=run.next - 1, key=None), value=value))
            return
        for offset, record in enumerate(records, at):
            message = SimpleNamespace(tp=tp, offset=offset, key=record.key, timestamp=record.timestamp / 1000)
            stream.put(SimpleNamespace(message=message, value=record.value))

    def _stall(self) -> None:
        """A partition loses its leader: nothing is written to it for a while."""
        tps = [tp for tp in self.cluster.logs if tp.topic != self.settings.telemetry_topic]
        if tps:
            self.cluster.stalled.add(self.rng.choice(tps))
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
        """There is room in a producer's buffer."""
        self._let_go(self.cluster.blocked)

    def _poll(self) -> None:
        """A poll that found nothing new ends."""
        self._let_go(self.cluster.polls)

    def _let_go(self, waiting: list[Wait]) -> None:
        waiting[:] = [wait for wait in waiting if not wait.until.done()]
        awake = [wait for wait in waiting if not wait.process.frozen]
        for wait in awake if self.healthy else self.rng.sample(awake, min(1, len(awake))):
            wait.until.set_result(None)

    def _idle(self) -> None:
        process = self._one()
        if process is not None and not process.leaving:
            process.idle()

    def _crash(self) -> None:
        """Most often where it may hurt: with results that are not sent yet."""
        process = self._one(lambda process: not process.producer.idle) or self._one()
        if process is not None:
            self.counts["crashes"] += 1
            process.kill()

    def _reap(self) -> None:
        """Processes end that failed, or that left and are done."""
        for process in self.processes:
            if process.crashed is not None:
                self.counts["failures"] += 1
                # What workers end of by themselves is a failed send or read; a damaged state or log is not among it.
                injected = isinstance(process.crashed, (KafkaError, TopicError))
                self.promises.demand(injected, f"a worker ended with {process.crashed!r}")
                process.kill()
            elif process.left and (process.producer.idle or self.cluster.chance(0.1)):
                # The producer is flushed, if the end is waited for.
                process.kill()
        if not all(process.alive for process in self.processes):
            self.processes = [process for process in self.processes if process.alive]
            self.unsettled = True

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
        if process is not None and not process.busy:
            process.revoke()
            process.member = self.unsettled = True

    def _rebalance(self) -> None:
        self.unsettled = True

    def _compact(self) -> None:
        if self.cluster.reading:
            return
        for tp, log in self.cluster.logs.items():
            if self.promises.checkpoints(tp) and log.end:
                until = self.rng.choice((log.end, self.rng.randrange(log.end) + 1))
                self.promises.compact(tp, log, until)

    def _join(self) -> None:
        """One step of the group: members start, give up what they have, and get something new."""
        members = [process for process in self.processes if process.member and not process.leaving]
        if len(members) < self.plan.workers:
            self.started += 1
            self.processes.append(Process(self, self.started))
            self.unsettled = True
        elif self.moving:
            waiting = [process for process in members if process.busy]
            if not waiting:
                self._assign(members)
            elif not self.healthy and self.cluster.chance(0.03):
                # Too slow for the group: what it still does is a zombie's work.
                self.rng.choice(waiting).member = False
                self.counts["zombies"] += 1
        elif self.unsettled and not any(process.busy for process in members):
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
            process.assign(tps, self.counts["rebalances"])

    def _appended(self, tp: TP, offset: int, record: Record) -> None:
        value = hashlib.sha256(record.value or b"").digest()
        self.trace.update(repr((*tp, offset, record.key, record.timestamp)).encode() + value)
        self.promises.appended(tp, self.cluster.log(tp), record)

    def _arrived(self, request: Request) -> None:
        """The worst moment for a crash: part of a checkpoint is there, not confirmed, and other results are not."""
        if self.promises.checkpoints(request.tp) and not self.healthy and self.cluster.chance(self.plan.ambush):
            for process in self.processes:
                if process.producer is request.producer:
                    self.counts["crashes"] += 1
                    process.kill()

    def _check(self) -> None:
        if self.promises.broken is not None:
            raise Failure(self.promises.broken)

    def _look(self) -> None:
        for process in self.processes:
            self.promises.look_at(process.worker.keepers.values())

    async def _heal(self) -> None:
        self.healthy = True
        self.cluster.stalled.clear()
        self.cluster.weather = Weather(ghosts=self.plan.weather.ghosts)
        for process in list(self.processes):
            if process.frozen or not process.member:
                process.kill()
        for partition in range(self.plan.partitions):
            self._write(partition, 10**9)
        await self._settle()

    async def _settle(self) -> None:
        quiet = 0
        for _ in range(HEAL_STEPS):
            for action in _WELL:
                self._act(action)
            self.now += 100
            for _ in range(4):
                await asyncio.sleep(0)
            self._reap()
            self._look()
            self._check()
            # Orders may still be on their way.
            quiet = quiet + 1 if self._settled() else 0
            if quiet == 4:
                return
        raise Failure("never caught up")

    def _read_out(self) -> bool:
        """Whether some worker has read every log to its end."""
        reached = {
            tp
            for process in self.processes
            for tp, keeper in process.worker.keepers.items()
            if keeper.state.next == self.cluster.log(tp).end
        }
        return not any(self.unwritten) and reached == {*self.telemetry, *self.partials}

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
        output, settings = Output(), self.settings
        said = settings.decisions_topic, settings.control_topic, settings.corrections_topic
        for tp, log in self.cluster.logs.items():
            for record in log.records.values():
                if tp.topic == self.settings.partials_topic and not gate_log.is_order(record.key):
                    output.partial(tp.partition, record.value or b"")
                elif tp.topic in (self.settings.late_topic, self.settings.dead_letter_topic):
                    headers = dict(record.headers)
                    kind = tp.topic.rsplit(".", 1)[1]
                    output.set_aside(kind, tp.partition, int(headers["tidegate.offset"]), record.value)
                elif tp.topic in said:
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


_WELL = (
    "join",
    "fetch",
    "fetch",
    "transmit",
    "transmit",
    "progress",
    "progress",
    "progress",
    "unblock",
    "idle",
    "poll",
)
"""A round of actions that are no faults."""


@cache
def _expected(kind: int, partitions: int, gates: int) -> Output:
    records = [[Record(None, entry.value, (), entry.ts) for entry in entries] for entries in logs(kind, partitions)]
    return undisturbed(records, gates, None)


@cache
def settings(checkpoint_every: int, ticks: bool) -> Settings:
    """Of every process."""
    return load_settings(
        pane=PANE,
        lateness=LATENESS,
        checkpoint_every=checkpoint_every,
        retain_every=PANE,
        tick_idle_after=4_000 if ticks else "off",
    )


def run(seed: int) -> Outcome:
    """The run of a seed. Raises Failure with the seed if anything is not as in the undisturbed run."""
    world = World(Plan.of(seed))

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(task_factory)
        await world.run()

    try:
        with patched(world):
            asyncio.run(main())
            output, expected = world.output(), world.expected()
            difference = output.difference(expected)
            if difference is None:
                world.counts["taken up"], difference = audit(
                    world, [c for each in output.corrections.values() for c in each]
                )
        if difference is not None:
            raise Failure(difference)
    except (Failure, Contradiction) as failure:
        again = f"seed {seed}: make simulate-faults SEEDS=1 FIRST={seed}"
        raise Failure(f"{failure}\n{again}") from None
    return Outcome(world.plan, world.counts, output, expected, world.trace.hexdigest())
