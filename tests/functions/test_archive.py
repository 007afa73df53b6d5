"""The archive: every event in it, a user's lines under one key, none readable once that is shredded."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from functions import archive
from functions.aws.keys import RECEIPT_BYTES, RECEIPTS
from functions.aws.log import Position
from functions.core.archived import Archived, DataKey
from functions.core.events import parse_event
from functions.core.fold import Encoder, fold
from functions.core.records import encode_erasure, encode_record
from functions.core.ring import Ring
from functions.core.sealed import NONCE_BYTES, PURPOSE, Reading, read_lines, seal, unseal
from functions.core.user_row import UserRow
from local.archive import stored_keys
from local.replay import compare, rebuild
from tests.core.toy_encoder import ToyStep, toy_encoder
from tests.functions.account import KEY_TABLE, Account, Context, behaviour, key_of

SHARDS = ("shardId-000000000000", "shardId-000000000001")
RECEIPT = b"receipt."
NONCE = bytes(NONCE_BYTES)
KEY = DataKey(b"a name..", bytes(range(32)))
RECORD = Archived(SHARDS[0], 10**56, 1_795_521_600.5, key_of("ann"), behaviour(1))


def firehose(data: bytes, sequence: int, user: str = "ann", shard: str = SHARDS[0]) -> dict[str, Any]:
    return {
        "recordId": f"{shard}:{sequence}",
        "data": base64.b64encode(data).decode(),
        "kinesisRecordMetadata": {
            "shardId": shard,
            "sequenceNumber": str(sequence),
            "partitionKey": key_of(user),
            "approximateArrivalTimestamp": 1_795_521_600_500,
        },
    }


def event(sequence: int, user: str = "ann", shard: str = SHARDS[0]) -> dict[str, Any]:
    return firehose(encode_record(key_of(user), behaviour(sequence % 100)), sequence, user, shard)


def transform(*records: dict[str, Any]) -> list[bytes | None]:
    answer = archive.handler({"records": list(records)}, Context())["records"]
    assert [a["recordId"] for a in answer] == [r["recordId"] for r in records]
    return [base64.b64decode(a["data"]) if a["result"] == "Ok" else None for a in answer]


def secrets(account: Account) -> dict[str, bytes]:
    return {key.name.hex(): key.secret for _, key in stored_keys(account.dynamodb, KEY_TABLE)}


def readable(account: Account, lines: list[bytes | None]) -> list[Archived]:
    return list(read_lines([line for line in lines if line], secrets(account), Reading()))


def test_what_is_sealed_is_read_again_and_says_nothing_without_the_key() -> None:
    line = seal(RECORD, KEY, NONCE)
    assert unseal(line, {KEY.name.hex(): KEY.secret}) == RECORD
    assert unseal(line, {}) is None
    assert key_of("ann").encode() not in line and b"sku" not in line
    assert seal(RECORD, KEY, bytes(NONCE_BYTES - 1) + b"\1") != line


def test_a_line_with_any_bit_changed_is_no_line() -> None:
    outer = json.loads(seal(RECORD, KEY, NONCE))
    sealed = bytearray(base64.b64decode(outer["sealed"]))
    for at in range(len(sealed)):
        changed = bytes(b ^ (at == n) for n, b in enumerate(sealed))
        text = json.dumps({**outer, "sealed": base64.b64encode(changed).decode()}).encode()
        with pytest.raises(ValueError, match="changed"):
            unseal(text, {KEY.name.hex(): KEY.secret})


def test_a_line_cut_off_or_lengthened_is_no_line() -> None:
    outer = json.loads(seal(RECORD, KEY, NONCE))
    sealed = base64.b64decode(outer["sealed"])
    for part in (*(sealed[:end] for end in range(len(sealed))), sealed + b"\0"):
        text = json.dumps({**outer, "sealed": base64.b64encode(part).decode()}).encode()
        with pytest.raises(ValueError, match="cut off"):
            unseal(text, {KEY.name.hex(): KEY.secret})


def test_another_key_another_name_and_another_purpose_are_refused() -> None:
    line = seal(RECORD, KEY, NONCE)
    outer = json.loads(line)
    with pytest.raises(ValueError, match="not its key's secret"):
        unseal(line, {KEY.name.hex(): bytes(32)})
    renamed = json.dumps({**outer, "key": b"another.".hex()}).encode()
    with pytest.raises(ValueError, match="not its key's secret"):
        unseal(renamed, {b"another.".hex(): KEY.secret})
    plain = AESGCM(KEY.secret).decrypt(
        NONCE, base64.b64decode(outer["sealed"])[NONCE_BYTES:], PURPOSE + KEY.name
    )
    elsewhere = base64.b64encode(NONCE + AESGCM(KEY.secret).encrypt(NONCE, plain, None)).decode()
    with pytest.raises(ValueError, match="changed"):
        unseal(json.dumps({**outer, "sealed": elsewhere}).encode(), {KEY.name.hex(): KEY.secret})


def test_torn_lines_cost_themselves_alone() -> None:
    whole = seal(RECORD, KEY, NONCE)
    seen = Reading()
    lines = [whole[:-9], b"\n", b"[]\n", whole, whole, b"\xff\n"]
    found = list(read_lines(lines, {KEY.name.hex(): KEY.secret}, seen))
    assert (found, seen) == ([RECORD], Reading(shredded=0, broken=3))


def test_every_user_has_one_key_and_every_event_a_line(account: Account) -> None:
    lines = transform(event(1), event(2, "bob"), event(3))
    lines += transform(event(4), event(5, "bob"))
    assert [r.sequence for r in readable(account, lines)] == [1, 2, 3, 4, 5]
    assert len(secrets(account)) == 2
    (record, *_) = readable(account, lines)
    assert (record.user_key, record.event, record.arrived_s) == (key_of("ann"), behaviour(1), 1_795_521_600.5)


def test_what_is_no_event_is_not_archived_and_stops_nobody(account: Account) -> None:
    other = firehose(encode_record(key_of("ann"), behaviour(1)), 3, "bob")
    erasure = firehose(encode_erasure(key_of("eve"), b"12345678"), 4, "eve")
    lines = transform(firehose(b"no JSON", 1), event(2), other, erasure)
    assert [line is not None for line in lines] == [False, True, False, False]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_in_whatever_order_it_is_delivered_nothing_before_the_erasure_is_readable(
    account: Account, order: tuple[int, ...]
) -> None:
    before = transform(event(1))
    table = archive.archiver().keys
    table.shred(key_of("ann"), Position(SHARDS[0], "2"), RECEIPT, 0)
    assert readable(account, before) == [] and secrets(account) == {}
    (entry,) = account.dynamodb.scan(TableName=KEY_TABLE)["Items"]
    assert set(entry) == {"pk", "erased_to", "receipts", "ttl"}  # it outlives what is on its way, no more
    lines = [line for sequence in order for line in transform(event(sequence))]
    lines += transform(event(1, shard=SHARDS[1]))  # a child of the shard
    assert [(r.shard, r.sequence) for r in readable(account, before + lines)] == [
        (SHARDS[0], 3),
        (SHARDS[1], 1),
    ]
    table.shred(key_of("ann"), Position(SHARDS[0], "1"), b"an older", 0)  # an older erasure that comes late
    assert len(readable(account, lines)) == 2
    (entry,) = account.dynamodb.scan(TableName=KEY_TABLE)["Items"]
    assert "ttl" not in entry  # a key that expired would take its user's lines along


def test_an_erasure_whose_request_died_is_done_by_the_archive_and_once(account: Account) -> None:
    """It is in the log, and nobody shredded the key; it is there twice, for an answer was lost."""
    before = transform(event(1))
    erasure = encode_erasure(key_of("ann"), RECEIPT)
    lines = transform(event(2), firehose(erasure, 3), event(4))
    assert [line is not None for line in lines] == [False, False, True]
    assert [r.sequence for r in readable(account, before + lines)] == [4]
    lines += transform(firehose(erasure, 5), event(6))
    assert [r.sequence for r in readable(account, before + lines)] == [4, 6]
    transform(firehose(encode_erasure(key_of("ann"), b"a later."), 7))
    assert readable(account, before + lines) == []


def test_a_copy_of_an_older_erasure_ends_no_key_though_a_newer_one_came_between(account: Account) -> None:
    """Planted: only the last receipt was known again, and the copy ended the key of the life after both."""
    first, second = (encode_erasure(key_of("ann"), receipt) for receipt in (RECEIPT, b"a later."))
    lines = transform(firehose(first, 1), firehose(second, 2), event(3))
    lines += transform(firehose(first, 4), event(5))
    lines += transform(firehose(second, 6), firehose(first, 7))
    assert [r.sequence for r in readable(account, lines)] == [3, 5]


def test_an_erasure_that_comes_late_is_known_again_too(account: Account) -> None:
    """A later one was faster, and its place stays; the late one's copy is no erasure of the life after it."""
    table = archive.archiver().keys
    table.shred(key_of("ann"), Position(SHARDS[0], "9"), b"a later.", 0)
    lines = transform(event(10))
    table.shred(key_of("ann"), Position(SHARDS[0], "1"), RECEIPT, 0)
    lines += transform(event(8), firehose(encode_erasure(key_of("ann"), RECEIPT), 11))
    assert [r.sequence for r in readable(account, lines)] == [10]


@contextmanager
def just_before_a_key_is_written(act: Callable[[], object]) -> Iterator[None]:
    """Have `act` done once, between what is read of a user's entry and the write that follows from it."""
    dynamodb, due = archive.archiver().keys._dynamodb, [act]
    real = dynamodb.put_item

    def put(**arguments: Any) -> Any:
        if due:
            due.pop()()
        return real(**arguments)

    with patch.object(dynamodb, "put_item", put):
        yield


def test_a_first_key_forgets_no_erasure_that_came_while_it_was_made(account: Account) -> None:
    """Planted: the place alone was looked at, which an older erasure leaves as it is."""
    table = archive.archiver().keys
    table.shred(key_of("ann"), Position(SHARDS[0], "9"), b"a later.", 0)
    with just_before_a_key_is_written(
        lambda: table.shred(key_of("ann"), Position(SHARDS[0], "1"), RECEIPT, 0)
    ):
        lines = transform(event(10))
    lines += transform(firehose(encode_erasure(key_of("ann"), RECEIPT), 11))
    assert [r.sequence for r in readable(account, lines)] == [10]


def test_of_many_erasures_the_last_are_known_again_and_the_item_stays_small(account: Account) -> None:
    receipts = [b"%08d" % nth for nth in range(RECEIPTS + 1)]
    table = archive.archiver().keys
    for nth, receipt in enumerate(receipts):
        table.shred(key_of("ann"), Position(SHARDS[0], str(nth)), receipt, 0)
    entry = table.get_many([key_of("ann")])[key_of("ann")]
    assert [entry.knows(receipt) for receipt in receipts] == [False] + RECEIPTS * [True]
    assert not entry.knows(b"00100000")  # though its bytes are there, across two others
    assert len(entry.receipts) == RECEIPTS * RECEIPT_BYTES


def test_an_erasure_and_a_batch_that_makes_a_key_at_once_both_have_their_way(account: Account) -> None:
    """The erasure read the entry before there was a key; whoever is told has no line that can be read."""
    lines: list[bytes | None] = []
    with just_before_a_key_is_written(lambda: lines.extend(transform(event(1)))):
        archive.archiver().keys.shred(key_of("ann"), Position(SHARDS[0], "2"), RECEIPT, 0)
    assert len(lines) == 1 and readable(account, lines) == [] and secrets(account) == {}


def test_an_erasure_between_reading_and_making_a_key_wins(account: Account) -> None:
    table = archive.archiver().keys
    with just_before_a_key_is_written(
        lambda: table.shred(key_of("ann"), Position(SHARDS[0], "7"), RECEIPT, 0)
    ):
        assert transform(event(6)) == [None]
    assert secrets(account) == {}


def test_two_batches_that_make_a_first_key_at_once_make_one(account: Account) -> None:
    lines: list[bytes | None] = []
    with just_before_a_key_is_written(lambda: lines.extend(transform(event(1)))):
        lines += transform(event(2))
    assert len(secrets(account)) == 1 and len(readable(account, lines)) == 2


def test_a_replay_that_differs_says_so() -> None:
    encoder = toy_encoder()
    records = [
        replace(RECORD, sequence=n, event=behaviour(n, f"i{n}"), user_key=key_of(user))
        for n, user in enumerate(("ann", "bob") * 3)
    ]
    live = rebuild(records, encoder)
    assert compare(records, live, [encoder]).good
    ann = live[key_of("ann")]
    for wrong in (
        {**live, key_of("ann"): replace(ann, state=ann.state + 1)},
        {**live, key_of("ann"): replace(ann, marks=())},
        {**live, key_of("ann"): replace(ann, ring=Ring.of(ann.ring[:1]))},
        {key_of("ann"): ann},
        {**live, key_of("eve"): ann},
    ):
        assert not compare(records, wrong, [encoder]).good


def test_each_arms_rows_are_compared_under_their_own_space() -> None:
    """Planted: a challenger's row with another state was equal before, in all that belongs to no space."""
    champion, challenger = toy_encoder(), replace(toy_encoder(2), space="b" * 16)
    ann, bob = key_of("ann"), key_of("bob")
    records = [
        replace(RECORD, sequence=n, event=behaviour(n, f"i{n}"), user_key=user)
        for n, user in enumerate((ann, bob) * 3)
    ]
    live = rebuild(records, champion) | {bob: rebuild(records, challenger)[bob]}
    both = [champion, challenger]
    verdict = compare(records, live, both)
    assert (verdict.good, verdict.equal, verdict.other_space) == (True, 2, 0)
    wrong = {**live, bob: replace(live[bob], state=live[bob].state + 1)}
    assert compare(records, wrong, both).differing == [f"{RECORD.shard}:1"]
    assert compare(records, wrong, [champion]).other_space == 1  # and it says that it did not look


def test_a_long_row_whose_space_changed_is_equal_to_its_records() -> None:
    """Its state was made anew of the ring in the middle: with the events of before the ring it is another."""
    steps = ToyStep(2)
    steps.decay[:] = 0.99  # it does not forget within a ring
    old, new = toy_encoder(), replace(toy_encoder(2), space="b" * 16, step=steps)
    ann, bob = key_of("ann"), key_of("bob")
    records = [
        replace(RECORD, sequence=n, event=behaviour(n, f"i{n % 50}"), user_key=user)
        for n, user in enumerate((ann, bob) * 80)
    ]
    of_ann = [r for r in records if r.user_key == ann]
    for at, moved in ((6, 0), (140, 1), (158, 1)):
        live = {**rebuild(records, new), ann: moved_at(at, of_ann, old, new)}
        verdict = compare(records, live, [new, old])
        assert (verdict.good, verdict.equal, verdict.moved) == (True, 2, moved)
        live[ann] = replace(live[ann], state=live[ann].state + 1)
        assert compare(records, live, [new, old]).differing == [f"{RECORD.shard}:0"]


def moved_at(at: int, records: list[Archived], old: Encoder, new: Encoder) -> UserRow:
    """The row of records of which those from sequence number `at` on came under another bundle."""
    (key,) = {record.user_key for record in records}
    row = rebuild([r for r in records if r.sequence < at], old)[key]
    later = [r for r in records if r.sequence >= at]
    (row,), _ = fold([row], [[parse_event(r.event, int(r.arrived_s)) for r in later]], new)
    return row.with_mark(RECORD.shard, records[-1].sequence)
