"""DivDR-A under Mask R-CNN, as a LazyConfig for Detectron2's own tools/lazyconfig_train_net.py."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from divdr import with_routing

from .common import (  # noqa: F401
    bottom_up,
    dataloader,
    lr_multiplier,
    optimizer,
    pixels,
    routing,
    train,
)

detector = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
detector.backbone.bottom_up = bottom_up
detector.backbone.in_features = ["res2", "res3", "res4", "res5", "res6"]
detector.backbone.top_block = None
detector.proposal_generator.anchor_generator.sizes = [[32], [64], [128], [256], [512]]
detector.pixel_mean = pixels.imagenet_rgb256_mean
detector.pixel_std = pixels.imagenet_rgb256_std
detector.input_format = "RGB"

model = L(with_routing)(model=detector, **routing)
train.output_dir = "output/lazy/divdr_coco_mask_rcnn"
