"""From a dataset dict to the input of a segmentation model in training."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from ..errors import ConfigError, DataError
from ..image_files import check_label_map, read_image, read_labels
from ..settings import InputSettings


class SemanticCropMapper:
    """Resize, crop, flip; pad to the crop size (DR's Cityscapes recipe).

    What is padded is the mean pixel in the image, which normalisation turns to 0, or black; and the
    ignored value in the labels.

    Args:
        augmentations: applied to image and labels together.
        image_format: as Detectron2 names it ("RGB", "BGR").
        crop_size: (rows, columns) that every image comes out with; None leaves its size.
        pixel_mean: of the model, one number a channel.
        num_classes: labels must be below it.
        ignore_value: label of pixels without a class.
        padding: what padded pixels are, the "mean" pixel or "black".

    Raises:
        ConfigError: ``padding`` is neither.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list,
        image_format: str,
        crop_size: tuple[int, int] | None,
        pixel_mean: list[float],
        num_classes: int,
        ignore_value: int,
        padding: str = InputSettings.crop_padding,
    ) -> None:
        known = InputSettings.choices("crop_padding")
        if padding not in known:
            raise ConfigError(
                f"INPUT.CROP_PADDING must be one of {', '.join(known)}, not {padding!r}"
            )
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.crop_size = crop_size
        mean = torch.tensor(pixel_mean).view(-1, 1, 1)
        self.padding = mean if padding == "mean" else torch.zeros_like(mean)
        self.num_classes = num_classes
        self.ignore_value = ignore_value

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments from ``cfg.INPUT`` and ``cfg.MODEL``."""
        augmentations: list = [
            T.ResizeShortestEdge(
                cfg.INPUT.MIN_SIZE_TRAIN,
                cfg.INPUT.MAX_SIZE_TRAIN,
                cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
            )
        ]
        crop_size = None
        if cfg.INPUT.CROP.ENABLED:
            augmentations.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
            if cfg.INPUT.CROP.TYPE == "absolute":
                crop_size = (int(cfg.INPUT.CROP.SIZE[0]), int(cfg.INPUT.CROP.SIZE[1]))
        if cfg.INPUT.RANDOM_FLIP != "none":
            vertical = cfg.INPUT.RANDOM_FLIP == "vertical"
            augmentations.append(T.RandomFlip(horizontal=not vertical, vertical=vertical))
        return {
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "crop_size": crop_size,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "padding": cfg.INPUT.CROP_PADDING,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """The dict with "image" (C, H, W) float and "sem_seg" (H, W) int64 added.

        Raises:
            DataError: no label, a file that cannot be read, sizes that differ, or a label value
                that is no class; the message names the file.
        """
        item = copy.deepcopy(dataset_dict)
        image, labels = self._read(item)
        aug_input = T.AugInput(image, sem_seg=labels)
        self.augmentations(aug_input)
        pixels = torch.from_numpy(aug_input.image.transpose(2, 0, 1).astype(np.float32))
        classes = torch.from_numpy(aug_input.sem_seg.astype(np.int64))
        item["image"], item["sem_seg"] = self._pad(pixels, classes)
        return item

    def _read(self, item: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        name = item["file_name"]
        if "sem_seg_file_name" not in item:
            raise DataError(f"image {name} has no label file")
        label_name = item.pop("sem_seg_file_name")
        image = read_image(name, self.image_format)
        labels = read_labels(label_name)
        check_label_map(
            labels,
            label_name,
            classes=self.num_classes,
            ignore=self.ignore_value,
            size=image.shape[:2],
        )
        return image, labels

    def _pad(self, image: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.crop_size is None:
            return image, labels
        rows, columns = self.crop_size
        height, width = labels.shape
        padded = self.padding.expand(-1, rows, columns).clone()
        padded[:, :height, :width] = image
        padded_labels = torch.full((rows, columns), self.ignore_value, dtype=labels.dtype)
        padded_labels[:height, :width] = labels
        return padded, padded_labels
