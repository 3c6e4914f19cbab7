"""What nodes say of themselves when they agree: versions, logits, notes. It is recorded and shown, and refuses nobody.

It comes from another party: every text is cut and cleaned of what is not printable before it is shown or kept.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedasym.runs import record
from fedasym.wire import records

_LONGEST, _MOST = 200, 16  # characters of a text; texts of a kind
# Their changes can move bits, formats or ids; all the others of a node's are kept in nodes.json alone.
_MATTER = ("fedasym", "torch", "transformers", "tokenizers", "numpy", "flwr")

log = logging.getLogger("fedasym")


@dataclass(frozen=True)
class _Node:
    """What one node said, cleaned; the gap is 0 where it names no finite one."""

    versions: dict[str, str]
    gap: float
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


class Said:
    """What the nodes of a run have said.

    Args:
        past: the record's rounds so far; what they warn of is not recorded twice.
    """

    def __init__(self, past: Sequence[Mapping[str, Any]] = ()) -> None:
        self._past = [text for row in past for text in row.get("warnings", [])]
        self._ours = record.versions()
        self._nodes: dict[str, _Node] = {}  # by name
        self._new: list[str] = []

    def hear(self, name: str, about: Mapping[str, Any]) -> None:
        """Take what a node says: ``versions`` (``name=version``), ``logits-gap``, ``notes`` and ``warnings``.

        Args:
            name: what the node is called.
            about: of its answer to the handshake; whatever is not of the expected form is left out.
        """
        pairs = [text.partition("=") for text in _texts(about, "versions")]
        versions = {name: version for name, _, version in pairs if name in self._ours}
        gap = about.get("logits-gap")
        gap = gap if isinstance(gap, float) and math.isfinite(gap) else 0.0
        node = _Node(versions, gap, _texts(about, "notes"), _texts(about, "warnings"))
        if self._nodes.get(name) != node:
            self._nodes[name] = node
            self._new.append(name)

    def news(self, folder: Path) -> list[str]:
        """Log what is new since the last call, keep all of it in ``nodes.json``, and return the warnings."""
        new, self._new = list(dict.fromkeys(self._new)), []
        if not new:
            return []
        record.write_json(folder / record.NODES, self._groups())
        for text, names in _by_text((name, note) for name in new for note in self._nodes[name].notes):
            log.info("%s: %s", _who(names), text)
        said = []
        for text, names in _by_text((name, text) for name in new for text in self._nodes[name].warnings):
            said.append((text, f"{_who(names)}: {text}"))
        for text, names in _by_text((name, self._difference(self._nodes[name].versions)) for name in new):
            gap = max(self._nodes[name].gap for name in names)
            agree = f"agree to {gap:.0e} of the largest" if gap > 0 else "are equal"
            verb = "runs" if len(names) == 1 else "run"
            said.append((text, f"{_who(names)} {verb} {text}; logits {agree}"))
        for _, warning in said:
            log.warning("%s", warning)
        return [warning for text, warning in said if not any(text in known for known in self._past)]

    def _difference(self, theirs: Mapping[str, str]) -> str:
        """Say which versions that matter are not ours; "" if all are."""
        other = [name for name in _MATTER if theirs.get(name, "an unknown version") != self._ours[name]]
        if not other:
            return ""
        there = ", ".join(f"{name} {theirs.get(name, 'of an unknown version')}" for name in other)
        here = ", ".join(f"{name} {self._ours[name]}" for name in other)
        return f"{there}, the server {here}: their arithmetic may differ in the last bits"

    def _groups(self) -> list[dict[str, Any]]:
        """Return nodes that say the same together, in the order in which they came."""
        groups: dict[str, dict[str, Any]] = {}
        for name, node in self._nodes.items():
            said = {"versions": node.versions, "notes": node.notes, "warnings": node.warnings}
            group = groups.setdefault(repr(said), {"nodes": [], **said, "logits_gap": 0.0})
            group["nodes"].append(name)
            group["logits_gap"] = max(group["logits_gap"], node.gap)
        return list(groups.values())


def _texts(about: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = about.get(key, [])
    return tuple(records.clean(text, _LONGEST) for text in found[:_MOST]) if isinstance(found, list) else ()


def _by_text(pairs: Any) -> list[tuple[str, list[str]]]:
    """Return the names of those who said each text; an empty text is none."""
    names: dict[str, list[str]] = {}
    for name, text in pairs:
        if text:
            names.setdefault(text, []).append(name)
    return list(names.items())


def _who(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} nodes (first: {names[0]})"
