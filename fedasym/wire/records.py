"""Named matrices <-> Flower records: one packed array per message, its checks, and honest byte counts.

The only file of this package that knows Flower's messages, and that imports flwr; `processes`, `flower` and `bundle`
know its command line. A message carries two records: ``matrices``, one float32 array that holds every matrix of the
contract's schema in sorted order, and ``about``, the contract's hash, the round and digests. Packing matters: Flower
moves each array as an object of its own, with about 500 bytes of metadata.
"""

import hashlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Schema = Sequence[tuple[str, tuple[int, ...]]]
About = dict[str, str | int | float | bool | list[int] | list[float] | list[str]]

PACKED = "packed"
_ALIKE = "let both sides run the same fedasym, and nothing between them"


def pack(matrices: Mapping[str, Float32], schema: Schema, about: About) -> RecordDict:
    """Pack matrices and their particulars into a record.

    Args:
        matrices: float32 arrays, exactly those of the schema.
        schema: ``(name, shape)`` sorted by name.
        about: particulars, e.g. contract hash, round, client.

    Raises:
        ValueError: names, shapes, dtype differ from the schema or a value is not finite.
    """
    check(matrices, schema)
    flat = np.concatenate([matrices[name].reshape(-1) for name, _ in schema]) if schema else np.zeros(0, np.float32)
    arrays = ArrayRecord({PACKED: Array(flat)})
    return RecordDict({"matrices": arrays, "about": ConfigRecord(dict(about))})


def unpack(content: RecordDict, schema: Schema) -> dict[str, Float32]:
    """Take the matrices out of a record and check them against the schema.

    Raises:
        ValueError: a missing or extra array, another dtype, another number of values, or a value that is not
            finite; the error names it.
    """
    if "matrices" not in content.array_records:
        raise ValueError(f"the message carries no matrices; {_ALIKE}")
    arrays = content.array_records["matrices"]
    extra = sorted((set(arrays) - {PACKED}) | (set(content.array_records) - {"matrices"}))
    if extra or PACKED not in arrays:
        raise ValueError(
            f"the message carries the arrays {extra or 'none'}; it must carry {PACKED!r} and no other; {_ALIKE}"
        )
    sizes = [int(np.prod(shape)) for _, shape in schema]
    flat = _read(arrays[PACKED], sum(sizes))
    parts = np.split(flat, np.cumsum(sizes)[:-1]) if schema else []
    matrices = {name: part.reshape(shape) for (name, shape), part in zip(schema, parts, strict=True)}
    check(matrices, schema)
    return matrices


def _read(array: Array, values: int) -> Float32:
    """Read a packed array, trusting neither its declared shape nor its bytes; allocate only after the checks."""
    raw = BytesIO(array.data)
    try:
        np.lib.format.read_magic(raw)
        shape, _, dtype = np.lib.format.read_array_header_1_0(raw)
    except Exception as error:  # bytes from outside: whatever is wrong with them is one refusal
        raise ValueError(f"the packed array cannot be read ({type(error).__name__}: {error}); {_ALIKE}") from error
    if dtype != np.float32 or shape != (values,) or array.shape != shape:
        raise ValueError(
            f"the packed array is {dtype} {shape}, declared {array.shape}; the contract's matrices need "
            f"float32 ({values},); {_ALIKE}"
        )
    body = len(array.data) - raw.tell()
    if array.stype != "numpy.ndarray" or body != 4 * values:
        raise ValueError(
            f"the packed array is {array.stype!r} with {body} bytes of values, expected {4 * values}; {_ALIKE}"
        )
    return np.frombuffer(array.data, "<f4", offset=raw.tell()).astype(np.float32)


def check(matrices: Mapping[str, Float32], schema: Schema) -> None:
    """Require exactly the schema's names, shapes, float32 and finite values."""
    names = {name for name, _ in schema}
    if matrices.keys() != names:
        missing, extra = sorted(names - matrices.keys()), sorted(matrices.keys() - names)
        raise ValueError(f"the matrices differ from the contract: missing {missing}, extra {extra}; {_ALIKE}")
    for name, shape in schema:
        matrix = matrices[name]
        if matrix.dtype != np.float32 or matrix.shape != tuple(shape):
            raise ValueError(
                f"{name} is {matrix.dtype} {matrix.shape}, the contract wants float32 {tuple(shape)}; {_ALIKE}"
            )
        if not np.isfinite(matrix).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(matrix))[0])
            raise ValueError(
                f"{name} holds {matrix[place]} at {place}: not a finite value; lower lr, head-lr or server-lr"
            )


def about(content: RecordDict) -> dict[str, Any]:
    """Return the particulars of a message, empty if it carries none."""
    return dict(content.config_records["about"]) if "about" in content.config_records else {}


def clean(text: object, most: int) -> str:
    r"""Return text from another party as one line that can be shown: printable characters, ``most`` of them at most.

    >>> clean("a\x1b[31mb\nc" + "d" * 9, 8)
    'a [31mb…'
    """
    said = str(text)
    shown = "".join(c if c.isprintable() else " " for c in said[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def digest(matrices: Mapping[str, Float32]) -> str:
    """SHA-256 over names, shapes and little-endian float32 bytes, in sorted order; hexadecimal.

    Two runs end alike if and only if their final digests are equal.
    """
    state = hashlib.sha256()
    for name in sorted(matrices):
        matrix = np.ascontiguousarray(matrices[name], dtype="<f4")
        state.update(f"{name}\0{matrix.shape}\0".encode())
        state.update(matrix.data)
    return state.hexdigest()


def payload_bytes(content: RecordDict) -> int:
    """Bytes of the float32 values themselves: 4 a value, nothing else."""
    return sum(4 * int(np.prod(array.shape)) for record in content.array_records.values() for array in record.values())


def message_bytes(message: Message) -> int:
    """Bytes of the serialised message: every object that Flower's transport sends for it, each once.

    The sum over the message, its records and its array chunks of their serialised length; HTTP framing is not in it.
    """
    seen: dict[str, int] = {}
    pending: list[Any] = [message]
    while pending:
        node = pending.pop()
        raw = node.deflate()
        seen[hashlib.sha256(raw).hexdigest()] = len(raw)
        pending.extend((node.children or {}).values())
    return sum(seen.values())
