"""Parts that the LazyConfigs of this folder share: DivDR-A over Layer17, COCO, its schedule."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from divdr.modeling import DynamicRouting
from divdr.routing import Periods, Ramp

LAYER17 = (2, 3, *[4] * 14, 5)
MAX_ITER = 90000

bottom_up = L(DynamicRouting)(layers=17, scales_per_layer=LAYER17, channels=64, gate="small")

# Keyword arguments of divdr.with_routing: K, K-means every 50 iterations, budget A.
routing = {
    "num_experts": 3,
    "periods": L(Periods)(start=0, period=50),
    "budget": L(Ramp)(weight=0.8, start=int(0.4 * MAX_ITER), length=int(0.02 * MAX_ITER)),
    "budget_target": 0.1,
}

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.augmentations[0].short_edge_length = 800
pixels = model_zoo.get_config("common/data/constants.py").constants
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
optimizer = model_zoo.get_config("common/optim.py").SGD
optimizer.lr = 0.02
train = model_zoo.get_config("common/train.py").train
train.init_checkpoint = ""
train.max_iter = MAX_ITER
