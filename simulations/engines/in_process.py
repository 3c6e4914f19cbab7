"""The in-process engine: the two apps on an `InProcessGrid`."""

from importlib import import_module
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from clients.app import app as client_app
from fedasym.fields import Value
from fedasym.models.device import workers_of
from fedasym.ops.progress import begin
from fedasym.settings import Settings
from server.app import app as server_app
from simulations.engines.grid import RUN_ID, SERVER_NODE, InProcessGrid


def run_local(settings: Settings, workers: int, data: Path | None = None, app: ClientApp = client_app) -> Path:
    """Run a federation in this process.

    Args:
        settings: ``out`` must name the run folder.
        workers: clients that train at the same time, on one thread each; on GPUs at most one a GPU.
        data: with ``sites``, the folder that holds each one's data in a folder of its name.
        app: what clients run.

    Returns:
        The run folder.

    Raises:
        ValueError: sites without data, or data without sites.
    """
    if (data is None) == bool(settings.sites):
        raise ValueError(
            f"sites={settings.sites!r} and the folder of their data is {data}; give both (--site-data DIR) or neither"
        )
    begin(Path(settings.out), "loading transformers")
    # Whole, before there are threads: one that imports them would see the half of what another has begun to import.
    for name in ("transformers", "server.lifecycle", "clients.message_handler"):
        import_module(name)
    config = settings.run_config()
    nodes: int | list[dict[str, Value]] = settings.num_clients
    if data is not None:
        log_file = str(Path(settings.out) / "sites.log")
        nodes = [
            {"site": name, "data-dir": str((data / name).absolute()), "log-file": log_file}
            for name in settings.site_names
        ]
    with InProcessGrid(app, config, nodes, workers_of(settings.device, workers)) as grid:
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(config)))
    return Path(settings.out)
