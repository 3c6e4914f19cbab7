"""A small BART is made from documents alone, by a seed, and is loaded as a hub's snapshot is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from summaries import make_documents

from fedasym.models.build import build
from fedasym.rng import generator
from fedasym.settings import from_run_config
from fedasym.tasks import task_of
from simulations.pretrain import bart


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the tiny documents in two sentences each, whose summaries hold a word that no document has."""
    folder = tmp_path_factory.mktemp("table")
    frame = pd.read_json(make_documents(folder) / "train.jsonl", lines=True)
    frame["document"] = frame["document"].str.replace(" word", ". Word", n=1)
    frame["summary"] = "unheard " + frame["summary"]
    frame.to_parquet(folder / "train.parquet")
    return folder / "train.parquet"


@pytest.fixture(scope="module")
def made(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bart")
    assert bart.pretrain(table, out, steps=4, seed=3) > 0
    return out


def settings(model: Path, data: Path):
    values = {"task": "summarize", "text-columns": "document", "model": str(model), "data": str(data.parent)}
    return from_run_config({**values, "dtype": "float32", "max-length": 64, "split": "iid"}).resolved()


def test_what_is_saved_is_built_and_read_like_any_model_and_knows_nothing_of_the_summaries(made, table) -> None:
    chosen = settings(made, table)
    task = task_of(chosen)
    built = build(chosen, 0, task.inputs)
    assert built.seeded == () and len(built.layers) == 2 * 6 + 2 * 10
    assert 5e6 < sum(p.numel() for p in bart.make_model(bart.WORDS, 0).parameters()) < 1e7
    tokenizer = built.processor
    assert tokenizer("good word3")["input_ids"][0] == 0 == built.model.config.bos_token_id
    assert built.model.config.pad_token_id == tokenizer.pad_token_id == 1
    assert built.model.config.decoder_start_token_id == tokenizer.eos_token_id == 2
    text = "Reads naïve files (v1.2), e.g. *.txt"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text
    assert len(tokenizer.tokenize("unheard")) > 2  # its letters alone were seen, in pieces


def test_the_same_seed_gives_the_same_bits_and_draws_nothing_from_the_global_generator(made, table, tmp_path) -> None:
    state = torch.manual_seed(5).get_state()
    bart.pretrain(table, tmp_path / "again", steps=4, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    bart.pretrain(table, tmp_path / "other", steps=4, seed=4)
    again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("again", "other"))
    assert again == (made / "model.safetensors").read_bytes() != other
    assert (tmp_path / "again/tokenizer.json").read_text() == (made / "tokenizer.json").read_text()


words = st.lists(st.integers(10, 60), min_size=1, max_size=30)


@given(st.lists(words, min_size=1, max_size=6), st.integers(0, 10_000))
def test_an_example_asks_for_a_sentence_of_its_document_and_reads_no_word_that_is_not_there(sentences, seed) -> None:
    one = bart.example_of(sentences, generator(seed, "test"))
    body, asked = one.read[1:-1], one.written[1:-1]
    assert (one.read[0], one.read[-1]) == (one.written[0], one.written[-1]) == (0, 2)
    assert len(one.read) <= bart.READ and len(one.written) <= bart.WRITTEN
    assert asked in [sentence[: bart.WRITTEN - 2] for sentence in sentences]
    rest = iter(word for sentence in sentences for word in sentence)
    assert all(word in rest for word in body if word != 4)  # in the document's order


def test_about_as_much_is_hidden_as_is_said_and_the_telling_sentence_is_taken_out_whole() -> None:
    ids = list(range(100, 162))
    gaps = [bart._with_gaps(ids, generator(k, "gaps")) for k in range(400)]
    kept = np.mean([sum(word != 4 for word in found) / len(ids) for found in gaps])
    # Spans that begin near the end are cut there and spans of length 0 hide one token: within two hundredths.
    assert kept == pytest.approx(1 - bart._HIDDEN, abs=0.02)
    sentences = [[10, 11, 12], [13, 14, 10, 15], [14, 10, 15, 13]]
    # Shared tokens of 11 in all: 1, 4 and 4 of them; the first of the largest.
    assert bart._telling(sentences) == 1 and bart._telling(sentences[:1]) is None
    found = [bart.example_of(sentences, generator(k, "telling")) for k in range(300)]
    gone = [one for one in found if one.written[1:-1] == sentences[1]]
    assert all(not {13} & {*one.read[1 : one.read.index(4)]} for one in gone)
    assert len(gone) / 300 == pytest.approx(bart._GAP_SENTENCE, abs=0.1)


def test_every_document_is_shown_once_a_pass() -> None:
    documents = [[[10 + i]] for i in range(2 * bart._BATCH * bart._POOL)]
    seen = [
        int(word)
        for inputs in bart.batches_of(documents, 2 * bart._POOL, 0)
        for word in inputs["labels"][:, 1].tolist()
        if inputs["attention_mask"].any()
    ]
    assert sorted(seen) == [10 + i for i in range(len(documents))] and seen != sorted(seen)


def test_a_table_that_cannot_be_used_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.parquet; give a parquet table"):
        bart.read_documents(tmp_path / "none.parquet")
    pd.DataFrame({"text": ["a"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has no column document; it has text"):
        bart.read_documents(tmp_path / "a.parquet")
    pd.DataFrame({"document": []}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet holds no documents"):
        bart.read_documents(tmp_path / "b.parquet")
