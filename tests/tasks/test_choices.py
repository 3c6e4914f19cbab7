"""Multiple choice: what is scored is what plain transformers gives for the same prompts, and it judges a run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from quiz import SUBJECTS, make_writer, quiz_settings, quiz_values
from world import crash_in_round, simulate, watched_run, what_is_left

from fedasym.data.examples import load_examples, load_held_out
from fedasym.models.build import build
from fedasym.runs.record import read_json, read_rounds
from fedasym.settings import Settings, from_run_config
from fedasym.tasks import task_of
from fedasym.tasks.base import Examples
from fedasym.training.loop import evaluate


def rows_in(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def prompt_by_hand(question: dict, dev: list[dict], shots: int, score: str) -> tuple[str, list[str]]:
    """Write a question's prompt and its endings as the papers print them."""

    def asked(row: dict) -> str:
        if score == "text":
            return "Question: " + row["question"] + "\nAnswer:"
        a, b, c, d = row["choices"]
        return f"{row['question']}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"

    def endings(row: dict) -> list[str]:
        return [f" {each}" for each in (row["choices"] if score == "text" else "ABCD")]

    subject = question["subject"].replace("_", " ")
    prompt = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    prompt = prompt if score == "letter" else ""
    for row in [row for row in dev if row["subject"] == question["subject"]][:shots]:
        prompt += asked(row) + endings(row)[row["answer"]] + "\n\n"
    return prompt + asked(question), endings(question)


def likelihood_by_hand(model, tokenizer, prompt: str, ending: str) -> float:
    """Add up the log-probabilities of an ending's tokens, one run of the model for each."""
    ids = tokenizer(prompt)["input_ids"]
    total = 0.0
    for token in tokenizer(ending, add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            total += model(torch.tensor([ids])).logits[0, -1].log_softmax(0)[token].item()
        ids = [*ids, token]
    return total


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    quiz_values(root)
    return root


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("score", ["letter", "text"])
@pytest.mark.parametrize("shots", [0, 2])
def test_scores_and_accuracies_are_those_of_plain_transformers_on_the_same_prompts(
    world: Path, tmp_path: Path, score: str, shots: int, kind: str
) -> None:
    folder = make_writer(tmp_path / "writer", kind=kind, opens=kind == "llama")
    settings = quiz_settings(world, model=str(folder), choices_score=score, choices_shots=shots, max_length=900)
    settings = settings.resolved()
    task, dev, test = task_of(settings), rows_in(world / "quiz", "dev"), rows_in(world / "quiz", "test")
    built = build(settings, 0, task.inputs)
    examples = load_held_out(settings, ())
    encoded = task.judge.inputs.encode(built.processor, examples, settings.max_length)
    assert encoded.labels.tolist() == [row["answer"] for row in test]

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    right, losses = [], []
    for row, item in zip(test, encoded.items, strict=True):
        prompt, endings = prompt_by_hand(row, dev, shots, score)
        assert len(item["inputs"]) == (1 if score == "letter" else len({*endings}))
        sizes = [len(ending) - 1 if score == "text" else 1 for ending in endings]
        values = [likelihood_by_hand(model, tokenizer, prompt, ending) for ending in endings]
        scores = torch.tensor(values, dtype=torch.float64) / torch.tensor(sizes)
        right.append(int(scores.argmax()) == row["answer"])
        losses.append(-scores.log_softmax(0)[row["answer"]].item())
    found = evaluate(built.model, built.processor, encoded, task.judge, batch_size=4)
    subjects = np.array([row["subject"] for row in test])
    each = {subject: np.mean(np.array(right)[subjects == subject]) for subject in SUBJECTS}
    assert found.pop("loss") == pytest.approx(np.mean(losses), rel=1e-4)  # float32 sums of other shapes
    assert found == pytest.approx(
        {
            "accuracy": np.mean(right),
            "accuracy-mean": np.mean([*each.values()]),
            **{f"accuracy-{subject}": value for subject, value in each.items()},
        }
    )
    alone = evaluate(built.model, built.processor, encoded, task.judge, batch_size=1)
    assert {key: value for key, value in alone.items() if key != "loss"} == found


def test_a_model_that_cannot_be_asked_for_some_tokens_logits_gives_the_same(world: Path) -> None:
    settings = quiz_settings(world, choices_score="text").resolved()
    task = task_of(settings)
    built = build(settings, 0, task.inputs)
    encoded = task.judge.inputs.encode(built.processor, load_held_out(settings, ()), 512)

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = built.model

        def forward(self, input_ids, attention_mask):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    one, two = (evaluate(model, built.processor, encoded, task.judge, 4) for model in (built.model, Whole()))
    assert one == pytest.approx(two, rel=1e-5)


def questions(*rows: dict, shots: int = 0, dev: tuple[dict, ...] = ()) -> object:
    task = task_of(Settings(task="instruct", choices_data="questions", choices_shots=shots, split="iid")).judge
    if task.shown:
        task = dataclasses.replace(task, inputs=task.shown(pd.DataFrame(dev)))
    frame = pd.DataFrame(rows)
    task.require(frame, "test")
    return task.examples(frame, (), "test")


GOOD = {"question": "Which?", "subject": "colours", "choices": ["red", "blue"], "answer": 1}


@pytest.mark.parametrize("answer", [1, "B", np.int64(1)])
def test_an_answer_is_a_place_or_a_letter(answer: object) -> None:
    assert questions({**GOOD, "answer": answer}).labels.tolist() == [1]


def test_questions_may_have_different_numbers_of_choices(world: Path) -> None:
    settings = quiz_settings(world, choices_shots=0).resolved()
    task = task_of(settings)
    built = build(settings, 0, task.inputs)
    rows = [{**GOOD, "choices": ["red", "blue", "pale", "green"][:count]} for count in (2, 4, 3)]
    encoded = task.judge.inputs.encode(built.processor, questions(*rows), 512)
    whole = evaluate(built.model, built.processor, encoded, task.judge, 3)
    apart = [evaluate(built.model, built.processor, encoded.take(np.array([i])), task.judge, 1) for i in range(3)]
    assert whole["loss"] == pytest.approx(np.mean([each["loss"] for each in apart]), rel=1e-5)
    assert whole["accuracy"] == np.mean([each["accuracy"] for each in apart])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": 2}, "row 1: column 'answer' holds 2; of 2 choices it must be 0 to 1, or A to B"),
        ({"answer": "C"}, "row 1: column 'answer' holds 'C'"),
        ({"answer": -1}, "row 1: column 'answer' holds -1"),
        ({"answer": None}, "row 1: column 'answer' is empty"),
        ({"choices": "red, blue"}, r"row 1: column 'choices' holds 'red, blue'; it must be a list of 2 to 26 texts"),
        ({"choices": ["red"], "answer": 0}, "row 1: column 'choices' holds"),
        ({"choices": ["red", " "]}, "row 1: column 'choices' holds"),
        ({"subject": "mean"}, "row 1: the subject is 'mean', which cannot name its own accuracy"),
        ({"question": None}, "row 1: column 'question' is empty"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_by_split_and_row(row: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"split 'test', {message}"):
        questions(GOOD, {**GOOD, **row})


def test_shots_are_the_first_of_the_same_subject_and_too_few_of_them_are_refused() -> None:
    dev = tuple(
        {**GOOD, "question": f"{i}?", "subject": subject} for i in range(3) for subject in ("colours", "numbers")
    )
    ((cell,), _) = questions(GOOD, shots=2, dev=dev).inputs
    text = json.loads(cell)["text"]
    assert text.index("0?") < text.index("1?") < text.index("Which?") and "2?" not in text
    with pytest.raises(ValueError, match="split 'dev' has 3 questions on 'colours', and choices-shots=4"):
        questions(GOOD, shots=4, dev=dev)
    with pytest.raises(ValueError, match="split 'test', row 0: split 'dev' has no questions on 'time'"):
        questions({**GOOD, "subject": "time"}, shots=2, dev=dev)
    with pytest.raises(ValueError, match="split 'dev' has no column answer"):
        questions(GOOD, shots=2, dev=tuple({k: v for k, v in row.items() if k != "answer"} for row in dev))


def test_a_prompt_that_is_too_long_is_refused_with_its_length_and_nothing_is_cut(world: Path) -> None:
    settings = quiz_settings(world)
    task = task_of(settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model)
    examples = load_held_out(settings, ())
    longest = int(task.judge.inputs.encode(tokenizer, examples, 512).lengths.max())
    exact = task.judge.inputs.encode(tokenizer, examples, longest + 1)  # the last token of an ending is not read
    assert exact.lengths.max() == longest
    with pytest.raises(ValueError, match=rf"row \d+: the question and its 2 shots have {longest + 1} tokens"):
        task.judge.inputs.encode(tokenizer, examples, longest)


def test_a_fixed_question_is_made_of_the_tokenizers_own_words(world: Path) -> None:
    settings = quiz_settings(world)
    judge = task_of(settings).judge
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model)
    fixed = Examples(judge.inputs.probe(tokenizer), np.zeros(1, np.int64), ())
    assert len(judge.inputs.encode(tokenizer, fixed, 8)) == 1


def test_no_client_trains_on_questions() -> None:
    with pytest.raises(ValueError, match="no client trains on them"):
        task_of(Settings(task="instruct", choices_data="q", split="iid")).judge.target.split_by(questions(GOOD), 0)


def test_the_data_room_caps_the_questions_and_names_the_setting_of_a_folder_that_is_not_there(world: Path) -> None:
    _, held = load_examples(quiz_settings(world, test_cap=4))
    assert len(held) == 4
    with pytest.raises(FileNotFoundError, match=r"choices-data='./no-such-folder': there is no such folder"):
        load_examples(quiz_settings(world, choices_data="./no-such-folder"))
    with pytest.raises(FileNotFoundError, match=r"holds no validation.parquet"):
        load_examples(quiz_settings(world, choices_split="validation"))


def test_a_diverged_model_is_not_judged(world: Path) -> None:
    settings = quiz_settings(world, choices_shots=0).resolved()
    task = task_of(settings)
    built = build(settings, 0, task.inputs)
    with torch.no_grad():
        built.model.get_output_embeddings().weight.fill_(float("nan"))
    encoded = task.judge.inputs.encode(built.processor, questions(GOOD), 512)
    with pytest.raises(FloatingPointError, match="2 log-likelihoods of answers are not finite: training has diverged"):
        evaluate(built.model, built.processor, encoded, task.judge)


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """A run judged by multiple choice that was never killed."""
    return simulate(quiz_settings(world, out=str(world / "whole")))


def test_multiple_choice_judges_a_run_and_is_the_models_own_evaluation(world: Path, whole: Path) -> None:
    config, rows = read_json(whole / "config.json"), read_rounds(whole)
    assert config["metric"] == "accuracy" and config["held_out_examples"] == 15
    names = {"accuracy", "accuracy-mean", "loss", *(f"accuracy-{subject}" for subject in SUBJECTS)}
    assert all(row["metrics"].keys() == names for row in rows)
    assert read_json(whole / "summary.json")["final"] == rows[-1]["metrics"]["accuracy"]
    assert len({row["digest"] for row in rows}) == 2


def test_two_workers_give_the_same_bits(world: Path, whole: Path) -> None:
    folder, _ = watched_run(quiz_settings(world, out=str(world / "two")), 2)
    assert what_is_left(folder) == what_is_left(whole)


def test_killed_after_a_round_and_resumed_equals_never_killed(world: Path, whole: Path, tmp_path: Path) -> None:
    settings = quiz_settings(world, out=str(tmp_path / "killed"))
    assert len(read_rounds(crash_in_round(settings, 2))) == 2
    assert what_is_left(simulate(settings)) == what_is_left(whole)


def test_sites_end_with_the_bits_of_a_split_by_their_subject_and_a_server_without_instructions_judges_them(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    rows = rows_in(world / "quiz" / "instructions", "train")
    for subject in SUBJECTS:  # in the order of a column's values
        (tmp_path / subject).mkdir()
        own = [json.dumps(row) for row in rows if row["subject"] == subject]
        (tmp_path / subject / "train.jsonl").write_text("\n".join(own) + "\n")
    values = quiz_values(world, sites=",".join(SUBJECTS), data="none", out=str(tmp_path / "run"))
    for key in ("split", "num-clients", "data-config"):
        del values[key]
    apart = read_rounds(simulate(from_run_config(values), 1, tmp_path))
    assert [row["digest"] for row in apart] == [row["digest"] for row in read_rounds(whole)]
    assert [row["metrics"] for row in apart] == [row["metrics"] for row in read_rounds(whole)]
