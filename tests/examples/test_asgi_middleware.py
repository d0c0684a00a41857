"""The middleware of examples/ does what its text says, under a server's own calls."""

import asyncio
from typing import Any

import pytest

from tidegate.examples.asgi_middleware import Message, Receive, Send, TelemetryMiddleware
from tidegate.schemas.decision import Weights
from tidegate.schemas.event import TelemetryEvent
from tidegate.testing import FakePublisher

ALL = {"f|eu": Weights(baseline=0, canary=1)}


def serve(path: str, *, user: str | None = "u1", kind: str = "http") -> tuple[list[Message], list[TelemetryEvent]]:
    """Send one request to a small application; what it answered, and what was published."""
    telemetry, sent = FakePublisher(), []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if path == "/broken":
            raise RuntimeError("broken")
        if kind == "http" and user:
            scope["state"]["telemetry"].set(cost=0.25)
        await send({"type": "http.response.start", "status": 503 if path == "/busy" else 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"X-User-Id".lower(), user.encode())] if user else []
    scope: dict[str, Any] = {"type": kind, "path": path, "headers": headers}
    wrapped = TelemetryMiddleware(app, telemetry.bind("f", region="eu", weights=ALL))
    try:
        asyncio.run(wrapped(scope, receive, send))
    except RuntimeError as error:
        sent.append({"type": str(error)})
    return sent, telemetry.events


@pytest.mark.parametrize(("path", "status"), [("/ask", 200), ("/busy", 503)])
def test_each_request_is_one_event_with_its_status(path: str, status: int) -> None:
    sent, (event,) = serve(path)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert (event.status, event.endpoint, event.sticky_id, event.arm, event.cost) == (
        status,
        path,
        "u1",
        "canary",
        0.25,
    )


def test_an_application_that_fails_is_an_error_and_fails_on() -> None:
    sent, (event,) = serve("/broken")
    assert sent == [{"type": "broken"}]
    assert event.error


@pytest.mark.parametrize("given", [{"user": None}, {"kind": "websocket"}])
def test_what_is_no_request_of_a_user_passes_uncounted(given: dict[str, Any]) -> None:
    sent, events = serve("/ask", **given)
    assert len(sent) == 2
    assert events == []
