"""Spans of one Kafka record as an OpenTelemetry collector writes it: OTLP in protobuf or in JSON."""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tidegate.schemas.errors import InputError

Attributes = Mapping[str, Any]
ERROR = (2, "STATUS_CODE_ERROR")


class OtlpError(InputError):
    """A record is not OTLP traces."""


@dataclass(frozen=True, slots=True)
class OtelSpan:
    """One span. Ids are hexadecimal; times are in nanoseconds; ``links`` are (trace id, span id)."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: Attributes
    resource: Attributes
    events: tuple[tuple[str, int, Attributes], ...] = ()
    links: tuple[tuple[str, str], ...] = field(default=())

    @property
    def id(self) -> str:
        """The id that its event gets."""
        return f"{self.trace_id}:{self.span_id}"


def read_spans(value: bytes | None) -> list[OtelSpan]:
    """Read a record's spans, in either form. Raises OtlpError."""
    if not value:
        raise OtlpError("the record is empty")
    # No protobuf message of traces begins so.
    return _from_json(value) if value.lstrip()[:1] == b"{" else _from_protobuf(value)


def _from_json(value: bytes) -> list[OtelSpan]:
    try:
        return [
            _json_span(span, _json_attributes(resource.get("resource", {}).get("attributes")))
            for resource in json.loads(value)["resourceSpans"]
            for scope in resource.get("scopeSpans", ())
            for span in scope.get("spans", ())
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise OtlpError(f"not OTLP traces in JSON: {type(error).__name__}: {str(error)[:100]}") from None


def _json_span(span: dict[str, Any], resource: Attributes) -> OtelSpan:
    return OtelSpan(
        trace_id=span["traceId"].lower(),
        span_id=span["spanId"].lower(),
        parent_id=span.get("parentSpanId", "").lower(),
        name=span.get("name", ""),
        start_ns=int(span["startTimeUnixNano"]),
        end_ns=int(span["endTimeUnixNano"]),
        failed=span.get("status", {}).get("code") in ERROR,
        attributes=_json_attributes(span.get("attributes")),
        resource=resource,
        events=tuple(
            (event.get("name", ""), int(event.get("timeUnixNano", 0)), _json_attributes(event.get("attributes")))
            for event in span.get("events", ())
        ),
        links=tuple((link["traceId"].lower(), link["spanId"].lower()) for link in span.get("links", ())),
    )


def _json_attributes(given: list[dict[str, Any]] | None) -> Attributes:
    return {one["key"]: _json_value(one.get("value", {})) for one in given or ()}


def _json_value(value: dict[str, Any]) -> Any:
    for kind, content in value.items():
        match kind:
            case "intValue":
                return int(content)
            case "doubleValue":
                return float(content)
            case "arrayValue":
                return [_json_value(one) for one in content.get("values", ())]
            case "kvlistValue":
                return _json_attributes(content.get("values"))
            case _:
                return content
    return None


def _from_protobuf(value: bytes) -> list[OtelSpan]:
    try:
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
    except ImportError:
        raise InputError("OTLP in protobuf needs opentelemetry-proto: pip install 'tidegate[otel]'") from None
    try:
        return list(_protobuf_spans(TracesData.FromString(value)))
    except (DecodeError, UnicodeError) as error:
        raise OtlpError(f"not OTLP traces in protobuf: {error}") from None


def _protobuf_spans(traces: Any) -> Iterator[OtelSpan]:
    for given in traces.resource_spans:
        resource = _attributes(given.resource.attributes)
        for scope in given.scope_spans:
            for span in scope.spans:
                yield OtelSpan(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    name=span.name,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    failed=span.status.code in ERROR,
                    attributes=_attributes(span.attributes),
                    resource=resource,
                    events=tuple((one.name, one.time_unix_nano, _attributes(one.attributes)) for one in span.events),
                    links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                )


def _attributes(given: Any) -> Attributes:
    return {one.key: _value(one.value) for one in given}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    match kind:
        case None:
            return None
        case "array_value":
            return [_value(one) for one in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case "bytes_value":
            return b64encode(value.bytes_value).decode()
    return getattr(value, kind)
