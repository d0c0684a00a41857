"""``tidegate serve``: the status page and the JSON behind it."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import click
from aiohttp import web

from tidegate.schemas.errors import SettingsError
from tidegate.schemas.signed import TrustedKeys
from tidegate.streams.kafka.manifests import load_trusted
from tidegate.streams.settings import Settings, command_settings
from tidegate.streams.status.feed import following
from tidegate.streams.status.routes import add_status
from tidegate.streams.status.state import StatusState
from tidegate.streams.worker import logs

SERVE_STOP_SECONDS = 5.0


@click.command()
@click.option("--broker", help="Kafka bootstrap servers")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen at")
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="0 takes a free one")
@click.option(
    "--trusted-keys", type=click.Path(path_type=Path), help="public keys of the workers; other records are passed over"
)
def command(broker: str | None, host: str, port: int, trusted_keys: Path | None) -> None:
    """Serve the status page: all units at a glance, and of each its ramp, gates, arms, problems and decisions.

    It only reads: the decisions and control topics, from their beginning. The JSON behind the page is public:
    /api/units, /api/units/FLAG/REGION and /api/decisions/ID; /api/events tells of changes as they come. Goes on through
    outages of the broker, and says since when it is away.

    There is no login: put it behind something that has one before others can reach it.
    """
    settings = command_settings(broker=broker, trusted_keys=trusted_keys)
    trusted = load_trusted(settings.trusted_keys) if settings.trusted_keys else None
    logs.configure(settings)
    asyncio.run(_serve(settings, host, port, trusted))


async def _serve(settings: Settings, host: str, port: int, trusted: TrustedKeys | None) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner = web.AppRunner(status_app(settings, trusted), access_log=None, shutdown_timeout=SERVE_STOP_SECONDS)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            reason = error.strerror or error
            raise SettingsError(
                f"cannot listen on {host}:{port}: {reason}; give another --port, or 0 for a free one"
            ) from None
        click.echo(f"the status page is at http://{host}:{runner.addresses[0][1]}/")
        await stopped.wait()
    finally:
        await runner.cleanup()


def status_app(settings: Settings, trusted: TrustedKeys | None) -> web.Application:
    """Return the application, which follows the topics while it runs."""
    app, state = web.Application(), StatusState()
    add_status(app, state)

    async def follow(_: web.Application) -> AsyncIterator[None]:
        async with following(settings, state, trusted):
            yield

    app.cleanup_ctx.append(follow)
    return app
