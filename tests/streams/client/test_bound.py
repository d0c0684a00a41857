"""The event builder: bound once, measured, and never in the way of the request."""

import asyncio
import logging
import time

import pytest

from tests.streams.events import PINS
from tidegate import arm
from tidegate.schemas.decision import Weights
from tidegate.schemas.errors import EventError
from tidegate.testing import FakePublisher, FakeSyncPublisher

CANARY = PINS | {"MODEL_VER": "new"}


def test_a_request_is_filled_in_and_measured() -> None:
    """Id, time, flag, region, the arm's pins, latency and outcome; what the service adds comes with it."""
    telemetry = FakePublisher()
    answers = telemetry.bind("f", region="eu", endpoint="/ask", versions={"baseline": PINS, "canary": CANARY})
    before = int(time.time() * 1000)
    for chosen in ("baseline", "canary"):
        with answers.request("u1", chosen) as event:
            time.sleep(0.02)
            event.set(cost=0.5, solved=True)
    first, second = telemetry.events
    assert (first.flag, first.region, first.endpoint, first.sticky_id) == ("f", "eu", "/ask", "u1")
    assert (first.versions, second.versions) == (PINS, CANARY)
    assert (first.error, first.status, first.cost, first.solved) == (False, None, 0.5, True)
    assert first.latency_ms is not None
    assert first.latency_ms >= 20
    assert first.event_id
    assert first.event_id != second.event_id
    assert first.ts >= before + 20


def test_a_status_stands_instead_of_error_and_what_is_given_wins() -> None:
    telemetry = FakePublisher()
    with telemetry.bind("f").request("u1", "canary", latency_ms=7.0) as event:
        event.set(status=503)
    assert (telemetry.events[0].status, telemetry.events[0].error, telemetry.events[0].latency_ms) == (503, None, 7.0)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("valid", [True, False])
def test_an_exception_counts_as_an_error_and_is_raised_on(strict: bool, valid: bool) -> None:
    """Also where the event is not valid, whoever says so."""
    telemetry = FakePublisher(strict=strict)
    request = telemetry.bind("f").request("u1", "canary", status=200, cost=1.0 if valid else -1.0)
    with pytest.raises(ZeroDivisionError), request:
        _ = 1 / 0
    assert [one.error for one in telemetry.events] == [True] * valid
    assert telemetry.rejected == (not valid)


def test_it_works_in_async_code_where_a_timeout_counts_as_an_error() -> None:
    telemetry = FakePublisher()
    answers = telemetry.bind("f")

    async def serve(seconds: float) -> None:
        async with answers.request("u1", "canary"):
            await asyncio.sleep(seconds)

    async def run() -> None:
        await serve(0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(serve(10), 0.01)

    asyncio.run(run())
    assert [event.error for event in telemetry.events] == [False, True]


def test_exposures_and_labels_carry_what_is_bound() -> None:
    """A label names its request."""
    telemetry = FakeSyncPublisher()
    answers = telemetry.bind("f", region="eu", versions=PINS)
    assert answers.exposure("u1", "canary", evaluated_by="server")
    with answers.request("u1", "canary") as event:
        pass
    assert answers.label(event.event_id, "u1", event.arm, coverage=0.8)
    exposure, request, label = telemetry.events
    assert (exposure.kind, exposure.arm, exposure.evaluated_by) == ("exposure", "canary", "server")
    assert (label.kind, label.labels_event_id, label.coverage) == ("label", request.event_id, 0.8)
    assert {(one.flag, one.region, one.versions == PINS) for one in telemetry.events} == {("f", "eu", True)}


def test_arms_follow_from_the_last_commands_weights() -> None:
    """As ``tidegate.arm`` says; without a command everybody stays in the baseline."""
    telemetry, weights = FakePublisher(), dict[str, Weights]()
    answers = telemetry.bind("f", region="eu", weights=weights)
    with answers.request("u1") as event:
        assert event.arm == "baseline"
    weights["f|eu"] = Weights(baseline=0.5, canary=0.5)
    ids = [f"u{n}" for n in range(50)]
    for one in ids:
        answers.request(one).__enter__().__exit__(None, None, None)
    assert [event.arm for event in telemetry.events[1:]] == [arm("f", one, 0.5) for one in ids]
    assert {event.arm for event in telemetry.events} == {"baseline", "canary"}


def test_without_arm_or_weights_the_event_is_rejected_and_the_request_goes_on() -> None:
    telemetry = FakePublisher(strict=False)
    with telemetry.bind("f").request("u1"):
        pass
    assert (telemetry.rejected, telemetry.events) == (1, [])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"endpont": "/ask"}, "did you mean `endpoint`"),
        ({"versions": {"canary": PINS, "MODEL_VER": "m"}}, "MODEL_VER"),
    ],
)
def test_binding_names_a_mistake_at_once(given: dict[str, object], said: str) -> None:
    """It is made at the service's start."""
    with pytest.raises(EventError, match=said):
        FakePublisher().bind("f", **given)  # type: ignore[arg-type]


def test_an_unknown_field_is_warned_of_once_and_the_rest_is_published(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = FakePublisher(strict=False)
    answers = telemetry.bind("f")
    with caplog.at_level(logging.WARNING, "tidegate.publisher"):
        for _ in range(3):
            with answers.request("u1", "canary", coverge=0.9):
                pass
    assert len(telemetry.events) == 3
    assert len(caplog.messages) == 1
    assert '"coverge" is not a field of telemetry; did you mean `coverage`?' in caplog.messages[0]


def test_a_strict_fake_raises_for_a_field_that_would_be_ignored() -> None:
    with pytest.raises(EventError, match="did you mean `coverage`"):
        FakePublisher().bind("f").exposure("u1", "canary", coverge=0.9)
