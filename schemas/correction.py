"""Corrections: what a closed window's verdict would have been, had its late events come in time.

A correction changes nothing: no decision is rewritten, and no command follows.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tidegate.schemas.canonical import canonical, sha256_of
from tidegate.schemas.decision import (
    ArmSummary,
    Engine,
    GateResult,
    Problem,
    RuleResult,
    SourceRange,
    Span,
    Verdict,
    record_from_bytes,
)


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict with its reasons."""

    verdict: Verdict
    reasons: list[str]


class Correction(msgspec.Struct, frozen=True, kw_only=True):
    """A decision's window judged again with the events that came after their pane had closed.

    Topic ``tidegate.corrections``, keyed ``flag|region``.
    """

    schema: Literal["tidegate.correction/1"] = "tidegate.correction/1"
    correction_id: Annotated[str, Meta(description="over {decision_id, corrected_at}")] = ""
    flag: str
    region: Annotated[str, Meta(description="empty where the telemetry names none")]
    kind: Annotated[str, Meta(description="the flag's kind")]
    decision_id: Annotated[str, Meta(description="of the decision, which stands as it is")]
    decision_hash: Annotated[str, Meta(description="the decision's `hash`")]
    window: Annotated[Span, Meta(description="the decision's")]
    corrected_at: Annotated[int, Meta(description="event time, ms: the end of the pane that brought the late events")]
    said: Annotated[Said, Meta(description="as it was decided")]
    corrected: Annotated[Said, Meta(description="as it would have been decided")]
    late: Annotated[dict[str, int], Meta(description="late events of the window by arm; a repeat counts again")]
    left_out: Annotated[int, Meta(description="late events of the unit since, too many to be looked at")]
    gates: list[GateResult]
    abort_rules: list[RuleResult]
    evidence_problems: Annotated[list[Problem], Meta(description="of ids and regions as found when decided")]
    arms: dict[str, ArmSummary]
    source: list[SourceRange]
    manifest_hash: str
    engine: Engine
    hash: Annotated[str, Meta(description="over the record without this field")] = ""

    @property
    def key(self) -> str:
        """The record key: ``flag|region``."""
        return f"{self.flag}|{self.region}"

    def to_bytes(self) -> bytes:
        """Return the record's value."""
        return canonical(msgspec.to_builtins(self))


def seal_correction(correction: Correction) -> Correction:
    """Return the correction with its id and hash filled in."""
    identity = sha256_of({"decision_id": correction.decision_id, "corrected_at": correction.corrected_at})
    fields = msgspec.to_builtins(correction) | {"correction_id": identity}
    del fields["hash"]
    return msgspec.structs.replace(correction, correction_id=identity, hash=sha256_of(fields))


def correction_from_bytes(value: bytes) -> Correction:
    """Read a correction; unknown fields are passed over. Raises EventError if it is none."""
    return record_from_bytes(value, Correction)
