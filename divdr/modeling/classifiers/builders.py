"""Classification systems from ``cfg.MODEL.CLASSIFIER``."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from ...errors import ConfigError
from ...moe import (
    DenseNetParts,
    Ensemble,
    Hydra,
    NamedStem,
    Part,
    PerExample,
    PooledGate,
    ResNetParts,
    StageClassifier,
    is_named,
    named_classifier,
    named_stem,
    per_example_network,
)
from ...settings import ClassifierSettings, PerExampleSettings


def network(cfg: CfgNode) -> nn.Module:
    """A whole classifier, images to logits.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    settings = ClassifierSettings.of(cfg.MODEL.CLASSIFIER)
    if is_named(settings.architecture):
        return named_classifier(
            settings.architecture,
            settings.num_classes,
            in_channels=image_channels(cfg),
            pretrained=settings.pretrained,
            image_size=cfg.INPUT.CLASSIFICATION.SIZE,
        )
    parts = network_parts(cfg)
    stem = network_stem(cfg, parts)
    branch = parts.branch(stem.out_channels)
    return StageClassifier(stem, branch, branch.out_channels, settings.num_classes)


def network_stem(cfg: CfgNode, parts: ResNetParts | DenseNetParts) -> Part | NamedStem:
    """The architecture's own stem, or the named one of ``STEM``."""
    settings = ClassifierSettings.of(cfg.MODEL.CLASSIFIER)
    if not settings.stem:
        return parts.stem()
    return named_stem(
        settings.stem,
        in_channels=image_channels(cfg),
        pretrained=settings.pretrained,
        image_size=cfg.INPUT.CLASSIFICATION.SIZE,
    )


def network_parts(cfg: CfgNode) -> ResNetParts | DenseNetParts:
    """What makes stems, branches and trunks of the architecture.

    Raises:
        ConfigError: it has no parts, or a setting is out of range.
    """
    settings = ClassifierSettings.of(cfg.MODEL.CLASSIFIER)
    common: dict[str, Any] = {
        "depth": settings.depth,
        "in_channels": image_channels(cfg),
        "stem_width": settings.stem_width,
        "branch_width": settings.branch_width,
        "gater_width": settings.gater_width,
        "separable": settings.separable,
    }
    if settings.architecture == "densenet":
        if len(settings.dense_layers) != 3:
            raise ConfigError("MODEL.CLASSIFIER.DENSE_LAYERS must be three numbers")
        return DenseNetParts(growth=settings.growth, layers=tuple(settings.dense_layers), **common)
    if settings.architecture != "resnet":
        raise ConfigError(
            f"MODEL.CLASSIFIER.ARCHITECTURE {settings.architecture!r} has no parts; known are "
            '"resnet" and "densenet" (those of a library suit single network, ensemble and experts)'
        )
    return ResNetParts(channels=settings.channels, entry=settings.entry, **common)


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
    """``MEMBERS`` networks, all of which run."""
    settings = ClassifierSettings.of(cfg.MODEL.CLASSIFIER)
    members = [network(cfg) for _ in range(settings.members)]
    return Ensemble(members, settings.num_classes, image_channels(cfg))


@CLASSIFIER_REGISTRY.register()
def build_hydra_classifier(cfg: CfgNode) -> Hydra:
    """HydraRes or DynK-Hydra, by τ and the branches' loss weight."""
    classifier = ClassifierSettings.of(cfg.MODEL.CLASSIFIER)
    hydra = classifier.hydra
    parts = network_parts(cfg)
    stem = network_stem(cfg, parts)
    branches = [parts.branch(stem.out_channels) for _ in range(hydra.branches)]
    trunk = parts.gater_trunk(stem.out_channels)
    return Hydra(
        stem,
        branches,
        PooledGate(trunk, trunk.out_channels, hydra.branches),
        branches[0].out_channels,
        classifier.num_classes,
        hydra,
        in_channels=image_channels(cfg),
    )


@CLASSIFIER_REGISTRY.register()
def build_per_example_classifier(cfg: CfgNode) -> PerExample:
    """Layers of experts of different architecture, of which every image gets its own.

    Raises:
        ConfigError: a setting is out of range or does not suit the others.
    """
    settings = PerExampleSettings.of(cfg.MODEL.CLASSIFIER.PER_EXAMPLE)
    return per_example_network(
        settings,
        settings.tasks or (cfg.MODEL.CLASSIFIER.NUM_CLASSES,),
        in_channels=image_channels(cfg),
        size=cfg.INPUT.CLASSIFICATION.SIZE,
    )
