"""Files of records: each command reads each form, from a file, a pipe or standard input, and says the same of it."""

import gzip
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from tests.commands.invoke import Done, tidegate
from tidegate.streams.commands import SUBCOMMANDS, cli
from tidegate.streams.commands.options import LogFile
from tidegate.streams.dumps import parquet
from tidegate.streams.dumps.records import dump_line

HEALTHY = Path(__file__).parents[1] / "golden" / "healthy"
MANIFEST = HEALTHY / "manifest.yml"
DECISIONS, COMMANDS = HEALTHY / "decisions.ndjson", HEALTHY / "commands.ndjson"
EVENTS = gzip.decompress((HEALTHY / "telemetry.ndjson.gz").read_bytes()).splitlines()
FIRST = json.loads(DECISIONS.read_bytes().splitlines()[0])
OPERATIONS = [json.dumps({"kind": "kill", "flag": "answer", "ts": 1, "actor": "a", "reason": "r"}).encode()]
BOM = b"\xef\xbb\xbf"
LATE = 2_000_000_000_000

Read = tuple[list[bytes], Callable[[Path], Done]]


def replayed(*arguments: object) -> Done:
    """What it says, and what it decides."""
    done = tidegate("replay", "--manifest", MANIFEST, "--out", "out", "--commands", "commands", *arguments)
    made = Path("out").read_text() + Path("commands").read_text() if done.code == 0 else ""
    return Done(done.code, done.out + made, done.err)


def given(*before: object) -> Callable[[Path], Done]:
    return lambda path: tidegate(*before, path)


READS: dict[tuple[str, str], Read] = {
    ("replay", "--events"): (EVENTS, lambda path: replayed("--events", path)),
    ("replay", "more_events"): (EVENTS, lambda path: replayed(path)),
    ("replay", "--operations"): (OPERATIONS, lambda path: replayed("--events", "events", "--operations", path)),
    ("replay", "--compare"): (
        DECISIONS.read_bytes().splitlines(),
        lambda path: replayed("--events", "events", "--compare", path),
    ),
    ("backtest", "--events"): (EVENTS, given("backtest", "--manifest", MANIFEST, "--manifest", MANIFEST, "--events")),
    ("backtest", "more_events"): (
        EVENTS,
        lambda path: tidegate("backtest", "--manifest", MANIFEST, "--aa", 2, "--events", "none", path),
    ),
    ("backtest", "--operations"): (
        OPERATIONS,
        given("backtest", "--manifest", MANIFEST, "--manifest", MANIFEST, "--events", "events", "--operations"),
    ),
    ("lint", "--events"): (EVENTS, given("lint", MANIFEST, "--events")),
    ("verify", "decisions"): (DECISIONS.read_bytes().splitlines(), given("verify", "--commands", COMMANDS)),
    ("verify", "--commands"): (COMMANDS.read_bytes().splitlines(), given("verify", DECISIONS, "--commands")),
    ("explain", "--decisions"): (
        DECISIONS.read_bytes().splitlines(),
        given("explain", FIRST["decision_id"], "--decisions"),
    ),
    ("history", "--decisions"): (DECISIONS.read_bytes().splitlines(), given("history", "--decisions")),
    ("report", "source"): (DECISIONS.read_bytes().splitlines(), given("report", "--out", "page")),
    ("report", "--commands"): (
        COMMANDS.read_bytes().splitlines(),
        given("report", DECISIONS, "--out", "page", "--commands"),
    ),
    ("report", "--operations"): (OPERATIONS, given("report", DECISIONS, "--out", "page", "--operations")),
    ("report", "--events"): (
        EVENTS,
        given("report", DECISIONS, "--manifest", MANIFEST, "--out", "page", "--events"),
    ),
    ("explain", "decision"): (DECISIONS.read_bytes().splitlines()[:1], given("explain")),
}
"""By command and parameter: the records of a file, and a call that reads one."""


def dumped(lines: list[bytes]) -> Iterator[Any]:
    for offset, line in enumerate(lines):
        yield SimpleNamespace(partition=0, offset=offset, timestamp=LATE, key=None, headers=[("h", b"x")], value=line)


def plain(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def dump(lines: list[bytes]) -> bytes:
    return plain([dump_line(record) for record in dumped(lines)])


def in_parquet(lines: list[bytes]) -> bytes:
    target = io.BytesIO()
    parquet.write_rows(target, [[(record, None) for record in dumped(lines)]])
    return target.getvalue()


FORMS: dict[str, Callable[[list[bytes]], bytes]] = {
    "plain.ndjson": plain,
    "marked.ndjson": lambda lines: BOM + plain(lines),
    "windows.ndjson": lambda lines: BOM + plain(lines).replace(b"\n", b"\r\n"),
    "packed.ndjson.gz": lambda lines: gzip.compress(plain(lines)),
    "marked.ndjson.gz": lambda lines: gzip.compress(BOM + plain(lines)),
    "dump.ndjson": dump,
    "marked-dump.ndjson.gz": lambda lines: gzip.compress(BOM + dump(lines)),
    "dump.parquet": in_parquet,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("TIDEGATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    Path("events").write_bytes(plain(EVENTS))
    Path("none").write_bytes(b"")


def test_every_file_of_records_that_a_command_reads_is_held_here() -> None:
    """All but those that it writes; explain's own is an id or a file."""
    context, found = click.Context(cli), {("explain", "decision")}
    for name in SUBCOMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            called = parameter.opts[0].strip("-") in ("events", "more_events", "operations", "compare", "decisions")
            if called or isinstance(parameter.type, LogFile):
                assert isinstance(parameter.type, LogFile), (name, parameter.opts)
                found.add((name, parameter.opts[0]))
    assert found == READS.keys()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reads", READS, ids=" ".join)
def test_every_command_reads_every_form_from_a_file_and_from_standard_input(
    reads: tuple[str, str], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, call = READS[reads]
    if reads[1] == "--operations":
        # An order in a dump has to fit the time of its record.
        lines = [line.replace(b'"ts": 1', b'"ts": %d' % LATE) for line in lines]
        monkeypatch.setenv("TIDEGATE_UNSIGNED_MANIFEST", "true")
    Path("same").write_bytes(plain(lines))
    content = FORMS[form](lines)
    Path(form).write_bytes(content)
    wanted, found = call(Path("same")), call(Path(form))
    assert (wanted.code, wanted.err) == (0, "")
    assert (found.code, found.err) == (0, "")
    assert found.out.replace(form, "same") == wanted.out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    piped = call(Path("-"))
    assert (piped.code, piped.err) == (0, "")
    assert [line for line in piped.out.splitlines() if " as -" not in line] == [
        line for line in wanted.out.splitlines() if " as same" not in line
    ]


def test_a_pipe_by_name_is_read_as_a_file() -> None:
    """``--events <(zcat events.gz)``: most files are read twice."""
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_bytes, args=(plain(EVENTS),))
    writer.start()
    found = replayed("--events", "pipe")
    writer.join()
    assert found.out == replayed("--events", "events").out


def test_a_mark_at_the_begin_of_a_manifest_a_key_file_or_a_signed_revision_is_skipped() -> None:
    Path("flags.yml").write_bytes(BOM + MANIFEST.read_bytes())
    assert tidegate("keygen", "key").code == 0
    Path("trusted").write_bytes(BOM + Path("key.pub").read_bytes())
    sign = ("--revision", 1, "--effective-from", "20250101", "--out", "signed")
    assert tidegate("sign", "flags.yml", "--key", "key", *sign).code == 0
    Path("signed").write_bytes(BOM + Path("signed").read_bytes())
    done = tidegate(
        *("replay", "--manifest", "signed", "--trusted-keys", "trusted", "--events", "events", "--out", "out")
    )
    assert (done.code, done.err) == (0, "")


def test_standard_input_that_is_cut_is_one_line() -> None:
    """Packed, and its end is missing."""
    for name, content in (("cut", gzip.compress(plain(EVENTS))[:-20]), ("empty", b"PAR1")):
        sys.stdin = io.TextIOWrapper(io.BytesIO(content))
        try:
            done = tidegate("lint", MANIFEST, "--events", "-")
        finally:
            sys.stdin = sys.__stdin__
        assert (name, done.code, done.line.startswith("tidegate: -: ")) == (name, 2, True)
