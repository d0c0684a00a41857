"""A unit's commands beside its decisions: each acting decision carried out once, by a command that says the same.

No hash covers a command as a whole: its fields are held against the decision that it carries out, the commands around
it, and the decisions that follow.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from tidegate.gates.rules import rounded
from tidegate.schemas.canonical import sha256_of
from tidegate.schemas.catalogue import GUARDS, VERDICTS, engaged_after, engaged_under
from tidegate.schemas.decision import Command, Weights
from tidegate.schemas.document import quoted
from tidegate.schemas.errors import EventError
from tidegate.schemas.times import iso
from tidegate.streams.audit.chain import ChainFault, Facts, Link, Placed, Torn, misplaced, parse_record

_FIELDS = frozenset(field.encode_name for field in msgspec.structs.fields(Command))


@dataclass(eq=False, slots=True, kw_only=True)
class LedgerEntry(Placed):
    """A command; ``of``: the decision that it carries out, ``unknown``: fields that no command has."""

    command: Command
    unknown: list[str]
    spelled: bool
    of: Link | None = None


def read_entry(where: str, order: int, value: bytes) -> LedgerEntry:
    """Return a command. Raises EventError if it is none."""
    fields, whole, _ = parse_record(value)
    try:
        command = msgspec.convert(fields, Command)
    except msgspec.ValidationError as error:
        raise EventError(f"not a command: {error}") from None
    unknown = sorted(fields.keys() - _FIELDS)
    return LedgerEntry(
        where=where, order=order, unit=command.key, command=command, unknown=unknown, spelled=whole == value
    )


@lru_cache(4096)
def _command_id(decision_id: str, action: str) -> str:
    return sha256_of({"decision_id": decision_id, "action": action})


def command_id_of(link: Link) -> str | None:
    """Return the id of the command that carries out a decision, if one does; None where its ids cannot be read."""
    return _command_id(link.id, link.said.verdict) if link.id is not None and link.said is not None else None


def pair(links: Sequence[Link], entries: Sequence[LedgerEntry]) -> None:
    """Find the decision of each command, by either of its ids, and give it that one's unit."""
    by_id: dict[str, list[Link]] = defaultdict(list)
    by_command: dict[str, list[Link]] = defaultdict(list)
    for link in sorted(links, key=lambda link: not link.linked):
        for name in filter(None, {link.id, link.id_due}):
            by_id[name].append(link)
            if link.said is not None:
                by_command[_command_id(name, link.said.verdict)].append(link)
    carried: set[Link] = set()
    for entry in entries:
        found = by_command.get(entry.command.command_id) or by_id.get(entry.command.decision_id)
        if found:
            # Two kills in the same millisecond have the same id.
            entry.of = next((link for link in found if link not in carried), found[0])
            entry.unit = entry.of.unit
            carried.add(entry.of)


@dataclass
class Ledger:
    """The commands of one unit held against ``links``, its chain of decisions.

    ``compacted``: only the last command has to be there. ``from_middle``: those before the first decision are only
    counted, as ``earlier``. ``torn``: the hashes in commands that cannot be read any more, ``torn_decisions``: the
    decisions of this unit that cannot.
    """

    links: Sequence[Link]
    entries: Sequence[LedgerEntry]
    torn: Set[str] = frozenset()
    torn_decisions: Sequence[Torn] = ()
    compacted: bool = False
    from_middle: bool = False
    earlier: int = 0

    def __post_init__(self) -> None:
        self._of: dict[Link, list[LedgerEntry]] = defaultdict(list)
        for entry in self.entries:
            if entry.of is not None:
                self._of[entry.of].append(entry)
        paired = [entry for entry in self.entries if entry.of is not None]
        self._first = min((entry.order for entry in paired), default=None)
        self._by_seq = {entry.command.seq: entry for entry in paired}
        known = {entry.command.decision_id for entry in paired}
        self._torn_ids = set().union(*(torn.hashes for torn in self.torn_decisions))
        # Even the id may be what was damaged.
        self._nameless = any(known.isdisjoint(torn.hashes) for torn in self.torn_decisions)
        self._acts = list(acting(self.links))
        self._leads = {
            facts.manifest_hash: start - facts.end
            for index, link in enumerate(self.links)
            if (facts := link.facts) is not None
            and facts.verdict == "promote"
            and not facts.standing
            and (start := _stage_start(facts, self._following(index))) is not None
        }

    def faults(self) -> Iterator[ChainFault]:
        """Yield the faults of the commands."""
        for entry in self.entries:
            if not entry.spelled:
                yield "not canonical", entry, "the same values, but not written as canonical JSON"
            if entry.of is None:
                yield from self._without_decision(entry)
            elif not entry.of.linked:
                text = f"carries out the decision of {entry.of.where}, which has no place in the chain"
                yield "inserted", entry, text
        placed: list[LedgerEntry] = []
        yield from self._walk(placed)
        yield from misplaced(placed)

    def _without_decision(self, entry: LedgerEntry) -> Iterator[ChainFault]:
        command = entry.command
        if self._nameless or command.decision_id in self._torn_ids:
            # Its decision is a line that cannot be read.
            return
        middle = not self.links or self.links[0].apart
        if self.from_middle and middle and (self._first is None or entry.order < self._first):
            self.earlier += 1
            return
        same = self._by_seq.get(command.seq)
        if same is not None:
            text = f"carries out no decision that is here, and seq {command.seq} is that of {same.where}"
            yield "inserted", entry, text
        else:
            text = f"seq {command.seq} carries out no decision that is here: that one is missing, or this was put in"
            yield "missing", entry, text

    def _walk(self, placed: list[LedgerEntry]) -> Iterator[ChainFault]:
        """Along the chain, with the seq that is due (from ``low`` to ``high``) and the weight in force, if known.

        Adds the command of each decision to ``placed``.
        """
        low, high = 1, 1.0
        weight: float | None = None
        last = max((index for index, acts in enumerate(self._acts) if acts), default=-1)
        for index, link in enumerate(self.links):
            facts, acts, entries = link.facts, self._acts[index], self._of.get(link, [])
            if link.apart:
                low, high = (1, 1.0) if link.previous is None else (low, float("inf"))
                weight = None
            if index == 0 and not link.apart and facts is not None and not facts.standing:
                weight = facts.weight
            if acts is False:
                for entry in entries:
                    text = f"carries out the decision of {link.where}, a verdict that asks for no command"
                    yield "inserted", entry, text
                continue
            if not entries:
                if acts and facts is not None and (index == last or not self.compacted) and not self._is_torn(link):
                    seq_due = f", seq {low}" if low == high else ""
                    yield "missing", link, f"no command carries out this {facts.verdict}{seq_due}"
                # Of one that is damaged nobody knows whether it asked for a command.
                low, high, weight = low + bool(acts), high + 1, None
                continue
            wrongs = {entry: list(self._wrong(entry, low, high, weight, index)) for entry in entries}
            # Of several, the one that fits best is the original.
            entry = min(entries, key=lambda entry: len(wrongs[entry]))
            placed.append(entry)
            if wrongs[entry]:
                yield "changed", entry, "; ".join(wrongs[entry])
            for other in entries:
                if other is not entry:
                    yield "repeated with changes", other, f"the command of {entry.where} once more, with other content"
            seq = entry.command.seq
            low, high = (seq + 1, seq + 1.0) if low <= seq <= high else (low + 1, high + 1)
            due = self._weight_after(index, weight)
            weight = entry.command.weights.canary if due is None else due

    def _wrong(self, entry: LedgerEntry, low: int, high: float, weight: float | None, index: int) -> Iterator[str]:
        """Yield the reasons why a command does not fit."""
        seq = entry.command.seq
        if not low <= seq <= high:
            yield f"seq {seq}, {low if low == high else f'{low} or later'} is due"
        yield from _against_decision(entry)
        yield from self._against_neighbours(entry.command, weight, index)

    def _is_torn(self, link: Link) -> bool:
        """Tell whether the command may be a line that can no longer be read."""
        return not self.torn.isdisjoint({link.id, command_id_of(link)})

    def _weight_after(self, index: int, before: float | None) -> float | None:
        """Return the canary's weight after a decision, ``before`` it another; None where that is not known."""
        facts, following = self.links[index].facts, self._following(index)
        if facts is None or facts.verdict != "open":
            return _weight_due(facts, before) if facts is not None else None
        return following.weight if following is not None and following.verdict != "rearm" else None

    def _following(self, index: int) -> Facts | None:
        """Return the contents of the next decision under the same manifest; None if they are not known."""
        here = self.links[index].facts
        if here is None or index + 1 == len(self.links) or self.links[index + 1].apart:
            return None
        facts = self.links[index + 1].facts
        return facts if facts is not None and facts.manifest_hash == here.manifest_hash else None

    def _against_neighbours(self, command: Command, weight: float | None, index: int) -> Iterator[str]:
        """Yield the contradictions of a command to the one before it and to the decisions after it."""
        before = command.previous_weights.canary
        if weight is not None and before != weight:
            yield f"previous canary weight {before:g}, it was {weight:g}"
        facts, following = self.links[index].facts, self._following(index)
        if facts is None:
            return
        due = self._weight_after(index, weight)
        if facts.verdict == "open" and due is not None and command.weights.canary != due:
            yield f"canary weight {command.weights.canary:g}, by the decision after its own {due:g}"
        if facts.verdict == "promote" and not facts.standing:
            start = _stage_start(facts, following)
            if start is None and facts.manifest_hash in self._leads:
                start = facts.end + self._leads[facts.manifest_hash]
            effective = command.effective_from
            if start is not None and effective != start:
                yield f"effective_from {iso(effective)}, the new stage starts at {iso(start)}"
            elif effective < facts.end + facts.lateness_ms or effective % facts.pane_ms:
                yield f"effective_from {iso(effective)}, when no stage can start"


def _stage_start(facts: Facts, following: Facts | None) -> int | None:
    """When a stage starts, as the decision after its promote shows it: cut while settling, or within the stage."""
    if following is None or following.standing:
        return None
    return following.end if following.stage == facts.stage else following.start


def _against_decision(entry: LedgerEntry) -> Iterator[str]:
    """Yield the contradictions within a command, and to the decision that it carries out."""
    command, link = entry.command, entry.of
    if command.command_id != _command_id(command.decision_id, command.action):
        yield "its command_id is not that of its decision_id and action"
    for name in entry.unknown:
        yield f"no command has a field {quoted(name)}"
    for what, weights in (("weights", command.weights), ("previous_weights", command.previous_weights)):
        if not _whole(weights):
            yield f"its {what} do not sum to 1"
    facts = link.facts if link is not None else None
    if link is None or facts is None:
        return
    for what, says, due in (
        ("flag and region", command.key, link.unit),
        ("decision_id", command.decision_id, link.id),
        ("action", command.action, facts.verdict),
        ("severity", command.severity, facts.severity),
        ("rule", command.rule, facts.rule),
        ("reasons", ", ".join(command.reasons), ", ".join(facts.reasons)),
        ("manifest_hash", command.manifest_hash, facts.manifest_hash),
    ):
        if says != due:
            yield f"{what} {_shown(says)}, by its decision {_shown(due)}"
    weight = _weight_due(facts, command.previous_weights.canary)
    if weight is not None and command.weights.canary != weight:
        yield f"canary weight {command.weights.canary:g}, by its decision {weight:g}"
    if (facts.verdict != "promote" or facts.standing) and command.effective_from != facts.decided_at:
        yield f"effective_from {iso(command.effective_from)}, by its decision {iso(facts.decided_at)}"


def _whole(weights: Weights) -> bool:
    return weights.baseline == rounded(1 - weights.canary)


def _shown(value: str | None) -> str:
    return "null" if value is None else quoted(value)


def _weight_due(facts: Facts, before: float | None) -> float | None:
    """Return the canary's weight that follows from a decision, ``before`` it another; None where it does not say."""
    match VERDICTS[facts.verdict].canary:
        case "next":
            return facts.next_weight
        case "first":
            # An open gate's weight stands in the decisions after it.
            return None if facts.verdict == "open" else facts.weight
        case "same":
            return before
        case "none":
            return 0.0


def acting(links: Sequence[Link]) -> Iterator[bool | None]:
    """Yield for each decision of a chain whether it asks for a command; None where that is not known."""
    engaged: bool | None = False
    before: Facts | None = None
    for link in links:
        facts = link.facts
        if link.apart or facts is None:
            engaged, before = (False if link.previous is None and facts is not None else None), None
        if facts is None:
            yield None
            continue
        if before is not None:
            same = facts.manifest_hash == before.manifest_hash
            engaged = engaged_under(engaged, before.kind, facts.kind, same_manifest=same)
            if same and before.closed and facts.kind in GUARDS and facts.start > before.end:
                # The flag may have been another one for a while, and its guard with it.
                engaged = None
        yield _asks(facts, engaged)
        engaged = engaged_after(engaged, facts.verdict, facts.kind, reasons=facts.reasons, closed=facts.closed)
        before = facts


def _asks(facts: Facts, engaged: bool | None) -> bool | None:
    if facts.verdict in ("pass", "hold"):
        return False
    if facts.standing or facts.verdict not in ("open", "close", "fallback", "degrade"):
        return True
    return None if engaged is None else VERDICTS[facts.verdict].engaged != engaged
