"""Signed documents: manifest revisions and operations, alike in files and in records.

The first line is ``tidegate-signed/2 KIND DEPLOYMENT KEY_ID SIGNATURE``, the rest is the payload. The Ed25519
signature covers ``tidegate-signed/2 KIND DEPLOYMENT`` and the payload, so a document of one kind can never be taken for
another, nor one of a deployment for another's. A deployment is ``TOPIC_PREFIX/APPLICATION_ID``. A key's id is the first
16 hexadecimal digits of the SHA-256 of its 32 public bytes.
"""

import hashlib
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tidegate.schemas.errors import InputError, SignatureError

DocumentKind = Literal["manifest", "operation"]
PrivateKey = Ed25519PrivateKey
TrustedKeys = Mapping[str, Ed25519PublicKey]
"""Public keys by key id."""

_FORM = b"tidegate-signed/2"
_ANY_FORM = b"tidegate-signed/"
DOCUMENT_BYTES_MAX = 1 << 20


def key_id(key: Ed25519PublicKey) -> str:
    """Return the id under which a public key is trusted."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def is_signed(document: bytes) -> bool:
    """Tell whether a document claims to be signed, without verifying it."""
    return document.startswith(_ANY_FORM)


def sign(kind: DocumentKind, deployment: str, payload: bytes, key: PrivateKey) -> bytes:
    """Return the signed document, for one ``deployment``. Raises SignatureError if it is larger than 1 MiB."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+", deployment):
        raise SignatureError(
            f"nothing can be signed for {ascii(deployment)[1:-1]}: TIDEGATE_TOPIC_PREFIX and TIDEGATE_APPLICATION_ID "
            "are made of letters, digits, `.`, `_` and `-`"
        )
    signature = b64encode(key.sign(_covered(kind, deployment, payload)))
    words = _FORM, kind.encode(), deployment.encode(), key_id(key.public_key()).encode(), signature
    document = b" ".join(words) + b"\n" + payload
    if len(document) > DOCUMENT_BYTES_MAX:
        raise SignatureError(
            f"{len(document)} bytes are more than a signed document may have, {DOCUMENT_BYTES_MAX}; shorten it"
        )
    return document


def open_signed(document: bytes | None, kind: DocumentKind, deployment: str, trusted: TrustedKeys) -> tuple[bytes, str]:
    """Payload and key id of a document that one of the ``trusted`` keys signed as this ``kind`` for ``deployment``.

    The payload is not looked at before the signature holds. Raises SignatureError, with the way out, for anything else.
    """
    if document is None or len(document) > DOCUMENT_BYTES_MAX:
        size = "is empty" if document is None else f"has {len(document)} bytes, more than {DOCUMENT_BYTES_MAX}"
        raise SignatureError(f"the document {size}; sign it again")
    head, newline, payload = document.partition(b"\n")
    words = head.split(b" ")
    if words[0] != _FORM and is_signed(document):
        raise SignatureError("signed by another version, which did not name the deployment it is for; sign it again")
    if not newline or len(words) != 5 or words[0] != _FORM:
        raise SignatureError("not a signed document; sign it with `tidegate sign`")
    if words[1] != kind.encode():
        raise SignatureError(f"signed as {_shown(words[1])}, not as {kind}; give a document of the right kind")
    if words[2] != deployment.encode():
        raise SignatureError(
            f"signed for the deployment {_shown(words[2])}, and this is {deployment} "
            "(TIDEGATE_TOPIC_PREFIX/TIDEGATE_APPLICATION_ID); sign it for this one"
        )
    key = trusted.get(words[3].decode("latin-1"))
    if key is None:
        known = ", ".join(sorted(trusted)) or "none"
        raise SignatureError(
            f"signed with the key {_shown(words[3])}, which is not trusted (trusted: {known}); "
            "sign with a trusted key or add its line to the trusted keys"
        )
    try:
        signature = b64decode(words[4], validate=True)
        # Base64 has several spellings for the same bytes; only one is taken.
        if b64encode(signature) != words[4]:
            raise ValueError
        key.verify(signature, _covered(kind, deployment, payload))
    except (ValueError, InvalidSignature):
        raise SignatureError("the signature does not fit: the document was changed or cut; sign it again") from None
    return payload, words[3].decode()


def _covered(kind: str, deployment: str, payload: bytes) -> bytes:
    return b"%s %s %s\n%s" % (_FORM, kind.encode(), deployment.encode(), payload)


def _shown(word: bytes) -> str:
    return ascii(word[:80].decode("latin-1"))[1:-1] or "nothing"


def public_line(key: Ed25519PublicKey, comment: str = "") -> str:
    """Return the line that makes a key trusted: its id, its 32 bytes in base64, and a comment."""
    return f"{key_id(key)} {b64encode(key.public_bytes_raw()).decode()} {comment}".rstrip()


def read_trusted(text: str, name: str = "trusted keys") -> dict[str, Ed25519PublicKey]:
    """Return the keys of a file of public lines; blank lines and those that begin with # are passed over.

    Raises InputError, naming the line, for one that is none, and for a file without any.
    """
    keys: dict[str, Ed25519PublicKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(maxsplit=2)
        if not words or words[0].startswith("#"):
            continue
        try:
            key = Ed25519PublicKey.from_public_bytes(b64decode(words[1], validate=True))
        except (IndexError, ValueError, UnsupportedAlgorithm):
            raise InputError(f"{name}:{number}: no public key; copy the line that `tidegate keygen` printed") from None
        if key_id(key) != words[0]:
            raise InputError(
                f"{name}:{number}: the key's id is {key_id(key)}, not {words[0][:40]}; copy the whole line"
            )
        keys[words[0]] = key
    if not keys:
        raise InputError(f"{name}: no key in it; add the line that `tidegate keygen` printed")
    return keys


def private_pem(key: PrivateKey) -> bytes:
    """Return a private key as PEM (PKCS 8), not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_private(pem: bytes, name: str = "key") -> PrivateKey:
    """Return the private key of a PEM file. Raises InputError if it holds no Ed25519 key, or an encrypted one."""
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{name}: no Ed25519 private key (PEM, not encrypted); make one with `tidegate keygen`")
    return key
