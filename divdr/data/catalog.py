"""Data sets by name: registering those that are prepared here, checking, and loading."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import BatchSampler, DataLoader

from ..config import SEVERAL_TASKS, task_config, task_numbers
from ..errors import DataError
from ..image_keys import name_images
from .checked_mapper import CheckedMapper, DetectionMapper
from .checks import check_annotations, check_images, checking_once
from .classification.class_sets import ClassificationMapper, check_class_labels
from .classification.stacked_images import StackedBatches, StackedLoader, as_they_come
from .coco_json import check_file, reading


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

    Of several tasks, each has the number of its own as "task".

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
    if cfg.MODEL.META_ARCHITECTURE == SEVERAL_TASKS:
        return [
            {**record, "task": task}
            for task in sorted({*map(task_numbers(cfg).__getitem__, names)})
            for record in training_dicts(task_config(cfg, task), annotations=annotations)
        ]
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    with reading(names):
        try:
            with _loading_by(names, _naming_images):
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


def evaluation_dicts(cfg: CfgNode, names: Sequence[str]) -> list[dict]:
    """Dicts of all images of data sets to evaluate on, with their keys, and checked.

    Raises:
        DataError: there are none, an annotation file is not as it must be, or an image is missing.
    """
    if cfg.MODEL.META_ARCHITECTURE == SEVERAL_TASKS:
        numbers = task_numbers(cfg)
        return [
            {**record, "task": numbers[name]}
            for name in names
            for record in evaluation_dicts(task_config(cfg, numbers[name]), [name])
        ]
    proposals = None
    if cfg.MODEL.LOAD_PROPOSALS:
        data = cfg.DATASETS
        files = dict(zip(data.TRAIN, data.PROPOSAL_FILES_TRAIN, strict=False))
        files.update(zip(data.TEST, data.PROPOSAL_FILES_TEST, strict=False))
        proposals = [files[name] for name in names]
    with reading(names), _loading_by(names, _naming_images):
        dicts = get_detection_dataset_dicts(
            list(names), filter_empty=False, proposal_files=proposals
        )
    if isinstance(dicts, list):
        check_images(names, dicts)
        _check_classification(cfg, names, dicts)
    return dicts


@contextmanager
def read_once(names: Sequence[str]) -> Iterator[None]:
    """Inside the block each data set is read from its files, and its annotations are checked, once,
    however often it is asked for.
    """
    with checking_once(), _loading_by(names, lambda name, load: cache(load)):
        yield


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
    dicts = evaluation_dicts(cfg, [names] if isinstance(names, str) else names)
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
    mapper = _evaluation_mapper(cfg)
    workers, batch = cfg.DATALOADER.NUM_WORKERS, _evaluation_batch(cfg)
    stacked = mapper.stacked(dicts) if isinstance(mapper, ClassificationMapper) else None
    if stacked is None:
        return build_detection_test_loader(
            dicts, mapper=CheckedMapper(mapper), num_workers=workers, batch_size=batch
        )
    return StackedLoader(
        StackedBatches(stacked),
        batch_sampler=BatchSampler(InferenceSampler(len(dicts)), batch, drop_last=False),
        num_workers=workers,
        collate_fn=as_they_come,
    )


# What a pass for the bank does not read.
_LABELS = ("annotations", "sem_seg_file_name", "pan_seg_file_name", "segments_info")


Load = Callable[[], Any]
"""Gives a data set's dicts."""


@contextmanager
def _loading_by(names: Sequence[str], change: Callable[[str, Load], Load]) -> Iterator[None]:
    """Inside the block data sets are loaded by what is made of their name and their own loading."""
    loads = {name: DatasetCatalog[name] for name in {*names} & {*DatasetCatalog.list()}}
    DatasetCatalog.update({name: change(name, load) for name, load in loads.items()})
    try:
        yield
    finally:
        DatasetCatalog.update(loads)


def _naming_images(name: str, load: Load) -> Load:
    """Let a data set say what each image is known by, before Detectron2 mixes and filters them.

    Images of a data set that is of a task get its name.
    """

    def named() -> Any:
        check_file(name)
        dicts = load()
        # Detectron2 also knows data sets that are no lists; their own items name their images.
        if not isinstance(dicts, list):
            return dicts
        records, task = name_images(name, dicts), MetadataCatalog.get(name).get("task", None)
        return records if task is None else [{**each, "task_name": task} for each in records]

    return named


_EXPECTED = {
    "image_dir": "its images",
    "image_root": "its images",
    "gt_dir": "its labels",
    "sem_seg_root": "its labels",
    "json_file": "its annotations",
    "panoptic_root": "its panoptic labels",
    "panoptic_json": "its panoptic annotations",
}


def _evaluation_mapper(cfg: CfgNode) -> Callable[[dict], Any]:
    if cfg.INPUT.DATASET_MAPPER_NAME == "classification":
        return ClassificationMapper(cfg, is_train=False)
    return DetectionMapper(cfg, is_train=False)


def _evaluation_batch(cfg: CfgNode) -> int:
    if cfg.INPUT.DATASET_MAPPER_NAME == "classification":
        return max(1, cfg.INPUT.CLASSIFICATION.TEST_BATCH)
    return 1


def _check_classification(cfg: CfgNode, names: Sequence[str], dicts: list[dict]) -> None:
    if cfg.INPUT.DATASET_MAPPER_NAME == "classification":
        check_class_labels(cfg, names, dicts)


#: Photographs of each split; no photograph, and so no tile, is in two of them.
NEON_SPLITS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2",),
    "test": ("2019_YELL_2_541000_4977000_image_crop",),
    "other_sites": ("OSBS_029", "SOAP_061"),
}
NEON_FOLDER = "neon_trees"


def register_neon_trees(root: str | os.PathLike[str]) -> None:
    """Register ``neon_trees_train``, ``neon_trees_test`` and ``neon_trees_other_sites``.

    Nothing is read until they are used. Names that exist already are given the new folder.

    Args:
        root: the folder that holds "neon_trees"; as $DETECTRON2_DATASETS names.
    """
    folder = os.path.join(os.fspath(root), NEON_FOLDER)
    for split in NEON_SPLITS:
        name = f"neon_trees_{split}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(
            name,
            {"thing_classes": ["tree"]},
            os.path.join(folder, "annotations", f"{split}.json"),
            os.path.join(folder, split),
        )
