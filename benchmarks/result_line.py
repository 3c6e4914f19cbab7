"""What all benchmarks share: their options, what they say of the machine, and their result as one JSON line."""

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedasym.files import append_line
from fedasym.models.device import choose_device, name_of


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="append the line to this file too")
    return parser


def machine(*packages: str) -> dict[str, Any]:
    """Return what a speed depends on: Python, some packages' versions, the platform, its processor and its load."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": platform.platform(),
        "processor": name_of(choose_device("cpu")),
        "cpu_count": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def say(line: dict[str, Any], out: Path | None) -> None:
    """Print a result, and append it to the file that ``--out`` names."""
    print(json.dumps(line), flush=True)
    if out:
        append_line(out, line)
