"""How the models that read texts here cut them: into sentences, and into the pieces of a byte-level BPE."""

import re
from collections.abc import Sequence
from typing import Any

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # as in RoBERTa and BART
START, PAD, END, _, MASK = range(len(SPECIAL))


def make_tokenizer(texts: Sequence[str], words: int, longest: int, *, lower: bool = False) -> Any:
    """Return a byte-level BPE tokenizer of texts, with RoBERTa's special tokens around a text, or a pair.

    Args:
        texts: what it is made of.
        words: tokens of the vocabulary at most.
        longest: tokens that the model reads at most.
        lower: read capital letters as small ones.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    if lower:
        raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # a first word is the word of any other place
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=[*SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", START), ("</s>", END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        mask_token="<mask>", cls_token="<s>", sep_token="</s>", model_max_length=longest,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def sentences_of(text: str) -> list[str]:
    """Cut a text after full stops, question and exclamation marks that a space follows.

    >>> sentences_of("Reads files. Writes them too! See v1.2 there")
    ['Reads files.', 'Writes them too!', 'See v1.2 there']
    """
    return [part for part in re.split(r"(?<=[.!?])\s+", text) if part]
