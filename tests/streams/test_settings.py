"""Settings out of the environment: every one of them, none by accident, and never a secret in sight."""

import logging
import os
import re
import ssl
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import ValidationError

from tests.commands.invoke import tidegate
from tidegate.schemas.errors import SettingsError
from tidegate.streams.settings import Settings, command_settings, load_settings

OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"
OPENS, HIDDEN = "hunter2", "hunter2 or so"
"""The password of the key below, and one that opens nothing."""

CHANGED: dict[str, tuple[str, Any]] = {
    "broker": ("a:9092,b:9093", "a:9092,b:9093"),
    "security_protocol": ("SSL", "SSL"),
    "sasl_mechanism": ("PLAIN", "PLAIN"),
    "sasl_username": ("u", "u"),
    "sasl_password": (HIDDEN, HIDDEN),
    "ssl_cafile": ("/ca.pem", Path("/ca.pem")),
    "ssl_certfile": ("/cert.pem", Path("/cert.pem")),
    "ssl_keyfile": ("/key.pem", Path("/key.pem")),
    "ssl_key_password": (HIDDEN, HIDDEN),
    "manifest": ("flags.yml", Path("flags.yml")),
    "trusted_keys": ("trusted.keys", Path("trusted.keys")),
    "signing_key": ("key.pem", Path("key.pem")),
    "unsigned_manifest": ("true", True),
    "manifest_lead": ("5m", 300_000),
    "operation_max_age": ("2h", 7_200_000),
    "topic_prefix": ("other", "other"),
    "application_id": ("other", "other"),
    "instance_id": ("worker-1", "worker-1"),
    "partitions": ("7", 7),
    "gate_partitions": ("7", 7),
    "replication_factor": ("3", 3),
    "retention": ("1d", 86_400_000),
    "pane": ("500ms", 500),
    "lateness": ("0s", 0),
    "checkpoint_every": ("2s", 2_000),
    "retain_every": ("1m", 60_000),
    "tick_idle_after": ("1m", 60_000),
    "accept_loss": ("true", True),
    "session_timeout": ("45s", 45_000),
    "broker_patience": ("45s", 45_000),
    "heartbeat": ("3s", 3_000),
    "fetch_wait": ("50ms", 50),
    "fetch_bytes": ("2048", 2048),
    "native": ("off", "off"),
    "http_host": ("::1", "::1"),
    "http_port": ("0", 0),
    "log_level": ("DEBUG", "DEBUG"),
    "log_format": ("console", "console"),
}
"""A text other than the default for settings by name, and what is read from it."""

CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBiTCCAS+gAwIBAgIUHRz/T8CnzHGu1Hg49WmK0FUQVoIwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGlkZWdhdGUgdGVzdHMwIBcNMjYxMTI0MTgxMzQwWhgPMjEy
NjEwMzExODEzNDBaMBkxFzAVBgNVBAMMDnRpZGVnYXRlIHRlc3RzMFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEtstSfZzgc6GMJYOkkwOCBXukhqkTk/qUzo+0UR+j
Me1aEFEI0Mb+HBTpcwayXe7e0VG4Zs3Hj0MMh4gLyiuQwqNTMFEwHQYDVR0OBBYE
FHNzvZNCUIG0Ipori89E+DzAr2E/MB8GA1UdIwQYMBaAFHNzvZNCUIG0Ipori89E
+DzAr2E/MA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIhAKfBpAmj
pAxIUGDi7ltDNQqIJKTIyYtYovZy/Bza+0y4AiALll/bpL8uxAzicmHO7n91S1+d
SrkVGxXZIpKrK1GCEw==
-----END CERTIFICATE-----
"""
ENCRYPTED_KEY = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHjME4GCSqGSIb3DQEFDTBBMCkGCSqGSIb3DQEFDDAcBAjHTBAflzQY/QICCAAw
DAYIKoZIhvcNAgkFADAUBggqhkiG9w0DBwQIobMysM9zBF0EgZC7SuXrB7ZCHgu6
M4V1J2c0qoFYlClYjWQVdzFFqtBVn0Pr4H3wcf9uw4CF6QCxo9sljuGv5iDV7ptv
WRWtPMNaflBCp/lO4CFRJ4LnLHXjuqQHeztEmxuzVdoPuBMbwleQ50oK9lFF+Zhe
gA6rNZT3MN63R362gKPz65t8hbzjxL/vfWT/dBPt0PvGeGuI+kA=
-----END ENCRYPTED PRIVATE KEY-----
"""
"""Made for these tests and used nowhere else."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's environment."""
    for name in [name for name in os.environ if name.upper().startswith("TIDEGATE_")]:
        monkeypatch.delenv(name)


def environment(monkeypatch: pytest.MonkeyPatch, **texts: str) -> None:
    for name, text in texts.items():
        monkeypatch.setenv(f"TIDEGATE_{name.upper()}", text)


def refusal(**given: Any) -> str:
    """The one line that the settings are refused with."""
    with pytest.raises(SettingsError) as caught:
        load_settings(**given)
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.__cause__ is None
    return line


class TestEnvironment:
    @pytest.mark.parametrize("name", Settings.model_fields)
    def test_every_setting_is_read_from_the_variable_of_its_name(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Alone it is accepted, and it changes nothing but itself."""
        text, value = CHANGED[name]
        environment(monkeypatch, **{name: text})
        found = load_settings().model_dump() | {name: getattr(load_settings(), name)}
        if name.endswith("password"):
            found[name] = found[name].get_secret_value()
        defaults = Settings.model_construct().model_dump()
        assert value != defaults[name]
        assert found == defaults | {name: value}

    def test_without_any_the_defaults_hold(self) -> None:
        settings = load_settings()
        assert (settings.broker, settings.pane, settings.lateness) == ("127.0.0.1:9092", 10_000, 10_000)
        assert settings.retention == 30 * 86_400_000

    @pytest.mark.parametrize("name", ["broker", "sasl_password", "http_port", "pane"])
    def test_an_empty_variable_is_none_at_all(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """As compose files leave them."""
        environment(monkeypatch, **{name: ""})
        assert load_settings() == Settings.model_construct()

    def test_what_is_given_wins_over_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """None is not given."""
        environment(monkeypatch, broker="there:1", topic_prefix="env")
        settings = load_settings(broker="here:1", topic_prefix=None)
        assert (settings.broker, settings.topic_prefix) == ("here:1", "env")

    def test_ticks_can_be_turned_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        environment(monkeypatch, tick_idle_after="off")
        assert load_settings().tick_idle_after is None

    def test_topics_and_clockwork_follow_prefix_and_application(self) -> None:
        settings = load_settings(topic_prefix="p", application_id="a", pane="1s", lateness="2s")
        assert (settings.telemetry_topic, settings.control_topic) == ("p.telemetry", "p.control")
        assert (settings.partials_topic, settings.gate_checkpoints_topic) == ("a.partials", "a.gate-checkpoints")
        clockwork = settings.clockwork
        assert (clockwork.pane_ms, clockwork.lateness_ms, clockwork.topic) == (1_000, 2_000, "p.telemetry")


class TestRefusal:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("pane", "10"),
            ("pane", "ten seconds"),
            ("pane", "99ms"),
            ("pane", "1.5s"),
            ("lateness", "-1s"),
            ("unsigned_manifest", "perhaps"),
            ("manifest_lead", "1s"),
            ("retention", "400d"),
            ("checkpoint_every", "1ms"),
            ("retain_every", "1ms"),
            ("tick_idle_after", "never"),
            ("session_timeout", "10ms"),
            ("partitions", "0"),
            ("partitions", "many"),
            ("gate_partitions", "-4"),
            ("replication_factor", "0"),
            ("fetch_bytes", "1"),
            ("http_port", "65536"),
            ("http_port", "http"),
            ("security_protocol", "TLS"),
            ("sasl_mechanism", "GSSAPI"),
            ("log_level", "LOUD"),
            ("log_format", "xml"),
        ],
    )
    def test_a_wrong_value_is_one_line_that_names_the_variable(
        self, name: str, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        environment(monkeypatch, **{name: text})
        assert refusal().startswith(f"TIDEGATE_{name.upper()}: ")

    def test_a_bare_number_is_refused_with_the_way_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It does not say its unit."""
        environment(monkeypatch, pane="10")
        assert "10s" in refusal()

    @pytest.mark.parametrize("name", ["latenes", "pane_ms", "kafka_broker"])
    def test_a_command_refuses_an_unknown_variable_with_one_line_that_names_it(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A misspelt one would leave the default in force in silence."""
        environment(monkeypatch, **{name: "5s"})
        with pytest.raises(SettingsError, match=f"^TIDEGATE_{name.upper()}: no such setting") as caught:
            command_settings()
        assert "\n" not in str(caught.value)

    def test_a_worker_ends_at_an_unknown_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        environment(monkeypatch, latenes="5s")
        done = tidegate("worker")
        assert (done.code, done.line) == (
            2,
            "tidegate: TIDEGATE_LATENES: no such setting; did you mean TIDEGATE_LATENESS?",
        )

    def test_a_service_goes_on_with_an_unknown_variable_and_is_warned_once(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It may be its own."""
        environment(monkeypatch, brokr="there:1")
        monkeypatch.setattr("tidegate.streams.settings._warned", set())
        with caplog.at_level(logging.WARNING):
            assert load_settings() == load_settings() == Settings.model_construct()
        assert caplog.messages == ["TIDEGATE_BROKR: no such setting; did you mean TIDEGATE_BROKER? (ignored)"]

    @pytest.mark.parametrize("name", ["test_broker", "service_host", "port_9464_tcp_addr"])
    def test_what_others_set_is_left_alone(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The tests' own broker, and what Kubernetes sets for a service named tidegate."""
        environment(monkeypatch, **{name: "127.0.0.1"})
        assert load_settings() == Settings.model_construct()

    def test_an_unknown_keyword_is_refused_too(self) -> None:
        assert "BROKR" in refusal(brokr="127.0.0.1:9092").upper()

    @pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
    @pytest.mark.parametrize("given", [{}, {"sasl_username": "u"}, {"sasl_password": HIDDEN}])
    def test_sasl_needs_user_and_password(self, protocol: str, given: dict[str, str]) -> None:
        line = refusal(security_protocol=protocol, **given)
        assert "TIDEGATE_SASL_USERNAME" in line
        assert HIDDEN not in line

    def test_a_heartbeat_too_slow_for_the_session_is_refused(self) -> None:
        """The broker would throw the worker out between two of them."""
        assert "TIDEGATE_HEARTBEAT" in refusal(session_timeout="10s", heartbeat="4s")
        assert load_settings(session_timeout="12s", heartbeat="4s").heartbeat == 4_000


class TestConnection:
    def test_plain_has_neither_tls_nor_sasl(self) -> None:
        """Whatever else is set."""
        kafka = load_settings(broker="a:1,b:2", sasl_username="u", sasl_password=HIDDEN).kafka
        assert kafka == {"bootstrap_servers": ["a:1", "b:2"], "security_protocol": "PLAINTEXT", "ssl_context": None}

    def test_sasl_brings_user_password_and_mechanism(self) -> None:
        kafka = load_settings(security_protocol="SASL_PLAINTEXT", sasl_username="u", sasl_password=HIDDEN).kafka
        assert kafka["ssl_context"] is None
        assert (kafka["sasl_mechanism"], kafka["sasl_plain_username"]) == ("SCRAM-SHA-512", "u")
        assert kafka["sasl_plain_password"] == HIDDEN

    @pytest.mark.parametrize("protocol", ["SSL", "SASL_SSL"])
    def test_tls_checks_the_brokers_certificate_and_name(self, protocol: str, tmp_path: Path) -> None:
        """Against the given authority alone."""
        (tmp_path / "ca.pem").write_text(CERTIFICATE)
        settings = load_settings(
            security_protocol=protocol, ssl_cafile=tmp_path / "ca.pem", sasl_username="u", sasl_password=HIDDEN
        )
        context = settings.kafka["ssl_context"]
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
        assert len(context.get_ca_certs()) == 1
        assert ("sasl_plain_password" in settings.kafka) == (protocol == "SASL_SSL")

    def test_an_encrypted_client_key_is_opened_with_its_password(self, tmp_path: Path) -> None:
        files = client_files(tmp_path)
        assert load_settings(security_protocol="SSL", ssl_key_password=OPENS, **files).ssl_context is not None
        with pytest.raises(SettingsError, match="TIDEGATE_SSL_") as caught:
            _ = load_settings(security_protocol="SSL", ssl_key_password=HIDDEN, **files).ssl_context
        assert HIDDEN not in str(caught.value)

    @pytest.mark.parametrize("name", ["ssl_cafile", "ssl_certfile", "ssl_keyfile"])
    def test_a_file_that_cannot_be_read_is_named_with_its_variable(self, name: str, tmp_path: Path) -> None:
        files = client_files(tmp_path) | {"ssl_cafile": tmp_path / "cert.pem", name: tmp_path / "missing.pem"}
        with pytest.raises(SettingsError) as caught:
            _ = load_settings(security_protocol="SSL", ssl_key_password=OPENS, **files).ssl_context
        assert f"TIDEGATE_{name.upper()}" in str(caught.value)
        assert "missing.pem" in str(caught.value)


def client_files(folder: Path) -> dict[str, Path]:
    (folder / "cert.pem").write_text(CERTIFICATE)
    (folder / "key.pem").write_text(ENCRYPTED_KEY)
    return {"ssl_certfile": folder / "cert.pem", "ssl_keyfile": folder / "key.pem"}


class TestSecrets:
    def test_no_printed_form_shows_one(self, caplog: pytest.LogCaptureFixture) -> None:
        """Not even to a logger that prints all it is given."""
        settings = load_settings(
            security_protocol="SASL_PLAINTEXT", sasl_username="u", sasl_password=HIDDEN, ssl_key_password=HIDDEN
        )
        render = structlog.processors.JSONRenderer()
        with caplog.at_level(logging.INFO):
            logging.getLogger("tidegate").info("%s %r", settings, settings)
        shown = [
            repr(settings),
            str(settings),
            settings.model_dump_json(),
            str(settings.model_dump()),
            str(settings.__dict__),
            str(render(None, "info", {"settings": settings})),
            caplog.text,
        ]
        assert all("sasl_password" in text for text in shown)
        assert not [text for text in shown if OPENS in text]

    @pytest.mark.parametrize("name", ["sasl_password", "ssl_key_password"])
    @pytest.mark.parametrize("wrong", [{"pane": "10"}, {"security_protocol": "SASL_SSL"}, {"partitions": HIDDEN}])
    def test_no_error_shows_one(self, name: str, wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Nor the traceback of what is raised."""
        environment(monkeypatch, **{name: HIDDEN}, **wrong)
        with pytest.raises(SettingsError) as caught:
            load_settings()
        error: BaseException | None = caught.value
        assert HIDDEN not in str(error)
        assert error is not None
        assert error.__suppress_context__


def test_settings_are_frozen() -> None:
    """What a worker was started with holds to its end."""
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.pane = 5
    assert settings.pane == 10_000


def test_the_readme_names_every_setting_and_no_other() -> None:
    """Also those that are no one's first choice; ``_NAME`` after a full name stands for the prefix and ``NAME``."""
    table = OPERATING.read_text().split("\n## Settings\n", 1)[1].split("\n## ", 1)[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `TIDEGATE_")]
    named = [name.removeprefix("TIDEGATE_").removeprefix("_") for c in cells for name in re.findall(r"`([A-Z_]+)`", c)]
    fields = {name.upper() for name in Settings.model_fields}
    assert fields - set(named) == set()
    assert set(named) - fields == set()
    assert len(named) == len(fields)
