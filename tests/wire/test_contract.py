"""Equal settings, models and data give one contract; whatever differs is named in the refusal."""

import dataclasses
import json
from importlib import metadata

import pytest
from world import TEXTS

from fedasym.data.examples import load_examples
from fedasym.data.partition import partition
from fedasym.methods.base import values
from fedasym.models.build import build
from fedasym.wire.contract import Contract, contract_of


def contract(settings, labels=("bad", "good", "plain"), data="d" * 64):
    return contract_of(settings, build(settings, len(labels), TEXTS), labels, data)


@pytest.fixture(scope="module")
def base(tiny):
    return contract(tiny)


def test_equal_settings_give_equal_contracts_and_hashes_and_no_refusal(tiny, base) -> None:
    again = contract(tiny)
    assert again == base and again.hash == base.hash and len(base.hash) == 64
    assert again.refusal(base.to_json()) == ""


def test_what_does_not_change_the_training_does_not_change_the_contract(tiny, base) -> None:
    other = dataclasses.replace(tiny, out="/elsewhere", num_rounds=99, min_valid=2, round_timeout=5.0)
    assert contract(other).hash == base.hash


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, ["seed: 0 there, 1 here", "A: "]),
        ({"rank": 2}, ["rank: 4 there, 2 here", "matrix bert.pooler.dense.B: (16, 4) there, (16, 2) here"]),
        ({"kind": "block"}, ["kind: 'orthonormal' there, 'block' here", "A: "]),
        ({"method": "lora", "kind": "orthonormal"}, ["method: 'asymmetric' there", "factors: 'B' there, 'AB' here"]),
        ({"alpha": 4.0}, ["alpha: 8.0 there, 4.0 here"]),
        ({"scaling": "alpha/sqrt(r)"}, ["scaling: 'alpha/r' there, 'alpha/sqrt(r)' here"]),
        ({"head": "frozen"}, ["head: 'output' there, 'frozen' here", "matrix classifier.weight: (3, 16) there"]),
        ({"targets": "query"}, ["matrix bert.pooler.dense.B: (16, 4) there, 'absent' here"]),
        ({"dtype": "bfloat16"}, ["base: "]),
        ({"pooling": "mean"}, ["base: ", "matrix output.weight: 'absent' there, (3, 16) here"]),
        ({"task": "reviews"}, ["task: 'classification' there, 'reviews' here"]),
        ({"lr": 0.25}, ["local: ", "lr=0.1 ", "lr=0.25 "]),
        ({"batch_size": 5}, ["local: ", "batch_size=4 ", "batch_size=5 "]),
        ({"max_length": 9}, ["local: ", "max_length=16 ", "max_length=9 "]),
        ({"one_product": False}, ["local: ", " one_product=True'"]),
        ({"threads": 2}, ["local: ", "threads=1", "threads=2"]),
        ({"client_holdout": 0.5}, ["local: ", "client_holdout=0.0 ", "client_holdout=0.5 "]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_setting_that_differs_changes_the_hash_and_is_named(tiny, base, change, named) -> None:
    other = contract(dataclasses.replace(tiny, **change))
    reason = other.refusal(base.to_json())
    assert other.hash != base.hash
    assert reason.startswith("the contract differs (server there, client here): ")
    assert all(part in reason for part in named), reason


@pytest.mark.parametrize("more", [{"dtype": "bfloat16"}, {"method": "full", "head": "full"}])
def test_one_product_is_in_the_contract_only_where_there_can_be_some(tiny, base, more) -> None:
    assert " one_product=True" in base.local and "one_product" not in contract(dataclasses.replace(tiny, **more)).local
    without = contract(dataclasses.replace(tiny, one_product=False)).local
    assert without == base.local.replace(" one_product=True", "")  # as a run stated it that knew two alone


def test_another_base_model_is_named(tiny, models, base) -> None:
    reason = contract(dataclasses.replace(tiny, model=str(models["roberta"]))).refusal(base.to_json())
    assert f"base: '{base.base}' there" in reason
    assert "matrix roberta.encoder.layer.0.output.dense.B: 'absent' there" in reason


def test_other_labels_and_data_are_named(tiny, base) -> None:
    assert "labels: " in contract(tiny, ("bad", "good", "fine")).refusal(base.to_json())
    assert f"data: '{'d' * 64}' there, '{'e' * 64}' here" in contract(tiny, data="e" * 64).refusal(base.to_json())


def test_a_contract_of_another_version_of_fedasym_is_refused_in_words(base) -> None:
    theirs = json.loads(base.to_json())
    older = {key: value for key, value in theirs.items() if key != "tokenizer"} | {"versions": "x", "config": "c" * 64}
    assert base.refusal(json.dumps(older)) == (
        "the contract is of another version of fedasym (server there, client here): versions is there alone, tokenizer "
        "is here alone, config has another form; use one version"
    )
    assert "it is a list; use one version" in base.refusal("[]")


def test_a_contract_of_the_time_when_the_rank_was_in_the_key_of_A_is_refused_with_that_reason(base) -> None:
    before = {key: value for key, value in json.loads(base.to_json()).items() if key != "A_stream"}
    assert base.refusal(json.dumps(before)) == (
        "equal seeds give another A (server there, client here): A_stream: 1 there, 2 here; use one version of "
        "fedasym, and start anew what another version began"
    )


def test_no_version_of_a_library_is_in_the_contract(base) -> None:
    for name in ("torch", "transformers", "tokenizers", "numpy", "flwr"):
        assert metadata.version(name) not in base.to_json(), name


def test_one_line_a_difference_and_nothing_else(base) -> None:
    other = dataclasses.replace(base, seed=5)
    assert other.refusal(base.to_json()).partition("): ")[2] == "seed: 0 there, 5 here"
    assert base.refusal(other.to_json()).partition("): ")[2] == "seed: 5 there, 0 here"


# The layers are those of the schema's B (see below), so they cannot differ alone.
@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Contract) if f.name != "layers"])
def test_no_field_of_the_contract_can_differ_unnamed(base, field) -> None:
    value = getattr(base, field)
    changed = {str: lambda v: v + "x", int: lambda v: v + 1, float: lambda v: v + 1, tuple: lambda v: v[1:]}
    other = dataclasses.replace(base, **{field: changed[type(value)](value)})
    assert other.hash != base.hash
    first = {"schema": f"matrix {base.schema[0][0]}", "config": f"config {base.config[0][0]}"}
    word = first.get(field, field)
    assert f"{word}: " in other.refusal(base.to_json())


def test_the_schema_names_what_travels_sorted_and_values_counts_it(tiny, base) -> None:
    built = build(tiny, 3, TEXTS)
    assert base.schema == tuple(sorted(base.schema)) and [n for n, _ in base.schema if n.endswith(".B")] == [
        f"{name}.B" for name in built.layers
    ]
    # Two BERT layers of d=16, feed-forward 24, r=4: four attention linears 16, then 24 and 16; the pooler; the head.
    assert values(base.schema) == 2 * 4 * (4 * 16 + 24 + 16) + 4 * 16 + 3 * 16 + 3


def test_the_digest_of_the_split_data_is_in_the_contract(tiny) -> None:
    one, other = (
        contract(tiny, data=partition(load_examples(s)[0], s).digest)
        for s in (tiny, dataclasses.replace(tiny, split="linear"))
    )
    assert other.refusal(one.to_json()).partition("): ")[2] == f"data: '{one.data}' there, '{other.data}' here"


def test_the_json_is_canonical(base) -> None:
    text = base.to_json()
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text
