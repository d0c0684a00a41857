"""``tidegate pause``: a flag is promoted no further until it is resumed."""

from pathlib import Path

import click

from tidegate.streams.commands.kill import give_order, order_options


@click.command()
@order_options
def command(
    flag: str, reason: str, actor: str | None, key: Path | None, wait: int, unseen: bool, broker: str | None
) -> None:
    """Hold FLAG's promotes in every region, also in those that come later, until `tidegate resume`.

    Windows go on to be judged and evidence to add up; aborts, rollbacks and freezes act as ever. Nothing else ends a
    pause: no kill, no rearm and no new revision, but one that drops the flag.

    Exits with 1 if no worker has carried it out in time; the order stands nevertheless.
    """
    give_order("pause", flag, reason, actor, key, wait, broker, unseen=unseen)
