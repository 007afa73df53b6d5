"""Who is in a history: users, what they do, the rows they come with, and records that nobody can read."""

from __future__ import annotations

import json
from calendar import timegm
from dataclasses import dataclass, field
from functools import cache, lru_cache
from random import Random
from time import gmtime, strftime
from typing import Any

import numpy as np

from functions.core.events import user_key
from simulate.encoder import BROKEN, CATALOGUE, DIM, RETIRED, SPACES, STATE, STEPS, STRANGERS
from simulate.encoder import ITEMS as TABLES
from simulate.reference import DISMISS, KINDS, LIFETIME_S, PLACES, Act, Reference, event_hash, item_key
from simulate.table import Item
from simulate.world import START_S, World

SECRET = bytes(range(32))
MAX_RECORD_BYTES = 32_768
TYPES = (
    "view",
    "view",
    "click",
    "cart",
    "purchase",
    "purchase",
    "rating",
    "dismiss",
    "impression",
    "impression",
)
VALUES = (None, None, 0, 0.1, 0.125, 0.5, 1, 3.99, 4, 200, 1024, 1e9)
CORRUPTIONS = (
    ("state", b"odd"),
    ("ring", bytes(13)),
    ("seen", bytes(11)),
    ("fav", bytes(7)),
    ("marks", b"cut"),
    ("wid", bytes(16)),
)
SKEWS = {
    "clock skew of an hour": (-3_600, 3_600),
    "clock skew of a day": (-86_400, 86_400, 90_000),
    "clock at 1970": (-1_795_521_600, -1_795_600_000, -1_795_521_590),
    "clock at 2100": (2_306_880_000,),
}


@cache
def key_of(user: int) -> str:
    """The user key of the nth user."""
    return user_key(SECRET, f"user {user}")


@dataclass
class Shopper:
    """One user: the key, the events still to be sent, and the row before this history."""

    key: str
    outbox: list[dict[str, Any]] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    start: Reference | None = None  # None: new
    item: Item | None = None  # the stored item, as it is at the start
    corrupt: bool = False


def step(space: str, state: bytes, item: bytes, act: Act) -> tuple[bytes, bytes] | None:
    """The encoder's step for one user, for the reference."""
    embedding = TABLES[space].packed.get(item)
    return None if embedding is None else STEPS[space].of_one(state, embedding, act.kind, act.gap, act.value)


def blank(space: str) -> tuple[bytes, bytes]:
    """State and vector of nobody."""
    return bytes(2 * STATE), bytes(2 * DIM)


def reference(space: str) -> Reference:
    """A new user's row in a space."""
    return Reference(step, blank, space)


def shoppers(world: World, steady: str | None) -> list[Shopper]:
    """The users of a history, some with a past; `steady`: the only space of this history, if there is one."""
    rng = world.rng
    count = 104 if rng.random() < 0.004 else rng.randint(1, 4)
    found = []
    for nth in range(count):
        shopper = Shopper(key_of(nth))
        length = 1 if count > 4 else rng.randint(1, 8)
        if count <= 4 and rng.random() < 0.03:
            length = rng.randint(70, 140)
        shopper.outbox = [_event(world, nth, n) for n in range(length)]
        if length > 8:
            _repeat_far_back(shopper.outbox, rng)
        if rng.random() < 0.5:
            _give_past(shopper, rng, steady)
        found.append(shopper)
    return found


def _repeat_far_back(events: list[dict[str, Any]], rng: Random) -> None:
    """Some events come again when the ring has only just forgotten them, or is about to."""
    acts = [event for event in events if event["type"] != "impression" and "context" not in event]
    for nth in range(67, len(acts), 7):
        acts[nth]["event_id"] = acts[nth - rng.choice((63, 64, 65, 66))]["event_id"]


def _give_past(shopper: Shopper, rng: Random, steady: str | None) -> None:
    """A row as another history left it, often as full as can be."""
    row = reference(rng.choice((*SPACES, *SPACES, RETIRED)))
    width = STATE if row.space != RETIRED else STATE + 2
    row.state = np.array([rng.gauss(0, 1) for _ in range(width)], np.float16).tobytes()
    row.vector = np.array([rng.gauss(0, 1) for _ in range(DIM)], np.float16).tobytes()
    items = [*CATALOGUE, *STRANGERS, *(f"odd-{n}" for n in range(8))]
    kinds = [kind for kind in KINDS.values() if kind != KINDS["impression"]]
    row.ring = [
        Act(
            event_hash(f"past-{n}"),
            item_key(rng.choice(items)),
            rng.choice(kinds),
            rng.randrange(16),
            rng.randrange(32),
        )
        for n in range(rng.choice((1, 5, 63, 64, 64)))
    ]
    row.last_s = int(START_S) - rng.choice((0, 1, 3_000, 10**6, -3_000))
    row.seen = [
        (item_key(rng.choice(items)), int(START_S) - 100 + n) for n in range(rng.choice((0, 3, 11, 12)))
    ]
    if len(row.ring) == 64:
        _give_favourites(row, rng)
    # of shards that are long gone
    row.marks = {f"shard-gone-{n}": rng.choice((0, 7, 10**129 - 1)) for n in range(rng.randint(0, 2))}
    shopper.start, shopper.item = row, _stored(shopper.key, row, rng.choice((1, 9, 99)))
    if rng.random() < 0.06:
        shopper.corrupt = True
        name, value = rng.choice(CORRUPTIONS)
        if row.space == steady:  # of widths that the space does not have
            name, value = "state", bytes(2 * STATE + 2)
        shopper.item[name] = {"B": value}


def _give_favourites(row: Reference, rng: Random) -> None:
    count = rng.choice((0, 5, PLACES - 1, PLACES, PLACES))
    names = [*CATALOGUE, *(f"old-{n}" for n in range(40))]
    floor = rng.choice((1, 1, 31, 32, 33, 95, 96, 97))
    for name in rng.sample(names, min(count, len(names))):
        kept = int.from_bytes(item_key(name)[:4], "big") >> 3 << 3 | rng.choice((1, 4))
        row.fav[kept.to_bytes(4, "big")] = max(
            floor, rng.choice((1, 1, 2, 31, 32, 33, 64, 95, 96, 97, 254, 255))
        )
    row.turn = rng.randrange(8)
    dismissed = {act.item[:4] for act in row.ring if act.kind == DISMISS}
    prefixes = {int.from_bytes(d, "big") >> 3 << 3 for d in dismissed}
    row.fav = {k: c for k, c in row.fav.items() if int.from_bytes(k, "big") >> 3 << 3 not in prefixes}


def _stored(key: str, row: Reference, version: int) -> Item:
    attributes = row.attributes()
    item: Item = {name: {"B": value} for name, value in attributes.items() if isinstance(value, bytes)}
    item |= {
        "pk": {"S": key},
        "space": {"S": row.space},
        "v": {"N": str(version)},
        "wid": {"B": b"the past"},
        "ttl": {"N": str(int(START_S) + LIFETIME_S)},
    }
    return item


def _event(world: World, user: int, nth: int) -> dict[str, Any]:
    rng, event_id = world.rng, f"{user}-{nth}"
    kind = rng.choice(TYPES)
    items = STRANGERS if rng.random() < 0.08 else CATALOGUE
    item = BROKEN if rng.random() < 0.012 and kind != "impression" else rng.choice(items)
    event: dict[str, Any] = {"event_id": event_id, "type": kind, "item_id": item, "time": _time(world)}
    value = rng.choice(VALUES)
    if value is not None or rng.random() < 0.1:
        event["value"] = value
    if rng.random() < 0.05:
        event["event_id"] += "x" * (128 - len(event_id))
    elif rng.random() < 0.1:  # what a row with a past may know already, or has only just forgotten
        event["event_id"] = f"past-{rng.choice((rng.randrange(64), max(nth - 1, 0), nth, nth + 1))}"
    if rng.random() < 0.003:
        _fill(event)
    return event


def _fill(event: dict[str, Any]) -> None:
    """As large as an event may be, and not a byte larger."""
    event["context"] = {"page": ""}
    frame = {"user_key": key_of(0), "event": event}
    free = MAX_RECORD_BYTES - len(json.dumps(frame, separators=(",", ":")))
    event["context"] = {"page": "x" * free}


def _time(world: World) -> str:
    rng = world.rng
    moment = world.now_s + rng.choice((0, 0, 1, 2, 7, 60, 3_000))
    if rng.random() < 0.12:
        kind = rng.choice(list(SKEWS))
        world.happened(kind)
        moment += rng.choice(SKEWS[kind])
    text = strftime("%Y-%m-%dT%H:%M:%S", gmtime(moment))
    return text + rng.choice(("Z", "Z", ".999Z", "+00:00"))


def time_of(event: dict[str, Any], arrival_s: float) -> int:
    """The whole seconds of an event's time, between 1970 and a day after it arrived."""
    text: str = event["time"]
    fields = [int(text[a:b]) for a, b in ((0, 4), (5, 7), (8, 10), (11, 13), (14, 16), (17, 19))]
    return min(max(timegm((*fields, 0, 0, 0)), 0), int(arrival_s) + 86_400)


def poison(rng: Random, user: str) -> tuple[str, bytes]:
    """A partition key, and a record that must end in quarantine."""
    return rng.choice(_poisons(user))


@lru_cache(16)
def _poisons(user: str) -> tuple[tuple[str, bytes], ...]:
    good = {"event_id": "p", "type": "view", "item_id": "sku-1", "time": "2026-11-24T12:00:00Z"}

    def record(key: Any = user, **changes: Any) -> bytes:
        return json.dumps({"user_key": key, "event": good | changes}).encode()

    fitting = record(context={"page": "x"})
    oversize = record(context={"page": "x" * (MAX_RECORD_BYTES + 2 - len(fitting))})
    return (
        (user, b""),
        (user, b"\xff\xfe no JSON"),
        (user, b"[]"),
        (user, b"null"),
        (user, b"[" * 3_000),
        (user, b'{"user_key": "%s"}' % user.encode()),
        (user, record()[:-1]),
        (user, b'{"user_key": "%s", "event": {"value": NaN}}' % user.encode()),
        (user, record(value=float("nan"))),
        (user, record(value=float("inf"))),
        (user, record(value=-0.5)),
        (user, record(value=1e9 + 1)),
        (user, record(value=True)),
        (user, record(value="3")),
        (user, record(type="glance")),
        (user, record(type=7)),
        (user, record(item_id="")),
        (user, record(item_id="i" * 129)),
        (user, record(event_id="e" * 129)),
        (user, record(event_id=None)),
        (user, record(event_id="\ud800")),
        (user, record(time="yesterday")),
        (user, record(time="2026-11-24T12:00:00")),
        (user, record(time=1_795_521_600)),
        (user, record(when="now")),
        (user, record(context=[])),
        (user[:-1], record(key=user[:-1])),
        (user + "A", record(key=user + "A")),
        (user[:-1] + "*", record(key=user[:-1] + "*")),
        (user, record()[:-1] + b', "more": 1}'),
        (user, record(context={"price": float("nan")})),
        (user, record(key=7)),
        ("another key", record()),
        (user, oversize),
        (user, oversize),
        (user, oversize),
        (user, oversize),
        (user, oversize),
        (user, oversize),
        (user, b"\xf3\x89\x9a\xc2" + record() + b"\0" * 16),
        (user, b"\x1f\x8b\x08" + b"\0" * 60),
    )
