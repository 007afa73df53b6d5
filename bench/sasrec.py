"""The attention peer: SASRec's encoder in the place of the user tower, everything else as in our training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.towers import Shape


class SASRec(nn.Module):
    """Items to user vectors by causal self-attention (Kang & McAuley 2018, section III), pre-norm.

    Learned positions; `shape.blocks` blocks of one head and a pointwise feed-forward net, all of width
    `shape.dim`. It has the signature of `UserTower` and does not look at types, gaps and values.
    """

    def __init__(self, shape: Shape, window: int) -> None:
        super().__init__()
        self.scale = shape.dim**0.5
        self.positions = nn.Parameter(0.02 * torch.randn(window, shape.dim))
        self.drop = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(AttentionBlock(shape.dim, shape.dropout) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(shape.dim)

    def forward(self, item: Tensor, kind: Tensor, gap: Tensor, value: Tensor) -> Tensor:
        """item [B, T, d] -> vectors after every event [B, T, d]; raises on T over `window`."""
        x = self.drop(item * self.scale + self.positions[: item.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]


class AttentionBlock(nn.Module):
    """Causal self-attention with one head, then the pointwise feed-forward net (equations 2 to 5)."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.before_attention, self.before_net = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.projected, self.mixed = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.hidden, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        query, key, values = self.projected(self.before_attention(x)).unsqueeze(1).chunk(3, -1)
        seen = F.scaled_dot_product_attention(query, key, values, is_causal=True).squeeze(1)
        x = x + self.drop(self.mixed(seen))
        return x + self.drop(self.outer(F.relu(self.hidden(self.before_net(x)))))  # type: ignore[no-any-return]
