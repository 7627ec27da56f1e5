"""Classification systems from ``cfg.MODEL.CLASSIFIER``."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from ...errors import ConfigError
from ...moe import (
    DenseNetParts,
    Ensemble,
    Gater,
    Hydra,
    NamedStem,
    Part,
    ResNetParts,
    StageClassifier,
    is_named,
    named_classifier,
    named_stem,
)
from ..partition_source import hydra_settings


def network(cfg: CfgNode) -> nn.Module:
    """A whole classifier, images to logits.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    settings = cfg.MODEL.CLASSIFIER
    if is_named(settings.ARCHITECTURE):
        return named_classifier(
            settings.ARCHITECTURE,
            settings.NUM_CLASSES,
            in_channels=image_channels(cfg),
            pretrained=settings.PRETRAINED,
            image_size=cfg.INPUT.CLASSIFICATION.SIZE,
        )
    parts = network_parts(cfg)
    stem = network_stem(cfg, parts)
    branch = parts.branch(stem.out_channels)
    return StageClassifier(stem, branch, branch.out_channels, settings.NUM_CLASSES)


def network_stem(cfg: CfgNode, parts: ResNetParts | DenseNetParts) -> Part | NamedStem:
    """The architecture's own stem, or the named one of ``STEM``."""
    settings = cfg.MODEL.CLASSIFIER
    if not settings.STEM:
        return parts.stem()
    return named_stem(
        settings.STEM,
        in_channels=image_channels(cfg),
        pretrained=settings.PRETRAINED,
        image_size=cfg.INPUT.CLASSIFICATION.SIZE,
    )


def network_parts(cfg: CfgNode) -> ResNetParts | DenseNetParts:
    """What makes stems, branches and trunks of the architecture.

    Raises:
        ConfigError: it has no parts, or a setting is out of range.
    """
    settings = cfg.MODEL.CLASSIFIER
    if settings.DEPTH < 1:
        raise ConfigError(f"MODEL.CLASSIFIER.DEPTH must be at least 1, not {settings.DEPTH}")
    common = {
        "depth": settings.DEPTH,
        "in_channels": image_channels(cfg),
        "stem_width": settings.STEM_WIDTH,
        "branch_width": settings.BRANCH_WIDTH,
        "gater_width": settings.GATER_WIDTH,
        "separable": settings.SEPARABLE,
    }
    if settings.ARCHITECTURE == "densenet":
        if len(settings.DENSE_LAYERS) != 3:
            raise ConfigError("MODEL.CLASSIFIER.DENSE_LAYERS must be three numbers")
        return DenseNetParts(growth=settings.GROWTH, layers=tuple(settings.DENSE_LAYERS), **common)
    if settings.ARCHITECTURE != "resnet":
        raise ConfigError(
            f"MODEL.CLASSIFIER.ARCHITECTURE {settings.ARCHITECTURE!r} has no parts; known are "
            '"resnet" and "densenet" (those of a library suit single network, ensemble and experts)'
        )
    if settings.ENTRY not in ("small", "large"):
        raise ConfigError(
            f'MODEL.CLASSIFIER.ENTRY must be "small" or "large", not {settings.ENTRY!r}'
        )
    return ResNetParts(channels=settings.CHANNELS, entry=settings.ENTRY, **common)


def image_channels(cfg: CfgNode) -> int:
    """Channels of the images."""
    return len(cfg.MODEL.PIXEL_MEAN)


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
