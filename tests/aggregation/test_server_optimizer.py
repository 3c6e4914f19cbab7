"""The server's optimizers are FedAvgM and FedAdam of Reddi et al. 2021, element by element."""

import math

import numpy as np
import pytest

from fedasym.aggregation.server_optimizer import server_step
from fedasym.settings import Settings

SHAPES = {"a.B": (4, 3), "head.bias": (2,)}


def draw(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


def bits(matrices):
    return {name: (matrix.dtype, matrix.shape, matrix.tobytes()) for name, matrix in matrices.items()}


def run(settings, rounds=5):
    """Take several rounds with means that do not depend on the state."""
    current, buffers, path = draw(0), {}, []
    for k in range(1, rounds + 1):
        current, buffers = server_step(current, draw(k), buffers, settings)
        path.append((current, buffers))
    return path


def scalar(kind: str, lr: float, momentum: float, start: float, means: list[float]) -> list[float]:
    """Write Reddi et al.'s update out for one number; buffers and result are rounded to float32 as they are stored."""
    x, m, v, path = start, 0.0, 0.0, []
    for mean in means:
        change = mean - x
        if kind == "momentum":
            m_new = momentum * m + change
            step = m_new
        else:
            m_new = momentum * m + (1 - momentum) * change
            v_new = 0.99 * v + (1 - 0.99) * change * change
            step = m_new / (math.sqrt(v_new) + 1e-3)
            v = float(np.float32(v_new))
        m = float(np.float32(m_new))
        x = float(np.float32(x + lr * step))
        path.append(x)
    return path


@pytest.mark.parametrize("kind", ["momentum", "adam"])
@pytest.mark.parametrize(("lr", "momentum"), [(1.0, 0.9), (0.3, 0.5), (0.1, 0.0)])
def test_every_element_follows_the_scalar_loop(kind, lr, momentum) -> None:
    path = run(Settings(server_optimizer=kind, server_lr=lr, server_momentum=momentum))
    for name, shape in SHAPES.items():
        for place in np.ndindex(shape):
            means = [float(draw(k)[name][place]) for k in range(1, 6)]
            expected = scalar(kind, lr, momentum, float(draw(0)[name][place]), means)
            found = [float(current[name][place]) for current, _ in path]
            # The same float64 operations in the same order: equal but for a rare tie of the last rounding (1.2e-7).
            assert found == pytest.approx(expected, rel=2e-7)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_momentum_zero_at_rate_one_is_the_plain_mean_to_rounding(scale) -> None:
    current, mean = draw(0), draw(1, scale)
    after, _ = server_step(current, mean, {}, Settings(server_optimizer="momentum", server_lr=1.0, server_momentum=0.0))
    for name in SHAPES:
        # old + (mean - old) rounds twice in float64, at the size of the larger, and once in float32.
        slack = 2.0**-51 * np.maximum(abs(current[name]), abs(mean[name]).astype(float)) + 2.0**-24 * abs(mean[name])
        assert (abs(after[name].astype(float) - mean[name]) <= slack).all()


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_a_step_changes_none_of_its_arguments_and_gives_the_same_bits_again(kind) -> None:
    settings = Settings(server_optimizer=kind)
    (current, buffers), mean = run(settings, 2)[-1], draw(9)
    before = [bits(each) for each in (current, mean, buffers)]
    after, state = server_step(current, mean, buffers, settings)
    assert [bits(each) for each in (current, mean, buffers)] == before
    again, same = server_step(current, mean, buffers, settings)
    assert (bits(after), bits(state)) == (bits(again), bits(same))
    assert all(m.dtype == np.float32 for m in (*after.values(), *state.values()))
    assert [m.shape for m in after.values()] == list(SHAPES.values())


@pytest.mark.parametrize(("kind", "names"), [("momentum", ["first"]), ("adam", ["first", "second"])])
def test_the_state_is_a_buffer_for_each_matrix(kind, names) -> None:
    _, buffers = run(Settings(server_optimizer=kind), 1)[0]
    assert sorted(buffers) == sorted(f"{buffer}/{name}" for buffer in names for name in SHAPES)


def test_momentum_goes_on_where_the_clients_agree_to_stand_still() -> None:
    settings = Settings(server_optimizer="momentum", server_momentum=0.5)
    one = {"x": np.ones(1, np.float32)}
    first, buffers = server_step({"x": np.zeros(1, np.float32)}, one, {}, settings)
    second, _ = server_step(first, first, buffers, settings)
    assert (first["x"][0], second["x"][0]) == (1.0, 1.5)
