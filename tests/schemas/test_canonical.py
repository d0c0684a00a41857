import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.schemas.canonical import canonical, sha256_of

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


def test_the_example_of_rfc_8785_section_3_2_gives_its_bytes() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    assert canonical(value) == (
        b'{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        b'"string":"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


@pytest.mark.parametrize(
    ("number", "written"),
    [(1.0, b"1"), (-0.0, b"0"), (0.1 + 0.2, b"0.30000000000000004"), (1e21, b"1e+21"), (1e20, b"1" + b"0" * 20),
     (1e-6, b"0.000001"), (1e-7, b"1e-7"), (5e-324, b"5e-324"), (2**53 - 1, b"9007199254740991")],
)  # fmt: skip
def test_numbers_are_written_as_ecmascript_writes_them(number: float, written: bytes) -> None:
    assert canonical(number) == written


def test_keys_sort_by_utf16_code_units() -> None:
    """U+FB33 comes after the surrogate pair of U+1F600 in UTF-16, before it in code points."""
    assert canonical({"\ufb33": 1, "\U0001f600": 2, "€": 3}) == '{"€":3,"\U0001f600":2,"\ufb33":1}'.encode()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2**53, "\ud800", {"a": [math.nan]}])
def test_what_json_cannot_carry_is_a_value_error(bad: object) -> None:
    with pytest.raises(ValueError, match=r"not representable|exceeds safe|non-UTF-8"):
        canonical(bad)


def test_the_hash_is_sha256_over_the_canonical_bytes() -> None:
    assert sha256_of({"b": 1.0, "a": "€"}) == "sha256:" + hashlib.sha256('{"a":"€","b":1}'.encode()).hexdigest()
    assert sha256_of({}) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@given(json_values)
def test_canonical_bytes_read_back_to_the_same_value_and_the_same_bytes(value: object) -> None:
    """To a reader whose numbers are all doubles, as the RFC has them."""
    back = json.loads(canonical(value), parse_int=float)
    assert back == value
    assert canonical(back) == canonical(value)
