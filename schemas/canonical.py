"""Canonical JSON (RFC 8785) and the SHA-256 over it: the form behind every record, id and hash."""

import hashlib
from typing import Any

import rfc8785


def canonical(obj: Any) -> bytes:
    """Return the RFC 8785 bytes of a JSON value made of builtins: ``1.0`` is ``1``, keys sorted, UTF-8.

    Raises ValueError for what it cannot carry: NaN, infinities, integers beyond 2**53 - 1, lone
    surrogates.
    """
    return rfc8785.dumps(obj)


def sha256_of(obj: Any) -> str:
    """``sha256:`` and the hex SHA-256 over the canonical bytes of ``obj``."""
    return "sha256:" + hashlib.sha256(canonical(obj)).hexdigest()
