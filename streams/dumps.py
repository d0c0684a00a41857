"""Dumps of topics: a record a line, or a row, as `tidegate export` writes them."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
from aiokafka import ConsumerRecord

from schemas.event import too_deep
from streams import parquet
from streams.replay import read_lines


class Recorded(Protocol):
    """What of a record its reader looks at."""

    @property
    def offset(self) -> int:
        """Its place in the partition."""

    @property
    def timestamp(self) -> int:
        """Its own time, ms."""

    @property
    def value(self) -> bytes | None:
        """Its content."""


class Dumped(NamedTuple):
    """A record of a dump."""

    partition: int
    offset: int
    timestamp: int
    value: bytes | None


def dump_line(record: ConsumerRecord, since: int | None = None) -> bytes:
    """A record as a line of a dump, which ``--events`` takes; a value that is no JSON object as a string.

    ``since``: the offset from which on the topic has nothing before the record, where that is not its own.
    """
    head: dict[str, Any] = {"partition": record.partition, "offset": record.offset, "timestamp": record.timestamp}
    if since is not None:
        head["since"] = since
    if record.key is not None:
        head["key"] = record.key.decode(errors="replace")
    if record.headers:
        head["headers"] = [[name, (value or b"").decode(errors="replace")] for name, value in record.headers]
    value = record.value
    if value is not None and not _is_text(value):
        # A JSON string cannot hold these bytes.
        head["value_base64"] = base64.b64encode(value).decode()
    text = msgspec.json.encode(head)
    return text[:-1] + b',"value":' + _embedded(value) + b"}"


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeError:
        return False
    return True


_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _embedded(value: bytes | None) -> bytes:
    if value is None:
        return b"null"
    plain = value[:1] == b"{" and value[-1:] == b"}" and b"\n" not in value and b"\r" not in value
    if plain and _is_text(value) and not too_deep(b"[" + value + b"]"):
        try:
            _object.decode(value)
            return value
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            pass
    return msgspec.json.encode(value.decode(errors="replace"))


class _Dumped(msgspec.Struct):
    partition: int
    offset: int
    value: msgspec.Raw
    value_base64: str | None = None
    timestamp: int = -1

    def content(self) -> bytes | None:
        if self.value_base64 is not None:
            return base64.b64decode(self.value_base64)
        value = bytes(self.value)
        if value[:1] == b'"':
            return msgspec.json.decode(value, type=str).encode()
        return None if value == b"null" else value


def undumped(line: bytes) -> bytes:
    """The value in a line of a dump; any other line as it is."""
    try:
        return msgspec.json.decode(line, type=_Dumped).content() or b""
    except (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError):
        return line


def is_dump(path: Path) -> bool:
    """Whether a file is a dump of a topic. Raises InputError if it cannot be read."""
    if path.suffix == parquet.SUFFIX:
        return True
    first = next(read_lines([path]), None)
    return first is not None and _dumped(first[2]) is not None


def records(path: Path) -> Iterator[Dumped]:
    """The records of a dump; lines that are none are passed over."""
    if path.suffix == parquet.SUFFIX:
        yield from (Dumped(*row[:4]) for row in parquet.read(path))
        return
    for *_, line in read_lines([path]):
        found = _dumped(line)
        if found is not None:
            yield found


def _dumped(line: bytes) -> Dumped | None:
    try:
        found = msgspec.json.decode(line, type=_Dumped)
        return Dumped(found.partition, found.offset, found.timestamp, found.content())
    except (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError):
        return None
