"""The in-process engine: the two apps on an `InProcessGrid`."""

from pathlib import Path

from flwr.app import Context, RecordDict

from clients.app import app as client_app
from fedasym.settings import Settings
from server.app import app as server_app
from simulations.grid import RUN_ID, SERVER_NODE, InProcessGrid


def run_local(settings: Settings, workers: int) -> Path:
    """Run a federation in this process.

    Args:
        settings: ``out`` must name the run folder.
        workers: clients that train at the same time, on one thread each.

    Returns:
        The run folder.
    """
    config = settings.run_config()
    with InProcessGrid(client_app, config, settings.num_clients, workers) as grid:
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(config)))
    return Path(settings.out)
