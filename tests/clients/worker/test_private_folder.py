"""A site's folder is its owner's alone, and one process's at a time."""

import os
from pathlib import Path

import pytest

from clients.worker.private_folder import LONGEST_SOCKET, make_private, socket_in
from fedasym.ops.processes import held_alone


def test_only_a_folder_that_its_owner_alone_can_enter_holds_a_socket(tmp_path: Path) -> None:
    folder = make_private(tmp_path / "state")
    assert socket_in(folder) == folder / "worker.sock"
    folder.chmod(0o750)
    with pytest.raises(PermissionError, match=r"mode 0750, expected 0700.*chmod 700"):
        socket_in(folder)
    with pytest.raises(PermissionError, match="mode 0750"):
        make_private(folder)
    link = tmp_path / "link"
    link.symlink_to(make_private(tmp_path / "other"))
    with pytest.raises(NotADirectoryError, match="is no folder"):
        socket_in(link)


def test_a_folder_of_another_owner_is_refused(tmp_path: Path) -> None:
    folder = Path("/")  # root's; root itself gives a folder away
    if os.geteuid() == 0:
        folder = make_private(tmp_path / "state")
        os.chown(folder, 12345, -1)
    owner = folder.stat().st_uid
    with pytest.raises(PermissionError, match=f"belongs to user {owner}, and we are {os.geteuid()}"):
        socket_in(folder)


def test_a_path_too_long_for_a_socket_is_refused_with_its_length(tmp_path: Path) -> None:
    folder = make_private(tmp_path / ("x" * LONGEST_SOCKET))
    with pytest.raises(ValueError, match=r"has \d+ bytes, and a socket's path may have 103; choose a shorter --state"):
        socket_in(folder)


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = make_private(tmp_path / "state")
    with held_alone(folder, ""), pytest.raises(BlockingIOError, match="in use by another"), held_alone(folder, "go"):
        pass
    with held_alone(folder, ""):
        pass
