"""Classification systems from ``cfg.MODEL.CLASSIFIER``."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from ...classification import (
    DenseNetParts,
    Ensemble,
    Gater,
    Hydra,
    HydraSettings,
    ResNetParts,
    StageClassifier,
    is_named,
    named_classifier,
    named_stem,
)
from ...errors import ConfigError

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
    return Ensemble([_network(cfg)], cfg.MODEL.CLASSIFIER.NUM_CLASSES, _channels(cfg))


@CLASSIFIER_REGISTRY.register()
def build_ensemble_classifier(cfg: CfgNode) -> Ensemble:
    """``MEMBERS`` networks, all of which run.

    Raises:
        ConfigError: fewer than one.
    """
    settings = cfg.MODEL.CLASSIFIER
    if settings.MEMBERS < 1:
        raise ConfigError(f"MODEL.CLASSIFIER.MEMBERS must be at least 1, not {settings.MEMBERS}")
    members = [_network(cfg) for _ in range(settings.MEMBERS)]
    return Ensemble(members, settings.NUM_CLASSES, _channels(cfg))


@CLASSIFIER_REGISTRY.register()
def build_hydra_classifier(cfg: CfgNode) -> Hydra:
    """HydraRes or DynK-Hydra, by τ and the branches' loss weight."""
    classifier, hydra = cfg.MODEL.CLASSIFIER, cfg.MODEL.CLASSIFIER.HYDRA
    if hydra.BRANCHES < 1:
        raise ConfigError(
            f"MODEL.CLASSIFIER.HYDRA.BRANCHES must be at least 1, not {hydra.BRANCHES}"
        )
    parts = _parts(cfg)
    stem = _stem(cfg, parts)
    branches = [parts.branch(stem.out_channels) for _ in range(hydra.BRANCHES)]
    trunk = parts.gater_trunk(stem.out_channels)
    return Hydra(
        stem,
        branches,
        Gater(trunk, trunk.out_channels, hydra.BRANCHES),
        branches[0].out_channels,
        classifier.NUM_CLASSES,
        HydraSettings(
            top_k=hydra.TOP_K,
            threshold=hydra.THRESHOLD,
            train_threshold=hydra.TRAIN_THRESHOLD,
            ensemble_weight=hydra.ENSEMBLE_WEIGHT,
            gater_weight=hydra.GATER_WEIGHT,
            branch_weight=hydra.BRANCH_WEIGHT,
        ),
        in_channels=_channels(cfg),
    )


def _network(cfg: CfgNode) -> nn.Module:
    settings = cfg.MODEL.CLASSIFIER
    if is_named(settings.ARCHITECTURE):
        return named_classifier(
            settings.ARCHITECTURE,
            settings.NUM_CLASSES,
            in_channels=_channels(cfg),
            pretrained=settings.PRETRAINED,
        )
    parts = _parts(cfg)
    stem = _stem(cfg, parts)
    branch = parts.branch(stem.out_channels)
    return StageClassifier(stem, branch, branch.out_channels, settings.NUM_CLASSES)


def _stem(cfg: CfgNode, parts: ResNetParts | DenseNetParts):
    settings = cfg.MODEL.CLASSIFIER
    if not settings.STEM:
        return parts.stem()
    return named_stem(settings.STEM, in_channels=_channels(cfg), pretrained=settings.PRETRAINED)


def _parts(cfg: CfgNode) -> ResNetParts | DenseNetParts:
    settings = cfg.MODEL.CLASSIFIER
    if settings.DEPTH < 1:
        raise ConfigError(f"MODEL.CLASSIFIER.DEPTH must be at least 1, not {settings.DEPTH}")
    common = {
        "depth": settings.DEPTH,
        "in_channels": _channels(cfg),
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
            '"resnet" and "densenet" (whole classifiers of a library suit single and ensemble)'
        )
    if settings.ENTRY not in ("small", "large"):
        raise ConfigError(
            f'MODEL.CLASSIFIER.ENTRY must be "small" or "large", not {settings.ENTRY!r}'
        )
    return ResNetParts(channels=settings.CHANNELS, entry=settings.ENTRY, **common)


def _channels(cfg: CfgNode) -> int:
    return len(cfg.MODEL.PIXEL_MEAN)
