"""`POST /v1/banners`: always an answer, which says how it came about; a visitor's own events show at once."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from functions import score, update
from functions.aws.errors import TimedOut
from functions.core.banners import Visitor, select
from functions.core.events import Event
from functions.core.features import gap_bucket
from functions.core.fold import fold
from functions.core.requests import BannerRequest
from functions.core.served import ServedBundle
from functions.core.tokens import Decision, verify
from functions.core.user_row import UserRow
from tests.functions.account import (
    KEYS,
    STORED,
    TABLE,
    Account,
    Context,
    behaviour,
    copy_bundles,
    credential,
    http,
    key_of,
    stream_record,
)

NOW_S = 1_790_000_000
LIKES = [behaviour(n, f"sku-{40 + n:03d}", "click") for n in range(1, 6)]
Json = dict[str, Any]


def ask(user: str = "ann", slot: str = "cart", **more: Any) -> Json:
    """The answer for a user; every answer must be a 200."""
    answer = score.handler(http("POST", "/v1/banners", {"slot": slot, **more}, credential(user)), Context())
    assert answer["statusCode"] == 200, answer["body"]
    body: Json = json.loads(answer["body"])
    return body


def bring(events: list[Json], user: str = "ann", start: int = 1) -> None:
    """The stream brings events into the user's row."""
    records = [stream_record(key_of(user), event, start + at) for at, event in enumerate(events)]
    assert update.handler({"Records": records}, Context()) == {"batchItemFailures": []}


def serving(user: str) -> tuple[ServedBundle, UserRow]:
    """The bundle that is served, and the user's row."""
    bundle, row = score.scorer().bundles.current, score.scorer().rows.get(key_of(user))
    assert bundle is not None and row is not None
    return bundle, row


def turned_after_two_days(bundle: ServedBundle) -> ServedBundle:
    """The bundle, where whoever stays away for more than two days wants the opposite."""
    factors = bundle.context.factors.copy()
    factors[int(gap_bucket(2 * 86_400)) :] = -2.0
    return replace(bundle, context=bundle.context._replace(factors=factors))


def shown(answer: Json) -> list[str]:
    return [banner["item_id"] for banner in answer["banners"]]


def decisions(answer: Json) -> list[Decision]:
    return [Decision.from_claims(verify(b["token"], KEYS, NOW_S)) for b in answer["banners"]]


def test_a_new_visitor_is_shown_what_is_popular(account: Account) -> None:
    answer = ask(slot="product")
    assert (answer["tier"], answer["versions"]["row"], answer["last_event_time"]) == ("popular", 0, None)
    assert (answer["folded_ahead"], answer["already_in_row"]) == (0, [])
    assert len(answer["banners"]) == 4


def test_a_known_visitor_is_ranked_by_the_own_vector(account: Account) -> None:
    before = ask()
    bring(LIKES)
    after = ask()
    assert (after["tier"], after["versions"]["row"]) == ("personal", 1)
    assert after["last_event_time"] == LIKES[-1]["time"]
    assert shown(after) != shown(before)


def test_what_a_request_brings_along_shows_at_once_and_the_stream_comes_to_the_same(account: Account) -> None:
    """Promise 2."""
    early = ask(recent_events=LIKES)
    assert (early["tier"], early["folded_ahead"], early["already_in_row"]) == ("personal", 5, [])
    bring(LIKES[:3])
    half = ask(recent_events=LIKES)
    assert (half["folded_ahead"], half["already_in_row"]) == (2, [e["event_id"] for e in LIKES[:3]])
    bring(LIKES[3:], start=4)
    late = ask(recent_events=LIKES)
    assert (late["folded_ahead"], late["already_in_row"]) == (0, [e["event_id"] for e in LIKES])
    assert shown(early) == shown(half) == shown(late) == shown(ask())
    assert shown(early) != shown(ask("somebody else"))


def test_asking_writes_nothing(account: Account) -> None:
    ask(recent_events=LIKES)
    assert account.items() == {}


def test_a_row_of_another_state_space_is_rebuilt_for_the_answer(account: Account) -> None:
    bring(LIKES)
    before = ask()
    item = account.items()[key_of("ann")]
    foreign = {**item, "space": {"S": "f" * 16}, "vector": {"B": b"\x11" * len(item["vector"]["B"])}}
    account.dynamodb.put_item(TableName=TABLE, Item=foreign)
    rebuilt = ask()
    assert rebuilt["tier"] == "rebuilt"
    assert shown(rebuilt) == shown(before)


def test_a_table_that_is_down_costs_the_personal_tier_alone(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(LIKES)
    ask()

    def down(**arguments: Any) -> Any:
        raise TimedOut("table")

    with monkeypatch.context() as planted:
        planted.setattr(score.scorer().rows._dynamodb, "get_item", down)
        answer = ask()
    assert (answer["tier"], answer["versions"]["row"]) == ("popular", 0)
    assert shown(answer) == shown(ask("somebody new"))
    assert ask()["tier"] == "personal"


@pytest.mark.parametrize(
    "damage", [{"state": {"B": b"odd"}}, {"vector": {"B": b"\0\0"}}, {"ring": {"S": "x"}}]
)
def test_a_corrupt_row_costs_the_personal_tier_alone(account: Account, damage: Json) -> None:
    bring(LIKES)
    account.dynamodb.put_item(TableName=TABLE, Item={**account.items()[key_of("ann")], **damage})
    assert ask()["tier"] == "popular"


def test_without_any_bundle_the_house_banner_answers(fresh: None) -> None:
    Account(bundles=None)
    answer = ask(slot="anything", k=5)
    assert (answer["tier"], shown(answer)) == ("house", ["house"])
    assert answer["versions"] == {"bundle": None, "state_space": None, "row": 0}
    health = json.loads(score.handler(http("GET", "/v1/health"), Context())["body"])
    assert (health["status"], health["bundle"]) == ("degraded", None)


def test_a_corrupt_bundle_is_never_served(
    fresh: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundles = copy_bundles(tmp_path)
    (codes,) = bundles.glob("*/codes.u8")
    data = bytearray(codes.read_bytes())
    data[7] ^= 1
    codes.write_bytes(data)
    Account(bundles)
    assert ask()["tier"] == "house"
    (error,) = {record.error for record in caplog.records if hasattr(record, "error")}
    stated = json.loads((codes.parent / "manifest.json").read_text())["files"]["codes.u8"]["sha256"]
    found = hashlib.sha256(data).hexdigest()
    assert "codes.u8" in error and stated in error and found in error


def test_a_tier_that_fails_gives_way_to_the_next(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(LIKES)
    bundle = score.scorer().bundles.current
    assert bundle is not None

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("planted")

    monkeypatch.setattr(type(bundle), "candidates", fail)
    assert ask()["tier"] == "popular"
    monkeypatch.setattr(type(bundle), "popular", fail)
    assert ask()["tier"] == "house"


def test_a_dismissed_item_is_not_shown_again(account: Account) -> None:
    first = ask()["banners"][0]["item_id"]
    dismissal = behaviour(9, first, "dismiss")
    assert first not in shown(ask(recent_events=[dismissal]))
    bring([dismissal])
    assert first not in shown(ask())
    assert first in shown(ask("somebody else"))


def test_an_item_is_shown_no_more_often_a_day_than_the_slot_says(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The home slot's cap is 8; impressions are counted in the 24 hours before the request."""
    monkeypatch.setattr(score.time, "time", lambda: NOW_S + 100.0)
    seen = [{**behaviour(n, "sku-005", "impression"), "time": f"2026-09-21T13:{n:02d}:00Z"} for n in range(8)]
    everything = {"slot": "home", "k": 12}
    ann = credential("ann", lifetime_s=10**9)

    def items(recent: list[Json]) -> set[str]:
        event = http("POST", "/v1/banners", {**everything, "recent_events": recent}, ann)
        banners = json.loads(score.handler(event, Context())["body"])["banners"]
        return {banner["item_id"] for banner in banners}

    assert "sku-005" in items(seen[:7])
    assert "sku-005" not in items(seen)


def test_every_banner_carries_a_token_that_says_how_it_was_chosen(account: Account) -> None:
    bring(LIKES)
    answer = ask(slot="home", k=5)
    made = decisions(answer)
    for banner, decision in zip(answer["banners"], made, strict=True):
        assert decision.user_key == key_of("ann")
        assert (decision.slot, decision.item_id) == ("home", banner["item_id"])
        assert (decision.position, decision.policy) == (banner["position"], "personal/softmax")
        assert (decision.bundle, decision.row_version) == (answer["versions"]["bundle"], 1)
        assert 0 < decision.propensity <= 1
    assert [decision.position for decision in made] == list(range(5))


def test_the_device_that_asks_has_a_say_and_the_token_tells_it(account: Account) -> None:
    """The bundle's model has learnt of robots that they want toys, and of other devices nothing."""
    bring(LIKES)
    plain, robot, fridge = (ask(k=3, **more) for more in ({}, {"device": "robot"}, {"device": "fridge"}))
    bundle = score.scorer().bundles.current
    assert bundle is not None
    rows = [row for row in bundle.catalogue.rows_of_ids(shown(robot)).values()]
    assert {product.category for product in bundle.catalogue.products(rows)} == {"Toys"}
    assert robot["tier"] == "personal"
    assert shown(plain) == shown(fridge) != shown(robot)
    assert {decision.device for decision in decisions(robot)} == {"robot"}
    assert {decision.device for decision in decisions(plain)} == {""}


def test_a_policy_without_chance_has_propensity_one(account: Account) -> None:
    bring(LIKES)
    assert {decision.propensity for decision in decisions(ask(slot="cart"))} == {1.0}


def test_an_exploring_policy_says_its_true_propensity(account: Account) -> None:
    """epsilon 0.05 over the candidates: the best item has 0.95 and its share of the rest."""
    bring(LIKES)
    answer = ask(slot="product", k=1)
    (decision,) = decisions(answer)
    bundle, row = serving("ann")
    rows, _ = bundle.candidates(row)
    best = bundle.catalogue.product(int(rows[0])).item_id
    share = 0.05 / len(rows)
    expected = 0.95 + share if decision.item_id == best else share
    assert math.isclose(decision.propensity, expected, rel_tol=1e-9)


def test_a_list_is_of_the_time_since_the_visitors_last_event(account: Account) -> None:
    """Under a model in which whoever stays away for more than two days wants the opposite."""
    bring(LIKES)
    bundle, row = serving("ann")
    other = turned_after_two_days(bundle)
    request = BannerRequest(bundle.slots["cart"], 6)

    def listed(by: ServedBundle, after_s: int) -> list[int]:
        return [c.row for c in select(by, request, Visitor("ann", row), row.last_s + after_s).choices]

    away = replace(row, vector=-row.vector, version=row.version)
    opposite = select(bundle, request, Visitor("ann", away), row.last_s + 7 * 86_400).choices
    assert listed(other, 60) == listed(bundle, 60) == listed(bundle, 7 * 86_400)
    assert listed(other, 7 * 86_400) == [choice.row for choice in opposite] != listed(bundle, 60)


def test_events_that_a_request_brings_along_end_the_time_away(account: Account) -> None:
    """A visitor who is back after a week is asked for as one who is back."""
    bring(LIKES)
    bundle, row = serving("ann")
    other = turned_after_two_days(bundle)
    now_s = row.last_s + 7 * 86_400
    back = Event("back", "click", "sku-000", now_s - 5)
    asked = BannerRequest(bundle.slots["cart"], 6, recent=(back,))
    (folded,), _ = fold([row], [[back]], bundle.encoder)
    here = select(other, asked, Visitor("ann", row), now_s).choices
    assert here == select(bundle, asked, Visitor("ann", row), now_s).choices
    unasked = asked._replace(recent=())
    assert here == select(other, unasked, Visitor("ann", folded), now_s).choices
    assert here != select(other, unasked, Visitor("ann", row), now_s).choices


def test_a_list_is_of_all_that_the_visitor_met_where_the_model_says_so(account: Account) -> None:
    """Under a model in which after two days nothing counts but the general interest."""
    bring([behaviour(n, f"sku-{n:03d}", "click") for n in (*range(30), *range(40, 42))])
    bundle, row = serving("ann")
    late = int(gap_bucket(2 * 86_400))
    factors, interests = bundle.context.factors.copy(), bundle.context.interests.copy()
    factors[late:], interests[late:] = -1.0, 1.0
    other = replace(bundle, context=bundle.context._replace(factors=factors, interests=interests))
    after_s = row.last_s + 7 * 86_400
    asked = BannerRequest(bundle.slots["cart"], 6)
    chosen = [each.row for each in select(other, asked, Visitor("ann", row), after_s).choices]
    mean = bundle.items.table[[*range(30), 40, 41]].astype(np.float32).mean(0)
    by_mean = select(bundle, asked, Visitor("ann", replace(row, vector=mean.astype(np.float16))), after_s)
    assert chosen == [each.row for each in by_mean.choices]
    assert chosen != [each.row for each in select(bundle, asked, Visitor("ann", row), after_s).choices]


def test_a_banner_is_whole(account: Account) -> None:
    for banner in ask(slot="home", k=12)["banners"]:
        assert (
            banner["title"] and banner["label"] == "Picked for you" and banner["link"].startswith("/p/sku-")
        )
        assert banner["price"]["amount"] > 0 and banner["price"]["currency"] == "EUR"
        assert isinstance(banner["tags"], list)
        kind, picture = banner["image"]["url"].split(";base64,")
        assert kind == "data:image/svg+xml" and banner["image"]["alt"]
        assert ElementTree.fromstring(base64.b64decode(picture)).tag.endswith("svg")


@pytest.mark.parametrize(("slot", "most"), [("home", 12), ("product", 12), ("cart", 6)])
def test_k_banners_are_given_and_none_twice(account: Account, slot: str, most: int) -> None:
    for k in range(1, most + 1):
        answer = ask(slot=slot, k=k)
        assert [banner["position"] for banner in answer["banners"]] == list(range(k))
        assert len(set(shown(answer))) == k


def test_a_visitor_that_the_shop_does_not_know_gets_a_credential(account: Account) -> None:
    made = score.handler(http("POST", "/v1/visitors"), Context())
    assert made["statusCode"] == 201
    visitor = json.loads(made["body"])
    event = http("POST", "/v1/banners", {"slot": "home"}, f"Bearer {visitor['token']}")
    assert score.handler(event, Context())["statusCode"] == 200
    other = json.loads(score.handler(http("POST", "/v1/visitors"), Context())["body"])
    assert other["token"] != visitor["token"]


def test_the_answer_says_how_long_it_took_and_may_not_be_kept(account: Account) -> None:
    answer = score.handler(http("POST", "/v1/banners", {"slot": "home"}, credential("ann")), Context())
    assert answer["headers"]["Server-Timing"].startswith("handler;dur=")
    assert answer["headers"]["Cache-Control"] in ("no-store", ["no-store"])


def test_health_names_the_bundle(account: Account) -> None:
    body = json.loads(score.handler(http("GET", "/v1/health"), Context())["body"])
    champion = json.loads((STORED / "pointer.json").read_text())["champion"]
    assert (body["status"], body["bundle"]) == ("ok", champion)
