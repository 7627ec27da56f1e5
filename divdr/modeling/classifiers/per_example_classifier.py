"""Per-example routing from ``cfg.MODEL.CLASSIFIER.PER_EXAMPLE``, and what of it a model decides."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import nn

from ...moe import PerExample, per_example_network
from ...settings import PerExampleSettings
from .builders import CLASSIFIER_REGISTRY, image_channels
from .image_classifier import ImageClassifier


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


def per_example_of(model: nn.Module) -> PerExample | None:
    """The routed network inside an ``ImageClassifier``; None for other systems and models."""
    if isinstance(model, ImageClassifier) and isinstance(model.system, PerExample):
        return model.system
    return None
