"""Data sets by name: registering one's own, checking that they are there, and loading them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import load_sem_seg
from torch.utils.data import DataLoader

from ..errors import DataError
from ..image_keys import name_images
from .checked_mapper import CheckedMapper
from .checks import check_annotations, check_images
from .classification.catalog import check_class_labels
from .classification.mapper import ClassificationMapper
from .coco_json import reading


def register_segmentation_folder(
    name: str,
    image_dir: str,
    label_dir: str,
    classes: Sequence[str],
    *,
    image_ext: str = "png",
    label_ext: str = "png",
    ignore_label: int = 255,
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> None:
    """Make a folder of images and label PNGs a Detectron2 data set.

    A label file has the name of its image; its pixels are class numbers from 0.

    Args:
        name: to use in ``cfg.DATASETS``.
        image_dir: folder of the images.
        label_dir: folder of the labels.
        classes: names, in the order of the numbers.
        image_ext: ending of image files.
        label_ext: ending of label files.
        ignore_label: value of pixels without a class.
        colors: one (R, G, B) per class for pictures.

    Raises:
        DataError: a folder is missing, or images are without labels.
    """

    def load() -> list[dict]:
        # Checked again when it is used: Detectron2 leaves out images without labels silently.
        _check_folders(name, image_dir, label_dir, image_ext, label_ext)
        return load_sem_seg(label_dir, image_dir, label_ext, image_ext)

    _check_folders(name, image_dir, label_dir, image_ext, label_ext)
    DatasetCatalog.register(name, load)
    metadata = MetadataCatalog.get(name)
    metadata.set(
        stuff_classes=list(classes),
        image_root=image_dir,
        sem_seg_root=label_dir,
        evaluator_type="sem_seg",
        ignore_label=ignore_label,
    )
    if colors is not None:
        metadata.set(stuff_colors=[tuple(c) for c in colors])


def check_datasets(names: Sequence[str]) -> None:
    """See that every named data set is registered and its folders and files exist.

    Raises:
        DataError: which data set, which folder, and what was expected in it.
    """
    for name in names:
        if name not in DatasetCatalog.list():
            raise DataError(
                f"data set {name!r} is not registered; see datasets/README.md, or register it "
                "before training"
            )
        metadata = MetadataCatalog.get(name).as_dict()
        for key, content in _EXPECTED.items():
            path = metadata.get(key)
            if path and not os.path.exists(path):
                raise DataError(
                    f"data set {name!r} expects {content} in {path}, which does not exist; data "
                    "sets are looked for under $DETECTRON2_DATASETS (default: datasets), see "
                    "datasets/README.md"
                )


def training_dicts(cfg: CfgNode, *, annotations: bool = True) -> list[dict]:
    """Dicts of all training images, filtered as Detectron2 does, with their keys, and checked.

    Args:
        cfg: the whole configuration.
        annotations: whether Detectron2's mapper is to work with the annotations.

    Raises:
        DataError: there are none, an annotation file is not as it must be, an image is missing, or
            an annotation does not suit the model.
    """
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise DataError("DATASETS.TRAIN names no data set")
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    with reading(names):
        try:
            with _naming_images(names):
                dicts = get_detection_dataset_dicts(
                    names,
                    filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
                    min_keypoints=keypoints,
                    proposal_files=(
                        cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
                    ),
                )
        except AssertionError:  # a wrong category, perhaps; Detectron2 does not say in which image
            for name in names if annotations else ():
                check_annotations(cfg, [name], DatasetCatalog.get(name))
            raise
    if isinstance(dicts, list):
        check_images(names, dicts)
        if annotations:
            check_annotations(cfg, names, dicts)
        _check_classification(cfg, names, dicts)
    return dicts


def build_test_loader(
    cfg: CfgNode, names: str | Sequence[str], images: int | None = None
) -> DataLoader:
    """A loader over every image of the data sets once, as Detectron2 evaluates them.

    Args:
        cfg: the whole configuration.
        names: of the data sets.
        images: at most so many, spread evenly over the data sets; None: all.

    Raises:
        DataError: there are no images, an annotation file is not as it must be, or an image is
            missing; from the loader, once it reads an image that cannot be used.
    """
    dicts = _evaluation_dicts(cfg, [names] if isinstance(names, str) else names)
    if images is not None and images < len(dicts):
        dicts = [dicts[i * len(dicts) // images] for i in range(images)]
    return _evaluation_loader(cfg, dicts)


def build_bank_loader(cfg: CfgNode, images: int | None = None, seed: int = 0) -> DataLoader:
    """A loader over this process's share of training images, as evaluation sees them.

    Args:
        cfg: the whole configuration.
        images: so many, drawn by the seed, the same on every process; None, or no fewer than there
            are: all.
        seed: any integer from 0.

    Raises:
        DataError: see :func:`training_dicts`; from the loader, an image cannot be used.
    """
    dicts = training_dicts(cfg, annotations=False)
    if images is not None and images < len(dicts):
        drawn = np.random.default_rng(seed).choice(len(dicts), images, replace=False)
        dicts = [dicts[index] for index in sorted(drawn.tolist())]
    unlabelled = [{k: v for k, v in d.items() if k not in _LABELS} for d in dicts]
    return _evaluation_loader(cfg, unlabelled)


def _evaluation_loader(cfg: CfgNode, dicts: list[dict]) -> DataLoader:
    return build_detection_test_loader(
        dicts,
        mapper=CheckedMapper(_evaluation_mapper(cfg)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        **_evaluation_batch(cfg),
    )


# What a pass for the bank does not read.
_LABELS = ("annotations", "sem_seg_file_name", "pan_seg_file_name", "segments_info")


@contextmanager
def _naming_images(names: Sequence[str]) -> Iterator[None]:
    """Let data sets say what each image is known by, before Detectron2 mixes and filters them."""
    loads = {name: DatasetCatalog[name] for name in {*names} & {*DatasetCatalog.list()}}
    for name, load in loads.items():
        DatasetCatalog[name] = partial(_named, name, load)
    try:
        yield
    finally:
        DatasetCatalog.update(loads)


def _named(name: str, load: Callable[[], Any]) -> Any:
    dicts = load()
    # Detectron2 also knows data sets that are no lists; their own items name their images.
    return name_images(name, dicts) if isinstance(dicts, list) else dicts


_EXPECTED = {
    "image_dir": "its images",
    "image_root": "its images",
    "gt_dir": "its labels",
    "sem_seg_root": "its labels",
    "json_file": "its annotations",
    "panoptic_root": "its panoptic labels",
}


def _check_folders(
    name: str, image_dir: str, label_dir: str, image_ext: str, label_ext: str
) -> None:
    for folder, what in ((image_dir, "images"), (label_dir, "labels")):
        if not os.path.isdir(folder):
            raise DataError(f"data set {name!r} expects its {what} in {folder}, which is no folder")
    images = _stems(image_dir, image_ext)
    if not images:
        raise DataError(f"data set {name!r}: {image_dir} holds no .{image_ext} images")
    missing = sorted(images - _stems(label_dir, label_ext))
    if missing:
        raise DataError(
            f"image {missing[0]}.{image_ext} of data set {name!r} has no label in {label_dir}"
            + (f", nor have {len(missing) - 1} others" if len(missing) > 1 else "")
        )


def _stems(folder: str, ext: str) -> set[str]:
    return {f[: -len(ext) - 1] for f in os.listdir(folder) if f.endswith("." + ext)}


def _evaluation_dicts(cfg: CfgNode, names: Sequence[str]) -> list[dict]:
    proposals = None
    if cfg.MODEL.LOAD_PROPOSALS:
        data = cfg.DATASETS
        files = dict(zip(data.TRAIN, data.PROPOSAL_FILES_TRAIN, strict=False))
        files.update(zip(data.TEST, data.PROPOSAL_FILES_TEST, strict=False))
        proposals = [files[name] for name in names]
    with reading(names), _naming_images(names):
        dicts = get_detection_dataset_dicts(
            list(names), filter_empty=False, proposal_files=proposals
        )
    if isinstance(dicts, list):
        check_images(names, dicts)
        _check_classification(cfg, names, dicts)
    return dicts


def _evaluation_mapper(cfg: CfgNode) -> Callable[[dict], Any]:
    if cfg.INPUT.DATASET_MAPPER_NAME == "classification":
        return ClassificationMapper(cfg, is_train=False)
    return DatasetMapper(cfg, is_train=False)


def _evaluation_batch(cfg: CfgNode) -> dict[str, int]:
    if cfg.INPUT.DATASET_MAPPER_NAME == "classification":
        return {"batch_size": max(1, cfg.INPUT.CLASSIFICATION.TEST_BATCH)}
    return {}


def _check_classification(cfg: CfgNode, names: Sequence[str], dicts: list[dict]) -> None:
    if cfg.INPUT.DATASET_MAPPER_NAME == "classification":
        check_class_labels(cfg, names, dicts)
