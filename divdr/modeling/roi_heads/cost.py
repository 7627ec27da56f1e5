"""Multiply-adds of box heads, mixtures and plain ones, for one proposal.

Counted from the pooled features to scores and deltas, by ``divdr.modeling.cost``'s convention;
pooling itself resizes maps and counts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.modeling import StandardROIHeads
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers
from torch import nn

from ...moe import Cost
from ..attach import unwrap
from ..cost import module_macs
from .mixture import BoxMixture


def box_head_of(model: nn.Module) -> StandardROIHeads | None:
    """A model's ROI heads, if they have one box head whose cost can be counted; else None."""
    heads = getattr(unwrap(model), "roi_heads", None)
    countable = (
        isinstance(heads, StandardROIHeads)
        and not isinstance(heads, CascadeROIHeads)
        and isinstance(heads.box_predictor, FastRCNNOutputLayers)
    )
    return heads if countable else None


def box_cost(heads: StandardROIHeads, shape: Sequence[int]) -> Cost:
    """Multiply-adds for one proposal: what always runs, and each branch or expert.

    Args:
        heads: see :func:`box_head_of`; a plain head has no experts.
        shape: (C, H, W) of a proposal's pooled features.
    """
    head, predictor = heads.box_head, heads.box_predictor
    if isinstance(head, BoxMixture):
        return head.cost(predictor)
    return Cost(module_macs(nn.Sequential(head, predictor), shape), ())
