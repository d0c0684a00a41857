"""The telemetry event against section 2 of the contract: what is valid, and what is refused by name."""

import json
import math
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidegate.schemas.event
from tidegate.schemas.errors import EventError
from tidegate.schemas.event import FUTURE_MS, TelemetryEvent, encode, parse, too_deep

TS = 1_700_000_000_000


def fields(**changes: Any) -> dict[str, Any]:
    """A valid request; a change to ``...`` leaves the field out."""
    event = {
        "event_id": "e1",
        "ts": TS,
        "flag": "f",
        "arm": "canary",
        "sticky_id": "s",
        "latency_ms": 1.5,
        "error": False,
    }
    return {name: value for name, value in (event | changes).items() if value is not ...}


def written(**changes: Any) -> bytes:
    return json.dumps(fields(**changes)).encode()


def accepted(value: bytes) -> bool:
    try:
        parse(value)
    except EventError:
        return False
    return True


class TestRequiredFields:
    @pytest.mark.parametrize("kind", ["request", "exposure"])
    @pytest.mark.parametrize("field", ["event_id", "ts", "flag", "arm", "sticky_id"])
    @pytest.mark.parametrize("without", [..., None])
    def test_ids_flag_arm_and_ts_are_required_but_for_ticks(self, kind: str, field: str, without: Any) -> None:
        """Null is absent; the error names the field."""
        with pytest.raises(EventError, match=field):
            parse(written(kind=kind, **{field: without}))

    @pytest.mark.parametrize("field", ["event_id", "flag", "sticky_id"])
    def test_an_empty_id_is_none(self, field: str) -> None:
        assert not accepted(written(**{field: ""}))

    def test_a_tick_needs_ts_alone(self) -> None:
        assert parse(b'{"kind":"tick","ts":1700000000000}').ts == 1_700_000_000_000
        with pytest.raises(EventError, match="ts"):
            parse(b'{"kind":"tick"}')

    @pytest.mark.parametrize("without", [..., None])
    def test_a_request_needs_its_latency(self, without: Any) -> None:
        with pytest.raises(EventError, match="latency_ms"):
            parse(written(latency_ms=without))

    @pytest.mark.parametrize("without", [..., None])
    def test_a_request_needs_error_or_status(self, without: Any) -> None:
        with pytest.raises(EventError, match="error"):
            parse(written(error=without, status=without))
        assert accepted(written(error=without, status=200))
        assert accepted(written(error=True, status=without))

    def test_an_exposure_needs_neither_latency_nor_outcome(self) -> None:
        assert accepted(written(kind="exposure", latency_ms=..., error=...))

    def test_the_kind_is_request_unless_said(self) -> None:
        assert parse(written()).kind == "request"


GOOD: dict[str, list[Any]] = {
    "ts": [978_307_200_000, 4_102_444_799_999],
    "kind": ["request", "exposure", "tick"],
    "labels_event_id": ["e1"],
    "arm": ["baseline", "canary"],
    "tenant": ["", "é", "a" * 5_000],
    "region": ["", "us-east-1", "a|b", "\u2028"],
    "endpoint": ["/rag/reason"],
    "cohort": ["beta"],
    "surface": ["web"],
    "source": ["traffic", "gold", "shadow", "warmup"],
    "versions": [{}, {"MODEL_VER": "", "ANYTHING": "x"}],
    "delta_s": [0, 0.0, 2, 2.0, 1e-300, -0.0],
    "coverage": [0, 1, 0.5],
    "lambda_state": ["→", "←", "<>", "×", "->", "<-", "x", "convergent", "divergent", "recursive", "chaotic", "?", ""],
    "query_id": ["", "q"],
    "paraphrase": [1, 2, 3],
    "seed": [1, 2],
    "latency_ms": [0, 1, 0.001, 1e9],
    "error": [True, False],
    "status": [0, 200, 429, 999],
    "attempts": [0, 1, 100],
    "rate_limited": [True, False],
    "tool_calls": [0, 1, 10_000],
    "tools": [
        [],
        [{"name": "t", "args_hash": "h", "idempotency_key": "k", "effect_id": "e", "write": True}],
        [{"name": "t", "write": None, "unheard": 1}],
    ],
    "cost": [0, 0.1, 1_000_000],
    "solved": [True, False],
    "cache_namespace": ["", "n"],
    "cache_hit": [True, False],
    "assignment_key": ["k"],
    "bucket": [0, 0.5, 1],
    "evaluated_by": ["server", "client"],
    "manifest_hash": ["sha256:0"],
    "applied_seq": [0, 7],
    "reason_status": ["ok", "failed"],
    "output_mode": ["full", "cite_only"],
    "deleted_unread": [{"first": 0, "next": 1}],
}
BAD: dict[str, list[Any]] = {
    "event_id": [1, True, ["e"], {}],
    "labels_event_id": [1, "", "x" * 1025],
    "ts": [-1, 0, 978_307_199_999, 4_102_444_800_000, 2**53, 10**40, 1.5, "1", True, []],
    "kind": ["Request", "ticks", "", 0],
    "flag": [1, False],
    "arm": ["Canary", "control", "", 1],
    "sticky_id": [1, {}],
    "tenant": [1, []],
    "region": [0, False],
    "endpoint": [0],
    "cohort": [["beta"]],
    "surface": [{}],
    "source": ["live", "", 1],
    "versions": ["m1", [], {"MODEL_VER": 1}, {"MODEL_VER": None}, {"MODEL_VER": {}}],
    "delta_s": [-2e-6, 2.000002, 10**400, "0.1", True, []],
    "coverage": [-0.1, 1.000002, "1", True],
    "lambda_state": [1, True, []],
    "query_id": [1],
    "paraphrase": [0, 4, 1.5, "1", True],
    "seed": [0, 3, "2"],
    "latency_ms": [-0.001, -1, 10**400, 1e9 + 1, "12", True],
    "error": [0, "false"],
    "status": [-1, 200.5, "200", True, 2**63],
    "attempts": [-1, 1.5, "1"],
    "rate_limited": [1, "no"],
    "tool_calls": [-1, 0.5, "1"],
    "tool_ok": [-1, 0.5],
    "tools": [{}, "t", [1], [{}], [{"name": 1}], [{"name": "t", "write": "yes"}]],
    "cost": [-0.01, 10**400, "1", True],
    "solved": [0, "true"],
    "cache_namespace": [1],
    "cache_hit": [1],
    "assignment_key": [1],
    "bucket": [-0.1, 1.1, "0"],
    "evaluated_by": ["browser", ""],
    "manifest_hash": [1],
    "applied_seq": [-1, 1.5],
    "reason_status": ["OK", ""],
    "output_mode": ["cite-only"],
    "deleted_unread": [1, {}, {"first": 0}, {"first": -1, "next": 1}, {"first": 0.5, "next": 1}],
}


class TestTypesAndRanges:
    @pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in GOOD.items() for v in values])
    def test_values_of_the_type_and_within_the_range_pass(self, field: str, value: Any) -> None:
        """The ends of a range belong to it."""
        assert getattr(parse(written(**{field: value})), field) is not None

    @pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD.items() for v in values])
    def test_values_of_another_type_or_out_of_range_are_refused_by_name(self, field: str, value: Any) -> None:
        with pytest.raises(EventError, match=field):
            parse(written(**{field: value}))

    def test_the_tables_name_every_field(self) -> None:
        """A new field needs its cases here."""
        names = set(TelemetryEvent.__struct_fields__)
        assert set(BAD) == names
        assert set(GOOD) == names - {"event_id", "flag", "sticky_id", "tool_ok"}

    @pytest.mark.parametrize("field", ["delta_s", "coverage", "latency_ms", "cost", "bucket"])
    @pytest.mark.parametrize("number", ["NaN", "nan", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400])
    def test_numbers_that_are_not_finite_are_refused(self, field: str, number: str) -> None:
        text = json.dumps(fields(**{field: "@"})).replace('"@"', number)
        assert not accepted(text.encode())

    def test_tool_ok_counts_calls_that_were_made(self) -> None:
        assert accepted(written(tool_calls=2, tool_ok=2))
        with pytest.raises(EventError, match="tool_ok"):
            parse(written(tool_calls=2, tool_ok=3))
        with pytest.raises(EventError, match="tool_ok"):
            parse(written(tool_ok=1))


class TestNullIsAbsent:
    @pytest.mark.parametrize(
        "field",
        sorted(set(TelemetryEvent.__struct_fields__) - {"event_id", "ts", "flag", "arm", "sticky_id", "latency_ms"}),
    )
    def test_null_in_an_optional_field_is_the_field_left_out(self, field: str) -> None:
        event = fields(error=False, status=200)
        assert parse(json.dumps(event | {field: None}).encode()) == parse(
            json.dumps({name: value for name, value in event.items() if name != field}).encode()
        )


class TestExtras:
    @pytest.mark.parametrize(
        "extra", [1, None, "}\n{", [[[{}]]], {"ts": -1}, 10**300, "\u0000", {"": {"": None}}, -1e-300]
    )
    def test_unknown_extra_fields_are_ignored(self, extra: Any) -> None:
        assert parse(written(unheard_of=extra, Ts=-1, **{"": extra})) == parse(written())

    def test_the_last_of_two_equal_names_counts(self) -> None:
        """As JSON readers do."""
        assert parse(b'{"kind":"tick","ts":1700000000001,"ts":1700000000002}').ts == 1_700_000_000_002


class TestNotJson:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            b"",
            b" ",
            b"\x00",
            b"null",
            b"1",
            b'"text"',
            b"[]",
            b"{",
            b"{}{}",
            b"\xef\xbb\xbf" + written(),
            written() + written(),
            written() + b"\n" + written(),
            written()[:-1],
            written() + b",",
            written() + b"\x00",
            written()[:-1] + b",}",
            written().replace(b'"', b"'"),
            written().decode().encode("utf-16"),
            b"[" + written() + b"]",
        ],
    )
    def test_a_record_that_is_not_one_json_object_is_refused(self, value: bytes | None) -> None:
        with pytest.raises(EventError):
            parse(value)

    @pytest.mark.parametrize("blank", [b" ", b"\n", b"\r\n", b"\t"])
    def test_white_space_around_it_does_not_matter(self, blank: bytes) -> None:
        assert parse(blank + written() + blank) == parse(written())

    @pytest.mark.parametrize("text", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80"])
    @pytest.mark.parametrize("field", [b"tenant", b"event_id"])
    def test_text_that_is_not_utf_8_is_not_json(self, field: bytes, text: bytes) -> None:
        """RFC 8259, section 8.1; whoever reads the topics after us will refuse it."""
        value = written()[:-1] + b', "%s": "%s"}' % (field, text)
        assert not accepted(value)

    @pytest.mark.parametrize("text", [r"\ud800", r"\udc00", r"\ud800\ud800", r"\udc00\ud800", r"a\ud800 and more text"])
    @pytest.mark.parametrize("field", ["tenant", "event_id", "unheard_of"])
    def test_a_lone_surrogate_is_refused(self, field: str, text: str) -> None:
        """It could not be written as UTF-8 in a decision."""
        assert not accepted(written()[:-1] + f', "{field}": "{text}"}}'.encode())

    def test_a_surrogate_pair_is_one_character(self) -> None:
        assert parse(written(sticky_id="😀")).sticky_id == "😀"

    @pytest.mark.parametrize("opening", [b"[", b'{"a":'])
    def test_nesting_without_end_is_refused_and_not_fatal(self, opening: bytes) -> None:
        assert not accepted(b'{"kind":"tick","ts":1700000000000,"x":' + opening * 200_000)

    def test_how_deep_may_be_nested_does_not_depend_on_the_caller(self) -> None:
        """The same log gives the same bytes, also where the caller's stack is deep."""
        by_depth = [_deepest(extra_frames) for extra_frames in (0, 50, 200)]
        assert by_depth[0] == by_depth[1] == by_depth[2]

    @given(st.recursive(st.text(r'"\[]{}aé', max_size=6), lambda inner: st.lists(inner, max_size=3), max_leaves=20))
    def test_brackets_within_text_are_no_nesting(self, tree: Any) -> None:
        def depth(part: Any) -> int:
            return 1 + max(map(depth, part), default=0) if isinstance(part, list) else 0

        with patch.object(tidegate.schemas.event, "MAX_DEPTH", 2):
            for text in (json.dumps(tree), json.dumps({"a": tree}, ensure_ascii=False)):
                deepest = depth(tree) + (text[0] == "{")
                assert too_deep(text.encode()) == (deepest > 2)


def _deepest(frames: int) -> int:
    """The deepest nesting that is accepted with so many frames more on the stack."""
    if frames:
        return _deepest(frames - 1)
    low, high = 1, 2 * sys.getrecursionlimit()
    while low < high:
        middle = (low + high) // 2
        if accepted(b'{"kind":"tick","ts":1700000000000,"x":' + b"[" * middle + b"]" * middle + b"}"):
            low = middle + 1
        else:
            high = middle
    return low


class TestFutureTimestamp:
    def test_more_than_60_s_ahead_of_the_records_own_timestamp_is_refused(self) -> None:
        assert parse(written(), timestamp=TS - 60_000).ts == TS
        with pytest.raises(EventError, match=r"^future_timestamp"):
            parse(written(), timestamp=TS - 60_001)
        assert FUTURE_MS == 60_000

    def test_it_is_not_checked_without_a_timestamp(self) -> None:
        assert parse(written(ts=4_102_444_799_999)).ts == 4_102_444_799_999

    def test_it_holds_for_ticks_too(self) -> None:
        with pytest.raises(EventError, match=r"^future_timestamp"):
            parse(b'{"kind":"tick","ts":1700000060001}', timestamp=1_700_000_000_000)

    def test_the_past_is_not_checked(self) -> None:
        assert parse(written(ts=978_307_200_000), timestamp=TS).ts == 978_307_200_000


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = texts.filter(bool)
valid_fields = st.fixed_dictionaries(
    {
        "event_id": names,
        "ts": st.integers(978_307_200_000, 4_102_444_799_999),
        "flag": names,
        "arm": st.sampled_from(["baseline", "canary"]),
        "sticky_id": names,
        "latency_ms": st.floats(0, 1e9),
        "status": st.integers(0, 999),
    },
    optional={
        "kind": st.sampled_from(["request", "exposure", "tick"]),
        "region": st.none() | texts,
        "versions": st.none() | st.dictionaries(texts, texts, max_size=3),
        "delta_s": st.none() | st.floats(0, 2),
        "coverage": st.none() | st.floats(0, 1),
        "lambda_state": st.none() | texts,
        "paraphrase": st.none() | st.integers(1, 3),
        "cost": st.none() | st.floats(0, 1e9),
        "tools": st.none() | st.lists(st.fixed_dictionaries({"name": texts}), max_size=2),
    },
)


class TestEncode:
    @given(valid_fields)
    def test_what_is_written_reads_back_the_same(self, event: dict[str, Any]) -> None:
        """From a mapping and from the struct."""
        value = encode(event)
        read = parse(value)
        assert encode(read) == value
        assert {name: getattr(read, name) for name in event if name != "tools"} == {
            name: given for name, given in event.items() if name != "tools"
        }

    @pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD.items() for v in values])
    def test_an_event_that_would_be_dead_lettered_is_refused_by_name(self, field: str, value: Any) -> None:
        with pytest.raises(EventError, match=field):
            encode(fields(**{field: value}))

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("field", ["delta_s", "coverage", "latency_ms", "cost"])
    @pytest.mark.parametrize("form", [dict, TelemetryEvent])
    def test_a_number_that_is_not_finite_is_refused_by_name(
        self, form: Callable[..., Any], field: str, number: float
    ) -> None:
        """JSON has no word for it, and null would say that it was not measured."""
        with pytest.raises(EventError, match=field):
            encode(form(**fields(**{field: number})))

    def test_a_required_field_that_is_missing_is_refused_by_name(self) -> None:
        with pytest.raises(EventError, match="sticky_id"):
            encode(fields(sticky_id=...))

    @pytest.mark.parametrize("form", [dict, TelemetryEvent])
    def test_a_lone_surrogate_is_refused(self, form: Callable[..., Any]) -> None:
        with pytest.raises(EventError):
            encode(form(**fields(tenant="\ud800")))

    @pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j])
    def test_what_json_cannot_hold_is_refused(self, value: Any) -> None:
        with pytest.raises(EventError):
            encode(fields(tenant=value))

    def test_defaults_are_left_out(self) -> None:
        assert set(msgspec.json.decode(encode(fields()))) == set(fields())


class TestRounding:
    """1 − cosine of identical texts is −1.2e-7 in float32; a mean of 1.0s may be 1.0000000000000002."""

    @pytest.mark.parametrize(
        ("name", "given", "taken"),
        [
            ("delta_s", -1.2e-7, 0),
            ("delta_s", 2.0000005, 2),
            ("coverage", 1.0000000000000002, 1),
            ("coverage", -1e-6, 0),
            ("coverage", 0.5, 0.5),
        ],
    )
    def test_what_rounding_put_outside_the_range_is_taken_as_its_end(
        self, name: str, given: float, taken: float
    ) -> None:
        assert getattr(parse(written(**{name: given})), name) == taken


class TestUnitOfTime:
    """A `ts` of another unit would be silence for ever: no window of 1970 ever closes."""

    @pytest.mark.parametrize(
        ("ts", "unit"),
        [
            (1_700_000_000, "seconds"),
            (1_700_000_000.25, "seconds"),
            (1_700_000_000_000_000, "microseconds"),
            (1_700_000_000_000_000_000, "nanoseconds"),
        ],
    )
    def test_the_error_says_which_unit_it_looks_like(self, ts: float, unit: str) -> None:
        with pytest.raises(EventError, match=f"`ts` looks like {unit}: .*; write milliseconds"):
            parse(written(ts=ts))
