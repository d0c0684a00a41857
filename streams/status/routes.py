"""The paths of the status page: the page itself, the JSON behind it, and a stream of what changes."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from math import nan
from typing import Any

import orjson
from aiohttp import web

from tidegate.schemas.decision import decision_from_bytes
from tidegate.streams.status.state import LISTENERS_MAX, SHORT_ID, StatusState
from tidegate.streams.status.views import LEVELS, all_units, decision_view, unit_line, unit_view

GOING_ON = "good,waiting,attention"
"""The states of a unit whose canary is not stopped."""
HEARTBEAT_SECONDS = 15.0
GATHER_SECONDS = 0.2
"""Time that changes are gathered before they are sent."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
STATIC = {
    "page.js": "text/javascript",
    "page.css": "text/css",
    "uplot.js": "text/javascript",
    "uplot.css": "text/css",
    "icon.svg": "image/svg+xml",
}
STATE: web.AppKey[StatusState] = web.AppKey("status", StatusState)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_status(app: web.Application, state: StatusState) -> None:
    """Add the page and its JSON to an application, which has to feed ``state``; nothing there writes anything."""
    app[STATE] = state
    app.on_shutdown.append(_end)
    room = files("tidegate.streams.status") / "page"
    contents = {name: (room / name).read_bytes() for name in ("index.html", *STATIC)}
    app.router.add_get("/", _file(contents["index.html"], "text/html"))
    for name, kind in STATIC.items():
        app.router.add_get(f"/static/{name}", _file(contents[name], kind))
    app.router.add_get("/api/units", _units)
    app.router.add_get("/api/units/{flag}/{region:[^/]*}", _unit)
    for add in (app.router.add_get, app.router.add_post):
        add("/api/units/{flag}/{region:[^/]*}/check", _check)
    app.router.add_get("/api/decisions/{id}", _decision)
    app.router.add_get("/api/events", _events)


async def _end(app: web.Application) -> None:
    app[STATE].end()


def _file(content: bytes, kind: str) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        headers = HEADERS | {"Cache-Control": "no-cache"}
        return web.Response(body=content, content_type=kind, charset="utf-8", headers=headers)

    return answer


def _json(body: Any, status: int = 200) -> web.Response:
    headers = HEADERS | {"Cache-Control": "no-store"}
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json", headers=headers)


def _now() -> int:
    return int(time.time() * 1000)


async def _units(request: web.Request) -> web.StreamResponse:
    return _json(all_units(request.app[STATE], _now()))


async def _unit(request: web.Request) -> web.StreamResponse:
    state, unit = request.app[STATE], (request.match_info["flag"], request.match_info["region"])
    if unit not in state.units:
        return _json({"error": "no decision of this flag and region is known; /api/units lists those that are"}, 404)
    return _json(unit_view(state, unit, _now()))


async def _check(request: web.Request) -> web.StreamResponse:
    """Answer by the status alone whether a unit stands as the query asks for; what is posted is not read."""
    known, unit = request.app[STATE], (request.match_info["flag"], request.match_info["region"])
    wanted = set(request.query.get("state", GOING_ON).split(","))
    if not wanted <= set(LEVELS.values()):
        return _json({"error": f"state: write some of {','.join(LEVELS.values())}"}, 400)
    try:
        least = float(request.query.get("weight", "0"))
    except ValueError:
        least = nan
    if not 0 <= least <= 1:
        return _json({"error": "weight: write the least share of traffic, from 0 to 1"}, 400)
    if unit not in known.units:
        return _json({"error": "no decision of this flag and region is known; /api/units lists those that are"}, 404)
    line = unit_line(known, unit, _now())
    if line["state"] in wanted and line["canary_weight"] >= least:
        return _json(line)
    return _json(line | {"error": f"it is {line['state']}: {line['words']}"}, 409)


async def _decision(request: web.Request) -> web.StreamResponse:
    state, written = request.app[STATE], request.match_info["id"]
    if SHORT_ID.fullmatch(written.lower()) is None:
        return _json({"error": "a decision_id is sha256: and 64 hex digits; 8 or more of them are enough"}, 400)
    found = state.find(written)
    if len(found) > 1:
        return _json({"error": "more than one decision begins so: give more digits"}, 409)
    if not found:
        return _json({"error": "not among the decisions kept here; `tidegate explain` finds older ones"}, 404)
    return _json(decision_view(state, decision_from_bytes(found[0])))


async def _events(request: web.Request) -> web.StreamResponse:
    """Send how all units stand, then each that changes, as server-sent events."""
    state = request.app[STATE]
    with state.listening() as listener:
        if listener is None:
            return _json({"error": f"{LISTENERS_MAX} readers listen already; ask /api/units instead"}, 503)
        headers = HEADERS | {"Cache-Control": "no-store", "Content-Type": "text/event-stream"}
        answer = web.StreamResponse(headers=headers)
        await answer.prepare(request)
        with suppress(ConnectionResetError):
            await answer.write(_event("units", all_units(state, _now())))
            away = state.away_since
            while not listener.ended:
                changed = await listener.changes(HEARTBEAT_SECONDS)
                if not changed and not listener.ended:
                    await answer.write(b": still here\n\n")
                for unit in changed:
                    if state.last(unit) is not None:
                        await answer.write(_event("unit", unit_line(state, unit, _now())))
                if state.away_since != away:
                    away = state.away_since
                    await answer.write(_event("broker", {"broker_away_since": away}))
                await asyncio.sleep(GATHER_SECONDS)
    return answer


def _event(name: str, body: Any) -> bytes:
    # JSON has no line breaks, so one data line holds it.
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(body))
