"""What a visitor keeps coming back to, once the ring has forgotten it.

A household buys the same forty things all year; the last 64 events hold a fortnight of that. So an event that
leaves the ring leaves a weight with its item: 1, halved for every HALF_LIFE events that leave after it
(exponential decay of counts, Cormode et al. 2009, section 3.1). There are PLACES items at most. A new one
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
from functions.core.events import KINDS

PLACES = 24
PREFIX = 4  # bytes that stand for an item: the first 29 bits of its key; the last 3 bits say the event type
KIND = 0b111
HALF_LIFE = 256  # events
OCTAVE = 32  # codes between a weight and its double
ONE = 64  # the code of weight 1; codes run from 1 (weight 0.26) to 255 (62.6)
MOST = 255
PACE = HALF_LIFE // OCTAVE  # events that make all weights one code lighter
ONCE, AGAIN = ONE - OCTAVE, ONE + OCTAVE  # an item may take the place of what weighs less than 1/2, or than 2
DISMISS = KINDS["dismiss"]
_FAVOURITE = struct.Struct(f">{PREFIX}sB")
_BYTES = tuple(bytes([code]) for code in range(256))

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
    """Codes of weights by item and event type (`item_and_kind`), in the order in which they came in.

    `turn`: events that left since the weights last became lighter, below PACE.
    """

    codes: tuple[tuple[bytes, int], ...] = ()
    turn: int = 0

    def weights(self, kinds: Collection[int]) -> dict[bytes, float]:
        """Weight by prefix of an item key, of events of these types."""
        found: dict[bytes, float] = {}
        for kept, code in self.codes:
            if kept[-1] & KIND in kinds:
                item = item_prefix(kept)
                found[item] = found.get(item, 0.0) + WEIGHTS[code]
        return found

    def after(self, item: Sequence[bytes], kind: Sequence[int], known: int, ring: int) -> Favourites:
        """The favourites once the events item[known:] have followed item[:known], the ring as it was.

        `ring`: how many events it holds. A dismissed item is forgotten, and does not come back while the ring
        has the dismissal.
        """
        walk = _Walk(self)
        for newest in range(known, len(item)):
            if kind[newest] == DISMISS:
                walk.forget(item[newest])
            if newest >= ring:
                inside = slice(newest - ring + 1, newest + 1)
                walk.leave(item[newest - ring], kind[newest - ring], item[inside], kind[inside])
        return Favourites(tuple(walk.codes.items()), walk.turn)


NO_FAVOURITES = Favourites()


class _Walk:
    """Favourites while events leave the ring."""

    def __init__(self, before: Favourites) -> None:
        self.codes, self.turn = dict(before.codes), before.turn

    def forget(self, key: bytes) -> None:
        """A dismissed item goes at once, with all that was done to it."""
        item = item_prefix(key)
        self.codes = {kept: code for kept, code in self.codes.items() if item_prefix(kept) != item}

    def leave(self, key: bytes, kind: int, items: Sequence[bytes], kinds: Sequence[int]) -> None:
        """An event leaves; `items` and `kinds` are those that the ring then holds."""
        self.turn = (self.turn + 1) % PACE
        if not self.turn:
            self.codes = {kept: code - 1 for kept, code in self.codes.items() if code > 1}
        if kind == DISMISS:
            return
        met = {kinds[at] for at, item in enumerate(items) if item == key} if key in items else ()
        if DISMISS not in met:
            self._add(item_and_kind(key, kind), again=bool(met))

    def _add(self, new: bytes, again: bool) -> None:
        code = self.codes.get(new)
        if code is None and len(self.codes) == PLACES:
            weakest = min(self.codes, key=self.codes.__getitem__)
            if self.codes[weakest] >= (AGAIN if again else ONCE):
                return
            del self.codes[weakest]
        self.codes[new] = ONE if code is None else PLUS_ONE[code]


def encode_favourites(favourites: Favourites) -> bytes:
    """One byte of `turn`, then PREFIX + 1 bytes a favourite; empty for none at all."""
    if favourites == NO_FAVOURITES:
        return b""
    parts = [part for kept, code in favourites.codes for part in (kept, _BYTES[code])]
    return b"".join((_BYTES[favourites.turn], *parts))


def decode_favourites(data: bytes) -> Favourites:
    """What `encode_favourites` made; raises CorruptRow."""
    if not data:
        return NO_FAVOURITES
    body = data[1:]
    if len(body) % (PREFIX + 1):
        raise CorruptRow(f"fav: {len(data)} bytes; expected 1 and a multiple of {PREFIX + 1} (user row)")
    return Favourites(tuple(_FAVOURITE.iter_unpack(body)), data[0])
