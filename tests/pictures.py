"""A small world of images: a tiny ViT, and drawings of two classes in three styles."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from fedasym.settings import Settings, from_run_config

STYLES = {"bright": (230, 40), "dark": (90, 0), "grey": (160, 120)}  # of the drawing and of what is behind it
CLASSES = ("bar", "ring")
NAMES = tuple(f"n{i:02}" for i in range(16))
HELD = NAMES[-4:]


def drawing(kind: str, style: str, number: int) -> np.ndarray:
    """An image ``(12, 12, 3)``: a bar or a ring, at a place of its own."""
    front, back = STYLES[style]
    y, x = np.indices((12, 12)) - 5 + (number % 4) - 2
    shape = abs(x) < 2 if kind == "bar" else (abs(np.hypot(x, y) - 3) < 1.2)
    pixels = np.where(shape, front, back)[..., None] + np.array([0, number % 7, 2 * (number % 3)])
    return pixels.astype(np.uint8)


def png(pixels: np.ndarray | Image.Image, **more: object) -> bytes:
    """Return an image as the bytes of a file."""
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, **{"format": "PNG", **more})
    return stream.getvalue()


def make_domains(folder: Path, styles: tuple[str, ...] = tuple(STYLES), division: bool = True) -> Path:
    """Write DOMAIN/CLASS/NAME.png: half of the names are of each class."""
    for style in styles:
        for i, name in enumerate(NAMES):
            kind = CLASSES[i % 2]
            (folder / style / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawing(kind, style, i)).save(folder / style / kind / f"{name}.png")
    if division:
        said = {"train": [n for n in NAMES if n not in HELD], "validation": list(HELD)}
        (folder / "split.json").write_text(json.dumps(said))
    (folder / "README.md").write_text("drawn by a test")
    return folder


def make_vit(folder: Path, **more: object) -> Path:
    """Save the base of a one-layer ViT for 8 x 8 pixels, and its processor."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(image_size=8, patch_size=4, initializer_range=0.3, **{**sizes, **more})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def image_values(root: Path, **more: object) -> dict[str, object]:
    """Return the run config of a federation of the domains bright and dark, two clients each, judged on grey."""
    if not (root / "vit").exists():
        make_vit(root / "vit")
        make_domains(root / "domains")
    values: dict[str, object] = {
        "task": "images", "image-layout": "domains", "data": str(root / "domains"), "test-split": "validation",
        "model": str(root / "vit"), "dtype": "float32", "hold-out-domain": "grey", "split": "domain:2",
        "num-clients": 4, "min-examples": 4, "num-rounds": 3, "local-steps": 3, "batch-size": 4, "rank": 4,
    }  # fmt: skip
    return values | {key.replace("_", "-"): value for key, value in more.items()}


def image_settings(root: Path, **more: object) -> Settings:
    """Return settings of that federation; keyword arguments override."""
    return from_run_config(image_values(root, **more))
