"""Mutations of honest replies, drawn from a seed: of records and their fields, then of the serialised objects."""

import copy
import json
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import numpy as np
from direct_superlink import Part, parts_of
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import ConfigRecord as ProtoConfigs
from flwr.proto.recorddict_pb2 import MetricRecord as ProtoMetrics

from fedasym.wire.codecs.identity import PACKED

NASTY = (
    "\x1b]0;owned\x07\x1b[2J[/b][red]{0}%s<script>alert(1)</script>\r\nround 9: all is well\u202e\u2028\x00" + "y" * 999
)
INTS = (0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**53, 2**63 - 1, -(2**63))
FLOATS = (float("nan"), float("inf"), -float("inf"), 1e308, -1e31, 1e30, -0.0, 0.0, 1.0, 5e-324, 2.0, 0.5)
TEXTS = ("", "1", "True", "0" * 64, NASTY, "x" * 9000, "packed", "B", "é" * 40)
BYTES = (b"", b"\x00", b"\xff" * 40)
KEYS = (
    "contract", "round", "client", "loaded", "base", "A", "fresh", "reason", "behind", "passing", "num-examples",
    "loss", "kept-out", "accuracy-after", "accuracy-before", "loss-after", "examples-used", "steps", "new", "", NASTY,
)  # fmt: skip
DTYPES = ("float32", "<f4", ">f4", "float64", "int32", "object", "", "(1000000,)f4", "no-such-type", "V4", "float32 ")
_KINDS = (ConfigRecord, MetricRecord, ArrayRecord)
Spoil = Callable[[Message], Part]


def copy_of(content: RecordDict) -> RecordDict:
    """Copy records, without what Flower has kept of their serialised form."""
    made = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            made[name] = ArrayRecord({key: Array(a.dtype, a.shape, a.stype, a.data) for key, a in record.items()})
        else:
            made[name] = type(record)(copy.deepcopy(dict(record)))  # type: ignore[arg-type]
    return made


def spoiled_records(content: RecordDict, rng: Random, others: Sequence[RecordDict]) -> RecordDict:
    """Return a copy of records with one to three mutations, which may be none where Flower's records refuse them."""
    content = copy_of(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        with suppress(Exception):  # what a mutation cannot do to these records is not done
            content = rng.choice(_OF_RECORDS)(content, rng, others)
    return content


def spoiled_reply(rng: Random, others: Sequence[RecordDict]) -> Spoil:
    """Draw what becomes of an honest reply: up to three mutations of its records, and perhaps one of its objects.

    Args:
        rng: decides.
        others: records of other honest replies, to take parts of.
    """

    def spoil(reply: Message) -> Part:
        objects, whole = rng.random() < 0.5, parts_of(reply)
        if not objects or rng.random() < 0.3:
            reply.__dict__["_content"] = spoiled_records(reply.content, rng, others)
            with suppress(ValueError):  # of a number that is too large there are no bytes; the honest reply goes
                whole = parts_of(reply)
        if objects:
            with suppress(Exception):
                mutation = rng.choice(_OF_OBJECTS) if rng.randrange(_RARE) else _dense
                whole = mutation(whole, rng)
        return whole

    return spoil


def _scalar(rng: Random) -> Any:
    kinds: tuple[Sequence[Any], ...] = (INTS, FLOATS, TEXTS, BYTES, (True, False))
    return rng.choice(rng.choice(kinds))


def _value(rng: Random) -> Any:
    if rng.random() < 0.8:
        return _scalar(rng)
    kind: Sequence[Any] = rng.choice((INTS, FLOATS, TEXTS, BYTES, (True, False)))
    return [rng.choice(kind) for _ in range(rng.choice((0, 1, 3, 500)))]


def _name_of(content: RecordDict, rng: Random) -> str:
    return str(rng.choice([*content]))


def _set_field(content: RecordDict, rng: Random, _: Sequence[RecordDict]) -> RecordDict:
    record: Any = content[rng.choice([name for name in content if not isinstance(content[name], ArrayRecord)])]
    record[rng.choice([*record]) if rng.random() < 0.8 else rng.choice(KEYS)] = _value(rng)
    return content


def _same_in_another_type(content: RecordDict, rng: Random, _: Sequence[RecordDict]) -> RecordDict:
    """Write a number as one of another type: equal for Python, and not the same."""
    record: Any = content[rng.choice([name for name in content if not isinstance(content[name], ArrayRecord)])]
    key = rng.choice([*record])
    kind: Callable[[Any], Any] = rng.choice((int, float, bool, str))
    record[key] = kind(record[key])
    return content


def _drop_field(content: RecordDict, rng: Random, _: Sequence[RecordDict]) -> RecordDict:
    record: Any = content[_name_of(content, rng)]
    del record[rng.choice([*record])]
    return content


def _rename_field(content: RecordDict, rng: Random, _: Sequence[RecordDict]) -> RecordDict:
    record: Any = content[_name_of(content, rng)]
    key = rng.choice([*record])
    record[rng.choice((key.upper(), f"{key} ", f"\0{key}", key.replace("-", "_"), *KEYS))] = record.pop(key)
    return content


def _drop_record(content: RecordDict, rng: Random, _: Sequence[RecordDict]) -> RecordDict:
    del content[_name_of(content, rng)]
    return content


def _rename_record(content: RecordDict, rng: Random, _: Sequence[RecordDict]) -> RecordDict:
    name = _name_of(content, rng)
    content[rng.choice((f"{name} ", "refusal", "about", "matrices", "metrics", NASTY))] = content.pop(name)
    return content


def _add_record(content: RecordDict, rng: Random, _: Sequence[RecordDict]) -> RecordDict:
    kind, name = rng.choice(_KINDS), rng.choice(("refusal", "about", "more", "metrics", NASTY))
    if kind is ArrayRecord:
        content[name] = ArrayRecord({rng.choice(TEXTS): Array(np.ones(rng.choice((0, 3, 50)), np.float32))})
    elif kind is ConfigRecord:
        content[name] = ConfigRecord({rng.choice(KEYS): _value(rng) for _ in range(rng.choice((0, 1, 3)))})
    else:
        content[name] = MetricRecord({rng.choice(KEYS): rng.choice((*INTS, *FLOATS)) for _ in range(2)})
    return content


def _of_another_kind(content: RecordDict, rng: Random, _: Sequence[RecordDict]) -> RecordDict:
    name = _name_of(content, rng)
    values: Any = dict(content[name])
    kind: Any = rng.choice(_KINDS)
    content[name] = kind({key: value for key, value in values.items() if kind is ConfigRecord or key != "reason"})
    return content


def _from_another(content: RecordDict, rng: Random, others: Sequence[RecordDict]) -> RecordDict:
    other = copy_of(rng.choice(others))
    if rng.random() < 0.2:
        return other
    name = _name_of(other, rng)
    content[name] = other[name]
    return content


def _refuse(content: RecordDict, rng: Random, _: Sequence[RecordDict]) -> RecordDict:
    content["refusal"] = ConfigRecord({"reason": _value(rng), "behind": _scalar(rng)})
    return content


def _values(content: RecordDict, rng: Random, _: Sequence[RecordDict]) -> RecordDict:
    """Change some values of the array, or all."""
    values = content.array_records["matrices"][PACKED].numpy().copy()
    bad = np.float32(rng.choice((np.nan, np.inf, -np.inf, 3e38, 1.1e4, 9e3, -0.0, 0.0, 1e-45, -1.0)))
    if rng.random() < 0.3:
        values[:] = bad
    else:
        values[rng.randrange(values.size) if values.size else slice(0)] = bad
    if rng.random() < 0.2:
        values = rng.choice((values[:-1], values[::-1], np.tile(values, 2), values.reshape(1, -1), values.astype("f8")))
    content["matrices"] = ArrayRecord({PACKED: Array(values)})
    return content


def _array(content: RecordDict, rng: Random, _: Sequence[RecordDict]) -> RecordDict:
    """Change what an array declares, or its bytes, header and all."""
    arrays = content.array_records["matrices"]
    array, shape = arrays[PACKED], arrays[PACKED].shape
    how = rng.randrange(9)
    if how == 0:
        array.dtype = rng.choice(DTYPES)
    elif how == 1:
        array.shape = rng.choice(
            ((), (10**12,), (-1,), (*shape, 1), (1, *shape), tuple(map(float, shape)), (True,), (10**40,), ((1,), 2))
        )
    elif how == 2:
        array.stype = rng.choice(("numpy", "torch.tensor", "pickle", "", NASTY))
    elif how == 3:
        array.data = array.data[: rng.randrange(len(array.data) + 1)]
    elif how == 4:
        array.data += rng.randbytes(rng.choice((1, 4, 128)))
    elif how == 5:
        data = bytearray(array.data)
        for _ in range(rng.choice((1, 1, 8))):
            data[rng.randrange(min(len(data), rng.choice((128, len(data)))))] = rng.randrange(256)
        array.data = bytes(data)
    elif how == 6:
        old, new = rng.choice(
            (
                (b"<f4", b">f4"),
                (b"<f4", b"|O4"),
                (b"<f4", b"<i4"),
                (b"False", b"True "),
                (b"(", b"[1,"),
                (b"\x01", b"\x02"),
            )
        )
        array.data = array.data.replace(old, new, 1)
    elif how == 7:
        arrays[rng.choice(("packed2", "", NASTY))] = array
    else:
        header = rng.choice((b"\x80\x04.", b"", b"\x93NUMPY\x01\x00" + struct.pack("<H", 65535) + b"(" * 65535))
        array.data = header + array.data[128:]
    return content


_RecordMutation = Callable[[RecordDict, Random, Sequence[RecordDict]], RecordDict]
_OF_RECORDS: list[_RecordMutation] = [
    _set_field, _set_field, _set_field, _same_in_another_type, _drop_field, _rename_field, _drop_record,
    _rename_record, _add_record, _of_another_kind, _from_another, _refuse, _values, _values, _array, _array,
]  # fmt: skip


def _changed(whole: Part, old: Part, new: Part) -> Part:
    """Return the whole with one part in the place of another, the ids of those above it anew, names in bodies too."""
    if whole is old:
        return new
    children = [_changed(child, old, new) for child in whole.children]
    body = whole.body
    for before, after in zip(whole.children, children, strict=True):
        if before is not after:
            body = body.replace(before.name.encode(), after.name.encode())
    return replace(whole, children=children, body=body) if children != [*whole.children] else whole


def _body(whole: Part, rng: Random, change: Callable[[bytes], bytes], kinds: Sequence[str] = ()) -> Part:
    old = rng.choice([part for part in whole.all() if not kinds or part.kind in kinds])
    return _changed(whole, old, replace(old, body=change(old.body)))


def _flip(whole: Part, rng: Random) -> Part:
    def change(body: bytes) -> bytes:
        found = bytearray(body or b"\0")
        for _ in range(rng.choice((1, 1, 2, 9))):
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
        return bytes(found)

    return _body(whole, rng, change)


def _cut(whole: Part, rng: Random) -> Part:
    return _body(whole, rng, lambda body: body[: rng.randrange(len(body) + 1)])


def _insert(whole: Part, rng: Random) -> Part:
    def change(body: bytes) -> bytes:
        place = rng.randrange(len(body) + 1)
        return (
            body[:place] + rng.choice((rng.randbytes(rng.randrange(1, 12)), body[: rng.randrange(200)])) + body[place:]
        )

    return _body(whole, rng, change)


def _said_twice(whole: Part, rng: Random) -> Part:
    """Let a record name one field twice with two values, as its bytes can and a dictionary cannot."""
    old = rng.choice([part for part in whole.all() if part.kind in ("ConfigRecord", "MetricRecord", "RecordDict")])
    if old.kind == "RecordDict":
        names = [*json.loads(old.body).items()]
        name, refers = rng.choice(names)
        pairs = [*names, (name, rng.choice(names)[1] if rng.random() < 0.5 else refers)]
        body = "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs) + "}"
        return _changed(whole, old, replace(old, body=body.encode()))
    kind: Any = ProtoConfigs if old.kind == "ConfigRecord" else ProtoMetrics
    said = kind.FromString(old.body)
    item = kind.Item()
    item.CopyFrom(rng.choice(said.items))
    if rng.random() < 0.7:
        item.value.CopyFrom(rng.choice(said.items).value)
    said.items.insert(rng.randrange(len(said.items) + 1), item)
    return _changed(whole, old, replace(old, body=said.SerializeToString()))


def _json(whole: Part, rng: Random) -> Part:
    """Change one field of an object that is written as JSON, deeply nested and endless numbers included."""
    old = rng.choice([part for part in whole.all() if part.kind in ("Array", "ArrayRecord", "RecordDict")])
    said = json.loads(old.body)
    key = rng.choice([*said, "new"])
    words = (
        "[" * 50_000 + "]" * 50_000, "9" * 5000, "1e999", "NaN", "null", '"x"', "[0, 0]", "[-1]", "[0.0]", "[true]",
        "{}", '{"a": {"a": {}}}', "[962.0]", "[1e300]", "[[]]", '"numpy.ndarray"', "true", f"[{'0, ' * 9000}0]",
    )  # fmt: skip
    pairs = {name: json.dumps(value) for name, value in said.items()} | {key: rng.choice(words)}
    if key == "shape" and rng.random() < 0.3:
        pairs[key] = json.dumps([*map(float, said["shape"])])
    body = "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in pairs.items()) + "}"
    if rng.random() < 0.2:
        body = body[:-1] + ", " + body[1:]  # every field twice
    return _changed(whole, old, replace(old, body=body.encode()))


def _kind(whole: Part, rng: Random) -> Part:
    old = rng.choice(whole.all())
    kinds = ("Message", "RecordDict", "ConfigRecord", "MetricRecord", "ArrayRecord", "Array", "ArrayChunk")
    return _changed(whole, old, replace(old, kind=rng.choice(kinds)))


def _children(whole: Part, rng: Random) -> Part:
    old = rng.choice(whole.all())
    mine, all_ = [*old.children], whole.all()
    how = rng.randrange(4)
    if how == 0:
        mine = mine[1:]
    elif how == 1:
        mine = mine[::-1]
    elif how == 2:
        mine.append(all_[-1])  # the innermost: no circle
    else:
        for _ in range(rng.choice((3, 40))):
            mine = [Part(old.kind, old.body, mine)]
    return _changed(whole, old, replace(old, children=mine))


def _message(whole: Part, rng: Random) -> Part:
    """Change what a message says of itself, or let it carry an error."""
    said = ProtoMessage.FromString(whole.body)
    about = said.metadata
    how = rng.randrange(7)
    if how == 0:
        said.error.code, said.error.reason = rng.choice((0, 1, 2, 99)), rng.choice(TEXTS)
    elif how == 1:
        about.reply_to_message_id = rng.choice(TEXTS)
    elif how == 2:
        about.src_node_id = rng.choice((0, 1, 12345))
    elif how == 3:
        about.ttl = rng.choice(FLOATS)
    elif how == 4:
        about.created_at = rng.choice(FLOATS)
    elif how == 5:
        about.message_type = rng.choice(("", "query", "train.x", NASTY[:20].replace("\0", "")))
    else:
        about.run_id, about.dst_node_id = rng.choice((0, 7)), rng.choice((0, 7))
    return replace(whole, body=said.SerializeToString())


@cache
def _many(kind: str, count: int) -> Part:
    """Return a record of a few bytes a value on the wire, each an object in memory."""
    said = ProtoConfigs()
    value = said.items.add(key="many").value
    if kind == "text":
        value.string_list.vals.extend([""] * count)
    elif kind == "bytes":
        value.bytes_list.vals.extend([b""] * count)
    else:
        value.sint64_list.vals.extend([0] * count)
    return Part("ConfigRecord", said.SerializeToString())


def _dense(whole: Part, rng: Random) -> Part:
    """Add a record of many values, just below the bound in bytes or above it."""
    (old,) = [part for part in whole.all() if part.kind == "RecordDict"]
    added = _many(rng.choice(("text", "bytes", "numbers")), rng.choice((30_000, 120_000, 240_000)))
    body = json.dumps({**json.loads(old.body), "more": added.name}).encode()
    return _changed(whole, old, Part("RecordDict", body, [*old.children, added]))


_RARE = 200  # of so many mutations of objects one is `_dense`, which costs a hundred others' time
_OF_OBJECTS: list[Callable[[Part, Random], Part]] = [
    _flip, _flip, _flip, _cut, _insert, _said_twice, _said_twice, _json, _json, _kind, _children, _message,
]  # fmt: skip
