"""Dumps of topics: a record a line, or a row, as `tidegate export` writes them."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
from aiokafka import ConsumerRecord

from tidegate.schemas.event import too_deep
from tidegate.streams.dumps import parquet
from tidegate.streams.dumps.log import read_records


class RecordLike(Protocol):
    """The fields of a record that its reader looks at."""

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


class End(NamedTuple):
    """Stands behind the last record of a partition where the dump goes on to ``end`` without one.

    ``tidegate replay`` needs it where another dump follows: nothing is missing in between.
    """

    partition: int
    end: int
    offset: None = None
    timestamp: None = None
    key: None = None
    value: None = None
    headers: tuple[()] = ()


def dump_line(record: ConsumerRecord | End, since: int | None = None) -> bytes:
    """Return a record as a line of a dump, which ``--events`` takes; a value that is no JSON object as a string.

    ``since``: the offset from which on the topic has nothing before the record, where that is not its own.
    """
    if isinstance(record, End):
        return msgspec.json.encode({"partition": record.partition, "end": record.end, "since": since, "value": None})
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


def is_dump(path: Path) -> bool:
    """Tell whether a file is a dump of a topic. Raises InputError if it cannot be read."""
    if parquet.is_parquet(path):
        return True
    first = next(read_records(path), None)
    return first is not None and (first[1].offset is not None or first[1].end is not None)


def records(path: Path) -> Iterator[Dumped]:
    """Yield the records of a dump; lines that are not decisions are passed over."""
    for _, record in read_records(path):
        if record.offset is not None:
            yield Dumped(record.partition, record.offset, record.timestamp, record.value)


def values(path: Path) -> Iterator[bytes]:
    """Yield the values of a dump's records, or the lines of any other file; empty for a record without a value."""
    return (record.value or b"" for _, record in read_records(path) if record.end is None)
