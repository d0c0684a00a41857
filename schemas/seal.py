"""Signatures of decisions and commands, in the headers of their records.

The value stays what it is without one, so that a replay gives the same bytes. The Ed25519 signature covers
``tidegate-record/1``, the kind of record and the value, a line each: a decision can never be taken for a command, nor
a record for a signed document.
"""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Literal

from cryptography.exceptions import InvalidSignature

from tidegate.schemas.document import quoted
from tidegate.schemas.errors import SignatureError
from tidegate.schemas.signed import PrivateKey, TrustedKeys, key_id

RecordKind = Literal["decision", "command", "correction"]
Headers = Sequence[tuple[str, bytes]]
"""Headers of a Kafka record: names may repeat."""

SIGNATURE = "tidegate.signature"
KEY = "tidegate.key"
_RECORD_FORM = b"tidegate-record/1"


def sign_record(value: bytes, kind: RecordKind, key: PrivateKey) -> list[tuple[str, bytes]]:
    """Return the headers that sign a record: its signature in base64, and the id of the key."""
    signature = b64encode(key.sign(_covered(kind, value)))
    return [(SIGNATURE, signature), (KEY, key_id(key.public_key()).encode())]


def has_signature(headers: Headers) -> bool:
    """Tell whether a record has a signature, valid or not."""
    return any(name in (SIGNATURE, KEY) for name, _ in headers)


def verify_record(value: bytes | None, headers: Headers, kind: RecordKind, trusted: TrustedKeys) -> str:
    """Return the id of the trusted key that signed a record as this ``kind``; the value is not looked into.

    Raises SignatureError where there is none, or more than one signature.
    """
    signatures = [content for name, content in headers if name == SIGNATURE]
    names = [content for name, content in headers if name == KEY]
    if value is None or not has_signature(headers):
        raise SignatureError("not signed")
    if len(signatures) != 1 or len(names) != 1:
        raise SignatureError(f"{len(signatures)} signatures and {len(names)} key ids, where one of each belongs")
    name = (names[0] or b"").decode("latin-1")
    key = trusted.get(name)
    if key is None:
        known = ", ".join(sorted(trusted)) or "none"
        raise SignatureError(f"signed with the key {quoted(name)}, which is not trusted (trusted: {known})")
    try:
        signature = b64decode(signatures[0] or b"", validate=True)
        # Base64 has several spellings for the same bytes; only one is taken.
        if b64encode(signature) != signatures[0]:
            raise ValueError
        key.verify(signature, _covered(kind, value))
    except (ValueError, InvalidSignature):
        raise SignatureError(f"not what the key {name} signed as a {kind}") from None
    return name


def _covered(kind: RecordKind, value: bytes) -> bytes:
    return b"%s\n%s\n%s" % (_RECORD_FORM, kind.encode(), value)
