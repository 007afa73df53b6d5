"""Fresh against frozen state, in worlds whose right answer is known; and that nothing leaks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from functions.core.alike import Alike
from functions.core.features import Int64
from functions.core.fold import Encoder
from functions.core.repeats import Repeats
from functions.core.user_row import Float16
from train import prequential as module
from train.__main__ import main as train_main
from train.context import LOUDNESS, ContextTable, Requests
from train.evaluate import TowerItems, user_rows
from train.log import Interactions, onto
from train.prequential import FROZEN_S, STATES, Ranking, Walk, Walked, main, prequential, summary

ITEMS = 24
TABLE = np.eye(ITEMS, dtype=np.float16)
HOUR_S, DAY_S = FROZEN_S["hour"], FROZEN_S["day"]
MONDAY_S = 20_000 * DAY_S
START_S = MONDAY_S + 10 * DAY_S
FRESH, HOUR, DAY, NEVER = range(4)


def log(user: list[int], item: list[int], time_s: list[int], kind: list[int] | None = None) -> Interactions:
    n = len(user)
    return Interactions(
        np.array(user, np.int32),
        np.array(item, np.int32),
        np.array(kind or [1] * n, np.int8),
        np.array(time_s, np.int64),
        np.full(n, np.nan, np.float32),
        [f"u{u}" for u in range(max(user) + 1)],
        [f"i{i}" for i in range(ITEMS)],
    )


def one_user(times_s: list[int]) -> Interactions:
    """A history of one event a second before the start, then these; items 0, 1, 2, …"""
    n = 1 + len(times_s)
    return log([0] * n, [i % ITEMS for i in range(n)], [START_S - 1, *(START_S + t for t in times_s)])


def many_users(users: int = 40, length: int = 30, gap_s: int = 1_200) -> Interactions:
    """Whoever had item i has i + 1 next, every `gap_s` seconds; the last third is after the start."""
    turn, user = np.divmod(np.arange(users * length), users)
    time_s = START_S + (turn - 2 * length // 3) * gap_s
    return log(user.tolist(), ((user * 5 + turn) % ITEMS).tolist(), time_s.tolist())


def successor(item_ids: list[str], table: Float16 = TABLE) -> Encoder:
    """The encoder of a world in which item i is always followed by i + 1."""

    def step(state: Float16, item: Float16, kind: Int64, gap: Int64, value: Int64) -> tuple[Float16, Float16]:
        return item, np.roll(item, 1, axis=1)

    return Encoder("0" * 16, ITEMS, ITEMS, step, TowerItems(item_ids, table))


def walked(events: Interactions, start_s: int = START_S, **options: Any) -> Walked:
    return prequential(events, start_s, successor(events.item_ids), TABLE, **options)


def test_fresh_state_always_knows_what_comes_next_and_frozen_state_does_not() -> None:
    found = walked(many_users())
    assert found.place.shape == (400, 4)
    assert (found.place[:, FRESH] == 0).all()
    for state in (HOUR, DAY, NEVER):
        stale = found.since[:, state] > 0
        assert (found.place[~stale, state] == 0).all()
        assert (found.place[stale, state] > 0).all()
    report: Any = summary(found)
    for name, of in report["missed"].items():
        assert of["events"] == (found.since[:, STATES.index(name)] > 0).sum() > 0
        assert of["fresh"]["hr@10"]["mean"] == 1.0 > of["frozen"]["ndcg@10"]["mean"]
    ndcg = [report["states"][state]["ndcg@10"]["mean"] for state in STATES]
    assert ndcg[FRESH] == 1.0 > ndcg[HOUR] > ndcg[DAY] >= ndcg[NEVER]
    assert report["staleness"]["hour"]["0"]["gain"]["ndcg@10"]["mean"] == 0.0
    assert report["gain"]["never"]["hr@10"]["low"] > 0


def test_an_hour_and_a_day_begin_at_full_hours_and_days() -> None:
    """By hand: events at 0:10, 0:50, 1:00, 1:59:59, 2:00, and the next day at 0:00 and 0:01."""
    times = [600, 3_000, HOUR_S, 2 * HOUR_S - 1, 2 * HOUR_S, DAY_S, DAY_S + 60]
    since = walked(one_user(times)).since
    assert since[:, FRESH].tolist() == [0] * 7
    assert since[:, HOUR].tolist() == [0, 1, 0, 1, 0, 0, 1]
    assert since[:, DAY].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert since[:, NEVER].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_in_the_middle_of_an_hour_all_states_start_alike() -> None:
    events = one_user([1_800, 1_900, HOUR_S])
    found = walked(events, START_S + 1_800)
    assert found.since[:, [HOUR, DAY, NEVER]].tolist() == [[0, 0, 0], [1, 1, 1], [0, 2, 2]]
    assert found.seen.tolist() == [1, 2, 3]


def test_what_is_ranked_has_the_general_interest() -> None:
    """By hand: nothing counts but the mean of what was met, and an item's score is its share."""
    events = log([0, 0, 0, 1], [1, 1, 2, 3], [START_S + second for second in range(4)])
    context = ContextTable(0, 0, ITEMS).eval()
    with torch.no_grad():
        context.elapsed_factors[0], context.interests[0] = -1.0, 1 / LOUDNESS
    popular = np.zeros(ITEMS, np.float32)
    ranking = Ranking(events.item_ids, TABLE, Repeats(), popular, context=context)
    rows = user_rows(events, [0, 1], successor(events.item_ids))
    scores = ranking.scores(rows, Requests.at(START_S + 60, 2))
    assert scores[0].tolist() == pytest.approx([0, 2 / 3, 1 / 3, *[0] * (ITEMS - 3)])
    assert scores[1].tolist() == pytest.approx([0, 0, 0, 1, *[0] * (ITEMS - 4)])


class LeakingWalk(Walk):
    """The bug that this evaluation must not have: it learns an event before it looks for it."""

    def step(self, turn: int, users: list[int]) -> list[module.Moment]:
        self.learn(turn, users)
        return [self.look(u, self.acts[u][turn]) for u in users]


def test_a_planted_leak_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that repeats its last item is always wrong, unless it has learnt the answer."""
    events = many_users()

    def echo(state: Float16, item: Float16, kind: Int64, gap: Int64, value: Int64) -> tuple[Float16, Float16]:
        return item, item

    encoder = replace(successor(events.item_ids), step=echo)
    honest = prequential(events, START_S, encoder, TABLE)
    assert (honest.place[:, FRESH] > 0).all()
    monkeypatch.setattr(module, "Walk", LeakingWalk)
    assert (prequential(events, START_S, encoder, TABLE).place[:, FRESH] == 0).all()


def test_the_future_changes_nothing_before_it() -> None:
    """Whatever happens from some moment on, every place before it stays."""
    events = many_users()
    late = events.time_s >= START_S + 6_000
    other = replace(events, item=np.where(late, 0, events.item).astype(np.int32))
    a, b = walked(events), walked(other)
    early = events.time_s[a.event] < START_S + 6_000
    assert early.any() and not early.all()
    assert (a.event == b.event).all()
    assert (a.place[early] == b.place[early]).all()
    assert (a.place[~early] != b.place[~early]).any()


def test_one_basket_does_not_help_to_find_itself() -> None:
    """Three items in one second: each is looked for by the row before them all."""
    events = log([0] * 4, [0, 1, 2, 3], [START_S - 1, START_S, START_S, START_S])
    found = walked(events)
    assert found.since.tolist() == [[0] * 4] * 3
    assert found.seen.tolist() == [1, 1, 1]
    assert (found.place == found.place[:, :1]).all()
    assert found.place[:, FRESH].argmin() == 0 == found.place[0, FRESH]
    assert found.place[1, FRESH] > 0 < found.place[2, FRESH]


def test_who_has_no_row_is_shown_what_was_popular_before_the_start() -> None:
    """Item 7 led before the start; what is popular afterwards is not known yet."""
    events = log(
        [0, 0, 0, 1, 1, 2, 2, 2],
        [7, 7, 3, 7, 8, 9, 9, 9],
        [START_S - 3, START_S - 2, START_S - 1, *range(START_S, START_S + 5)],
    )
    found = walked(events)
    cold = found.seen == 0
    by_user = {int(u): p.tolist() for u, p in zip(found.user[cold], found.place[cold], strict=True)}
    assert by_user == {1: [0] * 4, 2: [9] * 4}  # 9: behind 7, 3 and the seven lower rows
    assert np.isnan(found.sure[cold]).all() and not np.isnan(found.sure[~cold]).any()
    warm = found.place[(found.user == 1) & ~cold]
    assert warm.tolist() == [[0, 8, 8, 8]]


def test_the_repeat_term_is_that_of_the_row_in_question() -> None:
    """Three times item 0, then 5, then 0 twice: it is the row's own ring that lifts an item."""
    events = log(
        [0] * 6, [0, 0, 0, 5, 0, 0], [START_S - n for n in (3, 2, 1)] + [START_S + n for n in range(3)]
    )
    found = walked(events, repeats=Repeats(weight=100.0))
    assert found.place[:, FRESH].tolist()[1:] == [0, 0]
    assert found.place[0, FRESH] > 0
    assert walked(events).place[1, FRESH] > 0


def heirs_of(giver: int, heir: int) -> Alike:
    """One product that nobody has met, which inherits from one other."""
    bounds = np.where(np.arange(ITEMS + 1) > giver, 1, 0).astype(np.int32)
    return Alike(bounds, np.array([heir], np.int32), np.array([1.0], np.float16))


def test_what_a_new_product_inherits_is_that_of_the_row_in_question() -> None:
    """Item 20 is like 5: the state that has seen 5 has it first, and one from before it does not."""
    events = log([0] * 3, [0, 5, 20], [START_S - 1, START_S, START_S + 60])
    repeats = Repeats(inherited=100.0, inherited_half_life=16.0)
    found = walked(events, repeats=repeats, alike=heirs_of(5, 20))
    assert found.place[1, FRESH] == 0
    assert (found.place[1, [HOUR, DAY, NEVER]] > 0).all()
    assert walked(events, repeats=repeats).place[1, FRESH] > 0
    assert walked(events, repeats=repeats, alike=heirs_of(6, 20)).place[1, FRESH] > 0
    gains = summary(found)["gain"]["never"]["ndcg@10"]  # type: ignore[index]
    assert gains["mean"] == pytest.approx(0.5)  # of two events; 5 is found by none


def test_a_new_product_lies_lower_by_what_all_of_them_do() -> None:
    events = log([0] * 3, [0, 5, 20], [START_S - 1, START_S, START_S + 60])
    repeats = Repeats(inherited=1.0, inherited_half_life=16.0, newcomer=-100.0)
    found = walked(events, repeats=repeats, alike=heirs_of(5, 20))
    assert found.place[1].tolist() == [ITEMS - 1] * 4  # behind all that is known


def test_a_dismissed_item_is_learnt_but_not_looked_for_and_an_impression_neither() -> None:
    times = [START_S - 1, START_S, START_S + 1, START_S + 2]
    found = walked(log([0] * 4, [0, 5, 9, 6], times, [1, 6, 7, 1]))
    assert found.seen.tolist() == [2]
    assert found.place[0, FRESH] == 0  # 6 comes after the dismissed 5
    assert found.since[0].tolist() == [0, 1, 1, 1]


def test_an_item_that_the_checkpoint_lacks_is_never_found() -> None:
    events = one_user([60, 120])
    mapped = onto(events, [f"i{i}" for i in range(ITEMS) if i != 2])
    assert mapped.item_ids[-1] == "i2"
    assert [mapped.item_ids[i] for i in mapped.item] == ["i0", "i1", "i2"]
    table = TABLE[: ITEMS - 1]
    found = prequential(mapped, START_S, successor(mapped.item_ids[:-1], table), table)
    assert found.place[1].tolist() == [ITEMS - 1] * 4
    assert (found.place[0] < ITEMS - 1).all()


def test_devices_and_slots_are_the_checkpoints_by_their_names() -> None:
    device = np.array([1, 2, 3, 0], np.int16)
    events = replace(one_user([60, 120, 180]), device=device, devices=["tv", "web", "app"])
    mapped = onto(events, events.item_ids, ("app", "web"), ("home",))
    assert mapped.device is not None and mapped.device.tolist() == [0, 2, 1, 0]
    assert (mapped.devices, mapped.slot, mapped.slots) == (("app", "web"), None, ("home",))


def by_time_of_day(dim: int) -> ContextTable:
    """Whoever asks in the afternoon is shown item 7, whatever the state."""
    table = ContextTable(0, 0, dim).eval()
    with torch.no_grad():
        table.clock[13:25, 7] = 100.0
    return table


def test_what_is_ranked_is_asked_for_in_the_context_of_the_event() -> None:
    noon_s = START_S + 12 * HOUR_S
    events = one_user([60, 120, noon_s - START_S + 60, noon_s - START_S + 90])
    plain, asked = walked(events), walked(events, context=by_time_of_day(ITEMS))
    assert asked.place[:2].tolist() == plain.place[:2].tolist()
    assert (asked.place[2:] == plain.place[2:] + 1).all()  # behind item 7, from fresh and frozen states alike


def test_users_are_drawn_whole_and_the_same_again_under_one_seed() -> None:
    events = many_users()
    some, again = (walked(events, most_events=100, seed=3) for _ in range(2))
    assert len(some.user) == 100
    assert np.unique(some.user, return_counts=True)[1].tolist() == [10] * 10
    assert (some.event == again.event).all()
    assert set(walked(events, most_events=100, seed=4).user) != set(some.user)
    assert len(walked(events, most_events=1).user) == 10  # one user at least


def test_batching_of_users_and_scores_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = walked(many_users())
    monkeypatch.setattr(module, "USERS_AT_ONCE", 7)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 3 * ITEMS)
    parts = walked(many_users())
    assert (whole.event[np.argsort(whole.event)] == np.sort(parts.event)).all()
    a, b = np.argsort(whole.event), np.argsort(parts.event)
    assert (whole.place[a] == parts.place[b]).all()
    assert (whole.since[a] == parts.since[b]).all()


def test_ndcg_and_hits_are_worked_out_by_hand() -> None:
    found = Walked(
        np.arange(3),
        np.array([4, 4, 9]),
        np.array([[0, 1, 9, 10]] * 3),
        np.array([[0, 1, 2, 3]] * 3),
        np.array([0, 5, 8]),
        np.full(3, np.nan),
        np.zeros(3, bool),
    )
    report: Any = summary(found)
    assert (report["events"], report["users"]) == (3, 2)
    ndcg = [report["states"][state]["ndcg@10"]["mean"] for state in STATES]
    assert ndcg == pytest.approx([1.0, 1 / np.log2(3), 1 / np.log2(11), 0.0])
    assert [report["states"][state]["hr@10"]["mean"] for state in STATES] == [1.0, 1.0, 1.0, 0.0]
    assert report["gain"]["never"]["ndcg@10"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert list(report["staleness"]["day"]) == ["2-3"]
    assert {b: part["events"] for b, part in report["events_seen"].items()} == {"0": 1, "4-7": 1, "8-15": 1}
    assert "reliability" not in report
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("start_s", [START_S - 1, START_S + 10**6])
def test_a_start_without_events_on_both_sides_is_named(start_s: int) -> None:
    with pytest.raises(ValueError, match="expected both"):
        walked(one_user([60]), start_s)


def test_a_log_that_goes_backwards_is_refused() -> None:
    with pytest.raises(ValueError, match="go backwards"):
        walked(one_user([60, 30]))


def test_the_command_walks_a_checkpoint_and_draws(tmp_path: Path) -> None:
    """Item i is always followed by i + 1, an event every 20 minutes; trained towers, the command as it is."""
    events = tmp_path / "log.jsonl"
    lines = [
        {"user_id": f"u{u}", "item_id": f"i{(u + t) % 12}", "type": "view", "time": 1.6e9 + 1_200 * t}
        for t in range(40)
        for u in range(40)
    ]
    events.write_text("\n".join(map(json.dumps, lines)))
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    assert train_main(["--events", str(events), "--out", str(checkpoint), "--epochs", "24", "--no-card"]) == 0
    assert main([str(checkpoint), "--events", str(events), "--out", str(out)]) == 0
    report = json.loads((out / "prequential.json").read_text())
    assert (report["events"], report["users"]) == (160, 40)
    assert report["states"]["fresh"]["ndcg@10"]["mean"] > 0.9
    assert report["gain"]["never"]["ndcg@10"]["low"] > 0
    assert (out / "freshness.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_names_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = tmp_path / "log.csv"
    events.write_text("user_id,item_id,type,time\nu,i,view,1700000000\nu,j,view,1700000100\n")
    arguments = [str(tmp_path / "none"), "--events", str(events), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")
