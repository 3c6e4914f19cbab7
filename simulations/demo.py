"""The demo: federate MiniLM on movie reviews with B only, then with standard LoRA, and compare."""

import dataclasses
import shutil
from pathlib import Path

from rich.console import Console

from fedasym.comparison import comparison_rows, comparison_table
from fedasym.report import write_report
from simulations.run import read_settings, run

CONFIGS = Path(__file__).parent / "configs"


def demo(out: Path, engine: str, workers: int, rounds: int, console: Console) -> None:
    """Run both methods anew into a folder, then print the table and the report's path.

    Args:
        out: folder that holds both runs; an earlier demo's is replaced.
        engine: ``flower`` or ``local``.
        workers: clients at the same time.
        rounds: rounds of each run; 0 means as the configs say.
        console: where to show it.
    """
    folders = []
    for method in ("asymmetric", "lora"):
        folder = (out / method).absolute()
        if folder.exists():
            shutil.rmtree(folder)
        settings = read_settings(CONFIGS / f"{method}.toml", [], folder)
        if rounds:
            settings = dataclasses.replace(settings, num_rounds=rounds)
        folders.append(run(settings, engine, workers, console))
    page = out.absolute() / "report.html"
    write_report(folders, page)
    console.print(comparison_table(comparison_rows(folders)))
    console.print(f"report {page}", soft_wrap=True)
