"""The data sets of `python -m bench quality`, and what is asked on each: read, split, judged."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.held_out import write_held_out
from bench.ranks import gains, hits, rank_by_scores
from functions.core.features import ItemFeatures
from train.baselines import Scores, top
from train.baselines.ranking import item_counts
from train.card import data_facts
from train.complete_journey import write_files
from train.log import Interactions, read_log
from train.mapping import load_mapping
from train.run import catalogue
from train.sequences import write_sequences
from train.slices import CUT, WIDE_CUT, Hits, estimate
from train.split import Split, rows_by_user, split

OURS = "Vitrine"
NEW = "new products: "  # before the names of what is asked of new products alone
VALIDATION_USERS = 1_000  # on whom a baseline's trials are judged
ROOT = Path(__file__).resolve().parents[1]
RETAIL_MAP = ROOT / "train" / "maps" / "online_retail.toml"
JOURNEY_MAP = ROOT / "train" / "maps" / "complete_journey.toml"

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
Measured = dict[str, dict[str, object]]  # part of the targets → users, and metric → mean and interval


@dataclass(frozen=True)
class Files:
    """A log as `python -m train` takes it."""

    events: Path
    items: Path | None = None
    mapping: Path | None = None

    def arguments(self, how: str) -> list[str]:
        """The command line that trains on them."""
        chosen = ["--events", str(self.events), "--split", how]
        chosen += ["--items", str(self.items)] if self.items else []
        return chosen + (["--map", str(self.mapping)] if self.mapping else [])


@dataclass(frozen=True)
class DataSet:
    """One data set: `files(source, folder)` writes what has to be written into `folder`."""

    name: str
    title: str
    how: str
    files: Callable[[Path, Path], Files]
    timeless: bool = False  # no times, and nothing is met twice: recency means nothing
    only_new: bool = False  # new products alone are asked for

    @property
    def masked(self) -> bool:
        """Whether what a user has met is out of the race, as the papers have it."""
        return self.how == "leave-one-out"


def _ml_1m(source: Path, folder: Path) -> Files:
    return Files(write_sequences(source, folder / "log.parquet"))


def _journey(source: Path, folder: Path) -> Files:
    events, items, _ = write_files(folder)
    return Files(events, items, JOURNEY_MAP)


def _retail_held_out(source: Path, folder: Path) -> Files:
    return Files(*write_held_out(source, RETAIL_MAP, folder))


DATA = {
    "ml-1m": DataSet("ml-1m", "MovieLens 1M, leave-one-out", "leave-one-out", _ml_1m, timeless=True),
    "complete-journey": DataSet("complete-journey", "Complete Journey, split by time", "time", _journey),
    "online-retail": DataSet(
        "online-retail",
        "Online Retail, split by time",
        "time",
        lambda source, folder: Files(source, mapping=RETAIL_MAP),
    ),
    "online-retail-held-out": DataSet(
        "online-retail-held-out",
        "Online Retail, a tenth of the products only in the test",
        "time",
        _retail_held_out,
        only_new=True,
    ),
}


@dataclass(frozen=True)
class Task:
    """What is asked: lists for `users`, judged by `targets`, both [U]; masked: rows out of the race, or None.

    by_rank: each user has one target, whose rank is looked for with ties against it; both ways of masking.
    """

    train: Interactions
    users: list[int]
    targets: list[Rows]
    masked: list[Rows] | None = None
    by_rank: bool = False

    @classmethod
    def of(cls, parts: Split, masked: bool) -> Task:
        """The split as it is; `masked`: whole histories are out of the race."""
        users = sorted(parts.targets)
        log = parts.train
        met = [np.unique(log.item[rows]).astype(np.int64) for rows in rows_by_user(log, users)]
        return cls(log, users, [parts.targets[user] for user in users], met if masked else None, masked)

    def on_new(self) -> Task | None:
        """The same among what `train` has no event of; None where no user has such a target."""
        known = item_counts(self.train) > 0
        wanted = [targets[~known[targets]] for targets in self.targets]
        at = [place for place, rows in enumerate(wanted) if len(rows)]
        if not at:
            return None
        masked = [np.flatnonzero(known)] * len(at)
        return Task(self.train, [self.users[p] for p in at], [wanted[p] for p in at], masked)

    def objective(self, scores: Scores) -> float:
        """NDCG@10."""
        if self.by_rank:
            return float(gains(self._ranks(scores, self.masked)).mean())
        _, values = self._hits(top(scores, self.users, CUT, self.masked)).scores()
        return float(values[f"ndcg@{CUT}"].mean())

    def measure(self, scores: Scores) -> Measured:
        """All that is reported of a method."""
        if not self.by_rank:
            return self.measure_lists(top(scores, self.users, WIDE_CUT, self.masked))
        return {
            "masked": _of_ranks(self._ranks(scores, self.masked)),
            "nothing masked": _of_ranks(self._ranks(scores, None)),
        }

    def measure_lists(self, lists: Rows) -> Measured:
        """The same of lists [U, 20]: all targets, those that the user had met before, and the others."""
        found = self._hits(lists)
        met = self._met(found)
        parts = {"all": np.ones(len(met), bool), "repeat": met, "new to the user": ~met}
        measured = {}
        for name, among in parts.items():
            has, values = found.scores(among)
            if has.any():
                measured[name] = _estimates(values)
        return measured

    def _hits(self, lists: Rows) -> Hits:
        return Hits.find(lists, self.targets, len(self.train.item_ids))

    def _met(self, found: Hits) -> NDArray[np.bool_]:
        """Whether each pair's user had met its item before, [P]."""
        width = len(self.train.item_ids)
        user = np.array(self.users, np.int64)[found.user]
        return np.isin(user * width + found.item, self.train.user.astype(np.int64) * width + self.train.item)

    def _ranks(self, scores: Scores, masked: list[Rows] | None) -> Rows:
        """Items before each user's one target, ties against it, [U]."""
        target = np.array([rows[0] for rows in self.targets])
        return rank_by_scores(scores, np.array(self.users, np.int64), target, masked)


def _of_ranks(found: Rows) -> dict[str, object]:
    values = {
        f"hr@{CUT}": hits(found),
        f"ndcg@{CUT}": gains(found),
        f"recall@{WIDE_CUT}": hits(found, WIDE_CUT),
    }
    return _estimates(values)


def _estimates(values: dict[str, Floats]) -> dict[str, object]:
    users = len(next(iter(values.values())))
    return {"users": users, **{name: asdict(estimate(each)) for name, each in values.items()}}


@dataclass(frozen=True)
class Loaded:
    """A data set in memory: `test` is asked once, `validation` decides before."""

    data: DataSet
    files: Files
    log: Interactions
    features: ItemFeatures
    parts: Split
    test: Task
    validation: Task

    @classmethod
    def read(cls, data: DataSet, source: Path, folder: Path, seed: int) -> Loaded:
        """Read, split as `python -m train` splits, and split what may be learnt from once more."""
        folder.mkdir(parents=True, exist_ok=True)
        files = data.files(source, folder)
        mapping = load_mapping(files.mapping) if files.mapping else None
        log = read_log(files.events, files.items, mapping)
        arrays = log.to_arrays()
        most = {"most_users": len(arrays.user_ids)} if data.masked else {}
        parts = split(arrays, data.how, seed=seed, **most)
        inner = split(parts.train, data.how, VALIDATION_USERS, seed)
        test, validation = (Task.of(part, data.masked) for part in (parts, inner))
        _, _, features = catalogue(log, arrays)
        return cls(data, files, arrays, features, parts, test, validation)

    @property
    def has_content(self) -> bool:
        """Whether anything is known of items beside their id."""
        of = self.features
        return any(codes.any() for codes in (of.category, of.brand, of.price, of.text))

    def facts(self) -> dict[str, object]:
        """What is said of it; `content` tells one log from another."""
        test_from = int(min(self.log.time_s.max(), self.parts.train.time_s.max() + 1))
        facts = data_facts(self.log, None if self.data.masked else test_from)
        if self.data.timeless:
            facts = {name: value for name, value in facts.items() if name not in ("first", "last")}
        digest = zlib.crc32(self.log.user.tobytes() + self.log.item.tobytes())
        return {**facts, "tested_users": len(self.test.users), "content": f"{digest:08x}"}
