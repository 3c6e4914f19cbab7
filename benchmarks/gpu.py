"""The demo on this machine's GPU: same bits, accuracy, kill and resume, memory, and a step's time; see --out.

`make check-gpu` runs it, at most 4 minutes on a GPU. ``--device cpu --small`` tries all of it on a machine without one.
In one process, like `python -m simulations run`:

* A has the golden bits, and those it was drawn with after it was moved to the device and back;
* two runs of the demo end with the same digest, one of them killed after its first round and started again;
* the demo's accuracy is at least 0.76;
* a step of B only on the device and on the CPU beside PEFT's LoRA (`benchmarks/step.py`), and the peak of memory;
* a step of 16 clients in one pass beside one client after another (`benchmarks/cohort.py`).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cohort import compare
from benchmarks.result_line import make_parser, say
from benchmarks.step import SYSTEMS, YARDSTICK, measure
from fedasym.adapters.projection import fingerprint, frozen_A
from fedasym.models import device
from fedasym.runs.record import read_json, read_rounds, versions
from fedasym.settings import Settings
from simulations.run import read_settings

ROOT = Path(__file__).resolve().parents[1]
# Of tests/adapters/test_projection.py, orthonormal.
GOLDEN = "6decda52d6efccbe54a2cac2874df5d9e2f7d7145d41235b03c74dc2e1a2b38a"
LEAST_ACCURACY = 0.76  # tests/simulations/test_demo.py
BATCH = 16, 32  # examples and tokens of a timed step


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


def speeds(settings: Settings, where: torch.device, repeats: int) -> dict[str, Any]:
    """Return a step's milliseconds on the device and the CPU, beside PEFT's LoRA and in a cohort; the peak of memory.

    Args:
        settings: of the demo, not resolved.
        where: the device.
        repeats: steps, and turns of a cohort.
    """
    found: dict[str, Any] = {}
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
        measure(settings, where, *BATCH, repeats, ("B only",))
        found["peak_memory_bytes"] = torch.cuda.max_memory_allocated(where)
        device.free()
    found["step"] = measure(settings, where, *BATCH, repeats, (*SYSTEMS,))
    found["cohort"] = compare(device.resolved(settings.resolved(), where), 16 if repeats > 2 else 2, repeats)
    cpu = replace(settings, device="cpu")
    found["step_on_cpu"] = measure(cpu, torch.device("cpu"), *BATCH, repeats, ("B only", YARDSTICK))
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
        settings = read_settings(None, overrides, Path(work) / "timed")
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
            **speeds(settings, where, 2 if options.small else 7),
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
