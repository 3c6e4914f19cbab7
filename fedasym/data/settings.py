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
        "dirichlet:0.5", "who holds what: iid, dirichlet:ALPHA, mild, severe, column:NAME, domain:N, ..."
    )
    min_examples: int = setting(10, "least examples of a client", least=1)
