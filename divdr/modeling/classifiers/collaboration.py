"""Collaboration of Experts from ``cfg.MODEL.CLASSIFIER.COE``, and what its training starts from."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ...errors import ConfigError
from ...moe import (
    Collaboration,
    CollaborationSettings,
    Delegator,
    TeachingSettings,
    with_condconv,
    with_pwlu,
    without_last_linear,
)
from ...routing import to_iterations
from .build import CLASSIFIER_REGISTRY, image_channels, network
from .delegator_file import read_delegator
from .image_classifier import ImageClassifier
from .teacher import build_teacher


@CLASSIFIER_REGISTRY.register()
def build_coe_classifier(cfg: CfgNode) -> Collaboration:
    """A delegator and ``EXPERTS`` experts.

    Raises:
        ConfigError: a setting is out of range.
    """
    classifier, coe = cfg.MODEL.CLASSIFIER, cfg.MODEL.CLASSIFIER.COE
    if coe.EXPERTS < 1:
        raise ConfigError(f"MODEL.CLASSIFIER.COE.EXPERTS must be at least 1, not {coe.EXPERTS}")
    if coe.SUBTASKS > 1 and not coe.DELEGATOR:
        raise ConfigError(
            "MODEL.CLASSIFIER.COE.SUBTASKS: their delegator comes from a collaboration trained "
            "without subtasks; name its checkpoint by COE.DELEGATOR"
        )
    first = _variant(
        cfg,
        ARCHITECTURE=coe.DELEGATOR_ARCHITECTURE,
        DEPTH=coe.DELEGATOR_DEPTH,
        CHANNELS=coe.DELEGATOR_CHANNELS,
        GROWTH=coe.DELEGATOR_CHANNELS,
        STEM="",
    )
    extractor, width = without_last_linear(network(first))
    return Collaboration(
        Delegator(extractor, width, classifier.NUM_CLASSES, coe.EXPERTS, coe.SUBTASKS),
        [_expert(cfg, number) for number in range(coe.EXPERTS)],
        classifier.NUM_CLASSES,
        CollaborationSettings(
            threshold=coe.THRESHOLD,
            delegator_share=first_stage(cfg) / cfg.SOLVER.MAX_ITER,
            selection_weight=coe.SELECTION_WEIGHT,
            teaching=TeachingSettings(
                wgm=coe.WGM, alpha=tuple(coe.ALPHA), lgm=coe.LGM, srm=coe.SRM
            ),
        ),
        in_channels=image_channels(cfg),
    )


def first_stage(cfg: CfgNode) -> int:
    """Iterations that train the delegator; none where a trained one is taken over."""
    coe = cfg.MODEL.CLASSIFIER.COE
    if coe.DELEGATOR:
        return 0
    return to_iterations(coe.DELEGATOR_STAGE, cfg.SOLVER.MAX_ITER)


def collaboration_of(model: nn.Module) -> Collaboration | None:
    """The collaboration inside an ``ImageClassifier``; None for other systems and models."""
    if isinstance(model, ImageClassifier) and isinstance(model.system, Collaboration):
        return model.system
    return None


def prepare_collaboration(cfg: CfgNode, system: Collaboration) -> None:
    """Before training: the teacher, and a trained delegator unless a checkpoint brought one.

    Raises:
        ConfigError: a setting is unknown, or a batch has fewer images than experts.
        CheckpointError: the delegator's or the teacher's file cannot be used.
    """
    coe = cfg.MODEL.CLASSIFIER.COE
    each = coe.EXPERTS // coe.SUBTASKS
    if each > cfg.SOLVER.IMS_PER_BATCH:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}: {each} experts cannot share fewer "
            "images than they are"
        )
    if coe.DELEGATOR and not bool(system.has_delegator):
        read_delegator(coe.DELEGATOR, system)
    if coe.TEACHER:
        system.distillation = build_teacher(cfg)


def _expert(cfg: CfgNode, number: int) -> nn.Module:
    classifier, coe = cfg.MODEL.CLASSIFIER, cfg.MODEL.CLASSIFIER.COE
    channels = _of(coe, "CHANNELS", number, None)
    expert = network(
        _variant(
            cfg,
            ARCHITECTURE=_of(coe, "ARCHITECTURES", number, classifier.ARCHITECTURE),
            DEPTH=_of(coe, "DEPTHS", number, classifier.DEPTH),
            CHANNELS=channels or classifier.CHANNELS,
            GROWTH=channels or classifier.GROWTH,
        )
    )
    if coe.CONDCONV:
        expert = with_condconv(expert, coe.CONDCONV)
    if coe.PWLU:
        size = cfg.INPUT.CLASSIFICATION.SIZE or 32
        expert = with_pwlu(expert, coe.PWLU, (image_channels(cfg), size, size))
    return expert


def _of(coe: CfgNode, key: str, number: int, default: Any) -> Any:
    """An expert's own value of a list, or the default where the list is empty."""
    values = coe[key]
    if not len(values):
        return default
    if len(values) != coe.EXPERTS:
        raise ConfigError(
            f"MODEL.CLASSIFIER.COE.{key} has {len(values)} values for {coe.EXPERTS} experts"
        )
    return values[number]


def _variant(cfg: CfgNode, **keys: Any) -> CfgNode:
    """The same configuration with other values of ``MODEL.CLASSIFIER``."""
    other = cfg.clone()
    other.defrost()
    for key, value in keys.items():
        other.MODEL.CLASSIFIER[key] = value
    return other
