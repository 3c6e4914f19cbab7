"""Model and batches are wholly on one device: checked on a second one that needs no GPU (`far_device`)."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from far_device import FAR, FarTensor, found_far_away

from fedasym.adapters import lora, trainable_state
from fedasym.data.examples import load_examples
from fedasym.methods import METHODS
from fedasym.models import device
from fedasym.models.build import Built, build
from fedasym.settings import Settings
from fedasym.tasks import task_of
from fedasym.training.loop import draw_batches, evaluate, train_steps
from fedasym.wire.contract import contract_of

__all__ = ["found_far_away"]  # the fixture ``far``
HEADS = ("output", "frozen", "full", "local")
CASES = [
    *({"method": method} for method in METHODS if method != "central"),
    *({"head": head} for head in HEADS),
    *({"pooling": "mean", "head": head} for head in HEADS),
    {"pooling": "pair", "text_columns": "text,second"},
    {"gradient_checkpointing": True, "micro_batch": 2},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"dtype": "bfloat16"},
    {"task": "regression", "label_column": "score"},
]


def of(tiny: Settings, **more: object) -> Settings:
    """Return resolved settings that differ from the tiny ones; what a method decides is decided anew.

    Plain attention: PyTorch's fused one has a program of its own for a CPU, whose bits are not those of another device.
    """
    rates = {"kind": "auto", "head": "auto"} if "method" in more else {}
    holdout = {"client_holdout": 0.2} if more.get("head") == "local" or more.get("method") in ("fedsa", "local") else {}
    return dataclasses.replace(tiny, **{"attention": "eager", **rates, **holdout, **more}).resolved()


def step_and_score(settings: Settings) -> tuple[Built, dict[str, np.ndarray], float, dict[str, float]]:
    """Build, load what was read, train two steps, evaluate: all that a client and the server do with a model."""
    examples, _ = load_examples(settings)
    task = task_of(settings)
    built = build(settings, task.outputs(examples.class_names), task.inputs)
    contract_of(settings, built, examples.class_names, "")
    tokens = task.inputs.encode(built.processor, examples, settings.max_length, settings.pooling).take(np.arange(12))
    moved = trainable_state.common(built.model)
    trainable_state.load(moved, trainable_state.read(moved))
    parameters = trainable_state.trainable(built.model) | trainable_state.local_only(built.model)
    batches = draw_batches(tokens.lengths, 4, 2, 0, np.random.default_rng(0))
    trained = train_steps(built.model, parameters, built.processor, tokens, batches, task, settings)
    scores = evaluate(built.model, built.processor, tokens, task, 5)
    return built, trainable_state.read(parameters), trained.loss, scores


@pytest.mark.parametrize("more", CASES, ids=lambda more: "-".join(map(str, more.values())))
def test_a_step_and_an_evaluation_on_a_second_device_leave_no_tensor_behind(tiny, request, more) -> None:
    settings = of(tiny, **more)
    _, near, near_loss, near_scores = step_and_score(settings)
    request.getfixturevalue("far")
    built, far_away, far_loss, far_scores = step_and_score(settings)
    assert all(type(tensor.data) is FarTensor for tensor in [*built.model.parameters(), *built.model.buffers()])
    assert device.device_of(built.model) == FAR
    # The far device computes on this CPU; another place in memory can choose another kernel, which rounds otherwise.
    assert far_away.keys() == near.keys()
    for name, matrix in near.items():
        np.testing.assert_allclose(far_away[name], matrix, rtol=1e-4, atol=1e-6)
    assert (far_loss, far_scores) == (pytest.approx(near_loss, rel=1e-4), pytest.approx(near_scores, rel=1e-4))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_on_a_second_device(tiny, models, far, family) -> None:
    settings = of(tiny, model=str(models[family]), attention="auto")
    built, _, loss, _ = step_and_score(settings)
    assert device.device_of(built.model) == FAR and np.isfinite(loss)


def test_what_is_folded_merged_and_exported_is_read_from_a_second_device(tiny, far) -> None:
    built, *_ = step_and_score(of(tiny, method="fedex"))
    merged = lora.merged_copy(built.model)
    assert {p.device.type for p in merged.parameters()} == {"far"}


def test_a_tensor_that_is_left_on_the_CPU_is_refused_there(tiny, far) -> None:
    built, *_ = step_and_score(tiny)
    ids = torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        built.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    layer = next(m for _, m in trainable_state.adapted_layers(built.model))
    layer.A = layer.A.cpu()
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        built.model(**device.place({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, FAR))
