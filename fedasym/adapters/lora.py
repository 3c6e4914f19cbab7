"""Adapt a model: wrap its layers with low-rank adapters whose A is frozen, ``y = W x + s · B A x``.

W is the pretrained layer and stays as it is; A (r, d_in) is drawn from a seed and never trained; B (d_out, r) starts
at zero, trains, travels and is averaged. With ``factors="AB"`` the same code path is standard LoRA (Hu et al. 2021,
arXiv 2106.09685): A is a parameter too. Why B alone suffices: Zhu et al. 2024 (arXiv 2402.16842).

What of it trains and travels is said by `fedasym.adapters.trainable_state`.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedasym.adapters.layer_names import ALL_LINEAR, means
from fedasym.adapters.layers import AdaptedLinear, TrainedLinear, adapted, can_be_adapted, is_linear, sizes, unadaptable
from fedasym.adapters.projection import check_drawable, fingerprint, frozen_A
from fedasym.adapters.trainable_state import adapted_layers, local_only, trainable

Float32 = NDArray[np.float32]

SCALINGS = ("alpha/r", "alpha/sqrt(r)")
FACTORS = ("B", "A", "AB")

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def adapt(
    model: nn.Module,
    targets: str | Sequence[str] = ALL_LINEAR,
    rank: int = 8,
    alpha: float = 16.0,
    seed: int = 0,
    kind: str = "orthonormal",
    scaling: str = "alpha/r",
    factors: str = "B",
    exclude: Iterable[str] = (),
    one_product: bool = True,
) -> list[str]:
    """Freeze a model and wrap layers with adapters, in place.

    Linear layers can be adapted (GPT-2's ``Conv1D`` are such), convolutions in one and two dimensions, and embeddings.

    On torch's meta device, where tensors have shapes and no values, nothing is drawn: the adapters are shapes too.

    Args:
        model: any PyTorch model, e.g. from transformers.
        targets: names; a layer is adapted if its path equals a name or ends with ``.name`` (PEFT's rule), or is
            matched whole by ``regex:EXPRESSION``. ``"all-linear"`` names every linear layer, and no other.
        rank: r of every adapter.
        alpha: numerator of the scale.
        seed: the federation's common seed, from which A is drawn.
        kind: kind of A, see `fedasym.adapters.projection.frozen_A`.
        scaling: ``"alpha/r"`` (Hu et al. 2021) or ``"alpha/sqrt(r)"`` (rsLoRA, arXiv 2312.03732).
        factors: what trains: ``"B"``; ``"AB"`` for standard LoRA; ``"A"``, with B drawn as A is otherwise and frozen.
        exclude: paths of layers to leave alone.
        one_product: compute plain linear layers in float32 by one product with ``W + s · B A`` where there are enough
            rows for that to be the faster; such a call keeps that matrix for backward, has no second derivative, and
            is not for ``torch.func``.

    Returns:
        The adapted layers' paths, sorted.

    Raises:
        ValueError: an unknown scaling or factors, a rank below 1 or too large for a layer and kind, an alpha that is
            not positive and finite, a model that is adapted already or is itself one layer, a layer at two paths or
            that cannot be adapted, or a target or an exclusion that matches no layer. The model is then as it was.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"rank {rank!r} is not a whole number of at least 1; give the number of A's rows as an int")
    if not math.isfinite(alpha) or alpha <= 0:
        raise ValueError(f"alpha {alpha!r} is not positive and finite; the scale s is made of it, give e.g. 16.0")
    if scaling not in SCALINGS:
        raise ValueError(f"scaling {scaling!r} is unknown; use one of {', '.join(SCALINGS)}")
    if factors not in FACTORS:
        raise ValueError(f"factors {factors!r} is unknown; use one of {', '.join(FACTORS)}")
    if any(isinstance(module, AdaptedLinear) for module in model.modules()):
        raise ValueError("the model is adapted already; build a fresh one or use merged_copy first")
    layers = adaptable(model)
    for name in [exclude] if isinstance(exclude, str) else exclude:
        if layers.pop(name, None) is None:
            raise ValueError(f"exclude names {name!r}, which is no layer that could be adapted; give full paths")
    chosen = matching(layers, [targets] if isinstance(targets, str) else targets)
    _require_whole(model, {name: layers[name] for name in chosen})
    owners = [f"{name}." if name else "" for name, m in model.named_modules() if isinstance(m, _FUSED)]
    fused = [owner.rstrip(".") for owner in owners for name in chosen if name.startswith(owner)]
    if fused:
        raise ValueError(
            f"{fused[0] or 'the model'} is PyTorch's own attention or transformer layer, which reads its weights past "
            "an adapter; exclude its linear layers or use a model that calls them"
        )
    drawn = {name: _draw(seed, name, rank, layers[name], kind, factors) for name in chosen}
    scale = scale_of(alpha, rank, scaling)
    model.requires_grad_(False)
    for name in chosen:
        base = layers[name]
        A, B = (matrix.to(base.weight.device) for matrix in drawn[name])
        place(model, name, adapted(base, A, B, scale, factors, one_product))
    return chosen


def scale_of(alpha: float, rank: int, scaling: str) -> float:
    """Return s."""
    return alpha / rank if scaling == "alpha/r" else alpha / math.sqrt(rank)


def _draw(seed: int, name: str, rank: int, base: Any, kind: str, factors: str) -> tuple[Tensor, Tensor]:
    """Return the initial A and B: one random, the other zero; on the meta device their shapes."""
    d_out, d_in = sizes(base)
    if base.weight.is_meta:
        check_drawable(name, rank, d_out if factors == "A" else d_in, kind)
        return torch.empty(rank, d_in, device="meta"), torch.empty(d_out, rank, device="meta")
    if factors == "A":
        B = frozen_A(seed, f"{name}.B", rank, d_out, kind).T
        return torch.zeros(rank, d_in, dtype=torch.float32), torch.from_numpy(np.ascontiguousarray(B))
    # The dtype is named: another thread that loads a model moves the process's default.
    A = frozen_A(seed, name, rank, d_in, kind)
    return torch.from_numpy(A), torch.zeros(d_out, rank, dtype=torch.float32)


def train_all(model: nn.Module) -> None:
    """Make every parameter train, in float32, in place: full fine-tuning, without adapters."""
    model.float().requires_grad_(True)
    model.trains_in_full = True  # type: ignore[assignment]


def add_shifts(model: nn.Module) -> None:
    """Give every adapted layer a zero ``shift``, float32 ``(d_out, d_in)``, to fold updates into."""
    for _, layer in adapted_layers(model):
        layer.shift = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float32, device=layer.A.device)


def adaptable(model: nn.Module) -> dict[str, Any]:
    """Return every layer of a kind that can be adapted, by path, also under a second path that it has.

    Raises:
        ValueError: the model itself is one.
    """
    if can_be_adapted(model):
        raise ValueError(
            f"the model is one {type(model).__name__} layer, which cannot be replaced in place; wrap it in a module"
        )
    return {name: m for name, m in model.named_modules(remove_duplicate=False) if can_be_adapted(m)}


def matching(layers: Mapping[str, nn.Module], names: Sequence[str], setting: str = "targets") -> list[str]:
    """Return the paths of the layers that some names mean, sorted; see `adapt`.

    Args:
        layers: of `adaptable`.
        names: as in ``targets``.
        setting: what the error calls them.

    Raises:
        ValueError: a name that means none, no names, or no regular expression; says how the layers are called.
    """
    found = {name: [path for path, layer in layers.items() if means(name, path, is_linear(layer))] for name in names}
    missing = [name for name, paths in found.items() if not paths]
    if not missing and names:
        return sorted({path for paths in found.values() for path in paths})
    if missing == [ALL_LINEAR]:
        raise ValueError("the model has no linear layer to adapt")
    kinds = {(path.rpartition(".")[2], "" if is_linear(m) else f" ({type(m).__name__})") for path, m in layers.items()}
    ends = ", ".join("".join(each) for each in sorted(kinds)) or "nothing: there is none"
    raise ValueError(
        f"{setting} {missing or list(names)} match no layer that can be adapted; this model's end in {ends}"
    )


def _require_whole(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Require layers that an adapter at their path would wholly cover, each at one path, and none past an adapter."""
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    for path, layer in layers.items():
        if reason := unadaptable(layer):
            raise ValueError(f"{path}: {reason}; leave it out of targets, or exclude it")
        if len(paths[layer]) > 1:
            raise ValueError(
                f"one layer stands at {' and '.join(map(repr, paths[layer]))}; such sharing is not adapted"
            )


def place(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a path of the model in place of what is there."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def merged_copy(model: nn.Module) -> nn.Module:
    """Return a copy with ``W + s · B A`` in plain linear layers; the model itself is not touched.

    The sum is formed in float64 and rounded once to W's dtype; layers trained in full take that of what they replace.
    A weight that another layer shares stays as it is there, so afterwards there are two.

    Raises:
        TypeError: a linear base layer is not a plain one but e.g. quantised, and cannot take the update.
    """
    merged = copy.deepcopy(model)
    for name, layer in adapted_layers(merged):
        base = layer.base
        if isinstance(base, nn.Linear) and type(base) is not nn.Linear:
            raise TypeError(
                f"{name}: W is stored in fewer bits ({type(base).__name__}), in which W + s B A would be rounded anew; "
                "keep the adapter apart"
            )
        base.weight = nn.Parameter(merged_weight(layer).to(base.weight.dtype))
        place(merged, name, base)
    for name, module in list(merged.named_modules()):
        if isinstance(module, TrainedLinear):
            d_out, d_in = module.weight.shape
            plain = nn.utils.skip_init(  # type: ignore[no-untyped-call]  # draws nothing from the global generator
                nn.Linear,
                d_in,
                d_out,
                bias=module.bias is not None,
                device=module.weight.device,
                dtype=module.base_dtype,
            )
            plain.load_state_dict(module.state_dict())
            place(merged, name, plain)
    return merged.requires_grad_(False)


def merged_weight(layer: AdaptedLinear) -> Tensor:
    """Return ``W + s · B A``, and the shift if there is one, in float64 and in W's own shape."""
    whole = layer.weight.detach().double()
    if layer.shift is not None:
        whole = whole + layer.like_weight(layer.shift.double())
    return whole + layer.like_weight(layer.scale * (layer.B.detach().double() @ layer.A.detach().double()))


def fingerprint_A(model: nn.Module, kind: str) -> str:
    """Digest the random factor of every adapted layer as it is now: A, or B where A alone trains (SHA-256)."""
    layers = list(adapted_layers(model))
    drawn = {name: layer.A if isinstance(layer.B, nn.Parameter) else layer.B for name, layer in layers}
    return fingerprint({name: matrix.detach().cpu().numpy() for name, matrix in drawn.items()}, kind)


def fingerprint_base(model: nn.Module) -> str:
    """Digest everything that neither trains nor is an A: W, embeddings, norms, frozen heads.

    SHA-256 over names (as before adapting), shapes, dtypes and bytes; non-persistent buffers are left out.
    """
    moving = {id(parameter) for parameter in (*trainable(model).values(), *local_only(model).values())}
    own_name = {
        f"{layer}.base.{key}": f"{layer}.{key}" for layer, m in adapted_layers(model) for key in m.base.state_dict()
    }
    frozen = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in moving:  # shared weights stand there under several names
            if hasattr(tensor, "__tensor_flatten__"):
                raise ValueError(
                    f"{name} is stored as {type(tensor).__name__}, whose bytes are not its own; load it unquantised"
                )
            raw = tensor.detach().cpu().contiguous()
            bytes_of = raw.reshape(-1).view(torch.uint8).numpy()
            frozen[f"{own_name.get(name, name)}|{raw.dtype}|{tuple(raw.shape)}"] = bytes_of
    return fingerprint(frozen, "base")
