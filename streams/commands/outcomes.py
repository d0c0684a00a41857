"""The decisions of a replay, counted on their way to files."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

import click
import msgspec

from tidegate.gates.recorder import Outcome
from tidegate.gates.remarks import probes_wanted
from tidegate.schemas.correction import Correction
from tidegate.schemas.errors import InputError
from tidegate.schemas.timeline import Timeline
from tidegate.streams.audit.compare import by_unit
from tidegate.streams.engine.tally import Tally
from tidegate.streams.report.text import many, plain


class Output:
    """Lines to a file that appears whole or not at all; None: to nowhere."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "Output":
        if self._path is not None:
            self._unfinished = self._path
            # A device or pipe is written to; only a plain file can be replaced.
            if self._path.is_file() or not self._path.exists():
                self._unfinished = self._path.with_name(self._path.name + ".unfinished")
            try:
                self._file = self._unfinished.open("wb")
            except OSError as error:
                raise InputError(f"{self._path}: {error.strerror}") from None
        return self

    def write(self, record: bytes) -> None:
        """Append a record as a line."""
        if self._file is not None:
            self._file.write(record + b"\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None and self._path is not None:
            self._file.close()
            if self._unfinished is self._path:
                return
            if kind is None:
                self._unfinished.replace(self._path)
            else:
                self._unfinished.unlink()


class After:
    """The decisions of each unit from its first that was made after a time, ms; None: all of them."""

    def __init__(self, time: int | None) -> None:
        self.time = time
        self._begun: set[str] = set()

    def take(self, unit: str, decided_at: int) -> bool:
        """Tell whether the unit's next decision is one of them."""
        if self.time is not None and decided_at > self.time:
            self._begun.add(unit)
        return self.time is None or unit in self._begun

    def of(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield those among decisions that were read, each once. Raises InputError for any other line."""
        for its in by_unit(lines).values():
            begin = 0
            if self.time is not None:
                begin = next((n for n, line in enumerate(its) if _decided_at(line) > self.time), len(its))
            yield from its[begin:]


class _Decided(msgspec.Struct):
    decided_at: int


def _decided_at(line: bytes) -> int:
    try:
        return msgspec.json.decode(line, type=_Decided).decided_at
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InputError(f"not a decision: {error}") from None


class OutcomeWriter:
    """Outcomes on their way to files, counted; if they are to be compared, kept in memory too.

    ``after``: only what was decided after this time, ms, is written.
    """

    def __init__(
        self, out: Path | None, commands: Path | None, corrections: Path | None, *, keep: bool, after: int | None = None
    ) -> None:
        self._files = Output(out), Output(commands), Output(corrections)
        self._keep, self.after = keep, After(after)
        self._verdicts: Counter[str] = Counter()
        self._ordered = self._corrected = 0
        self._unprobed: set[str] = set()
        self.decisions: list[bytes] = []
        self.orders: list[bytes] = []
        self.written: list[bytes] = []

    def __enter__(self) -> "OutcomeWriter":
        self._stack = ExitStack()
        with ExitStack() as stack:
            for file in self._files:
                stack.enter_context(file)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def take(self, outcomes: Iterator[Outcome]) -> None:
        """Write all of them that are after the time."""
        for decision, order in outcomes:
            if any(gate.gate == "lambda_convergent" and gate.status == "unknown" for gate in decision.gates):
                self._unprobed.add(decision.flag)
            wanted = self.after.take(decision.key, decision.decided_at)
            if not (wanted or self._keep):
                continue
            record, command = decision.to_bytes(), None if order is None else order.to_bytes()
            if self._keep:
                self.decisions.append(record)
                self.orders += [] if command is None else [command]
            if wanted:
                self._verdicts[decision.verdict] += 1
                self._write(record, command)

    def _write(self, record: bytes, command: bytes | None) -> None:
        decisions, commands, _ = self._files
        decisions.write(record)
        if self._keep:
            self.written.append(record)
        if command is not None:
            self._ordered += 1
            commands.write(command)

    def correct(self, correction: Correction) -> None:
        """Write a correction."""
        if self.after.time is None or correction.corrected_at > self.after.time:
            self._files[2].write(correction.to_bytes())
            self._corrected += 1

    def tell(self, tally: Tally, timeline: Timeline) -> None:
        """Say how many there were, of how many events, and which flags wait for probes that nobody sends."""
        told = ", ".join(f"{count} {verdict}" for verdict, count in self._verdicts.most_common())
        decided, ordered = many(self._verdicts.total(), "decision"), many(self._ordered, "command")
        click.echo(f"{decided} ({told or 'no window was closed'}), {ordered}")
        click.echo(tally.told())
        if not self._verdicts and not self.after.time:
            click.echo(tally.unclosed)
        flags = timeline.revisions[-1].flags if timeline.revisions else {}
        for name in sorted(self._unprobed & flags.keys()):
            if not tally.step.probes and (wanted := probes_wanted(flags[name])):
                click.echo(plain(f"{name}: {wanted}"))
        if self._corrected:
            click.echo(f"{many(self._corrected, 'correction')}: late events would have changed a verdict")
