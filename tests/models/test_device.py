"""Device and precision are chosen for the machine that is there, and said; a want of memory names its remedy."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from world import TEXTS

from clients.session import forget_session, session_of
from fedasym.adapters import trainable_state
from fedasym.data.examples import load_examples
from fedasym.models import device
from fedasym.models.build import build
from fedasym.settings import Settings
from fedasym.tasks import task_of
from fedasym.training.loop import draw_batches, evaluate, train_steps
from fedasym.wire.contract import as_stated

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("has", "dtype", "attention"),
    [
        ({}, "float32", None),
        ({"avx2": True}, "float32", None),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32", None),
        ({"avx512_f": True, "avx512_bf16": True}, "bfloat16", "eager"),
        ({"amx_bf16": True}, "bfloat16", "eager"),
    ],
)
def test_a_CPU_computes_in_bfloat16_only_with_instructions_for_it(monkeypatch, has, dtype, attention) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert device.choose_dtype("auto", CPU) == dtype
    assert device.choose_attention("auto", CPU, dtype) == attention
    assert dtype in device.describe(CPU, dtype)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_a_GPU_computes_in_bfloat16_from_compute_capability_8(monkeypatch, capability, dtype) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: capability)
    assert device.choose_dtype("auto", GPU) == dtype
    assert device.choose_attention("auto", GPU, dtype) is None
    assert device.choose_dtype("float32", GPU) == "float32"


def test_threads_take_the_GPUs_in_turn_and_keep_theirs(monkeypatch) -> None:
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    meet = Barrier(4)

    def ask() -> list[int]:
        meet.wait()  # so that none of the four threads is used twice
        return [device.choose_device(setting).index for setting in ("auto", "cuda", "auto")]

    with ThreadPoolExecutor(4) as pool:
        found = [job.result() for job in [pool.submit(ask) for _ in range(4)]]
    assert all(len(set(each)) == 1 for each in found)
    assert sorted(each[0] for each in found) == [0, 0, 1, 1]
    assert device.choose_device("cuda:1").index == 1
    assert [device.workers_of(setting, 4) for setting in ("auto", "cuda", "cuda:1", "cpu")] == [2, 2, 1, 4]
    with pytest.raises(ValueError, match=r"device='cuda:2' is not there: this process sees cpu, cuda:0, cuda:1"):
        device.choose_device("cuda:2")


def test_a_device_that_is_not_there_is_refused_by_name(tiny) -> None:
    there = ", ".join(map(str, device.devices()))
    setting = f"cuda:{device.gpu_count()}"  # one beyond the last
    with pytest.raises(ValueError, match=rf"device='{setting}' is not there: this process sees {there}; set it to"):
        build(dataclasses.replace(tiny, device=setting), 3, TEXTS)


@pytest.mark.parametrize("setting", ["gpu", "cuda:", "cuda:-1", "cuda:0,1", "CPU", ""])
def test_a_device_that_cannot_be_is_refused_at_the_door(setting) -> None:
    with pytest.raises(ValueError, match="is not one of auto, cpu, cuda, cuda:N or mps"):
        Settings(device=setting)


def test_a_slow_dtype_is_warned_about_with_the_factor_measured_here() -> None:
    assert device.slow_choice(CPU, "float32") == ""
    if device.native_bfloat16(CPU)[0]:
        assert device.slow_choice(CPU, "bfloat16") == ""
    else:
        said, factor = device.slow_choice(CPU, "bfloat16"), device.slowdown(CPU)
        assert factor > 0 and (("times as long" in said) == (said != ""))


def test_a_client_takes_the_dtype_that_the_server_states_and_no_other() -> None:
    assert as_stated(Settings(), {"dtype": "bfloat16"}).dtype == "bfloat16"
    assert as_stated(Settings(dtype="float32"), {"dtype": "bfloat16"}).dtype == "float32"
    for about in ({}, {"dtype": "auto"}):
        with pytest.raises(ValueError, match="the message states no dtype"):
            as_stated(Settings(), about)
    with pytest.raises(ValueError, match="dtype='float64' is not one of auto, float32, bfloat16"):
        as_stated(Settings(), {"dtype": "float64"})


def test_want_of_memory_names_where_it_was_and_what_to_do() -> None:
    wanted = r"out of memory in training \(.*allocate.*\): lower it"
    with pytest.raises(device.DeviceMemoryError, match=wanted), device.memory_named("training", "lower it"):
        torch.empty(2**50, dtype=torch.uint8)  # a petabyte: refused by the real allocator
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore"), MemoryError()):
        named = pytest.raises(device.DeviceMemoryError, match="out of memory in training")
        with named, device.memory_named("training", "lower it"):
            raise error
    # The second is a RuntimeError too: what PyTorch raises for an operation that a device does not have.
    for other in (RuntimeError("shapes differ"), NotImplementedError("no such operation")):
        with pytest.raises(type(other)) as caught, device.memory_named("training", "lower it"):
            raise other
        assert caught.value is other  # what is no want of memory passes as it was raised


def test_the_old_model_is_gone_before_a_new_one_is_built(tiny, monkeypatch) -> None:
    import weakref

    import clients.session

    old = weakref.ref(session_of(tiny).built.model)
    alive = []

    def watched(*arguments):
        alive.append(old() is not None)
        return build(*arguments)

    monkeypatch.setattr(clients.session, "build", watched)
    session_of(dataclasses.replace(tiny, seed=1))
    forget_session()
    assert alive == [False]


@pytest.fixture
def trained(tiny):
    """Return what two local steps make of a model, by settings."""

    def run(**more: object) -> tuple[dict[str, np.ndarray], float, dict[str, float]]:
        settings = dataclasses.replace(tiny, batch_size=12, **more)
        examples, _ = load_examples(settings)
        built, task = build(settings, len(examples.class_names), TEXTS), task_of(settings)
        tokens = TEXTS.encode(built.processor, examples, settings.max_length)
        B = trainable_state.trainable(built.model)
        batches = draw_batches(tokens.lengths, 12, 3, 0, np.random.default_rng(0))
        loss = train_steps(built.model, B, built.processor, tokens, batches, task, settings).loss
        return trainable_state.read(B), loss, evaluate(built.model, built.processor, tokens, task, settings.eval_batch)

    return run


@pytest.mark.parametrize("size", [1, 5, 8, 11])
@pytest.mark.parametrize("more", [{}, {"pooling": "mean"}, {"optimizer": "adamw", "lr": 0.01, "head_lr": 0.01}])
def test_micro_batches_give_the_step_of_the_whole_batch_to_rounding(trained, size, more) -> None:
    whole, loss, _ = trained(**more)
    parts, loss_of_parts, _ = trained(**more, micro_batch=size)
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    for name, matrix in whole.items():
        # Sums of float32 in another order; AdamW divides by a gradient's size, which raises the rounding of small ones.
        tolerance = 2e-3 if more.get("optimizer") == "adamw" else 1e-5
        np.testing.assert_allclose(parts[name], matrix, rtol=0, atol=tolerance * max(np.abs(matrix).max(), 1e-6))


@pytest.mark.parametrize("more", [{}, {"pooling": "mean"}, {"model": "bart"}, {"model": "llama"}])
def test_gradient_checkpointing_gives_the_same_bits_and_is_off_afterwards(trained, models, more) -> None:
    more = {**more, "model": str(models[more["model"]])} if "model" in more else more
    kept, loss, scores = trained(**more)
    again, loss_again, scores_again = trained(**more, gradient_checkpointing=True)
    assert (loss, scores) == (loss_again, scores_again)
    assert all(np.array_equal(again[name], kept[name]) for name in kept)


def test_gradient_checkpointing_keeps_less_for_the_backward_pass(tiny) -> None:
    from fedasym.models.gradient_checkpointing import recomputed

    def kept(how: contextlib.AbstractContextManager[object] | None = None) -> int:
        sizes: list[int] = []
        ids = torch.ones(8, 16, dtype=torch.int64)
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x)
        with how or contextlib.nullcontext(), hooks:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        return sum(sizes)

    model = build(tiny, 3, TEXTS).model
    assert kept(recomputed(model, "tiny")) < 0.5 * kept()


def test_a_model_without_layers_for_checkpointing_is_refused_by_name() -> None:
    from fedasym.models.gradient_checkpointing import recomputed

    wanted = "gradient-checkpointing=true: transformers can do it in no layer of model 'none'"
    with pytest.raises(ValueError, match=wanted), recomputed(torch.nn.Sequential(torch.nn.Linear(2, 2)), "none"):
        pass


def test_a_micro_batch_larger_than_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="micro-batch=17 exceeds batch-size=14; lower it"):
        Settings(micro_batch=17)
