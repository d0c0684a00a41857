"""The modelled service, closed in memory with the core that decides."""

import re
from pathlib import Path

import pytest

from tests.streams.play import CLOCKWORK, Play, play, trace
from tidegate.gates.evidence import DETECTORS
from tidegate.schemas.decision import Command, Weights
from tidegate.schemas.errors import InputError
from tidegate.schemas.event import encode
from tidegate.schemas.load import load_manifest
from tidegate.streams.simulation.scenarios import LABEL_DELAY, SCENARIOS
from tidegate.streams.simulation.service import Arrival, Router, read_trace

MINUTE = 60_000


KINDS = {"quality_gated", "cost_guard", "safety_guard", "kill_switch", "progressive_rollout"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_ends_as_it_says(name: str) -> None:
    """In each region the verdicts follow in the promised order, within the trace, and every hold names the problem."""
    scenario, played = SCENARIOS[name], play(name)
    assert len(played.simulation.sites) == scenario.regions
    for unit in played.simulation.sites:
        decisions = played.of(unit)
        assert tuple(decision.verdict for decision in decisions) == scenario.verdicts
        assert {decision.kind for decision in decisions} == {scenario.kind}
        for decision in decisions:
            found = [problem.problem for problem in decision.evidence_problems]
            if scenario.problem is not None and decision.verdict == "hold":
                assert scenario.problem in found
                assert scenario.problem in decision.reasons
            else:
                assert decision.reasons == ["latched"] or found == []


def test_every_kind_of_flag_and_every_evidence_problem_has_a_scenario() -> None:
    """What the gates can find, the demo can show."""
    assert {scenario.kind for scenario in SCENARIOS.values()} == KINDS
    shown = {scenario.problem for scenario in SCENARIOS.values()} - {None}
    assert shown == {detector.__name__ for detector in DETECTORS}


@pytest.mark.parametrize("name", [name for name, s in SCENARIOS.items() if s.problem and name != "no-baseline"])
def test_nothing_but_the_evidence_problem_stands_in_the_way(name: str) -> None:
    """The hold has one reason, and no gate has failed."""
    for hold in (decision for decision in play(name).told if decision.verdict == "hold"):
        assert hold.reasons == [SCENARIOS[name].problem]
        assert "fail" not in {gate.status for gate in hold.gates}


def test_a_ramp_goes_on_once_the_evidence_is_sound_again() -> None:
    """All but a swapped index, and what goes on all the while, end with the next promote."""
    stuck = {name for name, s in SCENARIOS.items() if s.problem and s.verdicts[-1] != "promote"}
    assert stuck == {"pins", "sample-ratio-mismatch", "shadow-leak"}


def test_shadow_judges_mirrored_requests_before_a_user_is_served() -> None:
    """In the stage of weight 0 the canary's evidence is copies of the requests; after it there are none."""
    played = play("shadow")
    assert [decision.stage.canary_weight for decision in played.told] == [0.0, 0.05, 0.25, 0.5, 1.0]
    shadow, first, *_ = (decision.arms["canary"] for decision in played.told)
    assert (shadow.traffic, first.shadow) == (0, 0)
    assert shadow.shadow == played.told[0].arms["baseline"].traffic > 1_000
    served = [e for e in played.events if e.arm == "canary" and e.source is None]
    assert min(e.ts for e in served) >= played.commands[0].effective_from


def test_a_closed_quality_gate_serves_nobody_and_is_probed_nevertheless() -> None:
    """While it is closed the canary's evidence is the gold set alone."""
    opened, stays_open, closes, stays_closed, again = play("quality-gate").decisions
    assert [d.arms["canary"].traffic > 100 for d in (opened, stays_open, closes)] == [False, True, True]
    for closed in (opened, stays_closed, again):
        # A close is known, and obeyed, when the watermark has reached it.
        assert closed.arms["canary"].traffic < 50
        assert closed.arms["canary"].gold == 120
    assert [command.action for command in play("quality-gate").commands] == ["open", "close", "open"]


def test_the_service_obeys_its_guards() -> None:
    """After a degrade failed reason steps are served cite-only; after a fallback an answer costs less."""
    safe = play("safety-guard")
    degrade, restore = safe.commands
    failed = [e for e in safe.events if e.reason_status == "failed"]
    assert {e.output_mode for e in failed if e.ts < degrade.effective_from} == {"full"}
    obeyed = degrade.effective_from + CLOCKWORK.lateness_ms
    assert {e.output_mode for e in failed if obeyed <= e.ts < restore.effective_from} == {"cite_only"}
    dear, light = (play("cost-guard").decisions[at].gates[-1].observed for at in (1, 2))
    assert dear is not None
    assert light is not None
    assert dear > light > 0.10


def test_a_kill_reaches_every_region_and_no_user_is_in_the_canary_after_it() -> None:
    """It is carried out at the time it was ordered."""
    played = play("kill-switch")
    kills = {command.region: command for command in played.commands}
    assert kills.keys() == {"us-east-1", "eu-west-1"}
    assert {command.weights.canary for command in kills.values()} == {0.0}
    (ordered,) = {command.effective_from for command in kills.values()}
    before = [e.arm for e in played.events if e.arm and e.ts < ordered]
    after = [e.arm for e in played.simulation.advance(played.simulation.now + MINUTE) if e.arm]
    assert "canary" in before
    assert set(after) == {"baseline"}


def test_labels_come_minutes_after_their_requests_and_quality_rests_on_them() -> None:
    """Requests carry no quality of their own."""
    played = play("labels")
    requests = {e.event_id: e for e in played.events if e.kind == "request"}
    labels = [e for e in played.events if e.kind == "label"]
    delays = {e.ts - requests[e.labels_event_id].ts for e in labels}
    assert delays == {LABEL_DELAY * played.simulation.flag.window.length_ms}
    assert {e.delta_s for e in requests.values()} == {None}
    for decision in played.decisions:
        assert decision.evidence is not None
        assert decision.arms["canary"].labels > 120
        assert decision.arms["canary"].lambda_complete == 20 * decision.evidence.windows


@pytest.mark.parametrize(
    ("name", "manifest", "message"),
    [
        ("cost-guard", "f: {}", "it needs a flag with kind: cost_guard in f"),
        ("shadow", "f: {}", "it needs a flag with shadow: true in f.traffic"),
        ("assignment-mismatch", "f: {}", "it needs a flag with assignment: sha256 in f.policy"),
        ("region-divergence", "f: {scope: {regions: [eu]}}", "it needs a flag with 2 regions in f.scope.regions"),
        ("errors", "f: {kind: quality_gated}", "it needs a flag with kind: progressive_rollout in f"),
    ],
)
def test_a_flag_that_a_scenario_cannot_happen_to_is_refused(name: str, manifest: str, message: str) -> None:
    """The key and the value are named; the demo's own flag is always made to fit."""
    with pytest.raises(InputError, match=re.escape(message)):
        SCENARIOS[name].check(load_manifest(f"flags: {{{manifest}}}").flags["f"])
    SCENARIOS[name].check(play(name).simulation.flag)


def test_healthy_ramps_to_all_traffic_without_an_evidence_problem() -> None:
    """5, 25, 50, 100 %, each once the evidence of its windows settles every gate."""
    healthy = play("healthy")
    assert [decision.stage.canary_weight for decision in healthy.told] == [0.05, 0.25, 0.5, 1.0]
    assert [command.weights.canary for command in healthy.commands] == [0.25, 0.5, 1.0]
    assert all(decision.evidence_problems == [] for decision in healthy.decisions)
    for decision in healthy.told:
        assert {gate.status for gate in decision.gates} == {"pass"}


def test_drift_is_rolled_back_as_soon_as_a_gate_on_delta_s_is_proven_over_its_limit() -> None:
    """Nothing but ΔS is out of bounds, and the window goes on for minutes more."""
    back = play("drift").told[1]
    assert back.reasons == ["delta_s.median_max"]
    assert {g.gate for g in back.gates if g.status == "fail"} == {"delta_s.median_max"}
    assert not back.window.closed


def test_the_same_few_errors_are_chance_to_a_stage_and_a_fault_to_a_single_window() -> None:
    """Sequential evidence waits, and promotes; point evidence rolls a canary back that is within its limit."""
    staged, by_point = play("few-errors"), play("few-errors-by-point")
    assert "rollback" not in {decision.verdict for decision in staged.decisions}
    assert by_point.told[-1].reasons == ["error_rate_max"]


def test_slow_freezes_first_and_rolls_back_on_the_second_strike() -> None:
    """The freeze leaves the weights as they are."""
    _, freeze, rollback = play("slow").commands
    assert (freeze.action, freeze.weights.canary) == ("freeze", 0.25)
    assert (rollback.action, rollback.weights.canary, rollback.severity) == ("rollback", 0.0, "soft")


def test_errors_abort_long_before_the_window_ends() -> None:
    """The bound is sure within minutes of the burst."""
    abort = play("errors").told[1]
    assert abort.reasons == ["error_rate_over"]
    assert not abort.window.closed
    assert abort.decided_at < abort.window.start + (abort.window.end - abort.window.start) / 2


def test_pins_hold_although_all_gates_pass() -> None:
    """What was swapped, and from what, is in the record."""
    for hold in play("pins").told[1:]:
        assert "fail" not in {gate.status for gate in hold.gates}
        (problem,) = hold.evidence_problems
        assert problem.problem == "pins_drifted"
        assert (problem.detail["arm"], problem.detail["pin"]) == ("canary", "INDEX_HASH")


def test_the_same_seed_gives_the_same_events_and_another_seed_others() -> None:
    """Nothing but trace, scenario, seed and commands decides what is sent."""
    once, again, other = play("tool-loop"), Play("tool-loop"), Play("tool-loop", seed=2)
    assert [encode(e) for e in once.events] == [encode(e) for e in again.events]
    assert [d.to_bytes() for d in once.decisions] == [d.to_bytes() for d in again.decisions]
    assert [encode(e) for e in once.events] != [encode(e) for e in other.events]


def test_events_come_in_order_of_time_and_carry_no_id_twice() -> None:
    """Nothing the simulation sends is late or a duplicate, also across its steps."""
    events = play("slow").events
    assert [e.ts for e in events] == sorted(e.ts for e in events)
    ids = [e.event_id for e in events if e.kind == "request"]
    assert len(set(ids)) == len(ids)
    for decision in play("slow").decisions:
        assert (decision.late, decision.duplicates, decision.dead_letters) == (0, 0, 0)


def test_every_window_has_a_whole_gold_set_of_each_arm_that_serves() -> None:
    """20 questions × 3 paraphrases × 2 seeds, complete within the window, also after a freeze."""
    for decision in [*play("healthy").decisions, *play("slow").decisions]:
        if not decision.window.closed or "latched" in decision.reasons:
            continue
        assert decision.evidence is not None
        windows = decision.evidence.windows
        assert decision.arms["canary"].gold == 120 * windows
        assert decision.arms["canary"].lambda_complete == 20 * windows
        if decision.stage.canary_weight < 1:
            assert decision.arms["baseline"].lambda_complete == 20 * windows


def test_arms_are_sticky_by_the_published_hash() -> None:
    """A user who was in the canary stays there while the weight grows."""
    router = Router(0.05)
    users = [f"user-{n}" for n in range(2_000)]
    small = {user for user in users if router.arm("f", "r", user, 0) == "canary"}
    router.apply(promote(1, 0.25, effective_from=100))
    large = {user for user in users if router.arm("f", "r", user, 100) == "canary"}
    assert small < large
    assert len(small) / len(users) == pytest.approx(0.05, abs=0.02)
    assert len(large) / len(users) == pytest.approx(0.25, abs=0.03)
    # SHA-256("f:user-1") begins with 1cf9e18b, a bucket of 0.113; "f:user-2" with 57b2346c, 0.343.
    assert ("user-1" in small, "user-1" in large) == (False, True)
    assert "user-2" not in large


def promote(seq: int, canary: float, *, effective_from: int, action: str = "promote") -> Command:
    weights = Weights(baseline=1 - canary, canary=canary)
    sha = "sha256:" + f"{seq:064x}"
    return Command(
        command_id=sha,
        seq=seq,
        flag="f",
        region="r",
        action=action,  # type: ignore[arg-type]
        severity=None,
        weights=weights,
        previous_weights=weights,
        effective_from=effective_from,
        reasons=[],
        rule=None,
        decision_id=sha,
        manifest_hash=sha,
    )


def test_a_command_takes_effect_at_its_moment_and_an_abort_outlives_a_promote_before_it() -> None:
    """The abort of a settling stage is in effect earlier than the promote it stops."""
    router = Router(0.05)
    router.apply(promote(1, 0.25, effective_from=200))
    assert (router.weight("f|r", 199), router.weight("f|r", 200)) == (0.05, 0.25)
    router.apply(promote(2, 0.0, effective_from=150, action="abort"))
    assert [router.weight("f|r", ts) for ts in (149, 150, 200, 10_000)] == [0.05, 0.0, 0.0, 0.0]
    assert router.weight("f|other", 10_000) == 0.05


def test_the_trace_is_read_whole() -> None:
    """19,366 requests in 58 minutes."""
    assert len(trace()) == 19_366
    assert trace()[0] == Arrival(0, 374, 44)
    assert 58 * MINUTE < trace()[-1].at < 59 * MINUTE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46.68,3\n", ":2: KeyError: 'GeneratedTokens'; a trace has"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1,2\nnoon,1,2\n", ":3: ValueError"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1\n", ":2: TypeError"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    """One line that names file and place."""
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"trace\.csv") as caught:
        read_trace(path)
    assert message in str(caught.value)


def test_a_missing_trace_is_an_input_error(tmp_path: Path) -> None:
    """Also where the name promises gzip and the content is none."""
    with pytest.raises(InputError, match="No such file"):
        read_trace(tmp_path / "trace.csv")
    (tmp_path / "trace.csv.gz").write_bytes(b"plain")
    with pytest.raises(InputError, match="trace"):
        read_trace(tmp_path / "trace.csv.gz")
