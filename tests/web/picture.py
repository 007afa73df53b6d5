"""The README's picture of the storefront, taken from the real page after a short visit.

`make demo` in one terminal, `make picture` in another.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.web.conftest import QUIET, executable, playwright

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "storefront.png"
VIEWED = (2, 5, 3)  # which products are looked at


def main(url: str) -> None:
    """Visit the shop at `url` and write the picture."""
    PICTURE.parent.mkdir(exist_ok=True)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable(), args=QUIET)
        page = browser.new_page(viewport={"width": 1400, "height": 900}, locale="en-US")
        page.goto(url)
        page.locator("#tier[data-tier=popular]").wait_for()
        for count, at in enumerate(VIEWED, 1):
            page.locator(".product .open").nth(at).click()
            page.wait_for_function(f"document.querySelectorAll('#events li').length >= {count}")
            page.locator("#events li", has_text="in the row").nth(count - 1).wait_for()
        page.wait_for_timeout(600)  # the last change of banners has faded in
        page.screenshot(path=PICTURE)
        browser.close()
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
