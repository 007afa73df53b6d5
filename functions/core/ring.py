"""The ring of a user's last events, as it is stored: RING entries of ENTRY_BYTES, the oldest first.

Nobody unpacks it to fold an event: an entry is found by its bytes, and packed entries are put behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.integer[Any]]

RING = 64
_ENTRY = struct.Struct(">5s6sB")  # event-id hash, item key | value bucket, kind · 32 + gap bucket
ENTRY_BYTES = _ENTRY.size
RING_BYTES = RING * ENTRY_BYTES
_ITEM, _LAST = 5, ENTRY_BYTES - 1  # where in an entry its item and its kind begin

_BYTES = tuple(bytes([code]) for code in range(256))
_UPPER = tuple(bytes([code & 0xF0]) for code in range(256))  # the key's part of a byte shared with the value


class RingEntry(NamedTuple):
    """One remembered event: enough to recognise it again and to fold it again."""

    event: bytes  # 5
    item: bytes  # 6
    kind: int  # 0..7
    value: int  # 0..15, the bucket
    gap: int  # 0..31, the bucket of the time since the event before


class Ring(Sequence[RingEntry]):
    """The ring as it is stored. Entries are unpacked for who looks at one; the fold looks at bytes."""

    __slots__ = ("_entries", "packed")

    def __init__(self, packed: bytes = b"") -> None:
        self.packed = packed
        self._entries: tuple[RingEntry, ...] | None = None

    @classmethod
    def of(cls, entries: Iterable[RingEntry]) -> Ring:
        """The ring of these entries."""
        return cls(b"".join(pack_entry(e.event, e.item, e.kind, e.value, e.gap) for e in entries))

    @property
    def entries(self) -> tuple[RingEntry, ...]:
        """All entries, the oldest first."""
        if self._entries is None:
            self._entries = tuple(_entry(*fields) for fields in _ENTRY.iter_unpack(self.packed))
        return self._entries

    def hashes(self) -> list[bytes]:
        """The event-id hash of each entry."""
        packed = self.packed
        return [packed[at : at + _ITEM] for at in range(0, len(packed), ENTRY_BYTES)]

    def has(self, event: bytes) -> bool:
        """Whether an entry has this event-id hash."""
        at = self.packed.find(event)
        while at >= 0 and at % ENTRY_BYTES:
            at = self.packed.find(event, at + 1)
        return at >= 0

    def __len__(self) -> int:
        return len(self.packed) // ENTRY_BYTES

    @overload
    def __getitem__(self, at: int) -> RingEntry: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[RingEntry, ...]: ...
    def __getitem__(self, at: int | slice) -> RingEntry | tuple[RingEntry, ...]:
        return self.entries[at]

    def __iter__(self) -> Iterator[RingEntry]:
        return iter(self.entries)

    def __eq__(self, other: object) -> bool:
        return self.packed == other.packed if isinstance(other, Ring) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.packed)

    def __repr__(self) -> str:
        return f"Ring.of({list(self.entries)})"


NO_RING = Ring()


def pack_entry(event: bytes, item: bytes, kind: int, value: int, gap: int) -> bytes:
    """A ring entry's 12 bytes; `value` and `gap` are buckets."""
    return event + item[:5] + _BYTES[item[5] | value] + _BYTES[kind << 5 | gap]


def item_of(packed: bytes, nth: int) -> bytes:
    """The item key of the nth of packed entries."""
    at = nth * ENTRY_BYTES + _ITEM
    return packed[at : at + 5] + _UPPER[packed[at + 5]]


def kind_of(packed: bytes, nth: int) -> int:
    """The event type of the nth of packed entries."""
    return packed[nth * ENTRY_BYTES + _LAST] >> 5


def codes_of(packed: bytes) -> tuple[Codes, Codes, Codes]:
    """Kind, gap and value of n packed entries, [n] each."""
    last = np.frombuffer(packed, np.uint8)[_LAST::ENTRY_BYTES]
    value = np.frombuffer(packed, np.uint8)[_LAST - 1 :: ENTRY_BYTES] & 15
    return last >> 5, last & 31, value


def kinds_of(packed: bytes, first: int, end: int, item: bytes) -> set[int]:
    """The event types that entries first..end - 1 of packed entries have of an item."""
    found: set[int] = set()
    most, key, upper = end * ENTRY_BYTES, item[:5], item[5]
    at = packed.find(key, first * ENTRY_BYTES, most)
    while at >= 0:
        if at % ENTRY_BYTES == _ITEM and packed[at + 5] & 0xF0 == upper:
            found.add(packed[at + 6] >> 5)
        at = packed.find(key, at + 1, most)
    return found


def _entry(event: bytes, item: bytes, kind_gap: int) -> RingEntry:
    key = item[:5] + _UPPER[item[5]]
    return RingEntry(event, key, kind_gap >> 5, item[5] & 15, kind_gap & 31)
