"""A whole job through `flwr run` beside one of as much work in PEFT and FedAvg alone (`peft_fedavg/`); see --out.

20 clients, 3 rounds, 5 steps of 16 packaged reviews each, MiniLM with rank 8 on query and value, a Dirichlet split of
0.5; SGD here, AdamW and dropout there, as each is used by default. Each command is started from nothing, in
alternation, and timed from its start to its end; a round's seconds are what its app says. The yardstick evaluates
nothing; ours evaluates as told: after every round, or after the last.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.result_line import machine, make_parser, say
from fedasym.data.sources import demo_of, packaged_reviews
from fedasym.models.model_files import source_of
from fedasym.ops.processes import bearers, end_all, flower_environment, free_port, marked
from fedasym.runs.record import read_rounds
from fedasym.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = 20
FEDERATION = f"num-supernodes={CLIENTS} client-resources-num-cpus=1"
OURS = {
    "num-clients": CLIENTS,
    "num-rounds": 3,
    "local-steps": 5,
    "batch-size": 16,
    "rank": 8,
    "targets": "query,value",
}


def words(config: dict[str, Any]) -> str:
    """Return a run config as the one text that ``flwr run -c`` takes."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())


def flower_run(app: Path, config: dict[str, Any], home: Path, seen: Callable[[], bool] | None = None) -> float:
    """Run an app as a user does, end what it leaves, and return the seconds of the command.

    Args:
        app: its folder.
        config: the run config.
        home: Flower's, and the working directory.
        seen: the command is ended, and timed, as soon as this is true; None: at its own end.

    Raises:
        RuntimeError: it failed, or ended before that was true; with the end of what it said.
    """
    mark = f"FEDASYM_BENCHMARK_{os.getpid()}"
    environment = marked(flower_environment(home), mark) | {
        "HF_HUB_OFFLINE": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONPATH": "",
    }
    command = ["flwr", "run", str(app), "--stream", "--federation-config", FEDERATION, "-c", words(config)]
    log = home / "command.log"
    began = time.perf_counter()
    with log.open("wb") as said:
        run = subprocess.Popen(command, env=environment, stdout=said, stderr=said, cwd=home)
    try:
        while (code := run.poll()) is None and not (seen and seen()):
            time.sleep(0.05)
        seconds = time.perf_counter() - began
    finally:
        end_all(lambda: bearers(mark), 10.0)
        run.wait()
    if code or (seen and code is not None):
        raise RuntimeError(f"{app} failed: {log.read_text(errors='replace')[-2000:]}")
    return seconds


def ours(root: Path, more: dict[str, Any]) -> dict[str, Any]:
    """Run our job and return its seconds."""
    whole = flower_run(ROOT, {**OURS, **more, "out": str(root / "run")}, root)
    rows = read_rounds(root / "run")
    if any(row["clients_valid"] != CLIENTS for row in rows):
        raise RuntimeError(f"not every reply counted: {[row['rejections'] for row in rows]}")
    return {"whole": whole, "rounds": [row["seconds"] for row in rows]}


def config_of_theirs(root: Path) -> dict[str, Any]:
    """Write the same reviews for the yardstick, and return its run config."""
    demo_of(packaged_reviews(), "train").to_json(root / "train.jsonl", orient="records", lines=True)
    return {"model": str(source_of(Settings().model)), "data": str(root), "times": str(root / "times.json")}


def theirs(root: Path) -> dict[str, Any]:
    """Run the yardstick's job and return its seconds."""
    config = config_of_theirs(root)
    whole = flower_run(ROOT / "benchmarks" / "peft_fedavg", config, root)
    found = json.loads((root / "times.json").read_text())
    if found["replies"] != [CLIENTS] * len(found["seconds"]):
        raise RuntimeError(f"not every reply of the yardstick came: {found}")
    return {"whole": whole, "rounds": found["seconds"]}


def main() -> None:
    """Run each job some times."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=2, help="of each job (default: %(default)s)")
    told = parser.parse_args()
    jobs = {
        "fedasym, evaluated after every round": lambda root: ours(root, {}),
        "fedasym, evaluated after the last": lambda root: ours(root, {"eval-every": 3}),
        "PEFT and FedAvg": theirs,
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for _ in range(told.repeats):
        for name, job in jobs.items():
            root = Path(tempfile.mkdtemp())
            try:
                found[name].append(job(root))
            finally:
                shutil.rmtree(root, ignore_errors=True)
            print(name, found[name][-1], file=sys.stderr, flush=True)
    yardstick = found["PEFT and FedAvg"]
    for name, runs in found.items():
        line = {"benchmark": "whole job", **machine("torch", "flwr", "peft", "ray"), "job": name, "runs": runs}
        for key in ("whole", "warm_round"):
            mine, other = (
                statistics.median(
                    run["whole"] if key == "whole" else statistics.mean(run["rounds"][1:]) for run in each
                )
                for each in (runs, yardstick)
            )
            line |= {f"{key}_seconds": round(mine, 2), f"{key}_times_as_fast_as_peft": round(other / mine, 2)}
        say(line, told.out)


if __name__ == "__main__":
    main()
