"""Promise 7: forgotten means forgotten. Erasure, then a replay of the whole log and of the whole archive."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from functions import archive, collect, me, update
from functions.aws.keys import KeyTable
from functions.aws.rows import from_item
from functions.core.erasure import is_tombstone
from functions.core.user_row import event_hash
from local.archive import Delivery, write_keys
from local.replay import compare, live_rows
from tests.functions.account import KEY_TABLE, Account, Context, behaviour, credential, http, key_of
from tests.functions.test_me import batch
from train.archive import KEY_FILE, read_archive

USERS, SOME = 500, 12
Json = dict[str, Any]


def send(user: str, *numbers: int) -> None:
    acts = [behaviour(n, f"sku-{n % 60:03d}", "click") for n in numbers]
    answer = collect.handler(http("POST", "/v1/events", {"events": acts}, credential(user)), Context())
    assert answer["statusCode"] == 202


def erase(user: str) -> None:
    answer = me.handler(http("DELETE", "/v1/me", authorization=credential(user)), Context())
    assert answer["statusCode"] == 200


def deliver(records: list[Json]) -> None:
    for start in range(0, len(records), 400):
        part = {"Records": records[start : start + 400]}
        assert update.handler(part, Context()) == {"batchItemFailures": []}


class Shop:
    """A stream's two readers, update and the archive, and a look at what they keep."""

    def __init__(self, account: Account, folder: Path) -> None:
        self.account, self.folder = account, folder
        self.delivery = Delivery(lambda event: archive.handler(event, Context()), folder)

    def read(self, first: int = 0, last: int | None = None) -> None:
        """Both read the log's records from the first to the last."""
        records = batch(self.account)[first:last]
        deliver(records)
        for start in range(0, len(records), 400):
            self.delivery({"Records": records[start : start + 400]})
        write_keys(self.account.dynamodb, KEY_TABLE, self.folder / KEY_FILE)

    def trace(self, users: list[str], said: str) -> list[str]:
        """Where anything of these users can still be found."""
        keys = {key_of(user) for user in users}
        found = [key for key, item in self.account.items().items() if key in keys and not empty(item)]
        found += [r.user_key for r in read_archive(self.folder)[0] if r.user_key in keys]
        kept = b"".join(path.read_bytes() for path in self.folder.iterdir()).decode()
        found += [name for name in (*keys, *users) if name in kept or name in said]
        return found


def empty(item: Json) -> bool:
    row = from_item(item)
    return is_tombstone(row) and not (row.state.any() or row.vector.any() or row.favourites.codes)


@pytest.fixture
def shop(account: Account, tmp_path: Path) -> Shop:
    return Shop(account, tmp_path / "archive")


def life(shop: Shop, users: int) -> list[str]:
    """Everybody acts; the even ones are erased, some events still on their way; then all is read again."""
    names = [f"shopper-{n:04d}@example.com" for n in range(users)]
    for name in names:
        send(name, 1, 2)
    shop.read(last=users)  # half of it
    for name in names[::2]:
        erase(name)
    shop.read(first=users)
    shop.read()  # the whole log again, from its first record on
    return names[::2]


def test_five_hundred_erased_and_no_trace_after_a_full_replay(
    shop: Shop, capfd: pytest.CaptureFixture[str]
) -> None:
    erased = life(shop, 2 * USERS)
    out, err = capfd.readouterr()
    assert len(erased) == USERS
    assert shop.trace(erased, out + err) == []
    encoder = update.updater().encoder()
    assert encoder is not None
    records, reading = read_archive(shop.folder)
    verdict = compare(records, live_rows(shop.account.items().values()), [encoder])
    assert (verdict.good, verdict.equal, reading.broken) == (True, USERS, 0)


def test_a_new_life_has_what_came_after_alone(shop: Shop) -> None:
    erased = life(shop, SOME)
    for name in erased:
        send(name, 7)
    shop.read()
    rows = shop.account.items()
    for name in erased:
        assert from_item(rows[key_of(name)]).ring.hashes() == [event_hash("e7")]
    archived = [r.event["event_id"] for r in read_archive(shop.folder)[0] if r.user_key == key_of(erased[0])]
    assert archived == ["e7"]
    assert max(int(rows[key_of(n)]["ttl"]["N"]) for n in erased) > time.time() + 300 * 86_400


@pytest.mark.parametrize("bug", ["no tombstone", "the log's record is passed over", "the key is kept"])
def test_the_planted_bug_is_found(
    shop: Shop, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bug: str
) -> None:
    if bug == "no tombstone":  # what a reader that lags would show until then
        monkeypatch.setattr(me.Eraser, "_bury", lambda *arguments: b"")
        send("ann", 1)
        shop.read()
        erase("ann")
        assert shop.trace(["ann"], "") != []
        return
    if bug == "the key is kept":
        monkeypatch.setattr(KeyTable, "shred", lambda *arguments: None)
    else:
        monkeypatch.setattr(
            update, "surviving", lambda row, records: (row, [r.event for r in records if r.event])
        )
    assert shop.trace(life(shop, SOME), "".join(capfd.readouterr())) != []


def test_the_receipt_names_whom_it_is_for_and_no_more(account: Account) -> None:
    answer = me.handler(http("DELETE", "/v1/me", authorization=credential("ann")), Context())
    body: Json = json.loads(answer["body"])
    assert set(body) == {"status", "erased_at", "receipt"} and "ann" not in body["receipt"]
