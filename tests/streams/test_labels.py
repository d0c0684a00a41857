"""Labels count for the stage that saw their request: from records to decisions."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.streams.events import CLOCKWORK, LATENESS, NOON, PANE, PINS, RAMP, flags, probes, served, tick, written
from tests.streams.test_corrections import STEADY, Watch
from tidegate.schemas.decision import Decision
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.replay import replay
from tidegate.streams.engine.event_classes import hash_of
from tidegate.streams.engine.tally import Tally

pytestmark = pytest.mark.usefixtures("decoder")

SILENT = {"delta_s": None, "coverage": None, "solved": None}
WORDS = {"delta_s": 0.05, "coverage": 0.9, "solved": True}


def label_of(request: str, ts: int, arm: str, **fields: Any) -> dict[str, Any]:
    """An evaluator's word on a request."""
    named = {"kind": "label", "ts": ts, "flag": "f", "arm": arm, "sticky_id": "s", "labels_event_id": request}
    return {**named, **WORDS, **fields}


def unmeasured(start: int = NOON) -> list[dict[str, Any]]:
    """A window of both arms that tells λ, latency and cost, and nothing that an evaluator would."""
    events = []
    for arm in ("baseline", "canary"):
        events += probes("q", start, arm, **SILENT)
        events += [served(i, start + 10 * i, arm, **SILENT) for i in range(60 if arm == "baseline" else 20)]
    return events


def decided(
    tmp_path: Path, events: list[dict[str, Any]], tally: Tally | None = None, partitions: int = 1
) -> list[Decision]:
    """What a replay of a file of events decides, all panes closed."""
    log = tmp_path / "log.ndjson"
    told = [*sorted(events, key=lambda event: event["ts"]), {"kind": "tick", "ts": NOON + 45_000}]
    log.write_text("".join(json.dumps(event) + "\n" for event in told))
    outcomes = replay([log], Timeline.of(flags(RAMP)), partitions, CLOCKWORK, tally=tally)
    return [decision for decision, _ in outcomes]


def test_labels_of_requests_that_the_rollout_never_saw_promote_nothing(tmp_path: Path) -> None:
    """A hundred of an earlier canary's, late: they give this one neither ΔS nor coverage."""
    words = [label_of(f"old {arm} {i}", NOON + 15_000, arm) for arm in ("baseline", "canary") for i in range(100)]
    first = decided(tmp_path, [*unmeasured(), *words])[0]
    assert (first.verdict, first.arms["canary"].delta_s_rows, first.arms["canary"].labels) == ("hold", 0, 0)
    assert {gate.status for gate in first.gates if gate.gate in ("delta_s.p95_max", "coverage_min")} == {"unknown"}


def test_labels_of_the_stages_own_requests_promote(tmp_path: Path) -> None:
    """The same words on requests that the stage served."""
    requests = unmeasured()
    words = [label_of(request["event_id"], NOON + 15_000, request["arm"]) for request in requests]
    assert decided(tmp_path, [*requests, *words])[0].verdict == "promote"


@pytest.mark.parametrize("partitions", [1, 2, 4])
def test_it_does_not_matter_which_partitions_requests_and_labels_came_through(partitions: int, tmp_path: Path) -> None:
    """Labels are keyed by another sticky id than their request here."""
    requests = unmeasured()
    words = [label_of(request["event_id"], NOON + 15_000, request["arm"]) for request in requests]
    words = [word | {"sticky_id": f"evaluator {i % 7}"} for i, word in enumerate(words)]
    found, alone = (decided(tmp_path, [*requests, *words], partitions=n)[0] for n in (partitions, 1))
    assert (found.verdict, found.arms, found.gates) == ("promote", alone.arms, alone.gates)


def test_a_replay_says_how_many_labels_are_of_no_request_that_their_stage_saw(tmp_path: Path) -> None:
    """They are among those left out."""
    words = [label_of(f"old {i}", NOON + 15_000, "canary") for i in range(100)]
    tally = Tally()
    decided(tmp_path, [*unmeasured(), *words, label_of("canary/1", NOON + 15_000, "canary")], tally)
    assert tally.labels == {"labels": 1, "labels_foreign": 100}
    assert "93 events counted; left out: 100 labels of no request that their stage saw" in tally.told()


# -- labels that come late --------------------------------------------------------------------------------------------


def late_words(watch: Watch, events: list[dict[str, Any]]) -> None:
    """Events whose panes are closed, and a tick that closes the pane that they came in."""
    mark = watch.states[0].watermark
    assert mark is not None
    watch.read([*written(events), tick(mark + LATENESS + 2 * PANE)])


@pytest.mark.parametrize("restarts", [False, True])
def test_late_labels_of_a_windows_own_requests_correct_it_and_foreign_ones_do_not(*, restarts: bool) -> None:
    """A window that passed would have been aborted, had what its evaluator says come in time."""
    bad = [label_of(f"old {i}", NOON + PANE + 7, "canary", coverage=0.0) for i in range(20)]
    own = [label_of(f"canary/{NOON + PANE}/{p}{s}", NOON + PANE + 7, "canary") for p in (1, 2, 3) for s in (1, 2)]
    own = [word | {"coverage": 0.0} for word in own]
    for late, corrections in ((bad, []), ([*bad, *own], [(0, "pass", "abort")])):
        watch = Watch(restarts=restarts)
        watch.panes(0, 2)
        late_words(watch, late)
        assert watch.said() == corrections
    assert (watch.corrections[0].arms["canary"].labels, watch.corrections[0].arms["canary"].labels_foreign) == (6, 20)


@pytest.mark.parametrize("restarts", [False, True])
def test_late_labels_of_the_stage_before_correct_its_last_window(*, restarts: bool) -> None:
    """Its requests are remembered until the next window is decided, and then no longer."""
    watch = Watch(RAMP, restarts=restarts)
    watch.panes(0, 4)
    assert [decision.verdict for decision in watch.decisions] == ["promote"]
    own = [label_of(f"canary/{NOON + PANE}/{p}{s}", NOON + PANE + 7, "canary") for p in (1, 2, 3) for s in (1, 2)]
    late_words(watch, [word | {"coverage": 0.0} for word in own])
    assert watch.said() == [(0, "promote", "abort")]
    assert watch.decisions[-1].window.start == NOON + 4 * PANE
    assert next(iter(watch.gate.ramps.values())).unit.earlier is None


@pytest.mark.parametrize("restarts", [False, True])
def test_a_label_in_time_of_a_request_that_came_late_is_no_foreign_one(*, restarts: bool) -> None:
    """The stage served it, whatever became of its telemetry; a request from before the stage stays foreign."""
    watch = Watch(STEADY, restarts=restarts)
    watch.panes(0, 3)
    late = [served("late", NOON + PANE, "canary"), served("before", NOON - PANE, "canary")]
    later = NOON + 4 * PANE
    watch.read(written([*late, *(label_of(f"canary/{name}", later + 1, "canary") for name in ("late", "before"))]))
    watch.panes(4, 6)
    arm = watch.decisions[-1].arms["canary"]
    assert (watch.decisions[-1].window.start, arm.labels, arm.labels_foreign) == (later, 1, 1)


@pytest.mark.parametrize("restarts", [False, True])
def test_pins_that_are_locked_after_a_window_was_decided_are_none_of_its_own(*, restarts: bool) -> None:
    """Late events of the window are held to the pins of then, with a restart in between and without."""
    text = STEADY.replace("versions:", "baseline_versions: {OTHER: o}\n    versions:", 1)
    watch = Watch(text, restarts=restarts)
    watch.panes(0, 2)
    named = [
        served(name, ts, "canary", versions=PINS | {"OTHER": other})
        for name, ts, other in (("new", NOON + 2 * PANE, "x"), ("late", NOON + PANE, "y"))
    ]
    watch.read([*written(named), tick(NOON + 5 * PANE)])
    assert [decision.verdict for decision in watch.decisions] == ["pass", "hold"]
    assert watch.said() == []


@pytest.mark.parametrize("seed", range(8))
def test_restarts_cuts_and_partitions_in_any_order_hear_the_same_labels(seed: int) -> None:
    """Requests and labels of two partitions, in time and late, of this stage and of none."""
    rng = random.Random(seed)
    logs: list[list[dict[str, Any]]] = [[], []]
    for pane in range(8):
        at = NOON + pane * PANE
        for arm in ("baseline", "canary"):
            for number in range(8):
                name = f"{pane}/{number}"
                logs[rng.randrange(2)].append(served(name, at + number, arm, **SILENT))
                of, behind = rng.randrange(max(pane - 2, 0), pane + 1), rng.choice([0, 0, 0, 2, 3])
                word = label_of(f"{arm}/{of}/{rng.randrange(10)}", max(at - behind * PANE, NOON) + 9, arm)
                logs[rng.randrange(2)].append(word)
    ends = [*logs[0], {"kind": "tick", "ts": NOON + 200_000}], [*logs[1], {"kind": "tick", "ts": NOON + 200_000}]
    told = []
    for restarts, whole in ((False, True), (False, False), (True, False)):
        watch = Watch(RAMP, partitions=2, restarts=restarts)
        rest = [written(list(end)) for end in ends]
        while any(rest):
            partition = rng.randrange(2) if all(rest) else int(bool(rest[1]))
            cut = len(rest[partition]) if whole else rng.randrange(1, 40)
            watch.read(rest[partition][:cut], partition)
            del rest[partition][:cut]
        told.append([one.to_bytes() for one in watch.decisions] + [one.to_bytes() for one in watch.corrections])
    assert told[0] == told[1] == told[2]
    counts = [arm for decision in watch.decisions for arm in decision.arms.values()]
    assert sum(arm.labels for arm in counts) > 10
    assert sum(arm.labels_foreign for arm in counts) > 5


def test_of_very_many_requests_a_pane_sends_on_those_of_the_smallest_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record has to hold them; the stage then follows as few."""
    monkeypatch.setattr("tidegate.gates.window.PANE_REQUESTS_CAP", 8)
    watch = Watch()
    watch.read(written([served(i, NOON, "canary") for i in range(50)]))
    watch.read([tick(NOON + 3 * PANE)])
    sample = next(iter(watch.gate.ramps.values())).unit.requests.of("canary", "traffic")
    every = sorted(hash_of(f"canary/{i}") for i in range(50))
    assert sample.ids.tolist() == [one for one in every if one < 1 << 64 - sample.level]
    assert 0 < len(sample.ids) <= 8 < sum(one < 1 << 65 - sample.level for one in every)
