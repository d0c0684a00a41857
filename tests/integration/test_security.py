"""TLS, SASL and ACLs on a real Kafka: what each role may do, that it is enough, and what is said where it is not."""

import asyncio
import gc
import json
import logging
import re
import signal
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError

from tests.commands.invoke import Done, tidegate
from tests.integration.broker import BrokerUnavailable, give_up
from tests.integration.secured import ROLES, Grant, Secured, password_of, read_grants, secured_broker
from tests.integration.test_history import everything, members
from tests.integration.test_operations import MANIFEST, future_telemetry, records, wait_for
from tests.integration.workers import WorkerProcess, written
from tidegate.schemas.decision import Command
from tidegate.schemas.errors import AccessError, TopicError
from tidegate.schemas.signed import PrivateKey, private_pem, public_line
from tidegate.streams.audit.compare import by_unit
from tidegate.streams.client.control import ControlConsumer
from tidegate.streams.client.publisher import TelemetryPublisher
from tidegate.streams.kafka.manifests import load_trusted, sign_revision
from tidegate.streams.kafka.topics import create_topics, topics
from tidegate.streams.notify.courier import Courier, NotifyMetrics
from tidegate.streams.notify.receivers import Receiver
from tidegate.streams.settings import Settings, load_settings

pytestmark = [
    pytest.mark.kafka,
    # The client library does not wait for the end of a TLS connection that it closes, and its loop is gone by then.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

PREFIX, APPLICATION = "prod", "gate"
NAMES = {"topic_prefix": PREFIX, "application_id": APPLICATION, "gate_partitions": "2"}
SECRET = "hush-"
"""Every password begins with it."""
SHORT = {
    "telemetry": Grant("worker", "topic", "PREFIX.telemetry", "literal", "Read"),
    "partials": Grant("worker", "topic", "APPLICATION.partials", "literal", "Write"),
    "operations": Grant("worker", "topic", "PREFIX.operations", "literal", "Read"),
    "group": Grant("worker", "group", "APPLICATION", "literal", "Read"),
}
"""Workers that lack one thing."""


@dataclass
class Stage:
    """The broker, its topics, and everything that was said on a terminal."""

    secured: Secured
    folder: Path
    said: list[str] = field(default_factory=list)

    def run(self, user: str, *arguments: object, listener: str = "GOOD", **changes: str) -> Done:
        """Run a command as a user; ``changes``: of its settings."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.secured.environment(user, listener, **NAMES | changes).items():
                patch.setenv(name, value)
            done = tidegate(*arguments)
        self.said += [done.out, done.err]
        return done

    def settings(self, user: str, **changes: str) -> Settings:
        return self.secured.settings(user, **NAMES | changes)

    @property
    def broker(self) -> str:
        return self.secured.broker.addresses["GOOD"]

    def open_settings(self, prefix: str = PREFIX, application: str = APPLICATION) -> Settings:
        """Those of the broker's own administration, for which no ACL counts."""
        return load_settings(
            broker=self.secured.administration, topic_prefix=prefix, application_id=application, gate_partitions=2
        )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("secured")
    with ExitStack() as stack:
        try:
            secured = stack.enter_context(secured_broker(folder, [*ROLES, *SHORT]))
        except BrokerUnavailable as error:
            give_up(error)
        secured.allow({role: of(role) for role in ROLES}, PREFIX, APPLICATION)
        yield Stage(secured, folder)
    with warnings.catch_warnings():
        # What closed connections left behind, see above, may go now, and not in another test.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def of(role: str) -> list[Grant]:
    return [grant for grant in read_grants() if grant.role == role]


@dataclass
class Story:
    """A rollout from the making of the topics to a kill, each part by whom it is for."""

    made: Done
    published: Done
    killed: Done
    sent: int
    heard: list[Command]
    worker: WorkerProcess
    restarted: WorkerProcess
    metrics: str
    trusted: Path
    decisions: dict[str, list[bytes]]


@pytest.fixture(scope="module")
def story(stage: Stage) -> Story:
    folder, secured = stage.folder, stage.secured
    made = stage.run("administrator", "topics", "--create")
    assert made.code == 0, made.err
    key, trusted, signed = PrivateKey.generate(), folder / "trusted", folder / "signed"
    (folder / "key.pem").write_bytes(private_pem(key))
    trusted.write_text(public_line(key.public_key(), "tests") + "\n")
    environment = secured.environment(
        "worker",
        ssl_certfile=str(folder / "client.pem"),
        ssl_keyfile=str(folder / "client.key"),
        ssl_key_password=secured.key_password,
        trusted_keys=str(trusted),
        signing_key=str(folder / "key.pem"),
        instance_id="",
        log_level="DEBUG",
        session_timeout="6s",
    )
    settings = stage.settings("worker")
    worker = WorkerProcess(settings, None, "worker", folder, environment=environment)
    named = environment | {"TIDEGATE_INSTANCE_ID": "worker-1"}
    restarted = WorkerProcess(settings, None, "worker-1", folder, environment=named)
    start = (int(time.time() * 1000) - 900_000) // settings.pane * settings.pane
    signed.write_bytes(sign_revision(MANIFEST, 1, start, settings.deployment, key))
    worker.start()
    try:
        published = stage.run("operator", "publish", signed, "--trusted-keys", trusted)
        worker.wait_ready()
        sent, heard, killed = asyncio.run(rollout(stage, start, trusted))
        address = worker.logged("serving")[0]["address"]
        with urllib.request.urlopen(f"{address}/metrics", timeout=10) as page:  # noqa: S310 - our own http address
            metrics = page.read().decode()
        assert worker.signal(signal.SIGTERM) == 0
        restarted.start()
        restarted.wait_ready()
        assert restarted.signal(signal.SIGTERM) == 0
    finally:
        for one in (worker, restarted):
            if one.running:
                one.signal(signal.SIGKILL)
    decisions = asyncio.run(written(stage.open_settings(), f"{PREFIX}.decisions"))
    return Story(made, published, killed, sent, heard, worker, restarted, metrics, trusted, decisions)


LARGE = [b"\x00" * 1_048_000, json.dumps({"arm": "x" * 1_040_000}).encode(), b"x" * 5_000_000]
"""As much as a topic takes by default; what its error would repeat; more than any topic of ours takes, sent packed."""


async def send_large(settings: Settings) -> None:
    """Records that are no events, and too large to be sent on with a word on why."""
    large = {"max_request_size": 8 << 20, "compression_type": "gzip"}
    for value, more in zip(LARGE, ({}, {}, large), strict=True):
        async with AIOKafkaProducer(**settings.kafka, **more) as producer:
            await producer.send_and_wait(settings.telemetry_topic, value, partition=0)


async def rollout(stage: Stage, start: int, trusted: Path) -> tuple[int, list[Command], Done]:
    """A service sends, a router hears of it, an operator stops it; what was sent, what the router heard, the kill."""
    heard: list[Command] = []

    keys = load_trusted(trusted)
    await send_large(stage.open_settings())
    async with ControlConsumer(stage.settings("router"), keys) as commands:
        async with TelemetryPublisher(stage.settings("service")) as telemetry:
            for number, (_, value, _) in enumerate(future_telemetry(start, 120)):
                if number % 4 < 2 and b'"tick"' not in value:
                    telemetry.publish(json.loads(value))
            telemetry.publish({"kind": "tick", "ts": start + 240_000})
            assert await telemetry.flush(30)
        async with asyncio.timeout(30):
            while await decided_to(stage.open_settings()) < start + 120_000:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.2)
        kill = "kill", "answer", "--reason", "drill", "--actor", "Ada", "--key", stage.folder / "key.pem"
        killed = await asyncio.to_thread(stage.run, "operator", *kill)
        async with asyncio.timeout(30):
            heard += [await anext(commands) for _ in range(2)]
    return telemetry.sent, heard, killed


async def decided_to(settings: Settings) -> int:
    """The end of the last window that is decided in both regions, ms."""
    units = await written(settings, settings.decisions_topic)
    ends = [json.loads(lines[-1])["window"]["end"] for lines in units.values()]
    return min(ends) if len(ends) == 2 else 0


def test_each_role_can_do_its_part_with_what_is_listed(story: Story) -> None:
    """The worker may make no topics, and comes with a group, with and without a name of its own."""
    assert "all topics are there" in story.made.out
    assert (story.published.code, story.killed.code) == (0, 0), story.published.err + story.killed.err
    assert story.killed.out.splitlines()[1:] == ["answer|eu: kill", "answer|us: kill"]
    assert story.sent == 6_000 + 1
    assert {(command.key, command.action, command.weights.canary) for command in story.heard} == {
        ("answer|eu", "kill", 0),
        ("answer|us", "kill", 0),
    }
    for worker in (story.worker, story.restarted):
        assert worker.logged("ready")
        assert not [line for line in lines_of(worker) if line["level"] in ("warning", "error", "critical")]
        assert worker.logged("assigned")[-1]["telemetry"] == [0, 1, 2, 3]
    assert story.worker.logged("manifest accepted")


def lines_of(worker: WorkerProcess) -> list[dict[str, str]]:
    """Every line of a worker's log; each is one JSON object."""
    return [json.loads(line) for line in worker.log.read_text().splitlines()]


async def attempts(settings: Settings, names: list[str]) -> dict[tuple[str, str], bool]:
    """Which of these topics a user can read and write, by trying."""
    found: dict[tuple[str, str], bool] = {}
    async with AIOKafkaProducer(**settings.kafka) as producer:
        for name in names:
            try:
                await producer.send_and_wait(name, b"{}", key=b"k", partition=0)
                found[name, "Write"] = True
            except TopicAuthorizationFailedError:
                found[name, "Write"] = False
    for name in names:
        async with AIOKafkaConsumer(**settings.kafka, group_id=None) as consumer:
            partition = TopicPartition(name, 0)
            consumer.assign([partition])
            consumer.seek(partition, 0)
            try:
                async with asyncio.timeout(10):
                    found[name, "Read"] = name in await consumer.topics() and bool(await consumer.getone(partition))
            except TopicAuthorizationFailedError:
                found[name, "Read"] = False
    return found


def test_nobody_can_do_more(stage: Stage) -> None:
    """Every role on every topic, by trying; on topics like the real ones, as what may be written is."""
    prefix, application = "trial", "judge"
    settings = stage.open_settings(prefix, application)
    names = [topic.name for topic in topics(settings)]
    stage.secured.allow({role: of(role) for role in ROLES}, prefix, application)

    async def fill() -> None:
        await create_topics(settings)
        async with AIOKafkaProducer(**settings.kafka) as producer:
            for name in names:
                await producer.send_and_wait(name, b"{}", key=b"k", partition=0)

    async def try_all() -> dict[str, dict[tuple[str, str], bool]]:
        tried = await asyncio.gather(*(attempts(stage.settings(role), names) for role in ROLES))
        return dict(zip(ROLES, tried, strict=True))

    asyncio.run(fill())
    tried = asyncio.run(try_all())
    for role in ROLES:
        listed = {
            (grant.name.replace("PREFIX", prefix).replace("APPLICATION", application), grant.operation)
            for grant in of(role)
            if grant.resource == "topic" and grant.operation in ("Read", "Write")
        }
        assert {one for one, done in tried[role].items() if done} == listed, role
    assert not any(tried["auditor"][name, "Write"] for name in names)
    assert not tried["service"][f"{prefix}.control", "Read"]
    assert not tried["router"][f"{prefix}.control", "Write"]
    for role in ROLES[1:]:
        with pytest.raises(TopicError, match=r"cannot be made|Authorization failed"):
            asyncio.run(create_topics(stage.settings(role, topic_prefix="more", application_id="more")))


def test_a_notifier_reads_and_keeps_its_place_with_what_is_listed(stage: Stage) -> None:
    """And without the right to its group it says which one that is, and ends."""
    settings = stage.open_settings("told", "told")
    given = {"topic_prefix": "told", "application_id": "told"}
    receiver = Receiver(name="oncall", url="http://127.0.0.1:1/", format="slack")

    async def receive(user: str) -> int:
        async with aiohttp.ClientSession() as session:
            courier = Courier(stage.settings(user, **given), receiver, session, NotifyMetrics())
            running = asyncio.create_task(courier.run())
            while not running.done() and len(courier._begun) < settings.gate_partitions:  # noqa: ASYNC110 - in its task
                await asyncio.sleep(0.1)
            if running.done():
                await running
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            return settings.gate_partitions

    stage.secured.allow({"notifier": of("notifier")}, "told", "told")
    asyncio.run(create_topics(settings))
    assert asyncio.run(receive("notifier")) == settings.gate_partitions
    stage.secured.allow({"auditor": of("auditor")}, "told", "told")
    with pytest.raises(AccessError, match=r"group told\.notify\.oncall: not allowed"):
        asyncio.run(receive("auditor"))


def test_what_is_not_allowed_is_one_clear_line(stage: Stage) -> None:
    """Workers that lack a right to read, to write, to be in the group: each ends, and says what it is about."""
    manifest = stage.folder / "flags.yml"
    manifest.write_text(MANIFEST)
    workers = {}
    for user, lack in SHORT.items():
        settings = stage.open_settings(user, user)
        asyncio.run(create_topics(settings))
        asyncio.run(send_ticks(settings))
        # Without the operation, but with the topic in sight.
        given = [grant._replace(operation="Describe") if grant == lack else grant for grant in of("worker")]
        assert len(set(given) & set(of("worker"))) == len(of("worker")) - 1
        if lack.resource == "group":
            given = [grant for grant in of("worker") if grant != lack]
        stage.secured.allow({user: given}, user, user)
        environment = stage.secured.environment(user, log_level="DEBUG")
        workers[user] = WorkerProcess(settings, manifest, user, stage.folder, environment=environment)
    try:
        for worker in workers.values():
            worker.start()
        for user, worker in workers.items():
            wait_for_end(worker)
            lines = worker.log.read_text().splitlines()
            stage.said += lines
            said = [line for line in lines if '"failed"' in line or not line.startswith("{")]
            assert len(said) == 1, lines
            assert SHORT[user].name.replace("PREFIX", user).replace("APPLICATION", user) in said[0]
            assert ("Read on it" if user == "group" else "TopicAuthorizationFailed") in said[0]
            assert "Traceback" not in worker.log.read_text()
    finally:
        for worker in workers.values():
            if worker.running:
                worker.signal(signal.SIGKILL)


def wait_for_end(worker: WorkerProcess) -> None:
    wait_for(lambda: not worker.running, 60)


async def send_ticks(settings: Settings) -> None:
    """Two in each partition, so that panes close."""
    async with AIOKafkaProducer(**settings.kafka) as producer:
        for partition in range(4):
            for ts in (int(time.time() * 1000) - 600_000, int(time.time() * 1000) - 300_000):
                tick = b'{"kind":"tick","ts":%d}' % ts
                await producer.send_and_wait(settings.telemetry_topic, tick, partition=partition)


@pytest.mark.parametrize(
    ("user", "arguments", "topic"),
    [
        ("worker", ["topics", "--create", "TIDEGATE_TOPIC_PREFIX=new"], "new."),
        ("router", ["watch", "--once"], f"{PREFIX}.decisions"),
        ("service", ["explain", "abcdef0123", "--broker", "BROKER"], f"{PREFIX}.decisions"),
        ("operator", ["verify", "--broker", "BROKER"], f"{PREFIX}.control"),
        ("router", ["export", "--broker", "BROKER", "--out", "OUT"], f"{PREFIX}.decisions"),
        ("auditor", ["publish", "SIGNED"], f"{PREFIX}.manifests"),
        ("auditor", ["kill", "answer", "--reason", "r", "--key", "KEY", "--wait", "0s"], f"{PREFIX}.operations"),
        ("service", ["replay", "--broker", "BROKER", "--out", "OUT"], f"{PREFIX}.manifests"),
    ],
)
def test_a_command_that_may_not_says_which_topic(
    stage: Stage, story: Story, user: str, arguments: list[str], topic: str
) -> None:
    """Exit code 2, one line."""
    folder = stage.folder
    signed = folder / "second"
    key = PrivateKey.generate()
    pane = 10_000
    ahead = (int(time.time() * 1000) + 600_000) // pane * pane
    signed.write_bytes(sign_revision(MANIFEST, 2, ahead, stage.settings(user).deployment, key))
    keys = folder / "second-trusted"
    keys.write_text(public_line(key.public_key()) + "\n" + story.trusted.read_text())
    named = {"BROKER": stage.broker, "OUT": folder / "out", "SIGNED": signed, "KEY": folder / "key.pem"}
    changes = {"trusted_keys": str(keys)}
    if "=" in arguments[-1]:
        changes["topic_prefix"] = arguments[-1].partition("=")[2]
        arguments = arguments[:-1]
    done = stage.run(user, *[named.get(one, one) for one in arguments], **changes)
    assert done.code == 2
    assert topic in done.line


def test_the_ends_of_the_wire_say_it_too_and_go_on_trying(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """A service that may not publish serves all the same; a router keeps what it has."""

    async def run() -> None:
        async with TelemetryPublisher(stage.settings("router"), close_seconds=1) as telemetry:
            telemetry.publish(
                {
                    "event_id": "e",
                    "ts": int(time.time() * 1000),
                    "flag": "answer",
                    "arm": "canary",
                    "sticky_id": "s",
                    "latency_ms": 1,
                    "status": 200,
                }
            )
            assert not await telemetry.flush(3)
        assert (telemetry.sent, telemetry.failed) == (0, 1)
        async with ControlConsumer(stage.settings("service")):
            async with asyncio.timeout(20):
                while "no commands for now" not in caplog.text:  # noqa: ASYNC110 - a log has no event
                    await asyncio.sleep(0.1)

    with caplog.at_level(logging.WARNING, "tidegate"):
        asyncio.run(run())
    said = [record.getMessage() for record in caplog.records if record.name.startswith("tidegate.")]
    stage.said += said
    assert [line for line in said if "telemetry does not get through" in line and f"{PREFIX}.telemetry" in line]
    assert [line for line in said if "no commands for now" in line and f"{PREFIX}.control" in line]


WRONG: dict[str, tuple[dict[str, str], str, str]] = {
    "password": ({"sasl_password": "hush-no"}, "GOOD", "Authentication failed"),
    "user": ({"sasl_username": "nobody"}, "GOOD", "Authentication failed"),
    "mechanism": ({"sasl_mechanism": "PLAIN"}, "GOOD", "Authentication failed"),
    "authority": ({"ssl_cafile": "STRANGER"}, "GOOD", "unable to get local issuer certificate"),
    "expired": ({}, "EXPIRED", "certificate has expired"),
    "elsewhere": ({}, "ELSEWHERE", "certificate is not valid for '127.0.0.1'"),
    "host": ({"broker": "nowhere.invalid:9092"}, "GOOD", "nowhere.invalid:9092"),
    "key password": (
        {"ssl_certfile": "CLIENT", "ssl_keyfile": "CLIENT_KEY", "ssl_key_password": "hush-no"},
        "GOOD",
        "_KEY_PASSWORD cannot be used",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_connection_that_cannot_be_is_one_line_that_says_why(stage: Stage, what: str) -> None:
    """Without the password that was wrong, or any other."""
    changes, listener, reason = WRONG[what]
    files = {"STRANGER": "stranger.pem", "CLIENT": "client.pem", "CLIENT_KEY": "client.key"}
    given = {name: str(stage.folder / files[value]) if value in files else value for name, value in changes.items()}
    for arguments in (["watch", "--once"], ["topics"]):
        done = stage.run("auditor", *arguments, listener=listener, **given)
        assert done.code == 2
        assert reason in done.line
        assert SECRET not in done.out + done.err


@pytest.mark.parametrize("name", ["verify", "explain", "export", "replay", "publish", "kill", "worker"])
def test_every_command_says_that_the_password_is_wrong(stage: Stage, story: Story, name: str) -> None:
    folder, broker = stage.folder, ("--broker", stage.broker)
    arguments: dict[str, tuple[object, ...]] = {
        "verify": broker,
        "explain": ("abcdef0123", *broker),
        "export": (*broker, "--out", folder / "out"),
        "replay": (*broker, "--out", folder / "out.ndjson", "--trusted-keys", story.trusted),
        "publish": (folder / "signed",),
        "kill": ("answer", "--reason", "r", "--key", folder / "key.pem", "--wait", "0s"),
    }
    if name == "worker":
        environment = stage.secured.environment("worker", sasl_password="hush-no", trusted_keys=str(story.trusted))
        worker = WorkerProcess(stage.settings("worker"), None, "refused", folder, environment=environment)
        worker.start()
        wait_for_end(worker)
        text = worker.log.read_text()
        assert worker.signal(0) == 2
        line = text.splitlines()[-1]
    else:
        done = stage.run("operator", name, *arguments[name], sasl_password="hush-no", trusted_keys=str(story.trusted))
        assert done.code == 2
        text, line = done.out + done.err, done.line
    assert "Authentication failed" in line
    assert SECRET not in text


def test_an_auditor_who_may_only_read_has_the_workers_bytes_and_leaves_no_trace(stage: Stage, story: Story) -> None:
    """Replay, export, verify, watch and explain, and the broker is afterwards as it was before, groups included."""
    open_settings, folder, broker = stage.open_settings(), stage.folder, stage.broker
    wait_for(lambda: members(open_settings) == 0, 60)
    before = everything(open_settings)
    out, commands = folder / "decisions.ndjson", folder / "commands.ndjson"
    keys = "--trusted-keys", story.trusted
    replayed = stage.run(
        "auditor", "replay", "--broker", broker, *keys, "--out", out, "--commands", commands, "--compare"
    )
    assert replayed.code == 0, replayed.out + replayed.err
    assert "the same bytes as the topics" in replayed.out
    assert by_unit(out.read_bytes().splitlines()) == story.decisions
    assert by_unit(commands.read_bytes().splitlines()).keys() == {"answer|eu", "answer|us"}
    last = max(json.loads(line)["decided_at"] for lines in story.decisions.values() for line in lines)
    middle = stage.run("auditor", "replay", "--broker", broker, *keys, "--out", out, "--compare", "--from", last - 1)
    assert middle.code == 0, middle.out + middle.err
    assert 0 < len(out.read_bytes().splitlines()) <= 2
    assert stage.run("auditor", "verify", "--broker", broker, *keys).code == 0
    exported = stage.run("auditor", "export", "--broker", broker, "--out", folder / "export")
    assert exported.code == 0, exported.err
    # The tick is in each of the four partitions.
    assert f"{story.sent + 3 + len(LARGE):,} records of {PREFIX}.telemetry" in exported.out
    watched = stage.run("auditor", "watch", "--once")
    assert "answer|eu" in watched.out
    assert re.search(r"^telemetry: [1-9][\d,]* events counted; left out: ", watched.out, re.MULTILINE)
    decision = json.loads(story.decisions["answer|eu"][-1])["decision_id"]
    assert stage.run("auditor", "explain", decision, "--broker", broker).out.startswith("answer in eu: killed")
    assert everything(open_settings) == before


def test_records_too_large_to_be_sent_on_are_cut_and_end_no_worker(stage: Stage, story: Story) -> None:
    """A worker that fails on a record fails on it again whenever it is started."""
    assert f"tidegate_dead_letters_total {len(LARGE)}.0" in story.metrics
    settings = stage.open_settings()
    found = asyncio.run(records(settings, settings.dead_letter_topic))
    headers = [dict(record.headers) for record in found]
    assert [one["tidegate.cut"] for one in headers] == [b"%d" % len(value) for value in LARGE]
    assert [record.value for record in found] == [value[:65_536] for value in LARGE]
    assert all(0 < len(one["tidegate.error"]) <= 203 for one in headers)


def test_no_secret_is_anywhere(stage: Stage, story: Story) -> None:
    """Log at DEBUG, metrics, whatever the commands of this file said, and every printed form of the settings."""
    settings = stage.settings(
        "worker",
        ssl_certfile=str(stage.folder / "client.pem"),
        ssl_keyfile=str(stage.folder / "client.key"),
        ssl_key_password=stage.secured.key_password,
    )
    assert settings.kafka["sasl_plain_password"] == password_of("worker")
    assert password_of("worker").startswith(SECRET)
    assert stage.secured.key_password.startswith(SECRET)
    shown = [repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())]
    texts = [*shown, story.metrics, *stage.said, *(one.log.read_text() for one in (story.worker, story.restarted))]
    assert "tidegate_records_total" in story.metrics
    assert '"debug"' in story.worker.log.read_text() + story.restarted.log.read_text()
    for text in texts:
        assert SECRET not in text
        assert "PRIVATE KEY" not in text
