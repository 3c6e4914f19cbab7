"""A small vision transformer, pretrained on Fashion-MNIST in some minutes of two cores, saved as a hub's snapshot is.

``python -m simulations.pretrain.vit --data FOLDER --out FOLDER``; FOLDER has the four files of Fashion-MNIST (Xiao et
al. 2017, arXiv 1708.07747; in Debian the package dataset-fashion-mnist). No federation's data are among them.

A garment is drawn anew each time it is seen: turned by quarters, mirrored, moved, in one of eight hues, shaded, flat or
with a black outline, on white or on a pale ground. The model learns from its first token which garment it is, how it is
turned (after Gidaris et al. 2018, arXiv 1803.07728) and which hue it has: shape and colour, whatever the style.
"""

import argparse
import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedasym.adapters.projection import seeded_normal
from fedasym.models import device
from fedasym.ops.processes import cores
from fedasym.rng import generator
from simulations.pretrain import pretraining

FILES = (  # of training and of test garments
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
)
STEPS = 1000
SIDE = 48  # pixels of an image
QUESTIONS = {"garment": 10, "turn": 4, "hue": 8}  # with the number of answers
_MODEL = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 8,
}  # fmt: skip
_BATCH = 128
_RECIPE = pretraining.Recipe(1e-3, warmup=0.05, decay=0.05)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes.

    Raises:
        FileNotFoundError: there is none; says where it comes from.
        ValueError: it is no such file, or shorter than its header says.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; Fashion-MNIST has it, in Debian the package dataset-fashion-mnist"
        )
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} begins with {raw[:4].hex()}, and an IDX file of bytes with 000008; fetch it again")
    shape = [int.from_bytes(raw[start : start + 4], "big") for start in range(4, 4 + 4 * raw[3], 4)]
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if len(values) != math.prod(shape):
        raise ValueError(f"{path} holds {len(values)} bytes, and its header says {shape}; fetch it again")
    return values.reshape(shape)


def draw(garments: NDArray[np.uint8], rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw garments anew.

    Args:
        garments: ``(n, 28, 28)``, 0 is the ground.
        rng: the stream to draw from.

    Returns:
        Pixels as the model reads them, ``(n, 3, SIDE, SIDE)`` from -1 to 1, and the answers on turn and hue, ``(n,)``.
    """
    n = len(garments)
    turn, hue = rng.integers(0, 4, n), rng.integers(0, QUESTIONS["hue"], n)
    angle, size = turn * (math.pi / 2), rng.uniform(0.55, 1.0, n)
    mirror = rng.choice([-1.0, 1.0], n)
    place = rng.uniform(-0.9, 0.9, (n, 2)) * (1.0 - size)[:, None]
    # From a place of the picture to one of the garment: moved, made larger, turned, mirrored.
    cos, sin = np.cos(angle), np.sin(angle)
    rows = np.array([[cos * mirror, sin * mirror], [-sin, cos]]).transpose(2, 0, 1) / size[:, None, None]
    shift = -(rows @ place[:, :, None])
    grid = F.affine_grid(_tensor(np.concatenate([rows, shift], 2)), [n, 1, SIDE, SIDE], align_corners=False)
    light = F.grid_sample(_tensor(garments[:, None] / 255.0), grid, align_corners=False)
    cover = (light * 4).clamp(max=1)
    style = rng.integers(0, 3, n)  # shaded, flat, outlined
    light = torch.where(_tensor(style > 0)[:, None, None, None] > 0, torch.full_like(light, 0.8), light)
    outline = (F.max_pool2d(cover, 3, 1, 1) + F.max_pool2d(-cover, 3, 1, 1)).clamp(0, 1)
    outline = outline * _tensor(style == 2)[:, None, None, None]
    colour = _tensor(_colours((hue + rng.uniform(-0.35, 0.35, n)) / QUESTIONS["hue"], rng.uniform(0.5, 1.0, n)))
    ground = _tensor(np.where(rng.random((n, 1)) < 0.5, 1.0, rng.uniform(0.75, 1.0, (n, 3))))
    inside = colour[:, :, None, None] * (0.25 + 0.75 * light)
    pixels = ground[:, :, None, None] * (1 - cover) + inside * cover
    pixels = pixels * (1 - outline)
    return pixels * 2 - 1, {"turn": torch.from_numpy(turn), "hue": torch.from_numpy(hue)}


def _colours(hue: NDArray[np.float64], depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return bright RGB colours ``(n, 3)`` of hues from 0 to 1, the paler the less deep."""
    wheel = np.abs((hue[:, None] * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return np.asarray(1 - depth[:, None] * (1 - np.clip(wheel, 0, 1)), np.float64)


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def make_model(seed: int) -> Any:
    """Return an untrained model whose outputs are the answers to all questions; every value is drawn from the seed."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(image_size=SIDE, num_labels=sum(QUESTIONS.values()), **_MODEL)
    with torch.random.fork_rng(devices=[]):
        model = ViTForImageClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.from_numpy(seeded_normal(seed, name, tuple(parameter.shape), 0.02)))
    return model


def losses(logits: Tensor, answers: dict[str, Tensor]) -> Tensor:
    """Return the sum of the questions' mean cross-entropies."""
    parts = dict(zip(QUESTIONS, torch.split(logits, [*QUESTIONS.values()], dim=-1), strict=True))
    return torch.stack([F.cross_entropy(parts[name], answers[name]) for name in QUESTIONS]).sum()


def pretrain(data: Path, out: Path, steps: int, seed: int = 0) -> dict[str, float]:
    """Pretrain and save base model and image processor; return the shares of right answers on the test garments.

    Args:
        data: folder of Fashion-MNIST.
        out: folder to write; the setting ``model`` takes it.
        steps: of 128 garments each.
        seed: of the initial values, and of what is drawn.

    Raises:
        FileNotFoundError, ValueError: as `read_idx`.
        FloatingPointError: the loss is not finite.
    """
    from transformers import ViTImageProcessorPil

    (images, labels), held_out = ((read_idx(data / a), read_idx(data / b)) for a, b in FILES)
    device.prepare(torch.device("cpu"), cores(), deterministic=True)
    model = make_model(seed).train()

    def batches() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for step in range(steps):
            rng = generator(seed, "pretrain", step)
            places = rng.integers(0, len(images), _BATCH)
            pixels, answers = draw(images[places], rng)
            yield pixels, {**answers, "garment": _ids(labels[places])}

    def loss_of(batch: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
        return losses(model(pixel_values=batch[0]).logits, batch[1])

    pretraining.train(model, batches(), loss_of, steps, _RECIPE)
    found = judge(model.eval(), *held_out, seed)
    model.vit.save_pretrained(out)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(out)
    return found


def judge(model: Any, images: NDArray[np.uint8], labels: NDArray[np.uint8], seed: int) -> dict[str, float]:
    """Return the share of right answers to each question on garments, each drawn once."""
    right = dict.fromkeys(QUESTIONS, 0)
    for start in range(0, len(images), 500):
        pixels, answers = draw(images[start : start + 500], generator(seed, "judge", start))
        answers["garment"] = _ids(labels[start : start + 500])
        with torch.no_grad():
            parts = torch.split(model(pixel_values=pixels).logits, [*QUESTIONS.values()], dim=-1)
        for name, part in zip(QUESTIONS, parts, strict=True):
            right[name] += int((part.argmax(-1) == answers[name]).sum())
    return {name: count / len(images) for name, count in right.items()}


def _ids(labels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def main() -> None:
    """Pretrain as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m simulations.pretrain.vit", description="Pretrain a small ViT.")
    data = Path("/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data", type=Path, default=data, metavar="DIR", help="of Fashion-MNIST (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the model")
    parser.add_argument("--steps", type=int, default=STEPS, help="of 128 garments (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (%(default)s)")
    told = parser.parse_args()
    found = pretrain(told.data, told.out, told.steps, told.seed)
    print(f"{told.out}: " + ", ".join(f"{name} {share:.3f}" for name, share in found.items()))


if __name__ == "__main__":
    main()
