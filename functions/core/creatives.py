"""Banners: what a client puts on the page for one product, and a drawn picture for those that have none."""

from __future__ import annotations

import base64
import colorsys
import hashlib
import html
import math
import re
import textwrap
from typing import Any
from urllib.parse import quote

from functions.core.catalogue import Product
from functions.core.slots import Slot

NO_LINK = "#"
TITLE_CHARS, TITLE_LINES = 20, 3
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green, blue
NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # XML 1.0 §2.2, not Char
SAFE_URL = re.compile(r"https?://[^/?#\\\s]|/(?![/\\])", re.IGNORECASE)
URL_PUNCTUATION = "!#$%&()*+,-./:;=?@[]_~"  # RFC 3986, less the quote that could end an attribute


def render(product: Product, position: int, slot: Slot, token: str) -> dict[str, Any]:
    """One banner of the API's answer, in plain text: whoever puts it into HTML escapes it.

    The price is in the catalogue's own currency: there is no exchange rate to show it in another one.
    A link that is neither http(s) nor a path is `#`.
    """
    return {
        "position": position,
        "item_id": product.item_id,
        "title": _printable(product.title),
        "price": {"amount": _amount(product.price), "currency": _printable(product.currency)},
        "tags": [_printable(tag) for tag in product.tags],
        "label": _printable(slot.label),
        "link": _safe_url(product.url) or NO_LINK,
        "image": {"url": _image(product), "alt": _printable(product.title)},
        "token": token,
    }


def picture(title: str, category: str, seed: int) -> str:
    """A 400 by 300 SVG under 1.5 KB, the same for the same arguments; the category gives its colours.

    `seed` moves the shapes, so that products of one category do not look alike.
    """
    hue = _digest(category)[0] / 256
    ink, paper = _colour(hue, 0.07), _colour(hue + 0.12, 0.15)
    initial = _escape((_printable(category).strip() or _printable(title).strip() or "?")[0].upper())
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 300" role="img">'
        '<defs><linearGradient id="g" x2="1" y2="1">'
        f'<stop stop-color="{ink}"/><stop offset="1" stop-color="{paper}"/></linearGradient></defs>'
        '<rect width="400" height="300" fill="url(#g)"/>'
        f'<g fill="#fff" fill-opacity=".1">{_shapes(title, seed)}</g>'
        '<g fill="#fff" font-family="system-ui,sans-serif">'
        '<text x="376" y="120" font-size="110" font-weight="800" opacity=".3" text-anchor="end">'
        f"{initial}</text>"
        f'<g font-size="28" font-weight="600">{_title_lines(title)}</g></g></svg>'
    )


def data_uri(svg: str) -> str:
    """The picture as a URI for an `img`, where a script inside an SVG never runs."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _image(product: Product) -> str:
    drawn_seed = int.from_bytes(_digest(product.item_id)[:4], "big")
    return _safe_url(product.image_url) or data_uri(picture(product.title, product.category, drawn_seed))


def _safe_url(url: str) -> str:
    """The URL, percent-encoded, or "" unless it is http(s) or a path on the shop's own host."""
    url = url.strip()
    if not SAFE_URL.match(url):
        return ""
    return quote(url, safe=URL_PUNCTUATION, errors="replace")


def _amount(price: float) -> float | None:
    return round(price, 2) if math.isfinite(price) else None


def _shapes(title: str, seed: int) -> str:
    spots = _digest(f"{seed}:{title}")
    circles = [
        f'<circle cx="{spots[3 * i] * 400 // 255}" cy="{spots[3 * i + 1] * 300 // 255}" '
        f'r="{24 + spots[3 * i + 2] // 3}"/>'
        for i in range(4)
    ]
    return "".join(circles) + f'<path d="M0 {150 + spots[12] // 4}Q200 {spots[13] + 90} 400 170V300H0z"/>'


def _title_lines(title: str) -> str:
    lines = textwrap.wrap(
        _printable(title), TITLE_CHARS, max_lines=TITLE_LINES, placeholder="…", break_on_hyphens=False
    )
    top = 272 - 34 * (len(lines) - 1)
    return "".join(
        f'<text x="24" y="{top + 34 * number}">{_escape(line)}</text>' for number, line in enumerate(lines)
    )


def _printable(text: str) -> str:
    return NOT_IN_XML.sub("", text)


def _escape(text: str) -> str:
    return html.escape(_printable(text), quote=True)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


def _colour(hue: float, luminance: float) -> str:
    """A hue at one relative luminance (WCAG 2.2), so that white text reads as well on yellow as on blue."""
    linear = [channel**2.2 for channel in colorsys.hls_to_rgb(hue % 1, 0.5, 0.6)]
    factor = luminance / sum(weight * value for weight, value in zip(LUMINANCE, linear, strict=True))
    return "#" + "".join(f"{round(255 * min(1.0, value * factor) ** (1 / 2.2)):02x}" for value in linear)
