"""``tidegate topics``: create or check the topics."""

import asyncio

import click
from rich.console import Console
from rich.table import Table

from tidegate.schemas.errors import NoBrokerError, TopicError
from tidegate.streams.kafka.topics import check_topics, create_topics, topics
from tidegate.streams.report.text import many
from tidegate.streams.settings import command_settings


@click.command()
@click.option("--create", is_flag=True, help="make the topics that are missing")
@click.option("--broker", help="Kafka bootstrap servers")
def command(create: bool, broker: str | None) -> None:
    """Show what the topics have to be like, and check those that are there.

    Partitions, replicas and retention come from TIDEGATE_PARTITIONS, TIDEGATE_GATE_PARTITIONS,
    TIDEGATE_REPLICATION_FACTOR and TIDEGATE_RETENTION. Exits with 1 if a topic is missing or would break results.
    """
    settings = command_settings(broker=broker)
    console = Console()
    if not console.is_terminal:
        console.width = 1_000
    table = Table("topic", "partitions", "cleanup", "config", "for", box=None, pad_edge=False)
    for topic in topics(settings):
        config = ", ".join(f"{key}={value}" for key, value in topic.config.items())
        table.add_row(topic.name, str(topic.partitions), topic.cleanup, config, topic.what)
    console.print(table, highlight=False)
    if create:
        made = asyncio.run(create_topics(settings))
        console.print(f"made: {', '.join(made)}" if made else "nothing to make: every topic is there")
    try:
        p, g = asyncio.run(check_topics(settings))
    except TopicError as error:
        if isinstance(error, NoBrokerError):
            raise
        click.echo(f"tidegate: {error}", err=True)
        raise SystemExit(1) from None
    console.print(
        f"[green]all topics are there: {many(p, 'telemetry partition')}, {many(g, 'gate partition')}[/green]",
        highlight=False,
    )
