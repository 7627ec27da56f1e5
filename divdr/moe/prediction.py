"""What every classification system promises, so that trainer and evaluators know none of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


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
    """A module (N, 3 or 1, H, W) → :class:`Prediction`, which in training gives losses."""

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
