"""The layers that train: one with a low-rank update, of each kind that is linear in its weight, and one in full.

What trains is one matrix, or a stack of K of them, ``(K, ...)``: one for each of K equal parts of the batch, in its
order. So several clients, for whom all else is the same, are trained in one pass (`fedasym.training.cohort`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Times the rows d_in d_out / (d_in + 2 d_out), where making W + s B A costs as much as it spares by the count of
# multiplications; measured on a CPU with AVX2 alone (AMD EPYC).
ONE_PRODUCT_FROM = 2


def product(x: Tensor, M: Tensor) -> Tensor:
    """Return ``M u`` for every u of x ``(batch, ..., d_in)``, as ``(batch, ..., d_out)``.

    Args:
        x: the batch first, where M is a stack.
        M: ``(d_out, d_in)``, or a stack ``(K, d_out, d_in)``.
    """
    if M.dim() == 2:
        return F.linear(x, M)
    return torch.bmm(x.reshape(len(M), -1, x.shape[-1]), M.mT).reshape(*x.shape[:-1], M.shape[1])


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class _OneProduct(torch.autograd.Function):
    """``M u + bias`` by one product each way, M being W + s B A, with the gradients of A, B and bias.

    With the output's gradient G ``(n, d_out)`` and the inputs U ``(n, d_in)``, that of B is ``s G^T (U A^T)`` and that
    of A is ``s (G B)^T U``: neither takes the gradient of M. There is no second derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, M: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        """Map ``(..., d_in)`` to ``(..., d_out)``."""
        _, trains_A, trains_B, *_ = ctx.needs_input_grad
        ctx.scale = scale
        ctx.save_for_backward(M, F.linear(x, A) if trains_B else None, *((x, B) if trains_A else (None, None)))
        return F.linear(x, M, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A, B and the bias.

        Raises:
            RuntimeError: they are to be differentiated again (``create_graph=True``).
        """
        if torch.is_grad_enabled():
            raise RuntimeError("one product with W + s B A has no second derivative; use one_product=False")
        M, Ax, x, B = ctx.saved_tensors
        G = _rows(gradient)
        of_x = gradient @ M if ctx.needs_input_grad[0] else None
        of_A = None if x is None else (G @ B).T @ _rows(x) * ctx.scale
        of_B = None if Ax is None else G.T @ _rows(Ax) * ctx.scale
        return of_x, of_A, of_B, None, G.sum(0) if ctx.needs_input_grad[4] else None, None


class AdaptedLinear(nn.Module):
    """A linear layer and its low-rank update, by composition: the base module stays itself.

    With its weight as a matrix W (d_out, d_in), ``W u + s B A u`` for every u that the layer reads: here the features
    of a token, in the subclasses the patch under a kernel, or the one-hot code of an id. Transformers' ``Conv1D`` is a
    linear layer whose weight is stored transposed.

    For backward it keeps ``A u`` (r wide), never u, while A is frozen: nothing else is needed for B's gradient.

    A plain linear layer in float32 that is given enough rows is computed by one product, with ``W + s B A``, which is
    made anew in each call (the base is not called then) and kept for backward. In bfloat16 the sum would round the
    update away.

    Args:
        base: the frozen layer with d_in inputs and d_out outputs.
        A: float32 ``(r, d_in)``.
        B: float32 ``(d_out, r)``.
        scale: s, usually alpha / r.
        factors: which of A and B are parameters; the other is a non-persistent buffer.
        one_product: whether it may be computed by one product.

    Attributes:
        shift: None, or a float32 buffer ``(d_out, d_in)`` that is added to W: updates that a federation folded in.
    """

    A: Tensor
    B: Tensor
    shift: Tensor | None
    base: Any  # nn.Linear, or what has its attributes

    def __init__(self, base: nn.Module, A: Tensor, B: Tensor, scale: float, factors: str, one_product: bool) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.one_product = one_product
        for letter, matrix in (("A", A), ("B", B)):
            if letter in factors:
                self.register_parameter(letter, nn.Parameter(matrix))
            else:
                self.register_buffer(letter, matrix, persistent=False)
        self.register_buffer("shift", None, persistent=False)

    @property
    def weight(self) -> Tensor:
        """W in its own shape, for models that ask a layer for its dtype or device; the update is not in it."""
        weight: Tensor = self.base.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return getattr(self.base, "bias", None)

    @property
    def in_features(self) -> int:
        """d_in."""
        return self.A.shape[-1]

    @property
    def out_features(self) -> int:
        """d_out."""
        return self.B.shape[-2]

    def read(self, x: Tensor, M: Tensor) -> Tensor:
        """Return ``M u`` for every u of x; M ``(n, d_in)``. Here ``(..., d_in)`` becomes ``(..., n)``."""
        return product(x, M)

    def mix(self, h: Tensor, M: Tensor) -> Tensor:
        """Return ``M h`` for every h that `read` gave; M ``(d_out, n)``. Here ``(..., n)`` becomes ``(..., d_out)``."""
        return product(h, M)

    def like_weight(self, M: Tensor) -> Tensor:
        """Return a matrix ``(d_out, d_in)`` in the shape of the base's weight."""
        return M if isinstance(self.base, nn.Linear) else M.T

    def forward(self, x: Tensor) -> Tensor:
        """Return what the base gives, and the update, in the dtype that the base computes in."""
        if self.one_product and self._takes_one_product(x):
            return self._in_one_product(x)
        dtype = x.dtype if x.is_floating_point() else self.weight.dtype
        Ax = self.read(x, self.A.to(dtype)) * self.scale
        update = self.mix(Ax, self.B.to(dtype))
        out: Tensor = self.base(x) + update
        # A product of its own: added to W in bfloat16, a small shift would round away.
        return out if self.shift is None else out + self.read(x, self.shift.to(dtype))

    def _takes_one_product(self, x: Tensor) -> bool:
        """Say whether one product takes less time and loses nothing: the same for everyone with such an input."""
        plain = type(self.base) is nn.Linear and self.A.dim() == self.B.dim() == 2 and not self.weight.requires_grad
        if not plain or not x.dtype == self.weight.dtype == torch.float32:
            return False
        # What is hooked to the base, as accelerate does to hold W elsewhere, wants its call; autocast would round M.
        hooked = "forward" in vars(self.base) or self.base._forward_hooks or self.base._forward_pre_hooks
        if hooked or torch.is_autocast_enabled(x.device.type):
            return False
        d_out, d_in = self.weight.shape
        return x.shape[:-1].numel() * (d_in + 2 * d_out) >= ONE_PRODUCT_FROM * d_in * d_out

    def _in_one_product(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            W = self.weight if self.shift is None else self.weight + self.shift
            M = torch.addmm(W, self.B, self.A, alpha=self.scale)
        if not torch.is_grad_enabled():
            return F.linear(x, M, self.bias)
        out: Tensor = _OneProduct.apply(x, self.A, self.B, M, self.bias, self.scale)  # type: ignore[no-untyped-call]
        return out


class AdaptedConv(AdaptedLinear):
    """A convolution without groups: u is the patch under the kernel, channel by channel, d_in = channels · kernel.

    PyTorch keeps a convolution's input for backward in any case.
    """

    def read(self, x: Tensor, M: Tensor) -> Tensor:
        """Map ``(batch, channels, ...)`` to ``(batch, n, ...)`` with the base's stride, padding and dilation."""
        read: Tensor = self.base._conv_forward(x, M.reshape(-1, *self.weight.shape[1:]), None)
        return read

    def mix(self, h: Tensor, M: Tensor) -> Tensor:
        """Map ``(batch, n, ...)`` to ``(batch, d_out, ...)`` at every place by itself."""
        if M.dim() == 3:
            parts = h.reshape(len(M), -1, h.shape[1], h.shape[2:].numel())  # (K, batch / K, n, places)
            return torch.matmul(M[:, None], parts).reshape(len(h), M.shape[1], *h.shape[2:])
        if self.weight.dim() == 3:
            return F.conv1d(h, M[:, :, None])
        return F.conv2d(h, M[:, :, None, None])

    def like_weight(self, M: Tensor) -> Tensor:
        """Return a kernel ``(d_out, channels, ...)``."""
        return M.reshape(self.weight.shape)


class AdaptedEmbedding(AdaptedLinear):
    """An embedding table: u is the one-hot code of an id, so ``A u`` is a column of A; d_in ids, d_out features."""

    def read(self, x: Tensor, M: Tensor) -> Tensor:
        """Map ids ``(...)`` to ``(..., n)``."""
        return F.embedding(x, M.T)

    def like_weight(self, M: Tensor) -> Tensor:
        """Return the table ``(d_in, d_out)``."""
        return M.T


def is_linear(module: nn.Module) -> bool:
    """Say whether a layer is a linear one: PyTorch's, or transformers' ``Conv1D`` (GPT-2's), as PEFT counts them."""
    kind = type(module)
    return isinstance(module, nn.Linear) or (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def can_be_adapted(module: nn.Module) -> bool:
    """Say whether a layer is of a kind that can be adapted.

    Of convolutions and embeddings PyTorch's own alone: a subclass may compute something else with its weight.
    """
    return is_linear(module) or type(module) in (nn.Conv1d, nn.Conv2d, nn.Embedding)


def adapted(base: nn.Module, A: Tensor, B: Tensor, scale: float, factors: str, one_product: bool) -> AdaptedLinear:
    """Return a layer of a kind that can be adapted with its update; arguments as of `AdaptedLinear`."""
    if isinstance(base, nn.Conv1d | nn.Conv2d):
        return AdaptedConv(base, A, B, scale, factors, one_product)
    kind = AdaptedEmbedding if isinstance(base, nn.Embedding) else AdaptedLinear
    return kind(base, A, B, scale, factors, one_product)


def sizes(module: Any) -> tuple[int, int]:
    """Return (d_out, d_in) of a layer that can be adapted.

    >>> sizes(nn.Linear(3, 2)), sizes(nn.Conv2d(3, 8, kernel_size=(2, 4))), sizes(nn.Embedding(50, 8))
    ((2, 3), (8, 24), (8, 50))
    """
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    rows, *rest = module.weight.shape
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return rows, torch.Size(rest).numel()
    return rest[0], rows


def unadaptable(module: Any) -> str:
    """Say why a layer of a kind that can be adapted can not; "" if it can."""
    if getattr(module, "groups", 1) != 1:
        return f"is a convolution of {module.groups} groups, of which each reads other channels"
    if hasattr(module.weight, "__tensor_flatten__"):
        kind = type(module.weight).__name__
        return f"stores its weight as {kind}, which has no bytes of its own to compare; load it unquantised"
    if getattr(module, "max_norm", None) is not None:
        return f"is an embedding with max_norm={module.max_norm}, which changes its own weight when it is read"
    return ""


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
        """Map ``(batch, ..., d_in)`` to float32 ``(batch, ..., d_out)``."""
        if self.weight.dim() == 2:
            return F.linear(x.float(), self.weight, self.bias)
        out = product(x.float(), self.weight)
        if self.bias is None:
            return out
        parts = out.reshape(len(self.bias), -1, out.shape[-1])
        return torch.add(parts, self.bias[:, None]).reshape(out.shape)
