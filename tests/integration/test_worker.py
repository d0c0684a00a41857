"""The worker on a real Kafka: what it writes is what a replay of the same log gives, whatever happens to it."""

import asyncio
import json
import random
import signal
import threading
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import NewTopic
from aiokafka.structs import RecordMetadata

from tests.integration.workers import WorkerProcess, dump, publish, running, written
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.correction import Correction
from tidegate.schemas.load import load_manifest
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.compare import by_unit
from tidegate.streams.audit.replay import replay
from tidegate.streams.dumps.log import partition_of
from tidegate.streams.engine import native
from tidegate.streams.kafka import checkpoints
from tidegate.streams.kafka.tail import tail
from tidegate.streams.kafka.topics import connect
from tidegate.streams.settings import Settings

MANIFEST = """
flags:
  answer:
    scope: {regions: [eu, us]}
    versions: &pins {MODEL_VER: m2, PROMPT_VER: p2, INDEX_HASH: i2, RERANK_CONF: r, TOK_VER: t, ANALYZER_CONF: a}
    traffic: &traffic {stages: [0.25, 0.251, 0.252, 0.253]}
    window: {length: 60s, min_requests: 50}
    policy: {evidence: point, lambda_source: traffic}
  rerank:
    versions: *pins
    traffic: *traffic
    window: {length: 40s, min_requests: 50}
    policy: {evidence: point, lambda_source: traffic}
"""
PARTITIONS = 4
START = 1_700_000_000_000


def telemetry(events: int, seed: int, partitions: int = PARTITIONS, step_ms: int = 2) -> Iterator[tuple[int, bytes]]:
    """Records of two flags in two regions, with failures, repeats, stragglers and garbage; then ticks.

    A quarter of the users is in the canary, whatever is decided: the stages above stay close to that.
    ``step_ms``: event time from one event to the next.
    """
    rnd = random.Random(seed)
    pins = {"MODEL_VER": "m1", "PROMPT_VER": "p1", "INDEX_HASH": "i1", "RERANK_CONF": "r", "TOK_VER": "t"}
    versions = {
        "baseline": pins | {"ANALYZER_CONF": "a"},
        "canary": pins | {"MODEL_VER": "m2", "PROMPT_VER": "p2", "INDEX_HASH": "i2", "ANALYZER_CONF": "a"},
    }
    for number in range(events):
        user = rnd.randrange(5_000)
        arm = "canary" if user % 4 == 0 else "baseline"
        # Enough of the canary's stragglers fail to change a verdict afterwards.
        straggles = rnd.random() < (0.02 if arm == "canary" else 0.001)
        ts = START + number * step_ms + rnd.randrange(-2_000, 2_000) - (22_000 if straggles else 0)
        event = {
            "event_id": f"{seed}-{number}",
            "ts": ts,
            "flag": rnd.choice(["answer", "rerank", "unknown"]),
            "arm": arm,
            "sticky_id": f"user-{user}",
            "region": rnd.choice(["eu", "us"]),
            "versions": versions[arm],
            "delta_s": round(rnd.random() / 10, 6),
            "coverage": round(0.75 + rnd.random() / 5, 6),
            "lambda_state": "→",
            "latency_ms": round(rnd.lognormvariate(6, 0.1), 3),
            "error": rnd.random() < 0.001 or (straggles and arm == "canary"),
            "cost": round(0.001 + rnd.random() / 1e4, 8),
            "solved": rnd.random() < 0.9,
        }
        partition = partition_of(str(event["sticky_id"]).encode(), partitions)
        value = json.dumps(event, ensure_ascii=False).encode()
        yield partition, value
        if rnd.random() < 0.002:
            yield partition, value
        if rnd.random() < 0.0005:
            yield partition, b"no event"
    for partition in range(partitions):
        yield partition, b'{"kind":"tick","ts":%d}' % (START + events * step_ms + 120_000)


ByUnit = dict[str, list[bytes]]


def replayed(settings: Settings, folder: Path) -> tuple[ByUnit, ByUnit, ByUnit]:
    """Decisions, commands and corrections by unit that follow from the topic, dumped to a file."""
    file = folder / "telemetry.ndjson"
    asyncio.run(dump(settings, file))
    found: list[Correction] = []
    timeline = Timeline.of(load_manifest(MANIFEST).flags)
    outcomes = list(replay([file], timeline, PARTITIONS, settings.clockwork, corrected=found.append))
    decisions = by_unit(decision.to_bytes() for decision, _ in outcomes)
    commands = by_unit(command.to_bytes() for _, command in outcomes if command is not None)
    return decisions, commands, by_unit(correction.to_bytes() for correction in found)


def await_written(settings: Settings, topic: str, wanted: dict[str, list[bytes]], seconds: float) -> None:
    """Wait until the topic holds what it should; then assert that it holds nothing else."""
    give_up = time.monotonic() + seconds
    while (found := asyncio.run(written(settings, topic))) != wanted and time.monotonic() < give_up:
        time.sleep(0.5)
    assert {unit: len(records) for unit, records in found.items()} == {u: len(r) for u, r in wanted.items()}
    assert found == wanted


@pytest.mark.kafka
def test_five_kills_in_mid_window_change_no_byte(settings: Settings, manifest: Path, tmp_path: Path) -> None:
    """200,000 events, 4 partitions, two workers, SIGKILL five times at random: the bytes of an undisturbed replay."""
    seed = random.SystemRandom().randrange(1 << 32)
    rnd = random.Random(seed)
    workers = [WorkerProcess(settings, manifest, f"worker-{n}", tmp_path) for n in (1, 2)]
    with running(*workers):
        producing = threading.Thread(
            target=lambda: asyncio.run(publish(settings, telemetry(200_000, seed), per_second=9_000))
        )
        producing.start()
        kills = 0
        while kills < 5:
            time.sleep(rnd.uniform(1.0, 3.5))
            victim = rnd.choice(workers)
            assert victim.running, f"seed {seed}: {victim.log.read_text()[-2000:]}"
            victim.signal(signal.SIGKILL)
            kills += 1
            assert producing.is_alive(), f"seed {seed}: the events ran out before kill {kills}"
            victim.start()
        producing.join()
        decisions, commands, corrections = replayed(settings, tmp_path)
        assert sum(map(len, decisions.values())) > 20, "the log must close windows"
        assert sum(map(len, commands.values())) > 5, "the log must give commands"
        assert sum(map(len, corrections.values())) > 2, "the log must have stragglers that matter"
        try:
            await_written(settings, settings.decisions_topic, decisions, 90)
            await_written(settings, settings.control_topic, commands, 30)
            await_written(settings, settings.corrections_topic, corrections, 30)
        except AssertionError as error:
            tails = "\n".join(worker.log.read_text()[-1500:] for worker in workers)
            raise AssertionError(f"seed {seed}: {error}\n{tails}") from None


@pytest.mark.kafka
def test_sigterm_ends_within_five_seconds_and_loses_nothing(settings: Settings, manifest: Path, tmp_path: Path) -> None:
    """A worker told to stop in mid-window saves what it has; the next one goes on to the same bytes."""
    records = list(telemetry(40_000, 7))
    worker = WorkerProcess(settings, manifest, "worker", tmp_path)
    with running(worker):
        asyncio.run(publish(settings, records[:25_000]))
        time.sleep(1)
        asked = time.monotonic()
        assert worker.signal(signal.SIGTERM) == 0
        assert time.monotonic() - asked < 5
        assert worker.logged("stopped")
        assert not Path(f"{settings.application_id}-data").exists(), "it has to run where nothing can be written"
        asyncio.run(publish(settings, records[25_000:]))
        worker.start()
        worker.wait_ready(times=2)
        decisions, commands, _ = replayed(settings, tmp_path)
        assert decisions
        await_written(settings, settings.decisions_topic, decisions, 30)
        await_written(settings, settings.control_topic, commands, 30)


@pytest.mark.kafka
def test_late_and_broken_records_are_sent_on_unchanged(settings: Settings, manifest: Path, tmp_path: Path) -> None:
    """Late events and dead letters keep key, value and headers, and say where they come from and why.

    The worker's first line says which decoder judged them.
    """
    event = {"flag": "answer", "arm": "canary", "sticky_id": "u", "region": "eu", "latency_ms": 5, "error": False}
    values = [
        json.dumps(event | {"event_id": "1", "ts": START}).encode(),
        b'{"kind":"tick","ts":%d}' % (START + 60_000),
        json.dumps(event | {"event_id": "2", "ts": START}).encode(),
        b"\xff no JSON",
        json.dumps(event | {"event_id": "3", "ts": START + 60_000, "delta_s": 3}).encode(),
    ]

    async def send() -> None:
        async with AIOKafkaProducer(**settings.kafka) as producer:
            for value in values:
                await producer.send_and_wait(
                    settings.telemetry_topic, value, key=b"u", partition=1, headers=[("trace", b"42")]
                )

    worker = WorkerProcess(settings, manifest, "worker", tmp_path)
    with running(worker):
        asyncio.run(send())
        late, dead = sent_on(settings, settings.late_topic, 1), sent_on(settings, settings.dead_letter_topic, 2)
    assert [(r.key, r.value, r.partition) for r in late + dead] == [(b"u", values[n], 1) for n in (2, 3, 4)]
    for offset, record in zip((2, 3, 4), late + dead, strict=True):
        headers = dict(record.headers)
        assert headers["trace"] == b"42"
        assert headers["tidegate.topic"] == settings.telemetry_topic.encode()
        assert (headers["tidegate.partition"], headers["tidegate.offset"]) == (b"1", b"%d" % offset)
    assert b"delta_s" in dict(dead[1].headers)["tidegate.error"]
    first = json.loads(worker.log.read_text().splitlines()[0])
    assert (first["event"], first["decoder"]) == ("starting", native.running())


def sent_on(settings: Settings, topic: str, count: int) -> list[ConsumerRecord]:
    """The records of a topic, once there are ``count``."""

    async def read() -> list[ConsumerRecord]:
        async with tail(settings, topic) as records:
            return await records.history()

    give_up = time.monotonic() + 20
    while len(found := asyncio.run(read())) < count and time.monotonic() < give_up:
        time.sleep(0.2)
    assert len(found) == count
    return found


@pytest.mark.kafka
def test_silent_partitions_get_ticks_that_replay_sees(settings: Settings, tmp_path: Path) -> None:
    """One busy second in one partition, then silence: the worker itself moves the time until the window is decided."""
    path = tmp_path / "flags.yml"
    path.write_text("flags: {answer: {window: {length: 2s}}}")
    quick = {"TIDEGATE_PANE": "1s", "TIDEGATE_LATENESS": "1s", "TIDEGATE_TICK_IDLE_AFTER": "1s"}
    worker = WorkerProcess(settings, path, "worker", tmp_path, environment=quick)
    with running(worker):
        time.sleep(2.5)
        assert asyncio.run(written(settings, settings.decisions_topic)) == {}, "an untouched topic gets no ticks"
        now = int(time.time() * 1000)
        event = {"flag": "answer", "arm": "canary", "sticky_id": "u", "latency_ms": 5, "error": False}
        one = json.dumps(event | {"event_id": "1", "ts": now}).encode()
        asyncio.run(publish(settings, [(2, one)]))
        give_up = time.monotonic() + 20
        while not (found := asyncio.run(written(settings, settings.decisions_topic))) and time.monotonic() < give_up:
            time.sleep(0.2)
        assert worker.signal(signal.SIGTERM) == 0
    found = asyncio.run(written(settings, settings.decisions_topic))
    assert found, worker.log.read_text()[-2000:]
    file = tmp_path / "telemetry.ndjson"
    asyncio.run(dump(settings, file))
    clockwork = Clockwork(1_000, 1_000, settings.telemetry_topic)
    outcomes = replay([file], Timeline.of(load_manifest(path.read_text(), pane_ms=1_000).flags), PARTITIONS, clockwork)
    again = by_unit(decision.to_bytes() for decision, _ in outcomes)
    assert again["answer|"][: len(found["answer|"])] == found["answer|"]


@pytest.mark.kafka
def test_topics_that_would_break_results_are_refused(settings: Settings, manifest: Path, tmp_path: Path) -> None:
    """A worker on a compacted telemetry topic would lose events: it does not start, and says what to do."""
    prefix = f"{settings.topic_prefix}-compacted"
    broken = settings.model_copy(update={"topic_prefix": prefix, "application_id": prefix})

    async def compact() -> None:
        admin = await connect(broken)
        try:
            configs = {"cleanup.policy": "compact"}
            await admin.create_topics([NewTopic(broken.telemetry_topic, 4, 1, topic_configs=configs)])
        finally:
            await admin.close()

    asyncio.run(compact())
    worker = WorkerProcess(broken, manifest, "worker", tmp_path)
    worker.start()
    give_up = time.monotonic() + 30
    while worker.running and time.monotonic() < give_up:
        time.sleep(0.1)
    text = worker.log.read_text()
    assert not worker.running, text
    assert "cleanup.policy=compact, not delete" in text
    assert "Traceback" not in text


@pytest.mark.kafka
def test_of_two_workers_with_one_instance_id_the_earlier_one_ends_and_says_why(
    settings: Settings, manifest: Path, tmp_path: Path
) -> None:
    """Kafka lets the later one take its place. The earlier one would join anew, and both for ever after."""
    earlier = WorkerProcess(settings, manifest, "worker-1", tmp_path)
    later = WorkerProcess(settings, manifest, "later", tmp_path, environment={"TIDEGATE_INSTANCE_ID": "worker-1"})
    with running(earlier), running(later):
        give_up = time.monotonic() + 30
        while earlier.running and time.monotonic() < give_up:
            time.sleep(0.1)
        assert not earlier.running
        (failed,) = earlier.logged("failed")
        assert failed["error"] == (
            "another worker has joined with TIDEGATE_INSTANCE_ID=worker-1; give each worker a name of its own"
        )
        assert later.running
        assert not later.logged("failed")


async def rewrite_checkpoint(settings: Settings, topic: str) -> None:
    """Put one after the newest checkpoint of partition 0 that is the same, but has a layout of another version."""
    saved = (await checkpoints.read_checkpoints(settings, topic, [0]))[0]
    state = saved.state[:1] + bytes([saved.state[1] ^ 1]) + saved.state[2:]
    async with AIOKafkaProducer(**settings.kafka, acks="all") as producer:

        async def send(key: bytes, value: bytes) -> Awaitable[RecordMetadata]:
            sent: Awaitable[RecordMetadata] = await producer.send(topic, value, key, partition=0)
            return sent

        await (await checkpoints.write_checkpoint(send, state, saved.turn + 1, 0))


@pytest.mark.kafka
@pytest.mark.parametrize("agent", ["window", "gate"])
def test_a_worker_of_another_version_says_what_to_do_before_it_joins(
    agent: str, settings: Settings, manifest: Path, tmp_path: Path
) -> None:
    """Neither its end nor its being started again costs the workers of the other version a rebalance."""
    records = list(telemetry(4_000, 9, step_ms=20))
    before = WorkerProcess(settings, manifest, "before", tmp_path)
    with running(before):
        asyncio.run(publish(settings, records))
        give_up = time.monotonic() + 30
        while not before.logged("decided") and time.monotonic() < give_up:
            time.sleep(0.1)
        before.signal(signal.SIGTERM)
    topic = settings.window_checkpoints_topic if agent == "window" else settings.gate_checkpoints_topic
    asyncio.run(rewrite_checkpoint(settings, topic))
    after = WorkerProcess(settings, manifest, "after", tmp_path)
    after.start()
    give_up = time.monotonic() + 30
    while after.running and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not after.running
    lines = after.log.read_text().splitlines()
    assert not after.logged("assigned")
    assert f"{topic}-0: written by another build of Tidegate" in lines[-1]
    assert lines[-1].endswith("start workers of that one again, or start a new TIDEGATE_APPLICATION_ID")
