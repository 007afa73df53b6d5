"""What a visitor keeps coming back to, once the ring has forgotten it.

A household buys the same forty things all year; the last 64 events hold a fortnight of that. So an event that
leaves the ring leaves a weight with its item: 1, halved for every HALF_LIFE events that leave after it
(exponential decay of counts, Cormode et al. 2009, section 3.1). There are PLACES items at most. A new one
takes the place of the weakest, easily where the visitor has met it again since (it is in the ring once more),
and else only where the weakest is all but forgotten: space for those seen once would be a second ring.

Integers only, so that every machine and every batching gives the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

from functions.core.errors import CorruptRow
from functions.core.events import KINDS

PLACES = 24
PREFIX = 4  # bytes of an item key; two of 100,000 products share them for one visitor in 40,000 and favourite
HALF_LIFE = 256  # events
OCTAVE = 32  # codes between a weight and its double
ONE = 64  # the code of weight 1; codes run from 1 (weight 0.26) to 255 (62.6)
MOST = 255
PACE = HALF_LIFE // OCTAVE  # events that make all weights one code lighter
ONCE, AGAIN = ONE - OCTAVE, ONE + OCTAVE  # an item may take the place of what weighs less than 1/2, or than 2
DISMISS = KINDS["dismiss"]

WEIGHTS = tuple(2 ** ((code - ONE) / OCTAVE) for code in range(MOST + 1))
PLUS_ONE = tuple(min(MOST, round(ONE + OCTAVE * log2(weight + 1))) for weight in WEIGHTS)


@dataclass(frozen=True, slots=True)
class Favourites:
    """Codes of weights by the first PREFIX bytes of an item key, in the order in which the items came in.

    `turn`: events that left since the weights last became lighter, below PACE. `kinds`: bit k is set once an
    event of type k has counted.
    """

    codes: tuple[tuple[bytes, int], ...] = ()
    turn: int = 0
    kinds: int = 0

    def weights(self, kinds: Sequence[int]) -> dict[bytes, float]:
        """Weight by item; nothing where others than these event types have counted."""
        if self.kinds & ~sum(1 << kind for kind in kinds):
            return {}
        return {item: WEIGHTS[code] for item, code in self.codes}

    def after(self, item: Sequence[bytes], kind: Sequence[int], known: int, ring: int) -> Favourites:
        """The favourites once the events item[known:] have followed item[:known], the ring as it was.

        `ring`: how many events it holds. A dismissed item is forgotten, and does not come back while the ring
        has the dismissal.
        """
        walk = _Walk(self)
        for before in range(known):
            walk.enter(item[before], kind[before])
        for newest in range(known, len(item)):
            walk.enter(item[newest], kind[newest])
            if newest >= ring:
                walk.leave(item[newest - ring], kind[newest - ring])
        return Favourites(tuple(walk.codes.items()), walk.turn, walk.kinds)


NO_FAVOURITES = Favourites()


class _Walk:
    """Favourites and the ring beside them, event by event."""

    def __init__(self, before: Favourites) -> None:
        self.codes, self.turn, self.kinds = dict(before.codes), before.turn, before.kinds
        self.inside: Counter[bytes] = Counter()
        self.dismissed: Counter[bytes] = Counter()

    def enter(self, key: bytes, kind: int) -> None:
        item = key[:PREFIX]
        (self.dismissed if kind == DISMISS else self.inside)[item] += 1
        if kind == DISMISS:
            self.codes.pop(item, None)

    def leave(self, key: bytes, kind: int) -> None:
        item = key[:PREFIX]
        (self.dismissed if kind == DISMISS else self.inside)[item] -= 1
        self._grow_lighter()
        if kind != DISMISS and not self.dismissed[item]:
            self._add(item, kind)

    def _grow_lighter(self) -> None:
        self.turn = (self.turn + 1) % PACE
        if not self.turn:
            self.codes = {item: code - 1 for item, code in self.codes.items() if code > 1}

    def _add(self, item: bytes, kind: int) -> None:
        code = self.codes.get(item)
        if code is None and len(self.codes) == PLACES:
            weakest = min(self.codes, key=self.codes.__getitem__)
            if self.codes[weakest] >= (AGAIN if self.inside[item] > 0 else ONCE):
                return
            del self.codes[weakest]
        self.codes[item] = ONE if code is None else PLUS_ONE[code]
        self.kinds |= 1 << kind


def encode_favourites(favourites: Favourites) -> bytes:
    """One byte of `turn`, one of `kinds`, then PREFIX + 1 bytes an item; empty for none at all."""
    if favourites == NO_FAVOURITES:
        return b""
    head = bytes([favourites.turn, favourites.kinds])
    return head + b"".join(item + bytes([code]) for item, code in favourites.codes)


def decode_favourites(data: bytes) -> Favourites:
    """What `encode_favourites` made; raises CorruptRow."""
    if not data:
        return NO_FAVOURITES
    body = data[2:]
    if len(data) < 2 or len(body) % (PREFIX + 1):
        raise CorruptRow(f"fav: {len(data)} bytes; expected 2 and a multiple of {PREFIX + 1} (user row)")
    entries = [body[at : at + PREFIX + 1] for at in range(0, len(body), PREFIX + 1)]
    return Favourites(tuple((entry[:PREFIX], entry[PREFIX]) for entry in entries), data[0], data[1])
