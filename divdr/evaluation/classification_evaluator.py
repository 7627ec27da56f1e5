"""Accuracy of image classifiers, and what ran for it."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence

import torch
from detectron2.evaluation import DatasetEvaluator

from ..errors import DataError
from .routing_evaluator import gathered

logger = logging.getLogger(__name__)


class ClassificationEvaluator(DatasetEvaluator):
    """Reports, under "classification", per cent of the images whose class is right.

    ``top1`` and ``top5`` (the true class is among the five of the largest scores; with fewer than
    six classes it is left out); ``top1-NAME`` of each class that has images. An image with a score
    that is infinite or no number counts as wrong.

    Args:
        classes: their names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = list(classes)
        self._results: list[tuple[int, int]] = []

    def reset(self) -> None:
        """Forget the images."""
        self._results = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Note the rank of the true class: how many others have a larger score; behind all others
        where a score is not finite.

        Raises:
            DataError: an image's label is no class.
        """
        if not inputs:
            return
        for item in inputs:
            if not 0 <= item["label"] < len(self._classes):
                raise DataError(
                    f"image {item.get('file_name', item.get('image_id'))} has label "
                    f"{item['label']}; classes are 0 to {len(self._classes) - 1}"
                )
        # A batch of scores crosses from a GPU once.
        scores = torch.stack([output["scores"] for output in outputs]).cpu()
        labels = torch.tensor([item["label"] for item in inputs])
        own = scores.gather(1, labels[:, None])
        # Of equal scores the lower class comes first, as argmax has it.
        lower = torch.arange(scores.shape[1]) < labels[:, None]  # tasks can have fewer classes
        before = ((scores > own) | (lower & (scores == own))).sum(1)
        # Comparisons with what is no number are false.
        ranks = before.where(scores.isfinite().all(1), torch.tensor(len(self._classes)))
        self._results.extend(zip(labels.tolist(), ranks.tolist(), strict=True))

    def evaluate(self) -> OrderedDict | None:
        """{"classification": figures} on the main process, None on the others."""
        rows = gathered(self._results)
        if not rows:
            return None if rows is None else OrderedDict()
        labels, ranks = torch.tensor(rows).T
        broken = int((ranks == len(self._classes)).sum())
        if broken:
            logger.warning("The scores of %d images are not finite; they count as wrong", broken)
        figures = {"images": len(labels), "top1": _percent(ranks < 1)}
        if len(self._classes) > 5:
            figures["top5"] = _percent(ranks < 5)
        for number, name in enumerate(self._classes):
            if bool((labels == number).any()):
                figures[f"top1-{name}"] = _percent(ranks[labels == number] < 1)
        return OrderedDict(classification=figures)


class ClassifierCostEvaluator(DatasetEvaluator):
    """Reports, under "cost", means per image of what ran.

    ``mflops`` is 10⁶ multiply-adds of convolutions and linear layers; so counts all of divdr, and
    Collaboration of Experts, while DynK-Hydra's tables print twice that. ``mean_branches`` is λ,
    the number of branches or experts that ran. ``ended_early`` is per cent of the images for which
    no expert ran. ``parameters`` are those of the whole model, ``loaded`` the mean of those that
    ran for an image ("MAC" of Collaboration of Experts, Table 2), where the model tells them.

    Args:
        parameters: numbers in the model, for comparison.
        ends_early: whether the system can end before an expert runs, and that is reported.
    """

    def __init__(self, parameters: int, *, ends_early: bool = False) -> None:
        self._parameters = parameters
        self._ends_early = ends_early
        self._results: list[tuple[float, int, float]] = []

    def reset(self) -> None:
        """Forget the images."""
        self._results = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Note what ran for each image."""
        self._results.extend(
            (output["macs"], int(output["ran"].sum()), output.get("loaded", -1.0))
            for output in outputs
        )

    def evaluate(self) -> OrderedDict | None:
        """{"cost": figures} on the main process, None on the others."""
        rows = gathered(self._results)
        if not rows:
            return None if rows is None else OrderedDict()
        found = torch.tensor(rows, dtype=torch.float64)
        macs, branches, loaded = found.mean(0).tolist()
        figures = {
            "mflops": macs / 1e6,
            "mean_branches": branches,
            "parameters": self._parameters,
        }
        if loaded >= 0:
            figures["loaded"] = loaded
        if self._ends_early:
            figures["ended_early"] = _percent(found[:, 1] == 0)
        return OrderedDict(cost=figures)


def _percent(right: torch.Tensor) -> float:
    return 100 * float(right.double().mean())
