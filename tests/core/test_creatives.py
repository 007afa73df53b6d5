import base64
import json
from xml.etree import ElementTree

import pytest

from functions.core.catalogue import Product
from functions.core.creatives import data_uri, picture, render
from functions.core.slots import Slot

SLOT = Slot("home", label="Picked <for> you")
NASTY = "<script>alert('1')</script> & \"co\""
TITLES = [
    "",
    "Mug",
    NASTY,
    "a" * 500,
    "\"'<>&" * 100,
    "漢字" * 60,
    "👩‍👩‍👧" * 60,
    "\x00\x1b\ud800tab\tend",
    "word " * 40,
]


def _product(**changes):
    return Product(**{"item_id": "i1", "title": "Mug", "category": "kitchen", "price": 4.5} | changes)


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize("category", ["", "kitchen", "<&>", "\x00", "ß", "漢"])
def test_picture_is_small_well_formed_and_repeatable(title, category):
    svg = picture(title, category, 2**32)
    assert len(svg.encode()) < 1_536
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert svg == picture(title, category, 2**32)
    assert "<script" not in svg


def test_picture_shows_the_title_and_the_initial():
    texts = [node.text for node in ElementTree.fromstring(picture("Salt & Pepper", "kitchen", 1)).iter()]
    assert "Salt & Pepper" in texts and "K" in texts


def test_a_long_title_is_wrapped_and_cut():
    root = ElementTree.fromstring(picture("word " * 40, "kitchen", 1))
    lines = [node.text for node in root.iter() if node.text and node.text.startswith("word")]
    assert len(lines) == 3 and lines[-1].endswith("…") and max(map(len, lines)) <= 20


def test_category_gives_the_colours_and_seed_the_shapes():
    def colours(svg):
        return [
            node.get("stop-color") for node in ElementTree.fromstring(svg).iter() if node.get("stop-color")
        ]

    assert colours(picture("a", "toys", 1)) == colours(picture("b", "toys", 2))
    assert colours(picture("a", "toys", 1)) != colours(picture("a", "books", 1))
    assert picture("a", "toys", 1) != picture("a", "toys", 2)


@pytest.mark.parametrize("category", [f"category {number}" for number in range(40)])
def test_white_text_is_readable_on_every_colour(category):
    """WCAG 2.2 §1.4.3: a contrast of 4.5 to 1, with the exact sRGB curve."""
    for node in ElementTree.fromstring(picture("Mug", category, 1)).iter():
        if colour := node.get("stop-color"):
            channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
            linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
            luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
            assert 1.05 / (luminance + 0.05) >= 4.5


def test_data_uri_holds_the_picture():
    head, _, body = data_uri("<svg>é</svg>").partition(",")
    assert head == "data:image/svg+xml;base64" and base64.b64decode(body).decode() == "<svg>é</svg>"


def test_banner_has_the_fields_of_the_contract():
    banner = render(_product(image_url="/i.png", url="/p/1", tags=("new",)), 2, SLOT, "a.b.c")
    assert banner == {
        "position": 2,
        "item_id": "i1",
        "title": "Mug",
        "price": {"amount": 4.5, "currency": "USD"},
        "tags": ["new"],
        "label": "Picked <for> you",
        "link": "/p/1",
        "image": {"url": "/i.png", "alt": "Mug"},
        "token": "a.b.c",
    }


def test_text_is_plain_and_only_the_picture_is_escaped():
    fields = ("item_id", "title", "category", "brand", "currency", "image_url", "url")
    product = Product(**dict.fromkeys(fields, NASTY), tags=(NASTY,))
    banner = render(product, 0, SLOT, "t")
    for text in (banner["title"], banner["tags"][0], banner["item_id"], banner["image"]["alt"]):
        assert text == NASTY
    assert banner["link"] == "#"
    head, _, body = banner["image"]["url"].partition(",")
    svg = base64.b64decode(body).decode()
    assert head == "data:image/svg+xml;base64" and "<script" not in svg
    assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_what_no_page_can_show_is_left_out_of_a_title_but_never_of_an_id():
    banner = render(_product(item_id="a\x00b", title="M\x00u\ud800g"), 0, SLOT, "t")
    assert (banner["item_id"], banner["title"]) == ("a\x00b", "Mug")


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        " JavaScript:alert(1)",
        "java\nscript:alert(1)",
        "\x01javascript:alert(1)",
        "javascript&#58;alert(1)",
        "data:text/html,x",
        "vbscript:x",
        "file:///etc/passwd",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "https:evil.example",
        "https://",
        "http:///x",
        "",
        "mug.html",
    ],
)
def test_a_link_that_is_not_the_web_is_dropped(url):
    banner = render(_product(url=url, image_url=url), 0, SLOT, "t")
    assert banner["link"] == "#"
    assert banner["image"]["url"].startswith("data:image/svg+xml;base64,")


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("https://shop.example/p?a=1&b=%20#top", "https://shop.example/p?a=1&b=%20#top"),
        ("HTTP://shop.example", "HTTP://shop.example"),
        ("/p/tea pot", "/p/tea%20pot"),
        ('/p"onclick=x', "/p%22onclick=x"),
        ("/\t/evil.example", "/%09/evil.example"),
        ("/p/Käse", "/p/K%C3%A4se"),
    ],
)
def test_a_good_link_is_kept_and_encoded(url, link):
    assert render(_product(url=url), 0, SLOT, "t")["link"] == link


@pytest.mark.parametrize("price", [float("nan"), float("inf")])
def test_a_banner_is_always_json(price):
    banner = render(_product(price=price), 0, SLOT, "t")
    assert json.loads(json.dumps(banner, allow_nan=False))["price"]["amount"] is None
