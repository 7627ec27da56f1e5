"""K, τ and loss weights of a Hydra from its config node, in classifiers and box heads."""

from __future__ import annotations

from detectron2.config import CfgNode

from ..errors import ConfigError
from ..moe import HydraSettings


def hydra_settings(settings: CfgNode, key: str) -> HydraSettings:
    """The settings of a Hydra.

    Args:
        settings: the node, with ``BRANCHES``.
        key: where it stands in the config, for messages.

    Raises:
        ConfigError: there are no branches.
    """
    if settings.BRANCHES < 1:
        raise ConfigError(f"{key}.BRANCHES must be at least 1, not {settings.BRANCHES}")
    return HydraSettings(
        top_k=settings.TOP_K,
        threshold=settings.THRESHOLD,
        train_threshold=settings.TRAIN_THRESHOLD,
        ensemble_weight=settings.ENSEMBLE_WEIGHT,
        gater_weight=settings.GATER_WEIGHT,
        branch_weight=settings.BRANCH_WEIGHT,
    )
