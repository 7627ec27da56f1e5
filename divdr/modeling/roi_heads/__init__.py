"""Mixtures of experts as box heads of Faster and Mask R-CNN."""

from .coe_box_head import CoEBoxHead
from .hydra_box_head import HydraBoxHead, box_embeddings, choose_box_partition, hydra_box_head_of
from .layers import box_cost, box_head_of
from .mixture_roi_heads import BoxMixture, BoxPrediction, MixtureROIHeads
from .single_gate_box_head import SingleGateBoxHead

__all__ = [
    "BoxMixture",
    "BoxPrediction",
    "CoEBoxHead",
    "HydraBoxHead",
    "MixtureROIHeads",
    "SingleGateBoxHead",
    "box_cost",
    "box_embeddings",
    "box_head_of",
    "choose_box_partition",
    "hydra_box_head_of",
]
