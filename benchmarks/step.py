"""A local step of B only beside what one would otherwise use: one JSON line a case; see --out.

MiniLM, every linear layer adapted and the output layer trained, AdamW, a batch of random tokens without padding, one
thread on a CPU. Systems, each of which does its steps in turn, some times, in an order drawn anew: B only and LoRA of
fedasym, each also with two products where one would do (``one-product=false``), PEFT's LoRA, the same with A frozen,
full fine-tuning; and ``bare``: the frozen model's own forward and backward pass, in which nothing is adapted and
nothing steps, about the least that an adapter's step can take. Cases: so many examples of so many tokens, each at each
rank, in float32 and in bfloat16 where that is native. A line has the median and the quartiles of the milliseconds of a
step, and the median of how often it goes into PEFT's LoRA's of the same turn.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel

from benchmarks.cohort import wait
from benchmarks.result_line import machine, make_parser, say
from fedasym.adapters import trainable_state
from fedasym.models import device
from fedasym.models.build import build
from fedasym.models.model_files import source_of
from fedasym.models.pooling import MeanPooledClassifier, pooled
from fedasym.settings import Settings
from fedasym.tasks import task_of
from simulations.run import read_settings

CLASSES = 2
YARDSTICK = "PEFT LoRA"
System = tuple[nn.Module, Mapping[str, nn.Parameter]]


def ours(method: str, one_product: bool = True) -> Callable[[Settings, torch.device], System]:
    """Return what builds the model of a method here, and what trains of it."""

    def make(settings: Settings, where: torch.device) -> System:
        resolved = device.resolved(replace(settings, method=method, one_product=one_product).resolved(), where)
        model = build(resolved, CLASSES, task_of(resolved).inputs).model
        return model, trainable_state.trainable(model)

    return make


def plain(settings: Settings, where: torch.device) -> MeanPooledClassifier:
    """Return the model as transformers makes it, under the same pooling and output layer."""
    dtype = getattr(torch, settings.dtype)
    attention = device.choose_attention(settings.attention, where, settings.dtype)
    encoder = AutoModel.from_pretrained(source_of(settings.model), dtype=dtype, attn_implementation=attention)
    return pooled(encoder, "mean", CLASSES).to(where, dtype)


def pefts(frozen_A: bool) -> Callable[[Settings, torch.device], System]:
    """Return what builds the same model under PEFT's LoRA, of the same rank on the same layers."""

    def make(settings: Settings, where: torch.device) -> System:
        model = plain(settings, where)
        names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "output"]
        config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=names)
        adapted = get_peft_model(model, config).eval()
        # Not by modules_to_save: it goes by the end of a name, and would train every "….output" of the encoder too.
        model.output.requires_grad_(True)
        trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
        if len(trained) != 2 * len(names) + 2:
            raise RuntimeError(f"PEFT trains {len(trained)} matrices, expected {2 * len(names) + 2}")
        return adapted, {name: p for name, p in trained.items() if not (frozen_A and ".lora_A." in name)}

    return make


def bare(settings: Settings, where: torch.device) -> System:
    """Return the frozen model, whose words' vectors alone want a gradient, so that it goes the whole way back."""
    model = plain(settings, where).eval()
    model.get_input_embeddings().register_forward_hook(lambda _layer, _given, out: out.detach().requires_grad_())
    return model, {}


SYSTEMS: dict[str, Callable[[Settings, torch.device], System]] = {
    "B only": ours("asymmetric"),
    "B only, two products": ours("asymmetric", one_product=False),
    "LoRA": ours("lora"),
    "LoRA, two products": ours("lora", one_product=False),
    YARDSTICK: pefts(frozen_A=False),
    "PEFT LoRA, A frozen": pefts(frozen_A=True),
    "full": ours("full"),
    "bare": bare,
}


def stepper(
    system: System, inputs: Mapping[str, Tensor], labels: Tensor, autocast: Any, steps: int
) -> Callable[[], float]:
    """Return what does some steps and returns the milliseconds that one took."""
    model, parameters = system
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in parameters)
    optimizer = torch.optim.AdamW([*parameters.values()], lr=1e-4) if parameters else None
    where = device.device_of(model)

    def step() -> float:
        wait(where)
        began = time.perf_counter()
        for _ in range(steps):
            if optimizer:
                optimizer.zero_grad(set_to_none=True)
            with autocast:
                logits = model(**inputs).logits
            F.cross_entropy(logits.float(), labels).backward()
            if optimizer:
                optimizer.step()
        wait(where)
        return 1e3 * (time.perf_counter() - began) / steps

    return step


def measure(
    settings: Settings, where: torch.device, examples: int, tokens: int, repeats: int, systems: tuple[str, ...]
) -> dict[str, Any]:
    """Let systems do steps in turn, some times, on one thread of a CPU; the first turn does not count.

    Args:
        settings: model, rank, dtype and device, of whatever method.
        where: the device.
        examples: of a batch.
        tokens: of each example.
        repeats: turns that count, two at least.
        systems: names of them.

    Returns:
        By system the median and quartiles of a step's milliseconds, and how often it goes into the yardstick's, if
        that is among them.
    """
    settings = device.resolved(settings, where)
    device.prepare(where, 1, settings.deterministic)
    made = {name: SYSTEMS[name](settings, where) for name in systems}
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20_000, (examples, tokens), generator=rng)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["labels"] = torch.arange(examples) % CLASSES
    placed = device.place(batch, where)
    labels = placed.pop("labels")
    autocasts = {name: device.autocast(where, settings.dtype if name == "full" else "float32") for name in systems}
    many = 1 if where.type == "cpu" else 5  # a GPU's steps are short
    steps = {name: stepper(system, placed, labels, autocasts[name], many) for name, system in made.items()}
    order = random.Random(0)
    turns = [order.sample(systems, len(systems)) for _ in range(repeats + 1)]  # the first does not count
    taken = [{name: steps[name]() for name in turn} for turn in turns][1:]
    found: dict[str, Any] = {"examples": examples, "tokens": tokens, "rank": settings.rank, "dtype": settings.dtype}
    for name in systems:
        low, middle, high = statistics.quantiles([turn[name] for turn in taken], n=4)
        found[name] = {
            "median_ms": round(middle, 2),
            "quartiles_ms": [round(low, 2), round(high, 2)],
        }
        if YARDSTICK in systems:
            ratio = statistics.median(turn[YARDSTICK] / turn[name] for turn in taken)
            found[name]["times_as_fast_as_peft_lora"] = round(ratio, 3)
    return found


def main() -> None:
    """Measure every case."""
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="auto", help="as in the setting (default: %(default)s)")
    parser.add_argument("--batches", nargs="+", default=["16x32", "16x128", "4x512"], metavar="EXAMPLESxTOKENS")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--repeats", type=int, default=9, help="(default: %(default)s)")
    told = parser.parse_args()
    if told.repeats < 2:
        parser.error(f"--repeats {told.repeats}: quartiles need 2 at least")
    where = device.choose_device(told.device)
    for dtype in dict.fromkeys(("float32", device.choose_dtype("auto", where))):
        for rank in told.ranks:
            for batch in told.batches:
                words = [f"rank={rank}", f"alpha={2 * rank}", f"dtype={dtype}", f"device={told.device}"]
                settings = read_settings(None, words, Path("runs/unused"))
                examples, tokens = map(int, batch.split("x"))
                line = {"benchmark": "step", **machine("torch", "transformers", "peft")}
                line |= {"device": device.name_of(where), "model": "MiniLM"}
                say(line | measure(settings, where, examples, tokens, told.repeats, (*SYSTEMS,)), told.out)


if __name__ == "__main__":
    main()
