"""``tidegate history``: when, what, why, who and which id, a line each, from a file, a dump or the topic."""

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from tests.commands.invoke import tidegate
from tests.commands.test_explain import ABORT, END, KILL, PROMOTE, decided
from tidegate.schemas.decision import Decision
from tidegate.streams.settings import load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

ABROAD = decided("promote", ["all_gates_pass"], region="eu", decided_at=END + 120_000)
LATCHED = [decided("hold", ["latched"], decided_at=END + 60_000 * n) for n in (2, 3, 4)]
EVERY = [PROMOTE, ABORT, *LATCHED, KILL, ABROAD, PROMOTE]


def short(decision: Decision) -> str:
    return decision.decision_id.removeprefix("sha256:")[:8]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "decisions.ndjson").write_bytes(b"".join(one.to_bytes() + b"\n" for one in [*EVERY]) + b"{\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(*arguments: object) -> list[list[str]]:
    """The cells of each line below the titles."""
    done = tidegate("history", *arguments)
    assert (done.code, done.err) == (0, "")
    titles, *lines = done.out.splitlines()
    assert titles.split() == ["time", "unit", "verdict", "why", "who", "id"]
    starts = [titles.index(title) for title in titles.split()]
    return [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines]


def test_each_decision_has_its_time_verdict_cause_orderer_and_id(here: Path) -> None:
    """In the order of time over all units; windows in a row that say the same are one line."""
    assert rows() == [
        ["2025-08-31 10:18:10", "prompt_pack/us-east-1", "abort", "error_rate_over 4.42 % > 1 %", "", short(ABORT)],
        ["2025-08-31 10:30:00", "prompt_pack/us-east-1", "promote", "all_gates_pass", "", short(PROMOTE)],
        [
            "2025-08-31 10:31:01",
            "prompt_pack/us-east-1",
            "kill",
            "answers in the wrong language",
            "alice",
            short(KILL),
        ],
        [
            "2025-08-31 10:32:00",
            "prompt_pack/us-east-1",
            "hold",
            "latched (3 windows to 10:34:00)",
            "",
            short(LATCHED[2]),
        ],
        ["2025-08-31 10:32:00", "prompt_pack/eu", "promote", "all_gates_pass", "", short(ABROAD)],
    ]
    assert [row[5] for row in rows("--all")][3:] == [
        short(LATCHED[0]),
        short(ABROAD),
        short(LATCHED[1]),
        short(LATCHED[2]),
    ]


def test_a_flag_or_one_of_its_regions_is_picked(here: Path) -> None:
    assert len(rows("prompt_pack")) == 5
    assert [row[5] for row in rows("prompt_pack/eu")] == [short(ABROAD)]
    wrong = tidegate("history", "promt_pack")
    assert wrong.code == 2
    assert 'decisions.ndjson has no decision of "promt_pack"; did you mean prompt_pack' in wrong.line


def test_a_dump_and_the_topic_tell_the_same(here: Path) -> None:
    """The dump as `tidegate export` writes it, in either form."""
    with embedded_broker({f"tidegate.{name}": 1 for name in TOPICS}) as servers:
        settings = load_settings(broker=servers, fetch_wait=50)

        async def write() -> None:
            async with AIOKafkaProducer(**settings.kafka) as producer:
                for record in EVERY:
                    await producer.send_and_wait(settings.decisions_topic, record.to_bytes(), key=record.key.encode())

        asyncio.run(write())
        told = rows("--broker", servers)
        for form in ("ndjson", "parquet"):
            arguments = "export", "--broker", servers, "--out", form, "--format", form
            assert tidegate(*arguments).code == 0
            again = tidegate(*arguments)
            assert again.code == 2
            assert f"{form} has decisions." in again.line
            assert "give another folder, or --replace" in again.line
            assert tidegate(*arguments, "--replace").code == 0
    assert told == rows()
    assert told == rows("--decisions", "ndjson/decisions.ndjson.gz")
    assert told == rows("--decisions", "parquet/decisions.parquet")


TOPICS = ("telemetry", "decisions", "corrections", "control", "manifests", "operations")


def test_where_there_is_nothing_the_place_is_named(here: Path) -> None:
    (here / "none.ndjson").write_text('{"a": 1}\n')
    done = tidegate("history", "--decisions", "none.ndjson")
    assert done.code == 2
    assert "none.ndjson has no decision, but 1 line of something else" in done.line
