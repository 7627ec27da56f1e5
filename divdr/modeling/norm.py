"""Choice of the normalisation layer."""

from __future__ import annotations

import math

from detectron2.layers import get_norm
from detectron2.utils import comm
from torch import nn

from ..errors import ConfigError
from ..routing import BatchNorm, SynchronisedBatchNorm
from ..routing.layers import NormFactory

# Detectron2's names for normalisation over the images of all processes.
_SYNCHRONISED = ("SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


def norm_factory(name: str) -> NormFactory:
    """Maker of the normalisation that Detectron2 knows by ``name``.

    "" is SyncBN where several processes train, on whatever device, and BN otherwise. All of
    Detectron2's synchronised kinds are ``divdr.routing.SynchronisedBatchNorm``, as theirs do not
    bear cells that the images of some process do not reach. "GN" has as many of 32 groups as
    divide the channels.

    Raises:
        ConfigError: Detectron2 knows no such normalisation.
    """
    if not name:
        name = "SyncBN" if comm.get_world_size() > 1 else "BN"
    if name == "BN":
        return BatchNorm
    if name in _SYNCHRONISED:
        return SynchronisedBatchNorm
    # Detectron2's GN has 32 groups always, more than a narrow cell has channels.
    if name == "GN":
        return lambda channels: nn.GroupNorm(math.gcd(32, channels), channels)
    try:
        get_norm(name, 2)
    except KeyError:
        raise ConfigError(f"unknown normalisation {name!r}") from None
    return lambda channels: get_norm(name, channels)
