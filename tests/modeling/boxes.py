"""Small box heads, proposals of two images, and what the tests of both mixtures compare by."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from divdr.config import get_divdr_config
from divdr.modeling.roi_heads import CoEBoxHead, HydraBoxHead, SingleGateBoxHead

CLASSES = 6
BACKGROUND = CLASSES
NAMES = ["person", "bicycle", "car", "dog", "kite", "cup"]
PARTITION = torch.tensor([0, 1, 1, 2, 2, 0])
SHAPE = ShapeSpec(channels=4, height=3, width=3)
# Classes of the proposals of two images; 6 is background.
LABELS = [[0, 6, 2, 6], [6, 1, 3, 5, 6]]


def config(name="HydraBoxHead", **keys):
    """Settings of a tiny head; ``keys`` go below its own node, "_" first for the box head's."""
    cfg = get_divdr_config()
    cfg.MODEL.ROI_HEADS.NAME = "MixtureROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = CLASSES
    box = cfg.MODEL.ROI_BOX_HEAD
    box.NAME = name
    box.SMOOTH_L1_BETA = 0.0
    hydra, coe = box.HYDRA, box.COE
    hydra.BRANCHES, hydra.TOP_K, hydra.TRAIN_THRESHOLD = 3, 2, 0.0
    hydra.STEM_CONV_DIMS, hydra.BRANCH_FC_DIMS, hydra.GATER_DIM = [5], [7, 6], 8
    coe.EXPERTS, coe.START = 3, 0.5
    coe.DELEGATOR_CONV_DIMS, coe.DELEGATOR_FC_DIMS, coe.EXPERT_FC_DIMS = [3], [6], [8, 7]
    single = box.SINGLE_GATE
    single.EXPERTS, single.GATE_STAGE = 3, 0.5
    box.NUM_CONV, box.CONV_DIM, box.NUM_FC, box.FC_DIM = 1, 5, 2, 7
    cfg.SOLVER.MAX_ITER = 21
    node = {"HydraBoxHead": hydra, "CoEBoxHead": coe, "SingleGateBoxHead": single}[name]
    for key, value in keys.items():
        setattr(box if key.startswith("_") else node, key.lstrip("_"), value)
    return cfg


def make(name="HydraBoxHead", **keys):
    """Head and predictor."""
    cfg = config(name, **keys)
    kinds = (HydraBoxHead, CoEBoxHead, SingleGateBoxHead)
    kind = {kind.__name__: kind for kind in kinds}[name]
    head = kind(cfg, SHAPE)
    if name == "HydraBoxHead":
        head.classes.set(PARTITION, NAMES)
    predictor = FastRCNNOutputLayers(cfg, head.output_shape)
    with torch.no_grad():  # as predictors start, all scores are alike
        for module in (predictor, *(getattr(e, "predictor", None) for e in _experts(head))):
            if module is not None:
                module.cls_score.weight.normal_(std=0.5)
                module.bbox_pred.weight.normal_(std=0.5)
    return head, predictor


def _experts(head):
    return getattr(head, "experts", ())


def pooled(count=None, seed=1):
    count = sum(map(len, LABELS)) if count is None else count
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, SHAPE.channels, SHAPE.height, SHAPE.width, generator=generator)


def sampled(labels=LABELS):
    """Proposals as Detectron2 samples them."""
    generator = torch.Generator().manual_seed(2)
    images = []
    for own in labels:
        instances = Instances((60, 80))
        corners = torch.rand(len(own), 2, generator=generator) * 20
        sizes = 5 + torch.rand(len(own), 2, generator=generator) * 20
        instances.proposal_boxes = Boxes(torch.cat([corners, corners + sizes], 1))
        shift = torch.rand(len(own), 4, generator=generator)
        instances.gt_boxes = Boxes(instances.proposal_boxes.tensor + shift)
        instances.gt_classes = torch.tensor(own, dtype=torch.int64)
        images.append(instances)
    return images


def box_errors(predictor, deltas, proposals):
    """Sum of absolute errors of each proposal's deltas for its class, one by one; background 0."""
    errors = []
    rows = [(p[i], p.gt_classes[i]) for p in proposals for i in range(len(p))]
    for (one, label), row in zip(rows, deltas, strict=True):
        if label == BACKGROUND:
            errors.append(row.sum() * 0)
            continue
        wanted = predictor.box2box_transform.get_deltas(
            one.proposal_boxes.tensor, one.gt_boxes.tensor
        )[0]
        start = 0 if len(row) == 4 else 4 * int(label)
        errors.append((row[start : start + 4] - wanted).abs().sum())
    return torch.stack(errors)


def losses(head, predictor, x=None, labels=LABELS, iteration=0):
    """Losses at an iteration of training."""
    with EventStorage(iteration):
        x = pooled(sum(map(len, labels))) if x is None else x
        return head.losses(x, predictor, sampled(labels))[1]


def flat(labels=LABELS):
    return torch.tensor([label for own in labels for label in own])


def touched(*modules):
    """Names of the children, and of single branches, heads and experts, that a gradient reached."""
    names = set()
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.grad is not None and parameter.grad.abs().sum() > 0:
                parts = name.split(".")
                numbered = parts[0] in ("branches", "branch_heads", "experts")
                names.add(".".join(parts[:2]) if numbered else parts[0])
    return names


def count_rows(modules):
    """A list that fills with (number, rows) of every module that runs."""
    seen = []
    for number, module in enumerate(modules):
        module.register_forward_hook(lambda m, args, out, n=number: seen.append((n, len(args[0]))))
    return seen
