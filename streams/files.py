"""Files that people name: ``-`` is standard input, ``.gz`` is unpacked, and a byte order mark is no content."""

import atexit
import gzip
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import IO, BinaryIO
from weakref import WeakKeyDictionary

STANDARD_INPUT = Path("-")
BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_kept: WeakKeyDictionary[BinaryIO, Path] = WeakKeyDictionary()
_pipes: dict[Path, Path] = {}


def located(path: Path) -> Path:
    """Return a file's path; of standard input or a pipe that of a copy, as most files are read more than once.

    The copy is there until the process ends. Raises OSError.
    """
    if path == STANDARD_INPUT:
        stream: BinaryIO = sys.stdin.buffer
        if stream not in _kept:
            _kept[stream] = _copied(stream)
        return _kept[stream]
    if path not in _pipes:
        if not path.is_fifo():
            return path
        with path.open("rb") as pipe:
            _pipes[path] = _copied(pipe)
    return _pipes[path]


def _copied(stream: BinaryIO) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="tidegate-")
    atexit.register(Path(name).unlink, missing_ok=True)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(stream, file)
    return Path(name)


def begins(path: Path, mark: bytes) -> bool:
    """Tell whether a file begins with these bytes. Raises OSError."""
    with located(path).open("rb") as file:
        return file.read(len(mark)) == mark


def open_log(path: Path) -> IO[bytes]:
    """Open a file, unpacked, behind its byte order mark. Raises OSError, EOFError or zlib.error where it is broken."""
    file = _unpacked(path)
    try:
        if file.peek(len(BOM)).startswith(BOM):
            file.read(len(BOM))
    except BaseException:
        file.close()
        raise
    return file


def _unpacked(path: Path) -> io.BufferedReader:
    there = located(path)
    packed = path.suffix == ".gz" or (path == STANDARD_INPUT and begins(path, _GZIP))
    return gzip.open(there) if packed else there.open("rb")  # type: ignore[return-value]


def read_whole(path: Path) -> bytes:
    """Return a file's bytes behind its byte order mark. Raises OSError."""
    return located(path).read_bytes().removeprefix(BOM)
