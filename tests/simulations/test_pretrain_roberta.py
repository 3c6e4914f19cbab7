"""A small RoBERTa is made from texts alone, by a seed, is loaded as a hub's snapshot is, and saw nothing held out."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedasym.data.sources import demo_of
from fedasym.models.build import build
from fedasym.rng import generator
from fedasym.settings import from_run_config
from fedasym.tasks import task_of
from fedasym.tasks.next_tokens import IGNORED
from simulations.pretrain import pretraining, roberta

KINDS = (("good", "warm", "fine"), ("bad", "cold", "dull"))  # words that stand together, by label
PLAIN = ("film", "story", "scene", "music")


def text(label: int, i: int, rng: np.random.Generator) -> str:
    words = [*rng.choice(KINDS[label], 2), *rng.choice(PLAIN, 2), f"n{i}"]
    return " ".join(map(str, words))


@pytest.fixture(scope="module")
def reviews() -> pd.DataFrame:
    """Reviews of both sources in the package's columns: those of IMDB have four sentences and a line break."""
    rng = np.random.default_rng(2)
    rows = [(text(i % 2, i, rng), i % 2, "rotten_tomatoes") for i in range(1060)]
    for i in range(80):
        parts = [text(i % 2, 2000 + 4 * i + k, rng) for k in range(4)]
        rows.append((f"{parts[0]}. {parts[1]}!<br /><br />{parts[2]}? {parts[3]}.", i % 2, "imdb"))
    rows.append(rows[-1])  # once more
    return pd.DataFrame(rows, columns=["text", "label", "source"])


@pytest.fixture(scope="module")
def division(reviews: pd.DataFrame) -> roberta.Division:
    return roberta.divide(reviews, train=40, test=20)


@pytest.fixture(scope="module")
def made(division: roberta.Division, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("roberta")
    assert roberta.pretrain(division.texts, out, steps=4, seed=3) > 0
    return out


def test_the_tables_have_as_many_of_each_source_and_label_and_nothing_held_out_is_pretrained_on(
    reviews, division
) -> None:
    for table, count in ((division.train, 40), (division.test, 20)):
        assert table.groupby(["source", "label"]).size().tolist() == [count // 2] * 4
        assert list(table.columns) == ["text", "label", "source"]
    held, seen = set(division.test["text"]), " ".join(division.texts)
    assert held.isdisjoint(division.train["text"]) and len(division.texts) == len(set(division.texts))
    rotten = division.test[division.test["source"] == "rotten_tomatoes"]
    assert {*rotten["text"]} <= {*demo_of(reviews, "test")["text"]}
    numbers = {word.strip(".!?") for text in division.test["text"] for word in text.split() if word[0] == "n"}
    assert numbers and numbers.isdisjoint(word.strip(".!?") for word in seen.split())
    assert numbers.isdisjoint(w.strip(".!?") for text in demo_of(reviews, "train")["text"] for w in text.split())
    assert len(division.texts) == (80 - 20) + 60  # of each source all but those held out: of the demo's all 1,000
    first = division.train[division.train["source"] == "imdb"]["text"]
    assert all(sum(map(text.count, ".!?")) == 3 and "<" not in text and "  " not in text for text in first)
    assert all(any(whole.startswith(text) for whole in division.texts) for text in first)


def test_more_examples_than_there_are_is_refused(reviews) -> None:
    with pytest.raises(ValueError, match=r"90 examples of imdb are wanted, half of each label; there are .*30"):
        roberta.divide(reviews, train=90, test=20)


def test_what_is_saved_is_built_and_read_like_any_model_and_its_head_is_drawn(made, division, tmp_path) -> None:
    for split in ("train", "test"):
        getattr(division, split).to_parquet(tmp_path / f"{split}.parquet")
    values = {"task": "classification", "model": str(made), "data": str(tmp_path), "dtype": "float32"}
    chosen = from_run_config({**values, "split": "column:source:2", "num-clients": 4}).resolved()
    task = task_of(chosen)
    built = build(chosen, 2, task.inputs)
    drawn = {
        "classifier.dense.weight",
        "classifier.dense.bias",
        "classifier.out_proj.weight",
        "classifier.out_proj.bias",
    }
    assert set(built.seeded) == drawn and built.output == "classifier.out_proj"
    assert len(built.layers) == 4 * 6 + 1  # and the head's hidden layer
    read = built.processor("Good FILM")
    assert read.keys() == {"input_ids", "attention_mask"} and read["input_ids"][0] == 0 and read["input_ids"][-1] == 2
    assert read["input_ids"] == built.processor("good film")["input_ids"]  # capitals are read as small letters
    assert built.model.config.pad_token_id == built.processor.pad_token_id == 1
    said = "reads naïve files (v1.2), e.g. *.txt"
    assert built.processor.decode(built.processor(said)["input_ids"], skip_special_tokens=True).strip() == said


def test_a_small_roberta_has_five_million_parameters() -> None:
    sizes = roberta._MODEL
    layer = 4 * 256 * 256 + 2 * 256 * 1024 + 1024 + 9 * 256  # q, k, v, o, feed-forward; biases, norms
    tables = (roberta.WORDS + sizes["max_position_embeddings"] + 1) * 256 + 2 * 256
    head = 256 * 256 + 3 * 256 + roberta.WORDS  # its last layer is the table of words
    model = roberta.make_model([[5, 6], [6, 7]], roberta.WORDS, 0)
    assert sum(p.numel() for p in model.parameters()) == tables + 4 * layer + head == 5_364_736


def test_the_same_seed_gives_the_same_bits_and_draws_nothing_from_the_global_generator(
    made, division, tmp_path
) -> None:
    state = torch.manual_seed(5).get_state()
    roberta.pretrain(division.texts, tmp_path / "again", steps=4, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    roberta.pretrain(division.texts, tmp_path / "other", steps=4, seed=4)
    again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("again", "other"))
    assert again == (made / "model.safetensors").read_bytes() != other
    assert (tmp_path / "again/tokenizer.json").read_text() == (made / "tokenizer.json").read_text()


def test_words_that_stand_in_like_texts_are_placed_together() -> None:
    texts = [[5, 6, 9], [6, 5, 10], [7, 8, 9], [8, 7, 10]] * 5
    placed = roberta.placed_words(texts, 12, 3, 0)
    near = placed @ placed.T
    assert near[5, 6] > near[5, 7] and near[7, 8] > near[6, 8]
    lengths = np.linalg.norm(placed, axis=1)
    assert lengths[5:11] == pytest.approx(0.02 * 3**0.5) and not lengths[[0, 1, 2, 3, 4, 11]].any()


def test_words_are_masked_anew_as_often_as_is_said_and_never_the_ends_or_the_padding() -> None:
    rng = generator(0, "test")
    stretches = [[0, *range(100, 162), 2]] * 200 + [[0, 100, 2]] * 200
    batch = roberta.batch_of(stretches, 10_000, rng)
    again = roberta.batch_of(stretches, 10_000, rng)
    assert not torch.equal(batch["labels"], again["labels"])
    truth = torch.tensor([stretch + [1] * (64 - len(stretch)) for stretch in stretches])
    assert torch.equal(batch["attention_mask"], (truth != 1).long())
    asked = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][asked], truth[asked]) and (truth[asked] >= 100).all()
    assert torch.equal(batch["input_ids"][~asked], truth[~asked])
    words, shown = truth >= 100, batch["input_ids"][asked]
    # Of 12,600 words: three standard errors are about a hundredth; of the 1,890 that are asked for, three hundredths.
    assert asked.sum() / words.sum() == pytest.approx(0.15, abs=0.01)
    assert (shown == 4).float().mean() == pytest.approx(0.8, abs=0.03)
    assert (shown == truth[asked]).float().mean() == pytest.approx(0.1, abs=0.03)


def test_the_loss_is_transformers_own() -> None:
    model = roberta.make_model([[5, 6, 7]] * 4, 40, 0)
    batch = roberta.batch_of([[0, *range(5, 35), 2], [0, *range(9, 20), 2]], 40, generator(1, "test"))
    torch.testing.assert_close(roberta.loss_of(model, batch), model(**batch).loss)


@given(st.lists(st.integers(5, 99), max_size=150), st.integers(0, 1000))
def test_a_stretch_is_a_piece_of_its_text_as_long_as_may_be(ids, seed) -> None:
    found = roberta.stretch_of(ids, generator(seed, "test"))
    body = found[1:-1]
    assert (found[0], found[-1]) == (0, 2) and len(body) == min(len(ids), roberta.READ - 2)
    assert any(ids[i : i + len(body)] == body for i in range(len(ids) - len(body) + 1))


def test_training_takes_the_steps_that_adamw_takes_at_the_recipes_rates() -> None:
    recipe, steps = pretraining.Recipe(0.1, warmup=0.5, decay=0.1), 4
    assert [recipe.rate(k / steps) for k in range(steps)] == pytest.approx([0, 0.05, 0.1, 0.05])
    torch.manual_seed(0)
    ours, slow = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    slow.load_state_dict(ours.state_dict())
    batches = [torch.randn(4, 3) for _ in range(steps)]
    losses = pretraining.train(ours, batches, lambda x: ours(x).square().mean(), steps, recipe)
    by = torch.optim.AdamW([{"params": [slow.weight], "weight_decay": 0.1}, {"params": [slow.bias], "weight_decay": 0}])
    for k, x in enumerate(batches):
        loss = slow(x).square().mean()
        assert losses[k] == pytest.approx(loss.item())
        by.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(slow.parameters(), 1.0)
        for group in by.param_groups:
            group["lr"] = recipe.rate(k / steps)
        by.step()
    torch.testing.assert_close(ours.state_dict(), slow.state_dict())
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0; lower the rate"):
        pretraining.train(ours, batches, lambda x: ours(x).sum() * float("nan"), steps, recipe)
