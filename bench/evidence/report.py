"""The counts as a page: page.md, with tables and their intervals put in."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from string import Template

from bench.evidence import peers, ramps, traffic, trials
from bench.evidence.traffic import AT_LIMIT, AT_RULE_OUT, BAD, DESIGN_EFFECT, HEALTHY, SUBTLE, WITHIN
from bench.evidence.trials import FURTHER, SYSTEMS, Count, Results
from tidegate.streams.backtest.rollouts import Rate

NAMES = {
    "sequential": "Tidegate, sequential",
    "point": "Tidegate, `evidence: point`",
    "argo": "Argo Rollouts, failureLimit",
    "argo-inconclusive": "Argo Rollouts, with inconclusive",
    "flagger": "Flagger, failed checks",
    "means": "sequential test of means",
    "wald": "Wald's SPRT, knowing all distributions",
}
FINISHED, TIMES, PROMOTED = "evidence-finished.svg", "evidence-times.svg", "evidence-promoted.svg"
"""The plots, beside the page."""
PATTERNS = {
    "steady": "request by request",
    "bursts": "bursts",
    "day": "day and night",
    "users": "users with many requests",
}

Said = Callable[[float, str], str]
"""What a table says at a request rate of a way of judging."""


def page(results: Results, revision: str, command: str) -> str:
    """docs/evidence.md. ``revision``: of the code that counted; ``command``: how to count again."""
    rules = ramps.flag("sequential")
    return Template((Path(__file__).parent / "page.md").read_text(encoding="utf-8")).substitute(
        command=command,
        revision=revision,
        seed=results.seed,
        kinds="; ".join(canary.title for canary in BAD),
        count=len(BAD),
        counted=_counted(results),
        finished_svg=FINISHED,
        times_svg=TIMES,
        promoted_svg=PROMOTED,
        finished=_by_rate(results, "finished, %", lambda *at: finished(results.count(at[0], HEALTHY.name, at[1]))),
        lengths=_by_rate(results, "until 100 %", _lengths(results)),
        stops="\n".join(_by_rate(results, canary.title, _times(results, canary.name)) for canary in BAD),
        promoted=_by_rate(results, "reached 100 %, %", lambda *at: share(*promoted(results, *at))),
        past_first=_by_rate(results, "got past 5 %, %", lambda *at: share(*past_first(results, *at))),
        between=_between(results),
        robust=_robust(results),
        robust_rate=f"{trials.ROBUST_RATE:g}",
        robust_panes=trials.ROBUST_PANES,
        robust_runs=_robust_runs(results),
        hours=results.hours,
        false_stop=per_cent(rules.policy.false_stop),
        wrong_promote=per_cent(rules.policy.wrong_promote),
        bursts=per_cent(traffic.BURSTS),
        burst_traffic=f"{traffic.BURST_TRAFFIC:g}",
        burst_errors=f"{traffic.BURST_ERRORS:g}",
        burst_latency=f"{traffic.BURST_LATENCY:g}",
        swing_traffic=per_cent(traffic.SWING_TRAFFIC),
        swing_errors=per_cent(traffic.SWING_ERRORS),
        swing_latency=f"{traffic.SWING_LATENCY:g}",
        user_requests=traffic.USER_REQUESTS,
        user_share=f"{traffic.USER_SHARE:g}",
        share_squared=f"{traffic.USER_SHARE**2:g}",
        others=2 * traffic.USER_REQUESTS - 2,
        design_effect=f"{DESIGN_EFFECT:g}",
        stages=", ".join(per_cent(stage) for stage in rules.ramp_stages),
        window=rules.window.length_ms // traffic.MINUTE_MS,
        few=f"{ramps.FEW:g}",
        few_minutes=ramps.FEW_MINUTES,
        argo_minutes=peers.ARGO_MINUTES,
        argo_failures=peers.ARGO_FAILURES,
        stage_minutes=peers.STAGE_MINUTES,
        flagger_failures=peers.FLAGGER_FAILURES,
        means_n_opt=f"{peers.MEANS_N_OPT:,}",
        means_least=peers.MEANS_LEAST,
    )


def _counted(results: Results) -> str:
    """How many rollouts of each canary there were, where they are fewer than at most rates."""
    runs = {rate: results.count(rate, HEALTHY.name, SYSTEMS[0]).runs for rate in results.rates}
    most = max(runs.values(), default=0)
    fewer = [f"{count} at {rate:g}/s" for rate, count in runs.items() if count < most]
    return f"{most} rollouts of each canary at each rate" + (
        f", but {', '.join(fewer)} (slow rates have half as many, and a run that is ended early leaves what it has)"
        if fewer
        else ""
    )


def _robust_runs(results: Results) -> str:
    """How many rollouts each row has."""
    runs = sorted({one.count.runs for one in results.robust})
    return " to ".join(str(count) for count in dict.fromkeys((runs[0], runs[-1]))) if runs else "no"


def per_cent(value: float) -> str:
    """A whole number of per cent."""
    return f"{100 * value:.0f} %"


def share(count: int, of: int) -> str:
    """A rate in per cent with its exact 95 % interval."""
    low, high = Rate(count, of).interval
    return f"{_percent(count / of)} ({_percent(low)}–{_percent(high)})"


def _percent(value: float) -> str:
    near = min(value, 1 - value)
    return f"{100 * value:.1f}" if 0 < near < 0.0995 else f"{100 * value:.0f}"


def minutes(value: int | None) -> str:
    """A time as a reader says it."""
    if value is None:
        return "—"
    if value < 120:
        return f"{value} min"
    return f"{value / 60:.1f} h" if value < 48 * 60 else f"{value / 1440:.1f} d"


def finished(count: Count) -> str:
    """The share of runs that came to the end."""
    return share(len(count.finishes), count.runs)


def promoted(results: Results, rate: float, name: str) -> tuple[int, int]:
    """How many bad canaries of how many reached 100 %."""
    counts = [results.count(rate, canary.name, name) for canary in BAD]
    return sum(len(count.finishes) for count in counts), sum(count.runs for count in counts)


def past_first(results: Results, rate: float, name: str) -> tuple[int, int]:
    """How many bad canaries of how many were promoted at all."""
    counts = [results.count(rate, canary.name, name) for canary in BAD]
    return sum(count.past_first for count in counts), sum(count.runs for count in counts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def _by_rate(results: Results, title: str, said: Said) -> str:
    """A row a way of judging, a column a request rate."""
    head = [title, *(f"{rate:g}/s" for rate in results.rates)]
    return _table(head, ([NAMES[name], *(said(rate, name) for rate in results.rates)] for name in SYSTEMS))


def _quantiles(of: Callable[[float], int | None]) -> str:
    half, most = of(0.5), of(0.9)
    return "—" if half is None else f"{minutes(half)} ({minutes(most)})"


def _lengths(results: Results) -> Said:
    return lambda rate, name: _quantiles(results.count(rate, HEALTHY.name, name).finished_within)


def _times(results: Results, canary: str) -> Said:
    return lambda rate, name: _quantiles(results.count(rate, canary, name).stopped_within)


def _between(results: Results) -> str:
    places = [(canary, rate) for canary in (WITHIN, SUBTLE) for rate in results.rates if rate in FURTHER]
    if not places:
        return ""
    head = ["finished, %", *(f"{canary.title}, {rate:g}/s" for canary, rate in places)]
    rows = [
        [NAMES[name], *(finished(results.count(rate, canary.name, name)) for canary, rate in places)]
        for name in SYSTEMS
    ]
    return _table(head, rows)


def _robust(results: Results) -> str:
    found = {(one.pattern, one.design_effect, one.canary): one.count for one in results.robust}
    rows = []
    for pattern, worth in dict.fromkeys((one.pattern, one.design_effect) for one in results.robust):
        healthy, limit, bad = (found[pattern, worth, c.name] for c in (HEALTHY, AT_LIMIT, AT_RULE_OUT))
        rows.append(
            [
                PATTERNS[pattern],
                f"{worth:g}",
                finished(healthy),
                _quantiles(healthy.finished_within),
                share(len(healthy.stops), healthy.runs),
                share(len(limit.stops), limit.runs),
                share(bad.past_first, bad.runs),
            ]
        )
    head = [
        "traffic",
        "`design_effect`",
        "healthy: finished, %",
        "in half (nine in ten)",
        "healthy: stopped, %",
        "errors at the limit: stopped, %",
        "errors at the value to rule out: got past 5 %, %",
    ]
    return _table(head, rows)
