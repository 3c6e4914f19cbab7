"""Throughput of the exact mean beside Flower's own aggregation of the same replies. One JSON line; see --out.

Both run in this process, in turn, on the same Flower replies; the time of the exact mean includes
reading the arrays out of the records, as Flower's does. GB are 1e9 bytes of incoming float32.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from benchmarks.result_line import machine, make_parser, say
from fedasym.aggregation.exact import ExactMean


def make_replies(count: int, size: int) -> list[RecordDict]:
    """Return replies of one ``(size,)`` float32 matrix, as small as a B is, with some 700 examples each."""
    rng = np.random.default_rng(0)
    replies = []
    for _ in range(count):
        B = rng.standard_normal(size, np.float32) * np.float32(0.02)
        metrics = MetricRecord({"num-examples": int(rng.integers(600, 800))})
        replies.append(RecordDict({"arrays": ArrayRecord({"B": Array(B)}), "metrics": metrics}))
    return replies


def exact_mean(replies: list[RecordDict]) -> np.ndarray:
    """Average with `ExactMean`."""
    total = ExactMean()
    for reply in replies:
        matrices = {name: array.numpy() for name, array in reply["arrays"].items()}
        total.add(reply["metrics"]["num-examples"], matrices)
    return total.mean()["B"]


def flower_mean(replies: list[RecordDict]) -> np.ndarray:
    """Average with Flower's FedAvg aggregation."""
    return aggregate_arrayrecords(replies, "num-examples")["B"].numpy()


def seconds_to_run(mean: Callable[[list[RecordDict]], np.ndarray], replies: list[RecordDict]) -> float:
    """Return the time of one aggregation, in seconds."""
    start = time.perf_counter()
    mean(replies)
    return time.perf_counter() - start


def main() -> None:
    """Measure both in turn and print one line."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="runs of each, in turn; the median counts")
    arguments = parser.parse_args()
    count, size = 10, 4_000_000
    replies = make_replies(count, size)
    difference = np.abs(exact_mean(replies) - flower_mean(replies)).max()  # warms both up, too
    times = [(seconds_to_run(exact_mean, replies), seconds_to_run(flower_mean, replies))
             for _ in range(arguments.repeats)]  # fmt: skip
    exact, flower = (statistics.median(column) for column in zip(*times, strict=True))
    incoming = count * size * 4 / 1e9
    result = {
        "benchmark": "average",
        "unit": "GB/s of incoming float32",
        **machine("numpy", "flwr"),
        "replies": count,
        "values": size,
        "repeats": arguments.repeats,
        "exact": round(incoming / exact, 3),
        "flower": round(incoming / flower, 3),
        "times_flowers_time": round(exact / flower, 2),
        "largest_difference": float(difference),
    }
    say(result, arguments.out)


if __name__ == "__main__":
    main()
