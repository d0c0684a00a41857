"""The command line as a user meets it, in this process."""

import io
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from tidegate.streams.commands import main

_BARE_MS = re.compile(r".*(?<![\w.])1[67]\d{11}(?!\w| \(\d{4}-).*")
"""A moment of these years that nobody can read; the ts of a tick that has to be written has it in brackets behind."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that a user's mistake is answered with; above it may stand how the command is used."""
        assert "Traceback" not in self.err
        (line,) = [x for x in self.err.splitlines() if x and not x.startswith(("Usage: ", "Try "))]
        return line


def tidegate(*arguments: object) -> Done:
    """Run ``tidegate`` with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    code = ended.value.code or 0
    assert isinstance(code, int)
    done = Done(code, out.getvalue(), err.getvalue())
    bare = _BARE_MS.search(done.out + done.err)
    assert bare is None, f"a time in bare ms: {bare[0]}"
    return done
