"""Running the chosen experts alone: gather, run, scatter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """An expert's samples and what it made of them.

    Attributes:
        expert: its number.
        rows: (R,) int64, places of the samples in the batch, ascending.
        output: (R, ...), the expert's output for them.
        places: the rows on the host, so that nobody has to wait for a GPU to know them; None where
            they are not known there.
    """

    expert: int
    rows: Tensor
    output: Tensor
    places: Tensor | None = None


Experts = Iterable[Callable[[Tensor], Tensor]]
Dispatch = Callable[[Experts, Tensor, Tensor], Iterator[Group]]
"""Runs experts on a batch as (N, E) says: :func:`run_groups`, or :func:`run_all` beside it."""


def run_groups(experts: Experts, x: Tensor, chosen: Tensor) -> Iterator[Group]:
    """Run every expert once, on the samples that chose it; one that nobody chose does not run.

    The host looks at ``chosen`` once, whatever the number of experts.

    Args:
        experts: E modules, or functions.
        x: (N, ...) the batch.
        chosen: (N, E) bool; a sample can choose several experts, or none.

    Yields:
        The groups that are not empty, in the order of the experts.
    """
    for number, (expert, (rows, places)) in enumerate(zip(experts, _rows(chosen), strict=False)):
        if len(places):
            # The whole batch needs no copy.
            part = x if len(places) == len(x) else x[rows]
            yield Group(number, rows, expert(part), places)


def run_all(experts: Experts, x: Tensor, chosen: Tensor) -> Iterator[Group]:
    """What :func:`run_groups` yields, after every expert has run on the whole batch.

    This is what dispatch by groups is compared with.
    """
    for number, (expert, (rows, places)) in enumerate(zip(experts, _rows(chosen), strict=False)):
        output = expert(x)
        if len(places):
            yield Group(number, rows, output[rows], places)


def _rows(chosen: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of every expert the places (R,) that chose it, where ``chosen`` is and on the host."""
    places = [column.nonzero()[:, 0] for column in chosen.cpu().unbind(1)]
    if chosen.device.type == "cpu":
        return [(each, each) for each in places]
    sizes = [len(each) for each in places]
    rows = torch.cat(places).to(chosen.device, non_blocking=True).split(sizes)
    return list(zip(rows, places, strict=True))


def scatter_sum(groups: Sequence[Group], count: int, weights: Tensor | None = None) -> Tensor:
    """(count, ...) sum, for every sample, of the outputs of the experts that it chose.

    Samples without an expert get zeros. Gradients reach every output.

    Args:
        groups: at least one.
        count: N, size of the batch.
        weights: (N, E) of the outputs; None: 1.
    """
    first = groups[0].output
    total = first.new_zeros((count, *first.shape[1:]))
    for group in groups:
        output = group.output
        if weights is not None:
            own = weights[group.rows, group.expert].to(output.dtype)
            output = output * own.reshape(-1, *[1] * (output.dim() - 1))
        total = total.index_add(0, group.rows, output)
    return total


def overwrite(answers: Tensor, groups: Iterable[Group]) -> Tensor:
    """(N, ...) the answers, and in place of them, where an expert ran, what it says."""
    for group in groups:
        answers = answers.index_copy(0, group.rows, group.output.to(answers.dtype))
    return answers


def restrict(groups: Sequence[Group], wanted: Tensor) -> list[Group]:
    """Those rows of the groups for which ``wanted`` (N, E) holds.

    Groups without any are left out, so that not even a zero gradient reaches their experts.
    """
    parts = []
    host = wanted.cpu()
    for group in groups:
        places = group.rows.cpu() if group.places is None else group.places
        kept = host[places, group.expert].nonzero()[:, 0]
        if len(kept) == len(places):
            parts.append(group)
        elif len(kept):
            own = kept.to(group.rows.device, non_blocking=True)
            parts.append(Group(group.expert, group.rows[own], group.output[own], places[kept]))
    return parts
