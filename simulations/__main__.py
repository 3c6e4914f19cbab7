"""The command line: ``python -m simulations run | demo | tune | bytes | sockets | record | settings``."""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedasym.footprint import PRESETS
from fedasym.methods import METHODS
from fedasym.settings import Settings
from server.strategy import FederationError
from simulations import bytes as calculator
from simulations.demo import demo
from simulations.results import result_lines
from simulations.run import ENGINES, read_settings, run
from simulations.sockets import measure
from simulations.superlink import FlowerError
from simulations.tune import tune


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the process's exit code."""
    options = _parser().parse_args(arguments)
    console = Console()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if options.command == "settings":
            console.print(_settings_table())
        elif options.command == "record":
            for line in result_lines(options.folders):
                print(json.dumps(line))
        elif options.command == "bytes":
            _bytes(options, console)
        elif options.command == "sockets":
            overrides = ["local-steps=1", "num-rounds=3", *options.set, f"num-clients={options.clients}"]
            settings = read_settings(options.config, overrides, options.work)
            measure(settings, _names(options.methods), options.nodes or options.clients, options.out, console)
        elif options.command == "tune":
            tune(options.work, options.workers, console, options.shard, options.shards)
        elif options.command == "demo":
            demo(options.out, options.engine, options.workers, options.rounds, console)
        else:
            settings = read_settings(options.config, options.set, options.out)
            folder = run(settings, options.engine, options.workers, console)
            console.print(f"summary {folder / 'summary.json'}\nreport  {folder / 'report.html'}", soft_wrap=True)
    except (ValueError, OSError, FederationError, FlowerError, ModuleNotFoundError) as error:
        console.print(f"[bold red]failed:[/bold red] {type(error).__name__}: ", end="")
        console.print(str(error), markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; `run` with the same settings and --out continues after the last finished round")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m simulations", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="one federation", description="Run one federation.")
    one.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG.toml", help="settings that differ from the defaults"
    )
    one.add_argument("--set", action="append", default=[], metavar="key=value", help="one more setting; repeatable")
    one.add_argument("--out", type=Path, metavar="DIR", help="run folder; a used one is continued")
    both = commands.add_parser("demo", help="B only, then standard LoRA, side by side")
    both.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="folder of both runs; replaced"
    )
    both.add_argument("--rounds", type=int, default=0, help="rounds of each; 0: as the configs say")
    for command, engine in ((one, "local"), (both, "flower")):
        command.add_argument("--engine", choices=tuple(ENGINES), default=engine, help="default: %(default)s")
        command.add_argument(
            "--workers", type=_positive, default=2, help="clients at the same time (default: %(default)s)"
        )
    grid = commands.add_parser("tune", help="the grid of local optimizers, on a cut of the training data")
    grid.add_argument("--work", type=Path, default=Path("runs/tune"), metavar="DIR", help="folder of the runs")
    grid.add_argument("--workers", type=int, default=1, help="clients at the same time (default: %(default)s)")
    grid.add_argument("--shard", type=int, default=0, help="which part of the grid this process runs")
    grid.add_argument("--shards", type=int, default=1, help="how many processes share the grid")
    size = commands.add_parser("bytes", help="what each method would send on a model, from its configuration alone")
    size.add_argument("--model", default="demo", help=f"{', '.join(PRESETS)}, demo, a config's folder, or a hub id")
    size.add_argument("--rank", type=_positive, default=8, help="r of every adapter (default: %(default)s)")
    size.add_argument("--targets", default="all-linear", help="endings of layer names, by commas (default: all-linear)")
    size.add_argument("--head", default="auto", help="output, frozen, full, local; auto: each method's own")
    size.add_argument("--pooling", default="auto", help="model, mean or pair; auto: mean for demo, else model")
    size.add_argument("--clients", type=_positive, default=10, help="clients of a round (default: %(default)s)")
    size.add_argument("--labels", type=_positive, default=2, help="outputs of the head (default: %(default)s)")
    size.add_argument("--methods", default=",".join(METHODS), help="by commas; all by default")
    size.add_argument("--json", action="store_true", help="print raw numbers")
    real = commands.add_parser("sockets", help="bytes through the sockets of a deployment on this machine")
    real.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml", help="settings that differ from defaults")
    real.add_argument("--set", action="append", default=[], metavar="key=value", help="one more setting; repeatable")
    real.add_argument("--methods", default="asymmetric,lora", help="by commas (default: %(default)s)")
    real.add_argument("--clients", type=_positive, default=2, help="clients (default: %(default)s)")
    real.add_argument("--nodes", type=_positive, help="SuperNodes; default: as many as clients")
    real.add_argument("--work", type=Path, default=Path("runs/sockets"), metavar="DIR", help="folder of the runs")
    real.add_argument("--out", type=Path, default=Path("runs/sockets.jsonl"), metavar="FILE", help="appended to")
    lines = commands.add_parser("record", help="print finished runs as raw result lines (JSON)")
    lines.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER")
    commands.add_parser("settings", help="every setting with its default")
    return parser


def _bytes(options: argparse.Namespace, console: Console) -> None:
    asked = {key: getattr(options, key) for key in ("model", "rank", "targets", "head", "pooling", "clients", "labels")}
    found = calculator.footprints(methods=_names(options.methods), **asked)
    if options.json:
        print(json.dumps(calculator.as_json(found, **asked), indent=1))
    else:
        calculator.print_footprints(found, options.model, options.clients, options.labels, console)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("--methods names none; leave it out or name some by commas")
    return names


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _settings_table() -> Table:
    table = Table(title="settings")
    for name in ("key", "default", "meaning"):
        table.add_column(name)
    for knob in dataclasses.fields(Settings):
        choices = f" ({', '.join(knob.metadata['choices'])})" if knob.metadata["choices"] else ""
        table.add_row(knob.name.replace("_", "-"), repr(knob.default), knob.metadata["about"] + choices)
    return table


if __name__ == "__main__":
    sys.exit(main())
