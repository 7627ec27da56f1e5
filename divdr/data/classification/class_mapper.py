"""From a dataset dict to the input of an image classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from PIL import Image
from torch import Tensor

from ...errors import ConfigError
from ...image_files import read_image
from ...settings import ClassificationInputSettings

_MODES = {"L": "L", "RGB": "RGB", "BGR": "RGB"}


class ClassificationMapper:
    """Squares and scales an image; in training flips, pads and crops, and cuts out a square.

    The augmentations are those of the DynK-Hydra paper (Section 4) and of the ResNets that it
    compares with. All of them draw from PyTorch's generator.

    Args:
        image_format: "L", "RGB" or "BGR".
        size: of the square in pixels; 0 leaves images as they are.
        square: "pad" with black or "crop" the middle.
        flip: mirror every second image.
        pad_crop: pixels to pad on every side (black) before the old size is cropped anywhere.
        cutout: length of the square that is filled with the mean colour; its centre is any pixel.
        fill: mean colour, one number a channel.

    Raises:
        ConfigError: a setting is unknown.
    """

    @configurable
    def __init__(
        self,
        *,
        image_format: str,
        size: int = ClassificationInputSettings.size,
        square: str = ClassificationInputSettings.square,
        flip: bool = False,
        pad_crop: int = ClassificationInputSettings.pad_crop,
        cutout: int = ClassificationInputSettings.cutout,
        fill: tuple[float, ...] = (0.0,),
    ) -> None:
        if image_format not in _MODES:
            raise ConfigError(f"INPUT.FORMAT must be L, RGB or BGR, not {image_format!r}")
        if square not in ("pad", "crop"):
            raise ConfigError(
                f'INPUT.CLASSIFICATION.SQUARE must be "pad" or "crop", not {square!r}'
            )
        channels = 1 if image_format == "L" else 3
        if len(fill) != channels:
            raise ConfigError(
                f"INPUT.FORMAT {image_format} has {channels} channels, MODEL.PIXEL_MEAN {len(fill)}"
            )
        self.image_format = image_format
        self.size = size
        self.square = square
        self.flip = flip
        self.pad_crop = pad_crop
        self.cutout = cutout
        self.fill = torch.tensor(fill)[:, None, None]

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments from ``cfg.INPUT`` and ``cfg.MODEL``; no augmentation in evaluation.

        Raises:
            ConfigError: ``INPUT.RANDOM_FLIP`` is neither "none" nor "horizontal".
        """
        settings, flip = cfg.INPUT.CLASSIFICATION, cfg.INPUT.RANDOM_FLIP
        if flip not in ("none", "horizontal"):
            raise ConfigError(
                f'mapper "classification": INPUT.RANDOM_FLIP is none or horizontal, not {flip!r}'
            )
        return {
            "image_format": cfg.INPUT.FORMAT,
            "size": settings.SIZE,
            "square": settings.SQUARE,
            "flip": is_train and flip == "horizontal",
            "pad_crop": settings.PAD_CROP if is_train else 0,
            "cutout": settings.CUTOUT if is_train else 0,
            "fill": tuple(cfg.MODEL.PIXEL_MEAN),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """The dict with "image" (C, H, W) float added and its "pixels" taken out.

        Raises:
            DataError: a file that cannot be read.
        """
        item = {key: value for key, value in dataset_dict.items() if key != "pixels"}
        picture = self._squared(self._picture(dataset_dict))
        pixels = np.asarray(picture, np.float32).reshape(picture.height, picture.width, -1)
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        if self.image_format == "BGR":
            image = image.flip(0)
        item["image"] = self._augmented(image)
        item["height"], item["width"] = image.shape[1:]
        return item

    def _picture(self, record: dict[str, Any]) -> Image.Image:
        mode = _MODES[self.image_format]
        if "pixels" in record:
            return Image.fromarray(record["pixels"]).convert(mode)
        pixels = read_image(record["file_name"], mode)
        return Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels)

    def _squared(self, picture: Image.Image) -> Image.Image:
        if not self.size:
            return picture
        width, height = picture.size
        side = max(width, height) if self.square == "pad" else min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        if side == self.size:
            return square
        return square.resize((self.size, self.size), Image.Resampling.BILINEAR)

    def _augmented(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        if self.flip and _draw(2):
            image = image.flip(2)
        if self.pad_crop:
            room = self.pad_crop
            top, left = _draw(2 * room + 1), _draw(2 * room + 1)
            padded = F.pad(image, (room, room, room, room))
            image = padded[:, top : top + height, left : left + width]
        if self.cutout:
            top, left = _draw(height) - self.cutout // 2, _draw(width) - self.cutout // 2
            image = image.clone()
            rows = slice(max(0, top), max(0, top + self.cutout))
            columns = slice(max(0, left), max(0, left + self.cutout))
            image[:, rows, columns] = self.fill
        return image


def _draw(end: int) -> int:
    return int(torch.randint(end, ()))
