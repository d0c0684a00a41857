"""States and closed panes as bytes that say which layout they have, so that no version misreads another's.

A field that one version adds is passed over by the other, or filled with a default, where nothing says so.
"""

from enum import Enum
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import msgspec

from tidegate.gates.codec import StateCodec
from tidegate.gates.sums import COUNTERS
from tidegate.schemas.errors import StateError

_T = TypeVar("_T")

MARK = b"\xc1"
"""Begins no MessagePack, and so nothing that was written without a stamp."""
LAYOUT_BYTES = 6


def _version() -> str:
    try:
        return version("tidegate")
    except PackageNotFoundError:  # run from its source, not installed
        return "unknown"


VERSION = _version()


def layout_of(kind: Any) -> bytes:
    """Return the names and types of all that a kind of state holds, in order, as a hash."""
    # Counters are told apart by their place alone.
    text = repr((_described(msgspec.inspect.type_info(kind), set()), COUNTERS))
    return sha256(text.encode()).digest()[:LAYOUT_BYTES]


def _described(part: Any, met: set[type]) -> Any:
    """Names and types in order; a struct that was met before, or holds itself, by name alone."""
    match part:
        case msgspec.inspect.Field():
            return part.encode_name, _described(part.type, met)
        case msgspec.inspect.StructType() if part.cls in met:
            return part.cls.__qualname__
        case msgspec.inspect.Type():
            if isinstance(part, msgspec.inspect.StructType):
                met.add(part.cls)
            values = (getattr(part, name) for name in part.__struct_fields__)
            return type(part).__name__, *(_described(value, met) for value in values if value is not None)
        case type():
            members = [(one.name, one.value) for one in part] if issubclass(part, Enum) else []
            return part.__qualname__, *members
        case tuple() | list():
            return [_described(one, met) for one in part]
        case _:
            return repr(part)


class StampedCodec(StateCodec[_T]):
    """A state's bytes after a stamp: its layout, and the version of Tidegate that wrote it.

    ``of``: the state, where ``kind`` is what ``in_parts`` made of it.
    """

    def __init__(self, kind: type[_T], of: Any = None) -> None:
        super().__init__(kind)
        self._layout = layout_of(of or kind)
        by = VERSION.encode()
        self._stamp = MARK + self._layout + bytes([len(by)]) + by

    def dump(self, state: _T) -> bytes:
        """Return the stamp and the state's bytes."""
        return self._stamp + super().dump(state)

    def load(self, blob: bytes | msgspec.Raw) -> _T:
        """Read the state back; StateError, with the way out, if the bytes are no such state or of another layout."""
        blob = bytes(blob)
        start = len(self._stamp) if blob.startswith(self._stamp) else self.begins(blob)
        try:
            return super().load(memoryview(blob)[start:])  # type: ignore[arg-type]  # any buffer will do
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            raise StateError(f"{error}; start a new TIDEGATE_APPLICATION_ID") from None

    def begins(self, blob: bytes) -> int:
        """Find where the state begins, after the stamp. StateError, which says what to do, if it has another layout."""
        if not blob.startswith(MARK):
            raise StateError(_told("an earlier version", "that version"))
        end = 1 + LAYOUT_BYTES
        start = end + 1 + blob[end] if len(blob) > end else len(blob)
        by = blob[end + 1 : start].decode(errors="replace")
        if blob[1:end] != self._layout:
            raise StateError(_told("another build" if by == VERSION else f"version {by}", "that one"))
        return start


def _told(writer: str, again: str) -> str:
    return (
        f"written by {writer} of Tidegate, which lays it out differently from this one ({VERSION}); "
        f"start workers of {again} again, or start a new TIDEGATE_APPLICATION_ID"
    )
