"""Local steps of several clients in one pass beside those of one after another: one JSON line a case; see --out.

Cases: a BERT of one layer (hidden size 32) on batches of four, and MiniLM on batches of 4 and 16 reviews, each with 4
and 16 clients; one thread on a CPU. Both ways do the same work in alternation, some times; a line has the median and
the quartiles of the seconds of a client's step and the largest difference of what they end with, relative to the
largest change.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.result_line import machine, make_parser, say
from fedasym.adapters import trainable_state
from fedasym.data.examples import load_examples
from fedasym.models import device
from fedasym.models.build import build
from fedasym.settings import Settings
from fedasym.tasks import task_of
from fedasym.training.cohort import Member, train_together
from fedasym.training.loop import draw_batches, train_steps
from simulations.run import read_settings

STEPS = 2  # of each client


def wait(where: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if where.type != "cpu":
        torch.accelerator.synchronize(where)


def compare(settings: Settings, clients: int, repeats: int) -> dict[str, Any]:
    """Train clients one after another and in one pass, in alternation; return seconds of a client's step each way."""
    examples, _ = load_examples(settings)
    task, size = task_of(settings), 3 * settings.batch_size
    built = build(settings, task.outputs(examples.class_names), task.inputs)
    model, processor, where = built.model, built.processor, device.device_of(built.model)
    parameters = trainable_state.trainable(model)
    start, members = trainable_state.read(parameters), []
    for k in range(clients):
        own = examples.take(np.arange(k * size, (k + 1) * size) % len(examples))
        encoded = task.inputs.encode(processor, own, settings.max_length, settings.pooling)
        rng = np.random.default_rng(k)
        members.append(Member(start, encoded, draw_batches(encoded.lengths, settings.batch_size, STEPS, 0, rng)))
    taken: dict[str, list[float]] = {"alone": [], "together": []}
    for _ in range(repeats + 1):
        wait(where)
        began, alone = time.perf_counter(), []
        for member in members:
            trainable_state.load(parameters, member.start)
            train_steps(model, parameters, processor, member.encoded, member.batches, task, settings)
            alone.append(trainable_state.read(parameters))
        taken["alone"].append((time.perf_counter() - began) / clients / STEPS)
        began = time.perf_counter()
        ends = train_together(model, parameters, [*parameters], processor, members, task, settings)
        taken["together"].append((time.perf_counter() - began) / clients / STEPS)
    gap = max(
        float(np.abs(end[1][name] - matrices[name]).max() / np.abs(matrices[name] - start[name]).max())
        for end, matrices in zip(ends, alone, strict=True)
        if not isinstance(end, FloatingPointError)
        for name in start
    )
    found: dict[str, Any] = {"clients": clients, "batch_size": settings.batch_size, "largest_difference": gap}
    for way, seconds in taken.items():
        low, middle, high = statistics.quantiles(seconds[1:], n=4)  # the first of each way is not counted
        found[f"{way}_step_ms"] = {"median": 1e3 * middle, "quartiles": [1e3 * low, 1e3 * high]}
    found["times_as_fast"] = statistics.median(taken["alone"][1:]) / statistics.median(taken["together"][1:])
    return found


def cases(root: Path, on: str) -> list[tuple[str, Settings]]:
    """Return the settings of each case, by its model's name."""
    from tests.world import tiny_settings

    tiny = tiny_settings(root, batch_size=4, device=on, out=str(root / "run"))
    minilm = [read_settings(None, [f"batch-size={b}", f"device={on}"], root / "run") for b in (4, 16)]
    return [("tiny BERT", tiny), ("MiniLM", minilm[0]), ("MiniLM", minilm[1])]


def main() -> None:
    """Measure every case."""
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="auto", help="as in the setting (default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 16], metavar="N")
    parser.add_argument("--repeats", type=int, default=5, help="of each way (default: %(default)s)")
    told = parser.parse_args()
    where = device.choose_device(told.device)
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in cases(Path(folder), told.device):
            for clients in told.clients:
                resolved = device.resolved(settings.resolved(), where)
                device.prepare(where, 1, resolved.deterministic)
                line = {"benchmark": "cohort", **machine("torch"), "device": device.name_of(where)}
                line |= {"dtype": resolved.dtype, "model": name}
                say(line | compare(resolved, clients, told.repeats), told.out)


if __name__ == "__main__":
    main()
