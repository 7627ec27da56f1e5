"""ResNet-18 and MobileNetV3 of any width under Detectron2's FPN, to hold routed networks against.

Detectron2 builds its ResNet-18 with 64 channels alone; a network of a routed one's cost has fewer.
He et al. (CVPR 2016); Howard et al. (ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large, mobilenet_v3_small

from ..settings import NarrowBackboneSettings
from .backbone import norm_factory
from .neck import fpn_over

_MOBILE: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v3_small": mobilenet_v3_small,
    "mobilenet_v3_large": mobilenet_v3_large,
}
_RESNET_CHANNELS = (64, 128, 256, 512)
_RESNET_BLOCKS = 2
_NAMES = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}


class MobileNet(Backbone):
    """MobileNetV3 without its last 1×1 convolution, which serves classification alone.

    Args:
        kind: "mobilenet_v3_small" or "mobilenet_v3_large".
        width: multiple of the published channels, which torchvision rounds to multiples of 8.
        norm: Detectron2's name of a normalisation.
    """

    def __init__(self, kind: str, width: float, norm: str) -> None:
        super().__init__()
        features = _MOBILE[kind](weights=None, width_mult=width, norm_layer=norm_factory(norm))
        blocks = list(features.features)[:-1]  # type: ignore[arg-type]
        self.stages = nn.ModuleList()
        self._shapes: dict[str, ShapeSpec] = {}
        stride, stage = 1, []
        for position, block in enumerate(blocks):
            stage.append(block)
            stride *= _stride(block)
            last = position + 1 == len(blocks)
            if not last and _stride(blocks[position + 1]) == 1:
                continue
            self.stages.append(nn.Sequential(*stage))
            stage = []
            if stride in _NAMES:
                self._shapes[_NAMES[stride]] = ShapeSpec(channels=_width(block), stride=stride)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of "res2" to "res5"."""
        return dict(self._shapes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised images (N, 3, H, W) → {"res2": (N, C2, H/4, W/4), …}."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return dict(zip(self._shapes, maps[-len(self._shapes) :], strict=True))


def _convolutions(block: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]


def _stride(block: nn.Module) -> int:
    return max(layer.stride[0] for layer in _convolutions(block))


def _width(block: nn.Module) -> int:
    return _convolutions(block)[-1].out_channels


def resnet18(width: float, norm: str, input_channels: int = 3) -> ResNet:
    """Detectron2's ResNet with the blocks of ResNet-18.

    Args:
        width: multiple of the published channels.
        norm: Detectron2's name of a normalisation.
        input_channels: of the images.
    """
    make = norm_factory(norm)
    before = max(1, round(width * _RESNET_CHANNELS[0]))
    stem = BasicStem(in_channels=input_channels, out_channels=before, norm=make)
    stages = []
    for index, published in enumerate(_RESNET_CHANNELS):
        # A block of equal channels would not halve what goes around it.
        own = max(before + (index > 0), round(width * published))
        strides = [1 if index == 0 else 2] + [1] * (_RESNET_BLOCKS - 1)
        stage = ResNet.make_stage(
            BasicBlock,
            _RESNET_BLOCKS,
            stride_per_block=strides,
            in_channels=before,
            out_channels=own,
            norm=make,
        )
        stages.append(stage)
        before = own
    return ResNet(stem, stages, out_features=list(_NAMES.values()))


@BACKBONE_REGISTRY.register()
def build_narrow_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """``MODEL.NARROW_BACKBONE`` under Detectron2's FPN, by ``MODEL.FPN``; a pooled "p6" follows.

    Raises:
        ConfigError: a map of ``MODEL.FPN.IN_FEATURES`` does not exist.
    """
    settings = NarrowBackboneSettings.of(cfg.MODEL.NARROW_BACKBONE)
    bottom_up: Backbone
    if settings.network == "resnet18":
        bottom_up = resnet18(settings.width, settings.norm, input_shape.channels or 3)
    else:
        bottom_up = MobileNet(settings.network, settings.width, settings.norm)
    return fpn_over(cfg, bottom_up, LastLevelMaxPool())
