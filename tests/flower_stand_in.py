"""A stand-in for Flower's command line, which keeps its nodes in a file: what `flwr supernode` answers, at once."""

import json
import subprocess
import sys
from pathlib import Path

# As Flower 1.42: a node's row stays when it is unregistered, its key is taken for good, a list tells ids and status.
STAND_IN = """\
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
with (folder / "calls").open("a") as calls:
    print(*sys.argv[1:3], file=calls)
if (folder / "instead").exists():
    sys.exit((folder / "instead").read_text())
nodes, act = json.loads((folder / "nodes").read_text()), sys.argv[2]
def answer(**more):
    print("something for people", json.dumps({"success": "error-message" not in more, **more}))
    sys.exit("error-message" in more)
if act == "list":
    answer(nodes=[{key: node[key] for key in ("node-id", "status")} for node in nodes])
if act == "register":
    key = pathlib.Path(sys.argv[3]).read_text()
    if key in [node["key"] for node in nodes]:
        answer(**{"error-message": "Public key already in use."})
    nodes.append({"node-id": str(100 + len(nodes)), "status": "registered", "key": key})
else:
    (node,) = [node for node in nodes if node["node-id"] == sys.argv[3]]
    node["status"] = "unregistered"
(folder / "nodes").write_text(json.dumps(nodes))
answer(**{"node-id": nodes[-1]["node-id"]})
"""


class Flower:
    """The stand-in: what it was asked, and its nodes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.instead = folder / "instead"  # what it prints to standard error before it fails
        folder.mkdir()
        (folder / "flwr").write_text(f"#!{sys.executable} -S\n{STAND_IN}")
        (folder / "flwr").chmod(0o700)
        (folder / "nodes").write_text("[]")

    def calls(self) -> int:
        return len((self._folder / "calls").read_text().splitlines())

    def nodes(self) -> dict[str, str]:
        return {node["node-id"]: node["status"] for node in json.loads((self._folder / "nodes").read_text())}

    def does(self, *words: str) -> None:
        subprocess.run([self._folder / "flwr", "supernode", *words], check=True, capture_output=True)
