"""The user row: everything known of one user, in one DynamoDB item of at most 2 KB.

The row holds the recurrent state, the user vector, a ring of the last events (to recognise a redelivery and
to rebuild the state under another encoder), what the visitor kept coming back to before those, recent
impressions (frequency caps) and, for each shard, the sequence number up to which its records are in this row.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.core.errors import CorruptRow
from functions.core.favourites import (
    NO_FAVOURITES,
    PLACE,
    PLACES,
    Favourites,
    decode_favourites,
    encode_favourites,
)
from functions.core.ring import ENTRY_BYTES, NO_RING, Ring

SEEN = 12
MARKS = 2  # the shard that a user is on now and the one before; parents are drained before children
MAX_BYTES = 2048
BESIDES = 1155  # bytes of the fullest row beside its numbers and favourites, keys included
WID_BYTES, RECEIPT_BYTES = 8, 8  # a writer's mark on what it wrote; what names an erasure
MAX_SEQUENCE = 10**129 - 1  # Kinesis: up to 129 digits

_SEEN = struct.Struct(">6sI")
_F16 = np.dtype("<f2")

Float16 = NDArray[np.float16]


def places_for(state_width: int, dim: int) -> int:
    """How many favourites a row has room for beside its state and vector: all of PLACES up to 321 numbers."""
    return max(0, min(PLACES, (MAX_BYTES - BESIDES - 2 * (state_width + dim)) // PLACE))


def event_hash(event_id: str) -> bytes:
    """5 bytes that stand for an event id within one user's ring."""
    return hashlib.blake2b(event_id.encode(), digest_size=5).digest()


@lru_cache(1 << 14)
def item_key(item_id: str) -> bytes:
    """44 bits that stand for an item id, the same in every bundle: 6 bytes, the last 4 bits of them zero.

    Two of a million items share a key with a probability of 3 %, of 100,000 with one of 0.03 %.
    """
    digest = hashlib.blake2b(item_id.encode(), digest_size=6).digest()
    return digest[:5] + bytes([digest[5] & 0xF0])


@dataclass(frozen=True)
class UserRow:
    """One user. `state` is [S] float16 and `vector` [d] float16; both mean something in `space` only.

    `last_s` is the time of the ring's newest event, in seconds since 1970; without a ring it means nothing.
    """

    state: Float16
    vector: Float16
    space: str
    ring: Ring = NO_RING
    last_s: int = 0
    favourites: Favourites = NO_FAVOURITES
    seen: tuple[tuple[bytes, int], ...] = ()
    marks: tuple[tuple[bytes, int], ...] = ()
    version: int = 0
    wid: bytes = bytes(WID_BYTES)
    erased: bytes = b""  # receipt of the last erasure, 8 bytes
    erasing_since_s: int = 0  # when it was asked for, while the log has yet to bring it; else 0

    def __post_init__(self) -> None:
        if not isinstance(self.ring, Ring):  # a plain sequence of entries
            object.__setattr__(self, "ring", Ring.of(self.ring))

    def elapsed_s(self, now_s: int | None) -> int | None:
        """Seconds since the user's newest event, 0 for one to come; None without one, or without a now."""
        return max(now_s - self.last_s, 0) if self.ring and now_s is not None else None

    def remembers(self, event_id: str) -> bool:
        """Whether an event with this id is among the last RING events."""
        return self.ring.has(event_hash(event_id))

    def but(self, **changes: Any) -> "UserRow":
        """The row with some fields changed: `dataclasses.replace`, at a fifth of its time."""
        row = object.__new__(UserRow)
        row.__dict__.update(self.__dict__, **changes)
        return row

    def with_impression(self, item: bytes, time_s: int) -> "UserRow":
        """The row with one more impression; the oldest falls out at SEEN + 1."""
        return self.but(seen=(*self.seen, (item, time_s))[-SEEN:])

    def mark(self, shard: str) -> int:
        """The highest sequence number of this shard that is in the row; -1 for none."""
        return dict(self.marks).get(shard_key(shard), -1)

    def with_mark(self, shard: str, sequence: int) -> "UserRow":
        """The row with a shard's mark raised; a mark never goes down."""
        key, marks = shard_key(shard), dict(self.marks)
        marks[key] = max(sequence, marks.pop(key, -1))  # the last of them now
        return self.but(marks=tuple(marks.items())[-MARKS:])


@lru_cache(1024)
def shard_key(shard: str) -> bytes:
    """4 bytes that stand for a shard id."""
    return hashlib.blake2b(shard.encode(), digest_size=4).digest()


def new_row(space: str, state_width: int, dim: int) -> UserRow:
    """The row of a user without any event."""
    return UserRow(np.zeros(state_width, np.float16), np.zeros(dim, np.float16), space)


_BLANK = new_row("", 0, 0)


def all_finite(values: Float16) -> bool:
    """Whether none is infinite or NaN; of a few hundred values, `.all()` would take longer than the rest."""
    return b"\0" not in np.isfinite(values).tobytes()


def encode(row: UserRow) -> dict[str, object]:
    """The row's attributes, keys and `ttl` aside, as plain bytes, str and int.

    Raises CorruptRow for a value that is not finite: a NaN poisons a state for good.
    """
    if not (all_finite(row.state) and all_finite(row.vector)):
        raise CorruptRow("state or vector is not finite; refused before it is stored")
    return {
        "state": row.state.astype(_F16, copy=False).tobytes(),
        "vector": row.vector.astype(_F16, copy=False).tobytes(),
        "space": row.space,
        "ring": row.ring.packed,
        "last": (row.last_s & 0xFFFFFFFF).to_bytes(4, "big"),
        "fav": encode_favourites(row.favourites),
        "seen": b"".join(_SEEN.pack(*s) for s in row.seen),
        "marks": b"".join(_pack_mark(key, sequence) for key, sequence in row.marks),
        "v": row.version,
        "wid": row.wid,
        **({"era": _pack_era(row)} if row.erased else {}),
    }


def decode(attributes: Mapping[str, object]) -> UserRow:
    """The row that `encode` made; raises CorruptRow naming the attribute."""
    ring = _bytes(attributes, "ring", ENTRY_BYTES)
    seen = _bytes(attributes, "seen", _SEEN.size)
    erased, erasing_since_s = _unpack_era(attributes)
    return _BLANK.but(
        state=np.frombuffer(_bytes(attributes, "state", 2), _F16),
        vector=np.frombuffer(_bytes(attributes, "vector", 2), _F16),
        space=str(attributes["space"]),
        ring=Ring(ring),
        last_s=int.from_bytes(_bytes(attributes, "last", 4), "big"),
        favourites=decode_favourites(_bytes(attributes, "fav", 1)),
        seen=tuple(_SEEN.iter_unpack(seen)),
        marks=_unpack_marks(_bytes(attributes, "marks", 1)),
        version=int(str(attributes["v"])),
        wid=_bytes(attributes, "wid", WID_BYTES),
        erased=erased,
        erasing_since_s=erasing_since_s,
    )


def _bytes(attributes: Mapping[str, object], name: str, unit: int) -> bytes:
    value = attributes.get(name)
    if not isinstance(value, bytes) or len(value) % unit:
        size = len(value) if isinstance(value, bytes) else None
        raise CorruptRow(f"{name}: {size} bytes; expected a multiple of {unit} (user row)")
    return value


def _pack_era(row: UserRow) -> bytes:
    return row.erased + (row.erasing_since_s.to_bytes(4, "big") if row.erasing_since_s else b"")


def _unpack_era(attributes: Mapping[str, object]) -> tuple[bytes, int]:
    value = _bytes(attributes, "era", 4) if "era" in attributes else b""
    if len(value) not in (0, RECEIPT_BYTES, RECEIPT_BYTES + 4):
        raise CorruptRow(f"era: {len(value)} bytes; expected {RECEIPT_BYTES} or 4 more (user row)")
    return value[:RECEIPT_BYTES], int.from_bytes(value[RECEIPT_BYTES:], "big")


def _pack_mark(key: bytes, sequence: int) -> bytes:
    if not 0 <= sequence <= MAX_SEQUENCE:
        raise CorruptRow(f"sequence number {sequence}; expected 0 to 129 digits (user row)")
    number = sequence.to_bytes((sequence.bit_length() + 7) // 8, "big")
    return key + bytes([len(number)]) + number


def _unpack_marks(data: bytes) -> tuple[tuple[bytes, int], ...]:
    marks, at = [], 0
    while at < len(data):
        length = data[at + 4] if at + 4 < len(data) else len(data)
        number = data[at + 5 : at + 5 + length]
        if len(number) != length:
            raise CorruptRow(f"marks: cut off at byte {at} of {len(data)} (user row)")
        marks.append((data[at : at + 4], int.from_bytes(number, "big")))
        at += 5 + length
    return tuple(marks)
