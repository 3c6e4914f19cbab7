"""A model is refused by name before anything is built on it: an adapter, code of its own, a tokenizer of another."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from world import TEXTS, make_model, tiny_settings

from fedasym.models.build import build
from fedasym.tasks.base import Examples


def spoiled(folder: Path, **config: object) -> Path:
    make_model(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def built(root: Path, model: Path, **more: object):
    return build(tiny_settings(root, model=str(model), **more).resolved(), 2, TEXTS)


def test_the_folder_of_an_adapter_is_no_model(tmp_path: Path) -> None:
    (make_model(tmp_path / "m") / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "m")})
    )
    with pytest.raises(
        ValueError, match=r"is a PEFT adapter, not a model: set model to its base model and init-adapter"
    ):
        built(tmp_path, tmp_path / "m")


def test_a_model_with_code_of_its_own_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    model = spoiled(
        tmp_path / "m", model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}
    )
    (model / "mine.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(ValueError, match=r"of the type 'mine', for which it brings code of its own, and no code comes"):
        built(tmp_path, model)


def test_a_token_that_the_embedding_lacks_is_named(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(model)
    with pytest.raises(ValueError, match=r"knows 'zebra' as id (\d+), and the model's embedding has \1 rows"):
        built(tmp_path, model)


def test_a_tokenizer_that_can_neither_pad_nor_end_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(model)
    with pytest.raises(ValueError, match="has neither a padding token nor an end-of-sequence token"):
        built(tmp_path, model)


@pytest.mark.parametrize("pad", [0, -1, 7, None])
def test_what_else_is_in_a_batch_changes_no_answer_whatever_padding_id_the_config_names(
    tmp_path: Path, pad: int | None
) -> None:
    plain = make_model(tmp_path / "words")  # for its tokenizer
    tokenizer = transformers.AutoTokenizer.from_pretrained(plain)
    tokenizer.eos_token, tokenizer.pad_token = "[SEP]", None
    folder = tmp_path / "llama"
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, num_labels=2, pad_token_id=None,
    )  # fmt: skip
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": pad}))
    settings = tiny_settings(tmp_path, model=str(folder), pooling="model", targets="all-linear").resolved()
    found = build(settings, 2, TEXTS)
    assert found.model.config.pad_token_id == found.processor.pad_token_id == tokenizer.eos_token_id
    texts = ["the fine film", "[PAD] a very dull story and the film the plot", "and music"]
    answers = []
    for batch in (texts, [texts[0]]):
        inputs = found.processor(batch, padding=True, return_tensors="pt")
        with torch.no_grad():
            answers.append(found.model(**inputs).logits[0])
    assert torch.allclose(*answers, atol=1e-5)


def test_positions_counted_around_another_padding_id_are_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "words")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=70, pad_token_id=1,
    )  # fmt: skip
    transformers.RobertaModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "roberta")
    tokenizer.save_pretrained(tmp_path / "roberta")
    with pytest.raises(ValueError, match=r"counts positions around the padding id 1 .*pads with '\[PAD\]', id 0"):
        built(tmp_path, tmp_path / "roberta")


def test_texts_that_hold_a_special_token_are_text(tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(make_model(tmp_path / "m"))
    examples = Examples((["film [SEP] the"],), np.zeros(1, np.int64), ())
    (item,) = TEXTS.encode(tokenizer, examples, 20).items
    known = tokenizer.get_vocab()
    unknown = [known["[UNK]"]] * 3  # "[", "SEP" and "]" are no words of this tokenizer's
    assert item["input_ids"] == [known["[CLS]"], known["film"], *unknown, known["the"], known["[SEP]"]]
    assert tokenizer("[SEP]", add_special_tokens=False)["input_ids"] == [known["[SEP]"]]  # of itself it is one


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_model_of_absolute_positions_answers_alike_whatever_is_beside_a_text_and_whatever_side_is_padded(
    tmp_path: Path, side: str
) -> None:
    model = make_model(tmp_path / "m")
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": side}))
    assert transformers.AutoTokenizer.from_pretrained(model).padding_side == side
    found = built(tmp_path, model)
    assert found.processor.padding_side == "right"
    texts = ["the fine film", "a very dull story and the film the plot and the music"]
    examples = Examples((texts,), np.zeros(2, np.int64), ())
    encoded = TEXTS.encode(found.processor, examples, 20)
    with torch.no_grad():
        alone, beside = (found.model(**TEXTS.collate(found.processor, encoded, places)[0]).logits[0]
                         for places in ([0], [0, 1]))  # fmt: skip
    assert torch.allclose(alone, beside, atol=1e-5)
