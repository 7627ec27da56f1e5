"""Mixtures made of finished models on drawn COCO images, Mask R-CNN by the tool's own program."""

import json
import runpy
import sys

import pytest
import torch
from detectron2.utils.events import EventStorage

from divdr.engine import Trainer, load_config
from divdr.engine.make_mixture import make_start
from divdr.engine.mixture_curve import finished_point, mixture_curve
from divdr.errors import ConfigError

CONFIG = "configs/small/divdr_coco_mask_rcnn.yaml"
KEY = "MODEL.ROI_BOX_HEAD.SINGLE_GATE"


@pytest.fixture(autouse=True)
def _in_repository(repository, monkeypatch, training_log):
    monkeypatch.chdir(repository)


def pairs(small, **keys):
    found = {**small, **{key.replace("__", "."): value for key, value in keys.items()}}
    return [str(part) for pair in found.items() for part in pair]


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def test_of_a_mask_rcnn(drawn, small, tmp_path, monkeypatch, capsys):
    trainer = Trainer(load_config(CONFIG, pairs(small, OUTPUT_DIR=tmp_path / "finished")))
    trainer.resume_or_load(resume=False)
    trainer.train()
    finished, folder = tmp_path / "finished" / "model_final.pth", tmp_path / "mixture"
    given = ["--config-file", CONFIG, "--weights", finished, "--output", folder]
    given += ["--experts", 2, "--iterations", 4, "--thresholds", "0,0.3,1"]
    less = {"SOLVER.MAX_ITER": 4, "OUTPUT_DIR": folder, f"{KEY}.GATE_STAGE": 0.5}
    less |= {f"{KEY}.CLUSTER_BATCHES": 2, "INPUT.MIN_SIZE_TEST": 64}
    few = pairs({**small, **less, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.01})
    monkeypatch.setattr(sys, "argv", ["make_mixture.py", *map(str, [*given, *few])])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path("tools/make_mixture.py", run_name="__main__")
    assert ended.value.code == 0
    assert "finished model" in capsys.readouterr().out

    before, after = weights(finished), weights(folder / "model_final.pth")
    box = "roi_heads.box_head."
    own = {name for name in after if name.startswith((f"{box}gate.", f"{box}experts."))}
    kept = {name.replace(f"{box}base.", box): name for name in {*after} - own}
    assert set(kept) == set(before)
    assert all(after[name].equal(before[old]) for old, name in kept.items())
    start = weights(folder / "start.pth")
    moved = {name for name in own if not after[name].equal(start[name])}
    assert f"{box}gate.linear.weight" in moved
    assert all(f"{box}experts.{k}.predictor.cls_score.weight" in moved for k in range(2))
    for k in range(2):
        expert = start[f"{box}experts.{k}.predictor.bbox_pred.weight"]
        assert expert.equal(before["roi_heads.box_predictor.bbox_pred.weight"])
        # The last layer, with the ReLU before it left to the layer that it follows.
        assert start[f"{box}experts.{k}.layers.0.weight"].equal(before[f"{box}fc2.weight"])

    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    losses = {key for line in lines for key in line if "loss" in key}
    assert losses == {"loss_expert_cls", "loss_expert_box_reg", "total_loss"}  # of the end

    found = json.loads((folder / "curve.json").read_text())
    by = {(p["exit"], p["threshold"]): p for p in found["points"]}
    point = found["finished"]
    assert set(point["accuracy"]) == {"box AP", "mask AP"}
    for alone in (by["anytime", 1.0], by["confidence", 0.0]):
        assert alone["accuracy"] == point["accuracy"]
        assert alone["experts"] == 0
        assert point["gflops"] < alone["gflops"] < 1.01 * point["gflops"]
    assert by["anytime", 0.0]["experts"] == 2
    assert by["confidence", 1.0]["experts"] == 1
    costs = [by["confidence", tau]["gflops"] for tau in (0.0, 0.3, 1.0)]
    assert costs == sorted(costs)
    assert (folder / "curve.png").stat().st_size > 5000

    # Evaluation counts what the curve does.
    cfg = load_config(str(folder / "config.yaml"), pairs({"OUTPUT_DIR": tmp_path / "again"}))
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    cfg.MODEL.ROI_BOX_HEAD.SINGLE_GATE.THRESHOLD = 0.3
    model = Trainer.build_model(cfg)
    model.load_state_dict(after)
    results = Trainer.test(cfg, model)
    same = by["confidence", 0.3]
    assert results["box_head"]["mean_experts"] == pytest.approx(same["experts"])
    gflops = results["routing"]["real_gflops_with_neck"] + results["box_head"]["gflops"]
    assert gflops == pytest.approx(same["gflops"])
    if same["accuracy"]["box AP"] == same["accuracy"]["box AP"]:
        assert results["bbox"]["AP"] == pytest.approx(same["accuracy"]["box AP"])


def test_one_expert_on_all_data(drawn, small, tmp_path):
    few = {"SOLVER.MAX_ITER": 4, f"{KEY}.GATE_STAGE": 1, f"{KEY}.CLUSTER_BATCHES": 2}
    few |= {"INPUT.MIN_SIZE_TEST": 64, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.01}
    config = "configs/small/divdr_coco_faster_rcnn.yaml"
    cfg, _ = start(small, tmp_path, config=config, experts=1, **few)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    gate = trainer.model.roi_heads.box_head.gate
    features = torch.randn(5, gate.centres.shape[1])
    assert gate.initial(features).tolist() == [[1.0]] * 5
    every, one, none = mixture_curve(
        cfg, trainer.model, {"anytime": (0.0,), "confidence": (1.0, 0.0)}
    )
    assert every.experts == one.experts == 1
    assert every.gflops == one.gflops > none.gflops
    assert every.accuracy == pytest.approx(one.accuracy, nan_ok=True)


def start(small, tmp_path, config=CONFIG, experts=2, **keys):
    """A mixture of a model that nobody trained, and its model with base and experts."""
    opts = pairs(small, OUTPUT_DIR=tmp_path / "finished")
    cfg = load_config(config, opts)
    path = tmp_path / "finished.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, path)
    cfg.MODEL.WEIGHTS = str(path)
    return make_start(cfg, experts, str(tmp_path / "mixture"), overrides=pairs(keys))


def test_nothing_but_gate_and_experts_trains(drawn, small, tmp_path):
    cfg, _ = start(small, tmp_path, **{"SOLVER.MAX_ITER": 20})
    model = Trainer.build_model(cfg).train()
    model.load_state_dict(weights(cfg.MODEL.WEIGHTS))
    box = model.roi_heads.box_head
    box.gate.fit_samples(torch.randn(20, box.output_shape.channels))
    box.progress = 1.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = Trainer.build_optimizer(cfg, model)
    seen = []
    model.proposal_generator.register_forward_hook(lambda m, args, out: seen.append(out))
    batches = iter(Trainer.build_train_loader(cfg))
    for iteration in range(3):
        batch = next(batches)
        with EventStorage(iteration):
            losses = model(batch)
        assert set(losses) == {"loss_expert_cls", "loss_expert_box_reg"}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        proposals, rpn_losses = seen.pop()
        assert rpn_losses == {}
        # As many as in evaluation; training keeps POST_NMS_TOPK_TRAIN.
        assert all(len(p) <= cfg.MODEL.RPN.POST_NMS_TOPK_TEST for p in proposals)
    changed = {n for n, value in model.state_dict().items() if not value.equal(before[n])}
    assert {name.split(".")[2] for name in changed} == {"experts"}
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for part in box.own_parts() for p in part.parameters()}
    # The same proposals as in evaluation.
    with torch.no_grad(), EventStorage(0):
        model(batch)
        in_training = seen.pop()[0]
        images = model.preprocess_image(batch)
        model.eval()
        alone = model.proposal_generator(images, model.backbone(images.tensor), None)[0]
    for one, other in zip(in_training, alone, strict=True):
        torch.testing.assert_close(one.proposal_boxes.tensor, other.proposal_boxes.tensor)


def test_the_small_config_trains_from_start_weights(drawn, small, tmp_path):
    plain, config = (f"configs/small/{n}_coco_faster_rcnn.yaml" for n in ("divdr", "single_gate"))
    cfg, _ = start(small, tmp_path, config=plain)
    keys = {"MODEL.WEIGHTS": cfg.MODEL.WEIGHTS, f"{KEY}.CLUSTER_BATCHES": 2}
    trainer = Trainer(load_config(config, pairs({**small, **keys, f"{KEY}.EXPERTS": 2})))
    trainer.resume_or_load(resume=False)
    trainer.train()
    results = json.loads((tmp_path / "inference" / "results.json").read_text())
    assert 0 < results["coco_2017_val"]["box_head"]["mean_experts"] <= 1
    assert trainer.model.roi_heads.box_head.gate.fitted


def test_of_a_resnet_with_fpn(drawn, small, tmp_path):
    """A detector of Detectron2's own, without a routed backbone, whose layers are named stages."""
    keys = {**small, "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone"}
    keys |= {"MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"]}
    keys |= {"MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"]}
    keys |= {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
    cfg, finished = start(keys, tmp_path)
    model = Trainer.build_model(cfg).eval()
    model.load_state_dict(weights(cfg.MODEL.WEIGHTS))
    batch = next(iter(Trainer.build_test_loader(cfg, "coco_2017_val")))
    with torch.no_grad():
        one, other = (each(batch)[0]["instances"] for each in (model, finished))
    assert one.pred_boxes.tensor.equal(other.pred_boxes.tensor)
    assert one.scores.equal(other.scores)
    few = {"SOLVER.MAX_ITER": 2, f"{KEY}.CLUSTER_BATCHES": 2, f"{KEY}.GATE_STAGE": 0.5}
    cfg.merge_from_list(pairs(few))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    results = json.loads((tmp_path / "mixture" / "inference" / "results.json").read_text())
    figures = results["coco_2017_val"]
    assert set(figures) == {"bbox", "segm", "cost", "box_head"}


def test_of_a_semantic_fpn_from_inside_its_resnet(drawn, small, tmp_path):
    keys = {**small, "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone"}
    keys |= {"MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"]}
    keys |= {"MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"]}
    keys |= {"MODEL.RESNETS.RES2_OUT_CHANNELS": 8, "MODEL.RESNETS.WIDTH_PER_GROUP": 4}
    head = "MODEL.SEM_SEG_HEAD.SINGLE_GATE."
    own = {f"{head}BACKBONE_FROM": "bottom_up.res5", f"{head}CLUSTER_BATCHES": 2}
    own |= {f"{head}GATE_STAGE": 0.5, "SOLVER.MAX_ITER": 2}
    cfg, finished = start(keys, tmp_path, config="configs/drop_in/semantic_fpn.yaml", **own)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    after = trainer.model.state_dict()
    before = finished.state_dict()
    assert all(after[n].equal(v) for n, v in before.items() if n.startswith("backbone."))
    moved = "bottom_up.res5.0.conv1.weight"
    for k in range(2):
        own = after[f"sem_seg_head.experts.{k}.tail.backbone.{moved}"]
        assert not own.equal(before[f"backbone.{moved}"])
    point = finished_point(cfg, finished)
    every, alone = mixture_curve(cfg, trainer.model, {"confidence": [1.0, 0.0]})
    assert (every.experts, alone.experts) == (1, 0)
    assert alone.accuracy == point.accuracy
    # The end of the backbone, FPN and head, for every image.
    assert 1.3 * point.gflops < every.gflops < 2 * point.gflops


def test_of_a_panoptic_fpn(drawn, small, tmp_path):
    """Its segmentation head stays, without a loss."""
    cfg, _ = start(small, tmp_path, config="configs/drop_in/panoptic_fpn.yaml")
    model = Trainer.build_model(cfg).train()
    model.load_state_dict(weights(cfg.MODEL.WEIGHTS))
    box = model.roi_heads.box_head
    box.gate.fit_samples(torch.randn(20, box.output_shape.channels))
    box.progress = 1.0
    with EventStorage(0):
        losses = model(next(iter(Trainer.build_train_loader(cfg))))
    assert set(losses) == {"loss_expert_cls", "loss_expert_box_reg"}
    thresholds = {"confidence": [1.0, 0.0]}
    every, alone = mixture_curve(cfg, model, thresholds)
    assert (every.experts, alone.experts) == (1, 0)
    assert "PQ" in alone.accuracy


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({f"{KEY}.SHARED_LAYERS": 2}, "SHARED_LAYERS must be between 1 and 1.* not 2"),
        ({f"{KEY}.EXPERTS": 0}, "EXPERTS must be at least 1, not 0"),
    ],
)
def test_settings_that_cannot_be(keys, told, drawn, small, tmp_path):
    with pytest.raises(ConfigError, match=told):
        start(small, tmp_path, **keys)
