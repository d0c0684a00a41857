"""The board of all units: worst first, in words and signs, right at 80 × 24, without colour, on black and on white."""

import io
import random
from collections.abc import Iterator
from functools import cache

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from tests.commands.test_explain import (
    ABORT,
    CLOSE,
    DRIFTED,
    END,
    FREEZE,
    INSUFFICIENT,
    KILL,
    PROMOTE,
    ROLLBACK,
    decided,
    gates,
    rule,
)
from tests.streams.play import play
from tidegate.schemas.decision import Decision, EvidenceSpan, GateForecast, OperationBy, Weights, seal_decision
from tidegate.streams.report.board import LEVEL_SIGNS, STYLES, Board, table
from tidegate.streams.report.terminal import GATE_STYLE, GREY, VERDICT_STYLE

NOW = END + 120_000
TELEMETRY = "telemetry: 1,233 events counted; left out: 2 late, of 2025-08-31T10:15:00Z to 2025-08-31T10:20:00Z"
KEYS = "↑ ↓ choose a unit, q ends"
LATCHED = decided("hold", ["latched"], decided_at=END + 60_000)

PAUSE, RESUME, BY_HAND = (
    decided(
        kind,
        [kind],
        gates=[],
        arms={},
        decided_at=END + 61_500,
        operation=OperationBy(kind=kind, ts=END + 61_500, actor="alice", reason=reason),  # type: ignore[arg-type]
    )
    for kind, reason in (("pause", "release freeze"), ("resume", "over"), ("promote", "seen enough"))
)


def at(decision: Decision, flag: str = "", region: str = "us-east-1") -> Decision:
    """The decision of another unit."""
    moved = msgspec.structs.replace(decision, flag=flag or decision.flag, region=region)
    return seal_decision(moved, None)


def board(*decisions: Decision) -> Board:
    filled = Board()
    for decision in decisions:
        filled.take(decision, END + 60_000)
    return filled


def undecided(minutes: float | None) -> Decision:
    """A hold of a stage whose error rate is open, with what its forecast says."""
    seen = [
        msgspec.structs.replace(
            one,
            status="undecided",
            upper=0.009,
            rule_out=0.005,
            forecast=GateForecast(outcome="pass" if minutes else None, canary=9_000, baseline=0, minutes=minutes),
        )
        if one.gate == "error_rate_max"
        else one
        for one in gates()
    ]
    return decided(
        "hold", ["error_rate_max"], gates=seen, evidence=EvidenceSpan(windows=6, left_out=1, since=END - 5_400_000)
    )


def only(filled: Board) -> str:
    """The one unit's sign and words."""
    (row,) = filled.rows(NOW)
    return f"{row.sign} {row.words}"


def test_an_aborted_unit_says_when_why_and_what_it_waits_for() -> None:
    """Also long after, when its windows say no more than that it is latched."""
    hot = decided(
        "abort",
        ["error_rate_over"],
        decided_at=END + 46_000,
        abort_rules=[rule("error_rate_over", 0.01, 0.103)],
    )
    said = "✗ aborted 10:30 error_rate_over 10.3 % > 1 %, waits for rearm"
    assert only(board(hot)) == said
    assert only(board(hot, LATCHED)) == said
    again = decided("rearm", ["rearm"], gates=[], decided_at=END + 61_000)
    assert only(board(hot, LATCHED, again)).startswith("… 5 %, rearmed 10:31")


def test_a_pause_is_shown_until_it_ends_and_never_hides_a_stop() -> None:
    paused = "! 5 %, paused 10:31 by alice: release freeze, waits for resume"
    assert only(board(PAUSE, decided("hold", ["paused"]))) == paused
    assert only(board(PAUSE, ABORT)).startswith("✗ aborted")
    assert only(board(ABORT, PAUSE)).startswith("✗ aborted")
    assert only(board(PAUSE, ABORT, RESUME)).startswith("✗ aborted")
    assert only(board(PAUSE, RESUME, decided("hold", ["hold_windows"]))).startswith("… 5 %, green, held")


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        (KILL, "✗ killed 10:31 by alice: answers in the wrong language, waits for rearm"),
        (ROLLBACK, "✗ rolled back 10:30 error_rate_max 0.78 % > 0.5 % and 1 more, waits for rearm"),
        (CLOSE, "✗ closed 10:30 lambda_convergent 3/4, canary 5 %"),
        (FREEZE, "! frozen 10:30 latency_p95_uplift_max +21.18 % > 15 % and 1 more, canary stays at 5 %"),
        (DRIFTED, "! 5 %, held by pins_drifted"),
        (INSUFFICIENT, "… 5 %, about 22 min left, too few requests"),
        (undecided(150.0), "… 5 %, about 2 h left, 1 of 8 gates open"),
        (undecided(None), "… 5 %, no end in sight, 1 of 8 gates open"),
        (PROMOTE, "✓ promoted 10:30 to 5 %"),
        (PAUSE, "! 5 %, paused 10:31 by alice: release freeze, waits for resume"),
        (BY_HAND, "✓ promoted 10:31 to 5 % by alice: seen enough"),
        (decided("hold", ["hold_windows"]), "… 5 %, green, held for window.hold_windows"),
        (decided("retire", ["retire"], gates=[]), "– retired 10:30 retire"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_way_to_stand_has_its_sign_and_words(decision: Decision, said: str) -> None:
    assert only(board(decision)) == said


def test_a_moment_of_another_day_has_its_date() -> None:
    (row,) = board(DRIFTED, ABORT).rows(NOW + 86_400_000)
    assert row.words.startswith("aborted 2025-08-31 10:18 ")


def test_the_worst_stand_first_and_the_chosen_one_below() -> None:
    """Keys move the choice and stop at either end; without one the worst is shown."""
    filled = board(at(PROMOTE, "a"), at(DRIFTED, "b"), at(undecided(9.0), "c"), at(ABORT, "d"), at(KILL, "e"))
    assert [row.unit for row in filled.rows(NOW)] == [f"{flag}|us-east-1" for flag in "debca"]

    def chosen() -> str:
        (line,) = [line.plain for line in filled.frame(80, 24, NOW) if line.plain.startswith("> ")]
        return line[4]

    found = [chosen()]
    for step in (1, 1, 9, -2, -9):
        filled.move(step, NOW)
        found.append(chosen())
    assert found == ["d", "e", "b", "a", "b", "d"]


def test_a_frame_of_80_by_24() -> None:
    """Signs, words, ages; of the chosen unit the decision's id, the evidence, the gates that are open first."""
    filled = board(at(PROMOTE, "checkout"), at(undecided(38.0), "prompt_pack_vNplus1"), at(ABORT, "a" * 40))
    filled.weights = {"checkout|us-east-1": Weights(baseline=0.75, canary=0.25)}
    filled.move(1, NOW)
    lines = [line.plain for line in filled.frame(80, 24, NOW, telemetry=TELEMETRY, keys=KEYS)]
    shown = at(undecided(38.0), "prompt_pack_vNplus1").decision_id.removeprefix("sha256:")[:8]
    assert [line.rstrip() for line in lines] == [
        "3 units  ✗ 1  … 1  ✓ 1  newest decision 60 s old  10:32:00 UTC",
        "  ✗ aaaaaaaaaaaaaaa…/us-east-1  aborted 10:18 error_rate_over 4.42 % > 1 %…  60s",
        "> … prompt_pack_vNp…/us-east-1  5 %, about 38 min left, 1 of 8 gates open    60s",
        "  ✓ checkout/us-east-1          promoted 10:30 to 25 %                       60s",
        "─" * 80,
        "… prompt_pack_vNplus1/us-east-1: 5 %, about 38 min left, 1 of 8 gates open",
        f"decision {shown} of 2025-08-31T10:30:00Z, 60 s old",
        "stage 0 at 5 %: 0 canary and 0 baseline requests in 6 windows since 09:00, 1",
        "  left out",
        "it ends by itself: the stage's windows add up until every gate is settled, which",
        "  promotes the canary at a window's end, or stops it as soon as that is proven",
        "gate                    observed  bound    limit  rule out",
        "error_rate_max            0.31 %  0.9 %  ≤ 0.5 %     0.5 %  undecided 0%",
        "delta_s.median_max       +0.0120          ≤ 0.03            pass",
        "delta_s.p95_max          -0.0040           ≤ 0.1            pass",
        "coverage_min              0.8600           ≥ 0.7            pass",
        "lambda_convergent            4/4             all            pass",
        "latency_p95_uplift_max   +3.00 %          ≤ 15 %            pass",
        "tool_success_min         99.60 %          ≥ 99 %            pass",
        "cost_uplift_max          +5.12 %          ≤ 10 %            pass",
        "telemetry: 1,233 events counted; left out: 2 late, of 2025-08-31T10:15:00Z to 2…",
        KEYS,
    ]


def test_a_broker_that_is_away_is_said_at_the_top() -> None:
    lines = [line.plain for line in board(ABORT).frame(80, 24, NOW, away="since 10:29:11")]
    assert lines[1] == "! broker away since 10:29:11: what is shown is from before"


@cache
def all_decisions() -> list[Decision]:
    told = [ABORT, CLOSE, DRIFTED, FREEZE, INSUFFICIENT, KILL, PROMOTE, ROLLBACK, undecided(38.0)]
    for name in ("errors", "pins", "quality-gate", "cost-guard", "safety-guard", "kill-switch"):
        told += play(name).decisions
    return told


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(40, 200), height=st.integers(10, 60))
def test_a_frame_fits_its_screen_whatever_the_units_are_named(seed: int, width: int, height: int) -> None:
    """Names of any length and script, control signs too; the chosen unit's line is always on it."""
    rng = random.Random(seed)
    names = ["f", "a" * 300, "旗" * 40, "\x1b[31mred\n", "prompt_pack"]
    filled = board(
        *(at(one, rng.choice(names), rng.choice(["", "eu", "r" * 90])) for one in rng.sample(all_decisions(), 12))
    )
    filled.move(rng.randrange(9), NOW)
    lines = filled.frame(width, height, NOW, away=rng.choice(["", "since 10:29"]), telemetry=TELEMETRY, keys=KEYS)
    assert len(lines) <= height
    for line in lines:
        assert line.cell_len <= width, line.plain
        assert line.plain.isprintable(), line.plain
    assert sum(line.plain.startswith("> ") for line in lines) == 1


def printed(lines: list[Text], **terminal: object) -> str:
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system="truecolor", **terminal)  # type: ignore[arg-type]
    console.print(table(lines))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_colour_the_same_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs differ from one another, and no line changes but for its colours."""
    filled = board(*all_decisions())
    assert len(set(LEVEL_SIGNS)) == len(LEVEL_SIGNS)
    coloured = printed(filled.frame(80, 24, NOW))
    monkeypatch.setenv("NO_COLOR", "1")
    plain = printed(filled.frame(80, 24, NOW))
    assert "\x1b[38" not in plain
    assert "\x1b[1;38" not in plain
    assert "38;2;" in coloured
    assert Text.from_ansi(plain).plain == Text.from_ansi(coloured).plain


def luminance(color: Color) -> float:
    """WCAG 2's relative luminance."""
    linear = [
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
        for channel in (value / 255 for value in color.get_truecolor())
    ]
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def styles() -> Iterator[str]:
    yield from (*GATE_STYLE.values(), *VERDICT_STYLE.values(), *STYLES, GREY)


@pytest.mark.parametrize("style", sorted(set(styles())))
def test_every_colour_can_be_read_on_a_dark_and_on_a_light_background(style: str) -> None:
    """A contrast of 4.5 to 1, as WCAG's level AA asks."""
    color = Style.parse(style).color
    assert color is not None
    assert (luminance(color) + 0.05) / 0.05 >= 4.5
    assert 1.05 / (luminance(color) + 0.05) >= 4.5
