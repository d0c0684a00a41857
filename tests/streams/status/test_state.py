"""What the status page remembers: the newest of every unit, each decision once, and never more than its bounds."""

import asyncio

import msgspec
import pytest

from tests.commands.test_explain import ABORT, PROMOTE, decided
from tidegate.schemas.decision import Command, Decision, Weights, command_for, seal_decision
from tidegate.streams.status import state as bounds
from tidegate.streams.status.state import StatusState
from tidegate.streams.status.views import all_units, unit_view

NOW = 1_756_636_320_000
LATER = 900_000


def at(decision: Decision, flag: str = "answer", later: int = 0) -> Decision:
    span = msgspec.structs.replace(
        decision.window, start=decision.window.start + later, end=decision.window.end + later
    )
    moved = msgspec.structs.replace(
        decision, flag=flag, region="eu", window=span, decided_at=decision.decided_at + later
    )
    return seal_decision(moved, None)


def order(decision: Decision, canary: float, seq: int = 1) -> Command:
    return command_for(
        decision,
        seq=seq,
        action="promote",
        severity=None,
        weights=Weights(baseline=1 - canary, canary=canary),
        previous_weights=Weights(baseline=0.95, canary=0.05),
        effective_from=decision.decided_at + 20_000,
        rule=None,
    )


def filled(*decisions: Decision) -> StatusState:
    state = StatusState()
    for decision in decisions:
        state.decided(decision.to_bytes(), NOW)
    return state


def test_a_repeat_and_what_is_no_record_change_nothing() -> None:
    stop = at(ABORT, later=LATER)
    state = filled(at(PROMOTE), stop)
    before = all_units(state, NOW)
    state.decided(at(PROMOTE).to_bytes(), NOW + 1)
    for value in (None, b"", b"{}", b"\xff"):
        state.decided(value, NOW + 1)
        state.commanded(value)
    assert all_units(state, NOW) == before
    assert before["units"][0]["decision_id"] == stop.decision_id


def test_the_weight_is_the_last_commands_and_without_one_what_the_decisions_come_to() -> None:
    promote = at(PROMOTE)
    state = filled(promote)
    assert all_units(state, NOW)["units"][0]["canary_weight"] == 0.25
    state.commanded(order(promote, 0.3, seq=2).to_bytes())
    state.commanded(order(at(PROMOTE, later=-LATER), 0.1, seq=1).to_bytes())
    assert all_units(state, NOW)["units"][0]["canary_weight"] == 0.3
    view = unit_view(state, ("answer", "eu"), NOW)
    assert view["ramp"][-1] == {
        "at": promote.decided_at + 20_000,
        "canary_weight": 0.3,
        "decision_id": promote.decision_id,
    }


def test_a_stopped_unit_shows_the_gates_of_the_decision_that_stopped_it() -> None:
    stop = at(ABORT, later=LATER)
    latched = at(decided("hold", ["latched"]), later=2 * LATER)
    view = unit_view(filled(at(PROMOTE), stop, latched), ("answer", "eu"), NOW)
    assert (view["because_id"], view["because_at"]) == (stop.decision_id, stop.decided_at)
    assert {row["gate"]: row["value"] for row in view["gates"]} == {gate.gate: gate.observed for gate in stop.gates}
    assert view["decision_id"] == latched.decision_id


def test_both_arms_medians_and_tails_stand_by_the_decision_that_judged_them() -> None:
    series = unit_view(filled(at(PROMOTE), at(ABORT, later=LATER)), ("answer", "eu"), NOW)["series"]
    assert series["at"] == [PROMOTE.decided_at, ABORT.decided_at + LATER]
    for arm in ("canary", "baseline"):
        assert series[arm]["latency_p95"] == [PROMOTE.arms[arm].latency_p95, ABORT.arms[arm].latency_p95]
        assert series[arm]["delta_s_p50"] == [PROMOTE.arms[arm].delta_s_p50, ABORT.arms[arm].delta_s_p50]


def test_memory_is_bounded_in_units_windows_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SHOWN_UNITS_MAX", 3)
    monkeypatch.setattr(bounds, "UNIT_WINDOWS_MAX", 5)
    monkeypatch.setattr(bounds, "WINDOWS_IN_ALL", 8)
    monkeypatch.setattr(bounds, "RECORD_BYTES", 3 * len(at(PROMOTE).to_bytes()))
    monkeypatch.setattr(bounds, "COMMANDS_MAX", 2)
    state, decisions = StatusState(), list[Decision]()
    for n in range(12):
        for flag in "abcde":
            decisions.append(at(PROMOTE, flag, n * LATER))
            state.decided(decisions[-1].to_bytes(), NOW)
            state.commanded(order(decisions[-1], 0.25, seq=n + 1).to_bytes())
    assert state.units == [(flag, "eu") for flag in "abc"]
    assert all_units(state, NOW)["not_shown"] == 2
    kept = [len(state.history(unit).decisions) for unit in state.units]
    assert sum(kept) <= 8
    assert all(1 <= count <= 5 for count in kept)
    assert all(len(state.history(unit).commands) <= 2 for unit in state.units)
    assert sum(len(state.find(one.decision_id)) for one in decisions) <= 3
    assert len(state.find(decisions[-3].decision_id)) == 1
    last = [one for one in decisions if one.flag == "c"][-1]
    assert unit_view(state, ("c", "eu"), NOW)["decision_id"] == last.decision_id


def test_a_slow_listener_holds_each_unit_once_and_too_many_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LISTENERS_MAX", 1)

    async def listen() -> None:
        state = StatusState()
        with state.listening() as listener, state.listening() as second:
            assert second is None
            assert listener is not None
            for n in range(50):
                state.decided(at(PROMOTE, later=n * LATER).to_bytes(), NOW)
            assert await listener.changes(1) == [("answer", "eu")]
            assert await listener.changes(0.01) == []
        with state.listening() as third:
            assert third is not None

    asyncio.run(listen())


def test_an_id_is_found_by_its_first_digits() -> None:
    promote, stop = at(PROMOTE), at(ABORT, later=LATER)
    state = filled(promote, stop)
    digits = promote.decision_id.removeprefix("sha256:")
    for written in (digits, digits[:8], promote.decision_id, digits[:10].upper()):
        assert state.find(written) == [promote.to_bytes()]
    assert state.find("0123") == state.find("nothex!!") == []
