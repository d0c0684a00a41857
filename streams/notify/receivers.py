"""Receivers with their filters, from a YAML file; secrets only from files and the environment."""

import os
from base64 import b64decode
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from standardwebhooks.webhooks import Webhook

from tidegate.schemas.decision import Decision, Verdict
from tidegate.schemas.document import Document, dotted
from tidegate.schemas.errors import InputError
from tidegate.streams.settings import Milliseconds

TOLD_VERDICTS: tuple[Verdict, ...] = tuple(one for one in get_args(Verdict) if one not in ("hold", "pass"))
"""The verdicts that a receiver is told unless it asks for others: those that change something."""


class Receiver(BaseModel):
    """One receiver. ``flags``, ``regions``: only these; none: all."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    format: Literal["cloudevents", "slack"] = "cloudevents"
    url: str | None = None
    url_file: str | None = None
    url_env: str | None = None
    secret_file: str | None = None
    secret_env: str | None = None
    verdicts: tuple[Verdict, ...] = Field(default=TOLD_VERDICTS, min_length=1)
    flags: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    timeout: Milliseconds = Field(default=10_000, ge=100, le=300_000)

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return {name: tuple(one) if isinstance(one, list) else one for name, one in given.items()}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if sum(one is not None for one in (self.url, self.url_file, self.url_env)) != 1:
            raise ValueError("write one of url, url_file and url_env")
        secrets = sum(one is not None for one in (self.secret_file, self.secret_env))
        if self.format == "cloudevents" and secrets != 1:
            raise ValueError("write one of secret_file and secret_env: what is sent is signed with it")
        if self.format == "slack" and secrets:
            raise ValueError("Slack takes no signature: leave the secret out; its URL is the secret")
        return self

    def wants(self, decision: Decision) -> bool:
        """Tell whether the receiver wants a decision."""
        return (
            decision.verdict in self.verdicts
            and (not self.flags or decision.flag in self.flags)
            and (not self.regions or decision.region in self.regions)
        )

    def address(self, environment: Mapping[str, str] = os.environ) -> str:
        """Return its URL. Raises InputError, which shows no secret."""
        said = self.url or _secret(self.name, "url", self.url_file, self.url_env, environment)
        try:
            parts = urlsplit(said)
            host, _ = parts.hostname, parts.port
        except ValueError:
            parts, host = urlsplit(""), None
        if host is None or parts.scheme not in ("https", "http"):
            raise InputError(f"receiver {self.name}: its URL is not valid; write https://HOST/PATH")
        if parts.scheme == "http" and not _near(host):
            raise InputError(
                f"receiver {self.name}: http:// to {host} can be read and changed on the way; write https://, or "
                "http:// to a name without dots or a private address"
            )
        return said

    def signers(self, environment: Mapping[str, str] = os.environ) -> list[Webhook]:
        """Return a signer for each secret, a line each, so that one can be replaced. Raises InputError."""
        if self.format == "slack":
            return []
        said = _secret(self.name, "secret", self.secret_file, self.secret_env, environment)
        try:
            return [Webhook(_key(line.strip())) for line in said.splitlines()]
        except ValueError:
            raise InputError(
                f"receiver {self.name}: its secret is none; write whsec_ and base64, as the receiver gives it, or as "
                "`echo whsec_$(head -c 32 /dev/urandom | base64)` makes one"
            ) from None


def _key(secret: str) -> bytes:
    """Return the bytes of a secret. Raises ValueError, also where there are fewer than the standard asks for."""
    key = b64decode(secret.removeprefix("whsec_"), validate=True)
    if not 24 <= len(key) <= 64:
        raise ValueError
    return key


def _near(host: str) -> bool:
    """Tell whether a message to a host stays on the machine, or in a cluster's own network."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".svc", ".svc.cluster.local"))


def _secret(receiver: str, what: str, file: str | None, name: str | None, environment: Mapping[str, str]) -> str:
    if file is not None:
        try:
            found = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise InputError(f"receiver {receiver}: {what}_file: {file}: {reason}") from None
    else:
        found = environment.get(name or "", "").strip()
    if not found:
        raise InputError(f"receiver {receiver}: {what}_{'file' if file else 'env'}: {file or name} is empty or not set")
    return found


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    receivers: list[Receiver] = Field(min_length=1)


def load_receivers(path: Path) -> list[Receiver]:
    """Return the receivers of a file. Raises InputError, one line with the YAML path and the way out."""
    try:
        document = Document(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    for fault in document.faults:
        raise InputError(f"{path}: {dotted(fault.at)}: {fault.problem}; {fault.fix}")
    try:
        found = _File.model_validate(document.value or {}).receivers
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            said = f"unknown key; use {', '.join(Receiver.model_fields) if len(first['loc']) > 1 else 'receivers'}"
        raise InputError(f"{path}: {dotted(first['loc']) or 'receivers'}: {said}") from None
    names = [one.name for one in found]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError(f"{path}: receivers[{number}].name: {name} is there already; give each a name of its own")
    return found
