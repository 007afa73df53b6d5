"""Made-up logs unlike the ones at hand: sparse reviews, a few days of sessions, users of two events.

`python -m bench logs --out FOLDER` writes `reviews.csv` with `reviews-items.csv`, `clicks.parquet` and
`pairs.jsonl`, as shops write them: ids with blanks in any script, days alone, milliseconds, zones. They are
for `python -m train` with its defaults; what came out is in docs/experiments.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

NAMES = ("Zoë", "José", "李", "Ольга", "محمد", "Ann Lee", "naïve user", "😀")
STARS = (0.06, 0.06, 0.1, 0.2, 0.58)
DAY_S = 86_400
YEAR_2000_S, JUNE_2015_MS = 946_684_800, 1_433_221_332_000
JUNE_2025 = datetime(2025, 6, 1, tzinfo=timezone(timedelta(hours=2)))

Draw = np.random.Generator
Rows = NDArray[np.int64]


class Assortment:
    """Items of topics, some more popular than others."""

    def __init__(self, draw: Draw, items: int, topics: int, steepness: float) -> None:
        self.draw = draw
        topics = min(topics, items // 16)  # none without an item
        self.topic = draw.integers(topics, size=items)
        self.popularity = draw.permutation(zipf(items, steepness))
        self.of = [np.flatnonzero(self.topic == topic) for topic in range(topics)]
        self.sums = [
            np.cumsum(self.popularity[rows]) / max(self.popularity[rows].sum(), 1e-300) for rows in self.of
        ]

    def any_of(self, topic: int) -> int:
        """An item of the topic."""
        rows = self.of[topic]
        place = int(np.searchsorted(self.sums[topic], self.draw.random()))
        return int(rows[min(place, len(rows) - 1)])

    def successors(self, each: int) -> Rows:
        """Items of its topic that come after each item, [N, each]."""
        found = np.empty((len(self.topic), each), np.int64)
        for item, topic in enumerate(self.topic):
            places = np.searchsorted(self.sums[topic], self.draw.random(each))
            found[item] = self.of[topic][places.clip(max=len(self.of[topic]) - 1)]
        return found


def zipf(count: int, steepness: float) -> NDArray[np.float64]:
    """Shares that fall with the rank to this power."""
    shares = 1 / np.arange(1, count + 1) ** steepness
    return np.asarray(shares / shares.sum())


def main(arguments: list[str]) -> int:
    """Write all three; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench logs", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the users and items [1]")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = [round(options.share * size) for size in (5_000, 3_000, 15_000, 10_000, 40_000, 2_000)]
    write_reviews(options.out, *sizes[:2])
    write_clicks(options.out / "clicks.parquet", *sizes[2:4])
    write_pairs(options.out / "pairs.jsonl", *sizes[4:])
    return 0


def write_reviews(folder: Path, users: int, items: int, seed: int = 1) -> None:
    """About eight ratings a user over ten years, by the day; nobody rates a thing twice."""
    draw = np.random.default_rng(seed)
    sold = Assortment(draw, items, 60, 0.9)
    after = sold.successors(3)
    sold_from = draw.integers(0, 3_650, size=items) // 2
    rows: list[tuple[int, str, str, str, int]] = []
    for user in range(users):
        for day, item in _reader(draw, sold, after, sold_from):
            date = datetime.fromtimestamp(YEAR_2000_S + DAY_S * day, UTC).date().isoformat()
            stars = int(draw.choice([1, 2, 3, 4, 5], p=STARS))
            rows.append((day, f"{NAMES[user % len(NAMES)]} {user}", f"B{item:07d}", date, stars))
    rows.sort(key=lambda row: row[0])
    _, names, ids, dates, stars_of = zip(*rows, strict=True)
    log = {"user_id": names, "item_id": ids, "type": ["rating"] * len(rows), "time": dates, "value": stars_of}
    pyarrow.csv.write_csv(
        pa.table({name: list(column) for name, column in log.items()}), folder / "reviews.csv"
    )
    known = [item for item in range(items) if item % 7]
    catalogue = {
        "item_id": [f"B{item:07d}" for item in known],
        "title": [f"Thing {sold.topic[item]} no {item}" for item in known],
        "category": [f"c{sold.topic[item]}" for item in known],
    }
    pyarrow.csv.write_csv(pa.table(catalogue), folder / "reviews-items.csv")


def _reader(draw: Draw, sold: Assortment, after: Rows, sold_from: Rows) -> Iterator[tuple[int, int]]:
    """What one user rates, and when: days and items."""
    count = 3 + draw.geometric(1 / 6)
    tastes = draw.choice(len(sold.of), size=3)
    day, last = int(draw.integers(0, 3_200)), None
    met: set[int] = set()
    for _ in range(count):
        if draw.random() < 0.75:
            day += int(draw.exponential(60))
        for _ in range(5):  # tries
            if last is not None and draw.random() < 0.3:
                item = int(after[last][draw.integers(3)])
            else:
                item = sold.any_of(tastes[draw.choice(3, p=[0.6, 0.3, 0.1])])
            if item not in met and sold_from[item] <= day:
                met.add(item)
                last = item
                yield min(day, 3_999), item
                break


def write_clicks(path: Path, users: int, items: int, days: int = 9, seed: int = 2) -> None:
    """Sessions of views, some carts and purchases, in milliseconds; most visitors come once."""
    draw = np.random.default_rng(seed)
    sold = Assortment(draw, items, 400, 0.8)
    topics = np.cumsum(draw.permutation(zipf(len(sold.of), 0.7)))
    after = sold.successors(4)
    rows: list[tuple[int, int, str, int]] = []
    for user in range(users):
        tastes = np.searchsorted(topics, draw.random(2)).clip(max=len(sold.of) - 1)
        own: list[int] = []
        for _ in range(min(draw.geometric(0.62), 8)):
            time_ms = draw.random() * days * DAY_S * 1e3
            topic = tastes[0] if draw.random() < 0.75 else tastes[1]
            own += _session(draw, sold, after, topic, own, time_ms, user * 7 + 1_000_000, rows)
    rows.sort(key=lambda row: row[3])
    columns = zip(("user_id", "item_id", "type", "time"), zip(*rows, strict=True), strict=True)
    log = {name: list(column) for name, column in columns}
    log["time"] = [JUNE_2015_MS + time_ms for time_ms in log["time"]]
    pyarrow.parquet.write_table(pa.table(log), path)


def _session(
    draw: Draw,
    sold: Assortment,
    after: Rows,
    topic: int,
    own: list[int],
    time_ms: float,
    user: int,
    rows: list[tuple[int, int, str, int]],
) -> list[int]:
    """What one session looks at; its events go to `rows`."""
    seen: list[int] = []
    for _ in range(min(draw.geometric(0.3), 25)):
        chance = draw.random()
        if seen and chance < 0.35:
            item = int(after[seen[-1]][draw.integers(4)])
        elif seen and chance < 0.55:
            item = seen[draw.integers(len(seen))]
        elif own and chance < 0.65:
            item = own[draw.integers(len(own))]
        else:
            item = sold.any_of(topic)
        time_ms += draw.exponential(40e3)
        seen.append(item)
        rows.append((user, item, "view", int(time_ms)))
        if draw.random() < 0.08:
            time_ms += draw.exponential(10e3)
            rows.append((user, item, "cart", int(time_ms)))
            if draw.random() < 0.4:
                time_ms += draw.exponential(90e3)
                rows.append((user, item, "purchase", int(time_ms)))
    return seen


def write_pairs(path: Path, users: int, items: int, seed: int = 3) -> None:
    """Two events of each user, days apart."""
    draw = np.random.default_rng(seed)
    sold = Assortment(draw, items, 80, 1.0)
    first = np.searchsorted(np.cumsum(sold.popularity), draw.random(users)).clip(max=items - 1)
    begun_s = np.sort(draw.random(users)) * 60 * DAY_S
    rows: list[tuple[float, int, int, str]] = []
    for user in range(users):
        topic = int(sold.topic[first[user]]) if draw.random() < 0.8 else int(draw.integers(len(sold.of)))
        second = sold.any_of(topic)
        rows.append((float(begun_s[user]), user, int(first[user]), "view"))
        later_s = float(begun_s[user] + draw.exponential(5 * DAY_S))
        rows.append((later_s, user, second, "purchase" if draw.random() < 0.2 else "view"))
    rows.sort()
    with path.open("w", encoding="utf-8") as file:
        for time_s, user, item, kind in rows:
            when = (JUNE_2025 + timedelta(seconds=round(time_s, 3))).isoformat()
            event = {"user_id": f"visitor {user}", "item_id": f"sku/{item}", "type": kind, "time": when}
            file.write(json.dumps(event) + "\n")
