"""Log lines: one an event, whatever is in it, and readable by what they are for."""

import json
import logging
import re
import sys
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from tidegate.streams.kafka import patience
from tidegate.streams.settings import load_settings
from tidegate.streams.worker import logs

HOSTILE = [
    "two\nlines",
    "carriage\rreturn",
    "nul\x00byte",
    "\x1b[31mred",
    "\x1b[2Jx",
    "\x9b2Jx",
    "next\x85line",
    "line\u2028separator",
    '"} {"event": "forged"',
    "tab\tquote\"apostrophe'backslash\\",
    "\ud800",
    "é😀→",
    "",
    "x" * 10_000,
]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """So is structlog's configuration."""
    yield
    structlog.reset_defaults()


class Said:
    """What is logged after ``configure`` with some settings, as it stands on stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str], **given: str) -> None:
        self._capsys = capsys
        logs.configure(load_settings(**given))
        self.log = structlog.stdlib.get_logger("tidegate")

    def text(self) -> str:
        out, err = self._capsys.readouterr()
        assert out == ""
        return str(err)

    def lines(self) -> list[str]:
        text = self.text()
        assert text == "" or text.endswith("\n")
        return text.splitlines()

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]


def test_what_a_library_says_over_and_over_is_shown_once_in_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka says a thousand times a second that a broker is away; our own lines are all shown."""
    said = Said(capsys)
    library, now = logging.getLogger("aiokafka.client"), [100.0]
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for second in range(25):
        now[0] = 100.0 + second
        library.error("no connection to %s", second)
        library.error("another")
        said.log.info("ours")
    events = [line["event"] for line in said.objects()]
    assert events.count("ours") == 25
    assert events.count("another") == 3
    assert [event for event in events if "connection" in event] == [f"no connection to {n}" for n in (0, 10, 20)]


class TestJson:
    def test_an_event_is_one_object_with_level_time_and_its_values(self, capsys: pytest.CaptureFixture[str]) -> None:
        said = Said(capsys)
        said.log.info("decided", flag="f", seq=3, reasons=["a", "b"], none=None)
        (line,) = said.objects()
        stamp = datetime.fromisoformat(line.pop("timestamp"))
        assert abs(datetime.now(UTC) - stamp) < timedelta(hours=1)
        assert line == {
            "event": "decided",
            "level": "info",
            "flag": "f",
            "seq": 3,
            "reasons": ["a", "b"],
            "none": None,
        }

    @pytest.mark.parametrize("value", HOSTILE)
    def test_whatever_is_in_a_value_the_event_stays_one_line(
        self, value: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """And the value can be read back from it; nobody forges a second event."""
        said = Said(capsys)
        said.log.warning(value, region=value, nested={"x": [value]})
        (line,) = said.lines()
        assert not [c for c in line if unicodedata.category(c) in ("Cc", "Zl", "Zp")]
        found = json.loads(line)
        assert (found["event"], found["region"], found["nested"]) == (value, value, {"x": [value]})

    def test_an_exception_is_in_the_line_of_its_event(self, capsys: pytest.CaptureFixture[str]) -> None:
        said = Said(capsys)
        try:
            raise ValueError("first\nsecond")
        except ValueError as error:
            said.log.error("failed", exc_info=error)
        (line,) = said.objects()
        assert "first\nsecond" in line["exception"]
        assert line["exception"].startswith("Traceback")

    def test_what_json_does_not_know_is_told_all_the_same(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A log line that fails would take the worker with it."""
        said = Said(capsys)
        said.log.info("odd", raw=b"\xff", kinds={1, 2}, error=ValueError("x"), number=float("nan"))
        (line,) = said.objects()
        assert "xff" in line["raw"]
        assert "ValueError" in line["error"]

    def test_lines_of_libraries_have_the_same_form(self, capsys: pytest.CaptureFixture[str]) -> None:
        """With their arguments filled in."""
        said = Said(capsys)
        logging.getLogger("aiokafka.consumer").warning("lost %s\nand %d more", "tp", 3)
        (line,) = said.objects()
        assert (line["event"], line["level"]) == ("lost tp\nand 3 more", "warning")
        assert "timestamp" in line


class TestLevels:
    @pytest.mark.parametrize(
        ("level", "heard"), [("DEBUG", "diwe"), ("INFO", "iwe"), ("WARNING", "we"), ("ERROR", "e")]
    )
    def test_the_level_is_that_of_our_own_lines(
        self, level: str, heard: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        said = Said(capsys, log_level=level)
        for name in ("debug", "info", "warning", "error"):
            getattr(said.log, name)("x")
        assert "".join(line["level"][0] for line in said.objects()) == heard

    def test_libraries_are_heard_from_warnings_on(self, capsys: pytest.CaptureFixture[str]) -> None:
        """At DEBUG too: a client's every fetch would bury the worker's own lines."""
        said = Said(capsys, log_level="DEBUG")
        for name in ("aiokafka", "faust.app", "anything"):
            logging.getLogger(name).info("x")
            logging.getLogger(name).warning("y")
        assert [line["event"] for line in said.objects()] == ["y"] * 3

    def test_configuring_again_doubles_no_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        Said(capsys)
        said = Said(capsys)
        said.log.info("once")
        assert len(said.lines()) == 1


class TestConsole:
    def test_an_event_is_one_line_of_text(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Without colours where stderr is no terminal."""
        assert not sys.stderr.isatty()
        said = Said(capsys, log_format="console")
        said.log.info("decided", flag="f", seq=3)
        (line,) = said.lines()
        assert "decided" in line
        assert re.search("flag='?f\\b", line)
        assert "seq=3" in line
        assert "\x1b" not in line

    @pytest.mark.parametrize("value", [value for value in HOSTILE if value and value != "\ud800"])
    def test_whatever_is_in_a_value_the_event_stays_one_line(
        self, value: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A region from telemetry neither forges a line nor sends commands to somebody's terminal."""
        said = Said(capsys, log_format="console")
        said.log.warning("decided", region=value)
        text = said.text()
        assert text.count("\n") == 1
        assert not [c for c in text[:-1] if unicodedata.category(c) in ("Cc", "Zl", "Zp")]
