"""Training: windows of users' events to a checkpoint of both towers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from functions.core.features import ItemFeatures, Vocabulary, gap_bucket, value_bucket
from train.checkpoint import Meta, save
from train.loss import expected_counts, full_softmax, negative_distribution, sampled_softmax
from train.towers import Shape, Towers

IMPRESSION = 7  # never advances the state
DISMISS = 6  # advances the state, but is nothing to predict
TOP = 10


class Events(Protocol):
    """A behaviour log such as `train.log.Interactions`: n events by time; item is a row of item_ids."""

    @property
    def user(self) -> NDArray[np.int32]: ...
    @property
    def item(self) -> NDArray[np.int32]: ...
    @property
    def kind(self) -> NDArray[np.int8]: ...
    @property
    def time_s(self) -> NDArray[np.int64]: ...
    @property
    def value(self) -> NDArray[np.float32]: ...
    @property
    def item_ids(self) -> Sequence[str]: ...


class Diverged(RuntimeError):
    """The loss or the weights left the finite numbers."""


@dataclass(frozen=True)
class Options:
    """How to train; what the model is, is in Shape."""

    epochs: int = 30
    patience: int = 4
    batch: int = 128  # windows
    window: int = 200  # events
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    clip: float = 1.0
    softmax_budget: int = 2**28  # items x positions up to which every item is scored
    negatives: int = 2048
    from_batch: int = 1024
    validation_users: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch", "validation_users", "from_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"options.{name} is {getattr(self, name)}; expected at least 1")
        if self.window < 2:
            raise ValueError(f"options.window is {self.window}; expected at least 2 events")
        if self.negatives < 1000:
            raise ValueError(f"options.negatives is {self.negatives}; expected at least 1000")


@dataclass(frozen=True)
class Epoch:
    """One pass over the windows, and how well each held-out last event was then ranked among all items."""

    loss: float
    ndcg: float
    hit_rate: float
    hit_rate_1: float


@dataclass
class History:
    """Every epoch, in order; `best` is the index of the one whose weights were saved."""

    epochs: list[Epoch] = field(default_factory=list)
    best: int = -1


@dataclass(frozen=True)
class Windows:
    """R stretches of T events of one user each, padded at the end; target -1: nothing to learn."""

    item: Tensor  # int64 [R, T] rows
    kind: Tensor  # int64 [R, T]
    gap: Tensor  # int64 [R, T] buckets
    value: Tensor  # int64 [R, T] buckets
    target: Tensor  # int64 [R, T] rows, the next event's item

    def __getitem__(self, rows: Tensor) -> Windows:
        return Windows(self.item[rows], self.kind[rows], self.gap[rows], self.value[rows], self.target[rows])

    def to(self, device: torch.device) -> Windows:
        """The same windows on a device."""
        return Windows(*(t.to(device) for t in (self.item, self.kind, self.gap, self.value, self.target)))


def windows(log: Events, options: Options) -> tuple[Windows, Windows]:
    """Training and validation windows.

    Of up to `validation_users` users the last event is held out: it is no training target, and the validation
    window is the stretch before it with that one target. Raises ValueError if no user has two events.
    """
    order = np.argsort(log.user, kind="stable")
    order = order[log.kind[order] != IMPRESSION]
    user = log.user[order]
    first = np.flatnonzero(np.r_[True, user[1:] != user[:-1]]) if len(user) else np.zeros(0, np.int64)
    last = np.r_[first[1:], len(user)]
    columns = _columns(log, order, first)
    held = _held_out(columns[4], last - 1, first, options)
    train = [
        s
        for a, b in zip(first, last, strict=True)
        for s in _cut(int(a), int(b) - 1 - int(b - 1 in held), options.window)
    ]
    if not train:
        raise ValueError(f"{len(log.user)} events, no training pair; expected a user with 2 events or more")
    ends = sorted(held)
    starts = dict(zip(last - 1, first, strict=True))
    validation = [(max(int(starts[e]), e - options.window), e) for e in ends]
    return _fill(columns, train, options.window), _last_target(
        _fill(columns, validation, options.window), validation
    )


def _columns(
    log: Events, order: NDArray[np.int64], first: NDArray[np.int64]
) -> tuple[NDArray[np.int64], ...]:
    """item, kind, gap, value, and the item to be predicted after each event's predecessor (-1: none)."""
    time_s = log.time_s[order]
    gap_s = np.diff(time_s, prepend=time_s[:1]).clip(min=0)
    gap_s[first] = -1  # no event before
    item, kind = log.item[order].astype(np.int64), log.kind[order].astype(np.int64)
    wanted = np.where(kind == DISMISS, -1, item)
    return item, kind, gap_bucket(gap_s), value_bucket(log.value[order]), wanted


def _held_out(
    wanted: NDArray[np.int64], last: NDArray[np.int64], first: NDArray[np.int64], options: Options
) -> set[int]:
    """Positions of the events to validate on: last ones of users who keep a training pair without it."""
    able = last[(last - first >= 2) & (wanted[last] >= 0)]
    chosen = np.random.default_rng(options.seed).permutation(able)[: options.validation_users]
    return {int(e) for e in chosen}


def _cut(start: int, stop: int, length: int) -> Iterator[tuple[int, int]]:
    """Stretches of input positions in [start, stop), the newest ones full."""
    while stop > start:
        yield max(start, stop - length), stop
        stop -= length


def _fill(columns: tuple[NDArray[np.int64], ...], spans: list[tuple[int, int]], length: int) -> Windows:
    longest = max((b - a for a, b in spans), default=1)
    filled = [np.zeros((len(spans), min(length, longest)), np.int64) for _ in range(4)]
    target = np.full_like(filled[0], -1)
    for row, (a, b) in enumerate(spans):
        for table, column in zip(filled, columns, strict=False):
            table[row, : b - a] = column[a:b]
        target[row, : b - a] = columns[4][a + 1 : b + 1]
    return Windows(*(torch.from_numpy(t) for t in (*filled, target)))


def _last_target(filled: Windows, spans: list[tuple[int, int]]) -> Windows:
    length = torch.tensor([b - a for a, b in spans], dtype=torch.int64)
    is_last = torch.arange(filled.target.shape[1])[None, :] == length[:, None] - 1
    return Windows(filled.item, filled.kind, filled.gap, filled.value, filled.target.where(is_last, -1))


class Trainer:
    """The towers, the tables they read and the optimiser, for the length of one `fit`."""

    def __init__(
        self, log: Events, features: ItemFeatures, shape: Shape, options: Options, steps: int
    ) -> None:
        torch.manual_seed(options.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.options = options
        self.towers = Towers(shape).to(self.device)
        tables = (features.category, features.brand, features.price, features.text)
        self.tables = [torch.from_numpy(np.asarray(t, np.int64)).to(self.device) for t in tables]
        counts = torch.bincount(torch.from_numpy(log.item.astype(np.int64)), minlength=shape.items)
        self.popularity = (counts / counts.sum()).float().to(self.device)
        self.negatives = negative_distribution(counts).to(self.device)
        self.optimiser = torch.optim.AdamW(
            _groups(self.towers, options.weight_decay), lr=options.learning_rate
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: _cosine(step, steps))

    def embed(self, rows: Tensor) -> Tensor:
        """Embeddings of item rows, [n] -> [n, d]."""
        return self.towers.item(rows + 1, *(table[rows] for table in self.tables))  # type: ignore[no-any-return]

    def loss(self, batch: Windows) -> Tensor:
        """Cross-entropy of all of the batch's targets."""
        known = batch.target >= 0
        target = batch.target[known]
        if self.towers.shape.items * len(target) <= self.options.softmax_budget:
            embeddings = self.embed(torch.arange(self.towers.shape.items, device=self.device))
            vectors = self._vectors(F.embedding(batch.item, embeddings), batch)[known]
            return full_softmax(vectors, embeddings, target)
        return self._sampled(batch, known, target)

    def _sampled(self, batch: Windows, known: Tensor, target: Tensor) -> Tensor:
        own = target[torch.randint(len(target), (self.options.from_batch,), device=self.device)]
        drawn = torch.multinomial(self.negatives, self.options.negatives, replacement=True)
        candidates = torch.cat([own, drawn])  # [K]
        used = torch.cat([batch.item.flatten(), target, candidates])
        rows, where = torch.unique(used, return_inverse=True)
        embedded = F.embedding(where, self.embed(rows))
        inputs, positives, others = torch.split(embedded, [batch.item.numel(), len(target), len(candidates)])
        vectors = self._vectors(inputs.view(*batch.item.shape, -1), batch)[known]
        counts = expected_counts(self.popularity, len(own), self.negatives, len(drawn))
        return sampled_softmax(vectors, positives, target, others, candidates, counts[candidates].log())

    def _vectors(self, items: Tensor, batch: Windows) -> Tensor:
        return self.towers.user(items, batch.kind, batch.gap, batch.value)  # type: ignore[no-any-return]

    def step(self, batch: Windows, where: str) -> float:
        """One update; raises Diverged, saying where, on a loss or gradient that is not finite."""
        self.towers.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.loss(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.towers.parameters(), self.options.clip)
        value = float(loss.detach())
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            raise Diverged(
                f"{where}: loss {value}, gradient norm {float(norm)}; expected finite numbers{self._broken()}"
            )
        self.optimiser.step()
        self.schedule.step()
        return value

    def _broken(self) -> str:
        bad = [n for n, p in self.towers.named_parameters() if not bool(torch.isfinite(p).all())]
        return f"; not finite: {', '.join(bad)}" if bad else ""

    @torch.no_grad()
    def ranks(self, held: Windows) -> Tensor:
        """Rank, 0 = best, of each window's one target among all items (ties count against it), [R]."""
        self.towers.eval()
        rows = torch.arange(self.towers.shape.items, device=self.device)
        embeddings = torch.cat([self.embed(part) for part in torch.split(rows, 8192)])
        ranks = []
        for part in torch.split(torch.arange(len(held.item)), self.options.batch):
            batch = held[part].to(self.device)
            known = batch.target >= 0
            vectors = self._vectors(F.embedding(batch.item, embeddings), batch)[known]
            scores = vectors @ embeddings.T
            own = scores.gather(1, batch.target[known][:, None])
            ranks.append((scores >= own).sum(1) - 1)
        return torch.cat(ranks).cpu()


def fit(
    log: Events, features: ItemFeatures, vocabulary: Vocabulary, shape: Shape, options: Options, out: Path
) -> History:
    """Train both towers and keep the epoch with the best validation NDCG@10 in `out`, with TensorBoard logs.

    features: content of `log.item_ids`, row by row. One seed gives the same weights on one machine. Raises
    ValueError on sizes that contradict each other and Diverged, naming epoch and step, on a non-finite loss.
    """
    _check(log, features, shape)
    train, held = windows(log, options)
    if not len(held.item):
        raise ValueError(
            f"{len(log.user)} events, no user to validate on; expected one with 3 events or more"
        )
    per_epoch = -(-len(train.item) // options.batch)
    trainer = Trainer(log, features, shape, options, per_epoch * options.epochs)
    history, shuffle = History(), torch.Generator().manual_seed(options.seed)
    with SummaryWriter(str(out / "tensorboard")) as board, _bar(per_epoch * options.epochs) as bar:
        for number in range(options.epochs):
            loss = _pass(trainer, train, shuffle, number, bar)
            history.epochs.append(_epoch(loss, trainer.ranks(held)))
            _report(board, bar, number, history.epochs[-1])
            if history.best < 0 or history.epochs[-1].ndcg > history.epochs[history.best].ndcg:
                history.best = number
                save(out, trainer.towers, _meta(log, vocabulary, history.epochs[-1]))
            if number - history.best >= options.patience:
                break
    return history


def _pass(trainer: Trainer, train: Windows, shuffle: torch.Generator, number: int, bar: Any) -> float:
    losses = []
    for step, rows in enumerate(
        torch.split(torch.randperm(len(train.item), generator=shuffle), trainer.options.batch)
    ):
        batch = train[rows].to(trainer.device)
        if bool((batch.target >= 0).any()):
            losses.append(trainer.step(batch, f"epoch {number}, step {step}"))
        bar.update()
    return sum(losses) / max(len(losses), 1)


def _epoch(loss: float, ranks: Tensor) -> Epoch:
    hit = ranks < TOP
    gain = torch.where(hit, 1 / torch.log2(ranks.double() + 2), 0.0)
    return Epoch(loss, float(gain.mean()), float(hit.double().mean()), float((ranks < 1).double().mean()))


def _report(board: SummaryWriter, bar: Any, number: int, epoch: Epoch) -> None:
    for name, value in asdict(epoch).items():
        board.add_scalar(name, value, number)
    bar.set_postfix(epoch=number, loss=f"{epoch.loss:.3f}", ndcg=f"{epoch.ndcg:.4f}")


def _bar(steps: int) -> Any:
    return tqdm(total=steps, desc="fit", unit="batch", disable=None)


def _meta(log: Events, vocabulary: Vocabulary, epoch: Epoch) -> Meta:
    names = {"categories": list(vocabulary.categories), "brands": list(vocabulary.brands)}
    return Meta(tuple(map(str, log.item_ids)), names, int(log.time_s.max()), asdict(epoch))


def _groups(towers: Towers, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay towards zero; biases, norms and the recurrence's own decay do not."""
    matrices = [p for p in towers.parameters() if p.dim() > 1]
    rest = [p for p in towers.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _cosine(step: int, steps: int) -> float:
    warm = max(1, steps // 50)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))


def _check(log: Events, features: ItemFeatures, shape: Shape) -> None:
    if len(log.item_ids) != shape.items or len(features.category) != shape.items:
        raise ValueError(
            f"{len(log.item_ids)} item ids, features of {len(features.category)} items; "
            f"expected shape.items = {shape.items} of both"
        )
    if len(log.item) and not 0 <= int(log.item.min()) <= int(log.item.max()) < shape.items:
        raise ValueError(f"item rows {log.item.min()}..{log.item.max()}; expected 0..{shape.items - 1}")
