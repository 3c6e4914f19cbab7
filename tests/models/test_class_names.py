"""A checkpoint's own output layer means the classes that its config names, whatever order the data would give them."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from world import make_model, simulate, tiny_settings

from fedasym.runs.record import read_json
from fedasym.settings import Settings
from server.session import prepare


def classifier(folder: Path, names: tuple[str, ...]) -> Path:
    """Save a BERT of the tiny world with an output layer of its own, whose classes have names."""
    make_model(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    config.num_labels = len(names)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.BertForSequenceClassification(config)
        torch.nn.init.normal_(model.classifier.weight)
        model.save_pretrained(folder)
    return folder


def settings_of(root: Path, names: tuple[str, ...], **more: object) -> Settings:
    values = {"model": str(classifier(root / "classifier", names)), "pooling": "model", "num_rounds": 1, **more}
    return tiny_settings(root, **values, eval_untouched=True, out=str(root / "run"))


def accuracy_by_name(root: Path) -> float:
    """Ask the checkpoint itself, by the names that it gives its classes."""
    folder = root / "classifier"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in (root / "data" / "test.jsonl").read_text().splitlines()]
    with torch.no_grad():
        logits = model(**tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")).logits
    said = [model.config.id2label[int(i)].lower() for i in logits.argmax(-1)]
    return sum(row["label"] == name for row, name in zip(rows, said, strict=True)) / len(rows)


@pytest.mark.parametrize("names", [("good", "bad"), ("bad", "good"), ("GOOD", "Bad")])
def test_the_untouched_model_is_as_right_as_by_its_own_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    settings = settings_of(tmp_path, names)
    run = simulate(settings)
    assert read_json(run / "summary.json")["untouched"] == pytest.approx(accuracy_by_name(tmp_path))
    contract = json.loads(read_json(run / "config.json")["contract"])
    assert contract["labels"] == [name.lower() for name in names]


def test_other_names_are_refused_with_both_lists_and_a_fresh_head_has_none(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, ("spam", "ham"))
    with pytest.raises(ValueError, match=r"classes are bad, good, .* tells apart spam, ham: which is which") as raised:
        prepare(settings.resolved())
    assert "fresh-head=true" in str(raised.value)
    fresh = prepare(settings_of(tmp_path, ("spam", "ham"), fresh_head=True).resolved())
    assert fresh.contract.labels == ("bad", "good")
    assert {"classifier.weight", "classifier.bias"} <= {*fresh.built.seeded}


def test_names_that_say_nothing_and_another_number_of_classes_bind_nobody(tmp_path: Path) -> None:
    plain = prepare(settings_of(tmp_path, ("LABEL_0", "LABEL_1")).resolved())
    assert plain.contract.labels == ("bad", "good") and not plain.built.seeded
    three = prepare(settings_of(tmp_path, ("a", "b", "c")).resolved())
    assert three.contract.labels == ("bad", "good") and "classifier.weight" in three.built.seeded
