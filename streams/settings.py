"""All settings, from the environment (prefix ``TIDEGATE_``), in one frozen object."""

import logging
import os
import re
import ssl
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from aiokafka.helpers import create_ssl_context
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tidegate.schemas.clockwork import Clockwork
from tidegate.schemas.duration import parse_duration
from tidegate.schemas.errors import SettingsError

log = logging.getLogger("tidegate.settings")

Milliseconds = Annotated[int, BeforeValidator(lambda v: v if isinstance(v, int) else parse_duration(v))]
"""Milliseconds, written ``10s``, ``15m``, ``500ms``."""


def _off(value: Any) -> Any:
    return None if value in ("off", "", None) else value


class Settings(BaseSettings):
    """Settings of a worker, a publisher and the commands; printed ones show no secret."""

    model_config = SettingsConfigDict(env_prefix="TIDEGATE_", frozen=True, extra="forbid", env_ignore_empty=True)

    broker: str = Field("127.0.0.1:9092", description="Kafka bootstrap servers, comma-separated")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how to speak to Kafka"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="SASL mechanism, for SASL protocols"
    )
    sasl_username: str | None = Field(None, description="SASL user")
    sasl_password: SecretStr | None = Field(None, description="SASL password")
    ssl_cafile: Path | None = Field(None, description="CA certificates (PEM); the system's if unset")
    ssl_certfile: Path | None = Field(None, description="client certificate (PEM)")
    ssl_keyfile: Path | None = Field(None, description="client key (PEM)")
    ssl_key_password: SecretStr | None = Field(None, description="password of the client key")
    manifest: Path | None = Field(
        None, description="the flags and their gates, in a file; unset: the revisions in the manifests topic"
    )
    trusted_keys: Path | None = Field(
        None, description="file of the public keys, a line each, that may sign manifests and operations"
    )
    signing_key: Path | None = Field(
        None, description="private key (PEM, see `tidegate keygen`) with which decisions and commands are signed"
    )
    unsigned_manifest: bool = Field(
        False, description="take a manifest file that is not signed; without trusted keys, unsigned operations too"
    )
    manifest_lead: Milliseconds = Field(
        120_000, ge=100_000, description="a revision takes effect at the earliest this long after it was published"
    )
    operation_max_age: Milliseconds = Field(
        86_400_000, ge=60_000, description="a kill or rearm whose record was written later than this is refused"
    )
    topic_prefix: str = Field("tidegate", description="first part of the public topics' names")
    application_id: str = Field("tidegate", description="consumer group; first part of the internal topics' names")
    instance_id: str | None = Field(None, description="static group membership: a name of its own for each worker")
    partitions: int = Field(4, ge=1, description="partitions of the telemetry topic, when it is created")
    gate_partitions: int = Field(4, ge=1, description="partitions of the partials topic, when it is created")
    replication_factor: int = Field(1, ge=1, description="replicas of each topic, when it is created")
    retention: Milliseconds = Field(parse_duration("30d"), description="how long telemetry and decisions are kept")
    pane: Milliseconds = Field(10_000, ge=100, description="length of a pane; part of every decision")
    lateness: Milliseconds = Field(
        10_000, ge=0, description="how long a pane waits for stragglers; part of every decision"
    )
    checkpoint_every: Milliseconds = Field(1_000, ge=50, description="how often a worker saves its state")
    retain_every: Milliseconds = Field(
        3_600_000,
        ge=1_000,
        description="event time from one checkpoint that is retained for `replay --from` to the next",
    )
    accept_loss: bool = Field(
        False,
        description="go on without records that a topic deleted before they were read; windows they touch are held",
    )
    tick_idle_after: Annotated[Milliseconds | None, BeforeValidator(_off)] = Field(
        10_000, description="a partition silent for this long gets a tick from its worker; off: never"
    )
    session_timeout: Milliseconds = Field(
        10_000, ge=1_000, description="a dead worker's partitions move after this long"
    )
    heartbeat: Milliseconds = Field(2_000, ge=100, description="consumer heartbeat")
    broker_patience: Milliseconds = Field(
        30_000, description="a worker that no broker has answered for this long is not ready; /readyz says so at once"
    )
    fetch_wait: Milliseconds = Field(500, ge=1, description="longest wait of an empty fetch")
    fetch_bytes: int = Field(1 << 20, ge=1024, description="most bytes of a partition in one fetch")
    native: Literal["off", "require"] | None = Field(
        None, description="the native decoder: off never uses it, require fails without it; unset: used if installed"
    )
    http_host: str = Field("127.0.0.1", description="address of /livez, /readyz and /metrics")
    http_port: int = Field(9464, ge=0, le=65535, description="port of the same; 0 takes a free one")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least level that is logged")
    log_format: Literal["json", "console"] = Field("json", description="log lines for machines or for people")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError("TIDEGATE_SECURITY_PROTOCOL asks for SASL: set TIDEGATE_SASL_USERNAME and _SASL_PASSWORD")
        if self.heartbeat * 3 > self.session_timeout:
            raise ValueError("TIDEGATE_HEARTBEAT must be at most a third of TIDEGATE_SESSION_TIMEOUT")
        return self

    @property
    def deployment(self) -> str:
        """The name that a signed document carries, so that it counts in no other deployment."""
        return f"{self.topic_prefix}/{self.application_id}"

    @property
    def telemetry_topic(self) -> str:
        """Events in."""
        return f"{self.topic_prefix}.telemetry"

    @property
    def late_topic(self) -> str:
        """Events whose pane was closed."""
        return f"{self.topic_prefix}.late"

    @property
    def dead_letter_topic(self) -> str:
        """Records that are no events."""
        return f"{self.topic_prefix}.dead-letter"

    @property
    def decisions_topic(self) -> str:
        """Decision records out."""
        return f"{self.topic_prefix}.decisions"

    @property
    def corrections_topic(self) -> str:
        """Corrections of decisions out."""
        return f"{self.topic_prefix}.corrections"

    @property
    def control_topic(self) -> str:
        """Commands out."""
        return f"{self.topic_prefix}.control"

    @property
    def manifests_topic(self) -> str:
        """Signed manifest revisions in."""
        return f"{self.topic_prefix}.manifests"

    @property
    def operations_topic(self) -> str:
        """Operators' kills and rearms in."""
        return f"{self.topic_prefix}.operations"

    @property
    def partials_topic(self) -> str:
        """Closed panes, from the window agent to the gate agent."""
        return f"{self.application_id}.partials"

    @property
    def window_checkpoints_topic(self) -> str:
        """States of the source partitions."""
        return f"{self.application_id}.window-checkpoints"

    @property
    def gate_checkpoints_topic(self) -> str:
        """States of the gate partitions."""
        return f"{self.application_id}.gate-checkpoints"

    @property
    def retained_topic(self) -> str:
        """Checkpoints that stay for replays from mid-history."""
        return f"{self.application_id}.retained"

    @property
    def clockwork(self) -> Clockwork:
        """Pane, lateness and source topic, as the gates take them."""
        return Clockwork(self.pane, self.lateness, self.telemetry_topic)

    @cached_property
    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context, None without TLS. Raises SettingsError if a file cannot be read."""
        if not self.security_protocol.endswith("SSL"):
            return None
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
            path: Path | None = getattr(self, name)
            try:
                if path is not None:
                    path.open("rb").close()
            except OSError as error:
                raise SettingsError(f"TIDEGATE_{name.upper()}: {path}: {error.strerror}") from None
        try:
            context: ssl.SSLContext = create_ssl_context(
                cafile=self.ssl_cafile and str(self.ssl_cafile),
                certfile=self.ssl_certfile and str(self.ssl_certfile),
                keyfile=self.ssl_keyfile and str(self.ssl_keyfile),
                # Without one OpenSSL would ask for it on the terminal.
                password=self.ssl_key_password.get_secret_value() if self.ssl_key_password else "",
            )
            return context
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"TIDEGATE_SSL_CAFILE, _SSL_CERTFILE, _SSL_KEYFILE or _KEY_PASSWORD cannot be used: {error}"
            ) from None

    @property
    def kafka(self) -> dict[str, Any]:
        """Connection arguments that every aiokafka client takes."""
        arguments: dict[str, Any] = {
            "bootstrap_servers": self.broker.split(","),
            "security_protocol": self.security_protocol,
            "ssl_context": self.ssl_context,
        }
        if self.security_protocol.startswith("SASL") and self.sasl_password:
            arguments |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password.get_secret_value(),
            }
        return arguments


# A broker for the tests, and what Kubernetes sets for a service named tidegate.
_NOT_OURS = re.compile(r"TIDEGATE_(TEST_\w+|(\w+_)?(SERVICE_HOST|SERVICE_PORT|PORT)(_\w+)?)")


_warned: set[str] = set()


def _foreign() -> Iterator[tuple[str, str]]:
    """Give each variable that has the prefix and is not a setting, with one line about it."""
    known = {f"TIDEGATE_{name.upper()}" for name in Settings.model_fields}
    for name in sorted(os.environ):
        upper = name.upper()
        if upper.startswith("TIDEGATE_") and upper not in known and not _NOT_OURS.fullmatch(upper):
            near = get_close_matches(upper, sorted(known), 1)
            yield name, f"{name}: no such setting" + (f"; did you mean {near[0]}?" if near else "")


def command_settings(**given: Any) -> Settings:
    """Return the settings of a worker or another command, as ``load_settings`` does for a service.

    Raises SettingsError also for a variable that is not a setting: misspelt, it would leave the default in force.
    """
    for _, fault in _foreign():
        raise SettingsError(fault)
    return load_settings(**given)


def load_settings(**given: Any) -> Settings:
    """Return the settings from the environment; ``given`` ones (None: not given) win.

    A variable that has the prefix and is not a setting may be the service's own: it is warned of once. Raises
    SettingsError, one line, naming the variable.
    """
    for name, fault in _foreign():
        if name not in _warned:
            _warned.add(name)
            log.warning("%s (ignored)", fault)
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = "".join(f"TIDEGATE_{part}".upper() + ": " for part in first["loc"][:1])
        raise SettingsError(f"{where}{first['msg'].removeprefix('Value error, ')}") from None
