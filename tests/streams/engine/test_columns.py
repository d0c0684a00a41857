"""Records to columns: what each field of an event counts for, and that fast and slow decoding agree."""

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.streams.events import (
    CLOCKWORK,
    GARBAGE,
    NOON,
    PINS,
    content,
    counted,
    draw_log,
    flags,
    partials_of,
    record,
    step,
    sums_of,
    tick,
    unit_of,
)
from tests.streams.reference import Refused, judge
from tidegate.schemas.errors import EventError
from tidegate.schemas.event import parse
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine import columns
from tidegate.streams.engine.columns import Columns, decode
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import SourcePartition

pytestmark = pytest.mark.usefixtures("decoder")


def decoded(values: Sequence[bytes | None], timestamps: Sequence[int] | None = None) -> Columns:
    return decode(values, timestamps, EventClasses(Timeline.of(flags())))


def error_of(value: bytes | None, timestamp: int | None = None) -> str | None:
    try:
        parse(value, timestamp)
    except EventError as error:
        return str(error)
    return None


# Pieces that, glued together and then joined by line breaks, look like other records than they are.
PIECES = [
    b'{"ts":1,"kind":"tick"}',
    b'{"ts":2,"kind":"tick","x":{}}',
    b'{"ts":3,"kind":"tick","x":"}',
    b'{"ts":4,"kind":"tick","x":{}',
    b'"}',
    b'{"}',
    b'{"a":1}',
    b"{",
    b"}",
    b"\n",
    b"}\n{",
    b" ",
    b"\r",
    b",",
    b'"',
    b"\\",
    b"[",
    b"]",
    record(),
    record(event_id="f", versions=PINS),
    record(event_id="g", latency_ms=None),
    record(event_id="h", versions={"MODEL_VER": 1}),
]
glued = st.lists(st.sampled_from(PIECES), max_size=4).map(b"".join)


class TestJoinedDecode:
    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.none() | glued, max_size=6))
    @example([b'{"ts":1,"kind":"tick","x":"}', b'{"}', b'{"ts":1,"kind":"tick"}{"ts":2,"kind":"tick"}'])
    @example([b'{"ts":1,"kind":"tick"}{"ts":2,"kind":"tick"}', b"", b'{"ts":3,"kind":"tick"}'])
    @example([b'{"ts":1,"kind":"tick","x":[{}', b'{}]}{"ts":2,"kind":"tick"}'])
    def test_no_record_lends_its_bytes_to_another(self, values: list[bytes | None]) -> None:
        """Each value is judged as if it were alone."""
        found = decoded(values)
        dead = [row for row, value in enumerate(values) if error_of(value)]
        alive = [row for row in range(len(values)) if row not in dead]
        assert [row for row, _ in found.dead] == dead
        assert found.row.tolist() == alive
        assert found.ts.tolist() == [parse(values[row]).ts for row in alive]

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 60))
    def test_a_run_is_its_records_one_by_one(self, seed: int, length: int) -> None:
        """Values, ids and errors do not depend on the neighbours in a run."""
        values, table = draw_log(seed, length), EventClasses(Timeline.of(flags()))
        together = decode(values, None, table)
        singles = [decode([value], None, table) for value in values]
        for name in ("ts", "code", "event", "sticky", "delta_s", "coverage", "latency", "cost"):
            expected = np.concatenate([getattr(one, name) for one in singles])
            assert np.array_equal(getattr(together, name), expected, equal_nan=name not in ("ts", "code"))
        assert together.dead == [(row, one.dead[0][1]) for row, one in enumerate(singles) if one.dead]

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 60))
    def test_columns_and_schema_judge_alike(self, seed: int, length: int) -> None:
        """``parse`` is the only judge of validity: the same records, the same words; and the slow model agrees."""
        values = draw_log(seed, length)
        stamps = [random.Random(seed).choice([-1, NOON - 60_000, NOON - 60_001]) for _ in values]
        dead = dict(decoded(values, stamps).dead)
        for row, (value, stamp) in enumerate(zip(values, stamps, strict=True)):
            assert dead.get(row) == error_of(value, None if stamp < 0 else stamp)
            if row in dead:
                with pytest.raises(Refused):
                    judge(value, stamp)
            else:
                judge(value, stamp)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.binary(max_size=30) | st.sampled_from(GARBAGE), max_size=5))
    def test_any_bytes_are_judged_and_none_raises(self, values: list[bytes | None]) -> None:
        found = decoded([*values, tick(1)])
        assert len(found.row) + len(found.dead) == len(values) + 1

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_a_valid_record_with_any_byte_changed_is_judged_as_by_the_schema(self, data: st.DataObject) -> None:
        value = record(versions=PINS, lambda_state="→", delta_s=0.5, unheard_of={"a": [1, "b"]})
        at = data.draw(st.integers(0, len(value) - 1))
        changed = value[:at] + data.draw(st.binary(max_size=2)) + value[at + 1 :]
        found = decoded([record(), changed, tick(NOON)])
        assert bool(found.dead) == (error_of(changed) is not None)

    def test_an_empty_run_has_no_columns(self) -> None:
        assert len(decoded([]).row) == 0

    @pytest.mark.parametrize("neighbours", [0, 1, 3, 50])
    def test_small_neighbours_do_not_change_what_is_too_deep(self, neighbours: int) -> None:
        """A record of 600 levels is a dead letter, however many short ones stand beside it."""
        value = b'{"kind":"tick","ts":1,"x":' + b"[" * 600 + b"]" * 600 + b"}"
        assert [row for row, _ in decoded([value, *[tick(NOON)] * neighbours]).dead] == [0]

    def test_a_deep_stack_does_not_change_what_is_valid(self) -> None:
        """The worker's stack is deeper than the replay's; both must judge alike."""
        deepest = 900
        value = b'{"kind":"tick","ts":1,"x":' + b"[" * deepest + b"]" * deepest + b"}"

        def dead(frames: int) -> bool:
            return dead(frames - 1) if frames else bool(decoded([value]).dead)

        assert dead(0) == dead(300)


class TestOutcome:
    @pytest.mark.parametrize(
        ("outcome", "errors", "rate_limited"),
        [
            ({"error": False}, 0, 0),
            ({"error": True}, 1, 0),
            ({"error": None, "status": 200}, 0, 0),
            ({"error": None, "status": 404}, 0, 0),
            ({"error": None, "status": 499}, 0, 0),
            ({"error": None, "status": 500}, 1, 0),
            ({"error": None, "status": 599}, 1, 0),
            ({"error": None, "status": 429}, 1, 1),
            ({"error": False, "status": 429}, 1, 1),
            ({"error": False, "status": 503}, 1, 0),
            ({"error": True, "status": 200}, 1, 0),
            ({"error": False, "status": 200, "rate_limited": True}, 0, 1),
            ({"error": False, "rate_limited": False, "status": 429}, 1, 1),
        ],
    )
    def test_errors_and_rate_limits(self, outcome: dict[str, Any], errors: int, rate_limited: int) -> None:
        """≥ 500 is an error, a final 429 is an error and rate limited, a 429 retried to success only the latter."""
        sums = sums_of(record(**outcome))
        assert (sums["errors"], sums["rate_limited"]) == (errors, rate_limited)

    def test_failed_requests_count_their_latency_too(self) -> None:
        assert sums_of(record(error=True, latency_ms=77)).latency.quantile(0.5) == 77


class TestLambda:
    @pytest.mark.parametrize("state", ["→", "->", "convergent"])
    def test_spellings_of_convergent(self, state: str) -> None:
        sums = sums_of(record(lambda_state=state))
        assert (sums["lambda_rows"], sums["lambda_bad_rows"], sums["lambda_misspelt"]) == (1, 0, 0)

    @pytest.mark.parametrize("state", ["←", "<>", "×", "<-", "x", "divergent", "recursive", "chaotic"])
    def test_spellings_of_the_other_states(self, state: str) -> None:
        sums = sums_of(record(lambda_state=state))
        assert (sums["lambda_rows"], sums["lambda_bad_rows"], sums["lambda_misspelt"]) == (1, 1, 0)

    @pytest.mark.parametrize("state", ["", " →", "Convergent", "CHAOTIC", "X", "=>", "→→"])
    def test_anything_else_counts_as_chaotic_with_a_warning_count(self, state: str) -> None:
        sums = sums_of(record(lambda_state=state))
        assert (sums["lambda_rows"], sums["lambda_bad_rows"], sums["lambda_misspelt"]) == (1, 1, 1)

    def test_a_group_is_one_query_of_one_arm(self) -> None:
        """Its six runs in one group, whatever their order."""
        runs = [(p, s) for p in (1, 2, 3) for s in (1, 2)]
        probes = [
            record(event_id=f"{q}{p}{s}", lambda_state="→", query_id=q, paraphrase=p, seed=s)
            for p, s in reversed(runs)
            for q in ("q1", "q2")
        ]
        sums = sums_of(*probes)
        assert sorted(sums.groups.values()) == [0b010101010101] * 2
        assert sums["lambda_events"] == 0

    @pytest.mark.parametrize("missing", ["query_id", "paraphrase", "seed"])
    def test_without_one_of_the_three_tags_it_is_an_event_of_its_own(self, missing: str) -> None:
        tags: dict[str, Any] = {"query_id": "q", "paraphrase": 1, "seed": 1}
        sums = sums_of(record(lambda_state="←", **tags | {missing: None}))
        assert (sums["lambda_events"], sums["lambda_flips"], sums.groups) == (1, 1, {})

    @pytest.mark.parametrize("order", [("→", "←"), ("←", "→")])
    def test_a_repeated_run_counts_at_its_worse_state(self, order: tuple[str, str]) -> None:
        probes = [
            record(event_id=str(i), lambda_state=state, query_id="q", paraphrase=2, seed=1)
            for i, state in enumerate(order)
        ]
        assert list(sums_of(*probes).groups.values()) == [0b10 << 4]

    def test_a_probe_without_a_state_is_no_run(self) -> None:
        assert sums_of(record(query_id="q", paraphrase=1, seed=1)).groups == {}


class TestCounting:
    def test_every_source_has_sums_of_its_own(self) -> None:
        values = [record(event_id=s, source=s) for s in ("traffic", "gold", "shadow")]
        assert set(unit_of(*values).arms["canary"].sources) == {"traffic", "gold", "shadow"}

    @pytest.mark.parametrize("absent", [..., None])
    def test_the_source_is_traffic_unless_said(self, absent: Any) -> None:
        assert sums_of(record(source=absent))["requests"] == 1

    def test_warm_up_counts_for_nothing(self) -> None:
        """Not for the unit's beginning either."""
        assert not any(p.units for p in partials_of([record(source="warmup")]))

    @pytest.mark.parametrize("absent", [..., None, ""])
    def test_the_region_is_empty_unless_said(self, absent: Any) -> None:
        assert unit_of(record(region=absent), unit="wide|").accepted == 1

    @pytest.mark.parametrize("region", ["a|b", "|", "é", "\u2028", " "])
    def test_any_text_names_a_region(self, region: str) -> None:
        assert unit_of(record(region=region), unit=f"wide|{region}").accepted == 1

    IN_SCOPE = {  # noqa: RUF012
        "flag": "narrow",
        "tenant": "acme",
        "region": "eu",
        "endpoint": "/a",
        "cohort": "c1",
        "surface": "web",
    }

    def test_an_event_whose_five_fields_are_all_listed_is_in_scope(self) -> None:
        assert unit_of(record(**self.IN_SCOPE), unit="narrow|eu").accepted == 1

    @pytest.mark.parametrize("field", ["tenant", "region", "endpoint", "cohort", "surface"])
    @pytest.mark.parametrize("value", ["elsewhere", "all", "", None, ...])
    def test_one_field_that_is_not_listed_is_out_of_scope(self, field: str, value: Any) -> None:
        result = step(record(**self.IN_SCOPE | {field: value}))
        assert (result.accepted, result.dead, result.left.unknown_flag) == (0, [], 0)

    def test_an_event_of_a_flag_no_manifest_names_is_ignored_and_counted_apart(self) -> None:
        result = step(record(flag="nobody's"), record(event_id="f", flag="nobody's", kind="exposure"))
        assert (result.accepted, result.left.unknown_flag, result.dead) == (0, 2, [])

    def test_a_tick_counts_for_nothing(self) -> None:
        """Also one that says more than it must."""
        result = step(tick(NOON), record(kind="tick"))
        assert (result.accepted, result.left.unknown_flag, result.dead, result.late) == (0, 0, [], [])

    def test_an_exposure_is_no_request(self) -> None:
        """Its assignment counts, what rides on it does not."""
        sums = sums_of(
            record(
                kind="exposure", error=True, cost=5, solved=True, delta_s=1, coverage=1, lambda_state="×", tool_calls=1
            )
        )
        assert (sums["exposures"], sums["requests"], sums["errors"], sums["solved"]) == (1, 0, 0, 0)
        assert (sums.latency.count, sums.delta_s.count, sums.cost, sums.coverage) == (0, 0, 0, None)
        assert (sums["lambda_rows"], sums.pins) == (0, {})
        assert len(sums.sticky.ids) == 1

    @pytest.mark.parametrize(("source", "followed"), [("traffic", 1), ("gold", 0), ("shadow", 0)])
    def test_sticky_ids_are_followed_for_traffic_alone(self, source: str, followed: int) -> None:
        """Exposures included; gold rows and shadows are outside the sticky check."""
        values = [record(source=source), record(event_id="f", source=source, kind="exposure")]
        assert len(sums_of(*values, source=source).sticky.ids) == followed

    def test_absent_tool_calls_are_none(self) -> None:
        sums = sums_of(record(event_id="a"), record(event_id="b", tool_calls=None, tool_ok=0))
        assert (sums["tool_calls"], sums["tool_ok"], sums["tool_missing"]) == (0, 0, 0)

    def test_calls_without_tool_ok_are_rows_without_the_metric(self) -> None:
        sums = sums_of(record(event_id="a", tool_calls=3), record(event_id="b", tool_calls=4, tool_ok=1))
        assert (sums["tool_calls"], sums["tool_ok"], sums["tool_missing"]) == (4, 1, 1)

    def test_null_values_are_rows_without_the_metric(self) -> None:
        sums = sums_of(record(delta_s=None, coverage=None, cost=None, solved=None, lambda_state=None))
        assert (sums.delta_s.count, sums["coverage_rows"], sums["cost_rows"], sums["lambda_rows"]) == (0, 0, 0, 0)
        assert sums["requests"] == 1

    def test_zero_is_a_value(self) -> None:
        sums = sums_of(record(delta_s=0, coverage=0, cost=0, solved=False, latency_ms=0))
        assert (sums.delta_s.count, sums["coverage_rows"], sums["cost_rows"], sums.latency.count) == (1, 1, 1, 1)

    def test_costs_add_up_exactly_whatever_their_order(self) -> None:
        rng = random.Random(3)
        costs = [rng.choice([0.1, 1e-9, 1e9, 123.456]) * rng.random() for _ in range(300)]
        values = [record(event_id=str(i), cost=c) for i, c in enumerate(costs)]
        assert sums_of(*values).counters == sums_of(*reversed(values)).counters
        assert sums_of(*values).cost == pytest.approx(sum(sorted(costs)), rel=1e-12)

    def test_values_keep_their_order_within_a_cell(self) -> None:
        rng = random.Random(4)
        values = [rng.random() for _ in range(100)]
        arms = [rng.choice(["canary", "baseline"]) for _ in values]
        records = [record(event_id=str(i), delta_s=v, arm=a) for i, (v, a) in enumerate(zip(values, arms, strict=True))]
        kept = np.frombuffer(sums_of(*records).delta_s.dump()[-1], "<f8").tolist()
        assert kept == [v for v, a in zip(values, arms, strict=True) if a == "canary"]


class TestPins:
    def test_the_six_and_those_the_manifest_names_are_kept(self) -> None:
        versions = PINS | {"POLICY": "x", "OTHER": "y", "UNSEEN": "z"}
        (pins,) = sums_of(record(versions=versions)).pins
        assert json.loads(pins) == PINS | {"POLICY": "x"}

    def test_spelling_makes_no_new_set(self) -> None:
        """Order of keys, white space and escapes are nothing that was deployed."""
        spelt = [b'{"MODEL_VER":"m","TOK_VER":"t"}', b'{ "TOK_VER" : "t", "MODEL_VER": "\\u006d", "LOG": "1" }']
        values = [record(event_id=str(i), versions="@").replace(b'"@"', v) for i, v in enumerate(spelt)]
        (seen,) = sums_of(*values).pins.values()
        assert (seen.count, seen.first[2]) == (2, 0)

    def test_each_set_knows_its_first_partition_and_offset(self) -> None:
        values = [
            record(event_id=str(i), versions={"MODEL_VER": m}, ts=NOON + 9_000 - i)
            for i, m in enumerate(["a", "b", "a", "b", "c"])
        ]
        pins = sums_of(*values).pins
        assert {json.loads(p)["MODEL_VER"]: (s.count, s.first[1:]) for p, s in pins.items()} == {
            "a": (2, (0, 0)),
            "b": (2, (0, 1)),
            "c": (1, (0, 4)),
        }

    def test_requests_without_versions_are_a_set_too(self) -> None:
        assert list(sums_of(record(), record(event_id="f", versions=None)).pins) == ["{}"]

    def test_shadow_and_gold_are_read_as_well(self) -> None:
        """Every request but warm-up."""
        for source in ("gold", "shadow"):
            assert sums_of(record(source=source, versions=PINS), source=source).pins


class TestTimestamps:
    def test_60_s_ahead_of_the_records_own_timestamp_is_the_most(self) -> None:
        ahead = [NOON - 60_000, NOON - 60_001, -1, NOON, NOON - 60_001]
        values: list[bytes | None] = [record(event_id=str(i)) for i in range(4)]
        result = step(*values, tick(NOON), timestamps=ahead)
        assert [offset for offset, _ in result.dead] == [1, 4]
        assert all(error.startswith("future_timestamp") for _, error in result.dead)

    @pytest.mark.parametrize("stamp", [2**63 - 1, 2**63 - 60_001, 2**53, 0, -1, -(2**63)])
    def test_any_timestamp_that_kafka_can_hold_is_judged(self, stamp: int) -> None:
        """A producer may write what it likes there; it must not stop the partition."""
        result = step(record(), timestamps=[stamp])
        assert result.accepted == (0 if stamp == 0 else 1)

    def test_a_file_without_timestamps_is_not_checked(self) -> None:
        assert counted(record(ts=4_102_444_799_999)) == 1


class TestGroupTable:
    def test_it_is_a_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Emptied at any time, it changes nothing; and it is emptied once it is full."""
        log = draw_log(1, 300)
        expected = [content(p) for p in partials_of(log)]
        monkeypatch.setattr(columns, "GROUPS_CAP", 3)
        table = EventClasses(Timeline.of(flags()))
        state = SourcePartition.fresh(0, CLOCKWORK, table)
        found, sizes = [], []
        for at in range(0, 300, 10):
            found += [content(p) for p in state.step(Run(at, log[at : at + 10])).partials]
            sizes.append(len(table))
        found += [content(p) for p in state.step(Run(300, [tick(NOON + 10**6)])).partials]
        assert found == expected
        assert max(sizes) <= 3 + 10
