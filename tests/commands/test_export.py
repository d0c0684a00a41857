"""``tidegate export`` and ``replay --broker`` where no broker is needed to say no."""

import os
import sys
from pathlib import Path

import pytest

from tests.commands.invoke import tidegate

NOWHERE = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's environment."""
    for name in [name for name in os.environ if name.upper().startswith("TIDEGATE_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("command", [("export",), ("replay", "--manifest", "examples/manifest.yml")])
def test_a_broker_that_does_not_answer_is_named(command: tuple[str, ...], tmp_path: Path) -> None:
    done = tidegate(*command, "--broker", NOWHERE, "--out", tmp_path / "out")
    assert done.code == 2
    assert NOWHERE in done.line


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = tidegate("export", "--broker", NOWHERE, "--out", tmp_path / "file" / "out")
    assert done.code == 2
    assert "--out" in done.line


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = tidegate("export", "--broker", NOWHERE, "--out", tmp_path / "out", "--format", "parquet")
    assert done.code == 2
    assert "pip install 'tidegate[parquet]'" in done.line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--broker", NOWHERE), "--trusted-keys"),
        (("--broker", NOWHERE, "--events", "x", "--manifest", "m"), "--events"),
        (("--events", "x", "--manifest", "m", "--compare"), "--broker"),
        (("--events", "x", "--manifest", "m", "--from", "now-2h"), "--broker"),
        (("--broker", NOWHERE, "--from", "soon"), "--from"),
        (("--broker", NOWHERE, "--from", "253402300800000"), "--from"),
        (("--broker", NOWHERE, "--manifest", "m", "--from", "20260131", "--to", "20260131"), "--to"),
        (("--manifest", "m"), "--events"),
        (("--events", "x"), "--manifest"),
    ],
)
def test_options_of_replay_that_do_not_go_together(arguments: tuple[str, ...], named: str, tmp_path: Path) -> None:
    done = tidegate("replay", "--out", tmp_path / "out", *arguments)
    assert done.code == 2
    assert named in done.line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("end", ["20260131", "20260130"])
def test_a_range_that_ends_before_it_begins_is_named(end: str, tmp_path: Path) -> None:
    done = tidegate("export", "--broker", NOWHERE, "--out", tmp_path / "out", "--from", "20260131", "--to", end)
    assert done.code == 2
    assert "--to: not after --from" in done.line
    assert not (tmp_path / "out").exists()
