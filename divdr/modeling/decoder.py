"""The decoder head of Dynamic Routing for semantic segmentation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ..routing.cost import count_macs
from ..routing.ops import conv_norm, initialise_fan_in
from ..settings import SegmentationLossSettings
from .backbone import norm_factory
from .segmentation_loss import SegmentationLoss


@SEM_SEG_HEADS_REGISTRY.register()
class DynamicRoutingDecoder(nn.Module):
    """From the coarsest map on: 1×1 convolution to half the channels, norm, ReLU, ×2, plus the
    next finer map; at the finest a 3×3 convolution to the classes and ×4 (DR, Section 3.1).

    Args:
        input_shape: channels and stride of the features, of which each next one is twice as
            coarse and twice as wide.
        num_classes: number of classes.
        ignore_value: label that is left out of the loss.
        loss_weight: factor of the losses.
        loss: what is learned from; None: the mean cross-entropy over labelled pixels.
        norm: Detectron2's name of a normalisation; "" chooses as the backbone does.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        ignore_value: int = 255,
        loss_weight: float = 1.0,
        loss: SegmentationLossSettings | None = None,
        norm: str = "",
    ) -> None:
        super().__init__()
        ordered = sorted(input_shape.items(), key=lambda item: item[1].stride or 0)
        self.in_features = [name for name, _ in ordered]
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.criterion = SegmentationLoss(num_classes, ignore_value, loss)
        self.stride = ordered[0][1].stride or 4
        make_norm = norm_factory(norm)
        channels = [shape.channels or 0 for _, shape in ordered]
        self.merge = nn.ModuleList(
            conv_norm(c, channels[max(0, level - 1)], make_norm) for level, c in enumerate(channels)
        )
        self.predictor = nn.Conv2d(channels[0], num_classes, 3, padding=1)
        initialise_fan_in(self)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Arguments from ``cfg.MODEL.SEM_SEG_HEAD``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {k: v for k, v in input_shape.items() if k in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "ignore_value": head.IGNORE_VALUE,
            "loss_weight": head.LOSS_WEIGHT,
            "loss": SegmentationLossSettings.of(head.LOSS),
            "norm": cfg.MODEL.ROUTING.NORM,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Training: (None, losses); evaluation: (logits (N, classes, H, W), {}).

        Args:
            features: maps of the backbone by name.
            targets: (N, H, W) labels, in training.
        """
        logits = self._logits(features)
        if self.training:
            assert targets is not None, "training a segmentation head needs labels"
            losses = self.criterion(logits, targets)
            return None, {name: loss * self.loss_weight for name, loss in losses.items()}
        return logits, {}

    def macs(self, feature_sizes: list[tuple[int, int]], *, affine_norm: bool = True) -> float:
        """Multiply-adds for one image, from the (rows, columns) of its maps, finest first."""
        total = 0.0
        for level, (merge, size) in enumerate(zip(self.merge, feature_sizes, strict=True)):
            channels = merge[0].in_channels  # type: ignore[index]
            total += count_macs(merge, (channels, *size), affine_norm=affine_norm)[0]
            if level == 0:
                shape = (self.predictor.in_channels, *size)
                total += count_macs(self.predictor, shape)[0]
        return total

    def _logits(self, features: dict[str, Tensor]) -> Tensor:
        merged: Tensor | None = None
        for name, merge in zip(reversed(self.in_features), reversed(self.merge), strict=True):
            x = features[name]
            if merged is not None:
                x = x + _resize(merged, x.shape[-2:])
            merged = merge(x)
        assert merged is not None
        logits = self.predictor(merged)
        rows, columns = logits.shape[-2:]
        return _resize(logits, torch.Size((rows * self.stride, columns * self.stride)))


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
