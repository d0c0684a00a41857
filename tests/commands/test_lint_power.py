"""``tidegate lint --rate``: what evidence costs at each stage, and what can never be decided."""

from pathlib import Path

import pytest
import yaml

from tests.commands.invoke import tidegate
from tests.gates.build import by_points

PAGE = Path(__file__).parents[1] / "schemas" / "data" / "feature_flags.yml"


def lint(tmp_path: Path, body: str, rate: str) -> str:
    """What is said of a flag after its plain form."""
    path = tmp_path / "flags.yml"
    path.write_text(yaml.safe_dump({"flags": {"f": by_points(yaml.safe_load(f"{{{body}}}"))}}))
    done = tidegate("lint", path, "--rate", rate)
    assert (done.code, done.err) == (0, "")
    plain = tidegate("lint", path).out.splitlines()
    return "\n".join(done.out.splitlines()[len(plain) - 2 :])


def stages(said: str) -> list[list[str]]:
    """The lines of each stage, trailing blanks away."""
    blocks: list[list[str]] = []
    for line in said.splitlines():
        if line.startswith("stage "):
            blocks.append([])
        if not line.strip() and blocks and blocks[-1]:
            blocks.append([])
        elif blocks:
            blocks[-1].append(line.rstrip())
    return [block for block in blocks if block and block[0].startswith("stage ")]


def row(block: list[str], name: str) -> list[str]:
    """The cells of a row."""
    (line,) = [line for line in block if line.startswith(f"{name} ")]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_a_stage_in_full(tmp_path: Path) -> None:
    """The page's manifest at 2 requests a second: the 15 minutes of the first stage bring 90 canary requests."""
    path = tmp_path / "page.yml"
    page = yaml.safe_load(PAGE.read_text())
    path.write_text(yaml.safe_dump({**page, "flags": {n: by_points(f) for n, f in page["flags"].items()}}))
    done = tidegate("lint", path, "--rate", "2/s")
    assert done.code == 0
    first, *others = stages(done.out)
    assert "\n".join(first) == (
        """\
stage 0, canary 5 %: a window of 15m has 90 canary and 1,710 baseline requests
gate                    needs         can pass         sure    sure at half
delta_s.median_max      20 an arm       3m 20s   16: 2m 40s      43: 7m 10s
delta_s.p95_max         20 an arm       3m 20s  98: 16m 20s     573: 1h 35m
coverage_min            20 an arm       3m 20s   25: 4m 10s     80: 13m 20s
lambda_convergent       20 + 1 group         —            —               —
latency_p95_uplift_max  20 an arm       3m 20s  98: 16m 20s     573: 1h 35m
error_rate_max          20 an arm       3m 20s  780: 2h 10m  6,720: 18h 40m
tool_success_min        20 an arm       3m 20s    389 calls     3,352 calls
cost_uplift_max         20 an arm       3m 20s            —               —
hard rule                  a regression to                rows         caught
delta_s_p95_over 0.15      10 % far above   389 + 209 baseline  at window end
coverage_under 0.6         coverage 0.45            152 canary  at window end
lambda_flip_rate_over 0.2  40 % flips                77 groups              —
error_rate_over 0.01       2 % errors             2,052 canary  at window end"""
    )
    assert [block[0].split(":")[0] for block in others] == [
        "stage 1, canary 25 %",
        "stage 2, canary 50 %",
        "stage 3, canary 100 %",
    ]
    assert "a stage is promoted after 15m of green windows at the earliest" in done.out
    assert "warning" not in done.out


def test_without_a_rate_nothing_is_said_of_it() -> None:
    assert "stage" not in tidegate("lint", PAGE).out


def test_at_100_percent_the_baseline_needs_nothing(tmp_path: Path) -> None:
    *_, last = stages(lint(tmp_path, "", "2/s"))
    assert last[0] == "stage 3, canary 100 %: a window of 15m has 1,800 canary and a pinned baseline"
    assert row(last, "error_rate_max")[1:3] == ["20 canary", "10s"]
    assert row(last, "delta_s_p95_over 0.15")[2:] == ["503 canary", "4m 12s"]


@pytest.mark.parametrize("rate", ["2/s", "120/m", "7200/h", " 2.0/s "])
def test_a_rate_is_of_seconds_minutes_or_hours(rate: str, tmp_path: Path) -> None:
    assert lint(tmp_path, "", rate) == lint(tmp_path, "", "2/s")


@pytest.mark.parametrize(
    "rate", ["", "2", "2/d", "0/s", "-1/s", "1e3/s", "nan/s", "2 /s", "/s", "9999999999/s", "2/s/s", "٢/s"]
)
def test_what_is_no_rate_is_refused_in_one_line(rate: str) -> None:
    done = tidegate("lint", PAGE, f"--rate={rate}")
    assert (done.code, done.out) == (2, "")
    assert done.line.startswith("tidegate: --rate: ")
    assert done.line.endswith("2/s, 90/m or 5000/h")


def test_a_stage_that_can_never_decide_is_warned_of_with_the_way_out(tmp_path: Path) -> None:
    """Which is no error. At 30/m a window of 10 minutes has 15 of 20 canary requests at 5 %, and enough at 25 %."""
    first, second, *_ = stages(lint(tmp_path, "window: {length: 10m}", "30/m"))
    assert row(first, "error_rate_max")[2] == "never"
    assert row(first, "error_rate_over 0.01")[3] == "never"
    assert first[-1] == (
        "warning: stage 0 can never decide: of the 20 canary requests it needs, a window of 10m has about 15; "
        "write window.length: 14m or more, or window.min_requests: 15 or less"
    )
    assert row(second, "error_rate_max")[2] == "2m 40s"
    assert not any(line.startswith("warning") for line in second)


def test_the_way_out_is_one(tmp_path: Path) -> None:
    """With either change the warning is gone; a pane shorter of it, it is not."""
    for window, warned in (
        ("{length: 14m}", False),
        ("{length: 10m, min_requests: 15}", False),
        ("{length: 13m}", True),
        ("{length: 10m, min_requests: 16}", True),
    ):
        assert ("warning" in lint(tmp_path, f"window: {window}", "30/m")) is warned


def test_a_baseline_that_is_too_small_is_warned_of_too(tmp_path: Path) -> None:
    said = lint(tmp_path, "traffic: {stages: [0.9, 1.0]}, window: {length: 1m}", "1/s")
    assert "of the 20 baseline requests it needs, a window of 1m has about 6; write window.length: 4m or more" in said


def test_a_ramp_that_no_window_is_long_enough_for_is_told_so(tmp_path: Path) -> None:
    """At 0.001/h the canary of the first stage meets a request in 2 years."""
    first, *_ = stages(lint(tmp_path, "", "0.001/h"))
    assert first[-2].endswith("about 1.25e-05; that is too little for any window")


def test_a_first_stage_without_baseline_has_no_way_out_but_its_weight(tmp_path: Path) -> None:
    said = lint(tmp_path, "traffic: {stages: [1.0]}", "1/s")
    assert "of the 20 baseline requests it needs, a window of 15m has about 0; no traffic is left for it" in said
    assert row(stages(said)[0], "error_rate_max")[2] == "never"


def test_a_shadow_stage_has_no_rate_for_its_canary(tmp_path: Path) -> None:
    shadow, first, *_ = stages(lint(tmp_path, "traffic: {shadow: true}", "2/s"))
    assert shadow[0] == "stage 0, shadow: a window of 15m has mirrored requests and 1,800 baseline requests"
    assert row(shadow, "error_rate_max") == ["error_rate_max", "20 an arm", "—", "780: —", "6,720: —"]
    assert row(shadow, "error_rate_over 0.01")[3] == "—"
    assert first[0].startswith("stage 1, canary 5 %")


def test_later_stages_have_less_alpha_left(tmp_path: Path) -> None:
    """Windows before them have had theirs: more rows are needed, with more windows to hold still more."""

    def rows(body: str) -> list[int]:
        said = lint(tmp_path, body, "2/s")
        return [int(row(block, "coverage_under 0.6")[2].split()[0]) for block in stages(said)]

    once, twice = rows(""), rows("window: {hold_windows: 2}")
    assert once == [152, 178, 194, 206]
    assert (twice[0], twice[1], twice[2]) == (once[0], once[2], rows("window: {hold_windows: 4}")[1])


def test_what_fits_a_window_is_caught_early(tmp_path: Path) -> None:
    (block,) = stages(lint(tmp_path, "traffic: {canary_weight: 0.5, stages: [0.5]}, window: {length: 1h}", "2/s"))
    assert row(block, "error_rate_over 0.01")[2:] == ["2,052 canary", "34m 12s"]
    assert row(block, "delta_s_p95_over 0.15")[2:] == ["389 + 209 baseline", "6m 29s"]


def test_lambda_of_traffic_and_gold_alone_follow_their_settings(tmp_path: Path) -> None:
    body = "policy: {lambda_source: traffic}, window: {min_lambda_groups: 45}"
    first = stages(lint(tmp_path, body, "2/s"))[0]
    assert row(first, "lambda_convergent")[1:3] == ["45 canary", "7m 30s"]
    assert row(first, "lambda_flip_rate_over 0.2")[2:] == ["77 canary", "12m 50s"]
    gold = stages(lint(tmp_path, "policy: {quality_source: gold}", "2/s"))[0]
    assert row(gold, "delta_s.p95_max") == ["delta_s.p95_max", "20 gold an arm", "—", "98: —", "573: —"]
    assert row(gold, "coverage_under 0.6")[3] == "—"
    assert row(gold, "error_rate_max")[2] == "3m 20s"


def test_lambda_groups_of_traffic_are_warned_of_by_their_own_key(tmp_path: Path) -> None:
    said = lint(tmp_path, "policy: {lambda_source: traffic}, window: {min_lambda_groups: 100}", "2/s")
    assert "or window.min_lambda_groups: 90 or less" in said


def test_gates_and_rules_that_are_off_are_left_out(tmp_path: Path) -> None:
    body = "gates: {error_rate_max: null, lambda_convergent: false}, abort_rules: {hard: []}"
    first = stages(lint(tmp_path, body, "2/s"))[0]
    assert [line.split()[0] for line in first[2:]] == [
        "delta_s.median_max",
        "delta_s.p95_max",
        "coverage_min",
        "latency_p95_uplift_max",
        "tool_success_min",
        "cost_uplift_max",
    ]


def test_other_kinds_show_what_they_read(tmp_path: Path) -> None:
    """One weight, and the gates they decide on; a guard aborts nothing."""
    quality = stages(lint(tmp_path, "kind: quality_gated", "2/s"))
    assert len(quality) == 1
    assert [line.split()[0] for line in quality[0][2:6]] == [
        "delta_s.median_max",
        "delta_s.p95_max",
        "coverage_min",
        "lambda_convergent",
    ]
    assert any(line.startswith("error_rate_over") for line in quality[0])
    assert "while the gate is closed" in lint(tmp_path, "kind: quality_gated", "2/s")
    (cost,) = stages(lint(tmp_path, "kind: cost_guard", "2/s"))
    assert [line.split()[0] for line in cost[2:]] == ["cost_uplift_max"]
    (safety,) = stages(lint(tmp_path, "kind: safety_guard", "30/m"))
    assert len(safety) == 1
    assert "caught:" not in lint(tmp_path, "kind: cost_guard", "2/s")
    assert "baseline requests it needs" not in lint(tmp_path, "kind: safety_guard, traffic: {stages: [1.0]}", "2/s")
    assert stages(lint(tmp_path, "kind: kill_switch", "2/s")) == []
    assert "a kill switch measures nothing" in lint(tmp_path, "kind: kill_switch", "2/s")


# The verdict


def test_it_begins_with_how_long_the_ramp_takes_and_what_a_bad_canary_costs(tmp_path: Path) -> None:
    """Errors at half the limit take 1,099 requests to exclude 1 %: 3 h at 0.1 a second, in windows of 15 minutes."""
    said = lint(tmp_path, "policy: {evidence: sequential}, gates: {lambda_convergent: false}", "2/s")
    verdict = said[: said.index("stage 0")]
    assert "a canary like the baseline is at 100 % after about 5h" in verdict.replace("4h 45m", "5h")
    assert "5 %:   3h 15m, longest error_rate_max, 1,099 requests" in verdict
    assert "a canary at the value to rule out for error_rate_max (1 %) is stopped after about" in verdict
    assert "λ" not in verdict


def test_lambda_says_what_to_send_or_switch_off(tmp_path: Path) -> None:
    """Once, with the groups that settle a stage."""
    path, said = tmp_path / "flags.yml", {}
    for evidence in ("sequential", "point"):
        path.write_text(f"flags: {{f: {{policy: {{evidence: {evidence}}}}}}}")
        said[evidence] = " ".join(tidegate("lint", path, "--rate", "2/s").out.split())
        assert said[evidence].count("gates.lambda_convergent: false") == 1
        assert said[evidence].count("remark: lambda_convergent") == 1
    assert "(35 such groups without a flip are enough)" in said["sequential"]
    assert "such groups" not in said["point"]


def test_point_evidence_is_told_how_often_a_healthy_canary_finishes(tmp_path: Path) -> None:
    """90 canary requests in a window allow no error: few get through; a thousand times the traffic lets all."""
    few, many = (
        lint(tmp_path, "policy: {evidence: point}", "2/s"),
        lint(tmp_path, "policy: {evidence: point}", "2000/s"),
    )
    assert "with evidence: point about 37.35 % of healthy canaries finish at this rate" in few
    assert "write policy.evidence: sequential" in few
    assert "about 100 % of healthy canaries finish" in many
    assert "write policy.evidence" not in many


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("traffic: {stages: [1.0]}", 1),
        ("traffic: {stages: [1.0], shadow: true}", 0),
        ("kind: quality_gated, policy: {quality_source: traffic}", 1),
        ("kind: quality_gated, traffic: {shadow: true}, policy: {quality_source: traffic}", 0),
        ("kind: cost_guard, traffic: {stages: [1.0]}", 1),
        ("kind: kill_switch, traffic: {stages: [1.0]}", 0),
        ("traffic: {stages: [0.05, 0.5]}", 0),
    ],
)
@pytest.mark.parametrize("rate", [(), ("--rate", "20/s")])
def test_strict_exits_with_1_where_the_manifest_itself_lets_nothing_be_decided(
    tmp_path: Path, body: str, code: int, rate: tuple[str, ...]
) -> None:
    """Whatever words the remark has."""
    path = tmp_path / "flags.yml"
    path.write_text(f"flags: {{f: {{{body}}}, fine: {{}}}}")
    done = tidegate("lint", path, "--strict", *rate)
    assert done.code == code
    assert ("can never decide: f" in done.out.splitlines()) is bool(code)
    assert tidegate("lint", path, *rate).code == 0


@pytest.mark.parametrize(("rate", "code"), [("2/s", 1), ("20/s", 0)])
def test_strict_exits_with_1_where_a_stage_can_never_decide(tmp_path: Path, rate: str, code: int) -> None:
    path = tmp_path / "flags.yml"
    path.write_text("flags: {f: {policy: {evidence: point}, window: {length: 1m, min_requests: 20}}}")
    assert tidegate("lint", path, "--rate", rate, "--strict").code == code
    assert tidegate("lint", path, "--rate", rate).code == 0
