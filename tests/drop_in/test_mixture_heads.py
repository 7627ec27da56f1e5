"""Detectors with mixtures as box heads, through the tools' own programs, on drawn COCO images."""

import argparse
import json

import pytest
import torch
from boxes_of_few import register_few_classes
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

from divdr.engine import BoxPartitionHook, Trainer, launch, load_config
from divdr.engine.classifier_analysis import partition_by_model
from divdr.engine.execution_modes import load_trained
from divdr.errors import CheckpointError, ConfigError
from divdr.modeling.roi_heads import box_cost, box_head_of
from divdr.visualization import expert_choices

SMALL = "configs/small/"


@pytest.fixture(autouse=True)
def _in_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


def options(small, **keys):
    pairs = {**small, "MODEL.ROI_BOX_HEAD.HYDRA.BRANCH_FC_DIMS": [32], "SOLVER.MAX_ITER": 3}
    pairs |= {key.replace("__", "."): value for key, value in keys.items()}
    return [str(part) for pair in pairs.items() for part in pair]


def run(config, opts, *, eval_only=False):
    launch.main(
        argparse.Namespace(config_file=config, eval_only=eval_only, resume=False, opts=opts)
    )


def results(folder, name="coco_2017_val"):
    return json.loads((folder / "inference" / "results.json").read_text())[name]


def losses_of(folder):
    lines = (folder / "metrics.json").read_text().splitlines()
    return {key for line in lines for key in json.loads(line) if key.startswith("loss_")}


def test_hydra_trains_and_is_evaluated_and_its_threshold_changed(drawn, small, tmp_path, capsys):
    config = f"{SMALL}hydra_coco_faster_rcnn.yaml"
    run(config, options(small))
    assert {"loss_cls", "loss_box_reg", "loss_gater", "loss_branch"} <= losses_of(tmp_path)
    found = results(tmp_path)
    assert set(found) == {"bbox", "routing", "box_head"}
    box = found["box_head"]
    assert 1 <= box["mean_experts"] <= 3
    weights = str(tmp_path / "model_final.pth")
    saved = torch.load(weights, weights_only=True)["model"]
    partition = saved["roi_heads.box_head.classes.partition"]
    # COCO's super-categories: person 1, vehicle 8, outdoor 5, animal 10, …
    assert partition.bincount().tolist() == [1, 8, 5, 10, 5, 10, 7, 10, 6, 6, 5, 7]

    again = {"MODEL__WEIGHTS": weights, "OUTPUT_DIR": str(tmp_path / "again")}
    run(config, options(small, **again), eval_only=True)
    assert results(tmp_path / "again")["box_head"] == box
    run(config, options(small, **again, MODEL__ROI_BOX_HEAD__HYDRA__THRESHOLD=1.0), eval_only=True)
    strict = results(tmp_path / "again")["box_head"]
    assert strict["mean_experts"] == 1
    assert strict["proposals"] == box["proposals"]
    assert strict["gflops"] <= box["gflops"]

    # The figures, from what really runs.
    cfg = load_config(config, options(small, **again))
    model = load_trained(cfg)
    rows = []

    def note(module, args, output):
        if not args[0].is_meta:  # counting multiply-adds runs copies without data
            rows.append(len(args[0]))

    for branch in model.roi_heads.box_head.branches:
        branch.register_forward_hook(note)
    Trainer.test(cfg, model)
    ran = box["mean_experts"] * box["proposals"] * 4
    assert sum(rows) == pytest.approx(ran)

    MetadataCatalog.get("coco_2017_val").thing_classes[2] = "lorry"
    try:
        with pytest.raises(CheckpointError, match="another data set: class 2 is not 'lorry'"):
            Trainer.test(cfg, model)
    finally:
        MetadataCatalog.get("coco_2017_val").thing_classes[2] = "car"


def test_coe_trains_and_its_threshold_ends_proposals_early(drawn, small, tmp_path):
    config = f"{SMALL}coe_coco_faster_rcnn.yaml"
    run(config, options(small, MODEL__ROI_BOX_HEAD__COE__START=0.4))
    names = {"loss_cls", "loss_box_reg", "loss_selector", "loss_expert_cls", "loss_expert_box_reg"}
    assert names <= losses_of(tmp_path)
    weights = {"MODEL__WEIGHTS": str(tmp_path / "model_final.pth")}
    costs = []
    for threshold in (0.0, 1.0):
        keys = {**weights, "MODEL__ROI_BOX_HEAD__COE__THRESHOLD": threshold}
        run(config, options(small, **keys), eval_only=True)
        costs.append(results(tmp_path)["box_head"])
    assert [c["mean_experts"] for c in costs] == [0, 1]
    assert costs[0]["gflops"] < costs[1]["gflops"]
    # Which experts got the boxes of which class: at 1 each proposal has one.
    choices = expert_choices(load_config(config, options(small, **keys)))
    assert choices.counts.sum() == costs[1]["proposals"] * 4
    assert choices.counts.shape == (81, 3)
    seen = {a["category_id"] for d in DatasetCatalog.get("coco_2017_val") for a in d["annotations"]}
    assert set(choices.counts[:80].sum(1).nonzero()[0].tolist()) <= seen
    assert choices.counts[80].sum() > 0  # nobody trained it to propose
    assert choices.table().splitlines()[-1].split()[0] == "boxes"
    with pytest.raises(ConfigError, match="makes one decision, 0, and not 3"):
        expert_choices(load_config(config, options(small, **keys)), 3)


@pytest.mark.parametrize("system", ["hydra", "coe"])
def test_mask_rcnn_with_resnet_50_at_full_size_takes_a_step(system, drawn, small, tmp_path):
    config = f"configs/{system}_coco_mask_rcnn_r50_fpn.yaml"
    keys = {"MODEL.WEIGHTS": "", "MODEL.DEVICE": "cpu", "MODEL.ROI_BOX_HEAD.COE.START": 0.0}
    keys |= {"MODEL.ROI_BOX_HEAD.HYDRA.PARTITION": "coarse", "DATASETS.TEST": "()"}
    keep = ("MODEL.RPN", "DATALOADER", "INPUT", "SOLVER", "OUTPUT_DIR", "MODEL.ROI_HEADS.BATCH")
    keys |= {key: value for key, value in small.items() if key.startswith(keep)}
    keys |= {"SOLVER.IMS_PER_BATCH": 1, "INPUT.MIN_SIZE_TRAIN": (64,)}
    cfg = load_config(config, [str(part) for pair in keys.items() for part in pair])
    model = Trainer.build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    batch = next(iter(Trainer.build_train_loader(cfg)))
    BoxPartitionHook(cfg, model).before_train()
    with EventStorage(0):
        losses = model(batch)
    sum(losses.values()).backward()
    optimizer.step()
    own = {"loss_gater", "loss_branch"} if system == "hydra" else {"loss_selector"}
    assert {"loss_mask", "loss_rpn_cls", "loss_cls", "loss_box_reg"} | own <= set(losses)
    heads = box_head_of(model)
    cost = box_cost(heads, (256, 7, 7))
    assert len(cost.experts) == {"hydra": 12, "coe": 4}[system]
    by_hand = {
        # 1×1 to 64 channels with ReLU, then 512, 512; 1024, 1024 and an expert's predictor.
        "hydra": 64 * 49 * 512 + 512 * 512 + 2 * 512,
        "coe": 256 * 49 * 1024 + 1024 * 1024 + 2 * 1024 + 1024 * (81 + 320),
    }
    assert cost.experts[0] == by_hand[system]


def test_classes_are_clustered_by_their_boxes(drawn, small, tmp_path, capsys):
    config = f"{SMALL}hydra_coco_faster_rcnn.yaml"
    with register_few_classes("coco_2017_train", ["person", "car", "chair", "bottle"]) as name:
        few = {"DATASETS__TRAIN": f"('{name}',)", "DATASETS__TEST": "()"}
        few |= {"MODEL__ROI_HEADS__NUM_CLASSES": 4, "MODEL__ROI_BOX_HEAD__HYDRA__BRANCHES": 2}
        few |= {"MODEL__ROI_BOX_HEAD__HYDRA__TOP_K": 2, "SOLVER__MAX_ITER": 1}
        run(config, options(small, **few, MODEL__ROI_BOX_HEAD__HYDRA__PARTITION="cluster"))
        weights = {"MODEL__WEIGHTS": str(tmp_path / "model_final.pth")}
        saved = torch.load(weights["MODEL__WEIGHTS"], weights_only=True)["model"]
        clustered = saved["roi_heads.box_head.classes.partition"]
        assert clustered.bincount().tolist() == [2, 2]
        # The tool: by a trained detector, here of a plain head.
        plain = f"{SMALL}divdr_coco_faster_rcnn.yaml"
        run(plain, options(small, **few))
        path = str(tmp_path / "partition.json")
        partition = partition_by_model(
            load_config(plain, options(small, **few, **weights)), 2, path
        )
        file = {"MODEL__ROI_BOX_HEAD__HYDRA__PARTITION": "file"}
        file |= {"MODEL__ROI_BOX_HEAD__HYDRA__PARTITION_FILE": path}
        run(config, options(small, **few, **file))
        saved = torch.load(weights["MODEL__WEIGHTS"], weights_only=True)["model"]
        assert saved["roi_heads.box_head.classes.partition"].equal(partition)
        # A checkpoint's own partition is kept, and refused for other classes.
        MetadataCatalog.get(name).thing_classes[1] = "lorry"
        assert "class 1 is not 'lorry'" in refused(capsys, config, options(small, **few, **weights))


def refused(capsys, config, opts):
    with pytest.raises(SystemExit) as exit_info:
        run(config, opts)
    assert exit_info.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


@pytest.mark.parametrize(
    ("system", "key", "value", "reported"),
    [
        ("hydra", "ROI_BOX_HEAD.HYDRA.PARTITION", "cluster", "has no box in the training set"),
        (
            "hydra",
            "ROI_BOX_HEAD.HYDRA.PARTITION",
            "best",
            "one of cluster, random, coarse, file, not 'best'",
        ),
        ("hydra", "ROI_BOX_HEAD.HYDRA.BRANCHES", 5, "has 12 super-classes, and BRANCHES is 5"),
        ("hydra", "ROI_BOX_HEAD.HYDRA.PARTITION", "file", "class partition  cannot be read"),
        ("hydra", "ROI_HEADS.NAME", "StandardROIHeads", "HydraBoxHead needs MODEL.ROI_HEADS.NAME"),
        (
            "coe",
            "ROI_BOX_HEAD.NAME",
            "FastRCNNConvFCHead",
            "or SingleGateBoxHead, not Fast",
        ),
        ("coe", "ROI_BOX_HEAD.COE.THRESHOLD", 2.0, "COE.THRESHOLD must be between 0 and 1, not 2"),
    ],
)
def test_settings_that_cannot_be(system, key, value, reported, drawn, small, capsys):
    path = f"{SMALL}{system}_coco_faster_rcnn.yaml"
    assert reported in refused(capsys, path, options(small, **{f"MODEL.{key}": value}))


def test_names_of_the_data_set_are_left_as_they_were(drawn):
    assert "few_classes" not in DatasetCatalog.list()
