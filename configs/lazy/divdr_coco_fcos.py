"""DivDR-A under FCOS, as a LazyConfig for Detectron2's own tools/lazyconfig_train_net.py."""

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

detector = model_zoo.get_config("common/models/fcos.py").model
detector.backbone.bottom_up = bottom_up
detector.backbone.bottom_up.layers = 16
detector.backbone.bottom_up.scales_per_layer = ()
detector.pixel_mean = pixels.imagenet_rgb256_mean
detector.pixel_std = pixels.imagenet_rgb256_std

model = L(with_routing)(model=detector, **routing)
optimizer.lr = 0.01
train.output_dir = "output/lazy/divdr_coco_fcos"
