"""The whole loop through the three handlers: ask, act, fold, ask again."""

import json

from functions import collect, score, update
from tests.functions.account import Context, behaviour, credential, http, stream_record


def call(handler, event):
    answer = handler(event, Context())
    return answer["statusCode"], json.loads(answer["body"])


def test_what_a_visitor_does_changes_what_the_visitor_is_shown(account):
    status, visitor = call(score.handler, http("POST", "/v1/visitors"))
    assert status == 201
    ann = f"Bearer {visitor['token']}"
    ask = http("POST", "/v1/banners", {"slot": "cart", "k": 3}, ann)
    status, before = call(score.handler, ask)
    assert (status, before["tier"], before["versions"]["row"]) == (200, "popular", 0)

    shown = before["banners"][0]
    acts = [behaviour(1, shown["item_id"], "click", token=shown["token"])]
    acts += [behaviour(n, f"sku-{20 + n:03d}", "cart") for n in range(2, 6)]
    status, sent = call(collect.handler, http("POST", "/v1/events", {"events": acts}, ann))
    assert (status, sent["accepted"]) == (202, 5)

    records = [
        stream_record(r["PartitionKey"], r["Data"], int(r["SequenceNumber"])) for r in account.records()
    ]
    assert update.handler({"Records": records}, Context()) == {"batchItemFailures": []}

    status, after = call(score.handler, ask)
    assert (status, after["tier"], after["versions"]["row"]) == (200, "personal", 1)
    assert after["last_event_time"] == acts[-1]["time"]
    assert [b["item_id"] for b in after["banners"]] != [b["item_id"] for b in before["banners"]]


def test_a_known_subject_is_the_same_user_everywhere(account):
    event = http("POST", "/v1/events", behaviour(1), credential("ann"))
    assert call(collect.handler, event)[0] == 202
    (record,) = account.records()
    data = json.loads(record["Data"])
    assert record["PartitionKey"] == data["user_key"] and "ann" not in data["user_key"]
    assert data["event"] == behaviour(1)
