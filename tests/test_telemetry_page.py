"""What docs/telemetry.md shows is code that runs: its samples, as they stand there, bring telemetry to Kafka."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tidegate.streams.kafka.tail import tail
from tidegate.streams.settings import load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

PAGE = (Path(__file__).parents[1] / "docs" / "telemetry.md").read_text()
SAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)
TOPICS = {"tidegate.telemetry": 2, "tidegate.control": 1}


async def requests() -> AsyncIterator[Any]:
    """Two of them; the second is not answered."""

    async def ask(canary: bool) -> tuple[str, float]:
        return "an answer", 0.25

    async def fail(canary: bool) -> tuple[str, float]:
        raise RuntimeError("no answer")

    yield SimpleNamespace(user="u1", ask=ask)
    yield SimpleNamespace(user="u2", ask=fail)


async def published(fetch_wait: int = 50) -> list[dict[str, Any]]:
    async with tail(load_settings(fetch_wait=fetch_wait), "tidegate.telemetry") as topic:
        return [json.loads(record.value) for record in await topic.history()]


def test_the_first_sample_brings_requests_and_their_errors_to_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    with embedded_broker(TOPICS) as servers:
        monkeypatch.setenv("TIDEGATE_BROKER", servers)
        exec(SAMPLES[0], names)  # noqa: S102
        with pytest.raises(RuntimeError, match="no answer"):
            asyncio.run(names["serve"](requests()))
        events = sorted(asyncio.run(published()), key=lambda event: str(event["sticky_id"]))
    assert [(event["flag"], event["region"], event["arm"]) for event in events] == [
        ("prompt_pack", "eu", "baseline")
    ] * 2
    assert [(event["error"], event.get("cost")) for event in events] == [(False, 0.25), (True, None)]
    assert all(event["versions"] == names["PINS"] and event["latency_ms"] >= 0 for event in events)


def test_the_sample_for_threads_brings_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"PINS": {"MODEL_VER": "m1"}}
    with embedded_broker(TOPICS) as servers:
        monkeypatch.setenv("TIDEGATE_BROKER", servers)
        exec(SAMPLES[1], names)  # noqa: S102
        names["handle"](SimpleNamespace(user="u1", arm="canary", ask=lambda: 0.5))
        names["telemetry"].close()
        (event,) = asyncio.run(published())
    assert (event["sticky_id"], event["arm"], event["cost"], event["error"]) == ("u1", "canary", 0.5, False)
