"""The visit against a scripted shop: it passes where the loop works, and fails at each way it may not."""

from __future__ import annotations

from typing import Any

import pytest

from local.visit import Step, Visit, VisitFailed, table

PRODUCTS = {f"{name}{n}": name for name in ("bread", "milk") for n in range(6)}


class Shop:
    """Answers as the API does: banners of the category last clicked, a row one poll behind the log."""

    token = ""

    def __init__(self, **wrong: Any) -> None:
        self.wrong = wrong
        self.log: list[dict[str, Any]] = []
        self.row: list[str] = []
        self.sent_tokens: list[str | None] = []

    def call(self, method: str, path: str, body: Any = None) -> tuple[dict[str, Any], float | None]:
        if path == "/v1/visitors":
            return {"token": "t"}, None
        assert self.token == "t" or path.startswith("/demo")
        if path == "/demo/categories":
            return {"categories": self.wrong.get("categories", ["bread", "milk"])}, None
        if path.startswith("/demo/products?category="):
            chosen = path.partition("=")[2]
            products = [item for item, category in PRODUCTS.items() if chosen in ("", category)]
            return {"products": [{"item_id": item, "title": item.upper()} for item in products]}, None
        assert (method, path) == ("POST", "/v1/events")
        self.log.append(body)
        self.sent_tokens.append(body.get("token"))
        return {"accepted": self.wrong.get("accepted", 1)}, None

    def banners(self, slot: str, recent: Any = ()) -> tuple[dict[str, Any], float | None]:
        known = [event["event_id"] for event in recent if event["event_id"] in self.row]
        folded = 0 if "folded" in self.wrong else len(recent) - len(known)
        events = [*self.row, *(event["event_id"] for event in recent)]
        category = "milk" if events and "stuck" not in self.wrong else "bread"
        items = [item for item in PRODUCTS if PRODUCTS[item] == category][:4]
        answer = {
            "banners": [{"item_id": i, "title": i.upper(), "token": f"token-{i}"} for i in items],
            "tier": self.wrong.get("tier", "personal") if events else self.wrong.get("first", "popular"),
            "versions": {"row": 0 if "version" in self.wrong else len(self.row)},
            "folded_ahead": folded,
            "already_in_row": known,
        }
        if "lost" not in self.wrong:
            self.row = [event["event_id"] for event in self.log]
        return answer, self.wrong.get("handler_ms", 2.5)

    def close(self) -> None:
        pass


def visit(shop: Shop) -> list[Step]:
    played = Visit("http://127.0.0.1:1")
    played._api = shop  # type: ignore[assignment]
    return played.play()


def test_a_visit_looks_at_a_category_that_was_not_shown_and_clicks_a_banner() -> None:
    shop = Shop()
    steps = visit(shop)
    assert [step.sent and step.sent["type"] for step in steps] == [
        None,
        "view",
        "click",
        "view",
        "cart",
        "purchase",
        "click",
    ]
    assert {PRODUCTS[event["item_id"]] for event in shop.log} == {"milk"}
    assert shop.sent_tokens == [None] * 5 + ["token-milk0"]
    assert steps[0].tier == "popular" and steps[-1].tier == "personal"


def test_the_report_holds_what_was_measured() -> None:
    report = [step.report(n) for n, step in enumerate(visit(Shop()), 1)]
    assert report[0] == {
        "step": 1,
        "sent": None,
        "banners": [{"item_id": f"bread{n}", "title": f"BREAD{n}"} for n in range(4)],
        "tier": "popular",
        "handler_ms": 2.5,
        "freshness_ms": None,
    }
    assert report[1]["sent"] == {"type": "view", "item_id": "milk0", "title": "MILK0"}
    assert all(row["freshness_ms"] > 0 for row in report[1:])


def test_a_shop_without_categories_is_visited_too() -> None:
    assert len(visit(Shop(categories=[]))) == 7


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"first": "personal"}, "expected 'popular'"),
        ({"first": "house"}, "'house'"),
        ({"accepted": 0}, "expected 1 accepted"),
        ({"folded": 0}, "brought along but not in the answer"),
        ({"lost": 1}, "not in the row after"),
        ({"version": 0}, "row version 0"),
        ({"tier": "popular"}, "expected 'personal'"),
        ({"stuck": 1}, "did not change"),
        ({"handler_ms": None}, "Server-Timing"),
    ],
)
def test_a_loop_that_does_not_work_fails_the_visit(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], named: str
) -> None:
    monkeypatch.setattr("local.visit.ARRIVAL_S", 0.1)
    with pytest.raises(VisitFailed, match=named):
        visit(Shop(**wrong))


def test_the_table_shows_each_step_and_marks_what_is_new() -> None:
    text = table(visit(Shop()))
    assert "arrives for the first time" in text and "cart: MILK1" in text
    assert "+BREAD0" in text and "+MILK0" in text and text.count("+MILK0") == 1
    assert all(len(line) <= 114 for line in text.splitlines())


def test_an_unreachable_shop_is_named() -> None:
    with pytest.raises(VisitFailed, match=r"POST http://127\.0\.0\.1:1/v1/visitors"):
        Visit("http://127.0.0.1:1").play()
