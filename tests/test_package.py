"""What is built installs and runs where nothing of the source is: one package, beside whatever a user has."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import tidegate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with a built Tidegate, and its dependencies from this one."""
    folder = tmp_path_factory.mktemp(request.param)
    build: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "-t", request.param, "-d", folder / "dist"]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = (folder / "dist").iterdir()
    venv.create(folder / "env", with_pip=True)
    found = folder / "env" / "bin" / "python"
    asked: list[str | Path] = [found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    # Only the folder: an editable Tidegate that is installed here is not followed.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install: list[str | Path] = [
        found,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        built,
    ]
    subprocess.run(install, check=True, capture_output=True)
    for name in ("schemas", "gates", "streams"):
        (folder / "service" / name).mkdir(parents=True)
        (folder / "service" / name / "__init__.py").write_text("mine = True\n")
    return found


def run(python: Path, *command: str) -> str:
    """Run a command in the user's folder, without what this process sets; its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    service = python.parents[2] / "service"
    done = subprocess.run([python, *command], cwd=service, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_services_own_folders_stay_its_own(python: Path) -> None:
    names = run(python, "-c", "import gates, schemas, streams, tidegate; print(gates.mine, tidegate.__file__)")
    assert names.startswith("True ")
    assert str(python.parents[1]) in names


def test_types_are_told(python: Path) -> None:
    assert (
        run(python, "-c", "import importlib.resources as r; print((r.files('tidegate') / 'py.typed').is_file())")
        == "True\n"
    )


def test_the_demo_runs(python: Path) -> None:
    """With the manifest and the trace that came along."""
    out = run(
        python, "-m", "tidegate.streams.commands", "demo", "--scenario", "errors", "--speed", "200", "--out", "out"
    )
    assert "the same bytes" in out


def test_every_public_name_is_there_and_loads_only_what_it_needs() -> None:
    assert {name for names in tidegate._MODULES.values() for name in names} == set(tidegate.__all__)
    assert all(hasattr(tidegate, name) for name in tidegate.__all__)
    loaded = "import sys, tidegate; assert not {'aiokafka', 'numpy', 'pydantic'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=True)
