"""What every setting may be: its range, and the settings that do not go together.

Detectron2 checks hardly any, and what goes wrong then is told late, or of something else: a batch
of no images waits for ever, a crop of no pixels is blamed on an image. What a part of the network
alone knows (names of operations, gates, schedules) is checked where it is built.
"""

from __future__ import annotations

import logging
import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode

from ..errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Range:
    """Numbers that a setting may be, or each number of a list.

    Attributes:
        low, high: bounds, which belong to it.
        above, below: bounds which do not.
        whole: for lists, whose numbers have no type of their own.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    whole: bool = False

    def __contains__(self, value: Any) -> bool:
        if type(value) not in ((int,) if self.whole else (int, float)):
            return False
        inside = self.low <= value <= self.high and self.above < value < self.below
        return inside and abs(value) != math.inf

    def __str__(self) -> str:
        if self.low > -math.inf and self.high < math.inf:
            return f"between {self.low:g} and {self.high:g}"
        bounds = (
            (f"at least {self.low:g}", self.low > -math.inf),
            (f"above {self.above:g}", self.above > -math.inf),
            (f"at most {self.high:.10g}", self.high < math.inf),
            (f"below {self.below:g}", self.below < math.inf),
        )
        return " and ".join(text for text, given in bounds if given) or "finite"


# Keys that a configuration lacks are left out: Detectron2's alone are enough.
_RANGES = {
    Range(low=1): """
        SOLVER.IMS_PER_BATCH SOLVER.MAX_ITER SOLVER.CHECKPOINT_PERIOD INPUT.MAX_SIZE_TRAIN
        INPUT.MAX_SIZE_TEST INPUT.CLASSIFICATION.TEST_BATCH TEST.PRECISE_BN.NUM_ITER
        MODEL.SEM_SEG_HEAD.NUM_CLASSES MODEL.ROI_HEADS.NUM_CLASSES MODEL.RETINANET.NUM_CLASSES
        MODEL.CLASSIFIER.NUM_CLASSES MODEL.CLASSIFIER.DEPTH MODEL.CLASSIFIER.CHANNELS
        MODEL.CLASSIFIER.GROWTH MODEL.CLASSIFIER.MEMBERS MODEL.CLASSIFIER.HYDRA.BRANCHES
        MODEL.CLASSIFIER.HYDRA.TOP_K MODEL.CLASSIFIER.COE.EXPERTS MODEL.CLASSIFIER.COE.SUBTASKS
        MODEL.CLASSIFIER.COE.DELEGATOR_DEPTH MODEL.CLASSIFIER.COE.DELEGATOR_CHANNELS
        MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        MODEL.ROI_BOX_HEAD.HYDRA.BRANCHES MODEL.ROI_BOX_HEAD.HYDRA.TOP_K
        MODEL.ROI_BOX_HEAD.HYDRA.GATER_DIM MODEL.ROI_BOX_HEAD.COE.EXPERTS MODEL.FPN.OUT_CHANNELS
        MODEL.ROUTING.LAYERS MODEL.ROUTING.SCALES MODEL.ROUTING.BUDGET.TARGET_MEMORY
        MODEL.ROUTING.CLUSTERING.BANK_ITERATIONS MODEL.ROUTING.CLUSTERING.BANK_IMAGES
        MODEL.ROUTING.CLUSTERING.PERIOD MODEL.ROUTING.CLUSTERING.PERIOD_GROWTH
        MODEL.ROUTING.CLUSTERING.KMEANS.RESTARTS""",
    Range(low=2): "MODEL.ROUTING.CHANNELS",
    Range(low=0): """
        DATALOADER.NUM_WORKERS SOLVER.STOP_ITER SOLVER.WARMUP_ITERS TEST.EVAL_PERIOD VIS_PERIOD
        INPUT.MIN_SIZE_TEST INPUT.CLASSIFICATION.SIZE INPUT.CLASSIFICATION.PAD_CROP
        INPUT.CLASSIFICATION.CUTOUT SOLVER.BASE_LR SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_NORM
        SOLVER.WEIGHT_DECAY_BIAS SOLVER.RESTARTS SOLVER.STEP_FACTORS SOLVER.GAMMA
        SOLVER.WARMUP_FACTOR SOLVER.BIAS_LR_FACTOR SOLVER.GATE_LR_FACTOR SOLVER.POLY_LR_POWER
        SOLVER.CLIP_GRADIENTS.CLIP_VALUE MODEL.ROUTING.BUDGET.WEIGHT
        MODEL.ROUTING.BUDGET.TARGET MODEL.ROUTING.BUDGET.START MODEL.ROUTING.BUDGET.RAMP
        MODEL.ROUTING.BUDGET.TARGET_GFLOPS MODEL.ROUTING.BUDGET.TARGET_START
        MODEL.ROUTING.BUDGET.TARGET_RAMP MODEL.ROUTING.BUDGET.TARGET_CALIBRATION
        MODEL.ROUTING.CLUSTERING.WEIGHT MODEL.ROUTING.CLUSTERING.MARGIN
        MODEL.ROUTING.CLUSTERING.START MODEL.CLASSIFIER.HYDRA.ENSEMBLE_WEIGHT
        MODEL.CLASSIFIER.HYDRA.GATER_WEIGHT MODEL.CLASSIFIER.HYDRA.BRANCH_WEIGHT
        MODEL.CLASSIFIER.COE.DELEGATOR_STAGE MODEL.CLASSIFIER.COE.CONDCONV
        MODEL.CLASSIFIER.COE.PWLU MODEL.CLASSIFIER.COE.PWLU_STATISTICS
        MODEL.ROI_BOX_HEAD.COE.START""",
    Range(above=0): """
        MODEL.CLASSIFIER.STEM_WIDTH MODEL.CLASSIFIER.BRANCH_WIDTH MODEL.CLASSIFIER.GATER_WIDTH
        MODEL.CLASSIFIER.COE.TEMPERATURE MODEL.ROUTING.BUDGET.TARGET_GAIN
        MODEL.ROUTING.BUDGET.TARGET_TEMPERATURE MODEL.ROUTING.CLUSTERING.SIGMA2_FLOOR
        MODEL.PIXEL_STD""",
    Range(low=0, below=1): """
        SOLVER.MOMENTUM MODEL.ROUTING.DROP_PATH MODEL.ROUTING.BUDGET.TARGET_SHARE""",
    Range(low=0, high=1): """
        MODEL.CLASSIFIER.HYDRA.THRESHOLD MODEL.CLASSIFIER.HYDRA.TRAIN_THRESHOLD
        MODEL.CLASSIFIER.COE.THRESHOLD MODEL.CLASSIFIER.COE.DISTILLATION_WEIGHT
        MODEL.ROI_BOX_HEAD.HYDRA.THRESHOLD MODEL.ROI_BOX_HEAD.HYDRA.TRAIN_THRESHOLD
        MODEL.ROI_BOX_HEAD.COE.THRESHOLD""",
    Range(above=0, high=1): "DATALOADER.RANDOM_SUBSET_RATIO",
    Range(high=1): "MODEL.ROUTING.CLUSTERING.STABILITY",
    Range(high=2**31 - 1): "SEED",
    Range(): "MODEL.PIXEL_MEAN MODEL.ROUTING.GATE_BIAS",
    Range(low=0, whole=True): "INPUT.MIN_SIZE_TRAIN SOLVER.STEPS",
    Range(low=1, whole=True): """
        MODEL.ROUTING.SCALES_PER_LAYER MODEL.CLASSIFIER.DENSE_LAYERS MODEL.CLASSIFIER.COE.DEPTHS
        MODEL.CLASSIFIER.COE.CHANNELS MODEL.ROI_BOX_HEAD.HYDRA.STEM_CONV_DIMS
        MODEL.ROI_BOX_HEAD.HYDRA.BRANCH_CONV_DIMS MODEL.ROI_BOX_HEAD.HYDRA.BRANCH_FC_DIMS
        MODEL.ROI_BOX_HEAD.COE.DELEGATOR_CONV_DIMS MODEL.ROI_BOX_HEAD.COE.DELEGATOR_FC_DIMS
        MODEL.ROI_BOX_HEAD.COE.EXPERT_CONV_DIMS MODEL.ROI_BOX_HEAD.COE.EXPERT_FC_DIMS""",
}
_TEXTS = "DATASETS.TRAIN DATASETS.TEST MODEL.ROUTING.OPS INPUT.EXTRA_AUGMENTATIONS"
_NOT_EMPTY = "MODEL.PIXEL_MEAN INPUT.MIN_SIZE_TRAIN MODEL.ROUTING.OPS MODEL.CLASSIFIER.DENSE_LAYERS"
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
            _check_range(cfg, key, allowed)
    for key in _TEXTS.split():
        for value in _value(cfg, key) or ():
            if not isinstance(value, str):
                raise ConfigError(f"{key} must hold texts, not {reprlib.repr(value)}")
    for key in _NOT_EMPTY.split():
        if _value(cfg, key) in ((), []):
            raise ConfigError(f"{key} must hold at least one value")
    for key, value in _leaves(cfg):
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"{key} is not a number (nan)")
    _check_pixels(cfg)
    _check_crop(cfg)
    _check_device(cfg)
    if "ROUTING" in cfg.MODEL:
        _check_clustering(cfg.MODEL.ROUTING.CLUSTERING)


def _check_range(cfg: CfgNode, key: str, allowed: Range) -> None:
    value = _value(cfg, key)
    if value is None:
        return
    listed = isinstance(value, (list, tuple))
    for number in value if listed else [value]:
        if number not in allowed:
            kind = "whole numbers" if allowed.whole else "numbers"
            what = f"must hold {kind}, {allowed}," if listed else f"must be {allowed},"
            raise ConfigError(f"{key} {what} not {reprlib.repr(number)}")


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


def _check_clustering(clustering: CfgNode) -> None:
    key, experts = "MODEL.ROUTING.CLUSTERING", clustering.NUM_EXPERTS
    if clustering.ENABLED and experts < 1:
        raise ConfigError(f"{key}.NUM_EXPERTS must be at least 1, not {experts}")
    if not (clustering.ENABLED and clustering.WEIGHT > 0):
        return
    if experts == 1:
        logger.warning(
            "%s: with NUM_EXPERTS 1 the clustering loss keeps nothing apart; it pulls all images "
            "to one centre (WEIGHT 0 is without it)",
            key,
        )
    if clustering.MARGIN == 0 and experts == 2:
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
