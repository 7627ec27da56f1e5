"""Training images as evaluation sees them, with their annotations."""

from __future__ import annotations

from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.data.detection_utils import build_augmentation

from .catalog import training_dicts
from .checked_mapper import CheckedMapper, DetectionMapper


def annotated_images(cfg: CfgNode, part: int = 0, parts: int = 1) -> Iterator[dict]:
    """Dicts of "image" (C, H, W) and "instances", resized as for evaluation, each image once.

    Args:
        cfg: the whole configuration; images are those of ``DATASETS.TRAIN``.
        part: which share of them, from 0.
        parts: number of shares.

    Raises:
        DataError: see :func:`training_dicts`; or an image cannot be used.
    """
    mapper = CheckedMapper(
        DetectionMapper(
            is_train=True,
            augmentations=build_augmentation(cfg, is_train=False),
            image_format=cfg.INPUT.FORMAT,
        )
    )
    for record in training_dicts(cfg)[part::parts]:
        yield mapper(record)
