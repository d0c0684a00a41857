"""Assign a sticky id to an arm, as every router and flag server has to."""

import hashlib
from typing import Literal


def bucket(flag: str, sticky_id: str) -> float:
    """Return where from 0 to 1 a sticky id lies for a flag: the first 8 bytes of SHA-256 of ``flag:sticky_id`` ÷ 2⁶⁴.

    An id keeps its bucket for good, so that a weight that rises moves ids to the canary only, and one that falls moves
    them back. Of two flags the buckets are independent.
    """
    return int.from_bytes(hashlib.sha256(f"{flag}:{sticky_id}".encode()).digest()[:8], "big") / 2**64


def arm(flag: str, sticky_id: str, weight: float) -> Literal["baseline", "canary"]:
    """Return the arm of a sticky id where the canary has ``weight``, its share of the ids from 0 to 1."""
    return "canary" if bucket(flag, sticky_id) < weight else "baseline"
