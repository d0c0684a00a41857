"""Counts, and writes docs/evidence.md with its plots: ``make evidence``, or with other numbers ``ARGS=…``."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.evidence.plots import finished_svg, promoted_svg, times_svg
from bench.evidence.report import FINISHED, PROMOTED, TIMES, page
from bench.evidence.trials import RATES, ROBUST_HOURS, Results, measure

DOCS = Path(__file__).resolve().parents[2] / "docs"
NUMBERS = "evidence.json"
COMMAND = "make evidence"


class Measured(msgspec.Struct, frozen=True):
    """What is kept beside the page, so that it can be written again without counting again."""

    revision: str
    command: str
    results: Results


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or with ``--redraw`` read what was measured, and write the page."""
    asked = _parser().parse_args(arguments)
    kept = asked.out / NUMBERS
    if asked.redraw:
        measured = msgspec.json.decode(kept.read_bytes(), type=Measured)
    else:
        start = time.monotonic()

        revision, command = _revision(), _command(asked)

        def progress(text: str, so_far: Results) -> None:
            print(f"{time.monotonic() - start:6.0f} s  {text}", file=sys.stderr, flush=True)
            kept.write_bytes(msgspec.json.encode(Measured(revision, command, so_far)) + b"\n")

        results = measure(asked.rates, asked.runs, asked.robust_runs, asked.seed, asked.jobs, asked.hours, progress)
        measured = Measured(revision, command, results)
    write(measured, asked.out)


def write(measured: Measured, out: Path) -> None:
    """The page and its plots."""
    files = {
        "evidence.md": page(measured.results, measured.revision, measured.command),
        FINISHED: finished_svg(measured.results),
        TIMES: times_svg(measured.results),
        PROMOTED: promoted_svg(measured.results),
    }
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    print(f"wrote {', '.join(str(out / name) for name in files)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.evidence", description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="rollouts of each canary at a rate (%(default)s)")
    parser.add_argument("--robust-runs", type=int, default=100, help="of each canary on each pattern (%(default)s)")
    parser.add_argument("--hours", type=int, default=ROBUST_HOURS, help="that those are followed (%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="requests a second")
    parser.add_argument("--seed", type=int, default=1, help="the first (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder (docs)")
    parser.add_argument("--redraw", action="store_true", help=f"write the page from {NUMBERS}, counting nothing")
    return parser


def _command(asked: argparse.Namespace) -> str:
    """How to count the same again: what was asked for beyond the defaults and makes the numbers."""
    usual, given = _parser().parse_args([]), []
    for name in ("runs", "robust_runs", "hours", "rates", "seed"):
        value = getattr(asked, name)
        if value != getattr(usual, name):
            shown = " ".join(f"{rate:g}" for rate in value) if name == "rates" else str(value)
            given.append(f"--{name.replace('_', '-')} {shown}")
    return f'{COMMAND} ARGS="{" ".join(given)}"' if given else COMMAND


def _revision() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    said = subprocess.run(
        [git, "describe", "--always", "--dirty", "--exclude=*"], cwd=DOCS.parent, capture_output=True, text=True
    )
    return said.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
