"""Classification systems from ``cfg.MODEL.CLASSIFIER``."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from ...errors import ConfigError
from ...moe import Ensemble, Gater, Hydra
from ..class_partition import hydra_settings
from .networks import image_channels, network, network_parts, network_stem

CLASSIFIER_REGISTRY: Registry = Registry("CLASSIFIER")
CLASSIFIER_REGISTRY.__doc__ = """Classification systems: cfg → a ``ClassificationSystem``."""


def build_classifier(cfg: CfgNode) -> nn.Module:
    """The system that ``cfg.MODEL.CLASSIFIER.NAME`` names.

    Raises:
        ConfigError: the name is unknown, or a setting is out of its range.
    """
    name = cfg.MODEL.CLASSIFIER.NAME
    if name not in CLASSIFIER_REGISTRY:
        known = ", ".join(sorted(key for key, _ in CLASSIFIER_REGISTRY))
        raise ConfigError(f"MODEL.CLASSIFIER.NAME {name!r} is unknown; known are {known}")
    return CLASSIFIER_REGISTRY.get(name)(cfg)


@CLASSIFIER_REGISTRY.register()
def build_single_classifier(cfg: CfgNode) -> Ensemble:
    """One network."""
    return Ensemble([network(cfg)], cfg.MODEL.CLASSIFIER.NUM_CLASSES, image_channels(cfg))


@CLASSIFIER_REGISTRY.register()
def build_ensemble_classifier(cfg: CfgNode) -> Ensemble:
    """``MEMBERS`` networks, all of which run.

    Raises:
        ConfigError: fewer than one.
    """
    settings = cfg.MODEL.CLASSIFIER
    if settings.MEMBERS < 1:
        raise ConfigError(f"MODEL.CLASSIFIER.MEMBERS must be at least 1, not {settings.MEMBERS}")
    members = [network(cfg) for _ in range(settings.MEMBERS)]
    return Ensemble(members, settings.NUM_CLASSES, image_channels(cfg))


@CLASSIFIER_REGISTRY.register()
def build_hydra_classifier(cfg: CfgNode) -> Hydra:
    """HydraRes or DynK-Hydra, by τ and the branches' loss weight."""
    classifier, hydra = cfg.MODEL.CLASSIFIER, cfg.MODEL.CLASSIFIER.HYDRA
    settings = hydra_settings(hydra, "MODEL.CLASSIFIER.HYDRA")
    parts = network_parts(cfg)
    stem = network_stem(cfg, parts)
    branches = [parts.branch(stem.out_channels) for _ in range(hydra.BRANCHES)]
    trunk = parts.gater_trunk(stem.out_channels)
    return Hydra(
        stem,
        branches,
        Gater(trunk, trunk.out_channels, hydra.BRANCHES),
        branches[0].out_channels,
        classifier.NUM_CLASSES,
        settings,
        in_channels=image_channels(cfg),
    )
