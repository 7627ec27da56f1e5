"""What experts and delegator learn from a batch (Collaboration of Experts, Sections 3.2 to 3.4).

From two matrices (N, E) of samples and experts, how well each expert knows each sample and which
expert the delegator would choose: LGM makes the label that the expert selector learns, SRM how much
that counts, and WGM how much each expert's loss on each sample counts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..routing import to_device
from ..settings import TeachingSettings
from .choice import one_hot_choice
from .embedding import gather_rows
from .system import Stage
from .transport import vogel_assignment


class Lesson(NamedTuple):
    """Of N samples and E experts; constants, no gradient passes through them.

    Attributes:
        labels: (N,) int64, the expert that the delegator should choose (L of Eq. 3).
        selection_weights: (N,), of the samples in the selection loss (v of Eq. 7).
        expert_weights: (N, E), of the experts' losses on the samples (W of Eq. 6).
    """

    labels: Tensor
    selection_weights: Tensor
    expert_weights: Tensor


@torch.no_grad()
def teach(tcp: Tensor, probabilities: Tensor, alpha: float, settings: TeachingSettings) -> Lesson:
    """LGM, SRM and WGM for samples among which the experts are to share alike.

    Args:
        tcp: (N, E), true class probability of each expert (Eq. 1).
        probabilities: (N, E), the delegator's, of choosing each.
        alpha: α of Eq. 5.
        settings: which modules are on.

    Returns:
        The lesson. Fewer samples than experts, or none, cannot be shared: all weights are 0 then.
        Values that are not finite are shared out too, and their weights are not finite: the losses
        tell of them.
    """
    samples, experts = tcp.shape
    tcp, probabilities = tcp.double(), probabilities.double()
    if samples < experts:
        return Lesson(tcp.argmax(1), tcp.new_zeros(samples), torch.zeros_like(tcp))
    suitability = standardised(tcp) if settings.lgm == "balanced" else tcp  # (N, E)
    labels = assign(suitability, balanced=settings.lgm == "balanced")
    if settings.srm:
        counts = selection_weights(suitability)
    else:
        counts = torch.full_like(tcp[:, 0], 1 / samples)
    portions = labels
    if settings.wgm in ("delegator", "free"):
        portions = assign(probabilities, balanced=settings.wgm == "delegator")
    one_hot = one_hot_choice(portions, experts).double()  # (N, E)
    if settings.wgm == "none":
        weights = torch.full_like(tcp, 1 / samples)
    elif settings.wgm == "free":
        # Without Eq. 6 the loss is a sum over the batch; E / N keeps it as large as with it.
        weights = one_hot * (experts / samples)
    else:
        weights = expert_weights(one_hot, alpha)
    return Lesson(labels, counts, weights)


@torch.no_grad()
def teach_subtasks(
    tcp: Tensor, probabilities: Tensor, subtask: Tensor, alpha: float, settings: TeachingSettings
) -> Lesson:
    """Lessons of several subtasks, each by :func:`teach` for itself (Appendix A.2).

    Args:
        tcp: (N, E), of the E experts of each sample's subtask.
        probabilities: (N, E), likewise.
        subtask: (N,) its number.
        alpha: α of Eq. 5.
        settings: which modules are on.

    Returns:
        The lesson, in the order of the samples.
    """
    whole = Lesson(
        torch.zeros(len(tcp), dtype=torch.int64, device=tcp.device),
        tcp.new_zeros(len(tcp)),
        torch.zeros_like(tcp),
    )
    for number in subtask.unique():
        rows = (subtask == number).nonzero()[:, 0]
        part = teach(tcp[rows], probabilities[rows], alpha, settings)
        for target, found in zip(whole, part, strict=True):
            target[rows] = found.to(target.dtype)
    return whole


def common_lesson(
    tcp: Tensor,
    probabilities: Tensor,
    alpha: float,
    settings: TeachingSettings,
    subtask: Tensor | None = None,
) -> Lesson:
    """The lesson of this process's samples, from those of all processes; a collective call.

    Args:
        tcp: (M, n), see :func:`teach`.
        probabilities: (M, n), likewise.
        alpha: α of Eq. 5.
        settings: which modules are on.
        subtask: (M,) number of each sample's subtask, of which each teaches for itself; None: one.
    """
    experts = tcp.shape[1]
    numbers = torch.zeros_like(tcp[:, 0]) if subtask is None else subtask.to(tcp.dtype)
    together, own = gather_rows(torch.cat([tcp, probabilities, numbers[:, None]], dim=1))
    device = together.device
    # The assignment goes step by step: on a device each would let the host wait, here it does once.
    tcp, probabilities, numbers = together.cpu().split([experts, experts, 1], dim=1)
    if subtask is None:
        lesson = teach(tcp, probabilities, alpha, settings)
    else:
        lesson = teach_subtasks(tcp, probabilities, numbers[:, 0], alpha, settings)
    return Lesson(*(to_device(part[own], device) for part in lesson))


def common_portions(expert: Tensor, experts: int, alpha: float) -> Tensor:
    """(M, n) weights of the experts' losses where each sample has an expert; a collective call.

    Eq. 5 and 6 over the samples of all processes, as the comparisons of Table 3 have them.

    Args:
        expert: (M,) int64 number of each sample's expert.
        experts: n.
        alpha: α of Eq. 5.
    """
    together, own = gather_rows(one_hot_choice(expert, experts).double())
    return expert_weights(together, alpha)[own]


class DelegatorFirst:
    """Stages of a system whose delegator trains before the experts do (Section 3.5).

    Attributes:
        settings: α at the start and the end of the second stage.
        delegator_share: share of training that is the first stage; 0: there is none.
        progress: how far training is, 0 to 1.
    """

    settings: TeachingSettings
    delegator_share: float
    progress: float = 0.0

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Delegator, then experts; of a delegator that is trained already, experts alone."""
        experts = Stage("experts", self.delegator_share)
        return (Stage("delegator", 0.0), experts) if self.delegator_share else (experts,)

    @property
    def trains_delegator(self) -> bool:
        """Whether training is in the first stage."""
        return self.progress < self.delegator_share

    @property
    def alpha(self) -> float:
        """α of Eq. 5, which grows linearly over the second stage and ends with the training."""
        share = self.delegator_share
        return self.settings.alpha_at((self.progress - share) / (1 - share))


def true_class_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """(R,) float32 probability of the true class (Eq. 1), detached.

    Args:
        logits: (R, C), an expert's.
        labels: (R,) int64.
    """
    return logits.detach().float().softmax(1).gather(1, labels[:, None])[:, 0]


def standardised(tcp: Tensor) -> Tensor:
    """(N, E) each expert's probabilities less their mean, over their deviation (Eq. 2).

    An expert that is as sure of every sample as of any other gets 0 for all.
    """
    deviation = tcp.std(0, correction=0)  # (E,)
    return (tcp - tcp.mean(0)) / deviation.clamp_min(1e-6)


def assign(values: Tensor, *, balanced: bool) -> Tensor:
    """(N,) int64 the expert of each sample for a large sum of values (N, E) (Eq. 3 and 4).

    Args:
        values: larger is better.
        balanced: every expert gets N / E samples, the first ones one more where that is no whole
            number, by Vogel's approximation; else each sample takes its best expert.
    """
    values = torch.nan_to_num(values)
    return vogel_assignment(-values) if balanced else values.argmax(1)


def selection_weights(suitability: Tensor) -> Tensor:
    """(N,) the deviation among the experts (N, E), as shares of its sum (Eq. 7).

    Where the experts differ on no sample, all count the same.
    """
    deviation = suitability.std(1, correction=0)  # (N,)
    total = deviation.sum()
    if float(total) <= 0:
        return torch.full_like(deviation, 1 / max(1, len(deviation)))
    return deviation / total


def expert_weights(assigned: Tensor, alpha: float) -> Tensor:
    """(N, E) smoothed by α (Eq. 5), then every column divided by its sum Z (Eq. 6).

    Z is N / E where that is a whole number; with its own sum each expert's weights add up to one
    also where it is not.

    Args:
        assigned: (N, E), one-hot rows.
        alpha: 1 leaves the assignment as it is, 0 makes all alike.
    """
    smoothed = alpha * assigned + (1 - alpha) / assigned.shape[1]
    total = smoothed.sum(0)  # (E,)
    return smoothed / torch.where(total > 0, total, torch.ones_like(total))
