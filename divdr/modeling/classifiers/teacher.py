"""The teacher of knowledge distillation, by its name in a library."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import nn

from ...checkpoint import find_weights, read_weights
from ...errors import CheckpointError, ConfigError
from ...moe import Distillation, is_named, last_linear, named_classifier
from .build import image_channels

_TEACHER_PREFIX = "system.members.0."


def build_teacher(cfg: CfgNode) -> Distillation:
    """The classifier that ``COE.TEACHER`` names, with its library's weights or those of a file.

    Raises:
        ConfigError: there is no such classifier, or its classes are not the model's.
        CheckpointError: ``TEACHER_WEIGHTS`` cannot be used.
    """
    classifier, coe = cfg.MODEL.CLASSIFIER, cfg.MODEL.CLASSIFIER.COE
    if not is_named(coe.TEACHER):
        raise ConfigError(
            f"MODEL.CLASSIFIER.COE.TEACHER {coe.TEACHER!r} is unknown; write torchvision:NAME or "
            "timm:NAME"
        )
    images = {"in_channels": image_channels(cfg), "image_size": cfg.INPUT.CLASSIFICATION.SIZE}
    if coe.TEACHER_WEIGHTS:
        teacher = named_classifier(coe.TEACHER, classifier.NUM_CLASSES, **images)
        _load(teacher, coe.TEACHER_WEIGHTS)
    else:
        # Without weights first: nothing is downloaded that cannot be used.
        plain = named_classifier(coe.TEACHER, None, **images)
        classes = plain.get_submodule(last_linear(plain)).out_features
        if classes != classifier.NUM_CLASSES:
            raise ConfigError(
                f"teacher {coe.TEACHER!r} knows {classes} classes and the model "
                f"{classifier.NUM_CLASSES}: train it on these, and name the file by "
                "MODEL.CLASSIFIER.COE.TEACHER_WEIGHTS"
            )
        teacher = named_classifier(coe.TEACHER, None, pretrained=True, **images)
    return Distillation(teacher, coe.DISTILLATION_WEIGHT, coe.TEMPERATURE)


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
