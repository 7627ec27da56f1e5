"""Small segmentation heads as single-gated mixtures, and maps of a few images."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from divdr.config import get_divdr_config
from divdr.modeling import SingleGateSegmentor

CLASSES = 5
IGNORE = 255
HEADS = ("DynamicRoutingDecoder", "SemSegFPNHead", "DeepLabV3PlusHead")
# Strides of the maps that each takes, and channels.
FEATURES = {
    "DynamicRoutingDecoder": {"res2": (4, 4), "res3": (8, 8), "res4": (16, 16)},
    "SemSegFPNHead": {"p2": (4, 8), "p3": (8, 8), "p4": (16, 8)},
    "DeepLabV3PlusHead": {"res2": (4, 4), "res4": (16, 12)},
}
# Windows of 2 × 2 cells of the coarsest map of 5 × 6: three times three, the last row of one cell.
SIZE = (20, 24)


def config(base="DynamicRoutingDecoder", crop=False, **keys):
    cfg = get_divdr_config()
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME, head.SINGLE_GATE.BASE_HEAD = "SingleGateSegmentor", base
    head.IN_FEATURES = list(FEATURES[base])
    head.NUM_CLASSES, head.IGNORE_VALUE = CLASSES, IGNORE
    head.CONVS_DIM, head.COMMON_STRIDE, head.NORM = 32 if base == "SemSegFPNHead" else 6, 4, "GN"
    head.ASPP_CHANNELS, head.ASPP_DILATIONS, head.ASPP_DROPOUT = 6, [1, 2, 3], 0.0
    head.PROJECT_FEATURES, head.PROJECT_CHANNELS = ["res2"], [3]
    if base == "DeepLabV3PlusHead":
        head.NORM, head.LOSS_TYPE = "BN", "cross_entropy"
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = crop, "absolute"
    cfg.INPUT.CROP.SIZE = [4 * length for length in SIZE]
    head.SINGLE_GATE.EXPERTS, head.SINGLE_GATE.GATE_STAGE = 3, 0.5
    cfg.SOLVER.MAX_ITER = 20
    for key, value in keys.items():
        setattr(head.SINGLE_GATE, key, value)
    return cfg


def build(base="DynamicRoutingDecoder", crop=False, **keys):
    """A mixture whose experts are far from the base, and whose gate is far from equal."""
    cfg = config(base, crop, **keys)
    shapes = {name: ShapeSpec(channels=c, stride=s) for name, (s, c) in FEATURES[base].items()}
    head = SEM_SEG_HEADS_REGISTRY.get("SingleGateSegmentor")(cfg, shapes)
    assert isinstance(head, SingleGateSegmentor)
    with torch.no_grad():
        for part in (head.base, *head.experts):
            part.predictor.weight.normal_(std=0.3)
            for layer in part.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_mean.normal_(std=0.1)
                    layer.running_var.uniform_(0.5, 1.5)
        head.eval()
        z = embeddings(head, features(base, count=8, seed=4))
        head.gate.fit_samples(z)
        head.gate.linear.weight.normal_().div_(z.std())
    return head


def embeddings(head, maps):
    """(N, D) mean over the image of what the base's predictor sees."""
    seen = []
    handle = head.base.predictor.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    head.base.eval()(maps)
    handle.remove()
    return seen[0].mean((2, 3))


def features(base="DynamicRoutingDecoder", count=4, seed=1, size=SIZE):
    """Maps of images that differ; the finest is of this size."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(count, 1, 1, 1, generator=generator) * 2
    found = {}
    for name, (stride, channels) in FEATURES[base].items():
        shape = [-(-length * 4 // stride) for length in size]
        found[name] = scale * torch.randn(count, channels, *shape, generator=generator)
    return found


def labels(count=4, seed=2, size=SIZE):
    """(N, H, W) classes of pixels, a fifth of them without."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, CLASSES, (count, 4 * size[0], 4 * size[1]), generator=generator)
    return found.masked_fill(torch.rand(found.shape, generator=generator) < 0.2, IGNORE)


def at(maps, images):
    """Maps of some images."""
    return {name: values[images] for name, values in maps.items()}


def in_stage(head, name):
    head.progress = next(stage.start for stage in head.stages if stage.name == name)
    return head.train()
