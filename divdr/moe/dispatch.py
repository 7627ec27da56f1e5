"""Running the chosen experts alone: gather an expert's samples, run it, scatter what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Group(NamedTuple):
    """An expert's samples and what it made of them.

    Attributes:
        expert: its number.
        rows: (R,) int64, places of the samples in the batch, ascending.
        output: (R, ...), the expert's output for them.
    """

    expert: int
    rows: Tensor
    output: Tensor


Dispatch = Callable[[Iterable[nn.Module], Tensor, Tensor], Iterator[Group]]
"""Runs experts on a batch as (N, E) says: :func:`run_groups`, or :func:`run_all` beside it."""


def run_groups(experts: Iterable[nn.Module], x: Tensor, chosen: Tensor) -> Iterator[Group]:
    """Run every expert once, on the samples that chose it; one that nobody chose does not run.

    Args:
        experts: E modules.
        x: (N, ...) the batch.
        chosen: (N, E) bool; a sample can choose several experts, or none.

    Yields:
        The groups that are not empty, in the order of the experts.
    """
    for number, expert in enumerate(experts):
        rows = chosen[:, number].nonzero()[:, 0]
        if len(rows):
            # The whole batch needs no copy.
            yield Group(number, rows, expert(x if len(rows) == len(x) else x[rows]))


def run_all(experts: Iterable[nn.Module], x: Tensor, chosen: Tensor) -> Iterator[Group]:
    """What :func:`run_groups` yields, after every expert has run on the whole batch.

    This is what dispatch by groups is compared with.
    """
    for number, expert in enumerate(experts):
        output = expert(x)
        rows = chosen[:, number].nonzero()[:, 0]
        if len(rows):
            yield Group(number, rows, output[rows])


def scatter_sum(groups: Sequence[Group], count: int) -> Tensor:
    """(count, ...) sum, for every sample, of the outputs of the experts that it chose.

    Samples without an expert get zeros. Gradients reach every output.

    Args:
        groups: at least one.
        count: N, size of the batch.
    """
    first = groups[0].output
    total = first.new_zeros((count, *first.shape[1:]))
    for group in groups:
        total = total.index_add(0, group.rows, group.output)
    return total


def restrict(groups: Sequence[Group], wanted: Tensor) -> list[Group]:
    """Those rows of the groups for which ``wanted`` (N, E) holds.

    Groups without any are left out, so that not even a zero gradient reaches their experts.
    """
    parts = []
    for group in groups:
        keep = wanted[group.rows, group.expert]
        if bool(keep.any()):
            parts.append(Group(group.expert, group.rows[keep], group.output[keep]))
    return parts


def one_hot_choice(expert: Tensor, experts: int) -> Tensor:
    """(N, experts) bool from the number (N,) of each sample's expert; -1 chooses none."""
    return expert[:, None] == torch.arange(experts, device=expert.device)
