"""A file that a user gives, damaged or written otherwise, is read as it says or refused by name; nothing else."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from kits import make_kit
from world import tiny_settings

from clients.deploy.kit import read_kit
from clients.worker.frames import FrameError, pack, unpack
from fedasym.data.table_files import read_table
from fedasym.models.build import build
from fedasym.models.init_adapter import load_init_adapter
from fedasym.runs import checkpoint, record
from fedasym.runs.peft_folder import write_adapter
from fedasym.settings import Settings, from_run_config
from fedasym.tasks import task_of
from server.deploy.home import read_home

FEW, MANY = 150, 5_000
COUNTS = [pytest.param(FEW, id="quick"), pytest.param(MANY, id="slow", marks=pytest.mark.slow)]
TEXTS = (
    "a fine film",
    "é, with a comma",
    'a "quoted" word',
    "two\nlines",
    "tab\there",
    "1",
    "",
    " x ",
    "\\ud800",
    "{}",
)
PIECES = (
    b'"',
    b",",
    b"\t",
    b"\n",
    b"\r\n",
    b"\xff",
    b"\x00",
    b"\xef\xbb\xbf",
    b"{",
    b"[" * 9000,
    b"9" * 5000,
    b"\\ud8",
)


def mutated(raw: bytes, rng: Random) -> bytes:
    """Flip, cut, insert or repeat some bytes."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place, how = rng.randrange(len(data) + 1), rng.randrange(5)
        if how == 0:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            data[place:place] = rng.choice(PIECES)
        elif how == 2:
            del data[place : place + rng.choice((1, 1, 4, 40))]
        elif how == 3:
            data[place:place] = data[place : place + rng.choice((1, 8, 60))]
        else:
            other = rng.randrange(len(data) + 1)
            data[other : other + 4] = data[place : place + 4]
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data)


def plain_cells(text: str, delimiter: str) -> list[list[str]]:
    """Read a delimited text by its grammar alone: a cell in quotes, its own doubled, or one that begins with none."""
    rows, row, place = [], [], 0
    while place < len(text):
        cell = []
        if text[place] == '"':
            place += 1
            while text[place] != '"' or text[place + 1 : place + 2] == '"':
                cell.append(text[place])
                place += 2 if text[place] == '"' else 1
            place += 1
        else:
            while place < len(text) and text[place] not in (delimiter, "\n", "\r"):
                cell.append(text[place])
                place += 1
        row.append("".join(cell))
        end = text[place : place + 1]
        if end == delimiter:
            place += 1
            if place < len(text) and text[place] not in "\r\n":
                continue
            row.append("")
        place += 2 if text[place : place + 2] == "\r\n" else 1
        if row != [""] or cell or end == delimiter:
            rows.append(row)
        row = []
    return [each for each in rows if each]


def plainly(path: Path) -> list[list[Any]]:
    """Read a table by another reader, as rows of cells with None for an empty one."""
    if path.suffix == ".parquet":
        return [[*row.values()] for row in pyarrow.parquet.ParquetFile(path).read().to_pylist()]
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        names = dict.fromkeys(name for row in rows for name in row)
        return [[row.get(name) for name in names] for row in rows]
    return [[cell or None for cell in row] for row in plain_cells(text, "," if path.suffix == ".csv" else "\t")[1:]]


def spelled(rows: list[list[Any]]) -> list[list[str]]:
    """Rows as text, with one word for what is missing."""
    return [[repr(None if cell is None or cell != cell else cell) for cell in row] for row in rows]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_is_read_as_another_reader_reads_it_or_refused_by_its_name(
    tmp_path: Path, kind: str, count: int
) -> None:
    rows = [(text, ("good", "bad")[place % 2], str(place)) for place, text in enumerate(TEXTS)]
    frame, path = pd.DataFrame(rows, columns=["text", "label", "number"], dtype=object), tmp_path / f"train.{kind}"
    if kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t", quoting=csv.QUOTE_MINIMAL)
    raw, outcomes = path.read_bytes(), Counter[str]()
    for seed in range(count):
        path.write_bytes(mutated(raw, Random(seed)))
        try:
            read = read_table(path).to_numpy().tolist()
        except ValueError as error:
            assert str(error).startswith(f"{path}: "), error
            assert kind == "parquet" or "line" in str(error) or "is empty" in str(error), error
            outcomes["refused"] += 1
            continue
        assert spelled(read) == spelled(plainly(path)), f"seed {seed}"
        outcomes["read"] += 1
    print(kind, outcomes)
    assert min(outcomes["refused"], outcomes["read"]) > 0


@pytest.mark.parametrize("count", COUNTS)
def test_other_bytes_than_what_was_written_are_no_checkpoint(tmp_path: Path, count: int) -> None:
    state = checkpoint.State(
        "0" * 32,
        2,
        {"x.B": np.arange(6, dtype=np.float32)},
        {"first/x.B": np.ones(6, np.float32)},
        5,
        "{}",
        {"lr": 0.1},
    )
    checkpoint.save(tmp_path, state)
    path = tmp_path / checkpoint.FILE
    raw, refused = path.read_bytes(), 0
    for seed in range(count):
        rng = Random(seed)
        names = (
            (b"F32", b"BF16"),
            (b"F32", b"F64"),
            (b"x.B", b"y.B"),
            (b"[6]", b"[3]"),
            (b"about", b"abouT"),
            (b"2", b"3"),
        )
        whole = raw.replace(*rng.choice(names)) if rng.random() < 0.1 else mutated(raw, rng)
        path.write_bytes(whole)
        try:
            found = checkpoint.load(tmp_path)
        except ValueError as error:
            assert str(error).startswith(f"{path} is damaged ("), error
            refused += 1
            continue
        assert found is not None and (found.round, found.settings) == (state.round, state.settings)
        assert found.matrices["x.B"].tobytes() == state.matrices["x.B"].tobytes()
    assert refused > 0.9 * count


@pytest.mark.parametrize("count", COUNTS)
def test_other_bytes_than_what_was_written_are_no_record(tmp_path: Path, count: int) -> None:
    length, chain = 0, ""
    for number in range(1, 4):
        length, chain = record.append_round(tmp_path, {"round": number, "metrics": {"accuracy": 0.5}}, chain)
    path = tmp_path / "rounds.jsonl"
    raw = path.read_bytes()
    for seed in range(count):
        whole = mutated(raw, Random(seed))
        path.write_bytes(whole)
        if whole[:length] == raw and len(whole[length:].splitlines()) < 2:
            record.cut_rounds(tmp_path, length, chain)
            assert path.read_bytes() == raw
            continue
        with pytest.raises(ValueError, match=r"rounds\.jsonl"):
            record.cut_rounds(tmp_path, length, chain)
        assert path.read_bytes() == whole  # what is refused is not touched


VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**63, 10**400, -(10**400), 0.0, -0.5, 1e308, float("nan"), float("inf"), "", " ", ",",
    "x", "a,a", "none", "auto", "clip:", "clip:nan", "norm_bound:-1", "trimmed:2", "krum:1.5", "column:", "column:x:0",
    "dirichlet:0", "dirichlet:nan", "../..", "\0", "é" * 300, "x" * 9000, b"x", [], [1], {}, {"a": 1}, (), 1j, object(),
)  # fmt: skip


@pytest.mark.parametrize(
    "pairs", [pytest.param(300, id="quick"), pytest.param(20_000, id="slow", marks=pytest.mark.slow)]
)
def test_any_value_of_any_key_gives_settings_or_an_error_that_names_one_of_them(pairs: int) -> None:
    keys = [each.name.replace("_", "-") for each in fields(Settings)]
    rng = Random(0)
    configs = [{key: value} for key in keys for value in VALUES]
    configs += [{key: rng.choice(VALUES) for key in rng.sample(keys, 2)} for _ in range(pairs)]
    configs += [{"new": 1}, {"": 1}, {"seed ": 1}, {"num_rounds": 1}, {"SEED": 1}]
    made = 0
    for config in configs:
        try:
            assert from_run_config(config).resolved().run_config()
            made += 1
        except ValueError as error:
            assert any(key in str(error) for key in config), (config, error)
    assert 0 < made < len(configs)


@pytest.mark.parametrize("count", COUNTS)
def test_a_kit_and_a_servers_settings_are_read_or_refused_by_file(tmp_path: Path, count: int) -> None:
    kit = make_kit(tmp_path / "kit")
    home = tmp_path / "home"
    home.mkdir()
    lines = 'hosts = ["a.example"]\nlisten = "0.0.0.0"\nport = 443\ninternal-port = 9000\nsites = ["north"]\n'
    (home / "server.toml").write_text(lines)
    readers: list[tuple[Path, Callable[[Path], object]]] = [
        (kit / "site.toml", read_kit),
        (home / "server.toml", read_home),
    ]
    for path, read in readers:
        raw = path.read_bytes()
        for seed in range(count):
            path.write_bytes(mutated(raw, Random(seed)))
            try:
                read(path.parent)
            except ValueError as error:
                assert str(path) in str(error) or any(key in str(error) for key in ("host", "site", "port", "listen"))


@pytest.mark.parametrize(
    "count", [pytest.param(60, id="quick"), pytest.param(1_500, id="slow", marks=pytest.mark.slow)]
)
def test_an_adapters_folder_is_taken_as_it_is_or_refused_by_its_setting(tmp_path: Path, count: int) -> None:
    settings = tiny_settings(tmp_path).resolved()
    task = task_of(settings)
    write_adapter(
        tmp_path / "given", build(settings, task.outputs(("bad", "good")), task.inputs), settings, ("bad", "good")
    )
    given = tiny_settings(tmp_path, init_adapter=str(tmp_path / "given")).resolved()
    built = build(given, task.outputs(("bad", "good")), task.inputs)
    words = (None, True, 0, -1, 1.5, "", "x", [], ["x"], {}, {"a": 1}, [[]], 10**30)
    files = [tmp_path / "given" / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    raws = {path: path.read_bytes() for path in files}
    taken = 0
    for seed in range(count):
        rng = Random(seed)
        path = rng.choice(files)
        if path.suffix == ".json" and rng.random() < 0.7:
            said = json.loads(raws[path])
            said[rng.choice([*said, "new"])] = rng.choice(words)
            path.write_text(json.dumps(said))
        else:
            path.write_bytes(mutated(raws[path], rng))
        try:
            load_init_adapter(built.model, given)
            taken += 1
        except ValueError as error:
            assert str(error).startswith("init-adapter="), error
        path.write_bytes(raws[path])
    assert 0 < taken < count


@pytest.mark.parametrize("count", COUNTS)
def test_a_frame_is_read_or_refused_whatever_its_header_says(count: int) -> None:
    content = RecordDict(
        {
            "matrices": ArrayRecord({"packed": Array(np.ones(5, np.float32))}),
            "about": ConfigRecord({"round": 1, "b": b"x"}),
        }
    )
    raw = pack(content, kind="train", run_config={"lr": 0.1}, run_id=1)
    for seed in range(count):
        try:
            about, found = unpack(mutated(raw, Random(seed)))
        except FrameError:
            continue
        assert isinstance(about, dict) and isinstance(found, RecordDict)
