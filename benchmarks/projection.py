"""How long it takes to draw the frozen A of a whole model. One JSON line; see --out."""

import time
from typing import Any

from benchmarks.result_line import machine, make_parser, say
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
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="draws of each; the fastest counts")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "projection",
        "unit": "seconds",
        **machine("numpy"),
        "repeats": arguments.repeats,
    }
    for model, (layers, d_in, rank) in MODELS.items():
        result[model] = {kind: round(seconds_to_draw(layers, d_in, rank, kind, arguments.repeats), 4) for kind in KINDS}
    say(result, arguments.out)


if __name__ == "__main__":
    main()
