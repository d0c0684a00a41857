"""Files in, decisions out: the lines of section 7, and that a file decides what the topic would have decided."""

import gzip
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streams.events import (
    CLOCKWORK,
    MANIFEST,
    NOON,
    RAMP,
    draw_log,
    flags,
    healthy_pane,
    record,
    served,
    tick,
    written,
)
from tests.streams.reference import levels
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.decision import Command, Decision
from tidegate.schemas.errors import InputError
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.compare import by_unit, first_difference
from tidegate.streams.audit.replay import replay
from tidegate.streams.dumps import log as module
from tidegate.streams.dumps.log import Record, count_partitions, partition_of, read_lines, read_record
from tidegate.streams.engine.pipeline import Pipeline
from tidegate.streams.engine.runs import Run

TEXT = MANIFEST + RAMP.replace("flags:\n", "")
END = tick(NOON + 200_000)


def write(path: Path, lines: Sequence[bytes | None]) -> Path:
    content = b"".join((b"null" if line is None else line) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def replayed(*paths: Path, partitions: int = 1, text: str = TEXT, clockwork: Clockwork = CLOCKWORK) -> list[bytes]:
    """Decisions and commands, in order."""
    count = count_partitions(paths, partitions)
    outcomes = list(replay(paths, Timeline.of(flags(text)), count, clockwork))
    return [record.to_bytes() for outcome in outcomes for record in outcome if record is not None]


def live(*logs: Sequence[bytes | None], text: str = TEXT) -> list[bytes]:
    """The same from records with their partitions and offsets."""
    pipeline = Pipeline(Timeline.of(flags(text)), len(logs), CLOCKWORK)
    outcomes: list[tuple[Decision, Command | None]] = []
    for partition, log in enumerate(logs):
        outcomes += pipeline.step(partition, Run(0, log))
    return [record.to_bytes() for outcome in outcomes for record in outcome if record is not None]


def envelope(partition: int, offset: int | None, value: bytes, timestamp: int | None = None) -> bytes:
    head: dict[str, Any] = {"partition": partition, "offset": offset, "timestamp": timestamp}
    given = {name: number for name, number in head.items() if number is not None}
    return json.dumps(given)[:-1].encode() + b', "value": ' + value + b"}"


def traffic() -> list[dict[str, Any]]:
    """Enough for a promote and a decision after it."""
    return healthy_pane(NOON) + healthy_pane(NOON + 10_000) + healthy_pane(NOON + 40_000) + healthy_pane(NOON + 50_000)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write(tmp_path / "log.ndjson", [*written(traffic()), END])


class TestPartitioning:
    @pytest.mark.parametrize(
        ("key", "murmur2"),
        [
            (b"21", -973932308),
            (b"foobar", -790332482),
            (b"a-little-bit-long-string", -985981536),
            (b"a-little-bit-longer-string", -1486304829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            (b"abc", 479470107),
        ],
    )
    def test_the_partition_is_murmur2_of_the_key_as_kafkas_default(self, key: bytes, murmur2: int) -> None:
        """Test vectors of Kafka's own UtilsTest."""
        for partitions in (2, 3, 7, 100):
            assert partition_of(key, partitions) == (murmur2 & 0x7FFFFFFF) % partitions
        assert partition_of(key, 1) == 0

    def test_a_bare_event_goes_to_the_partition_of_its_sticky_id(self) -> None:
        """In UTF-8."""
        for sticky in ("s", "é😀", "abc"):
            line = record(sticky_id=sticky)
            assert read_record(line, 7) == [Record(partition_of(sticky.encode(), 7), None, -1, line)]

    @pytest.mark.parametrize(
        "extra",
        [
            {"timestamp": "2026-11-24T12:00:00Z"},
            {"offset": "12"},
            {"partition": "eu-1"},
            {"partition": 3},
            {"offset": None, "timestamp": 1.5},
            {"value": 12.5},
        ],
    )
    def test_unknown_extra_fields_do_not_move_a_bare_event(self, extra: dict[str, Any]) -> None:
        """A service may well have a ``timestamp`` or an ``offset`` of its own beside ``ts``."""
        line = record(sticky_id="abc", **extra)
        assert read_record(line, 7) == [Record(partition_of(b"abc", 7), None, -1, line)]

    @pytest.mark.parametrize(
        "line",
        [
            tick(NOON),
            b'{ "ts" : 5, "kind" : "tick" }',
            b'{"kind":"tick","ts":5,"timestamp":"2026-11-24T12:00:00Z"}',
            b'{"kind":"tick","ts":5,"sticky_id":"s"}',
        ],
    )
    def test_a_tick_goes_to_every_partition(self, line: bytes) -> None:
        assert [r.partition for r in read_record(line, 3)] == [0, 1, 2]

    @pytest.mark.parametrize(
        "line",
        [
            b"x",
            b"null",
            b"[1]",
            b"\xff\xfe",
            b"{" * 10_000,
            b'{"sticky_id":7}',
            b"{}",
            b'{"sticky_id":"\\ud800"}',
            b'{"partition":"x","value":{}}',
        ],
    )
    def test_an_undecodable_line_goes_to_partition_0(self, line: bytes) -> None:
        assert read_record(line, 5) == [Record(0, None, -1, line)]


class TestRecordsOfADump:
    def test_a_record_says_where_it_was(self) -> None:
        line = envelope(3, 17, record(), 99)
        assert read_record(line, 1) == [Record(3, 17, 99, record())]

    def test_offset_and_timestamp_are_optional(self) -> None:
        assert read_record(envelope(0, None, record()), 1) == [Record(0, None, -1, record())]
        assert read_record(b'{"partition":0,"offset":null,"timestamp":null,"value":{}}', 1)[0].timestamp == -1

    def test_a_tick_in_it_is_of_its_partition_alone(self) -> None:
        assert [r.partition for r in read_record(envelope(2, 0, tick(NOON)), 4)] == [2]

    @pytest.mark.parametrize("value", [b"null", b"7", b"[]", b'"not json"', b'"\\ud800"', b'""'])
    def test_a_value_that_is_no_event_is_a_dead_letter(self, value: bytes, tmp_path: Path) -> None:
        """Counted, like live."""
        lines = [envelope(0, 0, record()), envelope(0, 1, value), envelope(0, 2, END)]
        decision = json.loads(replayed(write(tmp_path / "d", lines))[0])
        assert decision["dead_letters"] == 1

    def test_the_timestamp_is_what_the_future_is_measured_by(self, tmp_path: Path) -> None:
        """Not checked where the file gives none."""

        def dead(timestamp: int | None) -> int:
            ahead = envelope(0, 1, record(event_id="f", ts=NOON + 1_000), timestamp)
            lines = [envelope(0, 0, record()), ahead, envelope(0, 2, END)]
            found: int = json.loads(replayed(write(tmp_path / "d", lines))[0])["dead_letters"]
            return found

        assert [dead(None), dead(NOON - 59_000), dead(NOON - 59_001)] == [0, 0, 1]

    def test_a_partition_beyond_the_number_given_widens_it(self, tmp_path: Path) -> None:
        path = write(tmp_path / "d", [envelope(4, 0, record()), envelope(0, 0, b"1")])
        assert count_partitions([path], 2) == 5
        assert count_partitions([path], 9) == 9

    @pytest.mark.parametrize(
        "line",
        [
            b'{"partition" :\t4,"offset":0,"value":{}}',
            b'{"partition":1,"p\\u0061rtition":4,"offset":0,"value":{}}',
            b'{"partition":1,"offset":0,"value":{"partition":0},"partition":4}',
            b'{"value":{"a":"\\"partition\\":0"},"offset":0,"partition":4}',
        ],
    )
    def test_however_a_line_spells_it(self, line: bytes, tmp_path: Path) -> None:
        """As each record is read; also the last line of many, and one without an end."""
        before = [envelope(1, n, b'{"partition":1}') for n in range(30_000)]
        path = write(tmp_path / "d", [*before, line, *before[:3]])
        assert read_record(line, 1)[0].partition == 4
        assert count_partitions([path], 2) == 5
        path.write_bytes(b"\n".join([*before, line]))
        assert count_partitions([path], 2) == 5

    @pytest.mark.parametrize("partition", [-1, 100_000, 10**30])
    def test_a_partition_that_cannot_be_is_refused_with_its_line(self, partition: int, tmp_path: Path) -> None:
        path = write(tmp_path / "d", [b"", envelope(partition, 0, b"{}")])
        with pytest.raises(InputError, match="d:2: partition"):
            count_partitions([path], 1)

    @pytest.mark.parametrize("name", ["offset", "timestamp"])
    @pytest.mark.parametrize("number", [2**63 - 1, 2**63, 10**30, -(10**30)])
    def test_numbers_that_kafka_does_not_have_end_in_no_traceback(self, name: str, number: int, tmp_path: Path) -> None:
        """An offset or timestamp beyond 64 bits is the file's mistake: an InputError, or a dead letter."""
        head = {"partition": 0, "offset": 0, "timestamp": NOON} | {name: number}
        value = record()
        line = json.dumps(head)[:-1].encode() + b', "value": ' + value + b"}"
        more = json.dumps(head | {"offset": head["offset"] + 1})[:-1].encode() + b', "value": ' + value + b"}"
        path = write(tmp_path / "d", [line, more])
        with suppress(InputError):
            replayed(path)


class TestOffsets:
    def test_bare_lines_go_on_over_several_files(self, tmp_path: Path) -> None:
        """The place in the partition is the offset."""
        lines = [*written(traffic()), END]
        whole = replayed(write(tmp_path / "all", lines), partitions=3)
        parts = [write(tmp_path / f"{at}.gz", lines[at : at + 7]) for at in range(0, len(lines), 7)]
        assert len(whole) >= 3
        assert replayed(*parts, partitions=3) == whole

    def test_records_may_start_mid_way(self, tmp_path: Path) -> None:
        """A topic whose beginning has expired."""
        lines = [envelope(0, 1_000 + i, value or b"null") for i, value in enumerate([*written(traffic()), END])]
        first = json.loads(replayed(write(tmp_path / "d", lines))[0])
        assert first["source"][0]["first"] == 1_000

    def test_a_gap_is_refused_with_file_line_and_offsets(self, tmp_path: Path) -> None:
        lines = [envelope(1, 5, record()), envelope(0, 0, record()), envelope(1, 8, record())]
        path = write(tmp_path / "d.ndjson", lines)
        with pytest.raises(InputError, match=r"d.ndjson:3: records 6 to 7 of partition 1 are missing"):
            replayed(path)

    def test_what_two_files_both_hold_is_taken_once(self, tmp_path: Path) -> None:
        lines = [envelope(0, i, value or b"null") for i, value in enumerate([*written(traffic()), END])]
        whole = replayed(write(tmp_path / "all", lines))
        first, second = write(tmp_path / "a", lines[:30]), write(tmp_path / "b", lines[12:])
        assert replayed(first, second) == whole

    def test_bare_lines_may_follow_records(self, tmp_path: Path) -> None:
        lines = written(traffic())
        mixed = [envelope(0, i, value or b"") for i, value in enumerate(lines[:20])] + [*lines[20:], END]
        assert replayed(write(tmp_path / "m", mixed)) == replayed(write(tmp_path / "b", [*lines, END]))


class TestLines:
    def test_blank_lines_are_skipped(self, tmp_path: Path) -> None:
        lines = [*written(traffic()), END]
        blank: list[bytes | None] = [b"", b"  ", b"\t", b"\r"]
        spaced = [x for line in lines for x in (random.Random(1).choice(blank), line)]
        assert replayed(write(tmp_path / "s", spaced)) == replayed(write(tmp_path / "p", lines))

    def test_windows_line_ends_and_a_missing_last_one_do_not_matter(self, tmp_path: Path) -> None:
        lines = [line or b"" for line in [*written(traffic()), END]]
        path = tmp_path / "crlf"
        path.write_bytes(b"\r\n".join(lines))
        assert replayed(path) == replayed(write(tmp_path / "p", lines))

    def test_a_line_that_is_no_event_is_dead_lettered_and_counted(self, tmp_path: Path) -> None:
        garbage: list[bytes | None] = [b"x", b"{}", b"[]", b"\xff", b"[" * 5_000, record(arm="other")]
        path = write(tmp_path / "g", [record(), *garbage, END])
        assert json.loads(replayed(path)[0])["dead_letters"] == len(garbage)

    def test_a_gz_file_is_its_content(self, tmp_path: Path, log: Path) -> None:
        packed = tmp_path / "log.ndjson.gz"
        packed.write_bytes(gzip.compress(log.read_bytes()[:999]) + gzip.compress(log.read_bytes()[999:]))
        assert replayed(packed) == replayed(log)

    def test_every_line_has_its_file_and_number(self, tmp_path: Path) -> None:
        one, other = write(tmp_path / "one", [b"a", b"", b" b "]), write(tmp_path / "other.gz", [b"c"])
        assert list(read_lines([one, other])) == [(one, 1, b"a"), (one, 3, b"b"), (other, 1, b"c")]

    def test_progress_adds_up_to_what_was_read(self, log: Path) -> None:
        told: list[int] = []
        list(read_lines([log], told.append))
        assert sum(told) == log.stat().st_size

    @pytest.mark.parametrize("what", ["missing", "folder", "text.gz", "cut.gz", "broken.gz"])
    def test_a_file_that_cannot_be_read_is_named(self, what: str, tmp_path: Path, log: Path) -> None:
        path = tmp_path / what
        packed = bytearray(gzip.compress(log.read_bytes()))
        packed[40] ^= 0xFF
        if what == "folder":
            path.mkdir()
        elif what != "missing":
            path.write_bytes({"text.gz": b"{}", "cut.gz": gzip.compress(log.read_bytes())[:-30]}.get(what, packed))
        with pytest.raises(InputError, match=what) as caught:
            list(read_lines([path]))
        assert "\n" not in str(caught.value)


class TestDeciding:
    @settings(max_examples=12, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), partitions=st.sampled_from([1, 2, 4]))
    def test_a_file_of_bare_events_decides_what_the_topic_decides(
        self, seed: int, partitions: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Bare lines, the dump of the topic they went to, and the records themselves: the same bytes."""
        folder = tmp_path_factory.mktemp("logs")
        lines = [line.replace(b"\n", b" ") for line in draw_log(seed, 120) if line and line.strip()]
        lines = [line for line in lines if line.strip()] + written(traffic()) + [END]  # type: ignore[assignment]
        logs: list[list[bytes | None]] = [[] for _ in range(partitions)]
        dump = []
        for line in lines:
            for target in read_record(line, partitions):
                if _dumps(line):
                    dump.append(envelope(target.partition, len(logs[target.partition]), line))
                else:
                    # A value that is no JSON is a dead letter, whatever the dump makes of it.
                    dump.append(envelope(target.partition, len(logs[target.partition]), b'"?"'))
                logs[target.partition].append(line)
        random.Random(seed).shuffle(dump)
        dump.sort(key=lambda line: json.loads(line.split(b', "value"')[0] + b"}")["offset"])
        expected = live(*logs)
        assert replayed(write(folder / "bare.gz", lines), partitions=partitions) == expected
        assert replayed(write(folder / "dump", dump), partitions=partitions) == expected

    def test_it_closes_only_what_the_log_closes(self, tmp_path: Path) -> None:
        """Append a tick."""
        lines = written(traffic())
        assert len(replayed(write(tmp_path / "p", lines))) < len(replayed(write(tmp_path / "q", [*lines, END])))

    def test_a_partition_that_stays_silent_holds_the_watermark(self, tmp_path: Path) -> None:
        lines = [envelope(0, i, value or b"") for i, value in enumerate([*written(traffic()), END])]
        silent = write(tmp_path / "s", lines)
        assert replayed(silent, partitions=2) == []
        assert replayed(write(tmp_path / "t", [*lines, envelope(1, 0, END)]), partitions=2) != []

    def test_the_order_of_partitions_in_a_file_does_not_matter(self, tmp_path: Path) -> None:
        rng, offsets, lines = random.Random(2), [0, 0, 0], []
        for value in [*written(traffic()), *draw_log(4, 200)]:
            partition = rng.randrange(3)
            lines.append(envelope(partition, offsets[partition], value if _dumps(value) else b"0"))  # type: ignore[arg-type]
            offsets[partition] += 1
        lines += [envelope(p, offsets[p], END) for p in range(3)]
        by_partition = sorted(lines, key=lambda line: json.loads(line.split(b', "value"')[0] + b"}")["partition"])
        expected = replayed(write(tmp_path / "a", lines))
        assert len(expected) > 10
        assert replayed(write(tmp_path / "b", by_partition)) == expected

    def test_pane_lateness_and_topic_are_in_every_decision(self, log: Path) -> None:
        decision = json.loads(replayed(log, clockwork=Clockwork(5_000, 0, "other.telemetry"))[0])
        assert (decision["engine"]["pane_ms"], decision["engine"]["lateness_ms"]) == (5_000, 0)
        assert decision["source"][0]["topic"] == "other.telemetry"

    def test_how_many_lines_are_taken_at_a_time_does_not_matter(
        self, log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = replayed(log, partitions=3)
        monkeypatch.setattr(module, "STEP", 3)
        assert replayed(log, partitions=3) == expected


def _dumps(value: bytes | None) -> bool:
    """Whether a value can stand in an NDJSON line as it is."""
    try:
        found = json.loads((value or b"x").decode(), parse_constant=int)
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return b"\n" not in (value or b"") and levels(found) < 512


class TestCompare:
    def records(self, *verdicts: str, flag: str = "f", region: str = "") -> list[bytes]:
        return [
            json.dumps({"flag": flag, "region": region, "verdict": v, "n": i}).encode() for i, v in enumerate(verdicts)
        ]

    def test_equal_bytes_are_no_difference(self) -> None:
        assert first_difference(self.records("hold", "pass"), self.records("hold", "pass")) is None

    def test_the_first_difference_names_unit_record_and_fields(self) -> None:
        said = first_difference(self.records("hold", "pass"), self.records("hold", "promote"))
        assert said == 'f|: record 2 differs in verdict "pass" here, "promote" there'

    def test_a_difference_of_bytes_alone_is_one(self) -> None:
        ours = self.records("hold")
        assert first_difference(ours, [ours[0].replace(b" ", b"")]) == "f|: record 1 differs"

    def test_units_may_alternate_in_any_way(self) -> None:
        """Decisions of several gates come in any order; within a unit the order counts."""
        a, b = self.records("hold", "pass", region="a"), self.records("hold", "pass", region="b")
        assert first_difference(a + b, [b[0], a[0], b[1], a[1]]) is None
        assert first_difference(a, a[::-1]) is not None

    def test_repeats_are_dropped(self) -> None:
        """Consumers drop repeats by id."""
        a = self.records("hold", "pass")
        assert first_difference(a, [a[0], a[0], a[1], a[0]]) is None

    def test_missing_records_are_a_difference_on_either_side(self) -> None:
        a = self.records("hold", "pass")
        assert first_difference(a, a[:1]) == "f|: 2 records here, 1 in the other file"
        assert first_difference(a[:1], a) == "f|: 1 record here, 2 in the other file"
        assert first_difference(a, a + self.records("hold", region="eu")) == "f|eu: 0 records here, 1 in the other file"

    @pytest.mark.parametrize("line", [b"x", b"{}", b"[]", b'{"flag":1,"region":""}', b"\xff", b"[" * 100_000])
    def test_a_line_that_is_no_record_is_told(self, line: bytes) -> None:
        with pytest.raises(InputError, match="not a decision or command"):
            by_unit([line])


def test_a_log_that_was_served_ends_in_commands(log: Path) -> None:
    """The logs of these tests reach a promote: what they compare is not nothing."""
    kinds = [json.loads(line)["schema"] for line in replayed(log)]
    assert "tidegate.command/1" in kinds
    assert kinds.count("tidegate.decision/1") >= 2
    assert served(1, NOON, "canary")["flag"] == "f"
