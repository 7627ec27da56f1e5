"""Batch normalisation folded into the convolution before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested plain ``nn.Sequential`` containers, in the order they run."""
    # A subclass may run its children in another way, so it counts as one layer.
    if type(module) is not nn.Sequential:
        yield module
        return
    for child in module:
        yield from leaves(child)


def is_plain_convolution(module: nn.Module) -> bool:
    """Whether a module is exactly ``nn.Conv2d``, zero padded, with numbers for its padding."""
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def is_foldable_norm(module: nn.Module) -> bool:
    """Whether a module normalises by running statistics: BN, SyncBN, FrozenBN and their like."""
    return (
        not module.training
        and not list(module.children())
        and isinstance(getattr(module, "running_mean", None), Tensor)
        and isinstance(getattr(module, "running_var", None), Tensor)
        and hasattr(module, "eps")
        and hasattr(module, "weight")
        and hasattr(module, "bias")
    )


def fold(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one convolution that does what ``conv`` and then ``norm`` do.

    Args:
        conv: the convolution, (O, I, kH, kW).
        norm: a normalisation (``is_foldable_norm``) of O channels; None for the bare convolution.

    Returns:
        Weight (O, I, kH, kW) and bias (O,), None for none, in float64: the caller rounds once.
    """
    weight = conv.weight.detach().double()
    bias = None if conv.bias is None else conv.bias.detach().double()
    if norm is None:
        return weight, bias
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean * scale if bias is None else (bias - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return weight * scale[:, None, None, None], shift
