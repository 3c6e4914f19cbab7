"""What is wrong with a row is said with its file and its row there, whatever the family and wherever it is found."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import transformers
from pictures import drawing, image_settings, make_domains, make_vit, png
from quiz import make_tokenizer

from fedasym.data.examples import load_examples, load_held_out
from fedasym.data.partition import partition
from fedasym.models.build import build
from fedasym.settings import Settings, from_run_config
from fedasym.tasks import task_of

GOOD = {"text": "a film", "other": "the plot", "label": "bad"}
ALPACA = {"instruction": "Say red", "output": "red"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
QUIZ = {"question": "Which?", "subject": "colours", "choices": ["red", "blue"], "answer": 1}
NEWS = {"text": "word1 word2", "summary": "word1"}
PICTURE = {"image": {"bytes": png(drawing("bar", "grey", 0)), "path": None}, "label": "bar"}
UNASKED = {"messages": [{"role": "user", "content": "Hi"}]}


def settings_of(folder: Path, **values: object) -> Settings:
    """Return settings of a folder that is trained on and judged."""
    values = {"data": str(folder), "split": "iid", "num-clients": 1, "min-examples": 1, **values}
    return from_run_config({"test-split": "train", "validation-cut": 1, **values})


def write(folder: Path, rows: Sequence[dict[str, object]], name: str = "train") -> Path:
    """Write rows as two shards, the last of them into the second, by whose own rows they are then counted."""
    for number, part in enumerate((rows[:-2], rows[-2:])):
        pd.DataFrame(part).to_parquet(folder / f"{name}-{number}-of-2.parquet")
    return folder


CASES = {
    "a label that is empty": ({"task": "classification"}, GOOD, {"label": None}, "column 'label' is empty; fill or"),
    "a text that is empty": (
        {"task": "regression", "text-columns": "text,other"}, {**GOOD, "label": "1"}, {"other": None},
        "column 'other' is empty; fill or drop it",
    ),
    "a score that is a word": (
        {"task": "regression"}, {**GOOD, "label": "1"}, {"label": "fine"}, "column 'label' must hold numbers",
    ),
    "a score without an end": ({"task": "regression"}, {**GOOD, "label": "1"}, {"label": "inf"}, ".* are not finite"),
    "an empty answer": ({"task": "instruct"}, ALPACA, {"output": " "}, "column 'output' is blank; fill or drop"),
    "a chat without an answer": (
        {"task": "instruct", "instruct-format": "chat"}, CHAT, UNASKED, "the chat has no turn of the assistant",
    ),
    "an empty text": (
        {"task": "instruct", "instruct-format": "text"}, GOOD, {"text": "\n"}, "column 'text' is blank; fill or",
    ),
    "an empty summary": ({"task": "summarize"}, NEWS, {"summary": " "}, "column 'summary' is blank; fill or drop it"),
    "an empty document": (
        {"task": "summarize-causal"}, NEWS, {"text": " "}, "column 'text' is blank; fill or drop it",
    ),
    "a text for an image": (
        {"task": "images", "labels": "bar,ring"}, PICTURE, {"image": {"bytes": b"GIF89a", "path": None}},
        "column 'image': cannot be decoded as one of PNG",
    ),
    "an image that is not there": (
        {"task": "images", "labels": "bar,ring"}, PICTURE, {"image": {"bytes": None, "path": "absent.png"}},
        "column 'image': there is no file .*absent.png",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_with_a_row_is_said_with_its_file_and_its_row_there(tmp_path: Path, case: str) -> None:
    values, good, bad, message = CASES[case]
    write(tmp_path, [*[good] * 4, {**good, **bad}])
    where = rf"^{tmp_path}/train-1-of-2\.parquet: split 'train', row 1(: |, )"
    with pytest.raises((ValueError, FileNotFoundError), match=where + message):
        load_examples(settings_of(tmp_path, **values))


def test_a_class_that_is_none_of_the_tasks_is_said_with_the_first_row_that_has_it(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "label": "good"}]
    pd.DataFrame(rows).to_csv(tmp_path / "train.csv", index=False)
    write(tmp_path, [*rows, GOOD, {**GOOD, "label": "fair"}], "test")
    first = rf"the first of them: {tmp_path}/test-1-of-2\.parquet: split 'test', row 1; "
    settings = settings_of(tmp_path, **{"task": "classification", "test-split": "test", "validation-cut": 0})
    with pytest.raises(
        ValueError, match=rf"test-0-of-2\.parquet and 1 more: split 'test' holds the classes f.*{first}"
    ):
        load_examples(settings)
    with pytest.raises(ValueError, match=f"holds the labels fair in column 'label'; .*{first}mend|{first}set labels"):
        load_examples(dataclasses.replace(settings, labels="bad,good"))


@pytest.mark.parametrize(
    ("task", "good", "column"),
    [
        ("classification", GOOD, "text"), ("instruct", ALPACA, "output"), ("summarize", NEWS, "summary"),
        ("images", PICTURE, "image"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_there_is_said_with_the_file(tmp_path: Path, task: str, good: dict, column: str) -> None:
    pd.DataFrame([{key: good[key] for key in good if key != column}] * 2).to_json(
        tmp_path / "train.jsonl", orient="records", lines=True, default_handler=str
    )
    with pytest.raises(ValueError, match=rf"^{tmp_path}/train\.jsonl: split 'train' has no column {column}; it has"):
        load_examples(settings_of(tmp_path, task=task))


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("train.csv", b'a,b\n1,"2\n', "line 2 cannot be read .*: mend it"),
        ("train.jsonl", b'{"text": 1\n', "line 1 is no JSON .*; write one object a line"),
        ("train.parquet", b"no", "cannot be read as parquet .*; mend it"),
        ("train.tsv", b"\xff", "line 1 is not UTF-8 .*; write the file anew"),
    ],
)
def test_a_file_that_is_not_of_its_format_is_named(tmp_path: Path, name: str, content: bytes, named: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/{name}: .*(mend it|write the file anew|write one object a line)"
    ):
        load_examples(settings_of(tmp_path, task="classification"))


def test_a_row_that_only_a_models_own_reader_finds_too_long_or_broken_is_said_with_its_file(tmp_path: Path) -> None:
    write(tmp_path, [ALPACA] * 5)
    writer = make_tokenizer("")
    settings = settings_of(tmp_path, task="instruct")
    train, held = load_examples(settings)
    assert len(train) + len(held) == 5
    stands = rf"^{tmp_path}/train-\d-of-2\.parquet: split 'train', row \d"
    with pytest.raises(ValueError, match=stands + ": its prompt has .* max-length=8 leaves nothing of its answer"):
        task_of(settings).inputs.encode(writer, train, 8)

    write(tmp_path, [QUIZ] * 4, "test")
    judged = settings_of(
        tmp_path, **{"task": "instruct", "choices-data": str(tmp_path), "choices-shots": 0, "validation-cut": 0}
    )
    stands = rf"^{tmp_path}/test-0-of-2\.parquet: split 'test', row 0"
    with pytest.raises(ValueError, match=stands + ": the question and its 0 shots have"):
        task_of(judged).judge.inputs.encode(writer, load_held_out(judged, ()), 8)

    cut = {**PICTURE, "image": {"bytes": PICTURE["image"]["bytes"][:-30], "path": None}}  # its beginning is whole
    write(tmp_path, [*[PICTURE] * 4, cut])
    pictures = settings_of(tmp_path, task="images", labels="bar,ring")
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/train-1-of-2\.parquet: split 'train', row 1, column 'image': c"
    ):
        for part in load_examples(pictures):
            task_of(pictures).inputs.encode(transformers.ViTImageProcessorPil(), part, 0)


def test_where_an_example_stands_is_no_part_of_the_splits_digest(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        settings = settings_of(write(tmp_path / name, [{**ALPACA, "output": f"word {i}"} for i in range(6)]))
        settings = dataclasses.replace(settings, task="instruct")
        if name == "two":  # the same examples in one file
            frames = [pd.read_parquet(file) for file in sorted((tmp_path / name).iterdir())]
            for file in (tmp_path / name).iterdir():
                file.unlink()
            pd.concat(frames).to_csv(tmp_path / name / "train.csv", index=False)
        digests.append(partition(load_examples(settings)[0], settings).digest)
    assert digests[0] == digests[1]


def test_a_domain_that_is_not_there_or_alone_is_said_with_the_folder(tmp_path: Path) -> None:
    make_vit(tmp_path / "vit")
    make_domains(tmp_path / "domains", ("bright",))
    for domain, message in (
        ("sketch", rf"hold-out-domain='sketch' is none of the domains in {tmp_path}/domains: bright"),
        ("bright", rf"{tmp_path}/domains holds no domain to train on, but for hold-out-domain='bright'"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            load_examples(image_settings(tmp_path, data=str(tmp_path / "domains"), hold_out_domain=domain))


@pytest.mark.parametrize("task", ["classification", "images", "instruct", "summarize", "summarize-causal"])
def test_a_model_of_another_family_is_said_with_its_folder_and_what_to_set(
    tmp_path: Path, models: dict[str, Path], task: str
) -> None:
    folder = str(models["bert"] if task == "images" else make_vit(tmp_path / "vit"))
    settings = from_run_config({"task": task, "model": folder, "split": "iid", "dtype": "float32"}).resolved()
    chosen = task_of(settings)
    kind = "BertConfig" if task == "images" else "ViTConfig"
    wanted = rf"model='{folder}' is configured by a {kind}, which is no {chosen.inputs.model_class}: .* set model to"
    with pytest.raises(ValueError, match=wanted):
        build(settings, chosen.outputs(("a", "b")), chosen.inputs)
