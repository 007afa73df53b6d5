from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from functions.core.events import KINDS
from functions.core.features import Vocabulary, item_features
from tests.train.test_evaluate import interactions
from train.baselines import (
    BPR,
    DEFAULTS,
    IALS,
    SGD,
    SVD,
    Baseline,
    ContentKNN,
    ItemKNN,
    Markov,
    OwnHistory,
    Perceptron,
    Popularity,
    Random,
    RecentPopularity,
    Scores,
    UserKNN,
    top,
)
from train.baselines import neighbours as neighbours_module
from train.baselines.neighbours import content_matrix, nearest_rows
from train.baselines.ranking import age_in_events, user_items
from train.log import Interactions

DAY_S = 86_400
LEARNT = [
    UserKNN(neighbours=8),
    ItemKNN(),
    SVD(factors=2),
    IALS(factors=2),
    BPR(factors=2),
    SGD(factors=1, epochs=60, l2=0.01),
    Perceptron(hidden=16, epochs=60, learning_rate=1e-2),
]
EVERY = [
    Random(),
    Popularity(),
    RecentPopularity(half_life_days=1e-4),
    OwnHistory(half_life=4),
    Markov(),
    UserKNN(neighbours=8, own=1.0),
    ItemKNN(similarity="bm25", half_life=4.0),
    ItemKNN(similarity="tfidf"),
    *LEARNT,
]


def name(baseline: Baseline) -> str:
    return type(baseline).__name__


def walks(users: int = 30, items: int = 25, events: int = 600, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    return interactions(
        [*range(users), *rng.integers(0, users, events).tolist()],
        [*rng.integers(0, items, users).tolist(), *rng.integers(0, items, events - 1).tolist(), items - 1],
    )


def checkerboard() -> Interactions:
    """Even users take even items, odd ones odd items; a sixth of the pairs is missing."""
    pairs = [(u, i) for u in range(20) for i in range(20) if u % 2 == i % 2 and (u + i) % 6]
    return interactions([u for u, _ in pairs], [i for _, i in pairs])


@pytest.mark.parametrize("baseline", LEARNT, ids=name)
def test_a_learnt_baseline_finds_the_block_of_a_checkerboard(baseline: Baseline) -> None:
    shown = top(baseline.fit(checkerboard()), list(range(20)), 10)
    assert (shown % 2 == np.arange(20)[:, None] % 2).all()


@pytest.mark.parametrize("baseline", EVERY, ids=name)
def test_users_in_a_batch_get_what_they_get_alone(baseline: Baseline) -> None:
    scores = baseline.fit(walks())
    users = np.arange(30)
    alone = np.concatenate([scores(users[u : u + 1]) for u in users])
    np.testing.assert_allclose(scores(users), alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores(users[::-1]), alone[::-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("baseline", EVERY, ids=name)
def test_a_list_has_every_item_once_and_falls(baseline: Baseline) -> None:
    log = walks()
    scores = baseline.fit(log)
    users = list(range(30))
    shown = top(scores, users, 25)
    assert (np.sort(shown, 1) == np.arange(25)).all()
    along = np.take_along_axis(scores(np.array(users)), shown, 1)
    assert (np.diff(along, axis=1) <= 0).all()
    assert (top(scores, users, 7) == shown[:, :7]).all()


@pytest.mark.parametrize("baseline", EVERY, ids=name)
def test_the_same_log_gives_the_same_scores(baseline: Baseline) -> None:
    users = np.arange(30)
    assert (baseline.fit(walks())(users) == baseline.fit(walks())(users)).all()


@pytest.mark.parametrize("baseline", [*EVERY, *DEFAULTS.values()], ids=name)
@pytest.mark.parametrize("log", [([0], [0]), ([0, 0, 0], [0, 1, 2]), ([0, 1, 2], [0, 0, 0])])
def test_one_user_or_one_item_is_a_log_like_any_other(
    baseline: Baseline, log: tuple[list[int], list[int]]
) -> None:
    shown = top(baseline.fit(interactions(*log)), [0], 5)
    items = max(log[1]) + 1
    assert np.sort(shown[0]).tolist() == [-1] * (5 - items) + list(range(items))


@pytest.mark.parametrize("baseline", [b for b in EVERY if b != Random()], ids=name)
def test_what_was_only_shown_or_dismissed_speaks_for_nothing(baseline: Baseline) -> None:
    log = walks()
    more = replace(
        log,
        user=np.r_[log.user, np.arange(30, dtype=np.int32)],
        item=np.r_[log.item, np.zeros(30, np.int32)],
        kind=np.r_[log.kind, np.tile([KINDS["impression"], KINDS["dismiss"]], 15)].astype(np.int8),
        time_s=np.r_[log.time_s, np.full(30, log.time_s.max())],
        value=np.r_[log.value, np.zeros(30, np.float32)],
    )
    users = np.arange(30)
    assert (baseline.fit(more)(users) == baseline.fit(log)(users)).all()


def fixed(rows: list[list[float]]) -> Scores:
    table = np.array(rows, np.float32)
    return lambda users: table[users]


def test_ties_go_to_the_lower_row_and_what_is_masked_or_no_number_is_not_shown() -> None:
    scores = fixed([[1, 2, 2, 1], [0, np.nan, -np.inf, 0]])
    assert top(scores, [0, 1], 4).tolist() == [[1, 2, 0, 3], [0, 3, -1, -1]]
    assert top(scores, [0, 1], 2).tolist() == [[1, 2], [0, 3]]
    assert top(scores, [0, 1], 6).tolist() == [[1, 2, 0, 3, -1, -1], [0, 3, -1, -1, -1, -1]]
    assert top(scores, [1, 0], 2, [np.array([0]), np.array([1, 2])]).tolist() == [[3, -1], [0, 3]]


def test_masking_leaves_the_next_call_as_it_was() -> None:
    scores = Popularity().fit(interactions([0, 0, 0, 1, 1, 1], [2, 2, 2, 0, 0, 1]))
    assert top(scores, [0], 1, [np.array([2])]).tolist() == [[0]]
    assert top(scores, [0], 1).tolist() == [[2]]


def test_more_users_than_a_batch_holds_keep_their_order() -> None:
    scores = fixed(np.eye(150).tolist())
    assert top(scores, list(range(150))[::-1], 1).ravel().tolist() == list(range(150))[::-1]
    masked = [np.array([user]) for user in range(150)]
    assert top(scores, list(range(150)), 1, masked).ravel().tolist() == [1] + [0] * 149


def test_popularity_is_the_order_of_the_counts() -> None:
    log = interactions([0, 0, 0, 1, 1, 1], [2, 2, 2, 0, 0, 1])
    assert top(Popularity().fit(log), [0, 1], 3).tolist() == [[2, 0, 1]] * 2


def test_an_event_that_is_a_half_life_old_counts_half() -> None:
    log = replace(interactions([0] * 4, [0, 0, 1, 2]), time_s=np.array([0, 0, 0, 5]) * DAY_S)
    assert RecentPopularity(5.0).fit(log)(np.array([0])).tolist() == [[1.0, 0.5, 1.0]]


def test_a_users_events_age_by_the_events_after_them() -> None:
    assert age_in_events(np.array([3, 0, 3, 3, 0])).tolist() == [2, 1, 1, 0, 0]
    log = interactions([0, 1, 0, 0, 1], [0, 3, 0, 1, 3])
    found = OwnHistory(half_life=1.0).fit(log)(np.array([0, 1]))
    assert found[0, :2].tolist() == [0.25 + 0.5, 1.0]
    assert found[1, 3] == 1.5
    assert top(OwnHistory().fit(log), [0], 4).tolist() == [[0, 1, 3, 2]]  # then what is popular


def test_counts_are_weighed_as_they_are_called() -> None:
    log = interactions([0, 0, 0], [1, 1, 0])
    assert user_items(log, "count").toarray().tolist() == [[1, 2]]
    assert user_items(log, "binary").toarray().tolist() == [[1, 1]]
    np.testing.assert_allclose(user_items(log).toarray(), [[np.log(2), np.log(3)]], rtol=1e-6)
    with pytest.raises(ValueError, match="weighting: 'square'; expected one of"):
        user_items(log, "square")


def test_markov_knows_the_successor() -> None:
    users, length, items = 12, 9, 12
    log = interactions(
        [u for t in range(length) for u in range(users)],
        [(u + t) % items for t in range(length) for u in range(users)],
    )
    shown = top(Markov(lags=5).fit(log), list(range(users)), 1)
    assert shown.ravel().tolist() == [(u + length) % items for u in range(users)]


def test_markov_by_hand() -> None:
    """a b a c; a b: after a comes b twice, c once and, 2 events after, a once; after b come a and c once."""
    a, b, c = range(3)
    log = interactions([0, 0, 0, 0, 1, 1], [a, b, a, c, a, b])
    both = np.array([0, 1])  # they end a c, and a b
    found = Markov(lags=2).fit(log)(both)
    np.testing.assert_allclose(found[0], [1 / 8, 2 / 8, 1 / 8])
    np.testing.assert_allclose(found[1], [1 / 2 + 1 / 8, 2 / 8, 1 / 2 + 1 / 8])
    np.testing.assert_allclose(Markov(lags=2, decay=3.0).fit(log)(both)[0], [1 / 32, 2 / 32, 1 / 32])
    np.testing.assert_allclose(
        Markov(lags=2, spread=1.0).fit(log)(both)[0], [1 / 14, 4 / 14, 2 / 14], rtol=1e-6
    )
    whole = 2 * (np.sqrt(2) + 2)
    damped = Markov(lags=2, power=0.5).fit(log)(both)[0]
    np.testing.assert_allclose(damped, [1 / whole, np.sqrt(2) / whole, 1 / whole], rtol=1e-6)
    assert top(Markov(lags=1).fit(log), [0], 3).tolist() == [[a, b, c]]  # nothing follows c: by popularity
    again = Markov(lags=1, shrinkage=1.0).fit(interactions([0] * 5, [a, b, a, c, a]))
    np.testing.assert_allclose(again(np.array([0]))[0, [b, c]], 1 / 3)


def dense_markov(log: Interactions, lags: int) -> np.ndarray:
    """The same counted in dense tables, user by user."""
    items = len(log.item_ids)
    histories = [log.item[log.user == user] for user in range(len(log.user_ids))]
    scores, pairs = np.zeros((len(histories), items)), np.zeros((items, items))
    for rows in histories:
        for lag in range(1, lags + 1):
            np.add.at(pairs, (rows[:-lag], rows[lag:]), 1.0)
    pairs /= np.maximum(pairs.sum(1, keepdims=True), 1.0)
    for user, rows in enumerate(histories):
        for lag in range(1, min(lags, len(rows)) + 1):
            scores[user] += pairs[rows[-lag]] / lag
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_sparse_transitions_are_the_dense_ones(seed: int) -> None:
    log = walks(users=15, events=60, seed=seed)
    found = Markov(lags=5).fit(log)(np.arange(15))
    expected = dense_markov(log, 5)
    assert ((found > 0) == (expected > 0)).all()
    np.testing.assert_allclose(np.where(found > 0, found, 0), expected, rtol=1e-5)


def test_user_knn_by_hand() -> None:
    """Users 0: {0, 1}, 1: {0, 2}, 2: {1}. User 0 is like 1 by 1/2 and like 2 by 1/sqrt 2."""
    log = interactions([0, 0, 1, 1, 2], [0, 1, 0, 2, 1])
    once = np.log(2)
    found = UserKNN(neighbours=2).fit(log)(np.array([0, 1, 2]))
    np.testing.assert_allclose(found[0] / once, [1 / 2, 1 / np.sqrt(2), 1 / 2], rtol=1e-5)
    np.testing.assert_allclose(found[1, :2] / once, [1 / 2, 1 / 2], rtol=1e-5)
    assert found[1, 2] < 0  # user 1's own item alone, and 1 is no neighbour of himself
    nearest = UserKNN(neighbours=1).fit(log)(np.array([0]))
    np.testing.assert_allclose(nearest[0, 1] / once, 1 / np.sqrt(2), rtol=1e-5)
    assert (nearest[0, [0, 2]] < 0).all()
    own = UserKNN(neighbours=2, own=2.0).fit(log)(np.array([0]))
    np.testing.assert_allclose(own[0, 0] / once, 1 / 2 + 2 / np.sqrt(2), rtol=1e-5)


def test_item_knn_by_hand() -> None:
    """Items 0: {0, 1}, 1: {0}, 2: {1}: 0 is near 1 and 2 by 1/sqrt 2 each, 1 and 2 are not near."""
    log = interactions([0, 0, 1, 1], [0, 1, 0, 2])
    found = ItemKNN().fit(log)(np.array([0]))[0] / np.log(2)
    np.testing.assert_allclose(found, [1 + 1 / np.sqrt(2), 1 + 1 / np.sqrt(2), 1 / np.sqrt(2)], rtol=1e-5)
    with pytest.raises(ValueError, match="similarity: 'near'; expected one of"):
        ItemKNN(similarity="near").fit(log)


def test_the_loss_of_matrix_factorisation_by_hand() -> None:
    """One factor, one negative, the mean is 1/2: errors 1/2 + .1 + .2 + 2·3 - 1 and 1/2 + .1 - .2 + 2·1."""
    user, item = torch.tensor([[2.0, 0.1]]), torch.tensor([[[3.0, 0.2], [1.0, -0.2]]])
    squares = 2 * (4 + 0.01) + (9 + 0.04) + (1 + 0.04)
    loss = SGD(l2=0.5, negatives=1)._loss(user, item, 0.5)
    assert float(loss) == pytest.approx(5.8**2 + 2.4**2 + 0.5 * squares)


@pytest.mark.parametrize(
    "method",
    [
        lambda strength: SGD(factors=4, epochs=20, l2=strength),
        lambda strength: IALS(factors=4, regularization=strength * 100),
        lambda strength: BPR(factors=4, regularization=strength),
    ],
    ids=["SGD", "IALS", "BPR"],
)
def test_a_stronger_penalty_leaves_less_of_the_user(method: Callable[[float], Baseline]) -> None:
    def spread(strength: float) -> float:
        found = method(strength).fit(checkerboard())(np.arange(20))
        return float(np.std(found - found.mean(0)))

    assert spread(10.0) < 0.5 * spread(1e-3)


PRODUCTS = [
    {"title": "red mug", "category": "kitchen"},
    {"title": "blue lamp", "category": "light"},
    {"title": "green mug", "category": "kitchen"},
    {"title": "yellow lamp", "category": "light"},
    {},
]


def test_content_knn_places_what_nobody_has_met() -> None:
    log = replace(interactions([0, 1], [0, 1]), item_ids=[f"i{i}" for i in range(5)])
    features = item_features(PRODUCTS, Vocabulary(("kitchen", "light")))
    scores = ContentKNN(features).fit(log)
    assert top(scores, [0, 1], 5).tolist() == [[2, 3, 4, -1, -1], [3, 2, 4, -1, -1]]
    everything = ContentKNN(features, new_only=False).fit(log)
    assert top(everything, [0, 1], 2).tolist() == [[0, 2], [1, 3]]


def test_an_item_asks_only_its_nearest_neighbours() -> None:
    """A green mug shares more with a green lamp (cosine .47) than with a red mug (.42)."""
    lamp = {"title": "green lamp", "category": "light"}
    features = item_features([PRODUCTS[0], lamp, PRODUCTS[2]], Vocabulary(("kitchen", "light")))
    log = replace(interactions([0, 1], [0, 1]), item_ids=["i0", "i1", "i2"])
    one, two = (ContentKNN(features, neighbours=n).fit(log)(np.array([0, 1]))[:, 2] for n in (1, 2))
    assert one[1] > 0 > one[0]
    assert two[1] > two[0] > 0


@pytest.mark.parametrize("neighbours", [1, 7, 40, 500])
@pytest.mark.parametrize("alike", [3, 60, 0])
def test_nearest_rows_are_those_of_a_table_of_all(
    neighbours: int, alike: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that many have, as a shop's products without much content are, and (0) all of their own."""
    monkeypatch.setattr(neighbours_module, "ITEMS_AT_ONCE", 16)
    rng = np.random.default_rng(0)
    some = csr_matrix(rng.random((alike or 200, 12), np.float32) * (rng.random((alike or 200, 12)) < 0.3))
    rows = some[rng.integers(0, alike, 200)] if alike else some
    wanted, among = rows[:70], rows[70:].multiply(np.arange(12) != 3).tocsr()  # a column that none has
    among.eliminate_zeros()
    found = nearest_rows(wanted, among, neighbours).toarray()
    whole = (wanted @ among.T).toarray()
    largest = np.sort(np.where(whole > 0, whole, 0), 1)[:, ::-1][:, :neighbours]
    np.testing.assert_array_equal(np.sort(found, 1)[:, ::-1][:, : largest.shape[1]], largest)
    assert ((found == whole) | (found == 0)).all() and ((found > 0).sum(1) <= neighbours).all()


def test_of_rows_that_are_alike_the_lower_are_the_nearest() -> None:
    among = csr_matrix(np.float32([[0, 1], [1, 0], [1, 0], [0.5, 0], [1, 0]]))
    found = nearest_rows(csr_matrix(np.float32([[1, 0], [1, 0], [0, 0]])), among, 2)
    assert found.toarray().tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert nearest_rows(among[:0], among, 2).shape == (0, 5)
    assert nearest_rows(among, among[:0], 2).shape == (5, 0)


def test_content_is_rows_of_length_one_and_nothing_where_nothing_is_known() -> None:
    matrix = content_matrix(item_features(PRODUCTS, Vocabulary(("kitchen", "light"))))
    np.testing.assert_allclose(np.asarray(matrix.multiply(matrix).sum(1)).ravel(), [1, 1, 1, 1, 0], rtol=1e-5)
    cosines = (matrix @ matrix.T).toarray()
    assert cosines[0, 2] > cosines[0, 1] and cosines[0, 2] > cosines[0, 3]
    nothing = content_matrix(item_features([{}, {}], Vocabulary()))
    assert isinstance(nothing, csr_matrix) and nothing.nnz == 0


def test_chance_depends_on_seed_and_user_alone() -> None:
    log = walks()
    first = Random(1).fit(log)(np.arange(30))
    assert not (Random(2).fit(log)(np.arange(30)) == first).all()
    assert len({tuple(row) for row in np.argsort(first, 1).tolist()}) == 30
    assert abs(float(first.mean()) - 0.5) < 0.05
