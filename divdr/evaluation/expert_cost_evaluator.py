"""Cost of backbones that choose experts for each image."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import Backbone
from torch import Tensor

from ..errors import DataError
from ..modeling import ExpertCosts, ExpertSupervision
from .routing_evaluator import gathered


class ExpertCostEvaluator(DatasetEvaluator):
    """Reports, under "cost", means per image of what ran in a backbone with routing layers.

    ``gflops`` is 10⁹ multiply-adds of backbone and neck at the size at which the image ran,
    ``gflops_HxW`` with the same choices at fixed sizes, ``gflops_all`` with every expert of every
    layer. ``mean_experts`` is experts that ran in a layer, mean over the layers,
    ``mean_experts-LAYER`` in each; ``share-NAME`` is per cent of all that ran that were experts of
    this name.

    Args:
        backbone: neck included.
        attached: what is attached to the model.
        sizes: (height, width) at which GFLOPs are reported too.
    """

    def __init__(
        self,
        backbone: Backbone,
        attached: ExpertSupervision,
        sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._backbone = backbone
        self._attached = attached
        self._sizes = list(sizes)
        self._costs: ExpertCosts | None = None
        self._rows: list[tuple[tuple[int, int], Tensor]] = []

    def reset(self) -> None:
        """Forget the images."""
        self._rows = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Note what ran for each image of the batch.

        Raises:
            DataError: the model's last forward was not of these images.
        """
        record = self._attached.record
        if record is None or len(record) != len(inputs):
            raise DataError("the backbone's record is not of the images that are evaluated")
        self._rows.extend((record.size, ran) for ran in record.ran.cpu())

    def evaluate(self) -> OrderedDict | None:
        """{"cost": figures} on the main process, None on the others."""
        rows = gathered(self._rows)
        if not rows:
            return None if rows is None else OrderedDict()
        if self._costs is None:
            self._costs = ExpertCosts(self._backbone)
        ran = torch.stack([row for _, row in rows])  # (images, ΣE)
        everything = torch.ones_like(ran[0])[None]
        macs, full = 0.0, 0.0
        for size, row in rows:
            cost = self._costs.at(size)
            macs += float(cost.of(row[None]))
            full += float(cost.of(everything))
        figures = {"gflops": macs / len(rows) / 1e9, "gflops_all": full / len(rows) / 1e9}
        for height, width in self._sizes:
            cost = self._costs.at((height, width))
            figures[f"gflops_{height}x{width}"] = float(cost.of(ran).mean()) / 1e9
        figures.update(self._choices(ran))
        return OrderedDict(cost=figures)

    def _choices(self, ran: Tensor) -> dict[str, float]:
        counts = ran.double().mean(0)  # (ΣE,) how often each expert ran
        by_layer: dict[str, float] = {}
        by_name: dict[str, float] = defaultdict(float)
        for decision in self._attached.decisions:
            own = counts[decision.columns]
            by_layer[decision.name] = float(own.sum())
            for name, count in zip(decision.experts, own.tolist(), strict=True):
                by_name[name] += count
        total = max(sum(by_name.values()), 1e-12)
        return {
            "mean_experts": sum(by_layer.values()) / max(1, len(by_layer)),
            **{f"mean_experts-{name}": count for name, count in by_layer.items()},
            **{f"share-{name}": 100 * count / total for name, count in by_name.items()},
        }
