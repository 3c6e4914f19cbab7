"""A from a seed: the frozen projection of every adapted layer, the same bits on every machine.

Law: A is a pure function of (seed, layer name, kind, d_in) and a row's number: the A of a smaller rank is the first
rows of the A of a larger one, so clients of different ranks share what they have in common. (``gaussian`` rows are
divided by the rank of their A; ``block`` deals the columns to r rows, so there each rank is a draw of its own.)
Integers come from NumPy's Philox raw stream (Salmon et al. 2011), whose bits NumPy promises; after that only IEEE-754
``+ - * / sqrt`` on float64 arrays, element by element in the order written here. No BLAS, no LAPACK, no library
reduction and no library transcendental lies between the seed and A, so neither the thread count, the CPU's vector width
nor a library version can move a bit. float32 is reached by one rounding at the end.

How close orthonormal rows are to the first rows of a random rotation: uniforms of 52 bits (2^-53 off in distribution)
and a normal quantile right to a relative 3e-15 give independent normals whose distribution function is within 1e-15
of the true one; Gram-Schmidt in float64 adds its roundings, of 1e-16 an operation; the rounding to float32, far the
largest step, moves an entry by at most 2^-25.

Why a random A may stay frozen: Zhu et al. 2024, "Asymmetry in Low-Rank Adapters of Foundation
Models" (arXiv 2402.16842).
"""

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedasym.rng import stream_key

KINDS = ("orthonormal", "kaiming", "gaussian", "block")
# How A is keyed, which the contract states: 2 since the key of a stream holds no rank; in 1 every rank was a draw of
# its own.
STREAM = 2

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]


def frozen_A(seed: int, layer: str, rank: int, d_in: int, kind: str = "orthonormal") -> Float32:
    """Draw the frozen projection A of one layer.

    Kinds (row norm squared in brackets):

    * ``orthonormal`` [1]: ``A A^T = I`` to 1e-6; rows are the first ``rank`` rows of a random rotation
      (Gram-Schmidt of independent normal rows is uniform on the Stiefel manifold). This is the law of
      the asymmetry paper's A_rand.
    * ``kaiming`` [1/3 in the mean]: uniform on ±1/sqrt(d_in), as PEFT and loralib initialise A.
    * ``gaussian`` [d_in/rank² in the mean]: independent normal entries with standard deviation
      ``1/rank``, PEFT's ``init_lora_weights="gaussian"``.
    * ``block`` [d_in/rank]: ``[I_r I_r ...]`` with columns permuted and signed; each column has
      exactly one entry ±1, so ``A x`` sums signed groups of features and costs no multiplication.

    Args:
        seed: the federation's common seed, any integer.
        layer: the layer's path in the model; each layer has a stream of its own.
        rank: r, the number of rows.
        d_in: the layer's input features, the number of columns.
        kind: one of `KINDS`.

    Returns:
        float32 array of shape ``(rank, d_in)``.

    Raises:
        ValueError: unknown kind, a size below 1, or ``rank > d_in`` for the kinds with
            independent rows (``orthonormal``, ``block``).

    >>> frozen_A(0, "layer", 2, 4, kind="block").shape
    (2, 4)
    """
    check_drawable(layer, rank, d_in, kind)
    raw = np.random.Philox(key=_key(seed, layer, kind, rank, d_in))
    if kind == "block":
        return _signed_permuted_block(raw, rank, d_in)
    bits = raw.random_raw(rank * d_in).reshape(rank, d_in)
    if kind == "orthonormal":
        return _orthonormal_rows(_normal(bits)).astype(np.float32)
    if kind == "gaussian":
        return (_normal(bits) / rank).astype(np.float32)
    return ((2.0 * _uniform(bits) - 1.0) / math.sqrt(d_in)).astype(np.float32)


def _key(seed: int, layer: str, kind: str, rank: int, d_in: int) -> int:
    """Return the key of an A's stream; see `STREAM`."""
    sizes = (rank, d_in) if kind == "block" else (d_in,)
    return stream_key(seed, "A", layer, kind, *sizes)


def check_drawable(layer: str, rank: int, d_in: int, kind: str) -> None:
    """Require a kind and a size for which A exists, without drawing it.

    Raises:
        ValueError: as `frozen_A`.
    """
    if kind not in KINDS:
        raise ValueError(f"layer {layer!r}: kind of A is {kind!r}; use one of {', '.join(KINDS)}")
    if rank < 1 or d_in < 1:
        raise ValueError(f"layer {layer!r}: rank {rank} and d_in {d_in} must both be at least 1")
    if rank > d_in and kind in ("orthonormal", "block"):
        raise ValueError(
            f"layer {layer!r}: rank {rank} exceeds d_in {d_in}, so {kind} rows do not exist; "
            f"lower rank to at most {d_in} or use kind='kaiming'"
        )


def seeded_normal(seed: int, name: str, shape: tuple[int, ...], std: float) -> Float32:
    """Draw normal float32 values of a named tensor, e.g. a new head's weight, by the same law as A.

    Args:
        seed: the federation's common seed.
        name: the tensor's path in the model.
        shape: its shape.
        std: standard deviation.

    Returns:
        float32 array of ``shape``, the same bits on every machine.
    """
    raw = np.random.Philox(key=stream_key(seed, "normal", name, *shape))
    return (_normal(raw.random_raw(math.prod(shape)).reshape(shape)) * std).astype(np.float32)


def fingerprint(matrices: Mapping[str, NDArray[np.generic]], kind: str) -> str:
    """Digest a set of named arrays: SHA-256 over names, shapes, dtypes, kind and bytes.

    Args:
        matrices: arrays by layer name; their order does not matter.
        kind: what they are, e.g. the kind of A.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(kind.encode() + b"\0")
    for name in sorted(matrices):
        array = np.asarray(matrices[name])
        digest.update(f"{name}\0{array.shape}\0{array.dtype.name}\0".encode())
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def _uniform(bits: NDArray[np.uint64]) -> Float64:
    """Map raw 64-bit integers to (k + 1/2) / 2^52 with k their top 52 bits: exact, never 0 or 1."""
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _polynomial(x: Float64, coefficients: tuple[float, ...]) -> Float64:
    """Evaluate a polynomial by Horner's rule, highest power first, one rounding per operation."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient  # two NumPy calls: no fused multiply-add can enter
    return value


def _log(x: Float64) -> Float64:
    """Natural logarithm of positive normal float64 by 2 atanh((m-1)/(m+1)) + e ln 2.

    ``frexp`` splits bits and is exact. With m in [sqrt(1/2), sqrt(2)) the series in z = (m-1)/(m+1),
    |z| <= 0.172, is cut below 1e-17; its error against the true logarithm is a few 1e-16.
    """
    m, e = np.frexp(x)
    low = m < 0.7071067811865476
    m, e = np.where(low, m * 2.0, m), np.where(low, e - 1, e)
    z = (m - 1.0) / (m + 1.0)
    series = _polynomial(z * z, tuple(1.0 / n for n in range(23, 0, -2)))
    return e * 0.6931471805599453 + 2.0 * z * series


# Wichura (1988), Algorithm AS 241 (PPND16), Applied Statistics 37(3): rational approximations of the
# normal quantile, relative error about 1e-16. Numerator and denominator, highest power first.
_CENTRE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4,
     4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3,
     1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4,
     2.1213794301586595867e4, 5.3941960214247511077e3, 6.8718700749205790830e2,
     4.2313330701600911252e1, 1.0),
)  # fmt: skip
_TAIL = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
     1.27045825245236838258e0, 3.64784832476320460504e0, 5.76949722146069140550e0,
     4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2,
     1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0,
     2.05319162663775882187e0, 1.0),
)  # fmt: skip
_FAR_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
     2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580e0,
     5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5,
     7.86869131145613259100e-4, 1.48753612908506148525e-2, 1.36929880922735805310e-1,
     5.99832206555887937690e-1, 1.0),
)  # fmt: skip


def _normal(bits: NDArray[np.uint64]) -> Float64:
    """Map raw 64-bit integers to standard normal float64 by the quantile function (AS 241)."""
    p = _uniform(bits)
    q = p - 0.5
    r = 0.180625 - q * q
    out = _polynomial(r, _CENTRE[0]) * q / _polynomial(r, _CENTRE[1])
    tail = np.abs(q) > 0.425
    side = q[tail]
    s = np.sqrt(-_log(np.where(side < 0.0, p[tail], 1.0 - p[tail])))
    near, far = s - 1.6, s - 5.0
    value = _polynomial(near, _TAIL[0]) / _polynomial(near, _TAIL[1])
    remote = _polynomial(far, _FAR_TAIL[0]) / _polynomial(far, _FAR_TAIL[1])
    value = np.where(s <= 5.0, value, remote)
    out[tail] = np.where(side < 0.0, -value, value)
    return out


def _sum_last_axis(x: Float64) -> Float64:
    """Sum over the last axis by folding the upper half onto the lower: a written order of additions."""
    while x.shape[-1] > 1:
        n = x.shape[-1]
        half = (n + 1) // 2
        folded = x[..., :half].copy()
        folded[..., : n - half] += x[..., half:]
        x = folded
    return x[..., 0]


def _orthonormal_rows(rows: Float64) -> Float64:
    """Orthonormalise rows in place by modified Gram-Schmidt with written sums; keeps their order.

    The diagonal of R is positive, which makes the result uniform (no sign is left to a library).
    """
    for i in range(len(rows)):
        norm = np.sqrt(_sum_last_axis(rows[i] * rows[i]))
        rows[i] /= norm
        rest = rows[i + 1 :]
        rest -= _sum_last_axis(rest * rows[i])[:, None] * rows[i]
    return rows


def _signed_permuted_block(raw: np.random.Philox, rank: int, d_in: int) -> Float32:
    """Place one ±1 in every column, rows used equally often, at places and signs drawn from bits."""
    order = np.argsort(raw.random_raw(d_in), kind="stable")  # compares integers: no rounding
    signs = np.where(raw.random_raw(d_in) >> np.uint64(63), np.float32(1), np.float32(-1))
    A = np.zeros((rank, d_in), np.float32)
    A[np.arange(d_in) % rank, order] = signs
    return A
