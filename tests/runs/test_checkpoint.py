"""A run folder survives a kill at any moment: whole states, whole lines, and damage is told."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from spoiled_files import damage
from stops import KILLED, Steps, forked

from fedasym.files import write_atomic
from fedasym.runs import record
from fedasym.runs.checkpoint import FILE, State, load, save

SAVES_FOR_EVER = """
import sys, itertools, numpy as np
from pathlib import Path
from fedasym.runs.checkpoint import State, save
for k in itertools.count(1):
    same = np.full((200, 100), k, np.float32)
    save(Path(sys.argv[1]), State("0" * 32, k, {"x.B": same}, {"first/x.B": -same}, k, "{}", {"seed": k}))
    print(k, flush=True)
"""


@pytest.fixture
def state() -> State:
    rng = np.random.default_rng(0)
    matrices = {f"{n}.B": rng.standard_normal((5, 3), np.float32) for n in ("a", "b/c", "d")}
    matrices["a.B"][0] = [-0.0, 1e-45, 3e38]
    settings = {"num-rounds": 3, "lr": 0.1, "method": "asymmetric", "é": "ü\n"}
    return State("0" * 32, 7, matrices, {"first/a.B": matrices["a.B"] * 0}, 1234, '{"rank": 3}', settings)


def parts(state: State):
    """Everything of a state as comparable bits."""
    tensors = [
        {name: (m.dtype.str, m.shape, m.tobytes()) for name, m in each.items()}
        for each in (state.matrices, state.optimizer)
    ]
    return tensors, state.round, state.record_bytes, state.contract, state.settings


def test_a_state_is_read_back_bit_for_bit(tmp_path, state) -> None:
    assert load(tmp_path) is None
    save(tmp_path, state)
    assert parts(load(tmp_path)) == parts(state)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_matrices_in_another_memory_order_are_kept_as_they_read(tmp_path, state) -> None:
    turned = {name: np.asfortranarray(matrix) for name, matrix in state.matrices.items()}
    save(tmp_path, dataclasses.replace(state, matrices=turned))
    assert parts(load(tmp_path)) == parts(state)


def test_the_next_save_replaces_the_last_as_a_whole(tmp_path, state) -> None:
    save(tmp_path, state)
    later = State("0" * 32, 8, {"z": np.ones(2, np.float32)}, {}, 2000, "{}", {})
    save(tmp_path, later)
    assert parts(load(tmp_path)) == parts(later)


@pytest.mark.parametrize("mask", [0xFF, 0x01, 0x0F])
def test_no_damaged_byte_anywhere_gives_another_state(tmp_path, state, mask) -> None:
    save(tmp_path, state)
    path = tmp_path / FILE
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= mask
        path.write_bytes(damaged)
        try:
            assert parts(load(tmp_path)) == parts(state), f"byte {place}"  # e.g. a blank that became a tab
        except ValueError as error:
            assert str(error).startswith(f"{path} is damaged (") and "remove the run folder" in str(error)
            refused += 1
    assert refused > 0.98 * len(whole)


def test_a_type_that_changed_in_the_header_is_damage(tmp_path, state) -> None:
    save(tmp_path, state)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path)


@given(st.data())
def test_a_newest_state_that_was_cut_blanked_or_flipped_anywhere_gives_itself_or_the_one_before(
    tmp_path_factory, data
) -> None:
    folder = tmp_path_factory.mktemp("run")
    for number in (1, 2):
        matrices = {"x.B": np.full((3, 4), number, np.float32)}
        save(folder, State("0" * 32, number, matrices, {}, number, "{}", {"seed": number}), 2)
    path = folder / FILE
    path.write_bytes(damage(data.draw, path.read_bytes()))
    found = load(folder)
    assert found.round in (1, 2) and found.older == (found.round == 1)
    assert (found.matrices["x.B"] == found.round).all() and found.settings == {"seed": found.round}


@given(st.data())
def test_a_record_that_was_cut_blanked_or_flipped_anywhere_is_refused(tmp_path_factory, data) -> None:
    folder, chain = tmp_path_factory.mktemp("run"), ""
    for number in (1, 2, 3):
        length, chain = record.append_round(folder, {"round": number, "loss": 0.25}, chain)
    path = folder / "rounds.jsonl"
    whole = path.read_bytes()
    path.write_bytes(damaged := damage(data.draw, whole))
    if damaged == whole:
        record.cut_rounds(folder, length, chain)
        return
    with pytest.raises(ValueError, match=rf"^{path} (has \d+ bytes, the checkpoint expects|was changed: )"):
        record.cut_rounds(folder, length, chain)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, 600, -1])
def test_a_file_cut_short_is_refused(tmp_path, state, left) -> None:
    save(tmp_path, state)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path) -> None:
    save_file({"weight": np.ones(2, np.float32)}, tmp_path / FILE)
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path)


def test_what_an_interrupted_write_left_behind_does_not_count(tmp_path, state) -> None:
    save(tmp_path, state)
    leftover = tmp_path / f"{FILE}.new"
    leftover.write_bytes((tmp_path / FILE).read_bytes()[:50])
    assert parts(load(tmp_path)) == parts(state)
    save(tmp_path, dataclasses.replace(state, round=8))
    assert load(tmp_path).round == 8 and not leftover.exists()


def test_a_write_that_fails_leaves_the_old_content(tmp_path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"


def test_a_process_killed_while_it_saves_leaves_a_whole_state_each_time(tmp_path) -> None:
    for turn in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVES_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        said = [int(process.stdout.readline()) for _ in range(5 + 7 * turn)]
        for _ in range(20):  # read beside the writer
            found = load(tmp_path)
            assert (found.matrices["x.B"] == found.round).all()
        process.kill()
        process.wait()
        process.stdout.close()
        found = load(tmp_path)
        assert found.round >= said[-1] and found.record_bytes == found.settings["seed"] == found.round
        assert (found.matrices["x.B"] == found.round).all() and (found.optimizer["first/x.B"] == -found.round).all()


def test_a_round_recorded_after_the_checkpoint_is_cut_off_again(tmp_path) -> None:
    lengths = [record.append_round(tmp_path, {"round": k, "note": "ä\u2028"})[0] for k in (1, 2, 3)]
    path = tmp_path / "rounds.jsonl"
    assert lengths[-1] == path.stat().st_size
    assert record.cut_rounds(tmp_path, lengths[2]) is False and record.cut_rounds(tmp_path, lengths[1]) is True
    assert [row["round"] for row in record.read_rounds(tmp_path)] == [1, 2]
    assert record.append_round(tmp_path, {"round": 3, "note": "ä\u2028"})[0] == lengths[-1]
    assert record.read_rounds(tmp_path)[2] == {"round": 3, "note": "ä\u2028"}


def test_rounds_that_no_killed_run_can_have_left_are_never_cut_off(tmp_path) -> None:
    for k in (1, 2):
        record.append_round(tmp_path, {"round": k})
    with pytest.raises(ValueError, match=r"holds 2 rounds beyond its checkpoint.*remove the run folder"):
        record.cut_rounds(tmp_path, 0)
    assert len(record.read_rounds(tmp_path)) == 2


def test_a_value_that_is_not_finite_is_never_written(tmp_path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.append_round(tmp_path, {"round": 1, "loss": float("nan")})
    assert record.read_rounds(tmp_path) == []


def test_a_record_shorter_than_the_checkpoint_knows_is_refused(tmp_path) -> None:
    record.cut_rounds(tmp_path, 0)  # nothing there and nothing known
    with pytest.raises(ValueError, match="has 0 bytes, the checkpoint expects 5"):
        record.cut_rounds(tmp_path, 5)
    length, _ = record.append_round(tmp_path, {"round": 1})
    with pytest.raises(ValueError, match=f"has {length} bytes, the checkpoint expects {length + 1}"):
        record.cut_rounds(tmp_path, length + 1)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_states_of_the_last_rounds_are_kept_and_no_others(tmp_path, state, keep) -> None:
    for number in range(1, 7):
        save(tmp_path, dataclasses.replace(state, round=number), keep)
    older = sorted(path.name for path in tmp_path.iterdir() if path.name != FILE)
    assert older == [f"checkpoint-00000{number}.safetensors" for number in range(7 - keep, 6)]
    assert load(tmp_path).round == 6 and not load(tmp_path).older


def test_killed_at_any_step_of_a_save_the_new_state_is_there_only_when_nothing_is_left_to_be_done(
    tmp_path, state
) -> None:
    rounds = []
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        folder.mkdir()
        for number in (1, 2):
            save(folder, dataclasses.replace(state, round=number), 2)

        def save_the_third(folder: Path = folder, at: int = at) -> str:
            Steps(folder, at, KILLED, lambda step: None)
            save(folder, dataclasses.replace(state, round=3), 2)
            return ""

        code, said = forked(save_the_third)
        rounds.append(load(folder).round)
        assert rounds[-1] == 2 or not (folder / "checkpoint-000001.safetensors").exists()
        if code == 0:
            break
        assert code == -9, said
    assert rounds == sorted(rounds) and {*rounds} == {2, 3} and len(rounds) > 6


@pytest.mark.parametrize("gone", [False, True])
def test_a_damaged_newest_state_falls_back_to_the_one_before_and_says_so(tmp_path, state, gone, caplog) -> None:
    for number in (1, 2, 3):
        save(tmp_path, dataclasses.replace(state, round=number), 3)
    path = tmp_path / FILE
    if gone:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    found = load(tmp_path)
    assert found.round == 2 and found.older
    assert "going back to round 2, whose state checkpoint-000002.safetensors holds" in caplog.text
    (tmp_path / "checkpoint-000002.safetensors").write_bytes(b"")
    assert load(tmp_path).round == 1
    save(tmp_path, dataclasses.replace(state, round=2), 3)  # the lost rounds are done again
    assert load(tmp_path).round == 2 and not load(tmp_path).older
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint.safetensors is damaged .*-000001.safetensors is damaged"):
        load(tmp_path)


def test_a_line_that_was_changed_after_it_was_written_is_refused(tmp_path) -> None:
    chain = ""
    for number in (1, 2):
        length, chain = record.append_round(tmp_path, {"round": number, "accuracy": 0.51}, chain)
    record.append_round(tmp_path, {"round": 3}, chain)
    assert record.cut_rounds(tmp_path, length, chain)
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0.51", b"0.61", 1))
    with pytest.raises(ValueError, match=rf"rounds.jsonl was changed: its first {length} bytes"):
        record.cut_rounds(tmp_path, length, chain)


def test_a_line_still_being_written_is_left_out(tmp_path) -> None:
    assert record.read_rounds(tmp_path) == []
    record.append_round(tmp_path, {"round": 1})
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 2, "met')
    assert record.read_rounds(tmp_path) == [{"round": 1}]


def test_json_is_written_whole_and_read_back(tmp_path) -> None:
    record.write_json(tmp_path / "x.json", {"a": [1, 2.5, "é"]})
    assert record.read_json(tmp_path / "x.json") == {"a": [1, 2.5, "é"]}
    assert json.loads(Path(tmp_path / "x.json").read_text()) == {"a": [1, 2.5, "é"]}


def test_the_summary_counts_bytes_per_client_that_was_asked_and_that_replied() -> None:
    settings = {"task": "t", "model": "m", "method": "asymmetric", "split": "iid", "seed": 3}
    common = {"message_up": 1000, "message_down": 2000, "train_loss": 1.0}
    rounds = [
        {"round": 1, "metrics": {"accuracy": 0.7}, "clients_asked": 4, "clients_valid": 3, "clients_replied": 3,
         "payload_up": 300, "payload_down": 400, "mismatch": 2e-8, "digest": "one", "seconds": 1.25, **common},
        {"round": 2, "metrics": {"accuracy": 0.6}, "clients_asked": 4, "clients_valid": 1, "clients_replied": 2,
         "payload_up": 100, "payload_down": 400, "mismatch": 1e-8, "digest": "two", "seconds": 2.5, **common},
    ]  # fmt: skip
    config = {"settings": settings, "metric": "accuracy", "head_values": 10, "held_out_examples": 50}
    assert record.summarise(config, rounds, {"accuracy": 0.5, "loss": 1.0}) == {
        **settings, "rounds": 2, "metric": "accuracy", "final": 0.6, "best": 0.7, "untouched": 0.5,
        "held_out_examples": 50,
        "payload_up_per_client_round": 100.0, "payload_down_per_client_round": 100.0, "payload_total": 1200,
        "message_up_per_client_round": 400.0, "message_down_per_client_round": 500.0, "head_bytes": 40,
        "message_total": 6000, "mismatch": 2e-8, "digest": "two", "seconds": 3.75,
    }  # fmt: skip


def test_a_record_with_a_gap_is_never_summed_up() -> None:
    with pytest.raises(ValueError, match=r"holds the rounds \[1, 3\], not 1 to 2: it was changed"):
        record.summarise({"settings": {}, "metric": "accuracy"}, [{"round": 1}, {"round": 3}])


def test_the_versions_name_every_package_that_can_move_a_result() -> None:
    found = record.versions()
    assert {"fedasym", "python", "machine", "flwr", "torch", "transformers", "tokenizers", "numpy"} <= found.keys()
    assert all(found.values())
