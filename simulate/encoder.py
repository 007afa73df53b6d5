"""Two small encoders: a recurrence that rounds to float16 inside every step and minds the order of events.

Everything is elementwise, so that the bits do not depend on how many users share a call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from functions.core.features import GAP_BUCKETS, VALUE_BUCKETS, Int64
from functions.core.fold import Encoder
from functions.core.user_row import Float16
from simulate.reference import item_key

DIM, STATE = 3, 6
DIM_BYTES, STATE_BYTES = 2 * DIM, 2 * STATE
REMEMBERED = 1 << 12  # steps
Codes = Int64 | int  # [B], or one user's
SPACES = ("a" * 16, "b" * 16)
RETIRED = "c" * 16  # rows of it are met, and no bundle of it
CATALOGUE = tuple(f"sku-{n}" for n in range(12))
STRANGERS = ("from-tomorrow", "gone")  # items of no catalogue
BROKEN = "broken"  # its embedding is not finite: what is folded with it must not be stored


class Step:
    """state' = f16(decay(kind, gap, value) · rotated state + item); vector = f16(readout · state').

    One user's step is remembered: a history steps from the same state again and again, live and in replays.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.decay = rng.uniform(0.5, 0.99, (8, GAP_BUCKETS, VALUE_BUCKETS, 1)).astype(np.float32)
        self.readout = rng.normal(size=DIM).astype(np.float32)
        self.rotation = rng.permutation(STATE)
        self._known: dict[tuple[bytes, bytes, int, int, int], tuple[bytes, bytes]] = {}

    def unrounded(
        self, state: NDArray[np.float32], item: Float16, kind: Codes, gap: Codes, value: Codes
    ) -> NDArray[np.float32]:
        """The next state before it is rounded, float32 [B, S], or [S] of one user."""
        new: NDArray[np.float32] = self.decay[kind, gap, value] * state.take(self.rotation, axis=-1)
        new[..., :DIM] += item
        new[..., DIM:] -= item
        return new

    def read(self, state: Float16) -> Float16:
        """The user vectors [B, d] of states [B, S], or [d] of one user."""
        vector: Float16 = (state[..., :DIM] * self.readout).astype(np.float16)
        return vector

    def of_one(self, state: bytes, item: bytes, kind: int, gap: int, value: int) -> tuple[bytes, bytes]:
        """One user's step, all in the bytes of float16: state [S] and item [d] → state [S], vector [d]."""
        key = (state, item, kind, gap, value)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            old, moving = np.frombuffer(state, np.float16), np.frombuffer(item, np.float16)
            new = self.unrounded(old.astype(np.float32), moving, kind, gap, value).astype(np.float16)
            found = self._known[key] = new.tobytes(), self.read(new).tobytes()
        return found

    def __call__(
        self, state: Float16, item: Float16, kind: Int64, gap: Int64, value: Int64
    ) -> tuple[Float16, Float16]:
        states, items = state.tobytes(), item.tobytes()
        found = [
            self.of_one(states[n * STATE_BYTES :][:STATE_BYTES], items[n * DIM_BYTES :][:DIM_BYTES], *codes)
            for n, codes in enumerate(zip(kind.tolist(), gap.tolist(), value.tolist(), strict=True))
        ]
        new = np.frombuffer(b"".join([state for state, _ in found]), np.float16)
        vector = np.frombuffer(b"".join([vector for _, vector in found]), np.float16)
        return new.reshape(-1, STATE), vector.reshape(-1, DIM)


class Items:
    """The catalogue's embeddings."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.by_key = {item_key(name): rng.normal(size=DIM).astype(np.float16) for name in CATALOGUE}
        self.by_key[item_key(BROKEN)] = np.full(DIM, np.inf, np.float16)
        self.packed = {key: embedding.tobytes() for key, embedding in self.by_key.items()}

    def embedding(self, key: bytes) -> Float16 | None:
        """[d] float16, None for a stranger."""
        return self.by_key.get(key)


STEPS = {space: Step(seed) for seed, space in enumerate(SPACES)}
ITEMS = {space: Items(seed) for seed, space in enumerate(SPACES)}
ENCODERS = {space: Encoder(space, STATE, DIM, STEPS[space], ITEMS[space]) for space in SPACES}
