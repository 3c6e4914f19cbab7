"""Texts of a pair that stand apart: tokenised, padded and pooled one by one, and seen as [|u − v|, u ⊙ v]."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from world import make_data, make_model, tiny_settings, watched_run

from fedasym.data.examples import load_examples
from fedasym.models.build import build
from fedasym.runs.record import read_rounds
from fedasym.tasks.text import Texts

PAIRS = Texts(("text", "second"))


@pytest.fixture
def paired(models, tiny):
    return dataclasses.replace(tiny, model=str(models["bert"]), pooling="pair", text_columns="text,second")


def test_each_text_of_a_pair_is_tokenised_as_if_it_were_alone(paired) -> None:
    built, (examples, _) = build(paired, 3, PAIRS), load_examples(paired)
    encoded = PAIRS.encode(built.processor, examples, 6, "pair")
    for i in (0, 1, 7):
        item = encoded.items[i]
        for own, column in ((item["input_ids"], 0), (item["second_input_ids"], 1)):
            alone = built.processor(examples.inputs[column][i], truncation=True, max_length=6)
            assert own == alone["input_ids"] and len(own) <= 6
        assert encoded.lengths[i] == len(item["input_ids"]) + len(item["second_input_ids"])
    assert encoded.take(np.array([7, 1])).items == [encoded.items[7], encoded.items[1]]


def test_each_side_of_a_batch_is_padded_by_itself(paired) -> None:
    built, (examples, _) = build(paired, 3, PAIRS), load_examples(paired)
    encoded = PAIRS.encode(built.processor, examples, 16, "pair")
    places = [3, 0, 11]
    inputs, labels = PAIRS.collate(built.processor, encoded, places)
    for prefix in ("", "second_"):
        rows = [encoded.items[i][f"{prefix}input_ids"] for i in places]
        assert inputs[f"{prefix}input_ids"].shape == (3, max(map(len, rows)))
        mask = inputs[f"{prefix}attention_mask"]
        found = [ids[kept == 1].tolist() for ids, kept in zip(inputs[f"{prefix}input_ids"], mask, strict=True)]
        assert found == rows
    assert labels.tolist() == encoded.labels[places].tolist()


def test_the_logits_of_a_pair_are_those_of_distance_and_product_of_the_means_of_its_tokens(paired) -> None:
    built, (examples, _) = build(paired, 3, PAIRS), load_examples(paired)
    model, output = built.model, built.model.get_submodule(built.output)
    assert output.weight.shape == (3, 2 * 16)
    with torch.no_grad():
        output.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
    encoded = PAIRS.encode(built.processor, examples, 16, "pair")
    places = [0, 5, 9, 2]
    inputs, _ = PAIRS.collate(built.processor, encoded, places)
    with torch.no_grad():
        found = model(**inputs).logits
        for row, i in zip(found, places, strict=True):
            u, v = (
                model.encoder(input_ids=torch.tensor([encoded.items[i][f"{prefix}input_ids"]]))
                .last_hidden_state[0]
                .mean(0)
                for prefix in ("", "second_")
            )
            logits = [
                sum(w * x for w, x in zip(weight, [*(u - v).abs(), *(u * v)], strict=True)) + bias
                for weight, bias in zip(output.weight, output.bias, strict=True)
            ]
            # Float32 sums of 16 values and of 32 products in another order, and padding's share of the attention.
            torch.testing.assert_close(row, torch.stack(logits), rtol=1e-5, atol=1e-5)
        turned = {key.removeprefix("second_") if "second_" in key else f"second_{key}": v for key, v in inputs.items()}
        torch.testing.assert_close(model(**turned).logits, found)  # which text stands first does not matter


def test_pairs_apart_of_one_text_column_are_refused(paired) -> None:
    single = dataclasses.replace(paired, text_columns="text")
    examples, _ = load_examples(single)
    with pytest.raises(ValueError, match="pooling='pair' needs two text columns; there are 1"):
        PAIRS.encode(build(single, 3, PAIRS).processor, examples, 16, "pair")


def test_a_federation_on_pairs_apart_runs_and_gives_the_same_bits_with_two_workers(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    for path in make_data(tmp_path / "data", train=80, test=20).glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for i, row in enumerate(rows):
            row["other"] = rows[i - 1]["text"]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = []
    for workers in (1, 2):
        settings = tiny_settings(
            tmp_path, out=str(tmp_path / f"run{workers}"), pooling="pair", text_columns="text,other", num_rounds=2
        )
        folder, _ = watched_run(settings, workers)
        found.append([row["digest"] for row in read_rounds(folder)])
    assert found[0] == found[1] and len(set(found[0])) == 2
