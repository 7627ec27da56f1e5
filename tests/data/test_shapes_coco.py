"""The drawn COCO data set: files, masks, keypoints, repeatability, and use by Detectron2."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from drawn_files import content, read
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from divdr.errors import ConfigError, DataError
from drawn import files as drawn
from drawn.shapes_coco import draw_scene, generate, make_shapes_coco, masks

TRAIN, VAL, SIZE = 24, 8, 128
SPLITS = ("train", "val")
DRAWN = {"person", "car", "bus", "dog", "sports ball", "kite", "bottle", "chair", "umbrella"}
DRAWN |= {"stop sign"}


def make(root, **changes):
    make_shapes_coco(root, **{"train": 3, "val": 2, "size": 88, "seed": 3, "workers": 1, **changes})


def load(root, kind, split):
    return json.loads((root / f"coco/annotations/{kind}_{split}2017.json").read_text())


def segment_ids(root, split, file_name):
    colours = read(root / f"coco/panoptic_{split}2017" / file_name).astype(int)
    return colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2]


def box_of(mask):
    rows, columns = np.nonzero(mask)
    left, top = columns.min(), rows.min()
    return [left, top, columns.max() + 1 - left, rows.max() + 1 - top]


def decoded(segmentation, height, width):
    """A mask as pycocotools understands it."""
    rle = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(coco_mask.merge(rle) if isinstance(rle, list) else rle).astype(bool)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    make(folder, train=TRAIN, val=VAL, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def registered(root, names_under):
    """Detectron2's own names of COCO, leading to the drawn data set."""
    with names_under(root):
        yield root


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(120, 160, np.random.default_rng(i)) for i in range(60)]


# ---------------------------------------------------------------- files


def test_layout_holds_exactly_the_files_of_coco(root):
    expected = {"coco/shapes_coco.json"}
    for split, count in (("train", TRAIN), ("val", VAL)):
        images = load(root, "instances", split)["images"]
        assert len(images) == count
        for kind in ("instances", "person_keypoints", "panoptic"):
            expected.add(f"coco/annotations/{kind}_{split}2017.json")
        for image in images:
            assert image["file_name"] == f"{image['id']:012d}.jpg"
            expected.add(f"coco/{split}2017/{image['id']:012d}.jpg")
            for folder in (f"panoptic_{split}2017", f"panoptic_stuff_{split}2017"):
                expected.add(f"coco/{folder}/{image['id']:012d}.png")
    assert set(content(root)) == expected


def test_pictures_have_the_sizes_and_modes_they_are_listed_with(root):
    sizes = set()
    for split in SPLITS:
        for image in load(root, "instances", split)["images"]:
            size = image["width"], image["height"]
            sizes.add(size)
            name = f"{image['id']:012d}"
            for folder, ending, mode in (
                (f"{split}2017", "jpg", "RGB"),
                (f"panoptic_{split}2017", "png", "RGB"),
                (f"panoptic_stuff_{split}2017", "png", "L"),
            ):
                picture = Image.open(root / "coco" / folder / f"{name}.{ending}")
                assert (picture.mode, picture.size) == (mode, size)
    assert sizes == {(128, 96), (96, 128), (128, 128)}


def test_categories_are_those_of_coco(root):
    def pairs(categories):
        return [(c["id"], c["name"]) for c in categories]

    things = [c for c in COCO_CATEGORIES if c["isthing"]]
    for split in SPLITS:
        assert pairs(load(root, "instances", split)["categories"]) == pairs(things)
        panoptic = load(root, "panoptic", split)["categories"]
        assert pairs(panoptic) == pairs(COCO_CATEGORIES)
        assert [c["isthing"] for c in panoptic] == [c["isthing"] for c in COCO_CATEGORIES]
        (person,) = load(root, "person_keypoints", split)["categories"]
        assert person["keypoints"][:4] == ["nose", "left_eye", "right_eye", "left_ear"]
        assert person["keypoints"][-2:] == ["left_ankle", "right_ankle"]
        assert len(person["keypoints"]) == 17
        # As printed in COCO's own file.
        assert person["skeleton"] == [
            [16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8],
            [7, 9], [8, 10], [9, 11], [2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7],
        ]  # fmt: skip


def test_splits_share_no_image(root):
    ids = [{image["id"] for image in load(root, "instances", s)["images"]} for s in SPLITS]
    assert not ids[0] & ids[1]
    pictures = [v for k, v in content(root).items() if k.endswith(".jpg")]
    assert len(set(pictures)) == TRAIN + VAL


# ---------------------------------------------------------------- annotations


@pytest.mark.parametrize("split", SPLITS)
def test_instances_agree_with_the_panoptic_pictures(root, split):
    coco = COCO(root / f"coco/annotations/instances_{split}2017.json")
    crowds = 0
    for entry in load(root, "panoptic", split)["annotations"]:
        ids = segment_ids(root, split, entry["file_name"])
        things = {
            s["id"]: s
            for s in entry["segments_info"]
            if coco.cats.get(s["category_id"]) is not None
        }
        annotations = coco.loadAnns(coco.getAnnIds(entry["image_id"]))
        assert {a["id"] for a in annotations} == set(things)
        for annotation in annotations:
            mask = decoded(annotation["segmentation"], *ids.shape)
            np.testing.assert_array_equal(mask, ids == annotation["id"])
            assert annotation["area"] == mask.sum() >= 16
            assert annotation["bbox"] == box_of(mask)
            for key in ("category_id", "iscrowd", "area", "bbox"):
                assert annotation[key] == things[annotation["id"]][key]
            assert isinstance(annotation["segmentation"], dict) == annotation["iscrowd"]
            if not annotation["iscrowd"]:
                assert all(len(p) >= 6 and len(p) % 2 == 0 for p in annotation["segmentation"])
            crowds += annotation["iscrowd"]
    assert crowds or split == "val"


@pytest.mark.parametrize("split", SPLITS)
def test_segments_are_what_the_panoptic_pictures_show(root, split):
    known = {c["id"] for c in COCO_CATEGORIES}
    unlabelled = 0
    for entry in load(root, "panoptic", split)["annotations"]:
        ids = segment_ids(root, split, entry["file_name"])
        segments = entry["segments_info"]
        assert {s["id"] for s in segments} == set(np.unique(ids)) - {0}
        for segment in segments:
            mask = ids == segment["id"]
            assert segment["area"] == mask.sum()
            assert segment["bbox"] == box_of(mask)
            assert segment["category_id"] in known
        stuff = [s["category_id"] for s in segments if s["category_id"] > 91]
        assert 1 <= len(stuff) == len(set(stuff)) <= 4
        unlabelled += (ids == 0).any()
    assert unlabelled or split == "val"


def test_stuff_pictures_number_the_stuff_as_detectron2_does(registered):
    metadata = MetadataCatalog.get("coco_2017_train_panoptic_separated")
    seen = set()
    for split in SPLITS:
        for entry in load(registered, "panoptic", split)["annotations"]:
            ids = segment_ids(registered, split, entry["file_name"])
            expected = np.full(ids.shape, 255)
            for segment in entry["segments_info"]:
                category = segment["category_id"]
                thing = category in metadata.thing_dataset_id_to_contiguous_id
                label = 0 if thing else metadata.stuff_dataset_id_to_contiguous_id[category]
                expected[ids == segment["id"]] = label
            picture = read(registered / f"coco/panoptic_stuff_{split}2017" / entry["file_name"])
            np.testing.assert_array_equal(picture, expected)
            seen |= set(np.unique(picture))
    assert {0, 255} < seen
    assert len(seen) > 8


def test_keypoints_lie_on_the_person_they_belong_to(root):
    visibility = Counter()
    for split in SPLITS:
        coco = COCO(root / f"coco/annotations/person_keypoints_{split}2017.json")
        plain = COCO(root / f"coco/annotations/instances_{split}2017.json")
        persons = [a for a in plain.anns.values() if a["category_id"] == 1]
        assert {a["id"] for a in persons} == set(coco.anns)
        for annotation in coco.anns.values():
            x, y, v = np.array(annotation["keypoints"]).reshape(17, 3).T
            image = coco.imgs[annotation["image_id"]]
            assert ((x >= 0) & (x < image["width"]) & (y >= 0) & (y < image["height"])).all()
            assert annotation["num_keypoints"] == (v > 0).sum()
            assert not x[v == 0].any()
            assert not y[v == 0].any()
            mask = coco.annToMask(annotation)
            assert mask[y[v == 2], x[v == 2]].all()
            left, top, width, height = annotation["bbox"]
            inside = (left <= x) & (x < left + width) & (top <= y) & (y < top + height)
            assert inside[v == 2].all()
            assert not (annotation["iscrowd"] and v.any())
            visibility.update(v.tolist())
    assert set(visibility) == {0, 1, 2}
    assert visibility[2] > visibility[1] > 20


def test_keypoints_follow_the_body(scenes):
    facing = 0
    for scene in scenes:
        for thing in scene.things:
            if thing.name != "person" or thing.crowd:
                continue
            x, y, v = np.array(thing.keypoints).T
            nose, shoulders, hips, ankles = y[0], y[5:7], y[11:13], y[15:17]
            assert nose < shoulders.min() <= shoulders.max() < hips.min()
            assert hips.max() < ankles.min()
            if v[1] and v[2] and abs(x[5] - x[6]) > 4:
                # Whoever shows the face has the left side on the right of the picture.
                assert x[5] > x[6]
                assert x[11] > x[12]
                facing += 1
    assert facing > 30


def test_something_in_front_hides_keypoints(root):
    # A labelled joint outside the visible mask has another segment over it.
    hidden = 0
    for split in SPLITS:
        coco = COCO(root / f"coco/annotations/person_keypoints_{split}2017.json")
        for annotation in coco.anns.values():
            x, y, v = np.array(annotation["keypoints"]).reshape(17, 3).T
            ids = segment_ids(root, split, f"{annotation['image_id']:012d}.png")
            own = ids[y, x] == annotation["id"]
            assert (v[~own] < 2).all()
            hidden += ((v == 1) & ~own).sum()
    assert hidden > 5


def test_some_images_are_empty_and_the_others_have_objects(root):
    for split, count in (("train", TRAIN), ("val", VAL)):
        data = load(root, "instances", split)
        filled = {a["image_id"] for a in data["annotations"]}
        empty = count - len(filled)
        assert empty <= count / 4
        assert empty >= 1 or count < 20


def test_objects_vary_in_class_and_size(scenes):
    names, areas, background = Counter(), [], Counter()
    for scene in scenes:
        for index, thing in enumerate(scene.things):
            names[thing.name] += 1
            areas.append((scene.owner == index).sum())
        background.update(set(scene.stuff.ravel()))
    assert set(names) == DRAWN | {""}
    assert min(names.values()) >= 3
    assert len(background) > 8
    areas = np.array(areas)
    assert (areas < 32**2).mean() > 0.3
    assert ((areas >= 32**2) & (areas < 96**2)).mean() > 0.1


def test_edges_of_the_picture_lie_on_edges_of_the_masks(scenes):
    # Shifting the masks against the picture must make its colours fit them less well.
    def misfit(scene, shift):
        moved = np.roll(scene.owner, shift, axis=(0, 1))[4:-4, 4:-4].ravel()
        colours = scene.picture[4:-4, 4:-4].reshape(-1, 3).astype(float)
        _, segment = np.unique(moved, return_inverse=True)
        size = np.bincount(segment)
        means = np.stack([np.bincount(segment, c) / size for c in colours.T], axis=1)
        return ((colours - means[segment]) ** 2).mean()

    shifts = [(down, right) for down in (-2, -1, 0, 1, 2) for right in (-2, -1, 0, 1, 2)]
    total = {shift: sum(misfit(scene, shift) for scene in scenes[:30]) for shift in shifts}
    assert min(total, key=total.get) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_any_mask_survives_its_polygons_and_run_lengths(mask):
    assert mask.shape == tuple(masks.run_lengths(mask)["size"])
    np.testing.assert_array_equal(decoded(masks.run_lengths(mask), *mask.shape), mask)
    corners = masks.polygons(mask)
    assert all(len(polygon) >= 6 for polygon in corners)
    if mask.any():
        np.testing.assert_array_equal(decoded(corners, *mask.shape), mask)
        assert list(masks.bounding_box(mask)) == box_of(mask)
    else:
        assert corners == []


# ---------------------------------------------------------------- repeated and interrupted runs


def test_same_bytes_for_one_and_two_workers(tmp_path):
    make(tmp_path / "one", workers=1)
    make(tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_another_seed_gives_other_pictures(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", seed=4)
    pictures = [
        {v for k, v in content(tmp_path / name).items() if k.endswith(".jpg")} for name in "ab"
    ]
    assert len(pictures[0]) == len(pictures[1]) == 5
    assert not pictures[0] & pictures[1]


def test_second_run_does_nothing(tmp_path, monkeypatch):
    make(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(generate, "draw_scene", lambda *_, **__: pytest.fail("drawn again"))
    make(tmp_path, workers=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


@pytest.mark.parametrize(
    "lost", ["annotations/instances_val2017.json", "train2017/*.jpg", "panoptic_stuff_val2017/*"]
)
@pytest.mark.parametrize("emptied", [False, True])
def test_what_is_missing_or_empty_is_made_again(tmp_path, lost, emptied):
    make(tmp_path)
    before = content(tmp_path)
    path = next((tmp_path / "coco").glob(lost))
    if emptied:
        path.write_bytes(b"")
    else:
        path.unlink()
    make(tmp_path)
    assert content(tmp_path) == before


def test_run_stopped_before_it_was_recorded_is_redone(tmp_path):
    make(tmp_path)
    before = content(tmp_path)
    record = tmp_path / "coco/shapes_coco.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    next(tmp_path.rglob("*.jpg")).write_bytes(b"half a picture")
    make(tmp_path)
    assert content(tmp_path) == before


def test_interrupted_run_is_redone(tmp_path, monkeypatch):
    make(tmp_path / "whole")
    original, drawings = generate.draw_scene, []

    def stop_at_third(*arguments, **options):
        drawings.append(arguments)
        if len(drawings) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(generate, "draw_scene", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut")
    assert not json.loads((tmp_path / "cut/coco/shapes_coco.json").read_text())["complete"]
    # What a crash may leave: a picture that is wrong, and a file that was still growing.
    next((tmp_path / "cut").rglob("*.jpg")).write_bytes(b"half a picture")
    (tmp_path / "cut/coco/.partial/1_x.png").write_bytes(b"half")
    monkeypatch.setattr(generate, "draw_scene", original)
    make(tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_failed_write_leaves_no_half_file_among_the_data(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(drawn.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make(tmp_path)
    assert not [path for path in content(tmp_path) if ".partial" not in path]


def test_other_settings_replace_only_what_was_generated(tmp_path):
    make(tmp_path)
    note = tmp_path / "coco/notes.txt"
    note.write_text("mine")
    make(tmp_path, train=2, seed=9)
    make(tmp_path / "fresh", train=2, seed=9)
    assert note.read_text() == "mine"
    note.unlink()
    now = {k: v for k, v in content(tmp_path).items() if not k.startswith("fresh")}
    assert now == content(tmp_path / "fresh")


@pytest.mark.parametrize("generated_before", [False, True])
@pytest.mark.parametrize(
    "file", ["train2017/000000000009.jpg", "annotations/captions_val2017.json"]
)
def test_the_real_coco_is_refused_and_kept(tmp_path, generated_before, file):
    if generated_before:
        make(tmp_path)
    own = tmp_path / "coco" / file
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_bytes(b"real")
    before = content(tmp_path)
    with pytest.raises(DataError, match=f"{own.name}, which this generator did not make"):
        make(tmp_path, train=2)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "text",
    ["{}", "{", '{"complete": "yes", "settings": {}, "images": {"train": [], "val": []}}'],
)
def test_damaged_record_is_reported(tmp_path, text):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/shapes_coco.json").write_text(text)
    with pytest.raises(DataError, match="damaged"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 85}, "size must be at least 86"),
        ({"train": 0}, "train must be at least 1"),
        ({"val": -1}, "val must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"train": 160_000}, "at most 159999 images"),
    ],
)
def test_wrong_arguments_are_explained(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_smallest_size_can_be_drawn(tmp_path):
    make(tmp_path, size=86)
    sides = [min(i["width"], i["height"]) for i in load(tmp_path, "instances", "train")["images"]]
    assert min(sides) >= 64


def test_command_line(tmp_path, capsys):
    script = Path(__file__).parents[2] / "datasets/make_shapes_coco.py"
    spec = importlib.util.spec_from_file_location("make_shapes_coco", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = ["--train=3", "--val=2", "--size=88", "--seed=3", "--workers=1"]
    assert module.main(["--output", str(tmp_path / "cli"), *options]) == 0
    make(tmp_path / "api")
    assert content(tmp_path / "cli") == content(tmp_path / "api")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        module.main(["--output", str(tmp_path / "bad"), "--size", "10"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


# ---------------------------------------------------------------- Detectron2


def test_builtin_names_work_with_the_environment_variable_alone(root):
    code = (
        "from detectron2.data import DatasetCatalog as D;"
        "names = ['coco_2017_%s', 'keypoints_coco_2017_%s', 'coco_2017_%s_panoptic',"
        "'coco_2017_%s_panoptic_separated', 'coco_2017_%s_panoptic_stuffonly'];"
        "print([len(D.get(n % s)) for n in names for s in ('train', 'val')])"
    )
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [TRAIN, VAL] * 5


def perfect(entry):
    """The truth about one image as a model would give it; people without joints are left out."""
    size = entry["height"], entry["width"]
    truth = [
        a
        for a in entry["annotations"]
        if not a["iscrowd"] and any(a.get("keypoints", (0, 0, 1))[2::3])
    ]
    found = Instances(size)
    boxes = torch.tensor([a["bbox"] for a in truth], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    found.pred_boxes = Boxes(boxes)
    found.scores = torch.full((len(truth),), 0.9)
    found.pred_classes = torch.tensor([a["category_id"] for a in truth], dtype=torch.int64)
    if truth and "keypoints" in truth[0]:
        joints = np.array([a["keypoints"] for a in truth], np.float32)
        found.pred_keypoints = torch.from_numpy(joints.reshape(-1, 17, 3))
    elif truth:
        shapes = [torch.from_numpy(decoded(a["segmentation"], *size)) for a in truth]
        found.pred_masks = torch.stack(shapes)
    return found


def evaluate(evaluator, name, predict):
    evaluator.reset()
    for entry in DatasetCatalog.get(name):
        evaluator.process([entry], [predict(entry)])
    return evaluator.evaluate()


def test_perfect_boxes_and_masks_score_hundred(registered, tmp_path):
    evaluator = COCOEvaluator(
        "coco_2017_val", ("bbox", "segm"), False, str(tmp_path), use_fast_impl=False
    )
    results = evaluate(evaluator, "coco_2017_val", lambda entry: {"instances": perfect(entry)})
    for task in ("bbox", "segm"):
        for metric in ("AP", "AP75", "APs", "APm"):
            assert results[task][metric] == pytest.approx(100)


def test_shifted_boxes_score_less(registered, tmp_path):
    def shifted(entry):
        found = perfect(entry)
        found.pred_boxes.tensor += 4.0
        return {"instances": found}

    evaluator = COCOEvaluator("coco_2017_val", ("bbox",), False, str(tmp_path), use_fast_impl=False)
    assert evaluate(evaluator, "coco_2017_val", shifted)["bbox"]["AP"] < 80


def test_perfect_keypoints_score_hundred(registered, tmp_path):
    name = "keypoints_coco_2017_val"
    evaluator = COCOEvaluator(
        name, ("keypoints",), False, str(tmp_path), use_fast_impl=False,
        kpt_oks_sigmas=(0.05,) * 17,
    )  # fmt: skip
    results = evaluate(evaluator, name, lambda entry: {"instances": perfect(entry)})
    assert results["keypoints"]["AP"] == pytest.approx(100)


def test_perfect_stuff_scores_hundred(registered):
    name = "coco_2017_val_panoptic_stuffonly"

    def predict(entry):
        labels = read(entry["sem_seg_file_name"]).astype(int)
        return {"sem_seg": torch.from_numpy(np.stack([labels == c for c in range(54)])).float()}

    # Detectron2's own loading function fails with NumPy 2.
    evaluator = SemSegEvaluator(
        name, False, sem_seg_loading_fn=lambda path, dtype: read(path).astype(dtype)
    )
    result = evaluate(evaluator, name, predict)["sem_seg"]
    assert result["mIoU"] == pytest.approx(100)
    assert result["IoU-things"] == pytest.approx(100)


def test_perfect_panoptic_segments_score_hundred(registered):
    pytest.importorskip("panopticapi", reason="Detectron2 evaluates panoptic results with it")
    name = "coco_2017_val_panoptic"

    def predict(entry):
        ids = segment_ids(registered, "val", Path(entry["pan_seg_file_name"]).name)
        keys = ("id", "category_id", "isthing")
        reported = [{k: s[k] for k in keys} for s in entry["segments_info"] if not s["iscrowd"]]
        ids[~np.isin(ids, [s["id"] for s in reported])] = 0
        return {"panoptic_seg": (torch.from_numpy(ids), reported)}

    result = evaluate(COCOPanopticEvaluator(name), name, predict)["panoptic_seg"]
    for metric in ("PQ", "PQ_th", "PQ_st"):
        assert result[metric] == pytest.approx(100)
