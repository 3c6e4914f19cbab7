"""A small BART, pretrained on documents in some minutes of two cores, saved as a hub's snapshot is.

``python -m simulations.pretrain.bart --documents FILE.parquet --out FOLDER``; of the table the column ``document``
alone is read. The tokenizer is a byte-level BPE of the same documents.

Each example asks for one sentence of a document, whose beginning the encoder reads with gaps: for the first sentence
(which must be copied, and filled in where gaps are), or for the one that shares most words with the rest of what is
read, which is taken out whole (gap sentences: Zhang et al. 2019, arXiv 1912.08777). Gaps are spans of Poisson length,
each replaced by one mask token (text infilling: Lewis et al. 2019, arXiv 1910.13461).

So few steps do not suffice to discover copying from nothing, so the model begins near it: positions begin as the
same sinusoids on both sides, and the products of queries with keys, and of values with outputs, as multiples of the
identity in attention across (after Trockman and Kolter 2023, arXiv 2305.09828). All of it trains.
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedasym.adapters.projection import seeded_normal
from fedasym.models import device
from fedasym.ops.processes import cores
from fedasym.tasks.next_tokens import IGNORED
from simulations.pretrain import pretraining
from simulations.pretrain.byte_pairs import END, MASK, PAD, START, make_tokenizer, sentences_of

STEPS = 900
WORDS = 8192  # tokens of the vocabulary
READ, WRITTEN = 64, 28  # tokens of an input and of a target at most, the two around a text included
_MODEL = {
    "d_model": 256, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
_GAP_SENTENCE = 0.25  # of the examples ask for a sentence that was taken out
_HIDDEN, _SPAN = 0.15, 3.0  # share of an input's tokens in gaps, and a gap's mean length
_BATCH, _POOL = 32, 16  # examples of a step; batches whose examples are sorted by length together
_RECIPE = pretraining.Recipe(1e-3, warmup=0.06, decay=0.01, betas=(0.9, 0.98))


@dataclass(frozen=True)
class Example:
    """The ids of an input and of the sentence that is asked for, ends included."""

    read: list[int]
    written: list[int]


def read_documents(file: Path) -> list[str]:
    """Return the documents of a parquet table, and nothing else of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no column ``document``, or no rows.
    """
    import pandas as pd

    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; give a parquet table with a column document")
    table = pd.read_parquet(file)
    if "document" not in table:
        raise ValueError(f"{file} has no column document; it has {', '.join(map(str, table.columns))}")
    documents: list[str] = table["document"].tolist()
    if not documents:
        raise ValueError(f"{file} holds no documents; give a table with rows")
    return documents


def make_model(words: int, seed: int) -> Any:
    """Return an untrained BART; every value is drawn from the seed, or computed as the module says."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(vocab_size=words, dropout=0.0, forced_eos_token_id=None, pad_token_id=PAD, **_MODEL)
    with torch.random.fork_rng(devices=[]):
        model = BartForConditionalGeneration(config)
    width = config.d_model
    waves = _sinusoids(config.max_position_embeddings + 2, width)
    across = {"q_proj": 1.0, "k_proj": 1.0, "v_proj": 0.5, "out_proj": 0.5}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" in name:
                parameter.copy_(waves)
            elif parameter.dim() > 1:
                parameter.copy_(torch.from_numpy(seeded_normal(seed, name, tuple(parameter.shape), 0.02)))
                layer, _, kind = name.removesuffix(".weight").rpartition(".")
                if layer.endswith("encoder_attn"):
                    parameter.add_(across[kind] * torch.eye(width))
    return model


def _sinusoids(count: int, width: int) -> Tensor:
    """Return position vectors of the length of embeddings: Vaswani et al. 2017, arXiv 1706.03762, times 0.02."""
    angles = torch.arange(count)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    return 0.02 * torch.cat([angles.sin(), angles.cos()], dim=1)


def example_of(sentences: Sequence[list[int]], rng: np.random.Generator) -> Example:
    """Ask for one sentence of a document.

    Args:
        sentences: their ids.
        rng: the stream to draw from.
    """
    read = list(sentences)
    if rng.random() < _GAP_SENTENCE and (place := _telling(read)) is not None:
        wanted, read[place] = read[place], [MASK]
    else:
        wanted = read[0]
    ids = [word for sentence in read for word in sentence][: READ - 2]
    return Example([START, *_with_gaps(ids, rng), END], [START, *wanted[: WRITTEN - 2], END])


def _telling(sentences: Sequence[list[int]]) -> int | None:
    """Return the place of the sentence that shares most tokens with the others that are read (F1); None if alone."""
    ends = np.cumsum([len(sentence) for sentence in sentences])
    within = sentences[: int(np.searchsorted(ends, READ - 2, side="right"))]  # those that are read to their end
    if len(within) < 2:
        return None
    counts = [Counter(sentence) for sentence in within]
    everything = sum(counts, Counter[int]())
    shares = [2 * (one & (everything - one)).total() / max(everything.total(), 1) for one in counts]
    return int(np.argmax(shares))


def _with_gaps(ids: list[int], rng: np.random.Generator) -> list[int]:
    """Replace spans that hold about ``_HIDDEN`` of the tokens by one mask each."""
    found, place = [], 0
    start = _HIDDEN / _SPAN / (1 - _HIDDEN)  # of a gap at a token that is not in one
    while place < len(ids):
        if rng.random() < start:
            found.append(MASK)
            place += max(1, int(rng.poisson(_SPAN)))
        else:
            found.append(ids[place])
            place += 1
    return found


def batch_of(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return inputs and labels, padded to the longest of each."""
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(one.read) for one in examples]
    labels = [torch.tensor(one.written) for one in examples]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=PAD),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


def batches_of(documents: Sequence[Sequence[list[int]]], steps: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Yield a run's batches: shuffled passes over the documents, examples of about one length together."""

    def one_pass(rng: np.random.Generator) -> list[Example]:
        return [example_of(documents[i], rng) for i in rng.permutation(len(documents))]

    return map(
        batch_of,
        pretraining.batches_of(one_pass, lambda one: len(one.read) + len(one.written), _BATCH, _POOL, steps, seed),
    )


def pretrain(file: Path, out: Path, steps: int, seed: int = 0) -> float:
    """Pretrain and save model and tokenizer; return the mean loss of the last tenth of the steps.

    Args:
        file: parquet table with a column ``document``.
        out: folder to write; the setting ``model`` takes it.
        steps: of 32 documents each.
        seed: of the initial values, and of what is drawn.

    Raises:
        FileNotFoundError, ValueError: as `read_documents`.
        FloatingPointError: the loss is not finite.
    """
    texts = read_documents(file)
    tokenizer = make_tokenizer(texts, WORDS, _MODEL["max_position_embeddings"])
    device.prepare(torch.device("cpu"), cores(), deterministic=True)
    model = make_model(len(tokenizer), seed).train()
    documents = [tokenizer(sentences_of(text) or [text], add_special_tokens=False)["input_ids"] for text in texts]
    losses = pretraining.train(
        model, batches_of(documents, steps, seed), lambda inputs: model(**inputs).loss, steps, _RECIPE
    )
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def main() -> None:
    """Pretrain as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m simulations.pretrain.bart", description="Pretrain a small BART.")
    parser.add_argument("--documents", type=Path, required=True, metavar="FILE", help="parquet with a column document")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the model")
    parser.add_argument("--steps", type=int, default=STEPS, help="of 32 documents each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (%(default)s)")
    told = parser.parse_args()
    print(f"{told.out}: loss {pretrain(told.documents, told.out, told.steps, told.seed):.3f} a token at the end")


if __name__ == "__main__":
    main()
