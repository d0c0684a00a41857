"""The JSON behind the status page, as a program asks for it, and what every answer's headers forbid."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.commands.test_explain import ABORT, PROMOTE
from tests.streams.status.test_state import LATER, NOW, at, filled, order
from tidegate.schemas.decision import seal_decision
from tidegate.streams.status.routes import POLICY, add_status
from tidegate.streams.status.state import StatusState

Client = TestClient[web.Request, web.Application]


def ask(state: StatusState, questions: Callable[[Client], Awaitable[None]]) -> None:
    async def run() -> None:
        app = web.Application()
        add_status(app, state)
        async with TestClient(TestServer(app)) as client:
            await questions(client)

    asyncio.run(run())


async def answer(client: Client, path: str, status: int = 200) -> Any:
    async with client.get(path) as found:
        assert found.status == status
        assert found.content_type == "application/json"
        return await found.json()


def test_units_and_one_unit_by_flag_and_region() -> None:
    async def questions(client: Client) -> None:
        (line,) = (await answer(client, "/api/units"))["units"]
        assert (line["flag"], line["region"], line["state"], line["verdict"]) == ("answer", "eu", "stopped", "abort")
        unit = await answer(client, "/api/units/answer/eu")
        assert unit["canary_weight"] == 0.0
        assert [one["verdict"] for one in unit["decisions"]] == ["abort", "promote"]
        gate = next(one for one in unit["gates"] if one["gate"] == "error_rate_max")
        assert (gate["status"], gate["threshold"]) == ("fail", 0.005)
        for path in ("/api/units/answer/us", "/api/units/other/eu"):
            assert "/api/units lists" in (await answer(client, path, 404))["error"]

    ask(filled(at(PROMOTE), at(ABORT, later=LATER)), questions)


@pytest.mark.parametrize(
    ("query", "stopped", "promoted"),
    [
        ("", 409, 200),
        ("?state=stopped", 200, 409),
        ("?state=good", 409, 200),
        ("?state=good,stopped", 200, 200),
        ("?state=gone", 409, 409),
        ("?weight=0.25", 409, 200),
        ("?weight=1", 409, 409),
        ("?state=stopped&weight=0", 200, 409),
        ("?state=great", 400, 400),
        ("?weight=all", 400, 400),
        ("?weight=nan", 400, 400),
    ],
)
def test_whoever_only_understands_a_status_is_answered_by_one(query: str, stopped: int, promoted: int) -> None:
    """As Flagger, which posts what it is about, and reads no more than whether it may go on."""
    promote = at(PROMOTE)
    running = filled(promote)
    running.commanded(order(promote, 0.25).to_bytes())
    for state, expected in ((filled(promote, at(ABORT, later=LATER)), stopped), (running, promoted)):

        async def questions(client: Client, expected: int = expected) -> None:
            body = {"name": "checkout", "namespace": "shop", "phase": "Progressing", "metadata": {}}
            async with client.post(f"/api/units/answer/eu/check{query}", json=body) as found:
                told = await found.json()
                assert found.status == expected, told
            if expected == 400:
                assert "write" in told["error"]
                return
            assert (told["flag"], told["region"]) == ("answer", "eu")
            assert ("error" in told) == (expected == 409)
            async with client.get("/api/units/other/eu/check") as unknown:
                assert unknown.status == 404

        ask(state, questions)


@pytest.mark.parametrize(("flag", "region"), [("a/b", ""), ("é|?#", "süd/1"), ("..", "%2F"), ("<b>", " ")])
def test_a_unit_of_any_name_is_found(flag: str, region: str) -> None:
    decision = seal_decision(msgspec.structs.replace(PROMOTE, flag=flag, region=region), None)

    async def questions(client: Client) -> None:
        from yarl import URL

        path = f"/api/units/{quote(flag, safe='')}/{quote(region, safe='')}".replace("..", "%2E%2E")
        unit = await answer(client, URL(path, encoded=True), 200)  # type: ignore[arg-type]
        assert (unit["flag"], unit["region"]) == (flag, region)

    ask(filled(decision), questions)


def test_a_decision_is_told_as_it_was_written_with_words_and_command() -> None:
    promote = at(PROMOTE)
    state = filled(promote)
    state.commanded(order(promote, 0.25).to_bytes())

    async def questions(client: Client) -> None:
        found = await answer(client, f"/api/decisions/{promote.decision_id}")
        assert found["decision"] == json.loads(promote.to_bytes())
        assert found["command"]["decision_id"] == promote.decision_id
        assert "promoted from 5 % to 25 %" in found["words"]["headline"]
        assert await answer(client, f"/api/decisions/{promote.decision_id[7:17]}") == found
        assert "hex digits" in (await answer(client, "/api/decisions/abc", 400))["error"]
        assert "tidegate explain" in (await answer(client, "/api/decisions/" + "0" * 64, 404))["error"]

    ask(state, questions)


def test_every_answer_has_the_strict_policy_and_nothing_can_be_written() -> None:
    async def questions(client: Client) -> None:
        for path in ("/", "/static/page.js", "/static/uplot.css", "/api/units", "/api/units/no/one"):
            async with client.get(path) as found:
                assert found.headers["Content-Security-Policy"] == POLICY
                assert found.headers["X-Content-Type-Options"] == "nosniff"
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                async with client.request(method, path) as found:
                    assert found.status == 405

    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY
    ask(filled(at(PROMOTE)), questions)


def test_events_tell_all_units_first_then_each_that_changes_then_that_the_broker_is_away() -> None:
    state = filled(at(PROMOTE))

    async def questions(client: Client) -> None:
        async with client.get("/api/events") as stream:
            assert stream.content_type == "text/event-stream"
            lines = stream.content

            async def event() -> tuple[str, Any]:
                name = (await lines.readline()).decode().strip().removeprefix("event: ")
                body = json.loads((await lines.readline()).removeprefix(b"data: "))
                assert await lines.readline() == b"\n"
                return name, body

            name, body = await event()
            assert (name, [one["verdict"] for one in body["units"]]) == ("units", ["promote"])
            state.decided(at(ABORT, later=LATER).to_bytes(), NOW)
            name, body = await event()
            assert (name, body["verdict"], body["state"]) == ("unit", "abort", "stopped")
            state.away("tidegate.decisions", NOW)
            state.decided(at(ABORT, later=2 * LATER).to_bytes(), NOW)
            assert (await event())[0] == "unit"
            assert await event() == ("broker", {"broker_away_since": NOW})

    ask(state, questions)
