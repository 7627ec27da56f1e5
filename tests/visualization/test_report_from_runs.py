"""The report of runs of all kinds, with their data set registered or not."""

import html
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image
from untrained_runs import SCENES, untrained

from divdr.data import register_segmentation_folder
from divdr.experts.routing_warnings import FILE, one_expert_holds, one_route, warnings_text
from divdr.visualization.report import report_from_runs

BOXES = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_dynamic_routing_fpn_backbone",
    "MODEL.ROUTING.LAYERS": 3,
    "MODEL.ROUTING.SCALES_PER_LAYER": [2, 3, 4],
    "MODEL.ROUTING.CHANNELS": 4,
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 8,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 3,
    "INPUT.MIN_SIZE_TEST": 0,
}


def image(path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def results(folder, figures):
    (folder / "inference").mkdir()
    (folder / "inference/results.json").write_text(json.dumps({"was_there": figures}))


@pytest.fixture
def scenes(tmp_path, repository):
    """Folder of a segmentation run, and what registers its data set."""
    image(tmp_path / "images/0.png")
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "labels/0.png")
    folders = [str(tmp_path / kind) for kind in ("images", "labels")]

    def register(name):
        register_segmentation_folder(name, *folders, ["sky", "sea"])

    untrained(tmp_path, repository / "configs/demo/divdr.yaml", SCENES, register)
    results(tmp_path, {"sem_seg": {"mIoU": 12.34}})
    return tmp_path, register


def test_a_data_set_that_is_not_registered_leaves_out_images_and_says_so(scenes):
    folder, _ = scenes
    page = report_from_runs(folder / "report.html", {"Mine": folder}, title="Mine").read_text()
    assert "No images are shown: data set was_there is not registered here." in page
    assert "12.34" in page
    assert "No example images were given." in page


def test_a_run_whose_routing_is_none_says_so(scenes):
    folder, _ = scenes
    told = [one_expert_holds([[95, 5]] * 3), one_route(np.tile([0.5, 0.0], (9, 1)), [True] * 2)]
    (folder / FILE).write_text(warnings_text(told[:1]))
    (folder / "inference" / f"was_there_{FILE}").write_text(warnings_text(told[1:]))
    page = report_from_runs(folder / "report.html", {"Mine": folder}, title="Mine").read_text()
    for warning in told:
        assert f"<li>Mine: {html.escape(warning.text)}</li>" in page


def test_images_that_are_gone_are_said_to_be(scenes):
    folder, register = scenes
    register("was_there")
    try:
        there = report_from_runs(folder / "there.html", {"Mine": folder}, title="Mine").read_text()
        (folder / "images/0.png").rename(folder / "moved.png")
        gone = report_from_runs(folder / "gone.html", {"Mine": folder}, title="Mine").read_text()
    finally:
        DatasetCatalog.remove("was_there")
        MetadataCatalog.remove("was_there")
    assert "Pixels of these images that agree with the truth: Mine" in there
    assert "No images are shown: " in gone
    assert "data:image" not in gone


def test_an_interrupted_run_is_shown_with_its_last_weights_or_without(scenes):
    folder, register = scenes
    (folder / "model_final.pth").rename(folder / "model_0000099.pth")
    (folder / "last_checkpoint").unlink()
    (folder / "inference/results.json").unlink()
    (folder / "metrics.json").write_text('{"iteration": 19, "total_loss": 2.0}\n')
    register("was_there")
    try:
        without = report_from_runs(folder / "w.html", {"Mine": folder}, title="Mine").read_text()
        (folder / "last_checkpoint").write_text("model_0000099.pth")
        page = report_from_runs(folder / "r.html", {"Mine": folder}, title="Mine").read_text()
    finally:
        DatasetCatalog.remove("was_there")
        MetadataCatalog.remove("was_there")
    assert "Mine was not trained to its end, and no weights of it are there." in without
    assert "No images are shown: no run has weights." in without
    assert "Mine was not trained to its end: its predictions are those of model_0000099" in page
    assert "There are no evaluation results on was_there for Mine." in page
    assert "scene character" not in page
    assert "Pixels of these images that agree with the truth: Mine" in page


def test_a_detectors_boxes_are_drawn(tmp_path):
    image(tmp_path / "images/1.png")
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 60, "height": 40}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))

    def register(name):
        register_coco_instances(name, {}, str(tmp_path / "boxes.json"), str(tmp_path / "images"))

    untrained(tmp_path, "", BOXES, register)
    results(tmp_path, {"bbox": {"AP": 43.21}})
    register("was_there")
    try:
        page = report_from_runs(tmp_path / "r.html", {"Boxes": tmp_path}, title="B").read_text()
    finally:
        DatasetCatalog.remove("was_there")
        MetadataCatalog.remove("was_there")
    assert page.count("data:image/png") == 1
    assert "Black pixels" not in page
    assert "Detections of a score below 0.5 are left out" in page
    assert "box AP" in page
    assert "43.21" in page
    assert "mIoU" not in page
