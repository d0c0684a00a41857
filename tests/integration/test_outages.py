"""Real faults, one after the other, on one deployment that is never given a rest; then a partition too many."""

import time
from pathlib import Path

import pytest

from tests.integration.broker import BrokerUnavailable, give_up
from tests.integration.outages import (
    Deployment,
    add_partition,
    broker_gone,
    checkpoints_deleted,
    run,
    sigkill,
    sigstop,
    sigterm,
)

FAULTS = [
    ("SIGSTOP past the session, SIGCONT", sigstop),
    ("broker gone", broker_gone(3)),
    ("checkpoint topics deleted", checkpoints_deleted),
    ("SIGKILL", sigkill),
    ("SIGTERM", sigterm),
]
REFUSED = ("partitions cannot be added", "not 5; partitions cannot be added later")


def grown(deployment: Deployment) -> None:
    """A partition is added; whoever runs ends, whoever starts does not, and both say why."""
    add_partition(deployment)
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        texts = [worker.log.read_text() for worker in deployment.workers]
        if all(all(refused in text for refused in REFUSED) for text in texts):
            return
        time.sleep(0.5)
    raise AssertionError("the workers do not say that a partition is too many")


@pytest.mark.kafka
def test_faults_change_no_byte_and_a_new_partition_is_refused(tmp_path: Path) -> None:
    """With garbage, deep JSON, records of nearly 1 MB and clocks that jump in the telemetry."""
    try:
        report = run("all", tmp_path, FAULTS, events=70_000, per_second=4_000, pause=(0.3, 1.0), after=grown)
    except BrokerUnavailable as error:
        give_up(error)
    print(report.row(), report.recoveries)
    assert report.same, report.errors
    assert min(report.decisions, report.commands) > 0
    assert report.restarts >= 3, "one each for the signals, one or two for the checkpoints"


@pytest.mark.kafka
def test_an_outage_of_a_publishing_service_loses_what_its_queue_has_no_room_for_and_changes_no_byte(
    tmp_path: Path,
) -> None:
    """Each event is in one counter, and what was taken is in the topic; see the long form for 57 seconds of it."""
    faults = [("gone", broker_gone(6))]
    try:
        report = run("service", tmp_path, faults, events=50_000, per_second=2_000, capacity=5_000)
    except BrokerUnavailable as error:
        give_up(error)
    print(report.row(), report.service)
    assert report.same, report.errors
    assert report.service is not None
    assert report.service.wrong == []
    assert min(report.service.dropped, report.service.rejected, report.decisions) > 0
