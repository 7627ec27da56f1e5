"""Collaboration of Experts from ``cfg.MODEL.CLASSIFIER.COE``, and what its training starts from."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ...checkpoint import find_weights, load_exactly, read_part, read_weights
from ...errors import CheckpointError, ConfigError
from ...moe import (
    Collaboration,
    Delegator,
    Distillation,
    is_named,
    last_linear,
    named_classifier,
    with_condconv,
    with_pwlu,
    without_last_linear,
)
from ...routing import to_iterations
from ...settings import ClassifierSettings, CollaborationSettings
from .builders import CLASSIFIER_REGISTRY, image_channels, network
from .image_classifier import ImageClassifier

_TEACHER_PREFIX = "system.members.0."


def build_teacher(cfg: CfgNode) -> Distillation:
    """The classifier that ``COE.TEACHER`` names, with its library's weights or those of a file.

    Raises:
        ConfigError: there is no such classifier, or its classes are not the model's.
        CheckpointError: ``TEACHER_WEIGHTS`` cannot be used.
    """
    classifier = ClassifierSettings.of(cfg.MODEL.CLASSIFIER)
    coe = classifier.coe
    if not is_named(coe.teacher):
        raise ConfigError(
            f"MODEL.CLASSIFIER.COE.TEACHER {coe.teacher!r} is unknown; write torchvision:NAME or "
            "timm:NAME"
        )
    images = {"in_channels": image_channels(cfg), "image_size": cfg.INPUT.CLASSIFICATION.SIZE}
    if coe.teacher_weights:
        teacher = named_classifier(coe.teacher, classifier.num_classes, **images)
        _load(teacher, coe.teacher_weights)
    else:
        # Without weights first: nothing is downloaded that cannot be used.
        plain = named_classifier(coe.teacher, None, **images)
        classes = plain.get_submodule(last_linear(plain)).out_features
        if classes != classifier.num_classes:
            raise ConfigError(
                f"teacher {coe.teacher!r} knows {classes} classes and the model "
                f"{classifier.num_classes}: train it on these, and name the file by "
                "MODEL.CLASSIFIER.COE.TEACHER_WEIGHTS"
            )
        teacher = named_classifier(coe.teacher, None, pretrained=True, **images)
    return Distillation(teacher, coe.distillation_weight, coe.temperature)


def _load(teacher: nn.Module, path: str) -> None:
    """Weights of ``build_single_classifier``'s checkpoint, or of the bare classifier."""
    content = find_weights(read_weights(path))
    weights = {} if content is None else content.weights
    weights = {
        name.removeprefix(_TEACHER_PREFIX): value
        for name, value in weights.items()
        if name.startswith(_TEACHER_PREFIX) or not name.startswith("system.")
    }
    try:
        teacher.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n")[1:2]).strip()
        raise CheckpointError(f"{path} does not hold the teacher's weights ({reason})") from None


def read_delegator(path: str, system: Collaboration) -> None:
    """Take extractor and task predictor from a checkpoint, and fix them.

    With subtasks, the expert selector of that collaboration becomes the subtask selector
    (Appendix A.2); the system's own expert selector starts anew.

    Args:
        path: checkpoint of a collaboration without subtasks.
        system: takes the delegator.

    Raises:
        CheckpointError: the file is missing or damaged, holds no delegator, or one that does not
            fit: of other classes, of another size, or of another number of experts than subtasks.
    """
    found = read_part(path, "system.delegator.", "delegator")
    if any(name.startswith("subtask_selector.") for name in found):
        raise CheckpointError(f"checkpoint {path} is of a collaboration with subtasks itself")
    delegator = system.delegator
    parts = {"extractor": delegator.extractor, "task_predictor": delegator.task_predictor}
    if delegator.subtask_selector is not None:
        parts["expert_selector"] = delegator.subtask_selector
    weights = {name: v for name, v in found.items() if name.partition(".")[0] in parts}
    what = f"the delegator of {path} does not fit this model"
    load_exactly([nn.ModuleDict(parts)], weights, what)
    system.has_delegator.fill_(True)


@CLASSIFIER_REGISTRY.register()
def build_coe_classifier(cfg: CfgNode) -> Collaboration:
    """A delegator and ``EXPERTS`` experts.

    Raises:
        ConfigError: a setting is out of range.
    """
    classifier = ClassifierSettings.of(cfg.MODEL.CLASSIFIER)
    coe = classifier.coe
    if coe.subtasks > 1 and not coe.delegator:
        raise ConfigError(
            "MODEL.CLASSIFIER.COE.SUBTASKS: their delegator comes from a collaboration trained "
            "without subtasks; name its checkpoint by COE.DELEGATOR"
        )
    first = _variant(
        cfg,
        ARCHITECTURE=coe.delegator_architecture,
        DEPTH=coe.delegator_depth,
        CHANNELS=coe.delegator_channels,
        GROWTH=coe.delegator_channels,
        STEM="",
    )
    extractor, width = without_last_linear(network(first))
    return Collaboration(
        Delegator(extractor, width, classifier.num_classes, coe.experts, coe.subtasks),
        [_expert(cfg, number) for number in range(coe.experts)],
        classifier.num_classes,
        coe,
        in_channels=image_channels(cfg),
        delegator_share=first_stage(cfg) / cfg.SOLVER.MAX_ITER,
    )


def first_stage(cfg: CfgNode) -> int:
    """Iterations that train the delegator; none where a trained one is taken over."""
    coe = CollaborationSettings.of(cfg.MODEL.CLASSIFIER.COE)
    if coe.delegator:
        return 0
    return to_iterations(coe.delegator_stage, cfg.SOLVER.MAX_ITER)


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
    coe = CollaborationSettings.of(cfg.MODEL.CLASSIFIER.COE)
    if coe.delegator and len(cfg.SOLVER.RESTARTS):
        raise ConfigError(
            "MODEL.CLASSIFIER.COE.DELEGATOR leaves the first stage out, and SOLVER.RESTARTS "
            f"{list(cfg.SOLVER.RESTARTS)} would start the learning rate anew: leave RESTARTS empty"
        )
    each = coe.experts // coe.subtasks
    if each > cfg.SOLVER.IMS_PER_BATCH:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}: {each} experts cannot share fewer "
            "images than they are"
        )
    if coe.delegator and not bool(system.has_delegator):
        read_delegator(coe.delegator, system)
    if coe.teacher:
        system.distillation = build_teacher(cfg)


def _expert(cfg: CfgNode, number: int) -> nn.Module:
    classifier = ClassifierSettings.of(cfg.MODEL.CLASSIFIER)
    coe = classifier.coe
    channels = _of(coe, "channels", number, None)
    expert = network(
        _variant(
            cfg,
            ARCHITECTURE=_of(coe, "architectures", number, classifier.architecture),
            DEPTH=_of(coe, "depths", number, classifier.depth),
            CHANNELS=channels or classifier.channels,
            GROWTH=channels or classifier.growth,
        )
    )
    if coe.condconv:
        expert = with_condconv(expert, coe.condconv)
    if coe.pwlu:
        size = cfg.INPUT.CLASSIFICATION.SIZE or 32
        expert = with_pwlu(expert, coe.pwlu, (image_channels(cfg), size, size))
    return expert


def _of(coe: CollaborationSettings, key: str, number: int, default: Any) -> Any:
    """An expert's own value of a list, or the default where the list is empty."""
    values = getattr(coe, key)
    if not len(values):
        return default
    if len(values) != coe.experts:
        raise ConfigError(
            f"{coe.KEY}.{key.upper()} has {len(values)} values for {coe.experts} experts"
        )
    return values[number]


def _variant(cfg: CfgNode, **keys: Any) -> CfgNode:
    """The same configuration with other values of ``MODEL.CLASSIFIER``."""
    other = cfg.clone()
    other.defrost()
    for key, value in keys.items():
        other.MODEL.CLASSIFIER[key] = value
    return other
