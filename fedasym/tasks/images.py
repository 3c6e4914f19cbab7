"""Classification of images by what transformers' AutoModelForImageClassification builds, vision transformers first.

An image is its file's bytes until its model's own processor makes pixel values of it (resized, normalised). They are
kept as float32 as long as a client's take no more than `KEPT` bytes (5,461 images of 3 · 64², 445 of 3 · 224²); beyond
that each batch makes its own again, to the same bits. Images are read as RGB: transparency is dropped, of an animation
the first picture is read, and what a camera says of its orientation is not followed.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedasym.ops import extras
from fedasym.tasks.base import Encoded, Examples, Inputs, Task, Told
from fedasym.tasks.columns import one_row, rows_of
from fedasym.tasks.targets import Classes

if TYPE_CHECKING:
    from torch import Tensor

    from fedasym.tasks.settings import TaskSettings

LAYOUTS = ("table", "domains", "classes")
KEPT = 1 << 28  # bytes of pixel values that a client keeps
LARGEST = 1 << 26  # pixels of one image: 200 MB once it is decoded
_SMALL = (96, 96)  # pixels of an image that stands beside text
# Those that hold pixels and no program: PostScript, which Pillow reads too, is handed to another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True)
class Picture:
    """An image as it is stored; ``bytes(picture)`` is its file's content.

    Attributes:
        name: its file, or where in a table it stands.
        raw: its bytes where it stands in a table; None: the file's.
    """

    name: str
    raw: bytes | None = None

    def __bytes__(self) -> bytes:
        return Path(self.name).read_bytes() if self.raw is None else self.raw

    def pixels(self) -> NDArray[np.uint8]:
        """Return the image as RGB, uint8 ``(height, width, 3)``.

        Raises:
            ValueError: it cannot be decoded whole, or is too large; names it.
        """
        with self._opened() as image:
            return np.asarray(image.convert("RGB"))

    def small(self) -> bytes:
        """Return it as a PNG of at most 96 x 96 pixels.

        Raises:
            ValueError: as `pixels`.
        """
        stream = io.BytesIO()
        with self._opened() as image:
            rgb = image.convert("RGB")
            rgb.thumbnail(_SMALL)
            rgb.save(stream, format="PNG")
        return stream.getvalue()

    def require_image(self) -> None:
        """Require that it begins as an image of a size that can be decoded; the rest is not looked at.

        Raises:
            ValueError: it does not; names it.
        """
        with self._opened():
            pass

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with extras.named():
            from PIL import Image
        raw = bytes(self)
        if not raw:
            raise ValueError(f"{self.name}: is empty, and should be an image; replace or remove it")
        wrong = ""
        try:
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                if image.width * image.height > LARGEST:
                    wrong = f"has {image.width} x {image.height} pixels, more than {LARGEST}; make it smaller"
                elif image.mode not in _EIGHT_BITS:
                    wrong = f"has pixels of mode {image.mode!r}, which are no 8 bits a channel; write it as 8 bits"
                else:
                    yield image
        except Exception as error:  # decoders raise what they like
            wrong = f"cannot be decoded as one of {', '.join(FORMATS)} ({type(error).__name__}: {error}); replace it"
        if wrong:
            raise ValueError(f"{self.name}: {wrong}")


@dataclass(frozen=True)
class Images:
    """One image in each row: a `Path`, bytes, or a dictionary that has ``bytes``, as the hub's tables have it.

    Attributes:
        column: where it stands.
        kept: bytes of pixel values that are kept for the examples of one client.
    """

    column: str
    kept: int = KEPT
    model_class = "AutoModelForImageClassification"
    processor_class = "AutoImageProcessor"
    pooling = "model"

    @property
    def columns(self) -> tuple[str, ...]:
        """The image column."""
        return (self.column,)

    @property
    def asked(self) -> Inputs:
        """The object itself."""
        return self

    def row(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the image's file, of which the path is given."""
        return {column: Path(word) for column, word in one_row(self.columns, words).items()}

    def told(self, examples: Examples) -> list[Told]:
        """Return the name of each image's file, or where in a table it stands, and the image, small."""
        return [
            Told(Path(picture.name).name if picture.raw is None else picture.name, picture=picture.small())
            for picture in examples.inputs[0]
        ]

    def read(self, frame: Any, split: str) -> tuple[list[Picture], ...]:
        """Return the images, of each of which the beginning was looked at."""
        pictures = [
            _picture(cell, f"{row}, column {self.column!r}")
            for row, cell in zip(rows_of(frame, split), frame[self.column].tolist(), strict=True)
        ]
        for picture in pictures:
            picture.require_image()
        return (pictures,)

    def positions(self, processor: Any, max_length: int) -> tuple[int, int]:
        """Return none: the processor gives every image the size that the model has positions for."""
        return 0, 0

    def probe(self, processor: Any) -> tuple[list[NDArray[np.uint8]], ...]:
        """Return three fixed images of different sizes: two slopes of colour and a chessboard each."""
        sizes = ((48, 64), (64, 48), (40, 40))
        return ([np.roll(_drawn(*size), turn, axis=-1) for turn, size in enumerate(sizes)],)

    def encode(self, processor: Any, examples: Examples, max_length: int, pooling: str = "model") -> Encoded:
        """Return the images as pixel values, or, where those are too many, as they are stored; each is decoded now.

        Raises:
            ValueError: an image that cannot be decoded, or of another size than the first once it is processed.
        """
        (cells,) = examples.inputs
        items: list[Any] = []
        first: tuple[int, ...] = ()
        keep = True
        for cell in cells:
            pixels = pixel_values(processor, cell)
            if not items:
                first, keep = pixels.shape, pixels.nbytes * len(cells) <= self.kept
            if pixels.shape != first:
                raise ValueError(
                    f"{_name(cell)}: the model's processor makes pixel values {pixels.shape} of it, and {first} of "
                    f"{_name(cells[0])}; take a model whose processor has one size, or images of one size"
                )
            items.append(pixels if keep else cell)
        one = np.ones(len(items), np.int64)
        return Encoded(items, one, examples.labels, one)

    def collate(self, processor: Any, encoded: Encoded, places: Sequence[int]) -> "tuple[dict[str, Tensor], Tensor]":
        """Return pixel values ``(n, channels, height, width)``, float32, and class ids."""
        import torch

        pixels = np.stack([pixel_values(processor, encoded.items[i]) for i in places])
        return {"pixel_values": torch.from_numpy(pixels)}, torch.from_numpy(encoded.labels[np.asarray(places)])


def pixel_values(processor: Any, cell: Any) -> NDArray[np.float32]:
    """Return what a model's processor makes of an image, float32 ``(channels, height, width)``.

    Args:
        processor: the model's own.
        cell: a `Picture`, RGB pixels uint8 ``(height, width, 3)``, or what this function gave.

    Raises:
        ValueError: an image that cannot be decoded, or a processor that makes something else of it than one image.
    """
    if isinstance(cell, np.ndarray) and cell.dtype == np.float32:
        return cell
    rgb = cell.pixels() if isinstance(cell, Picture) else cell
    made = processor(images=rgb, input_data_format="channels_last", return_tensors="np")["pixel_values"]
    found = np.asarray(made, np.float32)
    if found.ndim != 4 or len(found) != 1:
        raise ValueError(
            f"{_name(cell)}: {type(processor).__name__} makes pixel values {found.shape} of one image, and (1, "
            "channels, height, width) are read; take a model of another kind"
        )
    one: NDArray[np.float32] = found[0]
    return one


def domain_names(folder: Path) -> tuple[str, ...]:
    """Return the domains of a folder in DomainBed's layout: its subfolders, but for hidden ones; none if it is none."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def images(settings: "TaskSettings") -> Task:
    """Return the classification of images as the settings lay them out.

    Of a folder of domains the domain that is held out judges, or all of them; the others' held-out images are judged
    by themselves, domain by domain.
    """
    column, label = (settings.image_column, settings.label_column)
    folder = Path(settings.data).expanduser() / settings.data_config
    domains = domain_names(folder) if settings.image_layout == "domains" else ()
    reads = {
        "text-columns": "",
        "label-column": label,
        "labels": ",".join(settings.label_names),
        "train-split": settings.train_split,
        "image-layout": settings.image_layout,
        "image-column": column,
    }
    return Task(
        settings.task, Images(column), Classes(label, settings.label_names), ("accuracy",), settings.data,
        settings.data_config, settings.train_split, settings.test_split,
        tuple((name, f"{settings.test_split}/{name}") for name in domains if name != settings.hold_out_domain),
        settings.label_names, reads, "set image-column and label-column", layout=settings.image_layout,
        hold_out=settings.hold_out_domain,
    )  # fmt: skip


def _picture(cell: Any, where: str) -> Picture:
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    if isinstance(cell, Path):  # as `fedasym.data` gives it; a bare text of a table from elsewhere opens no file
        return Picture(str(cell))
    if isinstance(cell, bytes | bytearray):
        return Picture(where, bytes(cell))
    raise ValueError(
        f"{where}: holds {type(cell).__name__}, and should hold an image's bytes, or a dictionary of its 'bytes', or "
        "in a local folder's table the path of its file"
    )


def _name(cell: Any) -> str:
    return cell.name if isinstance(cell, Picture) else "an image"


def _drawn(height: int, width: int) -> NDArray[np.uint8]:
    """Return an image by integer arithmetic alone: two slopes, and a chessboard of fields of 5 pixels."""
    y, x = np.indices((height, width))
    board = (x // 5 + y // 5) % 2 * 255
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), board], axis=-1).astype(np.uint8)


TASKS = {"images": images}
