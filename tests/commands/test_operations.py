"""``tidegate keygen``, ``sign``, ``publish`` and operators' orders: what they write, and what they refuse."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.commands.invoke import tidegate
from tests.streams.events import NOON, PANE, RAMP, healthy_pane, tick, written
from tidegate.schemas.errors import TopicError
from tidegate.schemas.load import load_manifest
from tidegate.schemas.operation import Operation, read_operation
from tidegate.schemas.signed import open_signed, read_private, read_trusted
from tidegate.streams.commands import kill as kill_command
from tidegate.streams.kafka.manifests import open_revision, sign_revision
from tidegate.streams.settings import Settings

HERE = "tidegate/tidegate"
YAML = "# ours, and kept so\nflags:\n  answer: {window: {length: 30s}}\n"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the caller's environment, and a folder with a key, its public line and a manifest."""
    for name in [name for name in os.environ if name.upper().startswith("TIDEGATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert tidegate("keygen", "key", "--comment", "the release  team").code == 0
    Path("flags.yml").write_text(YAML)


def test_keygen_writes_a_key_for_its_owner_and_a_line_for_everyone() -> None:
    assert stat.S_IMODE(Path("key").stat().st_mode) == 0o600
    assert b"BEGIN PRIVATE KEY" in Path("key").read_bytes()
    line = Path("key.pub").read_text()
    assert line.endswith(" the release team\n")
    (public,) = read_trusted(line).values()
    assert read_private(Path("key").read_bytes()).public_key() == public


def test_keygen_overwrites_nothing() -> None:
    """A key that is lost cannot be made again."""
    before = Path("key").read_bytes()
    done = tidegate("keygen", "key")
    assert (done.code, done.line) == (2, "tidegate: key: File exists")
    assert Path("key").read_bytes() == before
    Path("other.pub").write_text("precious")
    assert tidegate("keygen", "other").code == 2
    assert Path("other.pub").read_text() == "precious"
    assert not Path("other").exists()


def sign(*more: object) -> Any:
    return tidegate("sign", "flags.yml", "--key", "key", "--out", "signed", *more)


@pytest.mark.parametrize("when", [str(NOON), "2023-11-14T22:13:20", "2023-11-14T23:13:20+01:00"])
def test_sign_makes_a_revision_that_opens_with_the_public_line(when: str) -> None:
    """The YAML is in it as it was written."""
    assert sign("--revision", 7, "--effective-from", when).code == 0
    document, trusted = Path("signed").read_bytes(), read_trusted(Path("key.pub").read_text())
    revision = open_revision(document, HERE, trusted, PANE)
    assert (revision.number, revision.effective_from) == (7, NOON)
    assert revision.flags == load_manifest(YAML).flags
    assert json.loads(open_signed(document, "manifest", HERE, trusted)[0])["manifest"] == YAML


def test_what_is_signed_for_another_deployment_is_refused_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Production takes no revision that staging was given, whoever copies it."""
    monkeypatch.setenv("TIDEGATE_TOPIC_PREFIX", "staging")
    assert "for staging/tidegate" in sign("--revision", 7, "--effective-from", NOON).out
    monkeypatch.delenv("TIDEGATE_TOPIC_PREFIX")
    Path("log.ndjson").write_bytes(tick(NOON) or b"")
    done = replay("signed", more=("--trusted-keys", "key.pub"))
    assert done.code == 2
    assert "signed: signed for the deployment staging/tidegate, and this is tidegate/tidegate" in done.line
    monkeypatch.setenv("TIDEGATE_TOPIC_PREFIX", "staging")
    assert replay("signed", more=("--trusted-keys", "key.pub")).code == 0


def test_sign_rounds_a_time_from_now_up_to_a_pane() -> None:
    for when in ("now", "now+10m", "now-2h"):
        assert sign("--revision", 1, "--effective-from", when).code == 0
        revision = open_revision(Path("signed").read_bytes(), HERE, read_trusted(Path("key.pub").read_text()), PANE)
        assert revision.effective_from % PANE == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--revision", 1, "--effective-from", NOON + 1),
            "20.001Z is not the start of a pane; the next one starts at 2023-11-14T22:13:30Z",
        ),
        (("--revision", 1, "--effective-from", "soon"), '--effective-from: "soon" is not a time; write 2026-01-31'),
        (("--revision", 1, "--effective-from", "now+5"), "write a whole number with a unit, such as 5s"),
        (("--revision", 0, "--effective-from", NOON), "'--revision': 0 is not in the range"),
        (("--revision", 1, "--effective-from", NOON, "--key", "key.pub"), "key.pub: no Ed25519 private key"),
        (("--revision", 1, "--effective-from", NOON, "--key", "none"), "none: No such file"),
        (("--revision", 1, "--effective-from", NOON, "--out", "no/where"), "no/where: No such file"),
    ],
)
def test_sign_refuses_with_one_line(arguments: tuple[object, ...], message: str) -> None:
    done = sign(*arguments)
    assert done.code == 2
    assert message in done.line
    assert not Path("signed").exists()


def test_sign_refuses_a_manifest_that_workers_would_refuse() -> None:
    Path("flags.yml").write_text("flags: {answer: {gates: {coverage_mim: 0.7}}}")
    done = sign("--revision", 1, "--effective-from", NOON)
    assert (done.code, "did you mean coverage_min" in done.line) == (2, True)


def test_publish_needs_to_know_whom_the_workers_trust() -> None:
    sign("--revision", 1, "--effective-from", NOON)
    done = tidegate("publish", "signed")
    assert (done.code, "TIDEGATE_TRUSTED_KEYS" in done.line) == (2, True)
    assert "none: No such file" in tidegate("publish", "none", "--trusted-keys", "key.pub").line
    assert "flags.yml:2: no public key" in tidegate("publish", "signed", "--trusted-keys", "flags.yml").line


# -- kill and rearm ---------------------------------------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Operation, bytes]]:
    """What would have gone to Kafka."""
    orders: list[tuple[Operation, bytes]] = []

    async def order(settings: Settings, operation: Operation, document: bytes, seconds: float) -> bool:
        orders.append((operation, document))
        return seconds > 0

    async def decided(_: Settings) -> set[str]:
        return {"answer", "rerank"}

    monkeypatch.setattr(kill_command, "_order", order)
    monkeypatch.setattr(kill_command, "_decided", decided)
    return orders


@pytest.mark.parametrize("kind", ["kill", "rearm", "pause", "resume", "promote"])
def test_an_order_is_signed_and_says_who_and_why(kind: str, sent: list[tuple[Operation, bytes]]) -> None:
    done = tidegate(kind, "answer", "--reason", "it löst", "--actor", "Ada", "--key", "key")
    assert (done.code, done.err) == (0, "")
    ((operation, document),) = sent
    assert (operation.kind, operation.flag, operation.reason, operation.actor) == (kind, "answer", "it löst", "Ada")
    assert read_operation(document, HERE, read_trusted(Path("key.pub").read_text())) == operation


def test_the_actor_is_the_user_if_nobody_is_named(
    sent: list[tuple[Operation, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "grace")
    tidegate("kill", "answer", "--reason", "because", "--key", "key")
    assert sent[0][0].actor == "grace"


def test_without_a_key_nothing_goes_out_unless_that_is_how_it_is_set(
    sent: list[tuple[Operation, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tidegate("kill", "answer", "--reason", "because")
    assert (done.code, "no key: give --key FILE" in done.line) == (2, True)
    monkeypatch.setenv("TIDEGATE_UNSIGNED_MANIFEST", "true")
    assert tidegate("kill", "answer", "--reason", "because").code == 0
    assert read_operation(sent[0][1], HERE, None) == sent[0][0]
    monkeypatch.setenv("TIDEGATE_TRUSTED_KEYS", "key.pub")
    assert tidegate("kill", "answer", "--reason", "because").code == 2
    assert len(sent) == 1


def test_an_order_that_workers_would_refuse_is_not_written(
    sent: list[tuple[Operation, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator in a hurry has to hear it now, not read it in a worker's log."""
    tidegate("keygen", "stranger")
    monkeypatch.setenv("TIDEGATE_TRUSTED_KEYS", "key.pub")
    done = tidegate("kill", "answer", "--reason", "because", "--key", "stranger")
    assert (done.code, "not trusted" in done.line) == (2, True)
    for flag, reason, actor, message in (
        ("answer", "", "Ada", "reason"),
        ("", "because", "Ada", "flag"),
        ("answer", "x" * 2000, "Ada", "reason"),
        ("answer", "\udcff", "Ada", "Unicode"),
    ):
        done = tidegate("kill", flag, "--reason", reason, "--actor", actor, "--key", "key")
        assert (done.code, message in done.line) == (2, True)
    assert "reason" in tidegate("kill", "answer").line
    assert "--wait: " in tidegate("kill", "answer", "--reason", "because", "--key", "key", "--wait", "5").line
    assert sent == []


def test_a_flag_that_is_mistyped_is_answered_with_the_nearest_before_anything_is_written(
    sent: list[tuple[Operation, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what was decided, and by the manifest where it is named; --unseen writes it all the same."""
    order = "--reason", "because", "--key", "key"
    for kind in ("kill", "rearm", "pause", "resume", "promote"):
        done = tidegate(kind, "anser", *order)
        assert done.code == 2
        assert "no manifest and no decision names a flag anser; did you mean answer? Nothing was written" in done.line
    assert "; there are answer, rerank. Nothing was written" in tidegate("kill", "zzz", *order).line
    Path("more.yml").write_text("flags: {brand_new: {}}")
    assert "did you mean" not in tidegate("kill", "brand_new", *order).line
    monkeypatch.setenv("TIDEGATE_MANIFEST", "more.yml")
    assert sent == []
    assert tidegate("kill", "brand_new", *order).code == 0
    assert "did you mean brand_new?" in tidegate("kill", "brandnew", *order).line
    assert tidegate("kill", "anser", *order, "--unseen").code == 0
    assert [operation.flag for operation, _ in sent] == ["brand_new", "anser"]


def test_a_flag_without_stages_is_not_promoted(
    sent: list[tuple[Operation, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("guard.yml").write_text("flags: {guard: {kind: cost_guard}}")
    monkeypatch.setenv("TIDEGATE_MANIFEST", "guard.yml")
    for kind in ("pause", "resume", "promote"):
        done = tidegate(kind, "guard", "--reason", "because", "--key", "key")
        assert f"guard is a cost guard, which has no stages to {kind}; nothing was written" in done.line
    assert sent == []
    assert tidegate("kill", "guard", "--reason", "because", "--key", "key").code == 0


def test_an_order_does_not_wait_for_what_cannot_be_read(
    sent: list[tuple[Operation, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(_: Settings) -> set[str]:
        raise TopicError("topic tidegate.decisions cannot be read")

    monkeypatch.setattr(kill_command, "_decided", refused)
    done = tidegate("kill", "answer", "--reason", "because", "--key", "key")
    assert (done.code, len(sent)) == (0, 1)
    assert done.line == "that there is a flag answer was not checked: topic tidegate.decisions cannot be read"


def test_an_order_that_nobody_was_seen_to_carry_out_exits_with_1(sent: list[tuple[Operation, bytes]]) -> None:
    assert tidegate("kill", "answer", "--reason", "because", "--key", "key", "--wait", "0s").code == 1
    assert len(sent) == 1


# -- replay and worker ------------------------------------------------------------------------------------------------


def replay(*manifests: str, more: tuple[object, ...] = ()) -> Any:
    events = [event for pane in range(6) for event in healthy_pane(NOON + pane * PANE)]
    Path("log.ndjson").write_bytes(b"\n".join(line or b"" for line in [*written(events), tick(NOON + 10 * PANE)]))
    given = [word for name in manifests for word in ("--manifest", name)]
    return tidegate("replay", *given, "--events", "log.ndjson", "--out", "out.ndjson", "--commands", "c.ndjson", *more)


def out() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out.ndjson").read_bytes().splitlines()]


def test_replay_takes_signed_revisions_at_their_times() -> None:
    key, boundary = read_private(Path("key").read_bytes()), NOON + 3 * PANE
    Path("one").write_bytes(sign_revision(RAMP, 1, NOON, HERE, key))
    Path("two").write_bytes(sign_revision(RAMP.replace("20s", "30s"), 2, boundary, HERE, key))
    assert "no keys to verify it with" in replay("one", "two").line
    assert replay("two", "one", more=("--trusted-keys", "key.pub")).code == 0
    hashes = {decision["manifest_hash"]: decision["decided_at"] for decision in reversed(out())}
    assert len(hashes) == 2


def test_replay_carries_out_a_file_of_operations() -> None:
    Path("flags.yml").write_text(RAMP)
    order = {"kind": "kill", "flag": "f", "ts": NOON + 1, "actor": "Ada", "reason": "because"}
    Path("ops.ndjson").write_text(json.dumps(order) + "\n\n")
    assert replay("flags.yml", more=("--operations", "ops.ndjson")).code == 0
    # No unit has begun before its first pane is closed; then the kill comes first, and all that follows is latched.
    first, *later = out()
    assert (first["verdict"], first["operation"]["actor"]) == ("kill", "Ada")
    assert {decision["verdict"] for decision in later} == {"hold"}
    commands = [json.loads(line) for line in Path("c.ndjson").read_bytes().splitlines()]
    assert {command["action"] for command in commands} == {"kill"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "kil", "flag": "f", "ts": 1, "actor": "a", "reason": "r"}', "kind"),
        ('{"kind": "kill", "flag": "f", "ts": 1, "actor": "a"}', "reason"),
        ("kill f", "malformed"),
    ],
)
def test_replay_names_the_line_that_is_no_operation(line: str, message: str) -> None:
    good = '{"kind": "kill", "flag": "f", "ts": 1, "actor": "a", "reason": "r"}'
    Path("ops.ndjson").write_text(f"{good}\n{line}\n")
    done = replay("flags.yml", more=("--operations", "ops.ndjson"))
    assert done.code == 2
    assert done.line.startswith("tidegate: ops.ndjson:2: not an operation")
    assert message in done.line
    assert "none: No such file" in replay("flags.yml", more=("--operations", "none")).line


def test_a_worker_takes_unsigned_manifests_only_where_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither keys nor that setting: it does not start, and says what is missing; a signed file needs keys."""
    assert "no trusted keys: set TIDEGATE_TRUSTED_KEYS" in tidegate("worker").line
    assert "no trusted keys" in tidegate("worker", "--manifest", "flags.yml").line
    monkeypatch.setenv("TIDEGATE_TRUSTED_KEYS", "key.pub")
    assert "flags.yml is not signed" in tidegate("worker", "--manifest", "flags.yml").line
    tidegate("keygen", "stranger")
    sign("--revision", 1, "--effective-from", NOON, "--key", "stranger")
    assert "signed with the key" in tidegate("worker", "--manifest", "signed").line
    monkeypatch.delenv("TIDEGATE_TRUSTED_KEYS")
    monkeypatch.setenv("TIDEGATE_UNSIGNED_MANIFEST", "true")
    assert "no keys to verify it with" in tidegate("worker", "--manifest", "signed").line
    assert "no trusted keys" in tidegate("worker").line, "the manifests topic is signed always"
