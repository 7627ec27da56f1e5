"""Architectures of docs/guide/drop_in.md over routed ResNets: losses, gradients and predictions."""

import json

import pytest
import torch
from detectron2.utils.events import EventStorage

from divdr.data import build_test_loader, build_train_loader
from divdr.engine import Trainer, load_config, load_for_evaluation
from divdr.modeling import attached_experts
from divdr.moe import NoisyTopKGate, RoutingLayer

FPN = {
    "MODEL.BACKBONE.NAME": "build_routed_resnet_fpn_backbone",
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
}
BARE = {"MODEL.BACKBONE.NAME": "build_routed_resnet_deeplab_backbone"}
DEEPLAB = {
    **BARE,
    "MODEL.RESNETS.RES5_DILATION": 2,
    "MODEL.RESNETS.STEM_TYPE": "deeplab",
    "INPUT.CROP.SIZE": (64, 64),
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
}
NARROW = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.BACKBONE.FREEZE_AT": 0,
}
ARCHITECTURES = {
    "routed_coco_mask_rcnn_r50_fpn": {},
    "drop_in/cascade_mask_rcnn": FPN,
    "drop_in/keypoint_rcnn": FPN,
    "drop_in/retinanet": {
        "MODEL.BACKBONE.NAME": "build_retinanet_routed_resnet_fpn_backbone",
        "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    },
    "drop_in/panoptic_fpn": FPN,
    "drop_in/semantic_fpn": FPN,
    "drop_in/point_rend": FPN,
    "drop_in/deeplab_v3_plus": DEEPLAB,
    "drop_in/panoptic_deeplab": {
        **DEEPLAB,
        "INPUT.CROP.SIZE": (128, 128),
        "INPUT.MAX_SIZE_TEST": 128,
        "MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY": 128,
    },
}


def config(architecture, repository, small, **more):
    pairs = {**small, "MODEL.WEIGHTS": "", **NARROW, **ARCHITECTURES[architecture], **more}
    path = repository / "configs" / f"{architecture}.yaml"
    return load_config(str(path), [part for pair in pairs.items() for part in pair])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_learns_and_predicts(architecture, repository, drawn, small):
    cfg = config(architecture, repository, small)
    model = Trainer.build_model(cfg)
    assert not any("balance" in name for name in model.state_dict())
    with EventStorage():
        losses = model(next(iter(build_train_loader(cfg))))
    assert {"loss_importance", "loss_load"} <= losses.keys()
    sum(losses.values()).backward()
    layers = [m for m in model.modules() if isinstance(m, RoutingLayer)]
    assert layers
    for layer in layers:
        assert layer.router.gate.score.weight.grad.abs().sum() > 0
    batch = next(iter(build_test_loader(cfg, cfg.DATASETS.TEST[0])))
    with torch.no_grad():
        (output,) = model.eval()(batch)
    assert output["experts"].shape == (5 * len(layers),)
    assert int(output["experts"].sum()) == sum(layer.router.gate.k for layer in layers)


def test_trains_is_evaluated_and_goes_on(repository, drawn, small, tmp_path):
    cfg = config("routed_coco_mask_rcnn_r50_fpn", repository, small)
    trainer = Trainer(cfg)
    trainer.train()
    history = trainer.storage.histories()
    # Half of training is done before the second step: half the weight of its start.
    for name, value in (("loss_load", "train/load"), ("loss_importance", "train/importance")):
        found, plain = history[name].latest(), history[value].latest()
        assert found == pytest.approx(0.05 * plain, rel=1e-4)
    (figures,) = json.loads((tmp_path / "inference/results.json").read_text()).values()
    assert {"bbox", "segm", "cost"} <= figures.keys()
    cost = figures["cost"]
    ks = [5, 5, 5, 4, 4, 4, 4, 3, 3, 3, 3, 2, 2]
    assert cost["mean_experts"] == pytest.approx(sum(ks) / 13)
    assert cost["mean_experts-res5.2"] == 2
    assert 0 < cost["gflops"] < cost["gflops_all"]
    assert sum(v for k, v in cost.items() if k.startswith("share-")) == pytest.approx(100)
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["experts"]["steps"] == 2
    assert int(saved["experts"]["balance"]["count"]) == 2
    again = Trainer(config("routed_coco_mask_rcnn_r50_fpn", repository, small))
    again.resume_or_load(resume=True)
    assert attached_experts(again.model).balance.past.equal(saved["experts"]["balance"]["past"])
    model = Trainer.build_model(cfg).eval()
    load_for_evaluation(model, str(tmp_path / "model_final.pth"))


def test_cells_choose_operations_in_training_and_evaluation(repository, drawn, small, tmp_path):
    keys = {
        **small,
        "MODEL.ROUTING.LAYERS": 4,
        "MODEL.ROUTING.SCALES_PER_LAYER": [],
        "MODEL.ROUTING.OP_GATE.BALANCE_WEIGHT": [0.2, 0.0],
        "MODEL.ROUTING.OP_GATE.NOISE": 0.5,
        "MODEL.ROUTING.CHANNELS": 24,  # as there; 16 leave GroupNorm one channel a group
        "INPUT.CROP.SIZE": (64, 64),
        "INPUT.MIN_SIZE_TRAIN": (64,),
    }
    path = str(repository / "configs/small/chosen_ops_streetscapes.yaml")
    trainer = Trainer(load_config(path, [part for pair in keys.items() for part in pair]))
    trainer.train()
    history = trainer.storage.histories()
    assert history["loss_load"].latest() == pytest.approx(0.1 * history["train/load"].latest())
    assert "loss_budget" in history
    gates = [p for n, p in trainer.model.named_parameters() if "op_gate.gate.score" in n]
    assert len(gates) == 2 + 3 + 4 + 4
    assert all(gate.abs().sum() > 0 for gate in gates)
    own = [m for m in trainer.model.modules() if isinstance(m, NoisyTopKGate)]
    assert [(gate.k, gate.deviation) for gate in own] == [
        (k, 0.5) for k, cells in ((3, 2), (2, 3), (2, 4), (1, 4)) for _ in range(cells)
    ]
    (figures,) = json.loads((tmp_path / "inference/results.json").read_text()).values()
    assert 1 <= figures["routing"]["mean_ops"] <= 3
    assert figures["routing"]["real_gflops"] < figures["routing"]["all_open_gflops"]
