"""What a run leaves can be used: asked for answers, exported, merged, and shown beside what was expected."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from pictures import CLASSES, drawing, image_settings, png
from quiz import TEMPLATE, make_writer, quiz_settings
from safetensors.torch import load_file
from summaries import settings_of
from world import TEXTS, make_model, simulate, tiny_settings

from fedasym.adapters import lora, trainable_state
from fedasym.data.examples import load_examples, load_held_out
from fedasym.models.build import build
from fedasym.models.device import DeviceMemoryError
from fedasym.reports.comparison import read_runs
from fedasym.reports.run_page import render_page
from fedasym.runs import checkpoint
from fedasym.runs.peft_folder import write_merged
from fedasym.runs.record import EXAMPLES, read_json, read_rounds, write_json
from fedasym.runs.shown_examples import answers_now, choose_examples, in_words
from fedasym.runs.trained_model import TrainedModel, load_trained
from fedasym.settings import Settings
from fedasym.tasks import task_of
from fedasym.tasks.next_tokens import IGNORED, write
from fedasym.wire.contract import contract_of
from server.session import prepare
from simulations.__main__ import main
from simulations.predict import answers_to, typed_inputs

TEXT = "fine warm film"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predict")


def of(root: Path, **more: object) -> Settings:
    return tiny_settings(root, **{"pooling": "model", "num_rounds": 2, **more})


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    return simulate(of(root, out=str(root / "run")))


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedModel:
    return load_trained(run)


def untrained(settings: Settings, classes: tuple[str, ...] = ()) -> TrainedModel:
    """Return a model of some settings whose matrices are drawn instead of trained."""
    settings = settings.resolved()
    task = task_of(settings)
    built = build(settings, task.outputs(classes), task.inputs)
    rng, moving = np.random.default_rng(2), trainable_state.common(built.model)
    trainable_state.load(
        moving, {n: np.float32(0.1) * rng.standard_normal(tuple(p.shape), np.float32) for n, p in moving.items()}
    )
    return TrainedModel(settings, task, built, classes, 1)


def logits_of(trained: TrainedModel, model: torch.nn.Module, frame: pd.DataFrame) -> torch.Tensor:
    examples = trained.task.examples(frame, trained.classes, "test")
    encoded = TEXTS.encode(trained.built.processor, examples, trained.settings.max_length, trained.settings.pooling)
    inputs, _ = TEXTS.collate(trained.built.processor, encoded, range(len(encoded)))
    with torch.no_grad():
        return model(**inputs).logits


@pytest.fixture(scope="module")
def frame(root: Path, run: Path) -> pd.DataFrame:
    return pd.read_json(root / "data" / "test.jsonl", lines=True)


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> list[str]:
    """Run a command; return the lines that it prints."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    return capsys.readouterr().out.splitlines()


def test_a_merged_folder_has_the_adapted_models_logits_in_plain_transformers(
    run, trained, frame, tmp_path, capsys
) -> None:
    assert "AutoModelForSequenceClassification" in said(capsys, "export", run, "--merged", tmp_path)[-1]
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.float32
    assert model.config.id2label == {0: "bad", 1: "good"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(TEXT).input_ids == trained.built.processor(TEXT).input_ids
    found, expected = (logits_of(trained, each.eval(), frame) for each in (model, trained.built.model))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    initial = build(trained.settings, 2, TEXTS).model
    assert (found - logits_of(trained, initial, frame)).abs().max() > 0.01  # the training shows


def test_merging_does_not_change_the_model(trained, tmp_path) -> None:
    before = {name: tensor.clone() for name, tensor in trained.built.model.state_dict().items()}
    write_merged(tmp_path, trained.built, trained.classes)
    after = trained.built.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert lora.fingerprint_base(trained.built.model) == trained.built.base


def test_of_a_mean_pooled_model_the_merged_encoder_and_the_output_layer_are_written(root, run, frame, tmp_path) -> None:
    pooled = untrained(of(root, pooling="mean"), ("bad", "good"))
    write_merged(tmp_path, pooled.built, pooled.classes)
    encoder, output = transformers.AutoModel.from_pretrained(tmp_path), load_file(tmp_path / "output.safetensors")
    expected = logits_of(pooled, pooled.built.model, frame)
    examples = pooled.task.examples(frame, pooled.classes, "test")
    inputs, _ = TEXTS.collate(
        pooled.built.processor, TEXTS.encode(pooled.built.processor, examples, 64, "mean"), range(len(frame))
    )
    with torch.no_grad():
        hidden, mask = encoder.eval()(**inputs).last_hidden_state, inputs["attention_mask"][..., None].float()
    found = (hidden * mask).sum(1) / mask.sum(1) @ output["weight"].T + output["bias"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,embed_tokens"])
def test_a_merged_model_that_writes_has_its_logits_where_the_tied_embedding_is_adapted_too(tmp_path, targets) -> None:
    make_writer(tmp_path / "tied")
    writer = untrained(quiz_settings(tmp_path, model=str(tmp_path / "tied"), targets=targets))
    write_merged(tmp_path / "merged", writer.built)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, writer.built.model(ids).logits, atol=1e-5, rtol=1e-5)


def test_of_a_run_in_bfloat16_the_float32_model_is_merged(root, frame, tmp_path, capsys) -> None:
    rounded = untrained(of(root, dtype="bfloat16"), ("bad", "good"))
    contract = contract_of(rounded.settings, rounded.built, rounded.classes, "no data")
    matrices = trainable_state.read(trainable_state.common(rounded.built.model))
    state = checkpoint.State("", 1, matrices, {}, 0, contract.to_json(), rounded.settings.run_config())
    checkpoint.save(tmp_path, state)
    said(capsys, "export", tmp_path, "--merged", tmp_path / "merged")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    whole = untrained(of(root), rounded.classes)
    trainable_state.load(trainable_state.common(whole.built.model), matrices)
    found, expected = (logits_of(whole, each, frame) for each in (model, whole.built.model))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_an_adapter_is_written_again_from_the_checkpoint_alone_with_the_same_bytes(run, tmp_path, capsys) -> None:
    (tmp_path / "stopped").mkdir()
    shutil.copy(run / checkpoint.FILE, tmp_path / "stopped")
    assert "after round 2, for PEFT" in said(capsys, "export", tmp_path / "stopped")[-1]
    for path in (run / "adapter").iterdir():
        assert (tmp_path / "stopped" / "adapter" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "stopped" / "adapter" / "adapter_model.safetensors").exists()


def test_classes_are_the_softmax_of_the_logits_sorted_and_every_way_in_gives_the_same(
    run, trained, frame, tmp_path, capsys
) -> None:
    frame = frame.head(7).copy()
    frame.loc[0, "text"] += " \f\u2028plot"  # which end no line of a file
    expected = logits_of(trained, trained.built.model, frame).double().softmax(-1).numpy()
    frame.to_csv(tmp_path / "asked.csv", index=False)
    (tmp_path / "asked.txt").write_text("\n".join(frame["text"]) + "\n")
    lines = said(capsys, "predict", run, "--file", tmp_path / "asked.csv")
    assert lines == said(capsys, "predict", run, "--file", tmp_path / "asked.txt")
    for text, line, row in zip(frame["text"], lines, expected, strict=True):
        answer = json.loads(line)
        shares = answer["probabilities"]
        assert [shares[name] for name in ("bad", "good")] == pytest.approx(row, abs=1e-6)
        assert [*shares.values()] == sorted(shares.values(), reverse=True) and answer["class"] == next(iter(shares))
        (again,) = said(capsys, "predict", run, text, "--json")
        assert json.loads(again)["probabilities"] == pytest.approx(shares, abs=1e-6)
    best, other = (line.split() for line in said(capsys, "predict", run, frame["text"][0]))
    assert {best[0], other[0]} == {"bad", "good"} and float(best[1]) + float(other[1]) == pytest.approx(1, abs=2e-4)
    assert said(capsys, "predict", run, frame["text"][0], "--top", 1) == ["  ".join(best)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of these: texts, --file, or --image"),
        ([""], "command line: row 1: column 'text' is empty"),
        (["one", "two"], "2 given, and the model reads 1: text"),
        (["--image", "x.png"], "the model reads text"),
        (["--file", "no.csv"], "there is no file no.csv"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(run, capsys, monkeypatch, words, message) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    assert message in said(capsys, "predict", run, *words, code=1)[-1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "words,label\nfine,good\n", "a.csv has no column text; it has words, label"),
        ("a.tsv", "text\tn\nfine\t1\n\t2\n", "a.tsv: row 1: column 'text' is empty"),
        ("a.txt", "fine\n \nwarm\n", "a.txt: row 2: column 'text' is empty"),
        ("a.jsonl", "{", "a.jsonl: line 1 is no JSON"),
        ("a.txt", "", "a.txt holds no examples"),
    ],
)
def test_a_file_is_refused_with_its_name_and_the_row(run, tmp_path, capsys, name, content, message) -> None:
    (tmp_path / name).write_text(content)
    assert message in said(capsys, "predict", run, "--file", tmp_path / name, code=1)[-1]


def test_another_model_in_the_place_of_the_trained_one_is_named(run, tmp_path) -> None:
    state = checkpoint.load(run)
    assert state is not None
    other = {**state.settings, "model": str(make_model(tmp_path / "other", seed=1))}
    checkpoint.save(tmp_path, dataclasses.replace(state, settings=other))
    with pytest.raises(ValueError, match=r"not the one that was trained; the contract differs .*base: "):
        load_trained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint.safetensors; give a run folder"):
        load_trained(tmp_path / "other")


def test_a_regression_answers_with_its_output(tiny, frames) -> None:
    task = {"task": "regression", "label_column": "score", "data_config": "parquet"}
    scored = untrained(dataclasses.replace(tiny, **task))
    asked = frames["test"].head(5)[["text"]]
    expected = logits_of(scored, scored.built.model, frames["test"].head(5))[:, 0].tolist()
    assert answers_to(scored, asked) == pytest.approx(expected, abs=1e-6)


CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
    {"role": "user", "content": "And now?"},
]
ROW = {"instruction": "Shout it.", "input": "rome"}
ASKED = {
    "a template": (TEMPLATE, "alpaca", ROW, {"output": "ROME!"}),
    "no template": ("", "alpaca", ROW, {"output": "ROME!"}),
    "a chat": (TEMPLATE, "chat", {"messages": CHAT}, {"messages": [*CHAT, {"role": "assistant", "content": "I."}]}),
}


def greedy(model, ids: list[int], ends: tuple[int, ...], most: int) -> list[int]:
    """Write token by token, each time the likeliest, by a model that reads all anew."""
    found: list[int] = []
    while len(found) < most and not (found and found[-1] in ends):
        with torch.no_grad():
            found.append(int(model(torch.tensor([[*ids, *found]])).logits[0, -1].argmax()))
    return found


@pytest.mark.parametrize("case", ASKED)
def test_a_prompt_has_the_tokens_that_stand_before_the_answer_in_training(tmp_path, case) -> None:
    template, form, row, answered = ASKED[case]
    make_writer(tmp_path / "own", template, opens=True)
    writer = untrained(quiz_settings(tmp_path, model=str(tmp_path / "own"), instruct_format=form))
    tokenizer, task = writer.built.processor, writer.task
    whole = task.examples(pd.DataFrame([row | answered]), (), "train")
    (item,) = task.inputs.encode(tokenizer, whole, 512).items
    last = max(i for i, label in enumerate(item["labels"]) if label == IGNORED and item["labels"][i + 1 :])
    prompt = item["input_ids"][: last + 2]  # the labels of the last answer begin beside the last token before it
    for cells in (task.inputs.asked.read(pd.DataFrame([row]), "asked"), whole.inputs):
        asked = dataclasses.replace(whole, inputs=cells)
        (found,) = task.inputs.asked.encode(tokenizer, asked, 512).items
        assert found["input_ids"] == [*prompt, tokenizer.eos_token_id]
        assert [label != IGNORED for label in found["labels"]] == [*[False] * (len(prompt) - 1), True, False]
    (text,) = answers_to(writer, pd.DataFrame([row]), length=12)
    ids = greedy(writer.built.model, prompt, task.target.ends(tokenizer), 12)
    assert text == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_a_text_on_the_command_line_is_a_row_of_the_format(tmp_path) -> None:
    rows = {}
    for form in ("alpaca", "chat", "text"):
        inputs = task_of(Settings(task="instruct", instruct_format=form, split="iid")).inputs.asked
        rows[form] = typed_inputs(inputs, ["Say it"], []).to_dict("records")
    assert rows["alpaca"] == [{"instruction": "Say it"}] and rows["text"] == [{"text": "Say it"}]
    assert rows["chat"] == [{"messages": [{"role": "user", "content": "Say it"}]}]
    inputs = task_of(Settings(task="instruct", split="iid")).inputs.asked
    assert typed_inputs(inputs, ["Say", "it"], []).to_dict("records") == [{"instruction": "Say", "input": "it"}]


@pytest.mark.parametrize("kind", ["bart", "llama"])
def test_a_summary_is_what_an_evaluation_lets_the_model_write(models, root, kind) -> None:
    writer = untrained(settings_of(kind, models, root))
    examples = load_held_out(writer.settings, ()).take(np.arange(4))
    encoded = writer.task.inputs.encode(writer.built.processor, examples, writer.settings.max_length)
    expected = []
    for place in range(4):
        inputs, labels = writer.task.inputs.collate(writer.built.processor, encoded, [place])
        expected += write(writer.built.model, writer.built.processor, inputs, labels, writer.settings.answer_length, 1)
    asked = pd.DataFrame({"document": examples.inputs[0]})
    assert answers_to(writer, asked) == expected and any(expected)
    with pytest.raises(ValueError, match=r"exceed the \d+ positions of the model; lower the length"):
        answers_to(writer, asked, length=10**6)


def test_images_are_classified_from_paths_and_one_that_is_none_is_named(root, tmp_path) -> None:
    seer = untrained(image_settings(root), CLASSES)
    for place, kind in enumerate(CLASSES):
        (tmp_path / f"{kind}.png").write_bytes(png(drawing(kind, "grey", place)))
    paths = [tmp_path / f"{kind}.png" for kind in CLASSES]
    answers = answers_to(seer, typed_inputs(seer.task.inputs.asked, [], paths))
    alone = [answers_to(seer, typed_inputs(seer.task.inputs.asked, [], [path]))[0] for path in paths]
    assert answers == [pytest.approx(each, abs=1e-6) for each in alone] and answers[0].keys() == {*CLASSES}
    assert sum(answers[0].values()) == pytest.approx(1)
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"torn\.png: cannot be decoded"):
        answers_to(seer, typed_inputs(seer.task.inputs.asked, [], [tmp_path / "torn.png"]))
    with pytest.raises(ValueError, match="the model reads images; use --image"):
        typed_inputs(seer.task.inputs.asked, ["bar"], [])


def test_held_out_examples_stand_in_the_run_with_the_first_and_the_last_answer(root, run, trained) -> None:
    entries = read_json(run / EXAMPLES)
    examples = choose_examples(load_examples(trained.settings)[1], trained.settings.seed)
    assert [entry["question"] for entry in entries] == examples.inputs[0] and len(entries) == 5
    assert [entry["expected"] for entry in entries] == [trained.classes[label] for label in examples.labels]
    initial = dataclasses.replace(trained, built=build(trained.settings, 2, TEXTS))
    for when, model in (("before", initial), ("after", trained)):
        answers = answers_to(model, pd.DataFrame({"text": examples.inputs[0]}))
        assert [entry[when] for entry in entries] == [in_words(answer) for answer in answers]


def test_a_run_without_memory_for_examples_has_the_same_bits_and_says_so(root, run, monkeypatch, caplog) -> None:
    def full(*_: object) -> None:
        raise DeviceMemoryError("out of memory in answering")

    monkeypatch.setattr("server.lifecycle.answers_now", full)
    with caplog.at_level("INFO", "fedasym"):
        other = simulate(of(root, out=str(root / "without")))
    assert caplog.text.count("the report shows no examples: out of memory") == 1
    assert not (other / EXAMPLES).exists()
    rows = [[{**row, "seconds": 0} for row in read_rounds(folder)] for folder in (run, other)]
    assert rows[0] == rows[1]


def test_examples_are_left_out_where_no_common_model_is_judged_at_the_server(root, run) -> None:
    settings = of(root, head="local", client_holdout=0.2)
    assert prepare(settings.resolved()).shown is None


def test_questions_that_judge_a_run_are_answered_with_the_choice_that_counts(tmp_path) -> None:
    session = prepare(quiz_settings(tmp_path, choices_score="text").resolved())
    examples, judge = session.shown, session.task.judge
    answers = answers_now(session.built, session.settings, judge, examples)
    told = judge.inputs.told(examples)
    encoded = judge.inputs.encode(session.built.processor, examples, 512)
    inputs, labels = judge.inputs.collate(session.built.processor, encoded, range(len(encoded)))
    evaluation = judge.target.evaluation(judge.metrics, session.built.processor)
    with torch.no_grad():
        evaluation.add(session.built.model, inputs, labels, encoded.items)
    right = [answer == each.answer for answer, each in zip(answers, told, strict=True)]
    assert evaluation.scores()["accuracy"] == np.mean(right)
    assert all(re.fullmatch(r"Question: .*\nAnswer:", each.question) for each in told)


def test_the_page_shows_examples_as_text_and_none_where_there_are_none(run, tmp_path) -> None:
    shutil.copytree(run, tmp_path / "run")
    hostile = "<script>alert('x')</script>"
    entry = {
        "question": hostile,
        "expected": "a&b",
        "before": '"><img src=x>',
        "after": "good (0.75)",
        "picture": "aGk=",
    }
    write_json(tmp_path / "run" / EXAMPLES, [entry])
    page = render_page(read_runs([tmp_path / "run"]), {})
    assert "Held-out examples" in page and hostile not in page and "<img src=x" not in page
    assert "&lt;script&gt;" in page and "a&amp;b" in page and 'src="data:image/png;base64,aGk="' in page
    (tmp_path / "run" / EXAMPLES).unlink()
    assert "Held-out examples" not in render_page(read_runs([tmp_path / "run"]), {})
