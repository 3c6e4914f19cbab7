"""The READMEs' tables are those that the committed result lines give, and their figures are there."""

import re
from pathlib import Path

import pytest

from simulations.study.tables import PAGES, refreshed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_making_the_tables_anew_changes_nothing(page) -> None:
    text = page.read_text()
    assert "<!-- table: " in text and refreshed(page) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_figure_and_file_that_a_page_links_to_is_there(page) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text())
    assert links and not [link for link in links if not (page.parent / link.partition("#")[0]).exists()]


def test_a_block_of_a_missing_file_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- table: results/nothing.jsonl -->\n<!-- end -->\n")
    with pytest.raises(FileNotFoundError, match=r"has a table of results/nothing\.jsonl"):
        refreshed(page)
