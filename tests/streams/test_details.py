"""What single records tell of the evidence itself: from bytes over columns and panes to a decision."""

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gates.build import PINNED, Event, bucket, hashed, seen
from tests.streams.events import CLOCKWORK, NOON, PANE, content, draw_runs, flags, healthy_pane, served, tick, written
from tidegate.gates.codec import StateCodec
from tidegate.gates.samples import KEYS_CAP
from tidegate.gates.sums import COUNTERS, Sums
from tidegate.gates.window import HASHES_CAP, NAMESPACES_CAP, PaneUnit
from tidegate.schemas.decision import Decision
from tidegate.schemas.errors import EventError
from tidegate.schemas.event import ToolCall, parse
from tidegate.schemas.manifest import Flag
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine import native
from tidegate.streams.engine.columns import LEAN_AGAIN
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import Partial
from tidegate.streams.engine.gate_partition import GatePartition
from tidegate.streams.engine.pipeline import Pipeline
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import SourcePartition

pytestmark = pytest.mark.usefixtures("decoder")

TEXT = """
flags:
  f:
    versions: {MODEL_VER: m}
    traffic: {canary_weight: 0.25, baseline_weight: 0.75, stages: [0.25, 1.0]}
    window: {length: 20s, settle: 5s, min_requests: 6}
    policy: {evidence: point, assignment: sha256}
"""
"""Arms follow from the sticky id."""
REPORTED = TEXT.replace("sha256", "reported").replace("{MODEL_VER: m}", "{MODEL_VER: m1}")
FLAG: Flag = flags(TEXT)["f"]
seeds = st.integers(0, 2**32 - 1)
_units = StateCodec(PaneUnit)


def state(text: str = TEXT, *, lean: bool = True) -> SourcePartition:
    """A fresh partition; not ``lean``: every run is decoded into the full struct."""
    table = EventClasses(Timeline.of(flags(text)))
    if not lean:
        table.runs_until_lean = 10**9
    return SourcePartition.fresh(0, CLOCKWORK, table)


def unit_of(values: Sequence[bytes | None], text: str = TEXT, **how: bool) -> PaneUnit:
    """What the pane that begins at noon holds of the flag."""
    partials = state(text, **how).step(Run(0, [*values, tick(NOON + 10**6)])).partials
    return next(partial for partial in partials if partial.pane == NOON // PANE).units["f|"]


def plain(unit: PaneUnit) -> Any:
    """All that is kept of a unit, to compare with another's."""
    return msgspec.msgpack.Decoder(strict=False).decode(_units.dump(unit.in_order()))


# Events as the tests of the gates write them, as records

TOOLS = [
    ToolCall(name="get", args_hash="a"),
    ToolCall(name="pay", write=True),
    ToolCall(name="pay", write=True, idempotency_key="k1", effect_id="e1"),
    ToolCall(name="pay", write=True, idempotency_key="k1", effect_id="e2"),
    ToolCall(name="pay", write=False, idempotency_key="k2", effect_id="e2"),
    ToolCall(name="pay", idempotency_key="k3"),
    ToolCall(name="log"),
]


def draw(rng: random.Random) -> Event:
    """One event with every fact that a record may tell."""
    arm, kind = rng.choice(["canary", "baseline"]), rng.choice(["request"] * 6 + ["exposure", "label", "label"])
    fields: dict[str, Any] = {
        "source": rng.choice(["traffic", "traffic", "traffic", "gold", "shadow"]),
        "sticky": f"s{rng.randrange(20)}",
        "delta_s": rng.choice([None, rng.randrange(20) / 10]),
        "coverage": rng.choice([None, rng.randrange(10) / 10]),
        "state": rng.choice([None, "→", "←", "×"]),
        "solved": rng.choice([None, True, False]),
        "client": rng.random() < 0.1,
        "hash": rng.choice([None, None, *[f"h{i}" for i in range(HASHES_CAP + 2)]]),
    }
    if rng.random() < 0.3:
        fields["probe"] = (rng.choice(["q1", "q2"]), rng.randrange(1, 4), rng.randrange(1, 3))
    if kind == "request":
        calls = rng.choice([0, 0, 3])
        fields |= {
            "latency": float(rng.randrange(500)),
            "error": rng.random() < 0.2,
            "tool_calls": calls,
            "tool_ok": rng.choice([None, 0, calls]),
            "cost": rng.choice([None, rng.random()]),
            "pins": rng.choice([PINNED, {**PINNED, "MODEL_VER": "n"}, {}]),
            "rate_limited": rng.random() < 0.2,
            "reason": rng.choice([None, "ok", "failed", "failed"]),
            "mode": rng.choice([None, "full", "cite_only"]),
            "namespace": rng.choice([None, None, "", *[f"ns{i}" for i in range(4)]]),
            "tools": rng.choice([(), (), rng.choices(TOOLS, k=4), [TOOLS[0]] * 11]),
        }
    else:
        fields |= {"cost": None, "pins": rng.choice([PINNED, {**PINNED, "MODEL_VER": "n"}, {}])}
    return Event(arm, kind=kind, **fields)


def fields_of(event: Event, number: int, ts: int = NOON) -> dict[str, Any]:
    """The fields of an event's record; what is at its default may be absent."""
    named = {"label": {"labels_event_id": f"of{number}"}}.get(event.kind, {"event_id": f"e{number}"})
    fields: dict[str, Any] = {
        **named,
        "ts": ts,
        "kind": event.kind,
        "flag": "f",
        "arm": event.arm,
        "sticky_id": event.sticky,
        "source": None if event.source == "traffic" else event.source,
        "evaluated_by": "client" if event.client else None,
        "manifest_hash": event.hash,
    }
    if event.kind != "exposure":
        fields |= {"delta_s": event.delta_s, "coverage": event.coverage, "lambda_state": event.state}
        fields |= {"solved": event.solved}
        fields |= {"versions": dict(event.pins)}
        if event.probe is not None:
            fields |= dict(zip(("query_id", "paraphrase", "seed"), event.probe, strict=True))
    if event.kind == "request":
        fields |= {
            "latency_ms": event.latency,
            "error": event.error,
            "tool_calls": event.tool_calls or None,
            "tool_ok": event.tool_ok,
            "cost": event.cost,
            "rate_limited": event.rate_limited or None,
            "reason_status": event.reason,
            "output_mode": event.mode,
            "cache_namespace": event.namespace,
            "tools": [msgspec.to_builtins(tool) for tool in event.tools] or None,
        }
    return {name: value for name, value in fields.items() if value is not None}


def records_of(events: Sequence[Event], first: int = 0, ts: int = NOON) -> list[bytes | None]:
    return written([fields_of(event, first + i, ts) for i, event in enumerate(events)])


def numbered(events: Sequence[Event]) -> list[Event]:
    """The events with the ids that their records have; an exposure is no run of a λ group."""
    return [
        dataclasses.replace(
            event,
            name=f"of{i}" if event.kind == "label" else f"e{i}",
            probe=None if event.kind == "exposure" else event.probe,
        )
        for i, event in enumerate(events)
    ]


@settings(max_examples=50, deadline=None)
@given(seed=seeds, length=st.integers(1, 120))
def test_what_records_tell_is_what_one_event_after_the_other_tells(seed: int, length: int) -> None:
    """Counters, digests, λ, pins, ids, worst events, namespaces, effects, tools, hashes, assignment: all of them."""
    rng = random.Random(seed)
    events = numbered([draw(rng) for _ in range(length)])
    found, expected = unit_of(records_of(events)), seen(events, pane=NOON // PANE, hashed_for=FLAG)
    for arm in found.arms.values():
        if "client" in arm.sources:
            # Of events whose arm a client chose nothing is read but how many they are.
            told = arm.sources["client"]
            arm.sources["client"] = Sums()
            arm.sources["client"].counters[COUNTERS.index("exposures")] = told["exposures"]
    assert plain(found) == plain(expected)


def draw_log(seed: int, length: int) -> list[bytes | None]:
    """A log over several panes: runs of plain events, of events with every fact, and some that are none."""
    rng = random.Random(seed)
    log: list[bytes | None] = []
    ts, lean = NOON, False
    for number in range(length):
        ts += rng.choice([0, 100, 2_000])
        if rng.random() < 0.05:
            lean = not lean
        event = draw(rng)
        fields = fields_of(event, number - rng.choice([0, 0, 0, 3]), ts - rng.choice([0, 0, 15_000, 40_000]))
        if lean:
            fields = {name: value for name, value in fields.items() if name not in OPTIONAL}
            fields |= {"kind": "request", "event_id": f"l{number}", "latency_ms": 5, "status": rng.choice([200, 500])}
        if rng.random() < 0.05:
            fields[rng.choice(sorted(OPTIONAL))] = rng.choice([7, [], {}, "never"])
        log += written([fields]) if rng.random() > 0.03 else [rng.choice([None, b"{", b"[]"])]
    return [*log, tick(ts + 10**6)]


OPTIONAL = (
    "rate_limited",
    "reason_status",
    "output_mode",
    "cache_namespace",
    "tools",
    "evaluated_by",
    "manifest_hash",
    "labels_event_id",
)
"""Facts that lean runs have none of, and one that they may."""


@settings(max_examples=25, deadline=None)
@given(seed=seeds, length=st.integers(1, 200))
def test_lean_and_full_decoding_give_the_same(seed: int, length: int) -> None:
    """Runs without any optional fact are decoded into a smaller struct; the partials are the same bytes."""
    log = draw_log(seed, length)
    both = []
    for lean in (True, False):
        one, partials = state(lean=lean), list[Partial]()
        for run in draw_runs(random.Random(seed), log):
            if lean and random.Random(run.first).random() < 0.5:
                one._table.runs_until_lean = 0
            partials += one.step(run).partials
        both.append([content(partial) for partial in partials])
    assert both[0] == both[1]


def test_lean_decoding_is_what_plain_runs_get_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with other fields is decoded in full, and so are the next ones, until the small struct is tried again.

    So it is in Python.
    """
    monkeypatch.setattr(native, "_used", None)
    one = state()
    lean, full = written([served(0, NOON, "canary")]), written([served(1, NOON, "canary", cache_hit=True)])
    offsets = iter(range(10**6))

    def decoded(values: Sequence[bytes | None]) -> bool:
        one.step(Run(next(offsets), values))
        return one._table.runs_until_lean == 0

    assert decoded(lean)
    assert not decoded(full)
    assert [decoded(lean) for _ in range(LEAN_AGAIN + 1)] == [False] * (LEAN_AGAIN - 1) + [True, True]


@pytest.mark.parametrize(
    "fact",
    [
        {"tools": [{"name": "t", "write": True}]},
        {"cache_namespace": "ns"},
        {"evaluated_by": "client"},
        {"manifest_hash": "h"},
        {"reason_status": "failed"},
        {"kind": "label", "labels_event_id": "r", "event_id": None},
    ],
)
def test_one_record_with_a_fact_is_seen_among_any_number_without(fact: dict[str, Any]) -> None:
    """The struct is chosen a run at a time, and a fact anywhere in it is enough."""
    crowd = [served(i, NOON, "canary") for i in range(300)]
    odd = {**served("odd", NOON, "canary"), **fact}
    found = unit_of(written([*crowd[:150], odd, *crowd[150:]]))
    without = unit_of(written([*crowd[:150], served("odd", NOON, "canary"), *crowd[150:]]))
    assert plain(found) != plain(without)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, length=st.integers(1, 200))
def test_a_restore_at_any_point_and_any_cut_gives_the_same_partials(seed: int, length: int) -> None:
    """State and position are one, with every optional fact in it."""
    log = draw_log(seed, length)
    expected = [content(partial) for partial in state().step(Run(0, log)).partials]
    rng = random.Random(seed)
    one, found = state(), []
    for run in draw_runs(rng, log):
        found += [content(partial) for partial in one.step(run).partials]
        if rng.random() < 0.3:
            one = SourcePartition.load(one.dump(), 0, CLOCKWORK, EventClasses(Timeline.of(flags(TEXT))))
    assert found == expected


# Each kind of evidence problem, from records to a decision


def decide(events: Sequence[dict[str, Any]], text: str = REPORTED, partitions: int = 1) -> list[Decision]:
    """Everything that follows from events in one partition, the others silent but for their ticks."""
    pipeline = Pipeline(Timeline.of(flags(text)), partitions, CLOCKWORK)
    end = tick(NOON + 200_000)
    logs: list[list[bytes | None]] = [[end] for _ in range(partitions)]
    logs[0] = [*written(list(events)), end]
    outcomes = [outcome for p, log in enumerate(logs) for outcome in pipeline.step(p, Run(0, log))]
    return [decision for decision, _ in outcomes]


def healthy_window(**canary: Any) -> list[dict[str, Any]]:
    """Both panes of a first window on which every gate passes; ids are in the right share."""
    return [*healthy_pane(NOON, **canary), *healthy_pane(NOON + PANE, **canary)]


def odd(number: int = 0, arm: str = "canary", **facts: Any) -> dict[str, Any]:
    return served(f"odd{number}", NOON + 5_000, arm, **facts)


TEN = [{"name": "search", "args_hash": "a"}] * 10
FOUND: dict[str, list[dict[str, Any]]] = {
    "pins_missing": [odd(versions={"MODEL_VER": "m1"})],
    "pins_drifted": [odd(versions={**served(0, 0, "canary")["versions"], "INDEX_HASH": "j"})],
    "sticky_violation": [odd(0, sticky_id="both"), odd(1, "baseline", sticky_id="both")],
    "cache_namespace_shared": [
        odd(0, cache_namespace="ns"),
        odd(1, "baseline", cache_namespace="ns", versions={**served(0, 0, "canary")["versions"], "BUILD": "x"}),
        odd(2, "baseline", source="shadow", cache_namespace="ns", versions={"MODEL_VER": "m1"}),
    ],
    "rate_limit_storm": [odd(i, rate_limited=True, attempts=2) for i in range(6)],
    "tool_loop": [odd(tools=TEN)],
    "unfenced_side_effect": [odd(tools=[{"name": "pay", "write": True}])],
    "client_evaluated": [odd(evaluated_by="client")],
    "orphan_telemetry": [
        {"event_id": "x", "ts": NOON, "kind": "exposure", "flag": "f", "arm": "canary", "sticky_id": "only one"}
    ],
}


def test_the_window_of_these_tests_is_sound() -> None:
    """It promotes as it is, decoded lean."""
    decision = decide(healthy_window())[0]
    assert (decision.verdict, decision.evidence_problems) == ("promote", [])


@pytest.mark.parametrize("problem", FOUND)
def test_a_problem_in_the_records_is_a_problem_of_the_decision(problem: str) -> None:
    """From bytes to the decision that is held: one record with the fact, among others of a rollout's second window."""
    early = served("early", NOON - 2 * PANE, "baseline")
    decision = decide([early, *healthy_window()[:20], *FOUND[problem], *healthy_window()[20:]])[1]
    assert decision.verdict == "hold"
    assert problem in decision.reasons


@pytest.mark.parametrize("problem", sorted({*FOUND} - {"orphan_telemetry"}))
def test_the_same_records_as_warm_up_are_no_problem(problem: str) -> None:
    """Warm-up rows count for nothing, anywhere."""
    warm = [{**event, "source": "warmup"} for event in FOUND[problem]]
    assert decide([*healthy_window()[:20], *warm, *healthy_window()[20:]])[0].verdict == "promote"


@pytest.mark.parametrize("problem", sorted({*FOUND} - {"orphan_telemetry"}))
def test_what_a_client_chose_is_kept_out_of_the_evidence(problem: str) -> None:
    """client-evaluated assignments (kept out of the evidence): nothing else is found in them."""
    chosen = [{**event, "evaluated_by": "client"} for event in FOUND[problem]]
    decision = decide([*healthy_window()[:20], *chosen, *healthy_window()[20:]])[0]
    assert decision.reasons == ["client_evaluated"]


def test_findings_name_partition_and_offset() -> None:
    """each with what was seen: the record can be fetched again."""
    decision = decide([odd(0), odd(1, tools=TEN), *healthy_window()], partitions=2)[0]
    detail = {problem.problem: problem.detail for problem in decision.evidence_problems}["tool_loop"]
    assert detail["first"] == [{"tool": "search", "partition": 0, "offset": 1}]


def test_long_tool_names_are_cut_in_findings() -> None:
    """A name is shown up to 100 characters: bounded in memory."""
    detail = unit_of(written([odd(tools=[{"name": "x" * 5_000, "write": True}])])).details()
    assert detail.unfenced.first == [(0, 0, "x" * 100)]


def test_regions_of_one_flag_under_two_manifests_are_both_held() -> None:
    """region_divergence: windows that end together see each other, whichever is decided first."""
    events = []
    for region, name in (("ap", "h1"), ("eu", "h1"), ("us", "h2")):
        for event in healthy_window():
            number = f"{region}/{event['event_id']}"
            events.append({**event, "region": region, "event_id": number, "manifest_hash": name})
    first = decide(sorted(events, key=lambda event: event["ts"]))[:3]
    assert [decision.region for decision in first] == ["ap", "eu", "us"]
    assert [decision.reasons for decision in first] == [["region_divergence"]] * 3
    same = decide(sorted(({**event, "manifest_hash": "h"} for event in events), key=lambda event: event["ts"]))[:3]
    assert {decision.verdict for decision in same} == {"promote"}


def test_a_gate_that_is_read_back_compares_regions_as_before() -> None:
    """The first unit of a restored gate has its peers, too."""
    first, second = (
        [{**event, "region": region, "event_id": f"{region}/{event['event_id']}"} for event in healthy_window()]
        for region in ("ap", "us")
    )
    told = [{**event, "manifest_hash": name} for name, events in (("h1", first), ("h2", second)) for event in events]
    log = [*written(sorted(told, key=lambda event: event["ts"])), tick(NOON + 10**5)]
    whole = Pipeline(Timeline.of(flags(REPORTED)), 1, CLOCKWORK)
    expected = [decision.to_bytes() for decision, _ in whole.step(0, Run(0, log))]
    for cut in range(0, len(log), 20):
        pipeline = Pipeline(Timeline.of(flags(REPORTED)), 1, CLOCKWORK)
        made = [decision.to_bytes() for decision, _ in pipeline.step(0, Run(0, log[:cut]))]
        pipeline.gates[0] = GatePartition.load(
            pipeline.gates[0].dump(), 0, 1, 1, CLOCKWORK, Timeline.of(flags(REPORTED))
        )
        made += [decision.to_bytes() for decision, _ in pipeline.step(0, Run(cut, log[cut:]))]
        assert made == expected


# Assignment by hash


def test_the_arm_of_a_record_is_held_against_its_hash_at_every_stage() -> None:
    """bucket = the first 8 bytes of SHA-256("flag:sticky_id") ÷ 2⁶⁴; canary if bucket < canary weight."""
    names = [f"user {i}é" for i in range(40)]
    records = [served(i, NOON, "canary", sticky_id=name) for i, name in enumerate(names)]
    records += [served(i, NOON, "baseline", sticky_id=name) for i, name in enumerate(names)]
    misplaced = unit_of(written(records)).details().misplaced
    right = sum(bucket("f", name) < 0.25 for name in names)
    assert 0 < right < 40
    assert misplaced == {"canary": [40 - right, 0], "baseline": [right, 40]}


def test_one_bucket_is_where_its_first_8_bytes_are() -> None:
    """Big-endian: SHA-256("f:id") of these two, worked out apart."""
    assert bucket("f", "a") == int(hashlib.sha256(b"f:a").hexdigest()[:16], 16) / 2**64


@pytest.mark.parametrize("source", ["gold", "shadow", "warmup"])
def test_only_traffic_is_held_against_its_hash(source: str) -> None:
    """Assignment reads traffic rows."""
    records = [served(i, NOON, "canary", source=source) for i in range(40)]
    assert unit_of(written([*records, served("one", NOON, "baseline")])).details().misplaced.keys() <= {"baseline"}


# Labels


def label(number: int, ts: int = NOON, arm: str = "canary", **fields: Any) -> dict[str, Any]:
    named = {"kind": "label", "ts": ts, "flag": "f", "arm": arm, "sticky_id": "s", "labels_event_id": f"r{number}"}
    return {**named, **fields}


BESIDE: dict[str, Any] = {
    "latency_ms": 9.0,
    "error": True,
    "status": 429,
    "cost": 5.0,
    "tool_calls": 3,
    "tool_ok": 1,
    "cache_namespace": "ns",
    "manifest_hash": "h",
    "tools": [{"name": "pay", "write": True}],
    "reason_status": "failed",
}
"""What a request may tell and a label may not."""


def test_a_label_names_flag_arm_sticky_id_ts_and_what_it_labels_and_needs_nothing_else() -> None:
    """they need no latency or status, and no event_id."""
    assert parse(json.dumps(label(0, coverage=0.5)).encode()).event_id is None
    unit = unit_of(written([label(0, coverage=0.5), label(1, delta_s=0.1)]))
    rows = unit.labels["canary"]["traffic"].table
    assert (unit.arms, unit.accepted) == ({}, 2)
    assert rows["coverage"].tolist() == pytest.approx([0.5, math.nan], nan_ok=True)
    assert rows["delta_s"].tolist() == pytest.approx([math.nan, 0.1], nan_ok=True)


@pytest.mark.parametrize("missing", ["flag", "arm", "sticky_id", "labels_event_id", "ts"])
def test_a_label_without_one_of_these_is_refused(missing: str) -> None:
    """By the schema and by the columns alike."""
    record = {name: value for name, value in label(0, coverage=0.5, event_id="e").items() if name != missing}
    with pytest.raises(EventError, match=missing):
        parse(json.dumps(record).encode())
    dead = state().step(Run(0, written([served(0, NOON, "canary"), record]))).dead
    assert [offset for offset, _ in dead] == [1]
    assert missing in dead[0][1]


def test_a_label_counts_in_the_pane_of_its_own_ts() -> None:
    """count in the window of their own `ts`."""
    log = written([served(0, NOON, "canary"), label(0, NOON + 3 * PANE, coverage=0.5)])
    partials = state().step(Run(0, [*log, tick(NOON + 10**6)])).partials
    places = {p.pane - NOON // PANE: (len(p.units["f|"].arms), len(p.units["f|"].labels)) for p in partials if p.units}
    assert places == {0: (1, 0), 3: (0, 1)}


def test_the_same_label_twice_is_a_duplicate_and_of_two_requests_two() -> None:
    """Known by its event_id, and without one by what it labels."""
    for twice, counts in (
        ([label(0, coverage=0.5)] * 2, (1, 1)),
        ([label(0, coverage=0.5), label(1, coverage=0.5)], (2, 0)),
        ([label(0, coverage=0.5, event_id="a"), label(0, delta_s=0.5, event_id="b")], (2, 0)),
        ([served(0, NOON, "canary", event_id="r0"), label(0, coverage=0.5)], (2, 0)),
    ):
        unit = unit_of(written(twice))
        assert (unit.accepted, unit.duplicates) == counts


def test_what_a_label_carries_beside_the_four_counts_for_nothing() -> None:
    """carry those fields only: latency, outcome, cost, tools, manifest and caches of a label are not looked at."""
    bare, full = label(0, coverage=0.5, solved=True), label(0, coverage=0.5, solved=True, **BESIDE)
    assert plain(unit_of(written([bare]))) == plain(unit_of(written([full])))


@pytest.mark.parametrize(("source", "place"), [("gold", "gold"), ("shadow", "shadow"), (None, "traffic")])
def test_labels_are_kept_by_the_source_of_what_they_label(source: str | None, place: str) -> None:
    unit = unit_of(written([label(0, coverage=0.5, source=source)]))
    assert {arm: list(kept) for arm, kept in unit.labels.items()} == {"canary": [place]}


def test_warm_up_labels_and_labels_out_of_scope_count_for_nothing() -> None:
    """Warm-up counts for nothing, anywhere."""
    log = written([label(0, coverage=0.5, source="warmup"), label(1, coverage=0.5, flag="nobody's")])
    assert all(not p.units for p in state().step(Run(0, [*log, tick(NOON + 10**6)])).partials)


def test_labels_of_a_window_decide_it() -> None:
    """From records to the decision: requests that measure nothing, and an evaluator that does."""
    silent = {"delta_s": None, "coverage": None, "solved": None, "lambda_state": None}
    requests = [{**event, **silent} for event in healthy_window()]
    told = []
    for arm in ("baseline", "canary"):
        for i, request in enumerate([request for request in requests if request["arm"] == arm][:24]):
            run = {"query_id": f"q{i // 6}", "paraphrase": i % 6 // 2 + 1, "seed": i % 2 + 1}
            four = {"delta_s": 0.1, "coverage": 0.9, "solved": True, "lambda_state": "→"}
            of = {"labels_event_id": request["event_id"], "event_id": f"{arm}{i}"}
            told.append(label(i, NOON + 15_000, arm, **of, **run, **four))
    assert decide(requests)[0].verdict == "hold"
    decision = decide([*requests, *told])[0]
    assert (decision.verdict, decision.arms["canary"].labels) == ("promote", 12)


def test_the_worst_label_is_named_by_what_it_labels() -> None:
    """exemplars name the request that a person would look at, and the offset of the label."""
    for event_id in (None, "label's own"):
        labels = unit_of(written([label(7, coverage=0.1, event_id=event_id)])).labels["canary"]["traffic"]
        assert (labels.names, labels.table["offset"].tolist()) == (["r7"], [0])


def test_the_worst_events_are_among_those_that_count() -> None:
    """An exposure that tells a latency is no request, and its latency is not the worst of any."""
    exposure = {**served(0, NOON, "canary", latency_ms=9e5, delta_s=2.0, cost=9.0, coverage=0.0), "kind": "exposure"}
    worst = unit_of(written([exposure, served(1, NOON, "canary")])).arms["canary"].sources["traffic"].worst
    assert set(worst) == {"delta_s", "coverage", "latency", "cost"}
    assert {w.offset for found in worst.values() for w in found} == {1}


@pytest.mark.parametrize("kind", ["request", "exposure", "label"])
def test_any_kind_of_event_may_be_client_evaluated(kind: str) -> None:
    """It is counted whatever else it carries, and no record stops a worker."""
    event = {**label(0, coverage=0.5), "kind": kind, "latency_ms": 1, "status": 200, "evaluated_by": "client"}
    event |= {} if kind == "label" else {"event_id": "e"}
    sums = unit_of(written([event])).arms["canary"].sources
    assert {place: its["exposures"] for place, its in sums.items()} == {"client": 1}


# Bounds


def test_namespaces_are_followed_up_to_the_cap_and_then_counted() -> None:
    """1,024 in a pane and unit as in a window."""
    records = written([served(i, NOON, "canary", cache_namespace=f"ns{i}") for i in range(NAMESPACES_CAP + 7)])
    detail = unit_of(records).details()
    assert (len(detail.namespaces), detail.namespaces_dropped) == (NAMESPACES_CAP, 7)
    again = written([served("x", NOON, "canary", cache_namespace="ns0", versions={})])
    assert len(unit_of([*records, *again]).details().namespaces["ns0"]) == 2


def test_a_namespace_holds_two_sets_of_pins_at_most() -> None:
    """Two are enough to be a problem; which two does not hang on the order."""
    facts = [{"cache_namespace": "ns", "versions": {"MODEL_VER": f"m{i}"}} for i in range(9)]
    records = written([served(i, NOON, "canary", **fact) for i, fact in enumerate(facts)])
    kept = ['{"MODEL_VER":"m0"}', '{"MODEL_VER":"m1"}']
    assert unit_of(records).details().namespaces == unit_of(records[::-1]).details().namespaces == {"ns": kept}


def test_manifest_hashes_are_told_apart_up_to_the_cap() -> None:
    """Eight; later ones count as the last."""
    records = written([served(i, NOON, "canary", manifest_hash=f"h{i}") for i in range(HASHES_CAP + 5)])
    hashes = unit_of(records).details().hashes
    assert hashes == dict.fromkeys((f"h{i}" for i in range(HASHES_CAP - 1)), 1) | {f"h{HASHES_CAP - 1}": 6}


def test_idempotency_keys_are_thinned_by_hash_beyond_the_cap() -> None:
    """16,384 keys; beyond it every second by hash, and a conflict among these is still found."""
    keys = [f"k{i}" for i in range(KEYS_CAP + 2_000)]
    per = 50

    def calls(names: Sequence[str], effect: str) -> list[dict[str, Any]]:
        chunks = [names[i : i + per] for i in range(0, len(names), per)]
        return [
            served(f"{effect}{i}", NOON, "canary", tools=[tool(name, effect) for name in chunk])
            for i, chunk in enumerate(chunks)
        ]

    def tool(key: str, effect: str) -> dict[str, Any]:
        return {"name": "pay", "write": True, "idempotency_key": key, "effect_id": effect}

    effects = unit_of(written([*calls(keys, "one"), *calls(keys[:100], "two")])).details().effects
    assert effects.level == 1
    assert set(effects.effects) == {hashed(key) for key in keys if hashed(key) < 1 << 63}
    assert sorted(effects.conflicts) == sorted(hashed(key) for key in keys[:100] if hashed(key) < 1 << 63)


def test_findings_keep_three_places_and_all_the_count() -> None:
    """The first three by offset, however the log was cut."""
    log = written([odd(i, tools=TEN) for i in range(9)])
    one, partials = state(REPORTED), []
    for i in range(9):
        partials += one.step(Run(i, log[i : i + 1])).partials
    partials += one.step(Run(9, [tick(NOON + 10**6)])).partials
    loops = next(partial for partial in partials if partial.units).units["f|"].details().tool_loops
    assert (loops.count, [offset for _, offset, _ in loops.first]) == (9, [0, 1, 2])
