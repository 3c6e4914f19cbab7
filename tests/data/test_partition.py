"""Every split is a partition, the same for the same seed, and its digest knows every text, label and assignment."""

import dataclasses
import itertools
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner, NaturalIdPartitioner
from hypothesis import given
from hypothesis import strategies as st

from fedasym.data.examples import load_examples
from fedasym.data.partition import Partition, partition
from fedasym.data.skewed_splits import SplitError
from fedasym.settings import Settings
from fedasym.tasks.base import Examples
from fedasym.tasks.targets import score_bins

BY_LABEL = ("dirichlet:0.5", "pathological:2", "shard:2", "mild", "severe")
SPLITS = (*BY_LABEL, "iid", "linear", "square", "exponential", "quantity:1.0")
CLASSES = ("a", "b", "c")
N = 121  # a prime's square: no number of clients divides it


def settings(split: str = "iid", **more) -> Settings:
    return Settings(**{"num_clients": 4, "min_examples": 2, "split": split, **more})


@pytest.fixture
def examples() -> Examples:
    return Examples(([f"text {i}" for i in range(N)],), np.random.default_rng(3).integers(0, 3, N), CLASSES)


@pytest.fixture
def scores() -> Examples:
    return Examples(([f"text {i}" for i in range(N)],), np.linspace(0, 1, N, dtype=np.float32), ())


def bits(split: Partition) -> list[bytes]:
    return [share.tobytes() for share in split.indices]


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_gives_each_client_examples_of_its_own_sorted_and_within_range(examples, split) -> None:
    found = partition(examples, settings(split))
    places = np.concatenate(found.indices)
    assert len(found.indices) == 4 and len(set(places.tolist())) == len(places)
    assert places.min() >= 0 and places.max() < N
    assert all(share.dtype == np.int64 and (np.diff(share) > 0).all() for share in found.indices)
    assert found.sizes == [len(share) for share in found.indices] and min(found.sizes) >= 2
    # Shards are of one size, so fewer than 4 * 2 examples are left over; every other split covers all.
    assert N - len(places) < 8 if split == "shard:2" else len(places) == N


@pytest.mark.parametrize("split", SPLITS)
def test_the_label_counts_are_those_of_the_clients_examples(examples, split) -> None:
    found = partition(examples, settings(split))
    naive = [[sum(examples.labels[i] == c for i in share) for c in range(3)] for share in found.indices]
    assert found.label_counts.tolist() == naive


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_split_and_another_seed_another(examples, split) -> None:
    first, again, other = (partition(examples, settings(split, seed=seed)) for seed in (5, 5, 6))
    assert bits(first) == bits(again) and first.digest == again.digest
    assert bits(first) != bits(other) and first.digest != other.digest


@pytest.mark.parametrize("split", ["iid", "dirichlet:0.5"])
def test_a_split_asks_nothing_of_the_global_generators(examples, split) -> None:
    np.random.seed(1)  # noqa: NPY002 (the global generator is what must not matter)
    first, state = partition(examples, settings(split)), np.random.get_state()[1].tobytes()  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert bits(first) == bits(partition(examples, settings(split)))
    np.random.seed(1)  # noqa: NPY002
    assert state == np.random.get_state()[1].tobytes()  # noqa: NPY002


def test_each_split_has_the_skew_it_is_named_for(examples) -> None:
    found = {split: partition(examples, settings(split)) for split in SPLITS}
    assert max(found["iid"].sizes) - min(found["iid"].sizes) <= 1
    assert ((found["pathological:2"].label_counts > 0).sum(axis=1) == 2).all()
    assert len(set(found["shard:2"].sizes)) == 1
    for split, power in {"linear": lambda k: k, "square": lambda k: k**2, "exponential": np.exp}.items():
        ideal = np.array([power(k) for k in range(1, 5)], float)
        # Each size is cut down to a whole number and the last client takes what is left: at most 3 off.
        assert np.abs(found[split].sizes - ideal / ideal.sum() * N).max() <= 3

    def skew(alpha: str) -> float:
        counts = partition(examples, settings(f"dirichlet:{alpha}", min_examples=1)).label_counts
        return float((counts / counts.sum(1, keepdims=True)).std(0).mean())

    assert skew("100.0") < skew("0.3")


def test_the_digest_moves_with_any_text_label_class_or_assignment(examples) -> None:
    base = partition(examples, settings()).digest
    texts, labels = list(examples.inputs[0]), examples.labels.copy()
    texts[17] += "."
    labels[17] = (labels[17] + 1) % 3
    joined = list(examples.inputs[0])
    joined[3:5] = [joined[3] + joined[4][0], joined[4][1:]]  # the same characters, cut elsewhere
    digests = [
        base,
        partition(dataclasses.replace(examples, inputs=(texts,)), settings()).digest,
        partition(dataclasses.replace(examples, inputs=(joined,)), settings()).digest,
        partition(dataclasses.replace(examples, inputs=examples.inputs * 2), settings()).digest,
        partition(dataclasses.replace(examples, labels=labels), settings()).digest,
        partition(dataclasses.replace(examples, class_names=("a", "c", "b")), settings()).digest,
        partition(examples, settings(seed=1)).digest,
        partition(examples, settings(num_clients=5)).digest,
        partition(examples, settings("linear")).digest,
    ]
    assert all(one != other for one, other in itertools.combinations(digests, 2))
    assert all(len(digest) == 64 for digest in digests)


@pytest.mark.parametrize(
    ("split", "more", "message"),
    [
        ("exponential", {"min_examples": 5}, "gives client 0 3 examples, fewer than min-examples=5; use fewer clients"),
        ("iid", {"min_examples": 31}, "gives client 1 30 examples, fewer than min-examples=31"),
        ("dirichlet:0.1", {"min_examples": 30}, "num-clients=4 and min-examples=30 is not possible on 121 examples"),
        ("pathological:4", {}, "is not possible on 121 examples: .*unique classes"),
        ("shard:100", {}, "split='shard:100'"),  # more shards than examples
        ("iid", {"num_clients": 122, "min_valid": 1}, "num-clients=122 exceeds the 121 training examples"),
        ("linear", {"num_clients": 100}, "is not possible on 121 examples"),
        ("dirichlet:x", {}, "split='dirichlet:x' has a bad parameter .*use iid, dirichlet:ALPHA"),
        ("dirichlet:0", {}, "has a bad parameter"),
        ("dirichlet", {}, "has a bad parameter"),
        ("pathological:1.5", {}, "has a bad parameter"),
        ("shard:0", {}, "has a bad parameter"),
        ("random", {}, "split='random' is unknown; use iid, dirichlet:ALPHA"),
        ("iid:3", {}, "split='iid:3' is unknown"),
        ("square:3", {}, "split='square:3' is unknown"),
        ("mild:3", {}, "split='mild:3' is unknown"),
        ("column:", {}, "split='column:' is unknown; use .* or column:NAME:CLIENTS"),
        ("column::2", {}, "split='column::2' is unknown"),
        ("quantity:0", {}, "has a bad parameter .*0.0 is not a positive number"),
        ("quantity", {}, "has a bad parameter"),
        ("quantity:1", {"min_examples": 31}, "none of 100 draws gave every client 31 examples; use a larger ALPHA"),
        ("severe", {"min_examples": 40}, "gives client 0 24 examples, fewer than min-examples=40"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused_with_the_reason(examples, split, more, message) -> None:
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message) as raised:
        warnings.simplefilter("ignore")  # flwr-datasets warns at each of its attempts before it gives up
        partition(examples, settings(split, **more))
    # A setting that is wrong for any data is no split that these data do not allow.
    wrong = "bad parameter" in str(raised.value) or "is unknown" in str(raised.value)
    assert isinstance(raised.value, SplitError) != wrong


@pytest.mark.parametrize("split", BY_LABEL)
def test_a_regression_is_split_by_bins_of_its_scores_as_if_they_were_classes(scores, split) -> None:
    bins, names = score_bins(scores.labels, 2 if split in ("mild", "severe") else 5)
    found = partition(scores, settings(split, task="regression"))
    as_classes = partition(dataclasses.replace(scores, labels=bins, class_names=names), settings(split))
    assert bits(found) == bits(as_classes)
    assert found.report(())["classes"] == list(names)
    assert found.label_counts.tolist() == as_classes.label_counts.tolist()


def test_scores_that_make_no_bins_are_refused(scores) -> None:
    constant = dataclasses.replace(scores, labels=np.ones(N, np.float32))
    with pytest.raises(
        SplitError, match=r"split='mild' goes by labels, or bins of scores: .*most of them are 1; use iid"
    ):
        partition(constant, settings("mild", task="regression"))


def test_a_regression_is_split_by_size_and_counted_as_one_class(scores) -> None:
    found = partition(scores, settings("linear", task="regression"))
    assert found.label_counts.tolist() == [[size] for size in found.sizes] and sum(found.sizes) == N


def test_the_report_holds_plain_values_of_the_split(examples) -> None:
    found = partition(examples, settings("dirichlet:0.5"))
    report = found.report(CLASSES)
    assert report["sizes"] == found.sizes and report["classes"] == ["a", "b", "c"]
    assert report["label_counts"] == found.label_counts.tolist() and report["digest"] == found.digest
    assert [sum(row) for row in report["label_counts"]] == report["sizes"]


@given(
    st.sampled_from(["iid", "mild", "severe", "quantity:5.0", "pathological:2", "linear"]),
    st.integers(2, 6),
    st.integers(-(2**40), 2**40),
    st.booleans(),
)
def test_every_example_has_one_client_and_the_seed_alone_decides_which(split, clients, seed, regression) -> None:
    labels = np.arange(97) % 3
    examples = Examples(
        ([""] * 97,), labels.astype(np.float32) if regression else labels, () if regression else CLASSES
    )
    task = "regression" if regression else "classification"
    chosen = settings(split, num_clients=clients, seed=seed, min_examples=1, task=task)
    found = partition(examples, chosen)
    assert sorted(np.concatenate(found.indices).tolist()) == list(range(97))
    assert found.label_counts.sum(1).tolist() == found.sizes
    assert partition(examples, chosen).digest == found.digest


@pytest.fixture
def write(tmp_path):
    """Return a function that writes 30 rows with a column ``hospital`` and gives settings that split by it."""

    def put(values, **more) -> Settings:
        rows = {"text": [f"text {i}" for i in range(30)], "label": [0, 1] * 15, "hospital": values}
        for name in ("train", "test"):
            pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
        return settings("column:hospital", task="classification", data=str(tmp_path), **more)

    return put


def test_a_natural_column_makes_a_client_of_each_value_in_the_order_of_values(write) -> None:
    values = [(10, 2, 9)[i % 3] for i in range(30)]
    chosen = write(values, num_clients=3)
    examples, _ = load_examples(chosen)
    found = partition(examples, chosen)
    assert [share.tolist() for share in found.indices] == [[i for i in range(30) if values[i] == v] for v in (2, 9, 10)]
    library = NaturalIdPartitioner("hospital")
    library.dataset = Dataset.from_dict({"index": list(range(30)), "hospital": values})
    assert [share.tolist() for share in found.indices] == [library.load_partition(k)["index"][:] for k in range(3)]


def test_a_column_with_another_number_of_values_is_refused_with_the_number(write) -> None:
    chosen = write(["north", "south"] * 15, num_clients=4)
    for split, said in (
        ("column:hospital", "makes a client of each value, and the training examples have 2; set num-clients=2"),
        ("column:hospital:3", r"makes 3 clients of each value, .* have 2; set num-clients=6 \(it is 4\)"),
        ("column:hospital:0", r"split='column:hospital:0' has a bad parameter \('0' is no count\); use iid"),
        ("column:hospital:", r"has a bad parameter \('' is no count\)"),
        ("column:hospital:two", r"has a bad parameter \('two' is no count\)"),
    ):
        refused = dataclasses.replace(chosen, split=split)
        with pytest.raises(ValueError, match=said):
            partition(load_examples(refused)[0], refused)


def test_each_value_of_a_column_is_dealt_to_as_many_clients_by_the_seed(write) -> None:
    values = ["south" if i % 3 else "north" for i in range(30)]  # 20 and 10
    chosen = dataclasses.replace(write(values, num_clients=6), split="column:hospital:3")
    examples, _ = load_examples(chosen)
    found = partition(examples, chosen)
    assert [{values[i] for i in share} for share in found.indices] == [{"north"}] * 3 + [{"south"}] * 3
    assert found.sizes == [4, 3, 3, 7, 7, 6]
    assert sorted(np.concatenate(found.indices).tolist()) == list(range(30))
    assert bits(found) == bits(partition(examples, chosen))
    assert bits(found) != bits(partition(examples, dataclasses.replace(chosen, seed=1)))
    one = dataclasses.replace(chosen, split="column:hospital:1", num_clients=2)
    assert bits(partition(examples, one)) == bits(
        partition(examples, dataclasses.replace(one, split="column:hospital"))
    )


def test_a_column_that_is_missing_or_has_an_empty_cell_is_named(write) -> None:
    with pytest.raises(ValueError, match="split 'train' has no column clinic; it has text, label, hospital; set split"):
        load_examples(dataclasses.replace(write(["a", "b"] * 15), split="column:clinic"))
    with pytest.raises(ValueError, match="split 'train', row 4: column 'hospital' is empty"):
        load_examples(write(["a", "b", "a", "b", None] + ["a"] * 25))


def test_the_column_is_read_only_when_it_is_asked_for_and_follows_a_cut(write) -> None:
    chosen = write([f"clinic {i % 3}" for i in range(30)], num_clients=3)
    assert load_examples(dataclasses.replace(chosen, split="iid"))[0].groups is None
    cut, held = load_examples(dataclasses.replace(chosen, validation_cut=6))
    assert cut.groups.tolist() == [int(text.split()[1]) % 3 for text in cut.inputs[0]] and held.groups is None
    assert cut.take(np.array([4, 1])).groups.tolist() == [cut.groups[4], cut.groups[1]]


def test_the_demo_data_has_one_source() -> None:
    chosen = Settings(split="column:source", num_clients=1)
    assert partition(load_examples(chosen)[0], chosen).sizes == [7530]


def test_the_demos_split_is_the_librarys_on_the_seeds_order() -> None:
    chosen = Settings().resolved()
    examples, _ = load_examples(chosen)
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(examples))
    library = DirichletPartitioner(10, "label", 0.5, min_partition_size=10, seed=0)
    library.dataset = Dataset.from_dict({"index": order, "label": examples.labels[order]})
    for k, share in enumerate(partition(examples, chosen).indices):
        assert share.tolist() == sorted(library.load_partition(k)["index"])


def test_a_partition_imports_no_plots_and_leaves_the_library_whole_for_others() -> None:
    code = (
        "import sys, numpy as np\n"
        "from fedasym.tasks.base import Examples\n"
        "from fedasym.data.partition import partition\n"
        "from fedasym.settings import Settings\n"
        "examples = Examples((['text'] * 40,), np.arange(40) % 2, ('a', 'b'))\n"
        "partition(examples, Settings(num_clients=2, min_examples=1))\n"
        "print(sorted({'matplotlib', 'seaborn', 'flwr_datasets'} & sys.modules.keys()))\n"
        "import flwr_datasets\n"
        "print(flwr_datasets.FederatedDataset.__name__)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert said[:2] == ["[]", "FederatedDataset"]
