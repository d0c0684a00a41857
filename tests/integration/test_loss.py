"""Retention that deleted what no worker had read yet, on a real Kafka."""

import asyncio
import gzip
import json
import signal
import time
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from tests.commands.invoke import tidegate
from tests.integration.test_worker import MANIFEST, PARTITIONS, await_written, telemetry
from tests.integration.workers import WorkerProcess, dump, publish, running
from tidegate.schemas.load import load_manifest
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.compare import by_unit
from tidegate.streams.audit.replay import replay
from tidegate.streams.kafka.tail import tail
from tidegate.streams.kafka.topics import connect
from tidegate.streams.settings import Settings

LOSING = 1
"""The partition whose records are deleted."""


async def ends(settings: Settings, topic: str) -> dict[int, int]:
    """The offset after the last record of each partition."""
    async with tail(settings, topic) as records:
        found = await records.history()
    return {p: 1 + max(r.offset for r in found if r.partition == p) for p in {record.partition for record in found}}


async def delete_before(settings: Settings, topic: str, partition: int, offset: int) -> None:
    """What retention does."""
    admin = await connect(settings)
    try:
        await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(offset)})
    finally:
        await admin.close()


def await_position(settings: Settings, file: Path) -> None:
    """Wait until the workers have decided what the topic so far gives."""
    timeline = Timeline.of(load_manifest(MANIFEST).flags)
    decisions = by_unit(d.to_bytes() for d, _ in replay([file], timeline, PARTITIONS, settings.clockwork))
    assert decisions
    await_written(settings, settings.decisions_topic, decisions, 60)


@pytest.mark.kafka
def test_a_worker_goes_on_after_a_loss_only_where_it_may_and_every_replay_sees_it(
    settings: Settings, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the option one line says what is gone and how to go on; with it the bytes are those of an archive that
    has everything, of one that has not, and of the auditor's who begins behind the loss."""
    monkeypatch.setenv("TIDEGATE_TOPIC_PREFIX", settings.topic_prefix)
    monkeypatch.setenv("TIDEGATE_APPLICATION_ID", settings.application_id)
    records = [record for record in telemetry(60_000, seed=21) if b'"tick"' not in record[1]]
    ticks = [record for record in telemetry(60_000, seed=21) if b'"tick"' in record[1]]
    third = len(records) // 3
    file = tmp_path / "one.ndjson"
    asyncio.run(publish(settings, records[:third]))
    asyncio.run(dump(settings, file))
    worker = WorkerProcess(settings, manifest, "worker", tmp_path)
    with running(worker):
        await_position(settings, file)
        worker.signal(signal.SIGTERM)
        read = asyncio.run(ends(settings, settings.telemetry_topic))[LOSING]
        asyncio.run(publish(settings, records[third : 2 * third]))
        begin = asyncio.run(ends(settings, settings.telemetry_topic))[LOSING] - 100
        archive = tmp_path / "archive"
        done = tidegate("export", "--broker", settings.broker, "--out", archive, "--format", "ndjson")
        assert done.code == 0, done.err
        asyncio.run(delete_before(settings, settings.telemetry_topic, LOSING, begin))

        worker.start()
        give_up = time.monotonic() + 60
        while worker.running and time.monotonic() < give_up:
            time.sleep(0.2)
        assert not worker.running
        (failed,) = worker.logged("failed")
        assert failed["error"] == (
            f"records {read} to {begin - 1} of {settings.telemetry_topic}-{LOSING} were deleted before they were read; "
            "start the workers with --accept-loss (TIDEGATE_ACCEPT_LOSS=true) to go on without them: the windows they "
            "touch are held"
        )

        accepting = WorkerProcess(
            settings, manifest, "accepting", tmp_path, environment={"TIDEGATE_ACCEPT_LOSS": "true"}
        )
        with running(accepting):
            asyncio.run(publish(settings, [*records[2 * third :], *ticks]))
            later = tmp_path / "later"
            time.sleep(2.0)  # The loss is written when the partition is assigned.
            done = tidegate("export", "--broker", settings.broker, "--out", later, "--format", "parquet")
            assert done.code == 0, done.err
            (kept,), (rest,) = archive.glob("telemetry.*"), later.glob("telemetry.*")
            timeline = Timeline.of(load_manifest(MANIFEST).flags)
            outcomes = list(replay([kept, rest], timeline, PARTITIONS, settings.clockwork))
            await_written(settings, settings.decisions_topic, by_unit(d.to_bytes() for d, _ in outcomes), 60)
        (lost,) = accepting.logged("records lost")
        assert (lost["partition"], lost["offsets"]) == (LOSING, f"{read} to {begin - 1}")

    details = [p.detail for d, _ in outcomes for p in d.evidence_problems if "lost" in p.detail]
    offsets = {"first": read, "last": begin - 1}
    assert details
    assert all(found["offsets"] == offsets and found["count"] == begin - read for found in details)
    last: dict[str, bool] = {}
    for decision, _ in outcomes:
        last[decision.key] = any("lost" in problem.detail for problem in decision.evidence_problems)
    assert not any(last.values())

    # An archive that has lost the same.
    thin = tmp_path / "thin.ndjson"
    with thin.open("wb") as target, gzip.open(kept) as lines:
        for line in lines:
            head = json.loads(line)
            if head["partition"] != LOSING or head["offset"] < read:
                target.write(line)
    again = replay([thin, rest], timeline, PARTITIONS, settings.clockwork)
    assert by_unit(d.to_bytes() for d, _ in again) == by_unit(d.to_bytes() for d, _ in outcomes)

    # The topic itself, from what was saved behind the loss.
    command = ["replay", "--manifest", manifest, "--broker", settings.broker, "--out", tmp_path / "out.ndjson"]
    done = tidegate(*command, "--from", max(d.window.end for d, _ in outcomes) - 30_000, "--compare")
    assert done.code == 0, done.out + done.err
