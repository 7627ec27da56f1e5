"""The one reader of image files and the one of label files.

Training, evaluation, prediction, calibration and pictures read by it, so that a file is the same
array everywhere, or refused everywhere by the same sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from .errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
"""Of files that are taken for images; their case does not matter."""

_DEPTH_16 = 65535


def read_image(path: str | Path, image_format: str) -> np.ndarray:
    """An image file as Detectron2's models take it.

    It is turned as its EXIF orientation says. Palettes are looked up, transparency is left out,
    16-bit grey images and floats from 0 to 1 are scaled to 8 bit; of an animation the first picture
    is read.

    Args:
        path: of the file.
        image_format: as Detectron2 names it: "RGB", "BGR", "L" or "YUV-BT.601".

    Returns:
        (H, W, C) uint8; for "YUV-BT.601" floats.

    Raises:
        DataError: the file is missing, damaged, no image, too large, or has grey levels of which
            nobody can tell what is white; the message names it.
    """
    with _opened(path) as picture:
        return picture_pixels(picture, image_format)


def picture_pixels(picture: Image.Image, image_format: str) -> np.ndarray:
    """The array of :func:`read_image` for a picture in memory.

    Raises:
        DataError: see there.
    """
    picture = _in_8_bit(ImageOps.exif_transpose(picture))
    # A copy, since transforms may write into it, and Pillow's own array may not be.
    return np.array(convert_PIL_to_numpy(picture, image_format), order="C")


def read_labels(path: str | Path) -> np.ndarray:
    """Whole numbers of a label file: grey levels of any depth, or indices into its palette.

    Args:
        path: of the file.

    Returns:
        (H, W) uint8 where the values fit, else int32.

    Raises:
        DataError: the file is missing, damaged, no image, in colours, or holds fractions; the
            message names it.
    """
    with _opened(path) as picture:
        labels = np.asarray(ImageOps.exif_transpose(picture))
        _check_one_channel(picture)
        if labels.dtype.kind == "f":
            whole = np.nan_to_num(labels, nan=0.5).round().astype(np.int32)
            if not np.array_equal(whole, labels):
                raise DataError("it holds fractions, and must hold numbers of classes")
            labels = whole
    # Detectron2 resizes labels of 8 bit by Pillow, as it does images, and others by PyTorch.
    small = labels.size and labels.min() >= 0 and labels.max() <= 255
    return labels.astype(np.uint8) if small else labels.astype(np.int32)


def read_raw(path: str | Path) -> np.ndarray:
    """The numbers of a file as they are, for labels that are colours by their format (panoptic).

    Raises:
        DataError: the file is missing, damaged or no image; the message names it.
    """
    with _opened(path) as picture:
        return np.asarray(ImageOps.exif_transpose(picture))


def image_size(path: str | Path) -> tuple[int, int, str]:
    """(rows, columns, Pillow's mode), by the head of a file alone.

    Raises:
        DataError: the file is missing, damaged or no image; the message names it.
    """
    with _opened(path) as picture:
        return (*_turned_size(picture), picture.mode)


def label_size(path: str | Path) -> tuple[int, int]:
    """(rows, columns) of a label file, by its head alone.

    Raises:
        DataError: the file is missing, damaged, no image or in colours; the message names it.
    """
    with _opened(path) as picture:
        _check_one_channel(picture)
        return _turned_size(picture)


def check_label_map(
    labels: np.ndarray,
    path: str | Path,
    *,
    classes: int,
    ignore: int,
    size: tuple[int, int] | None = None,
) -> None:
    """See that labels are classes, and as large as their image.

    Args:
        labels: (H, W), of :func:`read_labels`.
        path: of their file, for messages.
        classes: values must be below it.
        ignore: value of pixels without a class.
        size: (rows, columns) of the image; None: not known.

    Raises:
        DataError: they are not; the message names the file.
    """
    if size is not None and labels.shape != tuple(size):
        raise DataError(
            f"label file {path} is {labels.shape[0]}×{labels.shape[1]} pixels, its image "
            f"{size[0]}×{size[1]}"
        )
    wrong = np.unique(labels[((labels >= classes) | (labels < 0)) & (labels != ignore)])
    if len(wrong):
        raise DataError(
            f"label file {path} holds {', '.join(map(str, wrong[:5]))}; classes are 0 to "
            f"{classes - 1}, and {ignore} is ignored"
        )


def image_files(folder: str | Path) -> list[Path]:
    """Image files in a folder, by name; hidden ones are left out."""
    return sorted(
        file
        for file in Path(folder).iterdir()
        if file.suffix.lower() in ENDINGS and not file.name.startswith(".") and file.is_file()
    )


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """A picture of which everything that goes wrong, here and inside the block, names its file."""
    name = str(path)
    try:
        with PathManager.open(name, "rb") as file, Image.open(file) as picture:
            yield picture
    except FileNotFoundError:
        raise DataError(f"file {name} does not exist") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise DataError(
            f"file {name} cannot be read as an image: it has more than {limit:.0f} million pixels; "
            "cut it into tiles"
        ) from None
    except DataError as error:
        raise DataError(f"file {name} cannot be used: {error}") from None
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"file {name} cannot be read as an image ({reason})") from None


def _turned_size(picture: Image.Image) -> tuple[int, int]:
    columns, rows = picture.size
    turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (columns, rows) if turned else (rows, columns)


def _check_one_channel(picture: Image.Image) -> None:
    if len(picture.getbands()) > 1:
        raise DataError(
            f"it is in colours (mode {picture.mode}), and must have one channel, the numbers of "
            "the classes"
        )


def _in_8_bit(picture: Image.Image) -> Image.Image:
    """The picture with levels from 0 to 255, where Pillow's own conversion would cut them off."""
    if picture.mode == "F":
        levels = np.asarray(picture)
        if not (np.isfinite(levels).all() and levels.min() >= 0 and levels.max() <= 1):
            raise DataError(
                f"its levels are floats from {levels.min():g} to {levels.max():g}; floats must be "
                "from 0, black, to 1, white"
            )
        return Image.fromarray(np.round(levels * 255).astype(np.uint8))
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.int64)
        if levels.min() < 0 or levels.max() > _DEPTH_16:
            raise DataError(
                f"its levels are from {levels.min()} to {levels.max()}; whole numbers of more than "
                "8 bit must be from 0, black, to 65535, white"
            )
        return Image.fromarray(np.round(levels / (_DEPTH_16 / 255)).astype(np.uint8))
    if picture.mode in ("P", "PA") and "transparency" in picture.info:
        return picture.convert("RGBA")  # Pillow warns of transparency that a palette would lose
    return picture
