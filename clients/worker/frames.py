"""A message's records and what goes with them as bytes, and back: exactly, checked, and without pickle.

    header (JSON: what goes with the records, the records)   newline   the arrays' bytes, one after another

JSON tells integers, floats, booleans, text and lists apart, and Python writes a float so that reading it gives the
same bits; bytes, which it lacks, are ``{"hex": "..."}``. The header names each array with its length, and all lengths
together must be that of the frame.
"""

import json
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

_KINDS = {kind.__name__: kind for kind in (ArrayRecord, MetricRecord, ConfigRecord)}


class FrameError(ValueError):
    """The bytes are no frame; the text says where they stop being one."""


def pack(content: RecordDict, **about: Any) -> bytes:
    """Write records, and what goes with them (as JSON can hold it), as a frame."""
    records: list[Any] = []
    arrays: list[bytes] = []
    for name, record in content.items():
        rows: list[Any]
        if isinstance(record, ArrayRecord):
            rows = [[key, [a.dtype, a.shape, a.stype, len(a.data)]] for key, a in record.items()]
            arrays.extend(array.data for array in record.values())
        else:
            rows = [[key, _plain(value)] for key, value in record.items()]
        records.append([name, type(record).__name__, rows])
    return b"".join([json.dumps([about, records]).encode(), b"\n", *arrays])


def unpack(frame: bytes) -> tuple[dict[str, Any], RecordDict]:
    """Read a frame that `pack` wrote; return what goes with the records, and the records.

    Raises:
        FrameError: it is none.
    """
    try:
        start = frame.index(b"\n") + 1
        about, records = json.loads(frame[:start])
        content = RecordDict()
        for name, kind, rows in records:
            values: dict[str, Any] = {}
            for key, value in rows:
                if kind == ArrayRecord.__name__:
                    dtype, shape, stype, size = value
                    data = frame[start : start + size]
                    if len(data) != size:
                        raise FrameError(f"array {key!r} should have {size!r} bytes, and {len(data)} are there")
                    values[key] = Array(dtype, tuple(shape), stype, data)
                    start += size
                else:
                    values[key] = _value(value)
            content[name] = _KINDS[kind](values)
        if start != len(frame):
            raise FrameError(f"the frame has {len(frame)} bytes, and its records end at {start}")
        return dict(about), content
    except FrameError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FrameError(f"the frame cannot be read ({type(error).__name__}: {error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(each) for each in value]
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
