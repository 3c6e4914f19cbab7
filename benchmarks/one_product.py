"""One adapted linear layer, forward and backward, by one product with W + s B A or by two: one JSON line a layer.

One thread, float32, B trained, the input wanting a gradient. A line has, for multiples of the rows at which making
W + s B A costs as many multiplications as it spares (d_in d_out / (d_in + 2 d_out)), the rows and how many times as
fast one product is: the median and the quartiles over pairs measured in alternation. What `fedasym.adapters.layers`
goes by (`ONE_PRODUCT_FROM`) is read from these.
"""

import statistics
import time

import torch
from torch import nn

from benchmarks.cohort import wait
from benchmarks.result_line import machine, make_parser, say
from fedasym.adapters import layers
from fedasym.models import device

SHAPES = ((64, 64), (128, 128), (384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (2048, 2048))
MULTIPLES = (0.5, 1, 2, 4, 16)


def ratios(d_in: int, d_out: int, rank: int, rows: int, where: torch.device, seconds: float) -> list[float]:
    """Return how many times as fast one product is, pair by pair, for some seconds and at least nine pairs."""
    rng = torch.Generator().manual_seed(0)
    base = nn.Linear(d_in, d_out).requires_grad_(False).to(where)
    A, x, gradient = (
        torch.randn(*size, generator=rng).to(where) for size in ((rank, d_in), (rows, d_in), (rows, d_out))
    )
    x.requires_grad_()
    made = {
        one: layers.adapted(base, A, torch.zeros(d_out, rank, device=where), 2.0, "B", one) for one in (True, False)
    }

    def step(one: bool) -> float:
        wait(where)
        began = time.perf_counter()
        made[one](x).backward(gradient)
        wait(where)
        taken = time.perf_counter() - began
        made[one].B.grad = x.grad = None
        return taken

    step(True), step(False)
    pairs, end = [], time.perf_counter() + seconds
    while len(pairs) < 9 or time.perf_counter() < end:
        pairs.append((step(True), step(False)) if len(pairs) % 2 else (step(False), step(True))[::-1])
    return [two / one for one, two in pairs]


def main() -> None:
    """Measure every layer."""
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="cpu", help="as in the setting (default: %(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--seconds", type=float, default=0.7, help="of each case (default: %(default)s)")
    told = parser.parse_args()
    where = device.choose_device(told.device)
    device.prepare(where, 1, deterministic=False)
    begins, layers.ONE_PRODUCT_FROM = layers.ONE_PRODUCT_FROM, 0
    for rank in told.ranks:
        for d_in, d_out in SHAPES:
            line = {"benchmark": "one_product", **machine("torch"), "device": device.name_of(where), "dtype": "float32"}
            line |= {"d_in": d_in, "d_out": d_out, "rank": rank, "begins": begins, "multiples": list(MULTIPLES)}
            counts = [max(1, round(multiple * d_in * d_out / (d_in + 2 * d_out))) for multiple in MULTIPLES]
            found = [statistics.quantiles(ratios(d_in, d_out, rank, rows, where, told.seconds), n=4) for rows in counts]
            line |= {"rows": counts, "times_as_fast": [round(middle, 3) for _, middle, _ in found]}
            say(line | {"quartiles": [[round(low, 3), round(high, 3)] for low, _, high in found]}, told.out)


if __name__ == "__main__":
    main()
