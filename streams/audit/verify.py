"""A check that decisions and commands are still what was once written, from the records alone.

What they cannot tell is that records are missing at the end: compare a unit's last hash with one that is known.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from tidegate.schemas.errors import EventError
from tidegate.streams.audit.chain import Chain, ChainFault, FaultKind, Link, Placed, Torn, read_link, settle_units
from tidegate.streams.audit.ledger import Ledger, LedgerEntry, command_id_of, pair, read_entry

P = TypeVar("P", bound=Placed)

_HASH = re.compile(rb"sha256:[0-9a-f]{64}")
_UNIT = re.compile(rb'"flag":("(?:[^"\\]|\\.)*").*"region":("(?:[^"\\]|\\.)*")', re.DOTALL)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. ``record``: its number among the unit's, 0 where it could not be read."""

    kind: FaultKind
    where: str
    unit: str
    record: int
    text: str

    def __str__(self) -> str:
        number = f"record {self.record}" if self.record else ""
        about = ", ".join(filter(None, (self.unit, number)))
        return ": ".join(filter(None, (self.where, self.kind, about, self.text)))


@dataclass(frozen=True)
class UnitSummary:
    """The records of a unit: different records, identical repeats, and the hash at the end of its chain."""

    unit: str
    decisions: int
    commands: int
    repeats: int
    last_hash: str


@dataclass(frozen=True)
class Report:
    """The findings in the order of the records. ``earlier``: commands from before the decisions that were given."""

    findings: list[Finding]
    units: list[UnitSummary]
    earlier: int


class Audit:
    """A check that takes in decisions and commands in the order of their log, then says what is wrong with them.

    ``commands`` False: none are given. ``from_middle``: the log may start after records that are not given.
    ``compacted``: of the commands, only the last one of each unit has to be there.
    """

    def __init__(self, *, commands: bool = True, from_middle: bool = False, compacted: bool = False) -> None:
        self._commands, self._from_middle, self._compacted = commands, from_middle, compacted
        self._taken = 0
        self._seen: dict[tuple[bool, bytes], Placed] = {}
        self._links: list[Link] = []
        self._entries: list[LedgerEntry] = []
        self._torn: list[Torn] = []
        self._torn_entries: list[Torn] = []
        self._faults: list[ChainFault] = []

    def decision(self, where: str, value: bytes) -> None:
        """Take a decision; ``where``: its place, for the findings."""
        self._take(where, value, read_link, self._links, self._torn)

    def command(self, where: str, value: bytes) -> None:
        """Take a command."""
        self._take(where, value, read_entry, self._entries, self._torn_entries)

    def note(self, kind: FaultKind, where: str, text: str) -> None:
        """Add a finding of the caller's own, about the record that was taken last."""
        self._faults.append((kind, Placed(where=where, order=self._taken, unit=""), text))

    def _take(
        self, where: str, value: bytes, read: Callable[[str, int, bytes], Any], records: list[Any], torn: list[Torn]
    ) -> None:
        self._taken += 1
        digest = records is self._links, hashlib.sha256(value).digest()
        if digest in self._seen:
            self._seen[digest].repeats += 1
            return
        try:
            self._seen[digest] = record = read(where, self._taken, value)
            records.append(record)
        except EventError as error:
            hashes = {found.decode() for found in _HASH.findall(value)}
            torn.append(Torn(where=where, order=self._taken, unit=_named(value), text=str(error), hashes=hashes))

    def report(self) -> Report:
        """Return all that is wrong; to be asked once, after the last record."""
        settle_units(self._links)
        self._name_torn()
        torn = set().union(*(one.hashes for one in self._torn))
        adrift = {one.unit for one in self._torn if one.adrift}
        chains = {
            unit: Chain(links, torn, unit in adrift, self._from_middle) for unit, links in _by_unit(self._links).items()
        }
        for one in chains.values():
            self._faults += one.faults
        pair(self._links, self._entries)
        entries = _by_unit(self._entries)
        earlier = 0
        if self._commands:
            torn_entries = set().union(*(one.hashes for one in self._torn_entries))
            for unit in chains.keys() | entries.keys():
                ledger = Ledger(
                    chains[unit].links if unit in chains else (),
                    entries.get(unit, ()),
                    torn_entries,
                    [one for one in self._torn if unit in one.units],
                    self._compacted,
                    self._from_middle,
                )
                self._faults += ledger.faults()
                earlier += ledger.earlier
        found = sorted(self._faults, key=lambda fault: fault[1].order)
        return Report(
            [Finding(kind, place.where, place.unit, place.number, text) for kind, place, text in found],
            [
                _summary(unit, chains.get(unit), entries.get(unit, []))
                for unit in sorted(chains.keys() | entries.keys())
            ],
            earlier,
        )

    def _name_torn(self) -> None:
        """Add a finding for each line that cannot be read, with the unit of the records that name the same hashes."""
        units: dict[str | None, str] = {}
        if self._torn or self._torn_entries:
            for link in self._links:
                units |= dict.fromkeys((link.hash, link.previous, link.id, command_id_of(link)), link.unit)
        for what, lines in (("decision", self._torn), ("command", self._torn_entries)):
            for torn in lines:
                torn.units = {units[name] for name in torn.hashes if name in units}
                torn.adrift = not torn.units
                if torn.adrift:
                    torn.units = {torn.unit}
                torn.unit = ", ".join(sorted(torn.units))
                self._faults.append(("unreadable", torn, f"no {what}: {torn.text}"))


def _named(value: bytes) -> str:
    """Return the unit that a damaged record names, as far as that can be read."""
    found = _UNIT.search(value)
    try:
        return "|".join(json.loads(name) for name in found.groups()) if found else ""
    except ValueError:
        return ""


def _by_unit(records: list[P]) -> dict[str, list[P]]:
    """Records by unit, numbered."""
    units: dict[str, list[P]] = defaultdict(list)
    for record in records:
        units[record.unit].append(record)
        record.number = len(units[record.unit])
    return dict(units)


def _summary(unit: str, found: Chain | None, entries: list[LedgerEntry]) -> UnitSummary:
    links = found.found if found else ()
    repeats = sum(record.repeats for record in chain(links, entries))
    return UnitSummary(unit, len(links), len(entries), repeats, found.links[-1].content_hash if found else "none")
