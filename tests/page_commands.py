"""The commands of a page: read out of it, filled in with places that a test has made, and run."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedasym.ops.processes import QUIET

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str) -> list[str]:
    """Return the lines of a page's blocks of commands, those that a backslash continues as one."""
    return [line for block in blocks(page, "bash") for line in block.replace("\\\n", "").splitlines() if line]


def filled(text: str, places: Mapping[str, str]) -> str:
    """Put what a test has made in the place of a page's /path/to names."""
    for name in sorted(places, key=len, reverse=True):
        text = text.replace(name, places[name])
    return text


def overrides_of(command: str) -> list[str]:
    """Return the settings ``key=value`` of a command ``flwr run … -c '…'``."""
    words = shlex.split(command)
    return shlex.split(words[words.index("-c") + 1])


@contextmanager
def flower_shell(home: Path) -> Iterator[dict[str, str]]:
    """Yield an environment for `flwr` with a home and port of its own; end the SuperLink that it leaves behind."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    yield {**os.environ, **QUIET, "FLWR_HOME": str(home), "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port, "PATH": path}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if port in words and any(word.endswith("flower-superlink") for word in words):
                os.killpg(int(entry.name), signal.SIGTERM)


def flower_run(command: str, shell: Mapping[str, str]) -> Path:
    """Run a command ``flwr run . --stream …`` and return the run folder; require that it ended well."""
    run = subprocess.run(["bash", "-c", command], cwd=ROOT, env=shell, capture_output=True, text=True)
    report = re.search(r"report (\S+)/report\.html", run.stdout)
    assert report, run.stdout + run.stderr
    assert final_status(shell) == "finished:completed"
    return Path(report[1])


def final_status(shell: Mapping[str, str]) -> str:
    """Return the last run's status once it is finished; the log stream may end a moment earlier."""
    while True:
        command = ["flwr", "list", "--limit", "1", "--format", "json"]
        listed = subprocess.run(command, cwd=ROOT, env=shell, capture_output=True, text=True, check=True).stdout
        status = str(json.loads(listed[listed.index("{") :])["runs"][0]["status"])
        if status.startswith("finished"):
            return status
