"""Standard output and error that take every text: what their encoding cannot show is spelled in what it can."""

import codecs
import io
import sys

SPELLED = {
    "λ": "lambda",
    "Δ": "delta ",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
    "⇄": "<->",
    "×": "x",
    "−": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "✗": "X",
    "✓": "+",
    "─": "-",
    "↑": "up",
    "↓": "down",
    "²": "^2",
    "⁴": "^4",
    "⁶": "^6",
    "█": "#",
    "░": ".",
}
"""Spellings of signs that carry meaning; any other becomes a question mark."""
HANDLER = "tidegate.spelled"


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SPELLED.get(one, "?") for one in error.object[error.start : error.end]), error.end


codecs.register_error(HANDLER, _spell)


class _Ascii(io.TextIOWrapper):
    """An ASCII stream under a name that click does not know: it takes one for a mistake, and writes UTF-8 past it."""

    beneath: io.TextIOWrapper

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "ascii only"


def take_every_text() -> None:
    """Make standard output and error so, as far as they are streams of bytes."""
    sys.stdout, sys.stderr = _spelling(sys.stdout), _spelling(sys.stderr)


def _spelling(stream: object) -> io.TextIOWrapper:
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream, _Ascii):
        return stream  # type: ignore[return-value]
    stream.reconfigure(errors=HANDLER)
    if codecs.lookup(stream.encoding).name != "ascii":
        return stream
    stream.flush()
    lines, through = stream.line_buffering, stream.write_through
    spelling = _Ascii(stream.buffer, "ascii", HANDLER, line_buffering=lines, write_through=through)
    # It would close what both write to.
    spelling.beneath = stream
    return spelling
