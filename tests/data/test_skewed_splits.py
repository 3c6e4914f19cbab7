"""Labels are dealt in the wanted proportions, sizes are drawn and scores are cut into bins, and nothing is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedasym.data.partition import partition
from fedasym.data.skewed_splits import deal, draw_sizes, label_proportions
from fedasym.settings import Settings
from fedasym.tasks.base import Examples
from fedasym.tasks.targets import score_bins


def test_bins_of_scores_are_named_hold_their_lower_edge_and_fall_together_where_scores_are_equal() -> None:
    bins, names = score_bins(np.array([3, 0, 1, 2, 4], np.float32), 5)
    assert bins.tolist() == [3, 0, 1, 2, 4]
    assert names == ("score < 1", "1 <= score < 2", "2 <= score < 3", "3 <= score < 4", "score >= 4")
    bins, names = score_bins(np.array([0, 0, 0, 2.5, 2.5, 5, 5], np.float32), 5)
    assert bins.tolist() == [0, 0, 0, 1, 1, 2, 2] and names == ("score < 2.5", "2.5 <= score < 5", "score >= 5")


@given(st.lists(st.floats(0, 5, width=32), min_size=10, max_size=200), st.integers(2, 5))
def test_every_bin_holds_a_score_and_bins_follow_the_order_of_scores(values, bins) -> None:
    scores = np.asarray(values, np.float32)
    if np.quantile(scores, (bins - 1) / bins, method="higher") == scores.min():
        with pytest.raises(ValueError, match="the scores make no two bins"):
            score_bins(scores, bins)
        return
    found, names = score_bins(scores, bins)
    assert set(found.tolist()) == set(range(len(names))) and 2 <= len(names) <= bins
    assert (np.diff(found[np.argsort(scores, kind="stable")]) >= 0).all()


@pytest.mark.parametrize(("name", "own"), [("severe", 0.9), ("mild", 0.85)])
def test_two_balanced_classes_come_in_the_papers_proportions_exactly(name, own) -> None:
    labels = np.arange(1200) % 2
    examples = Examples(([f"text {i}" for i in range(1200)],), labels, ("a", "b"))
    found = partition(examples, Settings(split=name, num_clients=6))
    shares = found.label_counts / np.asarray(found.sizes)[:, None]
    assert np.allclose(shares, [[1 - own, own], [own, 1 - own], [0.5, 0.5]] * 2, atol=1 / 200)  # one example of 200
    assert found.sizes == [200] * 6


@pytest.mark.parametrize(("name", "own"), [("severe", 0.9), ("mild", 0.7)])
@pytest.mark.parametrize("classes", [3, 4])
def test_a_client_has_most_of_its_own_class_and_the_others_in_equal_parts(name, own, classes) -> None:
    n, clients = 240 * classes, 2 * classes
    names = ("a", "b", "c", "d")[:classes]
    examples = Examples(([f"text {i}" for i in range(n)],), np.arange(n) % classes, names)
    found = partition(examples, Settings(split=name, num_clients=clients))
    wanted = np.full((clients, classes), (1 - own) / (classes - 1))
    for k in range(clients):
        wanted[k, k % classes] = own
    assert np.abs(found.label_counts - wanted * 120).max() <= 1


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=300),
    st.integers(1, 12),
    st.integers(2, 4),
    st.sampled_from(["mild", "severe"]),
)
def test_every_example_is_dealt_once_in_proportion_within_each_class(values, clients, classes, name) -> None:
    labels = np.asarray(values) % classes
    table = label_proportions(name, clients, classes)
    assert np.allclose(table.sum(1), 1.0)
    shares = deal(labels, table)
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(labels)))
    for c in range(classes):
        exact = table[:, c] / table[:, c].sum() * (labels == c).sum()
        dealt = [int((labels[share] == c).sum()) for share in shares]
        assert np.abs(dealt - exact).max() <= 1 + 1e-9


def test_drawn_sizes_sum_to_all_are_least_at_the_least_and_unequal_for_a_small_alpha() -> None:
    def draw(alpha: float, seed: int) -> list[int]:
        return draw_sizes(1000, 8, alpha, 3, np.random.default_rng(seed))

    for seed in range(20):
        assert sum(draw(0.5, seed)) == 1000 and min(draw(0.5, seed)) >= 3
    assert np.mean([np.std(draw(0.5, s)) for s in range(20)]) > 2 * np.mean([np.std(draw(50.0, s)) for s in range(20)])
