"""What a model and its processor do, told apart from which versions of which libraries do it.

Two parties may train together if equal texts become equal token ids, or equal images equal pixel values, and the
initial model gives equal logits, up to the rounding of its arithmetic. Ids and pixel values are compared by a digest,
which is a part of the contract; the logits are numbers, which no digest can hold, and are compared by `logits_refusal`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fedasym.models.device import device_of, place
from fedasym.models.settings import ModelSettings
from fedasym.tasks.base import Examples, Inputs
from fedasym.tasks.next_tokens import IGNORED

# Of a config.json: who wrote it (names with "_" and these), in which dtype (the setting `dtype` says it), and names of
# classes (the contract's `labels`). All else may change what the model computes, and is compared.
_BOOKKEEPING = ("transformers_version", "architectures", "torch_dtype", "dtype", "id2label", "label2id")
# Of an image processor: who wrote and who reads it, and what it does where a call says nothing, which ours do.
_PROCESSOR_BOOKKEEPING = (
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "transformers_version",
    "data_format", "input_data_format", "return_tensors", "device", "disable_grouping",
)  # fmt: skip
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# One each for what tokenizers are known to treat differently.
_HARD = (
    "",
    " ",
    "The QUICK brown Fox",
    "naïve café Straße ÅNGSTRÖM İstanbul",
    "e\u0301 ﬁ ½ ² Ⅷ ａ",  # an accent of its own, a ligature, what NFKC rewrites
    "  two  spaces,\ttabs\nand\r\n\nlines ",
    "3.14159 1,000,000 2026-11-27 0x1F",
    "don't stop... it's—well—'quoted' \"here\"!?",
    "#tag @user https://example.org/a?b=c&d=1",
    "🙂👩\u200d🔬🇩🇪",
    "東京に行きました。 한국어 漢字",
    "Привет, мир; שלום עולם; مرحبا",
    "antidisestablishmentarianism" * 4,
    "a\u200bb\u00a0c\u00add\ufeff",  # spaces and hyphens that nobody sees
    "<s> </s> [CLS] [SEP] <|endoftext|>",
    "def f(x):\n    return x ** 2",
)
_SHORT = 8  # tokens: the hard texts are cut there too, as long texts are in training
_TOGETHER = 64  # tokens of the vocabulary in one text: a call costs more than its words
_MARKS = str.maketrans({"Ġ": " ", "▁": " "})  # how tokenizers write a space inside a token
_LONGEST = 8  # tokens of a row: enough to pass every part of the model, and some hundredths of a local training
# Largest difference of two logits, relative to the largest logit. Rounding alone: a unit u (2^-24, 2^-8) for each of
# the about 10 L results that a token's row is rounded to in L layers, which add up like a random walk, and in float32
# about u sqrt(d) inside a product of length d: L = 32, d = 4096 give 7e-5 in float32, 7e-2 in bfloat16, whose products
# are summed in float32. Measured on MiniLM (AVX2): eager and sdpa 2e-6 and 2e-2, one and two threads 0, torch 2.13 and
# 2.14 0 in float32; bfloat16 is 4e-2 from float32. Another head count, mask or activation moves logits by more than
# 1e-3 (tests/models/test_party_equivalence.py).
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}


def described(raw: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what a ``config.json`` says of the model: its keys, sorted, each with its value as canonical JSON.

    >>> described({"num_attention_heads": 12, "_name_or_path": "x", "transformers_version": "5.23.0"})
    (('num_attention_heads', '12'),)
    """
    kept = {key: value for key, value in raw.items() if not key.startswith("_") and key not in _BOOKKEEPING}
    return tuple((key, _canonical(kept[key])) for key in sorted(kept))


def digest_tokenizer(tokenizer: Any) -> str:
    """Digest what a tokenizer does: SHA-256 of its vocabulary, special ids, chat template, and the ids of fixed texts.

    The texts are hand-written hard ones, alone, in pairs and cut short, and the whole vocabulary: every token beside
    the next one in the order of ids, with a space between and without, so that other merges show.
    """
    vocabulary = tokenizer.get_vocab()
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in _SPECIAL}
    sides = [tokenizer.padding_side, tokenizer.truncation_side]
    chat = [tokenizer.chat_template] if getattr(tokenizer, "chat_template", None) else []
    state = hashlib.sha256(_canonical([vocabulary, special, sorted(tokenizer.all_special_ids), sides, *chat]).encode())
    hard = list(_HARD)
    for texts, options in (
        ([hard], {}),
        ([hard, hard[::-1]], {}),
        ([hard], {"truncation": True, "max_length": _SHORT}),
        ([hard, hard[::-1]], {"truncation": True, "max_length": _SHORT}),
        ([_vocabulary_texts(vocabulary)], {"add_special_tokens": False}),
    ):
        _update(state, tokenizer(*texts, verbose=False, return_attention_mask=False, **options))
    return state.hexdigest()


def digest_processor(processor: Any, inputs: Inputs) -> str:
    """Digest what reads a model's inputs: `digest_tokenizer`, or of images `digest_image_processor`."""
    if inputs.processor_class == "AutoTokenizer":
        return digest_tokenizer(processor)
    return digest_image_processor(processor, inputs)


def digest_image_processor(processor: Any, inputs: Inputs) -> str:
    """Digest what an image processor does: SHA-256 of its settings, and of the pixel values of fixed images.

    Values are rounded to 1/8. There are 256 of a channel before normalisation, about 1/60 apart, and libraries that
    compute them in another order differ by 1e-7; the chance that one of them crosses an edge so is about 1 in 1,000.
    What is finer shows in the logits.
    """
    said = {key: value for key, value in processor.to_dict().items() if key not in _PROCESSOR_BOOKKEEPING}
    state = hashlib.sha256(_canonical({key: said[key] for key in said if not key.startswith("_")}).encode())
    columns = inputs.probe(processor)
    encoded = inputs.encode(processor, Examples(columns, np.zeros(len(columns[0]), np.int64), ()), _LONGEST)
    batch, _ = inputs.collate(processor, encoded, range(len(encoded)))
    for key in sorted(batch):
        values = np.rint(batch[key].numpy() * 8).astype("<i4")
        state.update(f"{key} {values.shape} ".encode() + values.tobytes())
    return state.hexdigest()


def _vocabulary_texts(vocabulary: Mapping[str, int]) -> list[str]:
    words = [word.translate(_MARKS).removeprefix("##") for word in sorted(vocabulary, key=vocabulary.__getitem__)]
    spaced = [word if place % 2 else f" {word}" for place, word in enumerate(words)]
    return ["".join(spaced[start : start + _TOGETHER]) for start in range(0, len(spaced), _TOGETHER)]


def _update(state: Any, columns: Mapping[str, list[list[int]]]) -> None:
    """Digest ids, and which of two texts each belongs to where that is said."""
    for key in ("input_ids", "token_type_ids"):
        for row in columns.get(key, []):
            if key == "input_ids" or any(row):  # zeros mean as much as nothing
                state.update(f"{key} {len(row)} ".encode() + np.asarray(row, "<i8").tobytes())


def initial_logits(
    model: nn.Module, processor: Any, inputs: Inputs, settings: ModelSettings, places: Sequence[int] = ()
) -> tuple[float, ...]:
    """Return what a model that is not yet trained says to a fixed input.

    Tokens, padding and mask are made of it as in training; nothing of the model changes.

    Args:
        model: in evaluation mode, on its device.
        processor: its own.
        inputs: how it reads what it is given; has the fixed input.
        settings: ``max_length`` and ``pooling``.
        places: which of the examples that the input is made of, in this order; -1 is the last; empty: all.

    Raises:
        ValueError: a logit is not finite.
    """
    columns = inputs.probe(processor)
    examples = Examples(columns, np.zeros(len(columns[0]), np.int64), ())
    encoded = inputs.encode(processor, examples, min(settings.max_length, _LONGEST), settings.pooling)
    batch, labels = inputs.collate(processor, encoded, places or range(len(encoded)))
    with torch.no_grad():
        logits = model(**place(batch, device_of(model))).logits.float().cpu()
    if logits.ndim == 3:  # of every token, for the whole vocabulary
        logits = logits[labels != IGNORED][:, :: max(1, logits.shape[-1] // _LONGEST)]
    if not torch.isfinite(logits).all():
        raise ValueError(
            f"model {settings.model!r} in {settings.dtype} gives logits that are not finite before any training; take "
            "other weights or dtype='float32'"
        )
    return tuple(logits.flatten().tolist())


def require_causal(model: nn.Module, settings: ModelSettings) -> None:
    """Require that a token's logits do not depend on the tokens after it, which they are to predict.

    transformers builds a causal head for encoders too, such as BERT, whose tokens see one another.

    Raises:
        ValueError: they do.
    """
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=device_of(model))
    with torch.no_grad():
        one, two = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1].float().cpu()
    if logits_gap(one.flatten().tolist(), two.flatten().tolist()) > TOLERANCES[settings.dtype]:
        raise ValueError(
            f"in model {settings.model!r} a token sees those after it, so it cannot learn to predict them; take a "
            "decoder such as LLaMA, Qwen2 or SmolLM2"
        )


def logits_gap(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Return the largest difference of two parties' logits relative to the largest logit; infinity for other counts.

    >>> logits_gap([0.5, -2.0], [0.5, -1.0])
    0.5
    """
    one, two = np.asarray(theirs, np.float64), np.asarray(ours, np.float64)
    if one.shape != two.shape or not np.isfinite(one).all():
        return float("inf")
    largest = max(float(np.abs(one).max()), float(np.abs(two).max()))
    return float(np.abs(one - two).max()) / largest if largest else 0.0


def logits_refusal(theirs: Sequence[float], ours: Sequence[float], dtype: str) -> str:
    """Say that the server's logits are not ours, with both values, the tolerance and what to do; "" if they are."""
    gap, tolerance = logits_gap(theirs, ours), TOLERANCES[dtype]
    if gap <= tolerance:
        return ""
    if len(theirs) != len(ours):
        return f"the server states {len(theirs)} logits of the initial model, we have {len(ours)}; run one fedasym"
    apart = np.abs(np.subtract(theirs, ours, dtype=np.float64))
    place = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)))
    return (
        f"the initial model's logits on the fixed input differ by {gap:.2g} of the largest, tolerance {tolerance:g} in "
        f"{dtype}: logit {place} is {theirs[place]:.9g} there, {ours[place]:.9g} here. Weights and tokenizer are "
        "equal, so what computes differs: compare torch, transformers and the device's settings (TF32) of both sides, "
        "and install the server's versions"
    )


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
