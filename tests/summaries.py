"""Tiny documents with summaries in two sections, a tiny T5, and settings of all three kinds of models that write."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

from fedasym.settings import from_run_config

KINDS = ("bart", "t5", "llama")
SECTIONS = ("games", "libs")
TOPICS = ("good", "bad", "plain")


def make_documents(folder: Path, train: int = 48, test: int = 12) -> Path:
    """Write train.jsonl and test.jsonl: 3 to 9 words of which the first two are the summary, dealt to two sections."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    for name, count in (("train", train), ("test", test)):
        rows = []
        for i in range(count):
            words = [TOPICS[i % 3], *(f"word{k}" for k in rng.integers(0, 24, rng.integers(2, 9)))]
            row = {"document": " ".join(words), "summary": " ".join(words[: 1 + i % 3]), "section": SECTIONS[i % 2]}
            rows.append(json.dumps(row))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def make_t5(folder: Path, like: Path) -> Path:
    """Save a T5 of one layer a side whose output layer is the embedding, with the tokenizer of another tiny model."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        config = transformers.T5Config(
            vocab_size=31, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
            pad_token_id=0, eos_token_id=3, decoder_start_token_id=0,
        )  # fmt: skip
        transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def make_causal(folder: Path, like: Path) -> Path:
    """Save another tiny model with a head that writes, and its tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(13)
        transformers.AutoModelForCausalLM.from_pretrained(like).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def values_of(kind: str, models: dict[str, Path], root: Path, **more: object) -> dict[str, object]:
    """Return the run config of a federation of two sections on the tiny documents below a folder."""
    data, t5, llama = root / "documents", root / "t5", root / "llama"
    if not data.exists():
        make_documents(data)
        make_t5(t5, models["bart"])
        make_causal(llama, models["llama"])
    values: dict[str, object] = {
        "task": "summarize-causal" if kind == "llama" else "summarize",
        "model": str({**models, "t5": t5, "llama": llama}[kind]),
        "data": str(data),
        "text-columns": "document",
        "dtype": "float32",
        "split": "column:section",
        "num-clients": 2,
        "num-rounds": 2,
        "local-steps": 2,
        "batch-size": 4,
        "lr": 0.1,
        "head-lr": 0.1,
        "rank": 4,
        "alpha": 8.0,
        "max-length": 12,
        "answer-length": 8,
    }
    return values | {key.replace("_", "-"): value for key, value in more.items()}


def settings_of(kind: str, models: dict[str, Path], root: Path, **more: object):
    """Return resolved settings of `values_of`."""
    return from_run_config(values_of(kind, models, root, **more)).resolved()
