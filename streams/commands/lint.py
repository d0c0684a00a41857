"""``tidegate lint``: check a manifest and show what it resolves to."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.gates.power import Catch, catch, certainty, judged_gates
from tidegate.gates.remarks import probes_wanted, stuck
from tidegate.gates.remarks import remarks as never
from tidegate.gates.rules import QUALITY_GATES, QUALITY_RULES, SOFT_GATES
from tidegate.gates.verdict import Takes, finishes_by_point, to_pass, to_stop
from tidegate.schemas.duration import MAX_DURATION_MS
from tidegate.schemas.errors import SettingsError
from tidegate.schemas.load import read_manifest
from tidegate.schemas.manifest import SLACK, Flag, HardRule
from tidegate.streams.audit.replay import replay
from tidegate.streams.commands.options import LogFile, pane_option
from tidegate.streams.dumps.log import count_partitions
from tidegate.streams.engine.tally import Tally
from tidegate.streams.kafka.manifests import read_files
from tidegate.streams.report.terminal import weight_percent
from tidegate.streams.report.text import plain
from tidegate.streams.settings import Settings, command_settings

_PER_SECONDS = {"s": 1, "m": 60, "h": 3600}
_SPANS = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))
RATE_MAX = 1e9


def _rate(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Requests a second."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)/([smh])", value.strip())
    rate = float(match[1]) / _PER_SECONDS[match[2]] if match else 0.0
    if not 0 < rate <= RATE_MAX:
        raise SettingsError(f"--rate: {value!r} is not a rate; write requests over time, such as 2/s, 90/m or 5000/h")
    return rate


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@pane_option
@click.option("--strict", is_flag=True, help="exit with 1 where a flag can never decide")
@click.option("--rate", callback=_rate, help="requests of both arms in one region, such as 2/s, 90/m or 5000/h")
@click.option("--events", type=LogFile(), multiple=True, help="telemetry: say how much of it counts, and why not")
def command(manifest: Path, pane: int | None, rate: float | None, strict: bool, events: tuple[Path, ...]) -> None:
    """Check MANIFEST and show every flag with its defaults filled in.

    With --rate also what evidence costs at each stage: how long until a gate can pass, until it is sure, and until a
    hard rule catches a regression; and a warning where a stage can never decide in its window.

    Exits with 2 and one line that names the place and the way out if the manifest is wrong; with --strict, with 1
    where a stage, or what the manifest says of a flag, can never decide.
    """
    settings = command_settings(pane=pane)
    pane_ms = settings.pane
    console = Console(soft_wrap=True, highlight=False)
    flags = read_manifest(manifest, pane_ms=pane_ms).flags
    for flag in flags.values():
        _show(console, flag)
        if rate is not None:
            if flag.kind == "progressive_rollout":
                _show_verdict(console, flag, rate)
            _show_power(console, flag, rate, pane_ms)
        console.print()
    if events:
        console.print(_counted(manifest, events, settings), markup=False)
    console.print(Text(f"{manifest}: {len(flags)} flag{'s' if len(flags) > 1 else ''}, no errors", "green"))
    undecided = [flag.name for flag in flags.values() if _never_decides(flag, rate, pane_ms)]
    if strict and undecided:
        console.print(Text(f"can never decide: {', '.join(map(plain, undecided))}", "yellow"))
        raise SystemExit(1)


def _never_decides(flag: Flag, rate: float | None, pane_ms: int) -> bool:
    if any(stuck(flag)):
        return True
    stages = [] if rate is None or flag.kind == "kill_switch" else _stages(flag, rate)
    return any(short for stage in stages for short in _shortages(flag, stage, pane_ms))


def _counted(manifest: Path, events: tuple[Path, ...], settings: Settings) -> str:
    """Describe what becomes of the events of some files."""
    tally = Tally()
    decided = replay(
        events, read_files([manifest], settings, None), count_partitions(events, 1), settings.clockwork, tally=tally
    )
    for _ in decided:
        pass
    return tally.told()


def _show(console: Console, flag: Flag) -> None:
    stages = " → ".join(f"{weight:.3g}" for weight in flag.traffic.stages)
    window = flag.window
    console.print(Text(flag.name, "bold").append(f"  {flag.kind}  {flag.manifest_hash}", "not bold"))
    console.print(
        f"canary {stages}; windows of {_span(window.length_ms / 1000)}, {window.hold_windows} green before a promote, "
        f"at least {window.min_requests} requests an arm"
    )
    table = Table("gate", "limit", "hard rule", "soft rule", box=None, pad_edge=False)
    hard = {rule.kind: rule.value for rule in flag.abort_rules.hard}
    soft = {SOFT_GATES[rule.kind]: rule.value for rule in flag.abort_rules.soft}
    related = {
        "delta_s.p95_max": "delta_s_p95_over",
        "coverage_min": "coverage_under",
        "lambda_convergent": "lambda_flip_rate_over",
        "error_rate_max": "error_rate_over",
    }
    for gate, limit in flag.gates.limits().items():
        rule = related.get(gate)
        table.add_row(
            gate,
            "off" if limit is None or limit is False else str(limit),
            f"{rule} {hard[rule]}" if rule in hard else "",
            f"over {soft[gate]}" if gate in soft else "",
        )
    console.print(table)
    for problem in _remarks(flag):
        console.print(f"[yellow]remark:[/yellow] {problem}")


def _remarks(flag: Flag) -> list[str]:
    remarks = []
    if flag.unpinned:
        remarks.append(f"versions do not pin {', '.join(flag.unpinned)}: a change there is seen only within an arm")
    if flag.relaxed:
        remarks.append(f"looser than the safe-launch targets: {', '.join(flag.relaxed)}")
    wanted = probes_wanted(flag)
    return [*remarks, *([wanted] if wanted else []), *never(flag)]


@dataclass(frozen=True)
class _Stage:
    """One stage and its requests a second by arm; None: not set by the rate, as the canary's in a shadow stage.

    ``pinned``: an earlier window's baseline stands in.
    """

    index: int
    weight: float
    canary: float | None
    baseline: float
    pinned: bool

    def seconds(self, canary: int, baseline: int) -> float | None:
        """Until these many requests have come; infinite: never."""
        if self.canary is None:
            return None
        waits = [_wait(canary, self.canary)]
        return max(waits if self.pinned else [*waits, _wait(baseline, self.baseline)])


def _wait(rows: int, rate: float) -> float:
    return rows / rate if rate else math.inf * rows if rows else 0.0


def _stages(flag: Flag, rate: float) -> Iterator[_Stage]:
    for index, weight in enumerate(flag.ramp_stages if flag.kind == "progressive_rollout" else flag.traffic.stages[:1]):
        canary = weight * rate if weight else None
        yield _Stage(index, weight, canary, round(1 - weight, 12) * rate, pinned=weight >= 1 and index > 0)


def _show_power(console: Console, flag: Flag, rate: float, pane_ms: int) -> None:
    """Show what evidence costs at each stage, with ``rate`` requests a second in the unit."""
    if flag.kind == "kill_switch":
        console.print("a kill switch measures nothing: no evidence to wait for")
        return
    window = flag.window
    for stage in _stages(flag, rate):
        console.print()
        console.print(_headline(flag, stage))
        if judged_gates(flag):
            console.print(_gates_table(flag, stage))
        if _aborts(flag):
            console.print(_rules_table(flag, stage))
        for warning in _shortages(flag, stage, pane_ms):
            console.print(Text("warning: ", "yellow").append(warning, "not bold default"))
    console.print()
    if flag.kind == "progressive_rollout":
        green = window.hold_windows * window.length_ms / 1000
        console.print(f"a stage is promoted after {_span(green)} of green windows at the earliest")
    for line in _legend(flag):
        console.print(Text(line, "dim"))


def _staged(flag: Flag) -> bool:
    """Tell whether windows add up until every gate is settled."""
    return flag.kind == "progressive_rollout" and flag.policy.evidence == "sequential"


def _show_verdict(console: Console, flag: Flag, rate: float) -> None:
    """Show how long the ramp takes at this rate, what a bad canary costs, and what chance does to a healthy one."""
    stages, length = list(_stages(flag, rate)), flag.window.length_ms / 1000
    console.print()
    if not _staged(flag):
        chance = finishes_by_point(flag, [(stage.canary or 0.0) * length for stage in stages])
        said = f"with evidence: point about {weight_percent(chance)} of healthy canaries finish at this rate"
        console.print(Text(said, "bold" if chance >= HEALTHY_LEAST else "bold yellow"))
        console.print(
            Text("errors and tool failures at half their limits, by the binomial law; other gates pass", "dim")
        )
        if chance < HEALTHY_LEAST:
            console.print("write policy.evidence: sequential, which waits for enough requests instead")
        return
    whole, lines = 0.0, []
    for stage in stages:
        slowest, seconds = _slowest(flag, stage)
        windows = max(flag.window.hold_windows, math.ceil(seconds / length)) if math.isfinite(seconds) else math.inf
        whole += windows * length
        name = "shadow" if stage.canary is None else weight_percent(stage.weight)
        needs = (
            "the least, hold_windows" if slowest is None else f"{slowest.gate}, {slowest.rows or 0:,} {slowest.what}"
        )
        lines.append(f"  {name:>6}: {_told(windows * length):>8}, longest {needs}")
    console.print(
        Text(f"a canary like the baseline is at {weight_percent(stages[-1].weight)} after about {_told(whole)}", "bold")
    )
    for line in lines:
        console.print(line)
    for stop in to_stop(flag):
        rows = "never" if stop.rows is None else f"about {stop.rows:,} {stop.what} of the canary"
        value = weight_percent(_bad_value(flag, stop.gate))
        console.print(f"  a canary at the value to rule out for {stop.gate} ({value}) is stopped after {rows}")
    console.print(
        Text("rates at half of what the limits allow; a quantile or the cost may take longer where it varies", "dim")
    )


HEALTHY_LEAST = 0.95
"""Fewer healthy canaries that finish than this are too few."""


def _bad_value(flag: Flag, gate: str) -> float:
    rules = flag.policy.rule_out
    found = {"error_rate_max": rules.error_rate, "tool_success_min": rules.tool_success, "coverage_min": rules.coverage}
    return found[gate] or 0.0


def _slowest(flag: Flag, stage: _Stage) -> tuple[Takes | None, float]:
    """Return the gate that a stage waits for longest, and how long, in seconds; λ and gold come at their own rate."""
    found: tuple[Takes | None, float] = (None, 0.0)
    for takes in to_pass(flag):
        if takes.gate == "lambda_convergent" and not _by_rate(flag, takes.gate):
            continue
        seconds = math.inf if takes.rows is None else stage.seconds(takes.rows, takes.rows if takes.baseline else 0)
        if seconds is not None and seconds > found[1]:
            found = takes, seconds
    return found


def _aborts(flag: Flag) -> bool:
    """Tell whether hard rules can fire at all."""
    return bool(flag.abort_rules.hard) and flag.kind in ("progressive_rollout", "quality_gated")


def _headline(flag: Flag, stage: _Stage) -> Text:
    seconds = flag.window.length_ms / 1000
    canary = "mirrored requests" if stage.canary is None else f"{_count(stage.canary * seconds)} canary"
    baseline = "a pinned baseline" if stage.pinned else f"{_count(stage.baseline * seconds)} baseline requests"
    name = "shadow" if stage.canary is None else f"canary {weight_percent(stage.weight)}"
    return Text(f"stage {stage.index}, {name}", "bold").append(
        f": a window of {_span(seconds)} has {canary} and {baseline}", "not bold"
    )


def _gates_table(flag: Flag, stage: _Stage) -> Table:
    table = _table("gate", "needs", "can pass", "sure", "sure at half")
    least, length = flag.window.min_requests, flag.window.length_ms / 1000
    for gate in judged_gates(flag):
        seconds = stage.seconds(_least(flag, gate), least) if _by_rate(flag, gate) else None
        late = seconds is not None and seconds > (math.inf if _staged(flag) else length)
        sure = certainty(flag, gate)
        table.add_row(
            gate,
            _needs(flag, gate, stage),
            Text("never", "yellow") if late else _told(seconds),
            _sure(flag, gate, stage, sure.perfect) if sure else "—",
            _sure(flag, gate, stage, sure.at_half) if sure else "—",
        )
    return table


def _rules_table(flag: Flag, stage: _Stage) -> Table:
    table = _table("hard rule", "a regression to", "rows", "caught")
    length = flag.window.length_ms / 1000
    number = 1 + stage.index * flag.window.hold_windows
    for rule in flag.abort_rules.hard:
        found = catch(flag, rule, number)
        seconds = None
        if found.canary is not None and _by_rate(flag, rule.kind):
            seconds = stage.seconds(found.canary, found.baseline)
        early = seconds is None or seconds < length or _staged(flag)
        enough = stage.seconds(flag.window.min_requests, found.baseline and flag.window.min_requests)
        table.add_row(
            f"{rule.kind} {rule.value:.10g}",
            _regression(rule, found),
            _rows(flag, rule, found, stage),
            _told(seconds) if early else "at window end" if (enough or 0) <= length else Text("never", "yellow"),
        )
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, title in enumerate(titles):
        table.add_column(title, justify="right" if i > 1 else "left", no_wrap=i == 0)
    return table


def _by_rate(flag: Flag, name: str) -> bool:
    """Tell whether the rate of requests says how fast a gate's or rule's rows come."""
    if name in ("lambda_convergent", "lambda_flip_rate_over"):
        return flag.policy.lambda_source == "traffic" and flag.policy.quality_source != "gold"
    return name not in (*QUALITY_GATES, *QUALITY_RULES) or flag.policy.quality_source != "gold"


def _least(flag: Flag, gate: str) -> int:
    """Rows of the canary below which a gate is unknown."""
    by_event = gate == "lambda_convergent" and flag.policy.lambda_source == "traffic"
    return max(flag.window.min_requests, flag.window.min_lambda_groups if by_event else 0)


def _needs(flag: Flag, gate: str, stage: _Stage) -> str:
    rows, least, groups = _least(flag, gate), flag.window.min_requests, flag.window.min_lambda_groups
    gold = " gold" if gate in QUALITY_GATES and flag.policy.quality_source == "gold" else ""
    groups_too = gate == "lambda_convergent" and flag.policy.lambda_source == "probes"
    if groups_too:
        return f"{rows:,}{gold} + {groups:,} group{'s' * (groups > 1)}"
    return f"{rows:,}{gold} {'canary' if stage.pinned or rows > least else 'an arm'}"


def _sure(flag: Flag, gate: str, stage: _Stage, rows: int | None) -> str:
    if rows is None:
        return "never"
    if gate == "tool_success_min":
        return f"{rows:,} calls"
    return f"{rows:,}: {_told(stage.seconds(rows, 0) if _by_rate(flag, gate) else None)}"


def _regression(rule: HardRule, found: Catch) -> str:
    if found.regression is None:
        return "—"
    share = weight_percent(found.regression)
    match rule.kind:
        case "delta_s_p95_over":
            return f"{share} far above"
        case "coverage_under":
            return f"coverage {found.regression:.4g}"
        case "lambda_flip_rate_over":
            return f"{share} flips"
        case "error_rate_over":
            return f"{share} errors"


def _rows(flag: Flag, rule: HardRule, found: Catch, stage: _Stage) -> str:
    if found.canary is None:
        return "—"
    if rule.kind == "lambda_flip_rate_over" and flag.policy.lambda_source == "probes":
        return f"{found.canary:,} groups"
    baseline = f" + {found.baseline:,} baseline" if found.baseline and not stage.pinned else ""
    return f"{found.canary:,}{baseline or ' canary'}"


def _shortages(flag: Flag, stage: _Stage, pane_ms: int) -> Iterator[str]:
    """Why a stage can never decide in its window, and the way out."""
    window = flag.window
    seconds = window.length_ms / 1000
    canary = _least(flag, "lambda_convergent") if "lambda_convergent" in judged_gates(flag) else window.min_requests
    arms: list[tuple[str, float | None, int]] = [
        ("canary", stage.canary, canary),
        ("baseline", stage.baseline, window.min_requests),
    ]
    if stage.pinned or flag.kind == "safety_guard":
        arms.pop()
    for arm, rate, least in arms:
        # Windows of a stage add up: it is only late.
        if rate is None or rate * seconds >= least - SLACK or (rate and _staged(flag)):
            continue
        came = f"stage {stage.index} can never decide: of the {least:,} {arm} requests it needs, a window"
        came += f" of {_span(seconds)} has about {_count(rate * seconds)}"
        if not rate:
            yield f"{came}; no traffic is left for it at this weight"
            continue
        ways = []
        if least / rate * 1000 < MAX_DURATION_MS:
            ways.append(f"window.length: {_written(least / rate, pane_ms)} or more")
        if rate * seconds >= 1:
            key = "min_requests" if least == window.min_requests else "min_lambda_groups"
            ways.append(f"window.{key}: {int(rate * seconds)} or less")
        yield f"{came}; " + ("write " + ", or ".join(ways) if ways else "that is too little for any window")


def _legend(flag: Flag) -> Iterator[str]:
    gates, quality = judged_gates(flag), flag.policy.quality_source
    if not gates:
        return
    if _staged(flag):
        yield "can pass: when the least requests are there; a stage goes on until its evidence settles every gate"
    else:
        yield "can pass: when the least requests are there; the decision falls at the window's end"
    yield "sure: canary rows until the anytime 95 % bound is within the limit, with no bad row or half of the allowed"
    yield "—: no such bound, or not set by the rate of requests"
    if flag.kind == "quality_gated":
        yield "while the gate is closed its evidence is mirrored or gold requests, of which the rate tells nothing"
    if any(gate in QUALITY_GATES for gate in gates) and quality == "gold_if_present":
        yield "where both arms have gold events, ΔS, coverage and λ need these rows from gold alone"
    if _aborts(flag):
        late = "of all the stage's evidence" if _staged(flag) else "; what takes longer fires on the value at its end"
        yield f"caught: early, on an anytime bound{' ' * _staged(flag)}{late}"
        if any(rule.kind == "delta_s_p95_over" for rule in flag.abort_rules.hard):
            yield "far above: ΔS over all of the baseline's by more than the limit"


def _count(rows: float) -> str:
    return f"{rows:,.0f}" if rows >= 100 else f"{rows:.3g}"


def _told(seconds: float | None) -> str:
    if seconds is None:
        return "—"
    return _span(seconds) if math.isfinite(seconds) else "never"


def _span(seconds: float) -> str:
    """Return a time in its two largest units, rounded up to a second: 3m 20s."""
    left = max(1, math.ceil(seconds - SLACK))
    parts: list[str] = []
    for size, unit in _SPANS:
        if left >= size or parts:
            parts.append(f"{left // size}{unit}" if left // size else "")
            left %= size
    return " ".join(part for part in parts[:2] if part)


def _written(seconds: float, pane_ms: int) -> str:
    """Return a window length for the manifest: whole panes, and whole minutes where it is longer than one."""
    step = math.lcm(pane_ms, 60_000 if seconds > 60 else 1000)
    length = math.ceil((seconds * 1000 - SLACK) / step) * step
    return f"{length // 60_000}m" if length % 60_000 == 0 else f"{length // 1000}s"
