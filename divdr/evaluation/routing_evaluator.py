"""What routing did on a data set: cost, open cells, experts, diversity."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import Backbone
from detectron2.utils import comm
from torch import nn

from ..checkpoint import write_text_atomically
from ..errors import ConfigError
from ..experts import Diversity, diversity, kmeans
from ..experts.routing_warnings import (
    FILE,
    RoutingWarning,
    gates_alike,
    gates_open,
    one_expert_holds,
    one_route,
    warnings_text,
)
from ..modeling import (
    DynamicRoutingDecoder,
    SingleGateSegmentor,
    attached_routing,
    neck_macs,
    unwrap,
)
from ..routing import Routing, to_host
from ..routing.open_paths import is_closed
from ..settings import ClusteringSettings
from .augmented import parts_of

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


def gathered(rows: Sequence[Item]) -> list[Item] | None:
    """The rows of all processes, one process's after another's; None on all but the main one.

    All processes have to call it.
    """
    comm.synchronize()
    parts = comm.gather(list(rows))
    return [row for part in parts for row in part] if comm.is_main_process() else None


@dataclass
class _Row:
    name: str
    first: bool  # of the forwards of an image
    activations: np.ndarray
    values: np.ndarray
    reached: np.ndarray
    costs: np.ndarray  # (1 + sizes, 2): expected and real multiply-adds
    share: float  # of what gates decide upon, real
    bounds: tuple[float, float]  # multiply-adds of the stem alone, and with every gate open
    head: float
    neck: float
    ops: float  # that ran in a cell which computed something; NaN where all are summed


class RoutingEvaluator(DatasetEvaluator):
    """Gathers the routing records of evaluated images.

    Reports, under "routing": mean and spread (standard deviation) of expected and real GFLOPs an
    image, the same at fixed sizes, the real cost's share of the all-open one (both without the
    stem), what the stem alone and all gates open cost, the share of open cells, operations that ran
    in a cell (``mean_ops``, where images choose them), images per expert, and two sets of distances
    between and within clusters (see `Diversity`). ``inter_experts``, ``intra_pairs_experts`` and
    ``intra_centre_experts`` are of the centres that training found, each evaluated image with its
    expert; they are left out while there are no centres.
    ``inter_refit``, ``intra_pairs_refit`` and ``intra_centre_refit`` are of a new K-means over the
    evaluated activations, whatever training found. GFLOPs are 10⁹ multiply-adds of the backbone;
    ``*_with_head`` adds the decoder of segmentation, ``*_with_neck`` what stands between the routed
    maps and a detector's heads. Activations are kept in ``activations_DATASET.npz``.

    An image that is seen at several scales or in windows costs the sum of all, the stem and
    all-open costs included; ``forwards`` tells how many an image takes. Everything else, costs at
    fixed sizes too, is then of single forwards, each of which has a route and is a row of the file.

    Args:
        dataset_name: name in the catalog.
        model: the evaluated model, with routing attached.
        output_dir: folder of the npz file; None writes none.
        sizes: (height, width) at which GFLOPs are reported too.
        num_experts: K of the new K-means where the model has no experts.
        seed: of the new K-means.

    Raises:
        ConfigError: no routing is attached to the model.
    """

    def __init__(
        self,
        dataset_name: str,
        model: nn.Module,
        *,
        output_dir: str | None = None,
        sizes: Sequence[tuple[int, int]] = (),
        num_experts: int = ClusteringSettings.num_experts,
        seed: int = 0,
    ) -> None:
        routed = attached_routing(model)
        if routed is None:
            raise ConfigError("the routing evaluator needs a model with routing attached")
        self._dataset_name = dataset_name
        self._routed = routed
        inner = unwrap(model)
        self._head = getattr(inner, "sem_seg_head", None)
        self._neck = getattr(inner, "backbone", None)
        self._neck_macs: dict[tuple[int, int], float] = {}
        self._output_dir = output_dir
        self._sizes = [tuple(size) for size in sizes]
        self._num_experts = num_experts
        self._seed = seed
        self._rows: list[_Row] = []

    def reset(self) -> None:
        """Forget everything."""
        self._rows = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Note the records of a batch."""
        seen = [
            (number, str(item.get("file_name", "")), part == 0, ran["routing"])
            for number, (item, output) in enumerate(zip(inputs, outputs, strict=True))
            for part, (_, ran) in enumerate(parts_of(item, output))
            if "routing" in ran
        ]
        counts = [len(record.tensors()) for *_, record in seen]
        own = self._head.macs if isinstance(self._head, SingleGateSegmentor) else None
        extra = [] if own is None else [own]  # of all images
        # All records of the batch cross from a GPU at once.
        moved = to_host([*extra, *(t for *_, record in seen for t in record.tensors())])
        macs, moved = moved[: len(extra)], moved[len(extra) :]
        for (number, name, first, record), count in zip(seen, counts, strict=True):
            record, moved = record.with_tensors(moved[:count]), moved[count:]
            head = float(macs[0][number]) if macs else self._head_macs(record.size)
            self._rows.append(self._row(name, first, record, head))

    def evaluate(self) -> OrderedDict | None:
        """{"routing": figures} on the main process, None on the others."""
        rows = gathered(self._rows)
        if not rows:
            return None if rows is None else OrderedDict()
        return OrderedDict(routing=self._figures(sorted(rows, key=lambda row: row.name)))

    def _row(self, name: str, first: bool, record: Routing, head: float) -> _Row:
        """Of one forward of an image, whose record is on the host."""
        costs = [torch.stack([record.expected_cost[0], record.real_cost[0]])]
        for height, width in self._sizes:
            costs.append(torch.cat(self._routed.backbone.network.cost(record, height, width)))
        return _Row(
            name=name,
            first=first,
            activations=record.activations[0].float().numpy(),
            values=self._routed.clustered_values(record)[0].float().numpy(),
            reached=record.reached[0].numpy(),
            costs=torch.stack(costs).double().numpy(),
            share=float(record.real_share[0]),
            bounds=(float(record.fixed_cost), float(record.full_real_cost)),
            head=head,
            neck=self._neck_cost(record.size),
            ops=_mean_ops(record),
        )

    def _neck_cost(self, size: tuple[int, int]) -> float:
        if not isinstance(self._neck, Backbone):
            return 0.0
        if size not in self._neck_macs:
            self._neck_macs[size] = neck_macs(self._neck, *size)
        return self._neck_macs[size]

    def _head_macs(self, size: tuple[int, int]) -> float:
        """Of an image's size; of other heads than the decoder 0."""
        if not isinstance(self._head, DynamicRoutingDecoder):
            return 0.0
        space = self._routed.backbone.space
        return self._head.macs(list(space.map_sizes(*size))[: space.out_scales])

    def _figures(self, rows: list[_Row]) -> dict[str, Any]:
        begins = np.flatnonzero([r.first for r in rows])

        def per_image(values: list) -> np.ndarray:
            return np.add.reduceat(np.array(values), begins, axis=0) / 1e9

        fixed = np.stack([r.costs[1:] for r in rows]) / 1e9  # (forwards, sizes, 2)
        costs = per_image([r.costs[0] for r in rows])
        heads = per_image([r.head for r in rows])
        necks = per_image([r.neck for r in rows])
        bounds = per_image([r.bounds for r in rows]).mean(axis=0)
        activations = np.stack([r.activations for r in rows])
        gates = activations.reshape(len(rows), -1, 3)
        reached = np.stack([r.reached for r in rows])
        figures: dict[str, Any] = {
            "images": len(begins),
            "expected_gflops": costs[:, 0].mean(),
            "expected_gflops_std": costs[:, 0].std(),
            "real_gflops": costs[:, 1].mean(),
            "real_gflops_std": costs[:, 1].std(),
            "real_share": float(np.mean([r.share for r in rows])),
            "stem_gflops": bounds[0],
            "all_open_gflops": bounds[1],
        }
        if len(rows) > len(begins):
            figures["forwards"] = len(rows) / len(begins)
        if heads.any():
            figures["real_gflops_with_head"] = (costs[:, 1] + heads).mean()
        if necks.any():
            figures["real_gflops_with_neck"] = (costs[:, 1] + necks).mean()
        for number, (height, width) in enumerate(self._sizes):
            figures[f"expected_gflops_{height}x{width}"] = fixed[:, number, 0].mean()
            real = fixed[:, number, 1].mean()
            figures[f"real_gflops_{height}x{width}"] = real
            if necks.any():
                neck = self._neck_cost((height, width)) / 1e9
                figures[f"real_gflops_{height}x{width}_with_neck"] = real + neck
        figures["open_cells"] = float((reached & ~is_closed(gates.sum(axis=2))).mean())
        figures["reached_cells"] = float(reached.mean())
        ops = np.array([r.ops for r in rows])
        if not np.isnan(ops).all():
            figures["mean_ops"] = float(np.nanmean(ops))
        values = torch.from_numpy(np.stack([r.values for r in rows]))
        figures.update(self._refit(values))
        expert, centres = self._experts(values)
        if centres is not None:
            own = diversity(values, torch.from_numpy(centres), torch.from_numpy(expert))
            figures.update(_distances(own, "experts"))
            figures.update({f"images_expert_{k}": n for k, n in enumerate(own.sizes)})
        counted = [] if centres is None else np.bincount(expert, minlength=len(centres)).tolist()
        self._warn(activations, counted)
        self._write(rows, activations, reached, expert, centres)
        return figures

    def _warn(self, activations: np.ndarray, sizes: Sequence[int]) -> None:
        """Say in the log, and beside the results, where routing is none, though it should be."""
        backbone = self._routed.backbone
        space = backbone.space
        exists = np.zeros(activations.shape[1], bool)
        for cell in space.cells:
            exists[[3 * cell.index + transform for transform in cell.transforms]] = True
        judged: list[RoutingWarning | None] = []
        if backbone.looks:
            judged += [one_expert_holds([sizes], clusterings=1), gates_alike(activations)]
            if not backbone.network.stays_open:
                judged += [one_route(activations, exists), gates_open(activations, exists)]
        found = [
            RoutingWarning(warning.kind, warning.text, data=self._dataset_name)
            for warning in judged
            if warning is not None
        ]
        for warning in found:
            logger.warning("Routing on %s: %s", self._dataset_name, warning.text)
        if self._output_dir is not None:
            os.makedirs(self._output_dir, exist_ok=True)
            path = os.path.join(self._output_dir, f"{self._dataset_name}_{FILE}")
            write_text_atomically(path, warnings_text(found))

    def _refit(self, values: torch.Tensor) -> dict[str, float]:
        experts = self._routed.experts
        k = experts.num_experts if experts is not None else self._num_experts
        if len(values) < k:
            return {}
        found = kmeans(values, k, seed=self._seed)
        return _distances(diversity(values, found.centres, found.assignment), "refit")

    def _experts(self, values: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        experts = self._routed.experts
        if experts is None or experts.centres is None:
            return np.full(len(values), -1), None
        centres = experts.centres
        expert = experts.assign(values.to(centres.device))
        return expert.cpu().numpy(), centres.cpu().numpy()

    def _write(
        self,
        rows: list[_Row],
        activations: np.ndarray,
        reached: np.ndarray,
        expert: np.ndarray,
        centres: np.ndarray | None,
    ) -> None:
        if self._output_dir is None:
            return
        os.makedirs(self._output_dir, exist_ok=True)
        np.savez_compressed(
            os.path.join(self._output_dir, f"activations_{self._dataset_name}.npz"),
            file_names=np.array([r.name for r in rows]),
            first=np.array([r.first for r in rows]),
            activations=activations,
            reached=reached,
            expected_cost=np.array([r.costs[0, 0] for r in rows]),
            real_cost=np.array([r.costs[0, 1] for r in rows]),
            all_open_cost=np.array([r.bounds[1] for r in rows]),
            expert=expert,
            centres=np.zeros((0, activations.shape[1])) if centres is None else centres,
            scales_per_layer=np.array(self._routed.backbone.space.scales_per_layer),
        )


def _mean_ops(record: Routing) -> float:
    if record.op_weights is None:
        return float("nan")
    ran = (record.op_weights[0] > 0).sum(1)  # (cells,)
    return float(ran[ran > 0].double().mean())


def _distances(found: Diversity, of: str) -> dict[str, float]:
    return {
        f"inter_{of}": found.inter,
        f"intra_pairs_{of}": found.intra_pairs,
        f"intra_centre_{of}": found.intra_centre,
    }


def check_sizes(sizes: Sequence) -> list[tuple[int, int]]:
    """``MODEL.ROUTING.COST_SIZES`` as (height, width) pairs.

    Raises:
        ConfigError: an entry is no pair of positive whole numbers.
    """
    pairs = []
    for size in sizes:
        if len(size) != 2 or any(int(n) != n or n < 3 for n in size):
            raise ConfigError(
                f"MODEL.ROUTING.COST_SIZES holds {size}; give (height, width) pairs in pixels"
            )
        pairs.append((int(size[0]), int(size[1])))
    return pairs
