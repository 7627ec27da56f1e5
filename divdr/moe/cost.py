"""Multiply-adds of classifiers as their papers count them: convolutions and linear layers alone.

divdr prints them as FLOPs, as Collaboration of Experts does. DynK-Hydra prints two a multiply-add
(its Table 3 fits to that and to nothing else).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


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
