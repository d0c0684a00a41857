"""Operations: what an operator orders for a flag, in every region at once."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tidegate.schemas.canonical import canonical
from tidegate.schemas.decision import OperationBy
from tidegate.schemas.errors import InputError, Refusal
from tidegate.schemas.event import FUTURE_MS
from tidegate.schemas.signed import DOCUMENT_BYTES_MAX, TrustedKeys, open_signed

_Name = Annotated[str, Meta(min_length=1, max_length=1024)]


OperationKind = Literal["kill", "rearm", "pause", "resume", "promote"]


class Operation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator's order for a flag: a kill, a rearm, a pause, a resume or a promote.

    Topic ``tidegate.operations``, as the payload of a signed document; also a line of a replay's operations file.
    """

    actor: Annotated[_Name, Meta(description="who")]
    flag: _Name
    kind: Annotated[
        OperationKind,
        Meta(
            description="kill: canary 0; rearm: the first stage again; pause: no promotes until resume; "
            "promote: to the next stage"
        ),
    ]
    reason: Annotated[_Name, Meta(description="why")]
    ts: Annotated[int, Meta(ge=0, le=2**53 - 1, description="when it was ordered, ms")]

    @property
    def by(self) -> OperationBy:
        """The operation as a decision shows it."""
        return OperationBy(kind=self.kind, ts=self.ts, actor=self.actor, reason=self.reason)

    def to_bytes(self) -> bytes:
        """Return the payload. Raises ValueError for text that is no Unicode."""
        return canonical(msgspec.to_builtins(self))


_decoder = msgspec.json.Decoder(Operation)


def parse_operation(text: bytes | str) -> Operation:
    """Read the JSON of an operation. Raises InputError, naming the field, if it is none."""
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InputError(f"not an operation: {error}") from None


def read_operation(document: bytes | None, deployment: str, trusted: TrustedKeys | None) -> Operation:
    """Return the operation in a record's value; ``trusted`` None: bare JSON is taken, and nothing else.

    ``deployment``: the one that it has to be signed for.

    Raises Refusal, SignatureError included, with the reason.
    """
    if trusted is not None:
        payload, _ = open_signed(document, "operation", deployment, trusted)
    elif document is None or len(document) > DOCUMENT_BYTES_MAX:
        raise Refusal("not an operation: empty or too large")
    else:
        payload = document
    try:
        return parse_operation(payload)
    except InputError as error:
        raise Refusal(str(error)) from None


def check_time(operation: Operation, timestamp: int, max_age_ms: int) -> None:
    """Refuse an operation whose ``ts`` does not fit its record's own ``timestamp``, ms.

    It may be no more ahead than telemetry may, and no older than ``max_age_ms``: an old one that is written again is
    nobody's order of today. Nothing here asks what time it is, so a replay refuses the same ones.
    """
    ahead = operation.ts - timestamp
    if -ahead > max_age_ms:
        raise Refusal(
            f"it was ordered {-ahead / 3_600_000:.1f} h before it was written, more than {max_age_ms / 3_600_000:g} h "
            "(TIDEGATE_OPERATION_MAX_AGE); order it again"
        )
    if ahead > FUTURE_MS:
        raise Refusal(f"its ts is {ahead / 1000:.0f} s ahead of its record: set the clock of the machine it came from")
