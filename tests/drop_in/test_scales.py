"""Detectron2's detectors with a routed backbone at several scales, and segmentation end to end."""

import json

import pytest
import torch
from detectron2.data import build_detection_test_loader
from detectron2.modeling import GeneralizedRCNNWithTTA

from divdr.engine import Trainer, load_config
from divdr.evaluation import augmented

SCALES = {
    "TEST.AUG.ENABLED": True,
    "TEST.AUG.MIN_SIZES": (64, 96),
    "TEST.AUG.MAX_SIZE": 160,
}


def load(repository, config, pairs):
    texts = [str(part) for pair in pairs.items() for part in pair]
    return load_config(str(repository / "configs" / f"{config}.yaml"), texts)


@pytest.mark.parametrize("config", ["divdr_coco_mask_rcnn", "drop_in/faster_rcnn_fpn"])
def test_a_detector_finds_what_detectron2s_own_does(config, repository, drawn, small, tmp_path):
    cfg = load(repository, config, {**small, **SCALES})
    model = Trainer.build_model(cfg).eval()
    seen, runs = augmented(cfg, model)
    item = next(iter(build_detection_test_loader(seen, cfg.DATASETS.TEST[0])))[0]
    with torch.no_grad():
        found = runs([item])[0]
        wanted = GeneralizedRCNNWithTTA(cfg, model, batch_size=1)([item])[0]["instances"]
    for name, value in wanted.get_fields().items():
        value = getattr(value, "tensor", value)
        own = found["instances"].get(name)
        assert getattr(own, "tensor", own).equal(value), name

    results = Trainer.test(cfg, model)
    assert not model.training
    figures = json.loads((tmp_path / "inference/results.json").read_text())
    routing = next(iter(figures.values()))["routing"]
    assert set(results) >= {"bbox", "routing", "box_head"}
    # Two scales, each flipped too; once for boxes and once for masks.
    forwards = 8 if cfg.MODEL.MASK_ON else 4
    assert routing["forwards"] == forwards
    records = [ran["routing"] for _, ran in found["parts"]]
    assert len(records) == forwards
    assert len({record.size for record in records}) == 2
    assert results["box_head"]["proposals"] > 50  # of a forward at most


def test_a_trainer_evaluates_segmentation_at_scales_and_in_windows(
    repository, drawn, small, tmp_path
):
    pairs = {
        **small,
        "MODEL.ROUTING.LAYERS": 3,
        "MODEL.ROUTING.SCALES_PER_LAYER": [2, 3, 3],
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4"],
        "INPUT.MIN_SIZE_TEST": 64,
        "TEST.AUG.MIN_SIZES": (64,),
        "TEST.AUG.FLIP": False,
    }
    cfg = load(repository, "demo/divdr", pairs)
    model = Trainer.build_model(cfg)
    results = []
    for enabled, window in ((False, ()), (True, ()), (True, (64, 64))):
        cfg.TEST.AUG.ENABLED, cfg.TEST.SLIDING_WINDOW.SIZE = enabled, window
        results.append(Trainer.test(cfg, model))
    plain, one, windows = results
    assert model.training
    assert json.dumps(one) == json.dumps(plain)
    # 64 × 128 pixels in windows of 64 × 64 that overlap by a quarter.
    assert windows["routing"]["forwards"] == 3
    assert windows["sem_seg"].keys() == plain["sem_seg"].keys()
