"""The study's statistics equal slow obvious computations and never claim more than the seeds allow."""

import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from study_lines import make_line, make_lines

from fedasym.reports.study import result_lines
from fedasym.reports.study.estimates import (
    Paired,
    Standing,
    by_unit,
    bytes_to_reach,
    paired,
    reach,
    seed_of,
    spread,
    standings,
    told_apart,
    unit_over,
    values,
    whole_seeds,
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


def seeds_of(numbers):
    """Numbers as the cells of one task and split, a seed each."""
    return {("task", "iid", seed): number for seed, number in enumerate(numbers)}


@given(st.lists(st.tuples(NUMBER, NUMBER), min_size=2, max_size=12))
def test_interval_and_p_are_those_of_the_paired_t_test(pairs) -> None:
    ours, theirs = (seeds_of(column) for column in zip(*pairs, strict=True))
    found = paired(ours, theirs, seed_of)
    if len({round(a - b, 6) for a, b in pairs}) == 1:
        return  # the t-test divides by a deviation of 0
    test = ttest_rel(list(ours.values()), list(theirs.values()))
    slow = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((slow.low, slow.high), rel=1e-6, abs=1e-9)
    assert found.p == pytest.approx(test.pvalue, rel=1e-6, abs=1e-9)
    if abs(found.p - 0.05) > 1e-9:
        assert (found.p > 0.05) == (found.low <= 0 <= found.high)


CELLS = st.dictionaries(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["iid", "severe"]), st.integers(0, 3)), NUMBER
)


@given(CELLS, CELLS)
def test_every_task_counts_once_however_many_cells_it_has(ours, theirs) -> None:
    by_task = unit_over([("a", "iid"), ("b", "iid")])
    found, back = paired(ours, theirs, by_task), paired(theirs, ours, by_task)
    shared = ours.keys() & theirs.keys()
    if not shared:
        assert found is back is None
        return
    tasks = sorted({task for task, _, _ in shared})
    means = [fmean(ours[c] - theirs[c] for c in shared if c[0] == task) for task in tasks]
    assert found.n == back.n == len(tasks)
    assert found.mean == pytest.approx(fmean(means), abs=1e-12) == pytest.approx(-back.mean, abs=1e-12)
    assert (found.low is None) == (found.high is None) == (found.p is None) == (len(tasks) < 2)


@given(CELLS, CELLS, st.sampled_from("abc"), st.integers(1, 5))
def test_more_cells_of_one_task_that_say_the_same_are_no_more_evidence(ours, theirs, task, copies) -> None:
    by_task = unit_over([("a", "iid"), ("b", "iid")])
    again = {(t, f"{split} {k}", seed): (t, split, seed) for t, split, seed in ours for k in range(copies) if t == task}
    more, others = (
        found | {copy: found[cell] for copy, cell in again.items() if cell in found} for found in (ours, theirs)
    )
    before, after = paired(ours, theirs, by_task), paired(more, others, by_task)
    assert (before is None) == (after is None)
    if before is not None:
        assert after.n == before.n and after.mean == pytest.approx(before.mean, abs=1e-12)


def slow_holm(ps, level=0.05):
    """Holm 1979 as it is defined: accept from the first p, in rising order, that is above level / (m − rank)."""
    order = sorted(range(len(ps)), key=lambda k: ps[k])
    first = next((k for k, place in enumerate(order) if ps[place] > level / (len(ps) - k)), len(ps))
    return {place for place in order[:first]}


@given(st.lists(st.none() | st.floats(0, 0.2), max_size=12))
def test_what_is_marked_survives_holms_correction_for_all_that_could_be(ps) -> None:
    found = told_apart({place: None if p is None else Paired(1.0, 3, 0.5, 1.5, p) for place, p in enumerate(ps)})
    known = [place for place, p in enumerate(ps) if p is not None]
    assert found == {known[place] for place in slow_holm([ps[place] for place in known])}
    if known and min(ps[place] for place in known) > 0.05 / len(known):
        assert not found


def test_random_differences_are_marked_in_at_most_one_table_of_twenty() -> None:
    rng, tables = np.random.default_rng(0), 400
    marked = 0
    for _ in range(tables):
        common = rng.normal(size=4)  # all differences are to one method: they depend on one another
        table = {m: paired(seeds_of(common), seeds_of(rng.normal(size=4)), seed_of) for m in range(6)}
        marked += bool(told_apart(table))
    # 5 % of 400 is 20, and 20 + 3.3 standard deviations of a binomial count, 4.4, is 34.
    assert marked <= 34


def test_of_equal_methods_the_highest_is_told_apart_in_at_most_one_table_of_twenty() -> None:
    rng, tables = np.random.default_rng(1), 400
    found = [standing(**{f"m{k}": rng.normal(size=4) for k in range(6)}) for _ in range(tables)]
    assert sum(bool(each.below) for each in found) <= 34  # as above, though the highest is chosen by the same numbers


def test_equal_differences_are_no_evidence() -> None:
    assert paired(seeds_of([0.8, 0.9]), seeds_of([0.7, 0.8]), seed_of).p is None
    assert not standing(a=[0.8, 0.9], b=[0.7, 0.8]).below


def test_a_mean_over_tasks_leaves_out_a_seed_that_lacks_one() -> None:
    lines = make_lines(methods=("asymmetric",), splits=("iid",))
    places = result_lines.places(lines)

    def means(lines):
        return by_unit(whole_seeds(values(lines).get("asymmetric", {}), places), seed_of)

    whole = means(lines)
    assert whole[1] == pytest.approx(sum(x["final"] for x in lines if x["seed"] == 1) / 4, abs=1e-15)
    torn = [x for x in lines if (x["task"], x["seed"]) != ("sst2", 1)]
    assert means(torn) == {seed: whole[seed] for seed in (0, 2)}
    assert means([]) == {} == whole_seeds(values(lines)["asymmetric"], [])


def standing(**methods):
    """The standing in a table of one column and task; each method's values by seed."""
    return standings({"c": {name: seeds_of(numbers) for name, numbers in methods.items()}}, {"c": seed_of})["c"]


def test_one_lucky_seed_is_never_the_highest_and_never_told_apart() -> None:
    found = standing(lucky=[0.99], good=[0.8, 0.9, 0.85], alike=[0.85, 0.84, 0.85], bad=[0.1, 0.25, 0.15])
    assert found == Standing("good", frozenset({"bad"}))
    assert standing(a=[0.5], b=[0.4]) == Standing("a", frozenset())
    assert standing() == standing(a=[]) == Standing(None, frozenset())


def test_equal_methods_are_not_told_apart_whichever_comes_first() -> None:
    assert standing(a=[0.5, 0.6], b=[0.5, 0.6]) == Standing("a", frozenset())
    assert standing(b=[0.8], a=[0.8]) == Standing("b", frozenset())


def test_what_is_clear_in_a_table_of_one_is_not_in_a_table_of_many() -> None:
    def column(step):
        return {"best": seeds_of([0.8, 0.81, 0.82]), "other": seeds_of([0.8 - step, 0.809 - step, 0.822 - step])}

    alone = standings({"c": column(0.012)}, {"c": seed_of})
    assert alone["c"].below == {"other"}  # p is 0.005
    many = {str(k): column(0.0) for k in range(20)} | {"c": column(0.012)}
    assert not standings(many, dict.fromkeys(many, seed_of))["c"].below


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
