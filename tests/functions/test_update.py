"""The stream's reader: whatever the batching and redelivery, each event is in the row once, bit for bit."""

from __future__ import annotations

import random
from typing import Any

import pytest

from functions import update
from functions.core.events import Event, parse_event
from functions.core.fold import fold
from functions.core.ring import Ring
from functions.core.user_row import UserRow, encode, event_hash
from tests.functions.account import Account, Context, behaviour, key_of, stream_record

USERS = ("ann", "bob", "eve")
SHARDS = ("shardId-000000000000", "shardId-000000000001")
KINDS = ("view", "click", "cart", "purchase", "dismiss", "impression")
NOW_S = 1_795_521_600
FIELDS = ("state", "vector", "space", "ring", "last", "fav", "seen")
Record = dict[str, Any]


def deliver(records: list[Record]) -> list[str]:
    """Hand the function a batch; the sequence numbers that it wants again."""
    answer = update.handler({"Records": records}, Context())
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def row_of(subject: str) -> UserRow:
    row = update.updater().rows.get(key_of(subject))
    assert row is not None
    return row


def log(rng: random.Random, length: int = 40) -> list[tuple[str, dict[str, Any]]]:
    """A log of (user, event), oldest first; one item in ten is not in the catalogue."""
    return [
        (rng.choice(USERS), behaviour(n, f"sku-{rng.randrange(66):03d}", rng.choice(KINDS)))
        for n in range(length)
    ]


def events_of(user: str, entries: list[tuple[str, dict[str, Any]]]) -> list[Event]:
    return [parse_event(event, NOW_S) for name, event in entries if name == user]


def same(user: str, entries: list[tuple[str, dict[str, Any]]]) -> bool:
    """Whether the stored row is, bit for bit, what one replay of the user's events makes."""
    encoder = update.updater().encoder()
    assert encoder is not None
    (replayed,), _ = fold([encoder.empty()], [events_of(user, entries)], encoder)
    stored, expected = encode(row_of(user)), encode(replayed)
    return all(stored[name] == expected[name] for name in FIELDS)


def stream(rng: random.Random, records: list[Record]) -> None:
    """Batches of any size, each delivered again now and then from some record before it."""
    sent = 0
    while sent < len(records):
        start = max(0, sent - rng.choice([0, 0, 1, 7]))
        sent = min(len(records), sent + rng.randint(1, 9))
        assert deliver(records[start:sent]) == []


@pytest.mark.parametrize("seed", range(6))
def test_any_batching_and_redelivery_folds_each_event_once(account: Account, seed: int) -> None:
    rng = random.Random(seed)
    entries = log(rng)
    records = [stream_record(key_of(user), event, n + 1) for n, (user, event) in enumerate(entries)]
    stream(rng, records)
    assert all(same(user, entries) for user in USERS)


def test_the_planted_bug_is_found(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without marks and ring, a redelivery is folded twice."""
    monkeypatch.setattr(UserRow, "mark", lambda row, shard: -1)
    monkeypatch.setattr(Ring, "hashes", lambda ring: [])
    monkeypatch.setattr(Ring, "has", lambda ring, event: False)
    entries = [("ann", behaviour(n, f"sku-{n:03d}")) for n in range(4)]
    records = [stream_record(key_of(user), event, n + 1) for n, (user, event) in enumerate(entries)]
    deliver(records)
    deliver(records)
    assert not same("ann", entries)


def test_a_redelivery_writes_nothing(account: Account) -> None:
    records = [stream_record(key_of("ann"), behaviour(n, f"sku-{n:03d}"), n + 1) for n in range(5)]
    assert deliver(records) == []
    before = account.items()
    assert deliver(records) == []
    assert account.items() == before
    assert before[key_of("ann")]["v"]["N"] == "1"


def test_sequence_numbers_of_129_digits_are_compared_within_their_shard(account: Account) -> None:
    high, low = 10**129 - 2, 5
    first = stream_record(key_of("ann"), behaviour(1), high, SHARDS[0])
    other = stream_record(key_of("ann"), behaviour(2), low, SHARDS[1])  # lower, but of another shard
    last = stream_record(key_of("ann"), behaviour(3), high + 1, SHARDS[0])
    assert deliver([first]) == deliver([other]) == deliver([last, first]) == []
    assert len(row_of("ann").ring) == 3
    assert row_of("ann").mark(SHARDS[0]) == high + 1


def test_the_same_event_sent_twice_by_a_client_is_one_event(account: Account) -> None:
    records = [stream_record(key_of("ann"), behaviour(1), sequence) for sequence in (1, 2)]
    assert deliver(records) == []
    assert [entry.event for entry in row_of("ann").ring] == [event_hash("e1")]


def test_an_item_that_nobody_knows_is_kept_and_counted_but_not_folded(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deliver([stream_record(key_of("ann"), behaviour(1, "from-tomorrow"), 1)]) == []
    row = row_of("ann")
    assert len(row.ring) == 1 and not row.state.any() and not row.vector.any()
    assert '"ItemsUnknown":[1' in capsys.readouterr().out.replace(" ", "")


def test_an_impression_moves_no_state(account: Account) -> None:
    assert deliver([stream_record(key_of("ann"), behaviour(1), 1)]) == []
    before = row_of("ann")
    assert deliver([stream_record(key_of("ann"), behaviour(2, "sku-007", "impression"), 2)]) == []
    after = row_of("ann")
    assert after.state.tobytes() == before.state.tobytes()
    assert (after.ring, len(after.seen)) == (before.ring, 1)


def test_nothing_to_do_is_no_failure(account: Account) -> None:
    assert deliver([]) == []
    assert account.items() == {}
