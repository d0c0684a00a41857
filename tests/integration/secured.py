"""A broker as in production: TLS and SASL for everybody, and ACLs, which are those of docs/security.md."""

import datetime
import ipaddress
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its types forget that it exports them
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from tests.integration.broker import LocalBroker
from tidegate.streams.settings import Settings, load_settings

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"
DAY = datetime.timedelta(days=1)
ROLES = ("administrator", "worker", "service", "router", "operator", "notifier", "auditor")
MECHANISMS = {"router": "PLAIN"}
"""How a user logs in, where it is not SCRAM-SHA-512."""


class Grant(NamedTuple):
    """One operation on one resource, as the list has it: ``PREFIX`` and ``APPLICATION`` stand in the name."""

    role: str
    resource: str
    name: str
    pattern: str
    operation: str


def read_grants(path: Path = SECURITY) -> list[Grant]:
    """The list between ```` ```acls ```` and ```` ``` ````. Raises ValueError if there is not exactly one."""
    (block,) = re.findall(r"^```acls\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)
    grants = []
    for line in block.splitlines():
        if line and not line.startswith("#"):
            role, resource, name, pattern, *operations = line.split()
            grants += [Grant(role, resource, name, pattern, operation) for operation in operations]
    return grants


def binding(grant: Grant, user: str, prefix: str, application: str) -> AclBinding:
    """The grant to a user, for the topics of one TIDEGATE_TOPIC_PREFIX and TIDEGATE_APPLICATION_ID."""
    operation = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", grant.operation).upper()
    return AclBinding(
        ResourceType[grant.resource.upper()],
        grant.name.replace("PREFIX", prefix).replace("APPLICATION", application),
        ResourcePatternType[grant.pattern.upper()],
        f"User:{user}",
        "*",
        AclOperation[operation],
        AclPermissionType.ALLOW,
    )


@dataclass(frozen=True)
class Authority:
    """A certificate authority that lives for one test run."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str) -> "Authority":
        """A new one, signed by itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject, now = _named(name), datetime.datetime.now(datetime.UTC)
        builder = _unsigned(subject, subject, key.public_key(), now - 2 * DAY, now + DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return cls(key, builder.sign(key, hashes.SHA256()))

    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self, name: str, *, host: bool = False, expired: bool = False, password: str | None = None
    ) -> tuple[bytes, bytes]:
        """Key and certificate as PEM; ``host``: for loopback too; ``password``: of the key."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
        end = now - DAY if expired else now + DAY
        builder = _unsigned(_named(name), self.certificate.subject, key.public_key(), now - 2 * DAY, end)
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        if host:
            names += [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        locked: KeySerializationEncryption = NoEncryption()
        if password is not None:
            locked = BestAvailableEncryption(password.encode())
        return (
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked),
            certificate.public_bytes(Encoding.PEM),
        )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _unsigned(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    start: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), start, end)


@dataclass(frozen=True)
class Secured:
    """A running broker with users; whoever comes through its open listener, on loopback, may do anything.

    ``folder``: has ``ca.pem``, ``stranger.pem`` (an authority that signed nothing), ``client.pem`` and ``client.key``.
    """

    broker: LocalBroker
    folder: Path
    key_password: str

    @property
    def administration(self) -> str:
        """Where everything is allowed."""
        return self.broker.bootstrap

    def environment(self, user: str, listener: str = "GOOD", **changes: str) -> dict[str, str]:
        """The settings of a user as TIDEGATE_* variables; ``changes``: further ones, without the prefix."""
        settings = {
            "broker": self.broker.addresses[listener],
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": MECHANISMS.get(user, "SCRAM-SHA-512"),
            "sasl_username": user,
            "sasl_password": password_of(user),
            "ssl_cafile": str(self.folder / "ca.pem"),
        }
        return {f"TIDEGATE_{name.upper()}": value for name, value in (settings | changes).items()}

    def settings(self, user: str, **changes: str) -> Settings:
        """The same as an object."""
        given = self.environment(user, **changes)
        return load_settings(**{name.removeprefix("TIDEGATE_").lower(): value for name, value in given.items()})

    def allow(self, users: Mapping[str, list[Grant]], prefix: str, application: str) -> None:
        """Give users what is listed for them."""
        # With one name for both, what is listed for PREFIX and for APPLICATION may be the same.
        wanted = {binding(grant, user, prefix, application) for user, grants in users.items() for grant in grants}
        admin = AdminClient({"bootstrap.servers": self.administration})
        for done in admin.create_acls(list(wanted)).values():
            done.result()


def password_of(user: str) -> str:
    """A password that is easy to find wherever it should not be."""
    return f"hush-{user}-password"


@contextmanager
def secured_broker(folder: Path, users: list[str]) -> Iterator[Secured]:
    """Run it; ``users``: by SCRAM-SHA-512, or as ``MECHANISMS`` says. Raises BrokerUnavailable."""
    authority, key_password = Authority.make("Tidegate tests"), "hush-client-key-password"
    (folder / "ca.pem").write_bytes(authority.pem())
    (folder / "stranger.pem").write_bytes(Authority.make("Stranger").pem())
    client_key, client = authority.issue("client", password=key_password)
    (folder / "client.key").write_bytes(client_key)
    (folder / "client.pem").write_bytes(client)
    servers = {
        "GOOD": authority.issue("kafka", host=True),
        "EXPIRED": authority.issue("kafka", host=True, expired=True),
        "ELSEWHERE": authority.issue("kafka.example"),
    }
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # The broker itself and its administration come through the open listener.
        "super.users": "User:ANONYMOUS",
    }
    plain = " ".join(
        f'user_{user}="{password_of(user)}"' for user in users if MECHANISMS.get(user, "").startswith("PLAIN")
    )
    for name, (key, certificate) in servers.items():
        (folder / f"{name}.pem").write_bytes(key + certificate)
        options = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(folder / f"{name}.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(folder / "ca.pem"),
            "ssl.client.auth": "requested",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            "plain.sasl.jaas.config": f"org.apache.kafka.common.security.plain.PlainLoginModule required {plain};",
            "scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        }
        properties |= {f"listener.name.{name.lower()}.{option}": value for option, value in options.items()}
    scram = [user for user in users if MECHANISMS.get(user, "SCRAM-SHA-512") == "SCRAM-SHA-512"]
    options_of_format = [
        argument
        for user in scram
        for argument in ("--add-scram", f"SCRAM-SHA-512=[name={user},password={password_of(user)}]")
    ]
    broker = LocalBroker(
        folder / "broker",
        properties=properties,
        listeners=dict.fromkeys(servers, "SASL_SSL"),
        format_options=options_of_format,
    )
    with broker:
        yield Secured(broker, folder, key_password)
