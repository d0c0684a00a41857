"""Spans become telemetry, whatever form they come in; what does not is counted and said once."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace

from tests.streams.bridge.spans import Recorder, chat, evaluation, score
from tidegate.schemas.errors import InputError
from tidegate.schemas.event import PINS, encode
from tidegate.streams.bridge.mapping import load_mapping
from tidegate.streams.bridge.otel import SpanBridge

TOOL = {"gen_ai.operation.name": "execute_tool"}
PRICES = "prices: {gpt-4: {input: 100, output: 100}, gpt-4o: {input: 2.5, output: 10}}"


@pytest.fixture
def made() -> Recorder:
    return Recorder()


def bridge(folder: Path, text: str = PRICES) -> SpanBridge:
    (folder / "mapping.yml").write_text(text)
    return SpanBridge(load_mapping(folder / "mapping.yml"))


def served(made: Recorder, **changes: Any) -> None:
    """A request as an instrumented service makes it: the evaluation is an event of the server's span."""
    with made.tracer.start_as_current_span("POST /ask") as span:
        span.set_attributes({"http.route": "/ask", "http.response.status_code": 200})
        span.add_event("feature_flag.evaluation", evaluation(**changes))
        with made.tracer.start_as_current_span("chat gpt-4o") as call:
            time.sleep(0.01)
            call.set_attributes(chat())


@pytest.mark.parametrize("form", ["protobuf", "json"])
def test_a_request_has_all_that_its_spans_say(form: str, made: Recorder, tmp_path: Path) -> None:
    """Id, time, latency, arm, pins and cost; of the span, of those in it and of the resource."""
    served(made)
    value = made.protobuf() if form == "protobuf" else made.json()
    (event,) = bridge(tmp_path).read(value)
    outer = made.spans[-1]
    assert outer.context is not None
    assert outer.end_time is not None
    assert event["event_id"] == f"{outer.context.trace_id:032x}:{outer.context.span_id:016x}"
    assert event["ts"] == outer.end_time // 1_000_000
    assert event["latency_ms"] >= 10
    assert (event["flag"], event["arm"], event["sticky_id"], event["region"]) == ("f", "canary", "u1", "eu")
    assert (event["endpoint"], event["status"], "error" in event) == ("/ask", 200, False)
    assert event["versions"] == dict.fromkeys(PINS, "1") | {"MODEL_VER": "gpt-4o-2025"}
    assert event["cost"] == pytest.approx((1000 * 2.5 + 100 * 10) / 1e6)
    encode(event)


def test_both_forms_give_the_same_events(made: Recorder, tmp_path: Path) -> None:
    for n in range(5):
        served(made, user=f"u{n}", variant="canary" if n % 2 else "baseline")
    assert bridge(tmp_path).read(made.json()) == bridge(tmp_path).read(made.protobuf())


def test_a_flag_among_a_spans_own_attributes_counts_too(made: Recorder, tmp_path: Path) -> None:
    with made.tracer.start_as_current_span("chat", attributes=evaluation() | chat()):
        pass
    (event,) = bridge(tmp_path).read(made.protobuf())
    assert (event["arm"], event["error"]) == ("canary", False)
    assert event["cost"] == pytest.approx(0.0035)


def test_a_span_that_failed_is_an_error(made: Recorder, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), made.tracer.start_as_current_span("ask", attributes=evaluation()):
        raise RuntimeError
    (event,) = bridge(tmp_path).read(made.protobuf())
    assert event["error"] is True


@pytest.mark.parametrize(
    ("variant", "arm"),
    [("baseline", "baseline"), ("Control", "baseline"), (False, "baseline"), (True, "canary"), ("on", "canary")],
)
def test_variants_name_arms(variant: str | bool, arm: str, made: Recorder, tmp_path: Path) -> None:
    served(made, variant=variant)
    assert bridge(tmp_path).read(made.protobuf())[0]["arm"] == arm


def test_evaluations_of_one_flag_within_each_other_are_one_request(made: Recorder, tmp_path: Path) -> None:
    """Each layer may ask for the flag again; another flag has its own event of the same span."""
    with made.tracer.start_as_current_span("outer", attributes=evaluation()) as outer:
        outer.add_event("feature_flag.evaluation", evaluation(flag="g", variant="off"))
        with made.tracer.start_as_current_span("inner", attributes=evaluation()):
            pass
    events = bridge(tmp_path).read(made.protobuf())
    assert [(event["flag"], event["arm"]) for event in events] == [("f", "canary"), ("g", "baseline")]
    assert len({event["event_id"] for event in events}) == 1


def test_usage_of_an_agent_is_that_of_its_calls(made: Recorder, tmp_path: Path) -> None:
    """Which it repeats as a sum; tools are counted, those that failed too."""
    with made.tracer.start_as_current_span("invoke_agent", attributes=evaluation() | chat(2000, 200)):
        for _ in range(2):
            with made.tracer.start_as_current_span("chat", attributes=chat()):
                pass
        for failed in (False, True):
            with made.tracer.start_as_current_span(
                "tool", attributes={"gen_ai.operation.name": "execute_tool"}
            ) as tool:
                if failed:
                    tool.set_status(trace.StatusCode.ERROR)
    (event,) = bridge(tmp_path).read(made.protobuf())
    assert event["cost"] == pytest.approx(0.007)
    assert (event["tool_calls"], event["tool_ok"]) == (2, 1)


def test_scores_in_a_request_are_one_label_of_it(made: Recorder, tmp_path: Path) -> None:
    with made.tracer.start_as_current_span("ask", attributes=evaluation()) as span:
        for name, value in (("delta_s", 0.02), ("coverage", 0.8)):
            span.add_event("gen_ai.evaluation.result", score(name, value=value))
        span.add_event("gen_ai.evaluation.result", score("solved", label="pass"))
    request, label = bridge(tmp_path).read(made.protobuf())
    assert (label["kind"], label["labels_event_id"]) == ("label", request["event_id"])
    assert (label["delta_s"], label["coverage"], label["solved"]) == (0.02, 0.8, True)
    assert all(label[name] == request[name] for name in ("flag", "arm", "sticky_id", "region", "versions"))


def test_an_evaluator_that_comes_later_links_to_the_request(made: Recorder, tmp_path: Path) -> None:
    """Its span is no request of its own, and may come in another record."""
    with made.tracer.start_as_current_span("ask", attributes=evaluation()) as asked:
        pass
    later = Recorder()
    links = [trace.Link(asked.get_span_context())]
    attributes = evaluation() | score("coverage", value=0.5)
    with later.tracer.start_as_current_span("evaluate", attributes=attributes, links=links):
        pass
    bridged = bridge(tmp_path)
    (request,), (label,) = bridged.read(made.protobuf()), bridged.read(later.json())
    assert (label["kind"], label["labels_event_id"], label["coverage"]) == ("label", request["event_id"], 0.5)
    assert bridged.mapped == {"request": 1, "label": 1}


def test_what_cannot_be_mapped_is_counted_and_said_once_with_the_reason(
    made: Recorder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bridged = bridge(tmp_path)
    for _ in range(2):
        served(made, variant="purple")
        served(made, user=None)
        with made.tracer.start_as_current_span("nobody's"):
            pass
        with made.tracer.start_as_current_span("ask", attributes=evaluation()) as span:
            span.add_event("gen_ai.evaluation.result", score("humour"))
            with made.tracer.start_as_current_span("chat", attributes=chat(model="unheard-of")):
                pass
    with caplog.at_level(logging.WARNING, "tidegate.bridge"):
        assert len(bridged.read(made.protobuf(), "otlp_spans-0 offset 7")) == 2
        assert bridged.read(b"{}") == bridged.read(b"\xff\xff") == bridged.read(None) == []
    reasons = [
        'variant "purple" is in no arm',
        'flag "f" has no feature_flag.context.id or user.id',
        "no feature_flag.key in the span or around it",
        'evaluation "humour" is not in `scores`',
        'model "unheard-of"',
    ]
    for reason in reasons:
        (count,) = [count for said, count in bridged.unmapped.items() if reason in said]
        assert count == 2, reason
        (line,) = [line for line in caplog.messages if reason in line]
        assert "said once" in line
    assert bridged.unmapped.total() == 2 * len(reasons) + 3
    assert any("otlp_spans-0 offset 7, span " in line for line in caplog.messages)


def test_what_telemetry_would_refuse_is_not_published(made: Recorder, tmp_path: Path) -> None:
    with made.tracer.start_as_current_span("ask", attributes=evaluation() | {"tidegate.source": "dream"}):
        pass
    bridged = bridge(tmp_path)
    assert bridged.read(made.protobuf()) == []
    assert any("telemetry would refuse it" in reason and "dream" in reason for reason in bridged.unmapped)


def test_a_mapping_of_ones_own_replaces_the_keys_that_it_has(made: Recorder, tmp_path: Path) -> None:
    with made.tracer.start_as_current_span(
        "ask", attributes=evaluation(variant="v2") | {"who": "w1", "tokenizer": "t9"}
    ):
        pass
    text = "{fields: {sticky_id: [who]}, arms: {canary: [v2]}, pins: {TOK_VER: [tokenizer]}}"
    (event,) = bridge(tmp_path, text).read(made.protobuf())
    assert (event["arm"], event["sticky_id"], event["region"]) == ("canary", "w1", "eu")
    assert (event["versions"]["TOK_VER"], event["versions"]["PROMPT_VER"]) == ("t9", "1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{feilds: {}}", "feilds"),
        ("{fields: {stick_id: [a]}}", "did you mean `sticky_id`"),
        ("{arms: {blue: [a]}}", "arms"),
        ("{prices: {m: {input: -1, output: 1}}}", "prices"),
        ("[1]", "mapping"),
        ("{", "YAML"),
    ],
)
def test_a_wrong_mapping_is_one_line_that_names_the_place(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        bridge(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'mapping.yml'}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["resourceSpans", "scopeSpans", "spans", "resource", "attributes", "key", "value", "traceId"]
            ),
            inner,
            max_size=4,
        )
    ),
)


_JSON = st.dictionaries(st.just("resourceSpans"), _VALUES, min_size=1).map(lambda value: json.dumps(value).encode())


@given(st.binary() | _JSON)
def test_no_record_stops_the_bridge(value: bytes) -> None:
    bridged = SpanBridge(load_mapping())
    assert bridged.read(value) == []
