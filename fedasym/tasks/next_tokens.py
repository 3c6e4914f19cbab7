"""The target of models that write: the next token of an answer, with the model's own head; and how they write one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedasym.tasks.base import Answer, Evaluation, Examples

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedasym.tasks.base import Batch

IGNORED = -100  # the label of a token that no loss is about, as PyTorch and transformers have it
_POSITIONS = ("position_embeddings", "embed_positions", "wpe")  # what transformers calls an absolute position table
_LENGTH = 64  # tokens of an answer at most, where nobody says
# Of a model's own way to generate only its special tokens are kept; lengths, penalties and draws are the settings'.
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")


@dataclass(frozen=True)
class NextTokens:
    """The tokens of an answer, each after all before it, by cross-entropy; the mean is over tokens.

    The answer is a part of the inputs, so a table has no column of labels, and a split cannot go by them. The labels
    that `Inputs.collate` makes stand beside the logits that predict them, ``(n, length)``, `IGNORED` elsewhere.
    """

    columns: tuple[str, ...] = ()
    classified = False
    has_head = False

    def classes(self, frame: Any) -> tuple[str, ...]:
        """Return none."""
        return ()

    def read(self, frame: Any, classes: tuple[str, ...], split: str) -> NDArray[np.int64]:
        """Return zeros: there are no labels."""
        return np.zeros(len(frame), np.int64)

    def split_by(self, examples: Examples, bins: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return zeros.

        Raises:
            ValueError: the split goes by labels.
        """
        if bins:
            raise ValueError("the task has no labels")
        return examples.labels, ()

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Return the mean cross-entropy of logits ``(n, length, words)`` over the tokens that count, in float32."""
        from torch.nn import functional as F

        kept = labels != IGNORED
        return F.cross_entropy(logits[kept].float(), labels[kept])

    def evaluation(self, metrics: tuple[str, ...], processor: Any) -> Evaluation:
        """Begin an evaluation by the share of tokens that are the most likely ones, by perplexity and loss."""
        return TokenEvaluation(self)

    def answers(
        self, model: "nn.Module", processor: Any, batch: "Batch", classes: tuple[str, ...], length: int = 0
    ) -> list[Answer]:
        """Return what the model writes, the most likely token each time, 64 of them at most where nobody says."""
        return [*write(model, processor, *batch, length or _LENGTH, 1, self.ends(processor))]

    def ends(self, processor: Any) -> tuple[int, ...]:
        """Return the tokens that end an answer, beside those that the model itself has for it."""
        return ()


class TokenEvaluation:
    """Token accuracy, the mean loss over all tokens, and its exponential, the perplexity; keeps three sums."""

    def __init__(self, target: NextTokens) -> None:
        self._target = target
        self._loss, self._tokens, self._right = 0.0, 0, 0

    def add(self, model: "nn.Module", inputs: Mapping[str, "Tensor"], labels: "Tensor", items: Sequence[Any]) -> None:
        """Judge the model on one batch."""
        logits, tokens = model(**inputs).logits, int((labels != IGNORED).sum())
        self._loss += self._target.loss(logits, labels).item() * tokens
        self._right += int((logits.argmax(-1) == labels).sum())
        self._tokens += tokens

    def scores(self) -> dict[str, float]:
        """Return ``token_accuracy``, ``perplexity`` and ``loss``.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        mean = self._loss / self._tokens
        if not math.isfinite(mean):
            raise FloatingPointError(f"the model's mean loss is {mean}: training has diverged; lower lr or server-lr")
        return {
            "token_accuracy": self._right / self._tokens,
            "perplexity": math.exp(min(mean, 700.0)),  # above, float64 ends
            "loss": mean,
        }


def write(
    model: Any,
    processor: Any,
    inputs: Mapping[str, "Tensor"],
    labels: "Tensor",
    length: int,
    beams: int,
    ends: Sequence[int] = (),
) -> list[str]:
    """Let a model write; nothing is drawn.

    Args:
        model: of transformers, in evaluation mode.
        processor: its tokenizer.
        inputs: ``input_ids`` and ``attention_mask`` ``(n, length)``, padded on the right, on the model's device.
        labels: beside them; of a decoder alone, only where a row's begin is read.
        length: tokens at most, the end included.
        beams: of the search; 1: the most likely token each time.
        ends: tokens that end a text, beside those that the model itself has for it.

    Returns:
        One text a row, without special tokens.

    Raises:
        ValueError: a length for which the model has no positions.
    """
    ids, mask, start = inputs["input_ids"], inputs["attention_mask"], 0
    if not model.config.is_encoder_decoder:
        ids, mask = _prompts(ids, labels, processor.pad_token_id)
        start = ids.shape[1]
    most = getattr(model.config, "max_position_embeddings", None) or math.inf
    before = start if position_tables(model) else 0  # rotary positions go on, if less well
    if before + length - bool(start) > most:  # a decoder alone does not read the last one
        also = f"{before} tokens before it and " if before else ""
        raise ValueError(f"{also}length={length} exceed the {most} positions of the model; lower the length")
    own = model.generation_config
    kept = {name: getattr(own, name, None) for name in _IDS}
    kept["pad_token_id"] = processor.pad_token_id  # what it fills up with the tokenizer must leave out again
    if ends:
        there = kept["eos_token_id"] if isinstance(kept["eos_token_id"], list) else [kept["eos_token_id"]]
        kept["eos_token_id"] = sorted({*ends, *(token for token in there if token is not None)})
    # In its place and not as an argument, of which transformers fills what is left out from the model's own.
    model.generation_config = type(own)(max_new_tokens=length, num_beams=beams, do_sample=False, use_cache=True, **kept)
    try:
        found = model.generate(input_ids=ids, attention_mask=mask)
    finally:
        model.generation_config = own
    return [text.strip() for text in processor.batch_decode(found[:, start:].cpu(), skip_special_tokens=True)]


def position_tables(model: "nn.Module") -> "list[tuple[str, nn.Module]]":
    """Return a model's absolute position tables with their paths; none where positions are rotary or relative."""
    return [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] in _POSITIONS]


def _prompts(ids: "Tensor", labels: "Tensor", pad: int) -> "tuple[Tensor, Tensor]":
    """Return what stands before the first label of each row, padded on the left, and its mask."""
    from torch.nn.utils.rnn import pad_sequence

    lengths = (labels != IGNORED).int().argmax(dim=1) + 1
    rows = [row[:length] for row, length in zip(ids, lengths.cpu().tolist(), strict=True)]
    padded = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
    ones = [row.new_ones(len(row)) for row in rows]
    return padded, pad_sequence(ones, batch_first=True, padding_side="left")
