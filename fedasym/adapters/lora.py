"""Adapt a model: wrap its linear layers with low-rank adapters whose A is frozen, ``y = W x + s · B A x``.

W is the pretrained layer and stays as it is; A (r, d_in) is drawn from a seed and never trained; B (d_out, r) starts
at zero, trains, travels and is averaged. With ``factors="AB"`` the same code path is standard LoRA (Hu et al. 2021,
arXiv 2106.09685): A is a parameter too. Why B alone suffices: Zhu et al. 2024 (arXiv 2402.16842).

Law: what trains is what travels. `trainable` visits the adapted layers by type and is the one definition of that
set; the optimizer takes it, the wire copies it, the mean averages it.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedasym.adapters.layers import AdaptedLinear, TrainedLinear
from fedasym.adapters.projection import check_drawable, fingerprint, frozen_A

Float32 = NDArray[np.float32]

SCALINGS = ("alpha/r", "alpha/sqrt(r)")
FACTORS = ("B", "A", "AB")

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def adapt(
    model: nn.Module,
    targets: str | Sequence[str] = "all-linear",
    rank: int = 8,
    alpha: float = 16.0,
    seed: int = 0,
    kind: str = "orthonormal",
    scaling: str = "alpha/r",
    factors: str = "B",
    exclude: Iterable[str] = (),
) -> list[str]:
    """Freeze a model and wrap its linear layers with adapters, in place.

    On torch's meta device, where tensors have shapes and no values, nothing is drawn: the adapters are shapes too.

    Args:
        model: any PyTorch model, e.g. from transformers.
        targets: ``"all-linear"``, or names; a layer is adapted if its path equals a name or ends with
            ``.name`` (PEFT's rule).
        rank: r of every adapter.
        alpha: numerator of the scale.
        seed: the federation's common seed, from which A is drawn.
        kind: kind of A, see `fedasym.adapters.projection.frozen_A`.
        scaling: ``"alpha/r"`` (Hu et al. 2021) or ``"alpha/sqrt(r)"`` (rsLoRA, arXiv 2312.03732).
        factors: what trains: ``"B"``; ``"AB"`` for standard LoRA; ``"A"``, with B drawn as A is otherwise and frozen.
        exclude: paths of linear layers to leave alone.

    Returns:
        The adapted layers' paths, sorted.

    Raises:
        ValueError: an unknown scaling or factors, a rank below 1 or too large for a layer and kind, an alpha that is
            not positive and finite, a model that is adapted already or is itself one linear layer, a linear layer at
            two paths, or a target or an exclusion that matches no linear layer. The model is then as it was.
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
    linears = _linears(model)
    for name in [exclude] if isinstance(exclude, str) else exclude:
        if linears.pop(name, None) is None:
            raise ValueError(f"exclude names {name!r}, which is no linear layer of the model; give full paths")
    chosen = _match(linears, targets)
    owners = [f"{name}." if name else "" for name, m in model.named_modules() if isinstance(m, _FUSED)]
    fused = [owner.rstrip(".") for owner in owners for name in chosen if name.startswith(owner)]
    if fused:
        raise ValueError(
            f"{fused[0] or 'the model'} is PyTorch's own attention or transformer layer, which reads its weights past "
            "an adapter; exclude its linear layers or use a model that calls them"
        )
    drawn = {name: _draw(seed, name, rank, linears[name], kind, factors) for name in chosen}
    scale = scale_of(alpha, rank, scaling)
    model.requires_grad_(False)
    for name in chosen:
        base = linears[name]
        A, B = (matrix.to(base.weight.device) for matrix in drawn[name])
        place(model, name, AdaptedLinear(base, A, B, scale, factors))
    return chosen


def scale_of(alpha: float, rank: int, scaling: str) -> float:
    """Return s."""
    return alpha / rank if scaling == "alpha/r" else alpha / math.sqrt(rank)


def _draw(seed: int, name: str, rank: int, base: nn.Linear, kind: str, factors: str) -> tuple[Tensor, Tensor]:
    """Return the initial A and B: one random, the other zero; on the meta device their shapes."""
    if base.weight.is_meta:
        check_drawable(name, rank, base.out_features if factors == "A" else base.in_features, kind)
        return torch.empty(rank, base.in_features, device="meta"), torch.empty(base.out_features, rank, device="meta")
    if factors == "A":
        B = frozen_A(seed, f"{name}.B", rank, base.out_features, kind).T
        return torch.zeros(rank, base.in_features, dtype=torch.float32), torch.from_numpy(np.ascontiguousarray(B))
    # The dtype is named: another thread that loads a model moves the process's default.
    A = frozen_A(seed, name, rank, base.in_features, kind)
    return torch.from_numpy(A), torch.zeros(base.out_features, rank, dtype=torch.float32)


def train_all(model: nn.Module) -> None:
    """Make every parameter train, in float32, in place: full fine-tuning, without adapters."""
    model.float().requires_grad_(True)
    model.trains_in_full = True  # type: ignore[assignment]


def add_shifts(model: nn.Module) -> None:
    """Give every adapted layer a zero ``shift``, float32 ``(d_out, d_in)``, to fold updates into."""
    for _, layer in adapted_layers(model):
        layer.shift = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float32, device=layer.A.device)


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers by path; refuse those that an adapter at one path would not wholly cover."""
    if isinstance(model, nn.Linear):
        raise ValueError("the model is one torch.nn.Linear, which cannot be replaced in place; wrap it in a module")
    found: dict[str, nn.Linear] = {}
    first: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            if module in first:
                raise ValueError(
                    f"one linear layer stands at {first[module]!r} and {name!r}; such sharing is not adapted"
                )
            first[module] = name
            found[name] = module
    return found


def _match(linears: Mapping[str, nn.Linear], targets: str | Sequence[str]) -> list[str]:
    if targets == "all-linear":
        if not linears:
            raise ValueError("the model has no torch.nn.Linear to adapt")
        return sorted(linears)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    matches = {w: [n for n in linears if n == w or n.endswith("." + w)] for w in wanted}
    missing = [w for w in wanted if not matches[w]]
    if missing or not wanted:
        ends = sorted({name.rsplit(".", 1)[-1] for name in linears})
        raise ValueError(f"targets {missing or wanted} match no linear layer; this model's end in {', '.join(ends)}")
    return sorted({name for names in matches.values() for name in names})


def place(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a path of the model in place of what is there."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """Yield the adapted layers with their paths, sorted by path."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, AdaptedLinear)}
    yield from sorted(found.items())


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains and travels, by name, sorted: THE definition of B.

    ``<layer>.B`` of every adapted layer, ``<layer>.A`` too where A is a parameter, and ``<layer>.weight`` /
    ``<layer>.bias`` of every fully trained layer that travels; after `train_all`, every parameter.
    """
    if getattr(model, "trains_in_full", False):
        return dict(sorted(model.named_parameters()))
    return _parameters(model, travels=True)


def common(model: nn.Module) -> dict[str, Tensor]:
    """Return what a federation moves, by name, sorted: `trainable` and the shifts."""
    shifts = {f"{name}.shift": layer.shift for name, layer in adapted_layers(model) if layer.shift is not None}
    return dict(sorted({**trainable(model), **shifts}.items()))


def frozen_factors(model: nn.Module) -> dict[str, Tensor]:
    """Return the factor of every adapted layer that never moves, ``<layer>.A`` or ``<layer>.B``; none if both move."""
    pairs = {f"{name}.{letter}": getattr(m, letter) for name, m in adapted_layers(model) for letter in "AB"}
    return {name: matrix for name, matrix in pairs.items() if not isinstance(matrix, nn.Parameter)}


def local_only(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains but stays with its client (a head under the policy ``local``)."""
    return _parameters(model, travels=False)


def _parameters(model: nn.Module, travels: bool) -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        adapter = isinstance(module, AdaptedLinear) and travels
        if adapter or (isinstance(module, TrainedLinear) and module.travels == travels):
            for key, parameter in module.named_parameters(recurse=False):
                found[f"{name}.{key}"] = parameter
    return dict(sorted(found.items()))


def read(parameters: Mapping[str, Tensor]) -> dict[str, Float32]:
    """Copy parameters, e.g. ``trainable(model)``, to float32 arrays."""
    return {name: p.detach().float().cpu().numpy().copy() for name, p in parameters.items()}


def load(parameters: Mapping[str, Tensor], matrices: Mapping[str, Float32]) -> None:
    """Copy arrays into parameters, e.g. of ``trainable(model)``; all or nothing.

    Raises:
        ValueError: names or shapes differ, a dtype is not float32, be it a parameter's, or a value is not finite.
    """
    missing, extra = parameters.keys() - matrices.keys(), matrices.keys() - parameters.keys()
    if missing or extra:
        raise ValueError(f"matrices do not fit the model: missing {sorted(missing)}, extra {sorted(extra)}")
    for name, parameter in parameters.items():
        matrix = matrices[name]
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"{name}: is {parameter.dtype}, which would lose bits; cast the model before adapt, not after"
            )
        if matrix.dtype != np.float32 or matrix.shape != tuple(parameter.shape):
            raise ValueError(
                f"{name}: got {matrix.dtype} {matrix.shape}; the model wants float32 {tuple(parameter.shape)}"
            )
        if not np.isfinite(matrix).all():
            raise ValueError(f"{name}: holds values that are not finite; it was not loaded")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(matrices[name])))


def merged_copy(model: nn.Module) -> nn.Module:
    """Return a copy with ``W + s · B A`` in plain linear layers; the model itself is not touched.

    The sum is formed in float64 and rounded once to W's dtype; layers trained in full take that of what they replace.

    Raises:
        TypeError: a base layer is not a plain ``torch.nn.Linear`` but e.g. quantised, and cannot take the update.
    """
    merged = copy.deepcopy(model)
    for name, layer in adapted_layers(merged):
        if type(layer.base) is not nn.Linear:
            raise TypeError(f"{name}: cannot merge into a {type(layer.base).__name__}; keep the adapter apart")
        with torch.no_grad():
            layer.base.weight.copy_(merged_weight(layer))
        place(merged, name, layer.base)
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
    """Return ``W + s · B A``, and the shift if there is one, in float64, shape ``(d_out, d_in)``."""
    base: Tensor = layer.base.weight
    whole = base.detach().double() if layer.shift is None else base.detach().double() + layer.shift.double()
    return whole + layer.scale * (layer.B.detach().double() @ layer.A.detach().double())


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
            raw = tensor.detach().cpu().contiguous()
            bytes_of = raw.reshape(-1).view(torch.uint8).numpy()
            frozen[f"{own_name.get(name, name)}|{raw.dtype}|{tuple(raw.shape)}"] = bytes_of
    return fingerprint(frozen, "base")
