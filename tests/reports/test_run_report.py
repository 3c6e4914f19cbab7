"""The report says what the run folders say, escapes what is data, and stands alone."""

import base64
import dataclasses
import html
import io
import re

import numpy as np
import pytest
from html_resources import Resources
from matplotlib import image
from rich.console import Console

from fedasym.reports.comparison import comparison_rows, comparison_table
from fedasym.reports.run_report import write_report
from fedasym.runs import record
from fedasym.settings import Settings

ADAPTERS = {"asymmetric": 1000, "lora": 1900}  # float32 values of the adapters
HEAD = 100  # and of the output layer
SCRIPT = "<script>alert('x')</script>"


def make_run(
    folder,
    *,
    classes=("negative", "positive"),
    rejections=None,
    client_metrics=False,
    metric="accuracy",
    summary=True,
    **knobs,
):
    """Write a run folder as the server does; ``rejections`` holds reasons by client by round."""
    folder.mkdir(parents=True)
    settings = Settings(**{"num_clients": 4, "num_rounds": 3, "out": str(folder), **knobs}).resolved()
    values = ADAPTERS[settings.method] + HEAD
    counts = [
        [10 * (client + 1) + label for label in range(len(classes) or 1)] for client in range(settings.num_clients)
    ]
    config = {
        "settings": dataclasses.asdict(settings),
        "metric": metric,
        "contract": "{}",
        "contract_hash": "c0" * 32,
        "partition": {
            "sizes": [sum(row) for row in counts],
            "classes": list(classes),
            "label_counts": counts,
            "digest": f"{settings.split} {settings.seed}",
        },
        "held_out_examples": 1234,
        "trainable_values": values,
        "head_values": HEAD,
        "versions": record.versions(),
    }
    record.write_json(folder / "config.json", config)
    for number in range(1, settings.num_rounds + 1):
        rejected = (rejections or {}).get(number, {})
        asked = settings.num_clients
        valid = asked - len(rejected)
        row = {
            "round": number,
            "seconds": 1.5,
            "clients_asked": asked,
            "clients_valid": valid,
            "clients_rejected": len(rejected),
            "clients_replied": valid + len(rejected),
            "rejections": rejected,
            "train_loss": 1.0 / number,
            "metrics": {metric: 0.7 - 0.0123 * number, "loss": 0.5},
            "client_metrics": {f"{metric}_after": 0.8, "loss_after": 0.3} if client_metrics else {},
            "payload_up": 4 * values * valid,
            "payload_down": 4 * values * asked,
            "message_up": (4 * values + 150) * valid,
            "message_down": (4 * values + 111) * asked,
            "mismatch": 2.5e-8 if settings.method == "asymmetric" else 0.125,
            "digest": f"{number:064x}",
        }
        record.append_round(folder, row)
    if summary:
        record.write_json(folder / "summary.json", record.summarise(config, record.read_rounds(folder)))
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """B-only and standard LoRA over the same split; one client was turned away with a hostile reason."""
    top = tmp_path_factory.mktemp("pair")
    rejections = {2: {"3": f"layer x.B: {SCRIPT} & more"}}
    return [make_run(top / "b", rejections=rejections), make_run(top / "ab", method="lora")]


@pytest.fixture(scope="module")
def page(pair):
    """The path of the page about both."""
    out = pair[0].parent / "page" / "two.html"
    write_report(pair, out)
    return out


def test_rows_equal_the_summaries(pair) -> None:
    for row, folder in zip(comparison_rows(pair), pair, strict=True):
        summary = record.read_json(folder / "summary.json")
        assert {key: row[key] for key in row.keys() & summary.keys() - {"method"}} == {
            key: summary[key] for key in row.keys() & summary.keys() - {"method"}
        }
    assert [row["name"] for row in comparison_rows(pair)] == ["B only (fedasym)", "standard LoRA"]


def test_saving_is_one_minus_the_ratio_to_standard_lora(pair) -> None:
    ours, standard = comparison_rows(pair)
    assert ours["saving"] == pytest.approx(1 - 1100 / 2000, abs=1e-15)
    assert ours["saving_adapter"] == pytest.approx(1 - 1000 / 1900, abs=1e-15)
    assert standard["saving"] == standard["saving_adapter"] == 0.0


def test_saving_does_not_depend_on_rounds_clients_or_order(pair, tmp_path) -> None:
    longer = make_run(tmp_path / "longer", num_rounds=5, num_clients=7)
    assert comparison_rows([pair[1], longer])[1]["saving"] == comparison_rows(pair)[0]["saving"]


def test_saving_compares_with_the_same_rank_and_never_with_another_model(tmp_path) -> None:
    ours = make_run(tmp_path / "b", num_rounds=1, rank=4)
    wide = make_run(tmp_path / "wide", num_rounds=1, method="lora", rank=16)
    alike = make_run(tmp_path / "alike", num_rounds=1, method="lora", rank=4)
    summary = record.summarise(record.read_json(wide / "config.json"), record.read_rounds(wide))
    sent = dict.fromkeys(("payload_up_per_client_round", "payload_down_per_client_round"), 4 * 9100.0)
    record.write_json(wide / "summary.json", summary | sent)
    assert comparison_rows([ours, wide, alike])[0]["saving_adapter"] == 1 - 1000 / 1900
    assert comparison_rows([ours, wide])[0]["saving_adapter"] == 1 - 1000 / 9000
    other = make_run(tmp_path / "other", num_rounds=1, method="lora", model="someone/else")
    assert comparison_rows([ours, other])[0]["saving"] is None


def test_runs_of_one_method_are_told_apart(tmp_path) -> None:
    folders = [make_run(tmp_path / str(seed), num_rounds=1, seed=seed) for seed in (0, 1)]
    folders.append(make_run(tmp_path / "again", num_rounds=1, seed=1))
    names = [row["name"] for row in comparison_rows(folders)]
    assert names == [
        "B only (fedasym), seed 0",
        "B only (fedasym), seed 1, 1",
        "B only (fedasym), seed 1, again",
    ]


def test_terminal_table_is_whole_at_80_columns(pair) -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(comparison_table(comparison_rows(pair)))
    said = console.file.getvalue()
    assert "…" not in said and max(map(len, said.splitlines())) <= 80
    for value in (
        "B only (fedasym)",
        "0.6631",
        "4.40 kB",
        "45.0 %",
        "47.4 %",
        "2.5e-08",
        "1.2e-01",
    ):
        assert value in said


def test_numbers_on_the_page_are_those_of_the_files(pair, page) -> None:
    said = page.read_text()
    for folder in pair:
        config, summary = (record.read_json(folder / f"{name}.json") for name in ("config", "summary"))
        assert f"<td>{summary['final']:.4f}</td>" in said and f"<td>{summary['best']:.4f}</td>" in said
        for key in ("payload_up_per_client_round", "payload_total", "message_total"):
            assert f"{summary[key]:,.0f} B</small>" in said
        assert f"<td>{summary['mismatch']:.2e}</td>" in said
        for text in (config["contract_hash"], config["partition"]["digest"], summary["digest"]):
            assert text in said
        for name, version in config["versions"].items():
            assert name in said and version in said
    assert "1,234 held-out examples" in said


def test_what_differs_between_runs_is_marked_and_nothing_else(page) -> None:
    marked = re.findall(r'<tr class="differs"><th scope="row">(.*?) ≠', page.read_text())
    assert marked == ["method", "kind", "run folder", "values that train"]


def test_page_stands_alone_and_has_no_script(page) -> None:
    seen = Resources(page.read_text())
    assert seen.links and all(link.startswith("data:image/png;base64,") for link in seen.links)
    assert not seen.tags & {"script", "link", "iframe", "object", "embed"}
    assert "url(" not in page.read_text() and "@import" not in page.read_text()


def test_rejections_are_shown_and_escaped(page) -> None:
    said = page.read_text()
    assert "1 of 24 replies did not count" in said
    assert SCRIPT not in said
    (reason,) = re.findall("<td>B only \\(fedasym\\)</td><td>2</td><td>3</td><td>(.*)</td>", said)
    assert html.unescape(reason) == f"layer x.B: {SCRIPT} & more"


def test_everything_from_the_files_is_escaped(tmp_path) -> None:
    folder = make_run(tmp_path / "i<i>", num_rounds=1, classes=(SCRIPT, "$x_"), data="<b>", split="iid")
    config = record.read_json(folder / "config.json")
    config["versions"]["<u>"] = config["contract_hash"] = config["partition"]["digest"] = config["metric"] = SCRIPT
    record.write_json(folder / "config.json", config)
    rows = record.read_rounds(folder)
    rows[0]["metrics"][SCRIPT] = 0.5
    record.cut_rounds(folder, 0)
    record.append_round(folder, rows[0])
    record.write_json(folder / "summary.json", record.summarise(config, rows))
    write_report([folder], tmp_path / "page.html")
    seen = Resources((tmp_path / "page.html").read_text())
    assert not seen.tags & {"script", "i", "b", "u"}


def test_figures_beside_the_page_are_those_inside_it(page) -> None:
    inside = re.findall(r'alt="(.*?)" src="data:image/png;base64,(.*?)"', page.read_text())
    names = ["metric", "metric-by-bytes", "train-loss", "mismatch", "clients"]
    assert [name for name, _ in inside] == names
    assert sorted(path.stem for path in (page.parent / "plots").iterdir()) == sorted(names)
    for name, data in inside:
        png = (page.parent / "plots" / f"{name}.png").read_bytes()
        assert base64.b64decode(data) == png
        pixels = image.imread(io.BytesIO(png), format="png")
        assert pixels.shape[0] > 300 and pixels.shape[1] > 600 and np.ptp(pixels[..., :3]) > 0.5


def test_the_same_folders_give_the_same_bytes(pair, page, tmp_path) -> None:
    write_report(pair, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_runs_of_different_splits_have_a_figure_each(tmp_path) -> None:
    folders = [make_run(tmp_path / str(seed), num_rounds=1, seed=seed) for seed in (0, 1)]
    write_report(folders, tmp_path / "page.html")
    assert {path.stem for path in (tmp_path / "plots").glob("clients*")} == {"clients-1", "clients-2"}


def test_one_round_of_a_regression_over_many_clients(tmp_path) -> None:
    knobs = {"task": "regression", "split": "iid", "num_clients": 120, "num_rounds": 1}
    folder = make_run(tmp_path / "r", classes=(), metric="pearson", **knobs)
    write_report([folder], folder / "report.html")
    said = (folder / "report.html").read_text()
    assert "1 round on task regression" in said and "final pearson" in said
    assert "120 of 120" in said and "nan" not in re.sub(r'src="[^"]*"', "", said).lower()


def test_client_metrics_have_a_figure_where_they_are(tmp_path) -> None:
    folder = make_run(tmp_path / "r", client_metrics=True, head="local", client_holdout=0.2)
    write_report([folder], folder / "report.html")
    assert (folder / "plots" / "metric-at-clients.png").exists()
    assert "the examples that the clients keep out" in (folder / "report.html").read_text()


def test_a_run_without_summary_is_summed_up_from_its_rounds(pair, tmp_path) -> None:
    running = make_run(tmp_path / "b", rejections={2: {"3": "late"}}, summary=False)
    assert comparison_rows([running]) == [comparison_rows(pair)[0] | {"saving": None, "saving_adapter": None}]


def test_folder_without_a_round_is_refused_by_name(pair, tmp_path) -> None:
    with pytest.raises(ValueError, match="has no finished round"):
        write_report([pair[0], tmp_path], tmp_path / "page.html")
    with pytest.raises(ValueError, match="no run folder"):
        comparison_rows([])
    assert not list(tmp_path.iterdir())


def test_a_short_answer_stays_on_one_line_and_a_long_one_wraps(tmp_path) -> None:
    folder = make_run(tmp_path / "run")
    entry = {"question": "a film " * 40, "expected": "1", "before": "0 (0.52)", "after": "1 (0.70)"}
    written = "what the model wrote, which may be as long as a page is wide"
    record.write_json(folder / "examples.json", [entry, entry | {"after": written}])
    write_report([folder], tmp_path / "page.html")
    said = (tmp_path / "page.html").read_text()
    assert '<td class="short">1 (0.70)</td>' in said and ".examples td.short { white-space: nowrap; }" in said
    assert f"<td>{written}</td>" in said
