"""The command line: ``python -m simulations COMMAND``; ``--help`` lists the commands.

What a command needs is imported when it runs, so that help is there at once and a signal finds its handler.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of an import; STOPPING takes over at the end

import argparse
import dataclasses
import json
import os
import shlex
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.stopping import STOPPING, typed

if TYPE_CHECKING:
    from rich.console import Console

_ENGINES = ("local", "flower")
_KEPT = "finished rounds are kept, and this goes on:"
_AGAIN = {"federation": "this starts anew:"} | dict.fromkeys(("demo", "compare", "tune"), _KEPT)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the process's exit code."""
    options = _parser().parse_args(arguments)
    options.words = f"python -m simulations {shlex.join(arguments or sys.argv[1:])}"
    from rich.console import Console

    from simulations.waiting import LONG, load

    console = Console()
    STOPPING.words = f"{_AGAIN.get(options.command, 'again:')} {typed()}"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if options.command in LONG:
            load(console)
        _COMMANDS[options.command](options, console)
    except BrokenProcessPool:
        console.print("[bold red]failed:[/bold red] a process ended, perhaps for lack of memory; try a lower --jobs")
        return 1
    except Exception as error:
        if not _is_ours(error):
            raise
        console.print(f"[bold red]failed:[/bold red] {type(error).__name__}: ", end="")
        console.print(str(error), markup=False, soft_wrap=True)
        return 1
    return 0


def _is_ours(error: Exception) -> bool:
    """Say whether an error's words are all that its reader needs."""
    if isinstance(error, (ValueError, OSError, ModuleNotFoundError)):
        return True
    from fedasym.flower import FlowerError
    from server.strategy import FederationError

    return isinstance(error, (FederationError, FlowerError))


def _run(options: argparse.Namespace, console: "Console") -> None:
    from simulations.run import read_settings, run

    settings = read_settings(options.config, options.set, options.out)
    STOPPING.words = f"{_KEPT} {typed(*([] if options.out else ['--out', settings.out]))}"
    folder = run(settings, options.engine, options.workers, console, options.site_data)
    console.print(f"summary {folder / 'summary.json'}\nreport  {folder / 'report.html'}", soft_wrap=True)


def _demo(options: argparse.Namespace, console: "Console") -> None:
    from simulations.demo import demo

    demo(options.out, options.engine, options.workers, options.rounds, console)


def _federation(options: argparse.Namespace, console: "Console") -> None:
    from simulations.federation import federation

    federation(options.out, options.set, console)


def _sockets(options: argparse.Namespace, console: "Console") -> None:
    from simulations.run import read_settings
    from simulations.sockets import measure

    STOPPING.words = f"{options.out} has what was measured; remove {options.work}, then this starts anew: {typed()}"
    overrides = ["local-steps=1", "num-rounds=3", *options.set, f"num-clients={options.clients}"]
    settings = read_settings(options.config, overrides, options.work)
    measure(settings, options.methods, options.nodes or options.clients, options.out, console)


def _tune(options: argparse.Namespace, console: "Console") -> None:
    from simulations.tune import tune

    tune(options.work, options.workers, console, options.shard, options.shards)


def _record(options: argparse.Namespace, console: "Console") -> None:
    from simulations.results import result_lines

    for line in result_lines(options.folders):
        print(json.dumps(line))


def _page(options: argparse.Namespace, console: "Console") -> None:
    from fedasym.study.report import comparison_markdown, write_comparison
    from simulations.rates import grid_points
    from simulations.results import require_lines

    lines = [line for file in options.files for line in require_lines(file)]
    if options.markdown:
        print(comparison_markdown(lines))
        return
    tuning = grid_points(require_lines(options.tuning)) if options.tuning else []
    write_comparison(lines, options.out.absolute(), tuning=tuning, command=options.words)
    console.print(f"page {options.out.absolute()}", soft_wrap=True)


def _tables(options: argparse.Namespace, console: "Console") -> None:
    from simulations.tables import refresh

    for path in refresh():
        print(path)


def _settings(options: argparse.Namespace, console: "Console") -> None:
    from rich.table import Table

    from fedasym.settings import Settings

    table = Table(title="settings")
    for name in ("key", "default", "meaning"):
        table.add_column(name)
    for knob in dataclasses.fields(Settings):
        choices = f" ({', '.join(knob.metadata['choices'])})" if knob.metadata["choices"] else ""
        table.add_row(knob.name.replace("_", "-"), repr(knob.default), knob.metadata["about"] + choices)
    console.print(table)


def _compare(options: argparse.Namespace, console: "Console") -> None:
    from fedasym.study.report import comparison_sheets, write_comparison
    from server.app import only_user
    from simulations.compare import Comparison, compare
    from simulations.display import show_sheets
    from simulations.rates import best_rates, grid_points, tune_rates
    from simulations.results import read_lines
    from simulations.run import parse_overrides, read_toml
    from simulations.waiting import waiting

    base = read_toml(options.config) if options.config else {}
    base |= parse_overrides(options.set)
    tuning, work = options.out / "tuning.jsonl", options.out / "work"
    taken = {"task", "split", "method", "seed", "out"} & base.keys()
    if taken:
        raise ValueError(f"{', '.join(sorted(taken))} cannot be set for all cells; use --task, --split, --methods, ...")
    comparison = Comparison(options.task, options.split, options.methods, tuple(range(options.seeds)), base, {})
    comparison.cells()  # a bad name is refused before hours of tuning
    with only_user(options.out):
        if options.tune:
            tune_rates(comparison, options.tune, options.split[0], tuning, work, options.jobs, console)
        grid = read_lines(tuning)
        rates = best_rates(grid)
        if rates and (own := {"lr", "head-lr", "optimizer"} & base.keys()):
            named = ", ".join(sorted(own))
            raise ValueError(f"{named} would be overridden by the tuned rates of {tuning}; leave them out")
        comparison = dataclasses.replace(comparison, rates=rates)
        lines = compare(comparison, options.out / "cells.jsonl", work, options.jobs, console)
        page = options.out.absolute() / "report.html"
        with waiting("writing the page", console):
            write_comparison(lines, page, tuning=grid_points(grid), command=options.words)
    show_sheets(comparison_sheets(lines), console)
    console.print(f"report {page}", soft_wrap=True)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing; give one name or some by commas")
    return names


def _parser() -> argparse.ArgumentParser:
    from fedasym.methods import METHODS

    federated = tuple(name for name in METHODS if name != "central")
    parser = argparse.ArgumentParser(prog="python -m simulations", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="one federation", description="Run one federation.")
    one.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG.toml", help="settings that differ from the defaults"
    )
    one.add_argument("--set", action="append", default=[], metavar="key=value", help="one more setting; repeatable")
    one.add_argument("--out", type=Path, metavar="DIR", help="run folder; a used one is continued")
    one.add_argument(
        "--site-data", type=Path, metavar="DIR", help="with the setting sites: DIR/NAME holds the data of site NAME"
    )
    both = commands.add_parser("demo", help="B only, then standard LoRA, side by side")
    both.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="folder of both runs; finished, replaced"
    )
    both.add_argument("--rounds", type=int, default=0, help="rounds of each; 0: as the configs say")
    for command, engine in ((one, "local"), (both, "flower")):
        command.add_argument("--engine", choices=_ENGINES, default=engine, help="default: %(default)s")
        command.add_argument(
            "--workers", type=_positive, default=2, help="clients at the same time (default: %(default)s)"
        )
    whole = commands.add_parser("federation", help="a server and three sites, processes of their own on this machine")
    whole.add_argument(
        "--out", type=Path, default=Path("runs/federation"), metavar="DIR", help="replaced if it is an earlier one"
    )
    whole.add_argument("--set", action="append", default=[], metavar="key=value", help="one more setting; repeatable")
    many = commands.add_parser("compare", help="methods on the same tasks, splits, seeds and budget")
    many.add_argument("--task", type=_names, default=("reviews",), metavar="TASK,...", help="default: reviews")
    many.add_argument(
        "--methods", type=_names, default=("asymmetric", "lora"), metavar="METHOD,...", help="default: asymmetric,lora"
    )
    many.add_argument(
        "--split", type=_names, default=("dirichlet:0.5",), metavar="SPLIT,...", help="default: dirichlet:0.5"
    )
    many.add_argument("--seeds", type=_positive, default=3, metavar="N", help="seeds 0 to N - 1 (default: %(default)s)")
    many.add_argument("--config", type=Path, metavar="CONFIG.toml", help="settings that all cells share")
    many.add_argument("--set", action="append", default=[], metavar="key=value", help="one more setting; repeatable")
    many.add_argument(
        "--tune", type=_names, default=(), metavar="TASK,...", help="tune every method's rate on these tasks first"
    )
    many.add_argument(
        "--out", type=Path, default=Path("runs/compare"), metavar="DIR", help="folder; a used one is continued"
    )
    many.add_argument(
        "--jobs", type=_positive, default=os.cpu_count() or 1, help="cells at the same time, one core each"
    )
    grid = commands.add_parser("tune", help="the grid of local optimizers, on a cut of the training data")
    grid.add_argument("--work", type=Path, default=Path("runs/tune"), metavar="DIR", help="folder of the runs")
    grid.add_argument("--workers", type=int, default=1, help="clients at the same time (default: %(default)s)")
    grid.add_argument("--shard", type=int, default=0, help="which part of the grid this process runs")
    grid.add_argument("--shards", type=int, default=1, help="how many processes share the grid")
    size = commands.add_parser("bytes", help="what each method would send on a model, from its configuration alone")
    size.add_argument("--model", default="demo", help="roberta-large, …, demo, a config's folder, or a hub id")
    size.add_argument("--rank", type=_positive, default=8, help="r of every adapter (default: %(default)s)")
    size.add_argument("--targets", default="all-linear", help="endings of layer names, by commas (default: all-linear)")
    size.add_argument("--head", default="auto", help="output, frozen, full, local; auto: each method's own")
    size.add_argument("--pooling", default="auto", help="model, mean or pair; auto: mean for demo, else model")
    size.add_argument("--clients", type=_positive, default=10, help="clients of a round (default: %(default)s)")
    size.add_argument("--labels", type=_positive, default=2, help="outputs of the head (default: %(default)s)")
    size.add_argument("--methods", type=_names, default=federated, help="by commas; all by default")
    size.add_argument("--json", action="store_true", help="print raw numbers")
    real = commands.add_parser("sockets", help="bytes through the sockets of a deployment on this machine")
    real.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml", help="settings that differ from defaults")
    real.add_argument("--set", action="append", default=[], metavar="key=value", help="one more setting; repeatable")
    real.add_argument("--methods", type=_names, default=("asymmetric", "lora"), help="default: asymmetric,lora")
    real.add_argument("--clients", type=_positive, default=2, help="clients (default: %(default)s)")
    real.add_argument("--nodes", type=_positive, help="SuperNodes; default: as many as clients")
    real.add_argument("--work", type=Path, default=Path("runs/sockets"), metavar="DIR", help="folder of the runs")
    real.add_argument("--out", type=Path, default=Path("runs/sockets.jsonl"), metavar="FILE", help="appended to")
    lines = commands.add_parser("record", help="print finished runs as raw result lines (JSON)")
    lines.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER")
    page = commands.add_parser("page", help="one HTML page, or Markdown, about result lines of many methods")
    page.add_argument("files", nargs="+", type=Path, metavar="LINES.jsonl", help="raw result lines, one a cell")
    page.add_argument("--out", type=Path, default=Path("runs/page/index.html"), metavar="FILE", help="the page")
    page.add_argument("--tuning", type=Path, metavar="LINES.jsonl", help="raw lines of the tuning grid")
    page.add_argument("--markdown", action="store_true", help="print the tables as Markdown instead")
    commands.add_parser("tables", help="make the READMEs' tables and figures anew from the result lines")
    commands.add_parser("settings", help="every setting with its default")
    return parser


def _bytes(options: argparse.Namespace, console: "Console") -> None:
    from simulations.bytes import as_json, footprints, print_footprints

    if "central" in options.methods:
        raise ValueError("central has all data in one place, so nothing travels; leave it out")
    asked = {key: getattr(options, key) for key in ("model", "rank", "targets", "head", "pooling", "clients", "labels")}
    found = footprints(methods=options.methods, **asked)
    if options.json:
        print(json.dumps(as_json(found, **asked), indent=1))
    else:
        print_footprints(found, options.model, options.clients, options.labels, console)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


_COMMANDS = {
    "run": _run, "demo": _demo, "federation": _federation, "compare": _compare, "tune": _tune, "bytes": _bytes,
    "sockets": _sockets, "record": _record, "page": _page, "tables": _tables, "settings": _settings,
}  # fmt: skip

if __name__ == "__main__":
    STOPPING.install()
    sys.exit(main())
