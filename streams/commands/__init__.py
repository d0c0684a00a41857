"""The ``tidegate`` command: one module a subcommand, loaded when it is called."""

import importlib
import logging
import os
import sys
from importlib.metadata import version
from typing import Any

import click

from tidegate.schemas.errors import TidegateError
from tidegate.streams.commands.output import take_every_text

SUBCOMMANDS = {
    "demo": "watch a canary ramp, or be stopped, on an embedded broker",
    "worker": "run the gate evaluator beside a Kafka",
    "simulate": "publish modelled telemetry over a real trace's arrivals",
    "replay": "decide from files or topics what a worker would have decided",
    "backtest": "say what another manifest would have decided, or chance alone",
    "probe": "ask both arms gold questions and publish the probes",
    "bridge": "make telemetry of OpenTelemetry spans",
    "lint": "check a manifest and show what it resolves to",
    "keygen": "make a key pair to sign with",
    "sign": "make a manifest a signed revision",
    "publish": "publish a signed revision to the workers",
    "kill": "take a flag's canary to 0 in every region",
    "rearm": "start a flag from its first stage again",
    "pause": "hold a flag's promotes, never its aborts",
    "resume": "let a paused flag be promoted again",
    "promote": "take a flag to its next stage by hand",
    "export": "dump the topics to files, with a manifest of offsets and digests",
    "topics": "create or check the topics",
    "report": "write a rollout as one HTML file, for who has to answer for it",
    "history": "list what was decided, when, why and by whom",
    "explain": "say in words what was decided and why",
    "verify": "check the chain of decisions and their commands",
    "serve": "serve the status page, and the JSON behind it",
    "notify": "send decisions to webhooks and to Slack",
    "watch": "show decisions and commands as they come",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        module = importlib.import_module(f"tidegate.streams.commands.{cmd_name}")
        command: click.Command = module.command
        command.short_help = SUBCOMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


def _show_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        # Loaded late: `--help` needs nothing of it.
        from tidegate.streams.engine.native import running

        click.echo(f"tidegate, version {version('tidegate')}\ndecoder: {running()}")
        context.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and which decoder runs, and exit.",
)
def cli() -> None:
    """Decide from a stream of telemetry whether a canary may go on.

    Start with `tidegate demo`. Settings come from TIDEGATE_* variables; `tidegate worker --help` lists them.

    Exit codes: 0 done; 1 a difference or a failed check was found; 2 bad arguments, manifest or input.
    """


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    # The client library's own lines would only double ours; the worker turns them on again.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    take_every_text()
    try:
        if mode := os.environ.get("TIDEGATE_NATIVE"):
            # Loaded late, and not at all by most commands.
            from tidegate.streams.engine.native import choose

            choose(mode)
        return cli.main(arguments, prog_name="tidegate")
    except TidegateError as error:
        # Loaded late: it takes a moment that `--help` should not.
        from tidegate.streams.report.text import plain

        # Whatever a record, a file or a broker said stays one line.
        click.echo(f"tidegate: {plain(str(error))}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(0)
