"""Operations: what a record, a command line and a replay's file say, read strictly."""

import json
from typing import Any

import pytest

from tests.schemas.test_signed import HERE, KEY, OTHER, TRUSTED
from tidegate.schemas.decision import OperationBy
from tidegate.schemas.errors import InputError, Refusal, SignatureError
from tidegate.schemas.operation import Operation, check_time, parse_operation, read_operation
from tidegate.schemas.signed import key_id, sign

GIVEN: dict[str, Any] = {"actor": "Ada", "flag": "answer", "kind": "kill", "reason": "it löst", "ts": 1_700_000_000_000}
KILL = Operation(**GIVEN)
DAY = 86_400_000


def test_the_payload_is_canonical_json() -> None:
    assert KILL.to_bytes() == (
        '{"actor":"Ada","flag":"answer","kind":"kill","reason":"it löst","ts":1700000000000}'.encode()
    )
    assert parse_operation(KILL.to_bytes()) == KILL


def test_a_decision_shows_who_when_and_why() -> None:
    assert KILL.by == OperationBy(kind="kill", ts=1_700_000_000_000, actor="Ada", reason="it löst")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "stop"}, "kind"),
        ({"actor": ""}, "actor"),
        ({"reason": ""}, "reason"),
        ({"reason": "x" * 1025}, "reason"),
        ({"flag": None}, "flag"),
        ({"ts": -1}, "ts"),
        ({"ts": 2**53}, "ts"),
        ({"ts": "1"}, "ts"),
        ({"ts": True}, "ts"),
        ({"region": "eu"}, "region"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str) -> None:
    """A misspelt field must not be ignored in silence, and a kill is of every region."""
    with pytest.raises(InputError, match=message):
        parse_operation(json.dumps(GIVEN | change))


@pytest.mark.parametrize("name", GIVEN)
def test_every_field_is_needed(name: str) -> None:
    with pytest.raises(InputError, match=name):
        parse_operation(json.dumps({key: value for key, value in GIVEN.items() if key != name}))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b'"\\ud800"'])
def test_what_is_no_operation_at_all_is_an_input_error(text: bytes) -> None:
    with pytest.raises(InputError):
        parse_operation(text)


def test_with_trusted_keys_only_a_signed_operation_is_read() -> None:
    payload = KILL.to_bytes()
    assert read_operation(sign("operation", HERE, payload, KEY), HERE, TRUSTED) == KILL
    for forged in (payload, None, sign("operation", HERE, payload, OTHER), sign("manifest", HERE, payload, KEY)):
        with pytest.raises(SignatureError):
            read_operation(forged, HERE, TRUSTED)


def test_a_signed_payload_that_is_no_operation_is_refused() -> None:
    """A trusted key may sign nonsense; it is refused, not a crash."""
    for payload in (b"", b"nonsense", b"[" * 100_000):
        with pytest.raises(Refusal, match="not an operation"):
            read_operation(sign("operation", HERE, payload, KEY), HERE, TRUSTED)


def test_without_keys_only_bare_json_is_read() -> None:
    """A signature that nobody can verify must not look as if it were."""
    assert read_operation(KILL.to_bytes(), HERE, None) == KILL
    for document in (None, sign("operation", HERE, KILL.to_bytes(), KEY), bytes(2 << 20)):
        with pytest.raises(Refusal):
            read_operation(document, HERE, None)


def test_an_operation_ahead_of_its_record_is_refused() -> None:
    """Its command would take effect later than ordered: the clock it came from is wrong. One minute is let pass."""
    check_time(KILL, KILL.ts - 60_000, DAY)
    check_time(KILL, KILL.ts + DAY, DAY)
    with pytest.raises(Refusal, match="61 s ahead"):
        check_time(KILL, KILL.ts - 61_000, DAY)


def test_an_operation_that_is_older_than_its_record_may_be_is_refused() -> None:
    """A kill or rearm of last month that somebody writes again is nobody's order; only its record's time is asked."""
    with pytest.raises(Refusal, match=r"24\.0 h before it was written.*order it again"):
        check_time(KILL, KILL.ts + DAY + 1, DAY)


def test_an_operation_of_another_deployment_is_refused() -> None:
    """A kill of staging is none of production, though the same people may kill in both."""
    with pytest.raises(SignatureError, match="signed for the deployment staging/tidegate"):
        read_operation(sign("operation", "staging/tidegate", KILL.to_bytes(), KEY), HERE, TRUSTED)


def test_the_keys_of_these_tests_differ() -> None:
    assert key_id(OTHER.public_key()) not in TRUSTED
