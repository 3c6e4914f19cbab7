"""The READMEs' tables are those that the committed result lines give, and their figures are there."""

import re
from pathlib import Path

import pytest
from study_lines import make_lines

from simulations.study.tables import PAGES, refreshed, start_markdown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_making_the_tables_anew_changes_nothing(page) -> None:
    text = page.read_text()
    assert "<!-- table: " in text and refreshed(page) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_figure_and_file_that_a_page_links_to_is_there(page) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text())
    assert links and not [link for link in links if not (page.parent / link.partition("#")[0]).exists()]


def test_a_block_of_a_missing_file_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- table: results/nothing.jsonl -->\n<!-- end -->\n")
    with pytest.raises(FileNotFoundError, match=r"has a table of results/nothing\.jsonl"):
        refreshed(page)


def test_the_ablation_of_As_start_compares_each_method_with_itself_and_both_with_one_start() -> None:
    lines = make_lines((0, 1, 2), ("asymmetric", "lora"), ("sst2", "stsb"), ("dirichlet:0.5",))
    others = {
        "asymmetric": ("asymmetric:kaiming", "B only, kaiming A"),
        "lora": ("lora:orthonormal", "LoRA, orthonormal A"),
    }
    lines += [line | dict(zip(("method", "label"), others[line["method"]], strict=True)) for line in lines]
    said = start_markdown(lines).split("### ")[1:]
    assert [part.splitlines()[0] for part in said] == [
        "Split dirichlet 0.5",
        *("B only (fedasym) minus each other method", "B only (fedasym) minus each other method, task by task"),
        *("standard LoRA minus each other method", "standard LoRA minus each other method, task by task"),
    ]
    compared = [[row.split(" | ")[0][2:] for row in part.splitlines()[4:] if row.startswith("|")] for part in said[1:]]
    assert compared == 2 * [["B only, kaiming A", "standard LoRA", "LoRA, orthonormal A"]] + 2 * [
        ["B only, kaiming A", "LoRA, orthonormal A"]
    ]
