"""One run: settings from a TOML file and the command line, an engine, a display."""

import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedasym.files import read_toml
from fedasym.methods import METHODS
from fedasym.ops.progress import EVERY_SECONDS
from fedasym.settings import Settings, from_run_config
from simulations.cli.display import Follower, quiet_log

if TYPE_CHECKING:
    from simulations.engines.superlink import Superlink


def read_settings(config: Path | None, overrides: list[str], out: Path | None) -> Settings:
    """Combine a TOML file of settings, ``key=value`` overrides and a run folder.

    Raises:
        ValueError: a file that is not TOML, unknown keys, bad values, or an override that is not ``key=value``.
        FileNotFoundError: no such TOML file.
    """
    values = read_toml(config) if config else {}
    values |= parse_overrides(overrides)
    if out:
        values["out"] = str(out)
    if not values.get("out"):
        stem = config.stem if config else str(values.get("method", "asymmetric"))
        values["out"] = f"runs/{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    values["out"] = str(Path(values["out"]).expanduser().absolute())
    return from_run_config(values)


def parse_overrides(texts: list[str]) -> dict[str, Any]:
    """Read ``key=value`` texts, values as in TOML or else as plain text.

    Raises:
        ValueError: a text without ``=``.
    """
    values = {}
    for text in texts:
        key, equals, raw = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r} is not key=value")
        values[key.strip()] = _value(raw.strip())
    return values


def _value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):  # as in `files.read_toml`
        return raw


def run(
    settings: Settings,
    engine: str,
    workers: int,
    console: Console,
    data: Path | None = None,
    every: float = EVERY_SECONDS,
    link: "Superlink | None" = None,
) -> Path:
    """Run one federation with its display and return its folder.

    Args:
        settings: ``out`` must name the run folder.
        engine: ``local`` or ``flower``.
        workers: clients at the same time.
        console: where to show it.
        data: with ``sites``, the folder that holds each one's data.
        every: seconds of silence after which, off a terminal, a line says how far the run is.
        link: a SuperLink for the engine ``flower``; None: one of the run's own.
    """
    folder = Path(settings.out)
    whose = f"sites {settings.sites}" if settings.sites else f"{settings.num_clients} clients, {settings.split}"
    title = f"{METHODS[settings.method].label}, {settings.task}, {whose}"
    console.print(f"run folder {folder}", markup=False, soft_wrap=True)
    with quiet_log(), Follower(title, folder, settings.num_rounds, console, every):
        if engine == "flower":  # which does without PyTorch in this process
            from simulations.engines.ray import run_flower

            return run_flower(settings, workers, data, link)
        from simulations.engines.in_process import run_local

        return run_local(settings, workers, data)
