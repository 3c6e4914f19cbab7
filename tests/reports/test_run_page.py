"""Parts of the report: the clients' figure, the command that runs a run again, bytes in words."""

import dataclasses
import io
import shlex

import pytest
from matplotlib import image

from fedasym.reports.comparison import human_bytes
from fedasym.reports.plots import draw_clients
from fedasym.reports.run_page import run_command
from fedasym.settings import Settings, from_run_config


@pytest.mark.parametrize(("classes", "clients"), [(1, 1), (2, 31), (21, 3), (22, 5), (3, 300)])
def test_clients_are_drawn_for_any_number_of_classes(classes, clients) -> None:
    counts = [[(client + label) % 3 for label in range(classes)] for client in range(clients)]
    png = draw_clients([sum(row) for row in counts], [f"_{k}$" for k in range(classes)], counts)
    assert image.imread(io.BytesIO(png), format="png").shape[0] <= 2200  # 11 inches: fits a page of A4


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(method="lora", seed=7, lr=0.25, server_optimizer="adam", server_lr=1e-5),
        Settings(model="some/one", text_columns="a b,c", data="/it's here"),
        Settings(data='a "quoted" name', pooling="model", head="full"),
    ],
)
def test_run_command_gives_the_same_settings_again(settings) -> None:
    from flwr.common.config import parse_config_args

    resolved = dataclasses.replace(settings.resolved(), out="somewhere")
    words = shlex.split(run_command(dataclasses.asdict(resolved)))
    assert words[:3] == ["flwr", "run", "."] and words[3:4] in ([], ["--run-config"])
    again = from_run_config(parse_config_args(words[4:]))
    assert dataclasses.replace(again.resolved(), out="somewhere") == resolved


def test_run_command_names_only_what_differs() -> None:
    assert run_command(dataclasses.asdict(Settings().resolved())) == "flwr run ."
    lora = dataclasses.asdict(Settings(method="lora", split="iid").resolved())
    assert run_command(lora) == """flwr run . --run-config 'method="lora" split="iid"'"""


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9996, "10.0 kB"),
        (99960, "100 kB"),
        (1.5e13, "15.0 TB"),
    ],
)
def test_bytes_have_three_digits(count, said) -> None:
    assert human_bytes(count) == said
