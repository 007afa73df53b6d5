"""The page in a real browser against the whole local cloud: the banners follow what is clicked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.cloud import Cloud, CloudSettings
from tests.web.conftest import Visit, playwright, visiting

expect = playwright.expect
BUNDLES = Path(__file__).parents[1] / "data" / "tiny_bundle"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(CloudSettings(BUNDLES, tmp_path_factory.mktemp("logs"), port=0)) as running:
        yield running


@pytest.fixture
def visit(browser: playwright.Browser, cloud: Cloud) -> Iterator[Visit]:
    yield from visiting(browser, cloud.url)


def test_a_click_reaches_the_row_and_the_banners_change_in_place(visit: Visit) -> None:
    visit.open()
    page = visit.page
    expect(page.locator("#tier b")).to_have_text("popular")
    before = visit.titles()
    product = page.locator(".product .open").last
    page.evaluate("window.same = document.querySelector('#home .vitrine-banner')")
    product.click()
    expect(page.locator("#tier b")).to_have_text("personal")
    expect(page.locator("#events li").first).to_contain_text("in the row")
    expect(page.locator("#row")).to_have_text(re.compile(r"^[1-9]\d*$"))
    expect(page.locator("#handler")).to_have_text(re.compile(r"\d+\.\d"))
    assert len(before) == len(visit.titles()) > 0
    assert visit.titles() != before
    assert page.evaluate("window.same === document.querySelector('#home .vitrine-banner')")
    assert (visit.errors, visit.elsewhere) == ([], [])


def test_a_dismissed_banner_is_gone_for_the_shop_too(visit: Visit) -> None:
    visit.open()
    page = visit.page
    expect(page.locator("#tier b")).to_have_text("popular")
    gone = visit.titles()[0]
    page.get_by_role("button", name=f"Not interested in {gone}").click()
    expect(page.locator("#events li").first).to_contain_text("in the row")
    page.reload()  # nothing is brought along now: the answer comes from the row alone
    expect(page.locator("#home .vitrine-title").first).to_be_visible()
    assert gone not in visit.titles()
    assert visit.errors == []


def test_pictures_are_drawn_and_prices_written(visit: Visit) -> None:
    visit.open()
    expect(visit.page.locator("#home img").first).to_be_visible()
    drawn = visit.page.evaluate(
        "[...document.querySelectorAll('#home img')].map((i) => i.complete && i.naturalWidth > 0)"
    )
    assert drawn and all(drawn)
    expect(visit.page.locator("#home")).to_contain_text(re.compile(r"[$€£]\s?\d"))
