"""PEFT alone computes from the folder what our model does, merged or not, for every family and kind of layer."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import fresh_peft
import numpy as np
import pytest
import torch
import transformers
from pictures import image_settings
from quiz import make_writer, quiz_settings
from summaries import values_of
from torch import nn

from fedasym.adapters import lora, trainable_state
from fedasym.data.examples import load_examples
from fedasym.models.build import Built, build
from fedasym.runs.peft_folder import write_adapter
from fedasym.settings import from_run_config
from fedasym.tasks import task_of


def fill(model: nn.Module) -> None:
    """Give everything that moves random values."""
    rng, moving = np.random.default_rng(1), trainable_state.common(model)
    trainable_state.load(
        moving, {n: np.float32(0.1) * rng.standard_normal(tuple(p.shape), np.float32) for n, p in moving.items()}
    )


@pytest.fixture(scope="module")
def cases(models, tiny, tmp_path_factory) -> Path:
    """A folder of cases: of every family a model, and every kind of layer."""
    root, out = tmp_path_factory.mktemp("worlds"), tmp_path_factory.mktemp("cases")

    def tell(name: str, settings, built, inputs, model_class: str, **options: object) -> None:
        fill(built.model)
        merged = lora.merged_copy(built.model)
        told = {"inputs": dict(inputs) if isinstance(inputs, dict) else inputs}
        told |= {"source": settings.model, "options": options, "class": model_class}
        with torch.no_grad():
            told["logits"] = fresh_peft.logits(built.model, inputs)
            told["merged_logits"] = fresh_peft.logits(merged, inputs)
        told["merged"] = merged.state_dict()
        (out / name).mkdir()
        torch.save(told, out / name / "told.pt")
        write_adapter(out / name / "adapter", built, settings)

    def tell_of(name: str, settings, labels: int, **options: object) -> None:
        settings = settings.resolved()
        task = task_of(settings)
        built = build(settings, labels, task.inputs)
        examples, _ = load_examples(settings)
        encoded = task.inputs.encode(built.processor, examples, settings.max_length, settings.pooling)
        inputs, _ = task.inputs.collate(built.processor, encoded, [0, 1])
        tell(name, settings, built, inputs, task.inputs.model_class, **options)

    roberta = dataclasses.replace(tiny, model=str(models["roberta"]))
    tell_of("text", roberta, 3, num_labels=3)
    tell_of("text-full-head", dataclasses.replace(roberta, head="full", method="lora"), 3, num_labels=3)
    quiz_settings(root)
    for kind, more in {"gpt2": {"targets": "all-linear,wpe"}, "llama": {}, "phi3": {}}.items():
        folder = make_writer(root / f"{kind}-writer", kind=kind, tied=False)
        tell_of(f"instruct-{kind}", quiz_settings(root, model=str(folder), **more), 0)
    tell_of("summarize", from_run_config(values_of("t5", models, root)), 0)
    tell_of("images", image_settings(root, targets="all-linear,projection"), 2, num_labels=2)
    images = image_settings(root)  # for a model of no class that PEFT knows
    settings = dataclasses.replace(images, rank=3, alpha=5.0, scaling="alpha/sqrt(r)")
    model = fresh_peft.net()
    names = lora.adapt(
        model, ["all-linear", "table", "one", "two"], settings.rank, settings.alpha, scaling=settings.scaling
    )
    reader = transformers.AutoTokenizer.from_pretrained(tiny.model)
    built = Built(model, reader, tuple(names), (), "", "", (), "", "", ())
    tell("layers", settings, built, torch.arange(18).reshape(2, 9) * 16, "")
    return out


def test_peft_computes_and_merges_what_we_do_for_every_family_and_kind_of_layer(cases, capsys) -> None:
    fresh_peft.main(cases)
    told = capsys.readouterr().out.split()
    assert told == sorted(path.name for path in cases.iterdir()) and len(told) == 8


@pytest.mark.slow
def test_peft_does_so_in_a_process_that_has_never_seen_fedasym(cases) -> None:
    child = subprocess.run(
        [sys.executable, str(Path(fresh_peft.__file__)), str(cases)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    assert child.stdout.split() == sorted(path.name for path in cases.iterdir())
