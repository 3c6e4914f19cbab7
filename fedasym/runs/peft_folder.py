"""A trained model as a PEFT adapter folder that ``peft.PeftModel.from_pretrained`` loads, or whole, B A in W.

A is written out too, since PEFT draws its own otherwise. Layers that the checkpoint of the base model lacks (a new
head) are saved in full, with their adapter merged, as PEFT's ``modules_to_save``: PEFT could not draw them as we do.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from fedasym.adapters import lora, trainable_state
from fedasym.adapters.layers import AdaptedLinear, TrainedLinear
from fedasym.adapters.peft_names import peft_tensors
from fedasym.files import replacing, write_atomic, writing
from fedasym.methods import METHODS
from fedasym.models.build import Built
from fedasym.models.model_files import source_of
from fedasym.models.pooling import MeanPooledClassifier
from fedasym.models.settings import MINILM
from fedasym.runs.model_card import write_card
from fedasym.settings import Settings
from fedasym.tasks import task_of

DEMO_ON_THE_HUB = "sentence-transformers/all-MiniLM-L6-v2"  # which the packaged MiniLM is, by its SHA-256
TASK_TYPES = {  # PEFT's, by the model's class
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModelForCausalLM": "CAUSAL_LM",
}
NO_TARGETS = "dummy-target-modules"  # the one word by which PEFT accepts a config that adapts no layer


def write_adapter(folder: Path, built: Built, settings: Settings, classes: Sequence[str] = ()) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` of the model as it is now.

    Where updates were folded into W, an adapter cannot hold them: every adapted layer is then saved in full, and so is
    a convolution with a dilation or another padding than zeros, of which PEFT's own know nothing. After full
    fine-tuning there is no adapter: the folder holds the model (``config.json``, ``model.safetensors``) and what reads
    its inputs.

    For a mean-pooled model, whose pooling PEFT does not know, the adapter fits the plain encoder and the output
    layer lies beside it in ``output.safetensors`` (``weight``, ``bias``): logits = features times weight's transpose,
    plus bias. Features are the mean-pooled hidden states; of a pair whose texts stand apart (``pooling="pair"``), with
    u of the first text and v of the second, ``[|u − v|, u ⊙ v]``.

    Values are float32. Loaded in float32 the folder has the logits of our model in float32 up to rounding (1e-5); a
    model that ran in bfloat16, which rounds W and every product to 8 bits, differs by that, about 1e-2 in a logit.

    Under the head policy ``local`` the output layer is the initial one; the trained ones stay with their clients.

    Of a model that classifies texts, PEFT saves ``classifier`` or ``score`` whole, and so does this. Beside the adapter
    lie what reads the inputs, with its token to pad with, and a README.md that says how to load both.

    Args:
        folder: made if missing.
        built: an adapted model.
        settings: resolved settings it was built from.
        classes: names by id; empty: there are none.

    Raises:
        WriteError: the system refused; files that were there are whole.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    method = METHODS[settings.method]
    if method.factors == "W":
        write_card(folder, built, settings, classes, "")
        _write_whole(folder, built, classes)
        return
    seeded = {name.rpartition(".")[0] for name in built.seeded}
    trained = {name for name, m in built.model.named_modules() if isinstance(m, TrainedLinear)}
    folded = {name for name, layer in trainable_state.adapted_layers(built.model) if layer.shift is not None}
    strange = {name for name, layer in trainable_state.adapted_layers(built.model) if not peft_tensors("", layer)}
    whole = sorted(seeded | trained | folded | strange)
    pooled = isinstance(built.model, MeanPooledClassifier)
    task_type = "FEATURE_EXTRACTION" if pooled else TASK_TYPES.get(task_of(settings).inputs.model_class, "")
    heads = _heads_of_peft(built.model) if task_type == "SEQ_CLS" else []
    whole = [name for name in whole if not _within(name, heads)]
    if pooled:
        whole.remove(built.output)
        write_atomic(folder / "output.safetensors", to_safetensors(_whole(built.model, built.output)))
    prefix = "encoder." if pooled else ""
    tensors: dict[str, Tensor] = {}
    kept = {*whole} | {name for name, _ in trainable_state.adapted_layers(built.model) if _within(name, heads)}
    adapters = [(name, layer) for name, layer in trainable_state.adapted_layers(built.model) if name not in kept]
    for name, layer in adapters:
        tensors |= peft_tensors(f"base_model.model.{name.removeprefix(prefix)}", layer)
    for name in whole:
        key = f"base_model.model.{name.removeprefix(prefix)}"
        tensors |= {f"{key}.{part}": tensor for part, tensor in _whole(built.model, name).items()}
    for name in heads:
        head = lora.merged_copy(built.model.get_submodule(name)).state_dict()
        tensors |= {f"base_model.model.{name}.{part}": _float32(tensor) for part, tensor in head.items()}
    source = _source(settings)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type or None,
        "auto_mapping": None if task_type else _auto_mapping(built.model),
        **source,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "use_rslora": settings.scaling == "alpha/sqrt(r)",
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(_is_transposed(layer) for _, layer in adapters),
        "target_modules": [name.removeprefix(prefix) for name, _ in adapters] or NO_TARGETS,
        "modules_to_save": [name.removeprefix(prefix) for name in [*whole, *heads]] or None,
        "inference_mode": True,
    }
    write_card(folder, built, settings, classes, task_type)
    with replacing(folder) as new:
        _save_processor(built.processor, new)
    write_atomic(folder / "adapter_config.json", (json.dumps(config, indent=1) + "\n").encode())
    write_atomic(folder / "adapter_model.safetensors", to_safetensors(tensors, metadata={"format": "pt"}))


def _heads_of_peft(model: Any) -> list[str]:
    """Return those of the heads that PEFT saves whole which are more than one layer, and of which anything trains.

    One layer is saved by its own name, as it is.
    """
    found = [name for name in ("classifier", "score") if hasattr(model, name)]
    return [
        name for name in found if not isinstance(getattr(model, name), (torch.nn.Linear, AdaptedLinear, TrainedLinear))
    ]


def _within(name: str, heads: Sequence[str]) -> bool:
    return any(name.startswith(f"{head}.") for head in heads)


def _auto_mapping(model: Any) -> dict[str, str]:
    """Return by which class of which library ``peft.AutoPeftModel`` makes the base model."""
    return {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}


def write_merged(folder: Path, built: Built, classes: Sequence[str] = ()) -> None:
    """Write a model with ``B A`` merged into W as transformers does: the task's Auto class loads it without PEFT.

    Of a mean-pooled model, whose head no Auto class knows, the folder holds the encoder and beside it
    ``output.safetensors``, as that of `write_adapter` after full fine-tuning.

    Built in float32 it has the logits of the adapted model up to rounding (1e-5). That model is not changed.

    Args:
        folder: made if missing.
        built: an adapted model.
        classes: names by id, for the configuration.

    Raises:
        WriteError: the system refused; files that were there are whole.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    merged: Any = lora.merged_copy(built.model)
    if getattr(merged.config, "tie_word_embeddings", False) and _untied(built.model, merged):
        merged.config.tie_word_embeddings = False
    _write_whole(folder, replace(built, model=merged), classes)


def _untied(model: Any, merged: Any) -> bool:
    """Say whether embedding and output layer are one weight in a model and two once the former took its update."""

    def shared(whole: Any) -> bool:
        ends = (whole.get_input_embeddings(), whole.get_output_embeddings())
        return all(end is not None for end in ends) and ends[0].weight is ends[1].weight

    return not isinstance(model, MeanPooledClassifier) and shared(model) and not shared(merged)


def _is_transposed(layer: AdaptedLinear) -> bool:
    """Say whether a linear layer's weight is stored ``(d_in, d_out)``, as GPT-2's are."""
    return type(layer) is AdaptedLinear and not isinstance(layer.base, torch.nn.Linear)


def _source(settings: Settings) -> dict[str, str | None]:
    """Say where PEFT finds the base model, from whatever directory: a folder by its absolute path, or on the hub.

    Of a GGUF file, which it could not name, it is the folder on this machine that the file was unpacked to.
    """
    if settings.model in MINILM:
        return {"base_model_name_or_path": DEMO_ON_THE_HUB, "revision": "main"}
    unpacked = settings.model == "smollm2" or settings.model.endswith(".gguf")
    model = source_of(settings.model, settings.revision) if unpacked else settings.model
    folder = Path(model).expanduser()
    if folder.is_dir():
        return {"base_model_name_or_path": str(folder.absolute()), "revision": None}
    return {"base_model_name_or_path": model, "revision": settings.revision}


def _write_whole(folder: Path, built: Built, classes: Sequence[str]) -> None:
    """Write a model as transformers does; a mean-pooled one as its encoder and the output layer."""
    model: Any = built.model
    if classes:
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: i for i, name in enumerate(classes)}
    if isinstance(model, MeanPooledClassifier):
        write_atomic(folder / "output.safetensors", to_safetensors(_whole(model, built.output)))
        model = model.encoder
    with replacing(folder) as new:
        model.save_pretrained(new)
        _save_processor(built.processor, new)


def _whole(model: torch.nn.Module, name: str) -> dict[str, Tensor]:
    """Return a layer's weight and bias in float32, its adapter merged."""
    module = model.get_submodule(name)
    if isinstance(module, AdaptedLinear):
        tensors = {**module.base.state_dict(), "weight": lora.merged_weight(module)}
    else:
        tensors = dict(module.state_dict())
    return {key: _float32(value) for key, value in tensors.items()}


def _save_processor(processor: Any, folder: Path) -> None:
    """Save what reads the inputs as it was loaded; a tokenizer would keep the length that it cut a text at last."""
    if (tokenizer := getattr(processor, "backend_tokenizer", None)) is not None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
    processor.save_pretrained(folder)


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()
