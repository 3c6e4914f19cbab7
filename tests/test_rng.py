"""A random stream is named by what it is for, and depends on nothing else."""

import hashlib
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedasym.rng import generator, stream_key

ROOT = Path(__file__).parents[1]
PARTS = st.one_of(st.text(max_size=8), st.integers())


def test_the_key_is_the_first_128_bits_of_sha256_over_length_prefixed_parts() -> None:
    # Written out by hand: 4 little-endian bytes of length, then "type:value", for the seed and each part.
    named = b"\x06\0\0\0int:-7" + b"\x0b\0\0\0str:batches" + b"\x06\0\0\0int:12"
    expected = int.from_bytes(hashlib.sha256(named).digest()[:16], "little")
    assert stream_key(-7, "batches", 12) == expected


def test_the_generator_is_philox_under_the_streams_key() -> None:
    by_hand = np.random.Philox(key=stream_key(3, "batches", 1, 2)).random_raw(100)
    assert np.array_equal(generator(3, "batches", 1, 2).bit_generator.random_raw(100), by_hand)


def philox_4x64_10(key, count) -> list[int]:
    """Salmon et al. 2011, section 3.3, in Python integers; NumPy's counter starts at 1."""
    mask, out = (1 << 64) - 1, []
    for block in range(1, count // 4 + 2):
        c, k = [block, 0, 0, 0], [key & mask, key >> 64]
        for _ in range(10):
            p, q = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [(q >> 64) ^ c[1] ^ k[0], q & mask, (p >> 64) ^ c[3] ^ k[1], p & mask]
            k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
        out += c
    return out[:count]


@given(key=st.integers(0, 2**128 - 1), count=st.integers(1, 40))
def test_the_raw_bits_are_the_published_philox_4x64_10(key, count) -> None:
    assert np.random.Philox(key=key).random_raw(count).tolist() == philox_4x64_10(key, count)


@given(seed=st.integers(), purpose=st.lists(PARTS, max_size=4))
def test_the_same_name_gives_the_same_stream(seed, purpose) -> None:
    again = generator(seed, *purpose).random(20)
    assert np.array_equal(generator(seed, *purpose).random(20), again)


@given(text=st.text(min_size=1, max_size=12), cuts=st.data())
def test_no_text_cut_at_two_places_names_one_stream(text, cuts) -> None:
    first = cuts.draw(st.integers(0, len(text)))
    second = cuts.draw(st.integers(0, len(text)).filter(lambda i: i != first))
    keys = {stream_key(0, text[:i], text[i:]) for i in (first, second)} | {stream_key(0, text)}
    assert len(keys) == 3


@given(seed=st.integers(), purpose=st.lists(PARTS, max_size=3), more=PARTS)
def test_a_purpose_and_a_longer_one_that_begins_with_it_are_two_streams(seed, purpose, more) -> None:
    assert stream_key(seed, *purpose) != stream_key(seed, *purpose, more)


def test_purposes_that_imitate_the_encoding_stay_apart() -> None:
    parts = ["", "1", 1, -1, 12, "12", "int:1", "str:1", "\x05\0\0\0str:1", "1\x05\0\0\0str:1", "\0"]
    names = [name for n in range(4) for name in itertools.product(parts, repeat=n)]
    keys = {stream_key(seed, *name) for seed in (0, 1, 12) for name in names}
    assert len(keys) == 3 * len(names)


def test_every_seed_round_and_client_has_a_stream_of_its_own() -> None:
    names = list(itertools.product(range(10), ("batches", "sample"), range(30), range(10)))
    first_draws = {int(generator(*name).bit_generator.random_raw()) for name in names}
    assert len(first_draws) == len(names)


def test_drawing_more_for_one_purpose_moves_no_other_purpose() -> None:
    alone = generator(0, "batches", 1, 2).random(50)
    greedy, other = generator(0, "sample", 1), generator(0, "batches", 1, 2)
    interleaved = []
    for _ in range(50):
        greedy.random(7)
        interleaved.append(other.random())
    assert np.array_equal(alone, interleaved)


def test_streams_with_neighbouring_names_are_uncorrelated() -> None:
    n = 10_000
    names = [(seed, purpose, i) for seed in (0, 1) for purpose in ("a", "b") for i in range(5)]
    draws = np.stack([generator(*name).standard_normal(n) for name in names])
    off_diagonal = np.corrcoef(draws)[np.triu_indices(len(names), k=1)]
    # 190 correlations, each normal with standard deviation 1/sqrt(n) if independent: 4.5 of these are passed
    # by any of them with probability 190 * 7e-6 = 0.13 %. The seeds are fixed, so the verdict is too.
    assert np.abs(off_diagonal).max() < 4.5 / np.sqrt(n)


def test_the_global_generators_are_neither_read_nor_moved() -> None:
    draws = []
    for state in (1, 2):
        np.random.seed(state)  # noqa: NPY002
        random.seed(state)
        before = (repr(np.random.get_state()), random.getstate())  # noqa: NPY002
        draws.append(generator(0, "batches").random(5).tobytes())
        assert (repr(np.random.get_state()), random.getstate()) == before  # noqa: NPY002
    assert draws[0] == draws[1]


def test_other_processes_with_other_hash_seeds_derive_the_same_keys() -> None:
    program = (
        "from fedasym.rng import stream_key;"
        "print(hash('batches'), stream_key(5, 'batches', 1, 2), stream_key(-1), stream_key(0, 'é', 2**70))"
    )
    expected = [stream_key(5, "batches", 1, 2), stream_key(-1), stream_key(0, "é", 2**70)]
    children = []
    for hash_seed in ("0", "1"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        children.append(subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE))
    hashes = set()
    for child in children:
        hashed, *keys = map(int, child.communicate()[0].split())
        assert keys == expected
        hashes.add(hashed)
    assert len(hashes) == 2  # the switch did switch
