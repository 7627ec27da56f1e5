"""Class partitions of box heads: from the classes' mean ROI features, and as settings ask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import StandardROIHeads
from torch import Tensor, nn

from ...errors import ConfigError
from ..attach import unwrap
from ..class_partition import PartitionSource, partition_as_set
from .hydra import KEY, HydraBoxHead
from .mixture import BoxMixture


def hydra_box_head_of(model: nn.Module) -> HydraBoxHead | None:
    """The Hydra in a detector's ROI heads; None for other box heads and models."""
    head = getattr(getattr(unwrap(model), "roi_heads", None), "box_head", None)
    return head if isinstance(head, HydraBoxHead) else None


def choose_box_partition(cfg: CfgNode, source: PartitionSource) -> Tensor:
    """(C,) the branch of every class, as ``cfg.MODEL.ROI_BOX_HEAD.HYDRA`` says.

    Raises:
        DivdrError: the partition cannot be made; the message says why.
    """
    return partition_as_set(cfg.MODEL.ROI_BOX_HEAD.HYDRA, KEY, source)


@torch.no_grad()
def box_embeddings(model: nn.Module, images: Iterable[dict]) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (R, D) of each image's true boxes by the model's box head, and their classes (R,).

    Features are those that scores are predicted from; of a Hydra, with all branches open.

    Args:
        model: a detector with a box head, in evaluation.
        images: dicts with "image" and "instances" in the same pixels; those without boxes are left
            out.

    Raises:
        ConfigError: the model has no single box head.
    """
    inner: Any = unwrap(model)
    heads = getattr(inner, "roi_heads", None)
    if not isinstance(heads, StandardROIHeads) or isinstance(heads.box_head, nn.ModuleList):
        raise ConfigError(
            "classes are embedded by a detector with one box head, which this model does not have"
        )
    head = heads.box_head
    for item in images:
        instances = item["instances"].to(inner.device)
        if len(instances) == 0:
            continue
        features = inner.backbone(inner.preprocess_image([item]).tensor)
        maps = [features[name] for name in heads.box_in_features]
        pooled = heads.box_pooler(maps, [instances.gt_boxes])
        features = head.embed(pooled) if isinstance(head, BoxMixture) else head(pooled)
        yield features.flatten(1), instances.gt_classes
