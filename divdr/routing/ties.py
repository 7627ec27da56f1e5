"""What processes that train together share: ties of weight zero, since distributed training waits
for a gradient of every parameter, and each other's numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def tie(outputs: Sequence[Tensor], left_out: Sequence[Tensor] = ()) -> list[Tensor]:
    """Outputs of which each leads back to all, and to what was left out, with weight zero.

    Where several processes train, a head may ignore some of the maps; their parameters still get
    a gradient, of zero.

    Args:
        outputs: maps of any shapes, (N, C, H, W) each.
        left_out: numbers without dimensions that are zero already.
    """
    anchors = list(left_out)
    if several_processes() and any(output.requires_grad for output in outputs):
        anchors.extend(output.flatten()[0] * 0.0 for output in outputs)
    if not anchors:
        return list(outputs)
    nothing = torch.stack([anchor.float() for anchor in anchors]).sum()
    return [output + nothing.to(output.dtype) for output in outputs]


def process_count() -> int:
    """Number of processes that train together; 1 without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def several_processes() -> bool:
    """Whether this process trains together with others."""
    return process_count() > 1


def from_all_processes(own: Tensor) -> Tensor:
    """(D,) of this process → (P, D) those of all P, by rank; a collective call of equal lengths."""
    if not several_processes():
        return own[None]
    parts = own.new_empty(process_count(), len(own))
    dist.all_gather(list(parts.unbind()), own)
    return parts
