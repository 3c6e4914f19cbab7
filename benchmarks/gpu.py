"""The demo on this machine's GPU: same bits, accuracy, kill and resume, memory, and steps per second; see --out.

`make check-gpu` runs it, at most 4 minutes on a GPU. ``--device cpu --small`` tries all of it on a machine without one.
In one process, like `python -m simulations run`:

* A has the golden bits, and those it was drawn with after it was moved to the device and back;
* two runs of the demo end with the same digest, one of them killed after its first round and started again;
* the demo's accuracy is at least 0.76;
* local steps per second of B only on the device, on the CPU, and of PEFT's LoRA on the device, and the peak of memory;
* a step of 16 clients in one pass beside one client after another (`benchmarks/cohort.py`).
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

from benchmarks.cohort import compare
from benchmarks.result_line import make_parser, say
from fedasym.adapters import trainable_state
from fedasym.adapters.projection import fingerprint, frozen_A
from fedasym.data.examples import load_examples
from fedasym.models import device
from fedasym.models.build import build
from fedasym.models.model_files import source_of
from fedasym.models.pooling import pooled
from fedasym.runs.record import read_json, read_rounds, versions
from fedasym.settings import Settings
from fedasym.tasks import task_of
from simulations.run import read_settings

ROOT = Path(__file__).resolve().parents[1]
# Of tests/adapters/test_projection.py, orthonormal.
GOLDEN = "6decda52d6efccbe54a2cac2874df5d9e2f7d7145d41235b03c74dc2e1a2b38a"
LEAST_ACCURACY = 0.76  # tests/simulations/test_demo.py
LENGTH = 32  # tokens of a timed batch of 16


def check_A(where: torch.device) -> bool:
    """Say whether A has its golden bits here, and the same after a way to the device and back."""
    drawn = {d: frozen_A(2024, f"layer.{d}", 7, int(d), "orthonormal") for d in ("301", "1024")}
    moved = {name: torch.from_numpy(A).to(where).cpu().numpy() for name, A in drawn.items()}
    return fingerprint(drawn, "orthonormal") == fingerprint(moved, "orthonormal") == GOLDEN


def federate(out: Path, overrides: list[str], kill_after: int = 0) -> None:
    """Run the demo's federation in a process of its own; kill it after a round and start it again, if asked."""
    words = [f"--set={each}" for each in overrides]
    command = [sys.executable, "-m", "simulations", "run", "simulations/configs/asymmetric.toml", *words]
    command += ["--out", str(out)]
    if kill_after:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while len(read_rounds(out)) < kill_after and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        if len(read_rounds(out)) >= read_settings(None, overrides, out).num_rounds:
            raise RuntimeError(f"the run in {out} was over before it was killed; give it more rounds")
    subprocess.run(command, cwd=ROOT, check=True)


def steps_per_second(model: nn.Module, parameters: Mapping[str, nn.Parameter], batch: Any, repeats: int) -> float:
    """Return local steps (forward, backward, SGD) a second: the median of some runs, after one that is not counted."""
    inputs, labels = batch
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    steps, taken = 5, []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(**inputs).logits.float(), labels)
            loss.backward()
            optimizer.step()
        loss.item()  # waits until the device has done it
        taken.append((time.perf_counter() - began) / steps)
    return 1 / statistics.median(taken[1:])


def ours(settings: Settings) -> tuple[nn.Module, dict[str, nn.Parameter], Any]:
    """Return B only on the setting's device, what trains of it, and a batch there."""
    examples, _ = load_examples(settings)
    inputs = task_of(settings).inputs
    built = build(settings, len(examples.class_names), inputs)
    encoded = inputs.encode(built.processor, examples, LENGTH)
    batch, labels = inputs.collate(built.processor, encoded, np.argsort(-encoded.lengths)[:16].tolist())
    where = device.device_of(built.model)
    placed = device.place({**batch, "labels": labels}, where)
    labels = placed.pop("labels")
    return built.model, trainable_state.trainable(built.model), (placed, labels)


def pefts(settings: Settings, where: torch.device) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Return the same model under PEFT's LoRA, of the same rank on the same layers."""
    dtype = getattr(torch, device.choose_dtype(settings.dtype, where))
    model = pooled(AutoModel.from_pretrained(source_of(settings.model), dtype=dtype), "mean", 2).to(where, dtype)
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "output"]
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=names, modules_to_save=["output"])
    adapted = get_peft_model(model, config).eval()
    return adapted, {name: p for name, p in adapted.named_parameters() if p.requires_grad}


def speeds(settings: Settings, where: torch.device, repeats: int) -> dict[str, Any]:
    """Return steps per second of B only on the device and the CPU and of PEFT's LoRA, and the peak of memory."""
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    model, parameters, batch = ours(settings)
    found: dict[str, Any] = {"steps_per_second": steps_per_second(model, parameters, batch, repeats)}
    if where.type == "cuda":
        found["peak_memory_bytes"] = torch.cuda.max_memory_allocated(where)
    found["steps_per_second_peft_lora"] = steps_per_second(*pefts(settings, where), batch, repeats)
    found["cohort"] = compare(device.resolved(settings, where), 16 if repeats > 1 else 2, max(2, repeats))
    cpu = read_settings(None, ["device=cpu"], Path(settings.out)).resolved()
    found["steps_per_second_cpu"] = steps_per_second(*ours(cpu), repeats)
    return found


def main() -> None:
    """Check and measure, print one line, and fail if a check does."""
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, mps, or cpu to try it (default: %(default)s)")
    parser.add_argument(
        "--small", action="store_true", help="few steps and examples, to try it; accuracy is not judged"
    )
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    overrides = [f"device={options.device}"]
    if options.small:
        overrides += ["num-clients=3", "num-rounds=2", "local-steps=1", "test-cap=50"]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        settings = read_settings(None, overrides, Path(work) / "timed").resolved()
        where = device.choose_device(options.device)
        print(f"on {device.describe(where, device.choose_dtype('auto', where))}", flush=True)
        one, two = Path(work) / "one", Path(work) / "two"
        federate(one, overrides)
        federate(two, overrides, kill_after=1)
        summaries = [read_json(folder / "summary.json") for folder in (one, two)]
        line = {
            "what": "small trial" if options.small else "gpu",
            "device": device.name_of(where),
            "dtype": read_json(one / "config.json")["settings"]["dtype"],
            "golden_A": check_A(where),
            "same_digest_killed_and_resumed": summaries[0]["digest"] == summaries[1]["digest"],
            "digest": summaries[0]["digest"],
            "accuracy": summaries[0]["final"],
            "seconds_by_round": [row["seconds"] for row in read_rounds(one)],
            **speeds(settings, where, 1 if options.small else 7),
            "seconds": round(time.perf_counter() - began, 1),
            "versions": versions(),
        }
    say(line, options.out)
    checks: dict[str, Callable[[], bool]] = {
        "A does not have its golden bits": lambda: line["golden_A"],
        "a run that was killed and resumed ends with other bits": lambda: line["same_digest_killed_and_resumed"],
        f"accuracy is below {LEAST_ACCURACY}": lambda: options.small or line["accuracy"] >= LEAST_ACCURACY,
    }
    if failed := [text for text, holds in checks.items() if not holds()]:
        raise SystemExit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
