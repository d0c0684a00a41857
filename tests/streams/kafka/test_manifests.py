"""Manifest revisions: taken when all is right, else refused with the reason while the last good one stays in force."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from tidegate.schemas.errors import InputError, Refusal, SignatureError
from tidegate.schemas.load import load_manifest
from tidegate.schemas.operation import Operation
from tidegate.schemas.signed import PrivateKey, key_id, sign
from tidegate.schemas.timeline import Timeline
from tidegate.schemas.times import iso
from tidegate.streams.kafka.manifests import ManifestLog, accept, read_files, record_key, sign_revision
from tidegate.streams.kafka.operations import OperationLog
from tidegate.streams.settings import load_settings

KEY = PrivateKey.from_private_bytes(bytes(32))
OTHER = PrivateKey.from_private_bytes(bytes([1] * 32))
TRUSTED = {key_id(KEY.public_key()): KEY.public_key()}
PANE, LEAD = 10_000, 120_000
NOON = 1_700_000_000_000
SETTINGS = load_settings(manifest_lead=LEAD)
HERE = SETTINGS.deployment
YAML = "# ours\nflags:\n  answer: {window: {length: 30s}}\n"


def taken(timeline: Timeline, document: bytes | None, timestamp: int = NOON) -> Timeline:
    return Timeline([*timeline.revisions, accept(timeline, document, timestamp, SETTINGS, TRUSTED)])


FIRST = taken(Timeline(), sign_revision(YAML, 3, NOON, HERE, KEY))


def refusal(document: bytes | None, timestamp: int = NOON, timeline: Timeline = FIRST) -> str:
    with pytest.raises(Refusal) as found:
        accept(timeline, document, timestamp, SETTINGS, TRUSTED)
    return str(found.value)


def test_a_good_revision_is_taken_with_flags_time_and_signer() -> None:
    revision = FIRST.revisions[0]
    assert (revision.number, revision.effective_from, revision.by) == (3, NOON, key_id(KEY.public_key()))
    assert revision.flags == load_manifest(YAML).flags
    assert record_key(revision) == b"revision-0000000003"


def test_the_first_revision_may_be_in_force_since_long_ago() -> None:
    """Workers wait for it, so there is nothing that it could be too late for."""
    assert taken(Timeline(), sign_revision(YAML, 1, 0, HERE, KEY), NOON).index(NOON) == 0


def test_the_next_one_follows_from_its_time_on() -> None:
    both = taken(FIRST, sign_revision(YAML.replace("30s", "40s"), 4, NOON + LEAD, HERE, KEY))
    lengths = [both.flags(at)["answer"].window.length_ms for at in (NOON + LEAD - 1, NOON + LEAD)]
    assert lengths == [30_000, 40_000]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_revision_that_is_not_above_the_last_is_refused(number: int) -> None:
    """Played again or out of order: an old manifest never comes back by an old signature."""
    assert f"revision {number} is not above 3" in refusal(sign_revision(YAML, number, NOON + LEAD, HERE, KEY))


def test_a_revision_needs_its_lead_before_it_takes_effect() -> None:
    """And the refusal names the first time that would do."""
    document = sign_revision(YAML, 4, NOON + LEAD, HERE, KEY)
    assert taken(FIRST, document, NOON).index(NOON + LEAD) == 1
    assert f"sign it with {iso(NOON + LEAD + PANE)} or later" in refusal(document, NOON + 1)


def test_a_revision_takes_effect_where_a_pane_starts() -> None:
    for timeline in (Timeline(), FIRST):
        said = refusal(sign_revision(YAML, 4, NOON + LEAD + 1, HERE, KEY), timeline=timeline)
        assert f"not the start of a pane; sign it with {iso(NOON + LEAD + PANE)}" in said


def test_revisions_take_effect_in_their_order() -> None:
    later = taken(FIRST, sign_revision(YAML, 4, NOON + 10 * LEAD, HERE, KEY))
    assert "before revision 4 is" in refusal(sign_revision(YAML, 5, NOON + 9 * LEAD, HERE, KEY), timeline=later)
    assert taken(later, sign_revision(YAML, 5, NOON + 10 * LEAD, HERE, KEY)).index(NOON + 10 * LEAD) == 2


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("", "empty"),
        ("flags: {}", "no flags"),
        ("flags: {x: {kind: kil_switch}}", r"flags\.x\.kind: unknown kind.*did you mean kill_switch"),
        ("flags: {x: {window: {length: 15s}}}", r"flags\.x\.window\.length: the window is not a multiple"),
        ("flags: [", "not valid YAML"),
    ],
)
def test_an_invalid_manifest_is_refused_with_its_own_message(yaml: str, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        accept(FIRST, sign_revision(yaml, 4, NOON + LEAD, HERE, KEY), NOON, SETTINGS, TRUSTED)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b"\xff",
        b'{"effective_from":0,"manifest":"flags: {x: {}}","revision":4,"more":1}',
        b'{"effective_from":0,"manifest":"flags: {x: {}}","revision":true}',
        b'{"effective_from":-10000,"manifest":"flags: {x: {}}","revision":4}',
        b'{"effective_from":9007199254750000000,"manifest":"flags: {x: {}}","revision":4}',
        b'{"effective_from":0,"manifest":"flags: {x: {}}","revision":0}',
        b'{"effective_from":0,"manifest":"flags: {x: {}}","revision":10000000000}',
        b'{"effective_from":0,"manifest":1,"revision":4}',
    ],
)
def test_a_signed_payload_that_is_no_revision_is_refused(payload: bytes) -> None:
    """A trusted key may sign nonsense; it is refused, not a crash."""
    assert "not a manifest revision" in refusal(sign("manifest", HERE, payload, KEY))


def test_who_may_not_sign_is_refused_before_anything_is_read() -> None:
    """The payload is nonsense and too old at once; what is told is that the key is not trusted."""
    with pytest.raises(SignatureError, match="not trusted"):
        accept(FIRST, sign("manifest", HERE, b"nonsense", OTHER), NOON, SETTINGS, TRUSTED)
    assert "not a signed document" in refusal(YAML.encode())
    assert "is empty" in refusal(None)


def record(value: bytes | None, offset: int = 0, timestamp: int = NOON) -> Any:
    return SimpleNamespace(value=value, offset=offset, timestamp=timestamp)


def test_a_refused_record_leaves_the_last_good_revision_in_force() -> None:
    log = ManifestLog(load_settings(), TRUSTED)
    assert isinstance(log.take(record(b"nonsense")), Refusal)
    assert log.take(record(sign_revision(YAML, 3, NOON, HERE, KEY))) == FIRST.revisions[0]
    for document in (
        sign_revision("flags: {}", 4, NOON + LEAD, HERE, KEY),
        sign_revision(YAML, 2, NOON + LEAD, HERE, KEY),
        sign_revision(YAML, 4, NOON + LEAD, HERE, OTHER),
        None,
    ):
        assert isinstance(log.take(record(document)), Refusal)
    assert [revision.number for revision in log.timeline.revisions] == [3]
    log.take(record(sign_revision(YAML, 4, NOON + LEAD, HERE, KEY)))
    assert [revision.number for revision in log.timeline.revisions] == [3, 4]


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def _write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return _write


def test_a_single_yaml_file_is_in_force_since_ever(write: Callable[[str, bytes], Path]) -> None:
    timeline = read_files([write("f.yml", YAML.encode())], SETTINGS, None)
    assert timeline.flags(0) == load_manifest(YAML).flags


def test_signed_files_carry_their_times_whatever_their_order(write: Callable[[str, bytes], Path]) -> None:
    """Without a lead: whoever replays has them all from the start."""
    two = write("2", sign_revision(YAML, 2, NOON + PANE, HERE, KEY))
    one = write("1", sign_revision(YAML, 1, NOON, HERE, KEY))
    timeline = read_files([two, one], SETTINGS, TRUSTED)
    assert [(r.number, r.effective_from) for r in timeline.revisions] == [(1, NOON), (2, NOON + PANE)]
    assert timeline.flags(NOON - 1) == {}


def test_files_that_make_no_timeline_are_named(write: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    yaml = write("f.yml", YAML.encode())
    one = write("one", sign_revision(YAML, 1, NOON, HERE, KEY))
    again = write("again", sign_revision(YAML, 1, NOON + PANE, HERE, KEY))
    earlier = write("earlier", sign_revision(YAML, 2, NOON - PANE, HERE, KEY))
    forged = write("forged", sign_revision(YAML, 2, NOON, HERE, OTHER))
    wrong = write("wrong.yml", b"flags: {x: {y: 1}}")
    for paths, trusted, message in (
        ([yaml, one], TRUSTED, r"f\.yml: an unsigned manifest has no time"),
        ([one], None, "one: signed, and no keys"),
        ([one, again], TRUSTED, "do not make a sequence"),
        ([one, earlier], TRUSTED, "do not make a sequence"),
        ([one, forged], TRUSTED, "forged: signed with the key"),
        ([wrong], None, r"flags\.x\.y: unknown key"),
        ([tmp_path / "none"], TRUSTED, "none: No such file"),
    ):
        with pytest.raises(InputError, match=message):
            read_files(paths, SETTINGS, trusted)


# -- fuzz -------------------------------------------------------------------------------------------------------------

MUTATIONS = 10_000


def mutated(rng: random.Random, document: bytes, others: list[bytes]) -> bytes:
    """One change to a signed document, as chance or a forger may make it."""
    head, payload = document.split(b"\n", 1)
    words = head.split(b" ")
    at = rng.randrange(len(document))
    match rng.randrange(8):
        case 0:
            return document[:at] + bytes([document[at] ^ 1 << rng.randrange(8)]) + document[at + 1 :]
        case 1:
            return document[:at]
        case 2:
            return document[:at] + rng.randbytes(rng.randrange(1, 9)) + document[at:]
        case 3:
            other = rng.choice(others)
            return document[:at] + other[rng.randrange(len(other)) :]
        case 4:
            words[1] = rng.choice([b"manifest", b"operation", b"", b"Manifest"])
        case 5:
            words[2] = rng.choice(
                [key_id(OTHER.public_key()).encode(), words[2].upper(), b"", rng.randbytes(4).hex().encode()]
            )
        case 6:
            kind = "manifest" if words[1] == b"manifest" else "operation"
            return sign(kind, HERE, payload, OTHER)  # type: ignore[arg-type]
        case 7:
            # A head of one document over the payload of another.
            return rng.choice(others).split(b"\n", 1)[0] + b"\n" + payload
    return b" ".join(words) + b"\n" + payload


@pytest.mark.parametrize("seed", [1])
def test_no_mutation_of_manifests_and_operations_is_taken(seed: int) -> None:
    """Forged, cut, spliced, re-signed or played again: 10,000 are refused, and nothing but a refusal is raised."""
    rng = random.Random(seed)
    kill = Operation(actor="Ada", flag="answer", kind="kill", reason="now", ts=NOON)
    rearm = Operation(actor="Ada", flag="answer", kind="rearm", reason="well again", ts=NOON + 1)
    manifests = [sign_revision(YAML, number, NOON + LEAD, HERE, KEY) for number in (3, 4, 5)]
    operations = [sign("operation", HERE, operation.to_bytes(), KEY) for operation in (kill, rearm)]
    everything = [*manifests, *operations]
    revisions, orders = ManifestLog(load_settings(), TRUSTED), OperationLog(SETTINGS, TRUSTED)
    revisions.timeline = FIRST
    for document in operations:
        assert orders.take(record(document))
    tried = 0
    with capture_logs() as logged:
        while tried < MUTATIONS:
            changed = mutated(rng, rng.choice(everything), everything)
            if changed in everything:
                continue
            tried += 1
            # Every now and then one as it was signed, but again.
            old, done = (manifests[0], rng.choice(operations)) if tried % 50 == 0 else (changed, changed)
            assert isinstance(revisions.take(record(old)), Refusal), f"mutation {tried} of seed {seed}"
            assert orders.take(record(done, 7)) is None, f"mutation {tried} of seed {seed}"
    assert len(logged) == MUTATIONS
    assert all(entry["reason"] for entry in logged)
    assert revisions.timeline is FIRST
    assert len(orders.orders) == 2
    # What was changed would have been taken unchanged.
    revisions.take(record(manifests[1]))
    assert [revision.number for revision in revisions.timeline.revisions] == [3, 4]
