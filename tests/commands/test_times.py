"""One way to write a moment or a length of time, for every option of every command that takes one."""

import re
from collections.abc import Iterator

import click
import pytest

from tests.commands.invoke import tidegate
from tidegate.streams.commands import SUBCOMMANDS, cli
from tidegate.streams.commands.options import DurationType, Time

MOMENTS = ["1700000000000", "2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00", "20231114", "now", "now-2h", "now+10m"]
NO_MOMENTS = ["9007199254740000", "1700000000", "5", "20261340", "soon", "now-2", "2100-01-01", "-1"]
NAMED_AS_ONE = re.compile(r"^--(from|to|start|until|at|effective-from|.*-since)$")


def options() -> Iterator[tuple[str, click.Option]]:
    context = click.Context(cli)
    for name in SUBCOMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield name, parameter


TIMES = [(name, one.opts[0]) for name, one in options() if isinstance(one.type, Time)]
DURATIONS = [(name, one.opts[0]) for name, one in options() if isinstance(one.type, DurationType)]


def test_every_option_that_is_called_like_a_moment_takes_one() -> None:
    assert {(name, one.opts[0]) for name, one in options() if NAMED_AS_ONE.match(one.opts[0])} == set(TIMES)
    assert {name for name, _ in TIMES} >= {"sign", "simulate", "replay", "export"}


def test_every_option_that_is_called_like_a_length_of_time_takes_one() -> None:
    lengths = ("--wait", "--pane", "--lateness", "--every")
    assert {(name, one.opts[0]) for name, one in options() if one.opts[0] in lengths} == set(DURATIONS)


@pytest.mark.parametrize(("command", "option"), TIMES)
@pytest.mark.parametrize("text", MOMENTS)
def test_every_form_of_a_moment_is_taken(command: str, option: str, text: str) -> None:
    """What is missing besides is found after it."""
    done = tidegate(command, option, text)
    assert done.code == 2
    assert not done.line.startswith(f"tidegate: {option}:")


@pytest.mark.parametrize(("command", "option"), TIMES)
@pytest.mark.parametrize("text", NO_MOMENTS)
def test_what_is_no_moment_is_refused_in_one_line_that_names_the_option(command: str, option: str, text: str) -> None:
    done = tidegate(command, option, text)
    assert done.code == 2
    assert done.line.startswith(f"tidegate: {option}: ")
