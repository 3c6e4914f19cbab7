"""What stays with a client is found again the next round, and a round that is done again starts as it did before."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spoiled_files import damage

from clients.state import read_codec, read_held, read_local, write_codec, write_held, write_local


def head(value: float) -> dict[str, np.ndarray]:
    return {"output.weight": np.full((3, 2), value, np.float32), "output.bias": np.float32([value, -0.0, 1e-45])}


def bits(matrices):
    return {name: (matrix.shape, matrix.tobytes()) for name, matrix in matrices.items()}


def files(folder, client):
    return sorted(path.name for path in (folder / f"client-{client}").iterdir())


def test_before_its_first_round_a_client_has_nothing(tmp_path) -> None:
    assert read_local(tmp_path / "not made" / "client-0", 1) is None


def test_a_round_reads_what_the_last_round_wrote_bit_for_bit(tmp_path) -> None:
    for number in (1, 2, 3):
        write_local(tmp_path / "keep" / "client-4", number, head(number))
        assert bits(read_local(tmp_path / "keep" / "client-4", number + 1)) == bits(head(number))
    assert read_local(tmp_path / "keep" / "client-4", 1) is None


def test_a_round_that_was_killed_and_is_done_again_reads_the_earlier_round(tmp_path) -> None:
    write_local(tmp_path / "client-0", 1, head(1))
    write_local(tmp_path / "client-0", 2, head(2))
    for _ in range(3):  # round 2 ended at the client, but not at the server
        assert bits(read_local(tmp_path / "client-0", 2)) == bits(head(1))
        write_local(tmp_path / "client-0", 2, head(2))
    assert bits(read_local(tmp_path / "client-0", 3)) == bits(head(2))


def test_rounds_in_which_a_client_was_not_asked_are_skipped_also_when_done_again(tmp_path) -> None:
    write_local(tmp_path / "client-0", 3, head(3))
    assert bits(read_local(tmp_path / "client-0", 12)) == bits(head(3))
    write_local(tmp_path / "client-0", 12, head(12))
    assert bits(read_local(tmp_path / "client-0", 12)) == bits(head(3))
    assert bits(read_local(tmp_path / "client-0", 100)) == bits(head(12))


def test_only_this_round_and_the_newest_before_it_stay_on_the_disk(tmp_path) -> None:
    for number in (1, 2, 5, 999, 1000, 10_000):
        write_local(tmp_path / "client-0", number, head(number))
    assert files(tmp_path, 0) == ["round-001000.safetensors", "round-010000.safetensors"]


def test_clients_do_not_see_each_other(tmp_path) -> None:
    write_local(tmp_path / "client-1", 1, head(1))
    write_local(tmp_path / "client-11", 1, head(11))
    assert read_local(tmp_path / "client-0", 2) is None
    assert bits(read_local(tmp_path / "client-1", 2)) == bits(head(1))
    assert bits(read_local(tmp_path / "client-11", 2)) == bits(head(11))


@pytest.mark.parametrize("content", [b"", b"half of a file"])
def test_what_a_killed_write_left_behind_does_not_count(tmp_path, content) -> None:
    write_local(tmp_path / "client-0", 1, head(1))
    (tmp_path / "client-0" / "round-000002.safetensors.new").write_bytes(content)
    assert bits(read_local(tmp_path / "client-0", 3)) == bits(head(1))
    write_local(tmp_path / "client-0", 2, head(2))
    assert files(tmp_path, 0) == ["round-000001.safetensors", "round-000002.safetensors"]


READERS = {"round": read_local, "held": read_held, "codec": read_codec}
WRITERS = {"round": write_local, "held": write_held, "codec": write_codec}


@given(st.data(), st.sampled_from(sorted(READERS)))
def test_a_file_that_was_cut_blanked_or_flipped_anywhere_is_refused_by_name(tmp_path_factory, data, kind) -> None:
    folder = tmp_path_factory.mktemp("keep") / "client-0"
    WRITERS[kind](folder, 1, head(1))
    path, number = folder / f"{kind}-000001.safetensors", 1 if kind == "held" else 2
    whole = path.read_bytes()
    path.write_bytes(damaged := damage(data.draw, whole))
    try:
        assert bits(READERS[kind](folder, number)) == bits(head(1)), "e.g. a blank that became a tab"
    except ValueError as error:
        assert damaged != whole and str(error).startswith(f"{path} is damaged (")
        assert "put it back from a copy, or remove the client's folder" in str(error)
