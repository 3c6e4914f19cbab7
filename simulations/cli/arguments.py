"""The words of the command line: every command with its options."""

import argparse
from pathlib import Path

from fedasym.methods import METHODS
from fedasym.ops.processes import cores

ENGINES = ("local", "flower")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    federated = tuple(name for name in METHODS if name != "central")
    parser = argparse.ArgumentParser(prog="python -m simulations", description="Simulations, and what is made of them.")
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
        command.add_argument("--engine", choices=ENGINES, default=engine, help="default: %(default)s")
        command.add_argument(
            "--workers", type=_positive, default=2, help="clients at the same time (default: %(default)s)"
        )
    whole = commands.add_parser("federation", help="a server and three sites, processes of their own on this machine")
    whole.add_argument(
        "--out", type=Path, default=Path("runs/federation"), metavar="DIR", help="replaced if it is an earlier one"
    )
    whole.add_argument("--set", action="append", default=[], metavar="key=value", help="one more setting; repeatable")
    many = commands.add_parser("compare", help="methods on the same tasks, splits, seeds and budget")
    many.add_argument("--task", type=_names, default=(), metavar="TASK,...", help="default: the config's, else reviews")
    many.add_argument(
        "--methods", type=_names, default=("asymmetric", "lora"), metavar="METHOD,...", help="default: asymmetric,lora"
    )
    many.add_argument(
        "--split", type=_names, default=(), metavar="SPLIT,...", help="default: the config's, else dirichlet:0.5"
    )
    many.add_argument("--seeds", type=_positive, default=3, metavar="N", help="seeds 0 to N - 1 (default: %(default)s)")
    many.add_argument("--config", type=Path, metavar="CONFIG.toml", help="settings that all cells share")
    many.add_argument("--set", action="append", default=[], metavar="key=value", help="one more setting; repeatable")
    many.add_argument(
        "--tune", type=_names, default=(), metavar="TASK,...", help="tune every method's rate on these tasks first"
    )
    many.add_argument(
        "--grid", type=_names, default=(), metavar="OPTIMIZER:RATE,...", help="of the tuning; default: four of sgd"
    )
    many.add_argument(
        "--tune-set", action="append", default=[], metavar="key=value", help="a setting of the tuning alone; repeatable"
    )
    many.add_argument("--retry", action="store_true", help="try cells again whose split was impossible for their data")
    many.add_argument(
        "--out", type=Path, default=Path("runs/compare"), metavar="DIR", help="folder; a used one is continued"
    )
    grid = commands.add_parser("tune", help="the demo's grid of optimizers, on a cut of the training data")
    grid.add_argument("--work", type=Path, default=Path("runs/tune"), metavar="DIR", help="folder of the runs")
    for command, names in ((many, ["--jobs"]), (grid, ["--jobs", "--workers"])):
        command.add_argument(*names, type=_positive, default=cores(), help="cells at the same time, one core each")
    size = commands.add_parser("bytes", help="what each method would send on a model, from its configuration alone")
    size.add_argument(
        "--model", default="demo", help="roberta-large, qwen2.5-0.5b, …, demo, a config's folder, or a hub id"
    )
    size.add_argument("--rank", type=_positive, default=8, help="r of every adapter (default: %(default)s)")
    size.add_argument("--targets", default="all-linear", help="endings of layer names, by commas (default: all-linear)")
    size.add_argument("--head", default="auto", help="output, frozen, full, local; auto: each method's own")
    size.add_argument("--pooling", default="auto", help="model, mean or pair; auto: mean for demo, else model")
    size.add_argument("--clients", type=_positive, default=10, help="clients of a round (default: %(default)s)")
    size.add_argument(
        "--labels",
        type=_whole,
        help="outputs of the head; 0: a model that writes, by its own (default: 0 for the presets that write, else 2)",
    )
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
    given = commands.add_parser("export", help="a run's model for PEFT, or merged for transformers alone")
    given.add_argument("run", type=Path, metavar="RUN", help="run folder, finished or stopped after some rounds")
    given.add_argument("--out", type=Path, metavar="DIR", help="write the PEFT adapter there (default: RUN/adapter)")
    given.add_argument(
        "--merged", type=Path, metavar="DIR", help="instead, write the whole model there, B A added to W, in float32"
    )
    said = commands.add_parser("predict", help="what a run's model says to new inputs")
    said.add_argument("run", type=Path, metavar="RUN", help="run folder, finished or stopped after some rounds")
    said.add_argument("text", nargs="*", metavar="TEXT", help="one input: a text, or the two of a pair")
    said.add_argument(
        "--file", type=Path, metavar="FILE", help="inputs, one a line, or a .csv, .tsv, .jsonl or .parquet table"
    )
    said.add_argument("--image", nargs="+", type=Path, default=[], metavar="PATH", help="inputs of a model of images")
    said.add_argument("--top", type=_positive, default=0, metavar="N", help="only the N likeliest classes")
    said.add_argument(
        "--length", type=_positive, default=0, help="tokens of what is written (default: answer-length, or 64)"
    )
    said.add_argument("--json", action="store_true", help="print a line of JSON for each input; --file always does")
    for command in (given, said):
        command.add_argument("--device", default="auto", help="where to compute (default: %(default)s)")
    commands.add_parser("tables", help="make the READMEs' tables and figures anew from the result lines")
    commands.add_parser("settings", help="every setting with its default")
    commands.add_parser("devices", help="what this machine has to compute with, and what would be chosen")
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing; give one name or some by commas")
    return names


def _whole(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)
