"""Spans made by OpenTelemetry's own SDK, in both forms in which a collector's Kafka exporter writes them."""

import json
from base64 import b64decode
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Tracer, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

PINS = {f"tidegate.{pin}": "1" for pin in ("PROMPT_VER", "INDEX_HASH", "RERANK_CONF", "TOK_VER", "ANALYZER_CONF")}
Given = dict[str, str | bool | int | float]


class Recorder:
    """A tracer, and the spans that it ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(resource=Resource.create({"cloud.region": "eu", **PINS}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer: Tracer = provider.get_tracer("tests")  # type: ignore[assignment]

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        """What has ended so far."""
        return self._exporter.get_finished_spans()

    def protobuf(self) -> bytes:
        """One record of the exporter's default encoding."""
        return bytes(encode_spans(self.spans).SerializeToString())

    def json(self) -> bytes:
        """The same in JSON: as protobuf's, but that ids are hexadecimal and enums numbers, as OTLP says."""
        message = MessageToDict(encode_spans(self.spans), use_integers_for_enums=True)
        return json.dumps(_with_ids(message)).encode()


def _with_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_ids(one) for one in value]
    if isinstance(value, dict):
        ids = ("traceId", "spanId", "parentSpanId")
        return {name: b64decode(one).hex() if name in ids else _with_ids(one) for name, one in value.items()}
    return value


def evaluation(user: str | None = "u1", variant: str | bool = "canary", flag: str = "f") -> Given:
    """The attributes with which OpenFeature's hook for OpenTelemetry tells of an evaluation."""
    attributes: Given = {"feature_flag.key": flag, "feature_flag.result.variant": variant}
    return attributes | ({"feature_flag.context.id": user} if user else {})


def score(name: str, **given: str | float) -> Given:
    """The attributes of an evaluation; ``given``: its score's value or label."""
    scores = {f"gen_ai.evaluation.score.{kind}": value for kind, value in given.items()}
    return {"gen_ai.evaluation.name": name} | scores


def chat(read: int = 1000, written: int = 100, model: str = "gpt-4o-2025") -> Given:
    """The attributes of a model's call."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": model,
        "gen_ai.usage.input_tokens": read,
        "gen_ai.usage.output_tokens": written,
    }
