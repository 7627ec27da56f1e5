"""Scenes of Fashion-MNIST's photographs: masks, boxes, repeatability, and use by the loaders."""

import gzip
import json
import struct

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from drawn_files import content, read
from PIL import Image
from pycocotools import mask as coco_mask

from divdr.data import register_segmentation_folder
from divdr.errors import ConfigError, DataError
from drawn.fashion_scenes import CLASSES, make_fashion_scenes

SIZE = {"height": 64, "width": 96}


def write_idx(path, array):
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Files of Fashion-MNIST's form: every garment a bright disc on black, larger by class."""
    folder = tmp_path_factory.mktemp("fashion_mnist")
    rows, columns = np.mgrid[:28, :28] - 13.5
    for stem, count in (("train", 40), ("t10k", 20)):
        labels = np.arange(count) % 10
        discs = rows**2 + columns**2 < (6 + labels[:, None, None] * 0.8) ** 2
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", discs * 200)
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", labels)
    return folder


def make(root, source, **changes):
    make_fashion_scenes(root, source, **{"train": 6, "val": 3, "seed": 2, **SIZE, **changes})
    return root / "fashion_scenes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, source):
    return make(tmp_path_factory.mktemp("scenes"), source)


def annotations(folder, split):
    return json.loads((folder / f"annotations/instances_{split}.json").read_text())


def test_masks_boxes_labels_and_instances_agree(folder):
    for split, count in (("train", 6), ("val", 3)):
        data = annotations(folder, split)
        assert len(data["images"]) == count
        for image in data["images"]:
            name = image["file_name"]
            picture, labels, ids = (
                read(folder / top / split / name) for top in ("images", "labels", "instances")
            )
            assert picture.shape == (64, 96, 3)
            assert ids.dtype == np.uint16
            seen = np.zeros_like(ids)
            for one in (a for a in data["annotations"] if a["image_id"] == image["id"]):
                rle = coco_mask.merge(coco_mask.frPyObjects(one["segmentation"], 64, 96))
                mask = coco_mask.decode(rle).astype(bool)
                left, top, width, height = one["bbox"]
                rows, columns = np.nonzero(mask)
                assert (columns.min(), rows.min()) == (left, top)
                assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (width, height)
                assert mask.sum() == one["area"] > 0
                assert (labels[mask] == one["category_id"]).all()
                (own,) = np.unique(ids[mask])
                assert own // 1000 == one["category_id"]
                assert not seen[mask].any()
                seen[mask] = own
            assert (seen == ids).all()
            assert ((labels > 0) == (ids > 0)).all()


def test_many_small_objects_at_one_end_and_few_large_ones_at_the_other(folder):
    needs = json.loads((folder / "needs.json").read_text())["train"]
    rising = sorted(needs.values(), key=lambda need: need["density"])
    assert [n["density"] for n in rising] == pytest.approx([(i + 0.5) / 6 for i in range(6)])
    assert rising[0]["objects"] < 5
    assert rising[-1]["objects"] > 12
    assert min(rising[0]["sizes"]) > 3 * np.median(rising[-1]["sizes"])
    data = annotations(folder, "train")
    for image in data["images"]:
        areas = sorted(a["area"] for a in data["annotations"] if a["image_id"] == image["id"])
        assert needs[image["file_name"][:-4]]["sizes"] == areas


def test_the_loaders_read_them(folder):
    name = "fashion_scenes_of_a_test"
    images = folder / "images/train"
    loaded = load_coco_json(str(folder / "annotations/instances_train.json"), str(images), name)
    assert len(loaded) == 6
    assert MetadataCatalog.get(name).thing_classes == list(CLASSES)
    assert all(0 <= a["category_id"] < 10 for d in loaded for a in d["annotations"])
    register_segmentation_folder(
        name + "_labels", str(images), str(folder / "labels/train"), ["background", *CLASSES]
    )
    dicts = DatasetCatalog.get(name + "_labels")
    assert len(dicts) == 6
    assert read(dicts[0]["sem_seg_file_name"]).max() <= 10


def test_same_settings_same_bytes_with_any_number_of_workers(folder, source, tmp_path):
    assert content(make(tmp_path, source, workers=2)) == content(folder)
    make(tmp_path, source)  # nothing to do
    (tmp_path / "fashion_scenes/images/val/000007.png").unlink()
    assert content(make(tmp_path, source)) == content(folder)
    assert content(make(tmp_path, source, seed=3)) != content(folder)


def test_photographs_as_backgrounds_may_be_smaller_or_larger(source, tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.new("RGB", (20, 30), (255, 0, 0)).save(photographs / "small.png")
    Image.new("RGB", (300, 200), (255, 0, 0)).save(photographs / "large.jpg")
    folder = make(tmp_path, source, backgrounds=photographs, unequal=0.0)
    for image in annotations(folder, "train")["images"]:
        picture, labels = (
            read(folder / top / "train" / image["file_name"]) for top in ("images", "labels")
        )
        behind = picture[labels == 0].reshape(-1, 3).mean(axis=0)
        assert behind[0] > 240
        assert behind[1:].max() < 20


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"unequal": 1.5}, ConfigError), ({"height": 47}, ConfigError), ({"train": 0}, ConfigError)],
)
def test_arguments_out_of_range_are_refused(source, tmp_path, changes, error):
    with pytest.raises(error):
        make(tmp_path, source, **changes)


def test_missing_photographs_are_named(source, tmp_path):
    with pytest.raises(DataError, match="train-images"):
        make(tmp_path, tmp_path)
    with pytest.raises(DataError, match="no images to paste into"):
        make(tmp_path, source, backgrounds=tmp_path)
