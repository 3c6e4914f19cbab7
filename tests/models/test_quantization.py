"""Frozen weights in 4 or 8 bits: the adapters, their bits and what they leave are those of any other run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from world import TEXTS, tiny_settings

from fedasym.adapters import lora, trainable_state
from fedasym.adapters.frozen_seal import Seal
from fedasym.models.build import build
from fedasym.models.quantization import is_quantized
from fedasym.runs.record import read_rounds
from fedasym.runs.trained_model import load_trained
from fedasym.settings import Settings
from server.session import prepare
from simulations.engines.in_process import run_local

KINDS = ("nf4", "int8")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("quantized")


def settings_of(root: Path, kind: str, **more) -> Settings:
    return tiny_settings(root, quantize=kind, num_rounds=2, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_of_the_base_are_stored_in_fewer_bits_and_nothing_else_is(root, kind) -> None:
    plain, built = (build(settings_of(root, each).resolved(), 2, TEXTS) for each in ("none", kind))
    quantized = {name.replace(".base", "") for name, module in built.model.named_modules() if is_quantized(module)}
    linear = {name.replace(".base", "") for name, m in plain.model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert quantized == linear and set(built.layers) <= quantized and built.layers == plain.layers
    assert all(p.dtype == torch.float32 for p in trainable_state.trainable(built.model).values())
    assert built.A == plain.A and built.base != plain.base
    logits, exact = np.array(built.logits), np.array(plain.logits)
    assert 0.0 < np.abs(logits - exact).max() < np.abs(exact).max()  # close to the model, and not equal to it


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_training_leaves_what_is_stored_and_every_run_has_the_same_bits(root, tmp_path, kind) -> None:
    settings = settings_of(root, kind)
    one = read_rounds(run_local(replace(settings, out=str(tmp_path / "one")), 1))
    two = read_rounds(run_local(replace(settings, out=str(tmp_path / "two")), 2))
    run_local(replace(settings, out=str(tmp_path / "cut"), num_rounds=1), 1)
    resumed = read_rounds(run_local(replace(settings, out=str(tmp_path / "cut")), 1))
    assert [row["digest"] for row in one] == [row["digest"] for row in two] == [row["digest"] for row in resumed]
    assert not any(row["rejections"] for row in one)  # in its last round each client has computed W's fingerprint anew
    trained = load_trained(tmp_path / "one")
    seal = Seal(trained.built.model)
    before = lora.fingerprint_base(trained.built.model)
    trained.built.model(
        **TEXTS.collate(
            trained.built.processor,
            TEXTS.encode(trained.built.processor, prepare(settings.resolved()).shown, 64, "mean"),
            [0, 1],
        )[0]
    )
    assert seal.holds() and lora.fingerprint_base(trained.built.model) == before == trained.built.base


def test_peft_computes_from_the_folder_on_the_same_stored_weights_what_we_do(root, tmp_path) -> None:
    folder = run_local(replace(settings_of(root, "nf4"), out=str(tmp_path / "run")), 1)
    trained = load_trained(folder)
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    base = transformers.AutoModel.from_pretrained(
        root / "model", quantization_config=how, device_map={"": "cpu"}, add_pooling_layer=False
    )
    theirs = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    ids = torch.tensor([[2, 5, 9, 11, 3]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        ours = trained.built.model.encoder(**inputs).last_hidden_state
        # Two float32 roundings of sums of 32 terms of size one.
        torch.testing.assert_close(theirs(**inputs).last_hidden_state, ours, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_is_refused_by_name(root, tmp_path) -> None:
    with pytest.raises(ValueError, match="full fine-tuning trains the weights themselves"):
        settings_of(root, "nf4", method="full")
    plain, stored = (prepare(settings_of(root, each).resolved()).contract for each in ("none", "nf4"))
    reason = stored.refusal(plain.to_json())
    assert "base: " in reason and "quantize=nf4" in reason
    built = build(settings_of(root, "nf4").resolved(), 2, TEXTS)
    with pytest.raises(TypeError, match=r"W is stored in fewer bits \(Linear4bit\)"):
        lora.merged_copy(built.model)
