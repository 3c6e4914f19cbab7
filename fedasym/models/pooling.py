"""A classifier of our own: an encoder, the mean of its token vectors, one output layer."""

from typing import Any

import torch
from torch import Tensor, nn


class MeanPooledClassifier(nn.Module):
    """An encoder, the mean of its token vectors under the attention mask, and one linear output layer.

    The pooling is that of the sentence-transformers models; a ``[CLS]`` vector was never trained there. Of a pair
    whose texts stand apart, with pooled vectors u and v, the output layer sees ``[|u − v|, u ⊙ v]`` (after Reimers and
    Gurevych 2019, arXiv 1908.10084, and Conneau et al. 2017, arXiv 1705.02364).
    """

    base_model_prefix = "encoder"

    @property
    def base_model(self) -> nn.Module:
        """The encoder, as in the models of transformers."""
        encoder: nn.Module = self.encoder
        return encoder

    def get_input_embeddings(self) -> Any:
        """Return the encoder's embedding of tokens, as the models of transformers do."""
        return self.encoder.get_input_embeddings()

    def __init__(self, encoder: Any, features: int, num_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.output = nn.Linear(features, num_labels)
        self.config = encoder.config

    def forward(self, **inputs: Tensor) -> Any:
        """Return logits ``(n, num_labels)``.

        Args:
            **inputs: ``input_ids``, ``attention_mask`` and the like, ``(n, length)``; of a second text
                ``second_input_ids`` and so on, with a length of its own.
        """
        from transformers.modeling_outputs import SequenceClassifierOutput

        second = {key.removeprefix("second_"): value for key, value in inputs.items() if key.startswith("second_")}
        pooled = self._pool({key: value for key, value in inputs.items() if not key.startswith("second_")})
        if second:
            other = self._pool(second)
            pooled = torch.cat([(pooled - other).abs(), pooled * other], dim=-1)
        return SequenceClassifierOutput(logits=self.output(pooled))

    def _pool(self, inputs: dict[str, Tensor]) -> Tensor:
        hidden: Tensor = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def pooled(encoder: Any, pooling: str, num_labels: int) -> MeanPooledClassifier:
    """Put an output layer on an encoder's token vectors, pooled by their mean (``mean``, or ``pair`` for two texts)."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # it is not used, so nothing in it may train or travel
    features = encoder.config.hidden_size * (2 if pooling == "pair" else 1)
    return MeanPooledClassifier(encoder, features, num_labels)
