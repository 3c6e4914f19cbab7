"""The settings of the examples: caps, cuts, and who holds what."""

from dataclasses import dataclass

from fedasym.fields import SeedSettings, setting
from fedasym.tasks.settings import TaskSettings


@dataclass(frozen=True)
class DataSettings(SeedSettings, TaskSettings):
    """What of a task's examples is used, and how the clients share it."""

    validation_cut: int = setting(
        0, "evaluate on this many training examples (of image folders: names) cut off; 0: the test split", least=0
    )
    train_cap: int = setting(0, "train on this many examples, the same for every seed; 0: all", least=0)
    test_cap: int = setting(0, "evaluate on this many of the test split, the same for every seed; 0: all", least=0)
    num_clients: int = setting(10, "clients the data is split over; with sites, their number", least=1)
    split: str = setting(
        "dirichlet:0.5", "who holds what: iid, dirichlet:ALPHA, mild, severe, column:NAME:N, domain:N, ..."
    )
    min_examples: int = setting(10, "least examples of a client", least=1)

    @property
    def dealt_column(self) -> tuple[str, str]:
        """The column whose values are dealt to clients, empty if the split goes by none, and to how many clients each.

        The number is as it is said, and not checked: what follows the last colon, so that a column whose name has a
        colon is given with a number.

        >>> [DataSettings(split=said).dealt_column for said in ("column:a", "column:a:2", "column:a:b:1", "domain:3")]
        [('a', '1'), ('a', '2'), ('a:b', '1'), ('domain', '3')]
        """
        kind, colon, rest = self.split.partition(":")
        if kind == "domain":
            return "domain", rest if colon else "1"
        if kind != "column":
            return "", ""
        name, colon, count = rest.rpartition(":")
        return (name, count) if colon else (rest, "1")
