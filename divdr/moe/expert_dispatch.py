"""Running the chosen experts alone: gather, run, scatter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..routing import to_device


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


def run_groups(
    experts: Experts, x: Tensor, chosen: Tensor, on_host: Tensor | None = None
) -> Iterator[Group]:
    """Run every expert once, on the samples that chose it; one that nobody chose does not run.

    The host looks at ``chosen`` once, whatever the number of experts.

    Args:
        experts: E modules, or functions.
        x: (N, ...) the batch.
        chosen: (N, E) bool; a sample can choose several experts, or none.
        on_host: the same on the host, where it has been looked at already.

    Yields:
        The groups that are not empty, in the order of the experts.
    """
    rows_of_all = _rows(chosen, chosen.cpu() if on_host is None else on_host)
    for number, (expert, (rows, places)) in enumerate(zip(experts, rows_of_all, strict=False)):
        if len(places):
            # The whole batch needs no copy.
            part = x if len(places) == len(x) else x[rows]
            yield Group(number, rows, expert(part), places)


def run_all(experts: Experts, x: Tensor, chosen: Tensor) -> Iterator[Group]:
    """What :func:`run_groups` yields, after every expert has run on the whole batch.

    This is what dispatch by groups is compared with.
    """
    rows_of_all = _rows(chosen, chosen.cpu())
    for number, (expert, (rows, places)) in enumerate(zip(experts, rows_of_all, strict=False)):
        output = expert(x)
        if len(places):
            yield Group(number, rows, output[rows], places)


def _rows(chosen: Tensor, on_host: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of every expert the places (R,) that chose it, where ``chosen`` is and on the host."""
    places = [column.nonzero()[:, 0] for column in on_host.unbind(1)]
    if chosen.device.type == "cpu":
        return [(each, each) for each in places]
    return list(zip(_uploaded(places, chosen.device), places, strict=True))


def _uploaded(parts: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Numbers of the host on a device, all in one copy."""
    if not parts:
        return ()
    return to_device(torch.cat(list(parts)), device).split([len(each) for each in parts])


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

    Groups without any are left out, so that not even a zero gradient reaches their experts. The
    host waits for nothing where ``wanted`` is there already, as the rows of the groups mostly are.
    """
    host = wanted.cpu()
    all_places = [g.rows.cpu() if g.places is None else g.places for g in groups]
    kept = [
        host[places, group.expert].nonzero()[:, 0]
        for group, places in zip(groups, all_places, strict=True)
    ]
    device = groups[0].rows.device if groups else host.device
    parts = []
    for group, places, few, own in zip(
        groups, all_places, kept, _uploaded(kept, device), strict=True
    ):
        if len(few) == len(places):
            parts.append(group)
        elif len(few):
            parts.append(Group(group.expert, group.rows[own], group.output[own], places[few]))
    return parts
