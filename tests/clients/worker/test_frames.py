"""Records go through bytes and come back the same, type by type; bytes that are no frame are refused."""

import math
from contextlib import suppress

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.worker.frames import FrameError, pack, unpack

INTS, FLOATS = st.integers(-(2**63), 2**63 - 1), st.floats()
SCALARS = (INTS, FLOATS, st.booleans(), st.text(), st.binary())
CONFIG_VALUES = st.one_of(*SCALARS, *(st.lists(scalar, max_size=4) for scalar in SCALARS))
METRIC_VALUES = st.one_of(INTS, FLOATS, st.lists(INTS, max_size=4), st.lists(FLOATS, max_size=4))
ARRAYS = st.builds(
    Array, st.text(), st.lists(st.integers(0, 9), max_size=3).map(tuple), st.text(), st.binary(max_size=99)
)
RECORDS = st.one_of(
    st.dictionaries(st.text(), CONFIG_VALUES, max_size=4).map(ConfigRecord),
    st.dictionaries(st.text(), METRIC_VALUES, max_size=4).map(MetricRecord),
    st.dictionaries(st.text(), ARRAYS, max_size=3).map(ArrayRecord),
)
CONTENTS = st.dictionaries(st.text(), RECORDS, max_size=4).map(RecordDict)
RUN_CONFIGS = st.dictionaries(st.text(), st.one_of(st.booleans(), INTS, FLOATS, st.text()), max_size=4)


def spelled(value: object) -> object:
    """A value with its type, so that 1, 1.0 and True differ and NaN equals itself."""
    if isinstance(value, list):
        return [spelled(each) for each in value]
    if isinstance(value, Array):
        return (value.dtype, value.shape, value.stype, value.data)
    return (type(value), value.hex() if isinstance(value, float) else value)


def flat(content: RecordDict) -> list[object]:
    """Everything in a record, in order, with its types."""
    return [(name, type(rec), [(key, spelled(value)) for key, value in rec.items()]) for name, rec in content.items()]


@settings(deadline=None)
@given(CONTENTS)
def test_a_reply_comes_back_the_same(content: RecordDict) -> None:
    assert flat(unpack(pack(content))[1]) == flat(content)


@settings(deadline=None)
@given(st.text(), CONTENTS, RUN_CONFIGS, st.integers(0, 2**64 - 1))
def test_a_request_comes_back_the_same(kind, content, run_config, run_id) -> None:
    about, back = unpack(pack(content, kind=kind, run_config=run_config, run_id=run_id))
    assert (about["kind"], about["run_id"], len(about)) == (kind, run_id, 3)
    assert [(key, spelled(value)) for key, value in about["run_config"].items()] == [
        (key, spelled(value)) for key, value in run_config.items()
    ]
    assert flat(back) == flat(content)


@settings(deadline=None, max_examples=200)
@given(CONTENTS, st.data())
def test_a_frame_that_was_cut_or_lengthened_is_refused(content: RecordDict, data: st.DataObject) -> None:
    frame = pack(content)
    cut = data.draw(st.integers(0, len(frame) - 1))
    for broken in (frame[:cut], frame + b"\0"):
        with pytest.raises(FrameError):
            unpack(broken)


@settings(deadline=None, max_examples=300)
@given(CONTENTS, st.data())
def test_a_frame_with_a_wrong_byte_is_read_or_refused_and_nothing_else(
    content: RecordDict, data: st.DataObject
) -> None:
    frame = bytearray(pack(content))
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with suppress(FrameError):
        unpack(bytes(frame))


def test_the_special_floats_keep_their_bits() -> None:
    values = [0.1, -0.0, 5e-324, math.inf, -math.inf, math.nan, 1.0]
    back = unpack(pack(RecordDict({"metrics": MetricRecord({"values": values})})))[1]
    assert np.array(back["metrics"]["values"]).tobytes() == np.array(values).tobytes()
