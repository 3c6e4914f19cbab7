"""Flower's command line, called as a process and answered in JSON."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from fedasym.ops.processes import tool


class FlowerError(RuntimeError):
    """Flower did not do what it was asked; the text holds its own words or the end of its log."""


def flwr(arguments: Sequence[str], environment: Mapping[str, str]) -> Any:
    """Call ``flwr`` and return its JSON answer.

    Args:
        arguments: its words without ``--format json``.
        environment: from `fedasym.ops.processes.flower_environment`.

    Raises:
        FlowerError: it failed, or says that it did.
    """
    command = [tool("flwr"), *arguments, "--format", "json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    start = done.stdout.find("{")
    answer = json.loads(done.stdout[start:]) if start >= 0 else {}
    if done.returncode or not answer.get("success"):
        raise FlowerError(f"`flwr {arguments[0]}` failed: {answer.get('error-message') or done.stdout + done.stderr}")
    return answer
