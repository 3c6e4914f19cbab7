"""Texts as tokens, and batches of them."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from world import TEXTS

from fedasym.data.examples import load_examples
from fedasym.settings import Settings
from fedasym.tasks import task_of


@pytest.mark.parametrize("columns", ["text", "text,second"])
@pytest.mark.parametrize("max_length", [6, 64])
def test_tokens_are_those_of_each_text_alone_cut_at_the_length(tiny, columns, max_length) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.model)
    train, _ = load_examples(dataclasses.replace(tiny, text_columns=columns))
    encoded = TEXTS.encode(tokenizer, train, max_length)
    for i, texts in enumerate(zip(*train.inputs, strict=True)):
        assert encoded.items[i] == dict(tokenizer(*texts, truncation=True, max_length=max_length))
        assert encoded.lengths[i] == len(encoded.items[i]["input_ids"]) <= max_length
    assert (max(encoded.lengths) == 6) == (max_length == 6)


def test_a_batch_is_padded_to_its_own_longest_example_and_no_further(tiny) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.model)
    train, _ = load_examples(tiny)
    encoded = TEXTS.encode(tokenizer, train, 64)
    short = np.argsort(encoded.lengths)[[3, 0, 2]].tolist()
    inputs, labels = TEXTS.collate(tokenizer, encoded, short)
    assert inputs["input_ids"].shape == (3, encoded.lengths[short].max()) and encoded.lengths.max() > 8
    assert inputs["attention_mask"].sum(1).tolist() == encoded.lengths[short].tolist()
    for row, mask, place in zip(inputs["input_ids"], inputs["attention_mask"].bool(), short, strict=True):
        assert row[mask].tolist() == encoded.items[place]["input_ids"]
        assert (row[~mask] == tokenizer.pad_token_id).all()
    assert torch.equal(labels, torch.from_numpy(train.labels[short]))


def test_labels_do_not_go_with_a_regression() -> None:
    with pytest.raises(ValueError, match="labels='a,b' does nothing with task='regression'; leave it out"):
        task_of(Settings(task="regression", labels="a,b"))
