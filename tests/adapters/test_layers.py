"""A layer with a shift computes (W + shift) x + s B A x; the shift is no parameter and no part of the base."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fedasym.adapters import lora, trainable_state

LAYERS = ["0", "2"]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 12), nn.Linear(12, 3))


def fill_B(model) -> None:
    rng, B = np.random.default_rng(0), trainable_state.trainable(model)
    trainable_state.load(B, {n: rng.standard_normal(p.shape, np.float32) for n, p in B.items()})


def train(model) -> None:
    optimizer = torch.optim.SGD(trainable_state.trainable(model).values(), lr=0.05)
    model(torch.randn(8, 12)).square().mean().backward()
    optimizer.step()


def shift(model) -> None:
    """Fold random updates into the adapted layers."""
    rng = np.random.default_rng(1)
    lora.add_shifts(model)
    shifts = {n: t for n, t in trainable_state.common(model).items() if n.endswith(".shift")}
    assert shifts.keys() == {f"{name}.shift" for name, _ in trainable_state.adapted_layers(model)}
    trainable_state.load(shifts, {n: rng.standard_normal(tuple(t.shape)).astype(np.float32) for n, t in shifts.items()})


@pytest.mark.parametrize("factors", lora.FACTORS)
def test_a_shift_is_added_to_W_and_neither_trains_nor_counts_as_base(net, factors) -> None:
    dense = copy.deepcopy(net)
    lora.adapt(net, LAYERS, rank=4, alpha=5.0, factors=factors)
    fill_B(net)
    base, names = lora.fingerprint_base(net), list(trainable_state.trainable(net))
    shift(net)
    assert lora.fingerprint_base(net) == base and list(trainable_state.trainable(net)) == names
    assert list(trainable_state.common(net)) == sorted([*names, *(f"{layer}.shift" for layer in LAYERS)])
    for name, layer in trainable_state.adapted_layers(net):
        weight = dense.get_submodule(name).weight
        update = 1.25 * layer.B.detach().double() @ layer.A.detach().double() + layer.shift.double()
        weight.data = (weight.double() + update).float()
    x = torch.randn(6, 12)
    # Some dozens of float32 roundings of 6e-8, in another order on each side, on terms of size ten.
    torch.testing.assert_close(net(x), dense(x), rtol=1e-4, atol=1e-4)
    before = {n: t.clone() for n, t in trainable_state.common(net).items() if n.endswith(".shift")}
    train(net)
    assert all(torch.equal(trainable_state.common(net)[n], t) for n, t in before.items())


@pytest.mark.parametrize("factors", lora.FACTORS)
def test_a_merged_copy_holds_W_and_shift_and_update(net, factors) -> None:
    lora.adapt(net, LAYERS, rank=4, alpha=1.0, factors=factors)
    fill_B(net)
    shift(net)
    merged = lora.merged_copy(net)
    for name, layer in trainable_state.adapted_layers(net):
        update = 0.25 * layer.B.detach().double() @ layer.A.detach().double()
        expected = (layer.base.weight.double() + layer.shift.double() + update).float()
        # One rounding to float32 (6e-8) of sums of terms of size one, added in another order in float64.
        torch.testing.assert_close(merged.get_submodule(name).weight, expected, rtol=1.2e-7, atol=0)
    x = torch.randn(6, 12)
    torch.testing.assert_close(merged(x), net(x), rtol=1e-4, atol=1e-4)


def test_a_small_shift_of_a_bfloat16_layer_is_not_rounded_away() -> None:
    layer = nn.Sequential(nn.Linear(2, 1, bias=False).to(torch.bfloat16))
    layer[0].weight.data.fill_(1.0)
    lora.adapt(layer, rank=1)
    lora.add_shifts(layer)
    layer[0].shift[0, 0] = 2.0**-12  # 1 + 2^-12 is 1 in bfloat16
    assert layer(torch.tensor([[1.0, -1.0]], dtype=torch.bfloat16)).item() == 2.0**-12
