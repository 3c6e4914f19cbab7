"""A and B as PEFT names and shapes them in an adapter folder."""

from torch import Tensor

from fedasym.adapters.layers import AdaptedConv, AdaptedEmbedding, AdaptedLinear


def peft_tensors(key: str, layer: AdaptedLinear) -> dict[str, Tensor]:
    """Return A and B as PEFT names and shapes them: a convolution's are kernels, B's of size 1.

    Args:
        key: the layer's path in PEFT's model.
        layer: adapted.

    Returns:
        A and B in this order, float32, by name; none for a convolution with a dilation or another padding than zeros,
        of which PEFT's update knows nothing.
    """
    A, B, base = layer.A.detach().float().contiguous(), layer.B.detach().float().contiguous(), layer.base
    if isinstance(layer, AdaptedEmbedding):
        return {f"{key}.lora_embedding_A": A, f"{key}.lora_embedding_B": B}
    if isinstance(layer, AdaptedConv):
        if base.padding_mode != "zeros" or any(step != 1 for step in base.dilation):
            return {}
        A, B = A.reshape(-1, *base.weight.shape[1:]), B.reshape(*B.shape, *(1 for _ in base.kernel_size))
    return {f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}
