"""Ranking quality through the serving path: the fold that is deployed, float16 rounding included.

Every metric ranks the whole catalogue. A user's targets are what the user did in the test part of the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from functions.core.alike import Alike
from functions.core.events import EVENT_TYPES, Event
from functions.core.favourites import item_prefix
from functions.core.features import Int64, ItemFeatures
from functions.core.fold import Encoder, fold_histories
from functions.core.histories import Histories, spans_of
from functions.core.repeats import NOBODY, Own, Repeats, Rows, Scores
from functions.core.user_row import Float16, UserRow, event_hash, item_key
from train.baselines import DEFAULTS, top
from train.context import ContextTable, Requests
from train.log import Interactions
from train.split import Split, rows_by_user
from train.towers import Towers

USERS_AT_ONCE = 512
FOLDED_AT_ONCE = 4096
ROWS_AT_ONCE = 20_000
CUTS = (10, 20)
CANDIDATES = 200


class TowerItems:
    """Embeddings [N, d] float16 of a catalogue, by item key."""

    def __init__(self, item_ids: list[str], embeddings: Float16) -> None:
        rows = {item_key(item_id): row for row, item_id in reversed(list(enumerate(item_ids)))}
        self._rows = {item_prefix(key): row for key, row in rows.items()} | rows  # the lower of two rows
        self.table = embeddings

    def rows(self, keys: list[bytes]) -> list[int | None]:
        """Row of each item key, or of a key's prefix; None for an item that nobody knows."""
        return [self._rows.get(key) for key in keys]

    @cached_property
    def transposed(self) -> torch.Tensor:
        """The embeddings in float32, [d, N]."""
        return torch.from_numpy(self.table.astype(np.float32)).T

    def embedding(self, key: bytes) -> Float16 | None:
        row = self._rows.get(key)
        return None if row is None else self.table[row]


def torch_encoder(towers: Towers, items: TowerItems) -> Encoder:
    """The trained user tower as the fold's encoder, before it is exported."""

    @torch.inference_mode()
    def step(state: Float16, item: Float16, kind: Int64, gap: Int64, value: Int64) -> tuple[Float16, Float16]:
        after, vector = towers.user.step(*map(torch.from_numpy, (state, item, kind, gap, value)))
        return after.numpy(), vector.numpy()

    shape = towers.shape
    return Encoder("0" * 16, shape.state_width, shape.dim, step, items)


@torch.inference_mode()
def embed_items(
    towers: Towers, features: ItemFeatures, by_content: NDArray[np.bool_] | None = None
) -> Float16:
    """Embeddings of the whole catalogue, [N, d] float16; `by_content` [N]: placed without their id."""
    ids = torch.arange(1, len(features.category) + 1)
    if by_content is not None:
        ids[torch.from_numpy(by_content)] = 0
    content = map(torch.from_numpy, features.columns().values())
    embeddings: Float16 = towers.item(ids, *content).half().numpy()
    return embeddings


def user_rows(log: Interactions, users: list[int], encoder: Encoder) -> list[UserRow]:
    """The stored row of each user after the user's history, [users]; torch's threads share the users."""
    rows: dict[int, UserRow] = {}
    keys = [item_key(item_id) for item_id in log.item_ids]
    own = rows_by_user(log, users)
    threads = torch.get_num_threads()

    def fold(chunk: NDArray[np.int64]) -> list[UserRow]:
        events = _histories(log, [own[user] for user in chunk], keys)
        return fold_histories([encoder.empty()] * len(chunk), events, encoder)[0]

    chunks = _of_like_length([len(some) for some in own], threads)
    with (
        tqdm(total=len(users), desc="fold", unit="user", disable=None) as bar,
        _unshared_operations(),
        ThreadPoolExecutor(threads) as pool,
    ):
        for chunk, folded in zip(chunks, pool.map(fold, chunks), strict=True):
            rows.update(zip(chunk.tolist(), folded, strict=True))
            bar.update(len(chunk))
    return [rows[position] for position in range(len(users))]


@contextmanager
def _unshared_operations() -> Iterator[None]:
    """One thread for each of torch's operations: a step is too small to be shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _of_like_length(lengths: list[int], parts: int) -> list[NDArray[np.int64]]:
    """Users in chunks of about one length, so that a round is full to its end, and those in `parts`."""
    by_length = np.argsort(lengths, kind="stable")
    chunks = (by_length[at : at + FOLDED_AT_ONCE] for at in range(0, len(lengths), FOLDED_AT_ONCE))
    return [chunk[part::parts] for chunk in chunks for part in range(min(parts, len(chunk)))]


def _histories(log: Interactions, rows: list[NDArray[np.int64]], keys: list[bytes]) -> Histories:
    """Some users' rows of the log as the fold takes them: what `histories` makes of `_event`s."""
    at = np.concatenate(rows)
    used, item = np.unique(log.item[at], return_inverse=True)
    return Histories(
        spans=spans_of(map(len, rows)),
        event=[event_hash(str(row)) for row in at.tolist()],
        items=[keys[row] for row in used.tolist()],
        item=item.tolist(),
        kind=log.kind[at].tolist(),
        time_s=np.maximum(log.time_s[at], 0).tolist(),
        value=log.value[at].tolist(),
    )


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
    """hr, recall, ndcg and mrr at each cut, and coverage; means over users. -1 in `top` is no item."""
    result: dict[str, float] = {}
    for k in CUTS:
        hits = _hits(top, targets, k)
        first = np.where(hits.any(1), 1 / (hits.argmax(1) + 1), 0.0)
        shown = np.unique(top[:, :k])
        result |= {
            f"hr@{k}": float(hits.any(1).mean()),
            f"recall@{k}": recall(top, targets, k),
            f"ndcg@{k}": ndcg(top, targets, k),
            f"mrr@{k}": float(first.mean()),
            f"coverage@{k}": int((shown >= 0).sum()) / items,
        }
    return result


def merit(top: NDArray[np.int64], targets: list[NDArray[np.int64]]) -> float:
    """What the validation decides by: NDCG@10 and recall@20 together, of lists [U, 20].

    What is to come first, and what is to come at all: either alone is paid for by the other.
    """
    return ndcg(top, targets, CUTS[0]) + recall(top, targets, CUTS[-1])


def recall(top: NDArray[np.int64], targets: list[NDArray[np.int64]], k: int) -> float:
    """Recall@k: the share of a user's targets that is found, mean over users."""
    wanted = np.array([len(want) for want in targets])
    return float((_hits(top, targets, k).sum(1) / wanted).mean())


def ndcg(top: NDArray[np.int64], targets: list[NDArray[np.int64]], k: int) -> float:
    """NDCG@k; the ideal is min(k, |targets|) hits in front (Järvelin & Kekäläinen 2002)."""
    hits = _hits(top, targets, k)
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.array([discount[: min(len(want), k)].sum() for want in targets])
    return float(((hits * discount[: hits.shape[1]]).sum(1) / ideal).mean())


def _hits(top: NDArray[np.int64], targets: list[NDArray[np.int64]], k: int) -> NDArray[np.bool_]:
    return np.stack([np.isin(t[:k], want) for t, want in zip(top, targets, strict=True)])  # [U, k]


@dataclass(frozen=True)
class Candidates:
    """One user's way to a list: the best rows by dot product, the user's own, and what follows from them."""

    best: tuple[NDArray[np.int64], NDArray[np.float32]]
    own: Own
    vector: NDArray[np.float32]
    alike: Alike = NOBODY
    companions: Alike = NOBODY

    def ranked(self, repeats: Repeats, table: NDArray[np.float32]) -> tuple[Rows, Scores]:
        """What would be served, best first, with its scores; table [N, d]."""
        return repeats.candidates(
            self.best,
            self.own,
            lambda wanted: table[wanted] @ self.vector,
            self.alike,
            companions=self.companions,
        )

    def top(self, repeats: Repeats, table: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """The first k rows of it; -1 where there are fewer."""
        rows, _ = self.ranked(repeats, table)
        return np.pad(rows[:k], (0, max(0, k - len(rows))), constant_values=-1)


@dataclass(frozen=True)
class Visitors:
    """U users as they stand: their rows, and what each has had to do with, as rows of `items`."""

    rows: Sequence[UserRow]
    own: Sequence[Own]
    items: TowerItems

    @classmethod
    def of(
        cls, rows: Sequence[UserRow], items: TowerItems, kinds: tuple[int, ...] = Repeats.kinds
    ) -> Visitors:
        """The users of these rows; events of other types than `kinds` do not count."""
        return cls(rows, [Repeats(kinds=kinds).own(row, items.rows) for row in rows], items)

    @cached_property
    def means(self) -> NDArray[np.float32]:
        """The general interest of each, [U, d]."""
        return np.stack([own.mean(self.items.table) for own in self.own])

    @torch.inference_mode()
    def queries(self, context: ContextTable | None, asked: Requests | None) -> NDArray[np.float32]:
        """Their vectors as they ask, [U, d]; as they are where either is None."""
        vectors = np.stack([row.vector for row in self.rows]).astype(np.float32)
        if context is None or asked is None:
            return vectors
        means = self.means if "interest" in context.heard else np.zeros_like(vectors)
        codes = torch.from_numpy(asked.code), torch.from_numpy(asked.elapsed(self.rows))
        found: NDArray[np.float32] = context(*map(torch.from_numpy, (vectors, means)), *codes).numpy()
        return found

    def proposed(
        self,
        context: ContextTable,
        asked: Requests | None = None,
        alike: Alike = NOBODY,
        companions: Alike = NOBODY,
    ) -> list[Candidates]:
        """What is proposed to each; the parameters as of `candidates`."""
        vectors = self.queries(context, asked)
        dots = torch.from_numpy(vectors) @ self.items.transposed  # [U, N]
        scores, best = dots.topk(min(CANDIDATES, dots.shape[1]), 1)
        return [
            Candidates((b, s), met, vector, alike, companions)
            for s, b, met, vector in zip(scores.numpy(), best.numpy(), self.own, vectors, strict=True)
        ]


def candidates(
    log: Interactions,
    users: list[int],
    towers: Towers,
    table: Float16,
    asked: Requests | None = None,
    kinds: tuple[int, ...] = Repeats.kinds,
    alike: Alike = NOBODY,
    companions: Alike = NOBODY,
) -> list[Candidates]:
    """What each user's row, folded as it is when served, proposes from the embeddings `table` [N, d].

    asked: where and when each of them asks, as far as it is known. kinds: the event types that the repeat
    term counts. alike: which new products inherit from which. companions: which known ones go together.
    """
    items = TowerItems(log.item_ids, table)
    encoder = torch_encoder(towers, items)
    found: list[Candidates] = []
    for part in _row_chunks(log, users, encoder):
        ask = asked and asked[len(found) : len(found) + len(part)]
        found += Visitors.of(part, items, kinds).proposed(towers.context, ask, alike, companions)
    return found


def _row_chunks(log: Interactions, users: list[int], encoder: Encoder) -> Iterator[list[UserRow]]:
    """The users' rows, USERS_AT_ONCE at a time; no more than ROWS_AT_ONCE are held."""
    for at in range(0, len(users), ROWS_AT_ONCE):
        rows = user_rows(log, users[at : at + ROWS_AT_ONCE], encoder)
        yield from (rows[first : first + USERS_AT_ONCE] for first in range(0, len(rows), USERS_AT_ONCE))


def lists(proposed: list[Candidates], repeats: Repeats, table: Float16) -> NDArray[np.int64]:
    """The first items of what would be served to each user, [U, 20], best first, -1 where there are fewer."""
    wide = table.astype(np.float32)
    return np.stack([each.top(repeats, wide, CUTS[-1]) for each in proposed])


def evaluate(
    proposed: list[Candidates], repeats: Repeats, targets: list[NDArray[np.int64]], table: Float16
) -> dict[str, float]:
    """Metrics of what would be served."""
    return metrics(lists(proposed, repeats, table), targets, len(table))


def evaluate_baselines(parts: Split) -> dict[str, dict[str, float]]:
    """Metrics of each baseline on the test users, under its name."""
    users = sorted(parts.targets)
    targets = [parts.targets[u] for u in users]
    return {
        name: metrics(top(baseline.fit(parts.train), users, CUTS[-1]), targets, len(parts.train.item_ids))
        for name, baseline in tqdm(DEFAULTS.items(), desc="baselines", disable=None)
    }
