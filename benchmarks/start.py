"""How long a run of Flower's engine takes from the command to its first local step, started from nothing; see --out.

The jobs of `whole_job`, in alternation, each ended at its first step: ours from a copy of the app's files alone, as
`python -m simulations` starts it, and from the checkout, through whose virtual environment Flower walks first. Of ours
the step is seen when a client has written down how many it has done, half a second after it began or a step later; the
yardstick makes a file after its first.
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.result_line import machine, make_parser, say
from benchmarks.whole_job import OURS, ROOT, config_of_theirs, flower_run
from fedasym.ops.app_bundle import stage
from fedasym.ops.progress import look


def ours(root: Path, app: Path) -> float:
    """Return the seconds to the first step of our job, its app in this folder."""

    def seen() -> bool:
        progress = look(root / "run")
        return progress is not None and progress.steps > 0

    return flower_run(app, {**OURS, "out": str(root / "run")}, root, seen)


def theirs(root: Path) -> float:
    """Return the seconds to the first step of the yardstick's job."""
    config = {**config_of_theirs(root), "first-step": str(root / "stepped")}
    return flower_run(ROOT / "benchmarks" / "peft_fedavg", config, root, (root / "stepped").exists)


def main() -> None:
    """Start each job some times."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="of each job (default: %(default)s)")
    told = parser.parse_args()
    jobs = {
        "fedasym": lambda root: ours(root, stage(root / "fedasym")),
        "fedasym, beside its .venv": lambda root: ours(root, ROOT),
        "PEFT and FedAvg": theirs,
    }
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(told.repeats):
        for name, job in jobs.items():
            root = Path(tempfile.mkdtemp())
            try:
                found[name].append(round(job(root), 1))
            finally:
                shutil.rmtree(root, ignore_errors=True)
            print(name, found[name][-1], file=sys.stderr, flush=True)
    for name, seconds in found.items():
        line = {"benchmark": "first step", **machine("torch", "flwr", "transformers", "peft", "ray"), "job": name}
        say({**line, "seconds": seconds, "median": statistics.median(seconds)}, told.out)


if __name__ == "__main__":
    main()
