"""Logs in files: bare events or dumped records, as runs of each partition."""

import binascii
import re
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
from aiokafka.partitioner import murmur2

from tidegate.schemas.errors import InputError
from tidegate.schemas.event import Deleted, too_deep
from tidegate.schemas.operation import Operation, parse_operation
from tidegate.streams.dumps import parquet
from tidegate.streams.engine.runs import Run
from tidegate.streams.engine.source_partition import STEP
from tidegate.streams.files import open_log

PARTITIONS_MAX = 100_000
SCAN_BYTES = 1 << 20


class _Line(msgspec.Struct):
    """Fields that tell a record of a dump from a bare event, which may have fields of these names itself."""

    kind: msgspec.Raw = msgspec.Raw()
    sticky_id: msgspec.Raw = msgspec.Raw()
    partition: msgspec.Raw = msgspec.Raw()
    offset: msgspec.Raw = msgspec.Raw(b"null")
    timestamp: msgspec.Raw = msgspec.Raw(b"null")
    since: msgspec.Raw = msgspec.Raw(b"null")
    headers: msgspec.Raw = msgspec.Raw()
    end: msgspec.Raw = msgspec.Raw(b"null")
    value: msgspec.Raw = msgspec.Raw()
    value_base64: msgspec.Raw = msgspec.Raw(b"null")


_line = msgspec.json.Decoder(_Line)
_string = msgspec.json.Decoder(str)
_integer = msgspec.json.Decoder(int)
_maybe_string = msgspec.json.Decoder(str | None)
_maybe_integer = msgspec.json.Decoder(int | None)
_headers = msgspec.json.Decoder(list[tuple[str, str | None]])


class Record(msgspec.Struct, array_like=True):
    """One record of a file. ``offset`` None: the next one. ``timestamp`` -1: the file gives none.

    ``since``: the topic had no record from there on and before this one; None: nothing is said of that. ``headers``:
    names and values. ``end``: this is no record, but says that the topic had none from ``since`` to before this offset.
    """

    partition: int
    offset: int | None
    timestamp: int
    value: bytes | None
    since: int | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    end: int | None = None


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that Kafka's default partitioner gives a key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions) if partitions > 1 else 0


def read_record(line: bytes, partitions: int) -> list[Record]:
    """Return the record that a line stands for; a tick without a partition goes to every one of them.

    Raises InputError for a place or time that no record can have.
    """
    if too_deep(line):
        return [Record(0, None, -1, line)]
    try:
        head = _line.decode(line)
    except (msgspec.MsgspecError, UnicodeError):
        return [Record(0, None, -1, line)]
    if head.value and head.partition:
        with suppress(msgspec.MsgspecError, binascii.Error):
            return [_dumped(head)]
    if bytes(head.kind) == b'"tick"':
        return [Record(partition, None, -1, line) for partition in range(partitions)]
    try:
        return [Record(partition_of(_string.decode(head.sticky_id).encode(), partitions), None, -1, line)]
    except (msgspec.MsgspecError, UnicodeError):
        return [Record(0, None, -1, line)]


def _dumped(head: _Line) -> Record:
    partition = _integer.decode(head.partition)
    offset, stamp = _maybe_integer.decode(head.offset), _maybe_integer.decode(head.timestamp)
    since, end = _maybe_integer.decode(head.since), _maybe_integer.decode(head.end)
    if not 0 <= partition < PARTITIONS_MAX:
        raise InputError(f"partition {partition} is out of range")
    for name, number in (("offset", offset or 0), ("timestamp", stamp or 0)):
        if not -1 <= number < 1 << 62:
            raise InputError(f"{name} {number} is out of range")
    value: bytes | None = bytes(head.value)
    encoded = _maybe_string.decode(head.value_base64)
    if encoded is not None:
        # A JSON string holds text only.
        value = b64decode(encoded)
    elif value == b"null":
        value = None
    elif bytes(head.value)[:1] == b'"':
        # A dump writes a value that is no JSON object as a string.
        with suppress(msgspec.MsgspecError, UnicodeError):
            value = _string.decode(head.value).encode()
    return Record(partition, offset, -1 if stamp is None else stamp, value, since, _headers_of(head), end)


def _headers_of(head: _Line) -> Sequence[tuple[str, bytes]]:
    # Other tools' dumps may have something else under that name.
    with suppress(msgspec.MsgspecError, UnicodeError):
        if head.headers:
            return [(name, (text or "").encode()) for name, text in _headers.decode(head.headers)]
    return ()


def read_lines(
    paths: Sequence[Path], progress: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[Path, int, bytes]]:
    """Path, line number and content of every line that is not blank. Raises InputError for an unreadable file."""
    for path in paths:
        try:
            with open_log(path) as lines:
                for number, line in enumerate(lines, 1):
                    progress(len(line))
                    content = line.strip()
                    if content:
                        yield path, number, content
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def count_partitions(paths: Sequence[Path], least: int, progress: Callable[[int], None] = lambda _: None) -> int:
    """``least``, or more where a record of the files names a partition beyond it."""
    for path in paths:
        if parquet.is_parquet(path):
            least = max(least, 1 + max((partition for partition, *_ in parquet.read_rows(path)), default=0))
            continue
        for first, text in _blocks(path, progress):
            if _names_none_beyond(least, text):
                continue
            for number, line in enumerate(text.split(b"\n"), first):
                if _PARTITION in line:
                    least = max(least, *(record.partition + 1 for record in _record_at(path, number, line.strip(), 1)))
    return least


_PARTITION = b'"partition"'
_NUMBER = re.compile(rb"\s*:\s*(\d+)[\s,}]")
_NUMBER_BYTES = 12


def _names_none_beyond(partitions: int, text: bytes) -> bool:
    """Return whether it is plain to see that no record of these lines is of a partition from ``partitions`` on."""
    # The name of a field may itself be written with escapes, which of ASCII letters are these.
    if b"\\u00" in text:
        return False
    named = {behind[:_NUMBER_BYTES] for behind in text.split(_PARTITION)[1:]}
    numbers = [_NUMBER.match(behind) for behind in named]
    return all(number is not None and int(number[1]) < partitions for number in numbers)


def _blocks(path: Path, progress: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    """Yield whole lines of a file, many at once, each time with the number of the first."""
    number = 1
    try:
        with open_log(path) as file:
            while text := file.read(SCAN_BYTES) + file.readline():
                progress(len(text))
                yield number, text
                number += text.count(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _record_at(path: Path, number: int, line: bytes, partitions: int) -> list[Record]:
    try:
        return read_record(line, partitions)
    except InputError as error:
        raise InputError(f"{path}:{number}: {error}") from None


def read_records(
    path: Path,
    partitions: int = 1,
    progress: Callable[[int], None] = lambda _: None,
    *,
    headers: bool = False,
) -> Iterator[tuple[int, Record]]:
    """Line or row number, and record, of everything in a file: a dump in either form, or bare values a line each.

    ``headers``: also those of a Parquet file. Raises InputError, naming the file, if it cannot be read.
    """
    if parquet.is_parquet(path):
        for number, row in enumerate(parquet.read_rows(path, headers=headers), 1):
            yield number, Record(*row)
        return
    for _, number, line in read_lines([path], progress):
        # With one partition a bare event's place is known without a look into it.
        whole = partitions == 1 and b'"partition"' not in line
        for record in [Record(0, None, -1, line)] if whole else _record_at(path, number, line, partitions):
            yield number, record


def runs(
    paths: Sequence[Path], partitions: int, progress: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[int, Run]]:
    """Partition and run of everything in the files, each partition in order.

    What a worker lost is left out, where a tick in the files tells of it: nothing that was decided rests on it.

    Raises InputError for a file that cannot be read or that lacks records within a partition.
    """
    lost = deleted_unread(paths)
    waiting: dict[int, tuple[Run, list[bytes | None], list[int]]] = {}
    following: dict[int, int] = {}
    empty: dict[int, int] = {}
    for path in paths:
        for number, record in read_records(path, partitions, progress):
            if record.end is not None:
                if record.since is not None and record.since <= following.get(record.partition, -1):
                    empty[record.partition] = record.end
                continue
            partition, due = record.partition, following.get(record.partition)
            offset = due or 0 if record.offset is None else record.offset
            if due is not None and offset < due:
                continue
            since = gone = None
            if due is not None and (partition, due) in lost:
                since = lost[partition, due]
                if offset < since:
                    continue
                gone, due = due, since
            if due is not None and offset > due:
                since = offset if record.since is None else record.since
                known = max(due, empty.get(partition, due))
                if since > known:
                    raise InputError(
                        f"{path}:{number}: records {known} to {since - 1} of partition {partition} are missing; "
                        "give all files of the dump, in order"
                    )
                since = due
            if since is not None and partition in waiting:
                yield partition, waiting.pop(partition)[0]
            following[partition] = offset + 1
            if partition not in waiting:
                values, stamps = list[bytes | None](), list[int]()
                waiting[partition] = Run(offset, values, stamps, since, lost=gone), values, stamps
            _, values, stamps = waiting[partition]
            values.append(record.value)
            stamps.append(record.timestamp)
            if len(values) == STEP:
                yield partition, waiting.pop(partition)[0]
    for partition, (run, _, _) in sorted(waiting.items()):
        yield partition, run


_DELETED = b'"deleted_unread"'


class _Told(msgspec.Struct):
    kind: Literal["tick"]
    deleted_unread: Deleted


_told = msgspec.json.Decoder(_Told)


def deleted_unread(paths: Iterable[Path]) -> dict[tuple[int, int], int]:
    """Return the ranges that ticks in the files call deleted unread: (partition, first offset) to the one after.

    A worker that was killed before it saved where it went on said so again, of more.
    """
    found: dict[tuple[int, int], int] = {}
    for path in paths:
        for _, record in read_records(path) if _mentions(path, _DELETED) else ():
            if record.offset is None or record.value is None or _DELETED not in record.value:
                continue
            with suppress(msgspec.MsgspecError, UnicodeError):
                told = _told.decode(record.value).deleted_unread
                if told.first < told.next <= record.offset:
                    place = record.partition, told.first
                    found[place] = max(told.next, found.get(place, 0))
    return found


def _mentions(path: Path, text: bytes) -> bool:
    if parquet.is_parquet(path):
        return parquet.mentions(path, text)
    before = b""
    try:
        with open_log(path) as file:
            while block := file.read(SCAN_BYTES):
                if text in before + block:
                    return True
                before = block[1 - len(text) :]
    except (OSError, EOFError, zlib.error):
        pass  # Whoever reads the records says so.
    return False


def read_operations(path: Path) -> list[Operation]:
    """Return the operations of an NDJSON file. Raises InputError, naming file and line, for a line that is none."""
    found = []
    for _, number, line in read_lines([path]):
        try:
            found.append(parse_operation(line))
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    return found
