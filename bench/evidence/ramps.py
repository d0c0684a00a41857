"""Tidegate's own state machine on modelled traffic, as the gate agent runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bench.evidence.traffic import MINUTE_MS, MINUTES_A_DAY, Canary, Requests, Traffic
from tidegate.gates.kinds import machine
from tidegate.gates.sums import COUNTERS, COVERAGE_BITS, Sums, cost_parts, square_parts
from tidegate.gates.unit import begin
from tidegate.gates.window import PaneUnit
from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.event import PINS
from tidegate.schemas.load import load_manifest
from tidegate.schemas.manifest import Flag

PATIENCE = 7 * MINUTES_A_DAY
"""Minutes after which a run is given up as still open."""
FEW, FEW_MINUTES = 10.0, 5
"""Below this request rate panes are so many minutes long, else one: there is little to look at."""
_PINS = "{" + ",".join(f'"{pin}":"1"' for pin in sorted(PINS)) + "}"


@dataclass(frozen=True)
class Outcome:
    """How a rollout ended. ``exposed``: requests that the canary served. ``passed``: stages it was promoted from.

    ``open``: not stopped and not at the end when it was given up; ``waits``: paused until a person looks.
    """

    ended: Literal["finished", "stopped", "open", "waits"]
    minutes: int
    exposed: int
    passed: int


System = Callable[[Traffic, Canary], Outcome]


def flag(evidence: str, policy: str = "", minutes: int = 1) -> Flag:
    """The page's limits under a kind of evidence, with panes of some minutes; λ is off, as nobody probes here."""
    text = f"flags: {{f: {{gates: {{lambda_convergent: false}}, policy: {{evidence: {evidence}{policy}}}}}}}"
    return load_manifest(text, pane_ms=minutes * MINUTE_MS).flags["f"]


def tidegate(evidence: str, policy: str = "", give_up: int = PATIENCE, panes: int | None = None) -> System:
    """A rollout, given to its state machine pane by pane. It is finished when it passes at 100 %.

    ``give_up``: minutes after which it is left open; ``panes``: their length, minutes, if not by the request rate.
    """

    def run(traffic: Traffic, canary: Canary) -> Outcome:
        minutes = panes or (FEW_MINUTES if traffic.rate < FEW else 1)
        rules, clockwork = flag(evidence, policy, minutes), Clockwork(minutes * MINUTE_MS, 10_000, "evidence")
        unit = begin(rules, "r", 0, clockwork)
        ramp = machine(rules, unit, clockwork)
        exposed = 0
        for end in range(minutes, give_up + 1, minutes):
            arms = traffic.span(end - minutes, end, ramp.canary_weight, canary)
            exposed += arms[1].n
            ramp.add(0, _seen(arms, end // minutes - 1))
            for decision, _ in ramp.close(end * MINUTE_MS):
                if decision.verdict in ("abort", "rollback"):
                    return Outcome("stopped", end, exposed, unit.stage)
                if decision.verdict == "pass":
                    return Outcome("finished", end, exposed, unit.stage)
        return Outcome("open", give_up, exposed, unit.stage)

    return run


def _seen(arms: tuple[Requests, Requests], pane: int) -> PaneUnit:
    """What a partition would have seen of a pane."""
    seen = PaneUnit()
    for name, requests in zip(("baseline", "canary"), arms, strict=True):
        if requests.n:
            seen.of(name).sources["traffic"] = sums_of(requests, pane)
    return seen


def sums_of(requests: Requests, pane: int) -> Sums:
    """Counters and digests of one arm's requests."""
    n, solved = requests.n, int(requests.solved.sum())
    row = {
        "requests": n,
        "errors": int(requests.error.sum()),
        "tool_calls": n,
        "tool_ok": n - int(requests.tool_failed.sum()),
        "tool_rows": n,
        "cost_rows": n,
        "cost_known": n,
        "solved": solved,
        "solved_rows": n,
        "coverage_rows": n,
        "coverage_sum": round(float(requests.coverage.sum()) * (1 << COVERAGE_BITS)),
    }
    for names, parts in (
        (("cost_high", "cost_low"), cost_parts(requests.cost)),
        (("solved_cost_high", "solved_cost_low"), cost_parts(requests.cost[requests.solved])),
        (("square_high", "square_mid", "square_low"), square_parts(requests.cost)),
    ):
        row |= {name: int(part.sum()) for name, part in zip(names, parts, strict=True)}
    sums = Sums()
    sums.count([row.get(counter, 0) for counter in COUNTERS])
    sums.delta_s.add(requests.delta_s)
    sums.latency.add(requests.latency)
    sums.see_pins(_PINS, n, (pane, 0, 0))
    return sums
