"""Dumps in Parquet: the bytes of every record, and the same decisions as from NDJSON."""

from collections.abc import Mapping
from datetime import UTC
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import duckdb
import pyarrow
import pyarrow.parquet
import pytest

from tests.streams.events import CLOCKWORK, NOON, RAMP, healthy_pane, tick, written
from tests.streams.play import play
from tidegate.schemas.errors import InputError
from tidegate.schemas.load import load_manifest
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.replay import replay
from tidegate.streams.commands.export import _Seen
from tidegate.streams.dumps import parquet
from tidegate.streams.dumps.flat import COMMANDS, DECISIONS
from tidegate.streams.dumps.log import count_partitions
from tidegate.streams.dumps.records import dump_line, is_dump
from tidegate.streams.dumps.records import records as dump_records
from tidegate.streams.dumps.records import values as values_of
from tidegate.streams.kafka.history import Extent

ODD = [None, b"", b"\xff\xfe", b'{"x": 1}\n', b"\x00", '{"λ": "→"}'.encode()]


def record(partition: int, offset: int, value: bytes | None, **more: Any) -> Any:
    fields = {"key": None, "headers": (), "timestamp": NOON + offset} | more
    return SimpleNamespace(partition=partition, offset=offset, value=value, **fields)


def write(path: Path, *runs: list[Any], since: Mapping[int, int] = MappingProxyType({})) -> Path:
    with path.open("wb") as target:
        parquet.write_rows(target, [[(one, since.get(one.offset)) for one in run] for run in runs])
    return path


def test_every_value_is_read_back_as_the_bytes_it_was(tmp_path: Path) -> None:
    runs = [[record(1, 7 + i, value) for i, value in enumerate(ODD)], [record(0, 3, b"{}")]]
    path = write(tmp_path / "dump.parquet", *runs)
    rows = list(parquet.read_rows(path))
    assert rows == [(r.partition, r.offset, r.timestamp, r.value, None, (), None) for run in runs for r in run]
    assert count_partitions([path], 1) == 2


def test_keys_and_headers_are_kept(tmp_path: Path) -> None:
    """Signatures are in the headers."""
    headers = [("tidegate.signature", b"\x01\xff"), ("empty", None)]
    path = write(tmp_path / "dump.parquet", [record(0, 0, b"{}", key=b"f|eu", headers=headers)])
    (row,) = pyarrow.parquet.read_table(path).to_pylist()
    assert row["key"] == b"f|eu"
    assert [(header["name"], header["value"]) for header in row["headers"]] == headers


def test_one_query_tells_the_aborts_per_flag_and_rule(tmp_path: Path) -> None:
    """Of decisions and of commands alike; what is no record of ours has no cells, and repeats can be told."""
    played = play("errors")
    # The values that are none of ours, and everything twice, as a crash leaves it.
    decisions = [*(one.to_bytes() for one in played.decisions), b"{}", None] * 2
    commands = [*(one.to_bytes() for one in played.commands), b"{}", None] * 2
    counts = {}
    for name, values, flat in (("decisions", decisions, DECISIONS), ("control", commands, COMMANDS)):
        path = tmp_path / f"{name}.parquet"
        with path.open("wb") as target:
            parquet.write_rows(target, [[(record(0, at, value), None) for at, value in enumerate(values)]], flat)
        assert list(values_of(path)) == [value or b"" for value in values]
        what = "verdict" if name == "decisions" else "action"
        counts[name] = duckdb.execute(
            f"SELECT flag, rule, count(DISTINCT decision_id) FROM '{path}' WHERE {what} = 'abort' GROUP BY ALL"  # noqa: S608
        ).fetchall()
        assert duckdb.execute(f"SELECT count(*) FROM '{path}' WHERE flag IS NULL").fetchall() == [(4,)]  # noqa: S608
    aborted = {one.key for one in played.decisions if one.verdict == "abort"}
    assert aborted
    assert counts["decisions"] == counts["control"] == [("prompt_pack_vNplus1", "error_rate_over", len(aborted))]
    (moment,) = duckdb.execute(f"SELECT min(decided_at) FROM '{tmp_path / 'decisions.parquet'}'").fetchall()  # noqa: S608
    first = min(one.decided_at for one in played.decisions)
    assert moment[0].replace(tzinfo=UTC).timestamp() * 1000 == first


def test_a_replay_of_parquet_is_a_replay_of_ndjson(tmp_path: Path) -> None:
    values = [*written([e for pane in range(8) for e in healthy_pane(NOON + pane * 10_000)]), tick(NOON + 10**6), *ODD]
    records = [record(0, 5 + i, value, timestamp=NOON + 10**7) for i, value in enumerate(values)]
    lines = tmp_path / "dump.ndjson"
    # The topic had a transaction's mark and a record that was compacted away.
    for late in records[30:]:
        late.offset += 2
    since = {37: 35}
    lines.write_bytes(b"".join(dump_line(one, since.get(one.offset)) + b"\n" for one in records))
    packed = write(tmp_path / "dump.parquet", records[:20], records[20:], since=since)
    timeline = Timeline.of(load_manifest(RAMP).flags)
    found = [[d.to_bytes() for d, _ in replay([path], timeline, 1, CLOCKWORK)] for path in (lines, packed)]
    assert found[0]
    assert found[0] == found[1]


def test_what_is_no_dump_is_named(tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), other)
    text = tmp_path / "text.parquet"
    text.write_text("not parquet")
    for path in (other, text, tmp_path / "none.parquet"):
        with pytest.raises(InputError, match=path.name):
            list(parquet.read_rows(path))


def test_a_gap_in_a_partition_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "dump.parquet", [record(0, 0, tick(NOON)), record(0, 2, tick(NOON))])
    with pytest.raises(InputError, match=r"dump\.parquet:2: records 1 to 1 of partition 0 are missing"):
        list(replay([path], Timeline.of(load_manifest(RAMP).flags), 1, CLOCKWORK))


def test_a_dump_that_ends_in_a_gap_is_followed_by_the_next(tmp_path: Path) -> None:
    """What one exports to a time and from that time on decides as the whole; a file that is left out is missing."""
    values = [*written([e for pane in range(8) for e in healthy_pane(NOON + pane * 10_000)]), tick(NOON + 10**6)]
    # A transaction's mark behind each third of the records.
    parts = [values[:30], values[30:60], values[60:]]
    records = [
        [record(0, 31 * part + at, value, timestamp=NOON + 10**7) for at, value in enumerate(of)]
        for part, of in enumerate(parts)
    ]
    ends = [31, 62, 62 + len(parts[2])]
    timeline = Timeline.of(load_manifest(RAMP).flags)

    def decided(paths: list[Path]) -> list[bytes]:
        return [d.to_bytes() for d, _ in replay(paths, timeline, 1, CLOCKWORK)]

    def watched(first: int, those: list[Any], end: int) -> list[parquet.Dense]:
        return list(_Seen().watch([those], Extent("t", {0: (first, end)}, {0: (0, 93)})))

    whole = [one for part in records for one in part]
    made = {}
    for form in ("ndjson", "parquet"):
        files = [tmp_path / f"{name}.{form}" for name in ("whole", "one", "two", "three")]
        starts = [(0, whole, ends[2]), *zip([0, 31, 62], records, ends, strict=True)]
        for path, (first, those, end) in zip(files, starts, strict=True):
            dense = watched(first, those, end)
            with path.open("wb") as target:
                if form == "parquet":
                    parquet.write_rows(target, dense)
                else:
                    target.write(b"".join(dump_line(one, since) + b"\n" for run in dense for one, since in run))
        made[form] = decided(files[:1])
        assert made[form]
        assert decided(files[1:]) == made[form]
        assert is_dump(files[1])
        assert list(map(len, (list(read(path)) for read in (values_of, dump_records) for path in files[1:]))) == [
            *map(len, parts),
            *map(len, parts),
        ]
        with pytest.raises(InputError, match=r"records 31 to 61 of partition 0 are missing"):
            decided([files[1], files[3]])
    assert made["ndjson"] == made["parquet"]
