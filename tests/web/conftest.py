"""A real browser: Debian's chromium, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.web.stand_in import Shop, StandIn

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not in this environment")

PATIENCE_MS = 15_000  # a loaded machine, and the client's own pauses between its tries
NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Visit:
    """One page of one browser context, and everything that went wrong in it."""

    page: playwright.Page
    shop: Shop
    url: str
    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)  # requests to other hosts

    def open(self, path: str = "/") -> None:
        """Load a page of the shop."""
        self.page.goto(self.url + path)

    def titles(self) -> list[str]:
        """What the banners show."""
        return self.page.locator("#home .vitrine-banner:not(.vitrine-empty) .vitrine-title").all_inner_texts()


def executable() -> str:
    """Path of the browser; skips the test where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no browser here; `apt-get install chromium` (CI does) to run the browser tests")
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[playwright.Browser]:
    path = executable()
    playwright.expect.set_options(timeout=PATIENCE_MS)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: playwright.Browser) -> Iterator[Visit]:
    """A fresh visitor at the stand-in's shop."""
    with StandIn() as server:
        yield from visiting(browser, server.url, server.shop)


def visiting(browser: playwright.Browser, url: str, shop: Shop | None = None) -> Iterator[Visit]:
    """A fresh visitor at any shop."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, locale="en-US")
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    made = Visit(page, shop or Shop(), url)
    page.on("pageerror", lambda error: made.errors.append(str(error)))
    page.on("console", lambda said: made.errors.append(said.text) if said.type == "error" else None)
    page.on("request", lambda asked: note(made, asked.url))
    yield made
    context.close()


def note(visit: Visit, address: str) -> None:
    """Remember a request that leaves the shop."""
    if not address.startswith((visit.url, "data:")):
        visit.elsewhere.append(address)
