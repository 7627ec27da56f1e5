"""Names of classification data sets in Detectron2's catalogue."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import Tensor

from ...errors import ConfigError, DataError
from ...image_files import read_image
from ...settings import ClassificationInputSettings
from ..folders import register_anew
from .formats import Images, read_cifar, read_digits, read_fashion_mnist, read_imagenet32
from .published_lists import Listed, read_cub200, read_food101, read_tiny_imagenet, records_of
from .stacked_images import Augmentation, StackedImages

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
        tasks: names of the model's tasks; images say by "task_name" which is theirs. Empty: one.

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
        tasks: Sequence[str] = (),
    ) -> None:
        if image_format not in _MODES:
            raise ConfigError(f"INPUT.FORMAT must be L, RGB or BGR, not {image_format!r}")
        known = ClassificationInputSettings.choices("square")
        if square not in known:
            raise ConfigError(
                f"INPUT.CLASSIFICATION.SQUARE must be one of {', '.join(known)}, not {square!r}"
            )
        channels = 1 if image_format == "L" else 3
        if len(fill) != channels:
            raise ConfigError(
                f"INPUT.FORMAT {image_format} has {channels} channels, MODEL.PIXEL_MEAN {len(fill)}"
            )
        self.image_format = image_format
        self.size = size
        self.square = square
        self.augmentation = Augmentation(flip, pad_crop, cutout, torch.tensor(fill)[:, None, None])
        self.tasks = {name: number for number, name in enumerate(tasks)}

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
            "tasks": task_names(cfg),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """The dict with "image" (C, H, W) float added and its "pixels" taken out.

        With several tasks "task" is added, the number of the one that "task_name" names.

        Raises:
            DataError: a file that cannot be read, or the model has no such task.
        """
        item = self._described(dataset_dict)
        image = torch.from_numpy(self._pixels(dataset_dict).transpose(2, 0, 1).astype(np.float32))
        if self.image_format == "BGR":
            image = image.flip(0)
        item["height"], item["width"] = image.shape[1:]
        numbers = [int(torch.randint(end, ())) for end in self.augmentation.ends(*image.shape[1:])]
        item["image"] = self.augmentation(image[None], torch.tensor([numbers]))[0]
        return item

    def stacked(self, dicts: Sequence[dict[str, Any]]) -> StackedImages | None:
        """All images of dicts, which this then need not be called for, nor augments; None where
        one is a file, or they differ in size, or would be resized.

        Raises:
            DataError: the model has no such task.
        """
        # A class derived from this one may do anything.
        if type(self) is not ClassificationMapper or not all("pixels" in each for each in dicts):
            return None
        records = [self._described(each) for each in dicts]
        pixels = [each["pixels"] for each in dicts]
        return StackedImages.of(records, pixels, self.image_format, self.size)

    def _described(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        item = {key: value for key, value in dataset_dict.items() if key != "pixels"}
        if self.tasks and "task_name" in item:
            if item["task_name"] not in self.tasks:
                raise DataError(
                    f"image {item.get('file_name', item.get('image_id'))} is of task "
                    f"{item['task_name']!r}, for which the model has no readout"
                )
            item["task"] = self.tasks[item["task_name"]]
        return item

    def _pixels(self, record: dict[str, Any]) -> np.ndarray:
        """(H, W, C) uint8, squared and scaled."""
        pixels = record.get("pixels")
        dimensions = 2 if self.image_format == "L" else 3
        if not self.size and pixels is not None and pixels.ndim == dimensions:
            return pixels.reshape(*pixels.shape[:2], -1)  # there is nothing that PIL would do
        picture = self._squared(self._picture(record))
        return np.asarray(picture).reshape(picture.height, picture.width, -1)

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


_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


class Description(NamedTuple):
    """Of a data set's classes.

    Attributes:
        classes: names, by number.
        coarse: super-class of each class; None: there are none.
    """

    classes: list[str]
    coarse: list[int] | None


def register_published(root: str | os.PathLike[str]) -> None:
    """Register ``digits_*``, ``fashion_mnist_*``, ``cifar10_*``, ``cifar100_*``, ``imagenet32_*``,
    ``food101_*``, ``cub200_*`` and ``tiny_imagenet_*``.

    Each has "train" and "test". Nothing is read until they are used, and names that exist already
    are given the new folder.

    Args:
        root: the folder that holds "fashion_mnist", "cifar-10-batches-py" or "-bin",
            "cifar-100-python" or "-binary", "imagenet32", "food-101", "CUB_200_2011" and
            "tiny-imagenet-200".
    """
    base = Path(root)
    cifar10 = _first(base / "cifar-10-batches-py", base / "cifar-10-batches-bin")
    cifar100 = _first(base / "cifar-100-python", base / "cifar-100-binary")
    fashion = base / "fashion_mnist"
    imagenet32 = base / "imagenet32"
    numbers = [str(i) for i in range(1000)]
    for split in ("train", "test"):
        for name, classes, folder, read in (
            ("digits", numbers[:10], None, partial(read_digits, split)),
            ("fashion_mnist", _FASHION, fashion, partial(read_fashion_mnist, fashion, split)),
            ("cifar10", _CIFAR10, cifar10, partial(read_cifar, cifar10, split, 10)),
            # The names of its classes are in a file of their own; numbers tell them apart as well.
            ("cifar100", numbers[:100], cifar100, partial(read_cifar, cifar100, split, 100)),
            ("imagenet32", numbers, imagenet32, partial(read_imagenet32, imagenet32, split)),
        ):
            _register(f"{name}_{split}", classes, folder, read)
        food, birds = base / "food-101", base / "CUB_200_2011"
        _register_listed(
            f"food101_{split}", numbers[:101], food, partial(read_food101, food, split)
        )
        _register_listed(
            f"cub200_{split}", numbers[:200], birds, partial(read_cub200, birds, split)
        )
        tiny = base / "tiny-imagenet-200"
        _register_listed(
            f"tiny_imagenet_{split}", numbers[:200], tiny, partial(read_tiny_imagenet, tiny, split)
        )


def describe(names: Sequence[str]) -> Description:
    """The classes of data sets that are used together.

    Raises:
        ConfigError: one is no classification data set, or their classes differ.
    """
    found = []
    for name in names:
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") != "classification":
            raise ConfigError(f"data set {name!r} is none of image classification")
        found.append(list(metadata.get("classes", ())))
    if any(classes != found[0] for classes in found):
        raise ConfigError(f"data sets {', '.join(names)} have different classes")
    return Description(found[0], MetadataCatalog.get(names[0]).get("coarse"))


def task_names(cfg: CfgNode) -> list[str]:
    """The tasks of a model, as the metadata "task" of ``DATASETS.TRAIN`` names them, each once.

    A data set that names none is a task of its own. Empty for a model of one task.
    """
    if not cfg.MODEL.CLASSIFIER.PER_EXAMPLE.TASKS:
        return []
    found = [MetadataCatalog.get(name).get("task", name) for name in cfg.DATASETS.TRAIN]
    return list(dict.fromkeys(found))


def check_class_labels(cfg: CfgNode, names: Sequence[str], dicts: Sequence[dict]) -> None:
    """See that every image has a label that is a class of the model; of several tasks, of any.

    Raises:
        ConfigError: the data set has another number of classes than the model.
        DataError: names the first image whose label is none.
    """
    key, count = "MODEL.CLASSIFIER.NUM_CLASSES", cfg.MODEL.CLASSIFIER.NUM_CLASSES
    if cfg.MODEL.CLASSIFIER.PER_EXAMPLE.TASKS:
        count = max(cfg.MODEL.CLASSIFIER.PER_EXAMPLE.TASKS)
    else:
        classes = describe(names).classes
        if len(classes) != count:
            raise ConfigError(
                f"{key} is {count}, but data set {names[0]!r} has {len(classes)} classes"
            )
    for record in dicts:
        label = record.get("label")
        if not isinstance(label, int) or not 0 <= label < count:
            where = record.get("file_name", record.get("image_id"))
            raise DataError(f"image {where} has label {label!r}; classes are 0 to {count - 1}")


def classification_batches(
    cfg: CfgNode, names: Sequence[str], size: int = 256
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once as in evaluation: (N, C, H, W) not yet normalised, and labels (N,).

    Args:
        cfg: the whole configuration.
        names: data sets.
        size: images a batch.
    """
    dicts = [record for name in names for record in DatasetCatalog.get(name)]
    check_class_labels(cfg, names, dicts)
    mapper = ClassificationMapper(cfg, is_train=False)
    stacked = mapper.stacked(dicts)
    for start in range(0, len(dicts), size):
        part = dicts[start : start + size]
        labels = torch.tensor([item["label"] for item in part])
        if stacked is None:
            yield torch.stack([mapper(item)["image"] for item in part]), labels
        else:
            yield stacked.images(range(start, start + len(part))).float(), labels


def _register(
    name: str, classes: Sequence[str], folder: Path | None, read: Callable[[], Images]
) -> None:
    def load() -> list[dict]:
        images = read()
        if images.coarse is not None:
            MetadataCatalog.get(name).set(coarse=images.coarse)
        return [
            {"pixels": pixels, "image_id": f"{name}/{index:05d}", "label": int(label)}
            for index, (pixels, label) in enumerate(zip(*images[:2], strict=True))
        ]

    metadata = {"classes": list(classes), "evaluator_type": "classification"}
    if folder is not None:
        metadata["image_root"] = str(folder)
    register_anew(name, load, **metadata)


def _register_listed(
    name: str, classes: Sequence[str], folder: Path, read: Callable[[], Listed]
) -> None:
    metadata = {"classes": list(classes), "evaluator_type": "classification"}
    register_anew(name, lambda: records_of(name, read()), image_root=str(folder), **metadata)


def _first(*folders: Path) -> Path:
    return next((folder for folder in folders if folder.is_dir()), folders[0])
