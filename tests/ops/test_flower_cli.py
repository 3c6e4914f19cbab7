"""Flower's command line is called as a process, and one that hangs holds nobody."""

import time
from pathlib import Path

import pytest

from fedasym.ops import flower_cli


def test_a_command_that_hangs_is_given_up_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hung = tmp_path / "flwr"
    hung.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    hung.chmod(0o755)
    monkeypatch.setattr(flower_cli, "tool", lambda name: str(hung))
    began = time.monotonic()
    with pytest.raises(flower_cli.FlowerError, match="`flwr list` did not answer within 1 s"):
        flower_cli.flwr(["list"], {}, seconds=1.0)
    assert time.monotonic() - began < 60
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_an_answer_that_says_no_is_an_error_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "flwr"
    said.write_text('#!/bin/sh\necho \'{"success": false, "error-message": "no such run"}\'\n')
    said.chmod(0o755)
    monkeypatch.setattr(flower_cli, "tool", lambda name: str(said))
    with pytest.raises(flower_cli.FlowerError, match="`flwr list` failed: no such run"):
        flower_cli.flwr(["list"], {"PATH": "/bin:/usr/bin"})
