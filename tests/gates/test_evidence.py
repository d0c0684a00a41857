"""Evidence problems: when each is found, what it says, and what it does not mistake for one."""

from collections.abc import Sequence
from typing import Any

import pytest

from gates.sums import SAMPLE_CAP
from schemas.decision import Decision
from tests.gates.build import PINNED, Drive, Event, flag, healthy, ids, probes, requests

ALL_PINS = "{" + ", ".join(f"{pin}: {value}" for pin, value in PINNED.items()) + "}"


def found(decision: Decision) -> dict[str, list[dict[str, Any]]]:
    """Details by problem."""
    seen: dict[str, list[dict[str, Any]]] = {}
    for problem in decision.evidence_problems:
        seen.setdefault(problem.problem, []).append(problem.detail)
    return seen


def window(events: Sequence[Event], body: str = "", **counts: int) -> dict[str, list[dict[str, Any]]]:
    """What a first window with these events shows."""
    decision = Drive(flag(body)).window(events, **counts)
    if decision.evidence_problems:
        assert decision.verdict == "hold"
        assert decision.reasons == list(found(decision))
    return found(decision)


def pinned(**pins: str | None) -> dict[str, str]:
    """The usual pins with some changed, or taken out."""
    return {pin: value for pin, value in {**PINNED, **pins}.items() if value is not None}


def test_a_healthy_window_shows_no_problem() -> None:
    """The other tests change one thing about this window."""
    assert window(healthy()) == {}
    assert window(healthy(), f"versions: {ALL_PINS}\nbaseline_versions: {ALL_PINS}") == {}


# insufficient_data


@pytest.mark.parametrize("arm", ["canary", "baseline"])
def test_too_few_requests_in_an_arm_are_insufficient_data(arm: str) -> None:
    """Fewer than min_requests in either arm, with both counts."""
    other = "baseline" if arm == "canary" else "canary"
    few, many = [*requests(arm, 13), *probes(arm)], [*requests(other, 40), *probes(other)]
    detail = {arm: 19, other: 46, "min_requests": 20}
    assert window([*few, *many]) == {"insufficient_data": [detail]}
    assert window([*few, *many, *requests(arm, 1)]) == {}


def test_no_requests_at_all_are_insufficient_data_and_no_baseline() -> None:
    """An empty window is decided all the same: hold."""
    decision = Drive(flag()).window()
    assert decision.verdict == "hold"
    assert list(found(decision)) == ["insufficient_data", "no_pinned_baseline"]


def test_exposures_and_shadow_rows_are_no_requests() -> None:
    """min_requests counts requests that were served."""
    few = [*requests("canary", 19), *requests("canary", 50, source="shadow"), Event("canary", kind="exposure")]
    assert "insufficient_data" in window([*few, *requests("baseline", 40)])


# no_pinned_baseline


def test_a_window_without_baseline_has_no_pinned_baseline() -> None:
    """No baseline."""
    events = [*requests("canary", 40), *probes("canary")]
    assert "no_pinned_baseline" in window(events)


def test_two_values_of_one_pin_in_a_baseline_are_no_pinned_baseline_and_drift() -> None:
    """Two values of one pin in a window's baseline are also no_pinned_baseline."""
    problems = window([*healthy(), Event("baseline", pins=pinned(MODEL_VER="m2"))])
    assert set(problems) == {"no_pinned_baseline", "pins_drifted"}
    assert problems["no_pinned_baseline"] == [{"pins": {"MODEL_VER": ["m", "m2"]}}]


def test_a_baseline_that_moved_as_a_whole_is_drift_and_not_two_sets_in_one_window() -> None:
    """A later window whose baseline is all of another pin set: pins_drifted alone."""
    drive = Drive(flag("window: {length: 1m, hold_windows: 9}"))
    drive.window(healthy())
    moved = [*requests("baseline", 40, pins=pinned(INDEX_HASH="j")), *requests("canary", 40), *probes("canary")]
    assert set(found(drive.window(moved))) == {"pins_drifted"}


def test_a_missing_pin_is_only_pins_missing() -> None:
    """A missing pin is neither a second pin set nor drift."""
    for arm in ("canary", "baseline"):
        events = [*healthy(), Event(arm, pins=pinned(TOK_VER=None))]
        assert set(window(events)) == {"pins_missing"}


# pins_missing


def test_missing_pins_are_counted_by_arm_and_pin() -> None:
    """One of the six pins absent from an event; what was seen is how many requests."""
    events = [
        *healthy(),
        *requests("canary", 2, pins=pinned(TOK_VER=None)),
        *requests("canary", 3, pins=pinned(TOK_VER=None, MODEL_VER=None)),
        Event("baseline", pins={}),
    ]
    baseline, canary = sorted(window(events)["pins_missing"], key=lambda detail: str(detail["arm"]))
    assert canary == {"arm": "canary", "requests": {"MODEL_VER": 3, "TOK_VER": 5}}
    assert baseline == {"arm": "baseline", "requests": dict.fromkeys(PINNED, 1)}


@pytest.mark.parametrize("source", ["traffic", "gold", "shadow"])
@pytest.mark.parametrize("arm", ["canary", "baseline"])
def test_pins_are_read_from_every_request_but_warm_up(arm: str, source: str) -> None:
    """Gold and shadow requests have pins too; warm-up never reaches the gates."""
    assert "pins_missing" in window([*healthy(), Event(arm, source=source, pins=pinned(TOK_VER=None))])
    assert "pins_drifted" in window([*healthy(), Event(arm, source=source, pins=pinned(TOK_VER="other"))])


def test_exposures_need_no_pins() -> None:
    """Pins read every request, and an exposure is none."""
    assert window([*healthy(), Event("canary", kind="exposure", sticky="new", pins={})]) == {}


def test_a_pin_that_the_manifest_does_not_name_must_still_be_there() -> None:
    """The page's manifest pins four; an event without one of the other two misses it."""
    four = "versions: {MODEL_VER: m, PROMPT_VER: p, INDEX_HASH: i, RERANK_CONF: r}"
    assert "pins_missing" in window([*healthy(), Event("canary", pins=pinned(ANALYZER_CONF=None))], four)


# pins_drifted


def test_a_canary_pin_other_than_the_manifest_s_is_drift() -> None:
    """pin, old, new, first partition and offset; also pins other than the manifest's."""
    events = [*healthy(), *requests("canary", 2, pins=pinned(INDEX_HASH="j"))]
    (detail,) = window(events, "versions: {INDEX_HASH: i}")["pins_drifted"]
    assert {name: detail[name] for name in ("arm", "pin", "old", "new")} == {
        "arm": "canary",
        "pin": "INDEX_HASH",
        "old": "i",
        "new": "j",
    }
    assert (detail["first"]["partition"], detail["first"]["offset"]) == (0, len(healthy()))


def test_a_canary_that_never_showed_the_manifest_s_pin_is_drift() -> None:
    """The manifest's pin stands from the start, not the first event's."""
    assert "pins_drifted" in window(healthy(), "versions: {MODEL_VER: another}")


def test_a_baseline_pin_other_than_the_manifest_s_is_drift() -> None:
    """baseline_versions hold the baseline from the start."""
    (detail,) = window(healthy(), "baseline_versions: {MODEL_VER: m0}")["pins_drifted"]
    assert (detail["arm"], detail["old"], detail["new"]) == ("baseline", "m0", "m")


def test_baseline_pins_are_locked_from_the_first_baseline_event_of_the_unit() -> None:
    """Left out, baseline_versions lock at the first event and hold for the whole ramp, over promotes too."""
    drive = Drive(flag())
    assert drive.window(healthy()).verdict == "promote"
    assert drive.window(healthy()).verdict == "promote"
    moved = [event for event in healthy() if event.arm == "canary"] + requests(
        "baseline", 40, pins=pinned(MODEL_VER="n")
    )
    for _ in range(2):
        decision = drive.window(moved)
        (detail,) = found(decision)["pins_drifted"]
        assert (detail["arm"], detail["pin"], detail["old"], detail["new"]) == ("baseline", "MODEL_VER", "m", "n")
    assert decision.versions["baseline"] == PINNED
    assert drive.window(healthy()).verdict == "promote"


def test_a_canary_pin_that_the_manifest_leaves_open_may_not_move_within_the_ramp() -> None:
    """Drift is judged on the six pins, named or not."""
    drive = Drive(flag("versions: {MODEL_VER: m}"))
    drive.window(healthy())
    assert set(found(drive.window(healthy(pins=pinned(TOK_VER="u"))))) == {"pins_drifted"}


def test_drift_is_judged_on_the_six_pins_and_those_the_manifest_names() -> None:
    """A version that neither is may move freely; one that the manifest names may not."""
    free = [*healthy(), Event("canary", pins=pinned(BUILD="1")), Event("canary", pins=pinned(BUILD="2"))]
    assert window(free) == {}
    assert "pins_drifted" in window(free, 'versions: {BUILD: "1"}')
    both = [*healthy(), Event("baseline", pins=pinned(BUILD="1")), Event("baseline", pins=pinned(BUILD="2"))]
    assert set(window(both, 'baseline_versions: {BUILD: "1"}')) == {"no_pinned_baseline", "pins_drifted"}


def test_arms_may_differ_in_their_pins() -> None:
    """That is what a rollout is: each arm is held to its own."""
    events = [event for event in healthy(pins=pinned(MODEL_VER="new")) if event.probe is None]
    events += probes("canary", pins=pinned(MODEL_VER="new"))
    assert window(events, "versions: {MODEL_VER: new}") == {}


def test_each_pin_and_value_is_one_finding_with_all_its_requests() -> None:
    """A value that came in two sets of pins is told once, first place first, with every request that had it."""
    events = [
        *healthy(),
        *requests("canary", 2, pins=pinned(INDEX_HASH="j")),
        *requests("canary", 3, pins=pinned(INDEX_HASH="j", MODEL_VER="n")),
    ]
    details = {(d["pin"], d["new"]): d for d in window(events)["pins_drifted"]}
    assert set(details) == {("INDEX_HASH", "j"), ("MODEL_VER", "n")}
    assert details["INDEX_HASH", "j"]["first"]["offset"] == len(healthy())
    assert details["MODEL_VER", "n"]["requests"] == 3
    assert details["INDEX_HASH", "j"]["requests"] == 5


def test_drift_is_found_behind_many_sets_of_pins_too() -> None:
    """However many sets of pins a service sends, a moved pin is drift."""
    noise = [Event("canary", pins=pinned(MODEL_VER=f"m{i}")) for i in range(100)]
    assert "pins_drifted" in window([*healthy(), *noise])


# sticky_violation


@pytest.mark.parametrize("kinds", [("request", "request"), ("exposure", "request"), ("exposure", "exposure")])
def test_an_id_in_both_arms_of_a_stage_is_a_sticky_violation(kinds: tuple[str, str]) -> None:
    """Served in both arms in one stage; traffic rows, exposures included."""
    events = [Event("canary", kind=kinds[0], sticky="both"), Event("baseline", kind=kinds[1], sticky="both")]
    (detail,) = window([*healthy(), *events])["sticky_violation"]
    assert detail["ids"] == 1


@pytest.mark.parametrize("source", ["gold", "shadow"])
@pytest.mark.parametrize("arm", ["canary", "baseline"])
def test_gold_and_shadow_rows_violate_nothing(arm: str, source: str) -> None:
    """Shadow does not count; gold rows are outside the sticky check."""
    other = "baseline" if arm == "canary" else "canary"
    gold = [Event(arm, source=source, sticky="both"), Event(other, sticky="both")]
    assert "sticky_violation" not in window([*healthy(), *gold])


def test_a_violation_reaches_over_the_windows_of_a_stage_and_stays_one_for_it() -> None:
    """An id in one arm in one window and in the other in the next; every later window of the stage is unsound."""
    drive = Drive(flag("window: {length: 1m, hold_windows: 5}"))
    assert found(drive.window([*healthy(), Event("baseline", sticky="mover")])) == {}
    assert set(found(drive.window([*healthy(), Event("canary", sticky="mover")]))) == {"sticky_violation"}
    assert set(found(drive.window(healthy()))) == {"sticky_violation"}


def test_moving_from_baseline_to_canary_at_a_ramp_is_legal() -> None:
    """The canary grows by taking ids over from the baseline."""
    drive = Drive(flag())
    assert drive.window([*healthy(), Event("baseline", sticky="mover")]).verdict == "promote"
    decision = drive.window([*healthy(), Event("canary", sticky="mover")])
    assert decision.verdict == "promote"
    assert "canary_back_in_baseline" not in {warning.code for warning in decision.warnings}


def test_an_id_that_moves_while_the_stage_settles_violates_nothing() -> None:
    """Panes in [E, S): an id that moves there violates nothing, in either stage."""
    drive = Drive(flag())
    assert drive.window([*healthy(), Event("baseline", sticky="mover")]).verdict == "promote"
    drive.pane([Event("baseline", sticky="mover"), Event("canary", sticky="mover")])
    assert drive.window([*healthy(), Event("canary", sticky="mover")]).verdict == "promote"


def test_a_canary_id_back_in_the_baseline_at_a_later_stage_is_a_warning() -> None:
    """It is told, with how many, and blocks nothing."""
    drive = Drive(flag())
    drive.window([*healthy(), Event("canary", sticky="returns")])
    back = [event for event in healthy() if event.arm == "canary"]
    back += [*requests("baseline", 40), Event("baseline", sticky="returns")]
    decision = drive.window(back)
    assert decision.verdict == "promote"
    assert {w.code: w.count for w in decision.warnings}["canary_back_in_baseline"] == 1


def test_violations_up_to_the_manifest_s_number_are_let_pass() -> None:
    """sticky_violations_max: 2 lets two ids be in both arms, not three."""
    body = "policy: {sticky_violations_max: 2}"
    for n in (2, 3):
        events = [Event(arm, sticky=f"both-{i}") for i in range(n) for arm in ("canary", "baseline")]
        assert ("sticky_violation" in window([*healthy(), *events], body)) is (n == 3)


def test_beyond_the_cap_one_id_in_two_is_followed_and_the_decision_says_so() -> None:
    """Of many violations among very many ids enough are seen; up to the cap every one is."""
    for crowd, seen, sampled in ((SAMPLE_CAP - 100, {16}, None), (SAMPLE_CAP + 1, set(range(1, 16)), 2)):
        drive = Drive(flag())
        for arm in ("canary", "baseline"):
            drive.unit.stage_ids[arm].add(ids(f"{arm}-{i}" for i in range(crowd)))
        both = [Event(arm, sticky=f"both-{i}") for i in range(16) for arm in ("canary", "baseline")]
        decision = drive.window([*healthy(), *both])
        assert found(decision)["sticky_violation"][0]["ids"] in seen
        assert {w.code: w.count for w in decision.warnings}.get("sticky_ids_sampled") == sampled


# window_unstable


def test_a_late_share_over_late_max_makes_a_window_unstable() -> None:
    """share = late ÷ (late + accepted), over 1 %; equality is fine."""
    events = [*healthy(43), Event("canary", kind="exposure", sticky="x")]
    assert len(events) == 99
    assert window(events, late=1) == {}
    (detail,) = window(events, late=2)["window_unstable"]
    assert detail["late"] == 2
    assert detail["share"] == pytest.approx(2 / 101)


def test_late_max_is_the_manifest_s() -> None:
    """late_max: 0.5 lets as many be late as were in time."""
    body = "window: {length: 1m, late_max: 0.5}"
    assert window(healthy(), body, late=92) == {}
    assert "window_unstable" in window(healthy(), body, late=93)
    assert "window_unstable" in window(healthy(), "window: {length: 1m, late_max: 0}", late=1)


def test_dead_letters_over_1_percent_make_a_window_unstable() -> None:
    """Dead letters over 1 %, whatever late_max says; share = those ÷ (those + accepted)."""
    body = "window: {length: 1m, late_max: 1}"
    events = [*healthy(43), Event("canary", kind="exposure", sticky="x")]
    assert window(events, body, dead_letters=1) == {}
    (detail,) = window(events, body, dead_letters=2)["window_unstable"]
    assert detail["dead_letters"] == 2


def test_late_events_and_dead_letters_are_told_apart() -> None:
    """Each with what was seen; the two shares are not added up."""
    details = window(healthy(), late=5, dead_letters=7)["window_unstable"]
    assert [sorted(set(detail) & {"late", "dead_letters"}) for detail in details] == [["late"], ["dead_letters"]]


def test_instability_is_of_its_window_alone() -> None:
    """The next window starts with clean counts, and so does one after settling."""
    drive = Drive(flag())
    assert set(found(drive.window(healthy(), late=50, dead_letters=50))) == {"window_unstable"}
    decision = drive.window(healthy())
    assert (decision.verdict, decision.late, decision.dead_letters) == ("promote", 0, 0)


def test_problems_are_listed_together_each_with_what_was_seen() -> None:
    """All of them are listed, in one order, and the reasons name each once."""
    events = [
        *requests("canary", 5, pins=pinned(TOK_VER=None)),
        Event("baseline", sticky="canary-0"),
        Event("baseline", pins=pinned(MODEL_VER="n")),
    ]
    decision = Drive(flag()).window(events, late=50, dead_letters=50)
    assert decision.reasons == [
        "insufficient_data",
        "no_pinned_baseline",
        "pins_missing",
        "pins_drifted",
        "sticky_violation",
        "window_unstable",
    ]
    assert all(problem.detail for problem in decision.evidence_problems)
