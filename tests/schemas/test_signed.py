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

from tidegate.schemas.errors import InputError, SignatureError
from tidegate.schemas.signed import (
    DOCUMENT_BYTES_MAX,
    DocumentKind,
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
HERE = "tidegate/tidegate"
SIGNED = sign("manifest", HERE, PAYLOAD, KEY)


def test_the_form_is_the_documented_one() -> None:
    """A first line with form, kind, key id and signature, then the payload as it is; RFC 8032 decides the bytes."""
    head, payload = SIGNED.split(b"\n", 1)
    assert payload == PAYLOAD
    assert re.fullmatch(rb"tidegate-signed/2 manifest tidegate/tidegate 139e3940e64b5491 [A-Za-z0-9+/]{86}==", head)
    assert sign("manifest", HERE, PAYLOAD, KEY) == SIGNED
    assert is_signed(SIGNED)
    assert not is_signed(PAYLOAD)


@pytest.mark.parametrize("payload", [PAYLOAD, b"", b"\n\n", bytes(1000)])
@pytest.mark.parametrize("kind", ["manifest", "operation"])
def test_what_was_signed_opens_with_the_key_s_id(kind: DocumentKind, payload: bytes) -> None:
    assert open_signed(sign(kind, HERE, payload, KEY), kind, HERE, TRUSTED) == (payload, "139e3940e64b5491")


def test_a_document_of_one_kind_is_none_of_another() -> None:
    """Neither as it is, nor with its kind rewritten: the signature covers the kind."""
    with pytest.raises(SignatureError, match="signed as manifest, not as operation"):
        open_signed(SIGNED, "operation", HERE, TRUSTED)
    with pytest.raises(SignatureError, match="does not fit"):
        open_signed(SIGNED.replace(b" manifest ", b" operation ", 1), "operation", HERE, TRUSTED)


@pytest.mark.parametrize("kind", ["manifest", "operation"])
@pytest.mark.parametrize("there", ["staging/tidegate", "tidegate/blue", "tidegate/tidegate2", "a/b"])
def test_a_document_of_one_deployment_is_none_of_another(kind: DocumentKind, there: str) -> None:
    """Neither as it is, nor with the deployment rewritten."""
    document = sign(kind, there, PAYLOAD, KEY)
    said = f"signed for the deployment {there}, and this is {HERE} .*sign it for this one"
    with pytest.raises(SignatureError, match=said) as refused:
        open_signed(document, kind, HERE, TRUSTED)
    assert "\n" not in str(refused.value)
    with pytest.raises(SignatureError, match="does not fit"):
        open_signed(document.replace(there.encode(), HERE.encode(), 1), kind, HERE, TRUSTED)


@pytest.mark.parametrize("there", ["", "tidegate", "a b/c", "a/b/c", "é/b", "a/", "/b", "a/b\n"])
def test_nothing_is_signed_for_what_no_deployment_is_called(there: str) -> None:
    with pytest.raises(SignatureError, match="TIDEGATE_TOPIC_PREFIX"):
        sign("manifest", there, PAYLOAD, KEY)


def test_what_an_earlier_version_signed_is_refused_with_the_way_out() -> None:
    """It did not say which deployment it was for."""
    old = b"tidegate-signed/1 manifest 139e3940e64b5491 c2lnbmF0dXJl\n" + PAYLOAD
    with pytest.raises(SignatureError, match="did not name the deployment it is for; sign it again"):
        open_signed(old, "manifest", HERE, TRUSTED)


def test_a_key_that_is_not_trusted_opens_nothing() -> None:
    forged = sign("manifest", HERE, PAYLOAD, OTHER)
    with pytest.raises(SignatureError, match=r"not trusted \(trusted: 139e3940e64b5491\)"):
        open_signed(forged, "manifest", HERE, TRUSTED)
    with pytest.raises(SignatureError, match=r"trusted: none"):
        open_signed(SIGNED, "manifest", HERE, {})
    its_id, id_of_key = key_id(OTHER.public_key()).encode(), key_id(KEY.public_key()).encode()
    with pytest.raises(SignatureError, match="does not fit"):
        open_signed(forged.replace(its_id, id_of_key, 1), "manifest", HERE, TRUSTED)


@pytest.mark.parametrize(
    "document",
    [
        None,
        b"",
        b"\n",
        b"flags: {}\n",
        b"tidegate-signed/2",
        b"tidegate-signed/1" + SIGNED[17:],
        b"tidegate-signed/3" + SIGNED[17:],
        SIGNED.split(b"\n")[0],
        SIGNED.replace(b"==\n", b"\n", 1),
        SIGNED.replace(b"==\n", b"== \n", 1),
        SIGNED.replace(b"==\n", b"==\r\n", 1),
        SIGNED.replace(b" manifest", b"  manifest", 1),
        SIGNED + b" ",
        SIGNED[:-1],
        b" " + SIGNED,
        SIGNED + bytes(DOCUMENT_BYTES_MAX),
    ],
)
def test_anything_else_is_a_signature_error(document: bytes | None) -> None:
    with pytest.raises(SignatureError):
        open_signed(document, "manifest", HERE, TRUSTED)


def test_a_signature_has_one_spelling() -> None:
    """Base64 ignores the last bits of its last letter; a second spelling would be a second document."""
    head, payload = SIGNED.split(b"==\n", 1)
    last = head[-1:]
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for letter in letters:
        if bytes([letter]) != last:
            with pytest.raises(SignatureError):
                open_signed(head[:-1] + bytes([letter]) + b"==\n" + payload, "manifest", HERE, TRUSTED)


def test_a_document_has_at_most_1_mib() -> None:
    """Also when it is signed: nobody should sign what nobody takes."""
    room = DOCUMENT_BYTES_MAX - len(sign("manifest", HERE, b"", KEY))
    assert open_signed(sign("manifest", HERE, bytes(room), KEY), "manifest", HERE, TRUSTED)[0] == bytes(room)
    with pytest.raises(SignatureError, match="shorten"):
        sign("manifest", HERE, bytes(room + 1), KEY)


def test_trusted_keys_are_read_from_their_lines() -> None:
    text = f"# ours\n\n{public_line(KEY.public_key(), 'a b')}\n  {public_line(OTHER.public_key())}\n"
    keys = read_trusted(text)
    assert list(keys) == [key_id(KEY.public_key()), key_id(OTHER.public_key())]
    assert open_signed(sign("operation", HERE, b"x", OTHER), "operation", HERE, keys)[0] == b"x"


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
