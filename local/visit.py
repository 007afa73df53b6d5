"""A visitor's path through the shop over HTTP: what was sent, which banners came back, and how soon."""

from __future__ import annotations

import http.client
import json
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

from functions.core.errors import VitrineError

TIMEOUT_S = 20.0
ARRIVAL_S = 30.0  # how long an event may take into the row before the visit fails
ARRIVAL_POLL_S = 0.02
CATEGORIES = 12  # how many are looked at to find one that the first banners do not show
PERSONAL = ("personal", "rebuilt")
WIDTH = 108

Json = dict[str, Any]


class VisitFailed(VitrineError):
    """The loop does not work: an answer was refused, late, or not changed by what the visitor did."""


@dataclass(frozen=True)
class Step:
    """One thing the visitor did and the banners that came next; times in milliseconds.

    `freshness_ms` is from the answered POST /v1/events to the first banners whose row includes the event.
    """

    sent: Json | None  # {type, item_id, title}
    banners: tuple[Json, ...]  # {item_id, title}
    tier: str
    handler_ms: float
    freshness_ms: float | None = None

    def report(self, number: int) -> Json:
        """The step as report.json has it."""
        return {
            "step": number,
            "sent": self.sent,
            "banners": list(self.banners),
            "tier": self.tier,
            "handler_ms": self.handler_ms,
            "freshness_ms": self.freshness_ms,
        }


class Api:
    """The shop's API as one visitor's browser talks to it: one connection, kept alive. Raises VisitFailed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
        self.token = ""

    def call(self, method: str, path: str, body: Json | None = None) -> tuple[Json, float | None]:
        """The answer, and the handler's milliseconds from Server-Timing if it says them."""
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body)
        try:
            self._connection.request(method, path, data, headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise VisitFailed(f"{method} {self._url}{path}: {error!r}; expected an answer") from error
        if not 200 <= answer.status < 300:
            said = text[:500].decode("utf-8", "replace")
            raise VisitFailed(f"{method} {path}: {answer.status} {said}; expected 2xx")
        timing = re.search(r"handler;dur=([\d.]+)", answer.headers.get("Server-Timing", ""))
        return json.loads(text), float(timing[1]) if timing else None

    def banners(self, slot: str, recent: Sequence[Json] = ()) -> tuple[Json, float | None]:
        """Banners for a slot; `recent` are events that the client brings along."""
        asked: Json = {"slot": slot, **({"recent_events": list(recent)} if recent else {})}
        return self.call("POST", "/v1/banners", asked)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Visit:
    """One new visitor. `slot` is what is shown; `greedy`, a slot without chance, proves the change."""

    def __init__(self, url: str, slot: str = "home", greedy: str | None = None) -> None:
        self._api = Api(url)
        self._slot, self._greedy = slot, greedy or slot
        self._row = 0

    def play(self) -> list[Step]:
        """The whole path; raises VisitFailed at the first thing that is not as promised."""
        try:
            return self._play()
        finally:
            self._api.close()

    def _play(self) -> list[Step]:
        self._api.token = self._api.call("POST", "/v1/visitors")[0]["token"]
        before = self._items(self._greedy)
        first, handler_ms = self._api.banners(self._slot)
        _require(first["tier"] == "popular", f"tier {first['tier']!r} for a new visitor; expected 'popular'")
        self._row = int(first["versions"]["row"])
        steps = [_step(None, first, handler_ms)]
        one, other = self._products({banner["item_id"] for banner in first["banners"]})
        path = (("view", one), ("click", one), ("view", other), ("cart", other), ("purchase", other))
        for kind, product in path:  # a purchase, as a log may have nothing else to learn from
            steps.append(self._act(kind, product))
        self._require_changed(steps, before)  # before a click on what is popular leads back to that
        steps.append(self._click_first_banner())
        return steps

    def _items(self, slot: str) -> list[str]:
        return [banner["item_id"] for banner in self._api.banners(slot)[0]["banners"]]

    def _products(self, shown: set[str]) -> tuple[Json, Json]:
        """Two products of one category, of one that is not among the banners yet if there is any."""
        best: tuple[int, list[Json]] = (len(shown) + 1, [])
        categories = self._api.call("GET", "/demo/categories")[0]["categories"][:CATEGORIES]
        for category in categories or [""]:  # "": the whole shop
            path = f"/demo/products?category={quote(category, safe='')}"
            products = self._api.call("GET", path)[0]["products"]
            among = len(shown & {product["item_id"] for product in products})
            if len(products) >= 2 and among < best[0]:
                best = among, products
        _require(bool(best[1]), "no two products of one category; expected some (GET /demo/products)")
        return best[1][0], best[1][1]

    def _act(self, kind: str, product: Json, token: str | None = None) -> Step:
        """Send one event, ask with it brought along, then ask until the row has it."""
        event = {
            "event_id": str(uuid.uuid4()),
            "type": kind,
            "item_id": product["item_id"],
            "time": datetime.now(UTC).isoformat(),
            **({"token": token} if token else {}),
        }
        answer, _ = self._api.call("POST", "/v1/events", event)
        answered_at = time.perf_counter()
        _require(answer["accepted"] == 1, f"POST /v1/events: {answer}; expected 1 accepted")
        banners, handler_ms = self._api.banners(self._slot, [event])
        known = banners["folded_ahead"] + len(banners["already_in_row"])
        _require(known >= 1, f"{kind} of {product['item_id']} brought along but not in the answer")
        freshness_ms = self._arrival_ms(event, banners, answered_at)
        sent = {"type": kind, "item_id": product["item_id"], "title": product["title"]}
        return _step(sent, banners, handler_ms, freshness_ms)

    def _arrival_ms(self, event: Json, answer: Json, since: float) -> float:
        while event["event_id"] not in answer["already_in_row"]:
            waited_s = time.perf_counter() - since
            _require(
                waited_s < ARRIVAL_S, f"event not in the row after {waited_s:.0f} s; see the poller's log"
            )
            time.sleep(ARRIVAL_POLL_S)
            answer, _ = self._api.banners(self._slot, [event])
        arrived_ms = 1000 * (time.perf_counter() - since)
        row = int(answer["versions"]["row"])
        _require(row > self._row, f"row version {row} with a new event; expected more than {self._row}")
        self._row = row
        return round(arrived_ms, 1)

    def _click_first_banner(self) -> Step:
        answer, _ = self._api.banners(self._slot)
        _require(bool(answer["banners"]), "no banners to click; expected one at least")
        banner = answer["banners"][0]
        return self._act("click", banner, banner["token"])

    def _require_changed(self, steps: Sequence[Step], before: Sequence[str]) -> None:
        tier = steps[-1].tier
        _require(tier in PERSONAL, f"tier {tier!r} after {len(steps) - 1} events; expected 'personal'")
        first, *later = ([banner["item_id"] for banner in step.banners] for step in steps)
        changed = any(set(shown) != set(first) for shown in later)
        _require(changed, f"the banners did not change: {first} before and after")
        after = self._items(self._greedy)
        _require(
            set(before) != set(after), f"slot {self._greedy!r} did not change: {before} before and after"
        )


def _step(
    sent: Json | None, answer: Json, handler_ms: float | None, freshness_ms: float | None = None
) -> Step:
    _require(handler_ms is not None, "POST /v1/banners: no Server-Timing; expected handler;dur=<ms>")
    banners = tuple({"item_id": b["item_id"], "title": b["title"]} for b in answer["banners"])
    _require(bool(banners), "POST /v1/banners: no banners; expected one at least")
    return Step(sent, banners, answer["tier"], float(handler_ms or 0.0), freshness_ms)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise VisitFailed(otherwise)


def table(steps: Sequence[Step]) -> str:
    """The visit to read: a line per step, and under it the banners, the new ones with a plus."""
    lines = [f"  {'':3}{'the visitor':54}{'tier':12}{'handler':>12}{'in the row':>14}"]
    shown: set[str] = set()
    for number, step in enumerate(steps, 1):
        did = f"{step.sent['type']}: {step.sent['title']}" if step.sent else "arrives for the first time"
        fresh = f"{step.freshness_ms:.0f} ms" if step.freshness_ms is not None else "-"
        head = f"  {number:<3}{_short(did, 52):54}{step.tier:12}{step.handler_ms:>9.1f} ms{fresh:>14}"
        titles = [f"{'' if b['item_id'] in shown else '+'}{_short(b['title'], 24)}" for b in step.banners]
        lines += [head, "     " + _short(" · ".join(titles), WIDTH)]
        shown = {banner["item_id"] for banner in step.banners}
    return "\n".join(lines)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"
