"""Convolutions, GPT-2's Conv1D and embeddings are adapted as a dense layer with the weight W + s B A would compute."""

import copy
from collections import OrderedDict
from fractions import Fraction

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification
from transformers.pytorch_utils import Conv1D

from fedasym.adapters import lora, trainable_state
from fedasym.adapters.layers import sizes
from fedasym.adapters.peft_names import peft_tensors
from fedasym.adapters.projection import frozen_A
from fedasym.aggregation.exact import ExactMean

KINDS = ("linear", "conv1d", "conv2d", "transposed", "embedding")


@st.composite
def layers(draw, kinds=KINDS):
    """A layer of a drawn kind and size, and an input for it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind, d, n = draw(st.sampled_from(kinds)), draw(st.integers(1, 5)), draw(st.integers(2, 6))
    some = draw(st.booleans())
    if kind == "linear":
        layer, x = nn.Linear(n, d, bias=some), rng.standard_normal((2, 3, n))
    elif kind == "transposed":
        layer, x = Conv1D(d, n), rng.standard_normal((2, 3, n))
    elif kind == "embedding":
        layer, x = nn.Embedding(n, d, padding_idx=0 if some else None), rng.integers(0, n, (2, 3))
    else:
        dims = 1 if kind == "conv1d" else 2
        size = [draw(st.integers(1, 3)) for _ in range(dims)]
        more = {
            "stride": [draw(st.integers(1, 2)) for _ in size],
            "padding": [draw(st.integers(0, 1)) for _ in size],
            "dilation": [draw(st.integers(1, 2)) for _ in size],
            "padding_mode": draw(st.sampled_from(["zeros", "reflect"])),
        }
        channels = draw(st.integers(1, 3))
        layer = (nn.Conv1d if dims == 1 else nn.Conv2d)(channels, d, size, bias=some, **more)
        x = rng.standard_normal((2, channels, *(8 for _ in size)))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(parameter.shape)))
    return layer, torch.from_numpy(x if kind == "embedding" else x.astype(np.float32)), rng


def adapted(layer, rng, rank=2, factors="B"):
    """Adapt a layer and fill all of its matrices."""
    net = nn.Sequential(OrderedDict(one=layer))
    lora.adapt(net, "one", rank=rank, alpha=3.0, seed=5, kind="kaiming", factors=factors)
    lora.add_shifts(net)
    moving = trainable_state.common(net)
    trainable_state.load(
        moving, {name: rng.standard_normal(tuple(p.shape)).astype(np.float32) for name, p in moving.items()}
    )
    return net


def dense(layer, delta):
    """The layer with a matrix (d_out, d_in) added to its weight, entry by entry by the meaning of an index."""
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for o in range(delta.shape[0]):
            for place, u in enumerate(np.ndindex(*_input_shape(layer))):
                at = (*u, o) if isinstance(layer, nn.Embedding | Conv1D) else (o, *u)
                twin.weight[at] = (twin.weight[at].double() + delta[o, place]).float()
    return twin


def _input_shape(layer):
    """What one output reads: features, an id, or channels and the kernel's places."""
    if isinstance(layer, nn.Embedding | Conv1D):
        return layer.weight.shape[:1]
    return layer.weight.shape[1:]


@given(case=layers(), factors=st.sampled_from(lora.FACTORS))
def test_an_adapted_layer_and_its_merged_copy_compute_what_the_dense_layer_does(case, factors) -> None:
    layer, x, rng = case
    before = copy.deepcopy(layer)
    net = adapted(layer, rng, factors=factors)
    one = net.one
    d_out, d_in = sizes(before)
    assert (one.out_features, one.in_features) == (d_out, d_in) == (one.B.shape[0], one.A.shape[1])
    if "A" not in factors:
        assert torch.equal(one.A, torch.from_numpy(frozen_A(5, "one", 2, d_in, "kaiming")))
    delta = one.shift.double() + 1.5 * one.B.detach().double() @ one.A.detach().double()
    expected = dense(before, delta)
    # Sums of at most 30 products of size one to ten, in another order: some dozens of roundings of 6e-8.
    torch.testing.assert_close(net(x), expected(x), rtol=1e-4, atol=1e-4)
    merged = lora.merged_copy(net)
    assert type(merged.one) is type(before)
    torch.testing.assert_close(merged.one.weight, expected.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(merged(x), expected(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(net.one.base.weight, before.weight)


@given(case=layers(), count=st.integers(1, 3))
def test_a_stack_of_B_is_each_B_on_its_own_part_of_the_batch(case, count) -> None:
    layer, x, rng = case
    net = adapted(layer, rng)
    one, parts, wanted = net.one, torch.cat([x.flip(1) if k % 2 else x for k in range(count)]), []
    stack = rng.standard_normal((count, *one.B.shape)).astype(np.float32)
    with torch.no_grad():
        for k, B in enumerate(stack):
            one.B.copy_(torch.from_numpy(B))
            wanted.append(net(parts[k * len(x) : (k + 1) * len(x)]))
        one._parameters["B"] = nn.Parameter(torch.from_numpy(stack))
        assert (one.out_features, one.in_features) == sizes(layer)
        # The products are the same, summed in another order: a few dozen terms of moderate size.
        torch.testing.assert_close(net(parts), torch.cat(wanted), rtol=1e-4, atol=1e-4)


@given(case=layers())
def test_with_B_zero_the_layer_is_the_original_and_its_base_has_the_same_fingerprint(case) -> None:
    layer, x, _ = case
    net = nn.Sequential(OrderedDict(one=layer))
    before, base = net(x), lora.fingerprint_base(net)
    lora.adapt(net, "one", rank=2, kind="kaiming")
    assert torch.equal(net(x), before) and lora.fingerprint_base(net) == base
    assert list(trainable_state.trainable(net)) == ["one.B"] and list(trainable_state.frozen_factors(net)) == ["one.A"]
    with torch.no_grad():
        net.one.base.weight.view(-1)[0] += 1
    assert lora.fingerprint_base(net) != base


@given(case=layers(), weights=st.lists(st.integers(1, 50), min_size=2, max_size=4))
def test_the_mean_of_B_is_the_mean_of_the_updates_in_the_shape_of_the_weight(case, weights) -> None:
    layer, _, rng = case
    net = nn.Sequential(OrderedDict(one=layer))
    lora.adapt(net, "one", rank=2, alpha=3.0, kind="kaiming")
    mean, updates = ExactMean(), []
    for weight in weights:
        B = rng.standard_normal(tuple(net.one.B.shape)).astype(np.float32)
        mean.add(weight, {"one.B": B})
        trainable_state.load(trainable_state.trainable(net), {"one.B": B})
        updates.append(lora.merged_weight(net.one) - net.one.weight.double())
    trainable_state.load(trainable_state.trainable(net), mean.mean())
    of_mean = lora.merged_weight(net.one) - net.one.weight.double()
    mean_of = sum(w * u for w, u in zip(weights, updates, strict=True)) / sum(weights)
    # B̄ is rounded once to float32, 2^-24 of its entry; A's entries are below 1, s is 1.5, r is 2.
    rounding = 2.0**-24 * 1.5 * 2 * float(max(np.abs(m).max() for m in mean.mean().values()))
    assert (of_mean - mean_of).abs().max() <= rounding + 1e-12
    exact = sum(Fraction(w) * Fraction(float(u.flatten()[0])) for w, u in zip(weights, updates, strict=True))
    assert abs(float(exact / sum(weights)) - float(of_mean.flatten()[0])) <= rounding + 1e-12


@given(case=layers(), factors=st.sampled_from(lora.FACTORS))
def test_gradients_are_those_of_the_dense_layer_seen_through_the_other_factor(case, factors) -> None:
    layer, x, rng = case
    twin = copy.deepcopy(layer)
    net = adapted(layer, rng, factors=factors)
    one = net.one
    expected = dense(twin, one.shift.double() + 1.5 * one.B.detach().double() @ one.A.detach().double())
    direction = torch.from_numpy(rng.standard_normal(tuple(net(x).shape)).astype(np.float32))
    (net(x) * direction).sum().backward()
    for parameter in expected.parameters():
        parameter.requires_grad_(True)
    if isinstance(expected, nn.Embedding):
        expected.padding_idx = None  # it would take the padding's gradient away, which an adapter does not
    (expected(x) * direction).sum().backward()
    grad = expected.weight.grad.double()  # as a matrix (d_out, d_in)
    grad = grad.T if isinstance(twin, nn.Embedding | Conv1D) else grad.reshape(len(grad), -1)
    if "B" in factors:
        torch.testing.assert_close(one.B.grad.double(), 1.5 * grad @ one.A.detach().double().T, rtol=1e-4, atol=1e-3)
    if "A" in factors:
        torch.testing.assert_close(one.A.grad.double(), 1.5 * one.B.detach().double().T @ grad, rtol=1e-4, atol=1e-3)
    assert one.base.weight.grad is None


@given(case=layers())
def test_peft_computes_the_same_from_what_is_written(case) -> None:
    layer, x, rng = case
    plain = nn.Sequential(OrderedDict(one=copy.deepcopy(layer)))
    net = nn.Sequential(OrderedDict(one=layer))
    lora.adapt(net, "one", rank=2, alpha=3.0, kind="kaiming")
    trainable_state.load(
        trainable_state.trainable(net), {"one.B": rng.standard_normal(tuple(net.one.B.shape)).astype(np.float32)}
    )
    config = peft.LoraConfig(r=2, lora_alpha=3.0, target_modules=["one"], fan_in_fan_out=isinstance(layer, Conv1D))
    theirs = peft.get_peft_model(plain, config).eval()
    tensors = peft_tensors("base_model.model.one", net.one)
    if not tensors:  # PEFT's convolution has the base's stride and padding alone
        assert layer.padding_mode != "zeros" or max(layer.dilation) > 1
        return
    found = peft.set_peft_model_state_dict(theirs, tensors)
    assert not found.unexpected_keys
    torch.testing.assert_close(theirs(x), net(x), rtol=1e-5, atol=1e-5)


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes)).eval()


def test_all_linear_leaves_the_patch_embedding_alone_and_naming_it_adapts_it() -> None:
    patches = "vit.embeddings.patch_embeddings.projection"
    linears = [name for name, module in vit().named_modules() if isinstance(module, nn.Linear)]
    assert lora.adapt(vit(), rank=2) == sorted(linears)
    model, x = vit(), torch.randn(2, 3, 8, 8)
    before = model(x).logits
    assert lora.adapt(model, ["all-linear", "projection"], rank=2) == sorted([*linears, patches])
    assert torch.equal(model(x).logits, before)
    assert tuple(model.get_submodule(patches).A.shape) == (2, 3 * 4 * 4)
    model(x).logits.sum().backward()
    assert model.get_submodule(patches).B.grad.any()


def test_an_expression_matches_whole_paths_and_what_matches_nothing_is_refused_with_what_there_is() -> None:
    assert lora.adapt(vit(), r"regex:.*\.(q|v)_proj", rank=2) == [
        f"vit.layers.0.attention.{name}_proj" for name in "qv"
    ]
    with pytest.raises(
        ValueError, match=r"\['regex:q_proj'\] match no layer .* end in .*projection \(Conv2d\), q_proj"
    ):
        lora.adapt(vit(), "regex:q_proj")
    with pytest.raises(ValueError, match=r"'regex:\(' is no regular expression: .*; mend it"):
        lora.adapt(vit(), "regex:(")


def test_gpt2s_linear_layers_are_adapted_as_peft_does() -> None:
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    torch.manual_seed(0)
    model, ids = GPT2LMHeadModel(config).eval(), torch.randint(20, (2, 5))
    plain = copy.deepcopy(model)
    targets = ["c_attn", "c_proj", "c_fc", "wpe"]
    chosen = lora.adapt(model, targets, rank=2, alpha=3.0)
    assert [type(model.get_submodule(name).base).__name__ for name in chosen] == [*["Conv1D"] * 4, "Embedding"]
    every = {name for name, _ in trainable_state.adapted_layers(adapt_again(plain))}
    assert every == {*chosen} - {"transformer.wpe"} | {"lm_head"}
    rng = np.random.default_rng(0)
    B = {
        name: rng.standard_normal(tuple(p.shape)).astype(np.float32)
        for name, p in trainable_state.trainable(model).items()
    }
    trainable_state.load(trainable_state.trainable(model), B)
    theirs = peft.get_peft_model(plain, peft.LoraConfig(r=2, lora_alpha=3.0, target_modules=targets)).eval()
    tensors = {}
    for name, layer in trainable_state.adapted_layers(model):
        tensors |= peft_tensors(f"base_model.model.{name}", layer)
    peft.set_peft_model_state_dict(theirs, tensors)
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    merged = lora.merged_copy(model)
    torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def adapt_again(model):
    twin = copy.deepcopy(model)
    lora.adapt(twin, rank=2)
    return twin


def test_merging_a_layer_whose_weight_another_shares_leaves_the_other_as_it_was() -> None:
    net = nn.Sequential(OrderedDict(table=nn.Embedding(7, 4), out=nn.Linear(4, 7, bias=False)))
    net.out.weight = net.table.weight
    ids = torch.tensor([[0, 3, 6]])
    lora.adapt(net, "table", rank=2)
    trainable_state.load(trainable_state.trainable(net), {"table.B": np.ones((4, 2), np.float32)})
    merged = lora.merged_copy(net)
    assert torch.equal(merged.out.weight, net.out.weight) and not torch.equal(merged.table.weight, net.out.weight)
    # float32 roundings of 6e-8 on terms of size one.
    torch.testing.assert_close(merged(ids), net(ids), rtol=1e-5, atol=1e-5)


def _of_two_tensors() -> nn.Module:
    """Return a layer whose weight is stored in other tensors, as torchao's are; this one is PyTorch's own."""
    layer = nn.Linear(4, 3)
    one = layer.weight.detach()
    layer.weight = nn.Parameter(TwoTensor(one, one.clone()))
    return layer


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "one: is a convolution of 2 groups, .*; leave it out of targets, or exclude"),
        (nn.Embedding(5, 4, max_norm=1.0), "one: is an embedding with max_norm=1.0, which changes its own weight"),
        (_of_two_tensors(), "one: stores its weight as TwoTensor, which has no bytes of its own to compare"),
        (
            nn.ConvTranspose2d(4, 4, 3),
            r"targets \['one'\] match no layer that can be adapted; .* nothing: there is none",
        ),
        (nn.Conv2d(1, 4, 2), "'one': rank 5 exceeds d_in 4"),
    ],
)
def test_a_layer_that_cannot_be_adapted_is_refused_by_name(layer, message) -> None:
    net = nn.Sequential(OrderedDict(one=layer))
    with pytest.raises(ValueError, match=message):
        lora.adapt(net, "one", rank=5)
    assert net.one is layer and all(p.requires_grad for p in net.parameters())


def test_a_layer_at_two_paths_is_refused_if_it_is_named_and_does_not_matter_if_it_is_not() -> None:
    shared = nn.Linear(4, 4)
    net = nn.Sequential(OrderedDict(one=shared, two=shared, three=nn.Linear(4, 4)))
    assert lora.adapt(copy.deepcopy(net), "three", rank=2) == ["three"]
    with pytest.raises(ValueError, match="one layer stands at 'one' and 'two'; such sharing is not adapted"):
        lora.adapt(net, rank=2)
