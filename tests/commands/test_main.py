"""What holds for every command: help that is quick and complete, exit codes, and no traceback for a user's mistake."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from tests.commands.invoke import tidegate
from tidegate.streams.commands import SUBCOMMANDS, cli
from tidegate.streams.engine import native
from tidegate.streams.settings import Settings

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "examples" / "manifest.yml"
# What a command imports in order to say how it is used, one process for all of them.
LOADED = """
import contextlib, io, sys
from tidegate.streams.commands import SUBCOMMANDS, main
for arguments in [], *([name] for name in SUBCOMMANDS):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([*arguments, "--help"])
    print(*arguments or ["tidegate"], *({"faust", "aiokafka", "numpy", "pydantic"} & sys.modules.keys()))
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's environment."""
    for name in [name for name in os.environ if name.upper().startswith("TIDEGATE_")]:
        monkeypatch.delenv(name)


def process(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


class TestHelp:
    @pytest.mark.parametrize("flag", ["--help", "-h"])
    def test_it_lists_every_command_with_what_it_does_and_the_exit_codes(self, flag: str) -> None:
        done = tidegate(flag)
        assert (done.code, done.err) == (0, "")
        for name, what in SUBCOMMANDS.items():
            assert f"  {name} " in done.out
            assert what in done.out
        assert "Exit codes: 0 done; 1 a difference or a failed check was found; 2 bad" in done.out

    @pytest.mark.parametrize("name", SUBCOMMANDS)
    def test_each_command_explains_itself_and_every_option(self, name: str) -> None:
        done = tidegate(name, "--help")
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"Usage: tidegate {name} ")
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.help
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in done.out
                assert parameter.help or isinstance(parameter.type, click.Choice), parameter.name

    def test_worker_lists_every_setting_with_its_meaning(self) -> None:
        shown = " ".join(tidegate("worker", "--help").out.split())
        for name, field in Settings.model_fields.items():
            assert f"TIDEGATE_{name.upper()} " in shown
            assert field.description
            assert field.description in shown

    def test_none_loads_what_only_a_running_worker_needs(self) -> None:
        """Faust takes most of a second; the list of commands is there before any library is."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(process("-c", LOADED), cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        first, *others = done.stdout.splitlines()
        assert first == "tidegate"
        assert [line.split()[0] for line in others] == list(SUBCOMMANDS)
        assert not [line for line in others if "faust" in line]

    def test_the_version_is_the_packages(self) -> None:
        """And which decoder runs, on a line of its own."""
        done = tidegate("--version")
        assert done.code == 0
        assert done.out == f"tidegate, version {version('tidegate')}\ndecoder: {native.running()}\n"

    def test_the_decoder_is_the_users_choice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("_used", "_found"):
            monkeypatch.setattr(native, name, getattr(native, name))
        monkeypatch.setenv("TIDEGATE_NATIVE", "off")
        assert tidegate("--version").out.endswith("decoder: python\n")
        native._found = None
        monkeypatch.setenv("TIDEGATE_NATIVE", "require")
        done = tidegate("--version")
        assert (done.code, done.line.startswith("tidegate: TIDEGATE_NATIVE=require: ")) == (2, True)
        monkeypatch.setenv("TIDEGATE_NATIVE", "on")
        assert "'on' is not one of off and require" in tidegate("--version").line


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("nope",), "nope"),
            (("--nope",), "--nope"),
            (("lint",), "MANIFEST"),
            (("lint", "--nope", MANIFEST), "--nope"),
            (("lint", MANIFEST, "more"), "more"),
            (("lint", "missing.yml"), "missing.yml"),
            (("replay", "--manifest", MANIFEST, "--out", "x"), "--events"),
            (("replay", "--manifest", MANIFEST, "--events", "x", "--out"), "--out"),
            (("worker",), "TIDEGATE_"),
            (("simulate", "--trace", "x", "--scenario", "unheard"), "unheard"),
            (("demo", "--speed", "0"), "--speed"),
            (("topics", "--broker", "127.0.0.1:9"), "127.0.0.1:9 (TIDEGATE_BROKER)"),
        ],
    )
    def test_one_is_answered_with_one_line_that_names_it(self, arguments: tuple[object, ...], message: str) -> None:
        """And with exit code 2."""
        done = tidegate(*arguments)
        assert done.code == 2
        assert message in done.line

    @pytest.mark.parametrize("arguments", [("worker",), ("topics",), ("watch", "--once")])
    def test_a_wrong_variable_is_named_by_every_command_that_reads_it(
        self, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TIDEGATE_PANE", "ten")
        done = tidegate(*arguments)
        assert done.code == 2
        assert done.line.startswith("tidegate: TIDEGATE_PANE: ")

    def test_a_reader_that_has_seen_enough_sees_no_traceback(self) -> None:
        """``tidegate lint flags.yml | head``."""
        reading, writing = os.pipe()
        os.close(reading)
        command = process("-m", "tidegate.streams.commands", "lint", str(MANIFEST))
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
        finally:
            os.close(writing)
        assert done.stderr == ""
