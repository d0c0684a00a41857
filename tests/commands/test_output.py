"""What the encoding of the terminal cannot show is spelled or replaced, for every command: never a traceback."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import click
import pytest
from rich.console import Console

from tidegate.streams.commands import SUBCOMMANDS
from tidegate.streams.commands.output import SPELLED, _spelling
from tidegate.streams.kafka.topics import topics
from tidegate.streams.settings import load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
HEALTHY = GOLDEN / "healthy"
TRACE = ROOT / "examples" / "data" / "azure_llm_conv_2023.csv.gz"
EACH = """
import contextlib, json, sys
from tidegate.streams.commands import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ended:
        print("ended", json.dumps(arguments), int(ended.code or 0))
"""
MANIFEST = "# größer\nflags:\n  größe: {versions: {GEN_VER: ключ}, window: {length: 30s}}\n"


def run(calls: list[list[str]], folder: Path, **environment: str) -> tuple[dict[str, int], bytes]:
    """How each call ended, all in one process, and what was written."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    settings |= {"PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", EACH, json.dumps(calls)]
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, timeout=300)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert done.returncode == 0, done.stderr.decode()
    ended = [
        line[6:].rsplit(" ", 1)
        for line in done.stdout.decode(environment["PYTHONIOENCODING"]).splitlines()
        if line.startswith("ended ")
    ]
    return {text: int(code) for text, code in ended}, done.stdout + done.stderr


def calls(broker: str) -> dict[str, list[list[str]]]:
    """By command: its help, a use with foreign letters, and a mistake with some."""
    decisions, commands = str(HEALTHY / "decisions.ndjson"), str(HEALTHY / "commands.ndjson")
    events = str(HEALTHY / "telemetry.ndjson.gz")
    first = json.loads((HEALTHY / "decisions.ndjson").read_bytes().splitlines()[0])["decision_id"]
    at = ["--broker", broker]
    manifest = ["--manifest", str(HEALTHY / "manifest.yml")]
    used = {
        "demo": [["--scenario", "größe"]],
        "worker": [["--manifest", "größe.yml"], ["--manifest", "ключ"]],
        "simulate": [["--trace", str(TRACE), "--scenario", "healthy", "--flag", "ключ", "--manifest", "größe.yml"]],
        "replay": [[*manifest, "--events", events, "--out", "решения"], [*manifest, "--events", "нет", "--out", "x"]],
        "backtest": [[*manifest, *manifest, "--events", events], [*manifest, *manifest, "--events", "нет"]],
        "lint": [["größe.yml"], ["größe.yml", "--rate", "50/s"], ["größe.yml", "--rate", "½"]],
        "keygen": [["ключ", "--comment", "größe"], ["ключ"]],
        "sign": [
            ["größe.yml", "--key", "ключ", "--revision", "1", "--effective-from", "now", "--out", "подпись"],
            ["größe.yml", "--key", "нет", "--revision", "1", "--effective-from", "½", "--out", "x"],
        ],
        "publish": [["подпись", "--trusted-keys", "ключ.pub", *at], ["нет", "--trusted-keys", "нет"]],
        "kill": [["größe", "--reason", "½", "--actor", "Ørsted", "--key", "ключ", "--wait", "0s", *at]],
        "rearm": [["größe", "--reason", "½", "--actor", "Ørsted", "--key", "ключ", "--wait", "0s", *at]],
        **{
            kind: [["größe", "--reason", "½", "--actor", "Ørsted", "--key", "ключ", "--wait", "0s", *at]]
            for kind in ("pause", "resume", "promote")
        },
        "export": [[*at, "--out", "вывоз"], [*at, "--out", "größe.yml"]],
        "topics": [at, ["--broker", "größe:9"]],
        "explain": [[first, "--decisions", decisions], ["½"]],
        "report": [[decisions, "--out", "отчёт.html"], ["нет"]],
        "history": [["--decisions", decisions], ["größe", "--decisions", decisions]],
        "verify": [[decisions, "--commands", commands], ["нет"], at],
        "probe": [["--gold", "größe.yml", "--ask", "модуль:ask", *at], ["--gold", "нет", "--ask", "½"]],
        "bridge": [["otel", "--mapping", "нет", *at], ["otel", "--mapping", "größe.yml", *at]],
        "notify": [["größe.yml", "--check", *at], ["нет", *at]],
        "serve": [["--port", "½"], ["--trusted-keys", "нет", *at]],
        "watch": [[*at, "--once"], [*at, "--once", "--flag", "größe"]],
    }
    return {name: [[name, "--help"], *([name, *more] for more in used[name])] for name in SUBCOMMANDS}


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}])
def test_every_command_runs_where_its_output_cannot_be_shown(tmp_path: Path, locale: dict[str, str]) -> None:
    (tmp_path / "größe.yml").write_text(MANIFEST, encoding="utf-8")
    with embedded_broker({topic.name: topic.partitions for topic in topics(load_settings())}) as broker:
        every = [[], ["--help"], *(one for several in calls(broker).values() for one in several)]
        ended, written = run(every, tmp_path, **locale)
    assert len(ended) == len(every)
    assert {"replay", "lint", "keygen", "sign", "publish", "explain", "verify"} <= {
        json.loads(text)[0] for text, code in ended.items() if code == 0 and "--help" not in text and text != "[]"
    }
    if "LC_ALL" in locale:
        assert written.isascii()
        assert b"gr??e" in written
        assert b"lambda" in written


def test_a_sign_that_a_line_hangs_on_is_spelled_and_a_letter_replaced() -> None:
    """Also by click, which takes an ASCII stream for a mistake."""
    content = io.BytesIO()
    stream = _spelling(io.TextIOWrapper(content, "ascii"))
    assert _spelling(stream) is stream
    with redirect_stdout(stream):
        click.echo("λ ≤ 0.03 in größe")
        Console().print("ΔS ≥ 1 → ½")
    assert content.getvalue() == b"lambda <= 0.03 in gr??e\ndelta S >= 1 -> ?\n"


def test_what_a_name_holds_that_is_no_text_is_replaced_in_utf_8_too() -> None:
    """A file's name is bytes."""
    content = io.BytesIO()
    stream = _spelling(io.TextIOWrapper(content, "utf-8"))
    stream.write("λ \udcff")
    stream.flush()
    assert content.getvalue().decode() == "λ ?"


def test_what_is_spelled_is_itself_plain() -> None:
    assert all(not one.isascii() and said.isascii() for one, said in SPELLED.items())
