"""Zero-weight ties, for distributed training that waits for a gradient of every parameter."""

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


def several_processes() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
