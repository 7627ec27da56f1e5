"""Mixtures of experts as box heads of Faster and Mask R-CNN."""

from .coe import CoEBoxHead, CoEBoxSettings
from .hydra import HydraBoxHead, box_embeddings, choose_box_partition, hydra_box_head_of
from .layers import box_cost, box_head_of
from .mixture import BoxMixture, BoxPrediction, MixtureROIHeads

__all__ = [
    "BoxMixture",
    "BoxPrediction",
    "CoEBoxHead",
    "CoEBoxSettings",
    "HydraBoxHead",
    "MixtureROIHeads",
    "box_cost",
    "box_embeddings",
    "box_head_of",
    "choose_box_partition",
    "hydra_box_head_of",
]
