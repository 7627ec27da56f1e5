"""Choice of the normalisation layer."""

from __future__ import annotations

import math

import torch
from detectron2.layers import get_norm
from detectron2.utils import comm
from torch import nn

from ..errors import ConfigError
from ..routing.layers import BatchNorm, NormFactory


def norm_factory(name: str) -> NormFactory:
    """Maker of the normalisation that Detectron2 knows by ``name``.

    "" is SyncBN where several processes train on GPUs, and BN otherwise. "GN" has as many of 32
    groups as divide the channels.

    Raises:
        ConfigError: Detectron2 knows no such normalisation.
    """
    if not name:
        name = "SyncBN" if comm.get_world_size() > 1 and torch.cuda.is_available() else "BN"
    if name == "BN":
        return BatchNorm
    # Detectron2's GN has 32 groups always, more than a narrow cell has channels.
    if name == "GN":
        return lambda channels: nn.GroupNorm(math.gcd(32, channels), channels)
    try:
        get_norm(name, 2)
    except KeyError:
        raise ConfigError(f"unknown normalisation {name!r}") from None
    return lambda channels: get_norm(name, channels)
