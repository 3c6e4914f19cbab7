"""The robust rules: each against its definition written out for single numbers, and what each is for."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedasym.aggregation.base import aggregator_of
from fedasym.aggregation.exact import ExactMean
from fedasym.plugins import plugins_of
from fedasym.settings import Settings

RULES = ("median", "trimmed:0.2", "norm_bound:2", "krum:1", "multi_krum:1", "bulyan:1")
Reply = tuple[int, dict[str, np.ndarray]]
values = st.floats(-100.0, 100.0, width=32)


def result(rule: str, replies: list[Reply], held: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    total = aggregator_of(rule)
    total.begin(held or {name: np.zeros_like(matrix) for name, matrix in replies[0][1].items()})
    for weight, matrices in replies:
        total.add(weight, matrices)
    return total.result()[0]


@st.composite
def rounds(draw: st.DrawFn, least: int = 7, most: int = 10) -> list[Reply]:
    """Draw replies of two matrices, five values in all."""
    count = draw(st.integers(least, most))
    replies = []
    for _ in range(count):
        drawn = np.asarray(draw(st.lists(values, min_size=5, max_size=5)), np.float32)
        replies.append((draw(st.integers(1, 50)), {"a": drawn[:2].reshape(2, 1), "b": drawn[2:].reshape(1, 3)}))
    return replies


def flat(matrices: dict[str, np.ndarray]) -> list[float]:
    return [*matrices["a"].ravel().tolist(), *matrices["b"].ravel().tolist()]


def columns(replies: list[Reply]) -> list[list[float]]:
    return [list(column) for column in zip(*(flat(matrices) for _, matrices in replies), strict=True)]


def apart(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def scores(points: list[list[float]], bad: int) -> list[float]:
    """Return Krum's scores, by their definition."""
    near = max(len(points) - bad - 2, 1)
    return [
        sum(sorted(apart(one, other) for j, other in enumerate(points) if j != i)[:near])
        for i, one in enumerate(points)
    ]


def chosen_by_bulyan(points: list[list[float]], count: int) -> list[list[list[float]]]:
    """Return every choice that Bulyan may make: of two points that are each other's nearest, either is as good."""
    if not count:
        return [[]]
    found = scores(points, 1)
    best = [i for i, score in enumerate(found) if score <= min(found) * (1 + 1e-9)]
    return [[points[i], *rest] for i in best for rest in chosen_by_bulyan(points[:i] + points[i + 1 :], count - 1)]


@given(rounds())
def test_the_median_is_that_of_each_value(replies) -> None:
    assert flat(result("median", replies)) == [np.float32(statistics.median(column)) for column in columns(replies)]


@given(rounds())
def test_the_trimmed_mean_leaves_out_a_fifth_at_each_end(replies) -> None:
    cut = len(replies) // 5
    wanted = [np.mean(sorted(column)[cut : len(column) - cut]) for column in columns(replies)]
    assert flat(result("trimmed:0.2", replies)) == pytest.approx(wanted, rel=1e-6, abs=1e-6)  # float32's last digit


@given(rounds())
def test_krum_takes_one_reply_as_it_is_and_it_is_the_one_with_the_best_score(replies) -> None:
    points = [flat(matrices) for _, matrices in replies]
    chosen = flat(result("krum:1", replies))
    assert chosen in points
    found = scores(points, 1)
    assert found[points.index(chosen)] <= min(found) * (1 + 1e-9)  # equal up to the order of a sum


@given(rounds())
def test_bounded_changes_are_the_exact_mean_where_none_is_too_long(replies) -> None:
    plain = ExactMean()
    for weight, matrices in replies:
        plain.add(weight, matrices)
    roomy, mean = result("norm_bound:1e9", replies), plain.mean()
    if statistics.median(apart(flat(m), [0.0] * 5) for _, m in replies) > 0:  # else every change is too long
        assert all(roomy[name].tobytes() == mean[name].tobytes() for name in mean)


def test_a_change_that_is_too_long_is_shortened_from_where_the_round_started() -> None:
    held = {"a": np.full((2, 1), 10.0, np.float32)}
    replies = [(1, {"a": held["a"] + step}) for step in np.float32([1.0, 1.0, 1.0, -400.0])]
    assert result("norm_bound:2", replies, held)["a"].tolist() == [[10.25], [10.25]]  # (3 · 1 − 2 · 1) / 4


def near_the_median(column: list[float], count: int) -> tuple[float, float]:
    """Return the least and largest mean of the values nearest to a column's median: of equally near ones either."""
    middle = statistics.median(column)
    edge = sorted(abs(value - middle) for value in column)[count - 1]
    inside = [value for value in column if abs(value - middle) < edge]
    at_edge = sorted(value for value in column if abs(value - middle) == edge)
    missing = count - len(inside)
    return (sum(inside) + sum(at_edge[:missing])) / count, (sum(inside) + sum(at_edge[-missing:])) / count


@given(rounds(least=7, most=7))
def test_bulyan_is_its_definition_written_out(replies) -> None:
    found = flat(result("bulyan:1", replies))
    for chosen in chosen_by_bulyan([flat(matrices) for _, matrices in replies], 5):
        wanted = [near_the_median(list(column), 3) for column in zip(*chosen, strict=True)]
        if all(least - 1e-5 <= value <= most + 1e-5 for value, (least, most) in zip(found, wanted, strict=True)):
            return  # to half a unit of float32's last digit at 100, 4e-6
    raise AssertionError(f"{found} is no choice of Bulyan's")


@pytest.mark.parametrize("rule", RULES)
def test_the_order_in_which_replies_come_changes_no_bit(rule: str) -> None:
    rng = np.random.default_rng(3)
    replies = [(int(rng.integers(1, 9)), {"a": rng.normal(size=(3, 2)).astype(np.float32)}) for _ in range(8)]
    first = result(rule, replies)["a"]
    for _ in range(20):
        rng.shuffle(replies)
        assert result(rule, replies)["a"].tobytes() == first.tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_one_client_of_ten_cannot_carry_a_robust_rule_away(rule: str) -> None:
    rng = np.random.default_rng(4)
    replies = [(10, {"a": (1.0 + 0.1 * rng.normal(size=(4, 4))).astype(np.float32)}) for _ in range(9)]
    replies.append((10, {"a": np.full((4, 4), -1e4, np.float32)}))
    assert np.abs(result("exact", replies)["a"] - 1.0).min() > 900
    assert np.abs(result(rule, replies)["a"] - 1.0).max() < 0.7


@pytest.mark.parametrize("rule", RULES)
def test_what_is_no_reply_is_refused_and_nothing_of_it_is_kept(rule: str) -> None:
    total = aggregator_of(rule)
    total.begin({})
    with pytest.raises(ValueError, match=r"0 replies, and needs \d+ or more"):
        total.result()
    with pytest.raises(ValueError, match="not positive"):
        total.add(0, {"a": np.ones((1, 1), np.float32)})
    with pytest.raises(TypeError, match="float64"):
        total.add(1, {"a": np.ones((1, 1))})
    total.add(1, {"a": np.ones((1, 1), np.float32)})
    with pytest.raises(ValueError, match="has shape"):
        total.add(1, {"a": np.ones((1, 2), np.float32)})


@pytest.mark.parametrize(
    ("rule", "few", "named"),
    [("krum:2", 6, "6 replies, and needs 7"), ("multi_krum:1", 4, "and needs 5"), ("bulyan:1", 6, "and needs 7")],
)
def test_too_few_replies_for_a_rule_are_refused_by_number(rule: str, few: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        result(rule, [(1, {"a": np.full((1, 1), value, np.float32)}) for value in range(few)])


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("median:3", "takes no parameter"), ("trimmed:0.5", "no share between"), ("trimmed", "no share between"),
        ("norm_bound:0", "no positive number"), ("norm_bound:x", "no positive number"), ("krum:-1", "no number"),
        ("multi_krum", "no number"), ("bulyan:1.5", "no number"), ("mean", "not one of bulyan, exact, krum, median"),
    ],
)  # fmt: skip
def test_a_bad_parameter_is_refused_with_the_setting(rule: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Settings(aggregation=rule)


def test_every_rule_is_tested_here() -> None:
    assert plugins_of("fedasym.aggregation", "aggregator").keys() == {r.partition(":")[0] for r in (*RULES, "exact")}


@pytest.mark.parametrize("method", ["flora", "fedex", "fedsvd", "flexlora"])
def test_a_method_that_goes_by_single_replies_takes_the_exact_mean_alone(method: str) -> None:
    with pytest.raises(ValueError, match="goes by the single ones; use aggregation='exact'"):
        Settings(method=method, aggregation="median")


@pytest.mark.parametrize(
    ("rule", "more"),
    [("krum:1", {"num_clients": 4}), ("bulyan:1", {"num_clients": 7, "clients_per_round": 6}),
     ("multi_krum:2", {"sites": ",".join("abcdefg"), "quorum": 6, "data": "none", "client_holdout": 0.2,
                       "labels": "0,1", "model": "minilm"})],
)  # fmt: skip
def test_a_rule_that_may_get_fewer_replies_than_it_needs_is_refused_before_anything_trains(rule, more) -> None:
    with pytest.raises(ValueError, match=rf"aggregation='{rule}' needs \d replies or more, and a round may ask [46]"):
        Settings(aggregation=rule, **more)
