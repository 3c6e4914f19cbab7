"""The study's statistics equal slow obvious computations and never claim more than the seeds allow."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from study_lines import make_line, make_lines

from fedasym.reports.study import result_lines
from fedasym.reports.study.estimates import (
    Standing,
    bytes_to_reach,
    mean_over,
    paired,
    reach,
    spread,
    standing,
    values,
    within_half,
)

NUMBER = st.floats(-10, 10, allow_nan=False)


@given(st.lists(NUMBER, min_size=2, max_size=20))
def test_spread_is_mean_and_sample_standard_deviation(numbers) -> None:
    found = spread(numbers)
    mean = sum(numbers) / len(numbers)
    assert found.n == len(numbers) and found.mean == pytest.approx(mean, abs=1e-12)
    slow = math.sqrt(sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1))
    assert found.sd == pytest.approx(slow, rel=1e-6, abs=1e-9)  # the slow sum cancels where all are alike


def test_one_number_has_no_standard_deviation_and_none_has_no_mean() -> None:
    assert spread([0.5]) == (0.5, None, 1)
    with pytest.raises(ValueError, match="no number"):
        spread([])


@given(st.lists(st.tuples(NUMBER, NUMBER), min_size=2, max_size=12))
def test_the_interval_is_the_one_of_the_paired_t_test(pairs) -> None:
    ours, theirs = (dict(enumerate(column)) for column in zip(*pairs, strict=True))
    found = paired(ours, theirs)
    if len({round(a - b, 6) for a, b in pairs}) == 1:
        return  # the t-test divides by a deviation of 0
    slow = ttest_rel(list(ours.values()), list(theirs.values())).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((slow.low, slow.high), rel=1e-6, abs=1e-9)
    assert found.holds_zero == (found.low <= 0 <= found.high)


@given(st.dictionaries(st.integers(0, 9), NUMBER), st.dictionaries(st.integers(0, 9), NUMBER))
def test_a_paired_difference_takes_the_shared_cells_alone_and_turns_its_sign(ours, theirs) -> None:
    found, back = paired(ours, theirs), paired(theirs, ours)
    shared = ours.keys() & theirs.keys()
    if not shared:
        assert found is back is None
        return
    assert found.n == back.n == len(shared)
    assert found.mean == pytest.approx(-back.mean, abs=1e-12)
    assert (found.low is None) == (found.high is None) == (found.holds_zero is None) == (len(shared) < 2)


def test_a_mean_over_tasks_leaves_out_a_seed_that_lacks_one() -> None:
    lines = make_lines(methods=("asymmetric",), splits=("iid",))
    places = result_lines.places(lines)
    whole = mean_over(values(lines)["asymmetric"], places)
    assert whole[1] == pytest.approx(sum(x["final"] for x in lines if x["seed"] == 1) / 4, abs=1e-15)
    torn = [x for x in lines if (x["task"], x["seed"]) != ("sst2", 1)]
    assert mean_over(values(torn)["asymmetric"], places) == {seed: whole[seed] for seed in (0, 2)}
    assert mean_over({}, places) == mean_over(values(lines)["asymmetric"], []) == {}


def test_one_lucky_seed_is_never_the_best_and_one_seed_never_tied() -> None:
    found = standing(
        {"lucky": {0: 0.99}, "good": {0: 0.8, 1: 0.9}, "alike": {0: 0.85, 1: 0.84}, "bad": {0: 0.1, 1: 0.2}}
    )
    assert found.best == "good" and found.tied == {"alike"}
    assert standing({"a": {0: 0.5}, "b": {0: 0.4}}) == ("a", frozenset())
    assert standing({}) == standing({"a": {}}) == (None, frozenset())


def test_equal_methods_are_tied() -> None:
    assert standing({"a": {0: 0.5, 1: 0.6}, "b": {0: 0.5, 1: 0.6}}) == ("a", {"b"})


def test_bytes_to_reach_count_the_rounds_up_to_the_first_that_is_good_enough() -> None:
    line = make_line(metric_by_round=[None, 0.5, None, 0.7, 0.6], payload_by_round=[1, 10, 100, 1000, 10000])
    reached = [bytes_to_reach(line, target) for target in (0.4, 0.5, 0.55, 0.7, 0.71)]
    assert reached == [11, 11, 1111, 1111, None]


@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_bytes_to_reach_equal_the_slow_search(metric, target) -> None:
    spent = [3**i for i in range(len(metric))]
    slow = None
    for i in reversed(range(len(metric))):
        if metric[i] is not None and metric[i] >= target:
            slow = sum(spent[: i + 1])
    assert bytes_to_reach({"metric_by_round": metric, "payload_by_round": spent}, target) == slow


def test_half_of_the_bytes_is_half_of_what_the_reference_spent_in_all() -> None:
    def pair(seed, bytes_a_round):
        lora = make_line("lora", seed=seed, final=0.6, metric_by_round=[0.5, 0.6], payload_by_round=[100, 100])
        ours = make_line(seed=seed, final=0.7, metric_by_round=[0.6, 0.7], payload_by_round=[bytes_a_round] * 2)
        return [lora, ours]

    lines = pair(0, 100) + pair(1, 101) + [make_line(seed=2)]
    assert within_half(lines, "asymmetric", "lora") == (1, 2)
    assert reach(lines, "asymmetric", "lora") == {("sst2", "iid", 0): (100, 200), ("sst2", "iid", 1): (101, 200)}
    assert within_half(lines, "fedsa", "lora") == within_half([*lines, make_line("fedsa")], "fedsa", "lora") == (0, 0)


def test_lines_are_checked_at_the_door() -> None:
    with pytest.raises(ValueError, match="no result line"):
        result_lines.in_order([])
    with pytest.raises(ValueError, match="lora on sst2, split iid, seed 0 has two result lines"):
        result_lines.in_order([make_line("lora"), make_line(), make_line("lora")])
    with pytest.raises(ValueError, match="seed 3: final=nan is not finite"):
        result_lines.in_order([make_line(seed=3, final=math.nan)])


def test_missing_cells_are_those_another_federated_method_has() -> None:
    lines = make_lines((0, 1), ("asymmetric", "lora", "central"), ("sst2",), ("iid", "severe"))
    assert result_lines.missing(lines) == {}
    torn = [x for x in lines if (x["method"], x["split"], x["seed"]) != ("lora", "severe", 1)]
    assert result_lines.missing(torn) == {"lora": [("sst2", "severe", 1)]}


def test_central_stands_beside_every_split_and_is_never_written_over() -> None:
    lines = make_lines((0,), ("asymmetric", "central"), ("sst2",))
    own = make_line("central", split="severe", final=0.123)
    found = values(result_lines.with_central_everywhere([*lines, own]))["central"]
    iid = make_line("central")["final"]
    assert {split: value for (_, split, _), value in found.items()} == {
        "iid": iid,
        "dirichlet:0.5": iid,
        "severe": 0.123,
    }


def test_partitions_that_differ_between_methods_are_named() -> None:
    other = make_line("lora", partition={"digest": "other"})
    assert result_lines.unequal_partitions([make_line(), other, make_line("ffa", seed=1)]) == [("sst2", "iid", 0)]


def test_methods_of_equal_means_are_tied_whichever_comes_first() -> None:
    one, other = {"asymmetric": {0: 0.8}, "lora": {0: 0.8}}, {"lora": {0: 0.8}, "asymmetric": {0: 0.8}}
    assert standing(one) == Standing("asymmetric", frozenset({"lora"}))
    assert standing(other) == Standing("lora", frozenset({"asymmetric"}))
