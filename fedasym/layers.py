"""The two layers that train: a linear layer with a low-rank update, and one that trains in full."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AdaptedLinear(nn.Module):
    """A linear layer and its low-rank update, by composition: the base module stays itself.

    For backward it keeps ``A x`` (r wide), never x: with A frozen nothing else is needed for B's gradient.

    Attributes:
        base: the frozen layer with ``in_features`` d_in and ``out_features`` d_out.
        A: float32 ``(r, d_in)``, a non-persistent buffer; a parameter if ``train_A``.
        B: float32 parameter ``(d_out, r)``, zero at the start.
        scale: s, usually alpha / r.
    """

    A: Tensor
    base: nn.Linear  # or what has its attributes

    def __init__(self, base: nn.Linear, A: Tensor, scale: float, train_A: bool) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        if train_A:
            self.A = nn.Parameter(A)
        else:
            self.register_buffer("A", A, persistent=False)
        self.B = nn.Parameter(torch.zeros(base.out_features, A.shape[0], device=A.device))

    @property
    def weight(self) -> Tensor:
        """W, for models that ask a layer for its dtype or device; the update is not in it."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """d_in."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """d_out."""
        return self.base.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., d_in)`` to ``(..., d_out)`` in the dtype of x."""
        Ax = F.linear(x, self.A.to(x.dtype)) * self.scale
        update: Tensor = F.linear(Ax, self.B.to(x.dtype))
        out: Tensor = self.base(x) + update
        return out


class TrainedLinear(nn.Module):
    """A linear layer that trains in full, in float32: a task's output layer.

    Attributes:
        weight: float32 ``(d_out, d_in)``.
        bias: float32 ``(d_out,)`` or None.
        travels: False for a layer that trains but never leaves its client.
    """

    def __init__(self, base: nn.Linear, travels: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight.detach().float().clone())
        self.bias = None if base.bias is None else nn.Parameter(base.bias.detach().float().clone())
        self.travels = travels
        self.base_dtype = base.weight.dtype  # of the layer it stands for

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., d_in)`` to float32 ``(..., d_out)``."""
        return F.linear(x.float(), self.weight, self.bias)
