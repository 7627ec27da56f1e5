import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from divdr.errors import DataError
from divdr.evaluation import pooled_miou, subset_recovery

DATASET = "subsets_val"


def write_run(root, activations, subsets, expert):
    """A run folder and the data set beside it, as they are left by tools/train_net.py."""
    names = [f"val_{i:05d}" for i in range(len(subsets))]
    images = root / "data" / "subsets" / "images" / "val"
    images.mkdir(parents=True)
    known = dict(zip(names, map(int, subsets), strict=True))
    (root / "data" / "subsets" / "subsets.json").write_text(json.dumps(known))
    folder = root / "run" / "inference"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({DATASET: {"sem_seg": {"mIoU": 1.0}}}))
    np.savez(
        folder / f"activations_{DATASET}.npz",
        file_names=np.array([str(images / f"{name}.png") for name in names]),
        activations=activations.astype(np.float32),
        expert=np.asarray(expert),
    )
    return root / "run"


def test_recovery_of_a_run(tmp_path):
    rng = np.random.default_rng(0)
    subsets = np.arange(60) % 3
    activations = rng.normal(0, 0.01, (60, 4))
    activations[np.arange(60), subsets] += 1
    expert = (subsets + 1) % 3
    expert[:6] = 0  # two of these six belong to expert 0 (subset 2): four are wrong
    run = write_run(tmp_path, activations, subsets, expert)
    figures = subset_recovery(run)
    assert figures["kmeans"] == figures["kmeans_std"] == figures["linear"] == 100
    assert figures["centres"] == pytest.approx(100 * 56 / 60)


def test_a_run_without_experts(tmp_path):
    subsets = np.arange(30) % 2
    run = write_run(tmp_path, np.eye(2)[subsets], subsets, np.full(30, -1))
    assert "centres" not in subset_recovery(run)


def test_runs_that_cannot_be_scored(tmp_path):
    with pytest.raises(DataError, match=r"no evaluated run: .*results.json is missing"):
        subset_recovery(tmp_path)
    with pytest.raises(DataError, match="no evaluated segmentation"):
        pooled_miou([tmp_path])
    subsets = np.arange(30) % 2
    run = write_run(tmp_path, np.eye(2)[subsets], subsets, np.full(30, -1))
    (tmp_path / "data" / "subsets" / "subsets.json").write_text("{}")
    with pytest.raises(DataError, match="not known"):
        subset_recovery(run)


def test_miou_of_several_runs_is_that_of_all_their_pixels(tmp_path):
    data = tmp_path / "subsets"
    runs = []
    # Truth and prediction of two runs with one image each, a row of four pixels; 255 is ignored.
    for number, (truth, found) in enumerate(
        [([0, 0, 1, 255], [0, 1, 1, 1]), ([1, 1, 1, 0], [1, 1, 0, 0])]
    ):
        for top in ("images", "labels"):
            (data / top / "val").mkdir(parents=True, exist_ok=True)
        name = f"val_{number:05d}.png"
        Image.fromarray(np.array([truth], np.uint8)).save(data / "labels" / "val" / name)
        folder = tmp_path / f"run_{number}" / "inference"
        folder.mkdir(parents=True)
        parts = []
        for category in (0, 1):
            mask = np.asfortranarray(np.array([found]) == category).astype(np.uint8, order="F")
            rle = coco_mask.encode(mask)
            rle["counts"] = rle["counts"].decode()
            parts.append(
                {
                    "file_name": str(data / "images" / "val" / name),
                    "category_id": category,
                    "segmentation": rle,
                }
            )
        (folder / "sem_seg_predictions.json").write_text(json.dumps(parts))
        runs.append(tmp_path / f"run_{number}")
    # Class 0: 1 + 1 right, union 2 + 2 (run 1: truth 2, found 1; run 2: truth 1, found 2).
    # Class 1: 1 + 2 right, union 2 + 3.
    assert pooled_miou(runs) == pytest.approx(100 * (2 / 4 + 3 / 5) / 2)
    # Run 0 alone: 1/2 and 1/2.
    assert pooled_miou(runs[:1]) == pytest.approx(50)
