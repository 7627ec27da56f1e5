"""The generated street scenes: files, formats, labels, repeatability, and use by Detectron2."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from cityscapesscripts.helpers.labels import id2label, name2label, trainId2label
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.cityscapes import (
    load_cityscapes_instances,
    load_cityscapes_semantic,
)
from detectron2.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from detectron2.structures import Instances
from drawn_files import content, read
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from divdr.data import load_characters, load_needs, load_scenes
from divdr.errors import ConfigError, DataError
from divdr.evaluation.checked_evaluators import QuietEvaluators
from drawn.streetscapes import (
    CHARACTERS,
    draw_scene,
    generate,
    make_streetscapes,
)
from drawn.streetscapes.labels import label_images

SIZE = {"height": 80, "width": 160}
KINDS = ("polygons.json", "labelIds.png", "labelTrainIds.png", "instanceIds.png")


def make(root, **changes):
    arguments = {"train": 4, "val": 2, "seed": 3, "workers": 1, **SIZE, **changes}
    make_streetscapes(root, **arguments)


def names(root, split):
    return list(load_characters(root)[split])


def gt_path(root, split, name, kind):
    return Path(root, "cityscapes/gtFine", split, name.split("_")[0], f"{name}_gtFine_{kind}")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streetscapes")
    make(folder, train=8, val=5, height=96, width=192)
    return folder


@pytest.fixture(scope="module")
def scenes():
    """Ten scenes of every character, not too small for details."""
    return {
        character: [draw_scene(character, 128, 256, np.random.default_rng(i)) for i in range(10)]
        for character in CHARACTERS
    }


# ---------------------------------------------------------------- files


def test_layout_holds_exactly_the_expected_files(root):
    expected = {f"cityscapes/{n}.json" for n in ("characters", "needs", "streetscapes")}
    for split, count in (("train", 8), ("val", 5)):
        assert len(names(root, split)) == count
        for name in names(root, split):
            city, sequence, frame = name.split("_")
            assert sequence.isdigit()
            assert len(sequence) == 6
            assert frame.isdigit()
            assert len(frame) == 6
            expected.add(f"cityscapes/leftImg8bit/{split}/{city}/{name}_leftImg8bit.png")
            expected |= {f"cityscapes/gtFine/{split}/{city}/{name}_gtFine_{k}" for k in KINDS}
    assert set(content(root)) == expected


def test_formats(root):
    for split in ("train", "val"):
        for name in names(root, split):
            city = name.split("_")[0]
            folder = root / "cityscapes/leftImg8bit" / split / city
            image = Image.open(folder / f"{name}_leftImg8bit.png")
            assert (image.mode, image.size) == ("RGB", (192, 96))
            for kind in ("labelIds", "labelTrainIds"):
                label = Image.open(gt_path(root, split, name, f"{kind}.png"))
                assert (label.mode, label.size) == ("L", (192, 96))
            instance = Image.open(gt_path(root, split, name, "instanceIds.png"))
            assert instance.mode in ("I", "I;16")
            assert instance.size == (192, 96)
            polygons = json.loads(gt_path(root, split, name, "polygons.json").read_text())
            assert set(polygons) == {"imgHeight", "imgWidth", "objects"}
            assert (polygons["imgHeight"], polygons["imgWidth"]) == (96, 192)
            for thing in polygons["objects"]:
                assert set(thing) == {"label", "polygon"}


def test_label_pictures_belong_together(root):
    ids_seen = set()
    for name in names(root, "train"):
        ids = read(gt_path(root, "train", name, "labelIds.png"))
        train_ids = read(gt_path(root, "train", name, "labelTrainIds.png"))
        instances = read(gt_path(root, "train", name, "instanceIds.png")).astype(int)
        single = instances >= 1000
        np.testing.assert_array_equal(instances[single] // 1000, ids[single])
        np.testing.assert_array_equal(instances[~single], ids[~single])
        assert all(id2label[i].hasInstances for i in np.unique(ids[single]))
        assert set(np.unique(train_ids)) <= {*range(19), 255}
        table = np.array([id2label[i].trainId % 256 for i in range(34)])
        np.testing.assert_array_equal(table[ids], train_ids)
        ids_seen |= set(np.unique(ids))
    assert {name2label[n].id for n in ("road", "car", "building", "sky")} <= ids_seen


def test_labels_agree_with_polygons_drawn_by_another_library(root):
    # OpenCV and Pillow may differ on the outline itself, so only pixels off the edges must agree.
    for name in names(root, "train"):
        polygons = json.loads(gt_path(root, "train", name, "polygons.json").read_text())
        drawn = np.zeros((96, 192), np.uint8)
        edges = np.zeros_like(drawn)
        for thing in polygons["objects"]:
            label = thing["label"].removesuffix("group")
            points = np.array(thing["polygon"], np.int32)
            cv2.fillPoly(drawn, [points], name2label[label].id)
            cv2.polylines(edges, [points], True, 1)
        ids = read(gt_path(root, "train", name, "labelIds.png"))
        assert (ids == drawn).mean() > 0.99
        inside = cv2.dilate(edges, np.ones((3, 3), np.uint8)) == 0
        np.testing.assert_array_equal(ids[inside], drawn[inside])


def test_characters_are_balanced_and_independent_of_the_city():
    for split in ("train", "val"):
        jobs = generate.plan_split(split, 240, seed=0)
        counts = {c: sum(job.character == c for job in jobs) for c in CHARACTERS}
        assert set(counts.values()) == {60}
        for city in {job.name.split("_")[0] for job in jobs}:
            own = [job.character for job in jobs if job.name.startswith(city)]
            assert all(0.08 < own.count(c) / len(own) < 0.45 for c in CHARACTERS)
        assert len({job.name for job in jobs}) == 240


def test_splits_share_no_city(root):
    cities = [{name.split("_")[0] for name in names(root, split)} for split in ("train", "val")]
    assert all(len(c) > 2 for c in cities)
    assert not cities[0] & cities[1]


# ---------------------------------------------------------------- repeatability


def test_same_bytes_for_one_and_two_workers(tmp_path):
    make(tmp_path / "one", workers=1)
    make(tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_another_seed_gives_other_pictures(tmp_path):
    make(tmp_path / "a", train=2, val=1)
    make(tmp_path / "b", train=2, val=1, seed=4)
    a, b = content(tmp_path / "a"), content(tmp_path / "b")
    pictures = [path for path in a if path.endswith("leftImg8bit.png")]
    assert pictures
    assert all(a[path] != b[path] for path in pictures)


def test_train_and_val_scenes_differ(root):
    hashes = [v for k, v in content(root).items() if k.endswith("leftImg8bit.png")]
    assert len(set(hashes)) == len(hashes) == 13


# ---------------------------------------------------------------- repeated and interrupted runs


def test_second_run_keeps_what_is_complete(tmp_path, monkeypatch):
    make(tmp_path)
    before = content(tmp_path)
    monkeypatch.setattr(generate, "draw_scene", lambda *_: pytest.fail("drawn again"))
    make(tmp_path)
    assert content(tmp_path) == before


def test_second_run_restores_missing_and_empty_files(tmp_path, monkeypatch):
    make(tmp_path)
    before = content(tmp_path)
    first, second = names(tmp_path, "train")[:2]
    gt_path(tmp_path, "train", first, "instanceIds.png").unlink()
    gt_path(tmp_path, "train", second, "polygons.json").write_bytes(b"")
    drawn = []
    original = generate.draw_scene
    monkeypatch.setattr(generate, "draw_scene", lambda *a: drawn.append(a) or original(*a))
    make(tmp_path)
    assert len(drawn) == 2
    assert content(tmp_path) == before


def test_interrupted_run_is_redone(tmp_path, monkeypatch):
    make(tmp_path / "whole")
    original, drawn = generate.draw_scene, []

    def stop_at_fourth(*arguments):
        drawn.append(arguments)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(generate, "draw_scene", stop_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut")
    with pytest.raises(DataError, match="no complete street scenes"):
        load_characters(tmp_path / "cut")
    # What a crash may leave: a picture that is wrong, and a file that was still growing.
    left = next((tmp_path / "cut").rglob("*_leftImg8bit.png"))
    left.write_bytes(b"half a picture")
    (tmp_path / "cut/cityscapes/.partial").mkdir(exist_ok=True)
    (tmp_path / "cut/cityscapes/.partial/1_x.png").write_bytes(b"half")
    monkeypatch.setattr(generate, "draw_scene", original)
    make(tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_other_settings_replace_only_what_was_generated(tmp_path):
    make(tmp_path)
    note = tmp_path / "cityscapes/notes.txt"
    note.write_text("mine")
    make(tmp_path, train=2, val=1, seed=9)
    make(tmp_path / "fresh", train=2, val=1, seed=9)
    assert note.read_text() == "mine"
    note.unlink()
    fresh = content(tmp_path / "fresh")
    now = {k: v for k, v in content(tmp_path).items() if not k.startswith("fresh")}
    assert now == fresh


@pytest.mark.parametrize("generated_before", [False, True])
def test_foreign_images_are_refused_and_kept(tmp_path, generated_before):
    if generated_before:
        make(tmp_path, train=1, val=1)
    own = tmp_path / "cityscapes/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"photo")
    before = content(tmp_path)
    with pytest.raises(DataError, match="did not make"):
        make(tmp_path, train=2, val=1)
    assert content(tmp_path) == before


def test_damaged_record_is_reported(tmp_path):
    make(tmp_path, train=1, val=1)
    (tmp_path / "cityscapes/streetscapes.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        load_characters(tmp_path)
    with pytest.raises(DataError, match="damaged"):
        make(tmp_path, train=1, val=1)


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 63}, "at least 64 x 128"),
        ({"width": 127}, "at least 64 x 128"),
        ({"train": 0}, "train must be at least 1"),
        ({"val": -1}, "val must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_wrong_arguments_are_explained(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_unknown_character_is_explained():
    with pytest.raises(ConfigError, match="desert"):
        draw_scene("desert", 64, 128, np.random.default_rng(0))


def test_load_characters_without_data(tmp_path):
    with pytest.raises(DataError, match="no complete street scenes"):
        load_characters(tmp_path)


def test_command_line(tmp_path, capsys):
    script = Path(__file__).parents[2] / "datasets/make_streetscapes.py"
    spec = importlib.util.spec_from_file_location("make_streetscapes", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = ["--train=4", "--val=2", "--height=80", "--width=160", "--seed=3", "--workers=1"]
    assert module.main(["--output", str(tmp_path / "cli"), *options]) == 0
    make(tmp_path / "api")
    assert content(tmp_path / "cli") == content(tmp_path / "api")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        module.main(["--output", str(tmp_path / "bad"), "--height", "10"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


# ---------------------------------------------------------------- scenes


@settings(max_examples=24, deadline=None)
@given(
    height=st.integers(64, 200),
    width=st.integers(128, 320),
    character=st.sampled_from(CHARACTERS),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_size_gives_a_valid_scene(height, width, character, seed):
    picture, annotation = draw_scene(character, height, width, np.random.default_rng(seed))
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 4
    for thing in annotation["objects"]:
        assert thing["label"].removesuffix("group") in name2label
        points = np.array(thing["polygon"])
        assert points.dtype.kind == "i"
        assert len(points) >= 3
        assert points.min() >= 0
        assert (points.max(axis=0) < (width, height)).all()
        assert cv2.contourArea(points.astype(np.int32)) > 0
    labels = label_images(annotation)
    train_ids = np.asarray(labels["labelTrainIds"])
    assert (np.asarray(labels["labelIds"]) != 0).all()
    assert (train_ids == 255).mean() < 0.3
    again, annotation_again = draw_scene(character, height, width, np.random.default_rng(seed))
    np.testing.assert_array_equal(picture, again)
    assert annotation == annotation_again


def test_large_scene_keeps_the_proportions_of_a_small_one():
    def shares(height):
        _, annotation = draw_scene("highway", height, 2 * height, np.random.default_rng(2))
        ids = np.asarray(label_images(annotation)["labelTrainIds"])
        return np.bincount(ids.ravel(), minlength=256)[:19] / ids.size

    assert np.abs(shares(1024) - shares(128)).max() < 0.02


def test_all_nineteen_classes_occur_and_little_is_ignored(scenes):
    counts = np.zeros(256)
    for drawn in scenes.values():
        for _, annotation in drawn:
            ids = np.asarray(label_images(annotation)["labelTrainIds"])
            counts += np.bincount(ids.ravel(), minlength=256)
    missing = [trainId2label[i].name for i in range(19) if counts[i] == 0]
    assert missing == []
    assert counts[255] / counts.sum() < 0.08


def test_picture_edges_lie_on_label_edges(scenes):
    # Shifting the labels against the picture must make its colours fit the segments less well.
    def misfit(picture, ids, shift):
        moved = np.roll(ids, shift, axis=(0, 1))[4:-4, 4:-4].ravel()
        colours = picture[4:-4, 4:-4].reshape(-1, 3).astype(float)
        _, segment = np.unique(moved, return_inverse=True)
        size = np.bincount(segment)
        error = 0.0
        for channel in colours.T:
            mean = np.bincount(segment, channel) / size
            error += ((channel - mean[segment]) ** 2).mean()
        return error

    shifts = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    for character in ("highway", "town"):
        total = dict.fromkeys(shifts, 0.0)
        for picture, annotation in scenes[character]:
            ids = np.asarray(label_images(annotation)["instanceIds"]).astype(int)
            for shift in shifts:
                total[shift] += misfit(picture, ids, shift)
        assert min(total, key=total.get) == (0, 0)


def test_characters_look_different(scenes):
    def mean(function, character):
        return float(np.mean([function(*scene) for scene in scenes[character]]))

    def brightness(picture, _):
        return picture.mean()

    def contrast(picture, _):
        return picture.mean(axis=2).std()

    def colourfulness(picture, _):
        return np.ptp(picture.astype(int), axis=2).mean()

    def persons(_, annotation):
        return (np.asarray(label_images(annotation)["labelIds"]) == name2label["person"].id).mean()

    def objects(_, annotation):
        return len(annotation["objects"])

    day = min(mean(brightness, c) for c in ("highway", "town", "rain"))
    assert mean(brightness, "night") < 0.6 * day
    assert mean(contrast, "rain") < 0.75 * min(mean(contrast, c) for c in ("highway", "town"))
    assert mean(colourfulness, "rain") < 0.7 * mean(colourfulness, "town")
    assert mean(persons, "town") > 0.004 > 4 * mean(persons, "highway")
    assert mean(objects, "town") > 1.3 * mean(objects, "highway")


def test_far_person_is_smaller_than_near_person():
    from drawn.streetscapes import layout, people
    from drawn.streetscapes.scene import Setting
    from drawn.streetscapes.shapes import outline

    heights = []
    for z in (8.0, 16.0):
        rng = np.random.default_rng(5)
        camera = layout.make_camera(256, 512, rng, wide_open=False)
        polygon = outline(people.person(Setting(camera, rng), 0.0, z).parts, 256, 512)
        heights.append(np.ptp(np.array(polygon)[:, 1]))
    assert heights[0] == pytest.approx(2 * heights[1], rel=0.1)


def test_figures_hang_together():
    """Only the largest piece of an object is labelled, so heads must not come off."""
    from drawn.streetscapes import layout, people
    from drawn.streetscapes.scene import Setting
    from drawn.streetscapes.shapes import outline

    for seed in range(30):
        rng = np.random.default_rng(seed)
        setting = Setting(layout.make_camera(512, 1024, rng, wide_open=False), rng)
        figures = [people.person(setting, 0.0, 9.0), people.rider(setting, 0.0, 9.0, False)[1]]
        for figure in figures:
            polygon = np.array(outline(figure.parts, 512, 1024))
            points = np.concatenate([part.points for part in figure.parts])
            assert np.ptp(polygon[:, 1]) == pytest.approx(np.ptp(points[:, 1]), abs=3)


# ---------------------------------------------------------------- Detectron2 and cityscapesscripts


def folders(root, split="val"):
    return str(root / "cityscapes/leftImg8bit" / split), str(root / "cityscapes/gtFine" / split)


def metadata(root, name):
    image_dir, gt_dir = folders(root)
    catalog = f"{name}_{root.name}"
    MetadataCatalog.pop(catalog, None)
    MetadataCatalog.get(catalog).set(
        image_dir=image_dir, gt_dir=gt_dir, **_get_builtin_metadata("cityscapes")
    )
    return catalog


def test_detectron2_loads_semantic_labels(root):
    loaded = load_cityscapes_semantic(*folders(root, "train"))
    assert len(loaded) == 8
    for entry in loaded:
        assert (entry["height"], entry["width"]) == (96, 192)
        assert read(entry["file_name"]).shape == (96, 192, 3)
        assert entry["sem_seg_file_name"].endswith("labelTrainIds.png")
        assert read(entry["sem_seg_file_name"]).shape == (96, 192)


def test_detectron2_loads_instances_from_pictures(root):
    loaded = load_cityscapes_instances(*folders(root, "train"), from_json=False, to_polygons=False)
    assert len(loaded) == 8
    for entry in loaded:
        file = entry["file_name"].replace("leftImg8bit/", "gtFine/")
        ids = read(file.replace("_leftImg8bit.png", "_gtFine_instanceIds.png"))
        boxes = [np.ptp(np.argwhere(ids == i), axis=0) for i in np.unique(ids) if i >= 1000]
        single = [box for box in boxes if box.min() > 0]  # Detectron2 drops lines
        assert sum(not a["iscrowd"] for a in entry["annotations"]) == len(single)
    assert sum(len(entry["annotations"]) for entry in loaded) > 20


def test_detectron2_loads_the_same_instances_from_polygons(root):
    pytest.importorskip("shapely", reason="Detectron2 reads Cityscapes polygons with shapely")
    from_json = load_cityscapes_instances(*folders(root, "train"), from_json=True)
    from_png = load_cityscapes_instances(
        *folders(root, "train"), from_json=False, to_polygons=False
    )
    pictures = {entry["file_name"]: entry["annotations"] for entry in from_png}
    compared = 0
    for entry in from_json:
        for thing in pictures[entry["file_name"]]:
            left, top, right, bottom = thing["bbox"]
            if right - left < 6 or bottom - top < 6:
                continue
            compared += 1
            same = [a for a in entry["annotations"] if a["category_id"] == thing["category_id"]]
            distance = [np.abs(np.subtract(a["bbox"], thing["bbox"])).max() for a in same]
            assert min(distance) <= 3
    assert compared > 10


def test_perfect_semantic_predictions_score_hundred(root):
    evaluator = QuietEvaluators([CityscapesSemSegEvaluator(metadata(root, "sem_seg"))])
    evaluator.reset()
    for entry in load_cityscapes_semantic(*folders(root)):
        train_ids = torch.from_numpy(read(entry["sem_seg_file_name"]).astype(np.int64))
        scores = torch.stack([(train_ids == i).float() for i in range(19)])
        evaluator.process([{"file_name": entry["file_name"]}], [{"sem_seg": scores}])
    result = evaluator.evaluate()["sem_seg"]
    assert result["IoU"] == pytest.approx(100)
    assert result["IoU_sup"] == pytest.approx(100)


def test_wrong_semantic_predictions_score_less(root):
    evaluator = QuietEvaluators([CityscapesSemSegEvaluator(metadata(root, "wrong"))])
    evaluator.reset()
    for entry in load_cityscapes_semantic(*folders(root)):
        scores = torch.zeros(19, 96, 192)
        scores[0] = 1
        evaluator.process([{"file_name": entry["file_name"]}], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["IoU"] < 10


def test_perfect_instances_score_hundred(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Cityscapes' scripts leave a matches.json in the current folder
    catalog = metadata(root, "instances")
    classes = MetadataCatalog.get(catalog).thing_classes
    evaluator = QuietEvaluators([CityscapesInstanceEvaluator(catalog)])
    evaluator.reset()
    for entry in load_cityscapes_semantic(*folders(root)):
        file = entry["sem_seg_file_name"].replace("labelTrainIds", "instanceIds")
        ids = read(file).astype(int)
        single = [i for i in np.unique(ids) if i >= 1000]
        found = Instances((96, 192))
        found.pred_classes = [classes.index(id2label[i // 1000].name) for i in single]
        found.scores = torch.full((len(single),), 0.9)
        masks = [torch.from_numpy(ids == i) for i in single]
        found.pred_masks = torch.stack(masks) if masks else torch.zeros(0, 96, 192)
        output = SimpleNamespace(to=lambda _, found=found: found)
        evaluator.process([{"file_name": entry["file_name"]}], [{"instances": output}])
    result = evaluator.evaluate()["segm"]
    assert result["AP"] > 99
    assert result["AP50"] > 99


def test_needs_are_what_the_pictures_of_instances_show(root):
    needs = load_needs(root)
    for split in ("train", "val"):
        assert list(needs[split]) == names(root, split)
        for name, need in needs[split].items():
            ids = np.asarray(Image.open(gt_path(root, split, name, "instanceIds.png"))).ravel()
            single = [i for i in sorted(set(ids.tolist())) if i >= 1000]
            assert need["objects"] == len(single)
            assert need["sizes"] == sorted(int((ids == i).sum()) for i in single)
            assert need["density"] is None
            (scene,) = load_scenes((root / "cityscapes").glob(f"leftImg8bit/*/*/{name}_*.png"))
            assert scene.objects == need["objects"]
            assert scene.labels == gt_path(root, split, name, "labelTrainIds.png")


def test_unequal_scenes_range_from_empty_to_dense(tmp_path):
    make(tmp_path, train=12, val=2, unequal=1.0)
    needs = load_needs(tmp_path)["train"]
    rising = sorted(needs.values(), key=lambda need: need["density"])
    # Twelve equal steps from 0 to 1, each image in the middle of one.
    assert [need["density"] for need in rising] == pytest.approx(
        [(step + 0.5) / 12 for step in range(12)]
    )
    few, many = rising[:4], rising[-4:]
    assert sum(n["objects"] for n in few) * 3 < sum(n["objects"] for n in many)
    characters = load_characters(tmp_path)["train"]
    assert {characters[n] for n in needs if needs[n]["density"] < 0.5} == {"highway"}
    assert {characters[n] for n in needs if needs[n]["density"] > 0.5} == {"town"}


def test_equal_scenes_are_alike_and_an_empty_highway_has_no_objects(tmp_path):
    make(tmp_path, unequal=0.0)
    assert {n["density"] for n in load_needs(tmp_path)["train"].values()} == {0.5}
    _, annotation = draw_scene("highway", 80, 160, np.random.default_rng(0), density=0.0)
    labels = {thing["label"] for thing in annotation["objects"]}
    assert not labels & {"car", "truck", "bus", "person", "rider", "motorcycle", "traffic sign"}
    assert "road" in labels


@pytest.mark.parametrize("unequal", [-0.1, 1.1, float("nan")])
def test_unequal_out_of_its_range_is_refused(tmp_path, unequal):
    with pytest.raises(ConfigError, match="from 0 to 1"):
        make(tmp_path, unequal=unequal)
