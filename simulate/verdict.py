"""Whether all is well: at each acknowledgement, and when everything has settled."""

from __future__ import annotations

import base64
from collections import defaultdict
from typing import Any

from simulate.bucket import Bucket
from simulate.encoder import BROKEN
from simulate.reference import Reference, differing, event_hash, marks_of, shard_key
from simulate.shoppers import Shopper, reference, time_of
from simulate.stream import Logged, SimulatedLog
from simulate.table import Table
from simulate.world import World


def quarantine_key(logged: Logged) -> str:
    """Where a record must lie if nobody can fold it."""
    return f"quarantine/{logged.shard}/{logged.record.sequence}.json"


class Acknowledged:
    """Looks, at each checkpoint, whether what is acknowledged is where it must be."""

    def __init__(self, world: World, log: SimulatedLog, table: Table, bucket: Bucket) -> None:
        self._world, self._log, self._table, self._bucket = world, log, table, bucket
        self._seen = 0
        self._by_place: dict[tuple[str, str], Logged] = {}
        self._checked: set[tuple[str, str]] = set()

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
        if quarantine_key(logged) in self._bucket.objects:
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
    discarded: list[dict[str, Any]],
) -> None:
    """Compare the settled table and quarantine with one replay of the log."""
    for told in discarded:
        world.wrong(f"given up: {told['requestContext']['condition']}")
    if world.violations:
        return
    by_user: dict[str, list[Logged]] = defaultdict(list)
    poison: dict[str, Logged] = {}
    for logged in log.all:
        if logged.poison:
            poison[quarantine_key(logged)] = logged
        else:
            assert logged.user is not None
            by_user[logged.user].append(logged)
    for shopper in shoppers:
        if shopper.corrupt:
            poison |= {quarantine_key(logged): logged for logged in by_user[shopper.key]}
            if table.items[shopper.key] != shopper.item:
                world.wrong(f"{shopper.key}: a corrupt row was written")
        else:
            poison |= _judge_row(world, table, bucket, shopper, by_user[shopper.key])
    _judge_quarantine(world, bucket, poison)
    strangers = table.items.keys() - {shopper.key for shopper in shoppers}
    if strangers:
        world.wrong(f"rows of nobody: {sorted(strangers)}")


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
    for missing in poison.keys() - bucket.objects.keys():
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
