"""Flags, events and random logs that the tests of the stream core share."""

import json
import random
from typing import Any

import msgspec

from tidegate.gates.codec import StateCodec
from tidegate.gates.sums import Sums
from tidegate.gates.window import PaneUnit
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.load import load_manifest
from tidegate.schemas.manifest import Flag
from tidegate.schemas.timeline import Timeline
from tidegate.streams.engine.event_classes import EventClasses
from tidegate.streams.engine.gate_log import Partial
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import SourcePartition, Step

PANE, LATENESS = 10_000, 10_000
CLOCKWORK = Clockwork(PANE, LATENESS, "tidegate.telemetry")
NOON = 1_700_000_000_000
"""A moment at which a pane begins."""

MANIFEST = """
flags:
  wide:
    versions: {MODEL_VER: m1, POLICY: p1}
    window: {length: 30s, min_requests: 1000000}
    policy: {evidence: point}
    abort_rules: {hard: [], soft: []}
  narrow:
    scope: {tenants: [acme, beta], regions: [eu, us], endpoints: ["/a"], cohorts: [c1], surfaces: [web]}
    baseline_versions: {OTHER: o1}
    policy: {evidence: point, quality_source: gold}
    window: {length: 20s, min_requests: 1000000}
    abort_rules: {hard: [], soft: []}
"""
PINS = {
    "MODEL_VER": "m1",
    "PROMPT_VER": "p",
    "INDEX_HASH": "i",
    "RERANK_CONF": "r",
    "TOK_VER": "t",
    "ANALYZER_CONF": "a",
}


def flags(text: str = MANIFEST) -> dict[str, Flag]:
    return dict(load_manifest(text).flags)


def event(**changes: Any) -> dict[str, Any]:
    """A request that is valid with as little as possible; a change to ``...`` leaves the field out."""
    fields = {
        "event_id": "e",
        "ts": NOON,
        "flag": "wide",
        "arm": "canary",
        "sticky_id": "s",
        "latency_ms": 1.0,
        "error": False,
    }
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def record(**changes: Any) -> bytes:
    return json.dumps(event(**changes)).encode()


def tick(ts: int) -> bytes:
    return b'{"kind":"tick","ts":%d}' % ts


def fresh(first: int = 0, partition: int = 0, text: str = MANIFEST) -> SourcePartition:
    return SourcePartition.fresh(partition, CLOCKWORK, EventClasses(Timeline.of(flags(text))), first)


def partials_of(values: list[bytes | None], timestamps: list[int] | None = None, text: str = MANIFEST) -> list[Partial]:
    """Every pane of a log, the last ones closed by a tick far ahead."""
    stamps = None if timestamps is None else [*timestamps, -1]
    return fresh(text=text).step(Run(0, [*values, tick(NOON + 10**6)], stamps)).partials


def content(partial: Partial) -> Any:
    """All that a partial holds, to compare with another's; the order of its units means nothing."""
    return msgspec.msgpack.Decoder(strict=False).decode(StateCodec(Partial).dump(partial))


def unit_of(*values: bytes | None, unit: str = "wide|") -> PaneUnit:
    """What the pane that begins at ``NOON`` holds of a unit."""
    for partial in partials_of(list(values)):
        if partial.pane == NOON // PANE:
            return partial.units[unit]
    raise AssertionError("the pane at NOON was not closed")


def sums_of(*values: bytes | None, unit: str = "wide|", arm: str = "canary", source: str = "traffic") -> Sums:
    return unit_of(*values, unit=unit).arms[arm].sources[source]


def counted(*values: bytes | None) -> int:
    """Events of the records that were accepted for a unit."""
    return fresh().step(Run(0, values)).accepted


def step(*values: bytes | None, timestamps: list[int] | None = None) -> Step:
    return fresh().step(Run(0, values, timestamps))


# -- a service that is watched ---------------------------------------------------------------------------------------

RAMP = """
flags:
  f:
    versions: {MODEL_VER: m1}
    traffic: {canary_weight: 0.25, baseline_weight: 0.75, stages: [0.25, 1.0]}
    window: {length: 20s, settle: 5s, min_requests: 6, min_lambda_groups: 1}
    policy: {evidence: point}
"""


def served(number: object, ts: int, arm: str, **changes: Any) -> dict[str, Any]:
    """A request that passes every gate."""
    fields: dict[str, Any] = {
        "event_id": f"{arm}/{number}",
        "ts": ts,
        "flag": "f",
        "arm": arm,
        "sticky_id": f"{arm} user {number}",
        "latency_ms": 100.0,
        "status": 200,
        "versions": PINS,
        "delta_s": 0.1,
        "coverage": 0.9,
        "cost": 0.01,
        "solved": True,
        "tool_calls": 2,
        "tool_ok": 2,
    }
    return fields | changes


def probes(number: object, ts: int, arm: str, **changes: Any) -> list[dict[str, Any]]:
    """A complete λ group."""
    return [
        served(f"{number}/{p}{s}", ts, arm, query_id=f"q{number}", paraphrase=p, seed=s, lambda_state="→", **changes)
        for p in (1, 2, 3)
        for s in (1, 2)
    ]


def healthy_pane(ts: int, **canary: Any) -> list[dict[str, Any]]:
    """What both arms send in the pane that begins at ``ts``, enough for every gate; ``canary``: how it differs."""
    events = probes(ts, ts, "baseline") + probes(ts, ts + 1, "canary", **canary)
    return events + [served(f"{ts}+{i}", ts + 2 + i, "baseline") for i in range(3)]


def written(events: list[dict[str, Any]]) -> list[bytes | None]:
    return [json.dumps(event, ensure_ascii=False).encode() for event in events]


# -- random logs ------------------------------------------------------------------------------------------------------

DEEP = b'{"ts":1,"kind":"tick","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
GARBAGE: list[bytes | None] = [
    None,
    b"",
    b" ",
    b"{",
    b"}",
    b"}\n{",
    b"null",
    b'"text"',
    b"[]",
    b"{}",
    b"{}{}",
    b"NaN",
    b"\xff\xfe\x00",
    b"\xef\xbb\xbf{}",
    DEEP,
    b'{"ts":1,"kind":"tick","x":' + b"[" * 600 + b"]" * 600 + b"}",
    b"[" * 100_000,
    b'{"ts":%d,"kind":"tick"}{"ts":%d,"kind":"tick"}' % (NOON, NOON),
    b'{"ts":%d,"kind":"tick"}\n{"ts":%d,"kind":"tick"}' % (NOON, NOON),
    b'{"ts":%d,"kind":"tick","x":"}\n{"}' % NOON,
    b'{"ts":%d,"kind":"tick","x":"}' % NOON,
    b'{"}',
    b'{"ts":%d,"kind":"tick","tenant":"\xff"}' % NOON,
    b'{"ts":%d,"kind":"tick","tenant":"\\ud800"}' % NOON,
    b'{"ts":%d,"kind":"tick","x":"a\\ud800b and more"}' % NOON,
    b'{"ts":%d,"kind":"tick","versions":{"MODEL_VER":"\\udc00"}}' % NOON,
    b'{"ts":%d,"kind":"tick","versions":{"MODEL_VER":"\xed\xa0\x80"}}' % NOON,
    b'{"ts":1e3,"kind":"tick"}',
    b'{"ts":1%s,"kind":"tick"}' % (b"0" * 400),
    b'{"ts":%d,"kind":"tick","cost":NaN}' % NOON,
    b'{"ts":%d,"kind":"tick","cost":-Infinity}' % NOON,
    b'{"ts":%d,"kind":"tick","cost":1e999}' % NOON,
    b'{"ts":%d,"kind":"tick",}' % NOON,
    b"{'ts':1}",
]
BAD: dict[str, list[Any]] = {
    "event_id": [..., None, "", 7],
    "labels_event_id": [..., None, "", 7],
    "ts": [..., None, -1, 2**53, 2**70, 1.5, "1", True],
    "kind": ["Request", "", 1],
    "flag": [..., None, "", 7],
    "arm": [..., None, "treatment", 0],
    "sticky_id": [..., None, "", ["s"]],
    "source": ["live", 0],
    "versions": [[], "m1", {"MODEL_VER": 1}, {"MODEL_VER": None}],
    "delta_s": [-0.001, 2.001, "0", True, 10**400],
    "coverage": [-1, 1.5, False],
    "paraphrase": [0, 4, 1.5],
    "seed": [0, 3, "1"],
    "latency_ms": [..., None, -1, "1", 10**400, 2e9],
    "status": [-1, "200", 200.5, 2**70],
    "error": ["no", 1],
    "tool_calls": [-1, 1.5],
    "tools": [{}, [{"args_hash": "h"}], ["t"]],
    "cost": [-0.1, "1"],
    "solved": [1, "yes"],
    "evaluated_by": ["browser"],
    "output_mode": ["partial"],
}


SCOPE = ("tenant", "region", "endpoint", "cohort", "surface")


def draw_event(rng: random.Random, number: int, clock: int) -> dict[str, Any]:
    """One event, at times one that breaks a rule."""
    fields = event(
        event_id=f"e{max(0, number - rng.randrange(1, 9)) if rng.random() < 0.2 else number}",
        ts=max(0, clock + rng.choice([0, 0, 0, 0, -1, -3_000, -9_000, -15_000, -25_000, 2_000, 9_000])),
        flag=rng.choice(["wide", "wide", "wide", "narrow", "narrow", "nobody's"]),
        arm=rng.choice(["baseline", "canary"]),
        sticky_id=f"s{rng.randrange(12)}é",
    )
    optional: dict[str, list[Any]] = {
        "kind": ["request", "request", "request", "exposure", "label"],
        "labels_event_id": [f"e{max(0, number - rng.randrange(9))}"],
        "tenant": ["acme", "beta", "beta", "gamma", None],
        "region": ["eu", "us", "us", "", None, "a|b"],
        "endpoint": ["/a", "/a", "/a", "/b"],
        "cohort": ["c1", "c1", "c1", "c2"],
        "surface": ["web", "web", "web", "app"],
        "source": ["traffic", "gold", "gold", "shadow", "warmup", None],
        "versions": [PINS, PINS | {"MODEL_VER": "m2"}, {"POLICY": "p1", "OTHER": "o", "UNSEEN": "u"}, {}, None],
        "delta_s": [0, 2, rng.random() * 2, -0.0, None],
        "coverage": [0, 1, rng.random(), None],
        "lambda_state": ["→", "->", "convergent", "←", "<-", "<>", "×", "x", "chaotic", "Convergent", "", None],
        "query_id": ["q1", "q2", "", None],
        "paraphrase": [1, 2, 3, None],
        "seed": [1, 2, None],
        "latency_ms": [0, rng.random() * 1000, 10**8, 5],
        "status": [200, 404, 429, 499, 500, 503, None],
        "error": [True, False, False],
        "rate_limited": [True, False, None],
        "attempts": [1, 3],
        "tool_calls": [0, 3, 5, 5, None],
        "tool_ok": [0, 0, 0, 0, 3, None],
        "tools": [[{"name": "t", "write": True}], []],
        "cost": [0, 0.1, rng.random(), 1e9, None],
        "solved": [True, False, None],
        "cache_hit": [True, None],
        "bucket": [0.5],
        "unheard_of": [{"a": [1, None, {"b": "}"}]}, 10**400, "}\n{", None],
        "partition": ["seven"],
    }
    if rng.random() < 0.1:
        optional["event_id"] = [None]
    often = 1.0 if fields["flag"] == "narrow" else 0.5
    for name, choices in optional.items():
        if rng.random() < (often if name in SCOPE else 0.5):
            fields[name] = rng.choice(choices)
    if rng.random() < 0.06:
        name = rng.choice(sorted(BAD))
        fields[name] = rng.choice(BAD[name])
    return {name: value for name, value in fields.items() if value is not ...}


def draw_record(rng: random.Random, number: int, clock: int) -> bytes | None:
    """One record's value, as several writers may spell it, and at times garbage."""
    kind = rng.random()
    if kind < 0.06:
        return rng.choice(GARBAGE)
    if kind < 0.1:
        return tick(clock + rng.choice([0, 0, -40_000, 5_000]))
    spelling: dict[str, Any] = rng.choice([{}, {}, {"ensure_ascii": False}, {"separators": (",", ":")}])
    if rng.random() < 0.05:
        spelling = {"indent": 1}
    text = json.dumps(draw_event(rng, number, clock), **spelling)
    return (rng.choice(["", "", "", "", "", "", " ", "\n"]) + text + rng.choice(["", "", "", "", "", "\n"])).encode()


def draw_log(seed: int, length: int) -> list[bytes | None]:
    """A log of one partition; a shorter one of the same seed is its beginning."""
    rng = random.Random(seed)
    clock, log = NOON, []
    for number in range(length):
        clock += rng.choice([0, 0, 100, 1_000, 3_000]) + (30_000 if rng.random() < 0.02 else 0)
        log.append(draw_record(rng, number, clock))
    return log


def draw_runs(rng: random.Random, log: list[bytes | None], stamps: list[int] | None = None) -> list[Run]:
    """A log cut into runs."""
    runs, at = [], 0
    while at < len(log):
        end = at + rng.choice([1, 2, 5, 30, 200])
        runs.append(Run(at, log[at:end], None if stamps is None else stamps[at:end]))
        at = end
    return runs
