"""What real workers tell of themselves over HTTP while partitions move and brokers come and go."""

import asyncio
import signal
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streams.settings import Settings
from tests.integration.test_operations import wait_for
from tests.integration.test_worker import MANIFEST, PARTITIONS, telemetry
from tests.integration.workers import WorkerProcess, publish, running

__all__ = ["MANIFEST"]


def told(worker: WorkerProcess) -> dict[str, list[str]]:
    """What a worker shows of partitions and units: the labels of each metric."""
    address = str(worker.logged("serving")[-1]["address"])
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as page:  # noqa: S310 - our own http address
        families = list(text_string_to_metric_families(page.read().decode()))
    names = "tidegate_position", "tidegate_watermark_ms", "tidegate_canary_weight", "tidegate_unit_retired"
    found = {family.name: sorted("|".join(one.labels.values()) for one in family.samples) for family in families}
    return {name: found[name] for name in names}


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
