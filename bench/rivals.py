"""What the worker is held against, each in a process of its own: ``python -m bench.rivals NAME BROKER TOPIC COUNT``.

Prints one JSON object: events, seconds, and the rate over the second half.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition

from bench.load import TOPIC_PARTITIONS
from tidegate.gates.digest import Digest
from tidegate.streams.engine.source_partition import STEP
from tidegate.streams.worker.fetch import fetch_as_runs


class Nine(msgspec.Struct, gc=False):
    """The fields that the least useful consumer needs."""

    ts: int
    event_id: str
    flag: str
    arm: str
    sticky_id: str
    delta_s: float
    coverage: float
    latency_ms: float
    cost: float


class Pace:
    """Counts events and notes when half and all of them were done."""

    def __init__(self, count: int) -> None:
        self.count, self.done, self.start, self.half = count, 0, 0.0, 0.0

    def add(self, events: int) -> bool:
        """Whether all events are done."""
        now = time.perf_counter()
        self.start = self.start or now
        self.done += events
        if self.done >= self.count / 2 and not self.half:
            self.half, self.half_done = now, self.done
        self.end = now
        return self.done >= self.count

    def report(self) -> None:
        """Print the result."""
        warm = (self.done - self.half_done) / (self.end - self.half)
        print("\n" + json.dumps({"events": self.done, "seconds": self.end - self.start, "warm": warm}))


async def _consume(broker: str, topic: str, count: int, work: Callable[[list[bytes]], None], runs: bool) -> None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker, group_id=None, auto_offset_reset="earliest", max_partition_fetch_bytes=1 << 20
    )
    if runs:
        fetch_as_runs({topic})
    await consumer.start()
    tps = [TopicPartition(topic, partition) for partition in range(TOPIC_PARTITIONS)]
    consumer.assign(tps)
    for tp in tps:
        consumer.seek(tp, 0)
    pace, done = Pace(count), False
    pace.add(0)
    while not done:
        for fetched in (await consumer.getmany(timeout_ms=1000)).values():
            values = [v for r in fetched for v in r.value.run.values] if runs else [r.value for r in fetched]
            work(values)
            done = pace.add(len(values))
    pace.report()
    await consumer.stop()


def bare(broker: str, topic: str, count: int, *, runs: bool = False) -> None:
    """aiokafka, joined msgspec decode of nine fields, numpy columns, a digest: nothing is kept or checked."""
    decoder, digest = msgspec.json.Decoder(Nine), Digest()

    def work(values: list[bytes]) -> None:
        for at in range(0, len(values), STEP):
            events = decoder.decode_lines(b"\n".join(values[at : at + STEP]))
            columns = [np.array([getattr(e, name) for e in events]) for name in ("ts", "delta_s", "coverage", "cost")]
            digest.add(np.array([e.latency_ms for e in events]))
            columns[0].max()

    asyncio.run(_consume(broker, topic, count, work, runs))


def fetch(broker: str, topic: str, count: int) -> None:
    """Only the fetching of runs, as the worker does it."""
    asyncio.run(_consume(broker, topic, count, lambda values: None, True))


def faust_table(broker: str, topic: str, count: int) -> None:
    """The Faust agent of the tutorials: a record model, an event at a time, a table write for each."""
    import faust
    from tdigest import TDigest

    class Event(faust.Record, serializer="json", validation=False):
        event_id: str
        ts: int
        flag: str
        arm: str
        delta_s: float
        latency_ms: float
        status: int
        cost: float

    app = faust.App(
        f"bench-faust-{time.monotonic_ns()}",
        broker=f"kafka://{broker}",
        topic_partitions=TOPIC_PARTITIONS,
        store="memory://",
    )
    app.conf.web_enabled = False
    pace = Pace(count)

    def digest() -> dict[str, float]:
        return {"count": 0, "errors": 0, "cost": 0.0}

    counts = app.Table("counts", default=digest, partitions=TOPIC_PARTITIONS)
    latencies = {"baseline": TDigest(), "canary": TDigest()}

    async def agent(stream: faust.Stream[Event]) -> None:
        async for event in stream:
            row = counts[event.arm]
            row["count"] += 1
            row["errors"] += event.status >= 500
            row["cost"] += event.cost
            counts[event.arm] = row
            latencies[event.arm].update(event.latency_ms)
            if pace.add(1):
                pace.report()
                sys.stdout.flush()
                os._exit(0)

    app.agent(app.topic(topic, value_type=Event))(agent)  # type: ignore[arg-type]
    faust.Worker(app, loglevel="ERROR", quiet=True, redirect_stdouts=False).execute_from_commandline()


RIVALS = {"bare": bare, "fetch": fetch, "faust-table": faust_table}

if __name__ == "__main__":
    RIVALS[sys.argv[1]](sys.argv[2], sys.argv[3], int(sys.argv[4]))
