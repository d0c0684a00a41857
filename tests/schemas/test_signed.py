"""Signed documents: what was signed by a trusted key opens, and nothing else does."""

import re

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from schemas.errors import InputError, SignatureError
from schemas.signed import (
    MAX_BYTES,
    Kind,
    PrivateKey,
    is_signed,
    key_id,
    open_signed,
    private_pem,
    public_line,
    read_private,
    read_trusted,
    sign,
)

KEY = PrivateKey.from_private_bytes(bytes(32))
OTHER = PrivateKey.from_private_bytes(bytes([1] * 32))
TRUSTED = {key_id(KEY.public_key()): KEY.public_key()}
PAYLOAD = b'{"a":1}\nand \xff more'
SIGNED = sign("manifest", PAYLOAD, KEY)


def test_the_form_is_the_documented_one() -> None:
    """A first line with form, kind, key id and signature, then the payload as it is; RFC 8032 decides the bytes."""
    head, payload = SIGNED.split(b"\n", 1)
    assert payload == PAYLOAD
    assert re.fullmatch(rb"tidegate-signed/1 manifest 139e3940e64b5491 [A-Za-z0-9+/]{86}==", head)
    assert sign("manifest", PAYLOAD, KEY) == SIGNED
    assert is_signed(SIGNED)
    assert not is_signed(PAYLOAD)


@pytest.mark.parametrize("payload", [PAYLOAD, b"", b"\n\n", bytes(1000)])
@pytest.mark.parametrize("kind", ["manifest", "operation"])
def test_what_was_signed_opens_with_the_key_s_id(kind: Kind, payload: bytes) -> None:
    assert open_signed(sign(kind, payload, KEY), kind, TRUSTED) == (payload, "139e3940e64b5491")


def test_a_document_of_one_kind_is_none_of_another() -> None:
    """Neither as it is, nor with its kind rewritten: the signature covers the kind."""
    with pytest.raises(SignatureError, match="signed as manifest, not as operation"):
        open_signed(SIGNED, "operation", TRUSTED)
    with pytest.raises(SignatureError, match="does not fit"):
        open_signed(SIGNED.replace(b" manifest ", b" operation ", 1), "operation", TRUSTED)


def test_a_key_that_is_not_trusted_opens_nothing() -> None:
    forged = sign("manifest", PAYLOAD, OTHER)
    with pytest.raises(SignatureError, match=r"not trusted \(trusted: 139e3940e64b5491\)"):
        open_signed(forged, "manifest", TRUSTED)
    with pytest.raises(SignatureError, match=r"trusted: none"):
        open_signed(SIGNED, "manifest", {})
    its_id, id_of_key = key_id(OTHER.public_key()).encode(), key_id(KEY.public_key()).encode()
    with pytest.raises(SignatureError, match="does not fit"):
        open_signed(forged.replace(its_id, id_of_key, 1), "manifest", TRUSTED)


@pytest.mark.parametrize(
    "document",
    [
        None,
        b"",
        b"\n",
        b"flags: {}\n",
        b"tidegate-signed/1",
        b"tidegate-signed/2" + SIGNED[17:],
        SIGNED.split(b"\n")[0],
        SIGNED.replace(b"==\n", b"\n", 1),
        SIGNED.replace(b"==\n", b"== \n", 1),
        SIGNED.replace(b"==\n", b"==\r\n", 1),
        SIGNED.replace(b" manifest", b"  manifest", 1),
        SIGNED + b" ",
        SIGNED[:-1],
        b" " + SIGNED,
        SIGNED + bytes(MAX_BYTES),
    ],
)
def test_anything_else_is_a_signature_error(document: bytes | None) -> None:
    with pytest.raises(SignatureError):
        open_signed(document, "manifest", TRUSTED)


def test_a_signature_has_one_spelling() -> None:
    """Base64 ignores the last bits of its last letter; a second spelling would be a second document."""
    head, payload = SIGNED.split(b"==\n", 1)
    last = head[-1:]
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for letter in letters:
        if bytes([letter]) != last:
            with pytest.raises(SignatureError):
                open_signed(head[:-1] + bytes([letter]) + b"==\n" + payload, "manifest", TRUSTED)


def test_a_document_has_at_most_1_mib() -> None:
    """Also when it is signed: nobody should sign what nobody takes."""
    room = MAX_BYTES - len(sign("manifest", b"", KEY))
    assert open_signed(sign("manifest", bytes(room), KEY), "manifest", TRUSTED)[0] == bytes(room)
    with pytest.raises(SignatureError, match="shorten"):
        sign("manifest", bytes(room + 1), KEY)


def test_trusted_keys_are_read_from_their_lines() -> None:
    text = f"# ours\n\n{public_line(KEY.public_key(), 'a b')}\n  {public_line(OTHER.public_key())}\n"
    keys = read_trusted(text)
    assert list(keys) == [key_id(KEY.public_key()), key_id(OTHER.public_key())]
    assert open_signed(sign("operation", b"x", OTHER), "operation", keys)[0] == b"x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "keys: no key in it"),
        ("# nothing\n", "keys: no key in it"),
        ("139e3940e64b5491", "keys:1: no public key"),
        ("\n139e3940e64b5491 !", "keys:2: no public key"),
        ("139e3940e64b5491 AAAA", "keys:1: no public key"),
        ("139e3940e64b5491 é", "keys:1: no public key"),
        (
            public_line(OTHER.public_key()).replace(key_id(OTHER.public_key()), "139e3940e64b5491"),
            "keys:1: the key's id",
        ),
    ],
)
def test_a_line_that_is_no_key_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_trusted(text, "keys")


def test_a_private_key_comes_back_from_its_pem() -> None:
    assert key_id(read_private(private_pem(KEY)).public_key()) == key_id(KEY.public_key())


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nnothing\n-----END PRIVATE KEY-----\n",
        KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
        Ed448PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ],
    ids=["empty", "garbage", "encrypted", "another algorithm"],
)
def test_what_is_no_private_key_is_named(pem: bytes) -> None:
    with pytest.raises(InputError, match=r"k\.pem: no Ed25519 private key"):
        read_private(pem, "k.pem")
