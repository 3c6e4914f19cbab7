"""Clients on threads of one process do not disturb one another."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from world import tiny_settings

from fedasym.model import build


def test_models_built_at_the_same_time_are_equal(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, dtype="bfloat16").resolved()
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda _: build(settings, 2), range(12)))
    assert {each.base for each in built} == {build(settings, 2).base}
