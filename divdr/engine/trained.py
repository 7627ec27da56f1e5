"""The trained model of a config, ready for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import nn

from ..modeling import attached_routing
from .about import About
from .checkpointer import load_for_evaluation
from .static_experts import use_static_experts
from .trainer import Trainer


def load_trained(cfg: CfgNode) -> nn.Module:
    """Build the model, load ``MODEL.WEIGHTS``, and take static experts if the config names some.

    Raises:
        CheckpointError: no weights, weights or experts of another model, or of other classes than
            those of ``DATASETS.TEST``.
    """
    return load_with_about(cfg, cfg.DATASETS.TEST)[0]


def load_with_about(cfg: CfgNode, datasets: Sequence[str] = ()) -> tuple[nn.Module, About | None]:
    """The model of :func:`load_trained`, and what its checkpoint says of it.

    Args:
        cfg: the whole configuration.
        datasets: must have the classes that the model was trained on, as far as they are registered
            and the checkpoint says so.

    Raises:
        CheckpointError: see :func:`load_trained`.
    """
    model = Trainer.build_model(cfg).eval()
    about = load_for_evaluation(
        model,
        cfg.MODEL.WEIGHTS,
        about=[About.of(cfg, name) for name in datasets] or [About.of(cfg)],
        routing=attached_routing(model),
    )
    if cfg.MODEL.ROUTING.STATIC_EXPERTS:
        use_static_experts(model, cfg.MODEL.ROUTING.STATIC_EXPERTS)
    return model, about
