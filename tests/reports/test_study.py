"""The study's tables and page say what the lines say, mark what may be marked, and stand alone."""

import base64
import html
import io
import json
import math
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
from fedasym.reports.study.scores import BELOW, clients_sheet, difference_sheets, score_sheets
from fedasym.reports.study.shared_settings import settings_sheets
from fedasym.reports.study.study_page import comparison_markdown, comparison_sheets, write_comparison
from fedasym.reports.study.tuning_table import tuning_markdown
from fedasym.reports.table import Entry, Sheet, to_markdown
from simulations.__main__ import main

SCRIPT = "<script>alert('x')</script>"
SINGLE = [
    "n = 1 seed (7): no interval over seeds. Intervals of paired differences, if any, are over tasks, and say nothing "
    "of how the methods vary with the seed."
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


def apart(**best):
    """Lines of one task and four seeds in which ``full`` is far above all others, but for what ``best`` says."""
    lines = make_lines((0, 1, 2, 3), ("asymmetric", "lora", "full", "fedsa", "central"), ("sst2",), ("iid",))
    level = {"asymmetric": 0.5, "lora": 0.51, "full": 0.8, "fedsa": 0.9, "central": 0.9} | best
    wave = {method: 1e-3 * math.sin(7 * place) for place, method in enumerate(level)}  # so that no two move alike
    return in_order(x | {"final": level[x["method"]] + wave[x["method"]] * (x["seed"] - 1.5)} for x in lines)


def test_the_best_is_bold_where_all_others_are_told_apart_from_it_and_never_personalised_or_a_reference() -> None:
    rows = rows_of(score_sheets(apart())[0])
    assert [name for name, row in rows.items() if row["iid"].strong] == ["full fine-tuning"]
    assert [name for name, row in rows.items() if row["iid"].sign == BELOW] == ["B only (fedasym)", "standard LoRA"]
    assert float(rows["FedSA-LoRA"]["iid"].text[:5]) > float(rows["full fine-tuning"]["iid"].text[:5])
    close = rows_of(score_sheets(apart(lora=0.8001))[0])
    assert not any(row["iid"].strong for row in close.values())
    assert [name for name, row in close.items() if row["iid"].sign == BELOW] == ["B only (fedasym)"]


def test_nothing_is_bold_or_marked_at_the_clients_or_of_one_seed(whole) -> None:
    one = [x for x in apart() if x["seed"] == 0]
    for sheet in (clients_sheet(whole), *score_sheets(one), *difference_sheets(one)):
        assert not any(entry.strong or entry.sign for row in sheet.rows for entry in row)


def test_one_seed_says_so_and_tells_nothing_apart() -> None:
    lines = in_order(make_lines(**SMALL | {"seeds": (7,)}))
    assert gaps(lines) == SINGLE
    said = comparison_markdown(lines)
    assert "±" not in said and BELOW not in said and "n = 1 seed" in said


def test_missing_cells_are_told_and_leave_their_mean_out(whole) -> None:
    torn = [x for x in whole if (x["method"], x["task"], x["split"]) != ("ffa", "cola", "iid")]
    assert any(text.startswith("FFA-LoRA lacks 3 cells that others have: cola iid seed 0,") for text in gaps(torn))
    iid = rows_of(score_sheets(torn)[1])["FFA-LoRA"]
    assert iid["cola"].text == iid["mean"].text == "–" and iid["sst2"].text != "–"
    fewer = [x for x in whole if (x["method"], x["task"], x["seed"]) != ("ffa", "cola", 2)]
    assert rows_of(score_sheets(fewer)[1])["FFA-LoRA"]["mean"].small == "n = 2"


def test_differences_are_ours_minus_theirs_where_both_were_judged_alike(whole) -> None:
    sheet, by_task = difference_sheets(whole)
    rows = rows_of(sheet)
    assert sheet.columns[1:] == [
        f"{name}\nn = 4" for name in ("iid", "dirichlet 0.5", "severe", "non-iid splits", "all splits")
    ]
    assert by_task.columns[1:] == [f"{task}\nn = 3" for task in ("cola", "mrpc", "sst2", "stsb")]
    lora = {(x["task"], x["split"], x["seed"]): x["final"] for x in whole if x["method"] == "lora"}
    ours = {(x["task"], x["split"], x["seed"]): x["final"] for x in whole if x["method"] == "asymmetric"}
    mean = sum(ours[cell] - lora[cell] for cell in ours) / len(ours)
    assert rows["standard LoRA"]["all splits"].text == f"+{mean:.4f}"
    by_task_mean = sum(ours[cell] - lora[cell] for cell in ours if cell[0] == "cola") / 9
    assert rows_of(by_task)["standard LoRA"]["cola"].text == f"+{by_task_mean:.4f}"
    assert rows["FedSA-LoRA"]["minus"].small == "at the clients"
    blind = [x | {"client_metric_by_round": []} for x in whole if x["method"] in ("asymmetric", "fedsa", "lora")]
    assert rows_of(difference_sheets(blind)[0])["FedSA-LoRA"]["all splits"].text == "–"
    assert difference_sheets([x for x in whole if x["method"] == "lora"]) == []


def test_a_difference_is_bold_only_where_it_survives_all_others_of_its_table() -> None:
    (sheet,) = difference_sheets(apart(asymmetric=0.7), "full")
    rows = rows_of(sheet)
    assert rows["B only (fedasym)"]["iid"].strong and rows["standard LoRA"]["iid"].strong
    assert rows["central, all data"]["iid"].strong  # it is 0.1 above, in every seed
    assert "for all differences of this table that have an interval (3), at 5 %." in sheet.note
    (close,) = difference_sheets(apart(full=0.5001), "asymmetric")
    assert not rows_of(close)["full fine-tuning"]["iid"].strong


def test_a_run_without_a_split_counts_once_however_many_splits_it_stands_beside() -> None:
    lines = in_order(make_lines((0, 1, 2), ("asymmetric", "central"), ("sst2",), ("iid", "dirichlet:0.5", "severe")))
    (sheet,) = difference_sheets(lines)
    assert sheet.columns[1:] == [
        "iid\nn = 3",
        "dirichlet 0.5\nn = 3",
        "severe\nn = 3",
        "non-iid splits\nn = 3",
        "all splits\nn = 3",
    ]


def test_the_split_of_all_data_in_one_place_is_no_column() -> None:
    lines = in_order([*make_lines((0, 1), ("asymmetric", "lora"), ("sst2",), ("severe",)), make_line("central")])
    assert [sheet.columns for sheet in score_sheets(lines)] == [["method", "severe"]]
    assert rows_of(score_sheets(lines)[0])["central, all data"]["severe"].text == f"{make_line('central')['final']:.3f}"


def test_a_cell_that_cannot_be_made_is_shown_as_missing_with_its_reason() -> None:
    reason = "split='severe' gives client 2 3 examples, fewer than min-examples=8; use fewer clients"

    def never(method, seed, task="sst2"):
        key = {"method": method, "task": task, "split": "severe", "seed": seed}
        return key | {"impossible": reason, "settings": key}

    whole = make_lines((0, 1), ("asymmetric", "lora"), ("cola", "sst2"), ("iid", "severe"))
    lines = [x for x in whole if (x["task"], x["split"]) != ("sst2", "severe")]
    lines += [never(method, seed) for method in ("lora", "asymmetric") for seed in (1, 0)]
    overview, _, severe, *_ = comparison_sheets(lines)
    assert overview.columns[2] == "severe\nwithout sst2" and severe.columns[2].split("\n")[0] == "sst2"
    assert rows_of(severe)["standard LoRA"]["sst2"] == Entry("–", "cannot be made")
    assert rows_of(severe)["standard LoRA"]["cola"].text.startswith("0.")
    less = difference_sheets(in_order(lines))[0]  # over tasks, of which severe has one left
    assert less.columns[2] == "severe\nn = 1" and rows_of(less)["standard LoRA"]["severe"].small == "n = 1: no interval"
    said = f"* sst2, split severe, seed 0, 1 cannot be made (B only (fedasym), standard LoRA): {reason}."
    assert comparison_markdown(lines).splitlines()[0] == said
    assert not [text for text in comparison_markdown(lines).splitlines() if "lacks" in text]
    made = [*lines, *(x for x in whole if (x["task"], x["split"]) == ("sst2", "severe"))]  # tried again, with success
    assert comparison_markdown(made) == comparison_markdown(whole)
    with pytest.raises(ValueError, match=r"no cell could be made, .*fewer than min-examples=8"):
        comparison_markdown([never("lora", 0)])


def test_methods_of_another_A_stand_beside_those_of_their_own() -> None:
    lines = make_lines((0, 1), ("asymmetric", "lora", "ffa"), ("sst2",), ("iid",))
    lines += [
        x | {"method": "lora:orthonormal", "label": "standard LoRA, orthonormal A"}
        for x in lines
        if x["method"] == "lora"
    ]
    names = ["B only (fedasym)", "standard LoRA", "standard LoRA, orthonormal A", "FFA-LoRA"]
    assert [row[0].text for row in score_sheets(in_order(lines))[0].rows] == names


def test_costs_are_told_with_and_without_the_head_and_against_lora(whole) -> None:
    rows = rows_of(cost_sheet(whole))
    ours = rows["B only (fedasym)"]
    assert ours["payload up"][:2] == ("4.40 kB", "no head 4.00 kB")
    assert ours["saving"][:2] == ("45.0 %", "no head 47.4 %")
    assert [rows[name]["worst mismatch"].small for name in ("B only (fedasym)", "FlexLoRA")] == [
        "float32's\nrounding",
        "not exact",
    ]
    # Of a relay nothing is measured: None in newer lines, in older ones float64's rounding of a relay less itself.
    for value in (None, 4.7e-16):
        relayed = rows_of(cost_sheet([x | {"mismatch": value} for x in whole if x["method"] == "fedex"]))
        assert relayed["FedEx-LoRA"]["worst mismatch"] == Entry("exact", "by\nconstruction")
    assert rows["FedEx-LoRA"]["worst mismatch"].text == "3.0e-08"  # a codec that changes the relay is measured
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


@pytest.mark.slow
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
