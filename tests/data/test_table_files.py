"""A table is read as it is written, or refused by file and line; none is read one way where it has two meanings."""

import csv
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedasym.data.examples import load_examples
from fedasym.data.table_files import read_table
from fedasym.settings import Settings, from_run_config

ROWS = [{"text": "a fine film", "label": "good"}, {"text": "a dull film", "label": "bad"}] * 6
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1, max_size=12)


def settings_of(folder: Path, **more: object) -> Settings:
    values = {"task": "classification", "data": str(folder), "num-clients": 2, "split": "iid", "min-examples": 1}
    return from_run_config({**values, "validation-cut": 2, **more})


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_what_pandas_writes_is_read_as_it_was(tmp_path: Path, kind: str, rows: list[tuple[str, str]]) -> None:
    frame = pd.DataFrame(rows, columns=["text", "label"], dtype=object)
    path = tmp_path / f"train.{kind}"
    if kind == "jsonl":
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
    assert read_table(path).to_numpy().tolist() == [list(row) for row in rows]


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.csv", "text,label\nNot good, really bad,neg\n", "line 2 has 3 fields, expected 2 (text, label)"),
        ("a.csv", "label,text,source\nneg,bad film,x,\n", "line 2 has 4 fields, expected 3 (label, text, source)"),
        ("a.csv", 'text,label\n"two\nlines",good\nonly one\n', "line 4 has 1 fields, expected 2"),
        ("a.csv", "text,label\nbar,bad\ncaf\xe9,good\n".encode("latin1"), "line 3 is not UTF-8 (byte 0xe9 at 22)"),
        ("a.csv", "text,text\na,b\n", "line 1 names 'text' more than once"),
        ("a.csv", "", "is empty; its first line must name the columns"),
        ("a.tsv", 'text\tlabel\n"open\tgood\n', "a cell that begins with a quote ends with one"),
        ("a.tsv", 'text\tlabel\n"so" she said\tgood\n', "line 2 cannot be read"),
        ("a.jsonl", '{"text": 1}\n[1, 2]\n', "line 2 holds a list, expected an object"),
        ("a.jsonl", '[{"text": 1}]', "line 1 holds a list, expected an object"),
        ("a.jsonl", '{"text": 1}\n{"text": \n', "line 2 is no JSON"),
        ("a.jsonl", '{"text": 1, "text": 2}\n', "line 1 names 'text' more than once"),
        ("a.parquet", b"", "cannot be read as parquet"),
    ],
)
def test_what_cannot_be_read_one_way_alone_is_refused_by_file_and_line(
    tmp_path: Path, name: str, text: str | bytes, named: str
) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: .*{re.escape(named)}"):
        read_table(path)


def test_quotes_of_a_tsv_are_its_writers(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", 'text\tlabel\n"a ""fine"" film"\tpos\nplain "inside"\tneg\n')
    assert read_table(path)["text"].tolist() == ['a "fine" film', 'plain "inside"']


def test_a_mark_of_byte_order_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert list(read_table(written(tmp_path, "a.csv", b"\xef\xbb\xbftext,label\na,b\n")).columns) == ["text", "label"]


def jsonl(folder: Path, rows: list[dict]) -> Path:
    written(folder, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"label": [0, 2]}, "row 12: column 'label' holds a list ([0, 2]), and a label is one value"),
        ({"label": {"a": 1}}, "row 12: column 'label' holds a dict"),
        ({"label": "bad "}, "row 12: the label 'bad ' in column 'label' begins or ends with a space"),
        ({"label": -1}, "row 12: the label is -1, by which hubs mark a row without one; set drop-labels=-1"),
        ({"label": None}, "row 12: column 'label' is empty"),
        ({"text": ["a", "b"]}, "row 12: column 'text' holds a list, expected a text"),
        ({"text": "  "}, "row 12: column 'text' is blank; fill or drop it"),
        ({"text": None}, "row 12: column 'text' is empty; fill or drop it"),
    ],
)
def test_a_cell_that_is_no_text_or_no_label_is_refused_by_row(tmp_path: Path, row: dict, named: str) -> None:
    jsonl(tmp_path, [*ROWS, {"text": "x", "label": "good", **row}])
    with pytest.raises(ValueError, match=re.escape(named)):
        load_examples(settings_of(tmp_path, **{"validation-cut": 0, "train-split": "train", "test-split": "test"}))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_blank_text_is_refused_alike_in_every_format(tmp_path: Path, kind: str) -> None:
    rows = [*ROWS, {"text": "", "label": "good"}]
    frame, path = pd.DataFrame(rows), tmp_path / f"train.{kind}"
    if kind in ("csv", "tsv"):
        frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t", quoting=csv.QUOTE_ALL)
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    with pytest.raises(ValueError, match=r"row 12: column 'text' is (blank|empty); fill or drop it"):
        load_examples(settings_of(tmp_path, **{"validation-cut": 0}))


def test_rows_without_a_label_are_left_out_on_request_and_a_class_minus_one_is_one_by_name(tmp_path: Path) -> None:
    jsonl(tmp_path, [*ROWS, {"text": "x", "label": -1}, {"text": "y", "label": "-1"}])
    train, held = load_examples(settings_of(tmp_path, **{"drop-labels": "-1"}))
    assert len(train) + len(held) == len(ROWS) and train.class_names == ("bad", "good")
    train, held = load_examples(settings_of(tmp_path, labels="bad,good,-1"))
    assert len(train) + len(held) == len(ROWS) + 2 and train.class_names == ("bad", "good", "-1")


def test_labels_that_are_both_dropped_and_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="drop-labels='-1' and labels both name -1"):
        settings_of(tmp_path, **{"drop-labels": "-1", "labels": "-1,1"})
    with pytest.raises(ValueError, match="which has no classes"):
        settings_of(tmp_path, **{"task": "regression", "drop-labels": "-1"})
