"""The two routes of the demo page alone: the categories, and what sells best in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from functions.core.bundle import verify
from functions.core.catalogue import Catalogue
from functions.core.creatives import render
from functions.core.errors import InvalidRequest, VitrineError
from functions.core.slots import Slot
from local.gateway import Request, Response, message

DEFAULT_LIMIT, MAX_LIMIT = 24, 200
SLOT = Slot("demo")
SHOWN = ("item_id", "title", "price", "tags", "image")


class Shelves:
    """What a bundle sells, best first, by category. Raises CorruptBundle."""

    def __init__(self, bundle: Path) -> None:
        verify(bundle)
        self._catalogue = Catalogue(bundle / "catalogue.sqlite")
        ranked = json.loads((bundle / "fallback.json").read_text(encoding="utf-8"))
        self._all: list[int] = ranked["all"]
        self._by_category: dict[str, list[int]] = ranked["category"]

    def categories(self) -> list[str]:
        """All categories: those of the best sellers first, then by name."""
        found = [product.category for product in self._catalogue.products(self._all)]
        first = [name for name in dict.fromkeys(found) if name in self._by_category]
        return [*first, *sorted(self._by_category.keys() - set(first))]

    def products(self, category: str, limit: int) -> list[dict[str, Any]]:
        """At most `limit` products of a category ("": of the whole shop), best first; none if unknown."""
        rows = self._by_category.get(category, []) if category else self._all
        found = self._catalogue.products(rows[:limit])
        return [_shown(render(product, 0, SLOT, ""), product.category) for product in found]


def _shown(banner: dict[str, Any], category: str) -> dict[str, Any]:
    return {**{name: banner[name] for name in SHOWN}, "category": category}


class EmptyShelves:
    """Where no bundle can be read: the page still comes up, and shows the house banner."""

    def categories(self) -> list[str]:
        """None."""
        return []

    def products(self, category: str, limit: int) -> list[dict[str, Any]]:
        """None."""
        return []


def open_shelves(bundle: Path) -> Shelves | EmptyShelves:
    """The bundle's shelves; empty ones, and a line in the log, when it cannot be read."""
    try:
        return Shelves(bundle)
    except (VitrineError, OSError, ValueError, KeyError) as error:
        print(f"no products to show: {error}", flush=True)
        return EmptyShelves()


def demo_route(shelves: Shelves | EmptyShelves, request: Request) -> Response:
    """Answer `GET /demo/categories` and `GET /demo/products?category=&limit=`; 400 for a wrong value."""
    try:
        if request.path == "/demo/categories":
            return _json({"categories": shelves.categories()})
        return _json({"products": shelves.products(*_chosen(request.query))})
    except InvalidRequest as error:
        return message(400, str(error))


def _chosen(query: str) -> tuple[str, int]:
    given = dict(parse_qsl(query, keep_blank_values=True))
    for name in given:
        if name not in ("category", "limit"):
            raise InvalidRequest(name, given[name], "category or limit")
    limit = given.get("limit", str(DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit) <= MAX_LIMIT):
        raise InvalidRequest("limit", limit, f"an integer in 1..{MAX_LIMIT}")
    return given.get("category", ""), int(limit)


def _json(data: dict[str, Any]) -> Response:
    return Response(200, [("content-type", "application/json")], json.dumps(data).encode())
