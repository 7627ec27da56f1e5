"""Choice of the normalisation layer."""

from __future__ import annotations

import torch
from detectron2.layers import get_norm
from detectron2.utils import comm

from ..errors import ConfigError
from ..routing.layers import BatchNorm, NormFactory


def norm_factory(name: str) -> NormFactory:
    """Maker of the normalisation that Detectron2 knows by ``name``.

    "" is SyncBN where several processes train on GPUs, and BN otherwise.

    Raises:
        ConfigError: Detectron2 knows no such normalisation.
    """
    if not name:
        name = "SyncBN" if comm.get_world_size() > 1 and torch.cuda.is_available() else "BN"
    if name == "BN":
        return BatchNorm
    try:
        get_norm(name, 2)
    except KeyError:
        raise ConfigError(f"unknown normalisation {name!r}") from None
    return lambda channels: get_norm(name, channels)
