"""The light network that sees every sample first (Collaboration of Experts, Figures 2 and 6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError


class Delegation(NamedTuple):
    """What the delegator says of N samples.

    Attributes:
        rough: (N, C) logits of the rough prediction.
        selection: (N, E) logits of the experts.
        subtask: (N, S) logits of the subtasks, each of which has E / S experts one after the other.
    """

    rough: Tensor
    selection: Tensor
    subtask: Tensor

    def confident(self, threshold: float) -> Tensor:
        """(N,) bool: the predicted class's probability is above τ, so that no expert has to run."""
        return self.rough.float().softmax(1).amax(1) > threshold

    def subtasks(self) -> Tensor:
        """(N,) int64, the most probable subtask."""
        return self.subtask.argmax(1)

    def visible(self) -> Tensor:
        """(N, E / S) logits of the experts of each sample's subtask; the others are not seen."""
        groups = self.selection.unflatten(1, (self.subtask.shape[1], -1))
        return groups[torch.arange(len(groups), device=groups.device), self.subtasks()]

    def experts(self) -> Tensor:
        """(N,) int64, the expert that is chosen."""
        visible = self.visible()
        return self.subtasks() * visible.shape[1] + visible.argmax(1)


class Delegator(nn.Module):
    """Feature extractor, task predictor and expert selector; with subtasks a subtask selector too.

    Args:
        extractor: samples (N, ...) to features (N, D).
        width: D.
        num_classes: C.
        experts: E.
        subtasks: S; 1 has no selector of its own.

    Raises:
        ConfigError: there is no expert, or they do not divide among the subtasks.
    """

    def __init__(
        self, extractor: nn.Module, width: int, num_classes: int, experts: int, subtasks: int = 1
    ) -> None:
        super().__init__()
        if experts < 1 or subtasks < 1 or experts % subtasks:
            raise ConfigError(f"{experts} experts do not divide among {subtasks} subtasks")
        self.extractor = extractor
        self.task_predictor = nn.Linear(width, num_classes)
        self.expert_selector = nn.Linear(width, experts)
        self.subtask_selector = nn.Linear(width, subtasks) if subtasks > 1 else None

    def forward(self, x: Tensor) -> Delegation:
        """Look at samples (N, ...)."""
        return self.delegate(self.extractor(x))

    def rough(self, x: Tensor) -> Tensor:
        """(N, C) logits of the rough prediction alone."""
        return self.task_predictor(self.extractor(x))

    def delegate(self, features: Tensor) -> Delegation:
        """Everything that features (N, D) say."""
        rough, subtask = self._fixed_heads(features)
        return Delegation(rough, self.expert_selector(features), subtask)

    def fixed(self, x: Tensor) -> Delegation:
        """Look at samples while the experts train: only the expert selector learns.

        Extractor, task predictor and subtask selector are fixed (Section 3.5, Appendix A.2), their
        BatchNorm and dropout included.
        """
        with torch.no_grad():
            features = self.extractor.eval()(x)
            rough, subtask = self._fixed_heads(features)
        # It must not run under no_grad before: autocast of PyTorch 2.9 and older then keeps its
        # weights in half precision without a graph, takes them again here, and nothing learns.
        return Delegation(rough, self.expert_selector(features), subtask)

    def _fixed_heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of classes and of subtasks."""
        if self.subtask_selector is None:
            subtask = features.new_zeros((len(features), 1))
        else:
            subtask = self.subtask_selector(features)
        return self.task_predictor(features), subtask
