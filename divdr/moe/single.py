"""One network, and a plain ensemble of several, and what every system predicts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .embedding import check_labels
from .resnet import initialise


class Prediction(NamedTuple):
    """Of a batch.

    Attributes:
        logits: (N, C), of the classes.
        ran: (N, E) bool, experts or branches that ran for each image; E is 1 for one network.
    """

    logits: Tensor
    ran: Tensor


class Cost(NamedTuple):
    """Multiply-adds for one image.

    Attributes:
        shared: what always runs.
        experts: of each expert, if it runs.
    """

    shared: float
    experts: tuple[float, ...]

    def of(self, ran: Tensor) -> Tensor:
        """(N,) float64 multiply-adds of images for which the experts (N, E) ran."""
        values = torch.tensor(self.experts, dtype=torch.float64, device=ran.device)
        return self.shared + ran.double() @ values


@runtime_checkable
class ClassificationSystem(Protocol):
    """A module (N, 3 or 1, H, W) → :class:`Prediction`, which in training gives losses.

    A system that learns otherwise as training goes on has :class:`Progress` too. One of several
    tasks has their number as ``tasks``, and takes the number (N,) of each image's as a last
    argument of its call and its losses.
    """

    num_classes: int

    def __call__(self, images: Tensor) -> Prediction:
        """Predict."""
        ...

    def losses(self, images: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Weighted losses of a batch; ``labels`` (N,) int64."""
        ...

    def cost(self, height: int, width: int) -> Cost:
        """Multiply-adds at an image size."""
        ...


@runtime_checkable
class Progress(Protocol):
    """Whatever wants to know how far training is.

    Attributes:
        progress: share of training that is done, 0 to 1; whoever trains sets it before each step.
    """

    progress: float


def part_macs(module: nn.Module, shape: Sequence[int]) -> tuple[float, tuple[int, ...]]:
    """Multiply-adds of a module in evaluation for one input, and the shape of its output.

    It runs on a copy without data, so that any module that returns one tensor will do.

    Args:
        module: of any kind; it is not changed.
        shape: of one input, without the batch.

    Returns:
        Multiply-adds, and the output's shape without the batch.
    """
    twin = copy.deepcopy(module).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        output = twin(torch.empty((1, *shape), device="meta"))
    # PyTorch counts two operations a multiply-add.
    return counter.get_total_flops() / 2, tuple(output.shape[1:])


def num_parameters(module: nn.Module) -> int:
    """Numbers in a module's parameters."""
    return sum(p.numel() for p in module.parameters())


class StageClassifier(nn.Module):
    """Stem, one branch, global average pooling and a linear layer: an ordinary network.

    Args:
        stem: images to maps.
        branch: the stem's maps to others.
        channels: of the branch's maps.
        num_classes: C.
    """

    def __init__(self, stem: nn.Module, branch: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.branch = branch
        self.classify = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3 or 1, H, W) to logits (N, C)."""
        return self.classify(self.branch(self.stem(images)).mean(dim=(2, 3)))


class Ensemble(nn.Module):
    """Classifiers that all run; their probabilities are averaged. One of them is a single network.

    Args:
        members: E classifiers, images to logits, trained each by its own cross-entropy.
        num_classes: C.
        in_channels: of the images.
    """

    def __init__(
        self, members: Sequence[nn.Module], num_classes: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.num_classes = num_classes
        self.in_channels = in_channels

    def forward(self, images: Tensor) -> Prediction:
        """(N, C, H, W) to logits: the logarithm of the mean probability."""
        logs = torch.stack([F.log_softmax(member(images).float(), 1) for member in self.members])
        ran = torch.ones((len(images), len(self.members)), dtype=torch.bool, device=images.device)
        return Prediction(logs.logsumexp(0) - torch.tensor(float(len(logs))).log(), ran)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The sum of the members' cross-entropies.

        Raises:
            DataError: a label is no class.
        """
        check_labels(labels, self.num_classes)
        own = [F.cross_entropy(member(images).float(), labels) for member in self.members]
        return {"loss_classes": torch.stack(own).sum()}

    def cost(self, height: int, width: int) -> Cost:
        """Multiply-adds at an image size; a single network's branch is all of it."""
        shape = (self.in_channels, height, width)
        return Cost(0.0, tuple(part_macs(member, shape)[0] for member in self.members))
