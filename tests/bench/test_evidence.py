"""What docs/evidence.md is made by, on a few runs: the numbers are the long form's."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from bench.evidence.__main__ import NUMBERS, main
from bench.evidence.peers import argo, flagger, means, wald
from bench.evidence.plots import STYLES
from bench.evidence.ramps import Outcome, flag, tidegate
from bench.evidence.report import FINISHED, NAMES, PATTERNS, PROMOTED, TIMES, share
from bench.evidence.traffic import (
    BAD,
    DESIGN_EFFECT,
    ERROR,
    HEALTHY,
    SOLVED,
    Canary,
    Pattern,
    Traffic,
)
from bench.evidence.trials import Count, measure

RULES = flag("sequential")
BROKEN = Canary("broken", "every request fails", error=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the smallest run."""
    out = tmp_path_factory.mktemp("evidence")
    given = ["--rates", "20", "50", "--runs", "2", "--robust-runs", "1", "--hours", "1", "--jobs", "1"]
    main([*given, "--out", str(out)])
    return out


def test_the_page_has_every_table_with_a_row_for_every_way_of_judging(folder: Path) -> None:
    text = (folder / "evidence.md").read_text()
    assert "$" not in text
    for canary in BAD:
        assert f"| {canary.title} | 20/s | 50/s |" in text
    for name in NAMES.values():
        assert text.count(f"| {name} |") == 5 + len(BAD), f"{name} is missing from a table"
    for pattern in PATTERNS.values():
        assert f"| {pattern} |" in text
    assert "2 rollouts of each canary at each rate, with" in text
    assert '`make evidence ARGS="--runs 2 --robust-runs 1 --hours 1 --rates 20 50"`' in text, "how to make it again"


@pytest.mark.parametrize("plot", [FINISHED, TIMES, PROMOTED])
def test_the_page_shows_each_plot_and_the_plot_names_every_line(folder: Path, plot: str) -> None:
    assert f"]({plot})" in (folder / "evidence.md").read_text()
    words = [element.text for element in ET.parse(folder / plot).iter() if element.text]  # noqa: S314 our own
    for style in STYLES.values():
        assert style.label in words


def test_the_page_can_be_drawn_again_from_what_was_kept(folder: Path) -> None:
    before = (folder / "evidence.md").read_bytes(), (folder / NUMBERS).read_bytes()
    main(["--redraw", "--out", str(folder)])
    assert ((folder / "evidence.md").read_bytes(), (folder / NUMBERS).read_bytes()) == before


def test_the_same_seeds_give_the_same_numbers_however_many_processes_count() -> None:
    one, two = (measure([50.0], 2, 1, 7, jobs, 1) for jobs in (1, 2))
    assert one == two
    shown = [Traffic(50.0, seed).arms(0, 0.5, HEALTHY)[1].latency.sum() for seed in (7, 8)]
    assert shown[0] != shown[1], "the seed is not heard"


def test_a_request_is_the_same_one_whatever_the_weight() -> None:
    whole = [Traffic(5.0, 1).arms(3, weight, HEALTHY) for weight in (0.05, 0.5)]
    small, large = (np.sort(np.concatenate([b.latency, c.latency])) for b, c in whole)
    assert np.array_equal(small, large)
    assert set(whole[0][1].latency) < set(whole[1][1].latency), "a user leaves the canary as it grows"


@pytest.mark.parametrize("pattern", ["steady", "bursts", "day", "users"])
def test_every_pattern_has_the_same_requests_on_the_mean_of_a_day(pattern: Pattern) -> None:
    traffic = Traffic(20.0, 2, pattern)
    requests = traffic.span(0, 1440, 0.0, HEALTHY)[0]
    assert requests.n == pytest.approx(20 * 86_400, rel=0.1)
    # By day there are more requests and more of them fail: over requests the mean is higher than over time.
    assert requests.error.mean() == pytest.approx(ERROR * (1.2 if pattern == "day" else 1.0), rel=0.1)


def test_the_right_design_effect_is_how_much_more_a_user_s_requests_vary() -> None:
    traffic = Traffic(20.0, 4, "users")
    minutes = [traffic.arms(minute, 0.0, HEALTHY)[0] for minute in range(1000)]
    off = np.array([requests.solved.sum() - SOLVED * requests.n for requests in minutes])
    independent = sum(requests.n for requests in minutes) * SOLVED * (1 - SOLVED)
    assert (off**2).sum() / independent == pytest.approx(DESIGN_EFFECT, rel=0.2)


def test_a_broken_canary_is_stopped_by_everybody_at_the_documented_moment() -> None:
    traffic = Traffic(50.0, 1)
    assert argo(RULES)(traffic, BROKEN).minutes == 15, "three measurements, five minutes each"
    assert flagger(RULES)(traffic, BROKEN).minutes == 10, "ten checks, a minute each"
    for run in (means(RULES), wald(RULES), tidegate("sequential"), tidegate("point")):
        outcome = run(traffic, BROKEN)
        assert (outcome.ended, outcome.minutes, outcome.passed) == ("stopped", 1, 0)


def test_a_value_between_limit_and_rule_out_makes_argo_wait_for_a_person() -> None:
    between = Canary("between", "", error=0.0075)
    assert argo(RULES, inconclusive=True)(Traffic(2000.0, 1), between).ended == "waits"
    assert argo(RULES)(Traffic(2000.0, 1), between).ended == "stopped"


def test_a_schedule_goes_on_where_nothing_is_proven() -> None:
    """0.03 requests a second give the canary too few to look at in the whole ramp."""
    outcome = means(RULES)(Traffic(0.03, 1), BROKEN)
    assert (outcome.ended, outcome.minutes) == ("finished", 45)


def test_a_time_within_which_runs_are_stopped_is_over_all_runs() -> None:
    outcomes = [Outcome("stopped", minutes, 1, 0) for minutes in (5, 7)] + [Outcome("finished", 9, 1, 3)] * 2
    count = Count.of(outcomes)
    assert (count.stopped_within(0.25), count.stopped_within(0.5), count.stopped_within(0.9)) == (5, 7, None)
    assert share(len(count.finishes), count.runs) == "50 (6.8–93.2)"
