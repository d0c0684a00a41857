"""docker-compose.yml says the same as the settings, the command line and the Kafka of the tests."""

from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.integration.broker import kafka_version
from tidegate.streams.commands import cli
from tidegate.streams.settings import load_settings

ROOT = Path(__file__).parents[1]
PREFIX = "TIDEGATE_"
PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
WORKERS = {name: service for name, service in OURS.items() if service["command"] == ["worker"]}


def test_the_services_are_those_that_the_tests_below_look_at() -> None:
    """A service that slips through the selection would be checked by nothing."""
    assert SERVICES.keys() == {"kafka", "topics", "worker-1", "worker-2", "simulator", "prometheus", "grafana"}
    assert SERVICES.keys() - OURS.keys() == {"kafka", "prometheus", "grafana"}
    assert WORKERS.keys() == {"worker-1", "worker-2"}


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_and_its_value_is_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable would be ignored in silence and the default used."""
    given: dict[str, str] = OURS[name]["environment"]
    assert all(key.startswith(PREFIX) for key in given)
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    settings = load_settings().model_dump(mode="json")
    assert {key: str(settings[key.removeprefix(PREFIX).lower()]) for key in given} == given


@pytest.mark.parametrize("name", OURS)
def test_every_command_line_is_understood(name: str) -> None:
    """Subcommand and options exist: compose would find out only in the container."""
    subcommand, *arguments = OURS[name]["command"]
    command = cli.get_command(click.Context(cli), subcommand)
    assert command is not None
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in arguments if word.startswith("--")} <= known


@pytest.mark.parametrize("name", OURS)
def test_every_file_named_is_shipped_in_the_image(name: str) -> None:
    """/app of the image is this folder's examples."""
    words = [*OURS[name]["command"], *OURS[name]["environment"].values()]
    for word in words:
        if word.startswith("/app/"):
            assert word.startswith("/app/examples/")
            assert (ROOT / word.removeprefix("/app/")).is_file()


def test_kafka_is_the_one_that_the_tests_run_against() -> None:
    """What is tested is what is shipped."""
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{kafka_version()}"


def test_nothing_starts_before_what_it_needs() -> None:
    """Kafka, then the topics, then the workers, then telemetry for them."""
    order = {
        name: {on: how["condition"] for on, how in service["depends_on"].items()} for name, service in OURS.items()
    }
    assert order == {
        "topics": {"kafka": "service_healthy"},
        "worker-1": {"topics": "service_completed_successfully"},
        "worker-2": {"topics": "service_completed_successfully"},
        "simulator": {"worker-1": "service_healthy", "worker-2": "service_healthy"},
    }
    assert "healthcheck" in SERVICES["kafka"]


def test_prometheus_scrapes_every_worker_and_grafana_reads_it() -> None:
    """By the names and ports that they have here; both from the files of deploy, and only where asked for."""
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert set(job["static_configs"][0]["targets"]) == {
        f"{name}:{worker['environment']['TIDEGATE_HTTP_PORT']}" for name, worker in WORKERS.items()
    }
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "tidegate.yml").read_text())["providers"]
    mounts = [mount.split(":") for name in ("prometheus", "grafana") for mount in SERVICES[name]["volumes"]]
    assert all((ROOT / host).exists() for host, *_ in mounts if host.startswith("./"))
    assert any(target == f"{provider['options']['path']}/tidegate.json" for _, target, *_ in mounts)
    assert {tuple(SERVICES[name]["profiles"]) for name in ("prometheus", "grafana")} == {("metrics",)}


def test_each_worker_is_a_member_of_its_own_with_its_probe_on_its_port() -> None:
    """Two members with one static id throw each other out of the group."""
    ids = [worker["environment"]["TIDEGATE_INSTANCE_ID"] for worker in WORKERS.values()]
    assert len(set(ids)) == len(ids)
    for worker in WORKERS.values():
        port = worker["environment"]["TIDEGATE_HTTP_PORT"]
        assert f"http://127.0.0.1:{port}/readyz" in worker["healthcheck"]["test"][-1]
        assert [mapping.rsplit(":", 1)[1] for mapping in worker["ports"]] == [port]


def test_only_loopback_of_the_host_is_reachable() -> None:
    """There is no authentication in this set-up."""
    for service in SERVICES.values():
        assert all(mapping.startswith("127.0.0.1:") for mapping in service.get("ports", []))
