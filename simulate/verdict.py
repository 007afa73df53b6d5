"""Whether all is well: at each acknowledgement, and when everything has settled."""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from simulate.bucket import Bucket
from simulate.encoder import BROKEN
from simulate.reference import SEEN, Reference, differing, event_hash, item_key, marks_of, shard_key
from simulate.shoppers import Shopper, reference, time_of
from simulate.stream import Logged, SimulatedLog
from simulate.table import Table
from simulate.world import World


def quarantine_key(logged: Logged) -> str:
    """Where a record must lie if nobody can fold it."""
    return f"quarantine/{logged.shard}/{logged.record.sequence}.json"


def place_of(logged: Logged) -> tuple[str, str]:
    """Where in the log a record is."""
    return logged.shard, logged.record.sequence


class Acknowledged:
    """Looks, at each checkpoint, whether what is acknowledged is where it must be."""

    def __init__(self, world: World, log: SimulatedLog, table: Table, bucket: Bucket, max_age_s: int) -> None:
        self._world, self._log, self._table, self._bucket = world, log, table, bucket
        self._max_age_s = max_age_s
        self.lost: set[tuple[str, str]] = set()  # places of records that the failure destination was told of
        self._seen = 0
        self._by_place: dict[tuple[str, str], Logged] = {}
        self._checked: set[tuple[str, str]] = set()

    def given_up(self, told: Mapping[str, Any]) -> None:
        """The failure destination is told of records: all of them must be too old, and none left out."""
        condition, info = told["requestContext"]["condition"], told["KinesisBatchInfo"]
        first, last = int(info["startSequenceNumber"]), int(info["endSequenceNumber"])
        gone = [
            record
            for lane in self._log.by_id[info["shardId"]].records
            for record in lane
            if first <= int(record.sequence) <= last
        ]
        young = [r for r in gone if self._world.now_s - r.arrival_s <= self._max_age_s]
        if condition != "RecordAgeExpired" or young or len(gone) != info["batchSize"]:
            self._world.wrong(
                f"given up: {condition}, {len(young)} records too early, of {info['batchSize']}"
            )
        self._world.happened("record too old")
        self.lost |= {(info["shardId"], record.sequence) for record in gone}

    def up_to(self, shard: str, lane: int, sequence: str) -> None:
        """All records of this lane up to the sequence number are acknowledged."""
        for logged in self._log.all[self._seen :]:
            self._by_place[logged.shard, logged.record.sequence] = logged
        self._seen = len(self._log.all)
        for record in self._log.by_id[shard].records[lane]:
            place = (shard, record.sequence)
            if place not in self._checked:
                self._checked.add(place)
                self._require(self._by_place[place])
            if record.sequence == sequence:
                return

    def _require(self, logged: Logged) -> None:
        if quarantine_key(logged) in self._bucket.objects or place_of(logged) in self.lost:
            return
        place = f"{logged.shard}:{logged.record.sequence}"
        if logged.poison:
            self._world.wrong(f"{place}: acknowledged before it was in quarantine")
            return
        assert logged.user is not None
        item = self._table.items.get(logged.user)
        marks = marks_of(item["marks"]["B"]) if item else {}
        if marks.get(shard_key(logged.shard), -1) < int(logged.record.sequence):
            self._world.wrong(f"{place}: acknowledged before it was in the row of {logged.user}")


def judge(
    world: World,
    log: SimulatedLog,
    table: Table,
    bucket: Bucket,
    shoppers: list[Shopper],
    lost: set[tuple[str, str]],
) -> None:
    """Compare the settled table and quarantine with one replay of the log, but for what was told as lost."""
    if world.violations:
        return
    by_user: dict[str, list[Logged]] = defaultdict(list)
    poison: dict[str, Logged] = {}
    for logged in log.all:
        key = quarantine_key(logged)
        if place_of(logged) in lost and (logged.poison or key in bucket.objects):
            poison |= {key: logged} if key in bucket.objects else {}
        elif logged.poison:
            poison[key] = logged
        else:
            assert logged.user is not None
            by_user[logged.user].append(logged)
    for shopper in shoppers:
        if shopper.corrupt:
            poison |= {quarantine_key(r): r for r in by_user[shopper.key] if place_of(r) not in lost}
            if table.items[shopper.key] != shopper.item:
                world.wrong(f"{shopper.key}: a corrupt row was written")
        else:
            records = _taken(by_user[shopper.key], lost, shopper, table.moves.get(shopper.key, []))
            if records is None:
                broken = [r for r in by_user[shopper.key] if r.event and r.event["item_id"] == BROKEN]
                kept = {quarantine_key(r): r for r in broken}
                poison |= {key: r for key, r in kept.items() if key in bucket.objects}
            else:
                poison |= _judge_row(world, table, bucket, shopper, records)
    _judge_quarantine(world, bucket, poison)
    strangers = table.items.keys() - {shopper.key for shopper in shoppers}
    if strangers:
        world.wrong(f"rows of nobody: {sorted(strangers)}")


def _taken(
    records: list[Logged], lost: set[tuple[str, str]], shopper: Shopper, moves: list[dict[str, Any]]
) -> list[Logged] | None:
    """The records without those that were given up before the row had them; None where nobody can tell."""
    gone = [logged for logged in records if place_of(logged) in lost]
    if not gone:
        return records
    names = Counter(_name(logged) for logged in records if logged.event)
    if shopper.start:
        names.update(act.event for act in shopper.start.ring)
        names.update(shopper.start.seen)
    if len(records) > SEEN or any(names[_name(logged)] > 1 for logged in gone if logged.event):
        return None
    return [logged for logged in records if logged not in gone or _in_row(logged, moves)]


def _name(logged: Logged) -> object:
    """What the row knows an event by."""
    event = logged.event
    assert event is not None
    if event["type"] == "impression":
        return item_key(event["item_id"]), time_of(event, logged.record.arrival_s)
    return event_hash(event["event_id"])


def _in_row(logged: Logged, moves: list[dict[str, Any]]) -> bool:
    """Whether the row that first was as far in the log as a record has its event."""
    shard, sequence = shard_key(logged.shard), int(logged.record.sequence)
    for move in moves:
        if marks_of(move["marks"]["B"]).get(shard, -1) >= sequence:
            name, ring, seen = _name(logged), move["ring"]["B"], move["seen"]["B"]
            known: set[object] = {ring[at : at + 5] for at in range(0, len(ring), 12)}
            times = range(0, len(seen), 10)
            known |= {(seen[at : at + 6], int.from_bytes(seen[at + 6 : at + 10], "big")) for at in times}
            return name in known
    return False


def _judge_row(
    world: World, table: Table, bucket: Bucket, shopper: Shopper, records: list[Logged]
) -> dict[str, Logged]:
    """Compare one row; returns the records that it cannot have, and quarantine must."""
    moves = table.moves.get(shopper.key, [])
    item = table.items.get(shopper.key)
    row, poison, spared = replay(shopper, records, _switches(moves, records))
    folded = [logged for logged in records if quarantine_key(logged) not in poison]
    if not folded and not spared:
        if item != shopper.item:
            world.wrong(f"{shopper.key}: a row of no event")
        return poison
    if item is None:
        world.wrong(f"{shopper.key}: no row")
        return poison
    wrong = set(differing(item, row.attributes()))
    if spared:  # a mark may or may not stand at a record that an erasure was faster than
        wrong.discard("marks")
    if wrong:
        world.wrong(f"{shopper.key}: {', '.join(sorted(wrong))} not as one replay of the log makes it")
    return poison | {key: logged for key, logged in spared.items() if key in bucket.objects}


def _switches(moves: list[dict[str, Any]], records: list[Logged]) -> dict[int, str]:
    """Under which model how many records were read: space by the number of records before it came."""
    switches: dict[int, str] = {}
    places = {
        (shard_key(logged.shard), int(logged.record.sequence)): nth + 1 for nth, logged in enumerate(records)
    }
    read, space = 0, None
    for move in moves:
        if move["space"]["S"] != space:
            space = move["space"]["S"]
            switches[read] = space
        read = max((places.get(mark, 0) for mark in marks_of(move["marks"]["B"]).items()), default=0)
    return switches


def replay(
    shopper: Shopper, records: list[Logged], switches: dict[int, str]
) -> tuple[Reference, dict[str, Logged], dict[str, Logged]]:
    """The row after one replay of the log, the records that cannot be folded, and those of which an erasure
    has perhaps spared everybody the try.
    """
    row = shopper.start or reference(switches.get(0, "a" * 16))
    poison: dict[str, Logged] = {}
    spared: dict[str, Logged] = {}
    for nth, logged in enumerate(records):
        if nth in switches:
            row.enter_space(switches[nth])
        event = logged.event
        if logged.receipt is not None:
            row.erase(logged.receipt)
            row.mark(logged.shard, int(logged.record.sequence))
            spared, poison = spared | poison, {}
            continue
        assert event is not None
        if event["item_id"] == BROKEN and not row.remembers(event_hash(event["event_id"])):
            poison[quarantine_key(logged)] = logged
            continue
        row.apply(event, time_of(event, logged.record.arrival_s))
        row.mark(logged.shard, int(logged.record.sequence))
    return row, poison, spared


def _judge_quarantine(world: World, bucket: Bucket, poison: dict[str, Logged]) -> None:
    for missing in sorted(poison.keys() - bucket.objects.keys()):
        world.wrong(f"{missing}: not in quarantine")
    for key, kept in bucket.objects.items():
        logged = poison.get(key)
        if logged is None:
            world.wrong(f"{key}: nothing is wrong with it, and it is in quarantine")
            continue
        record = kept["record"]
        same = base64.b64decode(record["kinesis"]["data"]) == logged.record.data
        if not same or record["eventID"] != f"{logged.shard}:{logged.record.sequence}" or not kept["reason"]:
            world.wrong(f"{key}: not the whole record, or no reason")
