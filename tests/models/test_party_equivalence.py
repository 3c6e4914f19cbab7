"""Tokenizers and models are told apart by what they do: ids and logits, not versions."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from world import TEXTS, tiny_settings

from fedasym.methods import METHODS
from fedasym.models.build import build
from fedasym.models.party_equivalence import TOLERANCES, digest_tokenizer, initial_logits, logits_gap, logits_refusal


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def merging(*merges: tuple[str, str], lower: bool = False, dropped: str = "") -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer over a, b, c and their merges in the given order."""
    words = ["[PAD]", "[UNK]", "a", "b", "c", "A", "ab", "bc", "abc", "abbc"]
    words = [word for word in words if word != dropped]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [*merges], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        backend.normalizer = normalizers.Lowercase()
    return fast(backend)


MERGES = (("a", "b"), ("b", "c"), ("ab", "c"))


def test_a_tokenizer_that_was_saved_and_read_again_has_the_same_digest(models, tmp_path) -> None:
    first = AutoTokenizer.from_pretrained(models["bert"])
    first.save_pretrained(tmp_path)
    assert digest_tokenizer(AutoTokenizer.from_pretrained(tmp_path)) == digest_tokenizer(first)


def test_using_a_tokenizer_does_not_change_its_digest_nor_the_digest_its_use(models) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models["bert"])
    before, ids = digest_tokenizer(tokenizer), tokenizer(["word1 word2"] * 2)["input_ids"]
    tokenizer("word1 word2 word3", truncation=True, max_length=2)
    assert digest_tokenizer(tokenizer) == before and tokenizer(["word1 word2"] * 2)["input_ids"] == ids


@pytest.mark.parametrize(
    "other",
    [
        merging(MERGES[1], MERGES[0], MERGES[2]),
        merging(*MERGES[:2], ("a", "bc")),
        merging(*MERGES, lower=True),
        merging(*MERGES, dropped="abbc"),
    ],
    ids=["merges in another order", "another merge", "another normaliser", "a token less"],
)
def test_whatever_changes_the_ids_of_some_text_changes_the_digest(other) -> None:
    assert digest_tokenizer(other) != digest_tokenizer(merging(*MERGES)) == digest_tokenizer(merging(*MERGES))


def test_the_side_of_padding_and_another_special_token_change_the_digest() -> None:
    usual, left, other = (merging(*MERGES) for _ in range(3))
    left.padding_side = "left"
    other.pad_token = "c"
    assert len({digest_tokenizer(each) for each in (usual, left, other)}) == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_two_builds_and_other_kernels_agree_within_the_tolerance(tiny, models, family, attention) -> None:
    settings = dataclasses.replace(tiny, model=str(models[family]))
    one = build(settings, 3, TEXTS).logits
    two = build(dataclasses.replace(settings, attention=attention), 3, TEXTS).logits
    assert len(one) == 9 and np.abs(one).max() > 0
    assert logits_gap(one, two) <= (TOLERANCES["float32"] / 10 if attention != settings.attention else 0)
    assert logits_refusal(one, two, "float32") == ""


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_from_the_logits_of_the_base_model(tiny, method) -> None:
    one = {"num_clients": 1} if method == "central" else {}
    settings = dataclasses.replace(tiny, method=method, kind="auto", head="auto", client_holdout=0.2, **one).resolved()
    assert (
        build(settings, 3, TEXTS).logits == build(tiny, 3, TEXTS).logits
    )  # s B A x with a zero factor adds exact zeros


def test_the_fixed_input_leaves_the_model_as_it_is_and_sees_the_mask(tiny) -> None:
    built = build(tiny, 3, TEXTS)
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in built.model.named_parameters()}
    threads = torch.get_num_threads()
    assert initial_logits(built.model, built.processor, TEXTS, tiny) == built.logits
    for name, tensor in built.model.named_parameters():
        assert torch.equal(tensor, before[name][0]) and tensor.requires_grad == before[name][1] and tensor.grad is None
    assert not built.model.training and torch.get_num_threads() == threads
    real = built.model.forward
    built.model.forward = lambda attention_mask, **inputs: real(
        attention_mask=torch.ones_like(attention_mask), **inputs
    )
    assert logits_gap(built.logits, initial_logits(built.model, built.processor, TEXTS, tiny)) > TOLERANCES["float32"]


@pytest.mark.parametrize("key", ["num_attention_heads", "hidden_act", "layer_norm_eps"])
def test_the_same_weights_under_another_configuration_give_other_logits(tmp_path, key) -> None:
    settings = tiny_settings(tmp_path).resolved()
    path = Path(shutil.copytree(settings.model, tmp_path / "other")) / "config.json"
    changed = {"num_attention_heads": 4, "hidden_act": "relu", "layer_norm_eps": 1e-2}
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: changed[key]}))
    one, two = build(settings, 3, TEXTS), build(dataclasses.replace(settings, model=str(path.parent)), 3, TEXTS)
    assert one.base == two.base and one.ids == two.ids
    assert logits_gap(one.logits, two.logits) > 10 * TOLERANCES["float32"]
    assert [name for name, _ in set(one.config) ^ set(two.config)] == [key, key]


def test_bfloat16_is_within_its_tolerance_of_float32_on_the_tiny_model(tiny) -> None:
    rounded = build(dataclasses.replace(tiny, dtype="bfloat16"), 3, TEXTS).logits
    assert 0 < logits_gap(build(tiny, 3, TEXTS).logits, rounded) <= TOLERANCES["bfloat16"]


def test_logits_beyond_the_tolerance_are_refused_with_both_values_and_the_tolerance() -> None:
    reason = logits_refusal([0.5, -2.0], [0.5, -2.001], "float32")
    assert "differ by 0.0005 of the largest, tolerance 0.0001 in float32: logit 1 is -2 there, -2.001 here" in reason
    assert logits_refusal([0.5, -2.0], [0.5, -2.001], "bfloat16") == ""
    assert "logit 0 is nan there, 0.5 here" in logits_refusal([float("nan"), 1.0], [0.5, 1.0], "float32")
    assert "the server states 0 logits of the initial model, we have 2" in logits_refusal([], [0.5, 1.0], "float32")
    assert logits_refusal([0.0, 0.0], [0.0, 0.0], "float32") == ""
