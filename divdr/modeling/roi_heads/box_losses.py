"""Losses of box predictors, row by row, and as Detectron2 sums them, without a wait for the device.

Detectron2 picks out the rows of objects, whose number the host then has to ask for; here every row
is computed and those of background count nothing.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from detectron2.layers import ciou_loss, cross_entropy, diou_loss
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage, get_event_storage
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor

from ...errors import ConfigError
from ..late_figures import late_figures, put_scalar_at


class BoxTargets(NamedTuple):
    """What sampled proposals should give.

    Attributes:
        labels: (M,) int64 classes; background is the class after the last.
        proposals: (M, 4) their boxes.
        boxes: (M, 4) the true ones; those of background are never looked at.
    """

    labels: Tensor
    proposals: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, sampled: list[Instances]) -> BoxTargets:
        """Of proposals as Detectron2 samples them; without objects an image has no ``gt_boxes``."""
        true = [p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes for p in sampled]
        return cls(
            torch.cat([p.gt_classes for p in sampled]),
            torch.cat([p.proposal_boxes.tensor for p in sampled]),
            torch.cat([boxes.tensor for boxes in true]),
        )

    def objects(self, classes: int) -> Tensor:
        """(M,) bool, those of one of so many classes."""
        return (self.labels >= 0) & (self.labels < classes)


def box_losses(predictor: FastRCNNOutputLayers, deltas: Tensor, targets: BoxTargets) -> Tensor:
    """(M,) loss of each proposal's box, weighted as Detectron2 does; 0 for background.

    Args:
        predictor: whose settings count.
        deltas: (M, B), its own of the proposals, one box or one for each class.
        targets: of the proposals.

    Raises:
        ConfigError: ``BBOX_REG_LOSS_TYPE`` is none of Detectron2's.
    """
    objects = targets.objects(predictor.num_classes)
    size = len(predictor.box2box_transform.weights)
    if deltas.shape[1] > size:  # one box a class
        own = targets.labels.clamp(0, predictor.num_classes - 1)
        each = deltas.unflatten(1, (-1, size))
        deltas = each.gather(1, own[:, None, None].expand(-1, 1, size))[:, 0]
    inside = objects[:, None]
    # A background row is a unit box that is hit: finite, with a gradient of 0, wherever it lay.
    unit = torch.cat([torch.zeros_like(deltas[:, :2]), torch.ones_like(deltas[:, :2])], dim=1)
    unit = unit.to(targets.proposals.dtype)
    found = _each(
        predictor,
        torch.where(inside, deltas, 0.0),
        torch.where(inside, targets.proposals, unit),
        torch.where(inside, targets.boxes, unit),
    )
    weight = predictor.loss_weight.get("loss_box_reg", 1.0)
    return torch.where(objects, weight * found, 0.0)


def _each(
    predictor: FastRCNNOutputLayers, deltas: Tensor, proposals: Tensor, boxes: Tensor
) -> Tensor:
    """(R,) unweighted losses of deltas (R, 4), by ``BBOX_REG_LOSS_TYPE``."""
    kind = predictor.box_reg_loss_type
    if kind == "smooth_l1":
        true = true_deltas(predictor.box2box_transform, proposals, boxes)
        return smooth_l1_loss(deltas, true, predictor.smooth_l1_beta, reduction="none").sum(1)
    overlaps = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
    if kind not in overlaps:
        raise ConfigError(f"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE {kind!r} is unknown")
    moved = predictor.box2box_transform.apply_deltas(deltas, proposals)
    return overlaps[kind](moved, boxes, reduction="none")


def true_deltas(transform: Box2BoxTransform, proposals: Tensor, boxes: Tensor) -> Tensor:
    """(R, 4) what moves proposals (R, 4) onto boxes (R, 4), by R-CNN's parametrisation.

    ``Box2BoxTransform.get_deltas`` gives the same and lets the host see that no proposal is empty;
    samplers let none through.
    """
    if type(transform) is not Box2BoxTransform:
        return transform.get_deltas(proposals, boxes)
    size, true_size = (each[:, 2:] - each[:, :2] for each in (proposals, boxes))
    centre, true_centre = proposals[:, :2] + size / 2, boxes[:, :2] + true_size / 2
    shift = (true_centre - centre) / size
    growth = (true_size / size).log()
    deltas = torch.cat([shift, growth], dim=1)
    return torch.stack(
        [d * w for d, w in zip(deltas.unbind(1), transform.weights, strict=True)], dim=1
    )


def predictor_losses(
    predictor: FastRCNNOutputLayers, scores: Tensor, deltas: Tensor, proposals: list[Instances]
) -> dict[str, Tensor]:
    """``loss_cls`` and ``loss_box_reg`` as the predictor's own ``losses`` gives them.

    A predictor with losses of its own is asked for them.

    Args:
        predictor: of boxes and classes.
        scores: (M, C + 1) logits.
        deltas: (M, B).
        proposals: sampled ones of all images.
    """
    plain = (
        type(predictor).losses is FastRCNNOutputLayers.losses
        and type(predictor).box_reg_loss is FastRCNNOutputLayers.box_reg_loss
        and not getattr(predictor, "use_fed_loss", False)  # Detectron2 0.6 has neither
    )
    if not plain or not proposals:
        return predictor.losses((scores, deltas), proposals)
    targets = BoxTargets.of(proposals)
    _log_accuracy(scores, targets.labels)
    if getattr(predictor, "use_sigmoid_ce", False):
        loss_cls = predictor.sigmoid_cross_entropy_loss(scores, targets.labels)
    else:
        loss_cls = cross_entropy(scores, targets.labels, reduction="mean")
    boxes = box_losses(predictor, deltas, targets).sum() / max(1, len(deltas))
    return {
        "loss_cls": loss_cls * predictor.loss_weight.get("loss_cls", 1.0),
        "loss_box_reg": boxes,
    }


@torch.no_grad()
def _log_accuracy(scores: Tensor, labels: Tensor) -> None:
    """The figures that Detectron2 logs of the classes, when they are read."""
    if not len(labels):
        return
    storage = get_event_storage()
    background = scores.shape[1] - 1
    found, objects = scores.argmax(1), (labels >= 0) & (labels < background)
    right = found == labels
    counts = torch.stack([right, objects, right & objects, objects & (found == background)]).sum(1)
    take = partial(_put_accuracy, storage, storage.iter, len(labels))
    late_figures(storage).add(counts, take, storage.iter)


def _put_accuracy(
    storage: EventStorage, iteration: int, proposals: int, counts: list[float]
) -> None:
    right, objects, right_objects, missed = counts
    put_scalar_at(storage, "fast_rcnn/cls_accuracy", right / proposals, iteration)
    if objects:
        put_scalar_at(storage, "fast_rcnn/fg_cls_accuracy", right_objects / objects, iteration)
        put_scalar_at(storage, "fast_rcnn/false_negative", missed / objects, iteration)
