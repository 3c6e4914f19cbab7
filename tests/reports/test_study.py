"""The study's tables and page say what the lines say, mark what may be marked, and stand alone."""

import base64
import html
import io
import json
import random
import re

import numpy as np
import pytest
from html_resources import Resources
from matplotlib import image
from study_lines import METHODS, make_line, make_lines

from fedasym.reports.html_page import render
from fedasym.reports.plots import COLOURS, MARKERS, STYLES
from fedasym.reports.study.costs import cost_sheet, reach_sheet, savings
from fedasym.reports.study.figures import figures
from fedasym.reports.study.panels import Curve, Panel, draw_panels
from fedasym.reports.study.result_lines import gaps, in_order
from fedasym.reports.study.scores import TIED, clients_sheet, difference_sheet, score_sheets
from fedasym.reports.study.shared_settings import settings_sheets
from fedasym.reports.study.study_page import comparison_markdown, write_comparison
from fedasym.reports.study.tuning_table import tuning_markdown
from fedasym.reports.table import Entry, Sheet, to_markdown
from simulations.__main__ import main

SCRIPT = "<script>alert('x')</script>"
SINGLE = [
    "n = 1 seed (7): no interval over seeds. Intervals of paired differences are over tasks and splits, and say "
    "nothing of how the methods vary with the seed."
]
SMALL = {
    "seeds": (0, 1), "methods": ("asymmetric", "lora", "fedsa", "central"), "tasks": ("cola", "sst2"),
    "splits": ("iid", "severe"),
}  # fmt: skip


def rows_of(sheet):
    """Entries by name of the row and column's heading."""
    heads = [name.split("\n")[0] for name in sheet.columns]
    return {row[0].text: dict(zip(heads, row, strict=True)) for row in sheet.rows if len(row) > 1}


@pytest.fixture(scope="module")
def whole():
    """Every method, task, split and three seeds."""
    return in_order(make_lines())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a small study."""
    out = tmp_path_factory.mktemp("study") / "page.html"
    write_comparison(make_lines(**SMALL), out, command="make study")
    return out


def test_scores_are_means_over_seeds(whole) -> None:
    overview, iid, *_ = score_sheets(whole)
    finals = [x["final"] for x in whole if (x["method"], x["task"], x["split"]) == ("ffa", "cola", "iid")]
    assert rows_of(iid)["FFA-LoRA"]["cola"].text.startswith(f"{sum(finals) / 3:.3f} ± 0.0")
    every = [x["final"] for x in whole if x["method"] == "ffa" and x["split"] != "iid"]
    assert rows_of(overview)["FFA-LoRA"]["non-iid splits"].text.startswith(f"{sum(every) / 24:.3f} ± ")


def test_the_best_is_bold_once_a_column_and_never_personalised_or_a_reference(whole) -> None:
    for sheet in score_sheets(whole):
        rows = rows_of(sheet)
        for column in list(rows["FFA-LoRA"])[1:]:
            bold = [name for name, row in rows.items() if row[column].strong]
            assert bold == ["full fine-tuning"]  # by the formula; FedSA-LoRA and central are higher
            assert float(rows["FedSA-LoRA"][column].text[:5]) > float(rows[bold[0]][column].text[:5])
        for name in ("FedSA-LoRA", "central, all data", "local only"):
            assert not any(entry.strong or entry.sign for entry in rows[name].values())
    assert any(entry.sign == TIED for s in score_sheets(whole) for row in s.rows for entry in row)
    assert not any(entry.strong for row in clients_sheet(whole).rows for entry in row)


def test_one_seed_says_so_and_has_neither_interval_nor_tie() -> None:
    lines = in_order(make_lines(**SMALL | {"seeds": (7,)}))
    assert gaps(lines) == SINGLE
    said = comparison_markdown(lines)
    assert "±" not in said and TIED not in said and "n = 1 seed" in said


def test_missing_cells_are_told_and_leave_their_mean_out(whole) -> None:
    torn = [x for x in whole if (x["method"], x["task"], x["split"]) != ("ffa", "cola", "iid")]
    assert any(text.startswith("FFA-LoRA lacks 3 cells that others have: cola iid seed 0,") for text in gaps(torn))
    iid = rows_of(score_sheets(torn)[1])["FFA-LoRA"]
    assert iid["cola"].text == iid["mean"].text == "–" and iid["sst2"].text != "–"
    fewer = [x for x in whole if (x["method"], x["task"], x["seed"]) != ("ffa", "cola", 2)]
    assert rows_of(score_sheets(fewer)[1])["FFA-LoRA"]["mean"].small == "n = 2"


def test_the_best_is_not_the_worst_that_happens_to_be_complete(whole) -> None:
    torn = [x for x in whole if x["method"] == "a-only" or (x["task"], x["seed"]) != ("cola", 0)]
    assert rows_of(score_sheets(torn)[0])["full fine-tuning"]["severe"].strong


def test_differences_are_ours_minus_theirs_where_both_were_judged_alike(whole) -> None:
    rows = rows_of(difference_sheet(whole))
    lora = {(x["task"], x["split"], x["seed"]): x["final"] for x in whole if x["method"] == "lora"}
    ours = {(x["task"], x["split"], x["seed"]): x["final"] for x in whole if x["method"] == "asymmetric"}
    mean = sum(ours[cell] - lora[cell] for cell in ours) / len(ours)
    assert rows["standard LoRA"]["all splits"].text == f"+{mean:.4f}" and rows["standard LoRA"]["all splits"].strong
    assert rows["FedSA-LoRA"]["minus"].small == "at the clients"
    blind = [x | {"client_metric_by_round": []} for x in whole if x["method"] in ("asymmetric", "fedsa", "lora")]
    assert rows_of(difference_sheet(blind))["FedSA-LoRA"]["all splits"].text == "–"
    assert difference_sheet([x for x in whole if x["method"] == "lora"]) is None


def test_costs_are_told_with_and_without_the_head_and_against_lora(whole) -> None:
    rows = rows_of(cost_sheet(whole))
    ours = rows["B only (fedasym)"]
    assert ours["payload up"][:2] == ("4.40 kB", "no head 4.00 kB")
    assert ours["saving"][:2] == ("45.0 %", "no head 47.4 %")
    assert [rows[name]["worst mismatch"].small for name in ("B only (fedasym)", "FlexLoRA")] == ["exact", "not exact"]
    assert rows["FedSA-LoRA"]["worst mismatch"].text == rows["central, all data"]["payload up"].text == "–"
    assert set(savings(whole, "asymmetric", "lora")) == {1 - 8800 / 16000}
    assert rows_of(cost_sheet([make_line()]))["B only (fedasym)"]["saving"].text == "–"


def test_costs_that_differ_between_tasks_are_told_as_least_and_most() -> None:
    lines = [make_line(), make_line(task="stsb", payload_up_per_client_round=5000.0)]
    assert rows_of(cost_sheet(lines))["B only (fedasym)"]["payload up"].text == "4.40 kB – 5.00 kB"


def test_the_reference_reaches_its_own_value_with_all_its_bytes_at_most(whole) -> None:
    row = rows_of(reach_sheet(whole))["standard LoRA"]
    assert row["iid"].text == "12 of 12" and reach_sheet([make_line()]) is None


def test_the_page_stands_alone_and_its_figures_lie_beside_it(page) -> None:
    said = page.read_text()
    seen = Resources(said)
    assert all(link.startswith("data:image/png;base64,") for link in seen.links)
    assert not seen.tags & {"script", "link", "iframe", "object", "embed"} and "url(" not in said
    inside = re.findall(r'alt="(.*?)" src="data:image/png;base64,(.*?)"', said)
    assert sorted(path.stem for path in (page.parent / "plots").iterdir()) == sorted(name for name, _ in inside)
    names = {"metric-by-round", "metric-by-bytes", "train-loss", "mismatch", "clients-metric", "split-cola-severe"}
    assert names < {name for name, _ in inside} and len(inside) == 5 + 2 * 2
    for name, data in inside:
        assert base64.b64decode(data) == (page.parent / "plots" / f"{name}.png").read_bytes()


def test_settings_are_told_by_what_they_depend_on(whole) -> None:
    shared, by_method, others = settings_sheets(whole)
    assert [row[0].text for row in shared.rows] == ["num-rounds", "num-clients"]
    assert by_method.columns == ["method", "lr", "kind"]
    assert [Entry("standard LoRA"), Entry("0.1"), Entry("kaiming")] in by_method.rows
    told = "text: cola, sst2; sentence1,sentence2: mrpc, stsb"
    assert others.rows == [[Entry("text-columns", "by task"), Entry(told)]]


def test_the_page_says_how_to_run_it_again(page) -> None:
    said = html.unescape(page.read_text())
    assert "<pre>make study</pre>" in said
    assert """flwr run . --run-config 'method="lora" task="cola" split="iid" num-rounds=12""" in said


def test_the_same_lines_in_any_order_give_the_same_bytes(page, tmp_path) -> None:
    lines = make_lines(**SMALL)
    random.Random(0).shuffle(lines)
    write_comparison(lines, tmp_path / "again.html", command="make study")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_a_single_cell_of_any_method_has_its_tables(method) -> None:
    assert METHODS[method][0] in comparison_markdown([make_line(method)])


@pytest.mark.parametrize("method", ["flexlora", "fedsa", "central", "local"])
def test_a_single_cell_of_each_kind_of_method_has_a_page(method, tmp_path) -> None:
    write_comparison([make_line(method, train_loss_by_round=[0.5] * 12)], tmp_path / "page.html")
    assert METHODS[method][0] in (tmp_path / "page.html").read_text()


def test_everything_from_the_lines_is_escaped(tmp_path) -> None:
    line = make_line() | {"label": SCRIPT, "model": "<b>", "task": "<i>/..", "settings": {"<u>": SCRIPT}}
    write_comparison([line | {"versions": {"<em>": SCRIPT}}], tmp_path / "page.html", command=SCRIPT)
    seen = Resources((tmp_path / "page.html").read_text())
    assert not seen.tags & {"script", "b", "i", "u", "em"}
    assert all(path.parent == tmp_path / "plots" for path in tmp_path.rglob("*.png"))


def test_a_table_is_the_same_in_markdown_and_html() -> None:
    sheet = Sheet("t", ("a", "b\nc"), [[Entry("x|y"), Entry("1", "n", True, "≈")], [Entry("block")]], "note")
    assert to_markdown(sheet) == "| a | b c |\n| --- | --- |\n| x\\|y | **1** ≈ (n) |\n| *block* |  |\n\nnote"
    said = render('{% from "macros" import section %}{{ section(sheet) }}', sheet=sheet)
    assert '<td><strong>1</strong><span class="sign">≈</span><small>n</small></td>' in said
    assert '<th scope="col">b<br>c</th>' in said and '<th colspan="2">block</th>' in said


def test_the_tuning_table_takes_any_settings_and_tasks() -> None:
    grid = [
        {"cell": {"method": "lora", "lr": 0.1}, "score": 0.5, "tasks": {"cola": 0.4, "sst2": 0.6}},
        {"cell": {"method": "lora", "lr": 0.3, "lambda": 1e-4}, "score": 0.7, "tasks": {"sst2": 0.7}},
        {"cell": {"method": "ffa", "lr": 1.0}, "score": 0.1},
        {"cell": {"method": "lora", "lr": 3.0}, "score": None, "tasks": {"cola": None, "sst2": 0.2}},
    ]
    assert tuning_markdown(grid).splitlines()[2:] == [
        "| ffa | 1 | – | 0.1000 * | – | – |",
        "| lora | 0.3 | 0.0001 | 0.7000 * | – | 0.7000 * |",
        "| lora | 0.1 | – | 0.5000 | 0.4000 * | 0.6000 |",
        "| lora | 3 | – | – | – | 0.2000 |",
    ]


def test_thirteen_methods_are_drawn_in_thirteen_ways() -> None:
    ways = {(k % len(COLOURS), k % len(STYLES), k % len(MARKERS), k < len(COLOURS)) for k in range(len(METHODS))}
    assert len(ways) == len({way[:2] for way in ways}) == len(METHODS)


def test_panels_that_are_missing_empty_or_flat_are_drawn() -> None:
    curve = Curve("$x_", 8, [1e3, 1e5], [0.0, 0.5], [0.0, 0.4], [0.0, 0.6])
    rows = [[Panel("$t_", "y", [curve], [("_level", 0.5)]), None], [None, Panel("u", "y", [curve])]]
    for scales in ({}, {"x_bytes": True}, {"y_log": True}):
        png = draw_panels(rows, "x", **scales)
        assert png == draw_panels(rows, "x", **scales)
        assert np.ptp(image.imread(io.BytesIO(png), format="png")[..., :3]) > 0.5


def test_many_tasks_are_drawn_on_several_figures_of_a_page_each() -> None:
    line = make_line(mismatch=None, mismatch_by_round=[], client_metric_by_round=[])  # which need no figures then
    lines = [line | {"task": f"task {k}"} for k in range(5)]
    names = [name for name in figures(in_order(lines)) if name.startswith("metric-by-round")]
    assert names == ["metric-by-round-1", "metric-by-round-2"]


def test_the_command_line_makes_page_and_markdown_of_a_file_of_lines(tmp_path, capsys) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text(
        "".join(json.dumps(line) + "\n" for line in make_lines((0,), ("asymmetric", "lora"), ("sst2",), ("iid",)))
    )
    assert main(["page", str(file), "--out", str(tmp_path / "page.html")]) == 0
    assert "standard LoRA" in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    assert main(["page", str(file), "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("* n = 1 seed (0)")
    assert main(["page", str(tmp_path / "absent.jsonl")]) == 1
