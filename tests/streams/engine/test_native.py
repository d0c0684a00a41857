"""The native decoder against the Python path, which says what is right: the same columns, words and combinations."""

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.load import MANIFEST as SERVED
from bench.load import events
from tests.streams.events import CLOCKWORK, NOON, PINS, draw_log, draw_runs, event, flags, record, tick
from tidegate.schemas.errors import SettingsError
from tidegate.schemas.timeline import Revision, Timeline
from tidegate.streams.engine import columns, native
from tidegate.streams.engine.columns import Columns, decode
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import partial_codec
from tidegate.streams.engine.source_partition import SourcePartition

pytestmark = pytest.mark.usefixtures("native_decoder")

FLAGS = flags() | flags(SERVED)
TIMELINES = {
    "one manifest": Timeline.of(FLAGS),
    "two revisions": Timeline([Revision(1, NOON, FLAGS), Revision(2, NOON + 10_000, FLAGS)]),
    "no manifest": Timeline(),
}
RUNS = 25
NUMBERS = ("delta_s", "coverage", "latency", "cost")

# Every field, at its plainest and at its oddest.
FACTS: dict[str, list[Any]] = {
    "kind": ["label", "exposure", "tick", "request", None],
    "labels_event_id": ["e9", None],
    "event_id": ["x" * 1024, "x" * 1025, "é" * 1024, "", None],
    "tenant": ["acme", "beta", "é", None],
    "region": ["eu", "", "a\nb", None],
    "endpoint": ["/a"],
    "cohort": ["c1"],
    "surface": ["web"],
    "source": ["gold", "traffic", None],
    "versions": [PINS, {}, {"MODEL_VER": "→"}, {"MODEL_VER": 1}, None],
    "delta_s": [0, 2, 1e-07, -0.0, 2.0000005, 0.30000000000000004, None],
    "coverage": [0.5, 1, 1.0000001],
    "lambda_state": ["→", "->", "x", ""],
    "query_id": ["q1", "", "é\\", None],
    "paraphrase": [1, 2, 3, 4],
    "seed": [1, 2],
    "latency_ms": [0, 123456.789, 1e9, 17, None],
    "status": [200, 500, 429, 200.0],
    "attempts": [1, -1],
    "rate_limited": [True],
    "tool_calls": [2],
    "tool_ok": [1, 3],
    "tools": [[], [{"name": "t", "write": True}]],
    "cost": [5e-05, 123456789.123456, 1e9, 1e10],
    "solved": [True, None],
    "cache_namespace": ["ns", "x" * 1025, None],
    "cache_hit": [True],
    "assignment_key": ["k"],
    "bucket": [0.25],
    "evaluated_by": ["server", "client"],
    "manifest_hash": ["sha256:x"],
    "applied_seq": [3],
    "reason_status": ["ok", "failed"],
    "output_mode": ["full"],
    "deleted_unread": [{"first": 1, "next": 2}],
    "note": ["text", 1.5, None, True, {"a": [1]}, 10**30, "a\\b"],
}
# Each is put where it does not belong.
PIECES = [
    *(b'" \\ { } [ ] : , \n \t \r \x0b \xa0 /**/ \xef\xbb\xbf'.split(b" ")),
    *(b"0 9 - + . e E 00 01 1. .5 -0 -0.0 1e5 1E-2 NaN 1e400".split()),
    *(b"9007199254740993 9007199254740993.0 123456789012345678 12345678901234567890 0.1234567890123456789".split()),
    *(b"2.2250738585072011e-308 5e-324 1.7976931348623157e308".split()),
    *(
        b'null true false "x" "" {} [] {"a":1} \xff \xc3\xa9 \xed\xa0\x80 \x00 \x1f \x7f \\u0041 \\ud800 \\n \\x'.split(
            b" "
        )
    ),
    *(b'"ts":1700000000000 "arm":"canary" ,"note":1 ,"versions":{} ,"versions":null ,"cost":0.5'.split()),
    b" ",
]


def draw_spelt(rng: random.Random) -> bytes:
    """One event as some writer spells it."""
    fields = event(
        event_id=f"e{rng.randrange(99)}",
        ts=NOON + rng.randrange(-5_000, 25_000),
        sticky_id=rng.choice(["s1", "s2é", "s3"]),
        flag=rng.choice(["wide", "narrow", "answer", "nobody's"]),
        latency_ms=rng.random() * 10.0 ** rng.randrange(-3, 9),
        cost=rng.random() * 10.0 ** rng.randrange(-9, 1),
    )
    # With many facts most records are odd in one of them; with few most are read natively.
    often = rng.choice([0.0, 0.02, 0.05, 0.25])
    fields |= {name: rng.choice(choices) for name, choices in FACTS.items() if rng.random() < often}
    items = list(fields.items())
    if rng.random() < 0.3:
        rng.shuffle(items)
    separators = rng.choice([(",", ":"), (", ", ": "), (" ,\t", " :\n")])
    return json.dumps(dict(items), ensure_ascii=rng.random() < 0.5, separators=separators).encode()


def damaged(rng: random.Random, value: bytes, others: Sequence[bytes]) -> bytes:
    """A record with a few bytes, a value or a piece of another one in the wrong place."""
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        at, piece = rng.randrange(len(value) + 1), rng.choice(PIECES)
        values = [i for i, byte in enumerate(value) if byte == ord(":")]
        how = rng.random()
        if how < 0.5:
            value = value[:at] + piece + value[at + rng.choice([0, 0, 1, 5]) :]
        elif how < 0.65:
            value = value[:at] + value[at + rng.randrange(1, 4) :]
        elif how < 0.75:
            value = value[:at] + bytes([rng.randrange(256)]) + value[at + 1 :]
        elif how < 0.95 and values:
            begin = rng.choice(values) + 1
            end = next((i for i in range(begin, len(value)) if value[i] in b",}"), len(value))
            value = value[:begin] + piece + value[end:]
        else:
            other = rng.choice(others)
            begin = rng.randrange(len(other) + 1)
            value = value[:at] + other[begin : begin + rng.randrange(1, 40)] + value[at:]
    return value


def told(found: Columns, table: EventClasses) -> list[tuple[Any, ...]]:
    """All that is known of each record of a run, in a form that does not depend on codes; NaN as None."""
    rows: list[tuple[Any, ...]] = [()] * (len(found.row) + len(found.dead))
    for row, error in found.dead:
        rows[row] = (error,)
    for at, row in enumerate(found.row.tolist()):
        group = table._groups[int(found.code[at])]
        cell = table.cells[group.cell] if group.cell >= 0 else None
        names = table.pin_names[group.pins] if group.pins >= 0 else None, table.hash_names[group.hash : group.hash + 1]
        numbers = [getattr(found, name)[at].tobytes() for name in NUMBERS if not np.isnan(getattr(found, name)[at])]
        ids = int(found.ts[at]), int(found.event[at]), int(found.sticky[at]), found.query.get(at)
        sticky = found.events.sticky_id(at) if found.sticky[at] else ""
        salt = int(table.salt[found.code[at]])
        told = group, cell, names, ids, numbers, found.event_id(at), sticky, salt, bool(found.detailed[at])
        rows[row] = told
    return rows


class Both:
    """Two tables of one timeline, one of each decoder, which remember what they met."""

    def __init__(self, timeline: Timeline) -> None:
        self.python, self.other = EventClasses(timeline), EventClasses(timeline)
        self.python.native = None

    def compare(self, values: Sequence[bytes | None], stamps: Sequence[int] | None) -> None:
        """Fail with the first record of a run that differs."""
        one, other = decode(values, stamps, self.python), decode(values, stamps, self.other)
        for value, expected, found in zip(values, told(one, self.python), told(other, self.other), strict=True):
            assert found == expected, value
        # Combinations are met in the order of the log.
        assert self.other.cells == self.python.cells
        assert self.other.pin_names == self.python.pin_names
        assert self.other.hash_names == self.python.hash_names


@pytest.fixture(params=TIMELINES)
def both(request: pytest.FixtureRequest) -> Both:
    return Both(TIMELINES[request.param])


@pytest.fixture
def read_in_python(monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """The records that the native decoder leaves to Python, as they come."""
    asked: list[bytes | None] = []
    read = columns._read

    def spy(values: Sequence[bytes | None], table: EventClasses) -> Any:
        asked.extend(values)
        return read(values, table)

    monkeypatch.setattr(columns, "_read", spy)
    return asked


class TestAgainstPython:
    def test_random_and_damaged_events_are_judged_alike(self, both: Both) -> None:
        """Record by record, with the keys remembered from one run to the next."""
        for seed in range(RUNS):
            rng = random.Random(seed)
            whole = [*(value for _, value in events(5, seed)), *(draw_spelt(rng) for _ in range(20))]
            values: list[bytes | None] = [damaged(rng, value, whole) for value in whole * 2]
            both.compare([*values, *draw_log(seed, 10)], None)

    @settings(max_examples=30)
    @given(
        st.lists(
            st.tuples(st.integers(0, 24), st.integers(0, 600), st.integers(0, 4), st.sampled_from(PIECES)), max_size=30
        ),
        st.lists(st.sampled_from([-1, NOON - 60_000, NOON]), min_size=25, max_size=25),
    )
    def test_any_piece_at_any_place_is_judged_alike(
        self, changes: list[tuple[int, int, int, bytes]], stamps: list[int]
    ) -> None:
        rng = random.Random(1)
        values = [*(value for _, value in events(5)), *(draw_spelt(rng) for _ in range(20))]
        for which, at, length, piece in changes:
            values[which] = values[which][:at] + piece + values[which][at + length :]
        tables = Both(TIMELINES["one manifest"])
        tables.compare(values, stamps)
        tables.compare(values[::-1], stamps)

    @pytest.mark.parametrize("seed", range(4))
    def test_panes_and_state_have_the_same_bytes(self, seed: int) -> None:
        """Of plain events, of random ones and of both in turn."""
        plain = [value for _, value in events(1_500, seed)]
        mixed = [one for pair in zip(plain, draw_log(seed, 300), strict=False) for one in pair]
        log, tables = [*plain, *mixed, tick(NOON + 10**7)], Both(TIMELINES["one manifest"])
        found = []
        for table in (tables.python, tables.other):
            state = SourcePartition.fresh(0, CLOCKWORK, table)
            partials = [p for run in draw_runs(random.Random(seed), log) for p in state.step(run).partials]
            found.append([*map(partial_codec.dump, partials), state.dump()])
        assert len(found[0]) > 10
        assert found[1] == found[0]


class TestWhoReads:
    def test_plain_events_are_read_natively_once_their_combination_is_known(
        self, read_in_python: list[bytes | None]
    ) -> None:
        values = [value for _, value in events(2_000)]
        table = EventClasses(TIMELINES["one manifest"])
        decode(values, None, table)
        assert 0 < len(read_in_python) < 10
        read_in_python.clear()
        found = decode(values, None, table)
        assert (len(found.row), read_in_python) == (2_000, [])

    @pytest.mark.parametrize(
        "plain",
        [
            record(versions=PINS, delta_s=0.25, cost=5e-05, note="text", other=1.5, more=None),
            json.dumps(event(), indent=1).encode(),
            record(lambda_state="→"),
            record(cache_hit=True, bucket=0.25, applied_seq=3, assignment_key="k", manifest_hash="h"),
            record(query_id="q", paraphrase=1, seed=2, lambda_state="->", tenant="é"),
            tick(NOON),
        ],
    )
    def test_plain_fields_are_read_natively(self, plain: bytes, read_in_python: list[bytes | None]) -> None:
        table = EventClasses(TIMELINES["one manifest"])
        decode([plain], None, table)
        read_in_python.clear()
        assert len(decode([plain], None, table).row) == 1
        assert read_in_python == []

    @pytest.mark.parametrize(
        "odd",
        [
            None,
            b"",
            record(event_id="a\nb"),
            record(note={"a": 1}),
            record(note=10**30),
            record(tools=[]),
            record(ts=float(NOON)),
            record(delta_s=-0.0),
            record(note="x" * native.LONGEST),
            record().replace(b'"event_id"', b'"event\\u005fid"'),
            record()[:-1] + b',"arm":"canary"}',
            record()[:-1] + b',"note":"\xff"}',
        ],
    )
    def test_whatever_is_unusual_is_read_in_python(self, odd: bytes | None, read_in_python: list[bytes | None]) -> None:
        """Each time, and it alone."""
        table = EventClasses(TIMELINES["one manifest"])
        decode([record(), tick(NOON)], None, table)
        for _ in range(2):
            read_in_python.clear()
            decode([record(), odd, tick(NOON)], None, table)
            assert read_in_python == [odd]

    def test_what_a_combination_is_refused_for_is_told_of_each(self, read_in_python: list[bytes | None]) -> None:
        values = [record(event_id=str(i), status="x") for i in range(5)]
        found = decode(values, None, EventClasses(TIMELINES["one manifest"]))
        assert [row for row, _ in found.dead] == [0, 1, 2, 3, 4]
        assert sorted(filter(None, read_in_python)) == sorted(values)


class TestKeys:
    def test_few_are_remembered_however_many_spellings_there_are(
        self, read_in_python: list[bytes | None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each spelling of one combination is a key of its own; beyond the cap they are forgotten and met again."""
        monkeypatch.setattr(columns, "GROUPS_CAP", 20)
        table = EventClasses(TIMELINES["one manifest"])
        spelt = [record(event_id=str(i), region="@").replace(b"@", b"\\u%04x" % (0x61 + i % 26)) for i in range(200)]
        plain = [record(event_id=str(i), region=chr(0x61 + i % 26)) for i in range(200)]
        for at in range(0, 200, 10):
            one = decode(spelt[at : at + 10], None, table)
            other = decode(plain[at : at + 10], None, EventClasses(TIMELINES["one manifest"]))
            assert one.event.tolist() == other.event.tolist()
            assert table.native is not None
            assert len(table.native) <= 20 + 10


class TestChoice:
    @pytest.fixture(autouse=True)
    def restored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "_used", native._used)

    def test_off_is_python(self) -> None:
        native.choose("off")
        assert native.running() == "python"
        assert EventClasses(TIMELINES["one manifest"]).native is None

    def test_a_module_of_another_form_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "SEAM", -1)
        assert native._load() is None

    def test_without_it_only_who_requires_it_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "_found", None)
        native.choose(None)
        assert native.running() == "python"
        with pytest.raises(SettingsError, match=r"TIDEGATE_NATIVE=require: .*make venv"):
            native.choose("require")

    def test_another_word_is_refused_with_those_there_are(self) -> None:
        with pytest.raises(SettingsError, match="'on' is not one of off and require"):
            native.choose("on")
