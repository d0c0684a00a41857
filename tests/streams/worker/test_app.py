"""How a worker ends, and when it moves time by itself."""

import asyncio
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from tests.streams.events import NOON, flags
from tidegate.schemas.timeline import Revision, Timeline
from tidegate.streams.engine.gate_partition import GatePartition
from tidegate.streams.engine.slices import Slices, only
from tidegate.streams.kafka import checkpoints, follow
from tidegate.streams.kafka.checkpoints import Saved
from tidegate.streams.kafka.follow import Follower
from tidegate.streams.settings import load_settings
from tidegate.streams.worker import app
from tidegate.streams.worker.app import Worker
from tidegate.streams.worker.health import Metrics


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One without partitions; ``crashed``: what it died of."""
    worker: Any = Worker.__new__(Worker)
    worker.failed, worker.stopped, worker.keepers, worker._runner = None, False, {}, None
    worker.crashed, worker.metrics = [], Metrics()

    async def crash(error: Exception) -> None:
        worker.crashed.append(error)

    worker.app = SimpleNamespace(crash=crash, consumer=SimpleNamespace(known_end=lambda _: None))
    still = SimpleNamespace(start=lambda: None, setLevel=lambda _: None)
    monkeypatch.setattr(app, "threading", SimpleNamespace(Timer=lambda *_: still))
    monkeypatch.setattr(app, "logging", SimpleNamespace(getLogger=lambda: still, CRITICAL=50))
    return worker


def test_a_failure_ends_the_process(worker: Any) -> None:
    asyncio.run(worker.fail(ValueError("first")))
    assert [str(error) for error in worker.crashed] == ["first"]


def test_what_cannot_be_done_after_everything_was_saved_is_no_failure(worker: Any) -> None:
    """An order that was about to be put into a gate's log finds no producer any more; the next worker puts it there."""
    asyncio.run(worker._shut_down())
    asyncio.run(worker.fail(ValueError("no producer")))
    assert worker.crashed == []
    assert worker.failed is None


def test_a_gate_that_is_being_loaded_hears_of_a_revision_that_comes_meanwhile(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading thousands of units back lets others in between, also whoever follows the manifests."""
    settings = load_settings(broker="b:1")
    before, after = Timeline.of(flags()), Timeline([Revision(0, 0, flags()), Revision(1, NOON, flags())])
    blob = GatePartition.fresh(0, 1, 1, settings.clockwork, before).dump()
    worker.settings, worker.gates, worker.partitions, worker.timeline = settings, 1, 1, before
    worker.manifests, worker.assigned = SimpleNamespace(catch_up=lambda: asyncio.sleep(0)), asyncio.Event()
    worker.app.consumer_generation_id = 0

    async def read(*_: Any) -> dict[int, Saved]:
        return {0: Saved(blob, 0)}

    async def loaded(slices: Slices[Any]) -> Any:
        worker.timeline = after
        return only(slices)

    monkeypatch.setattr(checkpoints, "read_checkpoints", read)
    monkeypatch.setattr(app, "result_of", loaded)
    tp = TP(settings.partials_topic, 0)
    asyncio.run(worker.restore([tp], {}))
    assert worker.keepers[tp].state._known is after


def test_partitions_that_are_given_back_are_shown_until_they_are_saved(worker: Any) -> None:
    """Then no more, whatever their keepers still say of them."""
    shown: list[bool] = []

    def samples() -> list[Any]:
        families = worker.metrics.registry.collect()
        return [one for family in families for one in family.samples if one.labels.get("agent") == "window"]

    async def save_now() -> None:
        shown.append(bool(samples()))

    state = SimpleNamespace(next=5, watermark=NOON)
    keeper = SimpleNamespace(agent="window", tp=TP("telemetry", 1), state=state, save_now=save_now)
    worker.keepers[keeper.tp] = keeper
    worker.metrics.own("window", 1)
    worker._show(keeper)
    asyncio.run(worker._let_go())
    assert shown == [True]
    worker._show(keeper)
    assert samples() == []


def test_what_waits_in_a_partition_is_shown_in_records_and_by_the_age_of_the_last_one_read(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while nothing is read: the numbers are of the moment in which they are asked for."""
    now, ends, tp = [NOON / 1000], dict[TP, int](), TP("telemetry", 1)
    monkeypatch.setattr(app, "time", SimpleNamespace(time=lambda: now[0], monotonic=lambda: now[0]))
    worker.app.consumer.known_end, worker._began = ends.get, NOON / 1000 - 5
    worker.ordered = SimpleNamespace(silent=None)
    state = SimpleNamespace(next=5, watermark=NOON)
    worker.keepers[tp] = keeper = SimpleNamespace(agent="window", tp=tp, state=state, written_at=None)
    worker.metrics.own("window", 1)

    def shown() -> list[float]:
        worker._refresh()
        families = {family.name: family.samples for family in worker.metrics.registry.collect()}
        return [one.value for name in ("lag_records", "lag_seconds") for one in families[f"tidegate_{name}"]]

    assert shown() == []
    ends[tp] = 5
    assert shown() == [0, 0]
    ends[tp] = 9
    assert shown() == [4, 0]
    keeper.written_at = now[0] - 3
    assert shown() == [4, 3]
    now[0] += 60
    assert shown() == [4, 63]
    state.next = 9
    assert shown() == [0, 0]


def test_how_long_the_broker_is_silent_is_shown_from_the_start_on(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "time", SimpleNamespace(time=lambda: 0.0, monotonic=lambda: 100.0))
    worker._began = 93.0
    for silent, expected in ((None, 7.0), (0.2, 0.2), (40.0, 40.0)):
        worker.ordered = SimpleNamespace(silent=silent)
        worker._refresh()
        assert worker.metrics.registry.get_sample_value("tidegate_broker_silent_seconds") == expected


def test_a_broker_that_is_away_is_told_at_once_and_is_no_reason_to_be_unready_for_a_while(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long, and then for whom: a balancer, or whoever restarts what is not ready."""
    worker.timeline, worker.assigned = Timeline.of(flags()), asyncio.Event()
    worker.settings = load_settings(broker="b:1", broker_patience="10s")
    worker.ordered = Follower(worker.settings, "operations", lambda _: None)
    worker.assigned.set()
    assert worker._ready()["broker"] == (False, "not yet")
    worker.ordered._read_at = 0.0
    for now, expected in ((0.9, (True, "ok")), (4.0, (True, "away for 4 s")), (10.5, (False, "away for 10 s"))):
        monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=lambda now=now: now))
        ready = worker._ready()
        assert ready.pop("broker") == expected
        assert set(ready.values()) == {(True, "ok")}


def test_a_checkpoint_that_cannot_be_written_at_the_end_is_one(worker: Any) -> None:
    async def unsaved() -> None:
        await worker.fail(ValueError("not saved"))

    worker.keepers = {0: SimpleNamespace(save_now=unsaved)}
    asyncio.run(worker._shut_down())
    assert [str(error) for error in worker.crashed] == ["not saved"]


class Topic:
    """A telemetry topic with a worker that has read all of it; ``ticked``: when and where it sent a tick."""

    def __init__(self, worker: Any, monkeypatch: pytest.MonkeyPatch, after: int | None = 10_000) -> None:
        self.worker, self.now = worker, 1_000.0
        self.tps = [TP("tidegate.telemetry", partition) for partition in range(2)]
        self.ends = dict.fromkeys(self.tps, 0)
        self.ticked: list[tuple[float, int]] = []
        worker.settings = SimpleNamespace(tick_idle_after=after, telemetry_topic="tidegate.telemetry")
        worker.partitions, worker._alive, worker.send = 2, False, self._send
        worker.app.consumer = SimpleNamespace(highwaters=self._highwaters)
        worker.keepers = {
            tp: SimpleNamespace(agent="window", tp=tp, heard_at=self.now, state=SimpleNamespace(next=0))
            for tp in self.tps
        }
        monkeypatch.setattr(app, "time", SimpleNamespace(monotonic=lambda: self.now, time=time.time))

    async def _highwaters(self, *tps: TP) -> dict[TP, int]:
        return {tp: self.ends[tp] for tp in tps}

    async def _send(self, topic: str, key: None, value: bytes, partition: int) -> None:
        assert b'"kind":"tick"' in value.replace(b" ", b"")
        self.ticked.append((self.now - 1_000, partition))
        self.write(partition, read=False)

    def write(self, partition: int, *, read: bool = True) -> None:
        """A record comes, and is read at once."""
        tp = self.tps[partition]
        self.ends[tp] += 1
        keeper = self.worker.keepers[tp]
        keeper.state.next += 1
        if read:
            keeper.heard_at = self.now

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            asyncio.run(self.worker._tick())


@pytest.mark.parametrize("empty", [1, 9, 10, 15, 60])
def test_silence_is_counted_from_the_topics_first_record_on(
    empty: int, worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the worker waited for it: a tick at once would make old telemetry that is played in late."""
    topic = Topic(worker, monkeypatch)
    topic.wait(empty)
    topic.write(0)
    topic.wait(9)
    assert topic.ticked == []
    topic.wait(2)
    assert sorted(partition for _, partition in topic.ticked) == [0, 1]


def test_a_partition_that_falls_silent_is_ticked_for_as_long_as_it_is(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = Topic(worker, monkeypatch)
    for _ in range(35):
        topic.write(0)
        topic.wait(1)
    assert {partition for _, partition in topic.ticked} == {1}
    assert [b - a for (a, _), (b, _) in pairwise(topic.ticked)] == [10, 10]


def test_without_a_setting_nobody_is_ticked(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = Topic(worker, monkeypatch, after=None)
    topic.write(0)
    topic.wait(60)
    assert topic.ticked == []
