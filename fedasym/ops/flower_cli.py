"""Flower's command line, called as a process and answered in JSON, and the file in which it finds a SuperLink."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fedasym.ops.processes import tool


class FlowerError(RuntimeError):
    """Flower did not do what it was asked; the text holds its own words or the end of its log."""


def flwr(arguments: Sequence[str], environment: Mapping[str, str], seconds: float = 120.0) -> Any:
    """Call ``flwr`` and return its JSON answer.

    Args:
        arguments: its words without ``--format json``.
        environment: from `fedasym.ops.processes.flower_environment`.
        seconds: that it may take; 2 s of a core are usual.

    Raises:
        FlowerError: it failed, says that it did, or hangs.
    """
    command = [tool("flwr"), *arguments, "--format", "json"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise FlowerError(f"`flwr {arguments[0]}` did not answer within {seconds:g} s") from None
    start = done.stdout.find("{")
    answer = json.loads(done.stdout[start:]) if start >= 0 else {}
    if done.returncode or not answer.get("success"):
        raise FlowerError(f"`flwr {arguments[0]}` failed: {answer.get('error-message') or done.stdout + done.stderr}")
    return answer


def connection(name: str, port: int, certificates: Path | None = None) -> str:
    """Return the config.toml of a ``FLWR_HOME`` whose one connection is to a SuperLink on this machine.

    Args:
        name: of the connection.
        port: of 127.0.0.1.
        certificates: the file that tells the SuperLink's; None: it is reached without TLS.
    """
    trust = {"insecure": True} if certificates is None else {"root-certificates": str(certificates)}
    return tomli_w.dumps({"superlink": {"default": name, name: {"address": f"127.0.0.1:{port}", **trust}}})
