"""A message's records and what goes with them as bytes, and back: exactly, checked, and without pickle.

    b"fedasym" version (1 byte)   length of the header (8 bytes)   header (JSON)   the arrays' bytes, one after another

JSON tells integers, floats, booleans, text and lists apart, and Python writes a float so that reading it gives the
same bits; bytes, which it lacks, are ``{"hex": "..."}``. The header names each array with its length, and all lengths
together must be that of the frame.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

Value = bool | int | float | str

_MAGIC = b"fedasym\x01"
_WORD = 8  # bytes of the header's length, little-endian
_ARRAYS, _METRICS, _CONFIG = "arrays", "metrics", "config"


class FrameError(ValueError):
    """The bytes are no frame of this version; the text says where they stop being one."""


@dataclass(frozen=True)
class Request:
    """What a worker is asked.

    Attributes:
        kind: of the message, as in `clients.errors`.
        content: the message's records.
        run_config: Flower's flat run config.
        run_id: Flower's id of the run.
        seconds: after which nobody waits for the answer any more.
    """

    kind: str
    content: RecordDict
    run_config: Mapping[str, Value]
    run_id: int
    seconds: float


def pack_request(request: Request) -> bytes:
    """Write a request as a frame."""
    particulars = {
        "kind": request.kind,
        "run_config": dict(request.run_config),
        "run_id": request.run_id,
        "seconds": request.seconds,
    }
    return _pack(particulars, request.content)


def read_request(raw: bytes) -> Request:
    """Read a frame that `pack_request` wrote.

    Raises:
        FrameError: it is none.
    """
    particulars, content = _read(raw)
    kinds = {"kind": str, "run_config": dict, "run_id": int, "seconds": float}
    for name, kind in kinds.items():
        if type(particulars.get(name)) is not kind:
            raise FrameError(f"the frame's {name} is {particulars.get(name)!r}, expected a {kind.__name__}")
    if particulars.keys() != kinds.keys():
        raise FrameError(f"the frame's header has {sorted(particulars)}, expected {sorted(kinds)}")
    return Request(content=content, **particulars)


def pack_reply(content: RecordDict) -> bytes:
    """Write a reply's records as a frame."""
    return _pack({}, content)


def read_reply(raw: bytes) -> RecordDict:
    """Read a frame that `pack_reply` wrote.

    Raises:
        FrameError: it is none.
    """
    particulars, content = _read(raw)
    if particulars:
        raise FrameError(f"a reply's header has {sorted(particulars)}, expected nothing but records")
    return content


def _pack(particulars: dict[str, Any], content: RecordDict) -> bytes:
    records: list[Any] = []
    bodies: list[bytes] = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            rows = [[key, a.dtype, list(a.shape), a.stype, len(a.data)] for key, a in record.items()]
            bodies.extend(array.data for array in record.values())
            records.append([name, _ARRAYS, rows])
        else:
            values = [[key, _plain(value)] for key, value in record.items()]
            records.append([name, _METRICS if isinstance(record, MetricRecord) else _CONFIG, values])
    header = json.dumps({"particulars": particulars, "records": records}, separators=(",", ":")).encode()
    return b"".join([_MAGIC, len(header).to_bytes(_WORD, "little"), header, *bodies])


def _read(raw: bytes) -> tuple[dict[str, Any], RecordDict]:
    start = len(_MAGIC) + _WORD
    if raw[: len(_MAGIC)] != _MAGIC:
        raise FrameError(
            f"the frame begins with {raw[: len(_MAGIC)]!r}, expected {_MAGIC!r}; worker and ClientApp must be of the "
            "same version of fedasym: restart the site after an update"
        )
    length = int.from_bytes(raw[len(_MAGIC) : start], "little")
    if len(raw) < start + length:
        raise FrameError(f"the frame has {len(raw)} bytes, and its header alone should end at {start + length}")
    try:
        header = json.loads(raw[start : start + length])
        particulars, records = header["particulars"], header["records"]
        content, end = _records(records, raw, start + length)
    except FrameError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FrameError(f"the frame's header cannot be read ({type(error).__name__}: {error})") from error
    if type(particulars) is not dict:
        raise FrameError(f"the frame's particulars are a {type(particulars).__name__}, expected a dict")
    if end != len(raw):
        raise FrameError(f"the frame has {len(raw)} bytes, and its records end at {end}")
    return particulars, content


def _records(records: list[Any], raw: bytes, place: int) -> tuple[RecordDict, int]:
    """Build the records whose arrays begin at a place of the frame; return where they end, too."""
    content = RecordDict()
    for name, kind, items in records:
        if name in content:
            raise FrameError(f"the frame has two records {name!r}")
        if kind == _ARRAYS:
            arrays = {}
            for key, dtype, shape, stype, size in items:
                if type(size) is not int or not 0 <= size <= len(raw) - place:
                    raise FrameError(f"array {key!r} should have {size!r} bytes, and {len(raw) - place} are left")
                arrays[key] = Array(dtype, tuple(shape), stype, bytes(raw[place : place + size]))
                place += size
            content[name] = ArrayRecord(arrays)
        elif kind == _METRICS:
            content[name] = MetricRecord({key: _value(value) for key, value in items})
        elif kind == _CONFIG:
            content[name] = ConfigRecord({key: _value(value) for key, value in items})
        else:
            raise FrameError(f"record {name!r} is of the kind {kind!r}, expected one of arrays, metrics, config")
    return content, place


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(each) for each in value]
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
