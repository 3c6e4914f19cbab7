"""Summaries of documents, written by models that have both an encoder and a decoder, or a decoder alone.

``summarize`` is for the former (BART, T5 and their like), whose encoder reads the document and whose decoder writes the
summary. ``summarize-causal`` is for the latter (GPT-2, LLaMA), which read the document, a cue, and the summary as
one sequence; the cue is ``TL;DR:`` on a line of its own (Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners") where the setting ``prompt`` has no other.

The document is the one column of ``text-columns``, cut at ``max-length`` tokens, what ``prompt`` puts before it and
the tokenizer's own included; the summary is that of ``answer-column``, cut at ``answer-length`` tokens, its end
included. Two data sets of the literature are a matter of settings:

* XSum (Narayan et al. 2018, arXiv 1808.08745): ``data="EdinburghNLP/xsum"``, ``text-columns="document"``,
  ``answer-column="summary"``;
* CNN/DailyMail (See et al. 2017, arXiv 1704.04368): ``data="abisee/cnn_dailymail"``, ``data-config="3.0.0"``,
  ``text-columns="article"``, ``answer-column="highlights"``.

T5 was trained with ``prompt="summarize: "``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedasym.tasks.base import Answer, Encoded, Evaluation, Examples, Inputs, Task, Told
from fedasym.tasks.columns import one_row, texts_in
from fedasym.tasks.metrics import rouge
from fedasym.tasks.next_tokens import IGNORED, NextTokens, TokenEvaluation, write
from fedasym.tasks.text import Texts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedasym.tasks.base import Batch
    from fedasym.tasks.settings import TaskSettings

_PLACE = "{document}"
_CUE = "\nTL;DR:"
_PLAIN = {"add_special_tokens": False, "split_special_tokens": True}  # what stands in a text is text


@dataclass(frozen=True)
class Documents:
    """A document for an encoder, and its summary for a decoder.

    The decoder's inputs are made by the model itself, of the labels that it is given: models shift them by rules of
    their own. An item of `Encoded` holds ``input_ids``, ``answer`` (the summary's ids) and ``reference``, the summary
    as it is written.

    Attributes:
        columns: of the document, and of the summary, unless nobody has written one yet.
        answer_length: tokens of a summary at most, the tokenizer's own included.
        before: words before the document, which are cut with it.
        after: words after it, which are not.
    """

    columns: tuple[str, ...]
    answer_length: int
    before: str = ""
    after: str = ""
    model_class = "AutoModelForSeq2SeqLM"
    processor_class = "AutoTokenizer"
    pooling = "model"

    @property
    def asked(self) -> Inputs:
        """The document alone."""
        return replace(self, columns=self.columns[:1])

    def row(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the document."""
        return {**one_row(self.columns, words)}

    def told(self, examples: Examples) -> list[Told]:
        """Return documents and summaries."""
        return [Told(*texts) for texts in zip(*examples.inputs, strict=True)]

    def read(self, frame: Any, split: str) -> tuple[list[str], ...]:
        """Return documents and summaries.

        Raises:
            ValueError: one is blank; names split, column and row.
        """
        return tuple(texts_in(frame, column, split) for column in self.columns)

    def probe(self, processor: Any) -> tuple[list[str], ...]:
        """Return some rows of words of the tokenizer's own vocabulary, and others as their summaries."""
        return Texts(self.columns).probe(processor)

    def encode(self, processor: Any, examples: Examples, max_length: int, pooling: str = "model") -> Encoded:
        """Tokenise documents and summaries without padding, each cut at its length.

        Raises:
            ValueError: a length that leaves no room beside the tokens that the tokenizer adds.
        """
        documents, tail, last = self._documents(processor, examples, max_length)
        self._require_room(processor, "answer-length", self.answer_length)
        summaries = self._summaries(examples)
        answers = processor(
            text_target=summaries, truncation=True, max_length=self.answer_length, split_special_tokens=True
        )
        return _encoded([row + tail + last for row in documents], answers["input_ids"], summaries, examples)

    def positions(self, processor: Any, max_length: int) -> tuple[int, int]:
        """Return the tokens of a document with what is said around it, and those of a summary."""
        return max_length + len(_ids(processor, self.after)), self.answer_length

    def collate(self, processor: Any, encoded: Encoded, places: Sequence[int]) -> "tuple[dict[str, Tensor], Tensor]":
        """Pad documents and summaries to the longest of each; the labels are among the inputs too."""
        import torch

        items = [encoded.items[i] for i in places]
        rows = [torch.tensor(item["input_ids"]) for item in items]
        labels = _padded([torch.tensor(item["answer"]) for item in items], IGNORED)
        return {**_inputs(rows, processor.pad_token_id), "labels": labels}, labels

    def _documents(
        self, processor: Any, examples: Examples, max_length: int
    ) -> tuple[list[list[int]], list[int], list[int]]:
        """Return the ids of documents, cut and without an end, of the words after them, and of a text's end."""
        self._require_room(processor, "max-length", max_length)
        _, last = _around(processor)
        texts = [self.before + text for text in examples.inputs[0]]
        rows = processor(texts, truncation=True, max_length=max_length, split_special_tokens=True)["input_ids"]
        return [row[: len(row) - len(last)] for row in rows], _ids(processor, self.after), last

    def _summaries(self, examples: Examples) -> list[str]:
        """Return the summaries, empty where nobody has written them yet."""
        return examples.inputs[1] if len(self.columns) == 2 else [""] * len(examples)

    def _require_room(self, processor: Any, setting: str, length: int) -> None:
        taken = sum(map(len, _around(processor)))
        if length <= taken:
            raise ValueError(
                f"{setting}={length} leaves no room for a text beside the {taken} tokens that the tokenizer adds to "
                f"it; set {setting} to {taken + 1} or more"
            )


@dataclass(frozen=True)
class ContinuedDocuments(Documents):
    """A document, a cue and the summary as one sequence for a decoder alone.

    The summary's ids are those that it has after the cue and a space, and the tokenizer's end token after them.
    """

    model_class = "AutoModelForCausalLM"

    def encode(self, processor: Any, examples: Examples, max_length: int, pooling: str = "model") -> Encoded:
        """Tokenise documents, cue and summaries, documents and summaries cut at their lengths.

        Raises:
            ValueError: a tokenizer without an end token, a length that leaves no room, or a cue that grows together
                with the summary.
        """
        if processor.eos_token_id is None:
            raise ValueError("the model's tokenizer has no eos_token, by which a summary ends; take another model")
        if self.answer_length < 2:
            raise ValueError(f"answer-length={self.answer_length} leaves no room beside the end; set 2 or more")
        documents, tail, _ = self._documents(processor, examples, max_length)
        summaries = self._summaries(examples)
        joined = [f"{self.after} {text}" if text else self.after for text in summaries]
        answers = []
        for text, row in zip(joined, processor(joined, **_PLAIN)["input_ids"], strict=True):
            if row[: len(tail)] != tail:
                raise ValueError(
                    f"the end of the prompt {self.after!r} is not the same tokens before {text[len(self.after) :]!r}; "
                    "end the prompt with a word or a colon, without a space"
                )
            answers.append([*row[len(tail) :][: self.answer_length - 1], processor.eos_token_id])
        return _encoded([row + tail for row in documents], answers, summaries, examples)

    def positions(self, processor: Any, max_length: int) -> tuple[int, int]:
        """Return the tokens of the whole sequence but its last, which is not read."""
        whole = max_length + len(_ids(processor, self.after)) + self.answer_length - 1
        return whole, whole

    def collate(self, processor: Any, encoded: Encoded, places: Sequence[int]) -> "tuple[dict[str, Tensor], Tensor]":
        """Pad the sequences on the right; labels stand at the places whose logits predict them."""
        import torch

        items = [encoded.items[i] for i in places]
        rows = [torch.tensor([*item["input_ids"], *item["answer"][:-1]]) for item in items]
        labels = [torch.tensor([*[IGNORED] * (len(item["input_ids"]) - 1), *item["answer"]]) for item in items]
        return _inputs(rows, processor.pad_token_id), _padded(labels, IGNORED)


@dataclass(frozen=True)
class Summaries(NextTokens):
    """A summary's tokens, judged by the loss and by what the model writes itself.

    Attributes:
        answer_length: tokens that are written at most.
        beams: of the search; 1: the most likely token each time.
    """

    answer_length: int = field(kw_only=True)
    beams: int = field(kw_only=True)

    def evaluation(self, metrics: tuple[str, ...], processor: Any) -> Evaluation:
        """Begin an evaluation by ROUGE."""
        return SummaryEvaluation(self, metrics, processor)

    def ends(self, processor: Any) -> tuple[int, ...]:
        """Return the token that ends every summary that is trained on."""
        return () if processor.eos_token_id is None else (processor.eos_token_id,)

    def answers(
        self, model: "nn.Module", processor: Any, batch: "Batch", classes: tuple[str, ...], length: int = 0
    ) -> list[Answer]:
        """Return summaries, as long as those that are judged where nobody says otherwise."""
        return [*write(model, processor, *batch, length or self.answer_length, self.beams, self.ends(processor))]


class SummaryEvaluation:
    """ROUGE of what the model writes, its mean over examples, and the mean loss over tokens.

    Of each example it keeps one number a metric.
    """

    def __init__(self, target: Summaries, metrics: tuple[str, ...], processor: Any) -> None:
        self._target, self._metrics, self._processor = target, metrics, processor
        self._tokens = TokenEvaluation(target)
        self._scores: list[NDArray[np.float64]] = []

    def add(self, model: "nn.Module", inputs: Mapping[str, "Tensor"], labels: "Tensor", items: Sequence[Any]) -> None:
        """Judge the model on one batch."""
        self._tokens.add(model, inputs, labels, items)
        texts = write(
            model, self._processor, inputs, labels, self._target.answer_length, self._target.beams,
            self._target.ends(self._processor),
        )  # fmt: skip
        self._scores.append(rouge(self._metrics, texts, [item["reference"] for item in items]))

    def scores(self) -> dict[str, float]:
        """Return the metrics, the first one's standard error of the mean (of two examples or more), and ``loss``.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        loss = self._tokens.scores()["loss"]
        found = np.concatenate(self._scores)
        scores = dict(zip(self._metrics, found.mean(axis=0).tolist(), strict=True))
        if len(found) > 1:
            scores[f"{self._metrics[0]}_stderr"] = float(found[:, 0].std(ddof=1)) / math.sqrt(len(found))
        return {**scores, "loss": loss}


def _padded(rows: "list[Tensor]", value: int) -> "Tensor":
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(rows, batch_first=True, padding_value=value)


def _inputs(rows: "list[Tensor]", pad: int) -> "dict[str, Tensor]":
    return {"input_ids": _padded(rows, pad), "attention_mask": _padded([row.new_ones(len(row)) for row in rows], 0)}


def _encoded(documents: list[list[int]], answers: list[list[int]], summaries: list[str], examples: Examples) -> Encoded:
    items = [
        {"input_ids": document, "answer": answer, "reference": reference}
        for document, answer, reference in zip(documents, answers, summaries, strict=True)
    ]
    terms = np.asarray([len(answer) for answer in answers], np.int64)
    lengths = np.asarray([len(document) for document in documents], np.int64) + terms
    return Encoded(items, lengths, examples.labels, terms)


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text without any that the tokenizer adds."""
    found: list[int] = tokenizer(text, **_PLAIN)["input_ids"] if text else []
    return found


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer puts before a text and after it."""
    whole, plain = tokenizer("a")["input_ids"], _ids(tokenizer, "a")
    start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    return whole[:start], whole[start + len(plain) :]


def summarize(settings: "TaskSettings") -> Task:
    """Return the task of models with an encoder and a decoder.

    Raises:
        ValueError: settings that do not name one document and one summary.
    """
    before, _, after = settings.prompt.partition(_PLACE)
    return _task(settings, Documents(_columns(settings), settings.answer_length, before, after))


def summarize_causal(settings: "TaskSettings") -> Task:
    """Return the task of models with a decoder alone.

    Raises:
        ValueError: settings that do not name one document and one summary, or a prompt that ends with the document.
    """
    before, place, after = settings.prompt.partition(_PLACE)
    if place and not after.strip():
        raise ValueError(
            f"prompt={settings.prompt!r} has no words after {_PLACE}, by which the model would see that the summary "
            f"begins; write e.g. {_PLACE + _CUE!r}"
        )
    return _task(settings, ContinuedDocuments(_columns(settings), settings.answer_length, before, after or _CUE))


def _columns(settings: "TaskSettings") -> tuple[str, str]:
    columns, summary = settings.text_column_names, settings.answer_column
    if len(columns) != 1:
        raise ValueError(f"text-columns={settings.text_columns!r} names {len(columns)} columns; name the document's")
    if summary == columns[0]:
        raise ValueError(
            f"answer-column={summary!r} is the document's column too: the summary would be read as the document; set "
            "one of them to another column"
        )
    if settings.labels:
        raise ValueError(f"labels={settings.labels!r} does nothing with task={settings.task!r}; leave it out")
    if settings.prompt.count(_PLACE) > 1:
        raise ValueError(f"prompt={settings.prompt!r} holds {_PLACE} more than once; the document stands in one place")
    return columns[0], summary


def _task(settings: "TaskSettings", inputs: Documents) -> Task:
    target = Summaries(answer_length=settings.answer_length, beams=settings.beams)
    reads = {
        "text-columns": settings.text_columns,
        "answer-column": settings.answer_column,
        "train-split": settings.train_split,
    }
    return Task(
        settings.task, inputs, target, ("rougeL", "rouge1", "rouge2"), settings.data, settings.data_config,
        settings.train_split, settings.test_split, reads=reads, advice="set text-columns and answer-column",
    )  # fmt: skip


TASKS = {"summarize": summarize, "summarize-causal": summarize_causal}
