"""The report of a rollout: one HTML file with nothing outside it, no script, and the same bytes for the same input."""

import shlex
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tidegate.schemas.catalogue import VERDICTS
from tidegate.schemas.decision import Decision, OperationBy
from tidegate.schemas.operation import Operation
from tidegate.schemas.times import iso
from tidegate.streams.report.chart import ramp_svg
from tidegate.streams.report.explanation import explanation
from tidegate.streams.report.rollout import Passage, StageSpan, UnitHistory, fired, in_words, sign_of, stages
from tidegate.streams.report.terminal import gate_rows, weight_percent
from tidegate.streams.report.text import many, plain

GOOD_VERDICTS = ("promote", "pass", "open", "restore", "start", "resume")
WAITING_VERDICTS = ("hold", "freeze", "degrade", "fallback", "pause")
IDS_SHOWN = 3


@dataclass(frozen=True)
class ReportCheck:
    """Something that was checked: ``passed`` None where it was not. ``findings``: a line each."""

    name: str
    passed: bool | None
    words: str
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RolloutReport:
    """All that a report tells.

    ``operations``: that the log of operations holds for the flags shown. ``inputs``: what it was made from, each with
    its digest. ``again``: the commands that make and check it again.
    """

    units: Sequence[UnitHistory]
    checks: Sequence[ReportCheck]
    operations: Sequence[Operation]
    inputs: Sequence[tuple[str, str]]
    again: Sequence[Sequence[str]]
    version: str


def report_html(report: RolloutReport) -> str:
    """Write the report; every text in it that came from outside is escaped."""
    room = files("tidegate.streams.report")
    style = (room / "document.css").read_text(encoding="utf-8")
    source = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{source}'; base-uri 'none'; form-action 'none'"
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_finalized)
    template = environment.from_string((room / "document.html").read_text(encoding="utf-8"))
    flags = list(dict.fromkeys(unit.flag for unit in report.units))
    name = flags[0] if len(flags) == 1 else many(len(flags), "flag")
    return template.render(
        policy=policy,
        style=Markup(style),  # noqa: S704 - a file of this package
        title=f"{name}: rollout report",
        name=name,
        span=_span(report.units),
        facts=list(_facts(report.units)),
        checks=[_check(check) for check in report.checks],
        units=[_unit(unit) for unit in report.units],
        orders=list(_orders(report)),
        again=[shlex.join(command) for command in report.again],
        inputs=report.inputs,
        version=report.version,
    )


def _finalized(value: Any) -> Any:
    """Spell out what of a text cannot be printed, such as marks that turn the direction of what follows."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


Tone = Literal["good", "wait", "bad", "neutral"]


def tone(verdict: str) -> Tone:
    """Return how a verdict is to be taken."""
    if verdict in GOOD_VERDICTS:
        return "good"
    return "wait" if verdict in WAITING_VERDICTS else "neutral" if verdict == "rearm" else "bad"


def _span(units: Sequence[UnitHistory]) -> str:
    its = [decision for unit in units for decision in unit.decisions]
    first, last = min(one.window.start for one in its), max(one.decided_at for one in its)
    return f"{_moment(first)} to {_moment(last)}"


def _moment(ts: int) -> str:
    return iso(ts).replace("T", " ").replace("Z", " UTC")


def _facts(units: Sequence[UnitHistory]) -> Iterator[tuple[str, list[str]]]:
    its = [decision for unit in units for decision in unit.decisions]
    yield "Units", [_title(unit) for unit in units]
    yield "Kind", list(dict.fromkeys(plain(one.kind).replace("_", " ") for one in its))
    counts = Counter(one.verdict for one in its)
    told = ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in VERDICTS if verdict in counts)
    yield "Decisions", [f"{many(len(its), 'decision')}: {told}"]
    commands = sum(len(unit.commands) for unit in units)
    yield "Commands", [f"{many(commands, 'command')} to the routers"]
    for arm in ("canary", "baseline"):
        pins = dict.fromkeys(_pins(one.versions[arm]) for one in its if one.versions.get(arm))
        yield f"Versions of the {arm}", list(pins) or ["not known"]
    yield "Manifest", list(dict.fromkeys(one.manifest_hash for one in its))
    relaxed = sorted({name for one in its for name in one.relaxed})
    if relaxed:
        yield "Looser than the safe-launch targets", [", ".join(relaxed)]
    people = {one.operation.actor for one in its if one.operation is not None}
    if people:
        yield "Ordered by", sorted(people)


def _pins(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(versions.items()))


def _check(check: ReportCheck) -> dict[str, Any]:
    sign, state, mood = {
        True: ("✓", "passed", "good"),
        False: ("✗", "failed", "bad"),
        None: ("–", "not checked", "neutral"),
    }[check.passed]
    return {
        "name": check.name,
        "sign": sign,
        "state": state,
        "tone": mood,
        "words": check.words,
        "findings": check.findings,
    }


def _title(unit: UnitHistory) -> str:
    return f"{unit.flag} in {unit.region}" if unit.region else unit.flag


def _unit(unit: UnitHistory) -> dict[str, Any]:
    telling = unit.telling
    judged = next((one for one in reversed(unit.decisions) if one.gates and "latched" not in one.reasons), None)
    return {
        "title": _title(unit),
        "sign": sign_of(telling.verdict),
        "verdict": telling.verdict,
        "tone": tone(telling.verdict),
        "headline": explanation(telling).headline,
        "chart": Markup(ramp_svg(unit)),  # noqa: S704 - a canvas escapes what is drawn on it
        "stages": [_stage(one) for one in stages(unit)],
        "fired": [
            {
                "first": _moment(one.first),
                "last": _moment(one.last) if one.times > 1 else "",
                "what": one.what,
                "name": one.name,
                "words": one.words,
                "times": f"{one.times:,}",
            }
            for one in fired(unit)
        ],
        "gates_at": f"at {_moment(judged.decided_at)}" if judged else "",
        "gates": gate_rows(judged) if judged else [],
        "staged": judged is not None and judged.evidence is not None,
        "told": [_told(told) for told in in_words(unit)],
        "hashes": [
            {
                "at": _moment(one.decided_at),
                "verdict": one.verdict,
                "id": one.decision_id,
                "hash": one.hash,
                "command": unit.commands[one.decision_id].command_id if one.decision_id in unit.commands else "",
            }
            for one in unit.decisions
        ],
    }


def _stage(stage: StageSpan) -> dict[str, str]:
    return {
        "name": f"{stage.index}",
        "weight": weight_percent(stage.weight),
        "start": _moment(stage.start),
        "end": _moment(stage.end),
        "windows": f"{stage.windows:,}",
        "ended_by": f"{sign_of(stage.ended_by)} {stage.ended_by}" if stage.ended_by else "it goes on",
    }


def _told(told: Passage) -> dict[str, Any]:
    first, last, count = told.first, told.last, len(told.decisions)
    again = f" · said {many(count, 'time')} in the same words, until {_moment(last.decided_at)}" if count > 1 else ""
    ids = ", ".join(_short(one) for one in told.decisions[:IDS_SHOWN])
    more = f" and {count - IDS_SHOWN:,} more" if count > IDS_SHOWN else ""
    return {
        "sign": sign_of(first.verdict),
        "verdict": first.verdict,
        "tone": tone(first.verdict),
        "headline": told.words.headline,
        "window": told.words.window + again,
        "sections": list(told.words.sections.items()),
        "ids": f"{'decision' if count == 1 else 'decisions'} {ids}{more}",
    }


def _short(decision: Decision) -> str:
    return decision.decision_id.removeprefix("sha256:")[:12]


def _orders(report: RolloutReport) -> Iterator[dict[str, str]]:
    """Give the orders that decisions carried out, and those of the log of operations that none did."""
    found: dict[tuple[str, OperationBy], list[str]] = {(one.flag, one.by): [] for one in report.operations}
    for unit in report.units:
        for one in unit.decisions:
            if one.operation is not None:
                found.setdefault((unit.flag, one.operation), []).append(f"{_title(unit)}: {_short(one)}")
    for (flag, by), carried in sorted(found.items(), key=lambda item: (item[0][1].ts, item[0][0])):
        yield {
            "at": _moment(by.ts),
            "actor": by.actor,
            "what": f"{by.kind} {flag}",
            "reason": by.reason,
            "decisions": "; ".join(carried) or "no decision that is here",
        }
