"""Who is there: shake hands with nodes, map clients to them, and say who may be asked in a round.

Where the data are split, a node says by its config which share it holds (``partition-id`` of ``num-partitions``, as
Flower's simulation sets it). Client k is served by the node of partition k; where there are fewer nodes than clients,
by partition k modulo the number of nodes, so a run's result does not depend on how many nodes do the work.

Where sites have data of their own, client k is the k-th of the setting ``sites``: the name that a node is registered
under, whatever its id. Sites may come late, leave and come back; a round asks those that are there.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedasym.ops.progress import Tell, to_nobody
from fedasym.settings import Settings
from fedasym.wire import records
from fedasym.wire.codecs import codec_of
from fedasym.wire.contract import Contract
from server.failure import FederationError
from server.round.inbox import LONGEST_TEXT, Delivery, Inbox, bound_of
from server.round.membership import Membership
from server.round.node_notes import Said
from server.round.run import Round, name_of, pause
from server.round.weights import MOST_EXAMPLES, KnownSizes, StatedSizes, Weights

log = logging.getLogger("fedasym")

_MOST_NODES = 1_000_000
_FIRST_RETRY, _LONGEST_RETRY = 2.0, 60.0  # seconds until a node that could not agree is asked again
_REFUSALS = 4  # of every site, each of which may pass, before the first round: then the run ends
_FIRST_SECONDS = 60.0  # a site's first answer takes as long as loading its model


@dataclass(frozen=True)
class _Late:
    """A message that was not answered in time: to which clients and node, in which round, and until when it is busy."""

    clients: tuple[int, ...]
    node: int
    round: int
    until: float


@dataclass(frozen=True)
class _Retry:
    """When a node is asked again that could not agree, after which pause, and how often it could not so far."""

    at: float
    pause: float
    refusals: int


class Roster:
    """The nodes of a run: who agreed to the contract, who is there, who rests.

    Args:
        grid: Flower's grid.
        contract: what every node must agree to.
        logits: of the initial model, which every node compares with its own.
        settings: clients, quorum, deadlines.
        past: the record's rounds so far, of which rests and warnings are told.
        warmed: node by id of a message whose answer is only taken, so that nobody keeps it.
    """

    def __init__(
        self,
        grid: Grid,
        contract: Contract,
        logits: Sequence[float],
        settings: Settings,
        past: Sequence[dict[str, Any]],
        warmed: Mapping[str, int],
    ) -> None:
        self._grid, self._contract, self._settings = grid, contract, settings
        self.inbox = Inbox(grid)
        about: records.About = {"contract": contract.to_json(), "logits": [*logits], "dtype": settings.dtype}
        self._query = RecordDict({"about": ConfigRecord({**about})})
        self._told = Said(past)
        self._membership = Membership(settings)
        for row in past:
            self._membership.note(row["round"], row["asked"], {int(client) for client in row["rejections"]})
        self._warmed = dict(warmed)
        self._waiting: dict[str, int] = {}  # node by id of the handshake's message
        self._agreed: dict[int, int] = {}  # node by client, or by partition where the data are split
        self._asked: set[int] = set()
        self._refusals: dict[int, str] = {}  # reason by node
        self._retries: dict[int, _Retry] = {}  # who refused for what may pass, by node
        self._sizes: dict[int, int] = {}  # examples that a site states, by client
        self._expected = 1  # partitions
        self._late: dict[str, _Late] = {}  # by id of a message that was not answered in time
        self._late_said: list[str] = []  # of replies that came since
        self._names: dict[int, str] = {}  # registered, by node
        self._began = False
        self._seconds = settings.sites_timeout or settings.round_timeout  # to wait for who is missing
        self._split: dict[int, int] = {}  # node by client, once all shares are held
        self._bound_to_one = False  # whether a node does its own client's work alone

    def gather(self, number: int, tell: Tell = to_nobody) -> dict[int, int]:
        """Return the node of each client that may be asked in a round; wait for the quorum.

        Before the first round, those who are there already and still load their model are waited for a while.

        Args:
            number: of the round.
            tell: told at every look how many have agreed, of how many.

        Raises:
            FederationError: too few came within ``sites-timeout`` seconds (0: ``round-timeout``), or, before the first
                round, every site refuses, or, where the data are split, a node refuses or two hold one share; names who
                and why.
        """
        now, seconds = time.monotonic(), self._seconds
        deadline, patience = now + seconds, now + (0.0 if self._began else min(_FIRST_SECONDS, seconds))
        while True:
            here = self._meet()
            agreed = here if self._settings.sites else self._agreed
            tell(len(agreed), len(self._settings.site_names) or max(self._expected, len(self._names)))
            chosen: Iterable[int] = here
            if self._settings.sites:
                self._hear_late()
                late = [each for each in self._late.values() if each.until > time.monotonic()]
                busy = {client: each.until for each in late for client in each.clients}
                chosen = self._membership.choose(number, here.keys() - busy.keys())
                # Who is there and busy is waited for as long as it may be.
                deadline = max([deadline, *(until for client, until in busy.items() if client in here)])
            if chosen and not (self._waiting and time.monotonic() < patience):
                self._began = True
                return {client: here[client] for client in sorted(chosen)}
            if not self._began and self._all_refused():
                raise FederationError(f"every site of the run refused. {self._said()}")
            if time.monotonic() > deadline:
                raise FederationError(self._missing(here))
            time.sleep(pause(time.monotonic() - now))

    def _all_refused(self) -> bool:
        """Say whether every site has said no for good or often enough, so that there is nobody to wait for."""
        trying = {node for node, retry in self._retries.items() if retry.refusals < _REFUSALS}
        final = self._refusals.keys() - trying
        return bool(self._settings.sites) and {*self._settings.site_names} <= {self._names.get(node) for node in final}

    @property
    def any_client(self) -> bool:
        """Whether every node can do every client's work: in a simulation, where all see one run folder."""
        return not self._settings.sites and not self._bound_to_one

    def weights(self, sizes: Mapping[int, int]) -> Weights:
        """Return what each client may weigh in a round.

        Args:
            sizes: examples that each client trains on, where the data are split.
        """
        uniform = self._settings.weights == "uniform"
        if not self._settings.sites:
            return KnownSizes(sizes, uniform)
        return StatedSizes(self._sizes, self._settings.max_weight, uniform)

    def news(self, folder: Path) -> list[str]:
        """Return warnings of what nodes have said of themselves since the last call; log them, keep all in a folder."""
        return self._told.news(folder)

    def count_failures(self, result: Round) -> None:
        """Remember who failed in a round; of one that was tried again its last attempt counts."""
        self._membership.note(result.number, result.asked, set(result.rejected))

    def expect_late(self, result: Round) -> None:
        """Remember whose reply is still to come: it is not asked until then, or for one deadline more.

        Args:
            result: of the round, or of an attempt at it.
        """
        until = time.monotonic() + self._settings.round_timeout
        self._late |= {
            name: _Late(asked.clients, asked.node, result.number, until) for name, asked in result.unanswered.items()
        }

    def late_replies(self) -> list[str]:
        """Return in words which replies to earlier rounds have come since the last call; they do not count."""
        self._hear_late()
        said, self._late_said = self._late_said, []
        return said

    def _hear_late(self) -> None:
        most = max((len(each.clients) for each in self._late.values()), default=1)
        bound = bound_of(self._contract.schema, codec_of(self._contract.codec)).times(most)
        for delivery in self.inbox.pull({name: each.node for name, each in self._late.items()}, bound):
            late, reply, end = self._late.pop(delivery.name), delivery.reply, "came after the deadline"
            if reply is None or reply.has_error():
                why = delivery.fault if reply is None else records.clean(reply.error.reason, LONGEST_TEXT)
                end = f"failed ({why})"
            whose = ", ".join(name_of(client, self._settings) for client in late.clients)
            self._late_said.append(f"{whose}: its reply to round {late.round} {end}; it does not count")

    def _meet(self) -> dict[int, int]:
        """Shake hands with who is new; return the node of each client that agreed and is there.

        Where the data are split the nodes are those of the first round; {} until all shares are held.
        """
        self._take_warmed()
        if self._split:
            return self._split
        online = {node.node_id: node.name for node in self._grid.get_nodes()}
        self._names = online
        gone = self._asked - online.keys()
        self._asked -= gone  # who comes back is asked again, and what it answered before counts no more
        self._waiting = {name: node for name, node in self._waiting.items() if node not in gone}
        for node in gone:
            self._refusals.pop(node, None)
            self._retries.pop(node, None)
        waiting = set(self._waiting.values())
        due = {node for node, retry in self._retries.items() if retry.at <= time.monotonic()}
        new = sorted((online.keys() - self._asked) | (due & online.keys()) - waiting)
        if new:
            messages = [Message(self._query, node, MessageType.QUERY, group_id="handshake") for node in new]
            self._waiting |= dict(zip(self._grid.push_messages(messages), new, strict=True))
            self._asked |= set(new)
        for delivery in self.inbox.pull(self._waiting, bound_of((), codec_of(self._contract.codec))):
            self._hear(self._waiting.pop(delivery.name), delivery)
        self._take_warmed()  # by now who has answered the handshake has answered what came before it
        if self._settings.sites:
            asked = {*self._waiting.values()}  # who is back has not agreed again yet
            return {client: node for client, node in self._agreed.items() if node in online and node not in asked}
        if self._refusals and not self._waiting:
            raise FederationError("the handshake failed. " + self._said())
        if not self._waiting and len(self._agreed) >= self._expected:
            if self._settings.cohort > 1 and not self.any_client:
                raise FederationError(
                    f"cohort={self._settings.cohort}: a node of this federation does not see the server's run "
                    "folder, and does its own client's work alone; leave cohort at 1"
                )
            order = [self._agreed[share] for share in sorted(self._agreed)]
            self._split = {client: order[client % len(order)] for client in range(self._settings.num_clients)}
            log.info(
                "%d nodes agreed to contract %s; they serve %d clients",
                len(order), self._contract.hash[:12], self._settings.num_clients,
            )  # fmt: skip
        return self._split

    def _take_warmed(self) -> None:
        """Take the answers of nodes that loaded ahead, so that nobody keeps them."""
        for delivery in self.inbox.pull({**self._warmed}, bound_of((), codec_of(self._contract.codec))):
            del self._warmed[delivery.name]

    def _hear(self, node: int, delivery: Delivery) -> None:
        """Take a node's answer to the handshake; who could not agree for what may pass is asked again after a while."""
        reply, passing = delivery.reply, True
        if reply is None:
            reason = delivery.fault
        elif reply.has_error():
            reason = f"its process failed: {records.clean(reply.error.reason, LONGEST_TEXT)}"
        elif "refusal" in reply.content.config_records:
            refusal = reply.content.config_records["refusal"]
            reason = records.clean(refusal.get("reason", "no reason given"), LONGEST_TEXT)
            passing = refusal.get("passing") is True
        else:
            reason, passing = self._admit(node, records.about(reply.content))
        retry = self._retries.pop(node, None)
        if not reason:
            self._refusals.pop(node, None)
            return
        known = self._refusals.get(node) == reason
        self._refusals[node] = reason
        if not self._settings.sites:
            return
        self._agreed = {client: there for client, there in self._agreed.items() if there != node}
        pause_ = min(2.0 * retry.pause, _LONGEST_RETRY) if retry else _FIRST_RETRY
        if passing:
            self._retries[node] = _Retry(time.monotonic() + pause_, pause_, retry.refusals + 1 if retry else 1)
        if not known:
            later = f"; it is asked again, in {pause_:g} s first" if passing else ""
            log.warning("node %s refused or was refused: %s%s", self._names.get(node) or node, reason, later)

    def _admit(self, node: int, about: dict[str, Any]) -> tuple[str, bool]:
        """Admit a node that agrees, or say why not, and whether that may pass."""
        if about.get("contract") != self._contract.hash:
            stated = records.clean(repr(about.get("contract")), 200)
            return f"it answered with contract={stated}, not {self._contract.hash}", False
        if self._settings.sites:
            return self._admit_site(node, records.clean(about.get("site", ""), 200), about)
        share, shares = about.get("partition-id", 0), about.get("num-partitions", 1)
        if type(share) is not int or type(shares) is not int or not 0 <= share < shares <= _MOST_NODES:
            said = records.clean(f"partition-id={share!r} of num-partitions={shares!r}", 200)
            return f"its {said} is no share; set both in its node config", False
        if "partition-id" not in about:
            share = len(self._agreed)
        if share in self._agreed:
            raise FederationError(
                f"nodes {self._agreed[share]} and {node} both hold partition-id={share}; give each node its own"
            )
        self._agreed[share] = node
        self._bound_to_one |= about.get("any-client") is not True
        self._told.hear(f"partition {share}", about)
        self._expected = max(self._expected, int(shares))
        return "", False

    def _admit_site(self, node: int, claimed: str, about: dict[str, Any]) -> tuple[str, bool]:
        registered, names = self._names[node], self._settings.site_names
        name = registered or claimed
        if claimed != name:
            return f"it is registered as {registered!r} and calls itself site {claimed!r}; give it its own kit", False
        if name not in names:
            return f"site {name!r} is none of the run's sites={self._settings.sites!r}", False
        size = about.get("num-examples")
        if type(size) is not int or not 1 <= size <= MOST_EXAMPLES:
            said = records.clean(repr(size), 100)
            return f"it states num-examples={said}, expected 1 to {MOST_EXAMPLES}; run the same fedasym there", False
        client = names.index(name)
        other = self._agreed.get(client, node)
        if other != node and other in self._names:
            return f"node {other} is site {name!r} already, and is there; end one of the two", True
        log.info("site %s %s", name, "is back" if client in self._agreed else "agreed to the contract")
        self._agreed[client], self._sizes[client] = node, size
        self._told.hear(f"site {name}", about)
        return "", False

    def _said(self) -> str:
        by_reason: dict[str, list[int]] = {}
        for node, reason in self._refusals.items():
            by_reason.setdefault(reason, []).append(node)
        return " | ".join(f"{len(who)} node(s), first {who[0]}: {reason}" for reason, who in by_reason.items())

    def _missing(self, here: dict[int, int]) -> str:
        name = "sites-timeout" if self._settings.sites_timeout else "round-timeout"
        waited = f"within {name}={self._seconds} s"
        refusals = f". Refusals: {self._said()}" if self._refusals else ""
        if self._settings.sites:
            absent = [name for k, name in enumerate(self._settings.site_names) if k not in here]
            quorum = self._settings.quorum or self._settings.num_clients
            return (
                f"{len(here)} of the sites were there {waited}, quorum={quorum}; missing: "
                f"{', '.join(absent) or 'none, but some are busy'}; start them, lower quorum or raise {name}"
                f"{refusals}"
            )
        if self._waiting:
            return f"nodes {sorted(self._waiting.values())} did not answer the handshake {waited}"
        some = f"{len(self._agreed)} of {self._expected} nodes"
        return f"{some} agreed {waited}; start the missing ones or raise round-timeout"
