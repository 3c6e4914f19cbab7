"""The exact weighted mean of float32 matrices, streamed.

The result is the float32 nearest to the true rational ``Σ n_k B_k / Σ n_k`` (ties to even), whatever
the order in which replies arrive, in memory that does not depend on how many there are.

How. Every product ``n_k · b`` of a 29-bit integer and a float32 is a float64 without rounding, and a
multiple of 2^-149. The real line of such products is cut into *bins* 32 bits wide: bin i holds
multiples of 2^(32 i - 149). Adding and subtracting ``1.5 · 2^(k+52)`` rounds a float64 to a multiple of
2^k without error in the remainder, so each product is split exactly into its parts, and each bin's
float64 sum of such parts is exact for 2^20 additions; then carries are moved up, exactly again. The number
of bins is at most 11, typically 3. (The idea of pre-rounded bins: Demmel & Nguyen 2015, "Parallel
Reproducible Summation"; Collange et al. 2015.) The mean divides once and rounds once; where that
rounding could be wrong, which an error bound tells, the quotient is compared with the middle of two float32 in
such bins, so no value costs more than a few vector passes, whoever chose it.

FedAvg's mean: McMahan et al. 2017 (arXiv 1602.05629). For B-only adapters it is also the exact mean of
the updates, since ``Σ w_k (B_k A) = (Σ w_k B_k) A``.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedasym.aggregation.require import require_alike, require_weight
from fedasym.plugins import without

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_LOWEST = -149  # every float32 is a multiple of 2^-149
_WIDTH = 32  # bits per bin
_WEIGHT_BITS = 29  # 29-bit weight x 24-bit mantissa fits float64's 53 bits
_BLOCK = 1 << 14  # elements handled at once: their float64 temporaries stay in the cache
_ADDS_BEFORE_CARRY = 1 << (52 - _WIDTH)  # a bin's parts are at most 2^32 units, so sums stay below 2^53


class ExactMean:
    """Accumulates weighted float32 matrices; `mean` is the nearest float32 to the rational mean.

    >>> total = ExactMean()
    >>> total.add(1, {"B": np.array([[1.0]], np.float32)})
    >>> total.add(2, {"B": np.array([[4.0]], np.float32)})
    >>> total.mean()["B"].tolist()
    [[3.0]]
    """

    single_replies = False

    def __init__(self) -> None:
        self.total_weight = 0  # examples
        self.count = 0  # replies
        self._sums: dict[str, _BinnedSum] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def begin(self, held: Mapping[str, Float32]) -> None:
        """Hear what the clients held at the start; the mean does not go by it."""

    def add(self, weight: int, matrices: Mapping[str, Float32]) -> None:
        """Add one reply. Nothing is added unless every matrix passes.

        Args:
            weight: n_k, a positive integer (examples).
            matrices: float32 arrays by name; the first call fixes names and shapes.

        Raises:
            TypeError: a weight that is not an integer, or a matrix that is not float32.
            ValueError: a weight below 1 or a total of 2^53 or more, no matrices, names or shapes that differ from
                the first reply's, or a value that is not finite.
        """
        weight = require_weight(weight)
        if self.total_weight + weight >= 1 << 53:
            raise ValueError(f"weights add up to {self.total_weight + weight}; keep their sum below 2**53")
        require_alike(matrices, self._shapes)
        if not self._sums:
            self._shapes = {name: matrix.shape for name, matrix in matrices.items()}
            self._sums = {name: _BinnedSum(matrix.size) for name, matrix in matrices.items()}
        for name, matrix in matrices.items():
            self._sums[name].add(weight, np.ascontiguousarray(matrix).reshape(-1))
        self.total_weight += weight
        self.count += 1

    def mean(self) -> dict[str, Float32]:
        """Return the nearest float32 to ``Σ n_k B_k / Σ n_k`` for every matrix.

        Raises:
            ValueError: nothing was added.
        """
        if not self._sums:
            raise ValueError("the mean of no replies does not exist; add at least one")
        return {
            name: total.divided_by(self.total_weight).reshape(self._shapes[name]) for name, total in self._sums.items()
        }

    def mean64(self) -> dict[str, Float64]:
        """Return the mean in float64, off by a few 1e-16 of its value, for meters of the float32 one.

        Like `mean` it does not depend on the order of arrival.
        """
        means = {}
        for name, total in self._sums.items():
            value = np.zeros(total.size)
            for index in sorted(total.bins):
                value += total.bins[index] / self.total_weight
            means[name] = value.reshape(self._shapes[name])
        return means

    def result(self) -> tuple[dict[str, Float32], dict[str, Float64]]:
        """Return `mean` and `mean64`."""
        return self.mean(), self.mean64()


def aggregator(parameter: str) -> ExactMean:
    """Return a new exact mean."""
    without(parameter)
    return ExactMean()


class _BinnedSum:
    """Exact running sum of integer multiples of float32 vectors; `bins` is sparse, highest exponent last."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.bins: dict[int, Float64] = {}
        self.adds = 0

    def add(self, weight: int, values: Float32) -> None:
        """Add ``weight · values`` exactly, in pieces of at most `_WEIGHT_BITS` bits of weight."""
        shift = 0
        while weight >> shift:
            part = (weight >> shift) & ((1 << _WEIGHT_BITS) - 1)
            if part:
                self._add_products(float(part) * 2.0**shift, values)
            shift += _WEIGHT_BITS

    def _add_products(self, factor: float, values: Float32) -> None:
        if self.adds == _ADDS_BEFORE_CARRY:
            self.carry()
        self.adds += 1
        for start in range(0, self.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            rest = values[block].astype(np.float64)
            rest *= factor
            self.spread(rest, block)

    def spread(self, rest: Float64, block: slice) -> None:
        """Add multiples of 2^-149 to a block of the bins, each bin's part to it; uses up ``rest``."""
        largest = max(float(rest.max()), -float(rest.min()))
        if largest == 0.0:
            return
        index = max(0, (int(np.frexp(largest)[1]) - 1 - _LOWEST) // _WIDTH)
        part = np.empty_like(rest)
        while index > 0:
            _round_to_multiple(rest, _LOWEST + _WIDTH * index, out=part)
            rest -= part
            self._bin(index)[block] += part
            index -= 1
            if not rest.any():
                break
        else:
            self._bin(0)[block] += rest

    def _bin(self, index: int) -> Float64:
        if index not in self.bins:
            self.bins[index] = np.zeros(self.size)
        return self.bins[index]

    def carry(self) -> None:
        """Move what exceeds half a unit of the bin above into it, lowest first, without rounding."""
        over = np.empty(self.size)
        for index in sorted(self.bins):
            _round_to_multiple(self.bins[index], _LOWEST + _WIDTH * (index + 1), out=over)
            if over.any():
                self.bins[index] -= over
                self._bin(index + 1)[:] += over
        self.adds = 1  # each bin now holds at most one addition's worth

    def divided_by(self, total: int) -> Float32:
        """Return the nearest float32 to sum / total, ties to even."""
        out = np.empty(self.size, np.float32)
        bins = [self.bins[index] for index in sorted(self.bins, reverse=True)]
        for start in range(0, self.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            out[block] = _nearest_quotient([each[block] for each in bins], total, len(out[block]))
        return out


def _round_to_multiple(x: Float64, exponent: int, out: Float64) -> None:
    """Write x rounded to a multiple of 2^exponent into out; exact for |x| < 2^(exponent + 51)."""
    magic = 1.5 * 2.0 ** (exponent + 52)
    np.add(x, magic, out=out)
    out -= magic


def _nearest_quotient(parts: list[Float64], total: int, size: int) -> Float32:
    """Round (Σ parts) / total to float32 correctly: fast with a bound, in bins where in doubt.

    ``high + Σ lows = Σ parts`` exactly (TwoSum, Knuth); ``high / total`` is then off by at most
    its own rounding and ``Σ |lows| / total``. If both ends of that interval round to the same float32, so
    does the truth.
    """
    high = np.zeros(size)
    slack = np.zeros(size)
    for part in parts:
        added = high + part
        back = added - high
        slack += np.abs((high - (added - back)) + (part - back))
        high = added
    quotient = high / total
    # 2^-51 and the factor 2 are roomy: they also cover the rounding of slack and of these lines.
    doubt = np.abs(quotient) * 2.0**-51 + 2.0 * slack / total
    nearest = (quotient - doubt).astype(np.float32)
    unsure = np.flatnonzero(nearest != (quotient + doubt).astype(np.float32))
    if unsure.size:
        nearest[unsure] = _settled([part[unsure] for part in parts], total)
    return nearest + np.float32(0)  # -0 becomes +0: the rational zero has no sign


def _settled(parts: list[Float64], total: int) -> Float32:
    """Round (Σ parts) / total to float32 correctly, however close to the middle of two float32 it is.

    From the digits of the sum a float64 quotient is right to about 2^-51. The only point that can then decide is the
    middle between the quotient's nearest float32 and the next one on the quotient's side, and on which side of it the
    truth lies is the sign of ``Σ parts - middle · total``, which digits give without rounding.
    """
    quotient = np.zeros_like(parts[0])
    for digit in reversed(_digits(parts)):
        quotient += digit
    quotient /= total
    largest = float(np.finfo(np.float32).max)  # a mean cannot be larger, its quotient by a rounding
    nearest = np.clip(quotient, -largest, largest).astype(np.float32)
    outwards = np.abs(quotient) > np.abs(nearest)
    other = np.nextafter(nearest, np.where(outwards, np.copysign(largest, quotient), 0.0).astype(np.float32))
    # Twice the middle is a multiple of 2^-149 of 25 bits: its products with 27 and with 26 bits are float64.
    twice = nearest.astype(np.float64) + other
    low = total & ((1 << 27) - 1)
    past = np.zeros_like(quotient)
    for digit in _digits([*(2.0 * part for part in parts), -twice * float(low), -twice * float(total - low)]):
        past = np.where(past == 0.0, digit, past)
    beyond = np.where(other > nearest, past, -past)
    odd = (nearest.view(np.uint32) & 1).astype(np.bool_)
    return np.where((beyond > 0.0) | ((beyond == 0.0) & odd), other, nearest)


def _digits(parts: list[Float64]) -> list[Float64]:
    """Return Σ parts in bins that hold at most half a unit of the next, highest first.

    All of the lower ones together are less than a unit of a higher one, so the highest that is not zero has the sign
    of the sum. Parts are multiples of 2^-149.
    """
    total = _BinnedSum(len(parts[0]))
    for part in parts:
        total.spread(part.copy(), slice(None))
    total.carry()
    return [total.bins[index] for index in sorted(total.bins, reverse=True)]
