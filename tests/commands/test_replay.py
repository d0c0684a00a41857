"""``tidegate replay``: what an auditor has in hand is a file, a command line and an exit code."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.commands.invoke import Done, tidegate
from tests.streams.events import NOON, RAMP, event, healthy_pane, probes, tick, written
from tidegate.streams.commands.outcomes import After

END = NOON + 200_000
PANES = [NOON, NOON + 10_000, NOON + 40_000, NOON + 50_000]
"""Enough for a promote and decisions after it."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's environment."""
    for name in [name for name in os.environ if name.upper().startswith("TIDEGATE_")]:
        monkeypatch.delenv(name)


class Case:
    """A folder with a manifest and a log, and how to replay it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest, self.events, self.out = folder / "flags.yml", folder / "log.ndjson", folder / "out.ndjson"
        self.manifest.write_text(RAMP)
        self.lines = [line or b"" for line in written([e for ts in PANES for e in healthy_pane(ts)])] + [tick(END)]
        self.write("log.ndjson", self.lines)

    def write(self, name: str, lines: list[bytes]) -> Path:
        content = b"".join(line + b"\n" for line in lines)
        (self.folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return self.folder / name

    def replay(self, *more: object, events: Path | None = None) -> Done:
        given = "--manifest", self.manifest, "--events", events or self.events, "--out", self.out
        return tidegate("replay", *given, *more)

    def decided(self, *more: object, events: Path | None = None) -> bytes:
        """The bytes of the decisions."""
        done = self.replay(*more, events=events)
        assert (done.code, done.err) == (0, "")
        return self.out.read_bytes()

    def records(self, *more: object, events: Path | None = None) -> list[Any]:
        return [json.loads(line) for line in self.decided(*more, events=events).splitlines()]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


class TestOutput:
    def test_decisions_and_commands_are_written_a_line_each_and_counted(self, case: Case) -> None:
        done = case.replay("--commands", case.folder / "commands.ndjson")
        assert done.code == 0
        decisions = [json.loads(line) for line in case.out.read_bytes().splitlines()]
        commands = [json.loads(line) for line in (case.folder / "commands.ndjson").read_bytes().splitlines()]
        assert {decision["schema"] for decision in decisions} == {"tidegate.decision/1"}
        assert {command["schema"] for command in commands} == {"tidegate.command/1"}
        assert decisions[0]["verdict"] == "promote"
        assert done.out.startswith(f"{len(decisions)} decisions (")
        assert f", {len(commands)} command" in done.out
        assert {command["decision_id"] for command in commands} <= {decision["decision_id"] for decision in decisions}
        assert commands

    def test_the_same_files_give_the_same_bytes(self, case: Case) -> None:
        assert case.decided() == case.decided()

    def test_a_log_that_closes_no_window_is_no_failure(self, case: Case) -> None:
        done = case.replay(events=case.write("short.ndjson", case.lines[:5]))
        assert (done.code, case.out.read_bytes()) == (0, b"")
        assert "no window was closed" in done.out

    @pytest.mark.parametrize("partitions", [1, 3])
    def test_who_closes_no_window_is_told_what_would(self, partitions: int, case: Case) -> None:
        """The advice is enough, and one ms less is not: a silent partition holds the others back."""
        given = "--partitions", partitions
        events = case.lines[: len(written(healthy_pane(NOON)))]

        def told(*more: bytes) -> str:
            done = case.replay(*given, events=case.write("short.ndjson", [*events, *more]))
            assert done.code == 0
            return " ".join(done.out.split())

        before = told()
        assert "of 2023-11-14T22:13:20Z to 2023-11-14T22:13:2" in before
        due = int(before.split("with ts ")[1].split()[0])
        assert "no window was closed: the first one ends" in told(tick(due - 1))
        after = told(tick(due))
        assert after.startswith("1 decision (")
        assert "no window was closed" not in after

    def test_a_log_in_which_nothing_counts_says_so(self, case: Case) -> None:
        done = case.replay(events=case.write("ticks.ndjson", [tick(NOON), tick(END)]))
        assert "no window was closed: no event counted" in done.out

    @pytest.mark.parametrize("option", ["--out", "--commands"])
    def test_a_place_that_cannot_be_written_is_named(self, option: str, case: Case) -> None:
        done = case.replay(option, case.folder / "missing" / "x.ndjson")
        assert done.code == 2
        assert "x.ndjson" in done.line

    def test_what_breaks_off_leaves_the_older_file_as_it_was(self, case: Case) -> None:
        """And nothing half-written beside it."""
        case.decided("--commands", case.folder / "commands.ndjson")
        before = {path: path.read_bytes() for path in case.folder.iterdir()}
        hole = [b'{"partition":0,"offset":%d,"value":{}}' % offset for offset in (0, 1, 7)]
        broken = case.write("hole.ndjson", hole)
        done = case.replay("--commands", case.folder / "commands.ndjson", events=broken)
        assert done.code == 2
        assert "hole.ndjson:3: records 2 to 6 of partition 0 are missing" in done.line
        broken.unlink()
        assert {path: path.read_bytes() for path in case.folder.iterdir()} == before

    @pytest.mark.parametrize("option", ["--commands", "--compare", "--events"])
    def test_out_is_no_file_that_is_used_otherwise(self, option: str, case: Case) -> None:
        """Decisions that are written over before they are compared are always the same as themselves."""
        case.decided()
        before = case.out.read_bytes()
        done = case.replay(option, case.out)
        assert done.code == 2
        assert "--out" in done.line
        assert case.out.read_bytes() == before

    def test_what_is_no_plain_file_is_written_to_and_not_replaced(self, case: Case) -> None:
        """Such as /dev/null, by root; what was decided can be compared all the same."""
        expected = case.decided()
        old = case.write("old.ndjson", expected.splitlines())
        case.out.unlink()
        os.mkfifo(case.out)
        reading = os.open(case.out, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert case.replay("--compare", old).code == 0
            assert case.out.is_fifo()
            assert os.read(reading, len(expected) + 1) == expected
        finally:
            os.close(reading)

    def test_corrections_go_into_a_file_of_their_own(self, case: Case) -> None:
        """What late events would have changed; decisions and commands stay what they are."""
        late = probes("late", NOON + 5, "canary", status=500)
        one = case.lines[: len(healthy_pane(NOON)) * 2]
        log = [*one, tick(NOON + 30_000), *written(late), tick(END)]
        case.write("late.ndjson", [line or b"" for line in log])
        out = case.folder / "corrections.ndjson"
        done = case.replay("--corrections", out, events=case.folder / "late.ndjson")
        assert done.out.splitlines()[-1] == "1 correction: late events would have changed a verdict"
        (correction,) = [json.loads(line) for line in out.read_bytes().splitlines()]
        assert (correction["said"]["verdict"], correction["corrected"]["verdict"]) == ("promote", "abort")
        decisions = [json.loads(line) for line in case.out.read_bytes().splitlines()]
        assert correction["decision_hash"] == decisions[0]["hash"]
        assert decisions[0]["verdict"] == "promote"


class TestInput:
    def test_a_gz_file_is_its_content(self, case: Case) -> None:
        assert case.decided(events=case.write("log.ndjson.gz", case.lines)) == case.decided()

    def test_several_files_are_one_log_however_they_are_given(self, case: Case) -> None:
        """``--events a --events b`` and, as a shell expands it, ``--events a b``."""
        first, second = case.write("a.ndjson", case.lines[:20]), case.write("b.ndjson.gz", case.lines[20:])
        expected = case.decided()
        assert case.decided("--events", second, events=first) == expected
        assert case.decided(second, events=first) == expected
        assert case.decided(first, events=second) != expected

    def test_partitions_spread_bare_events_as_kafka_does(self, case: Case) -> None:
        """Every one of them is named in what the first decision rests on."""
        (source,) = case.records()[0]["source"]
        assert source["partition"] == 0
        spread = case.records("--partitions", 3)[0]["source"]
        assert [one["partition"] for one in spread] == [0, 1, 2]

    def test_a_record_of_a_dump_widens_the_partitions(self, case: Case) -> None:
        lines = [b'{"partition":2,"offset":%d,"value":%s}' % row for row in enumerate(case.lines)]
        lines += [b'{"partition":%d,"offset":0,"value":%s}' % (p, tick(END)) for p in (0, 1)]
        assert {one["partition"] for one in case.records(events=case.write("dump", lines))[0]["source"]} == {2}

    def test_pane_and_lateness_are_in_every_decision(self, case: Case) -> None:
        engine = case.records("--pane", "5s", "--lateness", "1s")[0]["engine"]
        assert (engine["pane_ms"], engine["lateness_ms"]) == (5_000, 1_000)

    def test_they_are_those_of_the_settings_unless_they_are_given(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a worker that is started beside it takes them."""
        monkeypatch.setenv("TIDEGATE_PANE", "5s")
        monkeypatch.setenv("TIDEGATE_LATENESS", "2s")
        engine = case.records("--lateness", "1s")[0]["engine"]
        assert (engine["pane_ms"], engine["lateness_ms"]) == (5_000, 1_000)

    def test_the_topic_is_that_of_the_settings(self, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        """Or a worker's decisions would differ in their source."""
        monkeypatch.setenv("TIDEGATE_TOPIC_PREFIX", "other")
        assert case.records()[0]["source"][0]["topic"] == "other.telemetry"

    def test_a_line_that_is_no_event_is_counted_and_does_not_stop_it(self, case: Case) -> None:
        lines = [case.lines[0], b"no event", b"", *case.lines[1:]]
        assert case.records(events=case.write("garbage", lines))[0]["dead_letters"] == 1

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            (("--events", "missing.ndjson"), "missing.ndjson"),
            (("--manifest", "missing.yml"), "--manifest missing.yml"),
            (("--pane", "10"), "--pane"),
            (("--pane", "0s"), "--pane"),
            (("--pane", "7s"), "flags.f.window.length"),
            (("--lateness", "soon"), "--lateness"),
            (("--partitions", "0"), "--partitions"),
            (("--partitions", "many"), "--partitions"),
        ],
    )
    def test_what_is_wrong_is_named_in_one_line(self, arguments: tuple[str, str], name: str, case: Case) -> None:
        """And nothing is written."""
        done = case.replay(*arguments)
        assert done.code == 2
        assert name.removeprefix("--manifest ") in done.line
        assert not case.out.exists()

    def test_a_cut_gz_file_is_named(self, case: Case) -> None:
        whole = case.write("cut.ndjson.gz", case.lines)
        whole.write_bytes(whole.read_bytes()[:-30])
        done = case.replay(events=whole)
        assert done.code == 2
        assert "cut.ndjson.gz" in done.line


class TestCompare:
    def compare(self, case: Case, content: bytes) -> Done:
        (case.folder / "old.ndjson").write_bytes(content)
        return case.replay("--compare", case.folder / "old.ndjson")

    def test_a_log_agrees_with_itself(self, case: Case) -> None:
        done = self.compare(case, case.decided())
        assert (done.code, done.err) == (0, "")
        assert "the same bytes as " in done.out
        assert "old.ndjson" in done.out.replace("\n", "")

    def test_units_may_stand_in_any_order_and_records_twice(self, case: Case) -> None:
        """As consumers of several partitions see them."""
        lines = case.decided().splitlines(keepends=True)
        assert self.compare(case, b"".join([*lines, *lines])).code == 0

    def test_one_changed_byte_is_found_wherever_it_is(self, case: Case) -> None:
        """Exit code 1, and the unit and record are named."""
        decided = case.decided()
        digits = [at for at in range(decided.index(b"\n")) if decided[at : at + 1].isdigit()]
        for at in digits[:: len(digits) // 12]:
            other = b"8" if decided[at : at + 1] == b"9" else b"9"
            done = self.compare(case, decided[:at] + other + decided[at + 1 :])
            assert done.code == 1, f"byte {at}: {decided[at - 20 : at + 20]!r}"
            assert "f|: record 1 differs" in done.out
            assert done.err == ""

    @pytest.mark.parametrize("lost", [0, -1])
    def test_a_record_that_is_missing_is_a_difference(self, lost: int, case: Case) -> None:
        lines = case.decided().splitlines(keepends=True)
        del lines[lost]
        assert self.compare(case, b"".join(lines)).code == 1
        assert self.compare(case, b"").code == 1

    def test_another_manifest_is_a_difference(self, case: Case) -> None:
        (case.folder / "old.ndjson").write_bytes(case.decided())
        case.manifest.write_text(RAMP.replace("settle: 5s", "settle: 6s"))
        assert case.replay("--compare", case.folder / "old.ndjson").code == 1

    @pytest.mark.parametrize("content", [b"no record\n", b"{}\n", b"[]\n", b"\xff\n"])
    def test_a_file_of_something_else_is_a_mistake_and_not_a_difference(self, content: bytes, case: Case) -> None:
        done = self.compare(case, content)
        assert done.code == 2
        assert "old.ndjson" in done.line

    def test_a_missing_file_is_a_mistake_too(self, case: Case) -> None:
        done = case.replay("--compare", case.folder / "missing.ndjson")
        assert done.code == 2
        assert "missing.ndjson" in done.line


def test_a_decision_that_a_worker_sent_again_is_not_after_a_time_that_it_was_before() -> None:
    """After a crash older ones stand once more behind the first that is after the time."""
    old, new = (b'{"flag":"f","region":"eu","decided_at":%d}' % at for at in (10, 20))
    assert list(After(15).of([old, new, old, new])) == [new]


SCOPED = """
flags:
  narrow:
    scope: {regions: [eu], endpoints: [/a]}
    versions: {MODEL_VER: m1}
"""


class TestWhatCounted:
    """Whoever gets fewer decisions than expected is told what became of the records."""

    @staticmethod
    def told(case: Case, events: list[dict[str, Any] | bytes]) -> str:
        case.manifest.write_text(SCOPED)
        lines = [e if isinstance(e, bytes) else json.dumps(e).encode() for e in events]
        done = case.replay(events=case.write("few.ndjson", lines))
        assert done.code == 0
        return " ".join(done.out.split())

    def test_each_record_is_in_one_count(self, case: Case) -> None:
        """Ticks apart, which are no events."""

        def one(id: str, **changes: Any) -> dict[str, Any]:
            return event(**{"flag": "narrow", "region": "eu", "endpoint": "/a", "event_id": id} | changes)

        inside, both = one("1"), one("2", region=..., endpoint=...)
        told = self.told(
            case,
            [
                inside,
                inside,
                both,
                one("3", endpoint="/b"),
                one("4", endpoint="/c"),
                one("5", flag="narow"),
                one("6", source="warmup", region="us"),
                b"garbage",
                tick(NOON + 60_000),
                one("7"),
            ],
        )
        assert (
            "1 event counted; left out: 2 out of scope by endpoint, 1 out of scope by region, endpoint, "
            '1 of a flag that the manifest does not name ("narow"), 1 warm-up, 1 late, 1 repeated, 1 refused'
        ) in told

    def test_flags_that_no_manifest_names_are_told_by_name(self, case: Case) -> None:
        """Those of the most events first; of very many the others are only counted."""
        names = ["narow"] * 3 + [f"f{n}" for n in range(30)]
        told = self.told(case, [event(flag=name, event_id=str(n)) for n, name in enumerate(names)])
        assert '33 of flags that the manifest does not name ("narow" 3, "f0" 1, "f1" 1, ' in told
        assert ", others 23)" in told

    def test_nothing_left_out_is_said_too(self, case: Case) -> None:
        assert "left out: none" in self.told(case, [event(flag="narrow", region="eu", endpoint="/a")])
