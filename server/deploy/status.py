"""What a running server is doing: its sites, its newest run, the run's last round."""

from pathlib import Path
from typing import Any

from fedasym.ops.flower_cli import flwr
from fedasym.ops.processes import flower_environment
from fedasym.runs.record import read_json, read_rounds
from server.deploy import keys
from server.deploy.home import CONNECTION, Home, read_nodes
from server.deploy.registrar import ANSWER_SECONDS, healthy


def status(home: Home) -> dict[str, Any]:
    """Return what is known of a server.

    Returns:
        ``address``, ``up`` and ``certificate_until``; ``sites``, each with ``name``, ``node``, ``status`` (online,
        offline, registered: never seen yet, unregistered, unknown) and ``online_seconds``; ``run``, Flower's newest,
        or None; ``record``, that of the newest run folder, or None.

    Raises:
        FlowerError: the SuperLink answers, but not to Flower's command line.
    """
    found: dict[str, Any] = {
        "address": home.address,
        "up": healthy(home),
        "certificate_until": keys.expiry(home.folder / "server.crt").isoformat(),
        "run": None,
        "record": _record(home.runs),
    }
    listed: dict[str, dict[str, Any]] = {}
    if found["up"]:
        environment = flower_environment(home.flower)
        listed = {
            node["node-id"]: node
            for node in flwr(["supernode", "list", CONNECTION], environment, ANSWER_SECONDS)["nodes"]
        }
        runs = flwr(["list", CONNECTION, "--limit", "1"], environment, ANSWER_SECONDS)["runs"]
        found["run"] = {key.replace("-", "_"): runs[0].get(key) for key in _RUN} if runs else None
    nodes = read_nodes(home)
    found["sites"] = [_site(name, nodes.get(name), listed) for name in home.sites]
    return found


_RUN = ("run-id", "status", "fab-hash", "running-at", "finished-at")


def status_words(found: dict[str, Any]) -> str:
    """Say a status in lines."""
    state = "up" if found["up"] else "down; start it with `python -m server up`"
    lines = [f"server {found['address']} {state}; certificate until {found['certificate_until'][:10]}"]
    width = max((len(site["name"]) for site in found["sites"]), default=0)
    lines += [f"site   {site['name']:{width}}  {site['status']}" for site in found["sites"]]
    if run := found["run"]:
        lines.append(f"run    {run['run_id']}  {run['status']}")
    if record := found["record"]:
        value = "not evaluated" if record["value"] is None else f"{record['value']:.4f}"
        lines.append(
            f"round  {record['round']}/{record['rounds']}  {record['metric']} {value}  "
            f"clients {record['clients_valid']}/{record['clients_asked']}  {record['folder']}"
        )
    return "\n".join(lines)


def _site(name: str, node: str | None, listed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    entry = listed.get(node or "", {})
    online = entry.get("status") == "online"
    return {
        "name": name,
        "node": node,
        "status": entry.get("status", "unknown"),
        "online_seconds": round(entry["online-elapsed"]) if online else None,
    }


def _record(runs: Path) -> dict[str, Any] | None:
    """Return the last round of the run folder that was written to last."""
    folders = {path.parent: path.stat().st_mtime_ns for path in runs.glob("*/rounds.jsonl")}
    if not folders:
        return None
    folder = max(folders, key=lambda each: folders[each])
    rows, config = read_rounds(folder), read_json(folder / "config.json")
    last = rows[-1] if rows else {}
    values = [value for row in rows if (value := row["metrics"][config["metric"]]) is not None]
    return {
        "folder": str(folder),
        "round": last.get("round", 0),
        "rounds": config["settings"]["num_rounds"],
        "metric": config["metric"],
        "value": values[-1] if values else None,
        "clients_valid": last.get("clients_valid", 0),
        "clients_asked": last.get("clients_asked", 0),
        "contract": config["contract_hash"],
    }
