"""Local steps are plain PyTorch: the same bits as a loop written out by hand, and nothing else moves."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from world import TEXTS

from fedasym.adapters import lora, trainable_state
from fedasym.data.examples import load_examples
from fedasym.methods import METHODS
from fedasym.models.build import build
from fedasym.rng import generator
from fedasym.tasks import task_of
from fedasym.training.loop import draw_batches, evaluate, train_steps

LENGTHS = np.random.default_rng(0).integers(3, 40, 37)


@pytest.fixture
def bench(tiny):
    """Return a function that makes everything a training needs, for changed settings."""

    def make(**more):
        settings = dataclasses.replace(tiny, **more)
        task = task_of(settings)
        examples, _ = load_examples(settings)
        built = build(settings, max(1, len(examples.class_names)), TEXTS)
        tokens = TEXTS.encode(built.processor, examples, settings.max_length)
        batches = draw_batches(tokens.lengths, settings.batch_size, 6, 0, generator(1, "batches"))
        return SimpleNamespace(settings=settings, task=task, built=built, tokens=tokens, batches=batches)

    return make


def train(b, parameters=None, batches=None):
    parameters, batches = parameters or moving(b), batches or b.batches
    return train_steps(b.built.model, parameters, b.built.processor, b.tokens, batches, b.task, b.settings)


def moving(b):
    return trainable_state.trainable(b.built.model)


def bits(b):
    return {name: matrix.tobytes() for name, matrix in trainable_state.read(moving(b)).items()}


@pytest.mark.parametrize("epochs", [1, 3])
def test_an_epoch_shows_each_example_once_and_only_its_rest_is_a_smaller_batch(epochs) -> None:
    batches = draw_batches(LENGTHS, 5, 0, epochs, generator(0, "test"))
    assert np.bincount(np.concatenate(batches), minlength=37).tolist() == [epochs] * 37
    assert sorted(map(len, batches)) == [37 % 5] * epochs + [5] * (37 // 5 * epochs)


@pytest.mark.parametrize("steps", [1, 4, 7, 8, 30])
def test_steps_are_counted_in_batches_and_no_example_is_seen_twice_more_than_another(steps) -> None:
    batches = draw_batches(LENGTHS, 5, steps, 9, generator(0, "test"))
    assert len(batches) == steps and {len(batch) for batch in batches} <= {5, 37 % 5}
    seen = np.bincount(np.concatenate(batches), minlength=37)
    assert seen.max() - seen.min() <= 1


def test_batches_depend_on_the_stream_alone() -> None:
    one, same, other = (np.concatenate(draw_batches(LENGTHS, 5, 6, 0, generator(0, "test", k))) for k in (1, 1, 2))
    assert one.tobytes() == same.tobytes() != other.tobytes()


def test_every_example_is_drawn_equally_often_whatever_its_length() -> None:
    drawn = [b for k in range(2000) for b in draw_batches(LENGTHS, 5, 3, 0, generator(k, "uniform"))]
    seen, share = np.bincount(np.concatenate(drawn)), 15 / 37
    # Binomial counts, so within five standard deviations for all 37 examples but once in 40,000 seeds.
    assert np.abs(seen - 2000 * share).max() < 5 * math.sqrt(2000 * share * (1 - share))


def test_a_batch_holds_examples_of_similar_length_and_batches_come_shuffled() -> None:
    batches = draw_batches(LENGTHS, 5, 7, 0, generator(0, "test"))
    spans = sorted((LENGTHS[batch].min(), LENGTHS[batch].max()) for batch in batches)
    assert all(below[1] <= above[0] for below, above in itertools.pairwise(spans))
    means = [[LENGTHS[b].mean() for b in draw_batches(LENGTHS, 5, 7, 0, generator(k, "order"))] for k in range(20)]
    assert len({tuple(np.argsort(each)) for each in means}) > 15  # of 7! = 5,040 orders


@pytest.mark.parametrize(
    "more",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "clip": 0.0, "head": "full"},
        {"optimizer": "adamw", "lr": 0.01, "head_lr": 0.03, "weight_decay": 0.1},
        {"method": "lora", "clip": 1e-3},
        {"task": "regression", "label_column": "score"},
        {"dtype": "bfloat16", "pooling": "mean"},
    ],
    ids=lambda more: "-".join(map(str, more.values())),
)
def test_train_steps_gives_the_bits_of_a_plain_pytorch_loop(bench, more) -> None:
    b, plain = bench(**more), bench(**more)
    trained = train(b)
    s, model, parameters = plain.settings, plain.built.model, moving(plain)
    factors = [name for name in parameters if name.endswith((".A", ".B"))]
    rates = [s.lr if name in factors else s.head_lr for name in parameters]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters.values(), rates, strict=True)]
    more = {"weight_decay": s.weight_decay} if s.optimizer == "adamw" else {}
    optimizer = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[s.optimizer](groups, **more)
    losses = []
    for batch in plain.batches:
        inputs, labels = TEXTS.collate(plain.built.processor, plain.tokens, batch)
        logits = model(**inputs).logits.float()
        loss = F.cross_entropy(logits, labels) if plain.task.target.classified else F.mse_loss(logits[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()
        if s.clip:
            torch.nn.utils.clip_grad_norm_([*parameters.values()], s.clip)
        optimizer.step()
        losses.append(loss.item())
    assert bits(b) == bits(plain)
    assert (trained.steps, trained.examples, trained.loss) == (6, 24, sum(losses) / 6)


def test_only_the_given_parameters_move(bench) -> None:
    b = bench(head="full")
    before = {n: p.detach().clone() for n, p in b.built.model.state_dict().items()}
    chosen = dict(list(trainable_state.trainable(b.built.model).items())[::2])
    train(b, chosen)
    moved = {n for n, p in b.built.model.state_dict().items() if not torch.equal(p, before[n])}
    assert moved == chosen.keys()
    assert lora.fingerprint_A(b.built.model, b.settings.kind) == b.built.A


def test_training_draws_nothing_so_two_runs_give_the_same_bits(bench) -> None:
    one, two = bench(), bench()
    assert one.built.model.config.hidden_dropout_prob > 0  # dropout, were it on, would draw
    state = torch.manual_seed(1).get_state()
    train(one)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    train(two)
    assert bits(one) == bits(two)


def test_the_heads_rate_moves_the_head_only_and_the_adapters_rate_the_adapters_only(bench) -> None:
    def one_step(lr, head_lr):
        b = bench(lr=lr, head_lr=head_lr, clip=0.0)
        train(b, batches=b.batches[:1])
        return bits(b)

    base, head = one_step(0.1, 0.1), {"classifier.weight", "classifier.bias"}
    assert {n for n, raw in one_step(0.1, 0.3).items() if raw != base[n]} == head
    assert {n for n, raw in one_step(0.3, 0.1).items() if raw != base[n]} == base.keys() - head


def test_a_step_moves_no_further_than_rate_times_clip(bench) -> None:
    b = bench(clip=1e-3, lr=0.5, head_lr=0.5, optimizer="sgd")
    before = trainable_state.read(moving(b))
    train(b, batches=b.batches[:1])
    length = math.sqrt(
        sum(((m.astype(float) - before[n]) ** 2).sum() for n, m in trainable_state.read(moving(b)).items())
    )
    # PyTorch divides by norm + 1e-6, and float32 rounds the head's weights of size 0.02 by 1e-9.
    assert length == pytest.approx(0.5e-3, rel=1e-4)


def test_a_loss_that_is_not_finite_is_named_with_its_step_and_moves_nothing_further(bench) -> None:
    b = bench(lr=1e30, clip=0.0)
    with pytest.raises(
        FloatingPointError, match=r"the training loss is (nan|inf) at local step [2-6]; lower lr=1e\+30"
    ):
        train(b)
    b = bench()
    b.built.model.bert.embeddings.LayerNorm.weight.fill_(math.nan)
    before = bits(b)
    with pytest.raises(FloatingPointError, match="is nan at local step 1"):
        train(b)
    assert bits(b) == before


@pytest.mark.parametrize("more", [{}, {"task": "regression", "label_column": "score"}, {"pooling": "mean"}])
def test_evaluation_in_batches_equals_evaluation_one_by_one(bench, more) -> None:
    b = bench(**more)
    train(b)
    before, first = bits(b), b.tokens.take(np.arange(20))
    found = evaluate(b.built.model, b.built.processor, first, b.task, batch_size=7)
    losses, predictions = [], []
    for i in range(20):
        inputs, label = TEXTS.collate(b.built.processor, first, [i])
        with torch.no_grad():
            logits = b.built.model(**inputs).logits
        predictions.append(logits[0].argmax().item() if b.task.target.classified else logits[0, 0].item())
        losses.append(
            (F.cross_entropy(logits, label) if b.task.target.classified else F.mse_loss(logits[:, 0], label)).item()
        )
    labels = first.labels
    # Padding changes the order of float32 sums: roundings of 1e-7 on logits of size one.
    assert found["loss"] == pytest.approx(np.mean(losses), abs=1e-6)
    if not b.task.target.classified:
        # The predictions hardly differ from one another: relative to their spread those roundings are 1e-4 and more.
        assert np.std(predictions) < 1e-2
        assert found["pearson"] == pytest.approx(np.corrcoef(predictions, labels)[0, 1], abs=1e-3)
        assert found.keys() == {"pearson", "spearman", "loss"}
    else:
        assert found["accuracy"] == np.mean(predictions == labels) and found.keys() == {"accuracy", "f1", "loss"}
    assert bits(b) == before


@pytest.mark.parametrize(("n", "steps", "epochs"), [(10, 10, 0), (20, 10, 0), (50, 12, 0), (200, 0, 3), (16, 5, 0)])
def test_no_batch_holds_an_example_twice_and_an_epoch_is_a_pass(n, steps, epochs) -> None:
    lengths = np.random.default_rng(n).integers(3, 30, n)
    batches = draw_batches(lengths, 16, steps, epochs, generator(0, "batches", n))
    assert all(len(set(batch.tolist())) == len(batch) for batch in batches)
    a_pass = -(-n // 16)
    assert len(batches) == (steps or epochs * a_pass)
    for start in range(0, len(batches) - a_pass + 1, a_pass):
        assert sorted(np.concatenate(batches[start : start + a_pass]).tolist()) == list(range(n))


@pytest.mark.parametrize("number", [1, 2])
def test_only_what_trains_this_round_keeps_activations(bench, number) -> None:
    b = bench(method="rolora", attention="eager")
    model, letters = b.built.model, METHODS["rolora"].trains(number)
    assert letters == {1: "B", 2: "A"}[number]
    parameters = {n: p for n, p in moving(b).items() if not n.endswith((".A", ".B")) or n.endswith(letters)}
    layer = model.get_submodule(b.built.layers[0])
    layer.B.data.normal_(generator=torch.Generator().manual_seed(0))
    fixed = {n: p.detach().clone() for n, p in moving(b).items() if n not in parameters}
    kept, inside = [], []
    layer.register_forward_pre_hook(lambda *_: inside.append(True))
    layer.register_forward_hook(lambda *_: inside.clear())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t) if inside else None, t)[1], lambda t: t):
        train(b, parameters, b.batches[:1])
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    own = [t for t in kept if t.untyped_storage().data_ptr() not in weights]
    widths = {t.shape[-1] for t in own if t.shape != layer.weight.shape}  # without W + s B A itself
    assert widths == {"B": {b.settings.rank}, "A": {layer.in_features}}[letters]  # A x, or x
    assert {n for n, p in model.named_parameters() if p.requires_grad} == parameters.keys()
    assert all(torch.equal(moving(b)[n], p) for n, p in fixed.items())


@pytest.mark.parametrize("method", ["asymmetric", "lora", "ffa", "flora", "fedex"])
def test_steps_with_one_product_are_those_with_two_to_rounding(bench, method) -> None:
    # SGD, for the steps of AdamW have the size of the rate however small a gradient is, and so its rounding.
    one, two = (bench(method=method, optimizer="sgd", one_product=one_product) for one_product in (True, False))
    losses = [train(b).loss for b in (one, two)]
    # Six steps of a model with two layers, each some dozens of roundings by 6e-8 of values about 1.
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for name, end in moving(one).items():
        torch.testing.assert_close(end, moving(two)[name], rtol=1e-4, atol=1e-5)
    assert bits(one) != bits(two)  # and so which of the two it was is in the contract


@pytest.mark.parametrize("rate", ["lr", "head_lr"])
def test_in_full_fine_tuning_the_base_model_takes_one_rate_and_the_head_the_other(bench, rate) -> None:
    b = bench(method="full", head="full", **{"lr": 0.0, "head_lr": 0.0, rate: 0.1})
    before = {name: p.detach().clone() for name, p in moving(b).items()}
    train(b, batches=b.batches[:2])
    moved = {name for name, p in moving(b).items() if not torch.equal(p, before[name])}
    assert moved and {name.startswith("bert.") for name in moved} == {rate == "lr"}


def test_a_fully_trained_model_with_shared_weights_trains_under_one_name_each(models, bench) -> None:
    b = bench(method="full", head="full", model=str(models["bart"]))
    train(b, batches=b.batches[:1])
    assert lora.fingerprint_base(b.built.model) == b.built.base
