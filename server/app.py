"""The ServerApp: have the nodes load, then run the federation.

Flower loads ServerApp and ClientApp one after the other, and starts a simulation's workers only then; so nothing large
is imported before `main` runs.
"""

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedasym.ops.paused_gc import uncollected

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes."""
    warm(grid)
    with uncollected():
        from server.lifecycle import run_federation  # here, not above: it imports torch
    run_federation(grid, context)


def warm(grid: Grid) -> None:
    """Let the nodes that are there load model and data while the server does; nobody waits for their answers."""
    content = RecordDict({"about": ConfigRecord()})
    nodes = list(grid.get_node_ids())
    grid.push_messages([Message(content, node, f"{MessageType.QUERY}.warm", group_id="warm") for node in nodes])
