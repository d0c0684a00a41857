"""Offsets without a record: transactions leave their marks, and what they took back, in the log."""

import asyncio
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from tests.commands.invoke import tidegate
from tests.integration.test_worker import MANIFEST, PARTITIONS, await_written, telemetry
from tests.integration.workers import WorkerProcess, publish, running
from tidegate.schemas.decision import Decision
from tidegate.schemas.load import load_manifest
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.compare import by_unit
from tidegate.streams.audit.replay import replay
from tidegate.streams.settings import Settings

__all__ = ["MANIFEST"]


async def publish_in_transactions(settings: Settings, records: list[tuple[int, bytes]]) -> None:
    """Publish records in pieces; after each of them the same again, with failures, in a transaction that is aborted."""
    name = f"{settings.topic_prefix}-service"
    async with AIOKafkaProducer(**settings.kafka, linger_ms=5, transactional_id=name) as producer:
        for at in range(0, len(records), 500):
            for commit in (True, False):
                await producer.begin_transaction()
                for partition, value in records[at : at + 500]:
                    sent = (
                        value if commit else value.replace(b'"error": false', b'"error": true').replace(b"-", b"+", 1)
                    )
                    await producer.send(settings.telemetry_topic, sent, partition=partition)
                await (producer.commit_transaction() if commit else producer.abort_transaction())


def told(decision: Decision) -> str:
    """All that does not depend on offsets."""
    return repr((decision.flag, decision.region, decision.window, decision.verdict, decision.arms))


@pytest.mark.kafka
@pytest.mark.parametrize("form", ["ndjson", "parquet"])
def test_only_what_was_committed_counts(
    settings: Settings, manifest: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For workers, in an export, and in a replay of it; nobody stops at an offset that has no record."""
    records = list(telemetry(10_000, seed=5))
    asyncio.run(publish(settings, records[:2_000]))
    asyncio.run(publish_in_transactions(settings, records[2_000:6_000]))
    time.sleep(0.1)
    middle = int(time.time() * 1000)
    asyncio.run(publish_in_transactions(settings, records[6_000:]))
    monkeypatch.setenv("TIDEGATE_TOPIC_PREFIX", settings.topic_prefix)

    def exported(name: str, *span: object) -> Path:
        done = tidegate("export", "--broker", settings.broker, "--out", tmp_path / name, "--format", form, *span)
        assert (done.code, done.err) == (0, "")
        (file,) = (tmp_path / name).glob("telemetry.*")
        return file

    timeline = Timeline.of(load_manifest(MANIFEST).flags)
    from_file = [d for d, _ in replay([exported("whole")], timeline, PARTITIONS, settings.clockwork)]
    # What was taken back lies between the two: at the end of the first there is no record.
    halves = exported("first", "--to", middle), exported("second", "--from", middle)
    assert [d for d, _ in replay(halves, timeline, PARTITIONS, settings.clockwork)] == from_file
    plain = tmp_path / "plain.ndjson"
    plain.write_bytes(b"".join(b'{"partition":%d,"value":%s}\n' % record for record in records))
    assert from_file
    worker = WorkerProcess(settings, manifest, "worker", tmp_path)
    with running(worker):
        await_written(settings, settings.decisions_topic, by_unit(d.to_bytes() for d in from_file), 60)
    undisturbed = [d for d, _ in replay([plain], timeline, PARTITIONS, settings.clockwork)]
    assert sorted(map(told, from_file)) == sorted(map(told, undisturbed))
