"""The two towers: what an item is, and what a user's events so far say about the next one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from functions.core.events import DISMISS
from functions.core.features import GAP_BUCKETS, PRICE_BUCKETS, TEXT_BUCKETS, VALUE_BUCKETS
from train.context import ContextTable
from train.dismissals import pushed, served, signs
from train.scan import scan

KINDS = 8
STEP_ROWS = 64  # one shape for every step: the CPU's matrix product sums in another order by batch size
FASTEST, SLOWEST = 0.4, 0.999  # share of a channel's state that an event leaves, before training
LOUDNESS = 0.5  # root mean square of a vector's numbers before training


@dataclass(frozen=True)
class Shape:
    """Everything that decides the size of the weights, and the dropout they were trained with.

    items, categories and brands count what is known; each table has one more row, 0, for the unknown.
    vectors: numbers in a product's precomputed vectors; devices, slots: names that a context may have.
    """

    items: int
    categories: int
    brands: int
    dim: int = 128
    width: int = 80  # channels of a block's state
    blocks: int = 2
    dropout: float = 0.1
    id_dropout: float = 0.1
    kind_dropout: float = 0.05
    vectors: int = 0
    devices: int = 0
    slots: int = 0

    def __post_init__(self) -> None:
        for name in ("items", "dim", "width", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"shape.{name} is {getattr(self, name)}; expected at least 1")
        for name in ("categories", "brands", "vectors", "devices", "slots"):
            if getattr(self, name) < 0:
                raise ValueError(f"shape.{name} is {getattr(self, name)}; expected at least 0")
        for name in ("dropout", "id_dropout", "kind_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"shape.{name} is {getattr(self, name)}; expected a share in [0, 1)")

    @property
    def state_width(self) -> int:
        """Numbers in one user's state."""
        return self.blocks * self.width


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang & Sennrich 2019), written so that ONNX Runtime fuses it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale


class Thermometer(nn.Module):
    """Embedding of an ordered bucket: bucket k is the sum of the increments 1..k; bucket 0 ("none") is apart.

    Increments from 2 on start at zero, so a bucket that training never saw means what the one below it means.
    """

    def __init__(self, buckets: int, width: int) -> None:
        super().__init__()
        self.increments = nn.Parameter(torch.zeros(buckets, width))
        nn.init.normal_(self.increments.data[:2], std=0.02)

    def forward(self, bucket: Tensor) -> Tensor:
        steps = self.increments[1:].cumsum(0)
        return F.embedding(bucket, torch.cat([self.increments[:1], steps]))  # [..., width]


class ItemTower(nn.Module):
    """Item id and content to an embedding.

    The id is dropped at random in training, so row 0 learns to stand for an item without history and content
    alone carries it (DropoutNet, Volkovs et al. 2017). What is missing adds nothing: a vector that all items
    share would hardly show in the loss, and drift.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.id_dropout = shape.id_dropout
        self.ids = nn.Embedding(shape.items + 1, shape.dim)
        self.categories = nn.Embedding(shape.categories + 1, shape.dim, padding_idx=0)
        self.brands = nn.Embedding(shape.brands + 1, shape.dim, padding_idx=0)
        self.prices = nn.Embedding(PRICE_BUCKETS, shape.dim, padding_idx=0)
        self.texts = nn.Embedding(TEXT_BUCKETS + 1, shape.dim, padding_idx=0)
        self.hidden = nn.Linear(shape.dim, 2 * shape.dim, bias=False)
        self.mixed = nn.Linear(2 * shape.dim, shape.dim, bias=False)
        self.vectors = nn.Linear(shape.vectors, shape.dim, bias=False) if shape.vectors else None
        for table in (self.ids, self.categories, self.brands, self.prices, self.texts):
            nn.init.normal_(table.weight, std=0.05)
            nn.init.zeros_(table.weight[0])

    def forward(
        self,
        item_id: Tensor,
        category: Tensor,
        brand: Tensor,
        price: Tensor,
        text: Tensor,
        vectors: Tensor | None = None,
    ) -> Tensor:
        """int64 item_id (row + 1; 0 = never seen), category, brand, price [B], text [B, 32] -> [B, d].

        vectors: float32 [B, V], if the shape has any; without a bias, so that zeros say nothing.
        """
        if self.training:
            item_id = item_id * (torch.rand(item_id.shape, device=item_id.device) >= self.id_dropout)
        content = self.categories(category) + self.brands(brand) + self.prices(price) + self._text(text)
        if self.vectors is not None:
            content = content + self.vectors(vectors)
        return self.ids(item_id) + content + self.mixed(F.silu(self.hidden(content)))  # type: ignore[no-any-return]

    def _text(self, text: Tensor) -> Tensor:
        """Mean of the n-grams' embeddings, [B, 32] -> [B, d]; zero where there is no text."""
        if not torch.compiler.is_exporting():  # the same mean without [B, 32, d] in memory
            return F.embedding_bag(text, self.texts.weight, mode="mean", padding_idx=0)
        present = (text > 0).unsqueeze(-1).float()  # [B, 32, 1]
        return (self.texts(text) * present).sum(1) / present.sum(1).clamp(min=1.0)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Gated diagonal linear recurrence: minGRU (Feng et al. 2024, section 3.1) with Griffin's residual and,
    by ReLU here, output gate (De et al. 2024, sections 2.1 and 2.3).

    h[t] = a * h[t - 1] + (1 - a) * v, where decay a, value v and gate depend on the event alone.
    """

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.decay, self.value, self.gate = (nn.Linear(dim, width) for _ in range(3))
        self.outer = nn.Linear(width, dim, bias=False)
        self.drop = nn.Dropout(dropout)
        with torch.no_grad():  # channels that remember from two events to a thousand
            self.decay.bias.copy_(torch.logit(torch.linspace(FASTEST, SLOWEST, width)))

    def forward(self, x: Tensor) -> Tensor:
        """All positions at once: [B, T, d] -> [B, T, d]."""
        decay, value, gate = self._event(x)
        states = scan(decay, (1.0 - decay) * value)
        return x + self.drop(self.outer(states * gate))  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One event: x [B, d], state [B, W] float32 -> x and the state after it, unrounded."""
        decay, value, gate = self._event(x)
        after = value + decay * (state - value)
        return _added(x, after * gate, self.outer), after

    def _event(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.norm(x)
        decay, value, gate = (layer(normed).float() for layer in (self.decay, self.value, self.gate))
        return torch.sigmoid(decay), value, F.relu(gate)


class UserTower(nn.Module):
    """Events to user vectors: in parallel over a window to train, one event at a time to serve.

    What passes from block to block has the width of a vector, and the last of it is the vector: no readout.
    """

    signs: Tensor
    centre: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.state_channels = shape.width  # of each block; export may leave fewer
        self.kind_dropout = shape.kind_dropout
        self.drop_item, self.drop = nn.Dropout(shape.dropout), nn.Dropout(shape.dropout)
        self.item = nn.Linear(shape.dim, shape.dim, bias=False)
        self.kinds = nn.Embedding(KINDS, shape.dim)
        self.gaps = Thermometer(GAP_BUCKETS, shape.dim)
        self.values = Thermometer(VALUE_BUCKETS, shape.dim)
        self.blocks = nn.ModuleList(Block(shape.dim, shape.width, shape.dropout) for _ in range(shape.blocks))
        self.norm = RMSNorm(shape.dim)
        nn.init.constant_(self.norm.scale, LOUDNESS)
        self.register_buffer("signs", signs(KINDS), persistent=False)
        self.register_buffer("centre", torch.zeros(shape.dim))  # mean of the items, when last validated
        nn.init.normal_(self.kinds.weight, std=0.02)

    def forward(self, item: Tensor, kind: Tensor, gap: Tensor, value: Tensor) -> Tensor:
        """item [B, T, d], kind, gap, value int64 [B, T] -> vectors after every event [B, T, d], unrounded."""
        if self.training:  # an event type that training never saw is served as kind 0
            kept = torch.rand(kind.shape, device=kind.device) >= self.kind_dropout
            kind = kind * (kept | (kind == DISMISS))
        sign = F.embedding(kind, self.signs)
        x = self._event(self.drop_item(item), sign, kind, gap, value)
        for block in self.blocks:
            x = block(x)
        vector: Tensor = self.drop(self.norm(x))
        return vector if self.training else pushed(vector, item, sign, self.centre)

    def step(
        self, state: Tensor, item: Tensor, kind: Tensor, gap: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One event: state float16 [B, S], item float16 [B, d], codes int64 [B] -> state, vector, float16.

        This, rounding included, defines a user's state; `forward` only trains it. What is rounded is what is
        kept: the event's own vector is read from the state before that.
        """
        if not torch.compiler.is_exporting() and state.shape[0] != STEP_ROWS:
            return self._in_fixed_shape(state, item, kind, gap, value)
        item, sign = item.float(), F.embedding(kind, self.signs)
        after, vector = self._walk(state.float(), self._event(item, sign, kind, gap, value))
        return after.half(), served(vector, item, sign, self.centre)

    def _in_fixed_shape(self, *columns: Tensor) -> tuple[Tensor, Tensor]:
        users = columns[0].shape[0]
        missing = -users % STEP_ROWS if users else STEP_ROWS
        padded = (torch.split(_padded(c, missing), STEP_ROWS) for c in columns)
        states, vectors = zip(*(self.step(*part) for part in zip(*padded, strict=True)), strict=True)
        return torch.cat(states)[:users], torch.cat(vectors)[:users]

    def unrounded_step(
        self, state: Tensor, item: Tensor, kind: Tensor, gap: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`step` in float32 throughout: what `forward` computes, so what rounding costs can be measured."""
        sign = F.embedding(kind, self.signs)
        after, vector = self._walk(state, self._event(item, sign, kind, gap, value))
        return after, pushed(vector, item, sign, self.centre)

    def _walk(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks one after another: state [B, S], x [B, d] -> the state after them, vector [B, d]."""
        states = []
        for block, before in zip(self.blocks, torch.split(state, self.state_channels, -1), strict=True):
            assert isinstance(block, Block)
            x, after = block.step(x, before)
            states.append(after)
        return torch.cat(states, -1), self.norm(x)

    def _event(self, item: Tensor, sign: Tensor, kind: Tensor, gap: Tensor, value: Tensor) -> Tensor:
        codes = self.kinds(kind) + self.gaps(gap) + self.values(value)
        return _added(codes, item * sign, self.item)


def _added(to: Tensor, x: Tensor, layer: nn.Linear) -> Tensor:
    """to + layer(x), the layer without a bias; of rows x [B, d] it is one product, which starts from `to`."""
    return torch.addmm(to, x, layer.weight.T) if x.dim() == 2 else to + layer(x)


def _padded(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x, x.new_zeros((rows, *x.shape[1:]))])


class Towers(nn.Module):
    """Both towers under one shape. No parameter belongs to a user: size does not grow with their number."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.item = ItemTower(shape)
        self.user = UserTower(shape)
        self.context = ContextTable(shape.devices, shape.slots, shape.dim)
