"""The meter in r-space equals the dense definition, and tells B-only from standard LoRA."""

import numpy as np
import pytest

from fedasym.adapters.projection import frozen_A
from fedasym.aggregation.exact import ExactMean
from fedasym.aggregation.exactness_meter import mismatch_common_A
from fedasym.methods import METHODS
from fedasym.methods.round_exactness import mismatch_of_round

SHAPES = {"one": (9, 3, 14), "two": (20, 3, 6), "three": (5, 3, 3)}  # d_out, r, d_in
WEIGHTS = (7, 1, 30, 12)


def mismatch_factors(mean, replies, layers):
    """Standard LoRA's mismatch: A and B averaged apart."""
    return mismatch_of_round(METHODS["lora"], 1, {}, {}, replies, mean, layers)


def draw(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng, made = np.random.default_rng(seed), {}
    for layer, (d_out, r, d_in) in SHAPES.items():
        made[f"{layer}.A"] = rng.standard_normal((r, d_in), np.float32)
        made[f"{layer}.B"] = (scale * rng.standard_normal((d_out, r))).astype(np.float32)
    return made


def averaged(replies) -> ExactMean:
    total = ExactMean()
    for weight, matrices in replies:
        total.add(weight, matrices)
    return total


def dense(mean, replies, A=None) -> float:
    """Compute the definition: every product in full, in float64."""
    total, wrong, right = sum(weight for weight, _ in replies), 0.0, 0.0
    for layer in SHAPES:
        exact = sum(
            weight / total * reply[f"{layer}.B"].astype(float) @ (A[layer] if A else reply[f"{layer}.A"]).astype(float)
            for weight, reply in replies
        )
        sent = mean[f"{layer}.B"].astype(float) @ (A[layer] if A else mean[f"{layer}.A"]).astype(float)
        wrong += np.sum((exact - sent) ** 2)
        right += np.sum(exact**2)
    return float(np.sqrt(wrong / right))


@pytest.fixture
def replies():
    return [(weight, draw(k)) for k, weight in enumerate(WEIGHTS)]


@pytest.fixture
def common():
    """The frozen A of each layer, and replies that hold B (and a head, which is no product) alone."""
    A = {layer: frozen_A(0, layer, r, d_in, "kaiming") for layer, (_, r, d_in) in SHAPES.items()}
    more = {"head.bias": np.ones(3, np.float32)}
    return A, [
        (weight, {n: m for n, m in draw(k).items() if n.endswith(".B")} | more) for k, weight in enumerate(WEIGHTS)
    ]


def test_with_a_common_A_the_meter_equals_the_dense_computation(common) -> None:
    A, replies = common
    total = averaged(replies)
    for wrong in (0.0, 1e-3, 0.5):  # a broadcast that is off by so much
        mean = {name: matrix + np.float32(wrong) for name, matrix in total.mean().items()}
        expected = dense(mean, replies, A)
        # The dense sums round at 1e-16, which is 1e-8 of the smallest mismatch, 1e-8.
        assert mismatch_common_A(mean, total.mean64(), A) == pytest.approx(expected, rel=1e-6)


def test_B_only_differs_from_the_mean_of_the_updates_by_the_rounding_of_float32_alone(common) -> None:
    A, replies = common
    total = averaged(replies)
    # Half a unit in the last place of float32 is 6e-8 of a value at most, and 1.7e-8 in the quadratic mean.
    assert 1e-9 < mismatch_common_A(total.mean(), total.mean64(), A) < 6e-8


def test_B_only_with_exact_values_has_no_mismatch_at_all(common) -> None:
    A, _ = common
    replies = [
        (1, {f"{layer}.B": np.full(shape[:2], k, np.float32) for layer, shape in SHAPES.items()}) for k in (1, 2)
    ]
    total = averaged(replies)  # the mean 1.5 is a float32
    assert mismatch_common_A(total.mean(), total.mean64(), A) == 0.0


def test_with_factors_of_their_own_the_meter_equals_the_dense_computation_and_is_large(replies) -> None:
    mean = averaged(replies).mean()
    found = mismatch_factors(mean, replies, list(SHAPES))
    # Float64 throughout, on a mismatch of size one.
    assert found == pytest.approx(dense(mean, replies), rel=1e-12) and found > 0.1


@pytest.mark.parametrize("spread", [1e-4, 1e-2, 1.0])
def test_the_mismatch_grows_from_zero_with_the_distance_of_the_clients(spread) -> None:
    start, replies = draw(99), []
    for k, weight in enumerate(WEIGHTS):
        step = draw(k, spread)
        moved = {n: (m + np.float32(spread) * step[n]).astype(np.float32) for n, m in start.items()}
        replies.append((weight, moved))
    mean = averaged(replies).mean()
    found = mismatch_factors(mean, replies, list(SHAPES))
    # Both sides round at 1e-16 and subtract terms of size one: 1e-15 absolute.
    assert found == pytest.approx(dense(mean, replies), rel=1e-9, abs=1e-14)
    assert 0.0 < found < 2 * spread


def test_with_equal_A_and_a_mean_without_rounding_the_mismatch_of_factors_is_zero() -> None:
    start = draw(0)
    replies = []
    for weight, k in ((1, 1), (3, 5)):  # the mean is 4
        Bs = {name: np.full_like(matrix, k) for name, matrix in start.items() if name.endswith(".B")}
        replies.append((weight, {**start, **Bs}))
    mean = averaged(replies).mean()
    # One QR decomposition's rounding of terms that cancel exactly otherwise.
    assert mismatch_factors(mean, replies, list(SHAPES)) < 1e-14


def test_the_order_and_the_common_factor_of_the_weights_do_not_matter(replies) -> None:
    mean, layers = averaged(replies).mean(), list(SHAPES)
    found = mismatch_factors(mean, replies, layers)
    tripled = [(3 * weight, matrices) for weight, matrices in reversed(replies)]
    # Another order of float64 sums.
    assert mismatch_factors(mean, tripled, layers) == pytest.approx(found, rel=1e-12)


def test_a_federation_that_learned_nothing_has_no_mismatch(common) -> None:
    A, _ = common
    zero = {f"{layer}.B": np.zeros(shape[:2], np.float32) for layer, shape in SHAPES.items()}
    total = averaged([(1, zero)])
    assert mismatch_common_A(total.mean(), total.mean64(), A) == 0.0
    still = {**draw(0), **zero}
    assert mismatch_factors(still, [(1, still), (2, still)], list(SHAPES)) == 0.0


@pytest.mark.parametrize("method", ["fedex", "flora"])
def test_a_relay_of_all_factors_is_not_measured_against_itself_but_a_changed_one_is(method, replies) -> None:
    rule, layers = METHODS[method], list(SHAPES)
    stack = rule.stack({}, replies)
    assert mismatch_of_round(rule, 1, {}, {}, replies, stack, layers) is None
    changed = {name: matrix + np.float32(0.01) * (name == "0002/two.B") for name, matrix in stack.items()}
    wrong = np.linalg.norm(WEIGHTS[2] / sum(WEIGHTS) * 0.01 * np.ones((20, 3)) @ replies[2][1]["two.A"])
    right = np.sqrt(
        sum(
            np.sum(sum(w / sum(WEIGHTS) * r[f"{x}.B"].astype(float) @ r[f"{x}.A"] for w, r in replies) ** 2)
            for x in SHAPES
        )
    )
    found = mismatch_of_round(rule, 1, {}, {}, replies, changed, layers)
    assert found == pytest.approx(wrong / right, rel=1e-4)  # the changed B is rounded to float32: 1e-7 of 0.01
