"""Commands into a router: each once, in order, the last one of each unit first."""

import asyncio
import logging
from collections.abc import Iterator

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.streams.leaders import without_leaders
from tidegate.schemas.decision import Command, Weights
from tidegate.schemas.seal import Headers, sign_record
from tidegate.schemas.signed import key_id
from tidegate.streams.client.control import ControlConsumer
from tidegate.streams.kafka.patience import STALL_SECONDS
from tidegate.streams.settings import Settings, load_settings
from tidegate.streams.simulation.embedded_broker import embedded, embedded_broker

TOPIC = "tidegate.control"
WORKER, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
TRUSTED = {key_id(WORKER.public_key()): WORKER.public_key()}


@pytest.fixture
def settings() -> Iterator[Settings]:
    with embedded_broker({TOPIC: 3}) as servers:
        yield load_settings(broker=servers, fetch_wait=50)


def command(region: str, seq: int, canary: float = 0.25, *, effective_from: int | None = None) -> Command:
    sha = "sha256:" + f"{seq:064x}"
    weights = Weights(baseline=1 - canary, canary=canary)
    return Command(
        command_id=sha,
        seq=seq,
        flag="f",
        region=region,
        action="promote",
        severity=None,
        weights=weights,
        previous_weights=weights,
        effective_from=1000 * seq if effective_from is None else effective_from,
        reasons=[],
        rule=None,
        decision_id=sha,
        manifest_hash=sha,
    )


async def write(settings: Settings, *records: Command | tuple[str, bytes | None]) -> None:
    async with AIOKafkaProducer(**settings.kafka) as producer:
        for record in records:
            key, value = (record.key, record.to_bytes()) if isinstance(record, Command) else record
            await producer.send_and_wait(TOPIC, value, key=key.encode())


async def write_with(settings: Settings, *records: tuple[Command | bytes, Headers]) -> None:
    async with AIOKafkaProducer(**settings.kafka) as producer:
        for record, headers in records:
            value = record if isinstance(record, bytes) else record.to_bytes()
            await producer.send_and_wait(TOPIC, value, key=b"f|eu", headers=list(headers))


def signed(record: Command, key: Ed25519PrivateKey = WORKER) -> tuple[Command, Headers]:
    return record, sign_record(record.to_bytes(), "command", key)


async def take(commands: ControlConsumer, count: int) -> list[tuple[str, int]]:
    async with asyncio.timeout(10):
        taken = [await anext(commands) for _ in range(count)]
    return sorted((one.region, one.seq) for one in taken)


async def nothing_more(commands: ControlConsumer) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await anext(commands)


def test_a_restart_begins_with_the_last_command_of_each_unit_and_goes_on_with_each_new_one_once(
    settings: Settings,
) -> None:
    """History is passed over but for its end; repeats and older ones are dropped."""

    async def run() -> None:
        await write(settings, *(command(region, seq) for seq in (1, 2, 3) for region in ("eu", "us")))
        async with ControlConsumer(settings) as commands:
            assert await take(commands, 2) == [("eu", 3), ("us", 3)]
            await write(settings, command("eu", 3), command("eu", 4), command("eu", 2), command("eu", 4))
            await write(settings, command("eu", 5), command("ap", 1))
            assert await take(commands, 3) == [("ap", 1), ("eu", 4), ("eu", 5)]
            await nothing_more(commands)

    asyncio.run(run())


def test_commands_of_a_unit_come_in_the_order_of_seq(settings: Settings) -> None:
    """Also while they are written."""

    async def run() -> list[int]:
        async with ControlConsumer(settings) as commands:
            await commands.caught_up()
            await write(settings, *(command("eu", seq) for seq in range(1, 21)))
            return [(await anext(commands)).seq for _ in range(20)]

    assert asyncio.run(run()) == list(range(1, 21))


def test_weights_are_those_of_the_last_command_by_unit(settings: Settings) -> None:
    """Known as soon as the topic has been read, before anything is taken."""

    async def run() -> None:
        await write(settings, command("eu", 1, 0.25), command("us", 1, 0.25), command("eu", 2, 0.0))
        async with ControlConsumer(settings) as commands:
            async with asyncio.timeout(10):
                await commands.caught_up()
            assert {unit: weights.canary for unit, weights in commands.weights.items()} == {"f|eu": 0.0, "f|us": 0.25}

    asyncio.run(run())


def test_a_record_that_is_no_command_is_passed_over_with_a_warning(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Topic, partition and offset are named; a tombstone is nothing to warn of."""
    no_weights = {k: v for k, v in msgspec.to_builtins(command("eu", 1)).items() if k != "weights"}

    async def run() -> None:
        await write(settings, ("x", b"no json"), ("x", msgspec.json.encode(no_weights)), ("x", None))
        async with ControlConsumer(settings) as commands:
            await commands.caught_up()
            await write(settings, ("x", b"{}"), command("eu", 1))
            assert await take(commands, 1) == [("eu", 1)]

    with caplog.at_level(logging.WARNING, "tidegate.control"):
        asyncio.run(run())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert all(line.startswith("tidegate.control-") and " offset " in line for line in said)


def test_a_counter_that_starts_again_later_in_time_is_warned_of(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that lost its state would be ignored in silence otherwise."""

    async def run() -> None:
        await write(settings, command("eu", 5, effective_from=5000), command("eu", 1, effective_from=9000))
        async with ControlConsumer(settings) as commands:
            assert await take(commands, 1) == [("eu", 5)]
            await nothing_more(commands)

    with caplog.at_level(logging.WARNING, "tidegate.control"):
        asyncio.run(run())
    assert "state reset" in caplog.text


def test_iteration_ends_when_the_consumer_is_closed(settings: Settings) -> None:
    """A router's loop ends by itself."""

    async def run() -> list[int]:
        taken: list[int] = []

        async def route(commands: ControlConsumer) -> None:
            taken.extend([one.seq async for one in commands])

        async with ControlConsumer(settings) as commands:
            await write(settings, command("eu", 1))
            routing = asyncio.create_task(route(commands))
            await commands.caught_up()
        async with asyncio.timeout(5):
            await routing
        return taken

    assert asyncio.run(run()) in ([1], [])


def test_a_broker_that_is_away_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """No error reaches the router; it can be closed while waiting."""

    async def run() -> None:
        async with ControlConsumer(load_settings(broker="127.0.0.1:9")) as commands:
            await nothing_more(commands)
            assert dict(commands.weights) == {}

    with caplog.at_level(logging.WARNING, "tidegate.control"):
        asyncio.run(run())
    assert "no commands for now" in caplog.text


def test_with_trusted_keys_only_commands_that_one_of_them_signed_are_given(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """In the history and after it; what is refused moves neither the seq nor the weights, and a log line names it."""

    async def run() -> None:
        forged = command("eu", 7, 1.0)
        await write_with(settings, signed(command("eu", 1)), (forged, []), signed(forged, STRANGER))
        await write_with(settings, (forged, signed(command("eu", 1))[1]))
        async with ControlConsumer(settings, TRUSTED) as commands:
            assert await take(commands, 1) == [("eu", 1)]
            as_decision = sign_record(command("eu", 6).to_bytes(), "decision", WORKER)
            await write_with(settings, (command("eu", 6), as_decision), signed(command("eu", 2, 0.5)))
            assert await take(commands, 1) == [("eu", 2)]
            await nothing_more(commands)
            assert commands.weights["f|eu"].canary == 0.5

    with caplog.at_level(logging.WARNING, "tidegate.control"):
        asyncio.run(run())
    said = [record.getMessage() for record in caplog.records]
    assert ["is refused: " in line and line.startswith("tidegate.control-") for line in said] == [True] * 4
    assert [reason for line in said for reason in ("not signed", "not trusted", "not what") if reason in line] == [
        "not signed",
        "not trusted",
        "not what",
        "not what",
    ]


def test_the_signature_is_looked_at_before_the_command(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes of strangers never reach the parser; signed ones that are no command are passed over as ever."""

    async def run() -> None:
        nothing = b"no json"
        await write_with(settings, (nothing, []), (nothing, sign_record(nothing, "command", WORKER)))
        await write_with(settings, signed(command("eu", 1)))
        async with ControlConsumer(settings, TRUSTED) as commands:
            assert await take(commands, 1) == [("eu", 1)]

    with caplog.at_level(logging.WARNING, "tidegate.control"):
        asyncio.run(run())
    refused, passed_over = (record.getMessage() for record in caplog.records)
    assert "not signed" in refused
    assert "not a command" in passed_over


def test_without_trusted_keys_signatures_do_not_matter(settings: Settings) -> None:
    """Signed and unsigned commands are taken alike."""

    async def run() -> None:
        await write_with(settings, signed(command("eu", 1), STRANGER), (command("eu", 2), []))
        async with ControlConsumer(settings) as commands:
            assert await take(commands, 1) == [("eu", 2)]

    asyncio.run(run())


def test_with_no_key_trusted_nothing_is_taken(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """An empty set of keys is not the same as not asking for signatures."""

    async def run() -> None:
        await write_with(settings, signed(command("eu", 1)))
        async with ControlConsumer(settings, {}) as commands:
            async with asyncio.timeout(10):
                await commands.caught_up()
            assert dict(commands.weights) == {}

    with caplog.at_level(logging.WARNING, "tidegate.control"):
        asyncio.run(run())
    assert "trusted: none" in caplog.text


def own(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == "tidegate.control"]


def test_an_outage_is_a_few_lines_one_of_them_ours(caplog: pytest.LogCaptureFixture) -> None:
    """Since when and why, once a minute; what is written afterwards is heard, and it is said that it is over."""

    async def run() -> None:
        with embedded({TOPIC: 3}) as kafka:
            settings = load_settings(broker=kafka.servers, fetch_wait=50)
            await write(settings, command("eu", 1))
            async with ControlConsumer(settings) as commands:
                assert await take(commands, 1) == [("eu", 1)]
                kafka.leave()
                await asyncio.sleep(STALL_SECONDS + 4)
                assert len(own(caplog)) == 1, caplog.text
                assert len(caplog.records) <= 8, caplog.text
                kafka.come_back()
                await write(settings, command("eu", 2))
                assert await take(commands, 1) == [("eu", 2)]
                async with asyncio.timeout(10):
                    while len(own(caplog)) < 2:  # noqa: ASYNC110 - a log has no event
                        await asyncio.sleep(0.1)

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    away, back = own(caplog)
    assert away.startswith("no commands for now, since 20")
    assert f"topic {TOPIC} at 127." in away
    assert "onnect" in away
    assert back == "commands are read again"


def test_a_topic_that_is_not_there_is_named_once_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tidegate.streams.kafka.tail.REQUEST_TIMEOUT_MS", 1_000)

    async def run() -> None:
        with embedded({TOPIC: 3}) as kafka:
            settings = load_settings(broker=kafka.servers, fetch_wait=50)
            await write(settings, command("eu", 1))
            kafka.hide(TOPIC)
            async with ControlConsumer(settings) as commands:
                await asyncio.sleep(4)
                assert len(own(caplog)) == 1, caplog.text
                assert len(caplog.records) <= 4, caplog.text
                kafka.show(TOPIC)
                assert await take(commands, 1) == [("eu", 1)]

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert f"topic {TOPIC} " in own(caplog)[0]
    assert "it is not there" in own(caplog)[0]


def test_partitions_without_a_leader_are_asked_for_once_a_second(settings: Settings) -> None:
    """The library asks again at once, as fast as the broker answers."""

    async def run() -> None:
        async with ControlConsumer(settings) as commands:
            await commands.caught_up()
            with without_leaders() as asked:
                await asyncio.sleep(3)
                assert 1 <= len(asked) <= 5
            await write(settings, command("eu", 1))
            assert await take(commands, 1) == [("eu", 1)]

    asyncio.run(run())
