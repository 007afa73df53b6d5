"""The pointer: which model everybody has, which one a share of the users tries, and who has read so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

from functions.aws.bundles import Arms
from functions.core.fold import Encoder
from functions.core.pointer import Pointer
from functions.core.served import ServedBundle
from simulate.encoder import ENCODERS, SPACES
from simulate.world import CHALLENGER_FAULTS, POINTER_FAULTS, World

SHARES = (0.0, 0.3, 0.5, 0.5, 0.7, 1.0)
SALTS = ("", "spring", "summer")


class Rollout:
    """What the pointer names, by state space."""

    def __init__(self, world: World, champion: str) -> None:
        self._world, self.champion = world, champion
        self.challenger: str | None = None
        self.share, self.salt = 0.0, ""

    def named(self) -> Pointer:
        """The pointer as the functions read it; a bundle's id is its space twice."""
        challenger = None if self.challenger is None else 2 * self.challenger
        return Pointer(2 * self.champion, challenger, self.share, self.salt)

    def swap(self) -> None:
        """Another champion, or the one before it again; a challenger that it was is none any more."""
        self.champion = SPACES[1 - SPACES.index(self.champion)]
        if self.challenger == self.champion:
            self.challenger = None

    def try_out(self) -> None:
        """The other model comes to a share of the users, to another share, or to nobody any more."""
        rng = self._world.rng
        if self.challenger is not None and rng.random() < 0.4:
            self._world.happened("challenger withdrawn")
            self.challenger = None
            return
        self._world.happened("challenger")
        if self.challenger is None or rng.random() < 0.5:
            self.salt = rng.choice(SALTS)
        self.challenger = SPACES[1 - SPACES.index(self.champion)]
        self.share = rng.choice(SHARES)


def drawn(salt: str, key: str, share: float) -> bool:
    """Whether a user is the challenger's, said a second time: docs/contracts.md, Bundle."""
    digest = hashlib.blake2b(f"{salt}|{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


class InMemory:
    """Stands for `functions.aws.bundles.Bundles`: what the pointer named when it was last read."""

    def __init__(self, world: World, named: Callable[[], Pointer]) -> None:
        self._world, self._named = world, named
        self._arms = Arms(None)

    @property
    def current(self) -> ServedBundle | None:
        """The champion in memory."""
        return self._arms.champion

    def refresh(self) -> bool:
        """Read the pointer; on any doubt the old bundles go on, or the champion alone."""
        self._world.pause()
        if self._world.fault(POINTER_FAULTS):
            return False
        pointer = self._named()
        challenger = None
        if pointer.challenger and not self._world.fault(CHALLENGER_FAULTS):
            challenger = self._opened(pointer.challenger)
        self._arms = Arms(self._opened(pointer.champion), challenger, pointer)
        return challenger is not None or not pointer.challenger

    def of(self, user_key: str) -> tuple[ServedBundle | None, str]:
        """The bundle of a user, and the arm that it is: the functions' own code says which."""
        return self._arms.of(user_key)

    def space(self, user_key: str) -> str | None:
        """The space that a user's row must be written in."""
        arms = self._arms
        if arms.champion is None or arms.pointer is None:
            return None
        tried = arms.challenger is not None and drawn(arms.pointer.salt, user_key, arms.pointer.share)
        named = arms.pointer.challenger if tried else arms.pointer.champion
        return self.encoder(_space(named or "")).space

    def encoder(self, space: str) -> Encoder:
        """The encoder of a space; planted bugs put another in its place."""
        return ENCODERS[space]

    def _opened(self, name: str) -> ServedBundle:
        return cast(ServedBundle, SimpleNamespace(encoder=self.encoder(_space(name))))


def _space(name: str) -> str:
    """The space of the bundle of this name."""
    return name[: len(name) // 2]
