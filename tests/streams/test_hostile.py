"""Events made to do harm: whatever their fields hold, records, log lines, metrics and terminals stay whole.

What single functions do with such text is tested beside them; here it travels the whole way, from a record's bytes to
the decisions made of it and to everything that shows them.
"""

import asyncio
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from tests.commands.invoke import tidegate
from tests.streams.events import (
    CLOCKWORK,
    NOON,
    PINS,
    RAMP,
    event,
    flags,
    fresh,
    healthy_pane,
    probes,
    record,
    served,
    step,
    tick,
    written,
)
from tests.streams.worker.test_health import gate
from tidegate.schemas.canonical import canonical
from tidegate.schemas.decision import Command, Decision, OperationBy, command_from_bytes, decision_from_bytes
from tidegate.schemas.errors import EventError
from tidegate.schemas.event import MAX_BYTES, Versions, parse
from tidegate.schemas.timeline import Timeline
from tidegate.streams.client.control import ControlConsumer
from tidegate.streams.client.publisher import TelemetryPublisher
from tidegate.streams.commands import kill, watch
from tidegate.streams.commands.explain import explain
from tidegate.streams.dumps.log import read_record
from tidegate.streams.dumps.records import dump_line
from tidegate.streams.engine.pipeline import Pipeline
from tidegate.streams.engine.runs import Run
from tidegate.streams.report.board import Board, table
from tidegate.streams.report.terminal import gates_table, order, outcome, plain_gates, problem_lines
from tidegate.streams.settings import load_settings
from tidegate.streams.worker.app import FORWARD_BYTES, FORWARD_CUT, Worker
from tidegate.streams.worker.fetch import FetchedRun
from tidegate.streams.worker.health import Metrics
from tidegate.streams.worker.units import UNITS_MAX

pytestmark = pytest.mark.usefixtures("decoder")

MEGABYTE = 1 << 20
TEXTS = {
    "ansi": "\x1b[2J\x1b]0;owned\x07\x1b[31m",
    "lines": "a\r\nb\x85c\u2028d",
    "nul": "\x00",
    "c1": "\x9b31m",
    "right to left": "\u202e\u2066abc",
    "html": "<script>alert(1)</script>&amp;\"'",
    "markup": "[red]x[/red][link=file:///]y[/link]",
    "json": '"},{"flag":"f","arm":"canary"}\n{"',
    "prometheus": 'x"} 1\ntidegate_records_total 99\n#{y="',
    "pipe": "eu|us",
    "format": "%s%n{0}{x}$.x",
    "pile": "e" + "\u0301" * 200,
    "long": "x" * 1024,
    "longer": "x" * 1025,
    "megabyte": "x" * MEGABYTE,
    "megabyte of escapes": "\x1b" * MEGABYTE,
    "lone surrogate": "\ud800",
}
FREE: dict[str, Callable[[str], dict[str, Any]]] = {
    "event_id": lambda text: {"event_id": text},
    "sticky_id": lambda text: {"sticky_id": text},
    "flag": lambda text: {"flag": text},
    "tenant": lambda text: {"tenant": text},
    "region": lambda text: {"region": text},
    "endpoint": lambda text: {"endpoint": text},
    "cohort": lambda text: {"cohort": text},
    "surface": lambda text: {"surface": text},
    "lambda_state": lambda text: {"lambda_state": text},
    "query_id": lambda text: {"query_id": text, "paraphrase": 1, "seed": 1},
    "cache_namespace": lambda text: {"cache_namespace": text},
    "manifest_hash": lambda text: {"manifest_hash": text},
    "assignment_key": lambda text: {"assignment_key": text},
    "version": lambda text: {"versions": {"MODEL_VER": text}},
    "version name": lambda text: {"versions": {text: "v"}},
    "tool": lambda text: {"tools": [{"name": text, "args_hash": text, "idempotency_key": text, "effect_id": text}]},
    "unfenced tool": lambda text: {"tools": [{"name": text, "write": True}]},
    "unknown field": lambda text: {"note": text},
    "unknown field's name": lambda text: {text: 1},
}
CHOICES = ("kind", "arm", "source", "evaluated_by", "reason_status", "output_mode")
NUMBERS = ("ts", "latency_ms", "status", "attempts", "tool_calls", "tool_ok", "cost", "delta_s", "coverage", "bucket")


def clear(reason: str) -> bool:
    """Whether a reason can stand in a header, a log line and on a terminal."""
    return reason.isprintable() and 0 < len(reason) <= 200


def fate(value: bytes) -> str:
    """What became of one record: it has exactly one fate, and a reason if it is refused."""
    result = step(value)
    assert (result.late, result.duplicates) == ([], 0)
    assert all(clear(reason) for _, reason in result.dead)
    (found,) = (
        name
        for name, count in (
            ("counted", result.accepted),
            ("unknown flag", result.left.unknown_flag),
            ("dead letter", len(result.dead)),
        )
        if count
    )
    return found


def allowed(name: str, text: str) -> bool:
    """Whether the schema takes the text in a field of free text."""
    if text == "\ud800":
        return False
    limits = {"version": 512, "version name": 512}
    limits |= dict.fromkeys(("event_id", "sticky_id", "flag", "region", "cache_namespace", "manifest_hash"), 1024)
    return len(text) <= limits.get(name, len(text))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", FREE)
def test_an_event_is_counted_or_a_dead_letter_with_one_clear_reason(name: str, text: str) -> None:
    """Whatever text stands in whichever field, escaped or as it is."""
    fields = event(**FREE[name](TEXTS[text]))
    counted = "unknown flag" if name == "flag" else "counted"
    value = json.dumps(fields).encode()
    expected = counted if allowed(name, TEXTS[text]) and len(value) <= MAX_BYTES else "dead letter"
    assert fate(value) == expected
    if text != "lone surrogate":
        # Raw control characters inside a string are no JSON; msgspec writes those alone as escapes.
        assert fate(msgspec.json.encode(fields)) == expected


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", CHOICES)
def test_a_wrong_choice_is_named_with_its_field_in_few_words(name: str, text: str) -> None:
    """The decoder repeats the wrong value: one of a megabyte would not fit into a record's header."""
    value = record(**{name: TEXTS[text]})
    assert fate(value) == "dead letter"
    with pytest.raises(EventError) as refused:
        parse(value)
    assert text == "lone surrogate" or f"`$.{name}`" in str(refused.value)
    assert clear(str(refused.value))


@pytest.mark.parametrize(
    "number", ["1" * 20, "1" * 400, "-" + "1" * 400, "1" * 100_000, "1e400", "-1e400", "1e-400000"]
)
@pytest.mark.parametrize("name", NUMBERS)
def test_huge_numbers_are_refused_or_zero(name: str, number: str) -> None:
    """None is cut, wrapped or turned into infinity."""
    text = json.dumps(event(**{name: 0})).replace(f'"{name}": 0', f'"{name}": {number}')
    assert number in text
    assert fate(text.encode()) == "dead letter" or (number == "1e-400000" and name not in ("ts", "status"))


@pytest.mark.parametrize("number", ["1" * 400, "1" * 100_000, "1e400", "-1e-400"])
def test_numbers_in_fields_that_are_not_known_are_not_looked_at(number: str) -> None:
    assert fate(record().replace(b"}", b',"note":%s}' % number.encode())) == "counted"


def test_of_a_key_that_stands_twice_the_last_counts_for_all() -> None:
    """For the publisher's check, both column decoders and the pins alike, so that nobody is told another story."""
    head = f'"ts":{NOON},"latency_ms":1,"error":false,"sticky_id":"s"'
    twice = '"arm":"baseline","flag":"nobody\'s","event_id":"a","event_id":"b","flag":"wide","arm":"canary"'
    for more in ("", ',"cache_hit":true'):
        value = f"{{{head},{twice}{more}}}".encode()
        read = parse(value)
        assert (read.event_id, read.flag, read.arm) == ("b", "wide", "canary")
        state = fresh()
        assert state.step(Run(0, [value])).accepted == 1
        assert state.step(Run(1, [record(event_id="b")])).duplicates == 1
        assert state.step(Run(2, [record(event_id="a")])).accepted == 1
        (partial,) = [p for p in state.step(Run(3, [tick(NOON + 10**6)])).partials if p.units]
        assert partial.units["wide|"].arms.keys() == {"canary"}
    pins = b'{"versions":{"MODEL_VER":"one","MODEL_VER":"two"},' + record()[1:]
    (partial,) = [p for p in fresh().step(Run(0, [pins, tick(NOON + 10**6)])).partials if p.units]
    assert list(partial.units["wide|"].arms["canary"].sources["traffic"].pins) == ['{"MODEL_VER":"two"}']


@pytest.mark.parametrize("first", ["arm", "latency_ms"])
def test_a_wrong_value_is_refused_although_a_right_one_follows(first: str) -> None:
    """Not passed over for being overwritten; of versions, which are read last of all, the last word alone is known."""
    wrong = {"arm": '"evil"', "latency_ms": "-1"}[first]
    right = {"arm": '"canary"', "latency_ms": "1"}[first]
    rest = json.dumps(event(**{first: ...}))[1:]
    value = f'{{"{first}":{wrong},"{first}":{right},{rest}'.encode()
    assert fate(value) == "dead letter"


def test_versions_are_few_and_short() -> None:
    """What a pane keeps of them has to fit into a record."""
    assert fate(record(versions={f"v{n}": "x" * 512 for n in range(64)})) == "counted"
    assert fate(record(versions={f"v{n}": "x" for n in range(65)})) == "dead letter"
    assert msgspec.json.decode(b'{"a":"b"}', type=Versions) == {"a": "b"}


hostile_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40) | st.sampled_from(
    [text for name, text in TEXTS.items() if name not in ("lone surrogate",) and len(text) <= 1024]
)


@given(st.dictionaries(st.sampled_from(sorted(FREE)), hostile_text, min_size=1))
def test_any_mixture_is_counted_and_its_export_is_the_record(texts: dict[str, str]) -> None:
    """A dump is one line a record, and gives it back to the byte."""
    fields: dict[str, Any] = event()
    for name, text in texts.items():
        fields |= FREE[name](text[:512])
    for value in (json.dumps(fields).encode(), msgspec.json.encode(fields), json.dumps(fields, indent=1).encode()):
        assert fate(value) in ("counted", "unknown flag")
        found = stored(value, key=fields["sticky_id"].encode(), headers=[(fields["sticky_id"], value)])
        line = dump_line(found)
        assert b"\n" not in line
        (again,) = read_record(line, 4)
        assert (again.partition, again.offset, again.value) == (3, 7, value)


@given(st.none() | st.binary(max_size=60) | st.sampled_from([b"null", b'"x"', b"\xff", b'{"a":1}\r', b" {}"]))
def test_any_bytes_are_replayed_from_a_dump_as_they_were(value: bytes | None) -> None:
    """Also what is no text, and a record without a value."""
    (again,) = read_record(dump_line(stored(value), since=4), 4)
    assert (again.partition, again.offset, again.value, again.since) == (3, 7, value, 4)


def stored(value: bytes | None, **more: Any) -> ConsumerRecord:
    """A record as a consumer has it."""
    fields = {"key": None, "headers": (), "topic": "t", "partition": 3, "offset": 7, "timestamp": NOON} | more
    return ConsumerRecord(
        timestamp_type=0, checksum=None, serialized_key_size=0, serialized_value_size=0, value=value, **fields
    )


# Decisions


def hostile_service(text: str) -> list[dict[str, Any]]:
    """Two windows in which the canary is slow, with the text wherever text may stand."""
    pins = PINS | {"PROMPT_VER": text[:512], text[:512]: text[:512]}
    details = {
        "region": text,
        "tenant": text,
        "endpoint": text,
        "cache_namespace": text,
        "versions": pins,
        "tools": [{"name": text, "args_hash": text, "write": True}] * 12,
        "lambda_state": text,
    }
    events = []
    for start in (NOON, NOON + 10_000, NOON + 20_000, NOON + 30_000):
        for number, one in enumerate(healthy_pane(start) + probes(f"{start} more", start, "canary")):
            slow = {"latency_ms": 500.0} if one["arm"] == "canary" else {}
            hash_ = {"manifest_hash": f"{text[:1000]}{one['arm']}"}
            ids = {"event_id": f"{text[:900]}{start}{number}", "sticky_id": f"{text[:900]}{one['sticky_id']}"}
            events.append(one | details | slow | hash_ | ids)
        events += [served(start, start, arm, region="eu", manifest_hash="other") for arm in ("baseline", "canary")]
    return events


def decide(events: Sequence[dict[str, Any]]) -> list[tuple[Decision, Command | None]]:
    pipeline = Pipeline(Timeline.of(flags(RAMP)), 1, CLOCKWORK)
    return list(pipeline.step(0, Run(0, [*written(list(events)), tick(NOON + 100_000)])))


SPELT = [name for name in TEXTS if allowed("region", TEXTS[name]) and TEXTS[name] != "x" * 1025]


@pytest.fixture(params=SPELT)
def decided(request: pytest.FixtureRequest) -> list[tuple[Decision, Command | None]]:
    """What was decided of a service that puts one of the texts everywhere."""
    found = decide(hostile_service(TEXTS[request.param]))
    assert TEXTS[request.param] in {decision.region for decision, _ in found}
    return found


def test_decisions_and_commands_are_canonical_json_that_parses_back(
    decided: list[tuple[Decision, Command | None]], tmp_path: Path
) -> None:
    """And hold together as a chain."""
    lines = [decision.to_bytes() for decision, _ in decided]
    for line, (decision, _) in zip(lines, decided, strict=True):
        assert b"\n" not in line
        assert canonical(json.loads(line)) == line
        assert decision_from_bytes(line).to_bytes() == line
        assert decision_from_bytes(line) == decision
    orders = [command.to_bytes() for _, command in decided if command is not None]
    assert [command_from_bytes(line).to_bytes() for line in orders] == orders
    assert all(canonical(json.loads(line)) == line for line in orders)
    (tmp_path / "decisions").write_bytes(b"\n".join(lines))
    (tmp_path / "commands").write_bytes(b"\n".join(orders))
    done = tidegate("verify", tmp_path / "decisions", "--commands", tmp_path / "commands")
    assert (done.code, shows_text(done.out)) == (0, True), done.out


def shows_text(shown: str) -> bool:
    """Whether a terminal would show this and obey nothing in it."""
    return bool(shown) and all(line.isprintable() for line in shown.split("\n"))


def on_a_terminal(*shown: Any) -> str:
    """What rich sends to a terminal, without the styles that it adds itself."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system=None, width=200, legacy_windows=False)
    for one in shown:
        console.print(one)
    # Bold and its end are rich's own even without colours.
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def test_nothing_that_is_shown_of_them_is_a_control_character(
    decided: list[tuple[Decision, Command | None]],
) -> None:
    """In the demo's lines and tables, in watch's lines and table, in explanations, and where a kill is carried out."""
    board = Board()
    for decision, command in decided:
        assert shows_text("\n".join(line.plain for line in explain(decision)))
        assert shows_text(on_a_terminal(outcome(decision), gates_table(decision), *problem_lines(decision)))
        assert board.take(decision)
        if command is not None:
            assert shows_text(on_a_terminal(order(command)))
    assert shows_text(on_a_terminal(table(board.frame(200, None, 0))))
    out = io.StringIO()
    for decision, _ in decided:
        watch._say(Console(file=out, soft_wrap=True), decision)
    assert shows_text(out.getvalue())


def strings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every string in a JSON value."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from strings(one, (*path, key))
    elif isinstance(value, str):
        yield path


def poisoned(record: bytes, text: str) -> Iterator[bytes]:
    """The record with the text in the place of one string after the other."""
    for path in strings(json.loads(record)):
        copy = json.loads(record)
        place = copy
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = text
        yield json.dumps(copy).encode()


def test_records_that_no_worker_wrote_are_shown_as_text() -> None:
    """Whoever may write to the topics may put text where a worker has words of its own."""
    found = decide(hostile_service("eu"))
    (decision, command) = next((d, c) for d, c in found if c is not None and d.gates)
    assert command is not None
    shown = 0
    for value in poisoned(decision.to_bytes(), TEXTS["ansi"]):
        with suppress(EventError):
            forged = decision_from_bytes(value)
            board = Board()
            assert board.take(forged)
            said = on_a_terminal(
                outcome(forged), gates_table(forged), *problem_lines(forged), table(board.frame(200, None, 0))
            )
            assert shows_text(said), said
            assert plain_gates(forged).isprintable()
            shown += 1
    for value in poisoned(command.to_bytes(), TEXTS["ansi"]):
        with suppress(EventError):
            assert shows_text(on_a_terminal(order(command_from_bytes(value))))
            shown += 1
    assert shown > 20


def test_where_a_kill_was_carried_out_is_shown_as_text(
    decided: list[tuple[Decision, Command | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Regions are from telemetry."""
    by = OperationBy(kind="kill", ts=1, actor="Ada", reason="drill")
    records = [msgspec.structs.replace(decision, operation=by).to_bytes() for decision, _ in decided]

    class _Tail:
        async def more(self, _: float) -> list[Any]:
            found = [SimpleNamespace(value=value) for value in records]
            records.clear()
            return found

    operation = SimpleNamespace(by=by)
    assert asyncio.run(kill._shown(_Tail(), operation, 10))  # type: ignore[arg-type]
    assert shows_text(capsys.readouterr().out)


@pytest.mark.parametrize("text", SPELT)
def test_a_difference_is_shown_as_text(text: str, tmp_path: Path) -> None:
    """Units that differ are named by the region that telemetry gave."""
    (tmp_path / "flags.yml").write_text(RAMP)
    events = written(hostile_service(TEXTS[text]))
    (tmp_path / "events").write_bytes(b"\n".join([*filter(None, events), tick(NOON + 100_000)]))
    given = "--manifest", tmp_path / "flags.yml", "--events", tmp_path / "events", "--out", tmp_path / "out"
    assert tidegate("replay", *given).code == 0
    lines = (tmp_path / "out").read_bytes().splitlines()
    (tmp_path / "other").write_bytes(b"\n".join(line.replace(b'"late":0', b'"late":1') for line in lines))
    done = tidegate("replay", *given, "--compare", tmp_path / "other")
    assert (done.code, shows_text(done.out)) == (1, True)


@pytest.mark.parametrize("text", ["ansi", "lines", "right to left"])
def test_a_mistake_is_one_line_of_text(text: str) -> None:
    done = tidegate("explain", "abcdef0123", "--decisions", TEXTS[text])
    assert done.code == 2
    assert shows_text(done.err)
    assert len(done.err.splitlines()) == 1


def test_pins_that_fill_a_record_still_make_one_that_the_topic_takes() -> None:
    """As many sets as are followed, each as long as is allowed, in characters that take six bytes each."""
    events = healthy_pane(NOON) + healthy_pane(NOON + 10_000)
    for number in range(32):
        versions = dict.fromkeys(PINS, f"{number:02}" + "\x01" * 510)
        events += [served(f"{number} odd", NOON + 5, arm, versions=versions) for arm in ("baseline", "canary")]
    (first, _), *_ = decide(events)
    assert "pins_drifted" in first.reasons
    assert len(first.to_bytes()) < 2 * MEGABYTE


def test_any_number_of_regions_leaves_each_decision_small() -> None:
    """Every region's decision tells of the others, so their number counts twice."""
    events = [
        served(f"{number}", NOON, arm, region=f"r{number:03}", manifest_hash=f"{number}" + "h" * 1_000)
        for number in range(200)
        for arm in ("baseline", "canary")
    ]
    found = decide(events)
    assert max(len(decision.to_bytes()) for decision, _ in found) < 64 << 10
    (problem,) = [p for p in found[0][0].evidence_problems if p.problem == "region_divergence"]
    assert (len(problem.detail["regions"]), problem.detail["of"]) == (32, 200)
    assert "200 regions in all" in "".join(line.plain for line in explain(found[0][0]))


# What a worker sends on, logs and counts


class _Sent:
    """A keeper that notes what it is to send."""

    def __init__(self) -> None:
        self.tp = SimpleNamespace(topic="telemetry", partition=2)
        self.records: list[tuple[bytes | None, bytes | None, dict[str, bytes]]] = []

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, partition: int, headers: list[tuple[str, bytes]]
    ) -> None:
        self.records.append((key, value, dict(headers)))


@pytest.mark.parametrize("size", [0, 1_000, FORWARD_BYTES - 100, FORWARD_BYTES + 1, MEGABYTE, 30 * MEGABYTE])
def test_a_record_of_any_size_can_be_sent_on(size: int) -> None:
    """One as large as its topic takes has no room for the headers, and one that came compressed may be far larger.

    A worker that failed on it would fail again whenever it was started.
    """
    keeper, value = _Sent(), b"x" * size
    fetched = FetchedRun(Run(5, [value]), [b"key"], {0: [("foreign", b"h" * 10)]})
    forward = Worker._forward(None, keeper, "late", fetched, 5, "why")  # type: ignore[arg-type]
    asyncio.run(forward)
    ((key, sent, headers),) = keeper.records
    assert (headers["tidegate.offset"], headers["tidegate.error"]) == (b"5", b"why")
    if size <= FORWARD_BYTES:
        assert (key, sent, headers["foreign"]) == (b"key", value, b"h" * 10)
        assert "tidegate.cut" not in headers
    else:
        assert (key, sent, headers["tidegate.cut"]) == (None, value[:FORWARD_CUT], b"%d" % size)
        assert "foreign" not in headers


def test_large_keys_and_headers_are_cut_as_well() -> None:
    for key, header in ((b"k" * MEGABYTE, b""), (b"k", b"h" * MEGABYTE)):
        keeper = _Sent()
        fetched = FetchedRun(Run(5, [b"{"]), [key], {0: [("foreign", header)]})
        asyncio.run(Worker._forward(None, keeper, "dead", fetched, 5, "why"))  # type: ignore[arg-type]
        ((sent_key, sent, headers),) = keeper.records
        assert (sent_key, sent, headers["tidegate.cut"]) == (None, b"{", b"1")


def test_labels_are_bounded_however_many_regions_come() -> None:
    metrics = Metrics()
    metrics.own("gate", 0)
    regions = {f"f|{text}{n}": 0.5 for n in range(UNITS_MAX // 10) for text in (*SPELT, "a", "b", "c")}
    assert len(regions) > UNITS_MAX
    for _ in range(2):
        metrics.see(0, gate(regions))
    families = {f.name: f for f in text_string_to_metric_families(generate_latest(metrics.registry).decode())}
    assert len(families["tidegate_canary_weight"].samples) == UNITS_MAX
    assert families["tidegate_units_without_weight"].samples[0].value == len(regions) - UNITS_MAX


def test_a_router_and_a_service_log_one_line_of_text(caplog: pytest.LogCaptureFixture) -> None:
    """A command of a unit with a hostile name, and an event with a hostile choice, both passed over."""
    settings = load_settings()
    found = [command for _, command in decide(hostile_service(TEXTS["ansi"])) if command is not None]
    assert found
    old = msgspec.structs.replace(found[0], effective_from=found[0].effective_from + 1)

    async def run() -> None:
        consumer = ControlConsumer(settings)
        assert len(consumer._new([stored(found[0].to_bytes()), stored(old.to_bytes()), stored(b'"\x1b[2J')])) == 1
        publisher = TelemetryPublisher(settings)
        assert not publisher.publish(event(arm=TEXTS["megabyte of escapes"]))

    with caplog.at_level(logging.WARNING, "tidegate"):
        asyncio.run(run())
    said = [entry.getMessage() for entry in caplog.records]
    assert len(said) == 3
    assert all(shows_text(line) and "\n" not in line and len(line) < 500 for line in said)


def test_a_record_that_is_larger_than_any_event_is_not_decoded() -> None:
    """Compressed it takes no room in the topic; decoding 100 MB of JSON would hold everything up for seconds."""
    largest = record(event_id="largest", padding="")
    largest = largest[:-2] + b" " * (MAX_BYTES - len(largest)) + largest[-2:]
    state = fresh()
    step = state.step(Run(0, [largest, largest + b" ", record()]))
    assert (step.accepted, step.dead) == (2, [(1, "8388609 bytes are more than an event may have, 8388608")])
    with pytest.raises(EventError, match=r"^8388609 bytes are more than an event may have, 8388608$"):
        parse(largest + b" ")
