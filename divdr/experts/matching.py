"""Keeping the ids of experts from one clustering to the next."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def match_centres(old: Tensor, new: Tensor) -> Tensor:
    """Match new centres to old ones so that the sum of distances is least (Hungarian method).

    Args:
        old: centres (K, D) whose ids are to be kept.
        new: as many centres (K, D), in any order.

    Returns:
        Permutation (K,) of int64 on the device of `new`: row k of `new[perm]` takes the id k.

    Raises:
        ValueError: the shapes differ.
    """
    if old.dim() != 2 or old.shape != new.shape:
        raise ValueError(
            f"Centres to match must be (K, D) alike, got {tuple(old.shape)} and {tuple(new.shape)}."
        )
    cost = torch.cdist(
        old.detach().cpu().double(),
        new.detach().cpu().double(),
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    _, columns = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(columns, dtype=torch.long, device=new.device)
