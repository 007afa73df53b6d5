"""Loss, checkpoint and training, on worlds whose right answer is known."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from functions.core.features import ItemFeatures, Vocabulary
from functions.core.repeats import Repeats
from train import fit as fit_module
from train.checkpoint import BadCheckpoint, Meta, load, save
from train.dataset import Batch, Windows, _met_in_the_middle, held_out, histories
from train.fit import History, fit
from train.log import Interactions
from train.loss import (
    LEAST_ROWS,
    bpr,
    expected_counts,
    full_softmax,
    negative_distribution,
    sampled_softmax,
    squared_error,
)
from train.options import Options
from train.split import Split, split
from train.towers import Shape, Towers
from train.trainer import Diverged, Trainer

ITEMS = 12
SHAPE = Shape(items=ITEMS, categories=1, brands=1, dim=16, width=16, dropout=0.0, id_dropout=0.05)
QUICK = Options(epochs=12, batch=16, window=8, learning_rate=2e-2, patience=12)


def circle(users: int = 60, length: int = 10) -> Interactions:
    """Item i is always followed by i + 1."""
    time_s, user = np.divmod(np.arange(users * length), users)
    item = (user * 5 + time_s) % ITEMS
    value = np.full(len(user), np.nan, np.float32)
    kind = np.ones(len(user), np.int8)
    ids = [f"sku-{i}" for i in range(ITEMS)]
    names = [f"u{u}" for u in range(users)]
    return Interactions(
        user.astype(np.int32), item.astype(np.int32), kind, time_s.astype(np.int64) * 60, value, names, ids
    )


def features() -> ItemFeatures:
    none = np.zeros(ITEMS, np.int64)
    return ItemFeatures(none, none, none, np.zeros((ITEMS, 32), np.int64))


def train(out: Path, options: Options = QUICK, log: Interactions | None = None) -> History:
    parts = split(circle() if log is None else log, "leave-one-out")
    return fit(parts, features(), Vocabulary(("toys",), ("acme",)), SHAPE, options, out)


def test_learns_that_each_item_is_followed_by_the_next(tmp_path: Path) -> None:
    history = train(tmp_path)
    assert history.epochs[history.best].metrics["mrr@10"] > 0.9
    towers, meta = load(tmp_path)
    assert meta.metrics == history.epochs[history.best].metrics
    assert meta.vocabulary == Vocabulary(("toys",), ("acme",)).names()
    assert (meta.item_ids[3], meta.watermark_s, towers.shape) == ("sku-3", 480, SHAPE)
    assert list((tmp_path / "tensorboard").iterdir())


def test_learns_it_from_a_sample_of_the_items_as_well(tmp_path: Path) -> None:
    history = train(tmp_path, dataclasses.replace(QUICK, full_softmax_items=0, negatives=1000, from_batch=64))
    assert history.epochs[history.best].metrics["mrr@10"] > 0.9


def test_an_event_type_that_the_log_lacks_is_served_as_other(tmp_path: Path) -> None:
    train(tmp_path, dataclasses.replace(QUICK, epochs=2))
    kinds = load(tmp_path)[0].user.kinds.weight
    assert all(torch.equal(kinds[k], kinds[0]) for k in range(2, 8))
    assert not torch.equal(kinds[1], kinds[0])


def test_content_that_no_item_has_is_not_trained_and_adds_nothing(tmp_path: Path) -> None:
    train(tmp_path, dataclasses.replace(QUICK, epochs=2))
    item = load(tmp_path)[0].item
    for table in (item.categories, item.brands, item.prices, item.texts):
        assert not table.weight.any()
    some = dataclasses.replace(features(), price=np.arange(ITEMS))
    objective = Trainer(circle(), some, SHAPE, QUICK, 10).objective
    trained = {name for name, p in objective.towers.item.named_parameters() if p.requires_grad}
    assert trained == {"ids.weight", "prices.weight", "hidden.weight", "mixed.weight"}


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
        trainer.objective.towers.user.blocks[0].outer.weight[0, 0] = float("nan")
    batch = histories(circle()).cut(QUICK.window).batch(torch.arange(4)).to(trainer.device)
    said = r"epoch 3, step 7: loss nan.*not finite: user\.blocks\.0\.outer\.weight"
    with pytest.raises(Diverged, match=said):
        trainer.step(batch, "epoch 3, step 7")


@pytest.mark.parametrize("most", [0, 100_000])
def test_half_precision_computes_nearly_the_same_loss(most: int) -> None:
    trainer = Trainer(circle(), features(), SHAPE, dataclasses.replace(QUICK, full_softmax_items=most), 10)
    trainer.objective.eval()
    batch = everything(histories(circle()).cut(QUICK.window)).to(trainer.device)
    torch.manual_seed(0)
    whole = trainer.loss(batch).item()
    torch.manual_seed(0)
    with torch.autocast(trainer.device.type, torch.bfloat16):
        half = trainer.loss(batch)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole, abs=1e-2)


@pytest.mark.parametrize(("most", "expected"), [(ITEMS, {"full"}), (ITEMS - 1, {"sampled"})])
def test_one_loss_for_every_batch_of_a_run(
    most: int, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = set()
    for name, loss in (("full", full_softmax), ("sampled", sampled_softmax)):
        monkeypatch.setattr(
            f"train.trainer.{name}_softmax", lambda *given, n=name, f=loss: used.add(n) or f(*given)
        )
    trainer = Trainer(circle(), features(), SHAPE, dataclasses.replace(QUICK, full_softmax_items=most), 10)
    for windows in (1, 4, 60):
        trainer.loss(histories(circle()).cut(QUICK.window).batch(torch.arange(windows)).to(trainer.device))
    assert used == expected


def everything(made: Windows) -> Batch:
    return made.batch(torch.arange(len(made.length)))


def test_windows_hold_every_pair_once() -> None:
    made = everything(histories(circle(users=3, length=10)).cut(4))
    assert made.item.shape == (9, 4)
    known = made.target >= 0
    assert int(known.sum()) == 3 * 9
    assert torch.equal(made.target[known], (made.item[known] + 1) % ITEMS)
    assert int((made.gap == 0).sum()) == int((~known).sum()) + 3  # padding, and each user's first event


@pytest.mark.parametrize("events", [1, 12, 40, 10_000])
def test_batches_hold_every_window_once_and_keep_to_their_size(events: int) -> None:
    logs = [circle(users=5, length=n) for n in (3, 9, 20)]
    made = histories(joined(logs)).cut(8)
    batches = made.batches(events, torch.Generator().manual_seed(1))
    assert sorted(torch.cat(batches).tolist()) == list(range(len(made.length)))
    for rows in batches:
        padded = made.batch(rows).item
        assert padded.numel() <= events or len(rows) == 1
    again = made.batches(events, torch.Generator().manual_seed(2))
    assert len(again) == len(batches)
    assert events > 1000 or any(not torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_each_epoch_cuts_long_histories_anew_and_loses_nothing() -> None:
    made = histories(joined([circle(users=1, length=n) for n in (2, 5, 9, 22)]))  # 1, 4, 8, 21 to learn from
    cuts = [made.cut(8, torch.Generator().manual_seed(seed)) for seed in range(60)]
    pieces = [list(zip(cut.start.tolist(), (cut.start + cut.length).tolist(), strict=True)) for cut in cuts]
    first, stop = made.first.tolist(), made.stop.tolist()
    for cut, some in zip(cuts, pieces, strict=True):
        assert 1 <= int(cut.length.min()) <= int(cut.length.max()) <= 8
        inside = sorted(at for a, b in some for at in range(a, b))
        assert inside == [at for a, b in zip(first, stop, strict=True) for at in range(a, b)]
    newest = {b - a for some in pieces for a, b in some if b == stop[3]}
    assert newest == set(range(1, 9))
    assert torch.equal(made.cut(8, torch.Generator().manual_seed(3)).start, cuts[3].start)
    assert made.cut(8).length.tolist()[3:] == [8, 8, 5]


def test_a_tenth_of_the_windows_are_cut_in_two_and_go_on_as_a_new_users() -> None:
    made = histories(joined([circle(users=1, length=9) for _ in range(40)]))
    cuts = [made.cut(8, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert 0.07 < np.mean([len(cut.start) - 40 for cut in cuts]) / 40 < 0.13
    for cut in cuts:
        later = ~torch.isin(cut.start, made.first)
        batch = everything(cut)
        assert not batch.gap[later, 0].any()
        assert bool((batch.gap[later, 1][cut.length[later] > 1] > 0).all())
    assert {int(n) for cut in cuts for n in cut.length} == set(range(1, 9))


def test_most_openings_are_taken_as_the_other_kind() -> None:
    made = histories(joined([circle(users=1, length=200), circle(users=1, length=5)]))
    later, first = [], []
    for seed in range(60):
        cut = _met_in_the_middle(made.cut(8), made.columns[2], torch.Generator().manual_seed(seed))
        opens = torch.isin(cut.start, made.first)
        first.append(everything(cut).gap[opens, 0] > 0)
        later.append(everything(cut).gap[~opens, 0] > 0)
    assert 0.2 < float(torch.cat(later).float().mean()) < 0.3
    assert 0.65 < float(torch.cat(first).float().mean()) < 0.85
    plain = made.cut(8)
    assert torch.equal(everything(plain).gap[:, 0] == 0, torch.isin(plain.start, made.first))


def joined(logs: list[Interactions]) -> Interactions:
    """The logs side by side, of different users."""
    users = np.concatenate([log.user + 100 * n for n, log in enumerate(logs)]).astype(np.int32)
    columns = {
        name: np.concatenate([getattr(log, name) for log in logs])
        for name in ("item", "kind", "time_s", "value")
    }
    return Interactions(users, **columns, user_ids=[], item_ids=logs[0].item_ids)


def test_held_out_windows_end_with_the_users_last_event() -> None:
    log = circle(users=3, length=10)
    held = held_out(Split(log, {2: np.array([7]), 0: np.array([1, 2])}), 4)
    assert [t.tolist() for t in held.targets] == [[1, 2], [7]]
    assert held.windows.length.tolist() == [4, 4]
    assert everything(held.windows).item.tolist() == [[6, 7, 8, 9], [4, 5, 6, 7]]


def test_a_history_shorter_than_the_window_is_held_out_whole() -> None:
    held = held_out(Split(circle(users=1, length=3), {0: np.array([3])}), 8)
    assert (held.windows.length.tolist(), everything(held.windows).item.tolist()) == ([3], [[0, 1, 2]])


def test_impressions_move_nothing_and_dismissals_are_no_target() -> None:
    log = circle(users=1, length=6)
    log.kind[2], log.kind[3] = 7, 6
    made = everything(histories(log).cut(QUICK.window))
    assert made.item.tolist() == [[0, 1, 3, 4]]
    assert made.target.tolist() == [[1, -1, 4, 5]]


def test_sizes_that_contradict_are_named(tmp_path: Path) -> None:
    log = circle()
    log.item[5] = ITEMS
    with pytest.raises(ValueError, match=f"item rows 0..{ITEMS}; expected 0..{ITEMS - 1}"):
        train(tmp_path, log=log)
    with pytest.raises(ValueError, match="11 item ids"):
        train(tmp_path, log=dataclasses.replace(circle(), item_ids=["x"] * 11))
    with pytest.raises(ValueError, match="no training pair"):
        train(tmp_path, log=circle(length=2))


@pytest.mark.parametrize("numbers", [1, 12, 2**22])
def test_loss_gradients_equal_numeric_ones(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.loss.LEAST_ROWS", 1)
    monkeypatch.setattr("train.loss.LOGITS", numbers)  # slices of one position, of two, and all at once
    torch.manual_seed(0)
    vectors, table = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 6))
    target, rows = torch.tensor([0, 2, 2, 5]), torch.tensor([1, 2, 5, 5, 3])
    log_q = torch.randn(5, dtype=torch.float64)

    def whole(v: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return full_softmax(v, e, target)

    def sample(v: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return sampled_softmax(v, e[target], target, e[rows], rows, log_q)

    def pairwise(v: torch.Tensor, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        given = v, e[target], target, e[rows], rows
        return bpr(*given), squared_error(*given)

    for loss in (whole, sample, pairwise):
        assert torch.autograd.gradcheck(loss, (vectors, table))


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
    corrected, naive, reversed_ = (
        abs(sampled_softmax(vectors, table[target], target, table[rows], rows, q) - full)
        for q in (log_q, None, -log_q)
    )
    assert corrected < 0.05
    assert 1.0 < naive < reversed_


def test_slices_of_the_full_softmax_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vectors, table, target = torch.randn(9, 4), torch.randn(6, 4), torch.arange(9) % 6
    whole = torch.nn.functional.cross_entropy(vectors @ table.T, target)
    monkeypatch.setattr("train.loss.LEAST_ROWS", 1)
    for numbers in (1, 6, 24, 100):
        monkeypatch.setattr("train.loss.LOGITS", numbers)
        torch.testing.assert_close(full_softmax(vectors, table, target), whole)


def test_the_full_softmax_of_a_hundred_thousand_items_holds_few_logits_at_a_time() -> None:
    """Of 600 positions' 60 million; by the largest of all results on the way, the gradients' among them."""
    vectors, table = torch.randn(600, 2, requires_grad=True), torch.randn(100_000, 2, requires_grad=True)
    target = torch.arange(600)
    largest = Largest()
    with largest:
        full_softmax(vectors, table, target).backward()
    assert largest.numbers <= LEAST_ROWS * len(table)
    with largest:
        F.cross_entropy(vectors @ table.T, target)
    assert largest.numbers == 600 * len(table)


class Largest(TorchDispatchMode):
    """The most numbers that any operation under it has made."""

    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(t.numel() for t in tree_leaves(made) if torch.is_tensor(t))])
        return made


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_the_full_softmax_of_large_logits_is_that_of_torch(size: float) -> None:
    """Loss and both gradients, where exp of a logit, or of its distance to the largest, is no number."""
    torch.manual_seed(0)
    vectors, table, target = size * torch.randn(9, 4), torch.randn(6, 4), torch.arange(9) % 6
    leaves = [x.clone().requires_grad_() for x in (vectors, table, vectors, table)]
    ours = full_softmax(leaves[0], leaves[1], target)
    theirs = torch.nn.functional.cross_entropy(leaves[2] @ leaves[3].T, target)
    torch.testing.assert_close(ours, theirs)
    got, want = (torch.autograd.grad(loss, at) for loss, at in ((ours, leaves[:2]), (theirs, leaves[2:])))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * float(b.abs().max()))


def test_checkpoint_round_trip_is_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    towers, meta = (
        Towers(SHAPE),
        Meta(tuple("abcdefghijkl"), {"brands": ["ß"]}, 7, {"ndcg": 0.25}, Repeats(2.0, 8.0)),
    )
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


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_that_steps_keep_is_given_back_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a ranking of 100,000 users, whose scores go and whose lists stay, takes 24 GB."""
    settings = {fit_module.M_TRIM_THRESHOLD: 128 * 1024, fit_module.M_MMAP_MAX: 65_536}  # man mallopt
    now, trimmed = settings.copy(), []

    class Glibc:
        mallopt = staticmethod(now.__setitem__)
        malloc_trim = staticmethod(trimmed.append)

    monkeypatch.setattr(fit_module.ctypes, "CDLL", lambda name: Glibc)
    with pytest.raises(KeyboardInterrupt), fit_module.freed_memory_kept():
        assert now[fit_module.M_MMAP_MAX] == 0 and now[fit_module.M_TRIM_THRESHOLD] > 2**30 and not trimmed
        raise KeyboardInterrupt
    assert now == settings and trimmed == [0]


def test_kernels_of_shapes_that_do_not_come_again_are_not_kept() -> None:
    assert {os.environ[name] for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")} == {"32"}
