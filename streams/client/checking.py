"""Checks before an event leaves a service: what would be dead-lettered is refused, what would be ignored is told."""

import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from tidegate.schemas.document import quoted
from tidegate.schemas.errors import EventError
from tidegate.schemas.event import TelemetryEvent, encode, parse

log = logging.getLogger("tidegate.publisher")

EVENT_FIELDS = frozenset(TelemetryEvent.__struct_fields__)
COMPLAINTS_MAX = 100
"""Lines about wrong events after which there are no more: what is wrong with them may be different each time."""


@dataclass(frozen=True, slots=True)
class CheckedEvent:
    """A valid event as it is sent. ``key`` None: it goes to every partition."""

    event: TelemetryEvent
    key: bytes | None
    value: bytes


def unknown_fields(names: Iterable[str]) -> list[str]:
    """Return a line for each name that is not a field of telemetry, with the field that it is like."""
    lines = []
    for name in sorted(str(name) for name in set(names) - EVENT_FIELDS):
        near = get_close_matches(name, sorted(EVENT_FIELDS), 1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        lines.append(f"{quoted(name)} is not a field of telemetry{hint}")
    return lines


class Checker:
    """Judges events, and logs each kind of fault once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def check(self, event: TelemetryEvent | Mapping[str, Any]) -> CheckedEvent:
        """Return the event as it is sent. Raises EventError, or whatever a value that is no event leads to."""
        value = encode(event)
        # As the broker will stamp it: a `ts` in other units than ms lies far in the future.
        checked = parse(value, timestamp=int(time.time() * 1000))
        if isinstance(event, Mapping) and not event.keys() <= EVENT_FIELDS:
            for line in unknown_fields(event):
                self._say(line, "telemetry goes without a field: %s (said once)", line)
        key = None if checked.kind == "tick" or checked.sticky_id is None else checked.sticky_id.encode()
        return CheckedEvent(checked, key, value)

    def complain(self, error: BaseException) -> None:
        """Log the first error of each field, or of each kind."""
        text = str(error)
        field = re.search(r"`\$\.(\w+)", text) or re.search(r"`(\w+)`", text)
        about = field[1] if field and isinstance(error, EventError) else type(error).__name__
        self._say(about, "telemetry is not published (said once for `%s`): %s", about, text)

    def _say(self, about: str, line: str, *values: object) -> None:
        if about not in self._said and len(self._said) < COMPLAINTS_MAX:
            self._said.add(about)
            log.warning(line, *values)
