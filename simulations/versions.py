"""A federation whose nodes run other versions of libraries than its server: real processes, one environment each.

``python -m simulations.versions ENV --out FILE`` federates the model and data of some settings over two SuperNodes,
one of this environment and one of ENV (`make other-env`), and appends what it saw as one line.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedasym.files import append_line
from fedasym.ops.app_bundle import PROJECT
from fedasym.ops.processes import free_port, started
from fedasym.runs.record import read_json, read_rounds, versions
from fedasym.settings import Settings
from simulations.engines.superlink import run_app, superlink
from simulations.run import read_settings

VARIABLE = "FEDASYM_OTHER_ENV"  # names the environment of `make other-env`


def run_environments(settings: Settings, environments: Sequence[Path]) -> Path:
    """Run a federation on one SuperNode of each environment; the server runs in ours.

    Args:
        settings: ``out`` must name the run folder.
        environments: folders with ``bin/flower-supernode``.

    Returns:
        The run folder.

    Raises:
        FileNotFoundError: an environment without Flower's commands.
        FlowerError: the run did not complete.
    """
    folder = Path(settings.out).absolute()
    with ExitStack() as stack:
        link = stack.enter_context(superlink(folder / "flower.log"))
        for share, environment in enumerate(environments):
            commands = environment.absolute() / "bin"
            if not (commands / "flower-supernode").exists():
                raise FileNotFoundError(f"{commands} has no flower-supernode; make the environment by `make other-env`")
            command = [
                str(commands / "flower-supernode"), "--insecure",
                "--superlink", f"127.0.0.1:{link.port}", "--port", str(free_port()),
                "--node-config", f"partition-id={share} num-partitions={len(environments)}",
            ]  # fmt: skip
            variables = {**link.environment, "PATH": os.pathsep.join([str(commands), link.environment["PATH"]])}
            stack.enter_context(started(command, variables, PROJECT, folder / f"node-{share}.log"))
        return run_app(link, settings)


def seen(folder: Path) -> dict[str, Any]:
    """Return what a run folder tells of versions: the server's, each node's, warnings and digests by round."""
    rows = read_rounds(folder)
    return {
        "server": versions(),
        "nodes": read_json(folder / "nodes.json"),
        "warnings": rows[0]["warnings"],
        "clients_valid": [row["clients_valid"] for row in rows],
        "digests": [row["digest"] for row in rows],
    }


def main() -> None:
    """Run two environments and write the line."""
    parser = argparse.ArgumentParser(prog="python -m simulations.versions", description=__doc__)
    parser.add_argument("environment", type=Path)
    parser.add_argument("-c", "--config", type=Path, help="TOML file of settings; all defaults if left out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--run", type=Path, default=Path("runs/versions"), help="the run folder")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    settings = read_settings(options.config, options.set, options.run)
    folder = run_environments(settings, [Path(sys.prefix), options.environment])
    line = {**seen(folder), "settings": {k: v for k, v in settings.run_config().items() if k != "out"}}
    append_line(options.out, line)
    print("\n".join(line["warnings"]))


if __name__ == "__main__":
    main()
