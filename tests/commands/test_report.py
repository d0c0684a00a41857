"""``tidegate report``: what it tells, that it is the same each time, and that nothing in a record can break it."""

import asyncio
import re
import shlex
import shutil
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from tests.commands.invoke import tidegate
from tidegate.schemas.decision import (
    Decision,
    OperationBy,
    RuleResult,
    Span,
    decision_from_bytes,
    seal_decision,
)
from tidegate.streams.dumps import parquet
from tidegate.streams.dumps.records import values
from tidegate.streams.report.rollout import UnitHistory, fired, in_words, ramp, stages
from tidegate.streams.settings import load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

GOLDEN = Path(__file__).parents[1] / "golden"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\u202e]]>&lt;{{ 7*7 }}'


def decisions_of(case: str) -> list[Decision]:
    return [decision_from_bytes(line) for line in (GOLDEN / case / "decisions.ndjson").read_bytes().splitlines()]


def chained(decisions: Sequence[Decision]) -> list[Decision]:
    """The decisions as one unit's chain."""
    found: list[Decision] = []
    for decision in decisions:
        found.append(seal_decision(decision, found[-1].hash if found else None))
    return found


def written(path: Path, decisions: Sequence[Decision]) -> Path:
    path.write_bytes(b"".join(one.to_bytes() + b"\n" for one in decisions))
    return path


class Page(HTMLParser):
    """The text of a page, its tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())


def report(path: Path, *arguments: object, code: int = 0) -> str:
    done = tidegate("report", *arguments, "--out", path)
    assert (done.code, done.err) == (code, "")
    return path.read_text()


@pytest.fixture
def abort(tmp_path: Path) -> Path:
    folder = tmp_path / "abort"
    shutil.copytree(GOLDEN / "abort", folder)
    return folder


def test_a_report_tells_what_was_decided_why_and_that_it_was_checked(abort: Path, tmp_path: Path) -> None:
    text = Page(report(tmp_path / "r.html", abort)).text
    decisions = decisions_of("abort")
    stop = next(one for one in decisions if one.verdict == "abort")
    assert "answer in eu: aborted at" in text
    assert "Hard rule error_rate_over fired" in text
    assert all(name in text for one in decisions for name in (one.decision_id, one.hash))
    assert f"{stop.window.start}" not in text
    assert re.search(r"Chain of decisions ✓ passed \d+ decisions, 1 command, 1 unit", text)
    assert re.search(r"Decided once more ✓ passed from the telemetry in the files: \d+ decisions are the same", text)
    assert "Signatures – not checked" in text
    for file in ("decisions.ndjson", "commands.ndjson", "telemetry.ndjson.gz", "manifest.yml"):
        assert sha256((abort / file).read_bytes()).hexdigest() in text
    assert "Nobody ordered anything" in text


def test_the_same_input_gives_the_same_bytes(abort: Path, tmp_path: Path) -> None:
    first = report(tmp_path / "r.html", abort)
    (tmp_path / "r.html").unlink()
    assert report(tmp_path / "r.html", abort) == first


def test_the_commands_in_a_report_make_it_again(abort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is run as it stands there; the first writes the same report."""
    out = tmp_path / "it's here.html"
    first = report(out, abort)
    out.unlink()
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"<pre>(.*?)</pre>", first, re.DOTALL)
    commands = [shlex.split(line) for line in Page(block).parts[0].splitlines() if line]
    assert [words[:2] for words in commands] == [["tidegate", verb] for verb in ("report", "verify", "replay")]
    for words in commands:
        done = tidegate(*words[1:])
        assert (done.code, done.err) == (0, "")
    assert out.read_text() == first


def test_nothing_in_a_report_runs_or_comes_from_elsewhere(abort: Path, tmp_path: Path) -> None:
    text = report(tmp_path / "r.html", abort)
    page = Page(text)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    policy = next(one["content"] for tag, one in page.tags if one.get("http-equiv") == "Content-Security-Policy")
    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in ("src", "href", "style")]
    assert "url(" not in style
    assert "@import" not in style


def hostile(text: str) -> list[Decision]:
    """A rollout that names nothing but ``text``."""
    first, *rest = decisions_of("abort")
    by = OperationBy(kind="kill", ts=first.window.end, actor=text, reason=text)
    rule = RuleResult(kind=text, severity="hard", value=None, observed=None, n=1, fired=True)
    return chained(
        [
            msgspec.structs.replace(
                one,
                flag=text,
                region=text,
                versions={"canary": {text: text}, "baseline": {text: text}},
                relaxed=[text],
                reasons=[text],
                abort_rules=[rule],
                gates=[msgspec.structs.replace(gate, gate=text) for gate in one.gates],
                operation=by if one is first else None,
            )
            for one in (first, *rest)
        ]
    )


def test_a_hostile_name_is_text_wherever_it_stands(tmp_path: Path) -> None:
    text = report(tmp_path / "r.html", written(tmp_path / "d.ndjson", hostile(HOSTILE)))
    page, plain = Page(text), Page(report(tmp_path / "p.html", written(tmp_path / "e.ndjson", hostile("name"))))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attributes) for _, attributes in page.tags] == [sorted(attributes) for _, attributes in plain.tags]
    assert page.text.count("<script>alert(1)</script>") > 10
    assert "{{ 7*7 }}" in page.text
    assert "\u202e" not in text
    assert "\\u202e" in text


def test_a_changed_decision_fails_the_report_and_is_named_in_it(abort: Path, tmp_path: Path) -> None:
    path = abort / "decisions.ndjson"
    path.write_bytes(path.read_bytes().replace(b'"late":0', b'"late":1', 1))
    text = Page(report(tmp_path / "r.html", abort, code=1)).text
    assert "Chain of decisions ✗ failed" in text
    assert "Decided once more ✗ failed" in text
    assert "late 0 here, 1 there" in text


def test_a_dump_in_parquet_tells_the_same(abort: Path, tmp_path: Path) -> None:
    ndjson = report(tmp_path / "r.html", abort / "decisions.ndjson", "--commands", abort / "commands.ndjson")
    folder = tmp_path / "dump"
    folder.mkdir()
    for name, file in (("decisions", "decisions.ndjson"), ("control", "commands.ndjson")):
        lines = (abort / file).read_bytes().splitlines()
        records = [
            SimpleNamespace(partition=0, offset=n, timestamp=n, key=None, value=value, headers=())
            for n, value in enumerate(lines)
        ]
        with (folder / f"{name}.parquet").open("wb") as target:
            parquet.write_rows(target, [[(one, None) for one in records]])
    packed = report(tmp_path / "r.html", folder)
    cut = re.compile(r'<section aria-labelledby="again">.*?</section>', re.DOTALL)
    assert cut.sub("", packed) == cut.sub("", ndjson)


def test_topics_tell_the_same_as_files(abort: Path, tmp_path: Path) -> None:
    ndjson = report(tmp_path / "r.html", abort / "decisions.ndjson", "--commands", abort / "commands.ndjson")
    topics = {"tidegate.decisions": 2, "tidegate.control": 2, "tidegate.operations": 1}
    with embedded_broker(topics) as servers:
        settings = load_settings(broker=servers, fetch_wait=50)

        async def write() -> None:
            async with AIOKafkaProducer(**settings.kafka) as producer:
                for topic, file in ((settings.decisions_topic, "decisions"), (settings.control_topic, "commands")):
                    for value in (abort / f"{file}.ndjson").read_bytes().splitlines():
                        await producer.send_and_wait(topic, value, key=b"answer|eu")

        asyncio.run(write())
        live = report(tmp_path / "r.html", "--broker", servers)
    cut = re.compile(r'<section aria-labelledby="again">.*?</section>', re.DOTALL)
    assert cut.sub("", live).replace("it takes --replay", "it takes --events and --manifest") == cut.sub("", ndjson)
    assert re.search(r"tidegate\.decisions, partition \d</td><td class=\"hash\">offsets 0 to \d+, \d+ records", live)


@pytest.mark.parametrize("changed", [False, True])
def test_topics_are_decided_once_more_where_that_is_asked(abort: Path, tmp_path: Path, changed: bool) -> None:
    names = ("decisions", "control", "operations", "telemetry", "partials", "retained")
    recorded = (abort / "decisions.ndjson").read_bytes().splitlines()
    with embedded_broker({f"tidegate.{name}": 1 for name in names}) as servers:
        settings = load_settings(broker=servers, fetch_wait=50)

        async def write() -> None:
            async with AIOKafkaProducer(**settings.kafka) as producer:
                for value in recorded[:-1] if changed else recorded:
                    await producer.send_and_wait(settings.decisions_topic, value, key=b"answer|eu")
                for value in (abort / "commands.ndjson").read_bytes().splitlines():
                    await producer.send_and_wait(settings.control_topic, value, key=b"answer|eu")
                for value in values(abort / "telemetry.ndjson.gz"):
                    await producer.send(settings.telemetry_topic, value, partition=0, timestamp_ms=1_800_000_000_000)
                await producer.flush()

        asyncio.run(write())
        asked = "--broker", servers, "--replay", "--manifest", abort / "manifest.yml"
        text = Page(report(tmp_path / "r.html", *asked, code=int(changed))).text
    if changed:
        assert "Decided once more ✗ failed" in text
        assert f"{len(recorded)} decisions here, {len(recorded) - 1} in the topic" in text
    else:
        assert f"Decided once more ✓ passed from the telemetry in the topics: {len(recorded)} decisions" in text


def test_an_operators_order_says_who_and_why(tmp_path: Path) -> None:
    first, *_ = decisions_of("healthy")
    at = first.window.end + 5_000
    by = OperationBy(kind="kill", ts=at, actor="Ada", reason="wrong prices")
    window = Span(start=first.window.start, end=first.window.end, closed=True)
    kill = msgspec.structs.replace(
        first, verdict="kill", reasons=["kill"], operation=by, decided_at=at, window=window, gates=[], abort_rules=[]
    )
    text = Page(report(tmp_path / "r.html", written(tmp_path / "d.ndjson", chained([first, kill])))).text
    assert "Ordered by Ada" in text
    assert re.search(r"Ada kill answer wrong prices answer in eu: [0-9a-f]{12}", text)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--broker"),
        (("d.ndjson", "--broker", "127.0.0.1:9"), "one source"),
        (("d.ndjson", "--flag", "anwser"), '"anwser"; flags with decisions: "answer"'),
        (("d.ndjson", "--out", "d.ndjson"), "--out"),
        (("empty",), "no decisions in it"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    shutil.copy(GOLDEN / "abort" / "decisions.ndjson", "d.ndjson")
    done = tidegate("report", *arguments)
    assert done.code == 2
    assert named in done.line
    assert not (tmp_path / "report.html").exists()


class TestHistory:
    def test_the_ramp_follows_commands_and_without_them_the_decisions(self) -> None:
        decisions = decisions_of("healthy")
        weights = [step.weight for step in ramp(UnitHistory("answer", "eu", decisions))]
        assert weights == [0.25, 0.5, 1.0]
        stopped = ramp(UnitHistory("answer", "eu", decisions_of("abort")))
        assert stopped[-1].weight == 0
        assert stopped[-1].at == next(d.decided_at for d in decisions_of("abort") if d.verdict == "abort")

    def test_each_stage_says_what_ended_it(self) -> None:
        found = stages(UnitHistory("answer", "eu", decisions_of("healthy")))
        assert [(one.weight, one.ended_by) for one in found] == [(0.25, "promote"), (0.5, "promote"), (1.0, None)]

    def test_what_a_stopped_canary_shows_afterwards_fires_nothing(self) -> None:
        decisions = decisions_of("abort")
        stop = next(one for one in decisions if one.verdict == "abort")
        latched = [one for one in decisions if "latched" in one.reasons]
        assert latched
        assert all(one.last <= stop.decided_at for one in fired(UnitHistory("answer", "eu", decisions)))

    def test_decisions_in_the_same_words_are_said_once_and_all_are_counted(self) -> None:
        decisions = decisions_of("abort")
        last = decisions[-1]
        again = [msgspec.structs.replace(last, decided_at=last.decided_at + n) for n in range(3)]
        told = in_words(UnitHistory("answer", "eu", [*decisions, *again]))
        assert sum(len(one.decisions) for one in told) == len(decisions) + 3
        assert len(told[-1].decisions) >= 4
