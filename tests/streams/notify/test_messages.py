"""What receivers get, by the words of the standards that they read it by."""

import json
from datetime import UTC, datetime

import msgspec
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from standardwebhooks.webhooks import Webhook

from tests.streams.play import play
from tidegate.streams.notify.messages import Message, cloud_event, signed, slack

ABORT = next(one for one in play("errors").decisions if one.verdict == "abort")


def test_an_event_has_what_cloudevents_asks_for_and_the_whole_decision() -> None:
    message = cloud_event(ABORT, ABORT.to_bytes(), "tidegate:tidegate")
    sent = json.loads(message.body)
    assert message.headers["content-type"] == "application/cloudevents+json"
    assert sent["data"] == json.loads(ABORT.to_bytes())
    assert sent.pop("data")["decision_id"] == sent["id"] == message.id == ABORT.decision_id
    assert sent == {
        "specversion": "1.0",
        "id": ABORT.decision_id,
        "source": "urn:tidegate:tidegate:tidegate",
        "type": "tidegate.decision",
        "subject": ABORT.key,
        "time": datetime.fromtimestamp(ABORT.decided_at / 1000, UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "verdict": "abort",
    }
    assert from_structured_event(HTTPMessage(dict(message.headers), message.body)).get_id() == ABORT.decision_id


def test_the_signature_is_that_of_the_standards_own_example() -> None:
    """Secret, id, time and body as Standard Webhooks has them."""
    message = Message("msg_p5jXN8AQM9LWM0D4loKWxJek", {"content-type": "x"}, b'{"test": 2432232314}')
    headers = signed(
        message, [Webhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")], datetime.fromtimestamp(1614265330, UTC)
    )
    assert headers == {
        "content-type": "x",
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_with_two_secrets_either_receiver_takes_it() -> None:
    """While one is replaced by the other."""
    message = cloud_event(ABORT, ABORT.to_bytes(), "d")
    secrets = [Webhook("whsec_" + letter * 32) for letter in "ab"]
    headers = signed(message, secrets, datetime.now(UTC))
    for one in secrets:
        one.verify(message.body, headers)


def test_slack_is_told_the_verdict_with_its_cause_and_how_to_ask_for_more() -> None:
    message = slack(ABORT)
    sent = json.loads(message.body)
    assert "prompt_pack_vNplus1 / us-east-1: abort: error_rate_over" in sent["text"]
    section, context = sent["blocks"]
    assert section["text"]["text"].startswith("*prompt_pack_vNplus1 / us-east-1*  abort: error_rate_over")
    assert f"`tidegate explain {ABORT.decision_id[7:15]}`" in context["elements"][0]["text"]


def test_a_hostile_name_calls_no_channel_and_makes_no_link() -> None:
    hostile = msgspec.structs.replace(ABORT, flag="<!channel>", region="<http://x|y>&\n\x1b[2J")
    text = slack(hostile).body.decode()
    assert "<" not in text
    assert "&lt;!channel&gt;" in text
    assert json.loads(text)["text"].isprintable()
