"""The chain that a unit's decisions make, put together again from the records as they are found.

A decision's ``hash`` is over the whole record and its ``previous_hash`` names the one before it in its unit, so that
whatever is changed, left out, moved, put in, or repeated with changes breaks a hash or a link.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import msgspec

from tidegate.gates.rules import SOFT_GATES
from tidegate.schemas.canonical import canonical
from tidegate.schemas.decision import Decision, Severity, Verdict, decision_id_of
from tidegate.schemas.errors import EventError
from tidegate.schemas.event import MAX_DEPTH, too_deep

FaultKind = Literal[
    "unreadable",
    "not canonical",
    "changed",
    "missing",
    "out of order",
    "inserted",
    "repeated with changes",
    "starts after",
    "starts again",
    "contradiction",
    "signature",
]


@dataclass(eq=False, slots=True, kw_only=True)
class Placed:
    """A record where it stands: ``order`` among all that were read, ``number`` among those of its unit."""

    where: str
    order: int
    unit: str
    number: int = 0
    repeats: int = 0


STANDING = frozenset({"kill", "rearm", "retire", "pause", "resume"})
"""Verdicts that never rest on a window of their own."""
ChainFault = tuple[FaultKind, Placed, str]
"""A fault of a record: its kind, the record, and a description."""


class Facts(NamedTuple):
    """The contents of a decision that the checks need; ``severity`` and ``rule`` as its command must have them."""

    verdict: Verdict
    kind: str
    reasons: list[str]
    start: int
    end: int
    closed: bool
    decided_at: int
    stage: int
    weight: float
    next_weight: float | None
    manifest_hash: str
    severity: Severity | None
    rule: str | None
    pane_ms: int
    lateness_ms: int

    @property
    def standing(self) -> bool:
        """True if it rests on no window of its own: an operator's, or a new revision's."""
        if self.verdict == "promote":
            return self.reasons == ["promote"]
        return self.verdict in STANDING or self.reasons == ["manifest_revision"]


@dataclass(eq=False, slots=True, kw_only=True)
class Link(Placed):
    """A decision. ``content_hash``, ``id_due``: what its hash and its id should be, by its content.

    ``linked``: it has a place in its unit's chain. ``apart``: a link of the chain, but not to the one before it.
    """

    hash: str | None
    content_hash: str
    previous: str | None
    id: str | None
    id_due: str | None = None
    said: Facts | None = None
    spelled: bool = True
    fault: str | None = None
    linked: bool = False
    apart: bool = False

    @property
    def sound(self) -> bool:
        """True if the content is the one that the hash was made of."""
        return self.hash == self.content_hash

    @property
    def facts(self) -> Facts | None:
        """The contents; None where they cannot be relied on."""
        return self.said if self.sound else None


@dataclass(eq=False, slots=True, kw_only=True)
class Torn(Placed):
    """A line that is no record any more; ``hashes``: those that can still be read in it.

    ``units``: whose records know these hashes; two, where a line break was lost. ``adrift``: none does, so that its
    unit is the one whose name can still be read.
    """

    text: str
    hashes: set[str]
    units: set[str] = field(default_factory=set)
    adrift: bool = False


def parse_record(value: bytes) -> tuple[dict[str, Any], bytes, str]:
    """Return a record's fields, its canonical bytes, and the hash of its content. Raises EventError if it has none."""
    if too_deep(value):
        raise EventError(f"JSON is nested deeper than {MAX_DEPTH} levels")
    try:
        fields = msgspec.json.decode(value)
        if not isinstance(fields, dict):
            raise EventError("not a JSON object")
        # Canonical JSON has the members in the order of their UTF-16.
        names = sorted(fields, key=lambda name: name.encode("utf-16-be"))
        members = [(name, canonical(name) + b":" + canonical(fields[name])) for name in names]
    except (msgspec.MsgspecError, ValueError) as error:
        raise EventError(str(error)) from None
    whole = b"{%s}" % b",".join(member for _, member in members)
    content = b"{%s}" % b",".join(member for name, member in members if name != "hash")
    return fields, whole, "sha256:" + hashlib.sha256(content).hexdigest()


def read_link(where: str, order: int, value: bytes) -> Link:
    """Return a decision as a link of a chain, as far as it can be read. Raises EventError if it is not canonical."""
    fields, whole, content_hash = parse_record(value)

    def text(name: str) -> str | None:
        found = fields.get(name)
        return found if isinstance(found, str) else None

    link = Link(
        where=where,
        order=order,
        unit=f"{text('flag') or '?'}|{text('region') or ''}",
        hash=text("hash"),
        content_hash=content_hash,
        previous=text("previous_hash"),
        id=text("decision_id"),
        spelled=whole == value,
    )
    try:
        decision = msgspec.convert(fields, Decision)
    except msgspec.ValidationError as error:
        link.fault = f"not a decision: {error}"
    else:
        link.said, link.id_due = _facts(decision), decision_id_of(decision)
    return link


def _facts(decision: Decision) -> Facts:
    failed = {gate.gate for gate in decision.gates if gate.status == "fail"}
    severity: Severity | None = None
    if decision.verdict in ("abort", "kill"):
        severity = "hard"
    elif decision.verdict == "freeze" or (decision.verdict == "rollback" and failed <= set(SOFT_GATES.values())):
        severity = "soft"
    return Facts(
        verdict=decision.verdict,
        kind=decision.kind,
        reasons=decision.reasons,
        start=decision.window.start,
        end=decision.window.end,
        closed=decision.window.closed,
        decided_at=decision.decided_at,
        stage=decision.stage.index,
        weight=decision.stage.canary_weight,
        next_weight=decision.stage.next_canary_weight,
        manifest_hash=decision.manifest_hash,
        severity=severity,
        rule=next((rule.kind for rule in decision.abort_rules if rule.fired), None),
        pane_ms=decision.engine.pane_ms,
        lateness_ms=decision.engine.lateness_ms,
    )


def settle_units(links: Sequence[Link]) -> None:
    """Give a damaged record the unit of its neighbours in the chain, whatever it says itself."""
    follower: dict[str | None, str] = {link.previous: link.unit for link in links if link.sound and link.previous}
    unit_of: dict[str | None, str] = {link.hash: link.unit for link in links if link.sound}
    for link in links:
        if not link.sound:
            near = follower.get(link.hash), follower.get(link.content_hash), unit_of.get(link.previous)
            link.unit = next((unit for unit in near if unit is not None), link.unit)


@dataclass
class Chain:
    """The decisions of one unit in the order of their links.

    ``found``: they as they stand in the log, ``torn``: the hashes in lines that cannot be read, and ``adrift`` whether
    there may be one of this unit without any; ``from_middle``: the chain may start after records that are not there.
    """

    found: Sequence[Link]
    torn: Set[str] = frozenset()
    adrift: bool = False
    from_middle: bool = False
    links: list[Link] = field(default_factory=list)
    faults: list[ChainFault] = field(default_factory=list)

    def __post_init__(self) -> None:
        nodes, by_hash = self._nodes()
        children = _children(nodes, by_hash)
        followed = {child for some in children.values() for child in some}
        parts = [self._path(node, children) for node in nodes if node not in followed]
        self._join(sorted(parts, key=_first))
        for link in self.links:
            link.linked = True
        self.faults += misplaced(self.links)
        self._check_content()
        self._check_windows()

    def _nodes(self) -> tuple[list[Link], dict[str | None, Link]]:
        """Return the records that may have a place, in the order of the log, and each hash to link them by."""
        by_hash: dict[str | None, Link] = {}
        # One that is only spelled otherwise than one before it counts as a repeat.
        nodes = [link for link in self.found if link.sound and by_hash.setdefault(link.hash, link) is link]
        by_id: dict[str | None, Link] = {link.id: link for link in nodes if link.id is not None}
        followed = {link.previous for link in nodes}
        for link in self.found:
            if link.sound:
                continue
            twin = by_hash.get(link.hash) or by_id.get(link.id) or by_id.get(link.id_due)
            if twin is not None:
                text = f"the record of {twin.where} once more, with other content"
                self.faults.append(("repeated with changes", link, text))
            else:
                nodes.append(link)
                self.faults.append(("changed", link, self._how_changed(link, followed)))
        for link in nodes:
            if not link.sound:
                by_hash.setdefault(link.content_hash, link)
                by_hash.setdefault(link.hash, link)
        return sorted(nodes, key=lambda link: link.order), by_hash

    def _how_changed(self, link: Link, followed: set[str | None]) -> str:
        if link.content_hash in followed:
            return "its hash is not that of its content, which the record after it links to"
        return "its content is not what its hash was made of" + (f" ({link.fault})" if link.fault else "")

    def _path(self, root: Link, children: Mapping[Link, Sequence[Link]]) -> list[Link]:
        """Return the longest way from a record that follows none to an end; what branches off it was put in."""
        seen = [root]
        for link in seen:
            seen += children[link]
        depth: dict[Link, int] = {}
        for link in reversed(seen):
            depth[link] = 1 + max((depth[child] for child in children[link]), default=0)
        path = [root]
        while children[path[-1]]:
            parent = path[-1]
            first, *others = sorted(
                children[parent],
                key=lambda link: (-depth[link], not link.sound, link.order < parent.order, link.order),
            )
            for other in others:
                if other.id == first.id:
                    text = f"the record of {first.where} once more, with other content"
                    self.faults.append(("repeated with changes", other, text))
                else:
                    more = f", with {depth[other] - 1} after it" if depth[other] > 1 else ""
                    text = f"follows the record of {parent.where}, but so does that of {first.where}{more}"
                    self.faults.append(("inserted", other, text))
            path.append(first)
        return path

    def _join(self, parts: list[list[Link]]) -> None:
        """Put the parts of a broken chain in order, saying where it is broken."""
        begins = max((part for part in parts if part[0].previous is None), key=len, default=None)
        by_id: dict[str | None, Link] = {}
        aside = []
        end = -1
        for part in parts:
            root, before, start = part[0], self.links, _first(part)
            early = begins is not None and start < _first(begins)
            # Parts come by their first records, so that what is linked so far begins before this one.
            last = max(link.order for link in part)
            if early or last < end or root.id in by_id:
                aside.append(part)
                continue
            root.apart = bool(before) or root.previous is not None
            self.faults += self._broken(root, before[-1] if before else None)
            before += part
            end = max(end, last)
            by_id |= {link.id: link for link in part if link.id is not None}
        for part in aside:
            more = f", with {len(part) - 1} after it" if len(part) > 1 else ""
            twin = by_id.get(part[0].id)
            if twin is not None:
                text = f"the record of {twin.where} once more, with other content{more}"
                self.faults.append(("repeated with changes", part[0], text))
            else:
                text = f"linked with no record of the chain that it stands beside{more}"
                self.faults.append(("inserted", part[0], text))

    def _broken(self, root: Link, before: Link | None) -> Iterator[ChainFault]:
        """Yield the fault in the chain before a record that no link leads to, if there is one."""
        if self.adrift or root.previous in self.torn or (before is not None and before.hash in self.torn):
            # The line that cannot be read is what it follows, and a finding of its own.
            return
        if before is None:
            if root.previous is not None and root.sound and not self.from_middle:
                text = f"the chain starts after {root.previous}, which is not here"
                yield "starts after", root, f"{text}: give what came before, or --from-middle"
        elif root.previous is None:
            text = f"a first record, after the chain that ends at {before.where}"
            yield "starts again", root, f"{text}: put in, or its worker had lost its state"
        else:
            text = f"does not follow the record of {before.where}: what stood between them is missing"
            yield "missing", root, text

    def _check_content(self) -> None:
        for link in self.found:
            if not link.spelled:
                text = "the same values, but not written as canonical JSON"
                self.faults.append(("not canonical", link, text))
            if not link.sound:
                continue
            if link.fault is not None:
                self.faults.append(("contradiction", link, f"the hash fits, but it is {link.fault}"))
            elif link.id != link.id_due:
                text = f"its decision_id is {link.id}, by its content it is {link.id_due}"
                self.faults.append(("contradiction", link, text))

    def _check_windows(self) -> None:
        """Check that each window follows the one before, but for one that was cut and is decided again at its end."""
        before: Facts | None = None
        closed: tuple[int, int] | None = None
        known = True
        for link in self.links:
            facts = link.facts
            if link.apart or facts is None:
                before, closed, known = None, None, link.previous is None and facts is not None
            if facts is None:
                continue
            if facts.standing:
                if known and (facts.start, facts.end, facts.closed) != _shown_by(facts, closed):
                    text = "its window is not the last one decided before it"
                    self.faults.append(("contradiction", link, text))
                continue
            if not facts.start < facts.decided_at <= facts.end or (facts.closed and facts.decided_at != facts.end):
                self.faults.append(("contradiction", link, "decided outside its window"))
            if before is not None:
                again = (facts.start, facts.end) == (before.start, before.end) and not before.closed
                early = (before.end if before.closed else before.decided_at) - facts.start
                if not again and early > 0:
                    text = f"its window starts {early} ms before the one before it ends"
                    self.faults.append(("contradiction", link, text))
            before = facts
            if facts.closed:
                closed, known = (facts.start, facts.end), True


def _shown_by(facts: Facts, closed: tuple[int, int] | None) -> tuple[int, int, bool]:
    """Return the window that a decision without one of its own shows."""
    return (*closed, True) if closed else (facts.decided_at, facts.decided_at, False)


def _children(nodes: Sequence[Link], by_hash: Mapping[str | None, Link]) -> dict[Link, list[Link]]:
    """Return the records that follow each; a damaged one without a link is taken to stand where it always stood."""
    children: dict[Link, list[Link]] = {node: [] for node in nodes}
    ahead: dict[Link, Link] = {}

    def first_of(node: Link) -> Link:
        way = []
        while node in ahead:
            way.append(node)
            node = ahead[node]
        ahead.update(dict.fromkeys(way, node))
        return node

    def follow(node: Link, parent: Link) -> None:
        # Damaged records can make a circle.
        if first_of(parent) is not node:
            ahead[node] = parent
            children[parent].append(node)

    for node in nodes:
        if node.previous is not None and node.previous in by_hash:
            follow(node, by_hash[node.previous])
    for before, node in pairwise(nodes):
        loose = node not in ahead and not children[before] and not (node.sound and node.previous is None)
        if loose and not (node.sound and before.sound):
            follow(node, before)
    return children


def _first(part: Sequence[Link]) -> int:
    return min(link.order for link in part)


def misplaced(records: Sequence[Placed]) -> Iterator[ChainFault]:
    """Yield the records, as few as possible, that stand elsewhere in the log than in this order."""
    ends: list[int] = []
    places: list[int] = []
    before: list[int] = []
    for index, record in enumerate(records):
        length = bisect_left(ends, record.order)
        before.append(places[length - 1] if length else -1)
        ends[length : length + 1], places[length : length + 1] = [record.order], [index]
    kept = set()
    at = places[-1] if places else -1
    while at >= 0:
        kept.add(at)
        at = before[at]
    index = 0
    while index < len(records):
        first, index = index, index + 1
        if first in kept:
            continue
        while index < len(records) and index not in kept and records[index].order > records[index - 1].order:
            index += 1
        many = f", with the {index - 1 - first} after it," if index - 1 > first else ""
        place = f"right after {records[first - 1].where}" if first else f"before {records[index].where}"
        yield "out of order", records[first], f"its place{many} is {place}"
