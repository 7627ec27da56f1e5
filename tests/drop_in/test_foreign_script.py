"""The README's lines in a training script that is not divdr's."""

import os

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultPredictor, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer

import divdr
from divdr.errors import ConfigError


def configure(folder):
    cfg = get_cfg()
    divdr.add_divdr_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_dynamic_routing_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROUTING.LAYERS = 4
    cfg.MODEL.ROUTING.CHANNELS = 4
    cfg.MODEL.ROUTING.CLUSTERING.NUM_EXPERTS = 2
    cfg.MODEL.ROUTING.CLUSTERING.PERIOD = 2
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = ("coco_2017_train",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.OUTPUT_DIR = str(folder)
    return cfg


def test_plain_training_loop_and_detectron2s_predictor(drawn, tmp_path):
    cfg = configure(tmp_path)
    model = build_model(cfg)
    routing = divdr.attach_routing_from_config(model, cfg, cluster=True)
    checkpointer = DetectionCheckpointer(model, str(tmp_path), routing=routing)
    trainer = SimpleTrainer(model, build_detection_train_loader(cfg), build_optimizer(cfg, model))
    trainer.train(0, 4)
    checkpointer.save("model")
    assert routing.experts.centres is not None
    assert len(routing.experts.bank) > 2

    other = build_model(cfg)
    restored = divdr.attach_routing_from_config(other, cfg, cluster=True)
    DetectionCheckpointer(other, routing=restored).load(str(tmp_path / "model.pth"))
    assert restored.experts.centres.equal(routing.experts.centres)

    cfg.MODEL.WEIGHTS = os.path.join(tmp_path, "model.pth")
    image = torch.zeros(48, 64, 3, dtype=torch.uint8).numpy()
    prediction = DefaultPredictor(cfg)(image)
    assert prediction["instances"].image_size == (48, 64)


def test_what_needs_the_hook_is_refused(tmp_path):
    cfg = configure(tmp_path)
    cfg.MODEL.ROUTING.CLUSTERING.BANK = "exact"
    with pytest.raises(ConfigError, match="ClusteringHook"):
        divdr.attach_routing_from_config(build_model(cfg), cfg, cluster=True)
