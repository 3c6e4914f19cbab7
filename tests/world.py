"""A small real world for tests that span: a tiny BERT and labelled sentences in a folder."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from fedasym.settings import Settings, from_run_config

GOOD, BAD = ("fine", "warm", "clever", "bright"), ("dull", "cold", "stale", "grey")
PLAIN = ("film", "story", "scene", "actor", "plot", "music", "the", "a", "and", "very")


def make_model(folder: Path, seed: int = 0) -> Path:
    """Save a one-layer BERT (hidden size 32) and its word-level tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *PLAIN]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            initializer_range=0.3,
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def make_data(folder: Path, train: int = 160, test: int = 60) -> Path:
    """Write train.jsonl and test.jsonl: sentences of 3 to 8 words whose good or bad words decide the label."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(5)
    for name, count in (("train", train), ("test", test)):
        rows = []
        for i in range(count):
            label = i % 2
            telling = chance.choice(GOOD if label else BAD, chance.integers(1, 3))
            text = [*chance.choice(PLAIN, chance.integers(2, 6)), *telling]
            chance.shuffle(text)
            rows.append(json.dumps({"text": " ".join(text), "label": ("bad", "good")[label]}))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def tiny_values(root: Path, **more: object) -> dict[str, object]:
    """Return the run config of a federation of four clients on the tiny world under root."""
    model, data = root / "model", root / "data"
    if not model.exists():
        make_model(model)
        make_data(data)
    values: dict[str, object] = {
        "task": "classification",
        "model": str(model),
        "pooling": "mean",
        "data": str(data),
        "dtype": "float32",
        "num-clients": 4,
        "num-rounds": 3,
        "local-steps": 3,
        "batch-size": 8,
        "rank": 4,
        "split": "dirichlet:1.0",
        "min-examples": 5,
    }
    return values | {key.replace("_", "-"): value for key, value in more.items()}


def tiny_settings(root: Path, **more: object) -> Settings:
    """Return settings on the tiny world; keyword arguments override."""
    return from_run_config(tiny_values(root, **more))
