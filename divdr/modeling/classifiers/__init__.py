"""Image classifiers as Detectron2 models."""

from .builders import CLASSIFIER_REGISTRY, build_classifier
from .coe_classifier import collaboration_of, first_stage, prepare_collaboration
from .image_classifier import ImageClassifier, choose_partition, hydra_of, per_example_of
from .single_gate_classifier import build_single_gate_classifier

__all__ = [
    "CLASSIFIER_REGISTRY",
    "ImageClassifier",
    "build_classifier",
    "build_single_gate_classifier",
    "choose_partition",
    "collaboration_of",
    "first_stage",
    "hydra_of",
    "per_example_of",
    "prepare_collaboration",
]
