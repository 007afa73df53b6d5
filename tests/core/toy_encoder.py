"""A small, honest encoder in numpy: a gated linear recurrence that rounds to float16 inside every step."""

import numpy as np

from functions.core.features import GAP_BUCKETS, VALUE_BUCKETS, Int64
from functions.core.fold import Encoder
from functions.core.user_row import Float16, item_key

STATE, DIM, ITEMS = 256, 64, 50


class ToyItems:
    """Embeddings of the items `i0` … `i49`."""

    def __init__(self, seed: int) -> None:
        values = np.random.default_rng(seed).normal(size=(ITEMS, DIM)).astype(np.float16)
        self.by_key = {item_key(f"i{i}"): values[i] for i in range(ITEMS)}

    def embedding(self, key: bytes) -> Float16 | None:
        return self.by_key.get(key)


class ToyStep:
    """state' = a(kind, gap, value) · state + W · item; vector = R · state'."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.weight = rng.normal(size=(DIM, STATE)).astype(np.float32) / 8
        self.readout = rng.normal(size=(STATE, DIM)).astype(np.float32) / 16
        self.decay = rng.uniform(0.5, 0.99, size=(8, GAP_BUCKETS, VALUE_BUCKETS, 1)).astype(np.float32)

    def __call__(
        self, state: Float16, item: Float16, kind: Int64, gap: Int64, value: Int64
    ) -> tuple[Float16, Float16]:
        kept = self.decay[kind, gap, value] * state.astype(np.float32)
        new = [kept[b] + item[b].astype(np.float32) @ self.weight for b in range(len(state))]
        rounded = np.stack(new).astype(np.float16)
        vectors = [row.astype(np.float32) @ self.readout for row in rounded]
        return rounded, np.stack(vectors).astype(np.float16)


def toy_encoder(seed: int = 0, space: str = "0" * 16) -> Encoder:
    """An encoder whose results are exact for any batch size, because it multiplies row by row."""
    return Encoder(space, STATE, DIM, ToyStep(seed), ToyItems(seed))
