"""What sequential evidence promises of many rollouts: few healthy stages are stopped, few bad ones are promoted."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from tests.gates.build import CLOCKWORK, flag
from tidegate.gates.arrays import Ints
from tidegate.gates.metrics import rate_surely_over
from tidegate.gates.sequential import Levels, Proportion
from tidegate.gates.stage import StageEvidence
from tidegate.gates.staged import StagedRamp
from tidegate.gates.sums import COUNTERS, Sums
from tidegate.gates.unit import begin
from tidegate.gates.window import Arm
from tidegate.schemas.manifest import PAGE

RAMPS, LOOKS, STEP = 2_000, 40, 50
RAMP = flag("policy: {evidence: sequential}")
LEVELS = Levels.of(RAMP, 1)


def stages(rate: float, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Bad ones so far at each look of each stage, of requests that go bad by chance."""
    return np.random.default_rng(seed).binomial(STEP, rate, (RAMPS, LOOKS)).cumsum(axis=1)


def ends(rate: float, seed: int) -> tuple[int, int]:
    """How many stages are stopped and promoted by the error gate alone, looked at after every 50 requests."""
    limit, value = 0.005, PAGE.policy.rule_out.error_rate
    assert value is not None
    known: dict[tuple[int, int], str] = {}

    def said(bad: int, n: int) -> str:
        if (bad, n) not in known:
            share = Proportion(float(bad), float(n))
            over = share.exceeds(limit, LEVELS.stop("error_rate_max"))
            clear = bad <= limit * n and share.excludes(value, LEVELS.promote)
            known[bad, n] = "stop" if over else "promote" if clear else ""
        return known[bad, n]

    stopped = promoted = 0
    for stage in stages(rate, seed).tolist():
        first = next((end for at, bad in enumerate(stage, 1) if (end := said(bad, at * STEP))), "")
        stopped, promoted = stopped + (first == "stop"), promoted + (first == "promote")
    return stopped, promoted


def allowed(chance: float) -> float:
    """So many of 2,000 that a true chance of that size is exceeded once in about 3,000 seeds."""
    return float(RAMPS * chance + 3.4 * (RAMPS * chance * (1 - chance)) ** 0.5)


@pytest.mark.parametrize("rate", [0.0, 0.003, 0.005])
def test_of_2000_healthy_stages_no_more_than_the_gate_s_share_of_false_stop_are_stopped(rate: float) -> None:
    """Exactly at the limit too."""
    stopped, promoted = ends(rate, 1)
    assert stopped <= allowed(LEVELS.stop("error_rate_max"))
    assert promoted > (RAMPS * 0.95 if rate == 0.0 else 0)


def test_of_2000_canaries_at_the_value_to_rule_out_no_more_than_wrong_promote_pass() -> None:
    _, promoted = ends(0.01, 2)
    assert promoted <= allowed(LEVELS.promote)
    assert promoted > 0, "the looks are no test of the bound"


def test_a_canary_of_three_times_that_is_stopped() -> None:
    stopped, promoted = ends(0.03, 3)
    assert stopped == RAMPS - promoted
    assert promoted <= RAMPS * 0.005


# What a stage shows beside the rows that count: windows that were left out, windows alone, settling spans

ONE_GATE = flag(
    "policy: {evidence: sequential, rule_out: {error_rate: 0.4}}\n"
    "gates: {error_rate_max: 0.2, delta_s: {median_max: null, p95_max: null}, coverage_min: null,"
    " tool_success_min: null, lambda_convergent: false, latency_p95_uplift_max: null, cost_uplift_max: null}\n"
    "abort_rules: {hard: [{kind: error_rate_over, value: 0.2}], soft: []}\n"
    "traffic: {stages: [0.5, 1.0]}"
)
"""All of ``false_stop`` is one gate's, and its hard rule has the same value: nothing is left to spare."""
PANES, IN_PANE = 6, 30


@dataclass(frozen=True)
class Rows:
    """Requests and errors of many stages."""

    n: int
    bad: Ints

    def __add__(self, other: "Rows") -> "Rows":
        return Rows(self.n + other.n, self.bad + other.bad)

    def arm(self, run: int) -> Arm:
        """Of one stage."""
        row = {"requests": self.n, "errors": int(self.bad[run])}
        return Arm({"traffic": Sums(counters=[row.get(counter, 0) for counter in COUNTERS])})


def look(run: int, sound: Rows, rest: Rows, own: Rows, number: int, *, settling: bool) -> bool:
    """Whether the ramp stops a stage at a pane, ``rest`` being the rows of its windows that were left out."""
    unit = begin(ONE_GATE, "us", 0, CLOCKWORK)
    unit.window.canary, unit.number, unit.settling = own.arm(run), number, settling
    unit.window.baseline = own.arm(run)
    if sound.n + rest.n:
        unit.evidence = StageEvidence(
            since=0,
            windows=sound.n > 0,
            left_out=rest.n > 0,
            canary=sound.arm(run),
            rest_canary=rest.arm(run),
            baseline=sound.arm(run),
            rest_baseline=rest.arm(run),
        )
    return StagedRamp(ONE_GATE, unit, CLOCKWORK).judge_pane() is not None


def suspects(rows: Rows) -> Ints:
    """The stages that could be stopped on these rows: all that would be at the whole of ``false_stop``."""
    if not rows.n:
        return np.empty(0, np.int64)
    least = bisect_left(range(rows.n + 1), True, key=partial(_surely_over, rows.n, 0.2, 0.05))
    return np.flatnonzero(rows.bad >= least)


def stopped_stages(windows: int, left_out: Callable[[int], bool], seed: int) -> int:
    """How many of 2,000 ramps of two stages exactly at the limit are stopped, looked at with every pane."""
    rng = np.random.default_rng(seed)
    none = Rows(0, np.zeros(RAMPS, np.int64))
    stopped = np.zeros(RAMPS, bool)

    def pane(own: Rows) -> Rows:
        return own + Rows(IN_PANE, rng.binomial(IN_PANE, 0.2, RAMPS))

    def judge(sound: Rows, rest: Rows, own: Rows, number: int, *, settling: bool = False) -> None:
        found = [suspects(rows) for rows in (own, sound + own, sound + rest + own)]
        for run in np.unique(np.concatenate(found)).tolist():
            stopped[run] = stopped[run] or look(run, sound, rest, own, number, settling=settling)

    for stage in range(2):
        sound, rest, own = none, none, none
        for _ in range(PANES if stage else 0):
            own = pane(own)
            judge(none, none, own, windows + 1, settling=True)
        for window in range(windows):
            own = none
            for _ in range(PANES):
                own = pane(own)
                judge(sound, rest, own, stage * windows + window + 1)
            sound, rest = (sound, rest + own) if left_out(window) else (sound + own, rest)
    return int(stopped.sum())


@pytest.mark.parametrize(
    ("windows", "left_out"),
    [(30, lambda _: False), (30, lambda window: window % 2), (150, lambda _: True)],
    ids=["all count", "each second is left out", "all are left out"],
)
def test_of_2000_ramps_at_the_limit_no_more_than_false_stop_are_stopped(
    windows: int, left_out: Callable[[int], bool]
) -> None:
    """By the gate, by a hard rule of the same value, on the stage's rows, on a window alone or on a settling span."""
    stopped = stopped_stages(windows, left_out, 4)
    assert 0 < stopped <= allowed(0.05), f"{stopped} of {RAMPS}"


def test_all_that_a_gate_and_its_hard_rule_look_at_adds_up_to_the_gate_s_part() -> None:
    """The stage's rows, the settling spans, and windows alone, however many there are."""
    of = partial(Levels.of, RAMP)
    stages, part = len(RAMP.ramp_stages), of(1).part
    assert part == pytest.approx(0.05 / 32)
    for gate in ("error_rate_max", "coverage_min", "delta_s.p95_max"):
        windows = sum(of(number).window for number in range(1, 10_000))
        spent = stages * (of(1).stop(gate) + of(1, settling=True).hard) + windows
        assert spent == pytest.approx(stages * part, rel=1e-4)
        assert spent < stages * part
        assert of(1).hard == of(1).stop(gate)
    assert of(1).stop("tool_success_min") == part


@pytest.mark.parametrize("limit", [0.0005, 0.005, 0.05, 0.3])
@pytest.mark.parametrize("times", [1.0, 1.01, 1.1, 1.5, 2.0])
def test_what_excludes_a_hard_rule_s_value_excludes_its_gate_s_limit(limit: float, times: float) -> None:
    """Though their bounds are tightest at other counts: so on the same rows the rule is no second chance."""
    level = LEVELS.hard
    for n in [*range(20, 3000, 41), *range(3000, 100_000, 9973)]:
        over = bisect_left(range(n + 1), True, key=partial(_surely_over, n, limit * times, level))
        assert over > n or rate_surely_over(over, n, limit, level)


def _surely_over(n: int, limit: float, level: float, k: int) -> bool:
    return rate_surely_over(k, n, limit, level)
