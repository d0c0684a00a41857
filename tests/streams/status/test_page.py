"""The status page in a real Chromium: what it shows, that it keeps up, that all can use it, what cannot break it."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.commands.test_explain import ABORT, DRIFTED, PROMOTE, decided
from tests.streams.status.browser import Served, chromium, served
from tidegate.schemas.decision import Decision, Weights, command_for, seal_decision
from tidegate.streams.status.state import StatusState

HOSTILE = '"><script>document.title="broken"</script><img src=x onerror=alert(2)>/%2F#?\u202e'
WRITTEN = 1_756_636_260_000
LATER = 900_000


def named(decision: Decision, flag: str, region: str = "eu", later: int = 0, **more: Any) -> Decision:
    """The decision of another unit, or of another time."""
    window = msgspec.structs.replace(
        decision.window, start=decision.window.start + later, end=decision.window.end + later
    )
    moved = msgspec.structs.replace(
        decision, flag=flag, region=region, decided_at=decision.decided_at + later, window=window, **more
    )
    return seal_decision(moved, None)


def taken(*decisions: Decision) -> Any:
    """What gives decisions to a state."""

    def fill(state: StatusState) -> None:
        for decision in decisions:
            state.decided(decision.to_bytes(), WRITTEN)

    return fill


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def rollouts() -> Iterator[Served]:
    units = (named(PROMOTE, "stopped"), named(ABORT, "stopped", later=LATER), named(PROMOTE, "green"))
    with served(taken(*units, named(DRIFTED, "drifted"))) as found:
        yield found


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    found = context.new_page()
    faults: list[str] = []
    found.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    found.on("pageerror", lambda error: faults.append(str(error)))
    yield found
    context.close()
    # A break of the Content-Security-Policy is one of them.
    assert faults == []


def opened(page: Page, place: Served, unit: str = "") -> Page:
    page.goto(f"{place.url}#{unit}")
    expect(page.locator("#link")).to_have_text("Live")
    expect(page.locator(".decisions" if unit else ".units").first).to_be_visible()
    return page


def test_all_units_are_there_at_a_glance_the_worst_first(page: Page, rollouts: Served) -> None:
    opened(page, rollouts)
    expect(page.locator("h1")).to_have_text("3 units")
    assert [one.split("\n")[0] for one in page.locator(".units b").all_inner_texts()] == ["stopped", "drifted", "green"]
    first = page.locator(".units a").first
    expect(first).to_contain_text("stopped: aborted")
    expect(first).to_contain_text("error_rate_over")
    expect(first).to_contain_text("0 %")


def test_a_unit_shows_its_ramp_gates_arms_problems_and_decisions_in_words(page: Page, rollouts: Served) -> None:
    opened(page, rollouts)
    page.locator(".units a").first.click()
    expect(page.locator("h1")).to_have_text("stopped in eu")
    expect(page.locator("h1")).to_be_focused()
    expect(page.get_by_role("img", name="The canary's weight over time: 5 %, 25 %")).to_be_visible()
    assert page.locator(".uplot canvas").count() == 3
    gates = page.get_by_role("region", name="Table of gates")
    error_rate = next(one for one in ABORT.gates if one.gate == "error_rate_max")
    row = gates.get_by_role("row", name="error_rate_max")
    expect(row).to_contain_text(f"{error_rate.n_canary:,}")
    expect(row).to_contain_text("fail")
    expect(row).to_contain_text("≤ 0.5 %")
    expect(page.locator("section", has_text="What was decided").first).to_contain_text("error_rate_over fired")
    oldest = page.locator(".decisions summary").last
    oldest.click()
    expect(page.locator(".decisions > li").last).to_contain_text("All gates pass.")
    numbers = page.locator("details.numbers", has_text="latency at each decision")
    numbers.locator("summary").click()
    expect(numbers.locator("tbody tr")).to_have_count(2)
    page.goto(f"{rollouts.url}#/drifted/eu")
    expect(page.locator("section", has_text="Evidence problems")).to_contain_text("INDEX_HASH")


def test_what_is_decided_while_one_looks_is_shown_and_said(page: Page) -> None:
    with served(taken(named(PROMOTE, "answer"))) as place:
        opened(page, place)
        expect(page.locator(".units a")).to_have_count(1)
        place.do(taken(named(PROMOTE, "another")))
        expect(page.locator(".units a")).to_have_count(2)
        stop = named(ABORT, "answer", later=LATER)
        place.do(taken(stop))
        expect(page.locator(".units a").first).to_contain_text("answer")
        expect(page.locator(".units a").first).to_contain_text("aborted")
        expect(page.get_by_role("status")).to_contain_text("answer in eu: aborted")
        order = command_for(
            stop,
            seq=2,
            action="abort",
            severity="hard",
            weights=Weights(baseline=1.0, canary=0.0),
            previous_weights=Weights(baseline=0.75, canary=0.25),
            effective_from=stop.decided_at,
            rule="error_rate_over",
        )
        page.locator(".units a").first.click()
        expect(page.locator(".decisions > li")).to_have_count(2)
        later = named(decided("hold", ["latched"]), "answer", later=2 * LATER)
        place.do(lambda state: state.commanded(order.to_bytes()))
        place.do(taken(later))
        expect(page.locator(".decisions > li")).to_have_count(3)


def test_a_page_whose_server_goes_says_so_and_goes_on_when_it_is_back(page: Page) -> None:
    with served(taken(named(PROMOTE, "answer"))) as place:
        opened(page, place)
        place.do(lambda state: state.away("tidegate.decisions", WRITTEN))
        expect(page.locator("#link")).to_contain_text("broker away since 2025-08-31 10:31:00 UTC")
        place.do(lambda state: state.away("tidegate.decisions", None))
        expect(page.locator("#link")).to_have_text("Live")


def test_it_works_by_keyboard_alone(page: Page, rollouts: Served) -> None:
    opened(page, rollouts)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.locator(".units a").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("stopped in eu")
    page.locator(".decisions summary").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".decisions details").first).to_have_attribute("open", "")
    # What is drawn anew leaves the keyboard where it was.
    rollouts.do(lambda state: state.decided(named(DRIFTED, "stopped", later=9 * LATER).to_bytes(), WRITTEN))
    expect(page.locator(".decisions > li")).to_have_count(3)
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(
    browser: Browser, rollouts: Served, scheme: Any, width: int, height: int
) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
    page = context.new_page()
    for unit in ("", "/stopped/eu", "/drifted/eu"):
        opened(page, rollouts, unit)
        if unit:
            page.locator(".decisions summary").first.click()
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["impact"]) for one in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_a_hostile_name_is_text_and_its_unit_can_be_opened(page: Page) -> None:
    hostile = named(PROMOTE, HOSTILE, HOSTILE, reasons=[HOSTILE])
    with served(taken(hostile)) as place:
        opened(page, place)
        expect(page.locator(".units b")).to_contain_text('"><script>')
        expect(page.locator(".units b")).to_contain_text("\\u202e")
        page.locator(".units a").click()
        expect(page.locator("h1")).to_contain_text('"><script>')
        expect(page.locator(".decisions summary")).to_contain_text("<img src=x onerror=alert(2)>")
        assert page.locator("img, main script, iframe").count() == 0
        assert "\u202e" not in page.inner_text("body")
        assert "Tidegate status" in page.title()
