"""The command line of a site: ``python -m clients up``."""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of an import; `up` takes the signals over

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the process's exit code."""
    told = _parser().parse_args(arguments)
    from fedasym.ops import extras

    try:
        from clients.deploy.site_processes import Options, in_words, plan_of
        from clients.deploy.up import SiteError, up
        from clients.worker.service import Limits
        from fedasym.ops.processes import free_port
    except ModuleNotFoundError as error:
        print(extras.in_words(error), file=sys.stderr)
        return 1

    if told.superlink and not told.insecure:
        print("--superlink goes with --insecure; with a kit's keys the server is the kit's", file=sys.stderr)
        return 2
    if told.insecure and not told.superlink:
        print("--insecure needs --superlink HOST:PORT", file=sys.stderr)
        return 2
    given = {"seconds": told.deadline, "gigabytes": told.max_memory, "threads": told.threads}
    given = {name: value for name, value in given.items() if value is not None}
    names = (
        "kit", "data", "state", "task", "text_columns", "label_column", "labels", "answer_column", "train_split",
        "instruct_format", "image_layout", "image_column", "device", "keep_runs", "keep_days", "pin_bundle",
        "pin_contract", "superlink", "node_config",
    )  # fmt: skip
    try:
        limits = Limits(**given) if given else None
        plan = plan_of(
            Options(**{name: getattr(told, name) for name in names}, limits=limits, worker=not told.no_worker)
        )
        if told.print:
            print(in_words(plan, free_port()))
        else:
            up(plan)
    except (SiteError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    from fedasym.tasks import task_names

    parser = argparse.ArgumentParser(prog="python -m clients", description="A site of a federation.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    site = commands.add_parser("up", help="bring this site up and keep it up until Ctrl-C")
    site.add_argument(
        "--kit", type=Path, required=True, metavar="DIR", help="the folder that the server gave this site"
    )
    site.add_argument("--data", type=Path, required=True, metavar="DIR", help="the site's own data; they stay here")
    site.add_argument("--state", type=Path, metavar="DIR", help="what is kept, logs included (KIT/state)")
    tasks = task_names()
    site.add_argument("--task", choices=tasks, default="classification", metavar="NAME", help=", ".join(tasks))
    site.add_argument("--text-columns", default="text", metavar="NAMES", help="one, or two by a comma (text)")
    site.add_argument("--label-column", default="label", metavar="NAME", help="(label)")
    site.add_argument("--labels", default="", metavar="NAMES", help="the classes in the order of their ids, by commas")
    site.add_argument("--answer-column", default="summary", metavar="NAME", help="what is to be written (summary)")
    site.add_argument("--train-split", default="train", metavar="NAME", help="file of the training data (train)")
    site.add_argument(
        "--instruct-format", default="alpaca", metavar="NAME", help="with task instruct, the columns (alpaca)"
    )
    site.add_argument(
        "--image-layout", default="table", metavar="NAME", help="with task images: table, domains or classes (table)"
    )
    site.add_argument("--image-column", default="image", metavar="NAME", help="of a table of images (image)")
    site.add_argument("--device", default="", metavar="NAME", help="cpu, cuda, cuda:N, mps (what the run says)")
    site.add_argument("--keep-runs", type=_none_or_more, default=20, metavar="N", help="earlier runs to keep (20)")
    site.add_argument("--keep-days", type=_positive, default=90.0, metavar="N", help="days to keep one unused (90)")
    site.add_argument("--deadline", type=_positive, metavar="S", help="seconds for one message (3600)")
    site.add_argument("--max-memory", type=_positive, metavar="GB", help="of the worker; more and it starts again")
    site.add_argument("--threads", type=_count, metavar="N", help="most threads that a run may train with")
    site.add_argument("--pin-bundle", default="", metavar="SHA256", help="the only app bundle that may run here")
    site.add_argument("--pin-contract", default="", metavar="HASH", help="the only contract that is worked under")
    site.add_argument(
        "--no-worker", action="store_true", help="import everything anew for each message, as Flower does"
    )
    site.add_argument("--insecure", action="store_true", help="no TLS and no keys, for trials on one machine")
    site.add_argument("--superlink", default="", metavar="HOST:PORT", help="the server, with --insecure")
    site.add_argument("--node-config", default="", metavar="'K=V ...'", help="more for Flower's node config")
    site.add_argument("--print", action="store_true", help="say what would run, and start nothing")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    return _at_least(1, text)


def _none_or_more(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is below {least}")
    return value


if __name__ == "__main__":
    sys.exit(main())
