"""Any evidence problem blocks a promote and none suppresses an abort; one red region leaves the others alone."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gates.build import (
    APPLIED,
    PANE,
    PINNED,
    WINDOW,
    Drive,
    Event,
    bucket,
    exposures,
    flag,
    healthy,
    ids,
    labels,
    requests,
)
from tidegate.gates.evidence import DETECTORS
from tidegate.gates.regions import Regions
from tidegate.schemas.decision import Decision
from tidegate.schemas.event import ToolCall
from tidegate.schemas.manifest import Flag

ENOUGH = 400
"""Values in each arm with which a drift can be proved at a pane."""
SURE = 150
"""Requests with which every other hard rule is sure there."""


@dataclass(frozen=True)
class Problem:
    """How a problem comes into a window.

    ``name`` as decisions have it. ``events``: added to the window's own. ``change``: of all its events. ``policy``: of
    the manifest. ``late``, ``dead_letters``: their counts. ``prepare``: of the unit.
    """

    name: str
    events: Sequence[Event] = ()
    change: Callable[[list[Event]], list[Event]] = list
    policy: str = ""
    late: int = 0
    dead_letters: int = 0
    prepare: Callable[[Drive], None] = lambda _: None


@cache
def named(arm: str, n: int, *, right: bool = True) -> tuple[str, ...]:
    """Sticky ids that assignment by hash puts into an arm at the first stage, or into the other."""
    wanted = (arm == "canary") is right
    found = (f"id{i}" for i in range(1_000_000) if (bucket("f", f"id{i}") < 0.05) is wanted)
    return tuple(next(found) for _ in range(n))


def by_hash(events: list[Event]) -> list[Event]:
    """All traffic where the hash of its id says."""
    return [dataclasses.replace(event, sticky=named(event.arm, 3)[i % 3]) for i, event in enumerate(events)]


def few_in_the_baseline(events: list[Event]) -> list[Event]:
    """Five baseline requests, with labels for as many as its ΔS needs."""
    kept = [event for event in events if event.arm == "canary"]
    return [*kept, *requests("baseline", 5), *labels("baseline", len(events) - len(kept), delta_s=0.05)]


def no_baseline(events: list[Event]) -> list[Event]:
    return [event for event in few_in_the_baseline(events) if event.arm == "canary" or event.kind == "label"]


def known_baseline(drive: Drive) -> None:
    """As if a window before had shown the baseline's pins: labels that carry them count."""
    drive.unit.locked["baseline"] = dict(PINNED)


def off_share(drive: Drive) -> None:
    """Ten percent of very many ids, where the weight is five."""
    drive.unit.assignments.canary.add(ids(f"c{i}" for i in range(1_000)))
    drive.unit.assignments.baseline.add(ids(f"b{i}" for i in range(9_000)))


def unexpected(drive: Drive) -> None:
    """As if the stage's weight were 0."""
    drive.unit.window.unexpected += 3


def other_region(drive: Drive) -> None:
    """A region that assigns under another manifest, in a window that stays open."""
    drive.ramp.regions.note("eu", ["h2"])


def own_pins(arm: str, **changes: str) -> Event:
    return Event(arm, sticky=f"{arm}-0", pins={**PINNED, **changes})


def tooled(*tools: ToolCall, arm: str = "canary") -> Event:
    return Event(arm, sticky=f"{arm}-0", tools=tools)


LOOP = [ToolCall(name="search", args_hash="a")] * 10
EFFECTS = [ToolCall(name="pay", write=True, idempotency_key="k", effect_id=effect) for effect in "ab"]
PINLESS = Event("canary", sticky="canary-0", pins={"MODEL_VER": "m"})
PROBLEMS = {
    "few in the baseline": Problem("insufficient_data", change=few_in_the_baseline),
    "no baseline": Problem("no_pinned_baseline", change=no_baseline, prepare=known_baseline),
    "two pin sets in the baseline": Problem("no_pinned_baseline", [own_pins("baseline", MODEL_VER="n")]),
    "a pin missing": Problem("pins_missing", [PINLESS]),
    "drift in the canary": Problem("pins_drifted", [own_pins("canary", MODEL_VER="n")]),
    "drift in the baseline": Problem("pins_drifted", [own_pins("baseline", TOK_VER="u")]),
    "users of a canary that should serve nobody": Problem("served_at_weight_zero", [], prepare=unexpected),
    "ids in both arms": Problem(
        "sticky_violation", [Event(arm, sticky=f"both-{i}") for i in range(20) for arm in ("baseline", "canary")]
    ),
    "a shared cache": Problem(
        "cache_namespace_shared",
        [dataclasses.replace(own_pins("canary", MODEL_VER=m), namespace="ns", source="shadow") for m in ("m", "n")],
    ),
    "429s": Problem("rate_limit_storm", requests("canary", 60, rate_limited=True)),
    "a loop": Problem("tool_loop", [tooled(*LOOP)]),
    "a write without a key": Problem("unfenced_side_effect", [tooled(ToolCall(name="pay", write=True))]),
    "a key with two effects": Problem("unfenced_side_effect", [tooled(EFFECTS[0]), tooled(EFFECTS[1], arm="baseline")]),
    "a client's choice": Problem("client_evaluated", [Event("canary", sticky="canary-0", client=True)]),
    "the wrong arm": Problem(
        "assignment_mismatch",
        [],
        lambda events: [*by_hash(events), Event("baseline", sticky=named("baseline", 1, right=False)[0])],
        "assignment: sha256",
    ),
    "the wrong share": Problem("sample_ratio_mismatch", prepare=off_share),
    "two manifests": Problem("region_divergence", [dataclasses.replace(tooled(), hash="h1")], prepare=other_region),
    "late events": Problem("window_unstable", late=50),
    "dead letters": Problem("window_unstable", dead_letters=50),
    "no exposure": Problem("orphan_telemetry", exposures([Event("canary", sticky="canary-0")])),
}

HARD: Mapping[str, Sequence[Event]] = {
    "delta_s_p95_over": [*requests("canary", ENOUGH, delta_s=0.9), *requests("baseline", ENOUGH)],
    "coverage_under": requests("canary", SURE, coverage=0.05),
    "lambda_flip_rate_over": requests("canary", SURE, state="×"),
    "error_rate_over": requests("canary", SURE, error=True),
    "pins_drifted": [own_pins("canary", INDEX_HASH="j")],
}
"""What makes each hard rule sure at a pane; drift is one with ``on_pin_drift: abort``."""
MOMENTS = ("pane", "window end")


def play(problems: Sequence[Problem], rules: Sequence[str], moment: str) -> tuple[list[Decision], Drive]:
    """A first window with some problems and some broken rules, all in one pane: once ids are followed or the last."""
    events = [*healthy(), *[event for rule in rules for event in HARD[rule]]]
    for problem in problems:
        events = [*events, *problem.events]
    for problem in problems:
        events = problem.change(events)
    policies = {problem.policy for problem in problems if problem.policy}
    policies |= {"on_pin_drift: abort"} if "pins_drifted" in rules else set()
    drive = Drive(flag(f"policy: {{{', '.join(sorted(policies))}}}"))
    drive.until(APPLIED)
    for problem in problems:
        problem.prepare(drive)
    if moment == "window end":
        drive.until(WINDOW - PANE)
    made = drive.pane(
        events,
        late=sum(problem.late for problem in problems),
        dead_letters=sum(problem.dead_letters for problem in problems),
    )
    return made, drive


def found(decision: Decision) -> set[str]:
    return {problem.problem for problem in decision.evidence_problems}


def fired(decision: Decision) -> set[str]:
    return {rule.kind for rule in decision.abort_rules if rule.fired}


def test_every_evidence_problem_is_among_these() -> None:
    """All of the contract's list, each at least once."""
    assert {problem.name for problem in PROBLEMS.values()} == {detector.__name__ for detector in DETECTORS}


@pytest.mark.parametrize("moment", MOMENTS)
def test_without_a_problem_the_same_window_promotes(moment: str) -> None:
    """What the others change is all that keeps it from a promote."""
    _, drive = play([], [], moment)
    if moment == "pane":
        drive.until(WINDOW)
    assert drive.commanded() == [("promote", 0.25)]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_alone_always_blocks_a_promote(problem: Problem, moment: str) -> None:
    """An evidence problem always blocks a promote: the window is held, with the problem as reason."""
    made, drive = play([problem], [], moment)
    if moment == "pane":
        assert made == []
        made = drive.until(WINDOW)
    (decision,) = made
    assert decision.verdict == "hold"
    assert problem.name in decision.reasons
    assert decision.reasons == list(dict.fromkeys(p.problem for p in decision.evidence_problems))
    assert all(p.detail for p in decision.evidence_problems)
    assert drive.commands == []


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("rule", HARD)
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_never_suppresses_an_abort(problem: Problem, rule: str, moment: str) -> None:
    """… and never suppresses an abort: at the pane or at the end, with the problem in the record."""
    (decision,), drive = play([problem], [rule], moment)
    assert (decision.verdict, decision.reasons, fired(decision)) == ("abort", [rule], {rule})
    assert problem.name in found(decision)
    assert drive.commanded() == [("abort", 0)]
    assert decision.window.closed is (moment == "window end")


@settings(max_examples=40, deadline=None)
@given(
    problems=st.lists(st.sampled_from(sorted(PROBLEMS)), max_size=5, unique=True),
    rules=st.lists(st.sampled_from(sorted(HARD)), max_size=4, unique=True),
    moment=st.sampled_from(MOMENTS),
)
def test_any_mixture_of_problems_and_rules_is_held_or_aborted(
    problems: list[str], rules: list[str], moment: str
) -> None:
    """Every fired rule is listed, with exactly one command; without one every problem is listed, without any."""
    # A baseline that is cut down takes the events of the others with it.
    chosen = [PROBLEMS[name] for name in problems if PROBLEMS[name].change is list]
    made, drive = play(chosen, rules, moment)
    if moment == "pane":
        assert len(made) == bool(rules)
        made = made or drive.until(WINDOW)
    (decision,) = made
    if not chosen and not rules:
        assert decision.verdict == "promote"
        return
    assert decision.verdict == ("abort" if rules else "hold")
    assert {problem.name for problem in chosen} <= found(decision)
    # Several rules dilute one another's evidence: at a pane the sure ones are enough.
    assert (fired(decision) != set()) is bool(rules)
    assert drive.commanded() == ([("abort", 0)] if rules else [])


# Regions

FATES: Mapping[str, Sequence[Event]] = {
    "broken": healthy(error=True),
    "thin": healthy(coverage=0.65),
    "slow": healthy(latency=900.0),
    "unsound": [*healthy(), own_pins("canary", MODEL_VER="n")],
    "unknown": [event for event in healthy() if event.probe is None],
    "silent": [],
}


def side_by_side(fates: Mapping[str, str], windows: int = 3) -> dict[str, list[bytes]]:
    """Regions of one flag in one gate, pane by pane; a region is healthy unless it has a fate."""
    rules: Flag = flag()
    together = Regions()
    regions = {name: Drive(rules, region=name, regions=together) for name in ("ap", "eu", "us")}
    for pane in range(windows * 9):
        for name, drive in regions.items():
            fate = fates.get(name, "healthy")
            if fate == "killed" and pane == 7:
                drive.operate("kill")
            drive.feed(FATES.get(fate, healthy()) if pane % 2 else ())
        for drive in regions.values():
            drive.close()
    records: dict[str, list[bytes]] = {}
    for name, drive in regions.items():
        records[name] = [d.to_bytes() for d in drive.decisions] + [c.to_bytes() for c in drive.commands]
    return records


@cache
def all_healthy() -> dict[str, list[bytes]]:
    return side_by_side({})


@pytest.mark.parametrize("fate", [*FATES, "killed"])
@pytest.mark.parametrize("region", ["ap", "us"])
def test_a_red_region_leaves_the_others_alone(region: str, fate: str) -> None:
    """A unit is one (flag, region), staged on its own: the others' decisions and commands are the same bytes."""
    records = side_by_side({region: fate})
    assert records.pop(region) != all_healthy()[region]
    assert records == {name: said for name, said in all_healthy().items() if name != region}


def test_all_but_one_red_region_leave_it_alone() -> None:
    """However many are red, the one that is green goes on."""
    records = side_by_side({"ap": "broken", "us": "killed"})
    assert records["eu"] == all_healthy()["eu"]
