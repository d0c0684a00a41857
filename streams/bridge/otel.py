"""Spans of OpenTelemetry as telemetry: a request is a span in which a feature flag was evaluated."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tidegate.schemas.document import quoted
from tidegate.schemas.errors import EventError
from tidegate.schemas.event import encode
from tidegate.streams.bridge.mapping import SpanMapping
from tidegate.streams.bridge.otlp import Attributes, OtelSpan, OtlpError, read_spans

log = logging.getLogger("tidegate.bridge")

INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
MODEL = ("gen_ai.response.model", "gen_ai.request.model")
SCORE, VALUE, LABEL = "gen_ai.evaluation.name", "gen_ai.evaluation.score.value", "gen_ai.evaluation.score.label"
NUMBERS = {"cost": float, "delta_s": float, "coverage": float, "status": int, "tool_calls": int, "tool_ok": int}
PASSED, FAILED = frozenset(("pass", "passed", "true", "yes", "solved")), frozenset(("fail", "failed", "false", "no"))
REASONS_MAX = 1000
NS_PER_MS = 1_000_000


class _Unmapped(Exception):
    """A span cannot become telemetry; the message is the reason, the same for all spans of the kind."""


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """A flag that was evaluated in a span: where it says so."""

    flag: str
    attributes: Attributes


class _Trace:
    """The spans of one record, by their places in their traces."""

    def __init__(self, spans: list[OtelSpan]) -> None:
        self.spans = spans
        self._by_id = {span.id: span for span in spans}
        self._children: dict[str, list[OtelSpan]] = {}
        for span in spans:
            if span.parent_id:
                self._children.setdefault(f"{span.trace_id}:{span.parent_id}", []).append(span)

    def upward(self, span: OtelSpan) -> Iterator[OtelSpan]:
        """Give a span, its parent and so on, as far as they are in the record."""
        seen: set[str] = set()
        found: OtelSpan | None = span
        while found is not None and found.id not in seen:
            seen.add(found.id)
            yield found
            found = self._by_id.get(f"{found.trace_id}:{found.parent_id}")

    def below(self, span: OtelSpan) -> Iterator[OtelSpan]:
        """Give a span and all that happened in it, in order."""
        seen, waiting = {span.id}, [span]
        while waiting:
            found = waiting.pop()
            yield found
            for child in reversed(self._children.get(found.id, ())):
                if child.id not in seen:
                    seen.add(child.id)
                    waiting.append(child)


class SpanBridge:
    """Turns records of spans into telemetry, counts what became of them, and says each reason once.

    ``mapped``: events by kind. ``unmapped``: spans, scores and records that became nothing, by reason.
    """

    def __init__(self, mapping: SpanMapping) -> None:
        self._mapping = mapping
        self.mapped: Counter[str] = Counter()
        self.unmapped: Counter[str] = Counter()

    def read(self, value: bytes | None, where: str = "") -> list[dict[str, Any]]:
        """Return the events of one record's spans; ``where`` names the record in the log."""
        try:
            trace = _Trace(read_spans(value))
        except OtlpError as error:
            self._count(str(error), where)
            return []
        events: list[dict[str, Any]] = []
        for span in trace.spans:
            for evaluation in self._requests(trace, span):
                try:
                    events.append(self._valid(self._request(trace, span, evaluation)))
                except _Unmapped as reason:
                    self._count(str(reason), f"{where}, span {span.id}")
            if not any(self._evaluations(one) for one in trace.upward(span)):
                self._count(f"no {self._named('flag')} in the span or around it", f"{where}, span {span.id}")
        events += self._labels(trace, where)
        self.mapped.update(event["kind"] for event in events)
        return events

    def _count(self, reason: str, where: str) -> None:
        if reason not in self.unmapped and len(self.unmapped) >= REASONS_MAX:
            reason = "other reasons"
        if not self.unmapped[reason]:
            log.warning("not mapped (said once): %s; first at %s", reason, where)
        self.unmapped[reason] += 1

    def _named(self, name: str) -> str:
        return " or ".join(self._mapping.fields.get(name) or [f"{name} in the mapping"])

    def _evaluations(self, span: OtelSpan) -> list[_Evaluation]:
        found = {}
        for attributes in (span.attributes, *(event for _, _, event in span.events)):
            flag = _first([attributes], self._mapping.fields.get("flag", ()))
            if flag is not None:
                found[str(flag)] = _Evaluation(str(flag), attributes)
        return list(found.values())

    def _requests(self, trace: _Trace, span: OtelSpan) -> list[_Evaluation]:
        """Return the flags of a span that none around it has: those are requests already."""
        around = {found.flag for outer in list(trace.upward(span))[1:] for found in self._evaluations(outer)}
        is_label = SCORE in span.attributes and bool(span.links)
        return [] if is_label else [found for found in self._evaluations(span) if found.flag not in around]

    def _common(self, trace: _Trace, span: OtelSpan, evaluation: _Evaluation) -> dict[str, Any]:
        """Return the fields that a request and its labels share."""
        mapping, inner = self._mapping, [one.attributes for one in trace.below(span)]
        places = [evaluation.attributes, *inner, span.resource]
        variant = _first(places[:2], mapping.variant)
        if variant is None:
            raise _Unmapped(f"flag {quoted(evaluation.flag)} has no {' or '.join(mapping.variant)}")
        arm = mapping.arm(variant)
        if arm is None:
            raise _Unmapped(f"flag {quoted(evaluation.flag)}: variant {quoted(str(variant))} is in no arm of `arms`")
        fields: dict[str, Any] = {"flag": evaluation.flag, "arm": arm}
        for name in ("sticky_id", "region", "tenant", "endpoint", "cohort", "surface", "source"):
            value = _first(places, mapping.fields.get(name, ()))
            if value is not None:
                fields[name] = str(value)
        if "sticky_id" not in fields:
            raise _Unmapped(f"flag {quoted(evaluation.flag)} has no {self._named('sticky_id')}")
        pins = {pin: _first(places, names) for pin, names in mapping.pins.items()}
        versions = {pin: str(value) for pin, value in pins.items() if value is not None}
        return fields | ({"versions": versions} if versions else {})

    def _request(self, trace: _Trace, span: OtelSpan, evaluation: _Evaluation) -> dict[str, Any]:
        event = {"event_id": span.id, "kind": "request", "ts": span.end_ns // NS_PER_MS}
        event |= self._common(trace, span, evaluation)
        event["latency_ms"] = (span.end_ns - span.start_ns) / NS_PER_MS
        spans = list(trace.below(span))
        tools = [one for one in spans if one.attributes.get("gen_ai.operation.name") == "execute_tool"]
        if tools:
            event |= {"tool_calls": len(tools), "tool_ok": sum(not one.failed for one in tools)}
        cost = self._cost(trace, span)
        if cost is not None:
            event["cost"] = cost
        places = [evaluation.attributes, *(one.attributes for one in spans[:1])]
        for name in ("status", "cost", "solved", "tool_calls", "tool_ok"):
            value = _first(places, self._mapping.fields.get(name, ()))
            if value is not None:
                event[name] = _typed(name, value)
        if span.failed or "status" not in event:
            event["error"] = span.failed
        return event

    def _cost(self, trace: _Trace, span: OtelSpan) -> float | None:
        """Return the cost of a request's tokens; None where no span has any, or a model has no price.

        A span's usage is that of the spans in it, if they have any.
        """
        counted = []
        for one in trace.below(span):
            usage = _usage(one)
            if usage and not any(_usage(inner) for inner in list(trace.below(one))[1:]):
                counted.append((one, *usage))
        total = 0.0
        for one, read, written in counted:
            model = str(_first([one.attributes], MODEL))
            prices = self._mapping.price(model)
            if prices is None:
                self._count(f"tokens of model {quoted(model)}: `prices` has no such model", f"span {one.id}")
                return None
            total += (read * prices.input + written * prices.output) / 1e6
        return total if counted else None

    def _labels(self, trace: _Trace, where: str) -> list[dict[str, Any]]:
        """Make one label of each request from the scores in and below its span, or in a span that links to it."""
        labels: dict[tuple[str, str], dict[str, Any]] = {}
        for span in trace.spans:
            for ts_ns, attributes in _scores(span):
                try:
                    name, value = self._score(attributes)
                    owners = [(one, found) for one in trace.upward(span) for found in self._evaluations(one)]
                    if not owners:
                        raise _Unmapped("an evaluation score without a feature flag in the span or around it")
                    # The outermost span of a flag is its request.
                    for flag, (owner, found) in {found.flag: (one, found) for one, found in owners}.items():
                        linked = span.links and SCORE in span.attributes
                        of = ":".join(span.links[0]) if linked else owner.id
                        label = labels.get((of, flag))
                        if label is None:
                            label = {"event_id": f"{of}:{span.id}", "kind": "label", "labels_event_id": of}
                            label |= {"ts": 0} | self._common(trace, owner, found)
                        label[name] = value
                        label["ts"] = max(label["ts"], ts_ns // NS_PER_MS)
                        labels[of, flag] = label
                except _Unmapped as reason:
                    self._count(str(reason), f"{where}, span {span.id}")
        valid = []
        for label in labels.values():
            try:
                valid.append(self._valid(label))
            except _Unmapped as reason:
                self._count(str(reason), where)
        return valid

    def _score(self, attributes: Attributes) -> tuple[str, Any]:
        score = str(attributes[SCORE])
        field = self._mapping.scores.get(score)
        if field is None:
            raise _Unmapped(f"evaluation {quoted(score)} is not in `scores`")
        value, text = attributes.get(VALUE), attributes.get(LABEL)
        if field == "lambda_state" and text is not None:
            return field, str(text)
        if field == "solved" and str(text).lower() in PASSED | FAILED:
            return field, str(text).lower() in PASSED
        if value is None or field == "lambda_state":
            raise _Unmapped(f"evaluation {quoted(score)} has no score that `{field}` can take")
        return field, (_typed("delta_s", value) >= 0.5 if field == "solved" else _typed(field, value))

    def _valid(self, event: dict[str, Any]) -> dict[str, Any]:
        try:
            encode(event)
        except EventError as error:
            raise _Unmapped(f"telemetry would refuse it: {error}") from None
        return event


def _first(places: list[Attributes], names: Any) -> Any:
    return next((place[name] for name in names for place in places if place.get(name) is not None), None)


def _usage(span: OtelSpan) -> tuple[float, float] | None:
    read, written = (_first([span.attributes], names) for names in (INPUT, OUTPUT))
    if read is None and written is None:
        return None
    return _typed("cost", read or 0), _typed("cost", written or 0)


def _scores(span: OtelSpan) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if SCORE in span.attributes:
        yield span.end_ns, span.attributes
    for _, ts_ns, attributes in span.events:
        if SCORE in attributes:
            yield ts_ns or span.end_ns, attributes


def _typed(name: str, value: Any) -> Any:
    """Return a value as its field takes it. Raises _Unmapped."""
    try:
        if name == "solved":
            return value if isinstance(value, bool) else str(value).lower() in PASSED
        return NUMBERS[name](value)
    except (TypeError, ValueError, OverflowError):
        raise _Unmapped(f"`{name}` is not a number: {quoted(str(value))}") from None
