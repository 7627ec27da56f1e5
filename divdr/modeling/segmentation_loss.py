"""The loss of semantic segmentation: class weights, hard pixels, label smoothing, Dice.

Shapes: N images, C classes, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..settings import SegmentationLossSettings


class SegmentationLoss(nn.Module):
    """Cross-entropy over labelled pixels, weighted by class, and Dice if the settings ask for it.

    - Plain: the mean over labelled pixels. With class weights w: Σ w(y)·CE / Σ w(y), so that the
      loss keeps its size whatever the weights are.
    - Hard pixels: Detectron2's ``DeepLabCE``, the mean of the largest w(y)·CE; the share is of all
      pixels of the batch, of which ignored ones have the loss 0, and at least one pixel is taken.
    - Dice: 1 − 2·Σ p·y / (Σ p + Σ y) over labelled pixels, mean over the classes that the batch's
      labels show.

    All are 0 where no pixel is labelled. Nothing of it belongs to the state dict.

    Args:
        num_classes: C.
        ignore_value: label that is left out.
        settings: see there.

    Attributes:
        class_weights: (C,), or None where all are alike.

    Raises:
        ConfigError: there are not as many class weights as classes, or ``DeepLabCE`` is missing.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        ignore_value: int = 255,
        settings: SegmentationLossSettings | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.settings = settings or SegmentationLossSettings()
        self.register_buffer("class_weights", None, persistent=False)
        if self.settings.class_weights:
            self.set_class_weights(self.settings.class_weights)
        if self.settings.hard_pixels < 1:
            _deeplab_loss()

    def set_class_weights(self, weights: Sequence[float]) -> None:
        """Take weights of classes.

        Raises:
            ConfigError: there are not as many as classes.
        """
        if len(weights) != self.num_classes:
            raise ConfigError(
                f"{self.settings.KEY}.CLASS_WEIGHTS has {len(weights)} numbers, and the head "
                f"{self.num_classes} classes"
            )
        device = None if self.class_weights is None else self.class_weights.device
        self.class_weights = torch.tensor(list(weights), dtype=torch.float32, device=device)

    def forward(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``loss_sem_seg``, and with Dice its ``loss_dice``, weighted by the settings.

        Args:
            logits: (N, C, H, W), of any precision.
            targets: (N, H, W) labels.

        Raises:
            ConfigError: classes are to be balanced, and nobody has counted them.
        """
        if self.settings.balance and self.class_weights is None:
            raise ConfigError(
                f'{self.settings.KEY}.BALANCE "{self.settings.balance}" needs a data set\'s '
                "frequencies, which divdr.engine.Trainer counts; elsewhere, give CLASS_WEIGHTS"
            )
        logits, targets = logits.float(), targets.long()
        losses = {"loss_sem_seg": self._cross_entropy(logits, targets)}
        if self.settings.dice > 0:
            losses["loss_dice"] = self._dice(logits, targets) * self.settings.dice
        return losses

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights = self.class_weights
        if weights is not None:
            weights = weights.to(logits.device)
        if self.settings.hard_pixels < 1:
            # A share of less than one pixel would be a mean over none, NaN.
            share = max(self.settings.hard_pixels, 1.5 / max(2, targets.numel()))
            hard = _deeplab_loss()(self.ignore_value, share, weights)
            assert isinstance(hard.criterion, nn.CrossEntropyLoss)
            hard.criterion.label_smoothing = self.settings.label_smoothing
            return hard(logits, targets)
        total = F.cross_entropy(
            logits,
            targets,
            weights,
            ignore_index=self.ignore_value,
            reduction="sum",
            label_smoothing=self.settings.label_smoothing,
        )
        labelled = targets != self.ignore_value
        if weights is None:
            return total / labelled.sum().clamp(min=1)
        weight = (weights[targets.where(labelled, 0)] * labelled).sum()
        return total / torch.where(weight > 0, weight, torch.ones_like(weight))

    def _dice(self, logits: Tensor, targets: Tensor) -> Tensor:
        labelled = targets != self.ignore_value
        found = logits.softmax(1) * labelled[:, None]
        numbers = torch.arange(self.num_classes, device=targets.device)[:, None, None]
        classes = (targets[:, None] == numbers) & labelled[:, None]
        both = (found * classes).sum((0, 2, 3))
        pixels = classes.sum((0, 2, 3))
        # Of a class in the labels it is 1 or more; of others it may be 0, and 0 / 0 has no slope.
        each = 1 - 2 * both / (found.sum((0, 2, 3)) + pixels).clamp(min=1e-6)
        there = pixels > 0
        return each.where(there, 0).sum() / there.sum().clamp(min=1)


def _deeplab_loss() -> type[nn.Module]:
    try:
        from detectron2.projects.deeplab.loss import DeepLabCE
    except ImportError:
        raise ConfigError(
            f"{SegmentationLossSettings.KEY}.HARD_PIXELS is DeepLabCE of Detectron2's project "
            "DeepLab (detectron2.projects.deeplab), which is not installed beside Detectron2; 1 "
            "learns from all pixels"
        ) from None
    return DeepLabCE
