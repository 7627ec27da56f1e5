"""Small routed ResNets."""

from detectron2.modeling import build_backbone

from divdr import get_divdr_config

HOMOGENEOUS = ["conv_3x3"] * 5


def narrow(*pairs, name="build_routed_resnet_backbone"):
    """A config of a ResNet-50 with an eighth of its channels and nothing frozen."""
    cfg = get_divdr_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.merge_from_list(list(pairs))
    return cfg


def routed_resnet(*pairs, **options):
    """A backbone of it."""
    return build_backbone(narrow(*pairs, **options))
