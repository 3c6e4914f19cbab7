"""The two layers that train: a linear layer with a low-rank update, and one that trains in full."""

from torch import Tensor, nn
from torch.nn import functional as F


class AdaptedLinear(nn.Module):
    """A linear layer and its low-rank update, by composition: the base module stays itself.

    For backward it keeps ``A x`` (r wide), never x, while A is frozen: nothing else is needed for B's gradient.

    Args:
        base: the frozen layer with ``in_features`` d_in and ``out_features`` d_out.
        A: float32 ``(r, d_in)``.
        B: float32 ``(d_out, r)``.
        scale: s, usually alpha / r.
        factors: which of A and B are parameters; the other is a non-persistent buffer.

    Attributes:
        shift: None, or a float32 buffer ``(d_out, d_in)`` that is added to W: updates that a federation folded in.
    """

    A: Tensor
    B: Tensor
    shift: Tensor | None
    base: nn.Linear  # or what has its attributes

    def __init__(self, base: nn.Linear, A: Tensor, B: Tensor, scale: float, factors: str) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        for letter, matrix in (("A", A), ("B", B)):
            if letter in factors:
                self.register_parameter(letter, nn.Parameter(matrix))
            else:
                self.register_buffer(letter, matrix, persistent=False)
        self.register_buffer("shift", None, persistent=False)

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
        # A product of its own: added to W in bfloat16, a small shift would round away.
        return out if self.shift is None else out + F.linear(x, self.shift.to(x.dtype))


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
