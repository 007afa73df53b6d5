"""What a row must be, said a second time and as plainly as can be: docs/contracts.md, event by event.

Nothing here is imported from the functions, nor do they import this: a mistake in one is not one in both.
Only the encoder's step is the same object, for it defines what a state is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

RING, SEEN, MARKS, PLACES = 64, 12, 2, 50
DAY_S = 86_400
LIFETIME_S = 390 * DAY_S
TOMBSTONE_S = 8 * DAY_S
KINDS = {"view": 1, "click": 2, "cart": 3, "purchase": 4, "rating": 5, "dismiss": 6, "impression": 7}
DISMISS = 6


@lru_cache(1 << 14)
def event_hash(event_id: str) -> bytes:
    """5 bytes of an event id."""
    return hashlib.blake2b(event_id.encode(), digest_size=5).digest()


@lru_cache(1 << 10)
def item_key(item_id: str) -> bytes:
    """6 bytes of an item id, of which the last 4 bits are zero."""
    number = int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=6).digest(), "big")
    return (number >> 4 << 4).to_bytes(6, "big")


@lru_cache(1 << 10)
def shard_key(shard: str) -> bytes:
    """4 bytes of a shard's name."""
    return hashlib.blake2b(shard.encode(), digest_size=4).digest()


def gap_bucket(gap_s: int | None) -> int:
    """0 without an event before; 1 for less than a second; then by powers of two."""
    return 0 if gap_s is None else min(31, 1 + max(0, gap_s).bit_length())


def value_bucket(value: float | None) -> int:
    """0 for none; 1 below an eighth; then by powers of two."""
    return 0 if value is None else 1 + sum(value >= 2.0**power for power in range(-3, 11))


def marks_of(data: bytes) -> dict[bytes, int]:
    """Sequence numbers by shard key, oldest first."""
    marks, at = {}, 0
    while at + 4 < len(data):
        length = data[at + 4]
        marks[data[at : at + 4]] = int.from_bytes(data[at + 5 : at + 5 + length], "big")
        at += 5 + length
    return marks


class Act(NamedTuple):
    """An event in the ring."""

    event: bytes
    item: bytes
    kind: int
    value: int
    gap: int


Stepper = Callable[[str, bytes, bytes, Act], tuple[bytes, bytes] | None]


@dataclass
class Reference:
    """One user's row, moved by one event at a time.

    `step` is given space, state, item key and the act; it returns state and vector, or None for an item that
    the catalogue lacks.
    """

    step: Stepper
    blank: Callable[[str], tuple[bytes, bytes]]  # state and vector of nobody, by space
    space: str
    state: bytes = b""
    vector: bytes = b""
    ring: list[Act] = field(default_factory=list)
    last_s: int = 0
    fav: dict[bytes, int] = field(default_factory=dict)
    turn: int = 0
    seen: list[tuple[bytes, int]] = field(default_factory=list)
    marks: dict[str, int] = field(default_factory=dict)
    erased: bytes = b""  # receipt of the last erasure

    def __post_init__(self) -> None:
        if not self.state:
            self.state, self.vector = self.blank(self.space)

    def enter_space(self, space: str) -> None:
        """Make the state anew of the ring, unless it is of this space."""
        if space == self.space:
            return
        self.space = space
        self.state, self.vector = self.blank(space)
        for act in self.ring:
            self._advance(act)

    def mark(self, shard: str, sequence: int) -> None:
        """The log is read up to here."""
        self.marks.setdefault(shard, sequence)
        self.marks[shard] = max(self.marks[shard], sequence)

    def erase(self, receipt: bytes) -> None:
        """Forget the user, once for a receipt; how far the log is read stays known."""
        if receipt == self.erased:
            return
        self.state, self.vector = self.blank(self.space)
        self.ring, self.seen, self.fav = [], [], {}
        self.last_s, self.turn, self.erased = 0, 0, receipt

    def apply(self, event: dict[str, Any], time_s: int) -> None:
        """One event of the log."""
        kind, item = KINDS[event["type"]], item_key(event["item_id"])
        if event["type"] == "impression":
            if (item, time_s) not in self.seen:
                self.seen = [*self.seen, (item, time_s)][-SEEN:]
            return
        hashed = event_hash(event["event_id"])
        if self.remembers(hashed):
            return
        gap = gap_bucket(time_s - self.last_s if self.ring else None)
        act = Act(hashed, item, kind, value_bucket(event.get("value")), gap)
        self._advance(act)
        self.ring.append(act)
        self.last_s = time_s
        if kind == DISMISS:
            self._forget(item)
        if len(self.ring) > RING:
            self._leave(self.ring.pop(0))

    def remembers(self, hashed: bytes) -> bool:
        """Whether an event is in the ring."""
        return any(act.event == hashed for act in self.ring)

    def attributes(self) -> dict[str, Any]:
        """What the table must hold, but for version, write id and lifetime."""
        fav = b"".join(kept + bytes([code]) for kept, code in self.fav.items())
        return {
            "era": self.erased or None,
            "state": self.state,
            "vector": self.vector,
            "space": self.space,
            "ring": b"".join(map(_packed, self.ring)),
            "last": self.last_s.to_bytes(4, "big"),
            "fav": bytes([self.turn]) + fav if fav or self.turn else b"",
            "seen": b"".join(item + at.to_bytes(4, "big") for item, at in self.seen),
            "marks": b"".join(_mark(*mark) for mark in list(self.marks.items())[-MARKS:]),
        }

    def _advance(self, act: Act) -> None:
        moved = self.step(self.space, self.state, act.item, act)
        if moved is not None:
            self.state, self.vector = moved

    def _forget(self, item: bytes) -> None:
        self.fav = {kept: code for kept, code in self.fav.items() if _prefix(kept) != _prefix(item)}

    def _leave(self, act: Act) -> None:
        self.turn = (self.turn + 1) % 8
        if self.turn == 0:
            self.fav = {kept: code - 1 for kept, code in self.fav.items() if code - 1 > 0}
        while len(self.fav) > self._places():
            self._drop_weakest()
        inside = {entry.item for entry in self.ring if entry.kind != DISMISS}
        dismissed = {entry.item for entry in self.ring if entry.kind == DISMISS}
        if act.kind == DISMISS or act.item in dismissed:
            return
        kept = (_prefix(act.item) | act.kind).to_bytes(4, "big")
        if kept in self.fav:
            weight = 2.0 ** ((self.fav[kept] - 64) / 32) + 1
            self.fav[kept] = min(255, round(64 + 32 * math.log2(weight)))
            return
        if len(self.fav) >= self._places():
            if not self.fav or min(self.fav.values()) >= (96 if act.item in inside else 32):
                return
            self._drop_weakest()
        self.fav[kept] = 64

    def _places(self) -> int:
        """50, or what 2,048 bytes have room for beside a wide state."""
        return max(0, min(PLACES, (893 - len(self.state) - len(self.vector)) // 5))

    def _drop_weakest(self) -> None:
        weakest = min(self.fav.values())
        del self.fav[next(name for name, code in self.fav.items() if code == weakest)]


def _prefix(key: bytes) -> int:
    """The first 29 bits, as the upper bits of 32."""
    return int.from_bytes(key[:4], "big") >> 3 << 3


def _packed(act: Act) -> bytes:
    item = (int.from_bytes(act.item, "big") | act.value).to_bytes(6, "big")
    return act.event + item + bytes([act.kind * 32 + act.gap])


def _mark(shard: str, sequence: int) -> bytes:
    number = b"" if sequence == 0 else sequence.to_bytes(math.ceil(sequence.bit_length() / 8), "big")
    return shard_key(shard) + bytes([len(number)]) + number


def differing(item: dict[str, dict[str, Any]], expected: dict[str, Any]) -> Iterable[str]:
    """The attributes of a stored item that are not as expected."""
    for name, value in expected.items():
        found = next(iter(item[name].values())) if name in item else None
        if found != value:
            yield name
