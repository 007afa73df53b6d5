"""Torch towers → ONNX: the item tower, and one step of the user tower with its rounding inside the graph."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from functions.core.features import TEXT_SLOTS
from functions.core.models import ITEM_TOWER, OPSET, USER_TOWER, Allowed, check_model
from train.towers import ItemTower, Towers, UserTower

EXAMPLES = 3  # rows in the traced batch; the axis is exported as dynamic


class _Step(nn.Module):
    """`UserTower.step` as a module's forward, which is what the exporter traces."""

    def __init__(self, tower: UserTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(
        self, state: Tensor, item: Tensor, kind: Tensor, gap: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.tower.step(state, item, kind, gap, value)


class _HalfTable(nn.Module):
    """An embedding table that is kept in float16 and read as float32."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = nn.Buffer(table.weight.detach().half())

    def forward(self, rows: Tensor) -> Tensor:
        return F.embedding(rows, self.weight).float()


def with_rounded_tables(tower: ItemTower) -> ItemTower:
    """The tower that the file has, for torch: a copy whose tables hold float16 values."""
    rounded = copy.deepcopy(tower)
    for table in rounded.children():
        if isinstance(table, nn.Embedding):
            table.weight.data = table.weight.data.half().float()
    return rounded


def _with_half_tables(tower: ItemTower) -> ItemTower:
    """A copy whose tables are half as large: nearly all of the file is tables, and a cold start hashes it."""
    halved = copy.deepcopy(tower)
    for name, table in tower.named_children():
        if isinstance(table, nn.Embedding):
            setattr(halved, name, _HalfTable(table))
    return halved


def export_user_tower(towers: Towers, path: Path) -> None:
    """Write the step: state [B, S], item [B, d] float16, kind, gap, value [B] → state_out, vector float16."""
    shape = towers.shape
    inputs = {
        "state": torch.zeros(EXAMPLES, shape.state_width, dtype=torch.float16),
        "item": torch.zeros(EXAMPLES, shape.dim, dtype=torch.float16),
        **_example_codes("kind", "gap", "value"),
    }
    _export(_Step(towers.user), inputs, ["state_out", "vector"], path, USER_TOWER)


def export_item_tower(towers: Towers, path: Path) -> None:
    """Write item_id, category, brand, price [B], text [B, 32] int64 → item_embedding [B, d] float32.

    The input vectors [B, V] float32 is there only where the shape has vectors. The tables are in float16, as
    the embeddings that come of them are kept.
    """
    inputs = _example_codes("item_id", "category", "brand", "price")
    inputs["text"] = torch.zeros(EXAMPLES, TEXT_SLOTS, dtype=torch.int64)
    if towers.shape.vectors:
        inputs["vectors"] = torch.zeros(EXAMPLES, towers.shape.vectors)
    _export(_with_half_tables(towers.item), inputs, ["item_embedding"], path, ITEM_TOWER)


def _example_codes(*names: str) -> dict[str, Tensor]:
    """One tensor for each name: the exporter takes inputs that are the same object for one input."""
    return {name: torch.zeros(EXAMPLES, dtype=torch.int64) for name in names}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on its own deprecations and on packages that nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def _export(
    module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path, allowed: Allowed
) -> None:
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError(f"{path}: the exporter returned no model")
    program.save(str(path), external_data=False)
    _strip_provenance(path)
    check_model(path, allowed)
    onnx.checker.check_model(str(path), full_check=True)


def _strip_provenance(path: Path) -> None:
    """Drop the source lines that the exporter notes: the file's hash names the space that states live in."""
    model = onnx.load(str(path))
    for part in (model, *_parts(model.graph)):
        del part.metadata_props[:]
        part.doc_string = ""
    path.write_bytes(model.SerializeToString(deterministic=True))


def _parts(graph: onnx.GraphProto) -> Iterator[Any]:
    """Whatever may say where it comes from, in the branches of an If too."""
    yield from (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _parts(attribute.g)
