"""What real workers tell of themselves over HTTP while partitions move and brokers come and go."""

import asyncio
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.broker import BrokerUnavailable, LocalBroker, give_up
from tests.integration.test_operations import wait_for
from tests.integration.test_worker import MANIFEST, PARTITIONS, telemetry
from tests.integration.workers import WorkerProcess, publish, running
from tidegate.streams.kafka.topics import create_topics
from tidegate.streams.settings import Settings, load_settings

__all__ = ["MANIFEST"]


def told(worker: WorkerProcess) -> dict[str, list[str]]:
    """What a worker shows of partitions and units: the labels of each metric."""
    address = str(worker.logged("serving")[-1]["address"])
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as page:  # noqa: S310 - our own http address
        families = list(text_string_to_metric_families(page.read().decode()))
    names = "tidegate_position", "tidegate_watermark_ms", "tidegate_canary_weight", "tidegate_unit_retired"
    found = {family.name: sorted("|".join(one.labels.values()) for one in family.samples) for family in families}
    return {name: found[name] for name in names}


def readiness(worker: WorkerProcess) -> tuple[int, str]:
    """Status and text of ``/readyz``."""
    address = str(worker.logged("serving")[-1]["address"])
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=10) as page:  # noqa: S310 - our own http address
            return page.status, page.read().decode()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.read().decode()


@pytest.mark.kafka
def test_a_worker_tells_of_a_broker_that_is_away_and_is_ready_again_when_it_is_back(tmp_path: Path) -> None:
    """In the text at once, and as the status only after a while; a flag that nobody knows is one line in its log."""
    try:
        broker = LocalBroker(tmp_path / "kafka")
    except BrokerUnavailable as error:
        give_up(error)
    settings = load_settings(broker=broker.bootstrap, gate_partitions=2, partitions=PARTITIONS)
    manifest = tmp_path / "flags.yml"
    manifest.write_text(MANIFEST)
    worker = WorkerProcess(settings, manifest, "worker", tmp_path, environment={"TIDEGATE_BROKER_PATIENCE": "8s"})
    with broker:
        asyncio.run(create_topics(settings))
        asyncio.run(publish(settings, telemetry(3_000, 5)))
        with running(worker):
            wait_for(lambda: readiness(worker) == (200, "manifest: ok\npartitions: ok\nbroker: ok\n"))
            wait_for(lambda: bool(worker.logged("unknown flag")))
            broker.kill()
            wait_for(lambda: "broker: away for " in readiness(worker)[1], 6)
            assert readiness(worker)[0] == 200
            wait_for(lambda: readiness(worker)[0] == 503, 10)
            assert worker.running
            broker.start()
            wait_for(lambda: readiness(worker) == (200, "manifest: ok\npartitions: ok\nbroker: ok\n"))
    assert [line["flag"] for line in worker.logged("unknown flag")] == ["unknown"]


@pytest.mark.kafka
def test_what_moved_to_another_worker_is_shown_by_that_one_alone(
    settings: Settings, manifest: Path, tmp_path: Path
) -> None:
    """Partitions and units, without a record that comes meanwhile; and back, when the other has ended."""
    first, second = (WorkerProcess(settings, manifest, f"worker-{n}", tmp_path) for n in (1, 2))
    asyncio.run(publish(settings, telemetry(30_000, 5)))
    places = "tidegate_position", "tidegate_watermark_ms"

    def whole(shown: dict[str, list[str]]) -> bool:
        units = shown["tidegate_canary_weight"]
        return all(len(shown[name]) == PARTITIONS + settings.gate_partitions for name in places) and len(units) == 4

    def divided() -> bool:
        here, there = told(first), told(second)
        both = {name: sorted(here[name] + there[name]) for name in alone}
        return both == alone and all(here[name] and there[name] for name in places)

    with running(first):
        wait_for(lambda: whole(told(first)), 60)
        alone = told(first)
        with running(second):
            wait_for(divided, 60)
            assert second.signal(signal.SIGTERM) == 0
            wait_for(lambda: told(first) == alone, 60)
