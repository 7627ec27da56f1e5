"""Rows of a batch from all processes, for statistics that must not depend on how it is divided."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..routing import process_count


@torch.no_grad()
def gather_rows(rows: Tensor) -> tuple[Tensor, slice]:
    """Rows (R, D) of all processes, in the order of their ranks; a collective call.

    Args:
        rows: of this process; every process may have another number of them, or none.

    Returns:
        (M, D) the same on all processes, and where this one's rows stand in it.
    """
    count = process_count()
    if count == 1:
        return rows.detach(), slice(0, len(rows))
    own = torch.tensor([len(rows)], device=rows.device)
    lengths = [torch.zeros_like(own) for _ in range(count)]
    dist.all_gather(lengths, own)
    sizes = [int(length) for length in lengths]
    padded = rows.new_zeros((max(sizes), rows.shape[1]))
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded)
    start = sum(sizes[: dist.get_rank()])
    every = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return every, slice(start, start + len(rows))


@torch.no_grad()
def common_divisors(counts: Tensor) -> Tensor:
    """What sums over this process's samples are divided by to be means over those of all.

    DDP takes the mean of the processes' gradients. A mean over the samples that one process has of
    a kind would so weigh less the fewer processes have any; a sum over them, divided by the mean
    number of such samples in a process, gives what one process with all of them would learn.

    Args:
        counts: (E,) samples of each kind in this process; a collective call.

    Returns:
        (E,) float32, the mean over the processes, the same on all.
    """
    total = counts.clone()
    add_up(total)
    return total / process_count()


@torch.no_grad()
def add_up(*values: Tensor) -> None:
    """Replace each tensor, in place, by its sum over all processes; a collective call."""
    if process_count() > 1:
        for value in values:
            dist.all_reduce(value)
