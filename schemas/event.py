"""One telemetry event: what a service says about one request, one assignment, or the time.

The struct is the single definition. The worker's column decoder derives its lean wire struct from it, the
publisher validates with it, and the JSON Schema is generated from it. ``parse`` is the only judge of validity.
"""

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tidegate.schemas.errors import EventError

PINS = ("MODEL_VER", "PROMPT_VER", "INDEX_HASH", "RERANK_CONF", "TOK_VER", "ANALYZER_CONF")
"""The six version pins every request should carry."""

CONVERGENT = frozenset(("→", "->", "convergent"))
KNOWN_LAMBDA = CONVERGENT | {"←", "<-", "divergent", "<>", "recursive", "×", "x", "chaotic"}

MIN_TS, MAX_TS = 978_307_200_000, 4_102_444_799_999
"""2001-01-01 to the end of 2099, ms: seconds and microseconds of these years lie outside."""
TOLERANCE = 1e-6
"""ΔS and coverage may lie this far outside their range, by rounding: they are taken as its end."""
MAX_COST = MAX_LATENCY = 1e9
MAX_DEPTH = 512
"""Deepest nesting of a record: well below where any Python version's decoder gives up, so that all agree."""
MAX_BYTES = 8 << 20
"""Largest record that is decoded: one that came compressed may be a thousand times as large as what was fetched."""
FUTURE_MS = 60_000
"""``ts`` may lie this far ahead of the record's own timestamp."""

TEXT_MAX = 1024
Name = Annotated[str, Meta(min_length=1, max_length=TEXT_MAX)]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Version = Annotated[str, Meta(max_length=512)]
Versions = Annotated[dict[Version, Version], Meta(max_length=64, description="the six pins and any other version")]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
PARAPHRASES, SEEDS = 3, 2
"""Of one λ group: each paraphrase is asked with each seed, both counted from 1."""
ArmName = Literal["baseline", "canary"]


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a tool inside a request."""

    name: str
    args_hash: str | None = None
    idempotency_key: str | None = None
    effect_id: str | None = None
    write: bool | None = None


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """Records of one partition that its topic deleted before a worker had read them: ``first`` to before ``next``."""

    first: Annotated[int, Meta(ge=0, description="offset of the first one")]
    next: Annotated[int, Meta(ge=1, description="offset from which on the worker read again")]


class TelemetryEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One record of the telemetry topic, keyed by ``sticky_id``; ``null`` means absent."""

    ts: Annotated[int, Meta(ge=MIN_TS, le=MAX_TS, description="event time, ms since the epoch, UTC; 2001 to 2099")]
    kind: Annotated[
        Literal["request", "exposure", "label", "tick"] | None,
        Meta(
            description="default request; exposure: an assignment was made; label: an evaluator's word on an earlier "
            "request; tick: only moves the watermark"
        ),
    ] = "request"
    event_id: Annotated[Name | None, Meta(description="unique per event; required but for ticks and labels")] = None
    labels_event_id: Annotated[
        Name | None,
        Meta(
            description="required for labels, beside `flag`, `arm` and `sticky_id`: the request that ΔS, coverage, λ "
            "or solved are of; the running stage has to have seen it, or `versions` to be its arm's pins"
        ),
    ] = None
    flag: Annotated[Name | None, Meta(description="required but for ticks")] = None
    arm: Annotated[ArmName | None, Meta(description="required but for ticks")] = None
    sticky_id: Annotated[
        Name | None,
        Meta(description="what the assignment sticks to; record key; required but for ticks"),
    ] = None
    tenant: str | None = None
    region: Annotated[str, Meta(max_length=TEXT_MAX, description="default: the empty region")] | None = None
    endpoint: str | None = None
    cohort: str | None = None
    surface: str | None = None
    source: Annotated[
        Literal["traffic", "gold", "shadow", "warmup"] | None,
        Meta(description="default traffic; shadow: mirrored, not served; warmup: counts for nothing"),
    ] = None
    versions: Versions | None = None
    delta_s: (
        Annotated[
            float,
            Meta(ge=-TOLERANCE, le=2 + TOLERANCE, description="1 - cosine(answer, anchor), 0 to 2"),
        ]
        | None
    ) = None
    coverage: (
        Annotated[
            float,
            Meta(ge=-TOLERANCE, le=1 + TOLERANCE, description="share of the target section retrieved, 0 to 1"),
        ]
        | None
    ) = None
    lambda_state: Annotated[
        str | None, Meta(description="→ ← <> ×, -> <- x, or the words; anything else counts as ×")
    ] = None
    query_id: Annotated[str | None, Meta(description="probe tag: with paraphrase and seed, one λ run")] = None
    paraphrase: Annotated[int, Meta(ge=1, le=PARAPHRASES)] | None = None
    seed: Annotated[int, Meta(ge=1, le=SEEDS)] | None = None
    latency_ms: (
        Annotated[float, Meta(ge=0, le=MAX_LATENCY, description="required for requests; failed ones count too")] | None
    ) = None
    error: Annotated[bool | None, Meta(description="error or status is required for requests")] = None
    status: Annotated[Count | None, Meta(description="HTTP status; >= 500 or a final 429 is an error")] = None
    attempts: Count | None = None
    rate_limited: Annotated[bool | None, Meta(description="a 429 was met, even if retried to success")] = None
    tool_calls: Count | None = None
    tool_ok: Annotated[Count | None, Meta(description="at most tool_calls")] = None
    tools: list[ToolCall] | None = None
    cost: Annotated[float, Meta(ge=0, le=MAX_COST)] | None = None
    solved: bool | None = None
    cache_namespace: Text | None = None
    cache_hit: bool | None = None
    assignment_key: str | None = None
    bucket: Annotated[float, Meta(ge=0, le=1)] | None = None
    evaluated_by: Literal["server", "client"] | None = None
    manifest_hash: Text | None = None
    applied_seq: Count | None = None
    reason_status: Literal["ok", "failed"] | None = None
    output_mode: Literal["full", "cite_only"] | None = None
    deleted_unread: Annotated[
        Deleted | None,
        Meta(
            description="of a worker's tick: what its partition lost to retention before it was read, and an "
            "operator let the worker go on without; a replay of files that still have it leaves it out too"
        ),
    ] = None


_decoder = msgspec.json.Decoder(TelemetryEvent)
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
LONG = 1 << 16
_UP_OR_DOWN = bytes.maketrans(b"{[}]", b"\1\1\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"{[}]"))


def too_deep(value: bytes) -> bool:
    """Tell whether JSON is nested deeper than ``MAX_DEPTH``."""
    if len(value) < 2 * MAX_DEPTH or value.count(b"{") + value.count(b"[") <= MAX_DEPTH:
        return False
    # The same record is asked about again for its error and for its unit.
    return _long_deep(value) if len(value) > LONG else _deep(value)


def _deep(value: bytes) -> bool:
    # A record may be a million brackets or quotes, so nothing is done in Python for each of them.
    outside = _ESCAPED.sub(b"", value).split(b'"')[::2]
    brackets = b"".join(outside).translate(_UP_OR_DOWN, _NO_BRACKETS)
    depth = 0
    for at in range(0, len(brackets), LONG):
        part = memoryview(brackets[at : at + LONG]).cast("b")
        if max(accumulate(part, initial=depth)) > MAX_DEPTH:
            return True
        depth += sum(part)
    return False


_long_deep = lru_cache(1)(_deep)


def not_read(value: bytes) -> str | None:
    """Why a record is not even decoded; None if it is."""
    if len(value) > MAX_BYTES:
        return f"{len(value)} bytes are more than an event may have, {MAX_BYTES}"
    return f"JSON is nested deeper than {MAX_DEPTH} levels" if too_deep(value) else None


def _shortened(error: Exception) -> str:
    """Shorten the decoder's message: it shows wrong values whole, with the field's name after them."""
    text = str(error)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-99:]}"


class _Time(msgspec.Struct):
    ts: int | float


_time = msgspec.json.Decoder(_Time)
_UNITS = ((1e-3, "seconds"), (1e3, "microseconds"), (1e6, "nanoseconds"))


def _unit_of_ts(value: bytes) -> str | None:
    """Describe a record's time that is a number in another unit than milliseconds; None if it is not."""
    try:
        ts = _time.decode(value).ts
    except (msgspec.MsgspecError, UnicodeError):
        return None
    for factor, unit in _UNITS:
        if MIN_TS * factor <= ts <= MAX_TS * factor:
            return f"`ts` looks like {unit}: {ts}; write milliseconds since the epoch"
    return None


def _settled(event: TelemetryEvent) -> TelemetryEvent:
    """Return the event with its default kind, and with ΔS and coverage inside their ranges."""
    changes: dict[str, Any] = {}
    if event.kind is None:
        changes["kind"] = "request"
    for name, most in (("delta_s", 2.0), ("coverage", 1.0)):
        number = getattr(event, name)
        if number is not None and not 0 <= number <= most:
            changes[name] = min(max(number, 0.0), most)
    return msgspec.structs.replace(event, **changes) if changes else event


def _fault(event: TelemetryEvent) -> str | None:
    """Return the first rule across fields that the event breaks."""
    if event.kind == "tick":
        return None
    name = "labels_event_id" if event.kind == "label" else "event_id"
    for field in (name, "flag", "arm", "sticky_id"):
        if getattr(event, field) is None:
            return f"`{field}` is required for kind `{event.kind}`"
    if event.kind == "request":
        if event.latency_ms is None:
            return "`latency_ms` is required for kind `request`"
        if event.error is None and event.status is None:
            return "`error` or `status` is required for kind `request`"
    if (event.tool_ok or 0) > (event.tool_calls or 0):
        return "`tool_ok` is larger than `tool_calls`"
    return None


def parse(value: bytes | None, timestamp: int | None = None) -> TelemetryEvent:
    """Decode one record's value and check everything that can be checked on it alone.

    ``timestamp`` is the record's own timestamp in ms, None where there is none (then a ``ts`` in the future
    is not noticed). Raises EventError, whose message names the field.
    """
    if value is None:
        raise EventError("not JSON: the record has no value")
    unread = not_read(value)
    if unread is not None:
        raise EventError(unread)
    try:
        event = _decoder.decode(value)
        # Lone surrogates decode but cannot be written as UTF-8 again.
        msgspec.json.encode(event)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise EventError(_unit_of_ts(value) or _shortened(error)) from None
    event = _settled(event)
    fault = _fault(event)
    if fault:
        raise EventError(fault)
    if timestamp is not None and event.ts > timestamp + FUTURE_MS:
        raise EventError(f"future_timestamp: `ts` is {event.ts - timestamp} ms ahead of the record's timestamp")
    return event


def encode(event: TelemetryEvent | Mapping[str, Any]) -> bytes:
    """Return the record value for an event, or for a mapping of its fields.

    Raises EventError with the name of the field if the event would be dead-lettered.
    """
    fields = msgspec.structs.asdict(event) if isinstance(event, TelemetryEvent) else dict(event)
    for name, number in fields.items():
        if isinstance(number, float) and not math.isfinite(number):
            raise EventError(f"`{name}` is not finite")
    try:
        if not isinstance(event, TelemetryEvent):
            event = msgspec.convert(fields, TelemetryEvent)
        value = msgspec.json.encode(event)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise EventError(_shortened(error)) from None
    parse(value)
    return value
