"""A PEFT LoRA as the start of a run: its A in place of the drawn one, its B, and the layers that it holds in full.

A never travels, so every party reads the folder (setting ``init-adapter``). The contract states the fingerprint of what
was taken from it: who has another folder is refused by name. What a run cannot compute as PEFT does is refused too.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedasym.adapters import trainable_state
from fedasym.adapters.layers import TrainedLinear
from fedasym.adapters.peft_names import peft_tensors
from fedasym.adapters.projection import fingerprint
from fedasym.models.pooling import MeanPooledClassifier
from fedasym.models.settings import ModelSettings

CONFIG, TENSORS, PICKLED, OUTPUT = (
    "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "output.safetensors",
)  # fmt: skip
_ROOT = "base_model.model."
_MERGE = (
    "merge the adapter into its base model with PEFT (merge_and_unload, then save_pretrained), set model to that "
    "folder and leave init-adapter out"
)
# What says nothing of the values, or is compared otherwise. Any other key that says something is refused.
_NO_MATTER = {
    "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "task_type", "inference_mode",
    "lora_dropout", "megatron_core", "qalora_group_size", "fan_in_fan_out", "peft_type", "r", "lora_alpha",
    "use_rslora", "bias", "init_lora_weights", "modules_to_save", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern",
}  # fmt: skip
# How PEFT draws A and B without changing W; of the others some take from W what they put into A and B.
_DRAWN = (True, False, "gaussian", "orthogonal")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def load_init_adapter(model: nn.Module, settings: ModelSettings) -> str:
    """Load the folder's A and B, and the layers that it holds in full, into an adapted model, in place; all or nothing.

    Of layers that train in full those are loaded that the folder holds; the others stay as they are. For a mean-pooled
    model the adapter is that of the plain encoder, with the output layer in ``output.safetensors``, if it is there, as
    `fedasym.runs.peft_folder.write_adapter` writes it.

    Args:
        model: adapted, with its head, as `fedasym.models.build.fit` leaves it.
        settings: resolved settings it was built from; ``init_adapter`` names the folder.

    Returns:
        The fingerprint of what was taken: names, shapes and bytes, 64 hexadecimal digits.

    Raises:
        ValueError: no such folder, or a file of it that cannot be read; an adapter that is not LoRA with A and B alone;
            another rank, alpha or scaling than the settings'; other layers or shapes than the model's; or values that
            are not finite.
    """
    folder = Path(settings.init_adapter).expanduser()
    where = f"init-adapter={settings.init_adapter!r}"
    config, tensors = _read(folder, where)
    _require_lora(config, where)
    _require_settings(config, settings, where)
    pooled = isinstance(model, MeanPooledClassifier)
    source = f"the adapter is of {config.get('base_model_name_or_path')!r}, the run's model is {settings.model!r}"
    if pooled and (folder / OUTPUT).is_file():
        tensors |= {f"{_ROOT}output.{part}": tensor for part, tensor in _tensors(folder / OUTPUT, where).items()}
    own_path = {name.removeprefix("encoder.") if pooled else name: name for name, _ in model.named_modules()}
    wanted = _adapters(model, pooled, where) | _whole(model, pooled, tensors)
    _require_layers(tensors, wanted, own_path, model, where, source)
    _require_saved(config, tensors, own_path, pooled, where)
    places: dict[str, Tensor] = {}
    values: dict[str, NDArray[np.float32]] = {}
    for key, (name, place, shape) in wanted.items():
        found = tensors[key]
        if found.dtype not in _FLOATS:
            raise ValueError(f"{where}: {key} is {found.dtype}; only float32, bfloat16 and float16 are taken; {_MERGE}")
        if found.shape != shape:
            raise ValueError(
                f"{where}: {key} has the shape {tuple(found.shape)}, the model's layer wants {tuple(shape)}; {source}; "
                "take an adapter of this model"
            )
        matrix = found.float()
        if bad := int((~torch.isfinite(matrix)).sum()):
            raise ValueError(f"{where}: {bad} of the {found.numel()} values of {key} are not finite; take another copy")
        places[name], values[name] = place, matrix.reshape(place.shape).contiguous().numpy()
    trainable_state.load(places, values)
    return fingerprint(values, "init-adapter")


_Wanted = dict[str, tuple[str, Tensor, torch.Size]]  # by PEFT's name: ours, the tensor to fill, the shape there


def _adapters(model: nn.Module, pooled: bool, where: str) -> _Wanted:
    """Return what the folder must hold of the adapted layers."""
    wanted: _Wanted = {}
    for name, layer in trainable_state.adapted_layers(model):
        named = peft_tensors(_key(name, pooled), layer)
        if not named:
            raise ValueError(
                f"{where}: {name} is a convolution with a dilation or another padding than zeros, which PEFT's "
                "adapters do not have; exclude it"
            )
        for letter, (key, tensor) in zip("AB", named.items(), strict=True):
            wanted[key] = (f"{name}.{letter}", getattr(layer, letter), tensor.shape)
    return wanted


def _whole(model: nn.Module, pooled: bool, tensors: Mapping[str, Tensor]) -> _Wanted:
    """Return what the folder must hold of those layers trained in full of which it holds something."""
    wanted: _Wanted = {}
    for name, layer in model.named_modules():
        key = _key(name, pooled)
        if isinstance(layer, TrainedLinear) and any(held.startswith(f"{key}.") for held in tensors):
            for part, parameter in layer.named_parameters():
                wanted[f"{key}.{part}"] = (f"{name}.{part}", parameter, parameter.shape)
    return wanted


def _key(name: str, pooled: bool) -> str:
    return _ROOT + (name.removeprefix("encoder.") if pooled else name)


def _read(folder: Path, where: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the two files of an adapter folder."""
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"{where}: there is no {CONFIG} in it on this machine; give every party the same folder, as PEFT's "
            "save_pretrained writes it"
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {CONFIG} is no JSON ({error}); take another copy") from None
    if not isinstance(config, dict):
        raise ValueError(f"{where}: {CONFIG} holds a {type(config).__name__}, not settings by name; take another copy")
    if not (folder / TENSORS).is_file():
        pickled = f", and {PICKLED} is Python's pickle, which can hold code" if (folder / PICKLED).exists() else ""
        raise ValueError(
            f"{where}: there is no {TENSORS} in it{pickled}; write it with PEFT's save_pretrained, whose "
            "safe_serialization is on"
        )
    return config, _tensors(folder / TENSORS, where)


def _tensors(path: Path, where: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{where}: {path.name} cannot be read ({error}); take another copy") from None


def _require_lora(config: Mapping[str, Any], where: str) -> None:
    """Require LoRA with A and B alone: whatever else a config says would change what the adapter computes."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{where}: peft_type={config.get('peft_type')!r} is not LORA; {_MERGE}")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{where}: bias={config['bias']!r}, and no biases train here beside A and B; {_MERGE}")
    if config.get("init_lora_weights", True) not in _DRAWN:
        raise ValueError(
            f"{where}: init_lora_weights={config['init_lora_weights']!r} may have changed the base model's weights; "
            "save it with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    for key, value in sorted(config.items()):
        if key not in _NO_MATTER and value:
            raise ValueError(f"{where}: {key}={value!r} is more than A and B of one rank and scale; {_MERGE}")


def _require_settings(config: Mapping[str, Any], settings: ModelSettings, where: str) -> None:
    """Require the rank, alpha and scaling of the settings."""
    scaling = "alpha/sqrt(r)" if config.get("use_rslora") else "alpha/r"
    stated = {"rank": config.get("r"), "alpha": config.get("lora_alpha"), "scaling": scaling}
    wrong = [(name, value) for name, value in stated.items() if value != getattr(settings, name)]
    if wrong:
        there = ", ".join(f"{name}={value!r}" for name, value in wrong)
        here = ", ".join(f"{name}={getattr(settings, name)!r}" for name, _ in wrong)
        raise ValueError(f"{where}: the adapter has {there}, the run has {here}; set {there}")


def _require_layers(
    tensors: Mapping[str, Tensor],
    wanted: _Wanted,
    own_path: Mapping[str, str],
    model: nn.Module,
    where: str,
    source: str,
) -> None:
    """Require that the folder holds what the model wants, and nothing else."""
    adapted = {name for name, _ in trainable_state.adapted_layers(model)}
    for key in sorted(tensors.keys() - wanted.keys()):
        path, _, part = key.removeprefix(_ROOT).rpartition(".")
        layer = re.sub(r"\.lora_[AB]$", "", path)
        if layer.endswith(".base_layer"):
            raise ValueError(
                f"{where}: it holds {key}, a frozen weight of the base model; write it with PEFT's save_pretrained and "
                "save_embedding_layers=False"
            )
        if layer not in own_path or not key.startswith(_ROOT):
            raise ValueError(f"{where}: it holds {key}, and the model has no such layer; {source}")
        name = own_path[layer]
        if name in adapted:
            raise ValueError(
                f"{where}: it holds {key}, and of {name} the run has A and B alone; if it is a hidden layer of the "
                f"head, head='full' trains it in full; else {_MERGE}"
            )
        if layer != path or part.startswith("lora_"):
            raise ValueError(
                f"{where}: it adapts {name}, which the run does not; name in targets the layers that it adapts, which "
                f"end in {_ends(tensors)}, and no others"
            )
        raise ValueError(
            f"{where}: it holds {key} in full, and {name} does not train in the run; if it is the output layer, use "
            f"head='output' or 'full'; else {_MERGE}"
        )
    if lacking := sorted(wanted.keys() - tensors.keys()):
        name, letter = wanted[lacking[0]][0].rpartition(".")[::2]
        what = f"a part of {name} that the run wants" if letter not in "AB" else f"A and B of {name}, which is adapted"
        raise ValueError(
            f"{where}: it lacks {lacking[0]}, {what}; leave layers out by targets and exclude: the adapter's end in "
            f"{_ends(tensors)}"
        )


def _require_saved(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], own_path: Iterable[str], pooled: bool, where: str
) -> None:
    """Require that ``modules_to_save`` names the layers that the folder holds in full, as far as the model has them."""
    stated = config.get("modules_to_save") or []
    if not isinstance(stated, list) or not all(isinstance(entry, str) for entry in stated):
        raise ValueError(f"{where}: modules_to_save={stated!r} is no list of names; take another copy")
    whole = {key.removeprefix(_ROOT).rpartition(".")[0] for key in tensors if "lora_" not in key}
    if pooled:
        whole.discard("output")  # it lies in a file of its own
    for path in sorted(whole):
        if not any(f".{entry}." in f".{path}." for entry in stated):
            raise ValueError(
                f"{where}: it holds {path} in full, and modules_to_save={stated!r} does not name it; take another copy"
            )
    for entry in stated:
        there = any(f".{path}".endswith(f".{entry}") for path in own_path)
        if there and not any(f".{entry}." in f".{path}." for path in whole):
            raise ValueError(
                f"{where}: modules_to_save names {entry!r}, and {TENSORS} holds nothing of it; take another copy"
            )


def _ends(tensors: Iterable[str]) -> str:
    """Say how the names of the layers that a folder adapts end."""
    found = {re.sub(r"\.lora_(embedding_)?[AB](\.weight)?$", "", key) for key in tensors if "lora_" in key}
    return ", ".join(sorted({path.rpartition(".")[2] for path in found})) or "nothing: there is none"
