"""The trees in airborne photographs: files, Detectron2's names, and the command."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image
from prepared.neon_trees import NEON_SPLITS, wheel
from small_wheel import PHOTOGRAPHS, TEST, make_wheel, pixels, prepare

import divdr.data
from divdr.data import check_datasets, register_neon_trees
from divdr.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small wheel and its hash."""
    return make_wheel(tmp_path_factory.mktemp("wheel") / wheel.WHEEL)


@pytest.fixture(scope="module")
def root(tmp_path_factory, small):
    folder = tmp_path_factory.mktemp("trees")
    prepare(folder, small)
    return folder


@pytest.fixture
def registered(root):
    """The names, of the small set for one test."""
    register_neon_trees(root)
    yield
    register_neon_trees(os.getenv("DETECTRON2_DATASETS", "datasets"))


@pytest.fixture
def command(repository):
    path = repository / "datasets" / "prepare_neon_trees.py"
    spec = importlib.util.spec_from_file_location("prepare_neon_trees", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def annotations(root, split):
    return json.loads(Path(root, "neon_trees", "annotations", f"{split}.json").read_text())


def boxes_of(root, split):
    """(offset, box in the tile, number of the box, crowd) of every annotation."""
    content = annotations(root, split)
    images = {image["id"]: tuple(image["offset"]) for image in content["images"]}
    return {
        (images[a["image_id"]], tuple(a["bbox"]), a["box_in_photograph"], a["iscrowd"])
        for a in content["annotations"]
    }


def stamps(root):
    return {p: p.stat().st_mtime_ns for p in Path(root, "neon_trees").rglob("*")}


def test_boxes_of_tiles_are_those_of_the_photograph(root):
    # Training tiles begin at x = 0, 30, 60 and y = 0, 20, 40.
    assert boxes_of(root, "train") == {
        ((0, 0), (5, 5, 10, 10), 0, 0),
        ((0, 0), (25, 2, 15, 10), 1, 0),  # 15 of 20 columns
        ((30, 0), (0, 2, 15, 10), 1, 0),
        ((0, 40), (35, 24, 5, 10), 2, 1),  # 5 of 15 columns
        ((30, 40), (5, 24, 15, 10), 2, 0),
    }
    # Others are cut at x = 35 and y = 25, so the first box in halves, the second in quarters.
    assert boxes_of(root, "test") == {
        ((0, 0), (20, 0, 15, 10), 0, 0),
        ((35, 0), (0, 0, 15, 10), 0, 1),
        ((0, 0), (30, 20, 5, 5), 1, 1),
        ((35, 0), (0, 20, 5, 5), 1, 1),
        ((0, 25), (30, 0, 5, 5), 1, 1),
        ((35, 25), (0, 0, 5, 5), 1, 1),
        ((35, 25), (15, 5, 10, 15), 2, 0),
    }
    assert {box[1:] for box in boxes_of(root, "other_sites")} == {
        ((2, 3, 10, 11), 0, 0),
        ((1, 1, 8, 8), 0, 0),
        ((20, 20, 20, 20), 1, 0),
    }


def test_tiles_show_what_they_are_recorded_to_show(root):
    for split in NEON_SPLITS:
        content = annotations(root, split)
        for image in content["images"]:
            tile = np.asarray(Image.open(root / "neon_trees" / split / image["file_name"]))
            x, y = image["offset"]
            whole = pixels(image["photograph"])
            assert (tile == whole[y : y + image["height"], x : x + image["width"]]).all()
        for a in content["annotations"]:
            assert a["area"] == a["bbox"][2] * a["bbox"][3]
        assert content["categories"] == [{"id": 1, "name": "tree"}]


def test_no_photograph_is_in_two_splits(root):
    seen = [{image["photograph"] for image in annotations(root, s)["images"]} for s in NEON_SPLITS]
    assert [len(names) for names in seen] == [1, 1, 2]
    assert len(set.union(*seen)) == 4


def test_credits_hold_the_licence(root):
    text = (root / "neon_trees" / "CREDITS.txt").read_text()
    assert "The licence's own words." in text
    assert "National Ecological Observatory Network" in text


def test_a_second_run_does_nothing_and_other_settings_replace(tmp_path, small):
    prepare(tmp_path, small)
    before = stamps(tmp_path)
    prepare(tmp_path, small, wheel="is not needed")
    assert stamps(tmp_path) == before
    prepare(tmp_path, small, tile=50)
    assert len(annotations(tmp_path, "train")["images"]) == 6
    assert len(list((tmp_path / "neon_trees/train").iterdir())) == 6
    assert [p.name for p in tmp_path.iterdir()] == ["neon_trees"]


def test_what_is_missing_is_made_again(tmp_path, small):
    prepare(tmp_path, small)
    before = set(stamps(tmp_path))
    next((tmp_path / "neon_trees/test").iterdir()).unlink()
    prepare(tmp_path, small)
    assert set(stamps(tmp_path)) == before


def test_a_folder_with_other_files_is_refused(tmp_path, small):
    prepare(tmp_path, small)
    (tmp_path / "neon_trees/train/mine.png").write_text("")
    for changes in ({}, {"tile": 50}):
        with pytest.raises(DataError, match=r"train/mine\.png, which was not made here"):
            prepare(tmp_path, small, **changes)
    (tmp_path / "neon_trees/neon_trees.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        prepare(tmp_path, small)


def test_an_interrupted_run_leaves_the_earlier_data(tmp_path, small, monkeypatch):
    prepare(tmp_path, small)
    before = stamps(tmp_path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("prepared.neon_trees.prepare.credits_text", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, small, tile=50)
    assert stamps(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["neon_trees"]


@pytest.mark.parametrize("changes", [{"tile": 31}, {"overlap": 40}, {"overlap": -1}])
def test_settings_out_of_range_are_refused(tmp_path, small, changes):
    with pytest.raises(ConfigError):
        prepare(tmp_path, small, **changes)


def test_loads_through_the_catalog(registered):
    names = [f"neon_trees_{split}" for split in NEON_SPLITS]
    check_datasets(names)
    loaded = [DatasetCatalog.get(name) for name in names]
    assert [len(images) for images in loaded] == [9, 4, 2]
    counted = [sum(not a["iscrowd"] for i in images for a in i["annotations"]) for images in loaded]
    assert counted == [4, 2, 3]
    assert all(Path(i["file_name"]).is_file() for images in loaded for i in images)
    metadata = MetadataCatalog.get("neon_trees_test")
    assert metadata.thing_classes == ["tree"]
    assert metadata.evaluator_type == "coco"


def test_finding_every_part_of_every_box_is_perfect(registered, root, tmp_path):
    evaluator = COCOEvaluator("neon_trees_test", ["bbox"], False, str(tmp_path))
    evaluator.reset()
    offsets = {i["id"]: i["offset"] for i in annotations(root, "test")["images"]}
    for image in DatasetCatalog.get("neon_trees_test"):
        x, y = offsets[image["image_id"]]
        boxes = Boxes(torch.tensor([box[1:] for box in PHOTOGRAPHS[TEST][1]], dtype=torch.float))
        boxes.tensor -= torch.tensor([x, y, x, y])
        boxes.clip((image["height"], image["width"]))
        boxes = boxes[boxes.nonempty()]
        found = Instances((image["height"], image["width"]))
        found.pred_boxes = boxes
        found.scores = torch.ones(len(boxes))
        found.pred_classes = torch.zeros(len(boxes), dtype=torch.long)
        evaluator.process([image], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_missing_data_are_reported_only_when_used(tmp_path, registered):
    register_neon_trees(tmp_path)
    with pytest.raises(DataError, match="neon_trees_train"):
        check_datasets(["neon_trees_train"])


def test_importing_twice_registers_below_the_data_folder(tmp_path, monkeypatch, registered):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    importlib.reload(divdr.data)
    importlib.reload(divdr.data)
    expected = str(tmp_path / "neon_trees" / "annotations" / "train.json")
    assert MetadataCatalog.get("neon_trees_train").json_file == expected


def test_errors_are_one_sentence(command, tmp_path, small, capsys):
    for arguments in (["--wheel", str(small[0])], ["--tile", "3"]):
        with pytest.raises(SystemExit) as stop:
            command.main(["--output", str(tmp_path), *arguments])
        assert stop.value.code == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert text.count("\n") == 1


def test_the_command_prepares(command, tmp_path, small, monkeypatch):
    given_arguments = {}
    monkeypatch.setattr(
        command,
        "prepare_neon_trees",
        lambda output, **rest: given_arguments.update(rest, output=output),
    )
    assert command.main(["--output", "here", "--tile", "50", "--overlap", "7", "--wheel", "w"]) == 0
    assert given_arguments == {"output": "here", "tile": 50, "overlap": 7, "wheel": "w"}
