"""A worker's past on a real Kafka: replayed and exported from the topics to the byte, and nothing written there."""

import asyncio
import gzip
import hashlib
import json
import signal
import time
from itertools import chain
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.commands.invoke import Done, tidegate
from tests.integration.test_operations import MANIFEST, future_telemetry, send_at, wait_for, write
from tests.integration.test_worker import PARTITIONS
from tests.integration.workers import WorkerProcess, written
from tidegate.schemas.operation import Operation
from tidegate.schemas.signed import PrivateKey, sign
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.compare import by_unit
from tidegate.streams.engine.gate_log import is_order, partial_codec
from tidegate.streams.engine.pipeline import Pipeline
from tidegate.streams.engine.runs import NEVER, Run
from tidegate.streams.kafka.history import History
from tidegate.streams.kafka.manifests import load_trusted, read_files, sign_revision
from tidegate.streams.kafka.retained import Retained, find
from tidegate.streams.settings import Settings


def watermark(settings: Settings, timeline: Timeline, records: list[tuple[int, bytes, int]]) -> int:
    """The end of the last pane that these records close, ms."""
    pipeline = Pipeline(timeline, PARTITIONS, settings.clockwork)
    for partition in range(PARTITIONS):
        rows = [(value, ts) for at, value, ts in records if at == partition]
        list(pipeline.step(partition, Run(0, [value for value, _ in rows], [ts for _, ts in rows])))
    assert pipeline.gates[0].watermark is not None
    return pipeline.gates[0].watermark


def closed(settings: Settings) -> int:
    """The panes that every partition has closed for every gate, as an end in ms."""
    found = {(gate, partition): NEVER for gate in range(2) for partition in range(PARTITIONS)}
    with History(settings) as history:
        for record in history.records(settings.partials_topic):
            if not is_order(record.key):
                partial = partial_codec.load(record.value)
                found[record.partition, partial.partition] = partial.pane + 1
    return min(found.values()) * settings.pane


def decided(settings: Settings) -> int:
    """The end of the last window that every unit has a decision on, ms."""
    found = asyncio.run(written(settings, settings.decisions_topic))
    return min(int(json.loads(decisions[-1])["window"]["end"]) for decisions in found.values())


def retained_by(settings: Settings) -> Retained:
    """What the workers have retained so far."""
    with History(settings) as history:
        return find(history, settings, [0] * PARTITIONS, print)


def taken_up(settings: Settings, at: int) -> bool:
    """Whether a replay from ``at``, ms, on would begin at checkpoints."""
    cut = retained_by(settings).latest([lambda mark: min(mark.closed) * settings.pane <= at] * 2)
    return cut is not None and not cut.from_beginning


def everything(settings: Settings) -> tuple[dict[tuple[str, int], tuple[int, int]], list[str]]:
    """First and end offset of every partition on the broker, and its groups."""
    admin = AdminClient({"bootstrap.servers": settings.broker})
    consumer = Consumer({"bootstrap.servers": settings.broker, "group.id": "never-joined"})
    offsets = {
        (name, partition): consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=10)
        for name, topic in admin.list_topics(timeout=10).topics.items()
        for partition in topic.partitions
    }
    consumer.close()
    return offsets, sorted(group.group_id for group in admin.list_consumer_groups().result().valid)


def members(settings: Settings) -> int:
    """Members of the worker's group."""
    admin = AdminClient({"bootstrap.servers": settings.broker})
    (described,) = admin.describe_consumer_groups([settings.application_id]).values()
    return len(described.result().members)


FILES = {"--manifest": "manifests", "--events": "telemetry", "--operations": "operations"}


@pytest.mark.kafka
def test_the_past_is_decided_again_from_the_topics_and_nothing_is_written(
    settings: Settings, tmp_path: Path, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24,000 events, a signed manifest from its topic, a kill in mid-window: replay, compare, mid-history, export."""
    trusted, revision = tmp_path / "trusted", tmp_path / "revision"
    start = (int(time.time() * 1000) - 900_000) // settings.pane * settings.pane
    revision.write_bytes(sign_revision(MANIFEST, 1, start, settings.deployment, key))
    timeline = read_files([revision], settings, load_trusted(trusted))
    asyncio.run(write(settings, settings.manifests_topic, revision.read_bytes(), b"revision-0000000001"))
    events = list(future_telemetry(start, 240))
    half = watermark(settings, timeline, events[:17_500])
    worker = WorkerProcess(
        settings,
        None,
        "worker",
        tmp_path,
        environment={
            "TIDEGATE_TRUSTED_KEYS": str(trusted),
            "TIDEGATE_SESSION_TIMEOUT": "6s",
            "TIDEGATE_RETAIN_EVERY": "20s",
        },
    )
    worker.start()
    try:
        worker.wait_ready()
        # In two parts, so that there are checkpoints of both agents between which a replay can be taken up.
        asyncio.run(send_at(settings, iter(events[:4_000])))
        wait_for(lambda: all(retained_by(settings).windows), 60)
        asyncio.run(send_at(settings, iter(events[4_000:17_500])))
        wait_for(lambda: closed(settings) == half, 60)
        wait_for(lambda: taken_up(settings, half), 60)
        # Its time is where it stands in the log, so that a replay from files puts it there too.
        kill = Operation(actor="Ada", flag="answer", kind="kill", reason="bad", ts=half + settings.lateness)
        asyncio.run(
            write(settings, settings.operations_topic, sign("operation", settings.deployment, kill.to_bytes(), key))
        )
        asyncio.run(write(settings, settings.operations_topic, kill.to_bytes()))
        wait_for(lambda: len(asyncio.run(written(settings, settings.control_topic))) == 2)
        wait_for(lambda: b'"kill"' in asyncio.run(written(settings, settings.control_topic))["answer|us"][-1])
        asyncio.run(send_at(settings, iter(events[17_500:])))
        wait_for(lambda: closed(settings) >= start + 240_000, 60)
        # The gates are behind the partials; what is stopped before they are done is decided by the next worker.
        wait_for(lambda: decided(settings) >= start + 240_000, 60)
        assert worker.signal(signal.SIGTERM) == 0
    finally:
        if worker.running:
            worker.signal(signal.SIGKILL)
    live = asyncio.run(written(settings, settings.decisions_topic))
    obeyed = asyncio.run(written(settings, settings.control_topic))
    assert {"hold", "kill"} == {json.loads(line)["verdict"] for lines in live.values() for line in lines}

    monkeypatch.setenv("TIDEGATE_TOPIC_PREFIX", settings.topic_prefix)
    monkeypatch.setenv("TIDEGATE_APPLICATION_ID", settings.application_id)
    # A worker with a name of its own does not leave: the broker notes its end when its session is over.
    wait_for(lambda: members(settings) == 0, 60)
    before = everything(settings)
    out, commands, dump = tmp_path / "out.ndjson", tmp_path / "commands.ndjson", tmp_path / "dump"

    def replay(*more: object) -> Done:
        given = "--trusted-keys", trusted, "--out", out, "--commands", commands
        return tidegate("replay", *given, *more)

    def from_topics(*more: object) -> Done:
        return replay("--broker", settings.broker, *more)

    done = from_topics("--compare")
    assert (done.code, done.err) == (0, ""), done.out
    assert "the same bytes as the topics" in done.out
    assert "1 record of" in done.out, "the unsigned kill does not count"
    assert by_unit(out.read_bytes().splitlines()) == live
    assert by_unit(commands.read_bytes().splitlines()) == obeyed
    whole = out.read_bytes(), commands.read_bytes()

    exported = tidegate("export", "--broker", settings.broker, "--out", dump)
    assert (exported.code, exported.err) == (0, "")
    operations = tmp_path / "operations"
    operations.write_bytes(kill.to_bytes())
    telemetry = "--manifest", revision, "--events", dump / "telemetry.ndjson.gz", "--operations", operations
    assert replay(*telemetry, "--compare", dump / "decisions.ndjson.gz").code == 0
    assert (out.read_bytes(), commands.read_bytes()) == whole
    assert tidegate("export", "--broker", settings.broker, "--out", dump, "--format", "parquet", "--replace").code == 0
    for ending in ("ndjson.gz", "parquet"):
        files = {option: dump / f"{name}.{ending}" for option, name in FILES.items()}
        done = replay(*chain.from_iterable(files.items()), "--compare", dump / f"decisions.{ending}")
        assert (done.code, done.err) == (0, ""), done.out
        assert "1 record of" in done.out, "the unsigned kill does not count"
    assert (out.read_bytes(), commands.read_bytes()) == whole
    assert tidegate("export", "--broker", settings.broker, "--out", dump, "--replace").code == 0
    manifest = json.loads((dump / "manifest.json").read_bytes())
    offsets, _ = before
    for topic in manifest["topics"]:
        content = (dump / topic["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == topic["sha256"]
        assert len(gzip.decompress(content).splitlines()) == topic["records"]
        for one in topic["partitions"]:
            first, end = offsets[topic["topic"], one["partition"]]
            assert (one["first"], one["last"]) == ((first, end - 1) if first < end else (None, None))

    lines = gzip.decompress((dump / "decisions.ndjson.gz").read_bytes())
    (tmp_path / "flipped.ndjson").write_bytes(lines.replace(b'"late":0', b'"late":1', 1))
    flipped = from_topics("--compare", tmp_path / "flipped.ndjson")
    assert flipped.code == 1
    assert "answer|" in flipped.out
    assert "in late" in flipped.out

    for after in (half, half + 20_000):  # before the kill and after it
        middle = from_topics("--from", after, "--compare")
        assert middle.code == 0, middle.out
        assert "resumed at the checkpoint of" in middle.out
        again = by_unit(out.read_bytes().splitlines())
        assert {
            unit: [line for line in lines if json.loads(line)["decided_at"] > after] for unit, lines in live.items()
        } == again
        assert all(b'"kill"' in lines[0] for lines in again.values()) == (after == half)

    some = from_topics("--to", start + 150_000, "--compare")
    assert some.code == 0, some.out
    assert 0 < len(out.read_bytes().splitlines()) < sum(map(len, live.values()))
    offsets, groups = everything(settings)
    assert {place: end for place, end in offsets.items() if before[0].get(place) != end} == {}, "nothing may be written"
    assert (offsets.keys(), groups) == (before[0].keys(), before[1])

    kept = retained_by(settings)
    firsts = {
        TopicPartition(settings.telemetry_topic, n): min(place.mark.next for place in places)
        for n, places in enumerate(kept.windows)
    }
    admin = AdminClient({"bootstrap.servers": settings.broker})
    gone = admin.delete_records([TopicPartition(at.topic, at.partition, first) for at, first in firsts.items()])
    assert [deleted.result().low_watermark for deleted in gone.values()] == list(firsts.values())
    rest = from_topics("--compare")
    assert rest.code == 0, rest.out
    assert "history is cut" in rest.out
    assert "resumed at the checkpoint of" in rest.out
    again = by_unit(out.read_bytes().splitlines())
    assert all(live[unit][-len(lines) :] == lines for unit, lines in again.items())
    assert again.keys() == live.keys()
    early = from_topics("--from", start - 1000, "--compare")
    assert early.code == 2
    assert "the first is --from" in early.line
    assert from_topics("--from", early.line.rsplit(" ", 1)[1], "--compare").code == 0


@pytest.mark.kafka
def test_a_topic_that_is_missing_is_named_and_not_made(
    kafka_broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_TOPIC_PREFIX", "nowhere")
    done = tidegate("export", "--broker", kafka_broker, "--out", tmp_path)
    assert done.code == 2
    assert "nowhere.decisions" in done.line
    names = AdminClient({"bootstrap.servers": kafka_broker}).list_topics(timeout=10).topics
    assert not [name for name in names if name.startswith("nowhere.")]
