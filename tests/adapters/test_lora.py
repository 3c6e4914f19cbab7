"""An adapted model computes W x + s B A x, trains B alone, and never touches W or A."""

import copy
from collections import OrderedDict

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import nn

from fedasym.adapters import lora, trainable_state
from fedasym.adapters.projection import fingerprint, frozen_A
from fedasym.aggregation.exact import ExactMean

LINEARS = ["blocks.0.query", "blocks.0.value", "blocks.1.query", "blocks.1.value", "head"]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    block = OrderedDict(query=nn.Linear(12, 12), norm=nn.LayerNorm(12), value=nn.Linear(12, 12))
    blocks = nn.Sequential(*(nn.Sequential(copy.deepcopy(block)) for _ in range(2)))
    return nn.Sequential(OrderedDict(blocks=blocks, head=nn.Linear(12, 3)))


def fill_B(model) -> None:
    rng, B = np.random.default_rng(0), trainable_state.trainable(model)
    trainable_state.load(B, {n: rng.standard_normal(p.shape, np.float32) for n, p in B.items()})


def train(model, seed, steps) -> None:
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(trainable_state.trainable(model).values(), lr=0.05, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 12, generator=rng)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(("scaling", "scale"), [("alpha/r", 1.25), ("alpha/sqrt(r)", 2.5)])
def test_with_B_zero_the_model_is_the_original_and_then_W_x_plus_s_B_A_x(net, scaling, scale) -> None:
    dense, x = copy.deepcopy(net), torch.randn(5, 7, 12)
    assert lora.adapt(net, rank=4, alpha=5.0, seed=7, scaling=scaling) == LINEARS
    assert torch.equal(net(x), dense(x))
    fill_B(net)
    for name, layer in trainable_state.adapted_layers(net):
        A, weight = torch.from_numpy(frozen_A(7, name, 4, 12)), dense.get_submodule(name).weight
        assert torch.equal(layer.A, A)
        weight.data += (scale * (layer.B.detach().double() @ A.double())).float()
    # Some dozens of float32 roundings of 6e-8, in another order on each side, on terms of size ten.
    torch.testing.assert_close(net(x), dense(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("one_product", [False, True])
@pytest.mark.parametrize("factors", lora.FACTORS)
def test_with_A_frozen_backward_keeps_what_is_r_wide_and_never_x(factors, one_product) -> None:
    layer = nn.Sequential(nn.Linear(32, 24))
    lora.adapt(layer, rank=3, factors=factors, one_product=one_product)
    x = torch.randn(5, 7, 32, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    known = {t.untyped_storage().data_ptr(): "W" for t in [*layer.parameters(), *layer.buffers()]}
    known[x.untyped_storage().data_ptr()] = "x"
    activations = {known.get(t.untyped_storage().data_ptr(), t.shape) for t in kept} - {"W"}
    merged = {(24, 32)} if one_product else set()  # W + s B A
    assert merged <= activations
    assert {each if each == "x" else each[-1] for each in activations - merged} == {
        "B": {3},
        "AB": {"x", 3},
        "A": {"x"},
    }[factors]


@pytest.mark.parametrize("factors", lora.FACTORS)
def test_what_trains_is_what_travels_and_training_moves_nothing_else(net, factors) -> None:
    lora.adapt(net, ["query", "value"], rank=4, factors=factors, exclude=["blocks.1.value"])
    lora.place(net, "head", lora.TrainedLinear(net.head, travels=True))
    names = [f"{layer}.{letter}" for layer in LINEARS[:3] for letter in factors] + [
        "head.bias",
        "head.weight",
    ]
    assert list(trainable_state.trainable(net)) == names
    assert {n for n, p in net.named_parameters() if p.requires_grad} == set(names)
    before, base, A = (
        trainable_state.read(trainable_state.trainable(net)),
        lora.fingerprint_base(net),
        lora.fingerprint_A(net, "A"),
    )
    train(net, seed=1, steps=3)
    after = trainable_state.read(trainable_state.trainable(net))
    assert list(after) == names and not any(np.array_equal(before[n], after[n]) for n in names)
    assert lora.fingerprint_base(net) == base
    assert (lora.fingerprint_A(net, "A") == A) == (factors != "AB")


@pytest.mark.parametrize("factors", lora.FACTORS)
def test_the_mean_of_the_updates_is_the_update_of_the_mean_for_B_and_not_for_AB(net, factors) -> None:
    lora.adapt(net, ["query", "value"], rank=4, factors=factors)
    total, weights, clients = ExactMean(), [1, 5, 2], []
    for client, weight in enumerate(weights):
        clients.append(copy.deepcopy(net))
        train(clients[-1], seed=client, steps=10)
        total.add(weight, trainable_state.read(trainable_state.trainable(clients[-1])))
    trainable_state.load(trainable_state.trainable(net), total.mean())
    models = [dict(trainable_state.adapted_layers(model)) for model in (net, *clients)]
    for name in models[0]:
        update, *each = (m[name].scale * m[name].B.double() @ m[name].A.double() for m in models)
        mean = sum(w * one for w, one in zip(weights, each, strict=True)) / sum(weights)
        # The mean of B is rounded to float32 once, 6e-8 of each entry; A and the products are exact to 1e-15.
        error = (update - mean).norm() / mean.norm()
        assert error > 1e-2 if factors == "AB" else error < 1e-6


def test_factors_AB_is_PEFTs_LoRA() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    targets = ["query", "value", "output.dense"]
    torch.manual_seed(0)
    ours = transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes)).eval()
    config = peft.LoraConfig(r=3, lora_alpha=5, lora_dropout=0.0, target_modules=targets)
    theirs = peft.get_peft_model(copy.deepcopy(ours), config).eval()
    lora.adapt(ours, targets, rank=3, alpha=5.0, factors="AB")
    fill_B(ours)
    mine, path = trainable_state.trainable(ours), "base_model.model.{}lora_{}.default.weight"
    assert len(mine) == sum(p.requires_grad for p in theirs.parameters()) == 16
    twins = {name: theirs.get_parameter(path.format(name[:-1], name[-1])) for name in mine}
    trainable_state.load(twins, trainable_state.read(mine))
    tokens, direction = torch.randint(50, (4, 9)), torch.randn(4, 9, 16)
    out, their_out = ours(tokens).last_hidden_state, theirs(tokens).last_hidden_state
    # The same products in another order, s (B A x) there, B (s A x) here: roundings of 6e-8 on terms near 1.
    torch.testing.assert_close(out, their_out, rtol=1e-5, atol=1e-5)
    ((out + their_out) * direction).sum().backward()
    for name, parameter in mine.items():
        torch.testing.assert_close(parameter.grad, twins[name].grad, rtol=1e-5, atol=1e-5)


def test_targets_are_all_linear_or_paths_or_their_endings_less_the_excluded(net) -> None:
    assert lora.adapt(copy.deepcopy(net), "all-linear", exclude=["head"]) == LINEARS[:4]
    assert lora.adapt(copy.deepcopy(net), "value") == ["blocks.0.value", "blocks.1.value"]
    assert lora.adapt(copy.deepcopy(net), ["1.query", "head"]) == ["blocks.1.query", "head"]
    with pytest.raises(ValueError, match=r"\['uery'\] match no layer.* end in head, query, value"):
        lora.adapt(net, ["query", "uery"])
    for name, wrong in {"targets": "", "scaling": "r", "factors": "C", "kind": "x"}.items():
        with pytest.raises(ValueError, match=f"{name}.*'{wrong}'"):
            lora.adapt(copy.deepcopy(net), **{name: wrong})


def test_a_refused_adapt_leaves_the_model_as_it_was(net) -> None:
    net.head = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="'head': rank 4 exceeds d_in 3"):
        lora.adapt(net, rank=4)
    assert not list(trainable_state.adapted_layers(net)) and all(p.requires_grad for p in net.parameters())
    lora.adapt(net, rank=2)
    with pytest.raises(ValueError, match="adapted already"):
        lora.adapt(net, rank=2)


@pytest.mark.parametrize("rank", [0, -1, True, 2.0, "2", None])
def test_a_rank_that_is_no_whole_number_of_at_least_one_is_refused(net, rank) -> None:
    with pytest.raises(ValueError, match=f"rank {rank!r} is not a whole number of at least 1"):
        lora.adapt(net, rank=rank)
    assert not list(trainable_state.adapted_layers(net)) and all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_not_positive_and_finite_is_refused(net, alpha) -> None:
    with pytest.raises(ValueError, match=f"alpha {alpha!r} is not positive and finite"):
        lora.adapt(net, rank=2, alpha=alpha)
    assert not list(trainable_state.adapted_layers(net)) and all(p.requires_grad for p in net.parameters())


def test_a_model_that_was_cast_after_it_was_adapted_is_not_loaded(net) -> None:
    lora.adapt(net, "query", rank=2)
    values = {n: np.full(p.shape, 1 + 2**-20, np.float32) for n, p in trainable_state.trainable(net).items()}
    net.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"blocks\.0\.query\.B: is torch\.bfloat16, .* cast the model before adapt"):
        trainable_state.load(trainable_state.trainable(net), values)
    assert not any(m.any() for m in trainable_state.read(trainable_state.trainable(net)).values())


@pytest.mark.parametrize("factors", lora.FACTORS)
def test_what_adapt_makes_is_float32_whatever_another_thread_makes_the_default(net, factors) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # as transformers does, for the whole process, while it loads a model
    try:
        lora.adapt(net, rank=3, factors=factors)
        lora.add_shifts(net)
    finally:
        torch.set_default_dtype(before)
    for _, layer in trainable_state.adapted_layers(net):
        assert layer.A.dtype == layer.B.dtype == layer.shift.dtype == torch.float32


def test_load_is_strict_and_all_or_nothing(net) -> None:
    lora.adapt(net, "query", rank=2)
    B = trainable_state.trainable(net)
    fine = {n: np.ones(p.shape, np.float32) for n, p in B.items()}
    last, one = "blocks.1.query.B", fine["blocks.1.query.B"]
    for wrong, words in (
        ({last: one}, r"missing \['blocks.0.query.B'\]"),
        (fine | {"extra.B": one}, r"extra \['extra.B'\]"),
        (fine | {last: one.T}, rf"{last}: got float32 \(2, 12\); the model wants float32 \(12, 2\)"),
        (fine | {last: one.astype(np.float64)}, f"{last}: got float64"),
        (fine | {last: one * np.float32(np.nan)}, f"{last}: .*not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            trainable_state.load(B, wrong)
        assert not any(m.any() for m in trainable_state.read(B).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_copy_is_plain_answers_alike_and_leaves_model_and_chance_alone(net, dtype) -> None:
    lora.adapt(net.to(dtype), ["query", "value"], rank=4, alpha=1.0)
    lora.place(net, "head", lora.TrainedLinear(net.head, travels=True))
    fill_B(net)
    before, rng = fingerprint(trainable_state.read(net.state_dict()), ""), torch.get_rng_state()
    merged = lora.merged_copy(net)
    assert torch.equal(torch.get_rng_state(), rng)
    assert fingerprint(trainable_state.read(net.state_dict()), "") == before
    assert not any(isinstance(m, (lora.AdaptedLinear, lora.TrainedLinear)) for m in merged.modules())
    x = torch.randn(6, 12, dtype=dtype)
    # W + s B A is rounded once to W's dtype: eps of each of twelve terms of size one in each of four layers.
    torch.testing.assert_close(merged(x).float(), net(x), rtol=0, atol=50 * torch.finfo(dtype).eps)


def test_factors_A_alone_is_PEFTs_LoRA_with_B_as_drawn() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(OrderedDict(one=nn.Linear(12, 9), two=nn.Linear(9, 5)))
    config = peft.LoraConfig(r=3, lora_alpha=5, lora_dropout=0.0, target_modules=["one", "two"])
    theirs = peft.get_peft_model(copy.deepcopy(ours), config).eval()
    x, direction = torch.randn(4, 12), torch.randn(4, 5)
    start = ours(x).detach()
    lora.adapt(ours, rank=3, alpha=5.0, factors="A")
    torch.testing.assert_close(ours(x), start)  # A is zero
    path = "base_model.model.{}.lora_{}.default.weight"
    for name, layer in trainable_state.adapted_layers(ours):
        # B's columns are orthonormal to 1e-6, as A's rows are otherwise.
        torch.testing.assert_close(layer.B.T @ layer.B, torch.eye(3), rtol=0, atol=1e-6)
        layer.A.data = torch.randn(layer.A.shape)
        for letter in "AB":
            theirs.get_parameter(path.format(name, letter)).data = getattr(layer, letter).detach().clone()
    out, their_out = ours(x), theirs(x)
    # The same products in another order: roundings of 6e-8 on terms near 10.
    torch.testing.assert_close(out, their_out, rtol=1e-5, atol=1e-5)
    ((out + their_out) * direction).sum().backward()
    for name, layer in trainable_state.adapted_layers(ours):
        twin = theirs.get_parameter(path.format(name, "A"))
        torch.testing.assert_close(layer.A.grad, twin.grad, rtol=1e-5, atol=1e-5)


def test_the_bases_fingerprint_leaves_out_what_trains_under_every_name_it_has(net) -> None:
    net.blocks[1] = net.blocks[0]  # one module at two paths, as shared embeddings are
    lora.train_all(net)
    base, before = lora.fingerprint_base(net), trainable_state.read(trainable_state.trainable(net))
    train(net, seed=1, steps=1)
    assert lora.fingerprint_base(net) == base
    assert not any(
        np.array_equal(before[name], m) for name, m in trainable_state.read(trainable_state.trainable(net)).items()
    )


def test_a_trained_head_stays_float32_and_stays_home_if_it_does_not_travel(net) -> None:
    lora.adapt(net.to(torch.bfloat16), "query", rank=2)
    lora.place(net, "head", lora.TrainedLinear(net.head, travels=False))
    assert list(trainable_state.local_only(net)) == ["head.bias", "head.weight"]
    assert list(trainable_state.trainable(net)) == ["blocks.0.query.B", "blocks.1.query.B"]
    assert net(torch.randn(2, 12, dtype=torch.bfloat16)).dtype == net.head.weight.dtype == torch.float32


def test_the_bases_fingerprint_ignores_adapters_and_sees_every_bit_of_W(net) -> None:
    seen = {lora.fingerprint_base(net)}
    lora.adapt(net, rank=2)
    fill_B(net)
    assert {lora.fingerprint_base(net)} == seen
    bits = net.blocks[1].value.base.weight.data.view(torch.uint8).view(-1)
    for bit in range(32):
        bits[bit // 8] ^= 1 << bit % 8
        seen.add(lora.fingerprint_base(net))
    assert len(seen) == 33


def test_a_layer_that_reads_its_weights_past_an_adapter_is_refused_by_name() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    with pytest.raises(ValueError, match="0 is PyTorch's own attention or transformer layer"):
        lora.adapt(model, rank=2)


def test_a_model_that_asks_a_layer_for_its_weight_runs_adapted() -> None:
    from transformers import T5Config, T5ForSequenceClassification

    config = T5Config(
        decoder_start_token_id=0, vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, num_labels=2
    )
    model = T5ForSequenceClassification(config).eval()
    ids = torch.tensor([[3, 4, 1]])
    before = model(input_ids=ids).logits
    lora.adapt(model, rank=2)
    # B is zero; another kernel may sum the same products in another order, a few float32 roundings apart.
    assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-5)
