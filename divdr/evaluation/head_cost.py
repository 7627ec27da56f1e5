"""Cost of heads, whose experts run for some proposals or windows and not for others."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import StandardROIHeads
from torch import nn

from ..modeling import SingleGateSegmentor
from ..modeling.roi_heads import MixtureROIHeads, box_cost
from ..moe import Cost, call_macs, without_data
from ..routing import to_host
from .augmented import parts_of
from .routing_evaluator import gathered


class _Watching(DatasetEvaluator):
    """Watches a module by a hook while images are evaluated, and notes a row for each."""

    def __init__(self) -> None:
        self._hook: Any = None
        self._rows: list = []

    def _finished(self) -> list | None:
        """The rows of all processes, see ``gathered``; from now on nothing is watched."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        return gathered(self._rows)


class BoxHeadCostEvaluator(_Watching):
    """Reports, under "box_head", means per image of what ran from pooled features to scores.

    ``gflops`` is 10⁹ multiply-adds of an image's proposals, ``mflops_per_proposal`` 10⁶ of one,
    ``proposals`` their number, and ``mean_experts``, for a mixture, the branches or experts that
    ran for a proposal. At several scales the proposals of all count. Mask and keypoint heads are
    not counted.

    Args:
        heads: of the evaluated model, see ``divdr.modeling.roi_heads.box_head_of``.
    """

    def __init__(self, heads: StandardROIHeads) -> None:
        super().__init__()
        self._heads = heads
        self._counts: list[list[int]] = []  # of every forward since the last batch
        self._shape: tuple[int, ...] = ()
        self._cost: Cost | None = None

    def reset(self) -> None:
        """Forget the images, and watch how many proposals are pooled from now on."""
        self._rows = []
        if self._hook is None:
            self._hook = self._heads.box_pooler.register_forward_hook(self._note)

    def _note(self, pooler: torch.nn.Module, args: tuple, pooled: torch.Tensor) -> None:
        self._counts.append([len(boxes) for boxes in args[1]])
        self._shape = tuple(pooled.shape[1:])

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Note what ran for each image of the batch."""
        if self._cost is None:
            self._cost = box_cost(self._heads, self._shape)
        if any(len(parts_of(*pair)) > 1 for pair in zip(inputs, outputs, strict=True)):
            # Image after image at the same scales, each on its own.
            views = len(self._counts) // len(inputs)
            alone = [counts[0] for counts in self._counts]
            counts = [sum(alone[i : i + views]) for i in range(0, len(alone), views)]
        else:
            counts = self._counts[-1]
        self._counts = []
        ran = self._heads.ran if isinstance(self._heads, MixtureROIHeads) else None
        if ran is None:
            ran = torch.zeros((sum(counts), 0), dtype=torch.bool)
        for part in ran.cpu().split(counts):
            self._rows.append((len(part), float(self._cost.of(part).sum()), int(part.sum())))

    def evaluate(self) -> OrderedDict | None:
        """{"box_head": figures} on the main process, None on the others."""
        rows = self._finished()
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


class SegmentationHeadCostEvaluator(_Watching):
    """Reports, under "sem_seg_head", means per image of what ran from backbone's maps to logits.

    ``gflops`` are 10⁹ multiply-adds, ``mean_experts``, for a mixture, the experts that ran for a
    row, which is an image or a window.

    Args:
        head: of the evaluated model, from maps by name to logits.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self._head = head
        self._shapes: dict[str, torch.Size] = {}
        self._macs: dict[tuple, float] = {}

    def reset(self) -> None:
        """Forget the images, and watch what maps the head gets from now on."""
        self._rows = []
        if self._hook is None:
            self._hook = self._head.register_forward_pre_hook(self._note)

    def _note(self, head: nn.Module, args: tuple) -> None:
        self._shapes = {name: maps.shape[1:] for name, maps in args[0].items()}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Note what ran for each image of the batch."""
        head = self._head
        if isinstance(head, SingleGateSegmentor):
            assert head.macs is not None
            assert head.ran is not None
            macs, ran = to_host([head.macs, head.ran])
            self._rows.extend(zip(macs.tolist(), ran.sum(1).tolist(), strict=True))
            return
        key = tuple(self._shapes.items())
        if key not in self._macs:
            maps = {n: torch.empty((1, *s), device="meta") for n, s in self._shapes.items()}
            self._macs[key] = call_macs(without_data(head), maps, "all")[0]
        self._rows.extend([(self._macs[key], 0.0)] * len(inputs))

    def evaluate(self) -> OrderedDict | None:
        """{"sem_seg_head": figures} on the main process, None on the others."""
        rows = self._finished()
        if not rows:
            return None if rows is None else OrderedDict()
        macs, experts = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
        figures = {"gflops": macs / 1e9}
        if isinstance(self._head, SingleGateSegmentor):
            figures["mean_experts"] = experts
        return OrderedDict(sem_seg_head=figures)
