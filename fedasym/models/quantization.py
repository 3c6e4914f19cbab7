"""A base model whose frozen weights are stored in fewer bits, by bitsandbytes; adapters and head stay float32.

``nf4``: 4 bits, rounded block by block to quantiles of the normal distribution (Dettmers et al. 2023, arXiv
2305.14314). ``int8``: 8 bits row by row, columns of large inputs apart (Dettmers et al. 2022, arXiv 2208.07339);
products in float16.
"""

import logging
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from fedasym.models.requirements import head_linears
from fedasym.models.settings import ModelSettings
from fedasym.ops import extras


def quantizing(settings: ModelSettings, model_class: str, source: str, where: torch.device) -> dict[str, Any]:
    """Return what makes transformers quantise the linear layers of the base model while it loads; empty: nothing does.

    Heads are left as they are, since a checkpoint may lack them, and so is the pooler, which most checkpoints lack.

    Args:
        settings: resolved.
        model_class: transformers' class by which the model is loaded.
        source: as `source_of` names it.
        where: the device.

    Raises:
        ModuleNotFoundError: bitsandbytes is not installed; the text names the extra.
        ValueError: the checkpoint is quantised already.
    """
    if settings.quantize == "none":
        return {}
    extras.require("bitsandbytes")
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, revision=settings.revision, trust_remote_code=False)
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"quantize={settings.quantize!r}: the weights of model {settings.model!r} are stored quantised already; "
            "leave quantize at 'none'"
        )
    with torch.device("meta"):
        bare = getattr(transformers, model_class).from_config(config, trust_remote_code=False)
    apart = {"llm_int8_skip_modules": [*head_linears(bare), "pooler"]}
    if settings.quantize == "int8":
        # It says of every product that its inputs become float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        how = transformers.BitsAndBytesConfig(load_in_8bit=True, **apart)
    else:
        how = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
            **apart,
        )
    return {"quantization_config": how, "device_map": {"": where}}


def require_stored(model: nn.Module, missing: Collection[str], settings: ModelSettings) -> None:
    """Require that the checkpoint holds every layer that was quantised, and that there is one.

    Raises:
        ValueError: names the layers.
    """
    if settings.quantize == "none":
        return
    quantized = [name for name, module in model.named_modules() if is_quantized(module)]
    if not quantized:
        raise ValueError(
            f"quantize={settings.quantize!r} found no linear layer in model {settings.model!r}; leave it at 'none'"
        )
    if lacking := [name for name in quantized if f"{name}.weight" in missing]:
        raise ValueError(
            f"quantize={settings.quantize!r}: the checkpoint of model {settings.model!r} lacks "
            f"{', '.join(lacking[:3])}; take one that holds them, or leave quantize at 'none'"
        )


def is_quantized(module: nn.Module) -> bool:
    """Say whether a module is a linear layer whose weight is not stored as floating-point numbers."""
    return isinstance(module, nn.Linear) and not module.weight.is_floating_point()
