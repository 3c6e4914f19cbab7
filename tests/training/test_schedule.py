"""The rates over the rounds of a run: ends, shape, what a client does with them, and what a longer run may change."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import simulate, tiny_settings, watched_run, what_is_left

from fedasym.fields import choices_of
from fedasym.settings import Settings, from_run_config
from fedasym.training.schedule import rate_factor
from server.failure import FederationError

SCHEDULES = choices_of({f.name: f for f in dataclasses.fields(Settings)}["schedule"])


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, str, int]:
    """Rounds, schedule and warm-up of a run that the settings allow."""
    rounds = draw(st.integers(1, 10_000))
    return rounds, draw(st.sampled_from(SCHEDULES)), draw(st.integers(0, rounds - 1))


@given(runs(), st.data())
def test_every_factor_is_above_0_and_at_most_1_and_the_first_after_the_warm_up_is_1(run, data) -> None:
    rounds, schedule, warmup = run
    number = data.draw(st.integers(1, rounds))
    assert 0.0 < rate_factor(number, rounds, schedule, warmup) <= 1.0
    assert rate_factor(rounds, rounds, schedule, warmup) > 0.0
    assert rate_factor(warmup + 1, rounds, schedule, warmup) == 1.0
    if number <= warmup:
        steps = rate_factor(number, rounds, schedule, warmup) - rate_factor(number - 1, rounds, schedule, warmup)
        assert steps == pytest.approx(1 / (warmup + 1), abs=1e-12)  # the last step is the one to 1
    elif schedule == "constant":
        assert rate_factor(number, rounds, schedule, warmup) == 1.0
    elif number < rounds:
        assert rate_factor(number + 1, rounds, schedule, warmup) < rate_factor(number, rounds, schedule, warmup)


@given(st.integers(1, 500), st.integers(0, 100))
def test_a_cosine_falls_as_much_before_its_middle_as_after_it(after, warmup) -> None:
    found = [rate_factor(warmup + 1 + k, warmup + after, "cosine", warmup) for k in range(after)]
    beyond = [*found, 0.0]  # the round after the last would train at 0
    for early, late in zip(beyond, beyond[::-1], strict=True):
        assert early + late == pytest.approx(1.0, abs=1e-12)


def test_the_constant_schedule_is_the_same_bits_as_none(tmp_path: Path) -> None:
    assert all(rate_factor(number, 7, "constant", 0) == 1.0 for number in range(1, 8))
    settings = tiny_settings(tmp_path)
    assert (settings.schedule, settings.warmup_rounds) == ("constant", 0)


def test_a_client_trains_at_both_rates_times_the_factor_of_the_round(tmp_path: Path) -> None:
    # Plain SGD without clipping: one step from the same place moves in proportion to its rate.
    more = {"optimizer": "sgd", "clip": 0.0, "lr": 0.25, "head_lr": 0.25, "num_clients": 1, "split": "iid"}
    more |= {"local_steps": 1, "num_rounds": 4}
    moved = []
    for schedule, warmup in (("constant", 0), ("constant", 3), ("cosine", 1)):
        out = str(tmp_path / f"{schedule}{warmup}")
        _, seen = watched_run(tiny_settings(tmp_path, out=out, schedule=schedule, warmup_rounds=warmup, **more))
        moved.append(seen[0].up.astype(float) - seen[0].down)
    # Powers of two times a float32 gradient are exact; what is added to the head's weights is rounded.
    np.testing.assert_allclose(moved[1], moved[0] / 4, rtol=0, atol=1e-7)
    np.testing.assert_allclose(moved[2], moved[0] / 2, rtol=0, atol=1e-7)
    assert np.abs(moved[0]).max() > 1e-3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


def test_a_resumed_run_equals_an_unbroken_one(world: Path, tmp_path: Path) -> None:
    more = {"num_rounds": 4, "schedule": "cosine", "warmup_rounds": 1}
    whole = simulate(tiny_settings(world, out=str(tmp_path / "whole"), **more))

    class Stopped(Exception):
        pass

    def stop(number: int, client: int) -> None:
        if number == 3:
            raise Stopped

    out = str(tmp_path / "stopped")
    with pytest.raises(FederationError):
        watched_run(tiny_settings(world, out=out, min_valid=4, **more), first=stop)
    resumed = simulate(tiny_settings(world, out=out, **more))
    assert what_is_left(resumed) == what_is_left(whole)
    constant = simulate(tiny_settings(world, out=str(tmp_path / "constant"), num_rounds=4))
    assert what_is_left(constant)[1]["digest"] != what_is_left(whole)[1]["digest"]


def test_another_number_of_rounds_is_refused_where_the_rates_go_by_it_and_taken_where_they_do_not(
    world: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "cosine")
    simulate(tiny_settings(world, out=out, num_rounds=2, schedule="cosine"))
    with pytest.raises(FederationError, match="num-rounds: 2 there, 3 here"):
        simulate(tiny_settings(world, out=out, num_rounds=3, schedule="cosine"))
    warm = {"schedule": "constant", "warmup_rounds": 1}
    simulate(tiny_settings(world, out=str(tmp_path / "short"), num_rounds=2, **warm))
    longer = simulate(tiny_settings(world, out=str(tmp_path / "short"), num_rounds=3, **warm))
    whole = simulate(tiny_settings(world, out=str(tmp_path / "whole"), num_rounds=3, **warm))
    assert what_is_left(longer) == what_is_left(whole)


def test_a_warm_up_that_never_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup-rounds=4 leaves none of num-rounds=4 at the whole rate; lower it"):
        from_run_config({"num-rounds": 4, "warmup-rounds": 4})
