"""The place in a log where signing began, found from the records' own signatures and times."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from tidegate.schemas.errors import SignatureError
from tidegate.schemas.seal import has_signature, verify_record
from tidegate.schemas.signed import TrustedKeys

SignedKind = Literal["decision", "command"]


class SignedRecord(NamedTuple):
    """A record and where it stands; ``timestamp``: its own, ms."""

    where: str
    kind: SignedKind
    partition: int
    timestamp: int
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class CheckedRecord(NamedTuple):
    """A record and what is wrong with its signature; ``before``: it is unsigned, from before signing began."""

    record: SignedRecord
    fault: str | None = None
    before: bool = False


def check(records: Iterable[SignedRecord], trusted: TrustedKeys, since: int | None) -> Iterator[CheckedRecord]:
    """Hold each record's signature against the trusted keys.

    ``since``: from the first record of a partition with this time, ms, or a later one, on, every one has to be signed.
    None: from the first that is. After that a record's time tells nothing: whoever adds one chooses it.
    """
    begun: set[tuple[SignedKind, int]] = set()
    for record in records:
        fault, log = None, (record.kind, record.partition)
        try:
            verify_record(record.value, record.headers, record.kind, trusted)
        except SignatureError as error:
            fault = str(error)
        if fault is None if since is None else record.timestamp >= since:
            begun.add(log)
        before = fault is not None and not has_signature(record.headers) and log not in begun
        yield CheckedRecord(record, None if before else fault, before)


class Beginning(NamedTuple):
    """The beginning of a log; ``before``: its records from before signing, ``first``: the first one that is signed.

    ``all_since``: a time, ms, from which on each partition that has a signed record is signed.
    """

    before: int
    first: SignedRecord | None
    all_since: int


def beginning(checked: Iterable[CheckedRecord]) -> Beginning:
    """Find where signing began, in records of all partitions."""
    before, firsts = 0, dict[tuple[SignedKind, int], SignedRecord]()
    for record, fault, unsigned in checked:
        before += unsigned
        if fault is None and not unsigned:
            firsts.setdefault((record.kind, record.partition), record)
    times = sorted(firsts.values(), key=lambda record: record.timestamp)
    return Beginning(before, times[0] if times else None, times[-1].timestamp if times else 0)
