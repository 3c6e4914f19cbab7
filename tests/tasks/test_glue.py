"""The nine GLUE tasks are those of the hub's `nyu-mll/glue`: columns, label ids, splits and official metrics."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef
from world import TEXTS, simulate

from fedasym.data.examples import load_examples, load_extra_examples
from fedasym.data.partition import partition
from fedasym.models.build import build
from fedasym.runs.record import read_rounds
from fedasym.settings import Settings
from fedasym.tasks import glue, task_of
from fedasym.tasks.metrics import score
from fedasym.training.loop import evaluate
from fedasym.wire.contract import contract_of

# By task: text columns, number of classes (0: scores), first metric. Written out again on purpose.
TABLE = {
    "cola": (("sentence",), 2, "matthews"),
    "sst2": (("sentence",), 2, "accuracy"),
    "mrpc": (("sentence1", "sentence2"), 2, "accuracy"),
    "stsb": (("sentence1", "sentence2"), 0, "pearson"),
    "qqp": (("question1", "question2"), 2, "accuracy"),
    "mnli": (("premise", "hypothesis"), 3, "accuracy"),
    "qnli": (("question", "sentence"), 2, "accuracy"),
    "rte": (("sentence1", "sentence2"), 2, "accuracy"),
    "wnli": (("sentence1", "sentence2"), 2, "accuracy"),
}
# Rows of training and validation split on the hub.
ROWS = {"cola": (8551, 1043), "sst2": (67349, 872), "stsb": (5749, 1500), "rte": (2490, 277)}
TRAIN, HELD_OUT, MISMATCHED = 48, 12, 7


def frame(task: str, split: str, rows: int) -> pd.DataFrame:
    columns, classes, _ = TABLE[task]
    ids = np.arange(rows)[::-1]  # the first label is not the least
    labels = (ids % classes).astype(np.int64) if classes else (ids % 6 * 0.9).astype(np.float32)
    texts = {column: [f"{split} {column} {i}" for i in range(rows)] for column in columns}
    return pd.DataFrame({**texts, "label": labels, "idx": ids.astype(np.int32)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All nine tasks in the hub's layout. Test splits are unlabelled there; here they cannot even be read."""
    root = tmp_path_factory.mktemp("glue")
    for task in TABLE:
        (root / task).mkdir()
        mnli = {"validation_matched": HELD_OUT, "validation_mismatched": MISMATCHED}
        held_out = mnli if task == "mnli" else {"validation": HELD_OUT}
        for split, rows in {"train": TRAIN, **held_out}.items():
            frame(task, split, rows).to_parquet(root / task / f"{split}-00000-of-00001.parquet")
        (root / task / "test-00000-of-00001.parquet").write_text("not to be opened")
    return root


@pytest.fixture(autouse=True)
def no_variable(request, monkeypatch) -> None:
    if "glue" not in request.keywords:
        monkeypatch.delenv(glue.VARIABLE, raising=False)


def of(task: str, folder: Path, **more) -> Settings:
    return Settings(task=task, glue_dir=str(folder), **{"split": "iid", "num_clients": 3, **more})


def test_the_table_holds_the_nine_tasks() -> None:
    assert list(glue.TABLE) == list(TABLE)


@pytest.mark.parametrize("task", TABLE)
def test_texts_labels_and_splits_are_those_of_the_folder(task, folder) -> None:
    columns, classes, metric = TABLE[task]
    found = task_of(of(task, folder))
    held_out = "validation_matched" if task == "mnli" else "validation"
    assert (found.inputs.columns, found.target.classified, found.metric) == (columns, classes > 0, metric)
    for part, split, rows in zip(load_examples(of(task, folder)), ("train", held_out), (TRAIN, HELD_OUT), strict=True):
        expected = frame(task, split, rows)
        assert part.inputs == tuple(expected[column].tolist() for column in columns)
        assert len(part.class_names) == classes
        assert part.labels.tolist() == expected["label"].tolist()  # the hub's ids, or the scores
        assert part.labels.dtype == (np.int64 if classes else np.float32)


def test_class_names_are_the_hubs_in_the_order_of_its_ids(folder) -> None:
    names = {task: load_examples(of(task, folder))[0].class_names for task in TABLE}
    assert names["sst2"] == ("negative", "positive") and names["cola"] == ("unacceptable", "acceptable")
    assert names["mnli"] == ("entailment", "neutral", "contradiction")
    assert names["qnli"] == names["rte"] == ("entailment", "not_entailment")
    assert names["wnli"] == ("not_entailment", "entailment")  # the other way round, on the hub too
    assert names["mrpc"] == ("not_equivalent", "equivalent") and names["qqp"] == ("not_duplicate", "duplicate")


def test_a_class_without_a_training_example_keeps_its_id_and_its_output(folder) -> None:
    train, _ = load_examples(of("mnli", folder, train_cap=2, num_clients=1))
    assert len(set(train.labels.tolist())) < 3 == len(train.class_names)


def test_mnli_has_a_second_held_out_set_and_no_other_task_has(folder) -> None:
    extra = load_extra_examples(of("mnli", folder))
    assert list(extra) == ["mismatched"]
    assert extra["mismatched"].inputs[0] == frame("mnli", "validation_mismatched", MISMATCHED)["premise"].tolist()
    assert all(not load_extra_examples(of(task, folder)) for task in TABLE if task != "mnli")
    assert len(load_extra_examples(of("mnli", folder, test_cap=5))["mismatched"]) == 5


def test_a_run_on_mnli_reports_both_held_out_sets(folder, models, tmp_path) -> None:
    settings = of(
        "mnli", folder, model=str(models["bert"]), pooling="mean", dtype="float32", num_rounds=1,
        local_steps=1, batch_size=4, rank=2, out=str(tmp_path / "run"),
    )  # fmt: skip
    [row] = read_rounds(simulate(settings, workers=1))
    assert row["metrics"].keys() == {"accuracy", "loss", "accuracy_mismatched", "loss_mismatched"}
    # To the tiny tokenizer all texts are the same unknown words, so one class is predicted throughout.
    assert row["metrics"]["accuracy"] == 4 / 12 and row["metrics"]["accuracy_mismatched"] in (2 / 7, 3 / 7)


@pytest.mark.parametrize("task", TABLE)
def test_every_task_gives_a_model_that_is_judged_by_the_tasks_metrics(task, folder, models) -> None:
    settings = of(task, folder, model=str(models["bert"]), pooling="mean", dtype="float32", rank=2).resolved()
    train, held = load_examples(settings)
    built = build(settings, max(1, len(train.class_names)), TEXTS)
    found = evaluate(built.model, built.processor, TEXTS.encode(built.processor, held, 32), task_of(settings))
    more = {"mrpc": ["binary_f1"], "qqp": ["binary_f1"], "stsb": ["spearman"]}.get(task, [])
    assert list(found) == [TABLE[task][2], *more, "loss"] and all(np.isfinite(list(found.values())))
    assert (
        contract_of(settings, built, train.class_names, partition(train, settings).digest).labels == train.class_names
    )


def test_a_validation_cut_reads_no_held_out_split(folder, tmp_path) -> None:
    for task in TABLE:
        (tmp_path / task).mkdir()
        (tmp_path / task / "train.parquet").write_bytes((folder / task / "train-00000-of-00001.parquet").read_bytes())
        settings = of(task, tmp_path, validation_cut=8, test_cap=3)
        assert [len(part) for part in load_examples(settings)] == [TRAIN - 8, 8]
        assert load_extra_examples(settings) == {}


def test_the_folder_comes_from_the_setting_then_the_environment_then_the_hub(folder, tmp_path, monkeypatch) -> None:
    assert task_of(Settings(task="rte")).data == "nyu-mll/glue"
    monkeypatch.setenv(glue.VARIABLE, str(folder))
    assert task_of(Settings(task="rte")).data == str(folder)
    assert task_of(Settings(task="rte", glue_dir=str(tmp_path))).data == str(tmp_path)


def test_a_folder_that_is_not_there_is_named_with_what_named_it(tmp_path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"glue-dir='.*none': there is no such folder"):
        load_examples(of("rte", tmp_path / "none"))
    (tmp_path / "cola").mkdir()
    with pytest.raises(FileNotFoundError, match="has no folder 'rte'; it holds cola"):
        load_examples(of("rte", tmp_path))
    with pytest.raises(FileNotFoundError, match=r"holds no train\.parquet"):
        load_examples(of("cola", tmp_path))
    monkeypatch.setenv(glue.VARIABLE, "/none")
    with pytest.raises(FileNotFoundError, match="FEDASYM_GLUE_DIR='/none': there is no such folder"):
        load_examples(Settings(task="rte"))


def test_without_folder_and_hub_the_error_says_what_to_set() -> None:
    with pytest.raises(ConnectionError, match=r"nyu-mll/glue.*set glue-dir to a local folder"):
        load_examples(Settings(task="rte"))  # the tests run offline


def test_an_unlabelled_row_and_a_foreign_layout_are_refused(folder, tmp_path) -> None:
    (tmp_path / "rte").mkdir()
    frame("rte", "train", TRAIN).to_parquet(tmp_path / "rte/train.parquet")
    frame("rte", "test", 4).assign(label=-1).to_parquet(tmp_path / "rte/validation.parquet")
    with pytest.raises(
        ValueError,
        match=r"split 'validation' holds the labels -1 in column 'label'; those of the task are 0, 1 ",
    ):
        load_examples(of("rte", tmp_path))
    frame("cola", "train", 4).to_parquet(tmp_path / "rte/validation.parquet")
    with pytest.raises(ValueError, match=r"has no column sentence1, sentence2; .*GLUE's layout, that of nyu-mll/glue"):
        load_examples(of("rte", tmp_path))


@pytest.mark.parametrize(
    "more",
    [
        {"data": "/some/folder"},
        {"data_config": "rte"},
        {"text_columns": "sentence1,sentence2"},
        {"label_column": "y"},
        {"train_split": "all"},
        {"test_split": "validation"},
    ],
)
def test_a_setting_that_follows_from_the_task_is_refused(more) -> None:
    [(name, value)] = more.items()
    with pytest.raises(ValueError, match=f"{name.replace('_', '-')}='{value}' contradicts task='rte'"):
        Settings(task="rte", **more)


def test_a_folder_of_glue_without_one_of_its_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"glue-dir='/x' does nothing with task='reviews'"):
        Settings(glue_dir="/x")


def test_a_cap_gives_the_same_examples_for_every_seed_in_file_order(folder) -> None:
    whole, whole_held = load_examples(of("sst2", folder))
    (train, held), (again, held_again) = (
        load_examples(of("sst2", folder, train_cap=20, test_cap=5, seed=s)) for s in (0, 7)
    )
    assert train.inputs == again.inputs and held.inputs == held_again.inputs
    assert (len(train), len(held)) == (20, 5)
    for part, of_all in ((train, whole), (held, whole_held)):
        places = [of_all.inputs[0].index(text) for text in part.inputs[0]]
        assert places == sorted(places) and part.labels.tolist() == of_all.labels[places].tolist()
        assert places != list(range(len(places)))  # drawn, not the head of the file


def test_a_smaller_cap_is_part_of_a_larger_one_and_a_cap_beyond_all_is_no_cap(folder) -> None:
    small, large, all_, beyond = (
        load_examples(of("sst2", folder, train_cap=cap))[0].inputs[0] for cap in (10, 30, 0, 1000)
    )
    assert set(small) < set(large) < set(all_) and beyond == all_


def test_the_cap_comes_before_the_validation_cut(folder) -> None:
    capped = set(load_examples(of("sst2", folder, train_cap=20))[0].inputs[0])
    parts = load_examples(of("sst2", folder, train_cap=20, validation_cut=6, seed=3))
    assert [len(part) for part in parts] == [14, 6]
    assert set(parts[0].inputs[0]) | set(parts[1].inputs[0]) == capped


def test_caps_hold_for_any_data_and_move_the_partitions_digest(tiny) -> None:
    capped = dataclasses.replace(tiny, train_cap=30, test_cap=6)
    train, held = load_examples(capped)
    assert (len(train), len(held)) == (30, 6)
    assert partition(train, capped).digest != partition(load_examples(tiny)[0], tiny).digest


@pytest.mark.parametrize("kind", ["random", "right", "constant"])
def test_the_official_metrics_are_those_of_scikit_learn_and_scipy(kind) -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, 50)
    ids = {"random": rng.integers(0, 2, 50), "right": labels, "constant": np.zeros(50, np.int64)}[kind]
    assert score("binary_f1", ids, labels) == f1_score(labels, ids, zero_division=0.0)
    assert score("matthews", ids, labels) == pytest.approx(matthews_corrcoef(labels, ids), abs=1e-12)
    right, wrong = ((ids == labels) & (labels == 1)).sum(), (ids != labels).sum()  # F1 = 2 TP / (2 TP + FP + FN)
    assert score("binary_f1", ids, labels) == pytest.approx(2 * right / (2 * right + wrong))
    scores, truth = ids + 0.1 * labels, labels + rng.random(50)
    if kind != "constant":
        assert score("pearson", scores, truth) == stats.pearsonr(scores, truth).statistic
        assert score("spearman", scores, truth) == stats.spearmanr(scores, truth).statistic


@pytest.mark.filterwarnings("error")
def test_a_metric_that_is_undefined_counts_as_zero_without_a_warning() -> None:
    zeros, mixed = np.zeros(4, np.int64), np.array([0, 1, 0, 1])
    for name in ("matthews", "pearson", "spearman"):
        assert score(name, zeros, mixed) == score(name, mixed, zeros) == score(name, zeros, zeros) == 0.0
    assert score("binary_f1", zeros, zeros) == score("binary_f1", zeros, mixed) == 0.0
    with pytest.raises(ValueError, match="metric 'auc' is unknown; use accuracy, f1, binary_f1, matthews"):
        score("auc", mixed, mixed)


def tasks_held() -> list[str]:
    """Return the tasks that the local copy of GLUE holds, which need not be all nine; all, if it holds none."""
    copy = Path(os.environ.get(glue.VARIABLE, "")).expanduser()
    return [task for task in TABLE if (copy / task).is_dir()] or [*TABLE]


@pytest.mark.glue
@pytest.mark.parametrize("task", tasks_held())
def test_the_real_task_loads_whole_and_splits_by_label(task) -> None:
    settings = Settings(task=task, split="severe", num_clients=6)
    train, held = load_examples(settings)
    if task in ROWS:
        assert (len(train), len(held)) == ROWS[task]
    if train.class_names:
        assert set(train.labels.tolist()) == set(held.labels.tolist()) == set(range(len(train.class_names)))
    else:
        assert train.labels.min() == 0.0 and train.labels.max() == 5.0
    found = partition(train, settings)
    assert sum(found.sizes) == len(train) and found.digest == partition(train, settings).digest
