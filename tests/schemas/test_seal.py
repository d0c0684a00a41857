"""Signatures of records: what is signed, and that nothing else passes."""

from base64 import b64decode, b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tidegate.schemas.errors import SignatureError
from tidegate.schemas.seal import KEY, SIGNATURE, Headers, sign_record, verify_record
from tidegate.schemas.signed import key_id, sign

ALICE, BOB = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
TRUSTED = {key_id(ALICE.public_key()): ALICE.public_key()}
VALUE = b'{"seq":1}'
SIGNED = sign_record(VALUE, "command", ALICE)


def refused(value: bytes | None, headers: Headers) -> str:
    with pytest.raises(SignatureError) as caught:
        verify_record(value, headers, "command", TRUSTED)
    return str(caught.value)


def test_the_signature_is_ed25519_over_form_kind_and_value() -> None:
    """Checked with the library alone; a repeat after a crash has the same bytes."""
    assert [name for name, _ in SIGNED] == ["tidegate.signature", "tidegate.key"]
    signature = b64decode(dict(SIGNED)[SIGNATURE])
    ALICE.public_key().verify(signature, b'tidegate-record/1\ncommand\n{"seq":1}')
    assert sign_record(VALUE, "command", ALICE) == SIGNED


def test_a_signed_record_passes_and_names_its_key_whatever_other_headers_it_has() -> None:
    headers = [("traceparent", b"x"), *SIGNED, ("tidegate.offset", b"7")]
    assert verify_record(VALUE, headers, "command", TRUSTED) == key_id(ALICE.public_key())


@given(st.integers(0, len(VALUE) * 8 - 1))
def test_every_bit_of_the_value_is_covered(bit: int) -> None:
    changed = bytearray(VALUE)
    changed[bit // 8] ^= 1 << bit % 8
    assert "not what the key" in refused(bytes(changed), SIGNED)


def test_one_kind_is_never_taken_for_another() -> None:
    """Nor a record for a signed document, although the keys may be the same."""
    with pytest.raises(SignatureError, match="signed as a decision"):
        verify_record(VALUE, SIGNED, "decision", TRUSTED)
    document = sign("operation", "tidegate/tidegate", b"decision\n" + VALUE, ALICE)
    signature = document.split(b"\n")[0].split(b" ")[3]
    with pytest.raises(SignatureError):
        verify_record(VALUE, [(SIGNATURE, signature), SIGNED[1]], "decision", TRUSTED)


def test_a_stranger_and_a_missing_signature_are_told_apart() -> None:
    assert refused(VALUE, []) == "not signed"
    assert refused(None, SIGNED) == "not signed"
    assert "not trusted" in refused(VALUE, sign_record(VALUE, "command", BOB))
    assert "not what the key" in refused(VALUE, [sign_record(VALUE, "command", BOB)[0], SIGNED[1]])


def test_two_signatures_are_refused_even_if_one_is_right() -> None:
    """Whichever a reader takes first, another reader may take the other."""
    for more in (sign_record(VALUE, "command", BOB), SIGNED, SIGNED[:1], SIGNED[1:]):
        assert "where one of each belongs" in refused(VALUE, [*SIGNED, *more])
    assert "1 signatures and 0 key ids" in refused(VALUE, SIGNED[:1])
    assert "0 signatures and 1 key ids" in refused(VALUE, SIGNED[1:])


@pytest.mark.parametrize(
    "spelled",
    [
        b"",
        b"\xff",
        b64encode(b"short"),
        dict(SIGNED)[SIGNATURE] + b"\n",
        dict(SIGNED)[SIGNATURE].rstrip(b"="),
        b64decode(dict(SIGNED)[SIGNATURE]),
    ],
)
def test_a_signature_that_is_spelled_otherwise_is_refused(spelled: bytes) -> None:
    refused(VALUE, [(SIGNATURE, spelled), SIGNED[1]])


def test_a_hostile_key_id_stays_one_short_line() -> None:
    said = refused(VALUE, [SIGNED[0], (KEY, b"\x1b[2J\n" + b"x" * 10_000)])
    assert said.isprintable()
    assert len(said) < 200
