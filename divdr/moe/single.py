"""One network, a plain ensemble of several, and how their answers become one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embedding import check_labels
from .multiply_adds import each_macs
from .resnet import initialise
from .system import Cost, Prediction, loaded_numbers


def log_mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """(N, C, ...) logarithm of the mean of the networks' probabilities.

    Args:
        logits: of each network, (N, C, ...).
    """
    logs = torch.stack([F.log_softmax(each.float(), 1) for each in logits])
    return logs.logsumexp(0) - math.log(len(logs))


class Stacking(nn.Module):
    """A linear layer on the log-probabilities of two networks, side by side.

    "Revisiting single-gated Mixtures of Experts" leaves open what exactly it sees and how it
    starts. Here it starts as half of each, the geometric mean of the two answers.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * num_classes, num_classes)
        with torch.no_grad():
            half = torch.eye(num_classes) / 2
            self.linear.weight.copy_(torch.cat([half, half], dim=1))
            self.linear.bias.zero_()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits (N, C) of both to logits (N, C)."""
        logs = [F.log_softmax(each.float(), 1) for each in (first, second)]
        return self.linear(torch.cat(logs, dim=1))


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

    #: All members learn from every batch.
    leaves_parameters_out = False

    def __init__(
        self, members: Sequence[nn.Module], num_classes: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.num_classes = num_classes
        self.in_channels = in_channels

    def forward(self, images: Tensor) -> Prediction:
        """(N, C, H, W) to logits: the logarithm of the mean probability."""
        answers = [member(images) for member in self.members]
        ran = torch.ones((len(images), len(self.members)), dtype=torch.bool, device=images.device)
        return Prediction(log_mean_probability(answers), ran)

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
        return Cost(0.0, each_macs(self.members, shape))

    def loads(self) -> Cost:
        """Numbers that are loaded for an image: those of all members."""
        return loaded_numbers(self, list(self.members), nn.Identity())
