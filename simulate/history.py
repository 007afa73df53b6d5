"""One history: a seed's users, events and misfortunes, until all is settled; and what is wrong then."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from functions import collect
from functions.aws.log import Log
from functions.aws.rows import Rows
from functions.aws.secret import ShopSecret
from functions.core.errors import Unavailable
from functions.core.tokens import Keys
from simulate.archive import Firehose, KeyItems, judge_archive
from simulate.bucket import Bucket
from simulate.encoder import SPACES
from simulate.erasing import eraser, receipt_of, require_gone
from simulate.function import Function
from simulate.mapping import Mapping, history_settings, template_settings
from simulate.rollout import Rollout
from simulate.shoppers import MAX_RECORD_BYTES, SECRET, Shopper, key_of, poison, shoppers
from simulate.stream import MAX_SHARDS, STREAM, OpenShard, SimulatedLog
from simulate.table import TABLE, Table
from simulate.verdict import Acknowledged, judge
from simulate.world import Crash, World

SHOP = ShopSecret(Keys({"k1": b"1" * 32}, "k1"), SECRET)
MAX_AGE_S = 60  # the least that a mapping takes
MOST_STEPS = 3_000  # a history that takes more has got stuck


@dataclass
class Misfortune:
    """What may happen between two steps, and how likely it is."""

    chance: float
    act: Callable[[], None]


class History:
    """A world, and everybody in it."""

    def __init__(self, seed: int) -> None:
        self.world = world = World(seed)
        rng = world.rng
        self.rollout = Rollout(world, rng.choice(SPACES))
        self._deploys, self._trials = rng.choice((0, 1, 2, 2)), rng.choice((0, 0, 0, 4))
        moved = self._deploys or self._trials
        self.shoppers = shoppers(world, None if moved else self.rollout.champion)
        self._crowd = len(self.shoppers) > 4
        self._ages = not self._crowd and rng.random() < 0.1  # records may get too old, and are given up
        lanes = rng.choice((1, 1, 2, 3)) if not (self._crowd or self._ages) else 1
        self.log = SimulatedLog(world, rng.randint(1, 2) if not self._crowd else 1, lanes)
        self.table, self.bucket = Table(world, self.log.forgotten), Bucket(world)
        for shopper in self.shoppers:
            if shopper.item is not None:
                self.table.items[shopper.key] = shopper.item
        settings, timeout_s = history_settings(world, self._crowd), float(template_settings()[1])
        if self._ages:
            settings = replace(settings, max_age_s=MAX_AGE_S)
        self.function = Function(world, self.table, self.bucket, self.rollout.named, timeout_s)
        self.acknowledged = Acknowledged(world, self.log, self.table, self.bucket, settings.max_age_s)
        self.mapping = Mapping(
            world,
            self.log,
            self.function.invoke,
            settings,
            lanes,
            self.acknowledged.up_to,
            self.acknowledged.given_up,
        )
        self._writer = Log(self.log, STREAM)
        archived = not self._crowd and rng.random() < 0.25
        self.firehose = Firehose(world, self.log, KeyItems(world)) if archived else None
        keys = self.firehose.table if self.firehose else None
        self._eraser = eraser(world, self._writer, Rows(self.table, TABLE, sleep=world.sleep), keys)
        self._erases = rng.random() < 0.5 and not self._ages
        self._misfortunes = self._plan()
        world.elsewhere = self._elsewhere
        if rng.random() < 0.5:
            self._try_out()

    def run(self) -> list[str]:
        """Live through it all; returns what is wrong, nothing if all is well."""
        try:
            self._live()
            self._settle()
            if self._erases and self.world.rng.random() < 0.3 and not self.world.violations:
                self._erase()  # nothing goes wrong any more: it must succeed
                self._settle()
            judge(self.world, self.log, self.table, self.bucket, self.shoppers, self.acknowledged.lost)
            if self.firehose is not None:
                judge_archive(self.world, self.firehose)
        except Exception as error:
            self.world.wrong(f"{type(error).__name__}: {error}")
        return self.world.violations

    def _live(self) -> None:
        world, rng = self.world, self.world.rng
        while any(shopper.outbox for shopper in self.shoppers) and not world.violations:
            if self._crowd or rng.random() < 0.5:
                self._send(rng.choice([s for s in self.shoppers if s.outbox]))
            else:
                self._poll()
            for misfortune in self._misfortunes:
                if rng.random() < misfortune.chance:
                    misfortune.act()
            world.now_s += rng.choice((0.0, 0.05, 1.0))
            world.land()

    def _settle(self) -> None:
        """No more faults: whatever is late arrives, whatever waits is delivered."""
        world = self.world
        for _ in range(world.rng.randint(0, 16)):
            self._poll()
        world.calm = True
        world.land_all()
        for _ in range(MOST_STEPS):
            self.mapping.start()
            waiting = self.mapping.waiting()
            if not waiting or world.violations:
                break
            reader = min(waiting, key=lambda r: r.due_s)
            world.now_s = max(world.now_s, reader.due_s)
            world.land()
            self.mapping.step(reader)
        world.land_all()
        while self.firehose is not None and self.firehose.waiting():
            self.firehose.step()
        if not self.mapping.settled() and not world.violations:
            world.wrong(f"not settled after {MOST_STEPS} steps")

    def _poll(self) -> None:
        self.mapping.start()
        ready = self.mapping.ready()
        if ready:
            self.mapping.step(self.world.rng.choice(ready))
        else:
            self.world.now_s += 0.2

    def _elsewhere(self) -> None:
        """In the middle of an invocation: an erasure, another poller of the lane, another reader's turn."""
        if self._erases and self.world.rng.random() < 0.35:
            self.world.happened("erasure in between")
            self._erase()
            return
        busy = [reader for reader in self.mapping.readers.values() if reader.busy]
        if busy and self.world.rng.random() < 0.5:
            sending = [s for s in self.shoppers if s.outbox]
            if sending:
                self._send(self.world.rng.choice(sending))
            self.mapping.take_over(busy[0])
            return
        ready = self.mapping.ready()
        if ready:
            self.world.happened("parallel invocation")
            self.mapping.step(self.world.rng.choice(ready))

    def _send(self, shopper: Shopper) -> None:
        """A client's request: some events, of which those that failed are sent again later, in order."""
        world, rng = self.world, self.world.rng
        count = rng.randint(1, 4) if len(shopper.outbox) < 20 else 30
        raw, shopper.outbox = shopper.outbox[:count], shopper.outbox[count:]
        checked = [collect.check(event, shopper.key, SHOP, world.now_s, "") for event in raw]
        before = [self.log.taken[shopper.key, event["event_id"]] for event in raw]
        self.log.begin_request()
        results = collect.append(self._writer, shopper.key, checked)
        self._check_ordering()
        again = []
        for event, taken, result in zip(raw, before, results, strict=True):
            if result["status"] == collect.ACCEPTED:
                shopper.sent.append(event)
                if self.log.taken[shopper.key, event["event_id"]] <= taken:
                    world.wrong(f"{event['event_id']}: accepted, and not in the log")
            elif result["status"] == collect.FAILED:
                again.append(event)
            else:
                world.wrong(f"{event['event_id']}: refused: {result}")
        shopper.outbox[:0] = again

    def _check_ordering(self) -> None:
        """Each record of a request names the one before it, so that the log keeps their order; none overtakes
        one that the log did not take.
        """
        if self.log.overtaken:
            self.world.wrong("a record was put after one of its request that had failed")
        before = ""
        for named, sequence in self.log.orderings:
            if named != before:
                self.world.wrong(f"record {sequence} was put after {named!r}; expected after {before!r}")
            before = sequence

    def _plan(self) -> list[Misfortune]:
        """The misfortunes of this history: each comes often in some, and in others never."""
        rng = self.world.rng
        reshards = 0.0 if self._crowd else 0.02  # a crowd comes in one batch
        chances: list[tuple[float, Callable[[], None]]] = [
            (0.05, self._duplicate),
            (0.05, self._poison),
            (0.04, self._rewind),
            (0.04, self._take_over),
            (reshards, self._split),
            (reshards, self._merge),
            (reshards, self._update_shard_count),
            (0.06 if self._erases else 0.0, self._erase),
            (0.06 if self._erases else 0.0, self._repeat_erasure),
            (0.01, self._outage),
            (0.01, self._slow_table),
        ]
        if self._ages:
            chances += [(0.1, self._stall), (0.1, self._outage)]
        if self.firehose is not None:
            chances += [(0.1, self._archive), (0.1, self._archive)]
        planned = [Misfortune(chance * rng.choice((0, 1, 3)), act) for chance, act in chances]
        tried = Misfortune(0.25 if self._trials else 0.0, self._try_out)
        return [*planned, tried, Misfortune(0.2 if self._deploys else 0.0, self._deploy)]

    def _archive(self) -> None:
        if self.firehose is not None:
            with self.world.asking(self._while_archiving):
                self.firehose.step()

    def _while_archiving(self) -> None:
        """Keys are read and not used yet: erasures come, and another batch of the archive."""
        self.world.happened("archive interrupted")
        if self._erases and self.world.rng.random() < 0.7:
            self._erase()
        if self.firehose is not None:
            self.firehose.step()

    def _duplicate(self) -> None:
        """A client that did not hear the answer sends an event again, as it was."""
        shopper = self.world.rng.choice(self.shoppers)
        if shopper.sent:
            self.world.happened("duplicate")
            shopper.outbox.insert(0, self.world.rng.choice(shopper.sent[-10:]))

    def _poison(self) -> None:
        partition_key, data = poison(self.world.rng, key_of(self.world.rng.randrange(4)))
        self.world.happened("oversize" if len(data) > MAX_RECORD_BYTES else "poison")
        self.log.append(partition_key, data, poison=True)

    def _rewind(self) -> None:
        """A lane is read again from an earlier record, of a shard that the rows' two marks remember."""
        rng = self.world.rng
        readers = [r for r in self.mapping.readers.values() if self._remembered(r.shard)]
        if not readers:
            return
        reader = rng.choice(readers)
        read = self.mapping.checkpoints.get((reader.shard, reader.lane))
        sequences = self.log.by_id[reader.shard].sequences[reader.lane]
        if read is None:
            return
        to = rng.randint(0, sequences.index(int(read)))
        self.mapping.rewind(reader, str(sequences[to - 1]) if to else None)

    def _take_over(self) -> None:
        readers = self.mapping.waiting()
        if readers:
            self.mapping.take_over(self.world.rng.choice(readers))

    def _remembered(self, shard: str) -> bool:
        """Whether no user has records in two shards after this one."""
        after: dict[str, set[str]] = {}
        for logged in self.log.all:
            if logged.user is not None:
                shards = after.setdefault(logged.user, set())
                if logged.shard == shard:
                    shards.clear()
                else:
                    shards.add(logged.shard)
        users = {logged.user for logged in self.log.all if logged.shard == shard}
        return all(len(after[user]) < 2 for user in users if user is not None)

    def _split(self) -> None:
        opened = self.log.opened()
        if len(opened) < MAX_SHARDS:
            self.world.happened("split")
            self.log.split(self.world.rng.choice(opened))

    def _merge(self) -> None:
        opened = self.log.opened()
        if len(opened) > 1:
            self.world.happened("merge")
            nth = self.world.rng.randrange(len(opened) - 1)
            self.log.merge(opened[nth], opened[nth + 1])

    def _update_shard_count(self) -> None:
        """Twice as many shards or half as many, by way of shards that never hold a record."""
        opened = self.log.opened()
        self.world.happened("update shard count")
        if len(opened) == 1 or (len(opened) < MAX_SHARDS - 1 and self.world.rng.random() < 0.5):
            between = [child for shard in opened for child in self.log.split(shard)]
            middle = [self.log.merge(between[0], between[1]), *between[2:]]
            self.log.split(middle[0])
            return
        left: OpenShard = self.log.merge(opened[0], opened[1])
        self.log.merge(*self.log.split(left))

    def _deploy(self) -> None:
        """The pointer names another model; or the one before it again."""
        if not self._deploys:
            return
        self._deploys -= 1
        before = any(entry[2:] == ("deploy",) for entry in self.world.trace)
        self.world.happened("rollback" if before else "deploy")
        self.world.note("fault", "deploy")
        self.rollout.swap()
        if self.world.rng.random() < 0.3:
            self.function.end_all()

    def _try_out(self) -> None:
        """A share of the users gets a challenger; or it is another share, or over."""
        if self._trials:
            self._trials -= 1
            self.world.note("fault", "trial")
            self.rollout.try_out()
            if self.world.rng.random() < 0.5:
                self.function.end_all()

    def _erase(self) -> None:
        """A user asks to be forgotten; where that fails, the user may or may not ask again."""
        world = self.world
        shopper = world.rng.choice([s for s in self.shoppers if not s.corrupt] or [None])
        if shopper is not None:
            with world.asking(lambda: self._while_erasing(shopper)):
                self._erase_user(shopper)

    def _while_erasing(self, shopper: Shopper) -> None:
        """The request waits: the stream goes on, and the same user may ask a second time."""
        self.world.happened("erasure interrupted")
        if self.world.rng.random() < 0.5:
            if shopper.outbox and self.world.rng.random() < 0.7:
                self._send(shopper)
            self._erase_user(shopper)
        for _ in range(self.world.rng.randint(1, 10)):
            self._poll()
            if self.firehose is not None and self.world.rng.random() < 0.2:
                self.firehose.step()

    def _erase_user(self, shopper: Shopper) -> None:
        world = self.world
        world.happened("erasure")
        skew_s = world.rng.choice((0, 0, 0, -3_600, 3_600, -86_400, 86_400))
        try:
            told = self._eraser.erase(shopper.key, SHOP.keys, int(world.now_s) + skew_s)
        except (Crash, Unavailable) as error:
            if world.calm and world.now_s >= world.outage_ends_s:
                world.wrong(f"{shopper.key}: asked to be forgotten in vain: {error}")
            return
        require_gone(world, self.log, self.table, shopper, receipt_of(told.receipt))
        if self.firehose is not None:
            self.firehose.require_gone(shopper.key, receipt_of(told.receipt))

    def _repeat_erasure(self) -> None:
        """A copy of an erasure comes late into the log, others perhaps between the two."""
        erasures = [logged for logged in self.log.all if logged.receipt is not None]
        if erasures:
            self.world.happened("erasure repeated")
            copied = self.world.rng.choice(erasures[-6:]).record
            self.log.append(copied.partition_key, copied.data, poison=False)

    def _stall(self) -> None:
        """Nobody polls for a while: what waits may get too old to be delivered at all."""
        self.world.happened("stalled mapping")
        self.world.now_s += self.world.rng.choice((MAX_AGE_S - 1.0, MAX_AGE_S + 1.0, 2.0 * MAX_AGE_S))

    def _slow_table(self) -> None:
        self.world.happened("slow table")
        self.world.slow_until_s = self.world.now_s + self.world.rng.choice((30.0, 100.0))

    def _outage(self) -> None:
        self.world.happened("table outage")
        self.world.outage_ends_s = self.world.now_s + self.world.rng.choice((0.5, 5.0, 300.0))


def run(seed: int) -> History:
    """Live through the history of a seed."""
    history = History(seed)
    history.run()
    return history


def as_json(history: History) -> str:
    """The history, one line for each thing that happened."""
    return "\n".join(json.dumps(entry) for entry in history.world.trace)
