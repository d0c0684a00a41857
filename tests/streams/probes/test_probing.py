"""What a round of probes publishes, and that a replay decides λ, ΔS and coverage from it."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.commands.invoke import tidegate
from tests.streams.events import NOON, PINS, tick
from tidegate.probes import Answer, Summary, load_gold, probe, probe_every
from tidegate.schemas.errors import InputError
from tidegate.schemas.event import ArmName, TelemetryEvent
from tidegate.testing import FakePublisher

GOLD = load_gold(
    f"""
flag: f
region: eu
endpoint: /ask
versions: {json.dumps(PINS)}
questions:
  - {{id: q1, paraphrases: [one, uno, un], anchor: [1, 0], target: [s1, s2]}}
  - {{id: q2, paraphrases: [two, due, deux], anchor: [0, 1], target: [s2]}}
  - {{id: q3, paraphrases: [three, tre, trois], anchor: [1, 1], target: [s3]}}
  - {{id: q4, paraphrases: [four, quattro, quatre], anchor: [1, 2], target: [s4]}}
"""
)
ANCHORS = {one: q.anchor for q in GOLD.questions for one in q.paraphrases}
TARGETS = {one: q.target for q in GOLD.questions for one in q.paraphrases}
Ask = Callable[[ArmName, str, int], Awaitable[Answer]]


def asking(changed: Callable[[ArmName, str, int], bool] = lambda *_: False) -> Ask:
    """A service that answers with the anchor itself; where ``changed``, with something else."""

    async def ask(arm: ArmName, question: str, seed: int) -> Answer:
        vector = ANCHORS[question]
        assert not isinstance(vector, str)
        if changed(arm, question, seed):
            return Answer(vector=[-number for number in vector])
        return Answer(vector=vector, retrieved=TARGETS[question], fields={"cost": 0.5, "solved": True})

    return ask


def published(ask: Ask) -> list[TelemetryEvent]:
    telemetry = FakePublisher()
    asyncio.run(probe(GOLD, ask, telemetry))
    return telemetry.events


def test_each_question_is_asked_of_both_arms_in_three_ways_with_two_seeds() -> None:
    asked: Counter[tuple[str, str, int]] = Counter()

    async def ask(arm: ArmName, question: str, seed: int) -> Answer:
        asked[arm, question, seed] += 1
        return Answer(vector=[1.0, 0.0])

    events = published(ask)
    assert asked == Counter(
        {(arm, one, seed): 1 for arm in ("baseline", "canary") for one in ANCHORS for seed in (1, 2)}
    )
    runs = Counter((event.arm, event.query_id, event.paraphrase, event.seed) for event in events)
    assert len(runs) == len(events) == 2 * 4 * 6
    assert {(event.flag, event.region, event.endpoint, event.source) for event in events} == {
        ("f", "eu", "/ask", "gold")
    }
    assert all(event.versions == PINS and event.latency_ms is not None for event in events)


def test_a_probe_carries_what_was_measured() -> None:
    """Also what the service adds of its own; coverage only where questions have targets."""
    for event in published(asking()):
        assert event.delta_s == pytest.approx(0, abs=1e-12)
        assert (event.coverage, event.lambda_state, event.error, event.cost) == (1.0, "→", False, 0.5)
    telemetry = FakePublisher()
    without = [msgspec.structs.replace(question, target=[]) for question in GOLD.questions]
    asyncio.run(probe(msgspec.structs.replace(GOLD, questions=without), asking(), telemetry))
    assert {event.coverage for event in telemetry.events} == {None}


def test_a_groups_six_events_have_one_time_so_that_no_window_parts_them() -> None:
    times: dict[tuple[Any, Any], set[int]] = {}
    for event in published(asking()):
        times.setdefault((event.arm, event.query_id), set()).add(event.ts)
    assert [len(found) for found in times.values()] == [1] * 8


def test_an_arm_that_fails_has_an_error_and_no_lambda() -> None:
    """The others of its group go on."""

    async def ask(arm: ArmName, question: str, seed: int) -> Answer:
        if (arm, question, seed) == ("canary", "uno", 2):
            raise TimeoutError
        return await asking()(arm, question, seed)

    group = [event for event in published(ask) if (event.arm, event.query_id) == ("canary", "q1")]
    failed = [event for event in group if event.error]
    assert [(one.paraphrase, one.seed, one.lambda_state, one.delta_s) for one in failed] == [(2, 2, "×", None)]
    assert {event.lambda_state for event in group if not event.error} == {"→"}


def test_words_are_embedded_by_the_function_that_is_given() -> None:
    telemetry = FakePublisher()
    gold = load_gold("{flag: f, questions: [{id: q, paraphrases: [a, b, c], anchor: yes it is}]}")

    async def ask(arm: ArmName, question: str, seed: int) -> Answer:
        return Answer(text="yes it is" if arm == "baseline" else "no")

    async def embed(text: str) -> list[float]:
        return [1.0, 0.0] if text == "yes it is" else [0.0, 1.0]

    with pytest.raises(InputError, match="--embed"):
        asyncio.run(probe(gold, ask, telemetry))
    asyncio.run(probe(gold, ask, telemetry, embed=embed))
    assert {(event.arm, event.delta_s) for event in telemetry.events} == {("baseline", 0.0), ("canary", 1.0)}


def test_an_answer_that_cannot_be_measured_ends_the_round_with_one_clear_error() -> None:
    """It is the caller's mistake, not the arm's."""

    async def ask(arm: ArmName, question: str, seed: int) -> Answer:
        return Answer(text="without a vector")

    with pytest.raises(InputError, match="no vector"):
        published(ask)


def test_on_a_schedule_rounds_follow_until_it_is_cancelled() -> None:
    telemetry, rounds = FakePublisher(), list[dict[ArmName, Summary]]()

    async def run() -> None:
        third = asyncio.Event()

        def done(summaries: dict[ArmName, Summary]) -> None:
            rounds.append(summaries)
            if len(rounds) == 3:
                third.set()

        task = asyncio.create_task(probe_every(0.01, GOLD, asking(), telemetry, done=done))
        await third.wait()
        task.cancel()

    asyncio.run(run())
    assert len(telemetry.events) >= 3 * 48
    assert rounds[0]["canary"].converged == 4


MANIFEST = """
flags:
  f:
    scope: {regions: [eu], endpoints: [/ask]}
    window: {length: 60s, min_requests: 20}
    policy: {evidence: point}
"""


def decided(folder: Path, events: list[TelemetryEvent]) -> dict[str, Any]:
    """The first window's decision on healthy traffic and these probes."""
    start = NOON - NOON % 60_000 + 60_000
    traffic = {"flag": "f", "region": "eu", "endpoint": "/ask", "versions": PINS, "latency_ms": 400, "status": 200}
    traffic |= {"cost": 0.5, "solved": True}
    lines = []
    for n in range(1200):
        given = {"event_id": f"e{n}", "ts": start + n * 50, "sticky_id": f"u{n}"}
        lines.append(json.dumps(traffic | given | {"arm": "baseline" if n % 20 else "canary"}).encode())
        if n == 600:
            moved = [msgspec.structs.replace(event, ts=start + 30_000, latency_ms=400) for event in events]
            lines += [msgspec.json.encode(event) for event in moved]
    lines.append(tick(start + 120_000))
    (folder / "log.ndjson").write_bytes(b"\n".join(lines))
    (folder / "flags.yml").write_text(MANIFEST)
    out = folder / "out.ndjson"
    done = tidegate("replay", "--manifest", folder / "flags.yml", "--events", folder / "log.ndjson", "--out", out)
    assert (done.code, done.err) == (0, "")
    decision: dict[str, Any] = json.loads(out.read_bytes().splitlines()[0])
    return decision


def gates(decision: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    return {gate["gate"]: (gate["status"], gate["observed"]) for gate in decision["gates"]}


def test_probes_that_converge_let_a_replay_promote(tmp_path: Path) -> None:
    """The same traffic without them holds, for λ, ΔS and coverage are unknown."""
    decision = decided(tmp_path, published(asking()))
    assert decision["verdict"] == "promote", decision
    assert gates(decision)["lambda_convergent"] == ("pass", 1)
    without = decided(tmp_path, [])
    assert without["verdict"] == "hold"
    assert {gates(without)[name][0] for name in ("lambda_convergent", "coverage_min")} == {"unknown"}


def test_one_paraphrase_of_the_canary_that_flips_is_a_group_that_fails_in_a_replay(tmp_path: Path) -> None:
    """One group of four is over the hard limit of 0.20; the baseline's flips are its own."""
    flipped = decided(tmp_path, published(asking(lambda *asked: asked == ("canary", "uno", 2))))
    assert gates(flipped)["lambda_convergent"] == ("fail", 0.75)
    assert (flipped["verdict"], flipped["reasons"]) == ("abort", ["lambda_flip_rate_over"])
    other = decided(tmp_path, published(asking(lambda *asked: asked == ("baseline", "uno", 2))))
    assert gates(other)["lambda_convergent"] == ("pass", 1)
