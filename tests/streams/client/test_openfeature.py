"""The provider under OpenFeature's own SDK: arms by the last commands, reasons, events and exposures."""

import asyncio
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason
from openfeature.provider import ProviderStatus

from tidegate import arm
from tidegate.openfeature import ExposureHook, TidegateProvider
from tidegate.schemas.decision import Command, Weights
from tidegate.schemas.seal import sign_record
from tidegate.schemas.signed import PrivateKey, public_line
from tidegate.streams.settings import Settings, load_settings
from tidegate.streams.simulation.embedded_broker import EmbeddedBroker, embedded
from tidegate.testing import FakePublisher, FakeSyncPublisher

TOPIC = "tidegate.control"
USERS = [f"u{n}" for n in range(60)]


@pytest.fixture
def kafka() -> Iterator[EmbeddedBroker]:
    with embedded({TOPIC: 2}) as broker:
        yield broker
        api.shutdown()
        api.clear_hooks()


@pytest.fixture
def settings(kafka: EmbeddedBroker) -> Settings:
    return load_settings(broker=kafka.servers, fetch_wait=50)


def command(seq: int, canary: float, *, flag: str = "f", region: str = "eu", **changes: Any) -> Command:
    sha = f"sha256:{seq:064x}"
    fields: dict[str, Any] = {
        "command_id": sha,
        "seq": seq,
        "flag": flag,
        "region": region,
        "action": "promote",
        "severity": None,
        "weights": Weights(baseline=1 - canary, canary=canary),
        "previous_weights": Weights(baseline=1, canary=0),
        "effective_from": 1000 * seq,
        "reasons": [],
        "rule": None,
        "decision_id": sha,
        "manifest_hash": sha,
    }
    return Command(**(fields | changes))


async def _write(settings: Settings, commands: tuple[Command, ...], key: PrivateKey | None) -> None:
    async with AIOKafkaProducer(**settings.kafka) as producer:
        for one in commands:
            value = one.to_bytes()
            headers = sign_record(value, "command", key) if key else ()
            await producer.send_and_wait(TOPIC, value, key=one.key.encode(), headers=headers)


def write(settings: Settings, *commands: Command, key: PrivateKey | None = None) -> None:
    asyncio.run(_write(settings, commands, key))


def connect(settings: Settings, **options: Any) -> OpenFeatureClient:
    api.set_provider_and_wait(TidegateProvider(settings, region="eu", **options))
    return api.get_client()


def heard(client: OpenFeatureClient, event: ProviderEvent) -> "queue.Queue[EventDetails]":
    """Events of a kind, as they come."""
    found: queue.Queue[EventDetails] = queue.Queue()
    client.add_handler(event, found.put)
    return found


def user(name: str, **attributes: str) -> EvaluationContext:
    return EvaluationContext(name, dict(attributes))


def test_every_id_gets_the_arm_that_assignment_says(settings: Settings) -> None:
    """As a boolean and as a string, in both kinds of calls."""
    write(settings, command(1, 0.05), command(2, 0.5))
    client = connect(settings)
    expected = [arm("f", name, 0.5) for name in USERS]
    assert set(expected) == {"baseline", "canary"}
    assert [client.get_string_value("f", "?", user(name)) for name in USERS] == expected
    assert [client.get_boolean_value("f", False, user(name)) for name in USERS] == [one == "canary" for one in expected]

    async def awaited() -> list[str]:
        return [await client.get_string_value_async("f", "?", user(name)) for name in USERS]

    assert asyncio.run(awaited()) == expected


@pytest.mark.parametrize(("weight", "reason"), [(0.0, Reason.DISABLED), (0.25, Reason.SPLIT), (1.0, Reason.STATIC)])
def test_an_evaluation_tells_its_weight_and_command(weight: float, reason: Reason, settings: Settings) -> None:
    """A canary that was stopped is a flag that is off."""
    write(settings, command(3, weight))
    details = connect(settings).get_boolean_details("f", True, user("u1"))
    assert (details.reason, details.variant, details.error_code) == (reason, arm("f", "u1", weight), None)
    facts = {name: details.flag_metadata[name] for name in ("weight", "applied_seq", "action", "region")}
    assert facts == {"weight": weight, "applied_seq": 3, "action": "promote", "region": "eu"}
    assert details.flag_metadata["manifest_hash"] == f"sha256:{3:064x}"


def test_regions_have_weights_of_their_own_and_an_unknown_one_is_the_baseline(settings: Settings) -> None:
    write(settings, command(1, 0.0), command(1, 1.0, region="us"))
    client = connect(settings)
    assert [client.get_string_value("f", "?", user("u1", region=one)) for one in ("eu", "us", "asia")] == [
        "baseline",
        "canary",
        "baseline",
    ]
    assert client.get_string_details("f", "?", user("u1", region="asia")).reason == Reason.DEFAULT


def test_weights_of_the_future_are_not_served_yet(settings: Settings) -> None:
    later = int(time.time() * 1000) + 3_600_000
    write(settings, command(1, 1.0, effective_from=later))
    assert connect(settings).get_string_value("f", "?", user("u1")) == "baseline"


@pytest.mark.parametrize(
    ("call", "flag", "name", "code"),
    [
        ("boolean", "f", None, ErrorCode.TARGETING_KEY_MISSING),
        ("boolean", "g", "u1", ErrorCode.FLAG_NOT_FOUND),
        ("integer", "f", "u1", ErrorCode.TYPE_MISMATCH),
        ("float", "f", "u1", ErrorCode.TYPE_MISMATCH),
        ("object", "f", "u1", ErrorCode.TYPE_MISMATCH),
    ],
)
def test_what_cannot_be_evaluated_is_the_callers_default_with_a_code(
    call: str, flag: str, name: str | None, code: ErrorCode, settings: Settings
) -> None:
    write(settings, command(1, 1.0))
    default: Any = {"boolean": False, "integer": 7, "float": 0.5, "object": {}}[call]
    details = getattr(connect(settings), f"get_{call}_details")(flag, default, EvaluationContext(name))
    assert (details.value, details.error_code, details.reason) == (default, code, Reason.ERROR)


def test_a_new_command_changes_evaluations_and_is_an_event(settings: Settings) -> None:
    """Those that were there at the start are none."""
    write(settings, command(1, 0.0), command(1, 0.0, flag="g"))
    client = connect(settings)
    changed = heard(client, ProviderEvent.PROVIDER_CONFIGURATION_CHANGED)
    write(settings, command(2, 1.0), command(1, 1.0, flag="new"))
    assert sorted(str(changed.get(timeout=20).flags_changed) for _ in range(2)) == ["['f']", "['new']"]
    assert client.get_boolean_value("f", False, user("u1"))
    assert client.get_boolean_value("new", False, user("u1"))
    assert changed.empty()


def test_without_kafka_the_last_weights_go_on_as_stale_until_it_is_back(
    kafka: EmbeddedBroker, settings: Settings
) -> None:
    write(settings, command(1, 1.0))
    client = connect(settings, stale_after=0.1)
    stale, ready = heard(client, ProviderEvent.PROVIDER_STALE), heard(client, ProviderEvent.PROVIDER_READY)
    ready.get(timeout=20)
    assert client.get_boolean_details("f", False, user("u1")).reason == Reason.STATIC
    kafka.leave()
    assert "no word from Kafka" in str(stale.get(timeout=60).message)
    details = client.get_boolean_details("f", False, user("u1"))
    assert (details.value, details.reason) == (True, Reason.STALE)
    kafka.come_back()
    ready.get(timeout=60)
    assert client.get_boolean_details("f", False, user("u1")).reason == Reason.STATIC


def test_a_provider_that_cannot_read_is_not_ready_and_becomes_so_later(
    kafka: EmbeddedBroker, settings: Settings
) -> None:
    write(settings, command(1, 1.0))
    kafka.leave()
    api.set_provider(TidegateProvider(settings, region="eu", ready_seconds=0.5))
    client = api.get_client()
    failed, ready = heard(client, ProviderEvent.PROVIDER_ERROR), heard(client, ProviderEvent.PROVIDER_READY)
    assert "was not read within 0.5 s" in str(failed.get(timeout=20).message)
    assert client.get_boolean_details("f", False, user("u1")).value is False
    kafka.come_back()
    ready.get(timeout=60)
    assert client.get_provider_status() == ProviderStatus.READY
    assert client.get_boolean_value("f", False, user("u1"))


def test_commands_that_no_trusted_key_signed_count_for_nothing(settings: Settings, tmp_path: Path) -> None:
    """The keys are those of the settings."""
    key, stranger = PrivateKey.generate(), PrivateKey.generate()
    (tmp_path / "keys").write_text(public_line(key.public_key(), "worker") + "\n")
    write(settings, command(1, 0.0), key=key)
    write(settings, command(2, 1.0), key=stranger)
    client = connect(settings.model_copy(update={"trusted_keys": tmp_path / "keys"}))
    assert client.get_boolean_details("f", True, user("u1")).flag_metadata["applied_seq"] == 1


def test_the_hook_publishes_an_exposure_of_each_evaluation_that_gave_an_arm(settings: Settings) -> None:
    telemetry = FakePublisher()
    write(settings, command(4, 0.5))
    client = connect(settings)
    client.add_hooks([ExposureHook(telemetry)])
    for name in USERS:
        client.get_boolean_value("f", False, user(name, tenant="acme", plan="gold"))
    client.get_boolean_value("f", False)
    client.get_boolean_value("unknown", False, user("u1"))
    assert [event.sticky_id for event in telemetry.events] == USERS
    for event in telemetry.events:
        assert event.sticky_id is not None
        assert event.bucket is not None
        assert (event.kind, event.flag, event.region, event.tenant) == ("exposure", "f", "eu", "acme")
        assert (event.arm, event.applied_seq) == (arm("f", event.sticky_id, 0.5), 4)
        assert (event.bucket < 0.5) == (event.arm == "canary")
        assert (event.evaluated_by, event.manifest_hash) == ("server", f"sha256:{4:064x}")


def test_the_sample_of_the_docs_runs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, with a broker that has the flag."""
    page = (Path(__file__).parents[3] / "docs" / "openfeature.md").read_text()
    sample = page.split("```python\n")[1].split("```")[0]
    write(settings, command(1, 1.0, flag="prompt_pack"))
    monkeypatch.setenv("TIDEGATE_BROKER", settings.broker)
    served: list[str] = []
    telemetry = FakeSyncPublisher()
    monkeypatch.setattr("tidegate.SyncTelemetryPublisher", lambda: telemetry, raising=False)
    exec(sample.replace("...  # the canary", "served.append('canary')"), {"served": served})  # noqa: S102
    assert served == ["canary"]
    assert [(event.kind, event.arm, event.tenant) for event in telemetry.events] == [("exposure", "canary", "acme")]
