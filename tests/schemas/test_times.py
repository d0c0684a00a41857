"""Moments as people write and read them: every form names the same moment, and what is none is refused with why."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.schemas.event import MAX_TS, MIN_TS
from tidegate.schemas.times import FromNow, clock, iso, read_moment, readable, shaped

NOON = 1_700_000_000_000
HOUR = 3_600_000


@pytest.mark.parametrize(
    "text",
    [
        "1700000000000",
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:20",
        "2023-11-14 23:13:20+01:00",
        "20231114T221320Z",
        "2023-11-14T22:13:20.000999Z",
    ],
)
def test_iso_and_ms_are_the_same_moment(text: str) -> None:
    assert read_moment(text, 0) == NOON


def test_eight_digits_are_a_date() -> None:
    """As ms they would lie in 1970."""
    assert read_moment("20231114", 0) == read_moment("2023-11-14", 0) == 1_699_920_000_000


@pytest.mark.parametrize(("text", "distance"), [("now", 0), ("now-2h", -2 * HOUR), ("now+10m", HOUR // 6)])
def test_a_moment_may_be_given_by_its_distance_from_now(text: str, distance: int) -> None:
    found = read_moment(text, NOON)
    assert (found, isinstance(found, FromNow)) == (NOON + distance, True)
    assert not isinstance(read_moment(str(NOON), NOON), FromNow)


@pytest.mark.parametrize("text", ["soon", "-1", "", "²", "now-", "now2h", "20261340", "1" * 5_000, "2023-11-14T25:00"])
def test_what_is_no_moment_is_refused_on_one_line_that_shows_it(text: str) -> None:
    with pytest.raises(ValueError, match="write ") as refused:
        read_moment(text, NOON)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("9007199254740000", "outside 2001 to 2099"),
        (str(NOON // 1000), "it looks like seconds"),
        (str(NOON * 1000), "it looks like microseconds"),
        (str(NOON * 1_000_000), "it looks like nanoseconds"),
        ("0001-01-01T00:00+14:00", "outside 2001 to 2099|is not a time"),
        ("2000-12-31T23:59:59.999Z", "outside 2001 to 2099"),
        ("2100-01-01", "outside 2001 to 2099"),
        ("5", "outside 2001 to 2099"),
    ],
)
def test_a_moment_that_no_event_can_have_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_moment(text, NOON)


@given(st.integers(MIN_TS, MAX_TS))
def test_what_is_shown_is_read_as_the_same_moment(ts: int) -> None:
    assert read_moment(iso(ts), 0) == read_moment(str(ts), 0) == ts


@given(st.integers(-(2**70), 2**70))
def test_any_number_is_shown(ts: int) -> None:
    """Records of other makers may hold a time that no calendar has."""
    for told in (iso(ts), clock(ts), shaped(ts, "%m-%d %H:%M")):
        assert told.isprintable()
    if -(10**13) < ts < 10**14:
        assert datetime.fromisoformat(iso(ts)) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ts)


def test_a_moment_is_shown_as_short_as_it_can_be() -> None:
    assert (iso(0), iso(NOON), iso(NOON + 7)) == (
        "1970-01-01T00:00:00Z",
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:20.007Z",
    )
    assert (iso(10**18), clock(10**18), clock(NOON)) == ("1000000000000000000 ms", "1000000000000000000 ms", "22:13:20")


def test_every_moment_in_a_record_is_shown_as_one() -> None:
    """Not what is called so and is none, nor another field."""
    record = {"window": {"start": NOON, "end": None}, "ts": True, "rows": NOON, "first": [{"ts": NOON}, NOON]}
    shown = iso(NOON)
    assert readable(record) == {
        "window": {"start": shown, "end": None},
        "ts": True,
        "rows": NOON,
        "first": [{"ts": shown}, NOON],
    }
