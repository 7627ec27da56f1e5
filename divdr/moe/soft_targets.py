"""Learning from probabilities instead of labels: a teacher's, or a gate's that is fixed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..settings import mixtures


def divergence(targets: Tensor, logits: Tensor) -> Tensor:
    """(N,) KL(targets ‖ softmax(logits)) of each row (N, K)."""
    return F.kl_div(logits.float().log_softmax(1), targets.float(), reduction="none").sum(1)


class Distillation:
    """A teacher, which is no part of the model that it teaches: it is neither trained nor saved.

    Args:
        teacher: images to logits (N, C).
        weight: share of the loss that is the teacher's.
        temperature: T, divides the logits of both.

    Raises:
        ConfigError: the weight is not within 0 and 1, or the temperature not above 0.
    """

    def __init__(
        self,
        teacher: nn.Module,
        weight: float = mixtures.CollaborationSettings.distillation_weight,
        temperature: float = mixtures.CollaborationSettings.temperature,
    ) -> None:
        if not 0 <= weight <= 1:
            raise ConfigError(f"DISTILLATION_WEIGHT must be between 0 and 1, not {weight}")
        if temperature <= 0:
            raise ConfigError(f"TEMPERATURE must be above 0, not {temperature}")
        self.teacher = teacher.eval().requires_grad_(False)
        self.weight = weight
        self.temperature = temperature

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """(N, C) the teacher's probabilities at T."""
        logits = self.teacher.to(images.device)(images).float()
        return (logits / self.temperature).softmax(1)

    def loss(self, logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """(N,) (1 − w) · cross-entropy + w · T² · KL(teacher ‖ student)."""
        logits = logits.float()
        soft = divergence(targets, logits / self.temperature)
        hard = F.cross_entropy(logits, labels, reduction="none")
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * soft
