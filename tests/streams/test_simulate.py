"""The modelled service, closed in memory with the core that decides."""

from pathlib import Path

import pytest

from schemas.decision import Command, Weights
from schemas.errors import InputError
from schemas.event import encode
from streams.simulate import SCENARIOS, Arrival, Router, read_trace
from tests.streams.play import Play, play, trace

MINUTE = 60_000


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_ends_as_it_says(scenario: str) -> None:
    """The verdicts follow in the promised order, and all of them within the trace."""
    assert tuple(decision.verdict for decision in play(scenario).decisions) == SCENARIOS[scenario].verdicts


def test_healthy_ramps_to_all_traffic_without_an_evidence_problem() -> None:
    """5, 25, 50, 100 %, each on a window of its own, with every gate known."""
    healthy = play("healthy")
    assert [decision.stage.canary_weight for decision in healthy.decisions] == [0.05, 0.25, 0.5, 1.0]
    assert [command.weights.canary for command in healthy.commands] == [0.25, 0.5, 1.0]
    for decision in healthy.decisions:
        assert decision.evidence_problems == []
        assert {gate.status for gate in decision.gates} == {"pass"}


def test_drift_aborts_by_the_hard_rule_on_delta_s() -> None:
    """Nothing but ΔS is out of bounds."""
    abort = play("drift").decisions[1]
    assert abort.reasons == ["delta_s_p95_over"]
    assert {g.gate for g in abort.gates if g.status != "pass"} == {"delta_s.median_max", "delta_s.p95_max"}


def test_slow_freezes_first_and_rolls_back_on_the_second_strike() -> None:
    """The freeze leaves the weights as they are."""
    _, freeze, rollback = play("slow").commands
    assert (freeze.action, freeze.weights.canary) == ("freeze", 0.25)
    assert (rollback.action, rollback.weights.canary, rollback.severity) == ("rollback", 0.0, "soft")


def test_errors_abort_long_before_the_window_ends() -> None:
    """The bound is sure within minutes of the burst."""
    abort = play("errors").decisions[1]
    assert abort.reasons == ["error_rate_over"]
    assert not abort.window.closed
    assert abort.decided_at < abort.window.start + (abort.window.end - abort.window.start) / 2


def test_pins_hold_although_all_gates_pass() -> None:
    """What was swapped, and from what, is in the record."""
    for hold in play("pins").decisions[1:]:
        assert {gate.status for gate in hold.gates} == {"pass"}
        (problem,) = hold.evidence_problems
        assert problem.problem == "pins_drifted"
        assert (problem.detail["arm"], problem.detail["pin"]) == ("canary", "INDEX_HASH")


def test_the_same_seed_gives_the_same_events_and_another_seed_others() -> None:
    """Nothing but trace, scenario, seed and commands decides what is sent."""
    once, again, other = play("errors"), Play("errors"), Play("errors", seed=2)
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
    for decision in [*play("healthy").decisions, *play("slow").decisions[:3]]:
        assert decision.arms["canary"].gold == 120
        assert decision.arms["canary"].lambda_complete == 20
        assert decision.arms["baseline"].lambda_complete == 20


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
