"""What Argo Rollouts and Flagger ask, by the files that are shipped, put to the endpoint itself."""

import asyncio
import operator
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.commands.test_explain import ABORT, PROMOTE
from tests.deploy.test_kubernetes import KUSTOMIZATION, OBJECTS
from tests.streams.status.test_state import LATER, at, filled, order
from tidegate.streams.status.routes import add_status
from tidegate.streams.status.state import StatusState

FOLDER = Path(__file__).parents[2] / "deploy" / "progressive"
ARGO: dict[str, Any] = yaml.safe_load((FOLDER / "argo-rollouts.yaml").read_text())
FLAGGER: dict[str, Any] = yaml.safe_load((FOLDER / "flagger.yaml").read_text())
(METRIC,) = ARGO["spec"]["metrics"]
HOOKS = {hook["type"]: hook for hook in FLAGGER["spec"]["analysis"]["webhooks"]}
FLAG, REGION = "prompt_pack_vNplus1", "us-east-1"


class Answer(NamedTuple):
    """An answer of the endpoint."""

    status: int
    body: Any


def unit(*, stopped: bool, weight: float) -> StatusState:
    """The state of a page whose one unit has this weight, or was stopped at it."""
    promote = at(PROMOTE)
    decisions = [promote, at(ABORT, later=LATER)] if stopped else [promote]
    named = [msgspec.structs.replace(one, flag=FLAG, region=REGION) for one in decisions]
    state = filled(*named)
    state.commanded(order(named[-1], 0.0 if stopped else weight, 2).to_bytes())
    return state


def asked(state: StatusState, method: str, url: str) -> Answer:
    """What the page's own routes answer to a question for the service."""

    async def run() -> Answer:
        app = web.Application()
        add_status(app, state)
        async with TestClient(TestServer(app)) as client:
            parts = urlsplit(url)
            path = f"{parts.path}?{parts.query}" if parts.query else parts.path
            payload = {"name": "answer", "namespace": "shop", "phase": "Progressing", "checksum": "1", "metadata": {}}
            async with client.request(method, path, json=payload if method == "POST" else None) as found:
                return Answer(found.status, await found.json())

    return asyncio.run(run())


def measured(answer: Answer) -> str:
    """Argo's phase of one measurement: its jsonPath, then both conditions on the result."""
    if not 200 <= answer.status < 300:
        return "Error"
    path = re.fullmatch(r"\{\$\.(\w+)\}", METRIC["provider"]["web"]["jsonPath"])
    assert path is not None
    result = answer.body[path[1]]

    def holds(condition: str) -> bool:
        said = re.fullmatch(r'result (==|!=) "(\w+)"', condition)
        assert said is not None
        compare = {"==": operator.eq, "!=": operator.ne}[said[1]]
        return bool(compare(result, said[2]))

    if holds(METRIC["failureCondition"]):
        return "Failed"
    return "Successful" if holds(METRIC["successCondition"]) else "Inconclusive"


def argo_url() -> str:
    url: str = METRIC["provider"]["web"]["url"]
    for name, value in {"flag": FLAG, "region": REGION}.items():
        url = url.replace(f"{{{{args.{name}}}}}", value)
    assert {one["name"] for one in ARGO["spec"]["args"]} == {"flag", "region"}
    assert "{{" not in url
    return url


@pytest.mark.parametrize(("stopped", "phase"), [(False, "Successful"), (True, "Failed")])
def test_argo_goes_on_until_the_canary_is_stopped(stopped: bool, phase: str) -> None:
    assert METRIC["provider"]["web"]["method"] == "GET"
    assert measured(asked(unit(stopped=stopped, weight=0.25), "GET", argo_url())) == phase


def test_argo_waits_for_a_units_first_decision() -> None:
    """That is an error, of which it takes many in a row; not a failure, which would abort."""
    assert measured(asked(StatusState(), "GET", argo_url())) == "Error"
    assert METRIC["consecutiveErrorLimit"] >= 30
    assert METRIC["failureLimit"] == 0


@pytest.mark.parametrize(
    ("stopped", "weight", "answers"),
    [
        (False, 0.25, {"rollout": 200, "confirm-promotion": 409, "rollback": 409}),
        (False, 1.0, {"rollout": 200, "confirm-promotion": 200, "rollback": 409}),
        (True, 0.0, {"rollout": 409, "confirm-promotion": 409, "rollback": 200}),
    ],
)
def test_flagger_goes_on_promotes_and_rolls_back_with_tidegate(
    stopped: bool, weight: float, answers: dict[str, int]
) -> None:
    state = unit(stopped=stopped, weight=weight)
    assert {kind: asked(state, "POST", hook["url"]).status for kind, hook in HOOKS.items()} == answers


def test_both_ask_the_service_that_is_deployed() -> None:
    service = OBJECTS["Service", "tidegate-serve"]
    host = f"{service['metadata']['name']}.{KUSTOMIZATION['namespace']}.svc"
    for url in (argo_url(), *(hook["url"] for hook in HOOKS.values())):
        parts = urlsplit(url)
        assert (parts.scheme, parts.hostname, parts.port) == ("http", host, service["spec"]["ports"][0]["port"])
