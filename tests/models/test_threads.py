"""Clients on threads of one process do not disturb one another."""

from concurrent.futures import ThreadPoolExecutor

from world import TEXTS

from fedasym.models.build import build
from fedasym.settings import Settings


def test_models_built_at_the_same_time_are_equal() -> None:
    settings = Settings().resolved()  # the real MiniLM: a tiny model loads too fast for the threads to meet
    alone = build(settings, 2, TEXTS).base
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(lambda _: build(settings, 2, TEXTS).base, range(6))) == {alone}
