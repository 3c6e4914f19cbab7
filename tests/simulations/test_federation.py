"""``python -m simulations federation`` deletes what an earlier one has left, and nothing else."""

from pathlib import Path

import pytest

from simulations.__main__ import main
from simulations.folders import clear, is_federation


@pytest.mark.parametrize("file", ["thesis.tex", "server.toml", "server/notes.txt", "data/north/train.csv"])
def test_a_folder_that_is_no_earlier_federation_is_refused_by_name_and_kept(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "work" / file
    path.parent.mkdir(parents=True)
    path.write_text("dear")
    assert main(["federation", "--out", str(tmp_path / "work")]) == 1
    said = "".join(capsys.readouterr().out.split())
    assert f"{tmp_path}/work" in said and "--out" in said
    assert path.read_text() == "dear"


def test_a_file_in_the_place_of_the_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("dear")
    with pytest.raises(FileExistsError, match=str(tmp_path / "work")):
        clear(tmp_path / "work", is_federation, "federation")
    assert (tmp_path / "work").read_text() == "dear"


def test_an_earlier_federation_makes_way_and_an_empty_folder_or_none_is_taken(tmp_path: Path) -> None:
    (tmp_path / "earlier" / "server").mkdir(parents=True)
    (tmp_path / "earlier" / "server" / "server.toml").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("earlier", "empty", "none"):
        clear(tmp_path / name, is_federation, "federation")
    assert not (tmp_path / "earlier").exists() and (tmp_path / "empty").is_dir()
