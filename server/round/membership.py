"""Who of the clients that are there is asked: quorum, and rest after failures in a row."""

from collections.abc import Iterable, Set

from fedasym.settings import Settings


class Membership:
    """What is remembered of the clients' rounds.

    Args:
        settings: ``quorum``, ``rest_after``, ``rest_rounds``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._quorum = settings.quorum or settings.num_clients
        self._failed: dict[int, int] = {}  # rounds in a row, by client
        self._resting: dict[int, int] = {}  # the last round of its rest, by client

    def note(self, number: int, asked: Iterable[int], failed: set[int]) -> None:
        """Count a round's failures; who failed ``rest_after`` rounds in a row rests for ``rest_rounds``."""
        for client in asked:
            self._failed[client] = self._failed.get(client, 0) + 1 if client in failed else 0
            if self._settings.rest_after and self._failed[client] >= self._settings.rest_after:
                self._failed[client] = 0
                self._resting[client] = number + self._settings.rest_rounds

    def choose(self, number: int, here: Set[int]) -> list[int]:
        """Return the clients that may be asked in a round, sorted; none while the quorum is not there.

        A rest is cut short where the quorum would else not be reached.
        """
        rested = [client for client in sorted(here) if self._resting.get(client, 0) < number]
        if len(rested) >= self._quorum:
            return rested
        return sorted(here) if len(here) >= self._quorum else []
