"""Cost of backbones that run alike for every image."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import Backbone

from ..modeling import backbone_macs
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
