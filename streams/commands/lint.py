"""``tidegate lint``: check a manifest and show what it resolves to."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from gates.rules import SOFT_GATES
from schemas.errors import SettingsError
from schemas.manifest import Flag, parse_duration, read_manifest


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--pane", default="10s", show_default=True, help="length of a pane that the workers use")
def command(manifest: Path, pane: str) -> None:
    """Check MANIFEST and show every flag with its defaults filled in.

    Exits with 2 and one line that names the place and the way out if the manifest is wrong.
    """
    try:
        pane_ms = parse_duration(pane)
    except ValueError as error:
        raise SettingsError(f"--pane: {error}") from None
    console = Console()
    flags = read_manifest(manifest, pane_ms=pane_ms).flags
    for flag in flags.values():
        _show(console, flag)
    console.print(f"[green]{manifest}: {len(flags)} flag{'s' if len(flags) > 1 else ''}, no errors[/green]")


def _show(console: Console, flag: Flag) -> None:
    stages = " → ".join(f"{weight:.3g}" for weight in flag.traffic.stages)
    window = flag.window
    console.print(f"[bold]{flag.name}[/bold]  {flag.kind}  {flag.manifest_hash}", highlight=False)
    console.print(
        f"canary {stages}; windows of {window.length_ms // 1000} s, {window.hold_windows} green before a promote, "
        f"at least {window.min_requests} requests an arm",
        highlight=False,
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
    console.print(table, highlight=False)
    for problem in _remarks(flag):
        console.print(f"[yellow]remark:[/yellow] {problem}", highlight=False)
    console.print()


def _remarks(flag: Flag) -> list[str]:
    remarks = []
    if flag.unpinned:
        remarks.append(f"versions do not pin {', '.join(flag.unpinned)}: a change there is seen only within an arm")
    if flag.relaxed:
        remarks.append(f"looser than the safe-launch targets: {', '.join(flag.relaxed)}")
    if flag.traffic.stages[0] >= 1 and flag.kind == "progressive_rollout":
        remarks.append("the first stage leaves no traffic for a baseline: it can never be judged")
    return remarks
