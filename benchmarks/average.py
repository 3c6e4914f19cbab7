"""Throughput of the exact mean beside Flower's own aggregation of the same replies. One JSON line; see --out.

Both run in this process, in turn, on the same Flower replies; the time of the exact mean includes reading and checking
the arrays in the records as the server does, Flower's reading them its own way. GB are 1e9 bytes of incoming float32.

The worst that replies can do to the exact mean is to lay it beside a tie everywhere, with values that cancel, or to go
up and down between magnitudes; both are timed against as many usual replies.
"""

import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from benchmarks.result_line import machine, make_parser, say
from fedasym.aggregation.exact import ExactMean
from fedasym.wire import records


def make_replies(count: int, size: int) -> list[RecordDict]:
    """Return replies of one ``(size,)`` float32 matrix, as small as a B is, with some 700 examples each."""
    rng = np.random.default_rng(0)
    replies = []
    for _ in range(count):
        B = rng.standard_normal(size, np.float32) * np.float32(0.02)
        replies.append(_reply(int(rng.integers(600, 800)), B))
    return replies


def colluding_replies(size: int) -> list[RecordDict]:
    """Return five replies whose values cancel and leave every mean 2^-100 off a tie, or on it."""
    rng = np.random.default_rng(1)
    honest = rng.normal(size=size).astype(np.float32)
    spacing = np.spacing(np.abs(honest))
    large = np.full(size, 2.0**60, np.float32)
    off = (rng.choice([-1.0, 0.0, 1.0], size) * 2.0**-100).astype(np.float32)
    replies = [(1, honest), (1, honest + spacing), (1, large), (1, -large), (4, off)]
    return [_reply(weight, B) for weight, B in replies]


def jumping_replies(size: int) -> list[RecordDict]:
    """Return five replies of magnitudes far above and far below one another."""
    rng = np.random.default_rng(2)
    return [
        _reply(1, np.ldexp(rng.normal(size=size), 60 * (i % 2) + 40 * (i // 2)).astype(np.float32)) for i in range(5)
    ]


def _reply(weight: int, B: np.ndarray) -> RecordDict:
    return RecordDict(
        {"matrices": ArrayRecord({"packed": Array(B)}), "metrics": MetricRecord({"num-examples": weight})}
    )


def exact_mean(replies: list[RecordDict]) -> np.ndarray:
    """Average with `ExactMean`."""
    total, schema = ExactMean(), (("B", replies[0]["matrices"]["packed"].shape),)
    for reply in replies:
        total.add(reply["metrics"]["num-examples"], records.unpack(reply, schema))
    return total.mean()["B"]


def flower_mean(replies: list[RecordDict]) -> np.ndarray:
    """Average with Flower's FedAvg aggregation."""
    return aggregate_arrayrecords(replies, "num-examples")["packed"].numpy()


def seconds_to_run(mean: Callable[[list[RecordDict]], np.ndarray], replies: list[RecordDict]) -> float:
    """Return the time of one aggregation, in seconds."""
    start = time.perf_counter()
    mean(replies)
    return time.perf_counter() - start


def memory(count: int, size: int) -> tuple[float, float]:
    """Return the bytes that the exact mean holds for each value after usual replies, and at most at its result."""
    total, replies = ExactMean(), make_replies(count, size)
    tracemalloc.start()
    for reply in replies:
        total.add(reply["metrics"]["num-examples"], {"B": reply["matrices"]["packed"].numpy()})
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    total.result()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / size, most / size


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
    fives = {"usual": make_replies(5, size), "colluding": colluding_replies(size), "jumping": jumping_replies(size)}
    rounds = [{kind: seconds_to_run(exact_mean, five) for kind, five in fives.items()} for _ in range(3)]
    fastest = {kind: min(each[kind] for each in rounds) for kind in fives}
    incoming = count * size * 4 / 1e9
    held, most = memory(20 * count, size // 4)
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
        "bytes_held_a_value": round(held, 1),
        "most_bytes_a_value": round(most, 1),
        "worst_times_usual": {kind: round(fastest[kind] / fastest["usual"], 1) for kind in ("colluding", "jumping")},
    }
    say(result, arguments.out)


if __name__ == "__main__":
    main()
