"""``tidegate kill``: a flag's canary to 0 in every region, at once."""

import asyncio
import getpass
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Literal

import click

from tidegate.schemas.decision import decision_from_bytes
from tidegate.schemas.errors import EventError, InputError, Refusal, SettingsError, TopicError
from tidegate.schemas.operation import Operation, check_time, parse_operation, read_operation
from tidegate.schemas.signed import read_private, sign
from tidegate.streams.commands.options import wait_option
from tidegate.streams.commands.publish import send
from tidegate.streams.kafka.manifests import load_trusted, read_file
from tidegate.streams.kafka.tail import Tail, tail
from tidegate.streams.report.text import plain
from tidegate.streams.settings import Settings, command_settings

SETTLED_SECONDS = 1.0
"""After this long without another region the order is taken to be carried out in all."""


@click.command()
@click.argument("flag")
@click.option("--reason", required=True, help="why; stands in the decisions")
@click.option("--actor", help="who; your user name if left out")
@click.option("--key", type=click.Path(path_type=Path), help="private key (PEM) to sign with")
@wait_option
@click.option("--broker", help="Kafka bootstrap servers")
def command(flag: str, reason: str, actor: str | None, key: Path | None, wait: int, broker: str | None) -> None:
    """Take FLAG's canary to 0 in every region, whatever the telemetry says.

    Nothing is promoted after that until a new revision of the manifest or `tidegate rearm`. Exits with 1 if no worker
    has carried it out in time; the order stands nevertheless.
    """
    give_order("kill", flag, reason, actor, key, wait, broker)


def give_order(
    kind: Literal["kill", "rearm"],
    flag: str,
    reason: str,
    actor: str | None,
    key: Path | None,
    wait: int,
    broker: str | None,
) -> None:
    """Write an operation, signed if there is a key, and show where it was carried out."""
    settings = command_settings(broker=broker)
    try:
        ordered = Operation(
            actor=actor or getpass.getuser(), flag=flag, kind=kind, reason=reason, ts=int(time.time() * 1000)
        )
        # Through the parser, which knows what a worker takes.
        operation = parse_operation(ordered.to_bytes())
    except (KeyError, OSError):
        raise InputError("--actor: this user has no name; say who orders it") from None
    except ValueError as error:
        raise InputError(f"not Unicode: {error}") from None
    document = operation.to_bytes()
    if key is not None:
        document = sign("operation", settings.deployment, document, read_private(read_file(key), str(key)))
    elif not settings.unsigned_manifest or settings.trusted_keys:
        raise SettingsError(
            "no key: give --key FILE; workers with TIDEGATE_UNSIGNED_MANIFEST=true and no trusted keys take unsigned "
            "operations, and so does this command where it is set"
        )
    if settings.trusted_keys:
        read_operation(document, settings.deployment, load_trusted(settings.trusted_keys))
    raise SystemExit(0 if asyncio.run(_order(settings, operation, document, wait / 1000)) else 1)


async def _order(settings: Settings, operation: Operation, document: bytes, seconds: float) -> bool:
    async with AsyncExitStack() as stack:
        decisions = None
        try:
            if seconds:
                decisions = await stack.enter_async_context(tail(settings, settings.decisions_topic))
                await decisions.last()
        except TopicError as error:
            # The order matters more than what is seen of it.
            click.echo(f"what follows cannot be shown: {error}", err=True)
        timestamp = await send(settings, settings.operations_topic, operation.flag.encode(), document)
        try:
            check_time(operation, timestamp, settings.operation_max_age)
        except Refusal as refusal:
            click.echo(f"the {operation.kind} was written, but is refused: {refusal}", err=True)
            return False
        click.echo(plain(f"{operation.kind} of {operation.flag} ordered by {operation.actor}: {operation.reason}"))
        if not seconds or (decisions is not None and await _shown(decisions, operation, seconds)):
            return True
    click.echo(
        f"no worker was seen to carry it out in {seconds:g} s, but the order stands: is a worker of "
        f"{settings.deployment} running, did its manifest ever name {plain(operation.flag)}, does it trust the key?",
        err=True,
    )
    return False


async def _shown(decisions: Tail, operation: Operation, seconds: float) -> bool:
    """Print the decisions that carry the operation out; False if none came."""
    units: set[str] = set()
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        records = await decisions.more(SETTLED_SECONDS)
        if units and not records:
            break
        for record in records:
            with suppress(EventError):
                decision = decision_from_bytes(record.value)
                if decision.operation == operation.by and decision.key not in units:
                    units.add(decision.key)
                    click.echo(plain(f"{decision.key}: {decision.verdict}"))
    return bool(units)
