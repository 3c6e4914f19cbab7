"""A client that builds on what it was sent before says so when it lacks it, is sent everything, and ends alike."""

import shutil
from pathlib import Path

import pytest
from flwr.app import MessageType
from safetensors.numpy import load_file
from world import Seen, tiny_settings, watched_run

from clients.errors import Refusal
from clients.session import session_of
from clients.train_round import train_round
from fedasym.runs import checkpoint
from fedasym.runs.record import read_rounds
from fedasym.wire import records
from simulations.engines.grid import InProcessGrid

REMEMBERING = ("rolora", "fedex", "flora")
FEW = {"targets": "query,intermediate.dense", "num_clients": 3, "local_steps": 2}
A, B, H, SHIFT = 4 * 32 + 4 * 32, 32 * 4 + 64 * 4, 2 * 32 + 2, 32 * 32 + 64 * 32  # values of each
HELD = {"rolora": A + B + H, "fedex": A + B + H + SHIFT, "flora": A + B + H + SHIFT}  # by every party


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


def digests(folder: Path) -> list[str]:
    return [row["digest"] for row in read_rounds(folder)]


def held(folder: Path, number: int, client: int) -> str | None:
    """Return the digest of what a client keeps of what it held at the start of a round."""
    paths = list(folder.glob(f"clients/*/client-{client}/held-{number:06d}.safetensors"))
    return records.digest(load_file(paths[0])) if paths else None


def asked_of(seen: list[Seen]) -> set[tuple[int, int]]:
    return {(one.round, one.client) for one in seen}


@pytest.mark.parametrize("method", REMEMBERING)
def test_a_client_that_missed_a_round_is_sent_everything_in_the_same_round_and_every_byte_counts(
    world: Path, tmp_path: Path, method: str
) -> None:
    settings = tiny_settings(
        world, method=method, out=str(tmp_path / "one"), clients_per_round=2, num_rounds=4, **{**FEW, "seed": 1}
    )
    folder, seen = watched_run(settings, workers=1)
    asked, refused, whole = asked_of(seen), 0, 0
    for row in read_rounds(folder):
        messages = [one for one in seen if one.round == row["round"]]
        for client in {one.client for one in messages}:
            first, *rest = [one for one in messages if one.client == client]
            behind = row["round"] > 1 and (row["round"] - 1, client) not in asked
            assert not first.whole and (not len(first.up)) == behind
            assert [(one.whole, len(one.down), len(one.up) > 0) for one in rest] == [
                (True, HELD[method], True)
            ] * behind
            refused, whole = refused + behind, whole + len(rest)
        assert row["clients_valid"] == row["clients_asked"] == 2 and not row["rejections"] and not row["warnings"]
        assert row["payload_down"] == sum(one.down.nbytes for one in messages)
        assert row["payload_up"] == sum(one.up.nbytes for one in messages)
        assert row["message_down"] > row["payload_down"] and row["message_up"] > row["payload_up"]
    assert refused == whole > 0
    assert (4, 0) in asked or (4, 1) in asked
    last = {client: held(folder, 4, client) for number, client in asked if number == 4}
    assert set(last.values()) == {digests(folder)[2]}  # what round 3 came to, whoever was there before
    two, _ = watched_run(tiny_settings(world, **{**settings.__dict__, "out": str(tmp_path / "two")}), workers=2)
    assert digests(two) == digests(folder)


@pytest.mark.parametrize("method", REMEMBERING)
def test_a_client_that_lost_its_disk_ends_with_the_same_bits_as_if_it_had_not(
    world: Path, tmp_path: Path, method: str
) -> None:
    more = {"method": method, "num_rounds": 3, **FEW}
    whole, all_along = watched_run(tiny_settings(world, out=str(tmp_path / "whole"), **more))

    def lose(number: int, client: int) -> None:
        if (number, client) == (3, 1):
            for folder in (tmp_path / "lost").glob("clients/*/client-1"):
                if not (folder / "held-000003.safetensors").exists():
                    shutil.rmtree(folder)

    lost, seen = watched_run(tiny_settings(world, out=str(tmp_path / "lost"), **more), first=lose)
    assert [(one.round, one.client) for one in seen if one.whole] == [(3, 1)]
    assert digests(lost) == digests(whole)
    assert {held(folder, 3, client) for folder in (lost, whole) for client in range(3)} == {digests(whole)[1]}
    rows, there = read_rounds(lost), read_rounds(whole)
    assert [row["payload_down"] for row in rows[:2]] == [row["payload_down"] for row in there[:2]]
    assert rows[2]["payload_down"] == there[2]["payload_down"] + 4 * HELD[method]
    assert rows[2]["payload_up"] == there[2]["payload_up"]
    assert rows[2]["message_up"] > there[2]["message_up"]  # the words of the refusal
    assert len(seen) == len(all_along) + 1


def test_what_was_sent_and_is_damaged_is_sent_again_and_what_never_left_the_client_is_refused_by_name(
    world: Path, tmp_path: Path
) -> None:
    more = {"method": "rolora", "head": "local", "client_holdout": 0.25, "num_rounds": 3, **FEW}
    flipped = {0: "round-000002.safetensors", 1: "held-000002.safetensors"}

    def flip(number: int, client: int) -> None:
        if number == 3 and client in flipped:
            (path,) = (tmp_path / "run").glob(f"clients/*/client-{client}/{flipped.pop(client)}")
            whole = path.read_bytes()
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    folder, seen = watched_run(tiny_settings(world, out=str(tmp_path / "run"), **more), first=flip)
    assert [(one.round, one.client) for one in seen if one.whole] == [(3, 1)]
    row = read_rounds(folder)[2]
    assert set(row["weights"]) == {"1", "2"} and set(row["rejections"]) == {"0"}
    assert "client-0/round-000002.safetensors is damaged (its checksum differs); put it back" in row["rejections"]["0"]


class Crash(Exception):
    """The server's process ends here."""


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("fedex", {"clients_per_round": 2}),
        ("rolora", {"server_optimizer": "adam", "server_lr": 0.01}),
        ("fedsa", {"client_holdout": 0.25}),
    ],
)
def test_a_server_that_dies_in_every_round_while_clients_train_ends_with_the_same_bits(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, more: dict[str, object]
) -> None:
    values = {"method": method, "num_rounds": 3, **FEW, **more}
    whole, _ = watched_run(tiny_settings(world, out=str(tmp_path / "whole"), **values))
    answered, crashed = InProcessGrid.pull_messages, set()

    def pull_and_crash_once_a_round(self, names):
        replies = list(answered(self, names))
        rounds = {reply.metadata.group_id for reply in replies if reply.metadata.message_type == MessageType.TRAIN}
        for number in rounds - crashed:
            crashed.add(number)
            raise Crash
        return replies

    settings = tiny_settings(world, out=str(tmp_path / "run"), **values)
    monkeypatch.setattr(InProcessGrid, "pull_messages", pull_and_crash_once_a_round)
    for done in range(3):
        with pytest.raises(Crash):
            watched_run(settings)
        state = checkpoint.load(tmp_path / "run")
        assert (state.round if state else 0) == done
    folder, _ = watched_run(settings)
    assert crashed == {"1", "2", "3"}
    timeless = [
        {key: value for key, value in row.items() if key not in ("seconds", "message_up", "message_down")}
        for row in read_rounds(folder)
    ]
    for row, other in zip(timeless, read_rounds(whole), strict=True):
        assert row == {key: other[key] for key in row}
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_method_that_remembers_nothing_leaves_nothing_on_the_clients_disks(world: Path, tmp_path: Path) -> None:
    folder, _ = watched_run(tiny_settings(world, out=str(tmp_path / "run"), num_rounds=1, **FEW))
    assert not (folder / "clients").exists()


@pytest.mark.parametrize(
    ("method", "number", "weights"), [("asymmetric", 2, [1]), ("fedex", 2, []), ("fedex", 2, [3, 0]), ("flora", 1, [1])]
)
def test_weights_that_do_not_fit_the_method_are_refused(tmp_path: Path, method, number, weights) -> None:
    site = session_of(tiny_settings(tmp_path, method=method).resolved())
    about = {
        "contract": site.contract.hash,
        "round": number,
        "client": 0,
        "run": "0" * 32,
        "whole": False,
        "weights": weights,
    }
    content = records.pack({}, (), about)
    with pytest.raises(Refusal, match=rf"round {number} of {method} came with the weights \{weights}"):
        train_round(site, site.holdings[""], content, tmp_path / "keep")


def test_a_client_whose_private_matrices_are_gone_is_named_in_the_record(tmp_path: Path) -> None:
    values = {"method": "fedsa", "client_holdout": 0.2, "out": str(tmp_path / "run"), **FEW}
    watched_run(tiny_settings(tmp_path, **values, num_rounds=2))
    assert read_rounds(tmp_path / "run")[1]["warnings"] == []
    shutil.rmtree(next((tmp_path / "run").glob("clients/*/client-2")))
    watched_run(tiny_settings(tmp_path, **values, num_rounds=3))
    assert read_rounds(tmp_path / "run")[2]["warnings"] == [
        "client 2 started its private matrices anew: it takes part for the first time, or lost its disk"
    ]
