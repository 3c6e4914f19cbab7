"""Whoever finds the folder can use it: the lines of its README.md load it, and PEFT and transformers go on with it."""

import re
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from world import make_model, simulate, tiny_settings

from fedasym.runs.record import read_json, read_rounds
from fedasym.runs.trained_model import load_trained

FAMILIES = {
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
    "distilbert": transformers.DistilBertConfig,
    "llama": transformers.LlamaConfig,
}
TEXT = "a fine warm story"


def make_family(folder: Path, family: str) -> Path:
    """Save a tiny model of a family, without an output layer, with the tiny world's tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(make_model(folder / "words"))
    if family == "llama":
        tokenizer.eos_token, tokenizer.pad_token = "[SEP]", None
    tokenizer.save_pretrained(folder / family)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    if family == "distilbert":
        shape = {"dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 2}
    pad = {} if family == "llama" else {"pad_token_id": 0}
    config = FAMILIES[family](
        vocab_size=len(tokenizer), max_position_embeddings=70, initializer_range=0.3, **shape, **pad
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.AutoModel.from_config(config).save_pretrained(folder / family)
    return folder / family


@pytest.fixture(scope="module", params=FAMILIES)
def run(request, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    model = str(make_family(root, request.param))
    more = {"model": model, "pooling": "model", "num_rounds": 2, "keep_best": True, "labels": "bad,good"}
    return simulate(tiny_settings(root, out=str(root / "run"), **more))


def lines_of(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code


def said(run: Path) -> np.ndarray:
    trained = load_trained(run)
    inputs = trained.built.processor([TEXT], return_tensors="pt")
    with torch.no_grad():
        return trained.built.model(**inputs).logits.numpy()


@pytest.mark.parametrize("name", ["adapter", "best"])
def test_the_lines_of_the_card_load_model_and_processor_with_names_and_padding(run: Path, name: str) -> None:
    found: dict = {"folder": str(run / name)}
    exec(lines_of(run / name), found)
    model, processor = found["model"].eval(), found["processor"]
    assert isinstance(model, peft.PeftModelForSequenceClassification)
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.pad_token_id == processor.pad_token_id is not None
    if name == "adapter":
        with torch.no_grad():
            logits = model(**processor([TEXT], return_tensors="pt")).logits.numpy()
        np.testing.assert_allclose(logits, said(run), atol=1e-5)  # float32's roundings in PEFT's order


def test_a_pipeline_a_merged_copy_and_a_trainer_go_on_with_it(run: Path, tmp_path: Path) -> None:
    found: dict = {"folder": str(run / "adapter")}
    exec(lines_of(run / "adapter"), found)
    model, processor = found["model"], found["processor"]
    merged = model.merge_and_unload().eval()
    ask = transformers.pipeline("text-classification", model=merged, tokenizer=processor, top_k=None)
    answer = {each["label"]: each["score"] for each in ask([TEXT])[0]}
    wanted = torch.tensor(said(run)).softmax(-1)[0]
    assert answer == pytest.approx({"bad": float(wanted[0]), "good": float(wanted[1])}, abs=1e-5)

    exec(lines_of(run / "adapter").replace("(folder,", "(folder, is_trainable=True,", 1), found)
    model = found["model"]
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert any("lora_B" in name for name in before)
    rows = [{**processor("a dull film"), "labels": 0}, {**processor("a warm film"), "labels": 1}]
    told = transformers.TrainingArguments(tmp_path, max_steps=1, report_to=[], learning_rate=0.1, use_cpu=True)
    transformers.Trainer(model, told, train_dataset=rows, processing_class=processor).train()
    after = dict(model.named_parameters())
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_the_card_tells_the_runs_facts(run: Path) -> None:
    card = (run / "adapter" / "README.md").read_text()
    for fact in ("4 clients, 2 rounds, split dirichlet:1.0", "Classes, by id: bad, good", "Method: asymmetric"):
        assert fact in card


def test_best_is_the_adapter_of_the_best_round_and_patience_ends_a_run(tmp_path: Path) -> None:
    more = {"num_rounds": 12, "patience": 2, "keep_best": True, "lr": 3.0, "head_lr": 1.0}
    run = simulate(tiny_settings(tmp_path, out=str(tmp_path / "run"), **more))
    values = [row["metrics"]["accuracy"] for row in read_rounds(run)]
    best = values.index(max(values)) + 1
    assert len(values) == min(best + 2, 12) and read_json(run / "summary.json")["rounds"] == len(values)
    again = simulate(tiny_settings(tmp_path, out=str(run), **more))
    assert len(read_rounds(again)) == len(values)
    shorter = {**more, "num_rounds": best, "patience": 0, "keep_best": False}
    alone = simulate(tiny_settings(tmp_path, out=str(tmp_path / "alone"), **shorter))
    same = [(folder / "adapter_model.safetensors").read_bytes() for folder in (run / "best", alone / "adapter")]
    assert same[0] == same[1]
