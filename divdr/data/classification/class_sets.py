"""Names of classification data sets in Detectron2's catalogue."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor

from ...errors import ConfigError, DataError
from ..folders import register_anew
from .class_mapper import ClassificationMapper
from .formats import Images, read_cifar, read_digits, read_fashion_mnist

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
    """Register ``digits_*``, ``fashion_mnist_*``, ``cifar10_*`` and ``cifar100_*``.

    Each has "train" and "test". Nothing is read until they are used, and names that exist already
    are given the new folder.

    Args:
        root: the folder that holds "fashion_mnist", "cifar-10-batches-py" or "-bin", and
            "cifar-100-python" or "-binary".
    """
    base = Path(root)
    cifar10 = _first(base / "cifar-10-batches-py", base / "cifar-10-batches-bin")
    cifar100 = _first(base / "cifar-100-python", base / "cifar-100-binary")
    fashion = base / "fashion_mnist"
    numbers = [str(i) for i in range(100)]
    for split in ("train", "test"):
        for name, classes, folder, read in (
            ("digits", numbers[:10], None, partial(read_digits, split)),
            ("fashion_mnist", _FASHION, fashion, partial(read_fashion_mnist, fashion, split)),
            ("cifar10", _CIFAR10, cifar10, partial(read_cifar, cifar10, split, 10)),
            # The names of its classes are in a file of their own; numbers tell them apart as well.
            ("cifar100", numbers, cifar100, partial(read_cifar, cifar100, split, 100)),
        ):
            _register(f"{name}_{split}", classes, folder, read)


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


def check_class_labels(cfg: CfgNode, names: Sequence[str], dicts: Sequence[dict]) -> None:
    """See that every image has a label that is a class of the model.

    Raises:
        ConfigError: the data set has another number of classes than the model.
        DataError: names the first image whose label is none.
    """
    key, count = "MODEL.CLASSIFIER.NUM_CLASSES", cfg.MODEL.CLASSIFIER.NUM_CLASSES
    classes = describe(names).classes
    if len(classes) != count:
        raise ConfigError(f"{key} is {count}, but data set {names[0]!r} has {len(classes)} classes")
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
    for start in range(0, len(dicts), size):
        items = [mapper(record) for record in dicts[start : start + size]]
        labels = torch.tensor([item["label"] for item in items])
        yield torch.stack([item["image"] for item in items]), labels


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


def _first(*folders: Path) -> Path:
    return next((folder for folder in folders if folder.is_dir()), folders[0])
