"""The server's optimizer on the mean change of B: well defined, because the update is linear in B.

Reddi et al. 2021, "Adaptive Federated Optimization" (arXiv 2003.00295): FedAvgM and FedAdam.
Element by element in float64, rounded once to float32.
"""

import numpy as np
from numpy.typing import NDArray

from fedasym.aggregation.settings import AggregationSettings

Float32 = NDArray[np.float32]
Matrices = dict[str, Float32]

_ADAM_BETA_2 = 0.99  # Reddi et al., section 5
_ADAM_EPSILON = 1e-3


def server_step(
    current: Matrices, mean: Matrices, buffers: Matrices, settings: AggregationSettings
) -> tuple[Matrices, Matrices]:
    """Move from the current matrices towards the mean.

    Args:
        current: what was broadcast.
        mean: the exact mean of the replies.
        buffers: the optimizer's state, empty before the first round.
        settings: ``server_optimizer``, ``server_lr``, ``server_momentum``.

    Returns:
        The next matrices and the optimizer's next state.
    """
    after: Matrices = {}
    state: Matrices = {}
    for name, old in current.items():
        change = mean[name].astype(np.float64) - old
        first = settings.server_momentum * buffers.get(f"first/{name}", np.zeros_like(old)).astype(np.float64)
        if settings.server_optimizer == "momentum":
            first += change
            step = first
        else:
            first += (1.0 - settings.server_momentum) * change
            second = _ADAM_BETA_2 * buffers.get(f"second/{name}", np.zeros_like(old)).astype(np.float64)
            second += (1.0 - _ADAM_BETA_2) * change * change
            state[f"second/{name}"] = second.astype(np.float32)
            step = first / (np.sqrt(second) + _ADAM_EPSILON)
        state[f"first/{name}"] = first.astype(np.float32)
        after[name] = (old + settings.server_lr * step).astype(np.float32)
    return after, state
