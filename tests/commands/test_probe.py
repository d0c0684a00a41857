"""``tidegate probe``: a gold set and a function of the user's become probes in Kafka."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands.invoke import tidegate
from tidegate.streams.kafka.tail import tail
from tidegate.streams.settings import load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

GOLD = "{flag: f, region: eu, questions: [{id: q1, paraphrases: [a, b, c], anchor: [1, 0], target: [s1, s2]}]}"
SERVICE = """
from tidegate.probes import Answer

async def ask(arm, question, seed):
    return Answer(vector=[1.0, 0.0], retrieved=["s1"])

async def fails(arm, question, seed):
    return "yes"

def at_once(arm, question, seed):
    return Answer(vector=[1.0, 0.0])
"""


@pytest.fixture(scope="module")
def servers() -> Iterator[str]:
    with embedded_broker({"tidegate.telemetry": 2}) as broker:
        yield broker


@pytest.fixture
def gold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a service, in which the command is run."""
    (tmp_path / "gold.yml").write_text(GOLD)
    name = f"service_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SERVICE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / name


async def published(servers: str) -> list[dict[str, Any]]:
    async with tail(load_settings(broker=servers, fetch_wait=50), "tidegate.telemetry") as topic:
        return [json.loads(record.value) for record in await topic.history()]


def test_one_round_is_published_and_told(gold: Path, servers: str) -> None:
    done = tidegate("probe", "--gold", "gold.yml", "--ask", f"{gold.name}:ask", "--broker", servers)
    assert (done.code, done.err) == (0, "")
    told = "6 probes, 1 of 1 question convergent, 0 errors, ΔS median 0.000, coverage 0.500"
    assert done.out.splitlines() == [f"baseline: {told}", f"canary: {told}"]
    events = asyncio.run(published(servers))
    assert len(events) == 12
    assert {(event["source"], event["lambda_state"], event["coverage"]) for event in events} == {("gold", "→", 0.5)}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("fails", "gave a str, not a tidegate.probes.Answer"),
        ("at_once", "is not an async function"),
        ("missing", "has no function missing"),
        ("", "is not MODULE:FUNCTION"),
    ],
)
def test_a_wrong_function_is_one_line(function: str, said: str, gold: Path, servers: str) -> None:
    done = tidegate("probe", "--gold", "gold.yml", "--ask", f"{gold.name}:{function}", "--broker", servers)
    assert done.code == 2
    assert said in done.line


def test_a_module_that_is_not_there_is_named(gold: Path) -> None:
    done = tidegate("probe", "--gold", "gold.yml", "--ask", "no_such_service:ask")
    assert (done.code, done.line) == (
        2,
        "tidegate: --ask: no_such_service cannot be imported: ModuleNotFoundError: No module named 'no_such_service'",
    )
