"""Who is there: wait for the nodes, shake hands, and map clients to nodes.

A node says by its config which share of the split it holds (``partition-id`` of ``num-partitions``, as Flower's
simulation sets it). Client k is served by the node of partition k; where there are fewer nodes than clients, by
partition k modulo the number of nodes, so a run's result does not depend on how many nodes do the work.
"""

import logging
import time
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedasym import wire
from fedasym.contract import Contract
from fedasym.settings import Settings
from server.strategy import POLL_SECONDS, FederationError

log = logging.getLogger("fedasym")

_MOST_NODES = 1_000_000


def warm(grid: Grid) -> None:
    """Let the nodes that are there load model and data while the server does; nobody waits for their answers."""
    nodes = list(grid.get_node_ids())
    grid.push_messages([Message(RecordDict(), node, f"{MessageType.QUERY}.warm", group_id="warm") for node in nodes])


def meet(grid: Grid, contract: Contract, settings: Settings) -> dict[int, int]:
    """Hand the contract to every node and return the node id that serves each client.

    Waits until all nodes that the first answers speak of (``num-partitions``) have agreed.

    Raises:
        FederationError: a node refuses (names the difference), two nodes hold one share, or not all nodes came
            within ``round-timeout`` seconds.
    """
    deadline = time.monotonic() + settings.round_timeout
    agreed: dict[int, int] = {}  # node id by partition
    asked: set[int] = set()
    expected = 1
    while len(agreed) < expected:
        new = sorted(set(grid.get_node_ids()) - asked)
        if new:
            asked |= set(new)
            for node, about in _query(grid, new, contract, deadline).items():
                share = int(about.get("partition-id", len(agreed)))
                if share in agreed:
                    raise FederationError(
                        f"nodes {agreed[share]} and {node} both hold partition-id={share}; give each node its own"
                    )
                agreed[share] = node
                expected = max(expected, int(about.get("num-partitions", 1)))
        elif time.monotonic() > deadline:
            raise FederationError(
                f"{len(agreed)} of {expected} nodes agreed within round-timeout={settings.round_timeout} s; "
                "start the missing ones or raise round-timeout"
            )
        else:
            time.sleep(POLL_SECONDS)
    order = [agreed[share] for share in sorted(agreed)]
    log.info(
        "%d nodes agreed to contract %s; they serve %d clients", len(order), contract.hash[:12], settings.num_clients
    )
    return {client: order[client % len(order)] for client in range(settings.num_clients)}


def _doubt(about: dict[str, Any], contract: Contract) -> str:
    """Say what is wrong with a node's answer; "" if nothing is."""
    share, shares = about.get("partition-id", 0), about.get("num-partitions", 1)
    if about.get("contract") != contract.hash:
        return f"it answered with contract={about.get('contract')!r}, not {contract.hash}"
    if type(share) is not int or type(shares) is not int or not 0 <= share < shares <= _MOST_NODES:
        return f"its partition-id={share!r} of num-partitions={shares!r} is no share; set both in its node config"
    return ""


def _query(grid: Grid, nodes: list[int], contract: Contract, deadline: float) -> dict[int, dict[str, Any]]:
    """Ask nodes to agree; return what each says of itself."""
    content = RecordDict({"about": ConfigRecord({"contract": contract.to_json()})})
    ids = grid.push_messages([Message(content, node, MessageType.QUERY, group_id="handshake") for node in nodes])
    waiting = dict(zip(ids, nodes, strict=True))
    answers: dict[int, dict[str, Any]] = {}
    refusals: dict[str, list[int]] = {}
    while waiting:
        arrived = list(grid.pull_messages(list(waiting)))
        for reply in arrived:
            node = waiting.pop(reply.metadata.reply_to_message_id, -1)
            if node < 0:
                log.warning("a node answered the handshake twice; its later answer does not count")
            elif reply.has_error():
                refusals.setdefault(f"its process failed: {reply.error.reason}", []).append(node)
            elif "refusal" in reply.content.config_records:
                reason = str(reply.content.config_records["refusal"].get("reason", "no reason given"))
                refusals.setdefault(reason, []).append(node)
            elif reason := _doubt(wire.about(reply.content), contract):
                refusals.setdefault(reason, []).append(node)
            else:
                answers[node] = wire.about(reply.content)
        if not arrived:
            if time.monotonic() > deadline:
                raise FederationError(f"nodes {sorted(waiting.values())} did not answer the handshake in time")
            time.sleep(POLL_SECONDS)
    if refusals:
        lines = [f"{len(who)} node(s), first {who[0]}: {reason}" for reason, who in refusals.items()]
        raise FederationError("the handshake failed. " + " | ".join(lines))
    return answers
