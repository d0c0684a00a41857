"""Signed manifests and operators' orders on a real Kafka: what takes effect, what does not, and when."""

import asyncio
import json
import os
import random
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from msgspec import structs

from tests.integration.test_worker import PARTITIONS, await_written, telemetry
from tests.integration.workers import WorkerProcess, dump, publish, running
from tidegate.schemas.decision import Command, command_from_bytes
from tidegate.schemas.operation import Operation
from tidegate.schemas.signed import PrivateKey, TrustedKeys, public_line, sign
from tidegate.streams.audit.compare import by_unit
from tidegate.streams.audit.replay import replay
from tidegate.streams.client.control import ControlConsumer
from tidegate.streams.commands import main
from tidegate.streams.kafka.manifests import load_trusted, read_files, sign_revision
from tidegate.streams.kafka.tail import tail
from tidegate.streams.settings import Settings

MANIFEST = """
flags:
  answer:
    scope: {regions: [eu, us]}
    window: {length: 60s, min_requests: 50}
    policy: {evidence: point, lambda_source: traffic}
"""
KILL_SECONDS = 20.0
"""What these tests wait for a kill: room for a slow machine. It takes a fraction of a second."""


def operation(kind: str, reason: str = "it is bad", *, hours_ago: int = 0) -> Operation:
    ts = int(time.time() * 1000) - hours_ago * 3_600_000
    return Operation(actor="Ada", flag="answer", kind=kind, reason=reason, ts=ts)  # type: ignore[arg-type]


async def write(settings: Settings, topic: str, value: bytes, key: bytes = b"answer") -> None:
    async with AIOKafkaProducer(**settings.kafka) as producer:
        await producer.send_and_wait(topic, value, key=key, partition=0)


async def commands_after(
    settings: Settings, act: Callable[[], Awaitable[None]], enough: Callable[[list[Command]], bool]
) -> tuple[list[Command], float]:
    """What the control topic gets from ``act`` on until it is ``enough``, and the seconds that took."""
    async with tail(settings, settings.control_topic) as control:
        await control.history()
        found: list[Command] = []
        started = time.monotonic()
        await act()
        while not enough(found):
            assert time.monotonic() - started < KILL_SECONDS, found
            found += [command_from_bytes(record.value) for record in await control.more(0.2)]
        return found, time.monotonic() - started


def kills(commands: list[Command]) -> set[str]:
    return {command.key for command in commands if command.action == "kill"}


def everywhere(commands: list[Command]) -> bool:
    return kills(commands) == {"answer|eu", "answer|us"}


def order(settings: Settings, document: bytes) -> tuple[list[Command], float]:
    """Write an operation and wait for the kill in both regions."""

    async def act() -> None:
        await write(settings, settings.operations_topic, document)

    return asyncio.run(commands_after(settings, act, everywhere))


@pytest.mark.kafka
def test_a_kill_reaches_the_control_topic_without_any_telemetry(
    settings: Settings, manifest: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    worker = WorkerProcess(settings, manifest, "worker", tmp_path)
    with running(worker):
        commands, seconds = order(settings, operation("kill").to_bytes())
    record_property("seconds", seconds)
    print(f"killed in {seconds:.3f} s")
    assert [(command.seq, command.weights.canary, command.severity) for command in commands] == [(1, 0, "hard")] * 2


@pytest.mark.kafka
def test_the_command_line_shows_where_an_order_was_carried_out(
    settings: Settings,
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each region with its verdict; an order for a flag that nobody knows exits with 1, though it stands."""
    monkeypatch.setenv("TIDEGATE_TOPIC_PREFIX", settings.topic_prefix)
    monkeypatch.setenv("TIDEGATE_UNSIGNED_MANIFEST", "true")

    def ordered(*words: str) -> int:
        with pytest.raises(SystemExit) as end:
            main([*words, "--reason", "drill", "--actor", "Ada", "--broker", settings.broker])
        return int(str(end.value.code))

    worker = WorkerProcess(settings, manifest, "worker", tmp_path)
    with running(worker):
        assert ordered("kill", "answer") == 0
        assert ordered("rearm", "answer") == 0
        assert ordered("pause", "answer") == 0
        assert ordered("resume", "answer") == 0
        assert ordered("kill", "anser", "--wait", "2s") == 2
        assert ordered("kill", "anser", "--unseen", "--wait", "2s") == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "kill of answer ordered by Ada: drill",
        "answer|eu: kill",
        "answer|us: kill",
        "rearm of answer ordered by Ada: drill",
        "answer|eu: rearm",
        "answer|us: rearm",
        "pause of answer ordered by Ada: drill",
        "answer|eu: pause",
        "answer|us: pause",
        "resume of answer ordered by Ada: drill",
        "answer|eu: resume",
        "answer|us: resume",
        "kill of anser ordered by Ada: drill",
    ]
    assert "no manifest and no decision names a flag anser; did you mean answer?" in said.err
    assert "no worker was seen to carry it out in 2 s" in said.err


@pytest.mark.kafka
def test_a_kill_does_not_wait_for_a_backlog(
    settings: Settings, manifest: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """200,000 events lie there when the worker starts; the kill overtakes them."""
    asyncio.run(publish(settings, telemetry(200_000, 3)))
    worker = WorkerProcess(settings, manifest, "worker", tmp_path)
    with running(worker):
        address = str(worker.logged("serving")[0]["address"])
        give_up = time.monotonic() + 30
        while metric(address, "tidegate_records_total") == 0 and time.monotonic() < give_up:
            time.sleep(0.02)
        _, seconds = order(settings, operation("kill").to_bytes())
        read = metric(address, "tidegate_records_total")
    record_property("seconds", seconds)
    print(f"killed in {seconds:.3f} s, after {read:.0f} records")


def metric(address: str, name: str) -> float:
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as page:  # noqa: S310 - our own http address
        return next(float(line.split()[1]) for line in page.read().decode().splitlines() if line.startswith(f"{name} "))


@pytest.mark.kafka
def test_a_forged_operation_kills_nothing(settings: Settings, manifest: Path, tmp_path: Path, key: PrivateKey) -> None:
    """Unsigned, a stranger's, cut, signed as a manifest, for another cluster or long ago: only the real one counts."""
    trusted = tmp_path / "trusted"
    trusting = {"TIDEGATE_TRUSTED_KEYS": str(trusted), "TIDEGATE_SIGNING_KEY": str(tmp_path / "key.pem")}
    worker = WorkerProcess(settings, manifest, "worker", tmp_path, environment=trusting)
    payload = operation("kill", "forged").to_bytes()
    forged = [
        payload,
        sign("operation", settings.deployment, payload, PrivateKey.generate()),
        sign("operation", settings.deployment, payload, key)[:-1],
        sign("manifest", settings.deployment, payload, key),
        sign("operation", f"staging/{settings.application_id}", payload, key),
        sign("operation", settings.deployment, operation("kill", "old", hours_ago=25).to_bytes(), key),
        b"",
    ]
    real = sign("operation", settings.deployment, operation("kill", "real").to_bytes(), key)
    with running(worker):
        for document in forged:
            asyncio.run(write(settings, settings.operations_topic, document))
        commands, _ = order(settings, real)
        # The same record once more: whoever can write to the topic has no new order by it.
        asyncio.run(write(settings, settings.operations_topic, real))
        wait_for(lambda: len(worker.logged("operation refused")) == len(forged) + 1)
    assert sorted(command.key for command in commands) == ["answer|eu", "answer|us"]
    decisions = asyncio.run(records(settings, settings.decisions_topic))
    assert {json.loads(decision.value)["operation"]["reason"] for decision in decisions} == {"real"}
    assert len(decisions) == 2
    # A command that no worker gave: a router that asks for signatures stays with what it had.
    forgery = structs.replace(commands[0], seq=2, action="rearm")
    asyncio.run(write(settings, settings.control_topic, forgery.to_bytes(), commands[0].key.encode()))
    heard = [asyncio.run(first_commands(settings, keys))[forgery.key] for keys in (load_trusted(trusted), None)]
    assert heard == [commands[0], forgery]


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


async def records(settings: Settings, topic: str) -> list[ConsumerRecord]:
    async with tail(settings, topic) as there:
        return await there.history()


def future_telemetry(start: int, seconds: int) -> Iterator[tuple[int, bytes, int]]:
    """Partition, value and timestamp of a service that is well, from ``start`` on, then ticks."""
    rnd = random.Random(5)
    for number in range(seconds * 100):
        user, ts = rnd.randrange(3_000), start + number * 10
        event = {
            "event_id": f"{number}",
            "ts": ts,
            "flag": "answer",
            "arm": "canary" if user % 4 == 0 else "baseline",
            "sticky_id": f"user-{user}",
            "region": ("eu", "us")[number % 2],
            "lambda_state": "→",
            "delta_s": 0.01,
            "coverage": 0.9,
            "latency_ms": 100 + user % 7,
            "status": 200,
            "cost": 0.001,
            "solved": True,
        }
        yield user % PARTITIONS, json.dumps(event, ensure_ascii=False).encode(), ts
    end = start + seconds * 1_000 + 60_000
    for partition in range(PARTITIONS):
        yield partition, b'{"kind":"tick","ts":%d}' % end, end


@pytest.mark.kafka
def test_revisions_take_effect_at_their_boundary_and_replay_the_same(
    settings: Settings, tmp_path: Path, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No manifest, not ready; then one; then the next from its pane on. A replay of the same files gives the bytes."""
    monkeypatch.setenv("TIDEGATE_TOPIC_PREFIX", settings.topic_prefix)
    monkeypatch.setenv("TIDEGATE_APPLICATION_ID", settings.application_id)
    trusted = tmp_path / "trusted"
    environment = {
        "TIDEGATE_TRUSTED_KEYS": str(trusted),
        "TIDEGATE_SIGNING_KEY": str(tmp_path / "key.pem"),
        "TIDEGATE_HTTP_PORT": "0",
    }
    worker = WorkerProcess(settings, None, "worker", tmp_path, environment=environment)
    now = int(time.time() * 1000)
    boundary = -(-(now + settings.manifest_lead + 60_000) // settings.pane) * settings.pane
    documents = {
        "one": sign_revision(MANIFEST, 1, now // settings.pane * settings.pane, settings.deployment, key),
        "two": sign_revision(MANIFEST.replace("60s", "40s"), 2, boundary, settings.deployment, key),
        "late": sign_revision(MANIFEST, 3, now // settings.pane * settings.pane, settings.deployment, key),
        "forged": sign_revision(MANIFEST, 3, boundary, settings.deployment, PrivateKey.generate()),
    }
    for name, document in documents.items():
        (tmp_path / name).write_bytes(document)

    def published(name: str) -> int:
        with pytest.raises(SystemExit) as end:
            main(["publish", str(tmp_path / name), "--trusted-keys", str(trusted), "--broker", settings.broker])
        return int(str(end.value.code))

    worker.start()
    try:
        wait_for(lambda: bool(worker.logged("waiting for a manifest")))
        assert not worker.logged("ready")
        assert published("forged") == 2
        # Past the command line's own check, as whoever may write to the topic could.
        asyncio.run(write(settings, settings.manifests_topic, documents["forged"], b"revision-0000000003"))
        assert published("one") == 0
        worker.wait_ready()
        assert published("one") == 0, "there already, and not written again"
        assert published("late") == 2, "no lead"
        assert published("two") == 0
        asyncio.run(write(settings, settings.manifests_topic, documents["late"], b"revision-0000000003"))
        # The waiting and the running worker have each read the forged one.
        wait_for(lambda: len(worker.logged("manifest refused")) >= 3)
        asyncio.run(send_at(settings, future_telemetry(boundary - 90_000, 240)))
        file = tmp_path / "telemetry.ndjson"
        asyncio.run(dump(settings, file))
        timeline = read_files([tmp_path / "two", tmp_path / "one"], settings, load_trusted(trusted))
        outcomes = list(replay([file], timeline, PARTITIONS, settings.clockwork))
        await_written(settings, settings.decisions_topic, by_unit(d.to_bytes() for d, _ in outcomes), 60)
        await_written(settings, settings.control_topic, by_unit(c.to_bytes() for _, c in outcomes if c), 30)
    finally:
        if worker.running:
            worker.signal(signal.SIGKILL)
    first, second = (revision.flags["answer"].manifest_hash for revision in timeline.revisions)
    windows = [(d.manifest_hash, d.window.start < boundary) for d, _ in outcomes if d.gates]
    assert set(windows) == {(first, True), (second, False)}

    def verified(keys: Path) -> int:
        with pytest.raises(SystemExit) as end:
            main(["verify", "--broker", settings.broker, "--trusted-keys", str(keys)])
        return int(str(end.value.code))

    stranger = tmp_path / "stranger"
    stranger.write_text(public_line(PrivateKey.generate().public_key()) + "\n")
    assert (verified(trusted), verified(stranger)) == (0, 1)


WITHOUT = "flags: {other: {window: {length: 60s}}}"


@pytest.mark.kafka
def test_a_flag_that_a_revision_retires_gets_its_last_command_and_can_be_killed(
    settings: Settings,
    tmp_path: Path,
    key: PrivateKey,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Publish refuses to leave it out in silence; retired, the bytes are those of a replay, and kill still works."""
    monkeypatch.setenv("TIDEGATE_TOPIC_PREFIX", settings.topic_prefix)
    monkeypatch.setenv("TIDEGATE_APPLICATION_ID", settings.application_id)
    trusted, keys = tmp_path / "trusted", str(tmp_path / "key.pem")
    worker = WorkerProcess(settings, None, "worker", tmp_path, environment={"TIDEGATE_TRUSTED_KEYS": str(trusted)})
    now = int(time.time() * 1000)
    boundary = -(-(now + settings.manifest_lead + 60_000) // settings.pane) * settings.pane
    first = now // settings.pane * settings.pane
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "retiring"
    one.write_bytes(sign_revision(MANIFEST, 1, first, settings.deployment, key))
    two.write_bytes(sign_revision(WITHOUT, 2, boundary, settings.deployment, key))
    out.write_bytes(sign_revision(WITHOUT, 2, boundary, settings.deployment, key, ["answer"]))

    def tidegate(*words: str) -> int:
        with pytest.raises(SystemExit) as end:
            main([*words, "--broker", settings.broker])
        return int(str(end.value.code))

    assert tidegate("publish", str(one), "--trusted-keys", str(trusted)) == 0
    events = list(future_telemetry(boundary - 90_000, 240))
    with running(worker):
        asyncio.run(send_at(settings, iter(events[:8_500])))
        wait_for(lambda: len(asyncio.run(records(settings, settings.decisions_topic))) >= 2, 60)
        assert tidegate("publish", str(two), "--trusted-keys", str(trusted)) == 2
        assert "leaves out answer, which has units in eu (last " in capsys.readouterr().err
        retiring = ("publish", str(two), "--trusted-keys", str(trusted), "--retire", "answer", "--key", keys)
        assert tidegate(*retiring) == 0
        asyncio.run(send_at(settings, iter(events[8_500:])))
        file = tmp_path / "telemetry.ndjson"
        asyncio.run(dump(settings, file))
        timeline = read_files([one, out], settings, load_trusted(trusted))
        outcomes = list(replay([file], timeline, PARTITIONS, settings.clockwork))
        await_written(settings, settings.decisions_topic, by_unit(d.to_bytes() for d, _ in outcomes), 60)
        await_written(settings, settings.control_topic, by_unit(c.to_bytes() for _, c in outcomes if c), 30)
        assert tidegate("kill", "answer", "--reason", "drill", "--actor", "Ada", "--key", keys) == 0
    last = {c.key: c for _, c in outcomes if c is not None}
    assert {(c.action, c.weights.canary) for c in last.values()} == {("retire", 0)}
    assert "answer|us: kill" in capsys.readouterr().out


@pytest.mark.kafka
def test_what_a_changed_file_drops_is_retired_and_what_it_turns_on_is_told(settings: Settings, tmp_path: Path) -> None:
    """No telemetry at all: a worker that starts with the new text says it, once, and killing goes on to work."""
    file = tmp_path / "flags.yml"
    switch = "switch: {kind: kill_switch, scope: {regions: [eu]}, traffic: {canary_weight: %s}}"
    file.write_text(MANIFEST + "  " + switch % 0 + "\n")
    worker = WorkerProcess(settings, file, "worker", tmp_path)
    with running(worker):
        order(settings, operation("kill").to_bytes())
        asyncio.run(write(settings, settings.operations_topic, operation("rearm").to_bytes()))
        wait_for(lambda: len(asyncio.run(records(settings, settings.control_topic))) >= 5)
        assert worker.signal(signal.SIGTERM) == 0
    file.write_text("flags:\n  " + switch % 1 + "\n")

    def said() -> set[tuple[str, str, float]]:
        commands = map(command_from_bytes, (r.value for r in asyncio.run(records(settings, settings.control_topic))))
        return {(command.key, command.action, command.weights.canary) for command in commands}

    with running(worker):
        wait_for(lambda: ("switch|eu", "rearm", 1) in said() and ("answer|us", "retire", 0) in said())
        assert ("answer|eu", "retire", 0) in said()
        count = len(asyncio.run(records(settings, settings.control_topic)))
        assert worker.signal(signal.SIGTERM) == 0
    with running(worker):
        _, seconds = order(settings, operation("kill", "gone, and killed").to_bytes())
        assert len(asyncio.run(records(settings, settings.control_topic))) == count + 2
    print(f"killed in {seconds:.3f} s")


async def first_commands(settings: Settings, trusted: TrustedKeys | None) -> dict[str, Command]:
    """What a router hears when it starts."""
    async with ControlConsumer(settings, trusted) as control:
        await control.caught_up()
        heard = [await anext(control) for _ in control.weights]
    return {command.key: command for command in heard}


async def send_at(settings: Settings, events: Iterator[tuple[int, bytes, int]]) -> None:
    """Write records with timestamps of their own."""
    async with AIOKafkaProducer(**settings.kafka, linger_ms=20) as producer:
        sent = [
            await producer.send(settings.telemetry_topic, value, partition=partition, timestamp_ms=timestamp)
            for partition, value, timestamp in events
        ]
        await asyncio.gather(*sent)


@pytest.mark.kafka
def test_a_worker_that_is_told_to_stop_while_it_waits_stops(
    settings: Settings, tmp_path: Path, key: PrivateKey
) -> None:
    """Alive, not ready, and no trouble to a supervisor."""
    port = 20_000 + os.getpid() % 10_000
    environment = {"TIDEGATE_TRUSTED_KEYS": str(tmp_path / "trusted"), "TIDEGATE_HTTP_PORT": str(port)}
    worker = WorkerProcess(settings, None, "worker", tmp_path, environment=environment)
    worker.start()
    try:
        wait_for(lambda: bool(worker.logged("waiting for a manifest")))
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5)
        assert answer.value.code == 503
        assert b"manifest: not yet" in answer.value.read()
        answer.value.close()
        assert worker.signal(signal.SIGTERM) == 0
    finally:
        if worker.running:
            worker.signal(signal.SIGKILL)


@pytest.mark.kafka
def test_a_worker_that_is_killed_after_an_order_repeats_the_same_bytes(
    settings: Settings, manifest: Path, tmp_path: Path
) -> None:
    """SIGKILL at random moments around kills and rearms, with telemetry on its way: each command has one form."""
    seed = random.SystemRandom().randrange(1 << 32)
    rnd = random.Random(seed)
    events = list(telemetry(40_000, seed))
    worker = WorkerProcess(settings, manifest, "worker", tmp_path)
    rounds = 4
    with running(worker):
        for turn in range(rounds):
            asyncio.run(publish(settings, events[turn * 5_000 : (turn + 1) * 5_000]))
            ordered = operation("kill" if turn % 2 == 0 else "rearm", f"turn {turn}")
            asyncio.run(write(settings, settings.operations_topic, ordered.to_bytes()))
            time.sleep(rnd.uniform(0, 0.6))
            worker.signal(signal.SIGKILL)
            worker.start()
            worker.wait_ready(times=turn + 2)

        def carried_out() -> bool:
            found = [json.loads(r.value)["operation"] for r in asyncio.run(records(settings, settings.decisions_topic))]
            return len({o["reason"] for o in found if o}) == rounds

        wait_for(carried_out)
        # One more life, which ends in peace: what was not saved has been done again by then.
        assert worker.signal(signal.SIGTERM) == 0
    for topic, number in ((settings.control_topic, "seq"), (settings.decisions_topic, "decision_id")):
        forms: dict[tuple[str, object], set[bytes]] = {}
        for one in asyncio.run(records(settings, topic)):
            forms.setdefault((one.key.decode(), json.loads(one.value)[number]), set()).add(one.value)
        assert {key: len(values) for key, values in forms.items() if len(values) > 1} == {}, f"seed {seed}"
    per_unit = by_unit(r.value for r in asyncio.run(records(settings, settings.decisions_topic)))
    for unit, lines in per_unit.items():
        chain = [json.loads(line) for line in lines]
        assert [d["previous_hash"] for d in chain] == [None, *(d["hash"] for d in chain[:-1])], f"seed {seed}: {unit}"
        operations = [d["operation"]["reason"] for d in chain if d["operation"]]
        assert operations == [f"turn {turn}" for turn in range(rounds)], f"seed {seed}: {unit}"
