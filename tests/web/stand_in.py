"""A shop's API in a few lines, for tests of the page alone: it answers by the contract and fails on demand.

`python -m tests.web.stand_in [PORT]` serves it, with the page, on 127.0.0.1.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from functions.core.creatives import data_uri, picture
from functions.core.errors import InvalidEvent
from functions.core.events import parse_event

WEB = Path(__file__).parents[2] / "web"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
HOSTILE = "<img src=x onerror=window.hacked=1>"
SHELVES = {
    "Bakery": ["Sourdough loaf", "Cinnamon rolls", "Rye crispbread", "Butter croissants", "Seeded bagels"],
    "Coffee & Tea": ["Espresso beans, dark roast", "Green tea, 20 bags", "Cold brew", "Chai spice blend"],
    "Produce": ["Honeycrisp apples", "Baby spinach", "Vine tomatoes", "Lemons, bag of 6", "Red onions"],
    "Dairy": ["Whole milk", "Greek yogurt, plain", "Aged cheddar", "Salted butter", "Oat drink, barista"],
    "Snacks": ["Sea salt crisps", "Dark chocolate 70 %", HOSTILE, "Roasted almonds", "Rice cakes"],
}
Answer = tuple[int, dict[str, Any]]


@dataclass
class Shop:
    """What the shop knows and how it misbehaves; tests read and set the fields between requests."""

    products: list[dict[str, Any]] = field(default_factory=lambda: stock())
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # in the row, by visitor token
    received: list[dict[str, Any]] = field(default_factory=list)  # every event of every request
    visitors: int = 0
    refused: set[str] = field(default_factory=set)  # visitors' tokens
    stale: set[str] = field(default_factory=set)  # decision tokens
    lifetime_s: float = 3600.0
    down: bool = False  # every route answers 503
    failing: int = 0  # so many more requests for events answer 503
    without_banners: int = 0  # so many more requests for banners answer 503
    failed_types: list[str] = field(default_factory=list)  # each makes one event of its type fail, once
    streaming: bool = True  # accepted events reach the row

    def route(self, path: str, token: str, body: Any) -> Answer:
        """The answer to one POST."""
        if self.down:
            return 503, {"title": "Service Unavailable", "status": 503}
        if path == "/v1/visitors":
            return self._visitor()
        if token in self.refused or not token:
            return 401, {"title": "Unauthorized", "status": 401}
        return self._collect(token, body) if path == "/v1/events" else self._banners(token, body)

    def _visitor(self) -> Answer:
        self.visitors += 1
        expires = datetime.now(UTC) + timedelta(seconds=self.lifetime_s)
        return 201, {"token": f"visitor-{self.visitors}", "expires": expires.isoformat()}

    def _collect(self, token: str, body: Any) -> Answer:
        self.received += body["events"]
        if self.failing:
            self.failing -= 1
            return 503, {"title": "Service Unavailable", "status": 503}
        results = [self._judge(token, event) for event in body["events"]]
        if all(result["status"] == "invalid" for result in results):
            return 400, {"title": "Bad Request", "status": 400, "results": results}
        return 202, {"accepted": sum(r["status"] == "accepted" for r in results), "results": results}

    def _judge(self, token: str, event: dict[str, Any]) -> dict[str, Any]:
        try:
            parse_event(event, int(time.time()))
        except InvalidEvent as wrong:
            return {"event_id": event.get("event_id"), "status": "invalid", "error": str(wrong)}
        if (event.get("token") or "") in self.stale:
            return {"event_id": event["event_id"], "status": "invalid", "error": "token expired"}
        if event["type"] in self.failed_types:
            self.failed_types.remove(event["type"])
            return {"event_id": event["event_id"], "status": "failed"}
        row = self.events.setdefault(token, [])
        if self.streaming and event["type"] != "impression" and event not in row:
            row.append(event)
        return {"event_id": event["event_id"], "status": "accepted"}

    def _banners(self, token: str, body: dict[str, Any]) -> Answer:
        if self.without_banners:
            self.without_banners -= 1
            return 503, {"title": "Service Unavailable", "status": 503}
        row = self.events.get(token, [])
        known = {event["event_id"] for event in row}
        ahead = [event for event in body.get("recent_events", []) if event["event_id"] not in known]
        history = row + ahead
        picks = self._ranked(history)[: body.get("k") or 4]
        return 200, {
            "banners": [banner(product, place, len(history)) for place, product in enumerate(picks)],
            "tier": "personal" if history else "popular",
            "versions": {"bundle": "3fa1c0de" * 8, "state_space": "9b1e77aa04c2d15f", "row": len(row)},
            "folded_ahead": len(ahead),
            "already_in_row": [
                e["event_id"] for e in body.get("recent_events", []) if e["event_id"] in known
            ],
            "last_event_time": history[-1]["time"] if history else None,
        }

    def _ranked(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        shelf = {product["item_id"]: product["category"] for product in self.products}
        gone = {event["item_id"] for event in history if event["type"] == "dismiss"}
        likes = Counter(shelf.get(event["item_id"]) for event in history if event["type"] != "dismiss")
        left = [product for product in self.products if product["item_id"] not in gone]
        return sorted(left, key=lambda product: (-likes[product["category"]], product["popularity"]))


def stock() -> list[dict[str, Any]]:
    """The products; the first item of each shelf is its best seller."""
    return [
        {
            "item_id": f"P{place}{number}",
            "title": title,
            "category": category,
            "price": {"amount": None if title == "Cold brew" else 1.49 + number + place, "currency": "USD"},
            "tags": ["new"] if number == 2 else [],
            "image": {"url": data_uri(picture(title, category, 7 * place + number)), "alt": title},
            "popularity": 10 * number + place,
        }
        for place, (category, titles) in enumerate(SHELVES.items())
        for number, title in enumerate(titles)
    ]


def banner(product: dict[str, Any], position: int, decision: int) -> dict[str, Any]:
    """A product as a banner of the contract."""
    shown = {key: product[key] for key in ("item_id", "title", "price", "tags", "image")}
    token = f"decision-{decision}-{position}-{product['item_id']}"
    return {"position": position, "label": "Picked for you", "link": "#", "token": token, **shown}


class Handler(BaseHTTPRequestHandler):
    """One request; `server.shop` answers it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """The API."""
        start = time.perf_counter()
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        status, body = self.server.shop.route(self.path, token, json.loads(data or b"null"))  # type: ignore[attr-defined]
        handler_ms = (time.perf_counter() - start) * 1e3
        kind = "application/json" if status < 400 else "application/problem+json"
        self._answer(status, json.dumps(body).encode(), kind, handler_ms)

    def do_GET(self) -> None:
        """The page and its products."""
        url = urlsplit(self.path)
        shop: Shop = self.server.shop  # type: ignore[attr-defined]
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path.startswith("/demo/") and shop.down:
            self._answer(503, b"{}", "application/json")
        elif url.path == "/demo/categories":
            self._answer(200, json.dumps({"categories": list(SHELVES)}).encode(), "application/json")
        elif url.path == "/demo/products":
            found = [p for p in shop.products if asked.get("category") in (None, p["category"])]
            found = found[: int(asked.get("limit", 24))]
            self._answer(200, json.dumps({"products": found}).encode(), "application/json")
        elif url.path == "/blank":
            self._answer(200, b"<!doctype html><title>blank</title><div id=slot></div>", KINDS[".html"])
        else:
            self._file(WEB / (url.path.lstrip("/") or "index.html"))

    def _file(self, path: Path) -> None:
        if path.is_file() and path.resolve().is_relative_to(WEB):
            self._answer(200, path.read_bytes(), KINDS[path.suffix])
        else:
            self._answer(404, b"", "text/plain")

    def _answer(self, status: int, body: bytes, kind: str, handler_ms: float | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", "default-src 'self'; img-src 'self' data:")
        if handler_ms is not None:
            self.send_header("Server-Timing", f"handler;dur={handler_ms:.2f}")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class StandIn(ThreadingHTTPServer):
    """The server; use it as a context manager, its address is `url`."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.shop = Shop()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


if __name__ == "__main__":
    StandIn(int(sys.argv[1]) if len(sys.argv) > 1 else 8900).serve_forever()
