"""Instruction tuning of models that write: a prompt, and an answer whose tokens are learned.

What stands around instruction and answer is what the tokenizer's own chat template writes: the instruction, and below a
blank line its input if it has one, are the user's turn, the output is the assistant's. For a tokenizer without a
template it is the Alpaca prompt (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca), and a token for the end.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fedasym.tasks.base import Encoded, Examples, Inputs, Task, Told
from fedasym.tasks.choices import judged_by_choices
from fedasym.tasks.columns import Row, one_row, rows_of, texts_in
from fedasym.tasks.next_tokens import IGNORED, NextTokens
from fedasym.tasks.text import Texts
from fedasym.tasks.token_rows import opening, padded

if TYPE_CHECKING:
    from torch import Tensor

    from fedasym.tasks.settings import TaskSettings

FORMATS = ("alpaca", "chat", "text")
ROLES = ("system", "user", "assistant")
DATE = "26 Jul 2024"  # what a template that writes a date is told: with today's, a run of two days had two prompts
_ALONE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_Part = tuple[str, bool]  # a piece of an example's text, and whether it is learned


@dataclass(frozen=True)
class Instructions:
    """Prompts and the answers to them, or plain text.

    An example is read into one cell of JSON, so that equal cells are equal examples, and its place in the data.

    Attributes:
        format: ``alpaca``, ``chat`` or ``text``.
        column: of plain text.
    """

    format: str
    column: str
    model_class = "AutoModelForCausalLM"
    processor_class = "AutoTokenizer"
    pooling = "model"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that must be there, filled."""
        return {"alpaca": ("instruction", "output"), "chat": ("messages",), "text": (self.column,)}[self.format]

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that are read."""
        return ("instruction", "input", "output") if self.format == "alpaca" else self.columns

    @property
    def asked(self) -> Inputs:
        """Prompts without an answer, and texts to go on with."""
        return Prompts(self.format, self.column)

    def row(self, words: Sequence[str]) -> dict[str, Any]:
        """Return an instruction and its input if there is one, a chat of one turn, or a text's beginning."""
        if self.format == "chat":
            return {"messages": [{"role": "user", "content": one_row(self.columns, words)["messages"]}]}
        return {**one_row(self.used[: max(len(words), len(self.columns))], words)}

    def told(self, examples: Examples) -> list[Told]:
        """Return instructions with their inputs or all turns of a chat before the last, and the answers."""
        return [_told(json.loads(cell)) for cell in examples.inputs[0]]

    def read(self, frame: Any, split: str) -> tuple[list[str], list[Row]]:
        """Return the examples as JSON, and where each of them stands.

        Raises:
            ValueError: an instruction, answer or text that is empty, or a chat that is none; names split and row.
        """
        rows = rows_of(frame, split)
        if self.format == "chat":
            chats = zip(frame["messages"].tolist(), rows, strict=True)
            return [json.dumps({"messages": self._chat(cell, row)}) for cell, row in chats], rows
        kept = [name for name in self.used if name in frame.columns]
        for name in kept:
            needed = name in self.columns
            texts_in(frame if needed else frame[frame[name].notna()], name, split, blank=not needed)
        texts = frame[kept].astype(object).where(frame[kept].notna(), "").astype(str)
        records = texts.rename(columns={self.column: "text"} if self.format == "text" else {}).to_dict("records")
        return [json.dumps(record) for record in records], rows

    def positions(self, processor: Any, max_length: int) -> tuple[int, int]:
        """Return ``max_length``, of one decoder."""
        return max_length, max_length

    def probe(self, processor: Any) -> tuple[list[str], list[str]]:
        """Return some texts of the tokenizer's own vocabulary: cut as short as they like, they are still learned."""
        (texts,) = Texts(("text",)).probe(processor)
        return [json.dumps({"text": text}) for text in texts], [f"the fixed input's text {text!r}" for text in texts]

    def encode(self, processor: Any, examples: Examples, max_length: int, pooling: str = "model") -> Encoded:
        """Tokenise the parts of every example and put them together, cut at the end to ``max_length`` tokens.

        Args:
            processor: the model's tokenizer.
            examples: of `read` or `probe`.
            max_length: tokens of prompt and answer together, those that open and end a text included.
            pooling: has no meaning here.

        Raises:
            ValueError: an example of whose answer nothing is left, a chat where the tokenizer has no template, a
                template that refuses an example or changes a turn when the next one comes, or a tokenizer without a
                token for the end.
        """
        if processor.eos_token_id is None:
            raise ValueError(f"{_whose(processor)} has no end-of-sequence token, which ends an answer; give it one")
        cells, rows = examples.inputs
        told = [_parts(processor, json.loads(cell), row) for cell, row in zip(cells, rows, strict=True)]
        ids = {}
        for templated in (False, True):  # a template's own words hold special tokens; in a text they are text
            texts = [text for parts, other in told if other == templated for text, _ in parts]
            options = {"add_special_tokens": False, "verbose": False, "split_special_tokens": not templated}
            ids[templated] = iter(processor(texts, **options)["input_ids"] if texts else [])
        items, terms = [], []
        for (parts, templated), row in zip(told, rows, strict=True):
            pieces = [(next(ids[templated]), learned) for _, learned in parts]
            tokens, labels = _joined(processor, pieces, templated)
            before = max(1, next(place for place, label in enumerate(labels) if label != IGNORED))
            labels = [*labels[1:max_length], IGNORED]  # beside the logits that predict them
            terms.append(sum(label != IGNORED for label in labels))
            if not terms[-1]:
                raise ValueError(
                    f"{row}: its prompt has {before} tokens, and max-length={max_length} leaves nothing of its answer; "
                    f"raise max-length above {before}, or drop the row"
                )
            items.append({"input_ids": tokens[:max_length], "labels": labels})
        lengths = [len(item["input_ids"]) for item in items]
        return Encoded(items, np.asarray(lengths, np.int64), examples.labels, np.asarray(terms, np.int64))

    def collate(self, processor: Any, encoded: Encoded, places: Sequence[int]) -> "tuple[dict[str, Tensor], Tensor]":
        """Pad the chosen examples on the right, whatever the tokenizer's side: no token then sees padding.

        Returns:
            ``input_ids`` and ``attention_mask``, and the labels: all int64 ``(n, length)``.
        """
        items = [encoded.items[i] for i in places]
        inputs = padded([item["input_ids"] for item in items], processor.pad_token_id)
        return inputs, padded([item["labels"] for item in items], IGNORED)["input_ids"]

    def _chat(self, cell: Any, row: object) -> list[dict[str, str]]:
        """Return a chat's messages, checked, with an assistant's turn at the end.

        Raises:
            ValueError: names the row and the message.
        """
        messages = _messages(cell, row)
        roles = [message["role"] for message in messages]
        if "assistant" not in roles:
            raise ValueError(f"{row}: the chat has no turn of the assistant, so nothing to learn; drop the row")
        if roles[0] == "assistant":
            raise ValueError(f"{row}: the chat begins with the assistant's turn, which answers nothing; drop that turn")
        if roles[-1] != "assistant":
            raise ValueError(f"{row}: the chat ends with the {roles[-1]}'s turn; end it with the assistant's")
        return messages


@dataclass(frozen=True)
class Prompts(Instructions):
    """The same before an answer: a batch's labels begin where it would, up to which every token is as in training."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that must be there, filled."""
        return {"alpaca": ("instruction",), "chat": ("messages",), "text": (self.column,)}[self.format]

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that are read."""
        return ("instruction", "input") if self.format == "alpaca" else self.columns

    def encode(self, processor: Any, examples: Examples, max_length: int, pooling: str = "model") -> Encoded:
        """Tokenise prompts, which are not cut; answers are left out.

        Raises:
            ValueError: as of `Instructions`; a prompt that leaves nothing of ``max_length`` for an answer.
        """
        cells, rows = examples.inputs
        asked = [json.dumps(_unanswered(json.loads(cell))) for cell in cells]
        return super().encode(processor, replace(examples, inputs=(asked, rows)), max_length, pooling)

    def _chat(self, cell: Any, row: object) -> list[dict[str, str]]:
        """Return a chat's messages, checked, with a user's turn at the end.

        Raises:
            ValueError: names the row and the message.
        """
        messages = _messages(cell, row)
        if not messages or messages[-1]["role"] != "user":
            raise ValueError(f"{row}: the chat does not end with the user's turn, which is answered; end it so")
        if not messages[-1]["content"].strip():
            raise ValueError(f"{row}: the user's last turn is empty; fill it or drop the row")
        return messages


@dataclass(frozen=True)
class Replies(NextTokens):
    """The answers' tokens; what a model writes ends where an answer does that it was trained on.

    Attributes:
        format: as of `Instructions`.
    """

    format: str = field(kw_only=True)

    def ends(self, processor: Any) -> tuple[int, ...]:
        """Return the token of a text's end, and where a chat template writes the turns that of a turn's."""
        ids = [processor.eos_token_id]
        if processor.chat_template and self.format != "text":
            pair = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
            turn, _ = _turns(processor, pair, "a turn")[-1]
            special = {*processor.all_special_ids}
            ids += [i for i in processor(turn, add_special_tokens=False)["input_ids"] if i in special][-1:]
        return tuple(ids)


def _told(cell: dict[str, Any]) -> Told:
    if "messages" in cell:
        *before, last = cell["messages"]
        turns = [f"{turn['role']}: {turn['content']}" for turn in before]
        return Told(before[0]["content"] if len(before) == 1 else "\n".join(turns), last["content"])
    if "text" in cell:
        return Told("", cell["text"])
    return Told("\n\n".join(_instruction(cell)), cell["output"])


def _unanswered(cell: dict[str, Any]) -> dict[str, Any]:
    """Return an example without its answer, if it has one; of plain text the text to go on with."""
    if "text" in cell:
        return {"begun": cell["text"]}
    if "messages" in cell:
        answered = cell["messages"][-1]["role"] == "assistant"
        return {"messages": cell["messages"][:-1] if answered else cell["messages"]}
    return {key: text for key, text in cell.items() if key != "output"}


def _instruction(cell: dict[str, Any]) -> list[str]:
    """Return an instruction and its input, if it has one that is not blank."""
    return [text for text in (cell.get("instruction", ""), cell.get("input", "")) if text.strip()]


def _messages(cell: Any, row: object) -> list[dict[str, str]]:
    """Return a chat's messages, checked: known roles and texts.

    Raises:
        ValueError: names the row and the message.
    """
    messages = cell if isinstance(cell, list) else cell.tolist() if isinstance(cell, np.ndarray) else None
    if messages is None or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"{row}: column 'messages' holds {str(cell)[:80]!r}; it must be a list of role and content")
    for place, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"{row}: message {place} has the role {role!r}; it must be one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise ValueError(f"{row}: message {place} has the content {content!r}; it must be text")
        if role == "assistant" and not content.strip():
            raise ValueError(f"{row}: message {place}, the assistant's, is empty; fill it or drop the row")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _parts(tokenizer: Any, cell: dict[str, Any], row: object) -> tuple[list[_Part], bool]:
    """Return the pieces of an example's text in their order, and whether a chat template has written them.

    Where there is no answer the last piece, which is learned, is empty.
    """
    if "text" in cell:
        return [(cell["text"], True)], False
    if "begun" in cell:
        return [(cell["begun"], False), ("", True)], False
    extra = cell.get("input", "")
    if "messages" not in cell and not tokenizer.chat_template:
        form = _WITH_INPUT if extra.strip() else _ALONE
        prompt = form.format(instruction=cell["instruction"], input=extra)
        return [(prompt, False), (cell.get("output", ""), True)], False
    if not tokenizer.chat_template:
        raise ValueError(
            f"{_whose(tokenizer)} has no chat template, which instruct-format='chat' needs; take a model that has one, "
            "or instruct-format 'alpaca' or 'text'"
        )
    turns = [{"role": "user", "content": "\n\n".join(_instruction(cell))}]
    turns += [{"role": "assistant", "content": cell["output"]}] if "output" in cell else []
    return _turns(tokenizer, cell.get("messages", turns), row), True


def _turns(tokenizer: Any, messages: list[dict[str, str]], row: object) -> list[_Part]:
    """Let the chat template write a chat, cut where the assistant's turns begin and end.

    Where the last turn is another's, what comes next, the assistant's that is empty, is all that is learned.
    """
    if "strftime_now" in tokenizer.chat_template and "date_string" not in tokenizer.chat_template:
        raise ValueError(
            f"the chat template of {_whose(tokenizer)} writes today's date, so that a run of two days would have two "
            "prompts; change the template"
        )
    write = partial(tokenizer.apply_chat_template, tokenize=False, date_string=DATE)
    parts: list[_Part] = []
    done = ""
    asked = messages[-1]["role"] != "assistant"
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    for place in [*places, len(messages)] if asked else places:
        try:
            prompt = write(messages[:place], add_generation_prompt=True)
            whole = write(messages[: place + 1]) if place < len(messages) else prompt
        except Exception as error:  # a template is a program that came with the model
            raise ValueError(f"{row}: the chat template of {_whose(tokenizer)} refuses it: {error}") from error
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise ValueError(
                f"{row}: the chat template of {_whose(tokenizer)} writes what stands before message {place} otherwise "
                "once that is there, so its tokens cannot be told apart; cut the chat short, or take another model"
            )
        parts += [(prompt[len(done) :], False), (whole[len(prompt) :], not asked or place == len(messages))]
        done = whole
    return parts


def _joined(tokenizer: Any, pieces: Sequence[tuple[list[int], bool]], templated: bool) -> tuple[list[int], list[int]]:
    """Put an example's tokens together, and beside each its label: itself where it is learned, else `IGNORED`.

    A turn that a template writes is learned up to its last special token, which ends it: the line break that may
    follow is never generated. What no such token ends is ended by the end-of-sequence token.
    """
    tokens = [] if templated else opening(tokenizer)
    labels = [IGNORED] * len(tokens)
    special, kept = {*tokenizer.all_special_ids}, 0
    for ids, learned in pieces:
        ends = [place + 1 for place, token in enumerate(ids) if token in special] if templated else []
        kept = ends[-1] if ends else 0
        upto = (kept or len(ids)) if learned else 0
        tokens += ids
        labels += [*ids[:upto], *[IGNORED] * (len(ids) - upto)]
    if kept:
        excess = len(pieces[-1][0]) - kept
        return tokens[: len(tokens) - excess], labels[: len(labels) - excess]
    return [*tokens, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]


def _whose(tokenizer: Any) -> str:
    return f"the tokenizer of {tokenizer.name_or_path!r}"


def instruct(settings: "TaskSettings") -> Task:
    """Return instruction tuning on the columns of the setting ``instruct-format``.

    Raises:
        ValueError: plain text of two columns.
    """
    columns = settings.text_column_names
    if settings.instruct_format == "text" and len(columns) != 1:
        raise ValueError(
            f"text-columns={settings.text_columns!r} names {len(columns)} columns; name the one of the text"
        )
    inputs = Instructions(settings.instruct_format, columns[0])
    reads = {
        "text-columns": ",".join(inputs.used),
        "label-column": "",
        "labels": "",
        "train-split": settings.train_split,
    }
    return Task(
        settings.task, inputs, Replies(format=settings.instruct_format), ("token_accuracy", "perplexity"),
        settings.data, settings.data_config, settings.train_split, settings.test_split, reads=reads,
        judged=judged_by_choices(settings),
        advice="set instruct-format (alpaca, chat or text), or with text text-columns",
    )  # fmt: skip


TASKS = {"instruct": instruct}
