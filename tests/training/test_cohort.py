"""Clients that are trained in one pass are trained as each is alone, to rounding; what cannot be is refused by name."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from torch import nn

from fedasym.adapters import lora, trainable_state
from fedasym.adapters.frozen_seal import Seal
from fedasym.adapters.layers import TrainedLinear
from fedasym.data.examples import load_examples
from fedasym.methods import METHODS
from fedasym.models.build import build
from fedasym.models.party_equivalence import initial_logits
from fedasym.rng import generator
from fedasym.tasks import task_of
from fedasym.training.cohort import Member, clip_each, stacked, train_together, unfit
from fedasym.training.loop import draw_batches, train_steps

SIZES = (9, 3, 12)  # of the clients; the second has less than a batch of four
CASES = [
    {},
    {"optimizer": "adamw", "weight_decay": 0.1, "lr": 0.01, "head_lr": 0.01},
    {"clip": 0.05},
    {"clip": 0.0},
    {"micro_batch": 3},
    {"gradient_checkpointing": True},
    {"targets": "regex:.*(query|word_embeddings)"},
    {"task": "regression", "label_column": "score"},
    {"pooling": "pair", "text_columns": "text,second"},
    {"pooling": "mean", "head": "local"},
    {"head": "full"},
    *(
        {"method": name}
        for name, method in METHODS.items()
        if method.factors != "W" and not method.remembers and name != "central"
    ),
]


def made(tiny, **more):
    """Return a built model and what three clients of different sizes start from and train on."""
    rates = {"kind": "auto", "head": "auto"} if "method" in more else {}
    holdout = {"client_holdout": 0.2} if more.get("head") == "local" or more.get("method") in ("fedsa", "local") else {}
    settings = dataclasses.replace(tiny, attention="eager", **{**rates, **holdout, **more}).resolved()
    examples, _ = load_examples(settings)
    task = task_of(settings)
    built = build(settings, task.outputs(examples.class_names), task.inputs)
    encoded = task.inputs.encode(built.processor, examples, settings.max_length, settings.pooling)
    parameters = trainable_state.trainable(built.model) | trainable_state.local_only(built.model)
    start, rng, members = trainable_state.read(parameters), np.random.default_rng(3), []
    for k, size in enumerate(SIZES):
        own = encoded.take(np.arange(sum(SIZES[:k]), sum(SIZES[: k + 1])))
        drawn = {name: m + rng.standard_normal(m.shape, np.float32) / np.float32(8) for name, m in start.items()}
        batches = draw_batches(own.lengths, settings.batch_size, 3, 0, generator(0, "batches", k))
        members.append(Member(drawn, own, batches))
        assert size < 4 or {len(batch) for batch in batches} <= {4, size % 4}
    return SimpleNamespace(settings=settings, task=task, built=built, parameters=parameters, members=members)


def alone(b, factor=1.0):
    """Return how each client ends that trains alone, and what its training reports."""
    ends = []
    for member in b.members:
        trainable_state.load(b.parameters, member.start)
        trained = train_steps(
            b.built.model, b.parameters, b.built.processor, member.encoded, member.batches, b.task, b.settings,
            factor=factor,
        )  # fmt: skip
        ends.append((trained, trainable_state.read(b.parameters)))
    return ends


def together(b, moving=None, factor=1.0):
    return train_together(
        b.built.model, b.parameters, moving or [*b.parameters], b.built.processor, b.members, b.task, b.settings, factor
    )


def assert_alike(found, wanted, members, rtol=1e-4):
    """Require equal steps and examples, and changes and losses equal to the rounding of some float32 steps."""
    for (trained, matrices), (trained_alone, matrices_alone), member in zip(found, wanted, members, strict=True):
        assert (trained.steps, trained.examples) == (trained_alone.steps, trained_alone.examples)
        assert trained.loss == pytest.approx(trained_alone.loss, rel=rtol)
        assert matrices.keys() == matrices_alone.keys()
        for name, matrix in matrices_alone.items():
            largest = np.abs(matrix - member.start[name]).max()
            np.testing.assert_allclose(matrices[name], matrix, rtol=0, atol=rtol * largest + 1e-7, err_msg=name)


@pytest.mark.parametrize("more", CASES, ids=lambda more: "-".join(map(str, more.values())) or "plain")
def test_a_client_of_a_cohort_ends_as_it_does_alone(tiny, more) -> None:
    b = made(tiny, **more)
    wanted = alone(b, factor=0.5)
    assert any((matrix != b.members[0].start[name]).any() for name, matrix in wanted[0][1].items())
    assert_alike(together(b, factor=0.5), wanted, b.members)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cohort_of_every_family_ends_as_each_client_does_alone(tiny, models, family) -> None:
    b = made(tiny, model=str(models[family]), targets="all-linear")
    assert_alike(together(b), alone(b), b.members)


def test_what_does_not_train_in_a_round_stays_each_ones_own(tiny) -> None:
    b = made(tiny, method="lora")
    moving = [name for name in b.parameters if not name.endswith(".A")]
    for (_, ends), member in zip(together(b, moving), b.members, strict=True):
        for name, matrix in ends.items():
            assert (matrix != member.start[name]).any() == (name in moving), name


def test_who_diverges_ends_alone_and_the_others_as_without_it(tiny) -> None:
    b = made(tiny)
    wanted = alone(b)
    bad = {name: np.full_like(matrix, 3e38) for name, matrix in b.members[1].start.items()}
    b.members[1] = dataclasses.replace(b.members[1], start=bad)
    first, error, last = together(b)
    assert isinstance(error, FloatingPointError)
    assert "the training loss is" in str(error) and "at local step 1; lower lr=" in str(error)
    assert_alike([first, last], [wanted[0], wanted[2]], [b.members[0], b.members[2]])


def test_the_model_is_left_as_it_was_also_by_an_error(tiny) -> None:
    b = made(tiny)
    before, seal = trainable_state.read(b.parameters), Seal(b.built.model)
    together(b)
    with pytest.raises(ZeroDivisionError), stacked(b.built.model, b.parameters, [m.start for m in b.members]):
        assert all(len(p) == len(SIZES) for p in trainable_state.trainable(b.built.model).values())
        raise ZeroDivisionError
    now = trainable_state.trainable(b.built.model)
    assert all(now[name] is parameter for name, parameter in b.parameters.items())
    assert all((matrix == before[name]).all() for name, matrix in trainable_state.read(now).items()) and seal.holds()


def test_each_ones_gradient_is_clipped_by_its_own_norm() -> None:
    rng, shapes = np.random.default_rng(0), ((3, 5), (4,), (2, 2))
    gradients = [torch.from_numpy(rng.standard_normal((6, *shape), np.float32)) for shape in shapes]
    gradients[0][2:] *= 1e-3  # some are shorter than what is allowed
    gradients[1][2:] *= 1e-3
    gradients[2][2:] *= 1e-3
    wanted = []
    for k in range(6):
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient[k].clone()
        nn.utils.clip_grad_norm_(parameters, 0.7)
        wanted.append([parameter.grad for parameter in parameters])
    clip_each(gradients, 0.7)
    for k, own in enumerate(wanted):
        for gradient, matrix in zip(gradients, own, strict=True):
            torch.testing.assert_close(gradient[k], matrix)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_can_be_trained_in_one_pass(tiny, models, family) -> None:
    b = made(tiny, model=str(models[family]))
    assert unfit(b.built.model, b.parameters, "float32", lambda places: answers(b, places)) == ""


def answers(b, places):
    return initial_logits(b.built.model, b.built.processor, b.task.inputs, b.settings, places)


class _Turned(nn.Module):
    """A layer that is given the rows of a batch in another order."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.flip(0)).flip(0)


class _Expert(_Turned):
    """A layer that is given some tokens alone, as an expert of a mixture those that are dealt to it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = x[..., 0] > x[..., 1]
        out = self.inner.base(x)
        out[chosen] = self.inner(x[chosen])
        return out


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (_Turned, "the model's answers to two clients at once differ by"),
        (
            _Expert,
            r"\S+attention\.output\.dense\.inner is given \[\d+\] rows of one client's inputs, \[\d+\] of another's",
        ),
    ],
)
def test_a_model_that_deals_its_rows_out_is_refused(tiny, kind, why) -> None:
    b = made(tiny)
    lora.place(b.built.model, b.built.layers[0], kind(b.built.model.get_submodule(b.built.layers[0])))
    parameters = trainable_state.trainable(b.built.model)
    reason = unfit(b.built.model, parameters, "float32", lambda places: answers(b, places))
    assert re.match(why, reason) and reason.endswith("; set cohort=1")


def test_what_has_one_for_all_clients_is_refused_by_name() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 2))
    lora.adapt(net, ["0"], rank=2, factors="AB")
    reason = unfit(net, trainable_state.trainable(net), "float32", lambda places: [0.0 for _ in places])
    assert reason == "0.A is that of a Conv2d, which reads with one A for all clients; set cohort=1"
    plain = nn.Sequential(nn.Linear(3, 4))
    reason = unfit(plain, dict(plain.named_parameters()), "float32", lambda places: [0.0 for _ in places])
    assert reason == "0.weight is trained in place, of which there is one for all clients; set cohort=1"


def test_an_output_layers_stack_has_each_ones_weight_and_bias() -> None:
    rng = np.random.default_rng(1)
    for bias in (True, False):
        for shape in ((6, 5), (6, 2, 5)):
            net = nn.Sequential(TrainedLinear(nn.Linear(5, 4, bias=bias), travels=True))
            parameters = trainable_state.trainable(net)
            starts = [
                {name: rng.standard_normal(tuple(p.shape), np.float32) for name, p in parameters.items()} for _ in "abc"
            ]
            x, wanted = torch.from_numpy(rng.standard_normal(shape, np.float32)), []
            for k, start in enumerate(starts):
                trainable_state.load(parameters, start)
                wanted.append(net(x[2 * k : 2 * k + 2]))
            with stacked(net, parameters, starts):
                torch.testing.assert_close(net(x), torch.cat(wanted))
