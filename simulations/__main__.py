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
from typing import TYPE_CHECKING

from simulations.interrupts import STOPPING, typed

if TYPE_CHECKING:
    from rich.console import Console

_KEPT = "finished rounds are kept, and this goes on:"
_AGAIN = {"federation": "this starts anew:"} | dict.fromkeys(("demo", "compare", "tune"), _KEPT)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the process's exit code."""
    from simulations.cli.arguments import make_parser

    options = make_parser().parse_args(arguments)
    options.words = f"python -m simulations {shlex.join(arguments or sys.argv[1:])}"
    from rich.console import Console

    from simulations.cli.waiting import LONG, load

    console = Console()
    STOPPING.words = f"{_AGAIN.get(options.command, 'again:')} {typed()}"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if options.command in LONG and getattr(options, "engine", "local") == "local":
            load(console)  # Flower's engine trains in processes of its own: here is no need of them
        _COMMANDS[options.command](options, console)
    except BrokenProcessPool:
        console.print("[bold red]failed:[/bold red] a process ended, perhaps for lack of memory; try a lower --jobs")
        return 1
    except Exception as error:
        if not _is_ours(error):
            raise
        from fedasym.ops.extras import in_words

        console.print(f"[bold red]failed:[/bold red] {type(error).__name__}: ", end="")
        said = in_words(error) if isinstance(error, ModuleNotFoundError) else str(error)
        console.print(said, markup=False, soft_wrap=True)
        return 1
    return 0


def _is_ours(error: Exception) -> bool:
    """Say whether an error's words are all that its reader needs."""
    if isinstance(error, (ValueError, OSError, ModuleNotFoundError)):
        return True
    from fedasym.models.device import DeviceMemoryError
    from fedasym.ops.flower_cli import FlowerError
    from server.failure import FederationError

    return isinstance(error, (FederationError, FlowerError, DeviceMemoryError))


def _run(options: argparse.Namespace, console: "Console") -> None:
    from simulations.run import read_settings, run

    settings = read_settings(options.config, options.set, options.out)
    STOPPING.words = f"{_KEPT} {typed(*([] if options.out else ['--out', settings.out]))}"
    folder = run(settings, options.engine, options.workers, console, options.site_data)
    console.print(f"summary {folder / 'summary.json'}\nreport  {folder / 'report.html'}", markup=False, soft_wrap=True)


def _demo(options: argparse.Namespace, console: "Console") -> None:
    from simulations.demo import demo

    demo(options.out, options.engine, options.workers, options.rounds, console)


def _federation(options: argparse.Namespace, console: "Console") -> None:
    from simulations.federation import federation

    federation(options.out, options.set, console)


def _sockets(options: argparse.Namespace, console: "Console") -> None:
    from simulations.cost.measured_bytes import measure
    from simulations.run import read_settings

    STOPPING.words = f"{options.out} has what was measured; remove {options.work}, then this starts anew: {typed()}"
    overrides = ["local-steps=1", "num-rounds=3", *options.set, f"num-clients={options.clients}"]
    settings = read_settings(options.config, overrides, options.work)
    measure(settings, options.methods, options.nodes or options.clients, options.out, console)


def _tune(options: argparse.Namespace, console: "Console") -> None:
    from fedasym.reports.study.tuning_table import tuning_sheet
    from simulations.cli.display import show_sheets
    from simulations.study.demo_tuning import TUNING, demo_study
    from simulations.study.runner import run_study

    lines = run_study(demo_study(), TUNING, options.work, options.jobs, console)
    show_sheets([tuning_sheet(lines)._replace(title="accuracy on the cut, mean of the last three rounds")], console)


def _record(options: argparse.Namespace, console: "Console") -> None:
    from simulations.study.results import result_lines

    for line in result_lines(options.folders):
        print(json.dumps(line))


def _page(options: argparse.Namespace, console: "Console") -> None:
    from fedasym.reports.study.study_page import comparison_markdown, write_comparison
    from simulations.study.results import require_lines
    from simulations.study.tuning import grid_points

    lines = [line for file in options.files for line in require_lines(file)]
    if options.markdown:
        print(comparison_markdown(lines))
        return
    tuning = grid_points(require_lines(options.tuning)) if options.tuning else []
    write_comparison(lines, options.out.absolute(), tuning=tuning, command=options.words)
    console.print(f"page {options.out.absolute()}", markup=False, soft_wrap=True)


def _export(options: argparse.Namespace, console: "Console") -> None:
    from fedasym.models.pooling import MeanPooledClassifier
    from fedasym.runs.peft_folder import write_adapter, write_merged
    from fedasym.runs.trained_model import load_trained, private_parts
    from simulations.cli.waiting import waiting

    if options.merged and options.out:
        raise ValueError("--out is where the adapter goes, and with --merged none is written; leave one of them out")
    with waiting(f"loading the model of {options.run}", console):
        trained = load_trained(options.run, options.device, "float32" if options.merged else "")
    folder = (options.merged or options.out or options.run / "adapter").absolute()
    if options.merged:
        write_merged(folder, trained.built, trained.classes)
        what = f"the model after round {trained.rounds}, for {trained.task.inputs.model_class}"
        if isinstance(trained.built.model, MeanPooledClassifier):
            what = (
                f"the encoder after round {trained.rounds}, for AutoModel; its output layer, which is for "
                f"pooling={trained.settings.pooling!r} and no Auto class knows, is beside it in output.safetensors"
            )
    else:
        write_adapter(folder, trained.built, trained.settings, trained.classes)
        what = f"the adapter after round {trained.rounds}, for PEFT"
    console.print(f"{folder}\n{what}", markup=False, highlight=False, soft_wrap=True)
    if lacks := private_parts(trained.settings):
        console.print(f"warning: {lacks}", markup=False, soft_wrap=True)


def _predict(options: argparse.Namespace, console: "Console") -> None:
    if bool(options.text) + bool(options.image) + (options.file is not None) != 1:
        raise ValueError("give one of these: texts, --file, or --image")
    from rich.console import Console

    from fedasym.runs.trained_model import load_trained, private_parts
    from simulations.cli.waiting import waiting
    from simulations.predict import answers_to, as_json, as_lines, read_questions, typed_inputs

    beside = Console(stderr=True)  # answers alone go to the standard output
    with waiting(f"loading the model of {options.run}", beside):
        trained = load_trained(options.run, options.device)
    if lacks := private_parts(trained.settings):
        beside.print(f"warning: {lacks}", markup=False, soft_wrap=True)
    inputs = trained.task.inputs.asked
    frame = read_questions(inputs, options.file) if options.file else typed_inputs(inputs, options.text, options.image)
    with waiting(f"asking about {len(frame)} inputs", beside):
        answers = answers_to(trained, frame, options.length)
    for place, answer in enumerate(answers):
        if options.file or options.json:
            print(as_json(answer, options.top))
            continue
        if len(answers) > 1:
            print(f"{options.image[place]}:")
        print("\n".join(as_lines(answer, options.top)))


def _tables(options: argparse.Namespace, console: "Console") -> None:
    from simulations.study.tables import refresh

    for path in refresh():
        print(path)


def _settings(options: argparse.Namespace, console: "Console") -> None:
    from rich.table import Table

    from fedasym.fields import choices_of
    from fedasym.settings import Settings

    table = Table(title="settings")
    for name in ("key", "default", "meaning"):
        table.add_column(name)
    for field in dataclasses.fields(Settings):
        choices = f" ({', '.join(found)})" if (found := choices_of(field)) else ""
        table.add_row(field.name.replace("_", "-"), repr(field.default), field.metadata["about"] + choices)
    console.print(table)


def _devices(options: argparse.Namespace, console: "Console") -> None:
    from rich.table import Table

    from fedasym.models import device

    chosen = device.choose_device("auto")
    table = Table(caption=f"device=auto and dtype=auto choose {chosen} in {device.choose_dtype('auto', chosen)}")
    for name in ("device", "dtype=auto", "attention=auto", "bfloat16", "bfloat16's time / float32's", ""):
        table.add_column(name, overflow="fold")
    for each in device.devices():
        dtype = device.choose_dtype("auto", each)
        native, by = device.native_bfloat16(each)
        table.add_row(
            device.name_of(each),
            dtype,
            device.choose_attention("auto", each, dtype) or "sdpa where the model has it",
            f"{'native' if native else 'not native'}: {by}",
            f"{device.slowdown(each):.1f}",
            "chosen" if each == chosen else "",
        )
    console.print(table)


def _compare(options: argparse.Namespace, console: "Console") -> None:
    from fedasym.files import read_lines, read_toml
    from fedasym.models.device import choose_device, choose_dtype
    from fedasym.reports.study.study_page import comparison_sheets, write_comparison
    from simulations.cli.display import show_sheets
    from simulations.cli.waiting import waiting
    from simulations.run import parse_overrides
    from simulations.study.compare import Comparison
    from simulations.study.runner import run_study
    from simulations.study.tuning import TUNED, best_rates, grid_of, grid_points, rates_study

    told = parse_overrides(options.set)
    base = {**(read_toml(options.config) if options.config else {}), **told}
    # One dtype for all cells, and for those of another day: their lines say it.
    where = choose_device(str(base.get("device", "auto")))
    base["dtype"] = choose_dtype(str(base.get("dtype", "auto")), where)
    tuning, work = options.out / "tuning.jsonl", options.out / "work"
    task, split = str(base.pop("task", "reviews")), str(base.pop("split", "dirichlet:0.5"))
    tasks, splits = options.task or (task,), options.split or (split,)
    taken = {"method", "seed", "out"} & base.keys()
    if taken:
        raise ValueError(f"{', '.join(sorted(taken))} cannot be set for all cells; use --methods, --seeds, --out")
    comparison = Comparison(tasks, splits, options.methods, tuple(range(options.seeds)), base, {})
    comparison.study()  # a bad name is refused before hours of tuning
    if options.tune:
        study = rates_study(
            comparison, options.tune, splits[0], grid_of(options.grid), parse_overrides(options.tune_set)
        )
        run_study(study, tuning, work, options.jobs, console, retry=options.retry)
    grid = read_lines(tuning)
    rates = best_rates(grid)
    if rates and (own := sorted(TUNED & base.keys())):
        named = ", ".join(own)
        if TUNED & told.keys():
            raise ValueError(f"{named} would be overridden by the tuned rates of {tuning}; leave them out")
        console.print(
            f"{named} of {options.config} give way to the tuned rates of {tuning}", markup=False, soft_wrap=True
        )
    comparison = dataclasses.replace(comparison, rates=rates)
    cells = options.out / "cells.jsonl"
    lines = run_study(comparison.study(), cells, work, options.jobs, console, retry=options.retry)
    page = options.out.absolute() / "report.html"
    with waiting("writing the page", console):
        write_comparison(lines, page, tuning=grid_points(grid), command=options.words)
    show_sheets(comparison_sheets(lines), console)
    console.print(f"report {page}", markup=False, soft_wrap=True)


def _bytes(options: argparse.Namespace, console: "Console") -> None:
    from fedasym.runs.communication import WRITERS
    from simulations.cost.computed_bytes import as_json, communication_costs, print_costs

    if "central" in options.methods:
        raise ValueError("central has all data in one place, so nothing travels; leave it out")
    asked = {key: getattr(options, key) for key in ("model", "rank", "targets", "head", "pooling", "clients", "labels")}
    if options.labels is None:
        asked["labels"] = 0 if options.model in WRITERS else 2
    found = communication_costs(methods=options.methods, **asked)
    if options.json:
        print(json.dumps(as_json(found, **asked), indent=1))
    else:
        print_costs(found, options.model, options.clients, asked["labels"], console)


_COMMANDS = {
    "run": _run, "demo": _demo, "federation": _federation, "compare": _compare, "tune": _tune, "bytes": _bytes,
    "sockets": _sockets, "record": _record, "page": _page, "tables": _tables, "settings": _settings,
    "devices": _devices, "export": _export, "predict": _predict,
}  # fmt: skip

if __name__ == "__main__":
    STOPPING.install()
    sys.exit(main())
