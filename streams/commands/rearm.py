"""``tidegate rearm``: a flag from its first stage again, after an abort, a rollback or a kill."""

from pathlib import Path

import click

from tidegate.streams.commands.kill import give_order, order_options


@click.command()
@order_options
def command(
    flag: str, reason: str, actor: str | None, key: Path | None, wait: int, unseen: bool, broker: str | None
) -> None:
    """Give FLAG its first stage's weights again in every region.

    Exits with 1 if no worker has carried it out in time; the order stands nevertheless.
    """
    give_order("rearm", flag, reason, actor, key, wait, broker, unseen=unseen)
