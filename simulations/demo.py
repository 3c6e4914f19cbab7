"""The demo: federate MiniLM on movie reviews with B only, then with standard LoRA, and compare."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from fedasym.ops import extras
from fedasym.ops.processes import held_alone
from fedasym.reports.comparison import comparison_rows, comparison_table
from simulations.cli.waiting import waiting
from simulations.engines.superlink import superlink
from simulations.folders import check_replaceable, clear, is_run
from simulations.run import read_settings, run

CONFIGS = Path(__file__).parent / "configs"
_RUN = "run of ours (its config.json holds no contract)"


def demo(out: Path, engine: str, workers: int, rounds: int, console: Console) -> None:
    """Run both methods into a folder, then print the table and the report's path.

    Args:
        out: folder that holds both runs; those of a finished demo are replaced, one that was stopped goes on.
        engine: ``flower`` or ``local``.
        workers: clients at the same time.
        rounds: rounds of each run; 0 means as the configs say.
        console: where to show it.

    Raises:
        FileExistsError: a folder of that name holds something else; then neither is touched.
        BlockingIOError: another process holds the folder.
        ModuleNotFoundError: matplotlib, for the report of both, is not installed.
    """
    extras.require("matplotlib")  # now, not after both runs
    out = out.absolute()
    folders = {method: out / method for method in ("asymmetric", "lora")}
    for folder in folders.values():
        check_replaceable(folder, is_run, _RUN)
    out.mkdir(parents=True, exist_ok=True)
    with held_alone(out, "wait for it or choose another --out"):
        _run_both(folders, out / "report.html", engine, workers, rounds, console)


def _run_both(folders: dict[str, Path], page: Path, engine: str, workers: int, rounds: int, console: Console) -> None:
    if page.exists():  # it is written last
        for folder in folders.values():
            clear(folder, is_run, _RUN)
        page.unlink()
    with ExitStack() as stack:
        link = None
        if engine == "flower":
            with waiting("starting Flower's SuperLink", console):
                link = stack.enter_context(superlink(page.with_name("flower.log"), "--simulation"))
        for method, folder in folders.items():
            settings = read_settings(CONFIGS / f"{method}.toml", [], folder)
            if rounds:
                settings = dataclasses.replace(settings, num_rounds=rounds)
            run(settings, engine, workers, console, link=link)
    with waiting("writing the report of both", console):
        from fedasym.reports.run_report import write_report  # matplotlib, which nothing before needs

        write_report(list(folders.values()), page)
    console.print(comparison_table(comparison_rows(list(folders.values()))))
    console.print(f"report {page}", markup=False, soft_wrap=True)
