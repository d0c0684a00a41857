"""``tidegate kill``: a flag's canary to 0 in every region, at once."""

import asyncio
import getpass
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from difflib import get_close_matches
from pathlib import Path

import click

from tidegate.schemas.decision import decision_from_bytes
from tidegate.schemas.errors import EventError, InputError, Refusal, SettingsError, TidegateError, TopicError
from tidegate.schemas.operation import Operation, OperationKind, check_time, parse_operation, read_operation
from tidegate.schemas.signed import read_private, sign
from tidegate.streams.commands.options import wait_option
from tidegate.streams.commands.publish import send
from tidegate.streams.kafka.manifests import load_trusted, read_file, read_files, read_topic
from tidegate.streams.kafka.tail import Tail, tail
from tidegate.streams.report.text import plain
from tidegate.streams.settings import Settings, command_settings

CHECK_SECONDS = 5.0
"""After this long an order is written although its flag's name could not be checked."""
SETTLED_SECONDS = 1.0
"""After this long without another region the order is taken to be carried out in all."""


def order_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument and the options that every order takes."""
    for part in (
        click.option("--broker", help="Kafka bootstrap servers"),
        click.option("--unseen", is_flag=True, help="order it although no manifest and no decision names the flag"),
        wait_option,
        click.option("--key", type=click.Path(path_type=Path), help="private key (PEM) to sign with"),
        click.option("--actor", help="who; your user name if left out"),
        click.option("--reason", required=True, help="why; stands in the decisions"),
        click.argument("flag"),
    ):
        command = part(command)
    return command


@click.command()
@order_options
def command(
    flag: str, reason: str, actor: str | None, key: Path | None, wait: int, unseen: bool, broker: str | None
) -> None:
    """Take FLAG's canary to 0 in every region, whatever the telemetry says.

    Nothing is promoted after that until a new revision of the manifest or `tidegate rearm`. Exits with 1 if no worker
    has carried it out in time; the order stands nevertheless.
    """
    give_order("kill", flag, reason, actor, key, wait, broker, unseen=unseen)


def give_order(
    kind: OperationKind,
    flag: str,
    reason: str,
    actor: str | None,
    key: Path | None,
    wait: int,
    broker: str | None,
    *,
    unseen: bool = False,
) -> None:
    """Write an operation, signed if there is a key, and show where it was carried out.

    Raises InputError, before anything is written, for a flag that no manifest and no decision names, with the nearest
    that one does; and for one that has no stages, where the order is for those that have. ``unseen``: write it all
    the same.
    """
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
    unchecked = "" if unseen else asyncio.run(_check(settings, operation))
    done = asyncio.run(_order(settings, operation, document, wait / 1000))
    if unchecked:
        click.echo(plain(unchecked), err=True)
    raise SystemExit(0 if done else 1)


async def _check(settings: Settings, operation: Operation) -> str:
    """Refuse an order for a flag that nobody knows, or that it is not for; what to say where that cannot be told.

    What cannot be read, or not in time, refuses nothing: a kill must not wait for it.
    """
    flag = operation.flag
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            kinds = await _in_manifest(settings)
            known = set(kinds)
            if flag not in known:
                known |= await _decided(settings)
    except TimeoutError:
        return f"that there is a flag {plain(flag)} was not checked: the broker took more than {CHECK_SECONDS:g} s"
    except TidegateError as error:
        return f"that there is a flag {plain(flag)} was not checked: {error}"
    if flag not in known and known:
        near = get_close_matches(flag, sorted(known), 1)
        hint = f"did you mean {plain(near[0])}?" if near else f"there are {', '.join(map(plain, sorted(known)))}."
        raise InputError(
            f"no manifest and no decision names a flag {plain(flag)}; {hint} Nothing was written; --unseen writes "
            "it all the same"
        )
    if operation.kind not in ("kill", "rearm") and kinds.get(flag, "progressive_rollout") != "progressive_rollout":
        words = kinds[flag].replace("_", " ")
        raise InputError(f"{plain(flag)} is a {words}, which has no stages to {operation.kind}; nothing was written")
    return ""


async def _decided(settings: Settings) -> set[str]:
    """Return the flags that decisions were made for."""
    async with tail(settings, settings.decisions_topic) as decisions:
        keys = [record.key for record in await decisions.history() if record.key]
    return {key.decode(errors="replace").split("|", 1)[0] for key in keys}


async def _in_manifest(settings: Settings) -> dict[str, str]:
    """Return the kinds of the flags in the manifest that it is pointed at, a file or the last of the topic."""
    if settings.manifest is not None:
        trusted = None if settings.trusted_keys is None else load_trusted(settings.trusted_keys)
        known = read_files([settings.manifest], settings, trusted)
    elif settings.trusted_keys is None:
        return {}
    else:
        known = await read_topic(settings, load_trusted(settings.trusted_keys))
    return {flag.name: flag.kind for revision in known.revisions for flag in revision.flags.values()}


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
        f"{settings.deployment} running, does it trust the key, "
        f"has {plain(operation.flag)} a unit that a {operation.kind} changes?",
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
