"""A unit's rollout as people are shown it: where its canary stood when, and what of its decisions stands out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from tidegate.gates.power import kind_gates
from tidegate.schemas.catalogue import VERDICTS
from tidegate.schemas.decision import Command, Decision, Verdict
from tidegate.streams.report.explanation import Explanation, explanation, gate_words, rule_words
from tidegate.streams.report.text import problem_words, sentence

VERDICT_SIGNS: Mapping[str, str] = {
    "start": "✓",
    "resume": "✓",
    "promote": "↑",
    "pass": "✓",
    "open": "✓",
    "restore": "✓",
    "rearm": "↻",
    "hold": "…",
    "pause": "!",
    "freeze": "!",
    "degrade": "!",
    "fallback": "!",
    "close": "✗",
    "rollback": "✗",
    "abort": "✗",
    "kill": "✗",
    "retire": "✗",
}
"""Signs that tell verdicts apart without colour."""


def sign_of(verdict: str) -> str:
    """Return the sign of a verdict; a dot for one that has none."""
    return VERDICT_SIGNS.get(verdict, "·")


@dataclass(frozen=True)
class UnitHistory:
    """The decisions of one unit, in order; ``commands``: those that are known, by the decision they carry out."""

    flag: str
    region: str
    decisions: Sequence[Decision]
    commands: Mapping[str, Command] = field(default_factory=dict)

    @property
    def telling(self) -> Decision:
        """The decision that says how the unit stands: its last one, or the one that stopped what it waits after."""
        return next((one for one in reversed(self.decisions) if "latched" not in one.reasons), self.decisions[-1])


@dataclass(frozen=True)
class WeightStep:
    """A moment from which on the canary has a weight; ``decision``: the one that says so, None at the beginning."""

    at: int
    weight: float
    decision: Decision | None = None


def ramp(history: UnitHistory) -> list[WeightStep]:
    """Return the canary's weight over time, each step once.

    A step is at its command's ``effective_from``; where the command is not known, at the decision.
    """
    found: list[WeightStep] = []
    for decision in history.decisions:
        latched = "latched" in decision.reasons
        operated = decision.window.start == decision.window.end
        if not (latched or operated) and (not found or found[-1].weight != decision.stage.canary_weight):
            # Also where a revision began the unit again, or the commands before are not known.
            _add(found, WeightStep(decision.window.start, decision.stage.canary_weight))
        command = history.commands.get(decision.decision_id)
        weight = command.weights.canary if command else _weight_after(decision)
        if weight is not None:
            _add(found, WeightStep(command.effective_from if command else decision.decided_at, weight, decision))
    return found


def _add(found: list[WeightStep], step: WeightStep) -> None:
    if not found or found[-1].weight != step.weight:
        found.append(step)


def _weight_after(decision: Decision) -> float | None:
    """Return the canary's weight that a decision alone implies; None: as it was."""
    stage = decision.stage
    match VERDICTS[decision.verdict].canary:
        case "next":
            return stage.next_canary_weight
        case "none":
            return 0.0
        case "first":
            return stage.canary_weight
    return None


@dataclass(frozen=True)
class StageSpan:
    """The time that a unit spent in one stage, and the verdict that ended it; None: it goes on."""

    index: int
    weight: float
    start: int
    end: int
    windows: int
    ended_by: Verdict | None


def stages(history: UnitHistory) -> list[StageSpan]:
    """Return the stages that a unit went through, in order; what came after a stop belongs to none."""
    judged = (one for one in history.decisions if "latched" not in one.reasons)
    found = []
    for (index, weight), group in groupby(judged, key=lambda one: (one.stage.index, one.stage.canary_weight)):
        its = list(group)
        last = its[-1]
        moved = VERDICTS[last.verdict].canary != "same"
        windows = sum(one.window.start < one.window.end for one in its)
        start = min(one.window.start for one in its)
        found.append(
            StageSpan(index, weight, start, last.decided_at, windows, last.verdict if moved else None),
        )
    return found


@dataclass(frozen=True)
class Fired:
    """A rule, gate or evidence problem that spoke against a canary: its words when it first did, and how often."""

    what: str
    name: str
    words: str
    first: int
    last: int
    times: int


def fired(history: UnitHistory) -> list[Fired]:
    """Return what spoke against the canary while it was served, in the order in which each first did."""
    found: dict[tuple[str, str], Fired] = {}
    for decision in history.decisions:
        if "latched" in decision.reasons:
            continue
        for what, name, words in _against(decision):
            known = found.get((what, name))
            first, times = (known.first, known.times + 1) if known else (decision.decided_at, 1)
            said = known.words if known else words
            found[what, name] = Fired(what, name, said, first, decision.decided_at, times)
    return list(found.values())


def _against(decision: Decision) -> Iterator[tuple[str, str, str]]:
    for rule in decision.abort_rules:
        if rule.fired and (rule.severity == "hard" or decision.kind != "quality_gated"):
            yield f"{rule.severity} rule", rule.kind, sentence(rule_words(decision, rule))
    for gate in decision.gates:
        if gate.status in ("fail", "waived") and gate.gate in kind_gates(decision.kind):
            yield "gate" if gate.status == "fail" else "gate, waived", gate.gate, sentence(gate_words(decision, gate))
    for problem in decision.evidence_problems:
        yield "evidence problem", problem.problem, sentence(problem_words(problem))


@dataclass(frozen=True)
class Passage:
    """Decisions in a row that are said in the same words; ``decisions``: at least one."""

    decisions: Sequence[Decision]
    words: Explanation

    @property
    def first(self) -> Decision:
        """The first of them."""
        return self.decisions[0]

    @property
    def last(self) -> Decision:
        """The last of them."""
        return self.decisions[-1]


def in_words(history: UnitHistory) -> list[Passage]:
    """Put every decision into words; neighbours that are said in the same words are said once."""
    told = [(one, explanation(one)) for one in history.decisions]
    same = groupby(told, key=lambda pair: (pair[0].verdict, pair[0].stage.index, pair[0].kind, pair[1].sections))
    groups = [list(group) for _, group in same]
    return [Passage([one for one, _ in group], group[0][1]) for group in groups]
