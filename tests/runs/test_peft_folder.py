"""What is written is a PEFT adapter: plain transformers and PEFT compute the same logits from it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from quiz import make_writer, quiz_settings
from safetensors.torch import load_file
from world import TEXTS, simulate

from fedasym.adapters import lora, trainable_state
from fedasym.data.examples import load_examples
from fedasym.models.build import build
from fedasym.models.model_files import demo_model_folder
from fedasym.runs import checkpoint
from fedasym.runs.peft_folder import write_adapter
from fedasym.settings import Settings
from fedasym.tasks import task_of

FAMILIES = ("bert", "roberta", "distilbert", "bart", "llama")


@pytest.fixture
def case(models, tiny):
    """Return a function that fills a family's model with random values; it gives settings, model, inputs."""

    def make(family: str, num_labels: int = 3, **more):
        settings = dataclasses.replace(tiny, model=str(models[family]), **more)
        built = build(settings, num_labels, task_of(settings).inputs)
        rng = np.random.default_rng(1)
        moving = {**trainable_state.common(built.model), **trainable_state.local_only(built.model)}
        start = trainable_state.read(moving) if settings.method == "full" else {n: np.float32(0) for n in moving}
        drawn = {n: rng.standard_normal(tuple(p.shape), np.float32) for n, p in moving.items()}
        trainable_state.load(moving, {n: start[n] + m * np.float32(0.3) for n, m in drawn.items()})
        examples, _ = load_examples(settings)
        tokens = TEXTS.encode(built.processor, examples, 16, settings.pooling)
        inputs, _ = TEXTS.collate(built.processor, tokens, [0, 1, 2, 9])
        return settings, built, inputs

    return make


def by_peft(settings, folder, num_labels=3):
    base = transformers.AutoModelForSequenceClassification.from_pretrained(settings.model, num_labels=num_labels)
    return peft.PeftModel.from_pretrained(base, folder).eval()


def close(one, other) -> None:
    # float32 roundings of 1e-7 of the largest logit through two layers, in PEFT's order of the products.
    torch.testing.assert_close(one, other, atol=1e-5 * max(1.0, float(other.abs().max())), rtol=1e-5)


@pytest.mark.parametrize("head", ["output", "full", "frozen", "local"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_and_peft_compute_the_same_logits_from_the_folder(case, tmp_path, family, head) -> None:
    settings, built, inputs = case(family, head=head, client_holdout=0.2)
    write_adapter(tmp_path / "new" / "adapter", built, settings)
    with torch.no_grad():
        expected = built.model(**inputs).logits
        close(by_peft(settings, tmp_path / "new" / "adapter")(**inputs).logits, expected)
        torch.manual_seed(3)  # whatever transformers draws for the missing head does not matter
        close(by_peft(settings, tmp_path / "new" / "adapter")(**inputs).logits, expected)
    # The random values show in the logits, smaller where they pass a frozen head, whose weights are about 0.02 in size.
    assert expected.std() > (0.001 if head == "frozen" else 0.01)


@pytest.mark.parametrize(
    "more",
    [
        {"scaling": "alpha/sqrt(r)"},
        {"method": "lora"},
        {"targets": "query,value"},
        {"kind": "block", "rank": 3, "alpha": 5.0},
    ],
    ids=lambda more: next(iter(more)),
)
def test_scale_factors_targets_and_kind_are_those_of_the_settings(case, tmp_path, more) -> None:
    settings, built, inputs = case("roberta", **more)
    write_adapter(tmp_path, built, settings)
    with torch.no_grad():
        close(by_peft(settings, tmp_path)(**inputs).logits, built.model(**inputs).logits)


def test_a_regression_has_one_output(case, tmp_path) -> None:
    settings, built, inputs = case("bert", num_labels=1, task="regression", label_column="score")
    write_adapter(tmp_path, built, settings)
    with torch.no_grad():
        close(by_peft(settings, tmp_path, 1)(**inputs).logits, built.model(**inputs).logits)


@pytest.mark.parametrize("head", ["output", "frozen"])
def test_a_mean_pooled_model_is_the_adapted_encoder_and_an_output_layer_beside_it(case, tmp_path, head) -> None:
    settings, built, inputs = case("bert", pooling="mean", head=head)
    write_adapter(tmp_path, built, settings)
    encoder = peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(settings.model), tmp_path).eval()
    output = load_file(tmp_path / "output.safetensors")
    assert output.keys() == {"weight", "bias"}
    with torch.no_grad():
        hidden, mask = encoder(**inputs).last_hidden_state, inputs["attention_mask"][..., None].float()
        logits = (hidden * mask).sum(1) / mask.sum(1) @ output["weight"].T + output["bias"]
        close(logits, built.model(**inputs).logits)


@pytest.mark.parametrize(
    ("method", "family", "head"),
    [*(("fedex", family, "output") for family in FAMILIES), ("fedex", "roberta", "full"), ("flora", "bert", "frozen")],
)
def test_where_updates_were_folded_into_W_peft_loads_the_layers_whole(case, tmp_path, method, family, head) -> None:
    settings, built, inputs = case(family, method=method, head=head)
    write_adapter(tmp_path, built, settings)
    model = by_peft(settings, tmp_path)
    with torch.no_grad():
        close(model(**inputs).logits, built.model(**inputs).logits)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert not any("lora_" in key for key in stored)
    model.save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert stored.keys() == theirs.keys() and all(torch.equal(stored[key], theirs[key]) for key in stored)


def test_where_some_layers_are_not_adapted_peft_loads_the_folded_ones_alone(case, tmp_path) -> None:
    settings, built, inputs = case("roberta", method="fedex", targets="query,value")
    write_adapter(tmp_path, built, settings)
    with torch.no_grad():
        close(by_peft(settings, tmp_path)(**inputs).logits, built.model(**inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_after_full_fine_tuning_transformers_loads_the_folder(case, tmp_path, family) -> None:
    settings, built, inputs = case(family, method="full", head="full")
    write_adapter(tmp_path, built, settings)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert words("good word0")["input_ids"] == built.processor("good word0")["input_ids"]
    with torch.no_grad():
        close(model(**inputs).logits, built.model(**inputs).logits)


def pooled(encoder, inputs):
    hidden, mask = encoder(**inputs).last_hidden_state, inputs["attention_mask"][..., None].float()
    return (hidden * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize("method", ["asymmetric", "lora", "fedex", "full"])
@pytest.mark.parametrize("pooling", ["mean", "pair"])
def test_pooled_logits_are_rebuilt_from_the_encoder_and_the_output_layer_beside_it(
    case, tmp_path, method, pooling
) -> None:
    more = {"text_columns": "text,second"} if pooling == "pair" else {}
    head = "full" if method == "full" else "output"
    settings, built, inputs = case("bert", method=method, pooling=pooling, head=head, **more)
    write_adapter(tmp_path, built, settings)
    if method == "full":
        encoder = transformers.AutoModel.from_pretrained(tmp_path).eval()
    else:
        base = transformers.AutoModel.from_pretrained(settings.model)
        encoder = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    output = load_file(tmp_path / "output.safetensors")
    with torch.no_grad():
        features = pooled(encoder, {key: value for key, value in inputs.items() if not key.startswith("second_")})
        if pooling == "pair":
            seconds = {key.removeprefix("second_"): v for key, v in inputs.items() if key.startswith("second_")}
            other = pooled(encoder, seconds)
            features = torch.cat([(features - other).abs(), features * other], dim=-1)
        expected = built.model(**inputs).logits
        close(features @ output["weight"].T + output["bias"], expected)
    assert expected.std() > 0.01


def test_the_folder_is_what_peft_writes_itself(case, tmp_path) -> None:
    settings, built, _ = case("roberta")
    write_adapter(tmp_path / "ours", built, settings)
    by_peft(settings, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 8.0, "none")
    assert set(config["target_modules"]) == set(built.layers) - {"classifier.dense"}
    assert config["modules_to_save"] == ["classifier"] and config["task_type"] == "SEQ_CLS"


def test_a_relative_folder_of_the_base_model_is_found_from_another_directory(case, tmp_path, monkeypatch) -> None:
    settings, built, inputs = case("bert", pooling="mean")
    monkeypatch.chdir(Path(settings.model).parent)
    write_adapter(tmp_path / "adapter", built, dataclasses.replace(settings, model=Path(settings.model).name))
    monkeypatch.chdir(tmp_path)
    encoder = peft.AutoPeftModelForFeatureExtraction.from_pretrained(tmp_path / "adapter").eval()
    output = load_file(tmp_path / "adapter" / "output.safetensors")
    with torch.no_grad():
        close(pooled(encoder, inputs) @ output["weight"].T + output["bias"], built.model(**inputs).logits)


@pytest.mark.parametrize(
    ("model", "expected", "revision"),
    [
        ("demo", "sentence-transformers/all-MiniLM-L6-v2", "main"),
        ("somebody/bert", "somebody/bert", "v2"),
        ("~/bert", "{home}/bert", None),
        ("{home}/bert", "{home}/bert", None),
    ],
)
def test_the_config_names_the_base_model_as_peft_can_find_it(
    case, tmp_path, monkeypatch, model, expected, revision
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bert").mkdir()
    settings, built, _ = case("bert", pooling="mean")
    write_adapter(tmp_path, built, dataclasses.replace(settings, model=model.format(home=tmp_path), revision="v2"))
    config = peft.PeftConfig.from_pretrained(tmp_path)
    assert (config.base_model_name_or_path, config.revision) == (expected.format(home=tmp_path), revision)


def test_A_and_B_are_written_as_they_are(case, tmp_path) -> None:
    settings, built, _ = case("bert")
    write_adapter(tmp_path, built, settings)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    for name, layer in trainable_state.adapted_layers(built.model):
        assert torch.equal(stored.pop(f"base_model.model.{name}.lora_A.weight"), layer.A)
        assert torch.equal(stored.pop(f"base_model.model.{name}.lora_B.weight"), layer.B)
    assert stored.keys() == {f"base_model.model.classifier.{key}" for key in ("weight", "bias")}


def test_writing_changes_neither_the_model_nor_what_an_earlier_write_gave(case, tmp_path) -> None:
    settings, built, inputs = case("roberta")
    before, values = built.model(**inputs).logits, trainable_state.read(trainable_state.trainable(built.model))
    write_adapter(tmp_path, built, settings)
    first = (tmp_path / "adapter_model.safetensors").read_bytes()
    write_adapter(tmp_path, built, settings)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == first
    assert torch.equal(built.model(**inputs).logits, before)
    assert all(
        np.array_equal(m, values[n]) for n, m in trainable_state.read(trainable_state.trainable(built.model)).items()
    )
    assert lora.fingerprint_base(built.model) == built.base


def test_the_folder_of_a_model_below_the_home_folder_is_written_out(case, tmp_path, models, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(models["bert"].parent))
    settings, built, _ = case("bert")
    write_adapter(tmp_path, built, dataclasses.replace(settings, model="~/bert"))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(models["bert"])


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_of_the_packaged_model_exports_the_float32_model_and_one_in_bfloat16_rounds(tmp_path) -> None:
    settings = Settings(
        num_clients=2, num_rounds=1, local_steps=2, split="iid", train_cap=64, test_cap=16, out=str(tmp_path)
    ).resolved()  # in the dtype that this machine is good at
    state = checkpoint.load(simulate(settings, workers=1))
    _, examples = load_examples(settings)
    logits = {}
    for dtype in ("float32", "bfloat16"):
        built = build(dataclasses.replace(settings, dtype=dtype), len(examples.class_names), TEXTS)
        tokens = TEXTS.encode(built.processor, examples, settings.max_length, settings.pooling)
        inputs, _ = TEXTS.collate(built.processor, tokens, range(6))
        with torch.no_grad():
            untrained = built.model(**inputs).logits
            trainable_state.load(trainable_state.trainable(built.model), state.matrices)
            logits[dtype] = built.model(**inputs).logits
    base = transformers.AutoModel.from_pretrained(demo_model_folder(), dtype=torch.float32)
    encoder = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    output = load_file(tmp_path / "adapter" / "output.safetensors")
    with torch.no_grad():
        found = pooled(encoder, inputs) @ output["weight"].T + output["bias"]
    # Logits of size one after six layers, PEFT's products in another order: roundings of 1e-7, measured 3e-7.
    torch.testing.assert_close(found, logits["float32"], atol=1e-5, rtol=0)
    # Six layers of bfloat16 roundings (2^-8 each) on logits of at most 0.3: measured 0.007, thrice that for other CPUs.
    assert 1e-4 < (found - logits["bfloat16"]).abs().max() < 0.02
    assert (found - untrained).abs().max() > 0.1  # the two steps show


def test_a_bfloat16_model_exports_an_adapter_of_the_same_model(case, tmp_path) -> None:
    settings, built, inputs = case("bert", dtype="bfloat16")
    write_adapter(tmp_path, built, settings)
    with torch.no_grad():
        found, expected = by_peft(settings, tmp_path)(**inputs).logits, built.model(**inputs).logits.float()
    # Two layers of bfloat16 roundings (2^-8 each) against float32, on logits of size one.
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(
    ("method", "tied"), [("asymmetric", True), ("asymmetric", False), ("lora", True), ("fedex", True)]
)
def test_a_model_that_writes_is_loaded_by_peft_alone_with_the_same_logits(tmp_path, method, tied, kind) -> None:
    folder = make_writer(tmp_path / "writer", kind=kind, tied=tied)
    settings = quiz_settings(tmp_path, model=str(folder), method=method).resolved()
    built = build(settings, 0, task_of(settings).inputs)
    rng, moving = np.random.default_rng(1), trainable_state.common(built.model)
    trainable_state.load(
        moving, {n: np.float32(0.1) * rng.standard_normal(tuple(p.shape), np.float32) for n, p in moving.items()}
    )
    write_adapter(tmp_path / "adapter", built, settings)
    assert peft.PeftConfig.from_pretrained(tmp_path / "adapter").task_type == "CAUSAL_LM"
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        expected = built.model(input_ids=ids).logits
        close(theirs(input_ids=ids).logits, expected)
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert (plain(input_ids=ids).logits - expected).abs().max() > 0.1


@pytest.mark.parametrize("tied", [True, False])
def test_a_fully_trained_model_that_writes_is_a_folder_of_transformers(tmp_path, tied) -> None:
    settings = quiz_settings(tmp_path, model=str(make_writer(tmp_path / "own", tied=tied)), method="full").resolved()
    built = build(settings, 0, task_of(settings).inputs)
    moving = trainable_state.trainable(built.model)
    trainable_state.load(
        moving, {name: matrix * np.float32(1.5) for name, matrix in trainable_state.read(moving).items()}
    )
    write_adapter(tmp_path / "adapter", built, settings)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        close(theirs(input_ids=ids).logits, built.model(input_ids=ids).logits)
