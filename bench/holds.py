"""``python -m bench.holds``: for how long a worker holds its event loop, with many units and with hostile telemetry.

The real agents, checkpoints and restores of a worker run without Kafka beside a task that wants the loop every
millisecond; the longest time that it had to wait is told for each kind of work.
"""

import argparse
import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import structlog
from faust.types import TP
from rich.console import Console
from rich.table import Table

from tidegate.schemas.load import load_manifest
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine.runs import Run
from tidegate.streams.kafka import checkpoints
from tidegate.streams.kafka.checkpoints import Saved
from tidegate.streams.kafka.turns import Collector
from tidegate.streams.settings import load_settings
from tidegate.streams.worker.app import Worker
from tidegate.streams.worker.fetch import FetchedRun

PARTITIONS, PANE, START, RUN = 2, 10_000, 1_700_000_000_000, 5_000
BEAT = 0.001
Log = Iterator[bytes]


def _manifest(flags: int, regions: int, named: bool) -> str:
    names = f"regions: [{', '.join(f'r{n}' for n in range(regions))}]" if named else ""
    flag = f"{{scope: {{{names}}}, versions: {{MODEL_VER: m1}}, window: {{length: 20s, min_requests: 1}}}}"
    return "flags:\n" + "".join(f"  f{n}: {flag}\n" for n in range(flags))


def _event(pane: int, number: int, **fields: Any) -> bytes:
    known = {"event_id": f"{pane}/{number}", "ts": START + pane * PANE + number % PANE, "flag": "f0", "arm": "canary"}
    told = {"sticky_id": f"u{number}", "region": "r0", "latency_ms": 100.0 + number % 97, "error": False}
    return json.dumps(known | told | {"versions": {"MODEL_VER": "m1"}} | fields).encode()


def units(flags: int, regions: int) -> Callable[[int], Log]:
    """A request of each arm of each unit in a pane."""

    def events(pane: int) -> Log:
        for number in range(flags * regions):
            flag, region = divmod(number, regions)
            for arm in ("canary", "baseline"):
                place = {"flag": f"f{flag}", "region": f"r{region}", "arm": arm, "event_id": f"{pane}/{number}/{arm}"}
                yield _event(pane, number, **place)

    return events


def conflicts(keys: int) -> Callable[[int], Log]:
    """Each idempotency key with two effects."""

    def events(pane: int) -> Log:
        for number in range(2 * keys):
            tool = {"name": "pay", "write": True, "idempotency_key": f"k{number % keys}", "effect_id": f"e{number}"}
            yield _event(pane, number, tools=[tool])

    return events


def different(count: int) -> Callable[[int], Log]:
    """Records that have no field in common, half a kilobyte and more each."""

    def events(pane: int) -> Log:
        for number in range(count):
            pins = {"MODEL_VER": f"m{pane}/{number}", "PROMPT_VER": "p" * 480 + str(number)}
            yield _event(pane, number, tenant=f"t{pane}/{number}", endpoint=f"/{number}", versions=pins)

    return events


def garbage(count: int) -> Callable[[int], Log]:
    """Records that are no events, some of them as deep as they are large."""

    def events(pane: int) -> Log:
        for number in range(count):
            yield _event(pane, number) if number % 2 else b'{"flag":"f0","region":"r0","x":' + b"7" * (number % 500)
        for opening in (b"[", b'{"a":', b'"', b"\\", b'"["'):
            yield opening * ((1 << 20) // len(opening))

    return events


CASES: dict[str, tuple[str, Callable[[int], Log]]] = {
    "5 flags x 1,000 regions": (_manifest(5, 1_000, False), units(5, 1_000)),
    "1 flag x 5,000 regions": (_manifest(1, 5_000, True), units(1, 5_000)),
    "8,000 keys in conflict": (_manifest(1, 1, True), conflicts(8_000)),
    "30,000 records, nothing in common": (_manifest(1, 1, True), different(30_000)),
    "garbage, deep and large": (_manifest(1, 1, True), garbage(5_000)),
}


def _now() -> tuple[float, float]:
    return time.thread_time(), time.perf_counter()


class ClosedLoop:
    """How long the event loop was held, s, by what was done: on the processor, and by the clock on the wall."""

    def __init__(self) -> None:
        self.longest: dict[str, tuple[float, float]] = {}
        self.seconds: dict[str, float] = {}

    async def during(self, name: str, work: Awaitable[Any]) -> None:
        """Do it beside somebody who wants a turn every millisecond."""
        worked, waited, last = 0.0, 0.0, _now()

        async def beat() -> None:
            nonlocal worked, waited, last
            while True:
                await asyncio.sleep(BEAT)
                now = _now()
                worked, waited, last = max(worked, now[0] - last[0]), max(waited, now[1] - last[1]), now

        heart = asyncio.create_task(beat())
        await asyncio.sleep(2 * BEAT)
        start = time.perf_counter()
        await work
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        await asyncio.sleep(2 * BEAT)
        heart.cancel()
        before = self.longest.get(name, (0.0, 0.0))
        self.longest[name] = max(before[0], worked), max(before[1], waited)


class _Sent:
    """A confirmation that is there at once."""

    offset = 0

    def __await__(self) -> Generator[None, None, "_Sent"]:
        yield from ()
        return self


_SENT = _Sent()


class Harness:
    """A worker whose Kafka is a list."""

    def __init__(self, manifest: str) -> None:
        self.settings = load_settings(broker="b:1", partitions=PARTITIONS)
        known: Any = Worker(self.settings, Timeline.of(load_manifest(manifest).flags), None, PARTITIONS, gates=1)
        self.worker = known
        self.worker.app = SimpleNamespace(consumer_generation_id=1, crash=self._crash)
        self.worker.send, self.worker.publish_position = self._send, self._published
        self.partials: list[tuple[bytes, bytes]] = []
        self.saved: dict[str, dict[int, Saved]] = {}
        self.telemetry = [TP(self.settings.telemetry_topic, p) for p in range(PARTITIONS)]
        self.gate = TP(self.settings.partials_topic, 0)
        write = checkpoints.write_checkpoint

        async def written(send: Any, state: bytes, turn: int, generation: int) -> Any:
            keeper = send.__self__
            self.saved.setdefault(keeper.topic, {})[keeper.tp.partition] = Saved(state, turn)
            return await write(send, state, turn, generation)

        async def read(_: Any, topic: str, partitions: Sequence[int]) -> dict[int, Saved]:
            return {p: found for p, found in self.saved.get(topic, {}).items() if p in partitions}

        checkpoints.write_checkpoint, checkpoints.read_checkpoints = written, read  # type: ignore[assignment]

    async def _crash(self, error: Exception) -> None:
        raise error

    async def _published(self, *_: Any) -> None:
        pass

    async def _send(self, topic: str, key: bytes, value: bytes, *_: Any) -> _Sent:
        if topic == self.settings.partials_topic:
            self.partials.append((key, value))
        return _SENT

    async def read(self, logs: list[list[bytes]]) -> None:
        """Take in what each partition brings."""
        for tp, values in zip(self.telemetry, logs, strict=True):
            for at in range(0, len(values), RUN):
                first = self.worker.keepers[tp].state.next
                run = Run(first, values[at : at + RUN], None)
                fetched = FetchedRun(run, [None] * len(run.values), {})
                message = SimpleNamespace(tp=tp, offset=run.next - 1, key=None)
                await self.worker._guarded(self.worker._window, SimpleNamespace(value=fetched, message=message))

    async def decide(self) -> None:
        """Take in all partials that were sent."""
        taken, self.partials = self.partials, []
        for key, value in taken:
            offset = self.worker.keepers[self.gate].state.next
            message = SimpleNamespace(tp=self.gate, offset=offset, key=key, timestamp=START / 1000)
            await self.worker._guarded(self.worker._gate, SimpleNamespace(value=value, message=message))

    async def save(self) -> None:
        """Write every state."""
        await self.worker._save_all()

    async def restore(self) -> None:
        """Read every state back, and let go of those before."""
        await self.worker.restore([*self.telemetry, self.gate], {})


async def measured(manifest: str, events: Callable[[int], Log], panes: int) -> ClosedLoop:
    """Everything that a worker does, pane by pane."""
    loop, harness = ClosedLoop(), Harness(manifest)
    await harness.restore()
    for pane in range(panes):
        logs: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
        for number, value in enumerate(events(pane)):
            logs[number % PARTITIONS].append(value)
        for log in logs:
            log.append(b'{"kind":"tick","ts":%d}' % (START + (pane + 1) * PANE - 1))
        await loop.during("read and close panes", harness.read(logs))
        await loop.during("decide", harness.decide())
        await loop.during("save", harness.save())
    await loop.during("restore", harness.restore())
    return loop


def main() -> None:
    """Measure every case and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.holds", description=__doc__)
    parser.add_argument("--panes", type=int, default=8)
    parser.add_argument("--case", choices=CASES, action="append", help="only these")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    Collector().install()
    console = Console()
    table = Table("longest hold of the event loop, ms", "read and close panes", "decide", "save", "restore", "took, s")
    for name in options.case or CASES:
        loop = asyncio.run(measured(*CASES[name], options.panes))
        longest = [f"{worked * 1000:,.0f} ({waited * 1000:,.0f})" for worked, waited in loop.longest.values()]
        table.add_row(name, *longest, f"{sum(loop.seconds.values()):.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
