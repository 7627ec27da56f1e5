"""What every system promises: predictions, losses, cost, stages and thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..errors import ConfigError


class Prediction(NamedTuple):
    """Of a batch.

    Attributes:
        logits: (N, C), of the classes.
        ran: (N, E) bool, experts or branches that ran for each image; E is 1 for one network.
    """

    logits: Tensor
    ran: Tensor


class Cost(NamedTuple):
    """Multiply-adds for one image, or numbers that have to be loaded for it.

    Attributes:
        shared: what always runs.
        experts: of each expert, if it runs.
    """

    shared: float
    experts: tuple[float, ...]

    def of(self, ran: Tensor) -> Tensor:
        """(N,) float64, of images for which the experts (N, E) ran."""
        values = torch.tensor(self.experts, dtype=torch.float64, device=ran.device)
        return self.shared + ran.double() @ values


class Stage(NamedTuple):
    """A part of training, in which a part of a system learns.

    Attributes:
        name: "base", "gate", "experts", ...
        start: where it begins, as a share of the whole training.
    """

    name: str
    start: float

    def begins(self, iterations: int) -> int:
        """The first of so many iterations in which training has come as far as ``start``."""
        first = max(0, math.floor(self.start * iterations) - 1)
        # By the division that progress is made by: no rounding parts the two.
        while first < iterations and first / iterations < self.start:
            first += 1
        return first


class Staged(Protocol):
    """A system or a head that trains in stages; whoever trains it sets ``progress``, 0 to 1.

    Some have more: ``begin(stage, batches)``, called once before a stage's first step;
    ``first_progress`` and ``last_progress``, where training begins and ends; ``finished(folder)``,
    called after the last step.
    """

    progress: float

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages, by their starts."""
        ...


def stage_at(stages: Sequence[Stage], progress: float) -> Stage:
    """The stage that training is in: the last that has begun."""
    return [stage for stage in stages if stage.start <= progress][-1]


@runtime_checkable
class ClassificationSystem(Protocol):
    """A module (N, 3 or 1, H, W) → :class:`Prediction`, which in training gives losses.

    Some have more, which a trainer and the tools ask for by name: see :class:`Staged` and
    :class:`Thresholds`; ``at_thresholds(images, thresholds)``, predictions at several in one pass;
    ``loads()``, the numbers of parameters as a :class:`Cost`; ``dispatch``, how experts run in
    evaluation; ``leaves_parameters_out``, False where every parameter gets a gradient from every
    batch; ``tasks``, how many there are: with several, their call and their losses take the number
    (N,) of each image's task as a last argument.
    """

    num_classes: int

    def __call__(self, images: Tensor, *labels: Tensor) -> Prediction:
        """Predict; labels (N,) go to systems whose ``needs_labels`` is true alone."""
        ...

    def losses(self, images: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Weighted losses of a batch; ``labels`` (N,) int64."""
        ...

    def cost(self, height: int, width: int) -> Cost:
        """Multiply-adds at an image size."""
        ...


@runtime_checkable
class Thresholds(Protocol):
    """A system with a threshold τ that says, without training anew, how much runs."""

    threshold: float

    def check_threshold(self, threshold: float) -> None:
        """See that a τ is one, else raise ``ConfigError``."""
        ...


class ExitThreshold:
    """What has an early exit, by a probability τ as ``threshold``."""

    threshold: float

    @staticmethod
    def check_threshold(threshold: float) -> None:
        """See that a τ is one.

        Raises:
            ConfigError: it is not within 0 and 1.
        """
        check_probability(threshold, "the threshold τ of the early exit")


def check_probability(value: float, what: str) -> None:
    """See that a threshold is a probability.

    Args:
        value: the threshold.
        what: begins the error's sentence.

    Raises:
        ConfigError: it is not within 0 and 1.
    """
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{what} must be between 0 and 1, not {value}")


def loaded_numbers(system: nn.Module, experts: Sequence[nn.Module], unused: nn.Module) -> Cost:
    """Numbers of parameters that run for an image, whatever it is, and those of each expert.

    What a memory has to give for one image ("MAC" of Collaboration of Experts, Table 2).

    Args:
        system: the whole of it.
        experts: parts that run where they are chosen.
        unused: a part that never runs in evaluation.
    """
    each = tuple(float(num_parameters(expert)) for expert in experts)
    return Cost(num_parameters(system) - num_parameters(unused) - sum(each), each)


def num_parameters(module: nn.Module) -> int:
    """Numbers in a module's parameters."""
    return sum(p.numel() for p in module.parameters())
