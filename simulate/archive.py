"""The archive: a table of keys with its ways to fail, Firehose with its own, and what must be readable."""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from functions import archive
from functions.aws.keys import KeyTable
from functions.core.errors import Unavailable
from functions.core.sealed import Reading, read_lines
from simulate.stream import Logged, SimulatedLog
from simulate.table import Item, refused, unanswered
from simulate.world import ARCHIVE_FAULTS, KEY_FAULTS, KEY_WRITE_FAULTS, World

TABLE = "keys"
TERM = re.compile(r"attribute_not_exists\((\w+)\)|(\w+) (=|<>|<) (:\w+)")
Place = tuple[str, str]  # shard, sequence number
KNOWN_AGAIN = 16  # erasures of a user: docs/contracts.md


class KeyItems:
    """The client that `functions.aws.keys` is handed: items under conditions, one user each."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.items: dict[str, Item] = {}

    def put_item(
        self,
        *,
        TableName: str,
        Item: Item,
        ConditionExpression: str = "",
        ExpressionAttributeValues: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write an item if its condition holds."""
        fault = self._faulty(KEY_FAULTS, KEY_WRITE_FAULTS)

        def write() -> dict[str, Any]:
            before = self.items.get(Item["pk"]["S"], {})
            if not holds(ConditionExpression, ExpressionAttributeValues or {}, before):
                raise refused("ConditionalCheckFailedException", "PutItem")
            self.items[Item["pk"]["S"]] = Item
            return {}

        if fault == "key write late":  # its sender has given it up, and it arrives all the same
            self._world.later(lambda: self._land(write))
            raise unanswered(self._world)
        answer = write()
        if fault == "key answer lost":
            raise unanswered(self._world)
        return write() if fault == "key sdk retry" else answer

    def batch_get_item(self, *, RequestItems: Any) -> dict[str, Any]:
        """Read up to 100 items; some may be left for another call."""
        ((table, request),) = RequestItems.items()
        if not request.get("ConsistentRead"):
            self._world.wrong("a key is read that may be stale")
        fault = self._faulty(KEY_FAULTS, KEY_WRITE_FAULTS)
        keys = [key["pk"]["S"] for key in request["Keys"]]
        if not 0 < len(keys) <= 100 or len(set(keys)) != len(keys):
            self._world.wrong(f"BatchGetItem of {len(keys)} keys, {len(set(keys))} of them distinct")
        left = len(keys) // 2 if fault == "key sdk retry" else 0
        found = [self.items[key] for key in keys[left:] if key in self.items]
        waiting = {table: {"Keys": request["Keys"][:left]}} if left else {}
        return {"Responses": {table: found}, "UnprocessedKeys": waiting}

    def _faulty(self, *kinds: dict[str, int]) -> str | None:
        self._world.pause()
        fault = self._world.fault(*kinds)
        if fault == "key refused":
            raise refused("ProvisionedThroughputExceededException", "PutItem")
        return fault

    def _land(self, write: Any) -> None:
        try:
            write()
        except Exception:  # nobody hears of it
            return


def holds(condition: str, values: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """Whether an item meets a condition, ANDs of ORs; raises ValueError for one that is not understood."""
    parts = [[term.groups() for term in TERM.finditer(part)] for part in condition.split(" AND ")]
    if condition and not all(parts):
        raise ValueError(f"condition {condition!r}; expected one that this table knows")
    return all(any(_term(term, values, item) for term in part) for part in parts if part)


def _term(term: tuple[str, ...], values: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    missing, name, operator, value = term
    if missing:
        return missing not in item
    if name not in item:
        return False
    ((kind, stored),), ((wanted_kind, wanted),) = item[name].items(), values[value].items()
    if kind != wanted_kind:
        return operator == "<>"
    return bool({"=": stored == wanted, "<>": stored != wanted, "<": stored < wanted}[operator])


@dataclass
class Firehose:
    """Reads the log's shards, each in its order, has batches transformed, and keeps what comes back."""

    world: World
    log: SimulatedLog
    keys: KeyItems
    lines: list[bytes] = field(default_factory=list)
    # the places of the records under each key, by its name
    under: dict[str, list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))
    ended: dict[tuple[str, bytes], Turn] = field(default_factory=dict)  # user, receipt → first known here
    # where the copies are that may have ended the user's key: those that it came to before it was done
    copies: dict[tuple[str, bytes], list[Place]] = field(default_factory=lambda: defaultdict(list))
    sealed: dict[Place, Turn] = field(default_factory=dict)  # when the last line of a record was begun
    _read: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _shards: dict[str, list[Logged]] = field(default_factory=lambda: defaultdict(list))
    _seen: int = 0
    _turns: int = 0

    def __post_init__(self) -> None:
        self.table = KeyTable(self.keys, TABLE, self.world.rng.randbytes, self.world.sleep)
        self._own = archive.Archiver(self.table, self.world.rng.randbytes, lambda: self.world.now_s)

    def waiting(self) -> list[str]:
        """The shards that have records for it."""
        for logged in self.log.all[self._seen :]:
            self._shards[logged.shard].append(logged)
        self._seen = len(self.log.all)
        return [shard for shard, records in self._shards.items() if self._read[shard] < len(records)]

    def step(self) -> None:
        """One batch of one shard; what fails comes again, and what was delivered may come again too."""
        shards = self.waiting()
        if not shards:
            return
        world = self.world
        shard = world.rng.choice(shards)
        first, begun = self._read[shard], self._turn()
        batch = self._shards[shard][first:][: world.rng.randint(1, 30)]
        for logged in batch:
            erasure = (logged.user or "", logged.receipt or b"")
            if logged.receipt is not None and erasure not in self.ended:
                self.copies[erasure].append((logged.shard, logged.record.sequence))
        try:
            answer = archive.handle(self._own, {"records": [_to_firehose(logged) for logged in batch]})
        except Unavailable:
            return
        fault = world.fault(ARCHIVE_FAULTS)
        if fault == "archive lines lost":
            return
        self._keep(batch, answer["records"], begun)
        if fault != "archive lines twice":
            self._read[shard] = max(self._read[shard], first + len(batch))

    def readable(self) -> tuple[dict[Place, tuple[str, Any]], int, int]:
        """What a reader with today's keys has: user and event by place; records read twice; broken lines."""
        named = [item for item in self.keys.items.values() if "data_key" in item]
        secrets = {item["key_name"]["B"].hex(): item["data_key"]["B"] for item in named}
        seen, found, twice = Reading(), dict[Place, tuple[str, Any]](), 0
        for record in read_lines(self.lines, secrets, seen):
            place = (record.shard, str(record.sequence))
            twice += place in found
            found[place] = (record.user_key, record.event)
        return found, twice, seen.broken

    def require_gone(self, user: str, receipt: bytes) -> None:
        """Who is told of an erasure has no line that can be read and is older than it."""
        self.ended.setdefault((user, receipt), Turn(self._turn()))
        first = next(entry for entry in self.log.all if (entry.user, entry.receipt) == (user, receipt))
        name = self.keys.items.get(user, {}).get("key_name", {"B": b""})["B"].hex()
        end = (first.shard, int(first.record.sequence))
        if any(place <= end for place in self.under.get(name, ())):
            self.world.wrong(f"{user}: told that all is erased, and the archive can be read")

    def _keep(self, batch: list[Logged], answers: list[Mapping[str, str]], begun: int) -> None:
        over = self._turn()
        for logged, answer in zip(batch, answers, strict=True):
            if logged.receipt is not None and logged.user:
                self.ended.setdefault((logged.user, logged.receipt), Turn(over, begun))
            if answer["result"] == archive.OK:
                line = base64.b64decode(answer["data"])
                self.lines.append(line)
                self.under[line[8:24].decode()].append((logged.shard, int(logged.record.sequence)))
                self.sealed[logged.shard, logged.record.sequence] = Turn(begun, begun)

    def _turn(self) -> int:
        self._turns += 1
        return self._turns


class Turn(NamedTuple):
    """A moment of the archive's, and the batch that it belongs to."""

    at: int
    batch: int = 0  # 0: none; else the moment at which it was begun


def _to_firehose(logged: Logged) -> dict[str, Any]:
    return {
        "recordId": f"{logged.shard}:{logged.record.sequence}",
        "data": base64.b64encode(logged.record.data).decode(),
        "kinesisRecordMetadata": {
            "shardId": logged.shard,
            "sequenceNumber": logged.record.sequence,
            "partitionKey": logged.record.partition_key,
            "approximateArrivalTimestamp": int(1000 * logged.record.arrival_s),
        },
    }


def judge_archive(world: World, firehose: Firehose) -> None:
    """What must be readable is, once and as it was sent; of what was erased nothing is."""
    found, twice, broken = firehose.readable()
    if twice or broken:
        world.wrong(f"archive: {twice} records twice, {broken} broken lines")
    by_user: dict[str, list[Logged]] = defaultdict(list)
    for logged in firehose.log.all:
        place = (logged.shard, logged.record.sequence)
        if logged.user is None:
            if place in found:
                world.wrong(f"{place}: no event, and archived")
        else:
            by_user[logged.user].append(logged)
    for user, records in by_user.items():
        for logged, must in expected(records, firehose):
            told = found.get((logged.shard, logged.record.sequence))
            if must is False and told:
                world.wrong(f"{user}: what was erased can be read in the archive")
            if must and told is None:
                world.wrong(f"{logged.shard}:{logged.record.sequence}: not in the archive")
            if told and told != (user, logged.event):
                world.wrong(f"{logged.shard}:{logged.record.sequence}: archived as something else")


def expected(records: list[Logged], firehose: Firehose) -> list[tuple[Logged, bool | None]]:
    """Whether each of a user's events must be readable, must not be, or (None) may be lost to an erasure.

    A new life begins after the first copies of all erasures. What the archive came to before one of them was
    done may be sealed with the key that ended: with shards read in any order, or a batch at work meanwhile;
    what was in the erasure's own batch came after it. Where the archive comes to a later copy first, all
    before that is gone; further copies end nothing, as long as the table knows them again.
    """
    receipts = [logged.receipt for logged in records]
    known, user = {receipt for receipt in receipts if receipt is not None}, records[0].user or ""
    ended = [firehose.ended[user, receipt] for receipt in known if (user, receipt) in firehose.ended]
    places = {(logged.shard, logged.record.sequence): nth for nth, logged in enumerate(records)}
    begin = max(map(receipts.index, known), default=-1)
    gone = max((places[copy] for receipt in known for copy in firehose.copies[user, receipt]), default=-1)
    if len(known) > KNOWN_AGAIN:
        gone = max(nth for nth, receipt in enumerate(receipts) if receipt is not None)
    answers: list[tuple[Logged, bool | None]] = []
    for nth, logged in enumerate(records):
        if logged.event is not None:
            sealed = firehose.sealed.get((logged.shard, logged.record.sequence))
            early = sealed and any(sealed.at < turn.at and sealed.batch != turn.batch for turn in ended)
            answers.append((logged, None if nth > begin and (nth < gone or early) else nth > begin))
    return answers
