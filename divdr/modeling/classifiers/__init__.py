"""Image classifiers as Detectron2 models."""

from .build import CLASSIFIER_REGISTRY, build_classifier
from .collaboration import collaboration_of, first_stage, prepare_collaboration
from .image_classifier import ImageClassifier
from .partition import choose_partition, hydra_of

__all__ = [
    "CLASSIFIER_REGISTRY",
    "ImageClassifier",
    "build_classifier",
    "choose_partition",
    "collaboration_of",
    "first_stage",
    "hydra_of",
    "prepare_collaboration",
]
