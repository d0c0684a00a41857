"""deploy/kubernetes against Kubernetes' own schemas, and against the settings, commands and ports that it names."""

import json
import tomllib
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from tidegate.streams.commands import cli
from tidegate.streams.notify.receivers import load_receivers
from tidegate.streams.settings import load_settings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
SCHEMA: dict[str, Any] = json.loads(Path(__file__).with_name("kubernetes.schema.json").read_text())
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS: dict[tuple[str, str], dict[str, Any]] = {
    (one["kind"], one["metadata"]["name"]): one
    for path in KUSTOMIZATION["resources"]
    for one in yaml.safe_load_all((FOLDER / path).read_text())
}
PODS = {name: one["spec"]["template"] for (_, name), one in OBJECTS.items() if "template" in one.get("spec", {})}
PATHS = {"worker": {"/livez", "/readyz"}, "notify": {"/livez", "/readyz"}, "serve": {"/"}}
"""What each command answers with 200 when it is well."""


def container(name: str) -> dict[str, Any]:
    """The one container of a pod."""
    (found,) = PODS[name]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def selected(selector: dict[str, str]) -> list[str]:
    """The pods that a selector finds."""
    return [name for name, pod in PODS.items() if selector.items() <= pod["metadata"]["labels"].items()]


def test_every_file_is_used() -> None:
    maps = KUSTOMIZATION["configMapGenerator"]
    used = {"kustomization.yaml", *KUSTOMIZATION["resources"]}
    used |= {file for one in maps for file in (*one.get("files", ()), *one.get("envs", ()))}
    assert {path.name for path in FOLDER.iterdir()} == used
    assert PODS.keys() == {"tidegate-worker", "tidegate-serve", "tidegate-notify"}


@pytest.mark.parametrize("key", OBJECTS, ids="/".join)
def test_every_object_is_as_kubernetes_has_it(key: tuple[str, str]) -> None:
    """No field that is not there is passed over: a misspelt probe would be none."""
    validator = jsonschema.Draft7Validator(SCHEMA["kinds"][key[0]] | {"definitions": SCHEMA["definitions"]})
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(OBJECTS[key])] == []


def test_the_schema_finds_what_is_misspelt_or_of_another_type() -> None:
    """Also deep within a pod."""
    pod = json.loads(json.dumps(OBJECTS["StatefulSet", "tidegate-worker"]))
    validator = jsonschema.Draft7Validator(SCHEMA["kinds"]["StatefulSet"] | {"definitions": SCHEMA["definitions"]})
    first = pod["spec"]["template"]["spec"]["containers"][0]
    first["readinesProbe"] = first.pop("readinessProbe")
    first["livenessProbe"]["periodSeconds"] = "10"
    assert len(list(validator.iter_errors(pod))) == 2


@pytest.mark.parametrize("name", PODS)
def test_no_pod_runs_as_root_or_writes_to_its_root_or_takes_all_there_is(name: str) -> None:
    spec, one = PODS[name]["spec"], container(name)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert one["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in one["resources"]["limits"]
    assert all(mount["readOnly"] for mount in one.get("volumeMounts", ()))


@pytest.mark.parametrize("name", PODS)
def test_every_command_line_and_probe_is_one_of_tidegate(name: str) -> None:
    one = container(name)
    subcommand, *arguments = one["args"]
    command = cli.get_command(click.Context(cli), subcommand)
    assert command is not None
    command.make_context(subcommand, [*arguments])
    ports = {port["name"]: port["containerPort"] for port in one["ports"]}
    for probe in ("livenessProbe", "readinessProbe"):
        assert one[probe]["httpGet"]["path"] in PATHS[subcommand]
        assert one[probe]["httpGet"]["port"] in ports
    (port,) = ports.values()
    listens = {*arguments, *(entry.get("value") for entry in one["env"])}
    assert {str(port), "0.0.0.0"} <= listens  # noqa: S104 - within a pod


@pytest.mark.parametrize("name", PODS)
def test_every_variable_is_a_setting_and_its_value_is_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(line.split("=", 1) for line in (FOLDER / "settings.env").read_text().splitlines())
    assert given
    given |= {entry["name"]: entry.get("value", f"{name}-0") for entry in container(name)["env"]}
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    settings = load_settings()
    assert settings.broker == given["TIDEGATE_BROKER"]
    assert settings.instance_id == (f"{name}-0" if name == "tidegate-worker" else None)


def test_what_is_mounted_is_made_here_and_what_is_named_is_mounted() -> None:
    """Secrets alone come from elsewhere."""
    made = {one["name"] for one in KUSTOMIZATION["configMapGenerator"]}
    for name in PODS:
        spec, one = PODS[name]["spec"], container(name)
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        assert {mount["name"] for mount in one.get("volumeMounts", ())} == volumes.keys()
        assert {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume} <= made
        maps = [source["configMapRef"]["name"] for source in one["envFrom"] if "configMapRef" in source]
        assert maps == ["tidegate-settings"]
    mounts = {mount["mountPath"] for mount in container("tidegate-notify")["volumeMounts"]}
    for receiver in load_receivers(FOLDER / "receivers.yml"):
        for path in (receiver.url_file, receiver.secret_file):
            assert path is not None
            assert str(Path(path).parent) in mounts
    assert container("tidegate-notify")["args"][1] == "/etc/tidegate/receivers.yml"
    assert "TIDEGATE_TRUSTED_KEYS=/etc/tidegate/trusted.keys\n" in (FOLDER / "settings.env").read_text()


def test_selectors_find_their_pods_and_services_their_ports() -> None:
    for (kind, name), one in OBJECTS.items():
        spec = one.get("spec", {})
        if kind == "Service":
            assert selected(spec["selector"]) == [name]
            ports = {port["name"]: port["containerPort"] for port in container(name)["ports"]}
            assert {port["targetPort"]: port["port"] for port in spec["ports"]} == ports
        elif kind in ("PodDisruptionBudget", "StatefulSet", "Deployment"):
            assert selected(spec["selector"]["matchLabels"]) == [name]
    assert ("Service", OBJECTS["StatefulSet", "tidegate-worker"]["spec"]["serviceName"]) in OBJECTS
    policy = OBJECTS["NetworkPolicy", "tidegate"]["spec"]
    (among,) = policy["podSelector"]["matchExpressions"]
    assert set(among["values"]) == PODS.keys()
    allowed = {port["port"] for port in policy["ingress"][0]["ports"]}
    assert allowed == {port["containerPort"] for name in PODS for port in container(name)["ports"]}


def test_a_worker_may_go_at_a_time_and_each_is_a_member_by_its_own_name() -> None:
    spec = OBJECTS["StatefulSet", "tidegate-worker"]["spec"]
    assert spec["replicas"] >= 2
    assert OBJECTS["PodDisruptionBudget", "tidegate-worker"]["spec"]["maxUnavailable"] == 1
    (named,) = [one for one in container("tidegate-worker")["env"] if one["name"] == "TIDEGATE_INSTANCE_ID"]
    assert named["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_all_pods_have_the_image_of_this_version() -> None:
    (image,) = KUSTOMIZATION["images"]
    assert {container(name)["image"] for name in PODS} == {image["name"]}
    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]
    assert image["newTag"] == project["version"]
