"""``tidegate notify``: decisions to webhooks."""

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import click
import structlog

from tidegate.streams.notify.courier import Courier, NotifyMetrics
from tidegate.streams.notify.receivers import Receiver, load_receivers
from tidegate.streams.settings import Settings, command_settings
from tidegate.streams.worker import logs
from tidegate.streams.worker.health import Check, serve

log = structlog.get_logger("tidegate")


@click.command()
@click.argument("receivers", type=click.Path(path_type=Path))
@click.option("--broker", help="Kafka bootstrap servers")
@click.option("--check", is_flag=True, help="read the file and its secrets, and end")
def command(receivers: Path, broker: str | None, check: bool) -> None:
    """Send decisions to the webhooks in RECEIVERS, a YAML file (docs/notifications.md).

    As CloudEvents signed by Standard Webhooks, or to Slack. Each decision at least once, a unit's in order; what a
    receiver does not take is tried again until it does, over restarts too. A new receiver is told what is decided from
    then on.
    """
    settings = command_settings(broker=broker)
    found = load_receivers(receivers)
    for receiver in found:
        receiver.address()
        receiver.signers()
    if check:
        click.echo(f"{receivers}: {', '.join(receiver.name for receiver in found)}")
        return
    logs.configure(settings)
    asyncio.run(_notify(settings, found))


async def _notify(settings: Settings, receivers: list[Receiver]) -> None:
    """Deliver until told to stop."""
    stop, metrics, loop = asyncio.Event(), NotifyMetrics(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(headers={"user-agent": "tidegate"}))
        couriers = {one.name: Courier(settings, one, session, metrics) for one in receivers}

        def ready() -> dict[str, Check]:
            return {name: Check.of(courier.joined.is_set()) for name, courier in couriers.items()}

        runner = await serve(settings.http_host, settings.http_port, metrics, ready)
        stack.push_async_callback(runner.cleanup)
        log.info("serving", address="http://{}:{}".format(*runner.addresses[0][:2]), receivers=sorted(couriers))
        running = [asyncio.create_task(courier.run()) for courier in couriers.values()]
        stopping = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([*running, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*running, stopping):
                task.cancel()
            await asyncio.gather(*running, stopping, return_exceptions=True)
    log.info("stopped")
