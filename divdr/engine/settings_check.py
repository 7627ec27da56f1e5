"""What Detectron2's settings may be, and the settings that do not go together.

divdr's own check themselves (``divdr.settings``). Detectron2 checks hardly any. Errors then come
late, or name something else: a batch of no images waits for ever, a crop of no pixels is blamed on
an image. What a part of the network alone knows (names of operations, schedules) is checked where
it is built.
"""

from __future__ import annotations

import logging
import math
import reprlib
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..errors import ConfigError
from ..settings import GROUPS, ClusteringSettings, Range
from ..settings.field import check_not_empty, check_texts

logger = logging.getLogger(__name__)


# Detectron2's keys; those that a configuration lacks are left out.
_RANGES = {
    Range(low=1): """
        SOLVER.IMS_PER_BATCH SOLVER.MAX_ITER SOLVER.CHECKPOINT_PERIOD INPUT.MAX_SIZE_TRAIN
        INPUT.MAX_SIZE_TEST TEST.AUG.MAX_SIZE TEST.PRECISE_BN.NUM_ITER
        MODEL.SEM_SEG_HEAD.NUM_CLASSES MODEL.ROI_HEADS.NUM_CLASSES MODEL.RETINANET.NUM_CLASSES
        MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        MODEL.FPN.OUT_CHANNELS""",
    Range(low=0): """
        DATALOADER.NUM_WORKERS SOLVER.WARMUP_ITERS TEST.EVAL_PERIOD VIS_PERIOD INPUT.MIN_SIZE_TEST
        SOLVER.BASE_LR SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_NORM SOLVER.WEIGHT_DECAY_BIAS
        SOLVER.GAMMA SOLVER.WARMUP_FACTOR SOLVER.BIAS_LR_FACTOR SOLVER.CLIP_GRADIENTS.CLIP_VALUE""",
    Range(above=0): "MODEL.PIXEL_STD",
    Range(low=0, below=1): "SOLVER.MOMENTUM",
    Range(high=2**31 - 1): "SEED",
    Range(): "MODEL.PIXEL_MEAN",
    Range(low=1, whole=True): "TEST.AUG.MIN_SIZES",
    Range(low=0, whole=True): "INPUT.MIN_SIZE_TRAIN SOLVER.STEPS",
}
_TEXTS = "DATASETS.TRAIN DATASETS.TEST"
_NOT_EMPTY = "MODEL.PIXEL_MEAN INPUT.MIN_SIZE_TRAIN TEST.AUG.MIN_SIZES"
_CROP_TYPES = ("absolute", "absolute_range", "relative", "relative_range")


def check_config(cfg: CfgNode) -> None:
    """See that settings are in their ranges and make sense together; warn of those that do nothing.

    Args:
        cfg: of divdr, or of Detectron2 alone.

    Raises:
        ConfigError: a setting is out of its range, or contradicts another.
    """
    for allowed, keys in _RANGES.items():
        for key in keys.split():
            value = _value(cfg, key)
            if value is not None:
                allowed.check(key, value)
    for key in _TEXTS.split():
        check_texts(key, _value(cfg, key) or ())
    for key in _NOT_EMPTY.split():
        value = _value(cfg, key)
        if value is not None:
            check_not_empty(key, value)
    for group in GROUPS:
        node = _value(cfg, group.KEY)
        if node is not None:
            group.of(node)  # cannot hold what is out of range
    for key, value in _leaves(cfg):
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"{key} is not a number (nan)")
    _check_pixels(cfg)
    _check_crop(cfg)
    _check_device(cfg)
    _check_parts(cfg)
    if "ROUTING" in cfg.MODEL:
        _check_clustering(ClusteringSettings.of(cfg.MODEL.ROUTING.CLUSTERING))


def _check_pixels(cfg: CfgNode) -> None:
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if len(mean) != len(std):
        raise ConfigError(
            f"MODEL.PIXEL_MEAN has {len(mean)} channels and MODEL.PIXEL_STD {len(std)}; both have "
            "one number for each channel of an image"
        )


def _check_crop(cfg: CfgNode) -> None:
    crop = cfg.INPUT.CROP
    if not crop.ENABLED:
        return
    if crop.TYPE not in _CROP_TYPES:
        raise ConfigError(f"INPUT.CROP.TYPE {crop.TYPE!r} is not one of {', '.join(_CROP_TYPES)}")
    relative = crop.TYPE.startswith("relative")
    allowed = Range(above=0, high=1) if relative else Range(low=1, whole=True)
    if len(crop.SIZE) != 2 or any(side not in allowed for side in crop.SIZE):
        unit = "shares of the image" if relative else "whole numbers of pixels"
        raise ConfigError(
            f"INPUT.CROP.SIZE must be height and width, {unit}, {allowed}, not "
            f"{reprlib.repr(crop.SIZE)}"
        )


def _check_device(cfg: CfgNode) -> None:
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise ConfigError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE!r} is unknown; it is cuda or cpu"
        ) from None
    there = torch.cuda.device_count()
    if device.type == "cuda" and device.index is not None and 0 < there <= device.index:
        raise ConfigError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but GPUs are 0 to {there - 1} here")


def _check_parts(cfg: CfgNode) -> None:
    images, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    parts = _value(cfg, "SOLVER.ACCUMULATE") or 1
    # What does not divide among the processes is the loader's to say.
    if images % processes == 0 and images // processes % parts:
        own = "" if processes == 1 else f" ({images // processes} a process)"
        raise ConfigError(
            f"SOLVER.ACCUMULATE {parts} does not divide SOLVER.IMS_PER_BATCH {images}{own} into "
            "equal parts"
        )


def _check_clustering(clustering: ClusteringSettings) -> None:
    key = clustering.KEY
    if not (clustering.enabled and clustering.weight > 0):
        return
    if clustering.num_experts == 1:
        logger.warning(
            "%s: with NUM_EXPERTS 1 the clustering loss keeps nothing apart; it pulls all images "
            "to one centre (WEIGHT 0 is without it)",
            key,
        )
    if clustering.margin == 0 and clustering.num_experts == 2:
        logger.warning(
            "%s: with MARGIN 0 and NUM_EXPERTS 2 the clustering loss is identically zero (an "
            "activation is never closer to the other centre)",
            key,
        )


def _value(cfg: CfgNode, key: str) -> Any:
    """The value of a key, or None where there is no such key."""
    node: Any = cfg
    for name in key.split("."):
        if name not in node:
            return None
        node = node[name]
    return node


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
