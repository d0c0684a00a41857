"""``tidegate bridge``: telemetry out of what others write to Kafka."""

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

import click

from tidegate.streams.bridge.follow_spans import follow_spans
from tidegate.streams.bridge.mapping import SpanMapping, load_mapping
from tidegate.streams.bridge.otel import SpanBridge
from tidegate.streams.client.publisher import TelemetryPublisher
from tidegate.streams.report.text import many, plain
from tidegate.streams.settings import Settings, command_settings


@click.group()
def command() -> None:
    """Make telemetry of what others write to Kafka."""


@command.command()
@click.option("--topic", default="otlp_spans", show_default=True, help="what the collector's Kafka exporter writes to")
@click.option("--mapping", type=click.Path(path_type=Path), help="which attribute becomes what (YAML)")
@click.option("--from-start", is_flag=True, help="the first time: from the topic's first record, not from now on")
@click.option("--to-end", is_flag=True, help="stop at the end that the topic has now")
@click.option("--broker", help="Kafka bootstrap servers")
def otel(topic: str, mapping: Path | None, from_start: bool, to_end: bool, broker: str | None) -> None:
    """Publish spans of OpenTelemetry, OTLP in protobuf or JSON, as telemetry.

    A span in which a feature flag was evaluated is a request; evaluation scores in it are labels. Reads until Ctrl-C,
    as a consumer group: any number of bridges share the topic. See docs/opentelemetry.md.
    """
    settings = command_settings(broker=broker)
    asyncio.run(_run(settings, load_mapping(mapping), topic, from_start=from_start, to_end=to_end))


async def _run(settings: Settings, mapping: SpanMapping, topic: str, *, from_start: bool, to_end: bool) -> None:
    bridge = SpanBridge(mapping)
    async with TelemetryPublisher(settings) as telemetry:

        def said() -> None:
            counts = f"{many(bridge.mapped['request'], 'request')}, {many(bridge.mapped['label'], 'label')}"
            click.echo(f"{counts}, {telemetry.sent:,} sent, {bridge.unmapped.total():,} not mapped")

        following = asyncio.create_task(
            follow_spans(settings, topic, bridge, telemetry, from_start=from_start, to_end=to_end, said=said)
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, following.cancel)
        with suppress(asyncio.CancelledError):
            await following
        await telemetry.flush(5)
        said()
        for reason, count in bridge.unmapped.most_common(20):
            click.echo(f"  {count:,}: {plain(reason)}")
