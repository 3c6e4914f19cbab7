"""Whether a long run of short rounds grows: memory, descriptors, threads, the run folder; see --out.

Ten clients of a tiny BERT in this process, one local step each, some rounds a second. The record grows by a line a
round, by design; it is counted apart. Slopes are least squares over the second half, when caches are full.
"""

import json
import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.result_line import machine, make_parser, say

TRIAL, CLIENTS = 20, 10  # rounds by which the number of rounds is set; clients


def sample(run: Path) -> dict[str, float]:
    """Return what this process and a run folder hold now."""
    process, sizes = psutil.Process(), {}
    for path in run.rglob("*"):
        try:
            sizes[path.relative_to(run).as_posix()] = path.stat().st_size
        except FileNotFoundError:  # it is replaced at this moment
            continue
    record = sizes.pop("rounds.jsonl", 0)
    return {
        "rounds": record and (run / "rounds.jsonl").read_bytes().count(b"\n"),
        "resident_mb": process.memory_info().rss / 1e6,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "files": len(sizes),
        "folder_kb": sum(sizes.values()) / 1e3,
        "record_kb": record / 1e3,
    }


def watched(run: Path, every: float, done: threading.Event) -> list[dict[str, float]]:
    """Take a sample every so many seconds until the run is over."""
    found = []
    while not done.wait(every):
        found.append(sample(run))
    return found


def measure(minutes: float) -> dict[str, Any]:
    """Run short rounds for about so many minutes and return the samples and their slopes for a thousand rounds."""
    from dataclasses import replace

    from simulations.engines.in_process import run_local
    from tests.world import make_data, make_model, tiny_settings

    logging.getLogger("fedasym").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_model(root / "model")
        make_data(root / "data")
        settings = tiny_settings(
            root, num_clients=CLIENTS, num_rounds=TRIAL, local_steps=1, batch_size=4, split="iid", min_examples=1,
            eval_every=100, out=str(root / "trial"),
        )  # fmt: skip
        run_local(replace(settings, num_rounds=2, out=str(root / "first")), 1)
        began = time.monotonic()
        run_local(settings, 1)
        rounds = max(TRIAL, round(TRIAL * 60 * minutes / (time.monotonic() - began)))
        done, samples = threading.Event(), []
        watch = threading.Thread(
            target=lambda: samples.extend(watched(root / "run", 60.0 if minutes > 10 else 6.0, done))
        )
        watch.start()
        began = time.monotonic()
        try:
            run_local(replace(settings, num_rounds=rounds, eval_every=rounds, out=str(root / "run")), 1)
        finally:
            done.set()
            watch.join()
        lines = [json.loads(line) for line in (root / "run" / "rounds.jsonl").read_text().splitlines()]
    late = samples[len(samples) // 2 :]
    x = np.array([each["rounds"] for each in late]) / 1000
    keys = ("resident_mb", "descriptors", "threads", "files", "folder_kb")
    return {
        "clients": CLIENTS,
        "rounds": len(lines),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "lost": sum(row["clients_asked"] - row["clients_valid"] for row in lines),
        "slope_per_1000_rounds": {
            key: round(float(np.polyfit(x, [each[key] for each in late], 1)[0]), 3) for key in keys
        },
        "samples": [{key: round(value, 1) for key, value in each.items()} for each in samples],
    }


def main() -> None:
    """Measure, and print one line."""
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    say(
        {"benchmark": "endurance", **machine("torch", "flwr"), "pid": os.getpid(), **measure(options.minutes)},
        options.out,
    )


if __name__ == "__main__":
    main()
