"""How decisions look on a terminal, and as plain lines where there is none."""

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from schemas.decision import Command, Decision, GateResult

GATE_STYLE = {
    "pass": "green",
    "fail": "bold red",
    "unknown": "yellow",
    "waived": "cyan",
    "not_applicable": "dim",
    "off": "dim",
}
VERDICT_STYLE = {
    "promote": "bold green",
    "pass": "bold green",
    "hold": "yellow",
    "freeze": "bold yellow",
    "rollback": "bold red",
    "abort": "bold red",
    "kill": "bold red",
}
_AT_LEAST = ("coverage_min", "tool_success_min")
_SHARES = ("latency_p95_uplift_max", "error_rate_max", "tool_success_min", "cost_uplift_max")
_CHANGES = ("delta_s.median_max", "delta_s.p95_max", "latency_p95_uplift_max", "cost_uplift_max")
BAR_WIDTH = 40


def clock(ts: int) -> str:
    """The time of day of a moment of event time."""
    return f"{datetime.fromtimestamp(ts / 1000, UTC):%H:%M:%S}"


def percent(share: float) -> str:
    """A weight as people say it."""
    return f"{100 * share:.4g} %"


def observed(gate: GateResult) -> str:
    """What a gate saw, in its unit."""
    if gate.observed is None:
        return "?"
    if gate.gate == "lambda_convergent":
        return f"{round(gate.observed * gate.n_canary)}/{gate.n_canary}"
    sign = "+" if gate.gate in _CHANGES else ""
    return f"{100 * gate.observed:{sign}.2f} %" if gate.gate in _SHARES else f"{gate.observed:{sign}.4f}"


def limit(gate: GateResult) -> str:
    """What a gate holds that against."""
    if gate.threshold is None or gate.status == "off":
        return "off"
    if gate.gate == "lambda_convergent":
        return "all"
    sign = "≥" if gate.gate in _AT_LEAST else "≤"
    return f"{sign} {percent(gate.threshold) if gate.gate in _SHARES else gate.threshold}"


def gates_table(decision: Decision) -> Table:
    """Every gate with its value, its limit and the rows it rests on."""
    table = Table("gate", box=None, pad_edge=False, header_style="dim")
    for title in ("observed", "limit", "canary rows", "baseline rows"):
        table.add_column(title, justify="right")
    table.add_column("")
    for gate in decision.gates:
        style = GATE_STYLE[gate.status]
        table.add_row(
            gate.gate,
            Text(observed(gate), style=style),
            limit(gate),
            f"{gate.n_canary:,}",
            f"{gate.n_baseline:,}",
            Text(gate.status.replace("_", " "), style=style),
        )
    return table


def verdict(decision: Decision) -> Text:
    """The verdict in its colour, with the reasons."""
    said = Text(decision.verdict, style=VERDICT_STYLE.get(decision.verdict, ""))
    return said.append(f" ({', '.join(decision.reasons)})", style="dim")


def outcome(decision: Decision) -> Text:
    """One line: window, stage, verdict, reasons."""
    window = f"{clock(decision.window.start)}-{clock(decision.window.end)}"
    early = "" if decision.window.closed else f" cut at {clock(decision.decided_at)}"
    return Text(f"{window}{early}  at {percent(decision.stage.canary_weight):>5}  ").append(verdict(decision))


def problems(decision: Decision) -> list[str]:
    """One line for each evidence problem, with what was seen."""
    return [
        f"{found.problem}: " + ", ".join(f"{name} {value}" for name, value in found.detail.items())
        for found in decision.evidence_problems
    ]


def order(command: Command) -> Text:
    """One line: what a router has to do."""
    weight = percent(command.weights.canary)
    return Text(f"command {command.seq}: {command.action}, canary {weight} from {clock(command.effective_from)}")


def plain_gates(decision: Decision) -> str:
    """All gates in one line."""
    return "; ".join(f"{gate.gate} {observed(gate)} ({limit(gate)}) {gate.status}" for gate in decision.gates)


def stage_bar(stages: Sequence[float], weight: float) -> Text:
    """The stages, the one in effect marked, and the canary's share of the traffic as a bar."""
    bar = Text()
    for number, stage in enumerate(stages):
        bar.append(" → " if number else "", style="dim")
        bar.append(f"[{percent(stage)}]" if stage == weight else percent(stage), "bold" if stage == weight else "dim")
    filled = round(weight * BAR_WIDTH)
    bar.append("   ").append("█" * filled, "green").append("░" * (BAR_WIDTH - filled), "blue")
    return bar.append(f"  canary {percent(weight)}")
