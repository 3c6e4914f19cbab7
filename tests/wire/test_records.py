"""What is packed is unpacked bit for bit, what does not fit is refused by name, and bytes are counted as sent."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from fedasym.wire import records

SCHEMA = (("a.B", (3, 2)), ("b.B", (4, 2)), ("head.bias", (3,)))
ABOUT = {"contract": "c" * 64, "round": 3, "client": 1, "loss": 0.5}
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)  # -0.0 and subnormal numbers too


@st.composite
def packages(draw):
    """Draw matrices of any shapes, empty ones too, with their schema."""
    shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
    schema = sorted(draw(st.dictionaries(st.text("ab.é", min_size=1, max_size=6), shapes, max_size=5)).items())
    matrices = {}
    for name, shape in schema:
        size = int(np.prod(shape))
        values = draw(st.lists(FINITE, min_size=size, max_size=size))
        matrices[name] = np.asarray(values, np.float32).reshape(shape)
    return matrices, schema


@pytest.fixture
def matrices():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in SCHEMA}


def record(**arrays) -> RecordDict:
    return RecordDict({"matrices": ArrayRecord({name: Array(array) for name, array in arrays.items()})})


def flat(n: int = 17) -> np.ndarray:
    return np.zeros(n, np.float32)


@settings(max_examples=60, deadline=None)
@given(packages())
def test_what_is_packed_is_unpacked_bit_for_bit(package) -> None:
    matrices, schema = package
    content = records.pack(matrices, schema, ABOUT)
    back = records.unpack(content, schema)
    assert list(back) == [name for name, _ in schema]
    for name, shape in schema:
        assert back[name].dtype == np.float32 and back[name].shape == shape
        assert back[name].tobytes() == matrices[name].tobytes()
    assert records.about(content) == ABOUT
    assert records.payload_bytes(content) == 4 * sum(matrix.size for matrix in matrices.values())
    assert list(content.array_records["matrices"]) == ["packed"]  # one array, however many matrices


def test_order_of_the_matrices_does_not_matter_and_the_packed_array_is_theirs_in_the_schemas_order(matrices) -> None:
    content = records.pack(dict(reversed(matrices.items())), SCHEMA, {})
    packed = content.array_records["matrices"]["packed"].numpy()
    assert packed.tobytes() == b"".join(matrices[name].tobytes() for name, _ in SCHEMA)
    assert records.about(RecordDict()) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RecordDict(), "the message carries no matrices"),
        (record(), "carries the arrays none; it must carry 'packed' and no other"),
        (record(other=flat()), r"carries the arrays \['other'\]; it must carry 'packed'"),
        (record(packed=flat(), more=flat()), r"carries the arrays \['more'\]"),
        (RecordDict({**record(packed=flat()), "extra": ArrayRecord()}), r"carries the arrays \['extra'\]"),
        (
            record(packed=flat().astype(np.float64)),
            r"the array 'packed' is float64 \(17,\), .* need float32",
        ),
        (record(packed=flat(16)), r"the array 'packed' is float32 \(16,\), .* need float32 \(17,\)"),
        (record(packed=flat(18)), r"the array 'packed' is float32 \(18,\)"),
        (record(packed=flat().reshape(17, 1)), r"the array 'packed' is float32 \(17, 1\)"),
    ],
)
def test_a_message_that_does_not_fit_the_contract_is_refused_with_what_it_carries(content, message) -> None:
    with pytest.raises(ValueError, match=message):
        records.unpack(content, SCHEMA)


@pytest.mark.parametrize("cut", [0, 4, 60, 127, 130, 190])
def test_an_array_cut_short_is_a_value_error_so_a_server_can_reject_the_reply(matrices, cut) -> None:
    data = records.pack(matrices, SCHEMA, {}).array_records["matrices"]["packed"].data[:cut]
    array = Array("float32", (17,), "numpy.ndarray", data)
    with pytest.raises(ValueError):
        records.unpack(RecordDict({"matrices": ArrayRecord({"packed": array})}), SCHEMA)


def test_an_array_of_another_serialisation_is_a_value_error_too() -> None:
    array = Array("float32", (17,), "something.else", flat().tobytes())
    with pytest.raises(ValueError):
        records.unpack(RecordDict({"matrices": ArrayRecord({"packed": array})}), SCHEMA)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_both_ways_with_its_name_and_place(matrices, value) -> None:
    matrices["b.B"][2, 1] = value
    wanted = rf"b\.B holds {value} at \(2, 1\): not a finite value; lower lr, head-lr or server-lr"
    with pytest.raises(ValueError, match=wanted):
        records.pack(matrices, SCHEMA, {})
    packed = np.concatenate([matrices[name].ravel() for name, _ in SCHEMA])
    with pytest.raises(ValueError, match=wanted):
        records.unpack(record(packed=packed), SCHEMA)


def test_matrices_that_differ_from_the_schema_are_not_packed(matrices) -> None:
    def refused(change, message):
        with pytest.raises(ValueError, match=message):
            records.pack({**matrices, **change}, SCHEMA, {})

    refused({"c.B": flat()}, r"missing \[\], extra \['c.B'\]")
    refused({"a.B": matrices["a.B"].T}, r"a\.B is float32 \(2, 3\), the contract wants float32 \(3, 2\)")
    refused({"a.B": matrices["a.B"].astype(np.float16)}, r"a\.B is float16 \(3, 2\)")
    with pytest.raises(ValueError, match=r"missing \['a.B', 'b.B', 'head.bias'\], extra \[\]"):
        records.pack({}, SCHEMA, {})


@pytest.fixture
def identity():
    """Give Flower the identity of a task, without which messages cannot be made."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.mark.parametrize("values", [1, 1000, 300_000])
def test_message_bytes_are_those_of_all_objects_that_flower_sends(identity, values) -> None:
    schema = (("x.B", (values,)),)
    # Distinct values: Flower sends equal chunks of an array once.
    content = records.pack({"x.B": np.arange(values, dtype=np.float32)}, schema, ABOUT)
    message = Message(content, 7, MessageType.TRAIN, group_id="1")
    counted = records.message_bytes(message)
    assert counted == sum(len(each.deflate()) for each in get_all_nested_objects(message).values())
    assert records.payload_bytes(content) == 4 * values
    # About 1.2 kB of names, types and the .npy header, and the names of the chunks.
    assert 4 * values < counted < 4 * values + 2500


def test_the_same_array_in_two_records_is_counted_once_as_it_is_sent_once(identity) -> None:
    def message(*names):
        content = {name: ArrayRecord({"packed": Array(flat(5000)), name: Array(flat(1))}) for name in names}
        return Message(RecordDict(content), 7, MessageType.TRAIN)

    one, both = message("x"), message("x", "y")
    assert records.message_bytes(both) - records.message_bytes(one) < 1000
    assert records.message_bytes(both) == sum(len(e.deflate()) for e in get_all_nested_objects(both).values())


def test_a_reply_with_an_error_has_bytes_but_no_payload(identity) -> None:
    message = Message(RecordDict({"about": ConfigRecord({"round": 1})}), 7, MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = "1"
    assert records.message_bytes(Message(Error(code=2, reason="x" * 50), reply_to=message)) > 50


def test_the_digest_tells_matrices_apart_by_name_shape_and_every_bit_but_not_by_order(matrices) -> None:
    base = records.digest(matrices)
    assert len(base) == 64 and records.digest(dict(reversed(matrices.items()))) == base
    assert records.digest({n: np.asfortranarray(m) for n, m in matrices.items()}) == base
    others = [{**matrices, "a.B": matrices["a.B"].reshape(2, 3)}, {**matrices, "c": flat(0)}, {}]
    others.append({("a.C" if name == "a.B" else name): matrix for name, matrix in matrices.items()})
    for i in range(6):
        changed = matrices["a.B"].copy()
        changed.flat[i] = np.nextafter(changed.flat[i], np.float32(9))
        others.append({**matrices, "a.B": changed})
    others.append({**matrices, "a.B": np.zeros((3, 2), np.float32)})
    others.append({**matrices, "a.B": np.full((3, 2), -0.0, np.float32)})
    assert len({base, *map(records.digest, others)}) == len(others) + 1


def test_no_byte_of_a_message_is_read_as_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """As numpy's reader of a header does, which fails now and then where two threads of Python 3.11 do it at once."""

    def parse(*_: object, **__: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch")

    content = records.pack({name: np.ones(shape, np.float32) for name, shape in SCHEMA}, SCHEMA, ABOUT)
    monkeypatch.setattr("ast.parse", parse)
    monkeypatch.setattr("ast.literal_eval", parse)
    assert records.unpack(content, SCHEMA)["b.B"].sum() == 8.0
