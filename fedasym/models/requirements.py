"""What a model must be before anything is built on it: of the wanted kind, whole, at one with its tokenizer."""

import logging
from collections.abc import Collection
from typing import Any

from torch import nn

from fedasym.models.model_files import source_of
from fedasym.models.settings import ModelSettings
from fedasym.tasks.next_tokens import position_tables

_KINDS = {  # what to do about a model that is not of the class that a task wants
    "AutoModelForSeq2SeqLM": "the task is for models with an encoder and a decoder, such as BART or T5: set model to "
    "one, or task to 'summarize-causal' for a model with a decoder alone",
    "AutoModelForCausalLM": "the task is for models with a decoder alone, such as LLaMA or GPT-2: set model to one, or "
    "task to 'summarize' for a model with an encoder and a decoder",
    "AutoModelForSequenceClassification": "the task is for models that classify texts, such as BERT or RoBERTa: set "
    "model to one",
    "AutoModelForImageClassification": "the task is for models that classify images, such as ViT: set model to one",
}

log = logging.getLogger("fedasym")


def require_model(settings: ModelSettings, source: str) -> None:
    """Require a model, and no adapter and no code, in what `source_of` names.

    Raises:
        ValueError: it is the folder of an adapter, whose base model transformers would load in its place, or a model
            that brings code of its own.
    """
    import transformers
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(source, revision=settings.revision):
        raise ValueError(
            f"model={settings.model!r} is a PEFT adapter, not a model: set model to its base model and init-adapter "
            "to this "
            "folder, or merge it into the base model (merge_and_unload, then save_pretrained) and set model to that"
        )
    raw, _ = transformers.PretrainedConfig.get_config_dict(source, revision=settings.revision)
    if "auto_map" in raw and raw.get("model_type") not in transformers.CONFIG_MAPPING:
        raise ValueError(
            f"model={settings.model!r} is of the type {raw.get('model_type')!r}, for which it brings code of its "
            "own, and no code comes with a model here; take one of a type that transformers knows"
        )


def require_kind(settings: ModelSettings, wanted: str) -> None:
    """Require a configuration for which transformers has a model of the class that the task wants.

    Of a model with an encoder transformers would make a causal one by dropping the encoder.
    """
    import transformers

    if wanted not in _KINDS:
        return
    source = source_of(settings.model, settings.revision)
    config = transformers.AutoConfig.from_pretrained(source, revision=settings.revision, trust_remote_code=False)
    known = {
        "AutoModelForCausalLM": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        "AutoModelForSeq2SeqLM": transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        "AutoModelForSequenceClassification": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "AutoModelForImageClassification": transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    }[wanted]
    both = bool(getattr(config, "is_encoder_decoder", False))
    writes = wanted in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    if type(config) not in known or (writes and both != (wanted == "AutoModelForSeq2SeqLM")):
        raise ValueError(
            f"model={settings.model!r} is configured by a {type(config).__name__}, which is no {wanted}: "
            f"{_KINDS[wanted]}"
        )


def require_whole(model: nn.Module, missing: Collection[str], settings: ModelSettings) -> None:
    """Require that the checkpoint holds all of a model whose own head stays: nothing of it is drawn."""
    if lacking := sorted({name for name, _ in model.named_parameters()} & {*missing}):
        raise ValueError(
            f"model {settings.model!r} has no {', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}: the task "
            "trains no head of its own, so the checkpoint must hold the model's; take one that was saved with it"
        )


def require_positions(model: nn.Module, settings: ModelSettings, whole: int, decoder: int) -> None:
    """Require a row of every absolute position table for each token of an example; rotary positions have no table.

    RoBERTa's positions start after its padding id, BART's and OPT's after an offset of their own.

    Args:
        model: bare.
        settings: for the error.
        whole: tokens that the model reads of an example at most.
        decoder: those of its decoder, where it has one beside an encoder.
    """
    both = bool(getattr(model.config, "is_encoder_decoder", False))
    for name, table in position_tables(model):
        if isinstance(table, nn.Embedding):
            skipped = getattr(table, "offset", 0 if table.padding_idx is None else table.padding_idx + 1)
            usable = table.num_embeddings - skipped
            beside = both and "decoder" in name.split(".")
            wanted = decoder if beside else whole
            if wanted <= usable:
                continue
            there = f"the {usable} positions of model {settings.model!r} ({name})"
            if beside:
                raise ValueError(f"answer-length={wanted} exceeds {there}; set answer-length={usable} or less")
            if wanted == settings.max_length:
                raise ValueError(f"max-length={wanted} exceeds {there}; set max-length={usable} or less")
            raise ValueError(
                f"max-length={settings.max_length} and what the task reads beside it, {wanted} tokens, exceed {there}; "
                f"lower max-length by {wanted - usable}"
            )


def agree_on_tokens(model: Any, tokenizer: Any, settings: ModelSettings) -> None:
    """Let model and tokenizer agree on the padding, and require a row of the embedding for every token.

    A model that is told another padding id than its batches have takes padding for text, so that what else is in a
    batch changes its answers.

    Padding before a text would move its absolute positions: such models get it behind, whatever the tokenizer says.

    Raises:
        ValueError: a tokenizer without a token to pad with, a token that the embedding lacks, or positions counted
            around another padding id.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of model {settings.model!r} has neither a padding token nor an end-of-sequence token; "
                "give it one of them, and save it"
            )
        tokenizer.pad_token = tokenizer.eos_token
    pad, rows = tokenizer.pad_token_id, getattr(model.get_input_embeddings(), "num_embeddings", None)
    last, token = max((number, token) for token, number in tokenizer.get_vocab().items())
    if rows is not None and last >= rows:
        raise ValueError(
            f"the tokenizer of model {settings.model!r} knows {token!r} as id {last}, and the model's embedding has "
            f"{rows} rows; add them (resize_token_embeddings) and save it, or take the tokenizer that belongs to it"
        )
    for name, table in position_tables(model):
        around = getattr(table, "padding_idx", None)
        if around not in (None, pad):
            raise ValueError(
                f"model {settings.model!r} counts positions around the padding id {around} ({name}), and its tokenizer "
                f"pads with {tokenizer.pad_token!r}, id {pad}; set pad_token_id in its config.json to that, or take "
                "the tokenizer that belongs to it"
            )
    if tokenizer.padding_side == "left" and position_tables(model):
        log.info("model %r counts positions from the left, so its texts are padded on the right", settings.model)
        tokenizer.padding_side = "right"
    for config in (model.config, model.config.get_text_config()):
        if config.pad_token_id not in (None, pad):
            log.info(
                "model %r: its config.json pads with id %s, its tokenizer with %s; the tokenizer's is used",
                settings.model, config.pad_token_id, pad,
            )  # fmt: skip
        config.pad_token_id = pad


def head_linears(model: Any) -> dict[str, nn.Linear]:
    """Return the linear layers outside the base model, in the model's order."""
    if model.base_model is model:  # no part of it is called the base, as in T5: its head is what gives the words
        return {n: m for n, m in model.named_modules() if m is model.get_output_embeddings()}
    base = model.base_model_prefix + "."
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.startswith(base)}
