"""Where a model computes, and in which precision: the one file that names devices, autocast, threads and determinism.

``device="auto"`` takes the GPU that is visible to the process, else the CPU. ``dtype="auto"`` is bfloat16 where the
device multiplies it natively (CUDA from compute capability 8.0; CPUs with AVX512-BF16 or AMX) and float32 elsewhere:
without such instructions bfloat16 is several times slower than float32. ``attention="auto"`` is PyTorch's fused
attention (``sdpa``) for models that have it, and the plain one for others and for bfloat16 on a CPU, where the fused
backward pass is slower.

The server chooses the dtype once for a run and states it; the device is each node's own.
"""

import gc
import itertools
import os
import platform
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedasym.models.settings import ModelSettings
from fedasym.ops.processes import cores

_NATIVE_CUDA = (8, 0)  # compute capability from which bfloat16 is native (Ampere)
_SLOW = 1.5  # times float32's time from which a dtype is called slow
_PROBE = (512, 384, 1536)  # rows, inner, columns of the product that is timed: 0.6 GFLOP, as in a small encoder
_Model = TypeVar("_Model", bound=ModelSettings)
_turns = itertools.count()
_thread = threading.local()


class DeviceMemoryError(RuntimeError):
    """The memory of a device is used up; the text says where, when and what to do."""


def choose_device(setting: str) -> torch.device:
    """Return the device that a setting means on this machine, for the calling thread.

    Where several GPUs are visible and none is named, threads take them in turn, so that each has a model of its own on
    a GPU of its own.

    Args:
        setting: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ValueError: no such device on this machine; names those that are there.
    """
    gpus = gpu_count()
    if setting == "auto":
        setting = "cuda" if gpus else "mps" if _has_mps() else "cpu"
    kind, _, index = setting.partition(":")
    if kind == "cuda" and int(index or 0) < gpus:
        # cuBLAS reads it when it starts; without it some of its products are not the same in every run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return torch.device("cuda", int(index) if index else _turn() % gpus)
    if kind == "cpu" or (kind == "mps" and _has_mps()):
        return torch.device(kind)
    raise ValueError(
        f"device={setting!r} is not there: this process sees {', '.join(map(str, devices()))}; set it to one of them, "
        "or to 'auto'"
    )


def gpu_count() -> int:
    """Return how many CUDA devices this process may use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def devices() -> list[torch.device]:
    """Return every device that this process may use, the CPU first."""
    found = [torch.device("cpu"), *(torch.device("cuda", k) for k in range(gpu_count()))]
    return [*found, torch.device("mps")] if _has_mps() else found


def workers_of(setting: str, workers: int) -> int:
    """Return how many clients may train at the same time in one process: on GPUs one each, else as many as asked."""
    device = choose_device(setting)
    if device.type == "cpu":
        return workers
    return min(workers, gpu_count() if setting in ("auto", "cuda") and device.type == "cuda" else 1)


def choose_dtype(setting: str, device: torch.device) -> str:
    """Return the dtype of the frozen weights that a setting means on a device: its native one."""
    if setting != "auto":
        return setting
    return "bfloat16" if native_bfloat16(device)[0] else "float32"


def resolved(settings: _Model, device: torch.device) -> _Model:
    """Return settings with the dtype that suits a device in place of ``auto``."""
    return replace(settings, dtype=choose_dtype(settings.dtype, device))


def choose_attention(setting: str, device: torch.device, dtype: str) -> str | None:
    """Return transformers' name of the attention that a setting means on a device; None: the model's fastest."""
    if setting != "auto":
        return setting
    return "eager" if device.type == "cpu" and dtype == "bfloat16" else None


def native_bfloat16(device: torch.device) -> tuple[bool, str]:
    """Say whether a device multiplies bfloat16 natively, and by what this is known."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return (major, minor) >= _NATIVE_CUDA, f"compute capability {major}.{minor}"
    if device.type == "cpu":
        has = _cpu_capabilities()
        found = [name for name in ("avx512_bf16", "amx_bf16") if has.get(name)]
        return bool(found), " and ".join(found) or "neither AVX512-BF16 nor AMX"
    return False, "not counted on"


def name_of(device: torch.device) -> str:
    """Return a device and what it is, in words."""
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device)
        return f"{device} ({whole.name}, {whole.total_memory / 1e9:.0f} GB)"
    if device.type == "cpu":
        name = str(_cpu_capabilities().get("cpu_name") or platform.machine())
        return f"cpu ({name}, {torch.backends.cpu.get_cpu_capability()}, {cores()} cores)"
    return str(device)


def describe(device: torch.device, dtype: str) -> str:
    """Say in one line what computes, in which precision, and what speaks for or against it."""
    native, by = native_bfloat16(device)
    return f"{name_of(device)} in {dtype}; bfloat16 is {'' if native else 'not '}native here: {by}"


def slow_choice(device: torch.device, dtype: str) -> str:
    """Return a warning if a dtype is slow on a device, with the factor measured now (0.1 to 0.5 s); else ""."""
    if dtype == "float32" or native_bfloat16(device)[0]:
        return ""
    factor = slowdown(device)
    if factor < _SLOW:
        return ""
    times = float(f"{factor:.1g}")  # one digit: it varies by more
    return (
        f"dtype={dtype} is slow on {device.type}: a product of matrices takes about {times:g} times as long there as "
        "in float32; leave dtype at 'auto', or set it to 'float32'"
    )


@cache
def slowdown(device: torch.device) -> float:
    """Return how many times longer a product of matrices takes in bfloat16 than in float32, on one thread of a CPU.

    It is measured once a process.
    """
    rows, inner, columns = _PROBE
    seconds = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.ones(rows, inner, dtype=dtype, device=device)
            w = torch.ones(columns, inner, dtype=dtype, device=device)
            taken = []
            for _ in range(3):
                began = time.perf_counter()
                torch.nn.functional.linear(x, w).sum().item()  # waits until the device has done it
                taken.append(time.perf_counter() - began)
            seconds[dtype] = min(taken)
    finally:
        torch.set_num_threads(threads)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def loading_options(device: torch.device) -> dict[str, Any]:
    """Return what makes transformers put a model's weights straight onto a device."""
    return {} if device.type == "cpu" else {"device_map": {"": device}}


def place(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return tensors of the CPU on a device; copies to a GPU start from pinned memory and overlap with its work."""
    if device.type == "cuda":
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def device_of(model: nn.Module) -> torch.device:
    """Return where a model is: all of it on one device."""
    return next(model.parameters()).device


def batch_to_evaluate(device: torch.device) -> int:
    """Return how many examples to evaluate at a time: few enough for a CPU's cache, many more on a GPU."""
    return 32 if device.type == "cpu" else 256


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """Return a context in which products of float32 weights are computed in a dtype."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def prepare(device: torch.device, threads: int, deterministic: bool) -> None:
    """Set the calling thread's number of CPU threads, and on a GPU whether every run must give the same bits.

    A CPU gives the same bits in any case, for the same number of threads.

    Args:
        device: that computes.
        threads: of the CPU.
        deterministic: PyTorch then refuses an operation that has no deterministic algorithm, by name.
    """
    torch.set_num_threads(threads)
    if device.type != "cpu":
        torch.use_deterministic_algorithms(deterministic)


def free() -> None:
    """Give back the memory of models that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def memory_named(where: str, remedy: str) -> Iterator[None]:
    """Turn a device's want of memory into an error that says what to do.

    Args:
        where: what was going on, e.g. "local training".
        remedy: what to do, with the settings' present values.

    Raises:
        DeviceMemoryError: out of memory, on a GPU or the CPU.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        named = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not named and "can't allocate memory" not in str(error):  # what the CPU's allocator says
            raise
        raise DeviceMemoryError(f"out of memory in {where} ({_first_line(error)}): {remedy}") from None


def _cpu_capabilities() -> Mapping[str, Any]:
    """Return what PyTorch knows of the CPU; older releases do not say, and then nothing counts as native."""
    known: Mapping[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return known


def _first_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error).strip().split("\n")[0])[:300] or type(error).__name__


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _turn() -> int:
    """Return this thread's place among those that asked for a GPU."""
    if not hasattr(_thread, "turn"):
        _thread.turn = next(_turns)
    turn: int = _thread.turn
    return turn
