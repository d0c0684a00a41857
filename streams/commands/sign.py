"""``tidegate sign``: a manifest as a signed revision."""

from pathlib import Path

import click

from tidegate.schemas.errors import InputError
from tidegate.schemas.load import load_manifest
from tidegate.schemas.signed import read_private
from tidegate.schemas.times import FromNow, iso
from tidegate.streams.commands.options import Time
from tidegate.streams.kafka.manifests import NUMBER_MAX, read_file, sign_revision
from tidegate.streams.report.text import plain
from tidegate.streams.settings import command_settings


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), required=True, help="private key (PEM)")
@click.option("--revision", type=click.IntRange(1, NUMBER_MAX), required=True, help="above that of the one before")
@click.option("--effective-from", type=Time(), required=True, help="2026-01-31T12:00:00Z, now or now+10m")
@click.option("--retire", multiple=True, help="a flag that MANIFEST does not name any more: its canary goes to 0")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="the signed document")
def command(manifest: Path, key: Path, revision: int, effective_from: int, retire: tuple[str, ...], out: Path) -> None:
    """Check MANIFEST and write it to OUT as a signed revision, for `tidegate publish`.

    It counts only in the deployment of TIDEGATE_TOPIC_PREFIX and TIDEGATE_APPLICATION_ID. A revision takes effect at
    the start of a pane (TIDEGATE_PANE); a time from now is rounded up to one.
    """
    settings = command_settings()
    pane_ms = settings.pane
    text = read_file(manifest)
    flags = load_manifest(text, pane_ms=pane_ms, name=str(manifest)).flags
    start = _start(effective_from, pane_ms)
    named = next((flag for flag in retire if flag in flags), None)
    if named is not None:
        raise InputError(f"--retire: {manifest} names {plain(named)}; take it out there first")
    private = read_private(read_file(key), str(key))
    document = sign_revision(text.decode("utf-8-sig"), revision, start, settings.deployment, private, retire)
    try:
        out.write_bytes(document)
    except OSError as error:
        raise InputError(f"{out}: {error.strerror}") from None
    where = f"{out}: revision {revision} for {settings.deployment}"
    retires = f"; retires {', '.join(map(plain, retire))}" if retire else ""
    click.echo(f"{where}, in force from {iso(start)} on; flags {', '.join(flags)}{retires}")


def _start(moment: int, pane_ms: int) -> int:
    following = -(-moment // pane_ms) * pane_ms
    if moment != following and not isinstance(moment, FromNow):
        raise InputError(
            f"--effective-from: {iso(moment)} is not the start of a pane; the next one starts at {iso(following)}"
        )
    return following
