"""What experts and delegator learn from a batch (Collaboration of Experts, Sections 3.2 to 3.4).

From two matrices (N, E) of samples and experts, how well each expert knows each sample and which
expert the delegator would choose: LGM makes the label that the expert selector learns, SRM how much
that counts, and WGM how much each expert's loss on each sample counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..settings import mixtures
from .expert_dispatch import one_hot_choice
from .transport import vogel_assignment

WGM = mixtures.CollaborationSettings.choices("wgm")
LGM = mixtures.CollaborationSettings.choices("lgm")


@dataclass
class TeachingSettings:
    """The modules, whole or as the paper's Table 8 takes them apart.

    Attributes:
        wgm: where the experts' portions come from. "delegator": its probabilities, balanced and
            smoothed; "labels": the selection labels (WGM*); "free": its probabilities without
            balance, smoothing and normalisation (WGM°); "none": all samples count the same for
            every expert (without WGM).
        alpha: α at the start and at the end of the experts' training; 0.8 twice is WGM•.
        lgm: "balanced": standardised, the same number of samples for every expert; "free": the
            expert with the largest true class probability (LGM*).
        srm: whether samples on which experts differ count more.

    Raises:
        ConfigError: a name is unknown, or α not within 0 and 1.
    """

    wgm: str = mixtures.CollaborationSettings.wgm
    alpha: tuple[float, float] = mixtures.CollaborationSettings.alpha
    lgm: str = mixtures.CollaborationSettings.lgm
    srm: bool = mixtures.CollaborationSettings.srm

    def __post_init__(self) -> None:
        for name, value, known in (("WGM", self.wgm, WGM), ("LGM", self.lgm, LGM)):
            if value not in known:
                raise ConfigError(f"{name} {value!r} is unknown; known are {', '.join(known)}")
        if len(self.alpha) != 2 or not all(0 <= value <= 1 for value in self.alpha):
            raise ConfigError(f"α must be two numbers between 0 and 1, not {list(self.alpha)}")

    def alpha_at(self, done: float) -> float:
        """α, linear over the experts' training, of which a share ``done`` is over."""
        first, last = self.alpha
        return first + (last - first) * min(1.0, max(0.0, done))


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
        student = (logits / self.temperature).log_softmax(1)
        divergence = F.kl_div(student, targets, reduction="none").sum(1)
        hard = F.cross_entropy(logits, labels, reduction="none")
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * divergence
