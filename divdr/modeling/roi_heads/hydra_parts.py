"""A Hydra box head's parts and settings from ``cfg.MODEL.ROI_BOX_HEAD.HYDRA``."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from fvcore.nn import weight_init
from torch import nn

from ...errors import ConfigError
from ...moe import Gater
from ..class_partition import hydra_settings
from .layers import BoxLayers

KEY = "MODEL.ROI_BOX_HEAD.HYDRA"


def hydra_arguments(cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
    """Arguments of ``HydraBoxHead``.

    Raises:
        ConfigError: no branches, or branches without a linear layer.
    """
    hydra, norm = cfg.MODEL.ROI_BOX_HEAD.HYDRA, cfg.MODEL.ROI_BOX_HEAD.NORM
    if not hydra.BRANCH_FC_DIMS:
        raise ConfigError(f"{KEY}.BRANCH_FC_DIMS must name at least one linear layer")
    stem = BoxLayers(input_shape, hydra.STEM_CONV_DIMS, kernel=hydra.STEM_KERNEL, norm=norm)
    maps = stem.output_shape
    return {
        "stem": stem,
        "branches": [
            BoxLayers(maps, hydra.BRANCH_CONV_DIMS, hydra.BRANCH_FC_DIMS, norm=norm)
            for _ in range(hydra.BRANCHES)
        ],
        "gater": Gater(_trunk(maps.channels, hydra.GATER_DIM), hydra.GATER_DIM, hydra.BRANCHES),
        "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        "settings": hydra_settings(hydra, KEY),
        "in_shape": input_shape,
    }


def _trunk(channels: int, width: int) -> nn.Module:
    """The gater's layers before its last: it looks at the mean of the stem's map."""
    layer = nn.Conv2d(channels, width, 1)
    weight_init.c2_msra_fill(layer)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), layer, nn.ReLU(inplace=True))
