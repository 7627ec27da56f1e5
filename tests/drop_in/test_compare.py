"""Detector runs from the command line to a table of their figures."""

import json
import os

import forked
import pytest

from divdr.engine import Trainer, load_config
from divdr.engine.compare import compare_runs, comparison_table
from divdr.errors import DataError

BRIEFLY = {
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "INPUT.CROP.SIZE": (64, 64),
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 1,
    "TEST.PRECISE_BN.NUM_ITER": 1,
}


def train(repository, name, folder):
    pairs = {**BRIEFLY, "OUTPUT_DIR": str(folder)}
    cfg = load_config(
        str(repository / "configs" / "neon_trees" / f"{name}.yaml"),
        [str(part) for pair in pairs.items() for part in pair],
    )
    os.makedirs(folder)
    (folder / "config.yaml").write_text(cfg.dump())
    Trainer(cfg).train()


def test_routed_and_plain_runs_stand_side_by_side(repository, drawn, tmp_path):
    for name in ("divdr", "resnet18"):
        train(repository, name, tmp_path / name)
    folders = [str(tmp_path / name) for name in ("divdr", "resnet18")]
    routed, plain = compare_runs(folders, images=2, rounds=1)
    results = json.loads((tmp_path / "divdr" / "inference" / "results.json").read_text())
    figures = results["coco_2017_val"]
    boxes = figures["bbox"]
    assert routed.accuracy == {"coco_2017_val": (boxes["AP"], boxes["AP50"])}
    assert routed.gflops == figures["routing"]["real_gflops_with_neck"]
    assert routed.gflops_800 == figures["routing"]["real_gflops_800x800_with_neck"]
    # ResNet-18 takes 1.81 GFLOPs at 224×224, nearly all of them convolutions that grow with the
    # image: 1.81 · (800/224)² = 23.1; classifier off, FPN with 64 channels on.
    assert 23 < plain.gflops_800 < 32
    assert plain.seconds > 0
    table = comparison_table([routed, plain])
    assert table.splitlines()[2].startswith("| divdr ")
    assert f"{plain.gflops_800:.2f}" in table


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(DataError, match=r"config\.yaml is missing"):
        compare_runs([str(tmp_path)])


def test_command_line_trains_on_the_drawn_sample(repository, drawn, tmp_path):
    options = ["SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", str(tmp_path)]
    config = "configs/small/divdr_coco_mask_rcnn.yaml"
    done = forked.run(["tools/train_net.py", "--config-file", config, *options], repository)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "inference" / "results.json").read_text())
    assert "routing" in results["coco_2017_val"]
