"""``tidegate export``: the topics as files that an auditor can keep, with offsets and digests."""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import click
from aiokafka import ConsumerRecord
from rich.progress import Progress

from tidegate.schemas.errors import InputError
from tidegate.schemas.times import iso
from tidegate.streams.commands.options import Time, bars
from tidegate.streams.dumps import parquet
from tidegate.streams.dumps.flat import COMMANDS, DECISIONS
from tidegate.streams.dumps.records import End, dump_line
from tidegate.streams.kafka.history import Extent, History
from tidegate.streams.report.text import many
from tidegate.streams.settings import command_settings

MANIFEST_FILE = "manifest.json"


@click.command()
@click.option("--broker", help="Kafka bootstrap servers")
@click.option("--from", "start", type=Time(), help="records from this time on; otherwise all that is kept")
@click.option("--to", "end", type=Time(), help="records before this time")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder for the files")
@click.option("--format", "form", type=click.Choice(["ndjson", "parquet"]), default="ndjson", show_default=True)
@click.option("--replace", is_flag=True, help="write over a dump that is there already")
def command(broker: str | None, start: int | None, end: int | None, out: Path, form: str, replace: bool) -> None:
    """Dump telemetry, manifests, operations, decisions and control; nothing is written to Kafka.

    A line of NDJSON is {"partition", "offset", "timestamp", "key", "value"}, as `tidegate replay --events` takes it; a
    value that is no JSON object is a string. Manifests and operations are dumped from their beginning, as the first of
    them may still be in force. manifest.json has the offsets, the counts and the SHA-256 of each file. In Parquet
    decisions and control also have a column for each thing that one asks of them, such as flag, verdict and rule.
    A dump that is there already is not written over, unless with --replace.
    """
    if start is not None and end is not None and end <= start:
        raise InputError("--to: not after --from, so nothing would be dumped")
    settings = command_settings(broker=broker)
    ending = "ndjson.gz" if form == "ndjson" else "parquet"
    if form == "parquet":
        parquet.require()
    flat = {settings.decisions_topic: DECISIONS, settings.control_topic: COMMANDS}
    early = {settings.manifests_topic, settings.operations_topic}
    names = [
        settings.decisions_topic,
        settings.corrections_topic,
        settings.control_topic,
        *sorted(early),
        settings.telemetry_topic,
    ]
    files = {name: out / f"{name.removeprefix(settings.topic_prefix + '.')}.{ending}" for name in names}
    there = [file.name for file in (*files.values(), out / MANIFEST_FILE) if file.exists()]
    if there and not replace:
        raise InputError(
            f"--out: {out} has {', '.join(there)} already, which is not written over: give another folder, or --replace"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with History(settings) as history:
            extents = [history.extent(name, None if name in early else start, end) for name in names]
            entries = []
            with bars() as progress:
                for extent in extents:
                    bar = progress.add_task(extent.topic, total=extent.size)
                    seen = _Seen()
                    file = files[extent.topic]
                    with _Replaced(file) as target:
                        runs = seen.watch(_counted(history.read(extent), progress, bar), extent)
                        if form == "ndjson":
                            _ndjson(target, runs)
                        else:
                            parquet.write_rows(target, runs, flat.get(extent.topic))
                    entries.append(_entry(extent, seen, file))
        described = {
            "from": None if start is None else iso(start),
            "to": None if end is None else iso(end),
            "topics": entries,
        }
        with _Replaced(out / MANIFEST_FILE) as target:
            target.write(json.dumps(described, indent=2).encode() + b"\n")
    except OSError as error:
        raise InputError(f"--out: {error.filename or out}: {error.strerror or error}") from None
    for entry in entries:
        click.echo(f"{entry['file']}: {many(entry['records'], 'record')} of {entry['topic']}")
    for extent in extents:
        if extent.cut and (start is None or extent.topic in early):
            click.echo(f"history is cut: the first records of {extent.topic} are gone in partitions {extent.cut}")


class _Seen:
    """First and last offset of each partition, and how many records."""

    def __init__(self) -> None:
        self.records = 0
        self.offsets: dict[int, tuple[int, int]] = {}

    def watch(self, runs: Iterable[Sequence[ConsumerRecord]], extent: Extent) -> Iterator[parquet.Dense]:
        due = {partition: first for partition, (first, _) in extent.bounds.items()}
        for run in runs:
            self.records += len(run)
            first, _ = self.offsets.get(run[0].partition, (run[0].offset, 0))
            self.offsets[run[0].partition] = first, run[-1].offset
            before = [due[run[0].partition], *(record.offset + 1 for record in run)]
            due[run[0].partition] = before.pop()
            yield [(r, None if since == r.offset else since) for r, since in zip(run, before, strict=True)]
        for partition, (_, end) in sorted(extent.bounds.items()):
            if due[partition] < end:
                yield [(End(partition, end), due[partition])]


def _entry(extent: Extent, seen: _Seen, file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    offsets = {partition: seen.offsets.get(partition, (None, None)) for partition in sorted(extent.bounds)}
    return {
        "topic": extent.topic,
        "file": file.name,
        "sha256": digest,
        "records": seen.records,
        "partitions": [
            {"partition": partition, "first": first, "last": last} for partition, (first, last) in offsets.items()
        ],
    }


def _counted(
    runs: Iterable[Sequence[ConsumerRecord]], progress: Progress, bar: Any
) -> Iterator[Sequence[ConsumerRecord]]:
    for run in runs:
        yield run
        progress.advance(bar, len(run))


def _ndjson(target: BinaryIO, runs: Iterable[parquet.Dense]) -> None:
    # Without a name and a time, so that the same records give the same bytes.
    with gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0, compresslevel=6) as packed:
        for run in runs:
            packed.write(b"".join(dump_line(record, since) + b"\n" for record, since in run))


class _Replaced:
    """A file that is there once it is whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._unfinished = path, path.with_name(path.name + ".unfinished")

    def __enter__(self) -> BinaryIO:
        self._file: BinaryIO = self._unfinished.open("wb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._unfinished.replace(self._path)
        else:
            self._unfinished.unlink(missing_ok=True)
