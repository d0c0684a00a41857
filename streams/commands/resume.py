"""``tidegate resume``: a paused flag may be promoted again."""

from pathlib import Path

import click

from tidegate.streams.commands.kill import give_order, order_options


@click.command()
@order_options
def command(
    flag: str, reason: str, actor: str | None, key: Path | None, wait: int, unseen: bool, broker: str | None
) -> None:
    """Let FLAG be promoted again in every region, after `tidegate pause`: the next green window does so.

    Exits with 1 if no worker has carried it out in time; the order stands nevertheless.
    """
    give_order("resume", flag, reason, actor, key, wait, broker, unseen=unseen)
