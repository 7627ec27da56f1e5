"""Which local expert an image belongs to."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def nearest_centre(a: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest centre of every activation, μ(x) of DivDR (section 3.2).

    Args:
        a: gate activations (N, D).
        centres: (K, D), on the same device.

    Returns:
        Index (N,) of int64, ties to the lowest one, and distance (N,). Distances are computed from
        differences in float32 or better and carry no gradient.

    Raises:
        ValueError: shapes do not fit, or there is no centre.
    """
    if a.dim() != 2 or centres.dim() != 2 or a.shape[1] != centres.shape[1] or len(centres) == 0:
        raise ValueError(
            "Expected activations (N, D) and at least one centre (K, D), "
            f"got {tuple(a.shape)} and {tuple(centres.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(a.dtype, centres.dtype), torch.float32)
    # The matrix-product form of cdist cancels badly for an activation close to its centre.
    distances = torch.cdist(
        a.to(dtype), centres.to(dtype), compute_mode="donot_use_mm_for_euclid_dist"
    )
    index = distances.argmin(1)
    return index, distances.gather(1, index[:, None])[:, 0]
