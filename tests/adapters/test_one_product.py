"""In float32 one product with W + s B A stands for W x + s B (A x) where rows are enough; elsewhere it does not."""

import copy
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from fedasym.adapters import lora, trainable_state
from fedasym.adapters.layers import AdaptedLinear

# A few dozen of float32's roundings by 6e-8, in another order on each side, of terms that sum up to ten.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def layer(base: nn.Module, rank=4, factors="B", one_product=True, **more) -> AdaptedLinear:
    """Return a layer adapted, with a random B (and A where it starts at zero)."""
    net = nn.Sequential(base)
    lora.adapt(net, rank=rank, alpha=3.0 * rank, kind="kaiming", factors=factors, one_product=one_product, **more)
    rng = np.random.default_rng(rank)
    own = trainable_state.trainable(net)
    trainable_state.load(own, {n: rng.standard_normal(tuple(p.shape)).astype(np.float32) for n, p in own.items()})
    return net[0]


def base_calls(adapted: AdaptedLinear, x: torch.Tensor) -> int:
    """Return how often the base itself computes when the layer does."""
    compute = type(adapted.base).forward
    with mock.patch.object(type(adapted.base), "forward", autospec=True, side_effect=compute) as calls:
        adapted(x)
    return calls.call_count


def two_products(given: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Return the output with W and the adapter apart, and the gradients of x, A and B."""
    x, A, B = (given[name].clone().requires_grad_() for name in ("x", "A", "B"))
    out = F.linear(x, given["W"] + given["shift"], given["bias"]) + scale * (x @ A.T) @ B.T
    out.backward(given["gradient"])
    return {"out": out.detach(), "x": x.grad, "A": A.grad, "B": B.grad}


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("factors", lora.FACTORS)
@settings(max_examples=30)  # for each of six, of shapes that are all small
@given(
    sizes=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    shape=st.lists(st.integers(1, 5), max_size=2),
    rank=st.integers(1, 6),
    bias=st.booleans(),
)
def test_output_and_every_gradient_are_those_of_two_products_in_float64(
    factors, shift, sizes, shape, rank, bias
) -> None:
    d_in, d_out = sizes
    torch.manual_seed(0)
    rows = [] if d_in == d_out == 1 else [2 * max(d_in, d_out)]  # enough; a vector alone is one row
    x = torch.randn(*rows, *shape, d_in, requires_grad=True)
    adapted = layer(nn.Linear(d_in, d_out, bias), rank, factors)
    if shift:
        adapted.shift = torch.randn(d_out, d_in)
    assert base_calls(adapted, x) == 0
    out = adapted(x)
    gradient = torch.randn_like(out)
    out.backward(gradient)

    given = {"x": x, "A": adapted.A, "B": adapted.B, "W": adapted.weight, "gradient": gradient}
    given |= {"bias": torch.zeros(d_out) if adapted.bias is None else adapted.bias}
    given |= {"shift": torch.zeros(d_out, d_in) if adapted.shift is None else adapted.shift}
    wide = {name: tensor.detach().double() for name, tensor in given.items()}
    wanted = two_products(wide, adapted.scale)
    # Of the magnitudes of all terms, which may cancel: float32 rounds each by 6e-8 of it, a few dozen times.
    magnitudes = two_products({name: tensor.abs() for name, tensor in wide.items()}, adapted.scale)
    ours = {"out": out, "x": x.grad, "A": adapted.A.grad, "B": adapted.B.grad}
    assert {letter for letter in "AB" if ours[letter] is not None} == set(factors)
    for name, tensor in ours.items():
        if tensor is not None:
            assert ((tensor.double() - wanted[name]).abs() <= 5e-6 * magnitudes[name]).all()
    with torch.no_grad():
        assert torch.equal(adapted(x), out)  # an evaluation computes what training computes


@given(d_in=st.integers(1, 40), d_out=st.integers(1, 40))
def test_it_begins_where_making_the_matrix_costs_half_of_what_it_spares(d_in, d_out) -> None:
    # r d_in d_out products make W + s B A; without it, r (d_in + 2 d_out) more for every row.
    adapted = layer(nn.Linear(d_in, d_out), rank=1)
    least = -(-2 * d_in * d_out // (d_in + 2 * d_out))
    assert base_calls(adapted, torch.randn(least, d_in)) == 0
    if least > 1:
        assert base_calls(adapted, torch.randn(least - 1, d_in)) == 1


def test_it_is_left_alone_where_it_would_lose_something() -> None:
    rows = torch.randn(64, 8)
    assert base_calls(layer(nn.Linear(8, 8)), rows) == 0  # and so merged, but:
    assert base_calls(layer(nn.Linear(8, 8), one_product=False), rows) == 1
    assert base_calls(layer(nn.Linear(8, 8).bfloat16()), rows.bfloat16()) == 1  # would round the update away
    assert base_calls(layer(nn.Linear(8, 8).double()), rows.double()) == 1
    assert base_calls(layer(Conv1D(8, 8)), rows) == 1
    assert base_calls(layer(nn.modules.linear.NonDynamicallyQuantizableLinear(8, 8)), rows) == 1
    unfrozen = layer(nn.Linear(8, 8))
    unfrozen.weight.requires_grad_(True)  # by a user, in whose step W is to have its gradient
    assert base_calls(unfrozen, rows) == 1
    hooked = layer(nn.Linear(8, 8))
    hooked.base.register_forward_pre_hook(lambda *_: None)  # as accelerate's, which brings W from elsewhere
    assert base_calls(hooked, rows) == 1
    replaced, seen = layer(nn.Linear(8, 8)), []
    replaced.base.forward = lambda x: seen.append(1) or F.linear(x, replaced.base.weight, replaced.base.bias)
    replaced(rows)
    assert seen == [1]
    with torch.autocast("cpu", torch.bfloat16):
        assert base_calls(layer(nn.Linear(8, 8)), rows) == 1  # as in bfloat16
    several = layer(nn.Linear(8, 8))
    several.B = nn.Parameter(several.B.detach().expand(2, -1, -1).clone())  # of two clients in one pass
    assert base_calls(several, rows) == 1


def test_a_bias_that_a_user_lets_train_has_its_gradient() -> None:
    adapted, x = layer(nn.Linear(8, 6)), torch.randn(4, 16, 8)
    adapted.bias.requires_grad_(True)
    gradient = torch.randn(4, 16, 6)
    adapted(x).backward(gradient)
    torch.testing.assert_close(adapted.bias.grad, gradient.sum((0, 1)), **CLOSE)


def test_the_matrix_is_that_of_the_present_B_whoever_wrote_it() -> None:
    adapted, x = layer(nn.Linear(8, 8)), torch.randn(64, 8)
    for write in (
        lambda B: B.data.mul_(2.0),  # unseen by the version counter
        lambda B: torch.optim.SGD([B], lr=0.1).step(),
        lambda B: setattr(adapted, "B", nn.Parameter(torch.ones_like(B))),
    ):
        adapted(x).sum().backward()
        write(adapted.B)
        apart = copy.deepcopy(adapted)
        apart.one_product = False
        torch.testing.assert_close(adapted(x), apart(x), **CLOSE)


def test_a_second_derivative_is_refused_and_never_wrong() -> None:
    adapted, x = layer(nn.Linear(8, 8)), torch.randn(64, 8, requires_grad=True)
    for loss in (torch.sum, lambda out: out.square().sum()):  # of the first the gradient that comes in is constant
        with pytest.raises(RuntimeError, match="no second derivative; use one_product=False"):
            torch.autograd.grad(loss(adapted(x)), x, create_graph=True)
    adapted.one_product = False
    (first,) = torch.autograd.grad(adapted(x).sum(), x, create_graph=True)
    first.square().sum().backward()
    assert adapted.B.grad.abs().max() > 0
