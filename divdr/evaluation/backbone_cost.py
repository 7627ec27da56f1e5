"""Cost of backbones that run alike for every image."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import Backbone

from ..modeling import backbone_macs
from .augmented import parts_of
from .routing_evaluator import gathered


class BackboneCostEvaluator(DatasetEvaluator):
    """Reports, under "cost", GFLOPs (10⁹ multiply-adds) of backbone and neck.

    ``gflops`` is the mean over the evaluated images, padded as the model pads each alone, of all
    forwards of an image that is seen at several scales or in windows;
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
        for item, output in zip(inputs, outputs, strict=True):
            sizes = [part["image"].shape[-2:] for part, _ in parts_of(item, output)]
            self._costs.append(sum(self._cost(self._padded(size)) for size in sizes))

    def evaluate(self) -> OrderedDict | None:
        """{"cost": figures} on the main process, None on the others."""
        costs = gathered(self._costs)
        if not costs:
            return None if costs is None else OrderedDict()
        figures = {"gflops": sum(costs) / len(costs) / 1e9}
        for height, width in self._sizes:
            figures[f"gflops_{height}x{width}"] = self._cost((height, width)) / 1e9
        return OrderedDict(cost=figures)

    def _padded(self, size: Sequence[int]) -> tuple[int, int]:
        multiple = max(1, self._backbone.size_divisibility)
        rows, columns = (math.ceil(n / multiple) * multiple for n in size)
        return rows, columns

    def _cost(self, size: tuple[int, int]) -> float:
        if size not in self._macs:
            self._macs[size] = backbone_macs(self._backbone, *size)
        return self._macs[size]
