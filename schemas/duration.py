"""Lengths of time as manifests and settings write them, apart from both: a service reads settings and no manifest."""

import re

from pydantic_core import PydanticCustomError

from tidegate.schemas.document import kind_of

MAX_DURATION_MS = 366 * 86_400_000
UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def fault(problem: str, fix: str, *at: str | int) -> PydanticCustomError:
    """Return a refusal at ``at`` below the value under validation; a ValueError, ``problem; fix``."""
    context = {"problem": problem, "fix": fix, "at": list(at)}
    return PydanticCustomError("manifest", "{problem}; {fix}", context)


def parse_duration(text: object) -> int:
    """Return the milliseconds in ``500ms``, ``90s``, ``15m``, ``1h`` or ``1d``, up to 366 days.

    Raises ValueError with the way out; a bare number is refused because it does not say its unit.
    """
    match = re.fullmatch(r"([0-9]{1,15})(ms|s|m|h|d)", text) if isinstance(text, str) else None
    if match is None:
        bare = not isinstance(text, bool) and re.fullmatch(r"[0-9]{1,15}", str(text))
        example = f"{text}s" if bare else "90s, 15m or 1h"
        fix = f"write a whole number with a unit, such as {example}"
        raise fault(f"{kind_of(text)} is not a duration", fix)
    length = int(match[1]) * UNIT_MS[match[2]]
    if length > MAX_DURATION_MS:
        raise fault(f"{text} is longer than 366 days", "write a shorter duration")
    return length
