"""User rows in DynamoDB: read one, read many, write one if nobody else has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from functions.aws.clients import client, error_code, unavailable
from functions.aws.errors import Failure, NoAnswer, TimedOut
from functions.core.erasure import is_tombstone
from functions.core.errors import CorruptRow, VersionConflict
from functions.core.user_row import WID_BYTES, UserRow, decode, encode

LIFETIME_S = 390 * 86_400  # a row that no event reaches for 13 months is forgotten
TOMBSTONE_S = 8 * 86_400  # longer than the stream keeps a record
BATCH = 100  # BatchGetItem's own limit
BATCH_TRIES, BACKOFF_S = 5, 0.05
WRITERS = 16
BINARY = ("state", "vector", "ring", "last", "fav", "seen", "marks", "wid", "era")
TAGS = {**dict.fromkeys(BINARY, "B"), "space": "S", "v": "N"}  # DynamoDB's types of a row's attributes


def hot_client(deadline_ms: int) -> Any:
    """For a request that somebody waits for: one attempt, and 25 ms of the usual 40 for the answer."""
    return client("dynamodb", connect_s=0.025, read_s=max(deadline_ms - 15, 1) / 1000, attempts=1)


def patient_client() -> Any:
    """For the stream's batches: a call takes 15 s at most, three tries and the waits between them."""
    return client("dynamodb", connect_s=1.0, read_s=2.0, attempts=3, connections=WRITERS)


@dataclass
class Fetched:
    """Rows by user key; keys that have none are in neither. `unread`: the table refused or did not answer.

    `corrupt`: why a row is none, in words; an exception would hold on to the frames of all its callers.
    """

    rows: dict[str, UserRow] = field(default_factory=dict)
    corrupt: dict[str, str] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)


class Rows:
    """The table of user rows. Reads are consistent: what a client drops because the row has it, it has."""

    def __init__(self, dynamodb: Any, table: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self._dynamodb, self._table, self._sleep = dynamodb, table, sleep

    def get(self, key: str) -> UserRow | None:
        """The row of a user, None for a new one; raises Unavailable, Throttled, CorruptRow."""
        try:
            answer = self._get(key)
        except Failure as error:
            raise unavailable(error, f"row from {self._table}") from error
        return from_item(answer["Item"]) if "Item" in answer else None

    def get_many(self, keys: Iterable[str], in_time: Callable[[], bool] = lambda: True) -> Fetched:
        """The rows of many users, 100 in a call, each call begun only `in_time`.

        What stays unprocessed after some tries is `unread`.
        """
        wanted = list(dict.fromkeys(keys))
        fetched = Fetched()
        for start in range(0, len(wanted), BATCH):
            self._get_batch(wanted[start : start + BATCH], fetched, in_time)
        return fetched

    def put(self, key: str, row: UserRow, expected_version: int | None, now_s: int) -> None:
        """Write the row if the stored one is at `expected_version` (0: there is none; None: whatever it is).

        Raises VersionConflict, Unavailable, Throttled; CorruptRow for what must not be stored.
        """
        condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(pk)"}
        if expected_version is None:
            condition = {}
        elif expected_version > 0:
            condition = {
                "ConditionExpression": "v = :v",
                "ExpressionAttributeValues": {":v": {"N": str(expected_version)}},
            }
        item = to_item(key, row, now_s)
        try:
            self._dynamodb.put_item(TableName=self._table, Item=item, **condition)
        except Failure as error:
            if error_code(error) == "ConditionalCheckFailedException":
                raise VersionConflict(f"row: no longer at version {expected_version}") from error
            raise unavailable(error, f"row into {self._table}") from error

    def _get(self, key: str) -> Any:
        wanted = {"TableName": self._table, "Key": {"pk": {"S": key}}, "ConsistentRead": True}
        try:
            return self._dynamodb.get_item(**wanted)
        except TimedOut:  # there is no time to try it again
            raise
        except NoAnswer:  # the client of a request tries once, and an answer that was cut short came fast
            return self._dynamodb.get_item(**wanted)

    def _get_batch(self, keys: list[str], fetched: Fetched, in_time: Callable[[], bool]) -> None:
        left = [{"pk": {"S": key}} for key in keys]
        for turn in range(BATCH_TRIES):
            if turn:
                self._sleep(BACKOFF_S * 2 ** (turn - 1))
            if not in_time():
                break
            try:
                request = {self._table: {"Keys": left, "ConsistentRead": True}}
                answer = self._dynamodb.batch_get_item(RequestItems=request)
            except Failure:
                break  # the client has tried several times itself
            _sort(answer["Responses"].get(self._table, []), fetched)
            left = (answer.get("UnprocessedKeys") or {}).get(self._table, {}).get("Keys", [])
            if not left:
                return
        fetched.unread |= {key["pk"]["S"] for key in left}


def to_item(key: str, row: UserRow, now_s: int) -> dict[str, Any]:
    """The DynamoDB item for a row; raises CorruptRow for a row that must not be stored."""
    lifetime_s = TOMBSTONE_S if is_tombstone(row) else LIFETIME_S
    item: dict[str, Any] = {name: {TAGS[name]: value} for name, value in encode(row).items()}
    return item | {"pk": {"S": key}, "v": {"N": str(row.version)}, "ttl": {"N": str(now_s + lifetime_s)}}


def from_item(item: Mapping[str, Mapping[str, Any]]) -> UserRow:
    """The row in a DynamoDB item; raises CorruptRow."""
    try:
        row = decode({name: item[name][tag] for name, tag in TAGS.items() if name in item})
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptRow(f"{error!r}; expected the attributes of a user row") from error
    if row.version < 1 or len(row.wid) != WID_BYTES:
        raise CorruptRow(
            f"version {row.version}, wid of {len(row.wid)} bytes; expected >= 1 and {WID_BYTES} (user row)"
        )
    return row


def _sort(items: list[dict[str, Any]], fetched: Fetched) -> None:
    for item in items:
        key = item["pk"]["S"]
        try:
            fetched.rows[key] = from_item(item)
        except CorruptRow as error:
            fetched.corrupt[key] = str(error)
