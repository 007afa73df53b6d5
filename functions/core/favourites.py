"""What a visitor keeps coming back to, once the ring has forgotten it.

A household buys the same forty things all year; the last 64 events hold a fortnight of that. So an event that
leaves the ring leaves a weight with its item: 1, halved for every HALF_LIFE events that leave after it
(exponential decay of counts, Cormode et al. 2009, section 3.1). There are PLACES items at most, fewer where
a row has no room for so many (`functions.core.user_row.places_for`). A new one
takes the place of the weakest, easily where the visitor has met it again since (it is in the ring once more),
and else only where the weakest is all but forgotten: space for those seen once would be a second ring.
An item bought and the same item viewed are two, for a model may know of purchases and not of views.

Integers only, so that every machine and every batching gives the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import log2

from functions.core.errors import CorruptRow
from functions.core.events import DISMISS
from functions.core.ring import ENTRY_BYTES, RING, item_of, kind_of, kinds_of

PLACES = 50
PREFIX = 4  # bytes that stand for an item: the first 29 bits of its key; the last 3 bits say the event type
KIND = 0b111
HALF_LIFE = 256  # events
OCTAVE = 32  # codes between a weight and its double
ONE = 64  # the code of weight 1; codes run from 1 (weight 0.26) to 255 (62.6)
MOST = 255
PACE = HALF_LIFE // OCTAVE  # events that make all weights one code lighter
ONCE, AGAIN = ONE - OCTAVE, ONE + OCTAVE  # an item may take the place of what weighs less than 1/2, or than 2
_FAVOURITE = struct.Struct(f">{PREFIX}sB")
_BYTES = tuple(bytes([code]) for code in range(256))
PLACE = PREFIX + 1  # bytes of a favourite
LIGHTER = bytes(max(code - 1, 0) for code in range(256))

WEIGHTS = tuple(2 ** ((code - ONE) / OCTAVE) for code in range(MOST + 1))
PLUS_ONE = tuple(min(MOST, round(ONE + OCTAVE * log2(weight + 1))) for weight in WEIGHTS)


def item_prefix(key: bytes) -> bytes:
    """The first 29 bits of an item key, in 4 bytes.

    Two of 100,000 products share them for one visitor in 5,000 and favourite; what the wrong one gets is a
    better place in that visitor's list.
    """
    return item_and_kind(key, 0)


def item_and_kind(key: bytes, kind: int) -> bytes:
    """An item and an event type 0..7 in 4 bytes."""
    return key[: PREFIX - 1] + bytes([key[PREFIX - 1] & ~KIND | kind])


@dataclass(frozen=True, slots=True)
class Favourites:
    """What is kept, as it is stored: empty, or one byte of `turn`, then PREFIX + 1 bytes a favourite."""

    packed: bytes = b""

    @classmethod
    def of(cls, codes: Sequence[tuple[bytes, int]], turn: int = 0) -> Favourites:
        """The favourites of these `codes` and `turn`."""
        return cls(_packed(b"".join(kept + _BYTES[code] for kept, code in codes), turn))

    @property
    def codes(self) -> tuple[tuple[bytes, int], ...]:
        """Codes of weights by item and event type (`item_and_kind`), in the order in which they came in."""
        return tuple(_FAVOURITE.iter_unpack(self.packed[1:]))

    @property
    def turn(self) -> int:
        """Events that left since the weights last became lighter, below PACE."""
        return self.packed[0] if self.packed else 0

    def weights(self, kinds: Collection[int]) -> dict[bytes, float]:
        """Weight by prefix of an item key, of events of these types."""
        found: dict[bytes, float] = {}
        for kept, code in self.codes:
            if kept[-1] & KIND in kinds:
                item = item_prefix(kept)
                found[item] = found.get(item, 0.0) + WEIGHTS[code]
        return found

    def after(self, ring: bytes, new: bytes, places: int = PLACES) -> Favourites:
        """The favourites once `new` events have come into a `ring`, both packed as in `functions.core.ring`.

        A dismissed item is forgotten, and does not come back while the ring has the dismissal. Where there
        are more than `places`, as after a rollout of wider states, the weakest go when the next event leaves.
        """
        entries, known = ring + new, len(ring) // ENTRY_BYTES
        walk = _Walk(self, places)
        for newest in range(known, len(entries) // ENTRY_BYTES):
            if kind_of(entries, newest) == DISMISS:
                walk.forget(item_of(entries, newest))
            if newest >= RING:
                walk.leave(entries, newest - RING)
        return Favourites(_packed(walk.kept, walk.turn))


NO_FAVOURITES = Favourites()


class _Walk:
    """Favourites while events leave the ring."""

    def __init__(self, before: Favourites, places: int) -> None:
        self.kept, self.turn, self.room = bytearray(before.packed[1:]), before.turn, places * PLACE

    def forget(self, key: bytes) -> None:
        """A dismissed item goes at once, with all that was done to it."""
        whole, rest = key[: PREFIX - 1], key[PREFIX - 1] | KIND
        at = self.kept.find(whole)
        while at >= 0:
            if at % PLACE == 0 and self.kept[at + PREFIX - 1] | KIND == rest:
                del self.kept[at : at + PLACE]
                at -= 1
            at = self.kept.find(whole, at + 1)

    def leave(self, entries: bytes, oldest: int) -> None:
        """An event leaves, and the RING entries after it are the ring."""
        self.turn = (self.turn + 1) % PACE
        if not self.turn:
            self._lighten()
        while len(self.kept) > self.room:
            self._drop(min(self.kept[PREFIX::PLACE]))
        kind = kind_of(entries, oldest)
        if kind == DISMISS:
            return
        key = item_of(entries, oldest)
        met = kinds_of(entries, oldest + 1, oldest + 1 + RING, key)
        if DISMISS not in met:
            self._add(item_and_kind(key, kind), again=bool(met))

    def _lighten(self) -> None:
        codes = self.kept[PREFIX::PLACE].translate(LIGHTER)
        self.kept[PREFIX::PLACE] = codes
        while (nth := codes.rfind(0)) >= 0:
            del self.kept[nth * PLACE : (nth + 1) * PLACE], codes[nth]

    def _add(self, new: bytes, again: bool) -> None:
        at = self.kept.find(new)
        while at >= 0 and at % PLACE:
            at = self.kept.find(new, at + 1)
        if at >= 0:
            self.kept[at + PREFIX] = PLUS_ONE[self.kept[at + PREFIX]]
            return
        if len(self.kept) >= self.room:
            weakest = min(self.kept[PREFIX::PLACE], default=MOST)
            if weakest >= (AGAIN if again else ONCE):
                return
            self._drop(weakest)
        self.kept += new + _BYTES[ONE]

    def _drop(self, code: int) -> None:
        """The first that weighs so much."""
        at = self.kept[PREFIX::PLACE].index(code) * PLACE
        del self.kept[at : at + PLACE]


def _packed(kept: bytes | bytearray, turn: int) -> bytes:
    return _BYTES[turn] + kept if kept or turn else b""


def encode_favourites(favourites: Favourites) -> bytes:
    """One byte of `turn`, then PREFIX + 1 bytes a favourite; empty for none at all."""
    return favourites.packed


def decode_favourites(data: bytes) -> Favourites:
    """What `encode_favourites` made; raises CorruptRow."""
    if not data:
        return NO_FAVOURITES
    if (len(data) - 1) % PLACE:
        raise CorruptRow(f"fav: {len(data)} bytes; expected 1 and a multiple of {PLACE} (user row)")
    return Favourites(data)
