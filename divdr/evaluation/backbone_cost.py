"""Cost of backbones that run alike for every image, and of box heads."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import Backbone, StandardROIHeads

from ..modeling import backbone_macs
from ..modeling.roi_heads import MixtureROIHeads, box_cost
from ..moe import Cost
from .routing_evaluator import gathered


class BackboneCostEvaluator(DatasetEvaluator):
    """Reports, under "cost", GFLOPs (10⁹ multiply-adds) of backbone and neck.

    ``gflops`` is the mean over the evaluated images, padded as the model pads each alone;
    ``gflops_HxW`` is at fixed sizes.

    Args:
        backbone: neck included.
        sizes: (height, width) at which GFLOPs are reported too.
    """

    def __init__(self, backbone: Backbone, sizes: Sequence[tuple[int, int]] = ()) -> None:
        self._backbone = backbone
        self._sizes = list(sizes)
        self._macs: dict[tuple[int, int], float] = {}
        self._costs: list[float] = []

    def reset(self) -> None:
        """Forget the images."""
        self._costs = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count for the sizes of a batch."""
        multiple = max(1, self._backbone.size_divisibility)
        for item in inputs:
            rows, columns = (math.ceil(n / multiple) * multiple for n in item["image"].shape[-2:])
            self._costs.append(self._cost((rows, columns)))

    def evaluate(self) -> OrderedDict | None:
        """{"cost": figures} on the main process, None on the others."""
        costs = gathered(self._costs)
        if not costs:
            return None if costs is None else OrderedDict()
        figures = {"gflops": sum(costs) / len(costs) / 1e9}
        for height, width in self._sizes:
            figures[f"gflops_{height}x{width}"] = self._cost((height, width)) / 1e9
        return OrderedDict(cost=figures)

    def _cost(self, size: tuple[int, int]) -> float:
        if size not in self._macs:
            self._macs[size] = backbone_macs(self._backbone, *size)
        return self._macs[size]


class BoxHeadCostEvaluator(DatasetEvaluator):
    """Reports, under "box_head", means per image of what ran from pooled features to scores.

    ``gflops`` is 10⁹ multiply-adds of an image's proposals, ``mflops_per_proposal`` 10⁶ of one,
    ``proposals`` their number, and ``mean_experts``, for a mixture, the branches or experts that
    ran for a proposal. Mask and keypoint heads are not counted.

    Args:
        heads: of the evaluated model, see ``divdr.modeling.roi_heads.box_head_of``.
    """

    def __init__(self, heads: StandardROIHeads) -> None:
        self._heads = heads
        self._hook: Any = None
        self._counts: list[int] = []
        self._shape: tuple[int, ...] = ()
        self._cost: Cost | None = None
        self._rows: list[tuple[int, float, int]] = []

    def reset(self) -> None:
        """Forget the images, and watch how many proposals are pooled from now on."""
        self._rows = []
        if self._hook is None:
            self._hook = self._heads.box_pooler.register_forward_hook(self._note)

    def _note(self, pooler: torch.nn.Module, args: tuple, pooled: torch.Tensor) -> None:
        self._counts = [len(boxes) for boxes in args[1]]
        self._shape = tuple(pooled.shape[1:])

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Note what ran for each image of the batch."""
        if self._cost is None:
            self._cost = box_cost(self._heads, self._shape)
        ran = self._heads.ran if isinstance(self._heads, MixtureROIHeads) else None
        if ran is None:
            ran = torch.zeros((sum(self._counts), 0), dtype=torch.bool)
        for part in ran.split(self._counts):
            self._rows.append((len(part), float(self._cost.of(part).sum()), int(part.sum())))

    def evaluate(self) -> OrderedDict | None:
        """{"box_head": figures} on the main process, None on the others."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        rows = gathered(self._rows)
        if not rows:
            return None if rows is None else OrderedDict()
        proposals, macs, experts = torch.tensor(rows, dtype=torch.float64).sum(0).tolist()
        figures = {
            "gflops": macs / len(rows) / 1e9,
            "mflops_per_proposal": macs / max(1.0, proposals) / 1e6,
            "proposals": proposals / len(rows),
        }
        if isinstance(self._heads, MixtureROIHeads):
            figures["mean_experts"] = experts / max(1.0, proposals)
        return OrderedDict(box_head=figures)
