"""A seal holds while only B trains, and breaks when anything frozen is written to, replaced or moved."""

import copy

import pytest
import torch
from torch import nn

from fedasym.adapters import lora, trainable_state
from fedasym.adapters.frozen_seal import _TENSORS, Seal


def make_net(layers: int = 3, factors: str = "B") -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12)) for _ in range(layers)]
    net = nn.Sequential(*parts, nn.Linear(12, 3))
    lora.adapt(net, rank=3, factors=factors)
    lora.place(net, str(layers), lora.TrainedLinear(nn.Linear(12, 3), travels=True))
    return net.eval()


def train(net: nn.Module) -> None:
    optimizer = torch.optim.AdamW(trainable_state.trainable(net).values(), lr=0.05, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(8, 12)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("factors", lora.FACTORS)
def test_training_leaves_the_seal_whole(factors) -> None:
    net = make_net(factors=factors)
    seal = Seal(net)
    for _ in range(3):
        train(net)
        trainable_state.load(trainable_state.trainable(net), trainable_state.read(trainable_state.trainable(net)))
        assert seal.holds()


def frozen_names(net: nn.Module) -> list[str]:
    moving = {id(p) for p in trainable_state.trainable(net).values()}
    return [*(n for n, t in net.state_dict(keep_vars=True).items() if id(t) not in moving), "0.0.A"]


@pytest.mark.parametrize("name", frozen_names(make_net()))
def test_each_frozen_tensor_breaks_the_seal_when_it_is_written_to_or_replaced(name) -> None:
    path, _, key = name.rpartition(".")

    def write(tensor):
        with torch.no_grad():
            tensor.add_(1)

    def replace(tensor):
        owner = net.get_submodule(path)
        alike = nn.Parameter(tensor.detach().clone(), False) if isinstance(tensor, nn.Parameter) else tensor.clone()
        setattr(owner, key, alike)

    def point_elsewhere(tensor):
        tensor.data = tensor.data.clone()

    for change in (write, replace, point_elsewhere):
        net = make_net()
        seal = Seal(net)
        assert seal.holds()
        change(getattr(net.get_submodule(path), key))
        assert not seal.holds()


def test_writes_that_pytorch_does_not_count_are_seen_in_the_values_after_a_few_looks() -> None:
    net = make_net(layers=20)
    seal, last = Seal(net), net[19][0].base.weight
    last.data.mul_(1.01)
    looks = -(-len(seal._sealed) // _TENSORS)
    assert looks > 1  # or one look would do, and nothing would be said of the turns
    assert [seal.holds() for _ in range(looks)].count(False) == 1
    last.data.div_(1.01)


def test_a_broken_seal_is_no_proof_the_fingerprint_is() -> None:
    net = make_net()
    seal, before = Seal(net), lora.fingerprint_base(net)
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    assert not seal.holds() and lora.fingerprint_base(net) == before and Seal(net).holds()
