"""``tidegate lint``: what is right is shown in full, what is wrong is one line with the place and the way out."""

import json
from pathlib import Path

import pytest

from tests.commands.invoke import Done, tidegate
from tests.streams.events import event

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "tests" / "schemas" / "data" / "feature_flags.yml"
GATES = {
    "delta_s.median_max": "0.03",
    "delta_s.p95_max": "0.1",
    "coverage_min": "0.7",
    "lambda_convergent": "True",
    "latency_p95_uplift_max": "0.15",
    "error_rate_max": "0.005",
    "tool_success_min": "0.99",
    "cost_uplift_max": "0.1",
}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "flags.yml"


def words(done: Done) -> str:
    """What was said, however the lines were broken."""
    return " ".join(done.out.split())


def lint(path: Path, text: str | bytes, *arguments: str) -> Done:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return tidegate("lint", path, *arguments)


class TestRight:
    def test_the_pages_manifest_is_right_as_it_stands(self) -> None:
        """Every gate with its limit, every rule, the ramp, and what it leaves unpinned."""
        done = tidegate("lint", PAGE)
        assert (done.code, done.err) == (0, "")
        assert "prompt_pack_vNplus1 progressive_rollout sha256:" in words(done)
        assert "0.05 → 0.25 → 0.5 → 1" in words(done)
        rows = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
        for gate, limit in GATES.items():
            assert rows[gate].split()[1] == limit
        assert "delta_s_p95_over 0.15" in rows["delta_s.p95_max"]
        assert "coverage_under 0.6" in rows["coverage_min"]
        assert "lambda_flip_rate_over 0.2" in rows["lambda_convergent"]
        assert "error_rate_over 0.01" in rows["error_rate_max"]
        assert "over 0.15" in rows["latency_p95_uplift_max"]
        assert "over 0.1" in rows["cost_uplift_max"]
        assert "TOK_VER, ANALYZER_CONF" in words(done)
        assert "looser" not in done.out
        assert done.out.rstrip().endswith("1 flag, no errors")

    def test_the_examples_are_right(self) -> None:
        assert tidegate("lint", ROOT / "examples" / "manifest.yml").code == 0

    def test_what_is_looser_than_the_page_or_off_is_told(self, manifest: Path) -> None:
        gates = "{error_rate_max: 0.02, coverage_min: null}"
        done = lint(manifest, f"flags: {{f: {{gates: {gates}, abort_rules: {{hard: []}}}}}}")
        assert done.code == 0
        remark = words(done).split("looser than", 1)[1]
        for one in ("error_rate_max", "coverage_min", "error_rate_over"):
            assert one in remark
        assert "off" in next(line for line in done.out.splitlines() if line.startswith("coverage_min"))

    def test_what_can_never_decide_is_told_and_what_can_is_not(self, manifest: Path) -> None:
        """A shadow stage before 1.0 has all traffic as its baseline; without one nothing is left for it."""
        assert "remark: the first stage leaves no traffic" in words(
            lint(manifest, "flags: {f: {traffic: {stages: [1.0]}}}")
        )
        assert "no traffic" not in words(lint(manifest, "flags: {f: {traffic: {stages: [1.0], shadow: true}}}"))
        never = lint(manifest, "flags: {f: {kind: quality_gated, policy: {quality_source: traffic}}}")
        assert (never.code, "remark: it never opens" in words(never)) == (0, True)

    def test_the_hash_is_that_of_what_it_says_and_not_of_how(self, manifest: Path) -> None:
        """Comments, order and spelled-out defaults do not change it; a limit does."""

        def shown(text: str) -> str:
            (word,) = [word for word in lint(manifest, text).out.split() if word.startswith("sha256:")]
            return word

        plain = shown("flags: {f: {}}")
        assert shown("# a comment\nflags:\n  f: {gates: {error_rate_max: 5e-3}, kind: progressive_rollout}") == plain
        assert shown("flags: {f: {gates: {error_rate_max: 0.004}}}") != plain

    def test_every_flag_is_shown(self, manifest: Path) -> None:
        done = lint(manifest, "flags: {one: {}, two: {window: {length: 1h}}}")
        assert "one progressive_rollout sha256:" in words(done)
        assert "two progressive_rollout sha256:" in words(done)
        assert "windows of 15m" in words(done)
        assert "windows of 1h" in words(done)
        assert "2 flags, no errors" in done.out

    @pytest.mark.parametrize("name", ["[/red]", "[bold]", "[link=x]y", ":smile:", "é😀"])
    def test_a_name_that_looks_like_markup_is_shown_as_it_is(self, name: str, manifest: Path) -> None:
        done = lint(manifest, f'flags: {{"{name}": {{}}}}')
        assert done.code == 0
        assert f"{name}  progressive_rollout" in done.out

    def test_a_path_that_looks_like_markup_too(self, tmp_path: Path) -> None:
        (tmp_path / "[").mkdir()
        done = lint(tmp_path / "[" / "red]x", "flags: {f: {}}")
        assert done.code == 0
        assert "[/red]x" in done.out.replace("\n", "")


class TestWrong:
    @pytest.mark.parametrize(
        ("text", "place", "way_out"),
        [
            ("flags: {x: {gate: {}}}", "flags.x.gate:", "gates"),
            ("flags: {x: {gates: {error_rate: 0.1}}}", "flags.x.gates.error_rate:", "error_rate_max"),
            ("flags: {x: {gates: {delta_s: {p96_max: 1}}}}", "flags.x.gates.delta_s.p96_max:", "p95_max"),
            (
                "flags: {x: {abort_rules: {hard: [{kind: error_rate_ovr, value: 0.01}]}}}",
                "flags.x.abort_rules.hard[0].kind:",
                "error_rate_over",
            ),
            ("flags: {x: {abort_rules: {hard: [{kind: coverage_under}]}}}", "flags.x.abort_rules.hard[0]", "value"),
            (
                "flags: {x: {abort_rules: {soft: [{kind: latency_p95_over_budget}, {kind: latency_p95_over_budget}]}}}",
                "flags.x.abort_rules.soft[1]",
                "one",
            ),
            ("flags:\n  x: {}\n  x: {}\n", "flags.x:", "keep one"),
            ("flags: {x: {gates: {coverage_min: .nan}}}", "flags.x.gates.coverage_min:", "finite"),
            ("flags: {x: {gates: {coverage_min: 1.1}}}", "flags.x.gates.coverage_min:", "at most 1"),
            ("flags: {x: {gates: {coverage_min: '0.7'}}}", "flags.x.gates.coverage_min:", "without quotes"),
            ("flags: {x: {gates: {error_rate_max: 0.02}}}", "flags.x.", "error_rate_over"),
            ("flags: {x: {traffic: {baseline_weight: 0.9, canary_weight: 0.05}}}", "flags.x.traffic", "1"),
            ("flags: {x: {traffic: {stages: [0.05, 0.05]}}}", "flags.x.traffic.stages", "ris"),
            ("flags: {x: {traffic: {canary_weight: 0.1, stages: [0.05, 1]}}}", "flags.x.traffic.stages", "0.1"),
            ("flags: {x: {window: {length: 15}}}", "flags.x.window.length:", "15s"),
            ("flags: {x: {window: {length: 15s}}}", "flags.x.window.length:", "20s"),
            ("flags: {x: {versions: {MODEL_VER: 1.1}}}", "flags.x.versions.MODEL_VER:", "quote"),
            ("flags: {x: {kind: canary}}", "flags.x.kind:", "progressive_rollout"),
            ("flags: {'a|b': {}}", "flags", "rename"),
            ("flags: {}", "flags", "flag"),
            ("", "flags", "flag"),
            ("flag: {x: {}}", "flag:", "flags"),
            ("[]", "flags.yml:", "keys"),
        ],
    )
    def test_it_is_refused_with_the_yaml_path_and_the_way_out(
        self, text: str, place: str, way_out: str, manifest: Path
    ) -> None:
        done = lint(manifest, text)
        assert done.code == 2
        assert done.out == ""
        what, _, fix = done.line.rpartition("; ")
        assert place in what
        assert way_out in fix

    @pytest.mark.parametrize("text", ["flags: {x: {", "flags:\n\tx: {}", b"\xff\xfe\x00", "flags: *nobody", "a: b: c"])
    def test_what_is_no_yaml_is_refused_with_its_file(self, text: str | bytes, manifest: Path) -> None:
        done = lint(manifest, text)
        assert done.code == 2
        assert "flags.yml" in done.line

    def test_a_path_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "missing.yml"):
            done = tidegate("lint", path)
            assert done.code == 2
            assert str(path) in done.line

    @pytest.mark.parametrize("pane", ["10", "ten", "0s", "-1s"])
    def test_a_pane_that_is_none_is_refused(self, pane: str) -> None:
        done = tidegate("lint", PAGE, "--pane", pane)
        assert done.code == 2
        assert "--pane" in done.line

    def test_a_window_is_checked_against_the_workers_pane(self, manifest: Path) -> None:
        """The default is the worker's default."""
        assert lint(manifest, "flags: {x: {window: {length: 15s, settle: 0s}}}", "--pane", "5s").code == 0
        assert lint(manifest, "flags: {x: {window: {length: 15s, settle: 0s}}}").code == 2


def test_lint_says_how_much_of_a_log_counts(tmp_path: Path) -> None:
    manifest, log = tmp_path / "flags.yml", tmp_path / "log.ndjson"
    manifest.write_text("flags: {narrow: {scope: {regions: [eu]}}}")
    counted = event(flag="narrow", region="eu", event_id="1")
    events = [counted, event(flag="narrow", region=..., event_id="2"), event(flag="narow", event_id="3")]
    log.write_text("".join(json.dumps(one) + "\n" for one in events))
    done = tidegate("lint", manifest, "--events", log)
    assert done.code == 0
    said = '1 event counted; left out: 1 out of scope by region, 1 of a flag that the manifest does not name ("narow")'
    assert said in " ".join(done.out.split())
