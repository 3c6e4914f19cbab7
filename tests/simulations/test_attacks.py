"""Clients that lie send something else than what they trained, and what is shared among runs changes no bit."""

from pathlib import Path

import pytest
from world import no_report, simulate, tiny_settings

from fedasym.runs.record import read_rounds
from simulations.study.attacks import ATTACKS, run_cell


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacks")


def test_every_attack_moves_the_mean_and_honest_clients_train_as_ever(root: Path) -> None:
    settings = tiny_settings(root, num_rounds=2, dtype="auto")  # as the study has it
    before: dict = {}
    digests = {}
    with no_report():
        for attack in ("none", *ATTACKS):
            cell = {"rule": "exact", "attack": attack, "liars": 0 if attack == "none" else 1}
            rows, ended = run_cell(cell, settings, 1, root / attack.replace(" ", "-"), before)
            assert not ended and not any(row["rejections"] for row in rows)
            digests[attack] = rows[-1]["digest"]
    assert len({*digests.values()}) == len(ATTACKS) + 1  # each is another lie
    plain = simulate(tiny_settings(root, num_rounds=2, dtype="auto", out=str(root / "plain")))
    assert digests["none"] == read_rounds(plain)[-1]["digest"]
