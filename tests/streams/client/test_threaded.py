"""Telemetry from threads, forked servers and scripts: the same promises as from asyncio."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tidegate.prometheus import PublisherCollector
from tidegate.schemas.errors import EventError
from tidegate.streams.client.threaded import SyncTelemetryPublisher
from tidegate.streams.kafka.tail import tail
from tidegate.streams.settings import Settings, load_settings
from tidegate.streams.simulation.embedded_broker import EmbeddedBroker, embedded

TOPIC, PARTITIONS = "tidegate.telemetry", 3
ROOT = Path(__file__).parents[3]


@pytest.fixture
def kafka() -> Iterator[EmbeddedBroker]:
    with embedded({TOPIC: PARTITIONS}) as broker:
        yield broker


@pytest.fixture
def settings(kafka: EmbeddedBroker) -> Settings:
    return load_settings(broker=kafka.servers, fetch_wait=50)


def event(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "event_id": name,
        "ts": int(time.time() * 1000),
        "flag": "f",
        "arm": "canary",
        "sticky_id": f"u{hash(name) % 7}",
        "latency_ms": 1.5,
        "error": False,
    } | changes


async def _ids(settings: Settings) -> list[str]:
    async with tail(settings, TOPIC) as records:
        return sorted(json.loads(record.value)["event_id"] for record in await records.history())


def stored(settings: Settings) -> list[str]:
    return asyncio.run(_ids(settings))


def offered(telemetry: SyncTelemetryPublisher) -> int:
    """Return what the counters say of how often ``publish`` was called."""
    return telemetry.sent + telemetry.failed + telemetry.dropped + telemetry.rejected + telemetry.pending


def test_events_of_many_threads_all_arrive_each_once(settings: Settings) -> None:
    def work(number: int) -> None:
        for n in range(200):
            assert telemetry.publish(event(f"{number}-{n}"))

    with SyncTelemetryPublisher(settings) as telemetry:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert telemetry.flush(20)
        assert (telemetry.sent, telemetry.pending) == (1000, 0)
    assert stored(settings) == sorted(f"{number}-{n}" for number in range(5) for n in range(200))


@pytest.mark.parametrize("broker", ["there", "gone", "never there"])
def test_the_counters_add_up_after_closing_also_with_threads_that_go_on(broker: str, kafka: EmbeddedBroker) -> None:
    """Whatever is published around the closing is in exactly one of them."""
    if broker == "never there":
        kafka.leave()
    telemetry = SyncTelemetryPublisher(load_settings(broker=kafka.servers), capacity=300, close_seconds=1)
    calls, stop = [0] * 4, threading.Event()

    def work(number: int) -> None:
        while not stop.is_set():
            telemetry.publish(event(f"{number}-{calls[number]}", cost=-1.0 if calls[number] % 10 == 0 else 1.0))
            calls[number] += 1
            time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    if broker == "gone":
        telemetry.flush(5)
        kafka.leave()
    telemetry.close()
    stop.set()
    for thread in threads:
        thread.join()
    assert offered(telemetry) == sum(calls)
    assert telemetry.pending == 0
    assert telemetry.rejected > 0
    assert telemetry.dropped > 0
    assert (telemetry.sent > 0) == (broker != "never there")
    assert telemetry.failed > 0 or broker == "there"


def test_capacity_bounds_what_waits(kafka: EmbeddedBroker) -> None:
    kafka.leave()
    telemetry = SyncTelemetryPublisher(load_settings(broker=kafka.servers), capacity=10, close_seconds=0.1)
    assert [telemetry.publish(event(f"{n}")) for n in range(25)] == [True] * 10 + [False] * 15
    assert (telemetry.pending, telemetry.dropped) == (10, 15)
    telemetry.close()
    assert (telemetry.failed, telemetry.dropped, telemetry.pending) == (10, 15, 0)


def test_closing_one_that_published_nothing_starts_nothing(settings: Settings) -> None:
    before = threading.active_count()
    with SyncTelemetryPublisher(settings) as telemetry:
        assert telemetry.flush(0)
    telemetry.close()
    assert threading.active_count() == before
    assert not telemetry.publish(event("late"))
    assert telemetry.dropped == 1


def test_strict_raises_what_would_be_rejected(settings: Settings) -> None:
    with SyncTelemetryPublisher(settings, strict=True) as telemetry, pytest.raises(EventError, match="delta_s"):
        telemetry.publish(event("e", delta_s=3.0))
    assert telemetry.rejected == 1


def run(settings: Settings, text: str) -> str:
    """Run a script with a publisher ``telemetry`` and ``event``; what it printed."""
    head = (
        "import os, sys, time\n"
        "from tests.streams.client.test_threaded import event, offered\n"
        "from tidegate import SyncTelemetryPublisher\n"
        "telemetry = SyncTelemetryPublisher()\n"
    )
    environment = dict(os.environ) | {
        "TIDEGATE_BROKER": settings.broker.replace("127.0.0.1", "localhost"),
        "PYTHONPATH": str(ROOT),
    }
    script = [sys.executable, "-c", head + text]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_script_that_just_ends_loses_nothing(settings: Settings) -> None:
    """The connection itself is made after its last line, to a name that has to be looked up; nobody closes."""
    run(settings, "for n in range(100): telemetry.publish(event(f'e{n}'))")
    assert stored(settings) == sorted(f"e{n}" for n in range(100))


def test_forked_children_publish_their_own_and_the_parents_go_on(settings: Settings) -> None:
    """As a server that loads the application and forks workers, here with events under way."""
    out = run(
        settings,
        "for n in range(50): telemetry.publish(event(f'before-{n}'))\n"
        "telemetry.flush(20)\n"
        "for n in range(50): telemetry.publish(event(f'under-way-{n}'))\n"
        "children = []\n"
        "for child in range(2):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        assert offered(telemetry) == 0\n"
        "        for n in range(50): telemetry.publish(event(f'child-{child}-{n}'))\n"
        "        telemetry.close()\n"
        "        os._exit(0 if (telemetry.sent, offered(telemetry)) == (50, 50) else 1)\n"
        "    children.append(pid)\n"
        "for n in range(50): telemetry.publish(event(f'after-{n}'))\n"
        "assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]\n"
        "telemetry.close()\n"
        "print(telemetry.sent, offered(telemetry))",
    )
    assert out.split() == ["150", "150"]
    names = ("before", "under-way", "child-0", "child-1", "after")
    assert stored(settings) == sorted(f"{name}-{n}" for name in names for n in range(50))


def test_prometheus_shows_the_counters(settings: Settings) -> None:
    registry = CollectorRegistry()
    with SyncTelemetryPublisher(settings) as telemetry:
        registry.register(PublisherCollector(telemetry))
        telemetry.publish(event("e1"))
        telemetry.publish(event("e2", cost=-1.0))
        assert telemetry.flush(20)
        lines = generate_latest(registry).decode().splitlines()
    assert 'tidegate_publisher_events_total{outcome="sent"} 1.0' in lines
    assert 'tidegate_publisher_events_total{outcome="rejected"} 1.0' in lines
    assert 'tidegate_publisher_events_total{outcome="dropped"} 0.0' in lines
    assert "tidegate_publisher_pending 0.0" in lines
