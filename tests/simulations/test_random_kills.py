"""A deployment in which anything is killed at any time ends with the bits of one in which nothing is."""

import time
from random import Random

import psutil
import pytest
from deployed import LONG, NAMES, Running, child_of, server, sites, world
from world import simulate, site_settings

from fedasym.runs.record import read_rounds

__all__ = ["server", "sites", "world"]  # fixtures
KILLS, ROUNDS = 6, 10
WHAT = ("clients.worker.child", "flower-supernode", "flower-superlink")


@pytest.mark.slow
def test_random_kills_of_a_deployment_leave_the_bits_of_none(server, sites, world) -> None:
    every = {"num_rounds": ROUNDS, "min_valid": len(NAMES), **LONG}
    run = Running(server, world, "kills", quorum=len(NAMES), retries=2 * KILLS, round_timeout=45.0, **every)
    run.until(lambda: len(run.rows) >= 1)
    rng, killed = Random(0), []
    for number in range(KILLS):
        until = time.monotonic() + rng.uniform(0.0, 20.0)  # a moment within a round, or between two
        run.until(lambda until=until: time.monotonic() >= until)
        what, name = WHAT[number % len(WHAT)], rng.choice(NAMES)
        above = psutil.Process(server.process.pid) if what == "flower-superlink" else sites[name]
        child_of(above, what).kill()
        killed.append(f"{what} of {name} after round {len(run.rows)}")
        seen = len(run.rows)
        run.until(lambda seen=seen: len(run.rows) > seen)  # what was killed is back, or nobody asked it
        if len(run.rows) >= ROUNDS - 1:
            break
    rows = run.end()
    print(f"killed {len(killed)}: {'; '.join(killed)}")
    assert len(killed) >= 5
    simulated = simulate(site_settings(world, out=str(world / "kills-simulated"), **every), 2, world / "sites")
    assert [row["digest"] for row in rows] == [row["digest"] for row in read_rounds(simulated)]
    assert all(row["clients_valid"] == len(NAMES) for row in rows)
