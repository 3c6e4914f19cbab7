"""Build what trains: base model, head and adapters, from the settings alone.

Head policies (setting ``head``). A head is every linear layer outside the base model; what the checkpoint lacks of it
is drawn from the seed, and so is an output layer that it has for another number of labels. Its last layer with as many
outputs as labels is the *output layer*.

* ``output`` (default): hidden head layers are frozen and adapted like every other layer; the output layer trains in
  full and travels.
* ``frozen``: the whole head is frozen and none of it is adapted: nothing in it trains, no byte of it travels.
* ``full``: every head layer trains in full and travels (what PEFT's SEQ_CLS does).
* ``local``: the output layer trains but never leaves its client.
"""

import logging
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedasym.adapters import lora
from fedasym.adapters.layers import TrainedLinear
from fedasym.adapters.projection import seeded_normal
from fedasym.methods import METHODS
from fedasym.models import device
from fedasym.models.init_adapter import load_init_adapter
from fedasym.models.model_files import source_of
from fedasym.models.party_equivalence import described, digest_processor, initial_logits, require_causal
from fedasym.models.pooling import pooled
from fedasym.models.quantization import quantizing, require_stored
from fedasym.models.requirements import (
    agree_on_tokens,
    head_linears,
    require_kind,
    require_model,
    require_positions,
    require_whole,
)
from fedasym.models.settings import ModelSettings
from fedasym.ops import extras
from fedasym.tasks.base import Inputs

loading = threading.Lock()  # transformers sets process-wide state (default dtype, generator) while it loads
_SMALLER = "use a GPU with more memory that is free, dtype='bfloat16' where it is native, or a smaller model"


@dataclass(frozen=True)
class Built:
    """A model ready to train.

    Attributes:
        model: takes what the task's inputs collate, returns an object with ``logits`` ``(n, num_labels)``.
        processor: the model's own: what reads its inputs.
        layers: paths of the adapted layers.
        seeded: paths of parameters that were drawn from the seed because the checkpoint lacks them.
        output: path of the output layer; "" where the model's own head stays as it is.
        base: fingerprint of all that is frozen.
        config: what the model's ``config.json`` says of it, as `party_equivalence.described`.
        ids: digest of how inputs become what the model reads, as `party_equivalence.digest_processor`.
        A: fingerprint of the initial A.
        logits: what the initial model says to a fixed input, as `party_equivalence.initial_logits`.
        init_adapter: fingerprint of what was taken from the folder of ``init-adapter``; "" if it names none.
    """

    model: nn.Module
    processor: Any
    layers: tuple[str, ...]
    seeded: tuple[str, ...]
    output: str
    base: str
    config: tuple[tuple[str, str], ...]
    ids: str
    A: str
    logits: tuple[float, ...]
    init_adapter: str = ""


def build(settings: ModelSettings, num_labels: int, inputs: Inputs) -> Built:
    """Load the base model onto its device, give it a head and adapters.

    Args:
        settings: resolved settings; what is still ``auto`` of device and dtype is chosen for this machine.
        num_labels: outputs of the output layer, 1 for a regression; 0: there is none, the model's own head stays.
        inputs: the task's; says the class of the model and of what reads its inputs.

    Raises:
        ValueError: no output layer with ``num_labels`` outputs, targets that match nothing, a length for which the
            model has no positions, logits that are not finite, a checkpoint of other shapes than its config's, an
            adapter to begin with that does not fit (`load_init_adapter`), a model of another kind than the task's or
            without the head that it needs, or a writing model whose tokens see later ones.
        FileNotFoundError: no such local folder or file.
        ModuleNotFoundError: a packaged model, or the library that reads GGUF, is not installed.
        OSError: transformers cannot find or download the model, or its weights are not stored as safetensors.
        DeviceMemoryError: the device's memory is too small for it.
    """
    where = device.choose_device(settings.device)
    settings = device.resolved(settings, where)
    with device.memory_named(f"loading model {settings.model!r} onto {where}", _SMALLER):
        with loading:
            model, processor, missing = _load(settings, inputs, num_labels, where)
        require_positions(model, settings, *inputs.positions(processor, settings.max_length))
        if inputs.model_class == "AutoModelForCausalLM":
            require_causal(model, settings)
        require_stored(model, missing, settings)
        if not num_labels:
            require_whole(model, missing, settings)
        _draw_missing(model, missing, settings.seed)
        layers, output = fit(model, settings, num_labels, missing)
        taken = load_init_adapter(model, settings) if settings.init_adapter else ""
    model.eval()
    return Built(
        model,
        processor,
        tuple(layers),
        tuple(sorted(missing)),
        output,
        lora.fingerprint_base(model),
        _described(settings),
        digest_processor(processor, inputs),
        lora.fingerprint_A(model, settings.kind),
        initial_logits(model, processor, inputs, settings),
        taken,
    )


def fit(model: nn.Module, settings: ModelSettings, num_labels: int, missing: Collection[str]) -> tuple[list[str], str]:
    """Give a bare model its head policy and its adapters, in place: what the settings say shall train.

    Args:
        model: base model and head; on torch's meta device only shapes are made.
        settings: resolved settings.
        num_labels: outputs of the output layer; 0: there is none.
        missing: paths of parameters that no checkpoint holds.

    Returns:
        The adapted layers' paths, sorted, and the path of the output layer or "".

    Raises:
        ValueError: no output layer with ``num_labels`` outputs, or targets that match nothing.
    """
    head = head_linears(model)
    output = next((name for name, m in reversed(head.items()) if m.out_features == num_labels), "")
    if num_labels and not output:
        raise ValueError(f"model {settings.model!r} has no output layer with {num_labels} outputs outside its base")
    if not num_labels and settings.head != "frozen" and METHODS[settings.method].factors != "W":
        raise ValueError(f"head={settings.head!r}: the task trains no head of its own; leave head at 'auto'")
    whole = {"output": [output], "local": [output], "full": list(head), "frozen": []}[settings.head]
    excluded = set(head) if settings.head == "frozen" else {output, *whole}
    if settings.exclude:
        excluded |= {*lora.matching(lora.adaptable(model), settings.excluded_names, "exclude")}
    hidden = [name for name in head if name not in excluded and f"{name}.weight" in missing]
    targets = [*settings.target_names, *hidden]
    method = METHODS[settings.method]
    layers: list[str] = []
    if method.factors == "W":
        lora.train_all(model)
    else:
        layers = lora.adapt(
            model,
            targets,
            settings.rank,
            settings.alpha,
            settings.seed,
            settings.kind,
            settings.scaling,
            method.factors,
            exclude=excluded,
            one_product=settings.one_product,
        )
        for name in whole:
            lora.place(model, name, TrainedLinear(head[name], travels=settings.head != "local"))
    if method.fold:
        lora.add_shifts(model)
    return layers, output


def _described(settings: ModelSettings) -> tuple[tuple[str, str], ...]:
    """Return what the source's own ``config.json`` says, to which no version of transformers adds its defaults."""
    from transformers import PretrainedConfig

    source = source_of(settings.model, settings.revision)
    raw, _ = PretrainedConfig.get_config_dict(source, revision=settings.revision)
    return described(raw)


def _load(settings: ModelSettings, inputs: Inputs, num_labels: int, where: torch.device) -> tuple[Any, Any, set[str]]:
    """Load model and processor, the model straight onto a device; return them and what the checkpoint does not hold.

    Raises:
        FileNotFoundError: no such local folder.
        OSError: there is no such model, or its weights are not stored as safetensors.
        ValueError: transformers has no model of the task's class for its configuration.
    """
    import transformers
    from transformers.utils import logging as hf_logging

    source = source_of(settings.model, settings.revision)
    require_model(settings, source)
    options: dict[str, Any] = {
        "revision": settings.revision,
        "trust_remote_code": False,
        "dtype": getattr(torch, settings.dtype),
        "attn_implementation": device.choose_attention(settings.attention, where, settings.dtype),
        "output_loading_info": True,
        "use_safetensors": True,  # the other format is Python's pickle, which can hold code
        **device.loading_options(where),
    }
    reader = {}
    if inputs.processor_class == "AutoImageProcessor":
        extras.require("PIL")
        if settings.pooling != "model":
            raise ValueError(f"pooling={settings.pooling!r} pools the tokens of a text; leave it at 'auto' for images")
        reader["backend"] = "pil"  # the other one resizes to slightly other pixels, where it is installed
    if settings.pooling == "model":
        require_kind(settings, inputs.model_class)
    verbosity = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    if Path(source).is_dir():
        hf_logging.disable_progress_bar()  # downloads keep theirs
    hf_logging.set_verbosity(logging.ERROR)  # its table of missing head weights: we draw and report those ourselves
    try:
        with torch.random.fork_rng(devices=[]):  # transformers initialises what is missing from the global stream
            processor = getattr(transformers, inputs.processor_class).from_pretrained(
                source, revision=settings.revision, trust_remote_code=False, **reader
            )
            pools = settings.pooling in ("mean", "pair")
            options |= quantizing(settings, "AutoModel" if pools else inputs.model_class, source, where)
            if pools:
                encoder, info = transformers.AutoModel.from_pretrained(source, **options)
                model: Any = pooled(encoder, settings.pooling, num_labels)
                model.output.to(options["dtype"])
                model.to(where)
                missing = {f"encoder.{name}" for name in info["missing_keys"]} | {"output.weight", "output.bias"}
            else:
                own = {"num_labels": num_labels, "ignore_mismatched_sizes": True} if num_labels else {}
                model, info = getattr(transformers, inputs.model_class).from_pretrained(source, **own, **options)
                missing = set(info["missing_keys"]) | _other_outputs(model, info["mismatched_keys"], num_labels)
                if settings.fresh_head and num_labels:
                    missing |= {f"{name}.{part}" for name in head_linears(model) for part in ("weight", "bias")}
    except OSError as error:
        if "file named model.safetensors" not in str(error):
            raise
        raise OSError(
            f"model={settings.model!r} has no weights stored as safetensors, and none stored otherwise are loaded; if "
            "you trust them, load them with transformers, write them by save_pretrained, and set model to that folder"
        ) from error
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
    if inputs.processor_class == "AutoImageProcessor" and options["dtype"] != torch.float32:
        model.register_forward_pre_hook(_cast_pixels, with_kwargs=True)
    if inputs.processor_class == "AutoTokenizer":
        agree_on_tokens(model, processor, settings)
    return model, processor, missing & model.state_dict().keys()


def _cast_pixels(model: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give a model pixels in the dtype of its frozen weights; of transformers' models some do it, others fail."""
    dtype = next((p.dtype for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)), torch.float32)
    return args, {**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}


def _other_outputs(
    model: Any, mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]], num_labels: int
) -> set[str]:
    """Return the parameters of an output layer that the checkpoint holds for another number of outputs.

    Args:
        model: base model and head.
        mismatched: ``(path, shape in the checkpoint, shape here)``, of which no value was loaded.
        num_labels: outputs here.

    Raises:
        ValueError: another parameter has another shape.
    """
    base, found = f"{model.base_model_prefix}.", set()
    for name, stored, here in mismatched:
        if name.startswith(base) or here[0] != num_labels or tuple(stored[1:]) != tuple(here[1:]):
            raise ValueError(
                f"{name}: its shape is {tuple(stored)} in the checkpoint and {tuple(here)} by its config.json; only an "
                "output layer may have another number of outputs; take another checkpoint"
            )
        found.add(name)
    return found


def _draw_missing(model: nn.Module, missing: Iterable[str], seed: int) -> None:
    """Draw parameters that the checkpoint lacks from the seed: normal weights, zero biases, unit norms."""
    std: Any = getattr(model.config, "initializer_range", None) or getattr(model.config, "init_std", 0.02)
    state = model.state_dict()
    with torch.no_grad():
        for name in missing:
            tensor = state[name]
            if tensor.ndim >= 2:
                tensor.copy_(torch.from_numpy(seeded_normal(seed, name, tuple(tensor.shape), std)))
            else:
                tensor.fill_(1.0 if name.endswith("weight") else 0.0)
