"""``tidegate verify``: what it prints of files and topics that are whole, damaged, unsigned or unreadable."""

import asyncio
import gzip
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.commands.invoke import Done, tidegate
from tidegate.schemas.seal import Headers, RecordKind, sign_record
from tidegate.schemas.signed import public_line
from tidegate.streams.dumps import parquet
from tidegate.streams.dumps.records import dump_line
from tidegate.streams.simulation.embedded_broker import embedded_broker

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/decisions.ndjson"))
DECISIONS = GOLDEN / "healthy" / "decisions.ndjson"
COMMANDS = GOLDEN / "healthy" / "commands.ndjson"
WORKER, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def write(path: Path, records: list[bytes]) -> Path:
    content = b"".join(record + b"\n" for record in records)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def last_hash(path: Path) -> str:
    return str(json.loads(lines(path)[-1])["hash"])


@pytest.mark.parametrize("case", CASES)
def test_stored_logs_are_whole(case: str) -> None:
    """What is summed up is what the files hold."""
    decisions, commands = GOLDEN / case / "decisions.ndjson", GOLDEN / case / "commands.ndjson"
    done = tidegate("verify", decisions, "--commands", commands)
    assert (done.code, done.err) == (0, "")
    assert last_hash(decisions) in done.out
    for record in map(json.loads, lines(decisions)):
        assert f"\n{record['flag']}|{record['region']} " in done.out
    assert f"{len(lines(decisions))} decision" in done.out.splitlines()[-1]
    assert f"{len(lines(commands))} command" in done.out.splitlines()[-1]


def test_a_dump_of_the_topics_is_the_records_in_it(tmp_path: Path) -> None:
    """As `tidegate export` writes it."""

    def dump(records: list[bytes]) -> list[bytes]:
        head = b'{"partition":0,"offset":%d,"timestamp":0,"key":"answer|eu","value":%s}'
        return [head % (offset, record) for offset, record in enumerate(records)]

    decisions = write(tmp_path / "decisions.ndjson.gz", dump(lines(DECISIONS)))
    commands = write(tmp_path / "control.ndjson.gz", dump(lines(COMMANDS)))
    done = tidegate("verify", decisions, "--commands", commands)
    assert (done.code, done.out) == (0, tidegate("verify", DECISIONS, "--commands", COMMANDS).out)
    changed = write(tmp_path / "changed.ndjson", dump([lines(DECISIONS)[0].replace(b'"late":0', b'"late":1')]))
    assert tidegate("verify", changed).code == 1


def test_the_summary_names_units_counts_and_last_hash(tmp_path: Path) -> None:
    """Packed files, several in order, with a stretch that was sent twice."""
    first, second = lines(DECISIONS)[:2], lines(DECISIONS)[1:]
    files = write(tmp_path / "1.ndjson.gz", first), write(tmp_path / "2.ndjson", second)
    done = tidegate("verify", *files, "--commands", COMMANDS)
    title, unit, said = done.out.splitlines()
    assert title.split() == ["unit", "decisions", "commands", "repeats", "last", "hash"]
    assert unit.split() == ["answer|eu", "3", "2", "1", last_hash(DECISIONS)]
    assert said == "nothing found: 3 decisions, 2 commands, 1 unit"
    assert tidegate("verify", *files).out.splitlines()[1].split()[2] == "-"


def test_each_finding_is_one_line_with_place_unit_and_what_is_wrong(tmp_path: Path) -> None:
    """Files in the wrong order, a record changed, a command left out."""
    one, two, three = lines(DECISIONS)
    damaged = write(tmp_path / "d.ndjson", [one, b"", two.replace(b'"late":0', b'"late":9'), three])
    orders = write(tmp_path / "c.ndjson", lines(COMMANDS)[1:])
    done = tidegate("verify", damaged, "--commands", orders)
    assert done.code == 1
    missing, changed, total = done.out.splitlines()
    assert missing == f"{damaged}:1: missing: answer|eu, record 1: no command carries out this promote, seq 1"
    assert changed == f"{damaged}:3: changed: answer|eu, record 2: its content is not what its hash was made of"
    assert total == "2 findings in 3 decisions, 1 command, 1 unit"


def test_a_log_from_the_middle_needs_to_be_said_to_be_one(tmp_path: Path) -> None:
    """Otherwise its beginning is missing; commands from before it are counted."""
    later = write(tmp_path / "later.ndjson", lines(DECISIONS)[1:])
    done = tidegate("verify", later, "--commands", COMMANDS)
    assert done.code == 1
    assert f"{later}:1: starts after: answer|eu, record 1: the chain starts after sha256:" in done.out
    done = tidegate("verify", later, "--commands", COMMANDS, "--from-middle")
    assert done.code == 0
    assert done.out.endswith("nothing found: 2 decisions, 2 commands, 1 unit; 1 command from before them\n")


def test_nothing_in_a_record_reaches_the_terminal_as_a_control_sequence(tmp_path: Path) -> None:
    """Findings stay one line each, whatever a flag is called."""
    hostile = json.dumps({"flag": "\x1b[2J\n", "region": "\u202e", "hash": "\x07"}).encode()
    done = tidegate("verify", write(tmp_path / "d.ndjson", [hostile, b"\x1b[31m\xff"]))
    assert done.code == 1
    assert len(done.out.splitlines()) >= 3
    assert all(line.isprintable() for line in done.out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to verify: give files of decisions, or --broker"),
        (["absent.ndjson"], "absent.ndjson: No such file"),
        (["broken.ndjson.gz"], "broken.ndjson.gz: "),
        (["empty.ndjson"], "empty.ndjson: no decision in it"),
        ([DECISIONS, "--broker", "127.0.0.1:9"], "two places to read from"),
        ([DECISIONS, "--trusted-keys", "keys"], "not the line of a dump, and signatures are in the headers of records"),
        ([DECISIONS, "--signed-since", "now"], "--signed-since goes with --trusted-keys"),
        (["--broker", "127.0.0.1:9", "--trusted-keys", "absent"], "absent: No such file"),
        (["--broker", "127.0.0.1:9"], "topic tidegate.decisions at 127.0.0.1:9"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], said: str
) -> None:
    """So is a file that cannot be read, and one in which nothing stands: that proves nothing."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "empty.ndjson", [b"", b"  "])
    (tmp_path / "keys").write_text(public_line(WORKER.public_key(), "worker") + "\n")
    (tmp_path / "broken.ndjson.gz").write_bytes(gzip.compress(DECISIONS.read_bytes())[:-20])
    done = tidegate("verify", *arguments)
    assert done.code == 2
    assert said in done.line


# -- from the topics --------------------------------------------------------------------------------------------------


@pytest.fixture
def broker() -> Iterator[str]:
    with embedded_broker({"tidegate.decisions": 2, "tidegate.control": 2}) as servers:
        yield servers


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(public_line(WORKER.public_key(), "worker") + "\n")
    return path


def signed(value: bytes, kind: RecordKind, key: Ed25519PrivateKey = WORKER) -> tuple[bytes, Headers]:
    return value, sign_record(value, kind, key)


def publish(
    broker: str, decisions: list[tuple[bytes | None, Headers]], commands: list[tuple[bytes | None, Headers]]
) -> None:
    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=broker) as producer:
            for topic, records in (("tidegate.decisions", decisions), ("tidegate.control", commands)):
                for value, headers in records:
                    await producer.send_and_wait(topic, value, key=b"answer|eu", partition=1, headers=list(headers))

    asyncio.run(send())


def verify(broker: str, *arguments: object) -> Done:
    return tidegate("verify", "--broker", broker, *arguments)


def test_topics_are_read_to_their_end_and_control_may_be_compacted(broker: str) -> None:
    """Earlier commands may be gone; the last one of a unit may not. Places are topic, partition and offset."""
    publish(broker, [(value, []) for value in lines(DECISIONS)], [(None, []), (lines(COMMANDS)[-1], [])])
    done = verify(broker)
    assert (done.code, done.err) == (0, "")
    assert last_hash(DECISIONS) in done.out
    assert "tidegate.control is compacted" in done.out
    publish(broker, [(lines(DECISIONS)[0].replace(b'"late":0', b'"late":9'), [])], [])
    done = verify(broker)
    assert done.code == 1
    assert done.out.startswith(
        "tidegate.decisions-1 offset 3: repeated with changes: answer|eu, record 4: "
        "the record of tidegate.decisions-1 offset 0 once more, with other content\n"
    )


def test_the_last_command_of_a_unit_has_to_be_in_the_control_topic(broker: str) -> None:
    """Compaction keeps it, so that somebody else took it away."""
    publish(broker, [(value, []) for value in lines(DECISIONS)], [(lines(COMMANDS)[0], [])])
    done = verify(broker)
    assert done.code == 1
    assert "offset 1: missing: answer|eu, record 2: no command carries out this promote, seq 2" in done.out


def test_with_trusted_keys_every_record_of_both_topics_has_to_be_signed(broker: str, trusted: Path) -> None:
    """By a trusted key, for what it is; also a repeat, which needs a signature of its own."""
    first, *others = lines(DECISIONS)
    publish(
        broker,
        [signed(first, "decision"), (first, []), *(signed(value, "decision") for value in others)],
        [signed(value, "command") for value in lines(COMMANDS)],
    )
    done = verify(broker, "--trusted-keys", trusted)
    assert done.code == 1
    assert done.out.splitlines()[:-1] == ["tidegate.decisions-1 offset 1: signature: not signed"]
    assert verify(broker).code == 0
    publish(broker, [], [signed(lines(COMMANDS)[1], "command", STRANGER), signed(lines(COMMANDS)[1], "decision")])
    told = verify(broker, "--trusted-keys", trusted).out.splitlines()
    assert told[1].startswith("tidegate.control-1 offset 2: signature: signed with the key ")
    assert told[2].startswith("tidegate.control-1 offset 3: signature: not what the key ")


def test_signed_topics_pass_and_that_is_said(broker: str, trusted: Path) -> None:
    """With the number of keys that were trusted."""
    publish(
        broker,
        [signed(value, "decision") for value in lines(DECISIONS)],
        [signed(value, "command") for value in lines(COMMANDS)],
    )
    done = verify(broker, "--trusted-keys", trusted)
    assert done.code == 0
    assert "every record is signed by one of 1 trusted key; " in done.out


def test_a_record_that_nobody_trusted_signed_is_named_and_not_looked_into(broker: str, trusted: Path) -> None:
    """Neither as to whether it can be read, nor for its place in the chain."""
    changed = lines(DECISIONS)[1].replace(b'"late":0', b'"late":9')
    publish(
        broker,
        [
            *(signed(value, "decision") for value in lines(DECISIONS)),
            (b"\xff{", []),
            signed(changed, "decision", STRANGER),
        ],
        [signed(value, "command") for value in lines(COMMANDS)],
    )
    done = verify(broker, "--trusted-keys", trusted)
    assert done.code == 1
    unsigned, strange, _ = done.out.splitlines()
    assert unsigned.endswith(": signature: not signed")
    assert ": signature: signed with the key " in strange
    assert len(verify(broker).out.splitlines()) > 2


# -- signing turned on later ------------------------------------------------------------------------------------------

BEGAN = 1_750_000_000_000
FORMS = ("ndjson", "parquet")


def archive(folder: Path, form: str, unsigned: int, *, late: bool = False) -> list[Path]:
    """Dumps of decisions and commands, a second apart; the first ``unsigned`` of each are not signed.

    ``late``: an unsigned repeat at the end, which claims to be from before.
    """
    paths = []
    for kind, source in (("decision", DECISIONS), ("command", COMMANDS)):
        records: list[Any] = []
        for at, value in enumerate(lines(source)):
            headers = [] if at < unsigned else sign_record(value, kind, WORKER)  # type: ignore[arg-type]
            records.append(stored(at, BEGAN + (at - unsigned) * 1000, value, headers))
        if late and kind == "decision":
            records.append(stored(len(records), BEGAN - 9_000, records[0].value, []))
        path = folder / f"{kind}.{form}"
        with path.open("wb") as target:
            if form == "parquet":
                parquet.write_rows(target, [[(record, None) for record in records]])
            else:
                target.write(b"".join(dump_line(record) + b"\n" for record in records))
        paths.append(path)
    return paths


def stored(offset: int, timestamp: int, value: bytes, headers: Headers) -> Any:
    return SimpleNamespace(partition=1, offset=offset, timestamp=timestamp, key=b"k", value=value, headers=headers)


def audited(paths: list[Path], trusted: Path, *more: object) -> Done:
    return tidegate("verify", paths[0], "--commands", paths[1], "--trusted-keys", trusted, *more)


@pytest.mark.parametrize("form", FORMS)
def test_a_signed_archive_passes_in_either_form(tmp_path: Path, trusted: Path, form: str) -> None:
    done = audited(archive(tmp_path, form, 0), trusted)
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("every record is signed by one of 1 trusted key\n")


@pytest.mark.parametrize("form", FORMS)
def test_where_signing_was_turned_on_later_its_first_record_is_named_once(
    tmp_path: Path, trusted: Path, form: str
) -> None:
    """With the option that takes what came before as it is; the chain is held through it all."""
    paths = archive(tmp_path, form, 1)
    done = audited(paths, trusted)
    assert done.code == 1
    named, total = done.out.splitlines()
    assert named.startswith(f"{paths[0]}:2: signature: the first signed record, of 2025-06-15T15:06:40Z; 2 records")
    assert total == "1 finding in 3 decisions, 2 commands, 1 unit"
    option = re.search(r"give (--signed-since) (\S+)$", named)
    assert option is not None
    done = audited(paths, trusted, *option.groups())
    assert (done.code, done.err) == (0, "")
    assert f"2 records of before not; the first signed is {paths[0]}:2, of 2025-06-15T15:06:40Z" in done.out


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_signed_after_that_is_a_finding_each(tmp_path: Path, trusted: Path, form: str) -> None:
    """Also what claims to be from before: a record's time is its writer's word, its place is the log's."""
    paths = archive(tmp_path, form, 1)
    done = audited(paths, trusted, "--signed-since", BEGAN - 1_000)
    assert done.code == 1
    assert [line.split(": ", 1)[1] for line in done.out.splitlines()[:-1] if "not signed" in line] == [
        "signature: not signed",
        "signature: not signed",
    ]
    paths = archive(tmp_path, form, 1, late=True)
    done = audited(paths, trusted, "--signed-since", BEGAN)
    assert done.out.splitlines()[0] == f"{paths[0]}:4: signature: not signed"
    assert done.code == 1


def test_an_archive_without_a_signature_is_one_finding(tmp_path: Path, trusted: Path) -> None:
    paths = archive(tmp_path, "ndjson", 9)
    done = audited(paths, trusted)
    assert (done.code, done.out.splitlines()[0]) == (1, "signature: none of 5 records is signed")
    done = audited(paths, trusted, "--signed-since", BEGAN)
    assert (done.code, "5 records of before not; none is signed" in done.out) == (0, True)


def test_topics_are_told_where_signing_began(broker: str, trusted: Path) -> None:
    first, *others = lines(DECISIONS)
    publish(broker, [(first, [])], [])
    time.sleep(0.01)
    publish(
        broker,
        [signed(value, "decision") for value in others],
        [signed(value, "command") for value in lines(COMMANDS)],
    )
    done = verify(broker, "--trusted-keys", trusted)
    assert done.code == 1
    named, _ = done.out.splitlines()
    assert named.startswith("tidegate.decisions-1 offset 1: signature: the first signed record, of 2")
    since = named.rsplit(" ", 1)[1]
    done = verify(broker, "--trusted-keys", trusted, "--signed-since", since)
    assert done.code == 0, done.out
