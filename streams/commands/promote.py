"""``tidegate promote``: a flag to its next stage by hand."""

from pathlib import Path

import click

from tidegate.streams.commands.kill import give_order, order_options


@click.command()
@order_options
def command(
    flag: str, reason: str, actor: str | None, key: Path | None, wait: int, unseen: bool, broker: str | None
) -> None:
    """Give FLAG's canary the next stage's weight in every region, whatever the evidence says so far.

    The window that runs ends, and the next stage's first one begins after lateness and settling; abort rules act in
    between as ever. A unit that is stopped, that settles, that is at its last stage or that has had no telemetry is
    left as it is. A pause goes on after it, and a change freeze does not hold it.

    Exits with 1 if no worker has carried it out in time; the order stands nevertheless.
    """
    give_order("promote", flag, reason, actor, key, wait, broker, unseen=unseen)
