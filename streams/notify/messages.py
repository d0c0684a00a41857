"""Messages to receivers: a CloudEvent with the whole decision, or a line for Slack."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from cloudevents.core.bindings.http import to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from standardwebhooks.webhooks import Webhook

from tidegate.schemas.decision import Decision
from tidegate.schemas.times import iso
from tidegate.streams.report.board import cause_in_short, short_id
from tidegate.streams.report.text import plain

TYPE = "tidegate.decision"


class Message(NamedTuple):
    """One decision, ready to be sent as often as it takes. ``id``: the same each time."""

    id: str
    headers: Mapping[str, str]
    body: bytes


def cloud_event(decision: Decision, value: bytes, deployment: str) -> Message:
    """Return a CloudEvents 1.0 event in structured mode; ``value``: the record, whose every field is in ``data``."""
    event = CloudEvent(
        {
            "id": decision.decision_id,
            "source": f"urn:tidegate:{deployment}",
            "type": TYPE,
            "specversion": "1.0",
            "subject": decision.key,
            "time": datetime.fromtimestamp(decision.decided_at / 1000, UTC),
            "datacontenttype": "application/json",
            "verdict": decision.verdict,
        },
        json.loads(value),
    )
    sent = to_structured(event, JSONFormat())
    return Message(decision.decision_id, sent.headers, sent.body)


def slack(decision: Decision) -> Message:
    """Return a message for a Slack incoming webhook: the verdict with its cause, in one line."""
    unit = plain(decision.flag) + (f" / {plain(decision.region)}" if decision.region else "")
    weight = f"stage {decision.stage.index}, canary {100 * decision.stage.canary_weight:.4g} %"
    said = f"{decision.verdict}: {cause_in_short(decision)}" if decision.reasons else decision.verdict
    text = f"*{_escaped(unit)}*  {_escaped(said)}"
    detail = f"{iso(decision.decided_at)}, {weight}, `tidegate explain {short_id(decision)}`"
    body = {
        "text": f"{_escaped(unit)}: {_escaped(said)}",
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": text[:3000]}},
            {"type": "context", "elements": [{"type": "mrkdwn", "text": _escaped(detail)}]},
        ],
    }
    return Message(decision.decision_id, {"content-type": "application/json"}, json.dumps(body).encode())


def _escaped(text: str) -> str:
    """Slack's three: nothing in a flag's name becomes a link, or calls a whole channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def signed(message: Message, signers: Sequence[Webhook], now: datetime) -> dict[str, str]:
    """Return the headers of one attempt, by Standard Webhooks: id, time, and a signature for each secret."""
    if not signers:
        return dict(message.headers)
    body = message.body.decode()
    return {
        **message.headers,
        "webhook-id": message.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signer.sign(message.id, now, body) for signer in signers),
    }
