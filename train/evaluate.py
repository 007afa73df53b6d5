"""Ranking quality through the serving path: the fold that is deployed, float16 rounding included.

Every metric ranks the whole catalogue. A user's targets are what the user did in the test part of the log.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from functions.core.events import EVENT_TYPES, IMPRESSION, Event
from functions.core.features import Int64, ItemFeatures
from functions.core.fold import Encoder, fold
from functions.core.user_row import Float16, item_key
from train.baselines import BASELINES, ranked
from train.baselines import USERS_AT_ONCE as USERS_RANKED_AT_ONCE
from train.log import Interactions
from train.towers import Towers

SPLITS = ("time", "leave-one-out")
TEST_SHARE = 0.1  # of the events, the latest ones
USERS_AT_ONCE = 512
CUTS = (10, 20)

Targets = dict[int, NDArray[np.int64]]  # user → rows of the items to be found


@dataclass(frozen=True)
class Split:
    """What may be learnt from, and what each test user did afterwards."""

    train: Interactions
    targets: Targets


def split(log: Interactions, how: str) -> Split:
    """Split by time (the latest tenth is the test) or leave each user's last event out.

    Only users with a history are tested. Raises ValueError for another `how`.
    """
    if how not in SPLITS:
        raise ValueError(f"split: {how!r}; expected one of {list(SPLITS)}")
    counted = log.kind != IMPRESSION
    if how == "time":
        latest = np.sort(log.time_s[counted])[-max(1, int(TEST_SHARE * counted.sum()))]
        test = counted & (log.time_s >= latest)
    else:
        test = np.zeros(len(log.user), bool)
        at = np.flatnonzero(counted)
        test[at[_last_of_each(log.user[at])]] = True
    history = set(log.user[counted & ~test].tolist())
    targets = {
        int(u): np.unique(log.item[test & (log.user == u)]).astype(np.int64)
        for u in np.unique(log.user[test])
        if int(u) in history
    }
    return Split(_take(log, ~test), targets)


def _last_of_each(users: NDArray[np.int32]) -> NDArray[np.int64]:
    _, from_the_end = np.unique(users[::-1], return_index=True)
    return len(users) - 1 - from_the_end


def _take(log: Interactions, rows: NDArray[np.bool_]) -> Interactions:
    columns = {name: getattr(log, name)[rows] for name in ("user", "item", "kind", "time_s", "value")}
    return replace(log, **columns)


class TowerItems:
    """Embeddings [N, d] float16 of a catalogue, by item key."""

    def __init__(self, item_ids: list[str], embeddings: Float16) -> None:
        self._rows = {item_key(item_id): row for row, item_id in enumerate(item_ids)}
        self._embeddings = embeddings

    def embedding(self, key: bytes) -> Float16 | None:
        row = self._rows.get(key)
        return None if row is None else self._embeddings[row]


def torch_encoder(towers: Towers, item_ids: list[str], embeddings: Float16) -> Encoder:
    """The trained user tower as the fold's encoder, before it is exported."""

    @torch.inference_mode()
    def step(state: Float16, item: Float16, kind: Int64, gap: Int64, value: Int64) -> tuple[Float16, Float16]:
        after, vector = towers.user.step(*map(torch.from_numpy, (state, item, kind, gap, value)))
        return after.numpy(), vector.numpy()

    shape = towers.shape
    return Encoder("0" * 16, shape.state_width, shape.dim, step, TowerItems(item_ids, embeddings))


@torch.inference_mode()
def embed_items(towers: Towers, features: ItemFeatures) -> Float16:
    """Embeddings of the whole catalogue, [N, d] float16."""
    ids = torch.arange(1, len(features.category) + 1)
    content = (features.category, features.brand, features.price, features.text)
    embeddings: Float16 = towers.item(ids, *map(torch.from_numpy, content)).half().numpy()
    return embeddings


def user_vectors(log: Interactions, users: list[int], encoder: Encoder) -> NDArray[np.float32]:
    """Vectors after each user's history, [users, d]."""
    vectors = []
    order = np.argsort(log.user, kind="stable")
    bounds = np.searchsorted(log.user[order], [[u, u + 1] for u in users])
    for at in range(0, len(users), USERS_AT_ONCE):
        chunk = bounds[at : at + USERS_AT_ONCE]
        histories = [[_event(log, int(row)) for row in order[a:b]] for a, b in chunk]
        rows, _ = fold([encoder.empty()] * len(histories), histories, encoder)
        vectors += [row.vector for row in rows]
    return np.stack(vectors).astype(np.float32)


def _event(log: Interactions, row: int) -> Event:
    value = float(log.value[row])
    return Event(
        event_id=str(row),
        type=EVENT_TYPES[log.kind[row] - 1],
        item_id=log.item_ids[log.item[row]],
        time_s=max(int(log.time_s[row]), 0),
        value=None if np.isnan(value) else value,
    )


def metrics(top: NDArray[np.int64], targets: list[NDArray[np.int64]], items: int) -> dict[str, float]:
    """hr, recall, ndcg and mrr at each cut, and coverage; means over users.

    NDCG's ideal is min(k, |targets|) hits in front (Järvelin & Kekäläinen 2002). Recall divides by |targets|.
    """
    result: dict[str, float] = {}
    for k in CUTS:
        hits = np.stack([np.isin(t[:k], want) for t, want in zip(top, targets, strict=True)])  # [U, k]
        wanted = np.array([len(want) for want in targets])
        discount = 1 / np.log2(np.arange(2, hits.shape[1] + 2))
        ideal = np.array([discount[: min(n, k)].sum() for n in wanted])
        first = np.where(hits.any(1), 1 / (hits.argmax(1) + 1), 0.0)
        result |= {
            f"hr@{k}": float(hits.any(1).mean()),
            f"recall@{k}": float((hits.sum(1) / wanted).mean()),
            f"ndcg@{k}": float(((hits * discount).sum(1) / ideal).mean()),
            f"mrr@{k}": float(first.mean()),
            f"coverage@{k}": len(np.unique(top[:, :k])) / items,
        }
    return result


def evaluate(towers: Towers, features: ItemFeatures, parts: Split) -> dict[str, dict[str, float]]:
    """Metrics on the test part, of the model as "test" and of each baseline under its name.

    Raises ValueError where no user can be tested.
    """
    users = sorted(parts.targets)
    if not users:
        raise ValueError("no user of the test part has a history; expected a log that covers a longer time")
    targets = [parts.targets[u] for u in users]
    size = len(parts.train.item_ids)
    result = {"test": metrics(_model(towers, features, parts, users), targets, size)}
    for name, baseline in BASELINES.items():
        result[name] = metrics(baseline(parts.train, users, max(CUTS)), targets, size)
    return result


def _model(towers: Towers, features: ItemFeatures, parts: Split, users: list[int]) -> NDArray[np.int64]:
    embeddings = embed_items(towers, features)
    vectors = user_vectors(parts.train, users, torch_encoder(towers, parts.train.item_ids, embeddings))
    table = embeddings.astype(np.float32).T
    starts = range(0, len(users), USERS_RANKED_AT_ONCE)
    top = [ranked(vectors[a : a + USERS_RANKED_AT_ONCE] @ table, max(CUTS)) for a in starts]
    return np.concatenate(top)
