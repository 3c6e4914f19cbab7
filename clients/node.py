"""Where a client's messages are worked on: a share of a split, or a site with data of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What of its data a site lends, by `Task.reads` of one task or another.
LENT = (
    "text-columns", "label-column", "labels", "answer-column", "image-layout", "image-column", "train-split",
)  # fmt: skip


@dataclass(frozen=True)
class NodeContext:
    """What a node says of itself; a node of a simulation says nothing but its partition.

    Attributes:
        site: the site's name, as registered with the server; "" in a split.
        data: folder of the site's own training data; "": the data of the settings are split over the clients.
        state: folder for what never leaves the site; "": below the run folder.
        log: file for what went wrong, of which others are told a code alone; "": standard error.
        contract: hash of the only contract that is worked under, whose text is kept in ``state``; "": any.
        device: where this node computes; "": where the run's setting ``device`` says.
        keep_runs: how many earlier runs' folders stay in ``state``.
        keep_days: how many days one that is not worked for stays there.
        lends: what alone of the site's data is read, by the settings `LENT`; empty: whatever a run reads.
        share, shares: the node's partition and their number; -1 and 0 if it has none.

    Raises:
        ValueError: a pinned contract and no folder to keep its text in.
    """

    site: str = ""
    data: str = ""
    state: str = ""
    log: str = ""
    contract: str = ""
    device: str = ""
    keep_runs: int = 20
    keep_days: float = 90.0
    lends: Mapping[str, str] = field(default_factory=dict)
    share: int = -1
    shares: int = 0

    def __post_init__(self) -> None:
        if self.contract and not self.state:
            raise ValueError(
                f"the node config has contract={self.contract!r} and no state-dir, where a pinned contract's text is "
                "kept; give it a folder of the site's own"
            )

    @property
    def private(self) -> bool:
        """Whether nothing of the data, texts of errors included, may leave."""
        return bool(self.data)


def node_context_of(node_config: Mapping[str, Any]) -> NodeContext:
    """Read what a node says of itself from Flower's node config.

    Keys: ``site``, ``data-dir``, ``state-dir``, ``log-file``, ``contract``, ``device``, ``keep-runs``, ``keep-days``,
    those of `LENT`, ``partition-id``, ``num-partitions``.

    Raises:
        ValueError: a site without data, data without a site, a pinned contract without a folder for its text, or a
            number that is none.
    """
    keys = {"site": "site", "data": "data-dir", "state": "state-dir", "log": "log-file"}
    keys |= {"contract": "contract", "device": "device"}
    texts = {name: str(node_config.get(key, "")) for name, key in keys.items()}
    if bool(texts["site"]) != bool(texts["data"]):
        raise ValueError(
            f"the node config has site={texts['site']!r} and data-dir={texts['data']!r}; a site needs both, a share of "
            "a split neither"
        )
    share, shares = node_config.get("partition-id", -1), node_config.get("num-partitions", 0)
    lends = {key: str(node_config[key]) for key in LENT if key in node_config}
    keep_runs = int(node_config.get("keep-runs", NodeContext.keep_runs))
    keep_days = float(node_config.get("keep-days", NodeContext.keep_days))
    if keep_runs < 0 or not keep_days > 0:
        raise ValueError(f"the node config has keep-runs={keep_runs}, keep-days={keep_days}; at least 0, more than 0")
    return NodeContext(
        **texts, keep_runs=keep_runs, keep_days=keep_days, lends=lends, share=int(share), shares=int(shares)
    )
