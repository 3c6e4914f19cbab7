"""A change that is clipped has the wanted norm and its own direction, and a small one is left as it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedasym.settings import from_run_config
from fedasym.training.transforms import Change, transforms_of

MATRIX = arrays(np.float32, (4, 3), elements=st.floats(-(2.0**20), 2.0**20, width=32))


@given(before=MATRIX, moved=MATRIX, bias=st.floats(-9, 9, width=32), most=st.floats(0.01, 100.0))
def test_no_change_is_longer_than_the_norm_and_none_is_turned(before, moved, bias, most) -> None:
    start = {"layer.B": before, "output.bias": np.zeros(1, np.float32)}
    after = {"layer.B": before + moved, "output.bias": np.full(1, bias, np.float32)}
    (clip,) = transforms_of(f"clip:{most!r}")
    found = clip(Change(start, after, 3), np.random.default_rng(0))
    one, two = (
        np.concatenate([(m[name].astype(np.float64) - start[name]).reshape(-1) for name in start])
        for m in (after, found)
    )
    # Rounded to float32 beside `before`: half a unit in the last place of the largest value in each of 13 places.
    rounding = np.sqrt(13) * 2.0**-24 * max(1.0, np.abs(before).max() + np.abs(moved).max() + 9)
    assert np.linalg.norm(two) <= most + rounding
    if np.linalg.norm(one) <= most:
        assert all(found[name].tobytes() == after[name].tobytes() for name in after)
    else:
        np.testing.assert_allclose(two, one * (most / np.linalg.norm(one)), rtol=0, atol=rounding)


@pytest.mark.parametrize("value", ["clip", "clip:0", "clip:-1", "clip:nan", "clip:inf", "clip:much"])
def test_a_norm_that_is_no_positive_number_is_refused_by_name(value: str) -> None:
    with pytest.raises(ValueError, match=rf"setting transforms='{value}': clip takes the largest norm"):
        from_run_config({"transforms": value})
