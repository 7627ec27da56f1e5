"""The trained model of a config, ready for evaluation."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import nn

from ..modeling import attached_routing
from .checkpointer import load_for_evaluation
from .static_files import use_static_experts
from .trainer import Trainer


def load_trained(cfg: CfgNode) -> nn.Module:
    """Build the model, load ``MODEL.WEIGHTS``, and take static experts if the config names some.

    Raises:
        CheckpointError: no weights, or weights or experts of another model.
    """
    model = Trainer.build_model(cfg).eval()
    load_for_evaluation(model, cfg.MODEL.WEIGHTS, routing=attached_routing(model))
    if cfg.MODEL.ROUTING.STATIC_EXPERTS:
        use_static_experts(model, cfg.MODEL.ROUTING.STATIC_EXPERTS)
    return model
