"""Files that a library writes into a folder take the places of those that were there, in its folders too."""

from pathlib import Path

from fedasym.files import replacing


def test_files_in_folders_take_the_place_of_earlier_ones_and_what_is_not_written_anew_stays(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with replacing(tmp_path) as new:
            (new / "templates").mkdir()
            (new / "templates" / "tools.jinja").write_text(text)
            if text == "first":
                (new / "tokenizer.json").write_text(text)
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"templates/tools.jinja": "second", "tokenizer.json": "first"}
