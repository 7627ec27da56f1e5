"""Any Detectron2 model with a static sub-network in place of its routed backbone."""

from __future__ import annotations

import copy

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from ..inference import StaticNetwork
from .backbone import DynamicRouting, find_backbone


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
