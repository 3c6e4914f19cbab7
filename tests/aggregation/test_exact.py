"""The mean is the float32 nearest to the true rational, in any order, in memory that does not grow."""

import itertools
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedasym.aggregation import exact_sum
from fedasym.aggregation.exact import ExactMean

MAX = float(np.finfo(np.float32).max)
ANY = st.integers(0, 2**32 - 1).map(lambda bits: float(np.uint32(bits).view(np.float32))).filter(np.isfinite)
FLOATS = st.one_of(
    ANY,  # every exponent equally often
    st.floats(-2.0, 2.0, width=32),  # as B is
    st.sampled_from([0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-126, 1.0, 1.0 + 2.0**-23, MAX, -MAX]),
)
BLOCK = 1 << 12  # the oracle is slow
WEIGHTS = st.one_of(st.just(1), st.integers(1, 9), st.integers(1, 2**40), st.sampled_from([2**29, 2**40]))


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(exact_sum, "_BLOCK", BLOCK)


def nearest_float32(value) -> float:
    """Round a Fraction to 24 bits, or to a multiple of 2^-149, ties to even, with integers alone."""
    if value == 0:
        return 0.0
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    exponent -= abs(value) < Fraction(2) ** exponent  # now 2^exponent <= |value| < 2^(exponent + 1)
    unit = Fraction(2) ** max(exponent - 23, -149)
    return float(round(value / unit) * unit) + 0.0  # Fraction's round goes to even


def oracle(replies) -> bytes:
    total = sum(weight for weight, _ in replies)
    sums = [Fraction(0)] * len(replies[0][1])
    for weight, values in replies:
        sums = [s + weight * Fraction(float(v)) for s, v in zip(sums, values, strict=True)]
    return np.array([nearest_float32(s / total) for s in sums], np.float32).tobytes()


def accumulated(replies) -> ExactMean:
    total = ExactMean()
    for weight, values in replies:
        total.add(weight, {"B": np.array(values, np.float32)})
    return total


def exact_mean(replies) -> bytes:
    return accumulated(replies).mean()["B"].tobytes()


def random_replies(count, size, weights, seed=0) -> list:
    """Any finite bits, so that sums span all bins and cancel."""
    rng = np.random.default_rng(seed)
    replies = []
    for i in range(count):
        values = rng.integers(0, 2**32, size, dtype=np.uint32).view(np.float32)
        values[~np.isfinite(values)] = (-1) ** i * 2.0**-149
        replies.append((weights[i % len(weights)], values))
    return replies


def test_the_oracle_rounds_halves_to_even_and_fractions_to_the_nearest() -> None:
    # By hand: 1 + 2^-24 lies between 1 (even) and 1 + 2^-23; 1 + 3*2^-24 between that and 1 + 2^-22 (even).
    half = Fraction(1, 2**24)
    assert nearest_float32(1 + half) == 1.0 and nearest_float32(-1 - 3 * half) == -1.0 - 2.0**-22
    assert nearest_float32(1 + half + Fraction(1, 10**30)) == 1.0 + 2.0**-23
    assert nearest_float32(Fraction(1, 2**150)) == 0.0 and nearest_float32(Fraction(3, 2**150)) == 2.0**-148
    assert nearest_float32(Fraction(1, 3)) == float(np.float32(1 / 3))


@given(st.data(), st.integers(1, 6), st.integers(1, 5))
def test_the_mean_is_the_float32_nearest_to_the_rational(data, size, count) -> None:
    values = st.lists(FLOATS, min_size=size, max_size=size)
    replies = data.draw(st.lists(st.tuples(WEIGHTS, values), min_size=count, max_size=count))
    assert exact_mean(replies) == oracle(replies)


@given(st.data(), WEIGHTS, st.integers(1, 8))
def test_equal_weights_round_their_ties_to_even(data, weight, count) -> None:
    start = data.draw(ANY.filter(lambda x: abs(x) < 1e38))
    near = st.integers(0, 3).map(lambda steps: start + steps * float(np.spacing(np.float32(abs(start)))))
    replies = [(weight, [data.draw(near), data.draw(FLOATS)]) for _ in range(count)]
    assert exact_mean(replies) == oracle(replies)


@pytest.mark.parametrize("weights", [[1], [700, 701, 13], [2**40 - 1, 1, 3], [2**29, 2**29 - 1, 2**50 + 1]])
@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1])
def test_every_block_of_a_large_matrix_is_exact(size, weights, small_blocks) -> None:
    replies = random_replies(4, size, weights)
    assert exact_mean(replies) == oracle(replies)


@given(st.data(), st.lists(st.integers(-140, 120), min_size=1, max_size=12))
def test_replies_of_any_magnitudes_one_after_another_leave_no_grid_behind(data, magnitudes) -> None:
    # Each reply has one magnitude, so that grids are left above and below; a few values far below it are picked out.
    rng, replies = np.random.default_rng(data.draw(st.integers(0, 99))), []
    for magnitude in magnitudes:
        values = np.ldexp(rng.normal(size=40), magnitude).astype(np.float32)
        values[: data.draw(st.integers(0, 40))] *= np.float32(2.0**-20)
        replies.append((data.draw(WEIGHTS), np.nan_to_num(values)))
    assert exact_mean(replies) == oracle(replies)


def test_a_grid_is_left_before_its_sums_lose_a_bit() -> None:
    # 2^7 products fill a grid; of the last bits of odd multiples none may be lost on the way to a thousand.
    ones = np.float32(2.0) - np.float32(2.0**-23)
    replies = [(2**29 - 1, [ones, -ones, ones * np.float32((-1) ** i)]) for i in range(1001)]
    assert exact_mean(replies) == oracle(replies)


@given(st.data(), st.integers(1, 7))
def test_a_tree_of_sums_has_the_mean_of_one(data, count) -> None:
    reply = st.tuples(WEIGHTS, st.lists(FLOATS, min_size=3, max_size=3))
    replies = data.draw(st.lists(reply, min_size=count, max_size=count))
    sums = [accumulated([each]) for each in replies] + [ExactMean()]  # a region in which nobody answered
    while len(sums) > 1:
        into = sums.pop(data.draw(st.integers(0, len(sums) - 1)))
        into.merge(sums.pop(data.draw(st.integers(0, len(sums) - 1))))
        sums.append(into)
    assert sums[0].mean()["B"].tobytes() == oracle(replies)
    assert (sums[0].count, sums[0].total_weight) == (count, sum(weight for weight, _ in replies))


def test_what_cannot_be_merged_is_said_and_changes_nothing() -> None:
    total, other = accumulated([(2**52, [1.0])]), ExactMean()
    other.add(1, {"C": np.ones((2, 2), np.float32)})
    before = pickle.dumps(total)
    with pytest.raises(ValueError, match=r"other matrices: \{'B': \(1,\)\} here, \{'C': \(2, 2\)\} there"):
        total.merge(other)
    with pytest.raises(ValueError, match=r"below 2\*\*53"):
        total.merge(accumulated([(2**52, [1.0])]))
    assert pickle.dumps(total) == before


@pytest.mark.parametrize("adds", [2, 3])
def test_merging_carries_before_a_bin_is_full(adds, monkeypatch) -> None:
    monkeypatch.setattr(exact_sum, "_ADDS_BEFORE_CARRY", adds)
    replies = random_replies(12, 30, [1, 700, 2**40 - 1])
    total = ExactMean()
    for start in range(0, 12, 3):
        total.merge(accumulated(replies[start : start + 3]))
    assert total.mean()["B"].tobytes() == oracle(replies)


def test_halfway_cases_of_whole_blocks_go_to_even(small_blocks) -> None:
    low = np.random.default_rng(2).integers(0, 0x7F7FFFFE, BLOCK + 5, dtype=np.uint32)
    replies = [(5, low.view(np.float32)), (5, (low + np.uint32(1)).view(np.float32))]
    even = low + (low & np.uint32(1))  # of two neighbours in bits, the one whose last bit is 0
    assert exact_mean(replies) == oracle(replies) == even.tobytes()
    below = exact_mean([(1, [-(2.0**-149)]), (1, [0.0])])
    assert below == np.zeros(1, np.float32).tobytes()  # +0, as the oracle: a rational zero has no sign


def hard_to_round(size: int, seed: int = 0) -> list:
    """Return replies of which two collude: their values cancel, and leave each mean 2^-100 off a tie, or on it."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=size).astype(np.float32)
    spacing = np.spacing(np.abs(honest))
    tie = (2.0 * honest.astype(np.float64) + spacing).astype(np.float32)  # of 25 bits: not a float32 itself
    off = (rng.choice([-1.0, 0.0, 1.0], size) * 2.0**-100).astype(np.float32)
    return [(1, honest), (1, honest + spacing), (1, tie * 0 + 2.0**60), (1, tie * 0 - 2.0**60), (4, off)]


def test_who_lays_every_mean_beside_a_tie_gains_no_wrong_bit() -> None:
    replies = hard_to_round(5000)
    assert exact_mean(replies) == oracle(replies)


@given(st.data())
def test_every_order_of_clients_gives_the_same_bits(data) -> None:
    reply = st.tuples(WEIGHTS, st.lists(FLOATS, min_size=3, max_size=3))
    replies = data.draw(st.lists(reply, min_size=2, max_size=4))
    assert len({exact_mean(order) for order in itertools.permutations(replies)}) == 1


@pytest.mark.parametrize("adds", [2, 3, 7])
def test_carries_change_no_bit_and_add_no_bin_without_end(adds, monkeypatch) -> None:
    replies = random_replies(60, 300, [1, 700, 2**40 - 1])
    without = exact_mean(replies)
    monkeypatch.setattr(exact_sum, "_ADDS_BEFORE_CARRY", adds)
    total = accumulated(replies)
    assert total.mean()["B"].tobytes() == without == oracle(replies)
    assert len(total._sum._rest.bins) <= 11


def test_bins_full_to_the_brim_carry_without_rounding() -> None:
    units = np.array([2**52, -(2**52), 2**52 - 1, 2**31, 2**31 + 1, -(2**31) - 1, 0], np.float64)
    total = exact_sum._Bins(len(units))
    total.bins = {i: units * 2.0 ** (32 * i - 149) for i in range(10)}
    before = [sum(map(Fraction, column)) for column in zip(*total.bins.values(), strict=True)]
    total.carry()
    assert [sum(map(Fraction, column)) for column in zip(*total.bins.values(), strict=True)] == before
    assert all(np.abs(total.bins[i]).max() <= 2.0 ** (31 + 32 * i - 149) for i in range(10))


def test_memory_does_not_grow_with_the_number_of_clients() -> None:
    replies = random_replies(5, 1000, [1, 700, 2**40])
    few, many = (len(pickle.dumps(accumulated(replies * rounds))) for rounds in (1, 100))
    # A pickle holds all that is retained. The integers that count may be longer by a few
    # bytes; one matrix has 4000.
    assert many - few < 32


@pytest.mark.parametrize("adds", [2, exact_sum._ADDS_BEFORE_CARRY])
def test_the_widest_values_and_weights_need_at_most_eleven_bins(adds, monkeypatch) -> None:
    monkeypatch.setattr(exact_sum, "_ADDS_BEFORE_CARRY", adds)
    values = [MAX, -MAX, 2.0**-149, 1.0]
    total = accumulated([(weight, values) for weight in (2**52, 2**51, 1, 1, 1, 1, 1, 1, 1, 1)])
    # From 2^-149 to 2^(128 + 53) are 330 bits, 32 to a bin.
    assert len(total._sum._rest.bins) <= 11
    assert total.mean()["B"].tolist() == values


def test_what_was_added_is_neither_kept_nor_changed_and_any_layout_will_do() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    given_in = np.asfortranarray(values)
    total = ExactMean()
    total.add(np.int64(3), {"B": given_in, "head": values[:, ::2]})
    assert np.array_equal(given_in, values)
    given_in[:] = -1
    total.mean()["B"][:] = -1
    values.setflags(write=False)
    total.add(np.uint8(3), {"head": values[:, ::2], "B": values})
    assert np.array_equal(total.mean()["B"], values) and np.array_equal(total.mean()["head"], values[:, ::2])
    assert (total.total_weight, total.count) == (6, 2)


GOOD = np.ones((2, 2), np.float32)
SPOILT = np.array([[1, 2], [np.nan, 4]], np.float32)
REJECTED = [
    (True, {"B": GOOD}, TypeError, "weight True is a bool"),
    (2.0, {"B": GOOD}, TypeError, "weight 2.0 is a float"),
    (0, {"B": GOOD}, ValueError, "weight 0 is not positive"),
    (2**53, {"B": GOOD}, ValueError, "add up to"),
    (1, {}, ValueError, "without matrices"),
    (1, {"C": GOOD}, ValueError, r"missing \['B'\], extra \['C'\]"),
    (1, {"B": GOOD[:1]}, ValueError, r"'B' has shape \(1, 2\); the first reply's has \(2, 2\)"),
    (1, {"B": SPOILT}, ValueError, r"'B' holds nan at \(1, 0\)"),
    (1, {"B": -GOOD * np.float32(np.inf)}, ValueError, r"'B' holds -inf at \(0, 0\)"),
    (1, {"B": GOOD.astype(np.float64)}, TypeError, "'B' is float64"),
    (1, {"B": GOOD.astype(">f4")}, TypeError, "'B' is >f4"),
    (1, {"B": GOOD.tolist()}, TypeError, "'B' is list"),
]


@pytest.mark.parametrize(("weight", "matrices", "error", "words"), REJECTED)
def test_a_rejected_reply_is_named_and_leaves_the_mean_as_it_was(weight, matrices, error, words) -> None:
    total = ExactMean()
    total.add(3, {"B": GOOD / 3})
    before = pickle.dumps(total)
    with pytest.raises(error, match=words):
        total.add(weight, matrices)
    assert pickle.dumps(total) == before


def test_one_bad_matrix_keeps_the_whole_first_reply_out_and_fixes_no_names() -> None:
    total = ExactMean()
    with pytest.raises(ValueError, match="'bad' holds nan"):
        total.add(1, {"fine": GOOD, "bad": SPOILT})
    with pytest.raises(ValueError, match="no replies"):
        total.mean()
    total.add(1, {"other": GOOD})
    assert np.array_equal(total.mean()["other"], GOOD)
