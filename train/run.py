"""The pipeline: a behaviour log and a catalogue → a checkpoint, metrics.json and a model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist

from functions.core.alike import COMPANIONS
from functions.core.favourites import PLACES
from functions.core.features import ItemFeatures, Vocabulary, item_features
from functions.core.user_row import places_for
from train.card import CARD, data_facts, training_facts, write_card
from train.checkpoint import FILES, load, save
from train.fit import STOP_ON, UNFINISHED, CannotResume, History, fit, identity
from train.group import is_first
from train.handover import (
    CATALOGUE,
    DEMAND,
    HELD_OUT,
    POPULARITY,
    write_companions,
    write_demand,
    write_held_out,
    write_popularity,
    write_products,
    write_vectors,
)
from train.log import Interactions, Log, read_log
from train.mapping import load_mapping
from train.options import Options
from train.refit import is_refitted, refit
from train.report import Report, measure
from train.rules import facts, options_for, shape_for, softmax_items_for
from train.search import Search, start_anew
from train.sequences import is_sequences, write_sequences
from train.served import Served
from train.settings import changed, read, settings
from train.split import Split, split, start_of_test
from train.towers import Shape, Towers
from train.validation import choose
from train.vectors import padded

METRICS = "metrics.json"
WHOLE = "whole"  # folder of the second training, until its checkpoint takes the first one's place
VALIDATION_USERS = 1_000, 10_000  # at least and at most: who decide which epoch is kept
VALIDATION_SCORES = 10**8  # users times items that are ranked after every epoch, between these bounds
DECIDE_THE_LOSS = "loss", "full_softmax_items"  # what is set of them is known to the rules
MAX_NAMES = 20_000  # categories, and brands, that get a row of their own; the rarest beyond are unknown


@dataclass(frozen=True)
class Asked:
    """What `python -m train` was asked for."""

    events: str
    out: Path
    items: str | None = None
    map: str | None = None
    engine: str = "duckdb"
    split: str | None = None  # None: by time, or leave-one-out where the log has no times
    seed: int = Options.seed
    assignments: Sequence[str] = ()  # `name=value`, instead of what the rules say
    search: int = 0  # trainings
    resume: bool = False
    card: bool = True
    freshness_events: int = 0
    hold_validation: bool = False  # no second training


@dataclass(frozen=True)
class Task:
    """What there is to learn, and what it will be tested on."""

    log: Interactions
    products: list[dict[str, object]]
    features: ItemFeatures
    vocabulary: Vocabulary
    parts: Split  # what may be learnt from, and the test
    inner: Split  # what is learnt from, and the validation
    horizon_s: int  # how long the validation is; 0 where it is the next event

    @classmethod
    def of(cls, log: Log, how: str, seed: int) -> Task:
        """The validation is split from what may be learnt from as the test is from the log."""
        interactions = log.to_arrays()
        products, vocabulary, features = catalogue(log, interactions)
        parts = split(interactions, how, seed=seed)
        least, most = VALIDATION_USERS
        judges = min(max(VALIDATION_SCORES // len(interactions.item_ids), least), most)
        inner = split(parts.train, how, judges, seed)
        horizon_s = _latest_s(parts.train) - _latest_s(inner.train) if how == "time" else 0
        return cls(interactions, products, features, vocabulary, parts, inner, horizon_s)


@dataclass(frozen=True)
class Trained:
    """How the checkpoint came about."""

    shape: Shape
    options: Options
    history: History
    seconds: float
    search: Report = field(default_factory=dict)
    again_s: float | None = None  # what the second training took; None: there was none

    @property
    def epochs(self) -> int:
        """Up to the one that was best, which is as many as the second training has."""
        return self.history.best + 1


def run(asked: Asked, first: bool) -> Report:
    """Train with all processes of the group; the first one evaluates and writes, the others return nothing.

    Until everything is written the folder is no checkpoint that export accepts. Raises VitrineError,
    ValueError and OSError on what cannot be used, Diverged and Stopped as `train.fit`.
    """
    started = time.monotonic()
    asked.out.mkdir(parents=True, exist_ok=True)
    log, how = _read(asked)
    if first:
        print(log.summary(), flush=True)
    task = Task.of(log, how, asked.seed)
    shape, options = _settings(task, asked)
    if first:
        _open(asked.out)
        print(
            f"training on {len(task.inner.train.user):,} events, at most {options.epochs} epochs; "
            f"loss: {options.described(shape.items)}",
            flush=True,
        )
        if (places := places_for(shape.state_width, shape.dim)) < PLACES:
            print(
                f"state and vector have {shape.state_width + shape.dim} numbers: "
                f"a visitor's row of 2 KB has room for {places} favourites, not for {PLACES}"
            )
    trained = _searched(task, asked, shape, options) if asked.search else _fitted(task, asked, shape, options)
    if how == "time" and not asked.hold_validation:
        trained = _learn_all(task, asked, trained, first)
    if not first:
        return {}
    _refit(task.inner.train, task.features, asked.out)
    report, served = _report(task, asked, how, trained)
    report |= {"dropped": log.dropped}
    report["seconds"] = round(time.monotonic() - started, 1)
    (asked.out / METRICS).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if asked.card:
        write_card(asked.out, report)
    _close(task, trained, served, asked.out, asked.seed)
    return report


def _read(asked: Asked) -> tuple[Log, str]:
    """The log, and how it is split: a file of sequences has no times to split by."""
    mapping = load_mapping(asked.map) if asked.map else None
    if not is_sequences(asked.events):
        return read_log(asked.events, asked.items, mapping, engine=asked.engine), asked.split or "time"
    if asked.split == "time":
        raise ValueError(f"--split time: {asked.events} has no times; expected --split leave-one-out")
    with tempfile.TemporaryDirectory() as folder:
        events = write_sequences(Path(asked.events), Path(folder, "events.parquet"))
        return read_log(events, asked.items, mapping), "leave-one-out"


def _settings(task: Task, asked: Asked) -> tuple[Shape, Options]:
    """What the rules say of such a log, and what was asked for instead."""
    known = facts(task.inner.train, task.horizon_s)
    names = task.vocabulary
    given = read(asked.assignments, settings(shape_for(known), Options()))
    dim = int(given["dim"]) if "dim" in given else None  # which the width follows
    shape = replace(
        shape_for(known, len(names.categories), len(names.brands), bool(task.products), dim),
        vectors=names.vector_width,
        devices=len(names.devices),
        slots=len(names.slots),
    )
    decided = {name: given[name] for name in DECIDE_THE_LOSS if name in given}
    ruled = Options(seed=asked.seed, full_softmax_items=softmax_items_for(known, torch.cuda.is_available()))
    options = options_for(known, changed(shape, ruled, decided)[1])
    return changed(shape, options, given)


def _fitted(task: Task, asked: Asked, shape: Shape, options: Options) -> Trained:
    started = time.monotonic()
    if asked.resume and is_first() and not (asked.out / UNFINISHED).exists():
        print(f"--resume: no training in {asked.out} was ended before its end; this one begins anew")
    history = _fit(task)(shape, options, asked.out, asked.resume)
    return Trained(shape, options, history, time.monotonic() - started)


def _searched(task: Task, asked: Asked, shape: Shape, options: Options) -> Trained:
    if dist.is_initialized():
        raise ValueError(f"--search in {dist.get_world_size()} processes; expected one")
    log, given = task.inner.train, read(asked.assignments, settings(shape, options))
    key = identity(log, task.features, shape, options)
    search = Search(_fit(task), shape, options, asked.out, key, given)
    if asked.resume:
        search.resume()
    else:
        start_anew(asked.out)
    found = search.run(asked.search)
    return Trained(
        found.shape, found.options, found.history, found.trial.seconds, {"search": search.summary()}
    )


def _fit(task: Task) -> Callable[..., History]:
    """Training on the task, into a folder."""

    def fitted(
        shape: Shape,
        options: Options,
        out: Path,
        resume: bool,
        watch: Callable[[History], None] | None = None,
    ) -> History:
        return fit(
            task.inner,
            task.features,
            task.vocabulary,
            shape,
            options,
            out,
            resume,
            watch=watch,
            keep_state=True,
        )

    return fitted


def _learn_all(task: Task, asked: Asked, trained: Trained, first: bool) -> Trained:
    """Train anew on all events before the test, those of the validation too, as long as it took to be best.

    The validation has decided how long; what it decides besides, the repeat term and what is heard of a
    request, is decided on the first training's towers, which do not know it. Should another run have left
    something there, it is not gone on with.
    """
    started, log, out = time.monotonic(), task.parts.train, asked.out / WHOLE
    if first:
        print(f"training once more, on all {len(log.user):,} events before the test: {trained.epochs} epochs")

    def fitted(resume: bool) -> None:
        names, shape, options = task.vocabulary, trained.shape, trained.options
        parts = Split(log, {})
        fit(parts, task.features, names, shape, options, out, resume, keep_state=True, exactly=trained.epochs)

    try:
        fitted(asked.resume)
    except CannotResume:
        fitted(False)
    return replace(trained, again_s=time.monotonic() - started)


def _refit(log: Interactions, features: ItemFeatures, out: Path) -> Towers:
    """Place what the log has not met by its content, in the checkpoint that training left.

    Once: should a run that was interrupted later come here again, the weights are the same.
    """
    towers, meta = load(out)
    if not is_refitted(towers.item):
        refit(towers.item, log, features)
        save(out, towers, meta)
    return towers


def _complete(task: Task, served: Served, out: Path) -> Towers:
    """Make a checkpoint of the second training's towers, with what the validation chose for the first's."""
    towers = _refit(task.parts.train, task.features, out / WHOLE)
    towers.context.silence(served.towers.context.silent)
    save(out / WHOLE, towers, load(out)[1])
    return towers


def _report(task: Task, asked: Asked, how: str, trained: Trained) -> tuple[Report, Served]:
    """What metrics.json says, but for the rows that were dropped and the seconds; and what it is of."""
    out, history = asked.out, trained.history
    start_s = start_of_test(task.parts.train) if how == "time" else None
    chosen, served = choose(out, task.features, task.inner, task.parts.train, _latest_s(task.log), asked.seed)
    if trained.again_s is not None:
        served = served.retrained(_complete(task, served, out), task.features, task.parts.train)
    write_demand(out, served.expected)
    write_companions(out, served.companions)
    measured = measure(served, task.features, task.log, task.parts, how, asked.freshness_events, asked.seed)
    report = {
        **measured,
        **chosen,
        "split": how,
        "data": data_facts(task.log, start_s),
        "training": training_facts(
            trained.shape, trained.options, len(history.epochs), history.best, trained.seconds
        )
        | _second_facts(task, trained),
        "epochs": [(epoch.loss, epoch.metrics[STOP_ON]) for epoch in history.epochs],
        **trained.search,
    }
    return report, served


def _second_facts(task: Task, trained: Trained) -> Report:
    if trained.again_s is None:
        return {}
    facts = {"events": len(task.parts.train.user), "epochs": trained.epochs}
    return {"then_on_all_before_the_test": facts | {"seconds": round(trained.again_s, 1)}}


def _open(out: Path) -> None:
    """Take away what an earlier run left that says that the folder is whole."""
    for name in (CATALOGUE, POPULARITY, DEMAND, HELD_OUT, COMPANIONS, METRICS, CARD):
        (out / name).unlink(missing_ok=True)


def _close(task: Task, trained: Trained, served: Served, out: Path, seed: int) -> None:
    """Write what export needs besides the weights, and forget what an interrupted run would go on from.

    That is forgotten before the second training's weights take the place of the first's: a run that went on
    with them would choose its repeat term on a validation that they know; likewise before what is not heard
    of a context is gone. Without the products, which come last, export takes nothing.
    """
    write_vectors(out, task.features)
    write_popularity(out, task.log)
    write_held_out(out, task.parts, seed)
    for folder in (out, out / WHOLE):
        (folder / UNFINISHED).unlink(missing_ok=True)
    if trained.again_s is not None:
        for name in FILES:
            os.replace(out / WHOLE / name, out / name)
    else:
        save(out, served.towers, load(out)[1])
    shutil.rmtree(out / WHOLE, ignore_errors=True)
    write_products(out, task.products, task.log.item_ids)


def _latest_s(log: Interactions) -> int:
    return int(log.time_s.max())


def catalogue(
    log: Log, interactions: Interactions
) -> tuple[list[dict[str, object]], Vocabulary, ItemFeatures]:
    """The products of a log, the names in them, and the content of every item, also of those in no catalogue.

    interactions: `log.to_arrays()`.
    """
    products, items = log.items.to_pylist(), len(interactions.item_ids)
    vocabulary = Vocabulary(
        _names(products, "category"),
        _names(products, "brand"),
        tuple((name, values.shape[1]) for name, values in log.vectors.items()),
        tuple(interactions.devices),
        tuple(interactions.slots),
    )
    features = item_features(_padded(products, items), vocabulary, padded(log.vectors, items))
    return products, vocabulary, features


def _padded(products: list[dict[str, object]], items: int) -> list[Mapping[str, object]]:
    """The catalogue and an empty product for every item that only the log knows."""
    return [*products, *({} for _ in range(items - len(products)))]


def _names(catalogue: list[dict[str, object]], field: str) -> tuple[str, ...]:
    counts = Counter(str(product[field]) for product in catalogue if product.get(field))
    return tuple(name for name, _ in counts.most_common(MAX_NAMES))
