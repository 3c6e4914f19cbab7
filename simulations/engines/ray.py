"""Flower's own simulation engine (Ray), on a private SuperLink.

Ray is started for the run on this machine, unless RAY_ADDRESS names a cluster that runs already: then a client has as
many of its cores as ``threads`` says, with ``device=cuda`` a GPU, and as many train at the same time as fit.
"""

import shutil
from pathlib import Path

from fedasym.ops import extras
from fedasym.ops.processes import cores, ray_address
from fedasym.ops.progress import begin
from fedasym.settings import Settings
from simulations.engines.superlink import Superlink, run_app, superlink


def run_flower(settings: Settings, workers: int, data: Path | None = None, link: Superlink | None = None) -> Path:
    """Run a federation through ``flwr run`` on Flower's simulation engine.

    Args:
        settings: ``out`` must name the run folder.
        workers: clients that train at the same time, each in a process of its own; without a meaning on a cluster.
        data: must be None: Flower's simulated nodes have no data of their own.
        link: where; None: a SuperLink of its own, which ends with the run.

    Returns:
        The run folder.

    Raises:
        ValueError: sites with data of their own.
        ModuleNotFoundError: Ray is not installed.
        FlowerError: the run ended otherwise than ``finished:completed``.
    """
    extras.require("ray")  # Flower's processes say so in a log alone
    if settings.sites or data is not None:
        raise ValueError("Flower's simulated nodes cannot have data of their own; use --engine local, or deploy")
    # Ray starts as many actors as fit: num-cpus of each into num-cpus of all, and the same for GPUs.
    if ray_address() == "local":
        each, gpus = max(1, cores() // workers), _gpus(settings.device)
        wanted: dict[str, float] = {"client-resources-num-cpus": each, "init-args-num-cpus": each * workers}
        if gpus:
            wanted |= {"client-resources-num-gpus": min(1.0, gpus / workers), "init-args-num-gpus": gpus}
    else:
        wanted = {"client-resources-num-cpus": settings.threads}
        if settings.device.startswith("cuda"):
            wanted |= {"client-resources-num-gpus": 1.0}
    wanted |= {"num-supernodes": settings.num_clients}
    federation = " ".join(f"{name}={value}" for name, value in wanted.items())
    if link is not None:
        return run_app(link, settings, "--federation-config", federation)
    begin(Path(settings.out).absolute(), "starting Flower's SuperLink")
    with superlink(Path(settings.out).absolute() / "flower.log", "--simulation") as link:
        return run_app(link, settings, "--federation-config", federation)


def _gpus(setting: str) -> int:
    """Return how many GPUs the clients share; each of Ray's processes sees those of its share alone."""
    if setting in ("cpu", "mps") or not shutil.which("nvidia-smi"):  # no driver: spare the import of PyTorch
        return 0
    from fedasym.models.device import gpu_count

    return gpu_count()
