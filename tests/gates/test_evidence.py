"""Evidence problems: when each is found, what it says, and what it does not mistake for one."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

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
    hashed,
    healthy,
    ids,
    probes,
    requests,
)
from tidegate.gates.bounds import log_odds_sample_ratio
from tidegate.gates.regions import Regions
from tidegate.gates.samples import KEYS_CAP, SAMPLE_CAP, Effects, IdSample
from tidegate.gates.window import HASHES_CAP, NAMESPACES_CAP, Detail
from tidegate.schemas.decision import Decision
from tidegate.schemas.event import ToolCall

ALL_PINS = "{" + ", ".join(f"{pin}: {value}" for pin, value in PINNED.items()) + "}"


BOTH_ARMS_PINNED = "versions: {{MODEL_VER: {model}}}\nbaseline_versions: {{MODEL_VER: m}}"


def warnings(decision: Decision) -> dict[str, int]:
    return {warning.code: warning.count for warning in decision.warnings}


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


def test_gold_rows_alone_promote_nobody() -> None:
    """Served rows are needed in both arms wherever the canary has weight: gold says nothing of what users get."""
    gold = [dataclasses.replace(event, source="gold") for event in healthy()]
    for missing in ("canary", "baseline"):
        users = [event for event in healthy() if event.arm != missing]
        decision = Drive(flag()).window([*gold, *users])
        assert (decision.verdict, decision.reasons) == ("hold", ["insufficient_data"])
        (detail,) = found(decision)["insufficient_data"]
        assert detail["traffic"][missing] == 0
    assert Drive(flag()).window([*gold, *healthy()]).verdict == "promote"


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
    events = healthy()
    assert window([*events, *exposures(events), Event("canary", kind="exposure", sticky="new", pins={})]) == {}


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


def test_a_violation_reaches_over_the_windows_of_a_stage_and_is_held_against_one() -> None:
    """An id in one arm in one window and in the other in the next; the window after that is sound again."""
    drive = Drive(flag("window: {length: 1m, hold_windows: 5}"))
    assert found(drive.window([*healthy(), Event("baseline", sticky="mover")])) == {}
    assert set(found(drive.window([*healthy(), Event("canary", sticky="mover")]))) == {"sticky_violation"}
    assert found(drive.window([*healthy(), Event("canary", sticky="mover")])) == {}
    assert set(found(drive.window([*healthy(), Event("baseline", sticky="mover")]))) == {"sticky_violation"}


@pytest.mark.parametrize("kind", ["cost_guard", "safety_guard", "quality_gated"])
def test_an_id_that_changed_arms_is_held_against_one_window_of_a_kind_without_stages(kind: str) -> None:
    """Each window is judged by itself: who bounced in an earlier one holds nothing back."""
    drive = Drive(flag(f"kind: {kind}"))
    steady = [dataclasses.replace(event, reason="ok", mode="full") for event in healthy()]
    both = [Event(arm, sticky="both") for arm in ("baseline", "canary")]
    assert set(found(drive.window([*steady, *both]))) == {"sticky_violation"}
    assert drive.window(steady).verdict == ("open" if kind == "quality_gated" else "pass")
    assert found(drive.window([*steady, Event("canary", sticky="both")])) == {}


def test_one_id_of_very_many_that_changed_arms_is_no_violation() -> None:
    """sticky_violation_share_max: 0.1 % of the ids followed, by default."""
    for n, violates in ((900, True), (1_100, False)):
        drive = Drive(flag())
        drive.until(APPLIED)
        crowd_ = [Event("baseline", sticky=f"b{i}") for i in range(n * 95 // 100)]
        crowd_ += [Event("canary", sticky=f"c{i}") for i in range(n - len(crowd_) - 7)]
        both = [Event(arm, sticky="both") for arm in ("baseline", "canary")]
        drive.pane([*crowd_, *both])
        assert ("sticky_violation" in found(drive.window(healthy()))) is violates


def test_the_number_of_violations_let_pass_is_scaled_where_ids_are_sampled() -> None:
    """Eight ids seen of one in two are sixteen: more than fifteen, not more than sixteen."""
    for most, violates in ((15, True), (16, False)):
        drive = Drive(flag(f"policy: {{sticky_violations_max: {most}, sticky_violation_share_max: 0}}"))
        drive.until(APPLIED)
        low, high = [np.arange(1, n, dtype=np.uint64) << np.uint64(40) for n in (9, SAMPLE_CAP + 2)]
        drive.unit.assignments.baseline = IdSample(1, high[10:])
        drive.unit.assignments.bounced.add(low)
        assert ("sticky_violation" in found(drive.window(healthy()))) is violates


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


def test_ids_that_go_back_after_the_latch_violate_nothing() -> None:
    """After rollback, abort or kill the canary serves nobody: its ids are the baseline's, and no share is held."""
    drive = Drive(flag())
    assert drive.window([*healthy(coverage=0.65), Event("canary", sticky="returns")]).verdict == "rollback"
    crowd = [Event("baseline", sticky=f"b{i}") for i in range(3000)]
    back = [Event("canary", sticky="returns"), Event("baseline", sticky="returns")]
    decision = drive.window([*healthy(), *crowd, *back])
    assert (decision.verdict, decision.evidence_problems, set(warnings(decision))) == ("hold", [], {"unpinned"})


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
        drive = Drive(flag("policy: {sticky_violation_share_max: 0}"))
        drive.until(APPLIED)
        for arm in ("canary", "baseline"):
            getattr(drive.unit.assignments, arm).add(ids(f"{arm}-{i}" for i in range(crowd)))
        both = [Event(arm, sticky=f"both-{i}") for i in range(16) for arm in ("canary", "baseline")]
        decision = drive.window([*healthy(), *both])
        assert found(decision)["sticky_violation"][0]["ids"] in seen
        assert {w.code: w.count for w in decision.warnings}.get("sticky_ids_sampled") == sampled


# cache_namespace_shared


def test_one_namespace_under_two_pin_sets_is_shared() -> None:
    """cache_namespace_shared: one namespace under two pin sets; told with its name and both sets."""
    other = pinned(MODEL_VER="m2")
    events = [Event("canary", namespace="ns", pins=other), Event("baseline", namespace="ns"), *healthy()]
    (detail,) = window(events, BOTH_ARMS_PINNED.format(model="m2"))["cache_namespace_shared"]
    assert (detail["namespaces"], detail["not_followed"]) == (1, 0)
    (first,) = detail["first"]
    assert first["namespace"] == "ns"
    assert sorted(pins["MODEL_VER"] for pins in first["pins"]) == ["m", "m2"]


def test_a_namespace_that_all_use_under_one_pin_set_is_fine() -> None:
    """Both arms may share a cache as long as their pins are the same; other namespaces are apart."""
    events = [*healthy(namespace="ns"), *requests("baseline", 3, namespace="ns")]
    assert window(events) == {}
    apart = [Event("canary", sticky="c", namespace="c"), Event("baseline", namespace="b")]
    assert window([*healthy(), *apart]) == {}


@pytest.mark.parametrize("source", ["traffic", "gold", "shadow"])
def test_namespaces_are_read_from_every_request_but_warm_up(source: str) -> None:
    """namespaces read every request but warm-up: a mirrored request fills the same cache."""
    events = [
        Event("canary", source=source, namespace="ns", pins=pinned(TOK_VER="u")),
        Event("baseline", namespace="ns"),
    ]
    assert "cache_namespace_shared" in window([*healthy(), *events])


def test_a_namespace_is_followed_over_the_panes_of_a_window_and_no_longer() -> None:
    """Two panes of one window make two sets; the next window starts anew."""
    drive = Drive(flag("window: {length: 1m, hold_windows: 9}"))
    drive.pane([Event("canary", namespace="ns", pins=pinned(TOK_VER=None))])
    assert "cache_namespace_shared" in found(drive.window([*healthy(), Event("canary", namespace="ns")]))
    assert found(drive.window([*healthy(), Event("canary", namespace="ns")])) == {}


def test_namespaces_beyond_the_cap_are_counted_and_warned_of() -> None:
    """1,024 namespaces are followed in a unit and window; the decision says how many uses it did not look at."""
    many = [Event("canary", namespace=f"ns{i}") for i in range(NAMESPACES_CAP)]
    drive = Drive(flag("window: {length: 1m, hold_windows: 9}"))
    assert "cache_namespaces_not_followed" not in warnings(drive.window([*healthy(), *many]))
    more = [Event("canary", namespace="late"), Event("baseline", namespace="late", pins=pinned(TOK_VER=None))]
    decision = drive.window([*healthy(), *many, *more])
    assert "cache_namespace_shared" not in found(decision)
    assert warnings(decision)["cache_namespaces_not_followed"] == 2


def test_beyond_the_cap_the_first_namespaces_are_still_followed() -> None:
    """What is held stays exact."""
    many = [Event("canary", namespace=f"ns{i}") for i in range(NAMESPACES_CAP + 10)]
    again = Event("baseline", namespace="ns0", pins=pinned(TOK_VER="u"))
    (detail,) = window([*healthy(), *many, again])["cache_namespace_shared"]
    assert (detail["namespaces"], detail["not_followed"]) == (1, 10)


# rate_limit_storm


def storm(canary: int, baseline: int = 0, n: int = 100) -> list[Event]:
    """Windows of ``n`` requests an arm, some of which met a 429."""
    return [
        *probes("canary"),
        *requests("canary", canary, rate_limited=True),
        *requests("canary", n - 6 - canary),
        *requests("baseline", baseline, rate_limited=True),
        *requests("baseline", n - baseline),
    ]


@pytest.mark.parametrize(
    ("canary", "baseline", "storms"), [(5, 0, True), (4, 0, False), (8, 3, True), (7, 3, False), (50, 50, False)]
)
def test_a_storm_is_5_points_over_the_baseline(canary: int, baseline: int, storms: bool) -> None:
    """rate_limit_storm: canary 429 share ≥ 5 points over the baseline's."""
    assert ("rate_limit_storm" in window(storm(canary, baseline))) is storms


def test_a_storm_is_at_least_5_events() -> None:
    """≥ 5 events: 4 of 20 are too few to be a storm."""
    assert "rate_limit_storm" not in window(storm(4, n=20))
    assert window(storm(5, n=20))["rate_limit_storm"] == [
        {"events": 5, "share": 0.25, "baseline": 0.0, "stage_before": None}
    ]


def test_a_storm_is_5_points_over_the_stage_before_too() -> None:
    """≥ 5 points over the baseline's and the stage before: what was so before the step is no storm of it."""
    drive = Drive(flag())
    assert drive.window(storm(4)).verdict == "promote"
    assert "rate_limit_storm" not in found(drive.window(storm(8)))
    drive = Drive(flag("window: {length: 1m, hold_windows: 1}"))
    assert drive.window(storm(4)).verdict == "promote"
    assert found(drive.window(storm(9)))["rate_limit_storm"][0]["stage_before"] == 0.04


def test_the_stage_before_is_its_last_window() -> None:
    """Only the window that promoted is the stage before; a rearm forgets it."""
    drive = Drive(flag())
    drive.window(storm(4))
    drive.operate("kill")
    drive.operate("rearm")
    drive.until(drive.unit.window.end)
    assert found(drive.window(storm(6)))["rate_limit_storm"][0]["stage_before"] is None


def test_429s_of_the_baseline_alone_are_no_storm() -> None:
    """The canary's share is what counts."""
    assert "rate_limit_storm" not in window(storm(0, 50))


# tool_loop


def calls(n: int, name: str = "search", args: str | None = "a") -> tuple[ToolCall, ...]:
    return tuple(ToolCall(name=name, args_hash=args) for _ in range(n))


@pytest.mark.parametrize(
    ("tools", "loops"),
    [
        (calls(10), True),
        (calls(9), False),
        ((*calls(9), *calls(9, args="b")), False),
        ((*calls(9), *calls(9, name="fetch")), False),
        ((*calls(5), *calls(3, name="fetch"), *calls(5)), True),
        (calls(20, args=None), False),
    ],
)
def test_ten_calls_of_one_tool_with_the_same_arguments_in_one_request_are_a_loop(
    tools: tuple[ToolCall, ...], loops: bool
) -> None:
    """tool_loop: ≥ 10 calls of one tool with the same arguments in one request."""
    assert ("tool_loop" in window([*healthy(), Event("canary", tools=tools)])) is loops


def test_calls_of_several_requests_are_no_loop() -> None:
    """In one request: ten requests may each search once for the same."""
    assert window([*healthy(), *requests("canary", 10, tools=calls(1))]) == {}


def test_a_loop_is_told_by_tool_partition_and_offset_and_the_first_three_are() -> None:
    """Each with what was seen: how many requests, and where the first are."""
    events = [*healthy(), *requests("canary", 2, tools=calls(12)), *requests("baseline", 3, tools=calls(10, "fetch"))]
    (detail,) = window(events)["tool_loop"]
    at = len(healthy())
    assert detail == {
        "requests": 5,
        "first": [
            {"tool": "search", "partition": 0, "offset": at},
            {"tool": "search", "partition": 0, "offset": at + 1},
            {"tool": "fetch", "partition": 0, "offset": at + 2},
        ],
    }


# unfenced_side_effect


def write(key: str | None = None, effect: str | None = None) -> Sequence[ToolCall]:
    return (ToolCall(name="pay", write=True, idempotency_key=key, effect_id=effect),)


def test_a_write_without_a_key_is_unfenced() -> None:
    """a write without a key: told by tool, partition and offset."""
    (detail,) = window([*healthy(), Event("canary", tools=write())])["unfenced_side_effect"]
    at = len(healthy())
    assert detail == {
        "what": "write_without_key",
        "requests": 1,
        "first": [{"tool": "pay", "partition": 0, "offset": at}],
    }


def test_a_read_needs_no_key() -> None:
    """write: false, and a call that does not say, are no writes."""
    reads = (ToolCall(name="get", write=False), ToolCall(name="get"))
    assert window([*healthy(), Event("canary", tools=reads)]) == {}


@pytest.mark.parametrize("arms", [("canary", "canary"), ("canary", "baseline"), ("baseline", "baseline")])
def test_one_key_with_two_effects_is_unfenced(arms: tuple[str, str]) -> None:
    """one idempotency key with two effects, wherever the two came from."""
    events = [Event(arm, tools=write("k", f"e{i}")) for i, arm in enumerate(arms)]
    (detail,) = window([*healthy(), *events])["unfenced_side_effect"]
    assert detail == {
        "what": "key_with_two_effects",
        "keys": 1,
        "xxh3": [f"{hashed('k'):016x}"],
        "followed": "1 key in 1",
    }


def test_a_retry_that_had_the_same_effect_is_fenced() -> None:
    """That is what the key is for; and two keys may have one effect each."""
    events = [Event("canary", tools=write("k", "e")), Event("canary", tools=write("k", "e"))]
    events += [Event("canary", tools=write("l", "f")), Event("canary", tools=write("m", None))]
    assert window([*healthy(), *events]) == {}


def test_effects_are_followed_over_the_panes_of_a_window() -> None:
    """The two effects may come panes apart."""
    drive = Drive(flag())
    drive.pane([Event("canary", tools=write("k", "e"))])
    assert "unfenced_side_effect" in found(drive.window([*healthy(), Event("canary", tools=write("k", "f"))]))


def test_beyond_the_cap_one_key_in_two_is_followed_whatever_the_order() -> None:
    """16,384 keys are held; then every second by hash, the same ones in whatever order and portions they come."""
    pairs = [(hashed(f"k{i}"), i % 7) for i in range(KEYS_CAP + 5000)]
    pairs += [(key, 9) for key, _ in pairs[::100]]

    def kept(portions: Sequence[Sequence[tuple[int, int]]]) -> tuple[int, list[int], dict[int, int]]:
        total = Effects()
        for portion in portions:
            part = Effects()
            for key, effect in portion:
                part.add(key, effect)
            total.merge(part)
        return total.level, sorted(total.conflicts), total.effects

    level, conflicts, held = kept([pairs])
    assert level == 1
    assert len(held) <= KEYS_CAP
    assert conflicts == sorted({key for key, _ in pairs[::100] if key < 1 << 63})
    assert kept([pairs[:1000], pairs[1000:]]) == kept([pairs[i : i + 999] for i in range(0, len(pairs), 999)])
    assert kept([pairs[::-1]]) == kept([pairs[20_000:], pairs[:20_000]]) == (level, conflicts, held)


def test_conflicts_that_are_not_followed_do_not_pile_up() -> None:
    """Merging spans that follow more keys adds none beyond the level."""
    total = Effects(level=4)
    for i in range(50):
        part = Effects()
        for k in range(40):
            part.add(hashed(f"{i}/{k}"), 1)
            part.add(hashed(f"{i}/{k}"), 2)
        total.merge(part)
    assert max(total.conflicts) < 1 << 60
    assert sorted(total.effects) == sorted(total.conflicts)


class Compared(int):
    """A key that counts how often it is looked at."""

    looks = 0

    def __lt__(self, other: int) -> bool:
        Compared.looks += 1
        return int(self) < int(other)

    def __hash__(self) -> int:
        Compared.looks += 1
        return hash(int(self))


def test_one_more_conflict_costs_the_same_however_many_there_are() -> None:
    """A topic full of keys with two effects is looked through once, and not once for each of them."""

    def looks(n: int) -> float:
        Compared.looks = 0
        effects, total = Effects(), Effects()
        for key in range(n):
            effects.add(Compared(key), 1)
            effects.add(Compared(key), 2)
        total.merge(effects)
        assert len(total.conflicts) == n
        return Compared.looks / n

    assert looks(KEYS_CAP // 4) <= 1.5 * looks(64)


# client_evaluated


@pytest.mark.parametrize("arm", ["canary", "baseline"])
@pytest.mark.parametrize("kind", ["request", "exposure"])
def test_an_event_whose_arm_a_client_chose_is_client_evaluated(arm: str, kind: str) -> None:
    """client_evaluated reads every event of the window; told by arm."""
    events = [Event(arm, kind=kind, client=True) for _ in range(3)]
    assert window([*healthy(), *events]) == {"client_evaluated": [{"events": {arm: 3}}]}


@pytest.mark.parametrize("source", ["traffic", "gold", "shadow"])
def test_client_evaluated_reads_every_event_but_warm_up(source: str) -> None:
    """Mirrored and gold requests too."""
    assert "client_evaluated" in window([*healthy(), Event("canary", source=source, client=True)])


def test_client_evaluated_events_are_kept_out_of_the_evidence() -> None:
    """client-evaluated assignments (kept out of the evidence): no count, gate, rule or other problem sees them."""
    bad = {"error": True, "coverage": 0.0, "delta_s": 2.0, "latency": 9e5, "state": "×", "pins": {}, "cost": 9.0}
    foul = requests("canary", 60, client=True, namespace="ns", tools=[*write(), *calls(10)], **bad)
    foul += [Event("baseline", sticky="canary-0", client=True)]
    drive, clean = Drive(flag()), Drive(flag())
    decision, other = drive.window([*healthy(), *foul]), clean.window(healthy())
    assert set(found(decision)) == {"client_evaluated"}
    assert (decision.gates, decision.abort_rules, decision.arms) == (other.gates, other.abort_rules, other.arms)
    assert drive.pane(foul) == []


def test_client_evaluated_requests_alone_are_no_data() -> None:
    """A canary of clients' own choice has no evidence at all."""
    events = [event if event.arm == "baseline" else dataclasses.replace(event, client=True) for event in healthy()]
    assert set(window(events)) == {"insufficient_data", "client_evaluated"}


# assignment_mismatch

BY_HASH = "policy: {assignment: sha256}"


def named(arm: str, n: int, weight: float, *, right: bool = True) -> list[str]:
    """Sticky ids that the hash puts into an arm at a canary weight, or into the other one."""
    wanted = (arm == "canary") is right
    every = (f"id{i}" for i in range(1_000_000))
    return [name for name, _ in zip((i for i in every if (bucket("f", i) < weight) is wanted), range(n), strict=False)]


def assigned(weight: float, below: float = 0.0) -> list[Event]:
    """A healthy window in which every id is where the hash puts it; the canary's are above another weight."""
    events: list[Event] = []
    own = {
        "canary": [i for i in named("canary", 40, weight) if bucket("f", i) >= below][:1],
        "baseline": named("baseline", 3, 1 / 2),
    }
    for event in healthy():
        names = own[event.arm]
        events.append(dataclasses.replace(event, sticky=names[len(events) % len(names)]))
    return events


def test_arms_that_follow_from_the_sticky_id_are_no_mismatch() -> None:
    """canary if bucket < canary weight, at each stage its own."""
    drive = Drive(flag(BY_HASH))
    assert [drive.window(assigned(*w)).verdict for w in ((0.05,), (0.25, 0.05), (0.5, 0.25))] == ["promote"] * 3
    assert drive.window([event for event in assigned(1.0, 0.5) if event.arm == "canary"]).verdict == "pass"


@pytest.mark.parametrize("kind", ["request", "exposure"])
@pytest.mark.parametrize("arm", ["canary", "baseline"])
def test_traffic_in_the_other_arm_than_its_hash_says_is_a_mismatch(arm: str, kind: str) -> None:
    """Assignment by sha256 reads traffic rows, exposures included; told by arm."""
    (wrong,) = named(arm, 1, 0.05, right=False)
    events = assigned(0.05)
    events += [*exposures(events), *[Event(arm, kind=kind, sticky=wrong)] * 2]
    problems = window(events, BY_HASH)
    assert problems["assignment_mismatch"] == [{"rows": {arm: 2}}]


@pytest.mark.parametrize("source", ["gold", "shadow"])
def test_gold_and_shadow_rows_follow_no_assignment(source: str) -> None:
    """Assignment reads traffic rows."""
    wrong = named("canary", 1, 0.05, right=False)[0]
    assert window([*assigned(0.05), Event("canary", source=source, sticky=wrong)], BY_HASH) == {}


def test_reported_assignment_is_not_checked() -> None:
    """assignment: reported is the default."""
    assert window([*healthy(), Event("canary", sticky=named("canary", 1, 0.05, right=False)[0])]) == {}


def test_a_stage_s_weight_is_the_one_that_counts() -> None:
    """An id between two weights is the canary's at the later stage and the baseline's at the earlier."""
    between = next(i for i in named("canary", 99, 0.25) if bucket("f", i) >= 0.05)
    assert "assignment_mismatch" in window([*assigned(0.05), Event("canary", sticky=between)], BY_HASH)
    drive = Drive(flag(BY_HASH))
    assert drive.window([*assigned(0.05), Event("baseline", sticky=between)]).verdict == "promote"
    assert "assignment_mismatch" in found(drive.window([*assigned(0.25, 0.05), Event("baseline", sticky=between)]))


def test_ids_that_move_within_the_settling_span_are_no_mismatch() -> None:
    """while a stage settles, either weight is right."""
    between = next(i for i in named("canary", 99, 0.25) if bucket("f", i) >= 0.05)
    drive = Drive(flag(BY_HASH))
    drive.window(assigned(0.05))
    drive.pane([Event("canary", sticky=between), Event("baseline", sticky=between)])
    assert drive.window(assigned(0.25, 0.05)).verdict == "promote"


def test_an_abort_while_a_stage_settles_blames_no_id_between_the_two_weights() -> None:
    """while a stage settles, either weight is right: in the abort's record too; other ids are a mismatch there."""
    between = next(i for i in named("canary", 99, 0.25) if bucket("f", i) >= 0.05)
    broken = requests("canary", 40, sticky=between, error=True)
    for more, listed in (([], False), ([Event("canary", sticky=named("baseline", 1, 0.5)[0])], True)):
        drive = Drive(flag(BY_HASH))
        drive.window(assigned(0.05))
        (abort,) = drive.pane([*broken, Event("baseline", sticky=between), *more])
        assert (abort.verdict, "assignment_mismatch" in found(abort)) == ("abort", listed)


def test_a_latched_unit_has_no_weights_to_follow() -> None:
    """After the latch the canary's weight is 0 and ids go back."""
    drive = Drive(flag(BY_HASH))
    drive.window([*assigned(0.05), *requests("canary", 60, error=True, sticky=named("canary", 1, 0.05)[0])])
    assert drive.unit.latched
    decision = drive.window([*assigned(0.05), Event("baseline", sticky=named("canary", 1, 0.05)[0])])
    assert "assignment_mismatch" not in found(decision)


def test_ids_move_in_the_panes_in_which_a_rearm_is_applied() -> None:
    """rearm brings the first stage's weights within a window: who moves then violates nothing, later ones do."""
    mover = named("canary", 1, 0.05)[0]
    drive = Drive(flag(BY_HASH))
    drive.operate("kill")
    drive.pane([Event("baseline", sticky=mover)])
    drive.operate("rearm")
    drive.pane([Event("baseline", sticky=mover), Event("canary", sticky=mover)])
    drive.until(WINDOW - PANE)
    assert drive.window(assigned(0.05)).verdict == "promote"


# sample_ratio_mismatch


def crowd(canary: int, baseline: int, **fields: Any) -> list[Event]:
    """A healthy window with that many sticky ids more."""
    return [
        *healthy(),
        *[Event("canary", sticky=f"c{i}", **fields) for i in range(canary)],
        *[Event("baseline", sticky=f"b{i}", **fields) for i in range(baseline)],
    ]


def test_shares_other_than_the_weights_are_a_sample_ratio_mismatch() -> None:
    """The sequential sample-ratio test of distinct sticky ids against the stage's weights."""
    (detail,) = window(crowd(400, 3600))["sample_ratio_mismatch"]
    assert detail["ids"] == {"canary": 404, "baseline": 3604}
    assert detail["weight"] == 0.05
    assert detail["share"] == pytest.approx(404 / 4008)
    assert detail["log_odds"] > 6.9
    assert window(crowd(200, 3800)) == {}


def test_requests_of_one_id_are_one_id() -> None:
    """counts of distinct sticky ids: requests of one id are not independent."""
    assert window([*crowd(196, 3796), *requests("canary", 3000)]) == {}


def test_gold_and_shadow_rows_are_outside_the_sample_ratio() -> None:
    """Gold rows are outside the sticky and sample-ratio checks."""
    for source in ("gold", "shadow"):
        gold = [Event("canary", source=source, sticky=f"g{i}") for i in range(2000)]
        assert "sample_ratio_mismatch" not in window([*crowd(200, 3800), *gold])


def test_exposures_are_ids_of_the_sample_ratio() -> None:
    """Sample ratio reads traffic rows, exposures included."""
    events = healthy()
    more = [Event("canary", kind="exposure", sticky=f"c{i}") for i in range(400)]
    more += [Event("baseline", kind="exposure", sticky=f"b{i}") for i in range(3600)]
    assert set(window([*events, *exposures(events), *more])) == {"sample_ratio_mismatch"}


def test_a_share_that_is_off_by_less_than_5_percent_of_its_weight_is_let_be() -> None:
    """only when the share is off by ≥ 5 % of its weight: however many ids prove it."""
    for canary, mismatch in ((48_000, False), (56_000, True)):
        drive = Drive(flag("traffic: {canary_weight: 0.5, baseline_weight: 0.5}"))
        drive.until(APPLIED)
        drive.unit.assignments.canary.add(ids(f"c{i}" for i in range(canary)))
        drive.unit.assignments.baseline.add(ids(f"b{i}" for i in range(50_000)))
        assert ("sample_ratio_mismatch" in found(drive.window(healthy()))) is mismatch


def test_the_ratio_is_not_tested_at_weight_0_or_1() -> None:
    """the ratio is not tested at weight 0 or 1: mirrored stages, and the last."""
    drive = Drive(flag("traffic: {shadow: true}"))
    shadows = [dataclasses.replace(e, source="shadow") for e in healthy() if e.arm == "canary"]
    others = [event for event in crowd(0, 4000) if event.arm == "baseline"]
    assert drive.window([*shadows, *others]).verdict == "promote"
    drive = Drive(flag("traffic: {stages: [0.05, 1.0]}"))
    drive.window(healthy())
    assert drive.window(crowd(0, 4000)).verdict == "pass"


def test_the_odds_of_finished_stages_add_up_each_with_its_own_weights() -> None:
    """summed over stages (each with its own θ): half the proof at each of two stages is proof."""
    half = crowd(88, 1100)
    single = Drive(flag())
    assert single.window(half).verdict == "promote"
    second = Drive(flag())
    second.window(healthy())
    assert "sample_ratio_mismatch" not in found(second.window(crowd(330, 770)))
    assert "sample_ratio_mismatch" in found(single.window(crowd(330, 770)))


def test_a_ratio_once_refuted_is_held_against_its_window_whatever_comes_in_it() -> None:
    """The test is sequential: later ids of the window do not take its finding back."""
    drive = Drive(flag())
    drive.until(APPLIED)
    drive.pane(crowd(400, 3600))
    later = [Event("baseline", sticky=f"later{i}") for i in range(4100)]
    assert "sample_ratio_mismatch" in found(drive.window([*healthy(), *later]))


def test_a_stage_whose_shares_are_right_again_promotes_once_as_many_ids_have_shown_it() -> None:
    """A finding over 4,000 ids stands until the next 4,000; it says how many are in so far."""
    drive = Drive(flag())
    drive.until(APPLIED)
    drive.pane(crowd(400, 3600))
    (first,) = found(drive.window(healthy()))["sample_ratio_mismatch"]
    n = sum(first["ids"].values())
    right = [Event("canary", sticky=f"rc{i}") for i in range(100)]
    right += [Event("baseline", sticky=f"rb{i}") for i in range(1900)]
    (second,) = found(drive.window([*healthy(), *right]))["sample_ratio_mismatch"]
    assert (second["ids_since"], second["ids_needed"]) == (2008, n)
    assert {name: second[name] for name in first} == first
    more = [dataclasses.replace(event, sticky=f"more-{event.sticky}") for event in right]
    assert drive.window([*healthy(), *more]).verdict == "promote"


def test_a_stage_whose_shares_stay_wrong_is_never_promoted() -> None:
    """The test goes on finding it, and between its findings the last one stands."""
    drive = Drive(flag())
    for n in range(12):
        events = [Event("canary", sticky=f"c{n}-{i}") for i in range(100)]
        events += [Event("baseline", sticky=f"b{n}-{i}") for i in range(900)]
        assert "sample_ratio_mismatch" in found(drive.window([*healthy(), *events])) or n == 0


def test_a_rollout_that_begins_before_services_apply_its_weight_goes_on() -> None:
    """Twenty seconds of baseline only, the first 2,000 ids of a rollout, are no mismatch: the first stage settles."""
    drive = Drive(flag())
    drive.pane([Event("baseline", sticky=f"a{i}") for i in range(1000)])
    drive.pane([Event("baseline", sticky=f"b{i}") for i in range(1000)])
    assert drive.window(healthy()).verdict == "promote"


@pytest.mark.parametrize("late", [1, 3, 12])
def test_a_rollout_whose_weight_is_applied_later_still_goes_on_after_it(late: int) -> None:
    """Some windows of baseline only are held, and then it is as if it had begun there."""
    drive = Drive(flag())
    for n in range(late):
        alone = [Event("baseline", sticky=f"b{n}-{i}") for i in range(1000)]
        assert drive.window(alone).verdict == "hold"
    verdicts = []
    for n in range(late + 4):
        events = [Event("canary", sticky=f"rc{n}-{i}") for i in range(50)]
        events += [Event("baseline", sticky=f"rb{n}-{i}") for i in range(950)]
        verdicts.append(drive.window([*healthy(), *events]).verdict)
    assert "promote" in verdicts


def test_a_restart_forgets_the_odds_of_the_stages_before() -> None:
    """A rearm begins a new test: half the proof before it and half after it are none."""
    drive = Drive(flag())
    assert drive.window(crowd(88, 1100)).verdict == "promote"
    assert drive.unit.assignments.odds > 0
    drive.operate("rearm")
    assert drive.unit.assignments.odds == 0


def test_the_odds_of_every_finished_stage_count() -> None:
    """summed over stages: the third begins with what the first and the second gave, not with the second alone."""
    drive = Drive(flag())
    drive.window(crowd(60, 1100))
    drive.window(crowd(290, 830))
    first = log_odds_sample_ratio((64, 1104), (0.05, 0.95))
    second = log_odds_sample_ratio((294, 834), (0.25, 0.75))
    assert drive.unit.assignments.odds == pytest.approx(first + second)


def test_an_id_of_any_earlier_canary_back_in_the_baseline_is_told() -> None:
    """Not only one of the stage just before."""
    drive = Drive(flag())
    drive.window([*healthy(), Event("canary", sticky="first")])
    drive.window([*healthy(), Event("canary", sticky="second")])
    decision = drive.window([*healthy(), *(Event("baseline", sticky=sticky) for sticky in ("first", "second"))])
    assert {w.code: w.count for w in decision.warnings}["canary_back_in_baseline"] == 2


# region_divergence


def regions(*names: str, body: str = "") -> dict[str, Drive]:
    """Regions of one flag, decided side by side as one gate decides them."""
    side_by_side = Regions()
    return {name: Drive(flag(body), region=name, regions=side_by_side) for name in names}


def together(drives: dict[str, Drive], events: Mapping[str, Sequence[Event]]) -> dict[str, Decision]:
    """One window of every region at once, all events in its last pane."""
    for drive in drives.values():
        drive.until(drive.unit.window.end - PANE)
    for name, drive in drives.items():
        drive.feed(events[name])
    return {name: drive.close()[-1] for name, drive in drives.items()}


def of_hash(name: str, n: int = 1) -> list[Event]:
    events = healthy()
    return [*events, *[dataclasses.replace(event, hash=name) for event in requests("canary", n)]]


def test_regions_of_one_flag_under_two_manifest_hashes_diverge() -> None:
    """region_divergence (regions of one flag under two manifest hashes): every region is told, with both."""
    decisions = together(regions("eu", "us"), {"eu": of_hash("h1"), "us": of_hash("h2")})
    for decision in decisions.values():
        assert decision.verdict == "hold"
        assert found(decision) == {"region_divergence": [{"regions": {"eu": ["h1"], "us": ["h2"]}}]}


def test_regions_under_one_manifest_do_not_diverge() -> None:
    """One hash everywhere, or none told, is no divergence; nor is a region that tells nothing."""
    for hashes in (("h", "h"), ("h", "")):
        events = {name: of_hash(told) if told else healthy() for name, told in zip(("eu", "us"), hashes, strict=True)}
        assert {d.verdict for d in together(regions("eu", "us"), events).values()} == {"promote"}


def test_one_region_alone_does_not_diverge() -> None:
    """Two hashes in one region are no two regions."""
    (decision,) = together(regions("eu"), {"eu": [*of_hash("h1"), *of_hash("h2")]}).values()
    assert found(decision) == {}


@pytest.mark.parametrize("source", ["traffic", "gold", "shadow"])
@pytest.mark.parametrize("kind", ["request", "exposure"])
def test_region_divergence_reads_every_event(kind: str, source: str) -> None:
    """client_evaluated and region_divergence read every event of the window but warm-up."""
    told = [Event("canary", kind=kind, source=source, hash="h2", sticky="canary-0")]
    extra = exposures(healthy()) if kind == "exposure" else []
    events = {"eu": of_hash("h1"), "us": [*healthy(), *extra, *told]}
    assert set(found(together(regions("eu", "us"), events)["us"])) == {"region_divergence"}


def test_a_divergence_ends_with_the_window() -> None:
    """Regions that agree again are compared by what their windows hold now."""
    drives = regions("eu", "us", body="window: {length: 1m, hold_windows: 9}")
    together(drives, {"eu": of_hash("h1"), "us": of_hash("h2")})
    decisions = together(drives, {"eu": of_hash("h2"), "us": of_hash("h2")})
    assert [found(decision) for decision in decisions.values()] == [{}, {}]


def test_manifest_hashes_beyond_the_cap_count_as_the_last() -> None:
    """Eight are told apart in a unit and window; rows of others are counted as the last of these."""
    detail = Detail()
    for i in range(HASHES_CAP + 3):
        detail.see_hash(f"h{i}", 2)
    assert list(detail.hashes) == [f"h{i}" for i in range(HASHES_CAP)]
    assert detail.hashes[f"h{HASHES_CAP - 1}"] == 8


# orphan_telemetry


def test_requests_of_ids_without_an_exposure_are_orphans() -> None:
    """orphan_telemetry: requests of ids that no exposure was reported for, where exposures are."""
    events = healthy()
    orphan = [Event("canary", sticky="orphan")]
    assert window([*events, *exposures(events)]) == {}
    problems = window([*exposures(events), *events, *orphan])
    assert problems == {"orphan_telemetry": [{"ids": 1, "of": 9, "limit": 0.01}]}


def test_without_any_exposure_there_are_no_orphans() -> None:
    """orphan_telemetry only once a unit has sent exposures."""
    assert window([*healthy(), Event("canary", sticky="orphan")]) == {}


def test_an_exposure_lasts() -> None:
    """An id is exposed once for all windows to come; one that never was is an orphan in each."""
    drive = Drive(flag("window: {length: 1m, hold_windows: 9}"))
    drive.window([*healthy(), *exposures(healthy())])
    assert found(drive.window(healthy())) == {}
    for _ in range(2):
        assert "orphan_telemetry" in found(drive.window([*healthy(), Event("baseline", sticky="orphan")]))


def test_up_to_1_percent_of_ids_may_lack_an_exposure() -> None:
    """Exposures may be late or lost like any event: one id in a hundred."""
    events = [*healthy(), *[Event("baseline", sticky=f"b{i}") for i in range(192)]]
    assert len(exposures(events)) == 200
    for missing in (2, 3):
        shown = exposures(events)[missing:]
        assert ("orphan_telemetry" in window([*events, *shown])) is (missing == 3)


@pytest.mark.parametrize("source", ["gold", "shadow"])
def test_gold_and_shadow_rows_need_no_exposure(source: str) -> None:
    """Nobody is exposed to them."""
    events = healthy()
    more = [Event("canary", source=source, sticky=f"g{i}") for i in range(20)]
    assert window([*events, *exposures(events), *more]) == {}


# drift kinds


@pytest.mark.parametrize(
    ("arm", "pin", "body", "kind"),
    [
        ("canary", "MODEL_VER", "versions: {MODEL_VER: m}", "against_manifest"),
        ("canary", "INDEX_HASH", "versions: {INDEX_HASH: i}", "against_manifest"),
        ("baseline", "INDEX_HASH", "baseline_versions: {INDEX_HASH: i}", "against_manifest"),
        ("canary", "MODEL_VER", "", "within_arm"),
        ("baseline", "TOK_VER", "versions: {TOK_VER: t}", "within_arm"),
        ("canary", "INDEX_HASH", "", "alias_flip"),
        ("baseline", "INDEX_HASH", "versions: {INDEX_HASH: i}", "alias_flip"),
    ],
)
def test_drift_against_the_manifest_within_an_arm_and_alias_flips_are_told_apart(
    arm: str, pin: str, body: str, kind: str
) -> None:
    """pin drift against the manifest and within an arm; alias flips: INDEX_HASH changed with the manifest unchanged."""
    (detail,) = window([*healthy(), Event(arm, pins=pinned(**{pin: "moved"}))], body)["pins_drifted"]
    assert (detail["arm"], detail["pin"], detail["kind"]) == (arm, pin, kind)


# window_unstable


def test_a_late_share_over_late_max_makes_a_window_unstable() -> None:
    """share = late ÷ (late + accepted), over 1 %; equality is fine."""
    events = [*healthy(43), Event("baseline", sticky="x")]
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
    events = [*healthy(43), Event("baseline", sticky="x")]
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
