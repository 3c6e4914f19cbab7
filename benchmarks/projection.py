"""How long it takes to draw the frozen A of a whole model. One JSON line; see --out."""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np

from fedasym.adapters.projection import KINDS, frozen_A

MODELS = {  # query and value projections: layers, d_in, r
    "q,v of 32 layers, d=4096, r=32": (32, 4096, 32),
    "q,v of RoBERTa-large, 24 layers, d=1024, r=8": (24, 1024, 8),
}


def seconds_to_draw(layers: int, d_in: int, rank: int, kind: str, repeats: int) -> float:
    """Return the fastest of some draws of ``2 * layers`` matrices, in seconds."""
    times = []
    for seed in range(repeats):
        start = time.perf_counter()
        for layer in range(layers):
            for name in ("q", "v"):
                frozen_A(seed, f"layer.{layer}.{name}", rank, d_in, kind)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure every kind on every model and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="append the line to this file too")
    parser.add_argument("--repeats", type=int, default=3, help="draws of each; the fastest counts")
    arguments = parser.parse_args()
    result = {
        "benchmark": "projection",
        "unit": "seconds",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "repeats": arguments.repeats,
    }
    for model, (layers, d_in, rank) in MODELS.items():
        result[model] = {}
        for kind in KINDS:
            result[model][kind] = round(seconds_to_draw(layers, d_in, rank, kind, arguments.repeats), 4)
    line = json.dumps(result)
    print(line)
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
