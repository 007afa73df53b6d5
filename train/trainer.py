"""One update after another: towers, the tables they read, the optimiser, and the averaged weights."""

from __future__ import annotations

import copy
import math
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from functions.core.features import ItemFeatures
from train.baselines.ranking import liked
from train.context import mean_so_far
from train.dataset import Batch, HeldOut
from train.log import Interactions
from train.loss import (
    Extra,
    bpr,
    expected_counts,
    full_softmax,
    negative_distribution,
    sampled_softmax,
    squared_error,
)
from train.met import RATE, RepeatTerm, first_of_its_item
from train.options import Options
from train.refit import placed_by_content
from train.towers import Shape, Towers

ITEMS_AT_ONCE = 8192
BF16_CPU = ("avx512_bf16", "amx_bf16")  # what multiplies bfloat16 in hardware
WARM_UP = 50  # one part in WARM_UP of the steps
# What oneDNN, and torch on top of it, keep of products whose shapes they have met. Batches of a log's windows
# hardly ever have the same shape twice, and their 1,024 each held gigabytes; read when first needed.
for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(cache, "32")


class Diverged(RuntimeError):
    """The loss or the weights left the finite numbers."""


class Objective(nn.Module):
    """Both towers and the loss of a batch: what is differentiated."""

    popularity: Tensor
    negatives: Tensor
    learnt: Tensor
    place: Tensor
    ids: Tensor

    def __init__(self, log: Interactions, features: ItemFeatures, shape: Shape, options: Options) -> None:
        super().__init__()
        self.options = options
        self.towers = Towers(shape)
        self.context_parts = self.towers.context.train_on(log, elapsed=options.horizon_s > 0)
        self.history = options.history if options.loss == "softmax" else "free"
        self.scores_every = options.scores_every(shape.items)
        self.repeats = RepeatTerm().requires_grad_(self.history == "weighed" and self.scores_every)
        targets = torch.from_numpy(log.item[liked(log)].astype(np.int64))  # what is shown is none
        counts = torch.bincount(targets, minlength=shape.items)
        self.register_buffer("popularity", (counts / counts.sum().clamp(min=1)).float(), persistent=False)
        self._sort_out(torch.from_numpy(~placed_by_content(log, features)), counts)
        self.content = list(features.columns())
        self._leave_out({name for name, column in features.columns().items() if not column.any()})
        for name, column in features.columns().items():
            column = np.ascontiguousarray(column)
            self.register_buffer(f"content_{name}", torch.from_numpy(column), persistent=False)

    def _sort_out(self, learnt: Tensor, counts: Tensor) -> None:
        """What nobody has met yet and content alone places has no id and is no negative.

        learnt: bool [N], the others. `place` is where a learnt row is among them.
        """
        rows = torch.arange(len(learnt))
        self.register_buffer("negatives", negative_distribution(counts, learnt), persistent=False)
        self.register_buffer("learnt", rows[learnt], persistent=False)
        self.register_buffer("place", (learnt.cumsum(0) - 1) * learnt, persistent=False)
        self.register_buffer("ids", (rows + 1) * learnt, persistent=False)

    def _leave_out(self, missing: set[str]) -> None:
        """Content that no item has adds nothing, and takes no time: its table is zero and is not trained."""
        item = self.towers.item
        tables = {"category": item.categories, "brand": item.brands, "price": item.prices, "text": item.texts}
        for name in missing & tables.keys():
            nn.init.zeros_(tables[name].weight)
            tables[name].requires_grad_(False)
        if missing == set(self.content):
            item.hidden.requires_grad_(False)
            item.mixed.requires_grad_(False)

    def embed(self, rows: Tensor) -> Tensor:
        """Embeddings of item rows, [n] -> [n, d]."""
        tables = (getattr(self, f"content_{name}")[rows] for name in self.content)
        return self.towers.item(self.ids[rows], *tables)  # type: ignore[no-any-return]

    def vectors(self, items: Tensor, batch: Batch) -> Tensor:
        """User vectors after every event, as the user then asks, [R, T, d] -> same."""
        vectors: Tensor = self.towers.user(items, batch.kind, batch.gap, batch.value)
        if not self.context_parts:
            return vectors
        context, mean = self.towers.context, torch.zeros_like(vectors)
        if "interest" in self.context_parts:
            mean = mean_so_far(items, batch.item, batch.kind)
        return context(vectors, mean, batch.context, batch.elapsed)  # type: ignore[no-any-return]

    def forward(self, batch: Batch) -> Tensor:
        """Mean loss of the batch's targets."""
        known = batch.target >= 0
        target = batch.target[known]
        if not len(target):  # another process has targets; every weight takes part, with a gradient of zero
            embeddings = self.embed(batch.item.flatten()).view(*batch.item.shape, -1)
            return self.vectors(embeddings, batch).sum() * 0.0 + self.repeats.weight * 0.0
        if self.scores_every:
            embeddings = self.embed(self.learnt)
            vectors = self.vectors(F.embedding(self.place[batch.item], embeddings), batch)[known]
            extra = self._extra(batch, known, target)
            return full_softmax(vectors, embeddings, self.place[target], extra)
        return self._sampled(batch, known, target)

    def added(self, batch: Batch, stretch: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """What the user had met by P places: rows [P, M], and what their logits gain; -inf: no choice."""
        if self.history == "weighed":
            return batch.item[stretch], self.repeats(batch)[stretch, place]
        met = batch.met(stretch, place)
        return met, torch.full(met.shape, -torch.inf, device=met.device)

    def _extra(self, batch: Batch, known: Tensor, target: Tensor) -> Extra | None:
        if self.history == "free":
            return None
        stretch, place = torch.where(known)
        rows, bonus = self.added(batch, stretch, place)
        if self.history == "masked":
            return Extra(self.place[rows], bonus.masked_fill(rows == target[:, None], 0.0))
        return Extra(self.place[rows], bonus, first_of_its_item(batch.item)[stretch])

    def _sampled(self, batch: Batch, known: Tensor, target: Tensor) -> Tensor:
        own = target[torch.randint(len(target), (self.options.from_batch,), device=target.device)]
        drawn = torch.multinomial(self.negatives, self.options.negatives, replacement=True)
        rows = torch.cat([own, drawn])  # [K]
        used, where = torch.unique(torch.cat([batch.item.flatten(), target, rows]), return_inverse=True)
        sizes = [batch.item.numel(), len(target), len(rows)]
        inputs, positives, others = torch.split(F.embedding(where, self.embed(used)), sizes)
        vectors = self.vectors(inputs.view(*batch.item.shape, -1), batch)[known]
        if self.options.loss == "softmax":
            counts = expected_counts(self.popularity, len(own), self.negatives, len(drawn))
            return sampled_softmax(vectors, positives, target, others, rows, counts[rows].log())
        pairwise = {"bpr": bpr, "squared": squared_error}[self.options.loss]
        return pairwise(vectors, positives, target, others, rows)


class Trainer:
    """The objective on its device, its optimiser and schedule, for `steps` updates in all."""

    def __init__(
        self, log: Interactions, features: ItemFeatures, shape: Shape, options: Options, steps: int
    ) -> None:
        torch.manual_seed(options.seed)
        self.device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU
        self.options = options
        self.objective = Objective(log, features, shape, options).to(self.device)
        self.averaged = copy.deepcopy(self.objective).eval().requires_grad_(False)
        self.differentiated: nn.Module = self.objective
        if torch.distributed.is_initialized():
            self.differentiated = DistributedDataParallel(self.objective)
            torch.manual_seed(options.seed + torch.distributed.get_rank())  # dropout of its own
        self.steps, self.done = steps, 0
        self.optimiser = torch.optim.AdamW(_groups(self.objective, options), fused=True)

    @property
    def towers(self) -> Towers:
        """The weights that are kept: averaged over the last steps (Izmailov et al. 2018; Polyak 1992)."""
        return self.averaged.towers

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of the batch's targets."""
        return self.differentiated(batch)  # type: ignore[no-any-return]

    def step(self, batch: Batch, where: str, share: float = 1.0, horizon: float = 0.0) -> float:
        """One update; returns the loss. Raises Diverged, saying where, on what is not finite.

        share: this process's part of the targets, times the number of processes. horizon: steps that the
        averaged weights look back.
        """
        self.objective.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=_half_pays(self.device)):
            loss = self.loss(batch)
        self._schedule()
        self.optimiser.zero_grad(set_to_none=True)
        (loss * share).backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.options.clip)
        value, length = torch.stack([loss.detach().float(), norm.float()]).tolist()
        if not math.isfinite(value) or not math.isfinite(length):
            raise Diverged(
                f"{where}: loss {value}, gradient norm {length}; expected finite numbers{self._broken()}"
            )
        self.optimiser.step()
        self.done += 1
        self._average(horizon)
        return float(value)

    @torch.no_grad()
    def _average(self, horizon: float) -> None:
        """Exponential mean, shorter at the start, where there is less to look back on."""
        pace = max(1.0 / (1.0 + horizon), 1.0 / (1.0 + self.done / 10.0))
        both = zip(self.averaged.parameters(), self.objective.parameters(), strict=True)
        kept, new = zip(*((a, b) for a, b in both if b.requires_grad), strict=True)
        torch._foreach_lerp_(kept, new, pace)

    def _schedule(self) -> None:
        warm = max(1, self.steps // WARM_UP)
        cosine = 0.5 * (1 + math.cos(math.pi * min(self.done / self.steps, 1.0)))
        for group in self.optimiser.param_groups:
            group["lr"] = group["full_rate"] * min((self.done + 1) / warm, cosine)

    def _broken(self) -> str:
        bad = [n for n, p in self.objective.towers.named_parameters() if not bool(torch.isfinite(p).all())]
        return f"; not finite: {', '.join(bad)}" if bad else ""

    @torch.no_grad()
    def embed_all(self) -> Tensor:
        """Embeddings of all items [N, d] by the averaged weights, whose mean the user tower learns."""
        rows = torch.arange(self.towers.shape.items, device=self.device)
        embeddings = torch.cat([self.averaged.embed(part) for part in torch.split(rows, ITEMS_AT_ONCE)])
        self.towers.user.centre.copy_(embeddings.mean(0))
        return embeddings

    @torch.no_grad()
    def top(self, held: HeldOut, k: int) -> NDArray[np.int64]:
        """The k best items of each held-out user, by the parallel form, [U, k].

        What training does with what the user has met is done here with the newest window of the history.
        """
        embeddings = self.embed_all()
        best = []
        for part in torch.split(torch.arange(len(held.targets)), self.options.batch):
            batch = held.windows.batch(part).to(self.device)
            vectors = self.averaged.vectors(F.embedding(batch.item, embeddings), batch)
            stretch, length = torch.arange(len(part)), held.windows.length[part]
            newest = stretch.to(self.device), length.to(self.device) - 1
            scores = vectors[newest] @ embeddings.T
            if self.averaged.history != "free":
                met, bonus = self.averaged.added(batch, *newest)
                scores.scatter_(1, met, scores.gather(1, met) + bonus)
            best.append(scores.topk(min(k, len(embeddings)), 1).indices.cpu())
        return torch.cat(best).numpy()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on and every process of a group has alike."""
        return {
            "objective": self.objective.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "done": self.done,
        }

    def random(self) -> dict[str, Tensor | None]:
        """Where this process is in its random numbers, the CPU's and the device's."""
        on_device = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {"cpu": torch.get_rng_state(), "device": on_device}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.objective.load_state_dict(state["objective"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done = state["done"]

    def restore_random(self, state: dict[str, Tensor | None]) -> None:
        """Go on in the random numbers from where `random` found them."""
        if state["cpu"] is not None:
            torch.set_rng_state(state["cpu"].cpu())
        if state["device"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device"].cpu(), self.device)


CPU = torch.device("cpu")


def _half_pays(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster here than in float32."""
    if device.type == "cuda":
        return True
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in BF16_CPU)


def _groups(objective: Objective, options: Options) -> list[dict[str, Any]]:
    """Matrices decay to zero, biases and norms do not; the items' ids learn faster, and decay alike.

    An id is met seldom; a category, a price or an n-gram in every batch, so those learn like the rest.
    """
    ids, term = objective.towers.item.ids.weight, objective.repeats.weight
    rest = [p for p in objective.parameters() if p.requires_grad and p is not ids and p is not term]
    split = [
        ([ids], options.item_rate, options.weight_decay / options.item_rate),
        ([p for p in rest if p.dim() > 1], 1.0, options.weight_decay),
        ([p for p in rest if p.dim() <= 1], 1.0, 0.0),
        ([term] if term.requires_grad else [], RATE, 0.0),
    ]
    return [
        {
            "params": parameters,
            "weight_decay": decay,
            "lr": options.learning_rate * rate,
            "full_rate": options.learning_rate * rate,
        }
        for parameters, rate, decay in split
    ]
