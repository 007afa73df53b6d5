"""The demo storefront and its client in a real browser, against a shop that fails on demand."""

from __future__ import annotations

import re

import pytest

from tests.web.conftest import Visit, playwright
from tests.web.stand_in import HOSTILE

expect = playwright.expect


def product(visit: Visit, title: str) -> playwright.Locator:
    return visit.page.locator(".product", has_text=title)


def ready(visit: Visit) -> None:
    visit.open()
    expect(visit.page.locator("#tier b")).to_have_text("popular")
    expect(visit.page.locator(".product").first).to_be_visible()


def sent(visit: Visit, kind: str) -> list[dict[str, object]]:
    return [event for event in visit.shop.received if event["type"] == kind]


def test_the_page_loads_from_its_own_host_without_an_error(visit: Visit) -> None:
    ready(visit)
    visit.page.wait_for_load_state("networkidle")
    assert len(visit.titles()) == 4
    assert (visit.errors, visit.elsewhere) == ([], [])


def test_a_click_on_a_product_changes_the_banners_in_place(visit: Visit) -> None:
    ready(visit)
    before = visit.titles()
    visit.page.evaluate("window.same = document.querySelector('#home .vitrine-banner')")
    product(visit, "Aged cheddar").locator(".open").click()
    expect(visit.page.locator("#tier b")).to_have_text("personal")
    expect(visit.page.locator("#home .vitrine-title").first).to_have_text("Whole milk")
    assert visit.titles() != before
    assert visit.page.evaluate("window.same === document.querySelector('#home .vitrine-banner')")
    expect(visit.page.locator("#row")).to_have_text("1")
    expect(visit.page.locator("#handler")).to_have_text(re.compile(r"\d+\.\d"))
    expect(visit.page.locator("#fresh")).to_contain_text("Includes your view of")
    expect(visit.page.locator("#events li").first).to_contain_text("in the row")
    (event,) = sent(visit, "view")
    assert event["item_id"] == "P32"
    assert visit.errors == []


def test_a_title_that_is_markup_stays_text(visit: Visit) -> None:
    ready(visit)
    product(visit, HOSTILE).locator(".open").click()
    expect(visit.page.locator("#home")).to_contain_text(HOSTILE)
    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("#home img[src='x']").count() == 0


def test_when_the_shop_is_down_the_old_banners_stay_and_the_page_says_so(visit: Visit) -> None:
    ready(visit)
    before = visit.titles()
    visit.shop.down = True
    product(visit, "Green tea").locator(".open").click()
    expect(visit.page.locator("#notice")).to_contain_text("cannot be reached")
    assert visit.titles() == before
    visit.shop.down = False
    expect(visit.page.locator("#tier b")).to_have_text("personal")
    expect(visit.page.locator("#events li").first).to_contain_text("in the row")
    expect(visit.page.locator("#notice")).to_be_hidden()
    assert len({event["event_id"] for event in sent(visit, "view")}) == 1


def test_banners_that_alone_failed_are_asked_for_again(visit: Visit) -> None:
    ready(visit)
    visit.shop.without_banners = 2
    product(visit, "Green tea").locator(".open").click()
    expect(visit.page.locator("#notice")).to_contain_text("cannot be reached")
    expect(visit.page.locator("#tier b")).to_have_text("personal")
    expect(visit.page.locator("#events li").first).to_contain_text("in the row")
    expect(visit.page.locator("#notice")).to_be_hidden()
    assert len(sent(visit, "view")) == 1


def test_a_retry_has_the_same_event_id(visit: Visit) -> None:
    ready(visit)
    visit.shop.failing = 2
    product(visit, "Lemons").locator(".open").click()
    expect(visit.page.locator("#events li").first).to_contain_text("in the row")
    ids = [event["event_id"] for event in sent(visit, "view")]
    assert len(ids) == 3
    assert len(set(ids)) == 1


def test_an_event_that_alone_failed_is_sent_again_alone(visit: Visit) -> None:
    ready(visit)
    visit.shop.failed_types = ["cart"]
    product(visit, "Lemons").get_by_role("button", name="Add to cart").click()
    expect(visit.page.locator("#events li").first).to_contain_text("in the row")
    assert len(sent(visit, "cart")) == 2


def test_an_invalid_event_is_told_and_not_sent_again(visit: Visit) -> None:
    visit.open("/blank")
    told = visit.page.evaluate(
        """async () => {
            const { connect } = await import("/banner.js");
            const told = [];
            const vitrine = await connect({ onerror: (error) => told.push(error.message) });
            vitrine.send({ type: "glance", item_id: "P00" });
            await new Promise((resolve) => setTimeout(resolve, 1500));
            return told;
        }"""
    )
    assert len(sent(visit, "glance")) == 1
    assert len(told) == 1 and "glance" in told[0]


def test_a_refused_visitor_is_renewed(visit: Visit) -> None:
    ready(visit)
    visit.shop.refused.add("visitor-1")
    product(visit, "Rye crispbread").locator(".open").click()
    expect(visit.page.locator("#tier b")).to_have_text("personal")
    assert visit.shop.visitors == 2


def test_a_visitor_is_remembered_and_can_begin_anew(visit: Visit) -> None:
    ready(visit)
    product(visit, "Rye crispbread").locator(".open").click()
    expect(visit.page.locator("#events li").first).to_contain_text("in the row")
    visit.page.reload()
    expect(visit.page.locator("#tier b")).to_have_text("personal")
    assert visit.shop.visitors == 1
    visit.page.get_by_role("button", name="New visitor").click()
    expect(visit.page.locator("#tier b")).to_have_text("popular")
    assert visit.shop.visitors == 2


def test_the_keyboard_reaches_a_product(visit: Visit) -> None:
    ready(visit)
    open_button = product(visit, "Baby spinach").locator(".open")
    open_button.focus()
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#tier b")).to_have_text("personal")
    visit.page.keyboard.press("Tab")
    focused = visit.page.evaluate("document.activeElement.ariaLabel")
    assert focused == "Add to cart: Baby spinach"


def test_a_dismissed_banner_goes_and_stays_away(visit: Visit) -> None:
    ready(visit)
    first = visit.titles()[0]
    visit.page.get_by_role("button", name=f"Not interested in {first}").click()
    expect(visit.page.locator("#home")).not_to_contain_text(first)
    expect(visit.page.locator("#events li").first).to_contain_text("in the row")
    (event,) = sent(visit, "dismiss")
    assert str(event["token"]).startswith("decision-")
    assert first not in visit.titles()


def test_a_banner_in_view_is_one_impression_with_its_token(visit: Visit) -> None:
    ready(visit)
    expect(visit.page.locator("#seen")).to_contain_text("4 impressions")
    shown = sent(visit, "impression")
    assert len({event["token"] for event in shown}) == len(shown) == 4


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)])
def test_nothing_is_wider_than_the_screen(visit: Visit, width: int, height: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": height})
    ready(visit)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_control_has_a_name_and_every_picture_an_alternative(visit: Visit) -> None:
    ready(visit)
    nameless = visit.page.evaluate(
        """() => [...document.querySelectorAll("button:not([hidden]), a[href]:not([hidden])")]
            .filter((e) => !(e.ariaLabel || e.textContent.trim())).length"""
    )
    assert nameless == 0
    assert visit.page.locator("img:not([alt])").count() == 0
