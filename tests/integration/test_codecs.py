"""Every codec of Kafka is read out of the box: one compressed batch must not end a worker or an auditor."""

import asyncio
from pathlib import Path

from aiokafka import AIOKafkaProducer

from tests.integration.test_worker import MANIFEST, await_written, replayed, telemetry
from tests.integration.workers import WorkerProcess, running
from tidegate.streams.settings import Settings

__all__ = ["MANIFEST"]
CODECS = (None, "gzip", "snappy", "lz4", "zstd")


async def publish_in_turn(settings: Settings, records: list[tuple[int, bytes]]) -> None:
    """Publish records in pieces, each by a producer with another codec."""
    size = -(-len(records) // len(CODECS))
    for number, codec in enumerate(CODECS):
        async with AIOKafkaProducer(**settings.kafka, linger_ms=20, compression_type=codec) as producer:
            for partition, value in records[number * size : (number + 1) * size]:
                await producer.send(settings.telemetry_topic, value, partition=partition)
            await producer.flush()


def test_a_topic_in_all_codecs_is_decided_as_ever(settings: Settings, manifest: Path, tmp_path: Path) -> None:
    """Workers and auditors read the same records, whoever compressed them how."""
    asyncio.run(publish_in_turn(settings, list(telemetry(20_000, seed=3))))
    decisions, commands, _ = replayed(settings, tmp_path)
    assert decisions
    worker = WorkerProcess(settings, manifest, "worker", tmp_path)
    with running(worker):
        await_written(settings, settings.decisions_topic, decisions, 60)
        await_written(settings, settings.control_topic, commands, 60)
