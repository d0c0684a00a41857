"""``tidegate rearm``: a flag from its first stage again, after an abort, a rollback or a kill."""

from pathlib import Path

import click

from tidegate.streams.commands.kill import give_order
from tidegate.streams.commands.options import wait_option


@click.command()
@click.argument("flag")
@click.option("--reason", required=True, help="why; stands in the decisions")
@click.option("--actor", help="who; your user name if left out")
@click.option("--key", type=click.Path(path_type=Path), help="private key (PEM) to sign with")
@wait_option
@click.option("--broker", help="Kafka bootstrap servers")
def command(flag: str, reason: str, actor: str | None, key: Path | None, wait: int, broker: str | None) -> None:
    """Give FLAG its first stage's weights again in every region.

    Exits with 1 if no worker has carried it out in time; the order stands nevertheless.
    """
    give_order("rearm", flag, reason, actor, key, wait, broker)
