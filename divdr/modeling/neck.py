"""Necks over the routed maps, equal channels at every level, and models on static sub-networks.

Shapes: "res2" is (N, C, H/4, W/4), "res3" (N, 2C, H/8, W/8), …; "p2", "p3", … have the same rows
and columns and one number of channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from ..errors import ConfigError
from ..inference import StaticNetwork
from ..routing import tie
from .backbone import DynamicRouting, find_backbone, norm_factory


class ProjectionNeck(Backbone):
    """One 1×1 convolution a level and nothing else: the light neck of DivDR (Section 4.4).

    The routing space exchanges what scales know already, so that no path from coarse to fine
    follows. With Layer17 its outputs are "p2" to "p6".

    Args:
        bottom_up: gives the maps; "resS" becomes "pS".
        in_features: names of the maps to project.
        out_channels: channels of every output.
        norm: Detectron2's name of a normalisation; "" is none, with a bias instead.

    Raises:
        ConfigError: ``bottom_up`` has no map of such a name.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: str = "",
    ) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        shapes = bottom_up.output_shape()
        check_features(in_features, shapes)
        self._names: dict[str, str] = {}
        self._shapes: dict[str, ShapeSpec] = {}
        for name in in_features:
            level = name.removeprefix("res")
            projection = Conv2d(
                shapes[name].channels or 0,
                out_channels,
                kernel_size=1,
                bias=norm == "",
                norm=norm_factory(norm)(out_channels) if norm else None,
            )
            weight_init.c2_xavier_fill(projection)
            self.add_module(f"project{level}", projection)
            self._names[name] = f"p{level}"
            self._shapes[f"p{level}"] = ShapeSpec(channels=out_channels, stride=shapes[name].stride)

    @property
    def size_divisibility(self) -> int:
        """That of the maps: images are padded to a multiple of the largest stride."""
        return self.bottom_up.size_divisibility

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every level."""
        return dict(self._shapes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised images (N, C, H, W) → {"p2": (N, channels, H/4, W/4), …}."""
        maps = self.bottom_up(x)
        projected = [
            getattr(self, f"project{new.removeprefix('p')}")(maps[name])
            for name, new in self._names.items()
        ]
        return dict(zip(self._names.values(), tie(projected), strict=True))


def check_features(names: Sequence[str], shapes: dict[str, ShapeSpec]) -> None:
    """See that a backbone has the named maps.

    Raises:
        ConfigError: it has not, or no map is named.
    """
    missing = [name for name in names if name not in shapes]
    if missing or not names:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES is {list(names)}, but the backbone has {list(shapes)}; "
            "MODEL.ROUTING.SCALES_PER_LAYER says how many a routed one has"
        )


@BACKBONE_REGISTRY.register()
def build_dynamic_routing_projection_backbone(
    cfg: CfgNode, input_shape: ShapeSpec
) -> ProjectionNeck:
    """``DynamicRouting`` under the light neck, by ``MODEL.FPN.{IN_FEATURES, OUT_CHANNELS, NORM}``.

    Raises:
        ConfigError: a named map does not exist.
    """
    fpn = cfg.MODEL.FPN
    bottom_up = DynamicRouting(cfg, input_shape)
    return ProjectionNeck(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM)


@BACKBONE_REGISTRY.register()
def build_dynamic_routing_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """``DynamicRouting`` under Detectron2's FPN, by ``MODEL.FPN``.

    Without a map of stride 64 ("res6") a pooled "p6" follows, as over Detectron2's ResNets.

    Raises:
        ConfigError: a named map does not exist.
    """
    bottom_up = DynamicRouting(cfg, input_shape)
    top_block = LastLevelMaxPool() if cfg.MODEL.FPN.IN_FEATURES[-1:] == ["res5"] else None
    return fpn_over(cfg, bottom_up, top_block)


@BACKBONE_REGISTRY.register()
def build_retinanet_dynamic_routing_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """``DynamicRouting`` under FPN with "p6" and "p7" convolved from "res5", as RetinaNet has it.

    Raises:
        ConfigError: a named map does not exist.
    """
    bottom_up = DynamicRouting(cfg, input_shape)
    shapes = bottom_up.output_shape()
    check_features(["res5"], shapes)
    top_block = LastLevelP6P7(shapes["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS)
    return fpn_over(cfg, bottom_up, top_block)


def fpn_over(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module | None) -> FPN:
    """Detectron2's FPN over a backbone, by ``MODEL.FPN``.

    Args:
        cfg: the whole configuration.
        bottom_up: gives the maps of ``IN_FEATURES``.
        top_block: makes the maps above the coarsest; None: none.

    Raises:
        ConfigError: a named map does not exist.
    """
    fpn = cfg.MODEL.FPN
    check_features(fpn.IN_FEATURES, bottom_up.output_shape())
    return FPN(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=top_block,
        fuse_type=fpn.FUSE_TYPE,
    )


class StaticBackbone(Backbone):
    """A static sub-network as a backbone: the features of the routed one, without routing.

    Args:
        network: the sub-network.
        routed: the backbone that it comes from.

    Attributes:
        network: as given; its parameters keep the names that they had.
    """

    def __init__(self, network: StaticNetwork, routed: DynamicRouting) -> None:
        super().__init__()
        self.network = network
        self._shapes = routed.output_shape()
        self._divisibility = routed.size_divisibility

    @property
    def size_divisibility(self) -> int:
        """As of the routed backbone."""
        return self._divisibility

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature."""
        return dict(self._shapes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised images (N, C, H, W) → {"res2": (N, C, H/4, W/4), "res3": …}."""
        return dict(zip(self._shapes, self.network(x), strict=True))


def static_model(model: nn.Module, network: StaticNetwork) -> nn.Module:
    """A copy of a model that runs a static sub-network, which it holds itself, not as a copy.

    What routing is attached to the model does nothing in the copy.

    Args:
        model: a Detectron2 model with one ``DynamicRouting`` backbone, wherever it sits.
        network: of that backbone.

    Raises:
        ValueError: the model has no such backbone, or several, or is nothing but the backbone.
    """
    duplicate = copy.deepcopy(model)
    routed = find_backbone(duplicate)
    for parent in duplicate.modules():
        for name, child in parent.named_children():
            if child is routed:
                setattr(parent, name, StaticBackbone(network, routed))
                return duplicate
    raise ValueError("the model is nothing but the backbone; there is no place to put another")
