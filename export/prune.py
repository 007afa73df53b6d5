"""What a bundle can do without: rare products in the lists, and channels of the visitor's state.

A pruned product keeps its row, behind those on sale, as one that has left the catalogue: a visitor's events
with it move the state as before, and it passes on what its like inherit, but no list proposes it.

A pruned channel of the recurrence is gone from the user tower, and what its block adds to the stream is
fitted anew to the channels that stay: least squares on what the blocks gave on held-out histories (He et al.
2017, "Channel pruning", section 3.2). A narrower state is another encoder. Both towers' hash, which names the
state space, changes with it, and rows are rebuilt from their rings as after any training.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.bundle import Source
from export.companions import in_rows
from export.embed import embed_by_torch
from export.handover import HeldOut
from functions.core.events import IMPRESSION
from functions.core.features import gap_bucket, value_bucket
from train.split import rows_by_user
from train.towers import Block, Shape, Towers

MULTIPLE = 8  # channels that are left: what a vector register takes
HISTORIES, LONGEST = 512, 128  # users and their last events that channels are judged by
EXPLAINED = 1e-9  # of the largest square: what is left of a channel that others say all of
PENALTY = 1e-4  # of the mean square of a channel: ridge
LEAST_SQUARE = 1e-12  # of a channel, on average


class BadPruning(ValueError):
    """A wish that would leave nothing."""


@dataclass(frozen=True)
class Prune:
    """items: recency-weighted events that a proposed product has at least; width: share of channels to go."""

    items: float = 0.0
    width: float = 0.0


@dataclass(frozen=True)
class Narrow(Shape):
    """A shape whose blocks keep `channels` numbers of state each."""

    channels: int = 0

    @property
    def state_width(self) -> int:
        return self.blocks * self.channels


def stages(source: Source, held: HeldOut, wish: Prune) -> list[tuple[str, Source, HeldOut]]:
    """The source before any pruning and after each that is wished for, with a name; the last has them all."""
    made = [("nothing pruned", source, held)]
    if wish.width:
        made.append(("width pruned", narrower(source, held, wish.width), held))
    if wish.items:
        made.append(("items pruned", *without_rare(made[-1][1], held, wish.items)))
    return made


def is_rare(
    tower_ids: NDArray[np.integer], popularity: NDArray[np.floating], least: float
) -> NDArray[np.bool_]:
    """Which rows [N] training met and the log has too few recency-weighted events of.

    What training never met is new for all that is known, and stays.
    """
    rare: NDArray[np.bool_] = (tower_ids > 0) & (popularity < least)
    return rare


def rare_behind(rare: NDArray[np.bool_], titled: int) -> tuple[NDArray[np.int64], int]:
    """The order of rows [N], of which the first `titled` may be shown: on sale, then rare, then the others as
    they are; and how many are on sale."""
    may_show = np.arange(len(rare)) < titled
    order = np.argsort(np.where(may_show, rare, 2), kind="stable")
    return order, int((may_show & ~rare).sum())


def without_rare(source: Source, held: HeldOut, least: float) -> tuple[Source, HeldOut]:
    """The source with rare products behind those on sale, and the held-out users in its rows."""
    showable = source.products.showable
    order, left = rare_behind(is_rare(source.tower_ids, source.popularity, least), showable)
    if not left:
        raise BadPruning(f"--prune-items {least}: all {showable} products have less; expected one to stay")
    ids = tuple(source.meta.item_ids[row] for row in order.tolist())
    pruned = replace(
        source,
        meta=replace(source.meta, item_ids=ids),
        products=source.products.in_order(order, left),
        tower_ids=source.tower_ids[order],
        popularity=source.popularity[order],
        demand=source.demand[order],
        companions=in_rows(source.companions, np.argsort(order), len(order)),
        pruned={**source.pruned, "items_below": least, "items": showable - left},
    )
    return pruned, held.in_order(order)


def narrower(source: Source, held: HeldOut, share: float) -> Source:
    """The source with a user tower of fewer channels in each block."""
    before = source.towers.shape.width
    channels = max(MULTIPLE, MULTIPLE * round(before * (1 - share) / MULTIPLE))
    if channels >= before:
        raise BadPruning(
            f"--prune-width {share}: leaves {channels} of {before} channels; "
            f"expected fewer, and {MULTIPLE} at least"
        )
    towers = _with_channels(source.towers, _histories(source, held), channels)
    told = {**source.pruned, "channels": channels, "channels_before": before}
    return replace(source, towers=towers, pruned=told)


@torch.no_grad()
def _with_channels(towers: Towers, histories: list[tuple[Tensor, ...]], channels: int) -> Towers:
    """Block after block: what the block gave with all channels, from those that matter most for it."""
    narrow = copy.deepcopy(towers)
    narrow.shape = Narrow(**asdict(towers.shape), channels=channels)
    narrow.user.state_channels = channels
    wanted = _run(towers, histories)
    for at, block in enumerate(narrow.user.blocks):
        assert isinstance(block, Block)
        _narrow(block, _run(narrow, histories)[at][0], wanted[at][1], channels)
    return narrow


def _run(towers: Towers, histories: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, Tensor]]:
    """Of each block the gated states [n, channels] and what it adds to the stream [n, d]."""
    given: list[list[tuple[Tensor, Tensor]]] = [[] for _ in towers.user.blocks]
    blocks = [block for block in towers.user.blocks if isinstance(block, Block)]
    hooks = [
        block.outer.register_forward_hook(
            lambda module, gated, added, seen=seen: seen.append((gated[0][0], added[0]))
        )
        for block, seen in zip(blocks, given, strict=True)
    ]
    for columns in histories:
        towers.user(*columns)
    for hook in hooks:
        hook.remove()
    return [tuple(map(torch.cat, zip(*seen, strict=True))) for seen in given]  # type: ignore[misc]


def _narrow(block: Block, gated: Tensor, wanted: Tensor, channels: int) -> None:
    """Keep the channels that say most of what is `wanted` of the block, and fit what they add to it."""
    weight = block.outer.weight  # [d, C]
    kept = _chosen(gated, wanted, channels)
    outer = nn.Linear(channels, weight.shape[0], bias=False)
    outer.weight.copy_(weight[:, kept])
    _correct(outer, gated[:, kept], wanted)
    block.outer = outer
    for name in ("decay", "value", "gate"):
        wide = getattr(block, name)
        layer = nn.Linear(wide.in_features, channels)
        layer.weight.copy_(wide.weight[kept])
        layer.bias.copy_(wide.bias[kept])
        setattr(block, name, layer)


def _chosen(gated: Tensor, wanted: Tensor, channels: int) -> Tensor:
    """Channels of [n, C] one by one, each the one that explains most of what is left of `wanted` [n, O].

    By importance alone, two channels that say the same would both stay.
    """
    x, y = gated.double(), wanted.double()
    among, towards = x.T @ x, x.T @ y  # [C, C], [C, O]: products of what the chosen ones do not explain
    least = EXPLAINED * among.diagonal().max()
    kept: list[int] = []
    for _ in range(channels):
        own = among.diagonal()
        gain = torch.where(own > least, towards.pow(2).sum(1) / own.clamp(min=least), 0.0)
        gain[kept] = -1.0
        best = int(gain.argmax())
        kept.append(best)
        if own[best] > least:
            column = among[:, best] / own[best].sqrt()
            towards = towards - torch.outer(column, towards[best] / own[best].sqrt())
            among = among - torch.outer(column, column)
    return torch.tensor(sorted(kept))


def _correct(linear: nn.Linear, inputs: Tensor, wanted: Tensor) -> None:
    """Add to a layer, by ridge regression on its inputs [n, I], what its outputs lack of `wanted` [n, O]."""
    x, lacking = inputs.double(), (wanted - linear(inputs)).double()
    squares = x.T @ x
    size = squares.diagonal().mean().clamp(min=LEAST_SQUARE)  # no gate of a block may be open
    squares += PENALTY * size * torch.eye(len(squares), dtype=x.dtype)
    linear.weight.add_(torch.linalg.solve(squares, x.T @ lacking).T)


def _histories(source: Source, held: HeldOut) -> list[tuple[Tensor, ...]]:
    """Held-out users' last events as the user tower takes them, without what they went on to: [1, T] each."""
    log = held.log
    users = list(range(min(HISTORIES, len(held.targets))))
    folded = (own[log.kind[own] != IMPRESSION] for own in rows_by_user(log, users))
    rows = [own[-LONGEST:] for own in folded if len(own) > 1]
    if not rows:
        raise BadPruning("--prune-width: no held-out user has two events; expected some to judge channels by")
    met, place = np.unique(log.item[np.concatenate(rows)], return_inverse=True)
    content = source.products.content
    made = embed_by_torch(source.towers.item, lambda at: content(met[at]), source.tower_ids[met])
    table = torch.from_numpy(made)
    bounds = np.cumsum([0, *map(len, rows)])
    histories = []
    for own, start in zip(rows, bounds, strict=False):
        gap = gap_bucket([-1, *np.maximum(np.diff(log.time_s[own]), 0).tolist()])
        codes = (log.kind[own].astype(np.int64), gap, value_bucket(log.value[own].tolist()))
        items = table[torch.from_numpy(place[start : start + len(own)])].float()
        histories.append((items[None], *(torch.from_numpy(np.asarray(code))[None] for code in codes)))
    return histories
