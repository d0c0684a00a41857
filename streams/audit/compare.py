"""Differences of two records of the same place, in the words of the record: which gate, number and offsets."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from tidegate.schemas.document import quoted
from tidegate.schemas.errors import InputError
from tidegate.schemas.times import readable
from tidegate.streams.report.text import many

FOLLOWS = ("hash", "previous_hash", "decision_id", "command_id", "decision_hash", "correction_id")
"""Fields that differ because others do, or because an earlier record did."""
KEYED_BY = ("gate", "kind", "problem", "code", "partition")
"""Fields that tell the entries of a list apart."""
CAUSE_FIELDS = (
    "verdict",
    "action",
    "reasons",
    "gates",
    "abort_rules",
    "evidence_problems",
    "weights",
    "source",
    "arms",
)
"""Fields that are reported first, as the others follow from them."""
DIFFERENCES_TOLD = 4


def describe_differences(one: bytes, other: bytes) -> str:
    """Describe the differences of two JSON objects, as `` in `` field by field; empty if only the spelling differs."""
    a, b = msgspec.json.decode(one), msgspec.json.decode(other)
    found = [(path, here, there) for path, here, there in _walk(a, b, ()) if path[0] not in FOLLOWS]
    if not found:
        names = [name for name in FOLLOWS if a.get(name) != b.get(name)]
        return f" in {', '.join(names)} alone: an earlier record differs" if names else ""
    found.sort(
        key=lambda change: CAUSE_FIELDS.index(change[0][0]) if change[0][0] in CAUSE_FIELDS else len(CAUSE_FIELDS)
    )
    said = [
        f"{' '.join(path)} {_shown(readable(here, path[-1]))} here, {_shown(readable(there, path[-1]))} there"
        for path, here, there in found[:DIFFERENCES_TOLD]
    ]
    more = f"; and {len(found) - DIFFERENCES_TOLD} more" if len(found) > DIFFERENCES_TOLD else ""
    return " in " + "; ".join(said) + more


def _walk(one: Any, other: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if one == other:
        return
    if isinstance(one, list) and isinstance(other, list):
        named = _named(one), _named(other)
        if named[0] is not None and named[1] is not None:
            one, other = named
    if isinstance(one, dict) and isinstance(other, dict):
        for name in [*one, *(name for name in other if name not in one)]:
            yield from _walk(one.get(name), other.get(name), (*path, name))
        return
    yield path, one, other


def _named(entries: list[Any]) -> dict[str, Any] | None:
    """Return the entries of a list by what they are called; None if that does not tell them apart."""
    for key in KEYED_BY:
        if entries and all(isinstance(entry, dict) and key in entry for entry in entries):
            prefix = f"{key} " if key == "partition" else ""
            found = {f"{prefix}{entry[key]}": entry for entry in entries}
            return found if len(found) == len(entries) else None
    return {} if not entries else None


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return quoted(value)
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."


def by_unit(records: Iterable[bytes]) -> dict[str, list[bytes]]:
    """Records in order by ``flag|region``, repeats dropped. Raises InputError for a line that is no record."""
    units: dict[str, list[bytes]] = {}
    known: set[bytes] = set()
    for record in records:
        try:
            key = msgspec.json.decode(record, type=_Key)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise InputError(f"not a decision or command: {error}") from None
        if record not in known:
            known.add(record)
            units.setdefault(f"{key.flag}|{key.region}", []).append(record)
    return units


class _Key(msgspec.Struct):
    flag: str
    region: str


def first_difference(new: Iterable[bytes], old: Iterable[bytes]) -> str | None:
    """Describe the first difference of two sets of records, unit by unit and byte by byte; None if there is none."""
    ours, theirs = by_unit(new), by_unit(old)
    for unit in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(unit, []), theirs.get(unit, [])
        for index, (a, b) in enumerate(zip(one, other, strict=False), 1):
            if a != b:
                return f"{unit}: record {index} differs{describe_differences(a, b)}"
        if len(one) != len(other):
            return f"{unit}: {many(len(one), 'record')} here, {len(other)} in the other file"
    return None
