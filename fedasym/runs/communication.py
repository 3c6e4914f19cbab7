"""What a federation would send, from a model's configuration alone: no weights, no data, no run.

The model is built on torch's meta device and given head and adapters by the code that builds the real one
(`fedasym.models.build.fit`); what travels in a round is the method's own answer (`Method.up`, `Method.sent_schema`). So
the bytes are those that a run records as payload, of the codec's arrays, as long as every client takes part in every
round and every reply counts.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fedasym.adapters import trainable_state
from fedasym.methods import METHODS
from fedasym.methods.base import Schema, letter_of, select, values
from fedasym.models.build import fit, loading
from fedasym.models.model_files import source_of
from fedasym.models.pooling import pooled
from fedasym.settings import Settings
from fedasym.tasks import task_of
from fedasym.wire.codecs import codec_of
from fedasym.wire.codecs.base import Codec

_BERT_LIKE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_BART_SIDE = {"layers": 12, "attention_heads": 16, "ffn_dim": 4096}

# The published architecture numbers, as arguments of transformers' configuration classes. What moves no shape, such as
# the base of rotary positions, is left at the class's default.
PRESETS: dict[str, tuple[str, dict[str, int]]] = {
    "roberta-base": ("RobertaConfig", {**_BERT_LIKE, **_ROBERTA}),
    "roberta-large": ("RobertaConfig", {**_LARGE, **_ROBERTA}),
    "bart-large": (
        "BartConfig",
        {
            "vocab_size": 50265,
            "d_model": 1024,
            "max_position_embeddings": 1024,
            **{f"{side}_{key}": number for side in ("encoder", "decoder") for key, number in _BART_SIDE.items()},
        },
    ),
    "llama-2-7b": (
        "LlamaConfig",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
        },
    ),
    "llama-3.2-1b": (
        "LlamaConfig",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
    ),
    "llama-3.1-70b": (
        "LlamaConfig",
        {
            "vocab_size": 128256,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
        },
    ),
    "qwen2.5-0.5b": (
        "Qwen2Config",
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
        },
    ),
    "vit-b16": ("ViTConfig", {**_BERT_LIKE, "image_size": 224, "patch_size": 16}),
}

# Those of the presets that write, by their own head.
WRITERS = ("llama-2-7b", "llama-3.2-1b", "llama-3.1-70b", "qwen2.5-0.5b")


@dataclass(frozen=True)
class Traffic:
    """Payload bytes of one client in one round.

    Attributes:
        number: the round, from 1.
        up, down: all that the client sends, and is sent.
        up_adapter, down_adapter: of these, the adapters' factors; the rest is the head.
    """

    number: int
    up: int
    down: int
    up_adapter: int
    down_adapter: int

    @property
    def both(self) -> int:
        """Up and down together."""
        return self.up + self.down

    @property
    def both_adapter(self) -> int:
        """The adapters' factors, up and down together."""
        return self.up_adapter + self.down_adapter


@dataclass(frozen=True)
class CommunicationCost:
    """What one method would hold and send.

    Attributes:
        method: its name.
        head: the head policy.
        output: path of the output layer.
        layers: number of adapted layers; 0 under full fine-tuning.
        parameters: values of base model and head, without adapters.
        A, B: values of all A and all B, whether they travel or not.
        head_values: values of the head that travel; 0 under full fine-tuning, which sends the whole model.
        rounds: round 1, and then those that repeat for ever: all later rounds are alike, or, where a method trains
            its factors in turn, come in a cycle as long as ``rounds`` less the first.
    """

    method: str
    head: str
    output: str
    layers: int
    parameters: int
    A: int
    B: int
    head_values: int
    rounds: tuple[Traffic, ...]

    @property
    def later(self) -> tuple[Traffic, ...]:
        """The rounds that repeat."""
        return self.rounds[1:]

    def saving(self, reference: "CommunicationCost") -> float:
        """Return ``1 − bytes / bytes of the reference``, up and down, in the rounds that repeat.

        Raises:
            ZeroDivisionError: the reference sends nothing.
        """
        return 1.0 - _mean([t.both for t in self.later]) / _mean([t.both for t in reference.later])

    def saving_adapter(self, reference: "CommunicationCost") -> float | None:
        """Return `saving` of the adapters' factors alone; None where there is no adapter."""
        if not self.layers:
            return None
        return 1.0 - _mean([t.both_adapter for t in self.later]) / _mean([t.both_adapter for t in reference.later])


def config_of(model: str, revision: str = "main") -> Any:
    """Return a model's configuration.

    Args:
        model: one of `PRESETS`, or as in the setting; of a folder its ``config.json`` is enough.
        revision: of a model on the hub.

    Raises:
        OSError: no such folder, or the hub cannot be reached or has no such model.
        ModuleNotFoundError: ``demo`` without its package.
    """
    import transformers

    if model in PRESETS:
        name, numbers = PRESETS[model]
        return getattr(transformers, name)(**numbers)
    source = source_of(model, revision)
    try:
        return transformers.AutoConfig.from_pretrained(source, revision=revision)
    except OSError as error:
        raise OSError(
            f"model {model!r}: no configuration was found ({str(error).splitlines()[0]}). Without a connection use a "
            f"folder with a config.json, 'demo', or one of {', '.join(PRESETS)}"
        ) from error


def communication_cost(settings: Settings, config: Any, num_labels: int) -> CommunicationCost:
    """Return what a federation would hold and send.

    Args:
        settings: resolved; method, head, pooling, rank, targets and the number of clients matter.
        config: the model's transformers configuration. Its checkpoint is taken to lack the head.
        num_labels: outputs of the output layer; 0: there is none, the model's own head stays.

    Raises:
        ValueError: no classifier for this model, no head that writes, or targets that match nothing.
    """
    method = METHODS[settings.method]
    model, missing = skeleton(config, settings, num_labels)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _, output = fit(model, settings, num_labels, missing)
    adapters = [layer for _, layer in trainable_state.adapted_layers(model)]
    schema: Schema = tuple((name, tuple(p.shape)) for name, p in trainable_state.trainable(model).items())
    stacked = (settings.clients_per_round or settings.num_clients) if method.fold else 0
    rounds, codec = [], codec_of(settings.codec)
    for number in range(1, 2 + max(1, len(method.cycle))):
        up = select(schema, method.up(number))
        down = method.sent_schema(schema, number, stacked if number > 1 else 0)
        sizes = [_bytes(part, codec) for part in (up, down, _factors(up), _factors(down))]
        rounds.append(Traffic(number, *sizes))
    return CommunicationCost(
        settings.method,
        settings.head,
        output,
        len(adapters),
        parameters,
        sum(layer.A.numel() for layer in adapters),
        sum(layer.B.numel() for layer in adapters),
        0 if method.factors == "W" else values(select(schema, "")),
        tuple(rounds),
    )


def skeleton(config: Any, settings: Settings, num_labels: int) -> tuple[nn.Module, set[str]]:
    """Make the bare model of a configuration on torch's meta device: its shapes, and no memory for weights.

    Args:
        config: a transformers configuration, of a text or an image model.
        settings: resolved settings; ``pooling`` says which head, the task which class where it has none of its own.
        num_labels: outputs of the output layer; 0: there is none.

    Returns:
        The model, and the parameters of its head, which a checkpoint of the base model lacks; none where it stays.

    Raises:
        ValueError: transformers has no classifier for this kind of model, or no model of the task's class, or the
            pooling is not for it.
    """
    import transformers
    from transformers import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
    )

    if not num_labels:
        with loading, torch.device("meta"):
            return getattr(transformers, task_of(settings).inputs.model_class).from_config(copy.deepcopy(config)), set()
    of_text = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if not of_text and (settings.pooling != "model" or type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING):
        raise ValueError(
            f"transformers has no text classifier for a {type(config).__name__}; use a model that has one, or an "
            f"image model with pooling='model' (here {settings.pooling!r})"
        )
    config = copy.deepcopy(config)
    config.num_labels = num_labels
    kind: Any = AutoModelForSequenceClassification if of_text else AutoModelForImageClassification
    if settings.pooling != "model":
        kind = AutoModel
    with loading, torch.device("meta"):
        model = kind.from_config(config)
        if settings.pooling != "model":
            model = pooled(model, settings.pooling, num_labels)
    base = model.base_model_prefix + "."
    return model, {name for name, _ in model.named_parameters() if not name.startswith(base)}


def _factors(schema: Schema) -> Schema:
    """Return the part of a schema that is an adapter's."""
    return tuple((name, shape) for name, shape in schema if letter_of(name))


def _bytes(schema: Schema, codec: Codec) -> int:
    return sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in codec.layout(schema).values())


def _mean(numbers: Sequence[int]) -> float:
    return sum(numbers) / len(numbers)
