"""The report of a manifest's rehearsal on sham arms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.document import quoted
from tidegate.schemas.errors import InputError
from tidegate.schemas.manifest import Flag
from tidegate.schemas.times import DAY
from tidegate.streams.backtest.arms import Effect
from tidegate.streams.backtest.buckets import BUCKETS
from tidegate.streams.backtest.rollouts import (
    Lifetime,
    Outcomes,
    Rate,
    aggregate,
    buckets_for,
    lifetime,
    outcomes,
    rehearse,
    sham_flag,
    starts,
)
from tidegate.streams.report.terminal import weight_percent
from tidegate.streams.report.text import many, number


@dataclass(frozen=True)
class Log:
    """A log of events, and how it is read."""

    paths: Sequence[Path]
    partitions: int
    clockwork: Clockwork
    progress: Callable[[int], None]


def _check_scopes(flags: Sequence[Mapping[str, Flag]]) -> None:
    for name, flag in flags[0].items():
        for other in flags[1:]:
            if name in other and other[name].scope != flag.scope:
                raise InputError(f"flag {name} has another scope in B; measure the two manifests one by one")


@dataclass(frozen=True)
class Rehearsal:
    """The sham rollouts of one unit under one manifest, counted.

    ``moments``: where a rollout could begin. ``days``, ``requests``: the size of the baseline's history; ``gold``:
    whether the gold set is in it. ``lifetimes``: by regression; None: without one.
    """

    unit: str
    manifest: Path
    flag: Flag
    moments: int
    days: float
    requests: int
    gold: bool
    healthy: Outcomes
    lifetimes: Mapping[Effect | None, Lifetime]

    def tell(self, console: Console) -> None:
        """Print the rates and lifetimes."""
        stages, healthy = self.flag.ramp_stages, self.healthy
        shares = ", ".join(f"{buckets_for(stage)} ({weight_percent(stage)})" for stage in stages)
        console.print(Text(f"{quoted(self.unit)[1:-1]} under {self.manifest}", style="bold"))
        console.print(
            f"{many(healthy.passed.of, 'sham rollout')} on {number(self.days)} days of the baseline, "
            f"{many(self.requests, 'request')}, from {many(self.moments, 'moment')}; "
            f"buckets of {BUCKETS} in the canary by stage: {shares}"
        )
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("without a regression")
        for title in ("rollouts", "rate", "exact 95 % interval"):
            table.add_column(title, justify="right")
        table.add_column("")
        staged = self.flag.policy.evidence == "sequential"
        alpha = f"false_stop is {weight_percent(self.flag.policy.false_stop)}"
        for what, rate, note in (
            ("aborted early", healthy.aborted_early, "" if staged else alpha),
            ("aborted at a window's end", healthy.aborted_at_end, ""),
            ("rolled back", healthy.rolled_back, ""),
            ("frozen on the way", healthy.frozen, ""),
            ("passed the last stage", healthy.passed, ""),
            ("open when the history ended", healthy.open, ""),
        ):
            table.add_row(what, f"{rate.count:,}", _percent(rate.value), _interval(rate), Text(note, style="dim"))
        console.print(table)
        console.print(
            f"A rate is the share of these {many(healthy.passed.of, 'rollout')} that ended so although nothing "
            "differed between their arms: by chance alone."
        )
        console.print(f"{self._ends()}{f'; {alpha}' if staged else ''}")
        if healthy.causes:
            console.print("Behind them: " + ", ".join(f"{name} {count:,}" for name, count in healthy.causes.items()))
        regressions = {effect: life for effect, life in self.lifetimes.items() if effect is not None}
        if regressions:
            console.print(_lifetimes_table(regressions))
        console.print()

    def _ends(self) -> str:
        """Describe the rollouts that came to an end."""
        stopped, cut_short = self.healthy.stopped, self.healthy.open.count
        if not stopped.of:
            return (
                "No sham rollout came to an end before the history did, so no false-stop rate is known; take more of it"
            )
        rates = ((self.healthy.aborted, "aborts"), (self.healthy.rolled, "rollbacks"))
        parts = ", ".join(f"false {what} {_percent(rate.value)} ({_interval(rate)})" for rate, what in rates)
        of = f"Of the {stopped.of:,} that came to an end," if cut_short else f"Of all {many(stopped.of, 'rollout')},"
        return f"{of} {_percent(stopped.value)} were stopped without a regression ({_interval(stopped)}): {parts}"

    def builtins(self) -> dict[str, Any]:
        """Return the numbers, for a file."""
        lives = {effect.text if effect else "none": life for effect, life in self.lifetimes.items()}
        return {
            "unit": self.unit,
            "manifest": str(self.manifest),
            "manifest_hash": self.flag.manifest_hash,
            "rollouts": self.healthy.passed.of,
            "healthy": {
                name: {"count": rate.count, "rate": rate.value, "interval": rate.interval}
                for name, rate in vars(self.healthy).items()
                if isinstance(rate, Rate)
            },
            "false_stop": self.flag.policy.false_stop,
            "stopped_of_ended": {
                "count": self.healthy.stopped.count,
                "of": self.healthy.stopped.of,
                "interval": self.healthy.stopped.interval if self.healthy.stopped.of else None,
            },
            "causes": self.healthy.causes,
            "regressions": [
                {
                    "regression": name,
                    "caught_by": life.by,
                    "median_ms": life.median,
                    "p90_ms": life.p90,
                    "never_caught": {
                        "count": life.missed.count,
                        "rate": life.missed.value,
                        "interval": life.missed.interval,
                    },
                }
                for name, life in lives.items()
                if name != "none"
            ],
        }


def rehearsals(
    log: Log,
    manifests: Sequence[Path],
    flags: Sequence[Mapping[str, Flag]],
    seed: int,
    n: int,
    effects: Sequence[Effect],
    progress: Progress,
) -> list[Rehearsal]:
    """Return the events read once; then every unit under every manifest."""
    _check_scopes(flags)
    ramps = [{name: flag for name, flag in known.items() if flag.kind == "progressive_rollout"} for known in flags]
    if not ramps[0]:
        raise InputError(f"{manifests[0]} has no progressive rollout; sham rollouts are made of those only")
    history = aggregate(log.paths, ramps[0], log.partitions, log.clockwork, seed, log.progress)
    try:
        pairs = [
            (unit, manifest, known[unit.split("|", 1)[0]])
            for unit in history.units
            for manifest, known in zip(manifests, ramps, strict=True)
            if unit.split("|", 1)[0] in known
        ]
        pairs = [(unit, manifest, flag) for unit, manifest, flag in pairs if history.covers(unit, flag)]
        if not pairs:
            raise InputError("the events close no window of a baseline; end the log with a tick, or check --manifest")
        judging = progress.add_task("judging", total=n * len(pairs))
        found = []
        for unit, manifest, flag in pairs:
            rollouts = rehearse(history, unit, flag, log.clockwork, n, effects, lambda: progress.advance(judging, 1))
            moments = len(starts(history, unit, sham_flag(flag), log.clockwork))
            lives = {effect: lifetime(rows, log.clockwork.lateness_ms) for effect, rows in rollouts.items()}
            found.append(
                Rehearsal(
                    unit=unit,
                    manifest=manifest,
                    flag=flag,
                    moments=moments,
                    days=(history.end - history.first(unit)) / DAY,
                    requests=history.requests[unit],
                    gold=unit in history.gold,
                    healthy=outcomes(rollouts[None]),
                    lifetimes=lives,
                )
            )
        return found
    finally:
        history.close()


def _lifetimes_table(lifetimes: Mapping[Effect, Lifetime]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("regression")
    table.add_column("caught by")
    for title in ("median", "p90", "never caught", "exact 95 % interval"):
        table.add_column(title, justify="right")
    for effect, life in lifetimes.items():
        by = ", ".join(f"{verdict} {count:,}" for verdict, count in life.by.items()) or "nothing"
        times = (_minutes(ms) for ms in (life.median, life.p90))
        table.add_row(effect.text, by, *times, _percent(life.missed.value), _interval(life.missed))
    return table


def tell_limits(console: Console, found: Sequence[Rehearsal], lateness: int) -> None:
    lines = [
        "Only metrics are judged: sticky ids, sample ratio, pins, late events and dead letters of a sham canary would "
        "be the split's own.",
        "Rollouts of one history overlap in time and in users; the intervals take them as independent.",
    ]
    if any(rehearsal.healthy.open.count for rehearsal in found):
        lines.append(
            "Rollouts that were open when the history ended count neither as stopped nor as healthy: a longer history "
            "has fewer of them. Stops come sooner than passes, so the rate of those that ended is rather too high."
        )
    if any(rehearsal.gold for rehearsal in found):
        lines.append(
            "Both sham arms are given the whole gold set, probes included: what is read from gold cannot differ by "
            "chance here."
        )
    if any(rehearsal.flag.traffic.shadow for rehearsal in found):
        lines.append("The shadow stage is left out: nobody mirrors requests to a sham canary.")
    if any(len(rehearsal.lifetimes) > 1 for rehearsal in found):
        lines.append(
            "A regression lives from the sham canary's first request to the first abort, freeze or rollback, "
            f"{lateness / 1000:g} s of lateness included; median and p90 are over all rollouts, "
            "caught or not."
        )
    for line in lines:
        console.print(line, style="dim", markup=False)


def _percent(share: float) -> str:
    return f"{number(round(100 * share, 2))} %"


def _interval(rate: Rate) -> str:
    low, high = rate.interval
    return f"{100 * low:.2f} – {100 * high:.2f} %"


def _minutes(ms: int | None) -> str:
    return "not caught" if ms is None else f"{ms / 60_000:.1f} min"
