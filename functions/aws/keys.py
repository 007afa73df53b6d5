"""The archive's keys in DynamoDB, one item per user, in a table without backups: what is shredded is gone.

An item holds the user's key, or the place in the log of the last erasure, or both. Records up to that place
are archived no more, however late they come; those after it get a new key. The receipts of the last erasures
are beside it, so that one that is in the log twice ends one key alone, whatever other came between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from functions.aws.clients import client, error_code, unavailable
from functions.aws.errors import Failure
from functions.aws.log import Position
from functions.aws.rows import TOMBSTONE_S
from functions.core.archived import KEY_BYTES, NAME_BYTES, DataKey
from functions.core.errors import Unavailable

BATCH, TRIES, BACKOFF_S = 100, 5, 0.05
NAMES = ("key_name", "erased_to", "receipts")  # what an entry is known again by
RECEIPT_BYTES, RECEIPTS = 8, 16  # of one, and how many of a user's last are known again


def place(shard: str, sequence: int) -> str:
    """A place in a user's log as text that sorts: shards are numbered as they come to be."""
    return f"{shard}:{sequence:0130d}"


def keys_client() -> Any:
    """For whole batches, and for an erasure that somebody waits for."""
    return client("dynamodb", connect_s=1.0, read_s=2.0, attempts=3)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the table has of a user: the key, None before the first; the last erasure's place, "" for none."""

    key: DataKey | None = None
    erased: str = ""
    receipts: bytes = b""  # of the last erasures, in the order in which they came here

    def before_erasure(self, shard: str, sequence: int) -> bool:
        """Whether a record of the user is older than the erasure."""
        return place(shard, sequence) <= self.erased

    def knows(self, receipt: bytes) -> bool:
        """Whether an erasure is among the last."""
        starts = range(0, len(self.receipts), RECEIPT_BYTES)
        return receipt in (self.receipts[at : at + RECEIPT_BYTES] for at in starts)

    def after(self, erased: str, receipt: bytes) -> Entry:
        """The entry when an erasure has come; the key goes, unless a later erasure has been here already."""
        receipts = (self.receipts + receipt)[-RECEIPTS * RECEIPT_BYTES :]
        if erased < self.erased:
            return replace(self, receipts=receipts)
        return Entry(None, erased, receipts)


class KeyTable:
    """Keys by user."""

    def __init__(
        self,
        dynamodb: Any,
        table: str,
        random: Callable[[int], bytes],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._dynamodb, self._table, self._random, self._sleep = dynamodb, table, random, sleep

    def get_many(self, users: Iterable[str]) -> dict[str, Entry]:
        """Entries of those users that have one; raises Unavailable, Throttled."""
        wanted = list(dict.fromkeys(users))
        found: dict[str, Entry] = {}
        for start in range(0, len(wanted), BATCH):
            left = [{"pk": {"S": user}} for user in wanted[start : start + BATCH]]
            for turn in range(TRIES):
                if turn:
                    self._sleep(BACKOFF_S * 2**turn)
                answer = self._batch(left)
                found.update(
                    (item["pk"]["S"], entry_of(item)) for item in answer["Responses"].get(self._table, [])
                )
                left = (answer.get("UnprocessedKeys") or {}).get(self._table, {}).get("Keys", [])
                if not left:
                    break
            else:
                raise Unavailable(f"{len(left)} keys stay unprocessed ({self._table})")
        return found

    def create(self, user: str, before: Entry) -> DataKey | None:
        """A first key for a user whose entry is `before`; None where it no longer is: read it anew."""
        key = DataKey(self._random(NAME_BYTES), self._random(KEY_BYTES))
        return key if self._swap(user, before, item_of(replace(before, key=key))) else None

    def shred(self, user: str, erased: Position, receipt: bytes, now_s: int) -> None:
        """Forget the user's key for good, unless this erasure or a later one has; raises Unavailable."""
        to = place(erased.shard, int(erased.sequence))
        for _ in range(TRIES):
            before = self.get_many([user]).get(user, Entry())
            if before.knows(receipt):
                return
            item = item_of(before.after(to, receipt))
            if "data_key" not in item:  # a key that expired would take its user's lines along
                item["ttl"] = {"N": str(now_s + TOMBSTONE_S)}
            if self._swap(user, before, item):
                return
        raise Unavailable(f"another writer of a key was faster {TRIES} times ({self._table})")

    def _swap(self, user: str, before: Entry, item: dict[str, Any]) -> bool:
        """Put an item in the place of an entry; whether it was still there. Raises Unavailable."""
        known = item_of(before)
        terms = [f"{n} = :{n}" if n in known else f"attribute_not_exists({n})" for n in NAMES]
        condition: dict[str, Any] = {"ConditionExpression": " AND ".join(terms)}
        if known:
            condition["ExpressionAttributeValues"] = {f":{n}": known[n] for n in NAMES if n in known}
        try:
            self._dynamodb.put_item(TableName=self._table, Item={"pk": {"S": user}, **item}, **condition)
        except Failure as error:
            if error_code(error) == "ConditionalCheckFailedException":
                return False
            raise unavailable(error, f"key into {self._table}") from error
        return True

    def _batch(self, keys: list[dict[str, Any]]) -> Any:
        try:
            return self._dynamodb.batch_get_item(
                RequestItems={self._table: {"Keys": keys, "ConsistentRead": True}}
            )
        except Failure as error:
            raise unavailable(error, f"keys from {self._table}") from error


def entry_of(item: Mapping[str, Any]) -> Entry:
    """The entry in an item of the table."""
    key = DataKey(bytes(item["key_name"]["B"]), bytes(item["data_key"]["B"])) if "data_key" in item else None
    if "erased_to" not in item:
        return Entry(key)
    return Entry(key, item["erased_to"]["S"], bytes(item["receipts"]["B"]))


def item_of(entry: Entry) -> dict[str, Any]:
    """An entry as the table has it, but for its user and its end."""
    item: dict[str, Any] = {}
    if entry.key is not None:
        item |= {"key_name": {"B": entry.key.name}, "data_key": {"B": entry.key.secret}}
    if entry.erased:
        item |= {"erased_to": {"S": entry.erased}, "receipts": {"B": entry.receipts}}
    return item
