"""Krum: the reply that is closest to its nearest neighbours (Blanchard et al. 2017, NeurIPS)."""

from fedasym.aggregation.exact import ExactMean
from fedasym.aggregation.robust_base import Float32, Float64, Gathered, distance


class Krum(Gathered):
    """Takes the exact mean of the replies that lie closest to the others, by their numbers of examples.

    A reply's score is the sum of its squared distances to its K − F − 2 nearest of K replies. Cost: a distance for each
    pair of replies. It needs 2 F + 3 replies.

    Args:
        bad: F, the most replies that may be wrong.
        chosen: how many are kept; 0: K − F (Multi-Krum).
    """

    def __init__(self, bad: int, chosen: int) -> None:
        super().__init__(2 * bad + 3)
        self._bad, self._chosen = bad, chosen

    def combine(
        self, weights: list[int], replies: list[dict[str, Float32]]
    ) -> tuple[dict[str, Float32], dict[str, Float64]]:
        """Return the exact mean of the chosen."""
        mean = ExactMean()
        for place in closest(distances(replies), self._bad)[: self._chosen or len(replies) - self._bad]:
            mean.add(weights[place], replies[place])
        return mean.result()


def distances(replies: list[dict[str, Float32]]) -> list[list[float]]:
    """Return the squared distances of all pairs."""
    found = [[0.0] * len(replies) for _ in replies]
    for i, one in enumerate(replies):
        for j, other in enumerate(replies[:i]):
            found[i][j] = found[j][i] = distance(one, other)
    return found


def closest(apart: list[list[float]], bad: int) -> list[int]:
    """Return the places of replies by their score, the best first.

    Args:
        apart: squared distance of each pair.
        bad: F.
    """
    neighbours = max(len(apart) - bad - 2, 1)
    scores = [sum(sorted(row[:i] + row[i + 1 :])[:neighbours]) for i, row in enumerate(apart)]
    return sorted(range(len(apart)), key=lambda place: (scores[place], place))


def bad_of(parameter: str) -> int:
    """Read F.

    Raises:
        ValueError: it is no number of replies.
    """
    if not parameter.isdecimal() or len(parameter) > 6:
        raise ValueError(f"{parameter!r} is no number of replies that may be wrong; 1, say")
    return int(parameter)


def aggregator(parameter: str) -> Krum:
    """Return a new Krum that bears this many bad replies.

    Raises:
        ValueError: the parameter is no number.
    """
    return Krum(bad_of(parameter), 1)
