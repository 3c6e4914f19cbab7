"""Nobody buys the mean: a weight is known, or bounded by what was stated before anybody trained."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.round.reply import Rejection
from server.round.weights import MOST_EXAMPLES, KnownSizes, StatedSizes, Weights

HUGE = st.integers(1, 2**70)
SIZES = st.dictionaries(st.integers(0, 9), st.integers(1, 10_000), min_size=1)


def counted(weights: Weights, claims: list[tuple[int, int]]) -> dict[int, int]:
    """Return what counts of claims, in the order in which they come."""
    found = {}
    for client, claimed in claims:
        try:
            found[client] = weights.of(client, claimed)
        except Rejection:
            continue
    return found


@given(SIZES, st.data())
def test_in_a_split_a_claim_counts_if_it_is_the_clients_size(sizes: dict[int, int], data: st.DataObject) -> None:
    client = data.draw(st.sampled_from(sorted(sizes)))
    claimed = data.draw(st.just(sizes[client]) | HUGE)
    found = counted(KnownSizes(sizes, uniform=False), [(client, claimed)])
    assert found == ({client: claimed} if claimed == sizes[client] else {})


@given(SIZES, st.lists(HUGE, min_size=3, max_size=3), st.sampled_from([0.0, 1.0, 2.5, 10.0]))
def test_at_sites_what_counts_is_bounded_and_depends_on_no_other_reply(
    stated: dict[int, int], claims: list[int], most: float
) -> None:
    weights = StatedSizes(stated, most, uniform=False)
    pairs = list(enumerate(claims))
    orders = [counted(weights, list(order)) for order in itertools.permutations(pairs)]
    assert all(order == orders[0] for order in orders)
    middle = sorted(stated.values())[(len(stated) - 1) // 2]
    assert all(weight <= MOST_EXAMPLES and (not most or weight <= most * middle) for weight in orders[0].values())
    assert orders[0] == {k: n for k, n in pairs if n <= MOST_EXAMPLES and (not most or n <= most * middle)}


def test_a_million_of_the_largest_clients_stay_below_what_the_exact_mean_holds() -> None:
    assert 1_000_000 * MOST_EXAMPLES < 2**53


def test_one_of_three_cannot_raise_the_bound_by_what_it_states() -> None:
    weights = StatedSizes({0: 100, 1: 120, 2: MOST_EXAMPLES}, 10.0, uniform=False)
    with pytest.raises(
        Rejection, match=r"above max-weight=10 times the median of what the sites stated, 120; if it has"
    ):
        weights.of(2, 10**6)


@pytest.mark.parametrize("weights", [KnownSizes({0: 5, 1: 700}, True), StatedSizes({0: 5, 1: 700}, 10.0, True)])
def test_uniform_weights_are_one_each_and_claims_are_checked_all_the_same(weights: Weights) -> None:
    assert [weights.of(0, 5), weights.of(1, 700)] == [1, 1]
    with pytest.raises(Rejection):
        weights.of(0, 2**53)
