"""Multiple-choice questions in MMLU's layout, by which a model that writes can be judged.

Source: Hendrycks et al. 2021 (arXiv 2009.03300): the columns question, subject, choices and answer, the first rows of
the split ``dev`` of a question's own subject as shots, and the prompt of the paper's evaluation, where the model is
asked for the letter after ``Answer:``. A model that is at chance with letters can be asked for the choice's text
instead: the choices are then not listed, and a text's log-likelihood is divided by its characters (the cloze form of
Gu et al. 2024, arXiv 2406.08446). Prompts are plain text, without a chat template.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_uppercase as LETTERS
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedasym.tasks.base import Answer, Encoded, Evaluation, Examples, Inputs, Task, Told
from fedasym.tasks.columns import Row, require_cells, rows_of
from fedasym.tasks.next_tokens import IGNORED
from fedasym.tasks.token_rows import opening, padded

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedasym.tasks.base import Batch
    from fedasym.tasks.settings import TaskSettings

SHOTS_SPLIT = "dev"  # MMLU's, whose rows are for shots
SCORES = ("letter", "text")
_ADVICE = "give the questions MMLU's columns, those of cais/mmlu"


@dataclass(frozen=True)
class Questions:
    """Questions with shots before them, and the endings that are scored, one for each choice.

    Attributes:
        score: what is scored, a choice's ``letter`` or its ``text``.
        shots: questions of the same subject, with their answers, before each.
        before: what stands before a question, by subject: the benchmark's first sentence and the shots.
    """

    score: str
    shots: int
    before: Mapping[str, str] = field(default_factory=dict)
    columns = ("question", "subject", "choices")
    model_class = "AutoModelForCausalLM"
    processor_class = "AutoTokenizer"
    pooling = "model"

    def showing(self, frame: Any) -> Inputs:
        """Return the same with shots out of a table: the first rows of each subject.

        Raises:
            ValueError: a column is missing, a cell is none, or a subject has too few rows; names split and row.
        """
        require_cells(frame, (*self.columns, *Answers.columns), SHOTS_SPLIT, _ADVICE)
        answers = Answers().read(frame, (), SHOTS_SPLIT).tolist()
        shown: dict[str, list[str]] = {}
        for (question, subject, choices), answer in zip(self._rows(frame, SHOTS_SPLIT), answers, strict=True):
            if len(shown.setdefault(subject, [])) < self.shots:
                shown[subject].append(self._asked(question, choices) + self._endings(choices)[answer] + "\n\n")
        few = {subject: len(rows) for subject, rows in shown.items() if len(rows) < self.shots}
        if few:
            subject, count = next(iter(few.items()))
            raise ValueError(
                f"split {SHOTS_SPLIT!r} has {count} questions on {subject!r}, and choices-shots={self.shots}; lower "
                "choices-shots or add some"
            )
        return replace(self, before={subject: "".join(rows) for subject, rows in shown.items()})

    def read(self, frame: Any, split: str) -> tuple[list[str], list[Row]]:
        """Return each question as JSON, with all that stands before it, and where it stands.

        Raises:
            ValueError: choices that are no list of two texts or more, or a subject without shots; names split and row.
        """
        cells, rows = [], rows_of(frame, split)
        for row, (question, subject, choices) in zip(rows, self._rows(frame, split), strict=True):
            if self.shots and subject not in self.before:
                raise ValueError(
                    f"{row}: split {SHOTS_SPLIT!r} has no questions on {subject!r} to show before it; add "
                    f"{self.shots} there, or set choices-shots=0"
                )
            title = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
            head = (title if self.score == "letter" else "") + self.before.get(subject, "")
            text = head + self._asked(question, choices)
            sizes = [1] * len(choices) if self.score == "letter" else [len(choice) for choice in choices]
            endings = self._endings(choices)
            cell = {"subject": subject, "text": text, "from": len(head), "endings": endings, "sizes": sizes}
            cells.append(json.dumps(cell))
        return cells, rows

    @property
    def asked(self) -> Inputs:
        """The object itself: its choices are what may be answered."""
        return self

    def row(self, words: Sequence[str]) -> dict[str, Any]:
        """Refuse.

        Raises:
            ValueError: questions judge, and nobody types them.
        """
        raise ValueError("multiple choice judges a run, and is not asked for by hand; give a table of questions")

    def told(self, examples: Examples) -> list[Told]:
        """Return the questions without what stands before them, and the right choices."""
        cells = [json.loads(cell) for cell in examples.inputs[0]]
        return [
            Told(cell["text"][cell["from"] :], cell["endings"][answer].strip())
            for cell, answer in zip(cells, examples.labels.tolist(), strict=True)
        ]

    def positions(self, processor: Any, max_length: int) -> tuple[int, int]:
        """Return ``max_length``, of one decoder."""
        return max_length, max_length

    def probe(self, processor: Any) -> tuple[list[str], list[str]]:
        """Return a question of one word of the tokenizer's own, with two answers."""
        word = next(word for word, i in sorted(processor.get_vocab().items()) if i not in processor.all_special_ids)
        cell = {"subject": "fixed", "text": word, "endings": [f" {word}", f" {word} {word}"], "sizes": [1, 1]}
        return [json.dumps(cell)], ["the fixed input's question"]

    def encode(self, processor: Any, examples: Examples, max_length: int, pooling: str = "model") -> Encoded:
        """Tokenise every question with each of its endings; nothing is cut.

        Args:
            processor: the model's tokenizer.
            examples: of `read` or `probe`.
            max_length: tokens of a question and an ending at most, all before it included.
            pooling: has no meaning here.

        Raises:
            ValueError: a question is longer, or its tokens are others with the ending behind it; names it.
        """
        cells, rows = [json.loads(cell) for cell in examples.inputs[0]], examples.inputs[1]
        texts = [text for cell in cells for text in (cell["text"], *(cell["text"] + end for end in cell["endings"]))]
        options = {"add_special_tokens": False, "verbose": False, "split_special_tokens": True}
        ids = iter(processor(texts, **options)["input_ids"] if texts else [])
        first, items = opening(processor), []
        for cell, row in zip(cells, rows, strict=True):
            asked, wholes = next(ids), [next(ids) for _ in cell["endings"]]
            longest = len(first) + max(map(len, wholes))
            if longest > max_length:
                raise ValueError(
                    f"{row}: the question and its {self.shots} shots have {longest} tokens, more than max-length="
                    f"{max_length}; raise max-length (shorter examples cost no more), or lower choices-shots"
                )
            if any(whole[: len(asked)] != asked or len(whole) == len(asked) for whole in wholes):
                raise ValueError(
                    f"{row}: the tokenizer writes the end of the question otherwise when an answer follows, so the "
                    "answer's tokens cannot be told apart; take another model"
                )
            prompt = [*first, *asked]
            inputs = [(*prompt, *whole[len(asked) : -1]) for whole in wholes]  # what the last token follows
            different = list(dict.fromkeys(inputs))  # one for all of the endings that are a single token
            items.append(
                {
                    "inputs": different,
                    "rows": [different.index(each) for each in inputs],
                    "start": len(prompt) - 1,
                    "endings": [whole[len(asked) :] for whole in wholes],
                    "sizes": cell["sizes"],
                    "subject": cell["subject"],
                }
            )
        lengths = [max(map(len, item["inputs"])) for item in items]
        return Encoded(items, np.asarray(lengths, np.int64), examples.labels, np.ones(len(items), np.int64))

    def collate(self, processor: Any, encoded: Encoded, places: Sequence[int]) -> "tuple[dict[str, Tensor], Tensor]":
        """Return the chosen questions as one batch, padded on the right.

        Returns:
            The model's ``input_ids`` and ``attention_mask`` ``(rows, length)``. For each ending, in the order of
            questions and choices: ``question``, its place in the batch; ``row``, that of its inputs; ``start``, the
            token that its first follows; ``size``, what its log-likelihood is divided by, all ``(endings,)``;
            ``tokens`` ``(endings, longest)``, `IGNORED` behind the last. And the right choices ``(n,)``. All int64.
        """
        import torch

        items, starts = [encoded.items[i] for i in places], []
        rows: list[Sequence[int]] = []
        for item in items:
            starts.append(len(rows))
            rows += item["inputs"]
        counted = [(place, item, k) for place, item in enumerate(items) for k in range(len(item["endings"]))]
        inputs = padded(rows, processor.pad_token_id)
        inputs |= {
            "question": torch.tensor([place for place, _, _ in counted]),
            "row": torch.tensor([starts[place] + item["rows"][k] for place, item, k in counted]),
            "start": torch.tensor([item["start"] for _, item, _ in counted]),
            "size": torch.tensor([item["sizes"][k] for _, item, k in counted]),
            "tokens": padded([item["endings"][k] for _, item, k in counted], IGNORED)["input_ids"],
        }
        return inputs, torch.from_numpy(encoded.labels[np.asarray(places)])

    def _rows(self, frame: Any, split: str) -> list[tuple[str, str, list[str]]]:
        """Return question, subject and choices of each row, checked."""
        found = []
        columns = zip(*(frame[name].tolist() for name in self.columns), strict=True)
        for row, (question, subject, cell) in zip(rows_of(frame, split), columns, strict=True):
            choices = choices_in(cell, row)
            if subject == "mean" or not str(subject).strip():
                raise ValueError(
                    f"{row}: the subject is {subject!r}, which cannot name its own accuracy; name it otherwise"
                )
            found.append((str(question), str(subject), choices))
        return found

    def _asked(self, question: str, choices: Sequence[str]) -> str:
        """Return a question up to where its answer follows."""
        if self.score == "text":
            return f"Question: {question}\nAnswer:"
        letters = LETTERS[: len(choices)]
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
        return f"{question}\n{listed}\nAnswer:"

    def _endings(self, choices: Sequence[str]) -> list[str]:
        return [f" {text}" for text in (choices if self.score == "text" else LETTERS[: len(choices)])]


def choices_in(cell: Any, row: Row) -> list[str]:
    """Return the choices of a cell.

    Raises:
        ValueError: it is no list of two to 26 texts; names the row.
    """
    choices: list[str] = list(cell) if isinstance(cell, list | np.ndarray) else []
    good = all(isinstance(choice, str) and choice.strip() for choice in choices)
    if not good or not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(
            f"{row}: column 'choices' holds {str(cell)[:80]!r}; it must be a list of 2 to {len(LETTERS)} texts, none "
            "empty (parquet or jsonl)"
        )
    return [str(choice) for choice in choices]


@dataclass(frozen=True)
class Answers:
    """The right one of a question's choices: the one whose ending is the likeliest."""

    columns = ("answer",)
    classified = False
    has_head = False

    def classes(self, frame: Any) -> tuple[str, ...]:
        """Return none: each question has choices of its own."""
        return ()

    def read(self, frame: Any, classes: tuple[str, ...], split: str) -> NDArray[np.int64]:
        """Return the place of the right choice, from 0; in the table it is that, or a letter."""
        found = []
        cells = zip(rows_of(frame, split), frame["answer"].tolist(), frame["choices"].tolist(), strict=True)
        for row, answer, cell in cells:
            count = len(choices_in(cell, row))
            places = {letter: place for place, letter in enumerate(LETTERS[:count])}
            place = places.get(answer, -1) if isinstance(answer, str) else answer
            if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < count:
                raise ValueError(
                    f"{row}: column 'answer' holds {answer!r}; of {count} choices it must be 0 to {count - 1}, or A to "
                    f"{LETTERS[count - 1]}"
                )
            found.append(place)
        return np.asarray(found, np.int64)

    def split_by(self, examples: Examples, bins: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Refuse.

        Raises:
            ValueError: questions judge, and are not trained on.
        """
        raise ValueError("questions judge a run, and no client trains on them")

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Return the mean cross-entropy of the choices' scores ``(n, choices)``, -inf where there is none."""
        from torch.nn import functional as F

        return F.cross_entropy(logits, labels)

    def evaluation(self, metrics: tuple[str, ...], processor: Any) -> Evaluation:
        """Begin an evaluation by the share of questions whose likeliest choice is the right one."""
        return ChoiceEvaluation(self)

    def answers(
        self, model: "nn.Module", processor: Any, batch: "Batch", classes: tuple[str, ...], length: int = 0
    ) -> list[Answer]:
        """Return the likeliest choice of each question: its letter, or its text."""
        inputs, labels = batch
        scores, bad = choice_scores(model, inputs, len(labels))
        if bad:
            raise FloatingPointError(f"{bad} log-likelihoods of answers are not finite: training has diverged")
        first = [inputs["question"].tolist().index(question) for question in range(len(labels))]
        rows = [inputs["tokens"][start + place] for start, place in zip(first, scores.argmax(-1).tolist(), strict=True)]
        return [processor.decode(row[row != IGNORED].tolist()).strip() for row in rows]


class ChoiceEvaluation:
    """Accuracy over all questions, of each subject, and the mean over subjects; keeps subject and outcome of each."""

    def __init__(self, target: Answers) -> None:
        self._target = target
        self._subjects: list[str] = []
        self._right: list[bool] = []
        self._loss, self._bad = 0.0, 0

    def add(self, model: "nn.Module", inputs: Mapping[str, "Tensor"], labels: "Tensor", items: Sequence[Any]) -> None:
        """Judge the model on one batch of `Questions.collate`."""
        scores, bad = choice_scores(model, inputs, len(labels))
        self._bad += bad
        self._loss += self._target.loss(scores, labels).item() * len(labels)
        self._right += (scores.argmax(-1) == labels).tolist()
        self._subjects += [item["subject"] for item in items]

    def scores(self) -> dict[str, float]:
        """Return ``accuracy``, ``accuracy-mean`` over subjects, ``accuracy-SUBJECT`` of each, and ``loss``.

        Raises:
            FloatingPointError: a log-likelihood is not finite.
        """
        if self._bad:
            raise FloatingPointError(
                f"{self._bad} log-likelihoods of answers are not finite: training has diverged; lower lr or server-lr"
            )
        right, subjects = np.asarray(self._right), np.asarray(self._subjects)
        each = {str(name): float(right[subjects == name].mean()) for name in np.unique(subjects)}
        return {
            "accuracy": float(right.mean()),
            "accuracy-mean": float(np.mean([*each.values()])),
            **{f"accuracy-{name}": value for name, value in each.items()},
            "loss": self._loss / len(right),
        }


def choice_scores(model: "nn.Module", inputs: Mapping[str, "Tensor"], count: int) -> "tuple[Tensor, int]":
    """Return the choices' scores of a batch of so many questions, and how many of them are not finite.

    Returns:
        Float32 ``(questions, choices)``, -inf where a question has fewer; and a number.
    """
    import torch

    found = log_likelihoods(model, inputs, count)
    question = inputs["question"]
    first = torch.searchsorted(question, question)  # of each ending, where those of its question begin
    place = torch.arange(len(question), device=question.device) - first
    scores = found.new_full((count, int(place.max()) + 1), -float("inf"))
    scores[question, place] = found / inputs["size"]
    return scores, int((~found.isfinite()).sum())


def log_likelihoods(model: "nn.Module", inputs: Mapping[str, "Tensor"], size: int) -> "Tensor":
    """Return the log-likelihood of every ending of a batch of `Questions.collate`, float32 ``(endings,)``.

    Of the tokens only those are asked for logits that an ending follows, where the model can be asked so: there are as
    many logits as words.

    Args:
        model: in evaluation mode.
        inputs: on its device.
        size: rows to compute at a time.
    """
    import torch

    follow = inputs["tokens"] != IGNORED
    at = inputs["start"][:, None] + torch.arange(follow.shape[1], device=follow.device)
    found = torch.zeros(len(follow), device=follow.device)
    every = torch.arange(inputs["input_ids"].shape[1], device=follow.device)
    selective = "logits_to_keep" in inspect.signature(model.forward).parameters
    row = inputs["row"]
    for start in range(0, len(inputs["input_ids"]), size):
        now = (row >= start) & (row < start + size)
        ending, step = (follow & now[:, None]).nonzero(as_tuple=True)
        wanted = at[ending, step]
        kept = torch.unique(wanted) if selective else every
        logits = model(
            input_ids=inputs["input_ids"][start : start + size],
            attention_mask=inputs["attention_mask"][start : start + size],
            **({"logits_to_keep": kept} if selective else {}),
        ).logits
        picked = logits[row[ending] - start, torch.searchsorted(kept, wanted)].float()
        terms = picked.log_softmax(-1).gather(1, inputs["tokens"][ending, step][:, None])[:, 0]
        found.index_add_(0, ending, terms)
    return found


def judged_by_choices(settings: "TaskSettings") -> Task | None:
    """Return the task that judges a run by multiple choice; None where ``choices-data`` is empty."""
    if not settings.choices_data:
        return None
    questions = Questions(settings.choices_score, settings.choices_shots)
    return Task(
        "choices", questions, Answers(), ("accuracy",), settings.choices_data, settings.choices_config, SHOTS_SPLIT,
        settings.choices_split, advice=_ADVICE, source="choices-data",
        shown=questions.showing if settings.choices_shots else None,
    )  # fmt: skip
