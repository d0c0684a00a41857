"""Dumps of topics in Parquet, with pyarrow (the extra ``tidegate[parquet]``)."""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from aiokafka import ConsumerRecord

from tidegate.schemas.errors import InputError
from tidegate.streams.dumps.flat import FlatColumns
from tidegate.streams.files import STANDARD_INPUT, begins, located

SUFFIX = ".parquet"
MAGIC = b"PAR1"
BATCH = 4096

DumpRow = tuple[Any, ...]
"""Partition, offset, timestamp and value of a record, its ``since``, its headers if they were asked for, and
``end``: see ``dumps.End``."""
Dense = Sequence[tuple[ConsumerRecord, int | None]]
"""Records of one partition, each with the offset from which on the topic has nothing before it, if not its own."""


def require() -> tuple[Any, Any]:
    """pyarrow and its Parquet module. Raises InputError, with the way out, if they are not there."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install 'tidegate[parquet]', or take ndjson") from None


def write_rows(target: BinaryIO, runs: Iterable[Dense], flat: FlatColumns | None = None) -> None:
    """Write records, a row each, keys, values and headers as the bytes they are; ``flat``: what to put beside them."""
    arrow, parquet = require()
    header = arrow.struct([("name", arrow.string()), ("value", arrow.binary())])
    kinds = {
        "partition": arrow.int32(),
        "offset": arrow.int64(),
        "timestamp": arrow.int64(),
        "key": arrow.binary(),
        "value": arrow.binary(),
        "headers": arrow.list_(header),
        "since": arrow.int64(),
        "end": arrow.int64(),
    }
    beside = {} if flat is None else {name: _arrow_type(arrow, kind) for name, kind in flat.types.items()}
    schema = arrow.schema([*kinds.items(), *beside.items()])
    with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        for run in runs:
            plain = kinds.keys() - {"headers", "since", "end"}
            rows = {name: [getattr(record, name) for record, _ in run] for name in plain}
            rows["headers"] = [[{"name": n, "value": v} for n, v in record.headers] for record, _ in run]
            rows["since"] = [since for _, since in run]
            rows["end"] = [getattr(record, "end", None) for record, _ in run]
            if flat is not None:
                cells = [flat.of(record.value) if record.value is not None else {} for record, _ in run]
                rows |= {name: [of.get(name) for of in cells] for name in beside}
            writer.write_table(arrow.table(rows, schema=schema))


def _arrow_type(arrow: Any, kind: str) -> Any:
    """Return the column type of a flat column's kind."""
    return {
        "string": arrow.string(),
        "strings": arrow.list_(arrow.string()),
        "int": arrow.int64(),
        "double": arrow.float64(),
        "bool": arrow.bool_(),
        "timestamp": arrow.timestamp("ms"),
    }[kind]


def mentions(path: Path, text: bytes) -> bool:
    """Tell whether a value of a dump has ``text`` in it. Raises InputError as ``read_rows``."""
    return any(row[3] is not None and text in row[3] for row in read_rows(path))


def is_parquet(path: Path) -> bool:
    """Tell whether a file is in this form, by its name; standard input by its content."""
    try:
        return path.suffix == SUFFIX or (path == STANDARD_INPUT and begins(path, MAGIC))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def read_rows(path: Path, *, headers: bool = False) -> Iterator[DumpRow]:
    """Yield the rows of a dump; ``headers``: with those too. Raises InputError, naming the file, if it is none."""
    arrow, parquet = require()
    wanted = ["partition", "offset", "timestamp", "value"]
    try:
        with parquet.ParquetFile(located(path)) as file:
            missing = [name for name in wanted if name not in file.schema_arrow.names]
            if missing:
                raise InputError(f"{path}: no column {missing[0]}; is it a dump of `tidegate export`?")
            more = ["since", *(["headers"] if headers else []), "end"]
            there = [name for name in (*wanted, *more) if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=BATCH, columns=there):
                columns = [batch.column(name).to_pylist() for name in wanted]
                columns += [batch.column(n).to_pylist() if n in there else [None] * len(batch) for n in more]
                if headers:
                    columns[-2] = [[(h["name"], h["value"] or b"") for h in every or ()] for every in columns[-2]]
                else:
                    columns.insert(-1, [()] * len(batch))
                yield from zip(*columns, strict=True)
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
