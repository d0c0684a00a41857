"""`pip install tidegate` is what a service needs and no more; the command says in one line what it lacks."""

import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from tidegate.streams.simulation.embedded_broker import embedded

ROOT = Path(__file__).parents[1]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
WORKERS_OWN = (
    "numpy",
    "faust",
    "fastdigest",
    "pyarrow",
    "rich",
    "click",
    "confluent_kafka",
    "aiohttp",
    "scipy",
    "jinja2",
)


@dataclass(frozen=True)
class Installed:
    """An environment with a built wheel and what it requires. ``packages``: all that was installed, by name."""

    python: Path
    packages: frozenset[str]

    def run(self, *command: str, broker: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command there, without what this process sets."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"TIDEGATE_BROKER": broker}
        done: list[str | Path] = [self.python, *command]
        return subprocess.run(done, cwd=self.python.parent, env=environment, capture_output=True, text=True, timeout=60)


def required(lines: list[str], extras: frozenset[str] = frozenset()) -> Iterator[tuple[Distribution, frozenset[str]]]:
    """Give the distributions that requirements bring, as an installer would find them."""
    for requirement in map(Requirement, lines):
        if any(requirement.marker is None or requirement.marker.evaluate({"extra": e}) for e in extras or {""}):
            yield distribution(requirement.name), frozenset(requirement.extras)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A clean environment after `pip install tidegate`: only what the wheel requires, from this one, is in it."""
    folder = tmp_path_factory.mktemp("light")
    build: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", symlinks=True)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    with ZipFile(wheel) as archive:
        archive.extractall(packages)
    (own,) = packages.glob("tidegate-*.dist-info")
    waiting = list(required(Distribution.at(own).requires or []))
    found: dict[str, frozenset[str]] = {}
    while waiting:
        needed, extras = waiting.pop()
        name = re.sub(r"[-_.]+", "-", needed.metadata["Name"]).lower()
        if extras <= found.get(name, frozenset({"-"})) and name in found:
            continue
        found[name] = found.get(name, frozenset()) | extras
        waiting += required(needed.requires or [], extras | {""})
        for top in {file.parts[0] for file in needed.files or ()} - {"..", "__pycache__"}:
            target = packages / top
            if not target.exists():
                target.symlink_to(Path(str(needed.locate_file(top))))
    return Installed(folder / "env" / "bin" / "python", frozenset(found))


def test_it_brings_none_of_the_workers_packages(light: Installed) -> None:
    """About twenty, which are what the client imports."""
    extra = {re.sub(r"[-_.]+", "-", Requirement(line).name).lower() for line in EXTRAS["worker"] + EXTRAS["parquet"]}
    assert not light.packages & extra
    assert "aiokafka" in light.packages
    assert len(light.packages) <= 20


def test_its_public_names_load_none_of_what_only_a_worker_needs(light: Installed) -> None:
    """They are not there, so each name really goes without."""
    done = light.run(
        "-c",
        "import sys, tidegate, tidegate.testing\n"
        "[getattr(tidegate, name) for name in tidegate.__all__]\n"
        f"print(sorted(set({WORKERS_OWN!r}) & sys.modules.keys()))",
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_importing_it_loads_nothing_else(light: Installed) -> None:
    done = light.run("-c", "import sys, tidegate; print([m for m in sys.modules if m.startswith('tidegate.')])")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_service_publishes_and_follows_commands_with_it(light: Installed) -> None:
    with embedded({"tidegate.telemetry": 2, "tidegate.control": 1}) as kafka:
        done = light.run(
            "-c",
            "import asyncio\n"
            "from tidegate import ControlConsumer, SyncTelemetryPublisher, TelemetryPublisher, bucket\n"
            "async def serve():\n"
            "    async with TelemetryPublisher() as telemetry, ControlConsumer() as commands:\n"
            "        await commands.caught_up()\n"
            "        with telemetry.bind('f', weights=commands.weights).request('u1'): pass\n"
            "        await telemetry.flush(20)\n"
            "    return telemetry.sent\n"
            "with SyncTelemetryPublisher() as telemetry:\n"
            "    telemetry.bind('f').exposure('u1', 'canary')\n"
            "print(asyncio.run(serve()), telemetry.sent, 0 <= bucket('f', 'u1') < 1)",
            broker=kafka.servers,
        )
    assert (done.stdout, done.stderr) == ("1 1 True\n", "")


def test_the_command_says_in_one_line_what_is_missing(light: Installed) -> None:
    for arguments in (["--help"], ["worker"]):
        done = light.run("-m", "tidegate", *arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("tidegate: this is the client alone, without ")
        assert done.stderr.endswith(": pip install 'tidegate[worker]'\n")
        assert done.stderr.count("\n") == 1
        extra = [Requirement(line).name for line in EXTRAS["worker"]]
        assert f"without {', '.join(extra)}: pip" in done.stderr


@pytest.mark.parametrize(
    ("module", "way_out"),
    [
        ("probes", "lacks numpy: pip install 'tidegate[probes]'"),
        ("openfeature", "lacks openfeature: pip install 'tidegate[openfeature]'"),
        ("prometheus", "lacks prometheus_client: pip install prometheus-client"),
    ],
)
def test_a_module_that_needs_more_says_what_to_install(module: str, way_out: str, light: Installed) -> None:
    done = light.run("-c", f"import tidegate.{module}")
    assert done.stderr.splitlines()[-1] == f"ImportError: tidegate.{module} {way_out}"
