"""Image classifiers as Detectron2 models."""

from .build import CLASSIFIER_REGISTRY, build_classifier
from .image_classifier import ImageClassifier
from .partition import choose_partition, hydra_of

__all__ = [
    "CLASSIFIER_REGISTRY",
    "ImageClassifier",
    "build_classifier",
    "choose_partition",
    "hydra_of",
]
