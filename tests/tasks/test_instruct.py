"""Instruction tuning: the loss is about the answer's tokens alone, each after all before it."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from quiz import TEMPLATE, make_quiz, make_tokenizer, make_writer, quiz_settings
from world import simulate

from clients.deploy.data_check import look
from clients.errors import Refusal
from clients.handshake import require_fit
from clients.node import LENT, NodeContext
from fedasym.adapters import trainable_state
from fedasym.data.examples import load_examples
from fedasym.data.partition import partition
from fedasym.models.build import build
from fedasym.models.party_equivalence import digest_tokenizer
from fedasym.runs.record import read_rounds
from fedasym.settings import Settings, from_run_config
from fedasym.tasks import task_of
from fedasym.tasks.base import Task
from fedasym.tasks.next_tokens import IGNORED
from fedasym.training.loop import draw_batches, evaluate, train_steps

ALPACA = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n"
)
PAIRED = ", paired with an input that provides further context"
ROWS = [
    {"instruction": "Name a colour.", "input": "", "output": "blue"},
    {"instruction": "Shout it.", "input": "rome", "output": "ROME! naïve"},
    {"instruction": "Count.", "input": None, "output": "one two seven"},
]
CHATS = [
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
    [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Still me."},
    ],
]
# Of each case: the template, the format, the rows, and of each row its text in pieces, the learned ones in brackets.
CASES = {
    "a template": (TEMPLATE, "alpaca", ROWS, [
        ["<|user|>\nName a colour.</s>\n<|assistant|>\n", ["blue</s>"]],
        ["<|user|>\nShout it.\n\nrome</s>\n<|assistant|>\n", ["ROME! naïve</s>"]],
        ["<|user|>\nCount.</s>\n<|assistant|>\n", ["one two seven</s>"]],
    ]),
    "no template": ("", "alpaca", ROWS, [
        [f"{ALPACA.format('')}Name a colour.\n\n### Response:", ["blue</s>"]],
        [f"{ALPACA.format(PAIRED)}Shout it.\n\n### Input:\nrome\n\n### Response:", ["ROME! naïve</s>"]],
        [f"{ALPACA.format('')}Count.\n\n### Response:", ["one two seven</s>"]],
    ]),
    "chats": (TEMPLATE, "chat", [{"messages": chat} for chat in CHATS], [
        ["<|user|>\nHi</s>\n<|assistant|>\n", ["Hello.</s>"]],
        ["<|system|>\nBe short.</s>\n<|user|>\nWho?</s>\n<|assistant|>\n", ["Me.</s>"],
         "\n<|user|>\nAnd now?</s>\n<|assistant|>\n", ["Still me.</s>"]],
    ]),
    "plain text": ("", "text", [{"text": "red and blue"}, {"text": "7"}], [[["red and blue</s>"]], [["7</s>"]]]),
}  # fmt: skip


def written(task: Task, rows: list[dict[str, object]]) -> object:
    """Return the examples of some rows."""
    frame = pd.DataFrame(rows)
    task.require(frame, "train")
    return task.examples(frame, (), "train")


def instruct(how: str = "alpaca") -> Task:
    return task_of(Settings(task="instruct", instruct_format=how, split="iid"))


def spelled(tokenizer, pieces, opens: bool) -> tuple[list[int], list[bool]]:
    """Tokenize the pieces of a text one by one; return all ids, and which of them are learned."""
    ids, learned = ([1], [False]) if opens else ([], [])
    for piece in pieces:
        found = tokenizer("".join(piece), add_special_tokens=False)["input_ids"]
        ids, learned = ids + found, learned + [isinstance(piece, list)] * len(found)
    return ids, learned


def slow_terms(model, ids: list[int], learned: list[bool]) -> tuple[list[float], list[bool]]:
    """Compute every term by a model that sees the tokens before it alone: its loss, and if it is likeliest."""
    losses, right = [], []
    for place in range(1, len(ids)):
        if learned[place]:
            with torch.no_grad():
                logits = model(torch.tensor([ids[:place]])).logits[0, -1]
            losses.append(-logits.log_softmax(0)[ids[place]].item())
            right.append(int(logits.argmax()) == ids[place])
    return losses, right


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_metrics_are_those_of_the_answers_tokens_one_by_one(tmp_path: Path, case: str, kind: str) -> None:
    template, how, rows, expected = CASES[case]
    opens = not template  # what a template has written is not opened once more
    folder = make_writer(tmp_path / "writer", template, kind, opens=True)
    task, tokenizer = instruct(how), transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    encoded = task.inputs.encode(tokenizer, written(task, rows), 512)
    spellings = [spelled(tokenizer, pieces, opens) for pieces in expected]
    assert [item["input_ids"] for item in encoded.items] == [ids for ids, _ in spellings]
    terms = [slow_terms(model, ids, learned) for ids, learned in spellings]
    assert encoded.terms.tolist() == [len(losses) for losses, _ in terms]
    losses = [loss for each, _ in terms for loss in each]
    inputs, labels = task.inputs.collate(tokenizer, encoded, range(len(encoded)))
    assert int((labels != IGNORED).sum()) == len(losses)
    # float32 through two layers, in batches of other shapes, on losses of about six.
    close = {"rel": 1e-5, "abs": 1e-5}
    with torch.no_grad():
        assert task.target.loss(model(**inputs).logits, labels).item() == pytest.approx(np.mean(losses), **close)
    scores = evaluate(model, tokenizer, encoded, task, batch_size=2)
    assert scores["loss"] == pytest.approx(np.mean(losses), **close)
    assert scores["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert scores["token_accuracy"] == np.mean([right for _, each in terms for right in each])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_padded_on_the_right_whatever_the_tokenizers_side(side: str) -> None:
    task, tokenizer = instruct(), make_tokenizer()
    tokenizer.padding_side = side
    encoded = task.inputs.encode(tokenizer, written(task, ROWS), 512)
    inputs, labels = task.inputs.collate(tokenizer, encoded, [1, 0])
    for row, mask, label, place in zip(inputs["input_ids"], inputs["attention_mask"], labels, [1, 0], strict=True):
        ids, size = encoded.items[place]["input_ids"], int(encoded.lengths[place])
        assert row.tolist() == ids + [0] * (len(row) - size)
        assert mask.tolist() == [1] * size + [0] * (len(row) - size)
        before, beyond = label[: size - 1], label[size - 1 :]
        assert (beyond == IGNORED).all()  # of the last token nothing is predicted, nor of padding
        assert before[before != IGNORED].tolist() == torch.tensor(ids[1:])[before != IGNORED].tolist()


def test_what_is_too_long_is_cut_at_the_end_and_what_loses_its_whole_answer_is_refused_by_its_row() -> None:
    task, tokenizer = instruct(), make_tokenizer("")
    whole = task.inputs.encode(tokenizer, written(task, ROWS[2:]), 512)
    answer, length = int(whole.terms[0]), int(whole.lengths[0])
    assert answer == len("one two seven") + 1
    cut = task.inputs.encode(tokenizer, written(task, ROWS[2:]), length - 4)
    assert cut.items[0]["input_ids"] == whole.items[0]["input_ids"][:-4] and cut.terms[0] == answer - 4
    assert task.inputs.encode(tokenizer, written(task, ROWS[2:]), length - answer + 1).terms[0] == 1
    wanted = (
        rf"split 'train', row 0: its prompt has {length - answer} tokens, and max-length={length - answer} leaves "
        rf"nothing of its answer; raise max-length above {length - answer}, or drop the row"
    )
    with pytest.raises(ValueError, match=wanted):
        task.inputs.encode(tokenizer, written(task, ROWS[2:]), length - answer)


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_give_the_step_of_the_whole_batch_whatever_the_answers_lengths(tmp_path: Path, size: int) -> None:
    found = []
    for micro in (0, size):
        settings = quiz_settings(tmp_path, micro_batch=micro, optimizer="sgd").resolved()
        task, (examples, _) = task_of(settings), load_examples(settings)
        built = build(settings, 0, task.inputs)
        encoded = task.inputs.encode(built.processor, examples, 512)
        batches = draw_batches(encoded.lengths, 4, 2, 0, np.random.default_rng(0))
        assert len({int(encoded.terms[place]) for place in batches[0]}) > 1
        B = trainable_state.trainable(built.model)
        loss = train_steps(built.model, B, built.processor, encoded, batches, task, settings).loss
        found.append((loss, trainable_state.read(B)))
    (whole, matrices), (parts, others) = found
    assert parts == pytest.approx(whole, rel=1e-5)
    for name, matrix in matrices.items():  # sums of float32 in another order
        assert matrix.any()
        np.testing.assert_allclose(others[name], matrix, rtol=0, atol=1e-5 * np.abs(matrix).max())


def chat_of(*turns: tuple[object, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("how", "row", "message"),
    [
        ("alpaca", {"instruction": "a", "output": " "}, "row 1: column 'output' is blank; fill or drop it"),
        ("alpaca", {"instruction": "", "output": "b"}, "row 1: column 'instruction' is blank"),
        ("alpaca", {"instruction": "a", "output": None}, "row 1: column 'output' is empty"),
        ("text", {"text": "\n"}, "row 1: column 'text' is blank"),
        ("chat", {"messages": "Hi"}, "row 1: column 'messages' holds 'Hi'; it must be a list of role and content"),
        ("chat", chat_of(("user", "Hi")), "row 1: the chat has no turn of the assistant"),
        ("chat", chat_of(("user", "Hi"), ("bot", "Ho")), "row 1: message 1 has the role 'bot'; it must be one"),
        ("chat", chat_of((7, "Hi")), "row 1: message 0 has the role 7"),
        ("chat", chat_of(("user", 7), ("assistant", "a")), "row 1: message 0 has the content 7; it must be text"),
        ("chat", chat_of(("user", "Hi"), ("assistant", "")), "row 1: message 1, the assistant's, is empty"),
        ("chat", chat_of(("assistant", "Hi")), "row 1: the chat begins with the assistant's turn"),
        ("chat", chat_of(("user", "a"), ("assistant", "b"), ("user", "c")), "row 1: the chat ends with the user's"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_learned_from_is_refused_by_split_and_row(how: str, row: dict, message: str) -> None:
    good = {"alpaca": ROWS[0], "text": {"text": "a"}, "chat": {"messages": CHATS[0]}}[how]
    with pytest.raises(ValueError, match=f"split 'train', {message}"):
        written(instruct(how), [good, row])


def test_a_missing_column_is_named_with_the_setting_that_chooses_it() -> None:
    with pytest.raises(ValueError, match=r"split 'train' has no column messages; it has .*; set instruct-format"):
        written(instruct("chat"), ROWS)
    assert len(written(instruct(), [{"instruction": "a", "output": "b"}])) == 1  # the input may be missing
    with pytest.raises(ValueError, match="text-columns='a,b' names 2 columns; name the one of the text"):
        task_of(Settings(task="instruct", instruct_format="text", text_columns="a,b", split="iid"))


def test_a_chat_out_of_parquet_is_read_like_one_out_of_jsonl(tmp_path: Path) -> None:
    task, frame = instruct("chat"), pd.DataFrame({"messages": CHATS})
    frame.to_parquet(tmp_path / "train.parquet")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    one, two = pd.read_parquet(tmp_path / "train.parquet"), pd.read_json(tmp_path / "train.jsonl", lines=True)
    assert task.examples(one, (), "train").inputs == task.examples(two, (), "train").inputs


GENERATION = "{% if add_generation_prompt %}A:{% endif %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "the tokenizer of .* has no chat template, which instruct-format='chat' needs"),
        ("{{ raise_exception('one turn each') }}", "row 0: the chat template of .* refuses it: one turn each"),
        ("{{ strftime_now('%d') }}", "writes today's date, so that a run of two days would have two prompts"),
        ("{{ messages | length }}" + GENERATION, "row 0: .* writes what stands before message 1 otherwise once"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_refused(template: str, message: str) -> None:
    task = instruct("chat")
    with pytest.raises(ValueError, match=message):
        task.inputs.encode(make_tokenizer(template), written(task, [{"messages": CHATS[0]}]), 512)


def test_a_template_that_takes_a_date_is_told_the_same_on_every_day() -> None:
    template = "{{ date_string }} {% for message in messages %}{{ message.content }} {% endfor %}" + GENERATION
    task, tokenizer = instruct("chat"), make_tokenizer(template.replace(GENERATION, ""))
    encoded = task.inputs.encode(tokenizer, written(task, [{"messages": CHATS[0]}]), 512)
    # Where a template ends no turn by a special token, the end-of-sequence token does.
    assert tokenizer.decode(encoded.items[0]["input_ids"]) == "26 Jul 2024 Hi Hello. </s>"


def test_an_answer_without_an_end_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no end-of-sequence token"):
        instruct().inputs.encode(tokenizer, written(instruct(), ROWS), 512)


def test_the_chat_template_is_a_part_of_what_a_tokenizer_does() -> None:
    digests = [digest_tokenizer(make_tokenizer(template)) for template in ("", TEMPLATE, TEMPLATE + " ")]
    assert len({*digests}) == 3


def test_the_split_goes_by_a_column_and_not_by_labels(tmp_path: Path) -> None:
    settings = quiz_settings(tmp_path)
    train, _ = load_examples(settings)
    assert partition(train, settings).sizes == [12, 12, 12]
    by_label = dataclasses.replace(settings, split="dirichlet:0.5")
    with pytest.raises(ValueError, match="goes by labels, or bins of scores: the task has no labels; use iid"):
        partition(train, by_label)


def test_models_that_cannot_write_are_refused_by_name(tmp_path: Path, models: dict[str, Path]) -> None:
    inputs = instruct().inputs
    settings = quiz_settings(tmp_path).resolved()

    def refused(folder: Path, message: str) -> None:
        make_tokenizer().save_pretrained(folder)
        with pytest.raises(ValueError, match=message):
            build(dataclasses.replace(settings, model=str(folder)), 0, inputs)

    whole = transformers.AutoModelForCausalLM.from_pretrained(models["llama"])
    whole.resize_token_embeddings(len(make_tokenizer()))
    whole.model.save_pretrained(tmp_path / "base")
    refused(tmp_path / "base", "base' has no lm_head.weight: the task trains no head of its own")
    numbers = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertConfig(vocab_size=300, initializer_range=0.2, **numbers)
    transformers.BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert", "in model .*bert' a token sees those after it")
    transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **numbers)).save_pretrained(
        tmp_path / "vit"
    )
    refused(tmp_path / "vit", "vit' is configured by a ViTConfig, which is no AutoModelForCausalLM: the task is for")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["asymmetric", "lora", "full"])
def test_the_models_own_head_stays_and_is_not_adapted(tmp_path: Path, method: str, tied: bool) -> None:
    folder = make_writer(tmp_path / "writer", tied=tied)
    settings = quiz_settings(tmp_path, method=method, model=str(folder)).resolved()
    built = build(settings, 0, instruct().inputs)
    assert built.output == "" and built.seeded == ()
    if method == "full":  # then all trains, tied weights once
        assert ("lm_head.weight" in trainable_state.trainable(built.model)) == (not tied)
        return
    ends = {name.rpartition(".")[2] for name in built.layers}
    assert ends == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(built.layers) == 2 * len(ends)
    assert all(name.endswith((".A", ".B")) for name in trainable_state.trainable(built.model))


def test_a_head_policy_for_a_head_that_no_task_trains_is_refused(tmp_path: Path) -> None:
    settings = quiz_settings(tmp_path, head="output").resolved()
    with pytest.raises(ValueError, match="head='output': the task trains no head of its own; leave head at 'auto'"):
        build(settings, 0, instruct().inputs)


def test_a_federation_without_multiple_choice_is_judged_by_the_held_out_tokens(tmp_path: Path) -> None:
    settings = quiz_settings(
        tmp_path, choices_data="", choices_shots=5, out=str(tmp_path / "run"), client_holdout=0.2, num_rounds=1
    )
    (row,) = read_rounds(simulate(settings))
    assert row["metrics"].keys() == {"token_accuracy", "perplexity", "loss"}
    assert row["metrics"]["perplexity"] == pytest.approx(math.exp(row["metrics"]["loss"]))
    assert {"token_accuracy_before", "perplexity_after", "loss_after"} <= row["client_metrics"].keys()


def test_a_site_lends_the_columns_of_one_format_and_says_how_many_rows_it_has(tmp_path: Path) -> None:
    make_quiz(tmp_path)
    own = {"task": "instruct", "sites": "north", "min-examples": 1, "data": "held-out", "model": "smollm2"}
    lends = task_of(from_run_config(own)).reads
    place = NodeContext(site="north", data=str(tmp_path / "instructions"), lends=lends)
    assert {*lends} <= {*LENT}
    require_fit(from_run_config({**own, "labels": ""}), place)
    with pytest.raises(Refusal, match="text-columns: 'instruction,input,output' there, 'messages' here"):
        require_fit(from_run_config({**own, "instruct-format": "chat"}), place)
    assert look(json.dumps(own), place.data) == "36 rows of train"
