"""The sum of the maps that come to a cell, each weighted by its images' gates, in few passes.

Σ w_i · m_i one by one would write every product, and in the backward pass a product for every
weight; maps are larger than a CPU's caches, so that each pass costs as much as arithmetic does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Size = tuple[int, int]
"""(rows, columns)."""


class Part(NamedTuple):
    """Maps that come to a cell from one other.

    Attributes:
        maps: (m, C, h, w); maps of another size than the sum's are resized (bilinear).
        weight: (m,) factor of each image's maps; None for 1.
        images: (m,) positions of these images in the sum; None for all of them.
    """

    maps: Tensor
    weight: Tensor | None = None
    images: Tensor | None = None


def weighted_sum(parts: Sequence[Part], count: int, size: Size) -> Tensor:
    """Σ weight · maps, (N, C, H, W), zero for images of which nothing comes.

    Args:
        parts: at least one.
        count: N.
        size: (H, W).
    """
    only = parts[0]
    if len(parts) == 1 and only.weight is None and only.images is None:
        return _resized(only.maps, size)
    fields = [tensor for part in parts for tensor in part]
    learning = torch.is_grad_enabled() and any(f is not None and f.requires_grad for f in fields)
    if not learning or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return _sum(count, size, list(parts))
    return _WeightedSum.apply(count, size, *fields)


def _sum(count: int, size: Size, parts: list[Part]) -> Tensor:
    dtype = parts[0].maps.dtype
    for part in parts:
        dtype = torch.promote_types(dtype, part.maps.dtype)
    # What comes for all images first: its product becomes the memory of the sum.
    parts.sort(key=lambda part: part.images is not None)
    total: Tensor | None = None
    for maps, weight, images in parts:
        same = maps.shape[-2:] == size
        factor = None if weight is None else _factor(weight, maps)
        if total is not None and images is None and same:
            total = total.add_(maps) if factor is None else total.addcmul_(maps, factor)
            continue
        # Weighting before the resizing is the same, and touches a quarter of the numbers.
        one = _resized(maps if factor is None else maps * factor, size).to(dtype)
        if total is not None:
            total = total.add_(one) if images is None else total.index_add_(0, images, one)
        elif images is None:
            total = one.clone() if one is maps else one
        else:
            total = _zeros(one, count).index_add_(0, images, one)
    assert total is not None
    return total


class _WeightedSum(torch.autograd.Function):
    """See :func:`weighted_sum`; the parts' fields come one after the other."""

    @staticmethod
    def forward(ctx: Any, count: int, size: Size, *fields: Tensor | None) -> Tensor:
        ctx.save_for_backward(*fields)
        return _sum(count, size, _parts(fields))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        results: list[Tensor | None] = []
        parts = _parts(ctx.saved_tensors)
        for number, (maps, weight, images) in enumerate(parts):
            wants_maps, wants_weight, _ = ctx.needs_input_grad[2 + 3 * number :][:3]
            rows = gradient if images is None else gradient.index_select(0, images)
            if maps.shape[-2:] != rows.shape[-2:]:
                sizes = rows.shape[-2:], maps.shape
                rows = torch.ops.aten.upsample_bilinear2d_backward(rows, *sizes, False, None, None)
            rows = rows.to(maps.dtype)
            of_maps = of_weight = None
            if wants_maps:
                of_maps = rows if weight is None else rows * _factor(weight, maps)
            if wants_weight:
                assert weight is not None
                of_weight = _products(rows, maps).to(weight.dtype)
            results += [of_maps, of_weight, None]
        return None, None, *results


def _parts(fields: Sequence[Tensor | None]) -> list[Part]:
    groups = (fields[i : i + 3] for i in range(0, len(fields), 3))
    return [Part(*group) for group in groups]  # type: ignore[arg-type]


def _factor(weight: Tensor, maps: Tensor) -> Tensor:
    return weight.to(maps.dtype)[:, None, None, None]


def _resized(maps: Tensor, size: Size) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _zeros(like: Tensor, count: int) -> Tensor:
    shape = (count, *like.shape[1:])
    layout = torch.channels_last
    return torch.zeros(shape, dtype=like.dtype, device=like.device).to(memory_format=layout)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Sum over each image's numbers of a · b, (m,), in float32 at least."""
    # In the order of memory: views. A batched product of matrices takes four times as long.
    first, second = (t.permute(0, 2, 3, 1).flatten(1) for t in (a, b))
    return (first * second).sum(dim=1, dtype=torch.promote_types(a.dtype, torch.float32))
