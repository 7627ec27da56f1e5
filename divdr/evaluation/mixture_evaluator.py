"""What a single-gated mixture would reach by every choice that needs no training."""

from __future__ import annotations

import json
import os
from collections import OrderedDict

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..checkpoint import write_text_atomically
from ..modeling import ImageClassifier
from ..moe import SingleGate
from ..routing import to_host

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""τ of the curves."""


class MixtureEvaluator(DatasetEvaluator):
    """Reports, under "mixture", accuracy and cost of a mixture's alternatives.

    ``top1 NAME`` in per cent, ``mflops NAME`` in 10⁶ multiply-adds and ``experts NAME``, experts
    that ran, each a mean per image; NAME as in ``SingleGate.compared``. ``least_loss.json`` gets,
    for each class, the shares of its images for which each expert has the least loss (Figure 3).

    Args:
        model: around a ``SingleGate``.
        folder: gets the file.
    """

    def __init__(self, model: ImageClassifier, folder: str) -> None:
        self._folder = folder
        assert isinstance(model.system, SingleGate)
        self._model: ImageClassifier = model
        self._system: SingleGate = model.system
        self._sums: dict[str, torch.Tensor] = {}
        self._images: int = 0
        self._best: torch.Tensor = torch.zeros(self._system.num_classes, len(self._system.experts))

    def reset(self) -> None:
        """Forget the images."""
        self._sums = {}
        self._images = 0
        self._best = torch.zeros(self._system.num_classes, len(self._system.experts))

    @torch.no_grad()
    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Look at a batch again, with all experts."""
        images, labels = self._model.batch(inputs), self._model.labels(inputs)
        self._images += len(images)
        cost = self._system.cost(*images.shape[-2:])
        found = self._system.compared(images, labels, THRESHOLDS)
        predictions = found.predictions
        right = [(logits.argmax(1) == labels).sum() for logits, _ in predictions.values()]
        ran = [each for _, each in predictions.values()]
        best = [found.losses.argmin(1)] if self._best.shape[1] else []
        # All of it crosses from a GPU at once.
        count = len(predictions)
        moved = to_host([*right, *ran, labels, *best])
        for name, hits, chosen in zip(predictions, moved[:count], moved[count:], strict=False):
            row = torch.stack([hits.double(), cost.of(chosen).sum(), chosen.sum().double()])
            self._sums[name] = self._sums.get(name, torch.zeros(3, dtype=torch.float64)) + row
        for nearest in moved[2 * count + 1 :]:
            own = (moved[2 * count], nearest)
            self._best.index_put_(own, torch.ones(len(labels)), accumulate=True)

    def evaluate(self) -> OrderedDict | None:
        """{"mixture": figures} on the main process, None on the others."""
        parts = comm.gather((self._sums, self._images, self._best))
        if not comm.is_main_process():
            return None
        images = sum(part[1] for part in parts)
        if not images:
            return OrderedDict()
        figures: dict[str, float] = {}
        for name in parts[0][0] or next(p[0] for p in parts if p[0]):
            sums = torch.stack([part[0][name] for part in parts if part[0]]).sum(0) / images
            figures[f"top1 {name}"] = 100 * float(sums[0])
            figures[f"mflops {name}"] = float(sums[1]) / 1e6
            figures[f"experts {name}"] = float(sums[2])
        best = torch.stack([part[2] for part in parts]).sum(0)
        shares = (best / best.sum(1, keepdim=True).clamp(min=1)).tolist()
        os.makedirs(self._folder, exist_ok=True)
        path = os.path.join(self._folder, "least_loss.json")
        write_text_atomically(path, json.dumps(shares))
        return OrderedDict(mixture=figures)
