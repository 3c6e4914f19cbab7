"""Ways to spoil a reply as a hostile node could: on the bytes that it sends, which say and declare what they like."""

import json
from dataclasses import replace

import numpy as np
from direct_superlink import Part, parts_of
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import Message as Proto

from fedasym.wire import records


def part_of(whole: Part, kind: str) -> Part:
    return next(part for part in whole.all() if part.kind == kind)


def changed(whole: Part, old: Part, new: Part) -> Part:
    """Return the whole with one part in the place of another, the ids of those above it anew."""
    if whole is old:
        return new
    return replace(whole, children=[changed(child, old, new) for child in whole.children])


def other_message(whole: Part) -> Part:
    """Let the reply's own bytes name a message that nobody sent."""
    said = Proto.FromString(whole.body)
    said.metadata.reply_to_message_id = "f" * 64
    return replace(whole, body=said.SerializeToString())


def other_node(whole: Part) -> Part:
    said = Proto.FromString(whole.body)
    said.metadata.src_node_id = 12345
    return replace(whole, body=said.SerializeToString())


def malformed_record(whole: Part) -> Part:
    old = part_of(whole, "ConfigRecord")
    return changed(whole, old, replace(old, body=b"\xff\xff\xff"))


def many_times_one_piece(whole: Part) -> Part:
    """Name one piece of an array 60,000 times: 0.2 MB that would become 15 MB."""
    old = part_of(whole, "Array")
    said = json.loads(old.body)
    said["arraychunk_ids"] = [0] * 60_000
    return changed(whole, old, replace(old, body=json.dumps(said).encode()))


def no_such_piece(whole: Part) -> Part:
    old = part_of(whole, "Array")
    said = json.loads(old.body)
    said["arraychunk_ids"] = [7]
    return changed(whole, old, replace(old, body=json.dumps(said).encode()))


def endless_text(whole: Part) -> Part:
    record = ConfigRecord({"reason": "x" * 1_000_000})
    old = part_of(whole, "ConfigRecord")
    return changed(whole, old, Part("ConfigRecord", record.deflate().partition(b"\0")[2]))


def another_array(whole: Part) -> Part:
    big = RecordDict()
    big["more"] = records.pack({"x.B": np.ones((999, 99), np.float32)}, (("x.B", (999, 99)),), {})["matrices"]
    old = part_of(whole, "RecordDict")
    return changed(whole, old, parts_of(Message(big, 1, "train")).children[0])


def a_thousand_records(whole: Part) -> Part:
    old = part_of(whole, "RecordDict")
    many = RecordDict({f"r{number}": ConfigRecord({"n": number}) for number in range(1000)})
    return changed(whole, old, parts_of(Message(many, 1, "train")).children[0])


def no_message(whole: Part) -> Part:
    return part_of(whole, "RecordDict")


def of_no_kind(whole: Part) -> Part:
    old = part_of(whole, "MetricRecord")
    return changed(whole, old, replace(old, kind="ConfigRecord"))


def nothing(whole: Part) -> Part:
    """Send a message of no records and no error."""
    return replace(whole, children=[])
