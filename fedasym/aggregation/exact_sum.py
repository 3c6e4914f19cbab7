"""Exact sums of integer multiples of float32 vectors, and their quotient by an integer, rounded once.

Every product ``n_k · b`` of a 29-bit integer and a float32 is a float64 without rounding. Most of them are simply
added up: for each block of values a *grid* 2^g is chosen by the first reply, such that float64 sums of multiples of it
are exact for about 128 such replies. Only products that are no multiples of the grid (of values far below the block's
largest), and sums that leave its range, go into *bins*: the real line is cut into bins 32 bits wide, and bin i holds
multiples of 2^(32 i - 149). Adding and subtracting ``1.5 · 2^(k+52)`` rounds a float64 to a multiple of 2^k without
error in the remainder, so a product is split exactly into its parts, and each bin's float64 sum of such parts is exact
for 2^20 additions; then carries are moved up, exactly again. There are at most 11 bins. (The idea of pre-rounded bins:
Demmel & Nguyen 2015, "Parallel Reproducible Summation"; Collange et al. 2015.) The mean divides once and rounds once;
where that rounding could be wrong, which an error bound tells, the quotient is compared with the middle of two float32
in such bins, so no value costs more than a few vector passes, whoever chose it.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fedasym.ops.processes import cores

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_LOWEST = -149  # every float32 is a multiple of 2^-149
_WIDTH = 32  # bits per bin
_WEIGHT_BITS = 29  # 29-bit weight x 24-bit mantissa fits float64's 53 bits
_BLOCK = 1 << 16  # elements handled at once: their float64 temporaries stay in the cache
_ROOM_BITS = 7  # a grid leaves room for sums of 2^7 products as large as the first reply's largest
_ALONE = 4  # blocks that are not worth a second thread
_FEW = 8  # of a block's values at most one in 8 is picked out one by one; more are split as a whole
_ADDS_BEFORE_CARRY = 1 << (52 - _WIDTH)  # a bin's parts are at most 2^32 units, so sums stay below 2^53


class _Bins:
    """Exact sum of vectors of multiples of 2^-149; `bins` is sparse, highest exponent last."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.bins: dict[int, Float64] = {}

    def spread(self, rest: Float64, where: slice | NDArray[np.intp]) -> None:
        """Add a vector to some places of the bins, each bin's part to it; uses up ``rest``."""
        largest = max(float(rest.max()), -float(rest.min()))
        if largest == 0.0:
            return
        index = max(0, (int(np.frexp(largest)[1]) - 1 - _LOWEST) // _WIDTH)
        part = np.empty_like(rest)
        while index > 0:
            _round_to_multiple(rest, _LOWEST + _WIDTH * index, out=part)
            rest -= part
            self.bin(index)[where] += part
            index -= 1
            if not rest.any():
                break
        else:
            self.bin(0)[where] += rest

    def bin(self, index: int) -> Float64:
        """Return a bin, empty at first; several threads may ask, each for places of its own."""
        if (found := self.bins.get(index)) is None:
            found = self.bins.setdefault(index, np.zeros(self.size))
        return found

    def carry(self) -> None:
        """Move what exceeds half a unit of the bin above into it, lowest first, without rounding."""
        over = np.empty(self.size)
        for index in sorted(self.bins):
            _round_to_multiple(self.bins[index], _LOWEST + _WIDTH * (index + 1), out=over)
            if over.any():
                self.bins[index] -= over
                self.bin(index + 1)[:] += over

    def highest_first(self) -> list[Float64]:
        """Return the bins, highest exponent first."""
        return [self.bins[index] for index in sorted(self.bins, reverse=True)]


class ExactSum:
    """Exact running sum of integer multiples of float32 vectors: a float64 vector on a grid, and bins for the rest."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._main = np.zeros(size)
        self._rest = _Bins(size)
        self._parts = 0  # that a bin's sum may hold since the last carry
        blocks = -(-size // _BLOCK)
        self._grids: list[int | None] = [None] * blocks  # g: a block's sums are multiples of 2^g
        self._used = [0] * blocks  # how large a block's sums can be, in units of 2^g

    def add(self, weight: int, values: Float32) -> None:
        """Add ``weight · values`` exactly, in pieces of at most `_WEIGHT_BITS` bits of weight."""
        shift = 0
        while weight >> shift:
            part = (weight >> shift) & ((1 << _WEIGHT_BITS) - 1)
            if part:
                self._add_products(float(part) * 2.0**shift, values)
            shift += _WEIGHT_BITS

    def merge(self, other: "ExactSum") -> None:
        """Add another sum of the same size, which stays as it is."""
        self._make_room(other._parts + 1)
        for index, values in other._rest.bins.items():
            self._rest.bin(index)[:] += values

        def work(blocks: Sequence[slice]) -> None:
            for block in blocks:
                self._rest.spread(other._main[block].copy(), block)

        _over_blocks(self.size, work)

    def divided_by(self, total: int) -> Float32:
        """Return the nearest float32 to sum / total, ties to even."""
        out, unsure = np.empty(self.size, np.float32), np.empty(self.size, np.bool_)
        bins = self._rest.highest_first()

        def work(blocks: Sequence[slice]) -> None:
            quotient = np.empty(_BLOCK)
            for block in blocks:
                unsure[block] = _rounded(self._main[block], total, out[block], quotient[: block.stop - block.start])
                for each in bins:
                    unsure[block] |= each[block] != 0.0

        def settle(blocks: Sequence[slice]) -> None:
            for block in blocks:
                some = places[block]
                out[some] = _nearest_quotient([self._main[some], *(each[some] for each in bins)], total)

        _over_blocks(self.size, work)
        places = np.flatnonzero(unsure)
        _over_blocks(len(places), settle)
        out += np.float32(0)  # -0 becomes +0: the rational zero has no sign
        return out

    def divided_by_64(self, total: int) -> Float64:
        """Return sum / total in float64, off by a few 1e-16 of its value, or of the largest part where parts cancel."""
        out, parts = np.empty(self.size), [self._main, *self._rest.highest_first()]

        def work(blocks: Sequence[slice]) -> None:
            for block in blocks:
                high, low, _ = _high_and_low([each[block] for each in parts])
                out[block] = (high + low) / total

        _over_blocks(self.size, work)
        return out

    def _add_products(self, factor: float, values: Float32) -> None:
        self._make_room(2)  # a block's products, and its sum on the grid

        def work(blocks: Sequence[slice]) -> None:
            products, magnitudes = np.empty(_BLOCK), np.empty(_BLOCK, np.float32)
            left: list[tuple[NDArray[np.intp], Float64]] = []
            for block in blocks:
                size = block.stop - block.start
                left += self._add_block(factor, values[block], block, products[:size], magnitudes[:size])
            if any(len(places) for places, _ in left):  # those of all blocks at once, for each alone are few
                places, rest = map(np.concatenate, zip(*left, strict=True))
                self._rest.spread(rest, places)

        _over_blocks(self.size, work)

    def _add_block(
        self, factor: float, values: Float32, block: slice, products: Float64, magnitudes: Float32
    ) -> list[tuple[NDArray[np.intp], Float64]]:
        """Add ``factor · values`` to a block, less what it returns: a few places, and the products that belong there.

        The last two arguments are space to work in.
        """
        largest = float(np.abs(values, out=magnitudes).max())
        if largest == 0.0:
            return []
        np.multiply(values, factor, out=products, dtype=np.float64)
        grid = self._fit_grid(block, factor * largest)
        small = np.flatnonzero(magnitudes < _multiples_from(grid))
        if len(small) * _FEW > len(values):
            small = small[values[small] != 0.0]
            if len(small) * _FEW > len(values):
                self._rest.spread(products, block)
                return []
        found = products[small]
        products[small] = 0.0
        self._main[block] += products
        return [(small + block.start, found)]

    def _fit_grid(self, block: slice, largest: float) -> int:
        """Return a grid on which a block's sum has room for products of at most this magnitude."""
        number = int(block.start) // _BLOCK
        grid = self._grids[number]
        if grid is not None:
            used = self._used[number] + int(largest * 2.0**-grid) + 1
            if used <= 1 << 53:
                self._used[number] = used
                return grid
            self._rest.spread(self._main[block], block)
            self._main[block] = 0.0
        exponent = int(np.frexp(largest)[1])  # largest < 2^exponent
        grid = self._grids[number] = max(exponent + _ROOM_BITS - 53, _LOWEST)
        self._used[number] = int(largest * 2.0**-grid) + 1
        return grid

    def _make_room(self, parts: int) -> None:
        """Let every bin's sum stay exact for so many more parts."""
        if self._parts + parts > _ADDS_BEFORE_CARRY:
            self._rest.carry()
            self._parts = 1  # each bin now holds at most one part's worth
        self._parts += parts


def _over_blocks(size: int, work: Callable[[Sequence[slice]], None]) -> None:
    """Do work on the blocks of a vector; of a long one on all cores, since numpy computes without Python's lock."""
    blocks = [slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)]
    if len(blocks) < _ALONE or (threads := min(cores(), len(blocks))) == 1:
        work(blocks)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, (blocks[turn::threads] for turn in range(threads))))


def _multiples_from(grid: int) -> float:
    """Return a magnitude from which on every float32 is a multiple of 2^grid; infinity where there is none."""
    if grid <= _LOWEST:
        return 0.0
    return 2.0 ** (grid + 23) if grid + 23 < 128 else math.inf


def _round_to_multiple(x: Float64, exponent: int, out: Float64) -> None:
    """Write x rounded to a multiple of 2^exponent into out; exact for |x| < 2^(exponent + 51)."""
    magic = 1.5 * 2.0 ** (exponent + 52)
    np.add(x, magic, out=out)
    out -= magic


def _rounded(high: Float64, total: int, out: Float32, quotient: Float64) -> NDArray[np.bool_]:
    """Write the nearest float32 to high / total; return where it may be another, since the quotient was rounded.

    Args:
        high: the sum.
        total: of the weights.
        out: to write to.
        quotient: space to work in.
    """
    np.divide(high, total, out=quotient)
    np.multiply(quotient, 1.0 + 2.0**-51, out=out, dtype=np.float64, casting="same_kind")
    unsure: NDArray[np.bool_] = out != (quotient * (1.0 - 2.0**-51)).astype(np.float32)
    return unsure


def _nearest_quotient(parts: list[Float64], total: int) -> Float32:
    """Round (Σ parts) / total to float32 correctly: fast with a bound, in bins where in doubt.

    ``high / total`` is off by at most its own rounding and the parts' errors, ``slack / total``. If both ends of that
    interval round to the same float32, so does the truth.
    """
    high, _, slack = _high_and_low(parts)
    quotient = high / total
    # 2^-51 and the factor 2 are roomy: they also cover the rounding of slack and of these lines.
    doubt = np.abs(quotient) * 2.0**-51 + 2.0 * slack / total
    nearest = (quotient - doubt).astype(np.float32)
    unsure = np.flatnonzero(nearest != (quotient + doubt).astype(np.float32))
    if unsure.size:
        nearest[unsure] = _settled([part[unsure] for part in parts], total)
    return nearest


def _high_and_low(parts: list[Float64]) -> tuple[Float64, Float64, Float64]:
    """Return the float64 sum of parts, the sum of its errors (TwoSum, Knuth), and that of their magnitudes."""
    high, low, slack = (np.zeros_like(parts[0]) for _ in range(3))
    for part in parts:
        added = high + part
        back = added - high
        error = (high - (added - back)) + (part - back)
        low += error
        slack += np.abs(error)
        high = added
    return high, low, slack


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
    total = _Bins(len(parts[0]))
    for part in parts:
        total.spread(part.copy(), slice(None))
    total.carry()
    return total.highest_first()
