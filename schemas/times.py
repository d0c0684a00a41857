"""Moments of time as people write and read them; everywhere else one is a whole number of ms since the epoch."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from tidegate.schemas.document import quoted
from tidegate.schemas.duration import parse_duration
from tidegate.schemas.event import MAX_TS, MIN_TS

DAY = 86_400_000
"""ms."""
FORMS = "write 2026-01-31T12:00:00Z (UTC without a zone), 20260131, ms since the epoch, now, now-2h or now+10m"
TIME_FIELDS = frozenset({"ts", "start", "end", "decided_at", "effective_from", "changed_at", "corrected_at", "since"})
"""Fields of records that are moments, ms."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COMPACT_DATE = len("20260131")
_UNITS = ((1000, "seconds"), (1 / 1000, "microseconds"), (1 / 1_000_000, "nanoseconds"))
"""By how much a number in another unit has to be multiplied to be ms."""


class FromNow(int):
    """A moment that was given by its distance from now; whoever needs a whole pane may round it."""


def read_moment(text: str, now: int) -> int:
    """Return a moment of 2001 to 2099, ms; ``now``: the one that ``now`` stands for.

    Eight digits are a date, other digits ms. Raises ValueError, with the way out, for anything else.
    """
    ms: int
    relative = re.fullmatch(r"now(?:([+-])(.*))?", text, re.DOTALL)
    if relative:
        sign, length = relative.groups()
        ms = FromNow(now + (parse_duration(length) * (-1 if sign == "-" else 1) if sign else 0))
    else:
        ms = _absolute(text)
    if not MIN_TS <= ms <= MAX_TS:
        likely = next((unit for factor, unit in _UNITS if MIN_TS <= ms * factor <= MAX_TS), None)
        why = f"it looks like {likely}" if likely else FORMS
        raise ValueError(f"{quoted(text)} is outside 2001 to 2099; {why}")
    return ms


def _absolute(text: str) -> int:
    try:
        if text.isascii() and text.isdigit() and len(text) != _COMPACT_DATE:
            return int(text)
        at = datetime.fromisoformat(text)
        return ((at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        raise ValueError(f"{quoted(text)} is not a time; {FORMS}") from None


def iso(ts: int) -> str:
    """Return a moment in ISO 8601, to the second where it is a whole one; as it is where no calendar has it."""
    try:
        moment = _EPOCH + timedelta(milliseconds=ts)
    except OverflowError:
        return f"{ts} ms"
    return moment.isoformat(timespec="milliseconds" if ts % 1000 else "seconds").replace("+00:00", "Z")


def shaped(ts: int, shape: str) -> str:
    """Return a moment, UTC, in a shape of ``strftime``; as it is where no calendar has it."""
    try:
        return f"{_EPOCH + timedelta(milliseconds=ts):{shape}}"
    except OverflowError:
        return f"{ts} ms"


def clock(ts: int) -> str:
    """Return the time of day of a moment."""
    return shaped(ts, "%H:%M:%S")


def readable(value: Any, name: str = "") -> Any:
    """Return a JSON value of a record, with every moment in it in ISO 8601; ``name``: the field that it is in."""
    if isinstance(value, dict):
        return {key: readable(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [readable(inner) for inner in value]
    moment = name in TIME_FIELDS and isinstance(value, int) and not isinstance(value, bool)
    return iso(value) if moment else value
