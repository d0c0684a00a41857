"""ASGI middleware that publishes one telemetry event a request, for Starlette, FastAPI, Litestar, Django and the like.

Wrap an application, and let it say what it knows through ``request.state.telemetry``, which is a ``RequestEvent``::

    app = TelemetryMiddleware(app, telemetry.bind("prompt_pack_vNplus1", region="eu", versions=..., weights=...))

    async def answer(request):
        event = request.state.telemetry
        text, cost = await ask(request, canary=event.arm == "canary")
        event.set(cost=cost, solved=bool(text))
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tidegate.streams.client.bound import BoundTelemetry

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class TelemetryMiddleware:
    """Measures each HTTP request, up to the last byte of its answer.

    ``header``: names whoever the assignment sticks to; requests without it are passed on and not counted.
    """

    def __init__(self, app: Application, telemetry: BoundTelemetry, header: str = "x-user-id") -> None:
        self._app, self._telemetry, self._header = app, telemetry, header.lower().encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        sticky_id = dict(scope.get("headers", ())).get(self._header, b"").decode("latin-1")
        if scope["type"] != "http" or not sticky_id:
            await self._app(scope, receive, send)
            return
        async with self._telemetry.request(sticky_id, endpoint=scope["path"]) as event:

            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    event.set(status=message["status"])
                await send(message)

            scope.setdefault("state", {})["telemetry"] = event
            await self._app(scope, receive, sending)
