"""Named matrices <-> Flower records: a codec's arrays in a message, their checks, and honest byte counts.

The only file of this package that knows Flower's messages, and that imports flwr; `fedasym.ops` knows its command
line. A message carries two records: ``matrices``, the arrays that a codec makes of the contract's schema, and
``about``, the contract's hash, the round and digests.
"""

import copy
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import no_object_id_recompute
from numpy.typing import NDArray

from fedasym.aggregation.input_checks import not_finite
from fedasym.wire.codecs.base import Codec
from fedasym.wire.codecs.identity import Identity

Float32 = NDArray[np.float32]
Schema = Sequence[tuple[str, tuple[int, ...]]]
About = dict[str, str | int | float | bool | list[int] | list[float] | list[str]]

IDENTITY = Identity()
# Magic, version 1.0, length, and the one dictionary that numpy writes for an array in C's order.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([^']{1,40})', 'fortran_order': False, 'shape': \(([0-9, ]{0,200})\), \} *\n",
    re.DOTALL,
)
_ALIKE = "let both sides run the same fedasym, and nothing between them"


def pack(matrices: Mapping[str, Float32], schema: Schema, about: About, codec: Codec = IDENTITY) -> RecordDict:
    """Encode matrices into a record beside their particulars, as a sender that keeps nothing from message to message.

    Args:
        matrices: float32 arrays, exactly those of the schema.
        schema: ``(name, shape)`` sorted by name.
        about: particulars, e.g. contract hash, round, client.
        codec: makes the arrays.

    Raises:
        ValueError: names, shapes, dtype differ from the schema or a value is not finite.
    """
    return pack_with_rest(matrices, schema, about, codec, {})[0]


def pack_with_rest(
    matrices: Mapping[str, Float32], schema: Schema, about: About, codec: Codec, rest: Mapping[str, Float32]
) -> tuple[RecordDict, dict[str, Float32]]:
    """Pack as `pack` does; take what the codec left over of this sender's last message, and return what it leaves now.

    Raises:
        ValueError: as `pack`.
    """
    check(matrices, schema)
    encoded, left = codec.encode(matrices, schema, rest)
    arrays = ArrayRecord({name: Array(np.asarray(array)) for name, array in encoded.items()})
    return RecordDict({"matrices": arrays, "about": ConfigRecord(dict(about))}), left


def unpack(content: RecordDict, schema: Schema, codec: Codec = IDENTITY) -> dict[str, Float32]:
    """Take the matrices out of a record and check them against the schema; they stay in its memory, read-only.

    Raises:
        ValueError: a missing or extra array, another dtype, another number of values, or a value that is not
            finite; the error names it.
    """
    records = content.array_records  # which Flower gathers at each access
    if "matrices" not in records:
        raise ValueError(f"the message carries no matrices; {_ALIKE}")
    arrays, layout = records["matrices"], codec.layout(schema)
    extra = sorted((set(arrays) - layout.keys()) | (set(records) - {"matrices"}))
    if extra or layout.keys() - set(arrays):
        raise ValueError(
            f"the message carries the arrays {extra or 'none'}; it must carry {', '.join(map(repr, layout))} and no "
            f"other; {_ALIKE}"
        )
    read = {name: _read(name, arrays[name], np.dtype(dtype), shape) for name, (dtype, shape) in layout.items()}
    matrices = codec.decode(read, schema)
    check(matrices, schema)
    return matrices


def heard(matrices: Mapping[str, Float32], schema: Schema, codec: Codec) -> dict[str, Float32]:
    """Return what the receivers of a message will hold: the sender of a broadcast goes on with the same."""
    encoded, _ = codec.encode(matrices, schema, {})
    return codec.decode(encoded, schema)


def _read(name: str, array: Array, wanted: np.dtype[Any], size: tuple[int, ...]) -> NDArray[np.generic]:
    """Return an array's values, read-only and where they lie, trusting neither its declared shape nor its bytes.

    numpy's own reader evaluates the header as Python, which two threads of Python 3.11 cannot do at a time.
    """
    little = wanted.newbyteorder("<")
    header = _HEADER.match(array.data)
    if not header or header.end() - 10 != int.from_bytes(header[1], "little"):
        raise ValueError(f"the array {name!r} cannot be read: it does not begin as numpy's format 1.0 does; {_ALIKE}")
    kind, shape = header[2].decode("latin1"), tuple(int(number) for number in re.findall(rb"[0-9]+", header[3]))
    stated = array.shape == shape and all(type(number) is int for number in array.shape)  # 3.0 equals 3
    if kind != little.str or shape != size or not stated or array.dtype != str(wanted):
        declared, found = clean(f"{array.dtype} {array.shape}", 100), clean(f"{kind} {shape}", 100)
        raise ValueError(
            f"the array {name!r} is {declared}, by its header {found}; the contract's matrices need {wanted} {size}; "
            f"{_ALIKE}"
        )
    body, expected = len(array.data) - header.end(), math.prod(size) * wanted.itemsize
    if array.stype != "numpy.ndarray" or body != expected:
        raise ValueError(
            f"the array {name!r} is {clean(array.stype, 40)!r} with {body} bytes of values, expected {expected}; "
            f"{_ALIKE}"
        )
    return np.frombuffer(array.data, little, offset=header.end()).astype(wanted, copy=False).reshape(size)


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
        if (place := not_finite(matrix)) is not None:
            raise ValueError(
                f"{name} holds {matrix[place]} at {place}: not a finite value; lower lr, head-lr or server-lr"
            )


def joined(parts: Mapping[int, RecordDict]) -> RecordDict:
    """Return several clients' records as those of one message; each name begins with its client's number."""
    return RecordDict({f"{client}/{name}": record for client, part in parts.items() for name, record in part.items()})


def parted(reply: Message, clients: Sequence[int]) -> dict[int, Message]:
    """Return what `joined` made one of as a reply of each client, as it would have answered alone.

    Args:
        reply: of several clients.
        clients: who was asked in it; who is not in it has a reply without records.

    Raises:
        ValueError: it holds something of none of them.
    """
    contents = {str(client): RecordDict() for client in clients}
    for whole, record in reply.content.items():
        client, _, name = whole.partition("/")
        if client not in contents:
            raise ValueError(f"the reply holds {clean(whole, 100)!r}, which is of no client that was asked; {_ALIKE}")
        contents[client][name] = record
    parts = {number: copy.copy(reply) for number in clients}
    for number, part in parts.items():
        part.content = contents[str(number)]
    return parts


def about(content: RecordDict) -> dict[str, Any]:
    """Return the particulars of a message, empty if it carries none."""
    record = content.get("about")
    return dict(record) if isinstance(record, ConfigRecord) else {}


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
    """Bytes of the arrays' values themselves (4 a float32), nothing else."""
    arrays = (array for record in content.array_records.values() for array in record.values())
    return sum(np.dtype(array.dtype).itemsize * math.prod(array.shape) for array in arrays)


def message_bytes(message: Message) -> int:
    """Bytes of the serialised message: every object that Flower's transport sends for it, each once.

    The sum over the message, its records and its array chunks of their serialised length; HTTP framing is not in it.

    Args:
        message: as it is sent or was received.
    """
    sizes: dict[str, int] = {}
    pending: list[Any] = [message]
    with no_object_id_recompute():  # else Flower serialises an object once more for each object above it
        while pending:
            node = pending.pop()
            if (name := node.object_id) not in sizes:
                sizes[name] = len(node.deflate())
                pending.extend((node.children or {}).values())
    return sum(sizes.values())
