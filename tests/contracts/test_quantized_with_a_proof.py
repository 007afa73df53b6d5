"""Promise 8: what quantization costs is measured before anything is published, and written down."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import export.scorers as scorers
import export.verify as proof
import functions.core.engine as engine
from export.__main__ import Unproven, main, publish
from export.levels import FP32, INT4, LEVELS, build
from export.score import quantize, quantize_nibbles
from functions.core.bundle import verify
from functions.core.context import NAMES_AT
from functions.core.errors import CorruptBundle
from tests.bundles import tiny_checkpoint
from train.checkpoint import load, save

LOOSE = 0.05  # 40 users: one rank more or less is a percent of NDCG
# Row of a weight; item row 0 is for unknown items, and those of times start with row 1.
FIRST = {"item.ids.weight": 5, "context.names": 0, "context.elapsed_factors": 0, "context.interests": 0}
SAID = {
    "item.ids.weight": "item row 4",
    "context.names": f"context table row {NAMES_AT}",
    "context.elapsed_factors": "context factors row 1",
    "context.interests": "context interests row 1",
}
Quantized = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def published(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a published bundle."""
    out = tmp_path_factory.mktemp("out")
    return out / str(publish(checkpoint, out, None, LOOSE)["id"])


def nothing_is_left(out: Path) -> bool:
    return list(out.iterdir()) == []


def rolled(table: np.ndarray) -> Quantized:
    codes, scales = quantize(table)
    return np.roll(codes, len(codes) // 2, axis=0), scales


def one_bit(table: np.ndarray) -> Quantized:
    codes, scales = quantize(table)
    return np.where(codes >= 128, 255, 1).astype(np.uint8), scales


def other_way(table: np.ndarray) -> Quantized:
    codes, scales = quantize(table)
    return codes, -scales


@pytest.mark.parametrize("defect", [rolled, one_bit, other_way])
def test_codes_that_lose_too_much_are_not_published(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: Callable[..., Quantized]
) -> None:
    monkeypatch.setattr(scorers, "quantize", defect)
    for name in ("FEWEST", "MOST_RESCORED"):  # of 60 products, 40 looked at exactly hide it
        monkeypatch.setattr(scorers, name, 10)
    monkeypatch.setattr(engine, "FEWEST", 10)
    with pytest.raises(Unproven, match=r"served: (NDCG|recall)@10"):
        publish(checkpoint, tmp_path, None, 0.005)
    assert nothing_is_left(tmp_path)


def test_a_loss_beyond_the_bound_is_named_with_both_numbers(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halved(top: np.ndarray, targets: list[np.ndarray], cut: int) -> float:
        halved.calls += 1  # type: ignore[attr-defined]
        return 0.4 if halved.calls < len(LEVELS) else 0.2  # type: ignore[attr-defined]

    halved.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(proof, "ndcg", halved)
    with pytest.raises(Unproven, match=r"served: NDCG@10 0\.20000 is 0\.5000 of fp32; expected 0\.95"):
        publish(checkpoint, tmp_path, None, LOOSE)
    assert nothing_is_left(tmp_path)


def test_int8_that_is_slower_than_fp32_is_not_published(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "CHOSEN_FROM", 0)
    monkeypatch.setattr(
        proof, "microseconds", lambda levels, vectors: dict.fromkeys(levels, 5.0) | {FP32: 4.0}
    )
    with pytest.raises(Unproven, match="int8: 5 µs a query, fp32 4"):
        publish(checkpoint, tmp_path, None, LOOSE)
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", FIRST)
def test_a_vector_that_is_not_finite_is_not_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: float, part: str
) -> None:
    folder = tiny_checkpoint(tmp_path / "checkpoint")
    towers, meta = load(folder)
    with torch.no_grad():
        dict(towers.named_parameters())[part][FIRST[part]] = number
    save(folder, towers, meta)
    assert main(["--checkpoint", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert SAID[part] in capsys.readouterr().err
    assert nothing_is_left(tmp_path / "out")


def test_the_report_in_the_bundle_has_every_level(published: Path) -> None:
    report = json.loads((published / "report" / "quantization.json").read_text())
    assert tuple(report["levels"]) == LEVELS
    for level in report["levels"].values():
        assert 0 <= level["recall"] <= 1 and level["microseconds"] > 0 and level["bytes_per_item"] > 0
    text = (published / "report" / "quantization.md").read_text()
    assert all(f"| {name} |" in text for name in LEVELS)
    assert (published / "report" / "quantization.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_that_was_changed_is_found(published: Path, tmp_path: Path) -> None:
    for path in (published / "report").iterdir():
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CorruptBundle, match="report"):
            verify(published)
        path.write_bytes(whole)
    verify(published)


def test_a_level_that_finds_nothing_is_seen_as_that(tmp_path: Path) -> None:
    """The planted defect: a level over another table than the one that it is held against."""
    rng = np.random.default_rng(2)
    table = rng.normal(size=(3000, 32)).astype(np.float16)
    truth = scorers.GroundTruth.of(rng.normal(size=(20, 32)).astype(np.float16), table)
    wide = table.astype(np.float32)
    sound = build(tmp_path, wide, table, None)  # type: ignore[arg-type]
    assert truth.recall(sound[FP32]) == 1.0
    assert truth.recall(sound[INT4]) > 0.9
    assert truth.recall(build(tmp_path, wide[::-1].copy(), table, None)[FP32]) < 0.05  # type: ignore[arg-type]


@pytest.mark.parametrize("quantized", [quantize, quantize_nibbles])
def test_a_table_of_zeros_can_be_quantized(quantized: Callable[..., Quantized]) -> None:
    codes, scales = quantized(np.zeros((3, 24), np.float16))
    assert (scales == 1).all() and len(np.unique(codes)) == 1


@pytest.mark.parametrize(
    ("numbers", "different", "holds"), [(16, 3, True), (16, 4, False), (1000, 20, True), (1000, 21, False)]
)
def test_a_rounding_that_falls_the_other_way_is_no_fault_and_many_are(
    numbers: int, different: int, holds: bool
) -> None:
    """Two percent, or three where there are few: of one product's 16 numbers a single one is six percent."""
    found, off = proof.Proof(0.005), np.zeros((1, numbers))
    off[0, :different] = 1.0
    proof._require_close(found, "item tower: row 0", off)
    assert (found.failures == []) == holds
