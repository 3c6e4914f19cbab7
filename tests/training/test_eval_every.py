"""Rounds that are not evaluated hold no metric, the last one does, and whatever reads a record copes."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from world import simulate, tiny_settings

from fedasym.reports.comparison import comparison_rows, comparison_table
from fedasym.reports.run_report import write_report
from fedasym.runs.record import read_json, read_rounds, summarise
from simulations.cli.display import Follower


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run three rounds, evaluated each and every second."""
    root = tmp_path_factory.mktemp("world")
    every, second = (
        simulate(tiny_settings(root, out=str(root / f"every{n}"), eval_every=n, num_clients=2), workers=1)
        for n in (1, 2)
    )
    return every, second


def test_every_second_round_and_the_last_are_evaluated_and_training_is_the_same(folders: tuple[Path, Path]) -> None:
    every, second = (read_rounds(folder) for folder in folders)
    for row, other in zip(second, every, strict=True):
        if row["round"] == 1:
            assert row["metrics"] == {"accuracy": None, "f1": None, "loss": None}
        else:
            assert row["metrics"] == other["metrics"]
        assert {**row, "metrics": 0, "seconds": 0} == {**other, "metrics": 0, "seconds": 0}


def test_the_untouched_model_is_evaluated_where_it_is_asked_for(folders: tuple[Path, Path], tmp_path: Path) -> None:
    more = {"eval_untouched": True, "num_rounds": 1, "num_clients": 2}
    still = simulate(tiny_settings(tmp_path, out=str(tmp_path / "still"), lr=1e-12, head_lr=1e-12, **more))
    untouched = read_json(still / "untouched.json")
    (row,) = read_rounds(still)  # rates that move no logit by a bit that a metric sees
    assert untouched == pytest.approx(row["metrics"], abs=1e-6)
    assert read_json(still / "summary.json")["untouched"] == untouched["accuracy"]
    assert read_json(folders[0] / "summary.json")["untouched"] is None


def test_the_summary_speaks_of_the_evaluated_rounds(folders: tuple[Path, Path]) -> None:
    rounds = read_rounds(folders[1])
    known = [row["metrics"]["accuracy"] for row in rounds[1:]]
    summary = read_json(folders[1] / "summary.json")
    assert (summary["final"], summary["best"], summary["rounds"]) == (known[-1], max(known), 3)


def test_report_comparison_and_display_cope(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write_report(folders, tmp_path / "report.html")
    words = re.sub(r"<[^>]*>", " ", (tmp_path / "report.html").read_text())  # without the figures
    assert not re.search(r"\b(None|nan)\b", words)
    out = io.StringIO()
    Console(file=out, width=100).print(comparison_table(comparison_rows(folders)))
    shutil.copytree(folders[1], tmp_path / "run", ignore=shutil.ignore_patterns("rounds.jsonl"))
    with Follower("run", tmp_path / "run", 3, Console(file=out, width=200)):
        shutil.copy(folders[1] / "rounds.jsonl", tmp_path / "run")
    assert "round 1/3  accuracy –  loss" in out.getvalue() and "round 3/3  accuracy 0." in out.getvalue()
    with Follower("run", folders[1], 3, Console(file=out, width=200, force_terminal=True)):
        pass
    assert "None" not in out.getvalue()


def test_a_run_that_has_not_been_evaluated_yet_is_refused_with_what_to_do(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[1], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    first = read_rounds(folders[1])[:1]
    (tmp_path / "run" / "rounds.jsonl").write_text(json.dumps(first[0]) + "\n")
    with pytest.raises(ValueError, match="none of the 1 rounds is evaluated yet; with eval-every=2 wait for round 2"):
        write_report([tmp_path / "run"], tmp_path / "report.html")
    with pytest.raises(ValueError, match="evaluated"):
        summarise(read_json(folders[1] / "config.json"), first)
