"""Training: windows of users' events to a checkpoint of both towers."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from functions.core.features import ItemFeatures, Vocabulary
from train.checkpoint import Meta, save
from train.dataset import Batch, HeldOut, Windows, held_out, windows
from train.evaluate import CUTS, metrics
from train.log import Interactions
from train.loss import expected_counts, full_softmax, negative_distribution, sampled_softmax
from train.split import Split
from train.towers import Shape, Towers

STOP_ON = "ndcg@10"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


class Diverged(RuntimeError):
    """The loss or the weights left the finite numbers."""


@dataclass(frozen=True)
class Options:
    """How to train; what the model is, is in Shape."""

    epochs: int = 30
    patience: int = 4
    batch: int = 64  # windows of full length, or as many events of shorter ones
    window: int = 200  # events
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    clip: float = 1.0
    softmax_budget: int = 2**28  # items x positions up to which every item is scored
    negatives: int = 1024
    from_batch: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch", "from_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"options.{name} is {getattr(self, name)}; expected at least 1")
        if self.window < 2:
            raise ValueError(f"options.window is {self.window}; expected at least 2 events")
        if self.negatives < 1000:
            raise ValueError(f"options.negatives is {self.negatives}; expected at least 1000")


@dataclass(frozen=True)
class Epoch:
    """One pass over the windows: mean loss, and how well the validation users were then ranked."""

    loss: float
    metrics: Mapping[str, float]


@dataclass
class History:
    """Every epoch, in order; `best` is the index of the one whose weights were saved."""

    epochs: list[Epoch] = field(default_factory=list)
    best: int = -1


class Trainer:
    """The towers, the tables they read and the optimiser, for the length of one `fit`."""

    def __init__(
        self, log: Interactions, features: ItemFeatures, shape: Shape, options: Options, steps: int
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
            _groups(self.towers, options.weight_decay), lr=options.learning_rate, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: _cosine(step, steps))

    def embed(self, rows: Tensor) -> Tensor:
        """Embeddings of item rows, [n] -> [n, d]."""
        return self.towers.item(rows + 1, *(table[rows] for table in self.tables))  # type: ignore[no-any-return]

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of all of the batch's targets."""
        known = batch.target >= 0
        target = batch.target[known]
        if self.towers.shape.items * len(target) <= self.options.softmax_budget:
            embeddings = self.embed(torch.arange(self.towers.shape.items, device=self.device))
            vectors = self._vectors(F.embedding(batch.item, embeddings), batch)[known]
            return full_softmax(vectors, embeddings, target)
        return self._sampled(batch, known, target)

    def _sampled(self, batch: Batch, known: Tensor, target: Tensor) -> Tensor:
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

    def _vectors(self, items: Tensor, batch: Batch) -> Tensor:
        return self.towers.user(items, batch.kind, batch.gap, batch.value)  # type: ignore[no-any-return]

    def step(self, batch: Batch, where: str) -> float:
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
    def top(self, held: HeldOut, k: int) -> NDArray[np.int64]:
        """The k best items of each held-out user, by the parallel form, repeats not weighed, [U, k]."""
        self.towers.eval()
        rows = torch.arange(self.towers.shape.items, device=self.device)
        embeddings = torch.cat([self.embed(part) for part in torch.split(rows, 8192)])
        best = []
        for part in torch.split(torch.arange(len(held.targets)), self.options.batch):
            batch = held.windows.batch(part).to(self.device)
            vectors = self._vectors(F.embedding(batch.item, embeddings), batch)
            last = vectors[torch.arange(len(part)), held.windows.length[part] - 1]
            best.append((last @ embeddings.T).topk(min(k, len(rows)), 1).indices.cpu())
        return torch.cat(best).numpy()


def fit(
    parts: Split, features: ItemFeatures, vocabulary: Vocabulary, shape: Shape, options: Options, out: Path
) -> History:
    """Train both towers on `parts.train` and keep the epoch that best ranks `parts.targets`, in `out`.

    TensorBoard logs go beside the checkpoint. features: content of the log's `item_ids`, row by row. One seed
    gives the same weights on one machine. Raises ValueError on sizes that contradict each other and Diverged,
    naming epoch and step, on a non-finite loss.
    """
    log = parts.train
    _check(log, features, shape)
    _keep_freed_memory()
    train, held = windows(log, options.window), held_out(log, parts.targets, options.window)
    events = train.batch_events(options.batch * options.window)
    per_epoch = len(train.batches(events, torch.Generator()))
    trainer = Trainer(log, features, shape, options, per_epoch * options.epochs)
    history, shuffle = History(), torch.Generator().manual_seed(options.seed)
    with SummaryWriter(str(out / "tensorboard")) as board, _bar(per_epoch * options.epochs) as bar:
        for number in range(options.epochs):
            loss = _pass(trainer, train, events, shuffle, number, bar)
            history.epochs.append(
                Epoch(loss, metrics(trainer.top(held, CUTS[-1]), held.targets, shape.items))
            )
            _report(board, bar, number, history.epochs[-1])
            if history.best < 0 or _better(history.epochs[-1], history.epochs[history.best]):
                history.best = number
                _serve_unseen_kinds_as_other(trainer.towers, log)
                save(out, trainer.towers, _meta(log, vocabulary, history.epochs[-1]))
            if number - history.best >= options.patience:
                break
    return history


@torch.no_grad()
def _serve_unseen_kinds_as_other(towers: Towers, log: Interactions) -> None:
    """Give event types that the log lacks the embedding of kind 0, which dropping types has trained."""
    table = towers.user.kinds.weight
    unseen = np.setdiff1d(np.arange(len(table)), log.kind)
    table[torch.from_numpy(unseen)] = table[0].clone()


def _better(epoch: Epoch, best: Epoch) -> bool:
    return epoch.metrics[STOP_ON] > best.metrics[STOP_ON]


def _pass(
    trainer: Trainer, train: Windows, events: int, shuffle: torch.Generator, number: int, bar: Any
) -> float:
    """One epoch; the mean loss of its steps."""
    losses = []
    for step, rows in enumerate(train.batches(events, shuffle)):
        batch = train.batch(rows).to(trainer.device)
        if bool((batch.target >= 0).any()):
            losses.append(trainer.step(batch, f"epoch {number}, step {step}"))
        bar.update()
    return sum(losses) / max(len(losses), 1)


def _report(board: SummaryWriter, bar: Any, number: int, epoch: Epoch) -> None:
    for name, value in {"loss": epoch.loss, **epoch.metrics}.items():
        board.add_scalar(name.replace("@", "_at_"), value, number)
    shown = {"epoch": number, "loss": f"{epoch.loss:.3f}", "validation": f"{epoch.metrics[STOP_ON]:.4f}"}
    bar.set_postfix(shown)
    if bar.disable:  # no terminal to draw a bar on
        print(", ".join(f"{name} {value}" for name, value in shown.items()), flush=True)


def _bar(steps: int) -> Any:
    return tqdm(total=steps, desc="fit", unit="batch", disable=None)


def _meta(log: Interactions, vocabulary: Vocabulary, epoch: Epoch) -> Meta:
    names = {"categories": list(vocabulary.categories), "brands": list(vocabulary.brands)}
    return Meta(tuple(map(str, log.item_ids)), names, int(log.time_s.max()), epoch.metrics)


def _keep_freed_memory() -> None:
    """Let glibc reuse a step's large buffers instead of returning them to the kernel page by page.

    A third of a CPU step otherwise goes into page faults (docs/experiments.md). Elsewhere it does nothing.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _groups(towers: Towers, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay towards zero; biases, norms and the recurrence's own decay do not."""
    matrices = [p for p in towers.parameters() if p.dim() > 1]
    rest = [p for p in towers.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _cosine(step: int, steps: int) -> float:
    warm = max(1, steps // 50)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))


def _check(log: Interactions, features: ItemFeatures, shape: Shape) -> None:
    if len(log.item_ids) != shape.items or len(features.category) != shape.items:
        raise ValueError(
            f"{len(log.item_ids)} item ids, features of {len(features.category)} items; "
            f"expected shape.items = {shape.items} of both"
        )
    if len(log.item) and not 0 <= int(log.item.min()) <= int(log.item.max()) < shape.items:
        raise ValueError(f"item rows {log.item.min()}..{log.item.max()}; expected 0..{shape.items - 1}")
