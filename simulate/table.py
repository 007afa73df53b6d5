"""The table: DynamoDB's single-item calls with its limits, its conditions, and its ways to fail.

What a row must be at every moment is checked as it is written: a row that is wrong for a second is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from functions.aws.errors import Closed, Refused, TimedOut
from simulate.reference import LIFETIME_S, TOMBSTONE_S, marks_of
from simulate.world import CALL_FAULTS, READ_FAULTS, WRITE_FAULTS, World

TABLE = "rows"
TYPES = dict.fromkeys(("state", "vector", "ring", "last", "fav", "seen", "marks", "wid"), "B")
TYPES |= {"pk": "S", "space": "S", "v": "N", "ttl": "N"}
OPTIONAL = {"era": "B"}
MAX_BYTES, RING_BYTES, SEEN_BYTES, FAV_BYTES = 2048, 64 * 12, 12 * 10, 1 + 50 * 5
CONDITION = re.compile(r"(attribute_not_exists)\((\w+)\)|(\w+) = (:\w+)")
SLOW_S = 9.0

Item = dict[str, dict[str, Any]]


def refused(code: str, operation: str) -> Refused:
    """The service's own answer that it does not do it."""
    return Refused(code, 400, f"{operation}, simulated")


def unanswered(world: World) -> Exception:
    """No answer came, and nobody knows whether it was done."""
    if world.rng.random() < 0.5:
        return Closed("simulated")
    world.now_s += 2.0
    return TimedOut("simulated")


class Table:
    """The client that `functions.aws.rows` is handed."""

    def __init__(self, world: World, forgotten: Mapping[str, set[bytes]] | None = None) -> None:
        self._world = world
        self._forgotten = (
            forgotten if forgotten is not None else {}
        )  # hashes of events by user that no row may have any more
        self.items: dict[str, Item] = {}
        self.moves: dict[str, list[Item]] = {}  # every state of each row that was, in order
        self._wids: set[bytes] = set()
        self._late: dict[str, list[Callable[[], object]]] = {}  # writes that may land yet, by key

    def put_item(
        self,
        *,
        TableName: str,
        Item: Item,
        ConditionExpression: str | None = None,
        ExpressionAttributeValues: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write an item if its condition holds."""
        self._named(TableName)
        key = str(Item["pk"]["S"])
        own = self._world.invocations[-1] if self._world.invocations else None
        if own is not None:
            self._check_request(key, Item, own.space(key), own.skew_s)
            expected = _expected_version(ConditionExpression, ExpressionAttributeValues or {})
            if expected is None or expected != own.told.get(key):
                self._world.wrong(f"{key}: put over version {expected}; the table told {own.told.get(key)}")

        def write() -> dict[str, Any]:
            if not self._holds(ConditionExpression, ExpressionAttributeValues or {}, key):
                self._world.note("conflict", key)
                raise refused("ConditionalCheckFailedException", "PutItem")
            self._check_move(key, Item)
            self.items[key] = Item
            self.moves.setdefault(key, []).append(Item)
            self._world.note("put", key, Item["v"]["N"])
            return {}

        return self._faulty_write(key, write)

    def get_item(self, *, TableName: str, Key: Any, ConsistentRead: bool = False) -> dict[str, Any]:
        """Read an item."""
        self._named(TableName)
        self._consistent(ConsistentRead)
        key = Key["pk"]["S"]
        self._faulty("GetItem", CALL_FAULTS)
        self._told([key])
        return {"Item": self.items[key]} if key in self.items else {}

    def batch_get_item(self, *, RequestItems: Any) -> dict[str, Any]:
        """Read up to 100 items; some may be left for another call."""
        ((table, request),) = RequestItems.items()
        self._named(table)
        self._consistent(request.get("ConsistentRead", False))
        keys = [key["pk"]["S"] for key in request["Keys"]]
        if not 0 < len(keys) <= 100 or len(set(keys)) != len(keys):
            self._world.wrong(f"BatchGetItem of {len(keys)} keys, {len(set(keys))} of them distinct")
        left = 0
        if self._faulty("BatchGetItem", READ_FAULTS, CALL_FAULTS) == "unprocessed keys":
            left = self._world.rng.randint(1, len(keys))
        self._world.rng.shuffle(keys)
        answered = keys[left:]
        self._told(answered)
        items = [self.items[key] for key in answered if key in self.items]
        unprocessed = [{"pk": {"S": key}} for key in keys[:left]]
        waiting = {table: {"Keys": unprocessed, "ConsistentRead": True}} if left else {}
        return {"Responses": {table: items}, "UnprocessedKeys": waiting}

    def _faulty(self, operation: str, *kinds: dict[str, int]) -> str | None:
        """The faults of any call; raises what they raise, returns one that the caller must act upon."""
        world = self._world
        world.pause()
        if world.now_s < world.outage_ends_s:
            raise refused("InternalServerError", operation)
        fault = world.fault(*kinds)
        if fault == "crash before call":
            world.crash()
        if fault == "throttle":
            raise refused("ProvisionedThroughputExceededException", operation)
        if fault in ("lost request", "lost answer"):  # of a read both are the same
            raise unanswered(world)
        self._take_time(fault)
        return fault

    def _faulty_write(self, key: str, write: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        world = self._world
        world.pause()
        if world.now_s < world.outage_ends_s:
            raise refused("InternalServerError", "PutItem")
        fault = world.fault(CALL_FAULTS, WRITE_FAULTS)
        if fault == "throttle":
            raise refused("ProvisionedThroughputExceededException", "PutItem")
        self._take_time(fault)
        if fault in ("crash before call", "crash before write"):
            world.crash()
        if fault == "late write":
            self._late.setdefault(key, []).append(write)
            world.later(lambda: self._land(key, write))
        if fault in ("lost answer", "sdk retry", "crash after write"):
            _quietly(write)
        if fault == "crash after write":
            world.crash()
        if fault in ("lost request", "lost answer", "late write"):
            raise unanswered(world)
        return write()

    def _take_time(self, fault: str | None) -> None:
        world = self._world
        if fault == "slow call" or world.now_s < world.slow_until_s:
            world.now_s += SLOW_S * world.rng.random()

    def _holds(self, condition: str | None, values: Mapping[str, Any], key: str) -> bool:
        if condition is None:
            return True
        item = self.items.get(key)
        parsed = CONDITION.fullmatch(condition)
        if parsed is None:
            raise ValueError(f"condition {condition!r}; expected one that this table knows")
        if parsed[1]:
            return item is None or parsed[2] not in item
        return item is not None and item.get(parsed[3]) == values[parsed[4]]

    def _check_request(self, key: str, item: Item, space: str | None, skew_s: float) -> None:
        """What must hold of any item that the update function sends, whether it is written or not."""
        wrong = self._world.wrong
        types = {name: next(iter(value)) for name, value in item.items()}
        expected = TYPES | {name: kind for name, kind in OPTIONAL.items() if name in item}
        if types != expected:
            wrong(f"{key}: attributes {sorted(types.items() ^ expected.items())} are not those of a row")
            return
        if item["space"]["S"] != space:
            wrong(f"{key}: written in space {item['space']['S']} by a function of {space}")
        bare = "era" in item and not item["ring"]["B"] and not item["seen"]["B"]
        lifetime_s = TOMBSTONE_S if bare else LIFETIME_S
        written_s = int(item["ttl"]["N"]) - lifetime_s - skew_s
        if not -120 <= written_s - self._world.now_s <= 1:
            wrong(f"{key}: ttl {item['ttl']['N']}, {written_s - self._world.now_s:.0f} s from what is due")
        wid = item["wid"]["B"]
        if len(wid) != 8 or wid in self._wids:
            wrong(f"{key}: write id {wid.hex()} is not a new one")
        self._wids.add(wid)

    def _check_move(self, key: str, item: Item) -> None:
        """What must hold between a row and the next."""
        wrong, before = self._world.wrong, self.items.get(key)
        size = _size(item)
        if size > MAX_BYTES:
            wrong(f"{key}: a row of {size} bytes")
        for name, unit, most in (("ring", 12, RING_BYTES), ("seen", 10, SEEN_BYTES), ("fav", 1, FAV_BYTES)):
            length = len(item[name]["B"])
            if length % unit or length > most:
                wrong(f"{key}: {name} of {length} bytes")
        ring = item["ring"]["B"]
        if self._forgotten.get(key, set()) & {ring[at : at + 5] for at in range(0, len(ring), 12)}:
            wrong(f"{key}: what was erased is back")
        was = int(before["v"]["N"]) if before else 0
        if int(item["v"]["N"]) != was + 1:
            wrong(f"{key}: version {item['v']['N']} after {was}")
        marks = marks_of(item["marks"]["B"])
        if len(marks) > 2:
            wrong(f"{key}: {len(marks)} marks")
        for shard, number in (marks_of(before["marks"]["B"]) if before else {}).items():
            if marks.get(shard, number) < number:
                wrong(f"{key}: the mark of a shard went down from {number} to {marks[shard]}")

    def _told(self, keys: list[str]) -> None:
        if self._world.invocations:
            versions = {key: int(self.items[key]["v"]["N"]) if key in self.items else 0 for key in keys}
            self._world.invocations[-1].told |= versions
        for key in keys:
            for write in self._late.get(key, ()):  # the worst moment is right after somebody has read
                if self._world.rng.random() < 0.5:
                    self._world.later(partial(self._land, key, write), within_s=0.0)

    def _land(self, key: str, write: Callable[[], object]) -> None:
        """Let a late write arrive, once."""
        if write in self._late.get(key, ()):
            self._late[key].remove(write)
            _quietly(write)

    def _named(self, table: str) -> None:
        if table != TABLE:
            raise refused("ResourceNotFoundException", table)

    def _consistent(self, consistent: bool) -> None:
        if not consistent:
            self._world.wrong("a read that may be stale: ConsistentRead is not asked for")


def _expected_version(condition: str | None, values: Mapping[str, Any]) -> int | None:
    """The version that a condition wants to find: 0 for no row, None where it does not say."""
    parsed = CONDITION.fullmatch(condition or "")
    if parsed is None:
        return None
    return 0 if parsed[1] else int(values[parsed[4]]["N"])


def _quietly(write: Callable[[], object]) -> None:
    """What nobody hears the answer of."""
    with suppress(Refused):
        write()


def _size(item: Item) -> int:
    """An item's bytes as the table counts them: names and values, a number at its longest."""
    size = 0
    for name, tagged in item.items():
        for kind, content in tagged.items():
            size += len(name) + (21 if kind == "N" else len(content))
    return size
