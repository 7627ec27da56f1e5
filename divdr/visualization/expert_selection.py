"""Which expert a delegator selects: by how sure it is of the true class, and by its own prediction.

Figures 7 and 8 of "Collaboration of Experts: Achieving 80% Top-1 Accuracy on ImageNet with 100M
FLOPs". C classes, E experts, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from detectron2.config import CfgNode
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage

from ..engine.classifier_analysis import trained_classifier
from ..errors import ConfigError
from ..modeling.classifiers import collaboration_of
from ..moe import true_class_probability
from .expert_choices import ExpertChoices, draw_shares, only_test_set

BINS = 10
"""Of equal width, of the true class's probability."""
_NAMED = 60
"""Up to so many classes have their names in the picture."""


@dataclass(frozen=True)
class ExpertSelection:
    """How often each expert was selected; images that end early count as well.

    Attributes:
        by_probability: (B, E) images by the delegator's probability of their true class (TCP).
        by_prediction: of images by the class that the delegator takes them for.
    """

    by_probability: np.ndarray
    by_prediction: ExpertChoices

    def table(self) -> str:
        """Both as shares, one after the other."""
        return f"{self._probabilities().table()}\n\n{self.by_prediction.table()}"

    def _probabilities(self) -> ExpertChoices:
        edges = np.linspace(0, 1, len(self.by_probability) + 1)
        names = [f"{low:.1f} to {high:.1f}" for low, high in pairwise(edges)]
        return ExpertChoices("TCP", self.by_prediction.experts, names, self.by_probability)

    def figure(self) -> Figure:
        """Shares of the experts by TCP on the left (Figure 7), by rough prediction on the right
        (Figure 8), where classes whose shares are alike stand together; with numbers of images,
        and without rows that have none.
        """
        left, right = _seen(self._probabilities()), _seen(self.by_prediction)
        order = _clustered(right.per_class())
        classes = [right.classes[number] for number in order]
        height = 1.4 + 0.3 * max(len(left.classes), min(len(classes), _NAMED))
        figure = Figure(figsize=(11, height), layout="constrained")
        axes = figure.subplots(1, 2)
        draw_shares(axes[0], left.per_class(), left.classes, left.experts)
        axes[0].set_title("Experts by TCP of the delegator")
        draw_shares(axes[1], right.per_class()[order], classes, right.experts)
        axes[1].set_title("Experts by rough prediction")
        if len(classes) > _NAMED:
            axes[1].set_yticks([])
        return figure


@torch.no_grad()
def expert_selection(cfg: CfgNode) -> ExpertSelection:
    """What a trained delegator selects for the images of ``DATASETS.TEST``.

    Args:
        cfg: of a model of build_coe_classifier.

    Raises:
        ConfigError: it is none, or there are several test sets.
    """
    model, batches = trained_classifier(cfg)
    system = collaboration_of(model)
    if system is None:
        raise ConfigError(
            "the model has no delegator: MODEL.CLASSIFIER.NAME is not build_coe_classifier"
        )
    _, classes = only_test_set(cfg)
    experts = [f"expert {number}" for number in range(len(system.experts))]
    by_probability = np.zeros((BINS, len(experts)), np.int64)
    by_class = np.zeros((len(classes), len(experts)), np.int64)
    for images, labels in batches():
        rough, selected = system.select(images)
        tcp = true_class_probability(rough, labels)
        bins = (tcp * BINS).long().clamp_max(BINS - 1)
        np.add.at(by_probability, (bins.cpu().numpy(), selected.cpu().numpy()), 1)
        np.add.at(by_class, (rough.argmax(1).cpu().numpy(), selected.cpu().numpy()), 1)
    predicted = ExpertChoices("rough prediction", experts, classes, by_class)
    return ExpertSelection(by_probability, predicted)


def _seen(choices: ExpertChoices) -> ExpertChoices:
    """Without rows that have no images, and with the number of images in the others' names."""
    images = choices.counts.sum(1)
    names = [f"{name} ({n})" for name, n in zip(choices.classes, images, strict=True) if n]
    return ExpertChoices(choices.decision, choices.experts, names, choices.counts[images > 0])


def _clustered(shares: np.ndarray) -> np.ndarray:
    """Order in which rows that are alike stand side by side, by hierarchical clustering."""
    if len(shares) < 3:
        return np.arange(len(shares))
    return leaves_list(linkage(shares, "average", optimal_ordering=True))
