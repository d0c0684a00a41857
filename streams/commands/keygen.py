"""``tidegate keygen``: a key pair to sign manifests and operations with."""

import errno
import os
from pathlib import Path

import click

from tidegate.schemas.errors import InputError
from tidegate.schemas.signed import PrivateKey, private_pem, public_line


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--comment", default="", help="whose key it is; stands in the public line")
def command(out: Path, comment: str) -> None:
    """Write a new Ed25519 private key to OUT and its public line to OUT.pub.

    OUT is for its owner's eyes only and overwrites nothing. The public line goes into the file of trusted keys that
    TIDEGATE_TRUSTED_KEYS names.
    """
    key = PrivateKey.generate()
    line = public_line(key.public_key(), " ".join(comment.split()))
    public = out.with_name(out.name + ".pub")
    try:
        # Before the key is there: one without its public line could not be made again.
        if public.exists() and not out.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(public))
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private_pem(key))
        with public.open("x", encoding="utf-8") as lines:
            lines.write(line + "\n")
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from None
    click.echo(line)
