"""Training: windows of users' events to a checkpoint of both towers, on one device or on several."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from functions.core.features import ItemFeatures, Vocabulary
from train.checkpoint import Meta, save
from train.dataset import Batch, held_out, histories
from train.evaluate import CUTS, metrics
from train.group import gathered, highest, is_first, of_the_first, rank, size
from train.log import Interactions
from train.options import Options
from train.split import Split
from train.stopping import Stopped, stop_signal
from train.towers import Shape, Towers
from train.trainer import Trainer

STOP_ON = "ndcg@10"
UNFINISHED = "unfinished.pt"
OTHER_SIZE = (
    "left by {before} process(es), going on with {now}: the same batches, but other random numbers (dropout, "
    "sampled items) than the run would have drawn, so other weights than it would have ended at"
)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
GLIBC_TRIM_THRESHOLD, GLIBC_MMAP_MAX = 2**17, 2**16  # its defaults


class CannotResume(ValueError):
    """What an earlier run left belongs to another log, model or options."""


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

    def better(self) -> bool:
        """Whether the newest epoch is the best so far."""
        newest, best = self.epochs[-1], self.epochs[self.best]
        return self.best < 0 or newest.metrics[STOP_ON] > best.metrics[STOP_ON]


@dataclass
class Place:
    """How far a run is: in this epoch, `step` batches are behind it, with these losses.

    losses: this process's; their mean over the group is the batches'.
    """

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)


class Run:
    """One `fit`: what it learns from, where it is, where it writes; `held` is None where nobody is ranked."""

    def __init__(
        self,
        parts: Split,
        features: ItemFeatures,
        shape: Shape,
        options: Options,
        out: Path,
        exactly: int | None = None,
    ) -> None:
        self.options, self.out, self.last = options, out, exactly or options.epochs
        self.histories = histories(parts.train, options.horizon_s)
        self.train = self.histories.cut(options.window)
        self.held = None if exactly else held_out(parts, options.window)
        self.events = self.train.batch_events(options.batch * options.window)
        self.per_epoch = len(self.train.batches(self.events, torch.Generator().manual_seed(0)))
        self.trainer = Trainer(parts.train, features, shape, options, self.per_epoch * options.epochs)
        self.histories = self.histories.to(self.trainer.device)
        self.history, self.place = History(), Place()
        self.identity = identity(parts.train, features, shape, options, exactly)
        self.saved_at = time.monotonic()

    def epochs(self) -> Iterator[int]:
        """The epochs still to come, until validation has not improved for `patience` of them."""
        while self.place.epoch < self.last:
            waited = self.place.epoch - 1 - self.history.best
            if self.held and self.history.epochs and waited >= self.options.patience:
                return
            yield self.place.epoch

    def walk(self, bar: Any, came: Callable[[], int]) -> Epoch:
        """What is left of the epoch; its mean loss and validation. Raises Stopped once a signal `came`."""
        with freed_memory_kept():
            for step, rows in enumerate(self._batches(self.place.epoch)):
                if step < self.place.step:
                    continue
                self._step(rows, step)
                bar.update()
                self.place.step = step + 1
                number, due = highest([came(), self._is_due()], self.trainer.device)
                if number or due:
                    self.save_unfinished()
                if number:
                    raise Stopped(number, self._where(step))
        losses = _mean(gathered(self.place.losses))
        self.place = Place(self.place.epoch + 1)
        return Epoch(sum(losses) / max(len(losses), 1), self._validation())

    def _validation(self) -> Mapping[str, float]:
        """How well the users held out are ranked now; the embeddings' mean is taken along either way."""
        if not self.held:
            self.trainer.embed_all()
            return {}
        top = self.trainer.top(self.held, CUTS[-1])
        return metrics(top, self.held.targets, self.trainer.towers.shape.items)

    def is_kept(self) -> bool:
        """Whether the newest epoch is the one to keep: the best so far, or without validation the last."""
        return self.history.better() if self.held else self.place.epoch == self.last

    def _where(self, step: int) -> str:
        return f"{'' if self.held else 'second training, '}epoch {self.place.epoch}, step {step}"

    def _step(self, rows: Tensor, step: int) -> None:
        part = self._part(rows)
        if part:
            where, horizon = self._where(step), self.options.average * self.per_epoch
            self.place.losses.append(part[1] * self.trainer.step(part[0], where, part[1], horizon))

    def _part(self, rows: Tensor) -> tuple[Batch, float] | None:
        """This process's part of a batch, and the weight with which the processes' mean is the batch's.

        None: nothing to learn in the whole batch, for any process. A weight of 0: nothing in this part alone;
        the process takes the step with the others, who would wait for its gradients.
        """
        rows = rows.to(self.trainer.device)
        batch = self.train.batch(rows)
        if not batch.pairs:
            return None
        if size() == 1 or len(rows) < size():
            return batch, 1.0
        mine = self.train.batch(rows[rank() :: size()])
        return mine, size() * mine.pairs / batch.pairs

    def _batches(self, epoch: int) -> list[Tensor]:
        """Cut the epoch's windows; its batches: the same for every process, and again after a restart."""
        shuffle = torch.Generator().manual_seed(self.options.seed + 1_000_003 * epoch)
        self.train = self.histories.cut(self.options.window, shuffle)
        return self.train.batches(self.events, shuffle)

    def _is_due(self) -> bool:
        return time.monotonic() - self.saved_at >= self.options.save_every_s

    def save_unfinished(self) -> None:
        """Write what a killed run goes on from; a reader sees the old file or the new one, whole.

        All processes of the group come here together: each has random numbers and losses of its own.
        """
        processes = gathered({"random": self.trainer.random(), "losses": self.place.losses})
        if is_first():
            state = {
                "identity": self.identity,
                "trainer": self.trainer.state(),
                "processes": processes,
                "place": {"epoch": self.place.epoch, "step": self.place.step},
                "epochs": [asdict(epoch) for epoch in self.history.epochs],
                "best": self.history.best,
            }
            part = self.out / f"{UNFINISHED}.part"
            torch.save(state, part)
            os.replace(part, self.out / UNFINISHED)
        self.saved_at = time.monotonic()

    def resume(self) -> bool:
        """Go on from an unfinished run; False where there is none. Raises CannotResume if it was another."""
        path = self.out / UNFINISHED
        state = of_the_first(lambda: _read(path) if path.is_file() else None)
        if state is None:
            return False
        if state["identity"] != self.identity:
            raise CannotResume(
                f"{path}: left by a run on another log, catalogue, shape or options; expected "
                f"{self.identity}, found {state['identity']}; run without --resume to start anew"
            )
        self.trainer.restore(state["trainer"])
        self.place = Place(**state["place"], losses=self._own(state["processes"]))
        self.history = History([Epoch(**epoch) for epoch in state["epochs"]], state["best"])
        return True

    def _own(self, processes: list[dict[str, Any]]) -> list[float]:
        """Take up the random numbers that this process left; its losses, of whose mean a new group knows."""
        if rank() < len(processes):
            self.trainer.restore_random(processes[rank()]["random"])
        losses: list[list[float]] = [process["losses"] for process in processes]
        if len(processes) == size():
            return losses[rank()]
        if is_first():
            print(OTHER_SIZE.format(before=len(processes), now=size()), flush=True)
        return _mean(losses)


def fit(
    parts: Split,
    features: ItemFeatures,
    vocabulary: Vocabulary,
    shape: Shape,
    options: Options,
    out: Path,
    resume: bool = False,
    *,
    watch: Callable[[History], None] | None = None,
    keep_state: bool = False,
    exactly: int | None = None,
) -> History:
    """Train both towers on `parts.train` and keep the epoch that best ranks `parts.targets`, in `out`.

    exactly: so many epochs of the schedule, of which the last is kept; nobody is ranked, and the targets are
    not looked at.
    TensorBoard logs go beside the checkpoint. features: content of the log's `item_ids`, row by row. One seed
    gives the same weights on one machine, also when the run was killed and resumed by as many processes. In a
    process group (torchrun) each process takes its part of every batch, and the first one writes. `watch` is
    called after every epoch, and on resuming; it may end the run by raising. `keep_state`: what `resume` goes
    on from is left there at the end, too. Raises ValueError on sizes that contradict each other, Diverged,
    naming epoch and step, on a loss that is not finite, CannotResume, and Stopped after a step in which
    SIGINT or SIGTERM came.
    """
    _check(parts.train, features, shape)
    run = Run(parts, features, shape, options, out, exactly)
    if resume and run.resume():
        if is_first():
            print(f"going on in epoch {run.place.epoch}, at step {run.place.step}", flush=True)
        if watch:
            watch(run.history)
    with _board(out) as board, _bar(run) as bar, stop_signal() as came:
        for number in run.epochs():
            run.history.epochs.append(run.walk(bar, came))
            _report(board, bar, number, run.history.epochs[-1])
            if run.is_kept():
                run.history.best = number
                _keep(run, parts.train, vocabulary)
            run.save_unfinished()
            if watch:
                watch(run.history)
    if is_first() and not keep_state:
        (out / UNFINISHED).unlink(missing_ok=True)
    return run.history


def _read(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _mean(losses: list[list[float]]) -> list[float]:
    """The batches' losses, of every process's part in them."""
    return [sum(parts) / len(parts) for parts in zip(*losses, strict=True)]


def _keep(run: Run, log: Interactions, vocabulary: Vocabulary) -> None:
    """Write the checkpoint of the newest epoch."""
    if is_first():
        _serve_unseen_kinds_as_other(run.trainer.towers, log)
        save(run.out, run.trainer.towers, _meta(log, vocabulary, run.history.epochs[-1]))


@torch.no_grad()
def _serve_unseen_kinds_as_other(towers: Towers, log: Interactions) -> None:
    """Give event types that the log lacks the embedding of kind 0, which dropping types has trained."""
    table = towers.user.kinds.weight
    unseen = np.setdiff1d(np.arange(len(table)), log.kind)
    table[torch.from_numpy(unseen)] = table[0].clone()


def identity(
    log: Interactions, features: ItemFeatures, shape: Shape, options: Options, exactly: int | None = None
) -> str:
    """What a run is a run of: the log, what is said of its items, the model, the options (how often it saves
    aside), and how many epochs it has, if that is fixed."""
    digest = hashlib.blake2b(digest_size=8)
    for column in (log.user, log.item, log.kind, log.time_s, log.value, log.device, log.slot):
        digest.update(b"" if column is None else column.tobytes())
    for content in features.columns().values():
        digest.update(content.tobytes())
    digest.update(repr((shape, replace(options, save_every_s=0.0), exactly)).encode())
    return digest.hexdigest()


def _board(out: Path) -> AbstractContextManager[SummaryWriter | None]:
    return SummaryWriter(str(out / "tensorboard")) if is_first() else nullcontext()


def _report(board: SummaryWriter | None, bar: Any, number: int, epoch: Epoch) -> None:
    if board:
        for name, value in {"loss": epoch.loss, **epoch.metrics}.items():
            board.add_scalar(name.replace("@", "_at_"), value, number)
    shown = {"epoch": number, "loss": f"{epoch.loss:.3f}"}
    if epoch.metrics:
        shown["validation"] = f"{epoch.metrics[STOP_ON]:.4f}"
    bar.set_postfix(shown)
    if bar.disable and is_first():  # no terminal to draw a bar on
        print(", ".join(f"{name} {value}" for name, value in shown.items()), flush=True)


def _bar(run: Run) -> Any:
    done = run.place.epoch * run.per_epoch + run.place.step
    return tqdm(total=run.per_epoch * run.last, initial=done, desc="fit", unit="batch", disable=None)


def _meta(log: Interactions, vocabulary: Vocabulary, epoch: Epoch) -> Meta:
    return Meta(tuple(map(str, log.item_ids)), vocabulary.names(), int(log.time_s.max()), epoch.metrics)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc reuse a step's large buffers instead of returning them to the kernel page by page.

    A third of a CPU step otherwise goes into page faults (docs/experiments.md). For steps alone, whose
    buffers come and go together: where small things stay between large ones that go, the heap grows without
    an end. What is not glibc is left as it is.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    assert libc is not None
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, GLIBC_MMAP_MAX)
        libc.mallopt(M_TRIM_THRESHOLD, GLIBC_TRIM_THRESHOLD)
        libc.malloc_trim(0)


def _check(log: Interactions, features: ItemFeatures, shape: Shape) -> None:
    if len(log.item_ids) != shape.items or len(features.category) != shape.items:
        raise ValueError(
            f"{len(log.item_ids)} item ids, features of {len(features.category)} items; "
            f"expected shape.items = {shape.items} of both"
        )
    if features.vectors.shape[1] != shape.vectors:
        raise ValueError(
            f"features with vectors of {features.vectors.shape[1]} numbers; "
            f"expected shape.vectors = {shape.vectors}"
        )
    if len(log.item) and not 0 <= int(log.item.min()) <= int(log.item.max()) < shape.items:
        raise ValueError(f"item rows {log.item.min()}..{log.item.max()}; expected 0..{shape.items - 1}")
