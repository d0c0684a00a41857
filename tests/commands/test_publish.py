"""``tidegate publish``: a revision that leaves out a flag with units is refused unless it retires it."""

import asyncio
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from tests.commands.invoke import Done, tidegate
from tests.streams.events import NOON, RAMP
from tests.streams.kafka.test_operations import BOUNDARY, OTHER, Gate, timeline
from tidegate.schemas.errors import Refusal
from tidegate.schemas.load import load_manifest
from tidegate.schemas.timeline import Revision, Timeline
from tidegate.streams.commands.publish import check_dropped
from tidegate.streams.kafka.tail import tail
from tidegate.streams.settings import Settings, load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

BOTH = RAMP + "  g: {}\n"
FIRST, SECOND = timeline(BOTH, (BOUNDARY, OTHER)).revisions
UNITS = {"f|eu": "promote", "f|us": "hold", "g|": "hold"}


def refusal(before: Timeline, revision: Revision, units: dict[str, str] | None) -> str:
    with pytest.raises(Refusal) as refused:
        check_dropped(before, revision, units)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_flag_with_units_is_not_left_out_in_silence() -> None:
    """The message names the flag, its units and the ways on."""
    said = refusal(Timeline([FIRST]), SECOND, UNITS)
    assert "leaves out f, which has units in eu (last promote), us (last hold)" in said
    assert "Keep the flag" in said
    assert "--retire f" in said
    check_dropped(Timeline([FIRST]), replace(SECOND, retires=("f",)), UNITS)


def test_a_flag_without_units_may_go() -> None:
    """Nobody serves by it; nor one that an earlier revision has taken out, and so retires."""
    check_dropped(Timeline([FIRST]), SECOND, {"g|": "hold"})
    later = Revision(3, BOUNDARY + 10_000, load_manifest(OTHER).flags)
    check_dropped(Timeline([FIRST, SECOND]), later, UNITS)


def test_the_first_revision_after_a_file_is_held_against_all_units() -> None:
    assert "leaves out f" in refusal(Timeline(), SECOND, UNITS)


def test_where_decisions_cannot_be_read_every_flag_counts_as_served() -> None:
    assert "leaves out f, which has units, as far as is known" in refusal(Timeline([FIRST]), SECOND, None)
    check_dropped(Timeline([FIRST]), replace(SECOND, retires=("f",)), None)


def test_a_flag_that_never_was_is_not_retired() -> None:
    """A misspelt one would leave the real one where it is."""
    said = refusal(Timeline([FIRST]), replace(SECOND, retires=("f", "gg")), UNITS)
    assert "retires gg, and there is no such flag; did you mean g?" in said


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Settings]:
    monkeypatch.chdir(tmp_path)
    tidegate("keygen", "key")
    topics = {"tidegate.decisions": 2, "tidegate.manifests": 1}
    with embedded_broker(topics) as servers:
        yield load_settings(broker=servers, fetch_wait=50)


async def _write(settings: Settings, gate: Gate) -> None:
    async with AIOKafkaProducer(**settings.kafka) as producer:
        for decision in gate.decisions:
            await producer.send_and_wait(settings.decisions_topic, decision.to_bytes(), key=decision.key.encode())


def test_publish_reads_what_was_decided(settings: Settings) -> None:
    """Refused without --retire; with it signed again, and what it retires is in what the workers read."""

    def signed(name: str, text: str, revision: int, *more: str) -> Done:
        Path(f"{name}.yml").write_text(text)
        when = ("--revision", revision, "--effective-from", "now+10m", "--out", name)
        return tidegate("sign", f"{name}.yml", "--key", "key", *when, *more)

    def published(name: str, *more: str) -> Done:
        return tidegate("publish", name, "--trusted-keys", "key.pub", "--broker", settings.broker, *more)

    signed("one", BOTH, 1)
    assert published("one").code == 0
    gate = Gate(timeline(BOTH))
    gate.until(3, "eu")
    asyncio.run(_write(settings, gate))
    signed("two", OTHER, 2)
    refused = published("two")
    assert refused.code == 2
    assert "leaves out f, which has units in eu (last promote)" in refused.line
    assert "what a revision retires is signed" in published("two", "--retire", "f").line
    assert "which its manifest names" in published("two", "--retire", "g", "--key", "key").line
    done = published("two", "--retire", "f", "--key", "key")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"revision 2, .*: g; it retires f", done.out)
    # The flag is out, and no later revision needs to say so again.
    signed("three", OTHER, 3)
    assert published("three").code == 0


def test_sign_writes_what_is_retired(settings: Settings) -> None:
    Path("flags.yml").write_text(OTHER)
    words = ("--key", "key", "--revision", 1, "--effective-from", NOON, "--out", "signed")
    assert "; retires f" in tidegate("sign", "flags.yml", *words, "--retire", "f").out
    assert b'"retire":["f"]' in Path("signed").read_bytes()
    refused = tidegate("sign", "flags.yml", *words, "--retire", "g")
    assert (refused.code, "names g; take it out there first" in refused.line) == (2, True)


def test_publish_of_what_is_there_says_so_and_writes_nothing(settings: Settings) -> None:
    """Also once a later revision is there, and of another key that signs the same; never of another content."""

    def signed(name: str, revision: int, when: object, *more: str, key: str = "key") -> None:
        words = ("--revision", revision, "--effective-from", when, "--out", name, *more)
        assert tidegate("sign", "flags.yml", "--key", key, *words).code == 0

    def published(name: str) -> Done:
        return tidegate("publish", name, "--trusted-keys", "keys", "--broker", settings.broker)

    tidegate("keygen", "other")
    Path("keys").write_text(Path("key.pub").read_text() + Path("other.pub").read_text())
    Path("flags.yml").write_text(OTHER)
    later = int(time.time()) // 10 * 10_000 + 3_600_000
    signed("one", 1, NOON)
    signed("two", 2, later)
    signed("other-key", 2, later, key="other")
    signed("other-time", 2, later + 10_000)
    assert [published(name).code for name in ("one", "two")] == [0, 0]
    records = asyncio.run(_manifests(settings))
    for name in ("one", "two", "two", "other-key"):
        done = published(name)
        assert (done.code, done.err) == (0, "")
        assert "is there already: in force from" in done.out
    assert "to 20" in published("one").out
    assert "when revision 2 takes over" in published("one").out
    assert "revision 2 is not above 2, the last one" in published("other-time").line
    assert asyncio.run(_manifests(settings)) == records


async def _manifests(settings: Settings) -> int:
    async with tail(settings, settings.manifests_topic) as manifests:
        return len(await manifests.history())
