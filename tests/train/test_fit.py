"""Loss, checkpoint and training, on worlds whose right answer is known."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from functions.core.features import ItemFeatures, Vocabulary
from train.checkpoint import BadCheckpoint, Meta, load, save
from train.fit import Diverged, History, Options, Trainer, fit, windows
from train.loss import expected_counts, full_softmax, negative_distribution, sampled_softmax
from train.towers import Shape, Towers

ITEMS = 12
SHAPE = Shape(items=ITEMS, categories=1, brands=1, dim=16, width=16, dropout=0.0, id_dropout=0.05)
QUICK = Options(epochs=12, batch=16, window=8, learning_rate=2e-2, patience=12)


@dataclass(frozen=True)
class Log:
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    kind: NDArray[np.int8]
    time_s: NDArray[np.int64]
    value: NDArray[np.float32]
    item_ids: list[str]


def circle(users: int = 60, length: int = 10) -> Log:
    """Item i is always followed by i + 1."""
    time_s, user = np.divmod(np.arange(users * length), users)
    item = (user * 5 + time_s) % ITEMS
    value = np.full(len(user), np.nan, np.float32)
    kind = np.ones(len(user), np.int8)
    ids = [f"sku-{i}" for i in range(ITEMS)]
    return Log(user.astype(np.int32), item.astype(np.int32), kind, time_s.astype(np.int64) * 60, value, ids)


def features() -> ItemFeatures:
    none = np.zeros(ITEMS, np.int64)
    return ItemFeatures(none, none, none, np.zeros((ITEMS, 32), np.int64))


def train(out: Path, options: Options = QUICK, log: Log | None = None) -> History:
    return fit(log or circle(), features(), Vocabulary(("toys",), ("acme",)), SHAPE, options, out)


def test_learns_that_each_item_is_followed_by_the_next(tmp_path: Path) -> None:
    history = train(tmp_path)
    assert history.epochs[history.best].hit_rate_1 > 0.9
    towers, meta = load(tmp_path)
    assert meta.metrics["ndcg"] == history.epochs[history.best].ndcg
    assert meta.vocabulary == {"categories": ["toys"], "brands": ["acme"]}
    assert (meta.item_ids[3], meta.watermark_s, towers.shape) == ("sku-3", 540, SHAPE)
    assert list((tmp_path / "tensorboard").iterdir())


def test_learns_it_from_a_sample_of_the_items_as_well(tmp_path: Path) -> None:
    history = train(tmp_path, dataclasses.replace(QUICK, softmax_budget=0, negatives=1000, from_batch=64))
    assert history.epochs[history.best].hit_rate_1 > 0.9


def test_one_seed_gives_one_model(tmp_path: Path) -> None:
    short = dataclasses.replace(QUICK, epochs=2)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, dataclasses.replace(short, seed=seed))
    a, b, c = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_stops_when_validation_no_longer_improves(tmp_path: Path) -> None:
    frozen = dataclasses.replace(QUICK, learning_rate=0.0, patience=2)
    history = train(tmp_path, frozen)
    assert (len(history.epochs), history.best) == (3, 0)


def test_divergence_says_where() -> None:
    trainer = Trainer(circle(), features(), SHAPE, QUICK, 10)
    with torch.no_grad():
        trainer.towers.user.readout.weight[0, 0] = float("nan")
    batch = windows(circle(), QUICK)[0][torch.arange(4)].to(trainer.device)
    with pytest.raises(Diverged, match=r"epoch 3, step 7: loss nan.*not finite: user\.readout\.weight"):
        trainer.step(batch, "epoch 3, step 7")


@pytest.mark.parametrize("budget", [0, 2**28])
def test_half_precision_computes_nearly_the_same_loss(budget: int) -> None:
    trainer = Trainer(circle(), features(), SHAPE, dataclasses.replace(QUICK, softmax_budget=budget), 10)
    trainer.towers.eval()
    batch = windows(circle(), QUICK)[0].to(trainer.device)
    torch.manual_seed(0)
    whole = trainer.loss(batch).item()
    torch.manual_seed(0)
    with torch.autocast(trainer.device.type, torch.bfloat16):
        half = trainer.loss(batch)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole, abs=1e-2)


def test_windows_hold_every_pair_once_and_never_the_held_out_one() -> None:
    log = circle(users=3, length=10)
    made, held = windows(log, dataclasses.replace(QUICK, window=4, validation_users=2))
    assert int((made.target >= 0).sum()) == 3 * 9 - 2
    known = made.target >= 0
    assert torch.equal(made.target[known], (made.item[known] + 1) % ITEMS)
    assert (held.target >= 0).sum(1).tolist() == [1, 1]
    assert held.item.shape == (2, 4)
    assert int((made.gap == 0).sum()) == int((~known).sum()) + 3  # padding, and each user's first event


def test_impressions_move_nothing_and_dismissals_are_no_target() -> None:
    log = circle(users=1, length=6)
    log.kind[2], log.kind[3] = 7, 6
    made, held = windows(log, QUICK)
    assert made.item.tolist() == [[0, 1, 3]]
    assert made.target.tolist() == [[1, -1, 4]]
    assert int(held.target.max()) == 5


def test_sizes_that_contradict_are_named(tmp_path: Path) -> None:
    log = circle()
    log.item[5] = ITEMS
    with pytest.raises(ValueError, match=f"item rows 0..{ITEMS}; expected 0..{ITEMS - 1}"):
        train(tmp_path, log=log)
    with pytest.raises(ValueError, match="11 item ids"):
        train(tmp_path, log=dataclasses.replace(circle(), item_ids=["x"] * 11))
    with pytest.raises(ValueError, match="no training pair"):
        train(tmp_path, log=circle(length=1))


def test_loss_gradients_equal_numeric_ones() -> None:
    torch.manual_seed(0)
    vectors, table = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 6))
    target, rows = torch.tensor([0, 2, 2, 5]), torch.tensor([1, 2, 5, 5, 3])
    log_q = torch.randn(5, dtype=torch.float64)

    def whole(v: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return full_softmax(v, e, target)

    def sample(v: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return sampled_softmax(v, e[target], target, e[rows], rows, log_q)

    assert torch.autograd.gradcheck(whole, (vectors, table))
    assert torch.autograd.gradcheck(sample, (vectors, table))


def test_every_item_once_as_candidate_is_the_full_softmax() -> None:
    torch.manual_seed(0)
    vectors, table, target = torch.randn(9, 4), torch.randn(6, 4), torch.arange(9) % 6
    sampled = sampled_softmax(vectors, table[target], target, table, torch.arange(6), torch.zeros(6))
    torch.testing.assert_close(sampled, full_softmax(vectors, table, target))


def test_correction_brings_the_sampled_loss_to_the_full_one() -> None:
    torch.manual_seed(0)
    items = 200
    popularity = 1.0 / torch.arange(1, items + 1)
    popularity = popularity / popularity.sum()
    negatives = negative_distribution(popularity * 10_000)
    table, vectors = 0.5 * torch.randn(items, 8), torch.randn(256, 8)
    target = torch.multinomial(popularity, 256, replacement=True)
    rows = torch.cat([torch.multinomial(popularity, 1000, True), torch.multinomial(negatives, 2000, True)])
    log_q = expected_counts(popularity, 1000, negatives, 2000)[rows].log()
    full = full_softmax(vectors, table, target)
    corrected, naive = (
        sampled_softmax(vectors, table[target], target, table[rows], rows, q) for q in (log_q, None)
    )
    assert abs(corrected - full) < 0.05
    assert abs(naive - full) > 1.0


def test_checkpoint_round_trip_is_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    towers, meta = Towers(SHAPE), Meta(tuple("abcdefghijkl"), {"brands": ["ß"]}, 7, {"ndcg": 0.25})
    save(tmp_path, towers, meta)
    read, read_meta = load(tmp_path)
    assert read_meta == meta
    assert not read.training
    for name, tensor in towers.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[name])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("shape.json", {"extra": 1}, "extra"),
        ("shape.json", {"width": 32}, "size mismatch"),
        ("shape.json", {"items": 13}, "size mismatch"),
        ("meta.json", {"epoch": 1}, "epoch"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused(
    tmp_path: Path, name: str, change: dict[str, int], message: str
) -> None:
    save(tmp_path, Towers(SHAPE), Meta(tuple("abcdefghijkl")))
    path = tmp_path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadCheckpoint, match=message):
        load(tmp_path)


def test_missing_files_and_ids_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"shape\.json"):
        load(tmp_path)
    with pytest.raises(BadCheckpoint, match="11 item ids; expected 12"):
        save(tmp_path, Towers(SHAPE), Meta(tuple("abcdefghijk")))
    save(tmp_path, Towers(SHAPE), Meta(tuple("abcdefghijkl")))
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"weights\.safetensors: missing"):
        load(tmp_path)
