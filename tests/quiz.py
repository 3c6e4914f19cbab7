"""A tiny model that writes, and a quiz for it: instructions of three subjects, and multiple choice about them."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fedasym.settings import Settings, from_run_config

SUBJECTS = ("capital_cities", "colours", "numbers")
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_SPECIAL = ("<pad>", "<s>", "</s>", "<|endoftext|>")
_WORDS = ("red", "blue", "Rome", "Oslo", "one", "two", "seven", "pale green")


def make_tokenizer(template: str = TEMPLATE, opens: bool = False) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, in which a letter after a space is one token; ``opens``: it begins each text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", letter) for letter in "ABCD"]
    words = [*_SPECIAL, *letters, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if opens:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<|endoftext|>"
    )
    tokenizer.chat_template = template or None
    return tokenizer


def make_writer(
    folder: Path, template: str = TEMPLATE, kind: str = "llama", opens: bool = False, tied: bool = True
) -> Path:
    """Save a two-layer decoder with a head that writes (hidden size 32) and its tokenizer of bytes."""
    tokenizer = make_tokenizer(template, opens)
    numbers = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024, "initializer_range": 0.2,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": tied,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = transformers.AutoConfig.for_model(kind, **numbers)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_quiz(folder: Path, each: int = 12) -> Path:
    """Write instructions/{train,validation}.jsonl and {dev,test}.jsonl in Alpaca's and MMLU's layouts."""
    (folder / "instructions").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)
    for name, count in (("instructions/train", each), ("instructions/validation", 3), ("dev", 3), ("test", 5)):
        rows = []
        for i in range(count):
            for subject in SUBJECTS:
                words = [str(word) for word in rng.permutation(_WORDS)[:4]]
                asked = f"Say {words[0]} once more" if i % 2 else f"Which is {words[0]}?"
                if "instructions" in name:
                    extra = f"It is {words[1]}." if i % 3 else ""
                    rows.append({"instruction": asked, "input": extra, "output": words[0], "subject": subject})
                else:
                    place = int(rng.integers(4))
                    choices = [*words[1:][:place], words[0], *words[1:][place:]]
                    rows.append({"question": asked, "subject": subject, "choices": choices, "answer": place})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def quiz_values(root: Path, **more: object) -> dict[str, object]:
    """Return the run config of a federation of three clients, one a subject, judged by multiple choice."""
    if not (root / "writer").exists():
        make_writer(root / "writer")
        make_quiz(root / "quiz")
    values: dict[str, object] = {
        "task": "instruct",
        "model": str(root / "writer"),
        "data": str(root / "quiz"),
        "data-config": "instructions",
        "test-split": "validation",
        "choices-data": str(root / "quiz"),
        "choices-shots": 2,
        "split": "column:subject",
        "num-clients": len(SUBJECTS),
        "dtype": "float32",
        "num-rounds": 2,
        "local-steps": 2,
        "batch-size": 4,
        "max-length": 512,
        "rank": 4,
        "lr": 0.1,
        "head-lr": 0.1,
    }
    return values | {key.replace("_", "-"): value for key, value in more.items()}


def quiz_settings(root: Path, **more: object) -> Settings:
    """Return settings on the tiny quiz; keyword arguments override."""
    return from_run_config(quiz_values(root, **more))
