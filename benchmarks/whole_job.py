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


def flower_run(app: Path, config: dict[str, Any], home: Path) -> float:
    """Run an app as a user does, end what it leaves, and return the seconds of the command.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    mark = f"FEDASYM_BENCHMARK_{os.getpid()}"
    environment = marked(flower_environment(home), mark) | {
        "HF_HUB_OFFLINE": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONPATH": "",
    }
    command = ["flwr", "run", str(app), "--stream", "--federation-config", FEDERATION, "-c", words(config)]
    began = time.perf_counter()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=home)
        seconds = time.perf_counter() - began
    finally:
        end_all(lambda: bearers(mark), 10.0)
    if done.returncode:
        raise RuntimeError(f"{app} failed: {(done.stdout + done.stderr)[-2000:]}")
    return seconds


def ours(root: Path, more: dict[str, Any]) -> dict[str, Any]:
    """Run our job and return its seconds."""
    whole = flower_run(ROOT, {**OURS, **more, "out": str(root / "run")}, root)
    rows = read_rounds(root / "run")
    if any(row["clients_valid"] != CLIENTS for row in rows):
        raise RuntimeError(f"not every reply counted: {[row['rejections'] for row in rows]}")
    return {"whole": whole, "rounds": [row["seconds"] for row in rows]}


def theirs(root: Path) -> dict[str, Any]:
    """Run the yardstick's job on the same reviews and return its seconds."""
    demo_of(packaged_reviews(), "train").to_json(root / "train.jsonl", orient="records", lines=True)
    config = {"model": str(source_of(Settings().model)), "data": str(root), "times": str(root / "times.json")}
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
