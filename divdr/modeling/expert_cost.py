"""Multiply-adds of backbones whose routing layers run what each image chose.

The convention is that of ``backbone_macs``: normalisation, ReLU and pooling count too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..moe import Context, Cost, Gating, RoutingLayer
from .neck_cost import backbone_macs, module_macs


class ExpertCosts:
    """Costs of a backbone with routing layers (neck included) by the size of its input.

    Args:
        backbone: any module from images (N, 3, H, W) to maps; it is not changed, and changes of its
            weights do not matter.
    """

    def __init__(self, backbone: nn.Module) -> None:
        layers = [m for m in backbone.modules() if isinstance(m, RoutingLayer)]
        self._passing = [_Passing(len(layer.experts)) for layer in layers]
        instead = {id(one): two for one, two in zip(layers, self._passing, strict=True)}
        self._shared = _without_data(backbone, instead)
        self._experts = [[_without_data(e) for e in layer.experts] for layer in layers]
        self._gates = [layer.router.gate.score.weight.numel() for layer in layers]
        self._pools = [layer.router.kind.startswith("pooled") for layer in layers]
        self._known: dict[tuple[int, int], Cost] = {}

    def at(self, size: tuple[int, int]) -> Cost:
        """What always runs, and what each expert of each layer costs if it runs.

        Args:
            size: (height, width) of the backbone's input in pixels.
        """
        if size not in self._known:
            shared, experts = backbone_macs(self._shared, *size), []
            for passing, gate, pools, modules in zip(
                self._passing, self._gates, self._pools, self._experts, strict=True
            ):
                shape = passing.shape
                shared += gate + (torch.Size(shape).numel() if pools else 0)
                experts += [module_macs(module, shape) for module in modules]
            self._known[size] = Cost(shared, tuple(experts))
        return self._known[size]


class _Passing(nn.Module):
    """Stands for a routing layer: passes maps on at no cost, and notes their shape."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.shape: tuple[int, ...] = ()

    def __deepcopy__(self, memo: Mapping) -> _Passing:
        return self  # counting copies modules, and the shape is wanted here

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Gating]:
        self.shape = tuple(x.shape[1:])
        nothing = x.new_zeros((len(x), self.experts))
        return x, Gating(nothing, nothing.bool(), nothing)


def _without_data(module: nn.Module, instead: dict | None = None) -> nn.Module:
    return copy.deepcopy(module, instead).to("meta").eval()
