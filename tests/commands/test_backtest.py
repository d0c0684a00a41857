"""``tidegate backtest`` as a user meets it: tables, files, one-line errors."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.parsers.expat import ParserCreate

import pytest

from tests.commands.invoke import Done, tidegate
from tests.streams.events import NOON, healthy_pane, tick
from tidegate.schemas.operation import Operation
from tidegate.schemas.signed import read_private, sign
from tidegate.streams.backtest.comparison import ComparedWindow, Side
from tidegate.streams.commands.backtest import summary
from tidegate.streams.commands.plots import UNITS_SHOWN, _axes, _draw_block, comparison_svg, deciding
from tidegate.streams.dumps.records import dump_line
from tidegate.streams.kafka.manifests import sign_revision
from tidegate.streams.report.svg import Canvas, round_numbers

MANIFEST = """
flags:
  f:
    versions: {MODEL_VER: m1}
    traffic: {canary_weight: 0.4, baseline_weight: 0.6, stages: [0.4, 1.0]}
    window: {length: 20s, settle: 5s, min_requests: 6, hold_windows: 100}
    policy: {evidence: point}
"""
STRICT = MANIFEST.replace("  f:\n", "  f:\n    gates: {latency_p95_uplift_max: 0.05}\n")
ELEMENTS = {"svg", "rect", "text", "line", "circle", "path"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Manifests A and B, and a log in which the canary is slow in one window of six."""
    lines = []
    for i in range(12):
        slow: dict[str, Any] = {"latency_ms": 110.0} if i in (4, 5) else {}
        lines += [json.dumps(event) for event in healthy_pane(NOON + 10_000 * i, **slow)]
    lines.append(tick(NOON + 130_000).decode())
    found = {name: tmp_path / name for name in ("a.yml", "b.yml", "log")}
    more = {name: tmp_path / name for name in ("key", "operations.ndjson", "operations.dump", "out")}
    for path, text in zip(found.values(), (MANIFEST, STRICT, "\n".join(lines)), strict=True):
        path.write_text(text)
    return found | more


def dumped(value: bytes, timestamp: int) -> bytes:
    """The line of a dump that `tidegate export` writes of a record."""
    record: Any = SimpleNamespace(partition=0, offset=0, timestamp=timestamp, key=None, headers=(), value=value)
    return dump_line(record)


def backtest(files: dict[str, Path], *more: object, a: str = "a.yml", b: str | None = "b.yml") -> Done:
    manifests = [("--manifest", files[name]) for name in (a, b) if name]
    return tidegate("backtest", "--events", files["log"], *(x for pair in manifests for x in pair), *more)


def elements(svg: bytes) -> list[str]:
    """The tags of a document that an XML parser takes."""
    found: list[str] = []
    parser = ParserCreate()
    parser.StartElementHandler = lambda name, _: found.append(name)
    parser.Parse(svg, True)
    return found


class TestComparison:
    def test_it_shows_the_window_that_b_would_have_failed_and_why(self, files: dict[str, Path]) -> None:
        done = backtest(files)
        assert (done.code, done.err) == (0, "")
        assert "B is judged on the evidence that A's ramp produced" in done.out
        (line,) = [line for line in done.out.splitlines() if "freeze" in line and line.startswith("f|")]
        assert line.split()[:2] == ["f|", "11-14"]
        assert "latency_p95_uplift_max +10 %: A ≤ 15 % pass, B ≤ 5 % fail" in line
        assert done.out.splitlines()[-1] == "6 windows: the same in 5, not in 1 (1 × hold → freeze)"

    def test_windows_that_are_the_same_stand_together(self, files: dict[str, Path]) -> None:
        done = backtest(files, b="a.yml")
        rows = [line for line in done.out.splitlines() if line.startswith("f|")]
        assert len(rows) == 1
        assert "6 windows" in rows[0]
        assert done.out.splitlines()[-1] == "6 windows: A and B say the same in all of them"

    def test_it_leaves_the_windows_and_a_plot(self, files: dict[str, Path]) -> None:
        """The plot is XML that needs nothing else; it names what decides, with both limits."""
        done = backtest(files, "--out", files["out"])
        assert done.code == 0
        lines = [json.loads(line) for line in (files["out"] / "windows.ndjson").read_text().splitlines()]
        assert [line["same"] for line in lines] == [True, True, False, True, True, True]
        assert lines[2]["b"]["verdict"] == "freeze"
        assert lines[2]["differences"][0]["limits"] == [0.15, 0.05]
        plot = (files["out"] / "windows.svg").read_bytes()
        found = elements(plot)
        assert set(found) == ELEMENTS - {"path"}
        assert found.count("circle") == 6
        for text in ("latency_p95_uplift_max", "A ≤ 15 %", "B ≤ 5 %", "a.yml", "b.yml", "only under B"):
            assert text.encode() in plot
        assert plot.count(b"http") == 1, "the namespace alone: nothing is loaded"

    def test_operators_orders_are_told_and_marked(self, files: dict[str, Path]) -> None:
        """With who gave them; from a file, and signed from a dump, as are the manifests."""
        order = Operation(actor="Ada", flag="f", kind="kill", reason="drill", ts=NOON + 75_000)
        assert tidegate("keygen", files["key"]).code == 0
        key = read_private(files["key"].read_bytes())
        trusted = files["key"].with_suffix(".pub")
        signed = sign("operation", "tidegate/tidegate", order.to_bytes(), key)
        operations = {files["operations.ndjson"]: order.to_bytes()}
        operations[files["operations.dump"]] = dumped(signed, order.ts)
        found = []
        for path, content in operations.items():
            path.write_bytes(content)
            more = "--operations", path, "--trusted-keys", trusted, "--out", files["out"]
            done = backtest(files, *more)
            assert (done.code, done.err) == (0, "")
            assert "f|: kill by Ada at 2023-11-14T22:14:35Z, on A's ramp" in done.out
            found.append(done.out)
            assert "✗ kill by Ada".encode() in (files["out"] / "windows.svg").read_bytes()
        assert found[0] == found[1]
        for name in ("a.yml", "b.yml"):
            text = sign_revision(files[name].read_text(), 1, 0, "tidegate/tidegate", key)
            dump = files[name].with_suffix(".dump")
            dump.write_bytes(dumped(text, 0))
            files[name] = dump
        assert backtest(files, *more).out.splitlines()[-2:] == found[0].splitlines()[-2:]

    def test_verdicts_are_told_apart_without_colour(self, files: dict[str, Path]) -> None:
        """By a sign with each word of the legend, and by the shape: half, whole, or struck."""

        def shape(word: str) -> tuple[int, float]:
            canvas = Canvas()
            _draw_block(canvas, word, 0, 0, 20, 24)
            svg = canvas.svg()
            return svg.count("<line"), float(svg.split('height="')[-1].split('"')[0])

        shapes = [shape(word) for word in ("hold", "promote", "abort")]
        assert len(set(shapes)) == 3
        assert shape("freeze") == shapes[0]
        assert shape("kill") == shapes[2]
        assert backtest(files, "--out", files["out"]).code == 0
        plot = (files["out"] / "windows.svg").read_text()
        for words in ("… hold", "! freeze"):
            assert words in plot

    def test_units_share_their_axes(self) -> None:
        """A unit that began later begins later in the picture."""
        whole = [window("f|eu", NOON + 1000 * n, "hold") for n in range(4)]
        late = [window("f|us", NOON + 3000, "hold")]
        axes = _axes([whole, late])
        assert (axes.start, axes.end) == (NOON, NOON + 4000)

    def test_settings_that_would_have_made_another_history_are_named(self, files: dict[str, Path]) -> None:
        files["b.yml"].write_text(STRICT.replace("20s", "40s"))
        done = backtest(files)
        assert "f: B's window.length would have made another history; A's are taken instead" in done.out


class TestSham:
    def test_the_same_seed_says_the_same_and_rates_have_intervals(self, files: dict[str, Path]) -> None:
        arguments = ("--aa", 6, "--regression", "latency=1.3", "--regression", "error=0.5", "--out", files["out"])
        first, again = backtest(files, *arguments, b=None), backtest(files, *arguments, b=None)
        assert (first.code, first.err) == (0, "")
        assert first.out == again.out
        for text in (
            "aborted early",
            "false_stop is 5 %",
            "exact 95 % interval",
            "A rate is the share of these 6 rollouts that ended so although",
            "latency=1.3",
            "error=0.5",
        ):
            assert text in first.out
        (rates,) = json.loads((files["out"] / "rates.json").read_text())
        assert rates["rollouts"] == 6
        assert rates["healthy"]["rolled_back"] == {"count": 0, "rate": 0.0, "interval": [0.0, 0.4592581264399004]}
        assert [regression["regression"] for regression in rates["regressions"]] == ["latency=1.3", "error=0.5"]
        assert elements((files["out"] / "lifetimes.svg").read_bytes()).count("path") == 3

    def test_the_false_stop_rate_is_told_beside_false_stop_of_those_that_ended(self, files: dict[str, Path]) -> None:
        """Where the history is too short for any to end, that is said, and no 0 %."""
        sequential = MANIFEST.replace("point", "sequential")
        files["a.yml"].write_text(sequential)
        done = backtest(files, "--aa", 4, "--out", files["out"], b=None)
        assert "No sham rollout came to an end before the history did, so no false-stop rate is known" in done.out
        assert "false_stop is 5 %" in done.out
        (rates,) = json.loads((files["out"] / "rates.json").read_text())
        assert rates["stopped_of_ended"] == {"count": 0, "of": 0, "interval": None}
        files["a.yml"].write_text(MANIFEST.replace("hold_windows: 100", "hold_windows: 1"))
        assert (
            "Of all 4 rollouts, 0 % were stopped without a regression (0.00 – 60.24 %)"
            in backtest(files, "--aa", 4, b=None).out
        )

    def test_two_manifests_are_measured_on_the_same_splits(self, files: dict[str, Path]) -> None:
        done = backtest(files, "--aa", 2)
        assert done.code == 0
        assert f"f| under {files['a.yml']}" in done.out
        assert f"f| under {files['b.yml']}" in done.out


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "b", "told"),
        [
            ((), None, "--manifest: given 1 time; give A and B, or with --aa only A"),
            (("--manifest", "c.yml"), "b.yml", "--manifest: given 3 times"),
            (("--regression", "error=0.1"), "b.yml", "--regression: is put on sham canaries; give --aa N"),
            (("--aa", "2", "--regression", "speed=2"), None, "speed=2: no regression of that name"),
            (("--aa", "0"), None, "'--aa': 0 is not in the range"),
            (("--pane", "0s"), "b.yml", "--pane: must be longer than 0"),
            (("--events", "missing"), "b.yml", "missing: No such file"),
        ],
    )
    def test_one_is_one_line_and_exit_code_two(
        self, files: dict[str, Path], arguments: tuple[str, ...], b: str | None, told: str
    ) -> None:
        done = backtest(files, *arguments, b=b)
        assert done.code == 2
        assert told in done.line

    def test_what_the_files_cannot_answer_is_said(self, files: dict[str, Path]) -> None:
        def told(b: str | None, *arguments: object) -> str:
            done = backtest(files, *arguments, b=b)
            assert done.code == 2
            return done.line

        other = files["b.yml"]
        other.write_text("flags: {g: {}}")
        assert "A and B have no flag in common" in told("b.yml")
        other.write_text(MANIFEST.replace("    versions", "    kind: cost_guard\n    versions"))
        assert "flag f is a progressive_rollout in A and a cost_guard in B" in told("b.yml")
        other.write_text(MANIFEST.replace("    versions", "    scope: {tenants: [t]}\n    versions"))
        assert "flag f has another scope in B" in told("b.yml", "--aa", 2)
        files["out"].write_text("")
        assert str(files["out"]) in told("a.yml", "--out", files["out"])
        files["log"].write_bytes(files["log"].read_bytes().split(b"\n")[0])
        assert "close no window" in told("a.yml")
        assert "close no window" in told(None, "--aa", 2)
        assert "closes no pane; end the log with a tick" in told(None, "--aa", 2, "--partitions", 2)
        files["a.yml"].write_text("flags: {f: {kind: cost_guard}}")
        assert "has no progressive rollout" in told(None, "--aa", 2)


def window(unit: str, start: int, verdict: str, b: str | None = None, at: int | None = None) -> ComparedWindow:
    def side(said: str, moment: int) -> Side:
        return Side(said, ["x"], moment, [], [], [])

    end = start + 1000
    return ComparedWindow(unit, start, end, 0.1, side(verdict, end), side(b or verdict, at or end), [])


class TestPlot:
    def test_hostile_names_cannot_break_it(self) -> None:
        """Markup, quotes and control characters of a region or a file's name are text."""
        unit = "f|<script>&\"'\x1b[31m\x00\u2028 region"
        svg = comparison_svg([window(unit, 0, "promote")], ["<a>.yml", 'b".yml'])
        assert set(elements(svg.encode())) <= ELEMENTS
        assert "\x1b" not in svg
        assert "<script>" not in svg

    def test_many_units_and_windows_are_bounded(self) -> None:
        windows = [window(f"f|{i:03}", 1000 * j, "hold") for i in range(40) for j in range(20)]
        svg = comparison_svg(windows, ["a", "b"])
        assert f"{40 - UNITS_SHOWN} units more" in svg
        assert svg.count("<rect") < UNITS_SHOWN * 2 * 20 + 20

    def test_times_that_no_calendar_has_are_shown_as_they_are(self) -> None:
        elements(comparison_svg([window("f|", 2**53, "hold")], ["a", "b"]).encode())

    def test_without_numbers_there_is_no_metric(self) -> None:
        assert deciding([window("f|", 0, "hold")]) is None

    @pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.004, 0.0345), (99.5, 100.5), (0, 1e-9), (0, 3e8)])
    def test_ticks_are_round_and_inside(self, low: float, high: float) -> None:
        ticks = round_numbers(low, high)
        assert 2 <= len(ticks) <= 6
        assert all(low <= tick <= high for tick in ticks)
        assert ticks == sorted(set(ticks))


def test_a_window_with_a_freeze_before_its_end_counts_once() -> None:
    """Its freeze and its end are told apart, and both turns are named."""
    rows = [window("f|", 0, "freeze", "hold", 500), window("f|", 0, "rollback", "freeze"), window("f|", 1000, "hold")]
    assert summary(rows) == "2 windows: the same in 1, not in 1 (1 × freeze → hold, 1 × rollback → freeze)"


def test_the_summary_tells_turns_and_times_apart() -> None:
    told = summary(
        [
            window("f|", 0, "promote", "rollback"),
            window("f|", 1000, "abort", "abort", 1500),
            window("f|", 2000, "hold"),
        ]
    )
    assert told == "3 windows: the same in 1, not in 2 (1 × promote → rollback, 1 × abort, sooner under B)"
